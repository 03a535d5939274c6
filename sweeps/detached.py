"""A background sweep on this machine that survives its shell: `submit --cluster local`.

`<runs>/jobs/local/<study>/` has its log, its process id and host, and a lock that it holds until it ends.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import UserError
from runtime.provenance import import_path
from runtime.rundir import ELSEWHERE
from sweeps.children import GRACE_SECONDS
from sweeps.failures import BY_OWNER
from sweeps.graph import Graph

COMMAND = (sys.executable, "-m", "sweeps")


def folder_of(graph: Graph) -> Path:
    root = graph.nodes[0].root if graph.nodes else "runs"
    return Path(root) / "jobs" / "local" / graph.study.name


def log_of(graph: Graph) -> Path:
    return folder_of(graph) / "log.txt"


def start(graph: Graph, options: Sequence[str]) -> dict[str, Any] | None:
    """Start `run STUDY options` in the background; None, with nothing started, where one is running already."""
    folder = folder_of(graph)
    files.make_folder(folder, ELSEWHERE)
    # flock, unlike files.lock, belongs to the open file: the sweep inherits it from this process, without a moment
    # in between, and holds it until it dies, however it dies.
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        argv = [*COMMAND, "run", graph.study.file, *options]
        with open(log_of(graph), "ab") as log:
            log.write(f"$ {shlex.join(argv)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | import_path() | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        record = {"pid": process.pid, "host": socket.gethostname(), "started": time.time(), "argv": argv}
        files.write_json(folder / "process.json", record)
    return record


def running(graph: Graph) -> dict[str, Any] | None:
    """Return the record (pid, host, ...) of the study's background sweep; None where none is running."""
    folder = folder_of(graph)
    try:
        with open(folder / "lock", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        record = files.read_json(folder / "process.json")
        return record if isinstance(record, dict) else {}
    return None


def stop(graph: Graph, seconds: float = GRACE_SECONDS + 15.0) -> bool:
    """Stop the background sweep, which saves every run at its next step, and wait for its end; False if none runs.

    Raises UserError where it runs on another host or belongs to another user.
    """
    sweep = running(graph)
    if sweep is None:
        return False
    if sweep.get("host") != socket.gethostname():
        where = f"on {sweep.get('host')} (process {sweep.get('pid')})"
        raise UserError(f"{graph.study.name} is running {where}; cancel it there")
    try:
        os.kill(int(sweep["pid"]), signal.SIGTERM)
    except PermissionError as error:
        raise UserError(
            f"{graph.study.name} is running as process {sweep['pid']} of another user; {BY_OWNER}"
        ) from error
    deadline = time.monotonic() + seconds
    while running(graph) is not None:
        if time.monotonic() > deadline:
            raise UserError(f"process {sweep['pid']} did not stop within {seconds:.0f} s; its log: {log_of(graph)}")
        time.sleep(0.1)
    return True
