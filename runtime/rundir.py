"""Run directories: `runs/<stage>/<slug>-<hash>/`, the only thing that stages share.

run.yaml        resolved config, identity, parent, one provenance entry an attempt
metrics.jsonl   one row a logging step
result.json     the scores; written last, so that its presence is what `done` means
failure.json    how the latest attempt failed; gone once a new one starts
heartbeat.json  who works on it and how far it is
lock            held (POSIX lock) by the working process: two never share a run
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from runtime import config as configs
from runtime import files, provenance
from runtime.errors import BusyError, Unfinished, UserError

HEARTBEAT_SECONDS = 5.0
# A heartbeat of another host that is older than this is of a process that died.
STALE_SECONDS = 120.0
ELSEWHERE = "keep your runs elsewhere: machine.runs=FOLDER"
# The same as yaml.safe_load, many times as quick where PyYAML was built with libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_held_here: set[Path] = set()


@dataclass(frozen=True)
class Identity:
    """What names a run: the same question asked twice has the same identity."""

    stage: str
    slug: str
    format: int  # of the stage; raised when the same config comes to mean something else
    config: dict[str, Any]  # resolved, without `machine`
    parent: str | None = None  # hash of the run that this one evaluates

    @cached_property
    def hash(self) -> str:
        return configs.identity_hash(self.stage, self.format, self.config, self.parent)

    @property
    def name(self) -> str:
        return f"{self.slug}-{self.hash}"


@dataclass
class Run:
    """One run directory. Making the object touches nothing; `open_run` makes and holds the folder."""

    path: Path
    _progress: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, root: str | Path, identity: Identity) -> Run:
        return cls(Path(root) / identity.stage / identity.name)

    @property
    def name(self) -> str:
        return self.path.name

    def document(self) -> dict[str, Any]:
        """run.yaml; UserError where the folder is not a run directory."""
        file = self.path / "run.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run directory: it holds no run.yaml")
        try:
            document = files.parse_yaml(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        if not isinstance(document, dict) or not {"stage", "hash", "config"} <= set(document):
            raise UserError(f"{file} is not this project's run.yaml: expected the keys stage, hash and config")
        return document

    def attempts(self) -> list[dict[str, Any]]:
        """The provenance of each attempt; empty where none was begun, or where a crash cut the file off."""
        try:
            attempts = files.parse_yaml(f"attempts:{self._attempts_text()}", _LOADER)["attempts"]
        except yaml.YAMLError:
            return []
        return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []

    def count_attempts(self) -> int:
        """How many attempts there were; by lines, because parsing thousands of files would take seconds."""
        return self._attempts_text().count("\n- ")

    def _attempts_text(self) -> str:
        """The last section of run.yaml: the config before it is most of the file, and known already."""
        try:
            text = (self.path / "run.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return f"\n{text}".partition("\nattempts:")[2]

    def result(self) -> dict[str, Any] | None:
        return files.read_json(self.path / "result.json")

    def failure(self) -> dict[str, Any] | None:
        return files.read_json(self.path / "failure.json")

    def heartbeat(self) -> dict[str, Any] | None:
        return files.read_json(self.path / "heartbeat.json")

    def state(self) -> str:
        """new, running, done, failed, or interrupted (begun, and nobody works on it)."""
        if self.result() is not None:
            return "done"
        if self._someone_works():
            return "running"
        if self.failure() is not None:
            return "failed"
        return "interrupted" if (self.path / "run.yaml").exists() else "new"

    def _someone_works(self) -> bool:
        if self.path.resolve() in _held_here:
            return True  # and opening the lock again would drop it at the close
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY)  # testing a lock needs no more: others may look
        except FileNotFoundError:
            return False
        except PermissionError:
            return self._beats()
        try:
            os.lockf(handle, os.F_TEST, 0)
        except OSError:
            return True
        finally:
            os.close(handle)
        return self._other_host_works()

    def _other_host_works(self) -> bool:
        """Some network file systems do not carry locks between hosts: a fresh heartbeat counts too."""
        beat = self.heartbeat()
        return beat is not None and beat["host"] != socket.gethostname() and self._beats()

    def _beats(self) -> bool:
        """Whether its last sign of life is fresh."""
        beat = self.heartbeat()
        return beat is not None and not beat.get("ended") and time.time() - beat["time"] < STALE_SECONDS

    def require_writable(self) -> None:
        """UserError where its files cannot be written: before anything begins."""
        files.require_writable(self.path, ELSEWHERE)

    def progress(self, done: int, total: int, unit: str, **extra: Any) -> None:
        """Tell the heartbeat how far the run is; it reaches the file within a few seconds."""
        self._progress = {"done": done, "total": total, "unit": unit, **extra}

    def append_metrics(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        return list(files.read_json_lines(self.path / "metrics.jsonl"))

    def drop_metrics_after(self, step: int) -> None:
        """Forget rows that a resumed run will write again (those with `step` beyond its checkpoint)."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        files.write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def write_result(self, scores: dict[str, Any]) -> None:
        files.write_json(self.path / "result.json", scores)


def finished_run(path: Path, stages: Sequence[str]) -> dict[str, Any]:
    """The run.yaml of a finished run of one of the stages, at `path`.

    UserError where the folder is missing, is no run directory, is of another stage, is not done, or was edited by hand.
    """
    run = Run(path)
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; expected the directory of a {stages[0]} run, as runs/{stages[0]}/<run>"
        )
    document = run.document()
    if document["stage"] not in stages:
        raise UserError(f"{path} is a run of the stage {document['stage']!r}; expected one of {stages[0]!r}")
    if run.state() != "done":
        raise UserError(
            f"{path} is {run.state()}, and only a {stages[0]} run that is done can be used here; "
            f"repeat its `python -m {stages[0]}` command until it is"
        )
    parts = (document["stage"], document.get("format"), document["config"], document.get("parent"))
    if document["hash"] != (expected := configs.identity_hash(*parts)):
        raise UserError(
            f"{path / 'run.yaml'} was changed: its config hashes to {expected}, and it says {document['hash']}. "
            "Restore it, or run it again: a score must name the config it came from"
        )
    return document


@contextmanager
def open_run(root: str | Path, identity: Identity, machine: dict[str, Any]) -> Iterator[Run]:
    """Make (or find) the run's folder and hold it while the block works.

    Raises BusyError if another process works on it. An exception in the block is recorded in
    failure.json; a stop that was asked for is not a failure. Whether the run is done already is for the caller to ask.
    """
    run = Run.at(root, identity)
    files.make_folder(run.path, ELSEWHERE)
    with _lease(run):
        files.remove_leftovers(run.path)
        (run.path / "failure.json").unlink(missing_ok=True)
        if run.result() is None:
            _record_attempt(run, identity, machine)
        try:
            yield run
        except Unfinished:
            raise
        except Exception as error:
            record_failure(run, error)
            raise


def record_failure(run: Run, error: Exception) -> None:
    """failure.json. Only for the holder of the run."""
    record = {"class": type(error).__name__, "message": str(error) or repr(error), "time": time.time()}
    with suppress(OSError, UserError):  # on a full disk: the error itself is what the user needs
        files.write_json(run.path / "failure.json", record)


@contextmanager
def _lease(run: Run) -> Iterator[None]:
    path = run.path.resolve()
    if path in _held_here or run._other_host_works():
        raise BusyError(_busy_message(run))
    # A POSIX lock: the kernel drops it when the process dies, and forked loader workers do not inherit it.
    handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise BusyError(_busy_message(run)) from error
    _held_here.add(path)
    stop = threading.Event()
    beats = threading.Thread(target=_keep_beating, args=(run, stop), daemon=True)
    try:
        _beat(run)
        beats.start()
        yield
    finally:
        stop.set()
        if beats.ident is not None:
            beats.join()
        _beat(run, ended=True)
        _held_here.discard(path)
        os.close(handle)


def _busy_message(run: Run) -> str:
    beat = run.heartbeat() or {}
    who = f"process {beat.get('pid', '?')} on {beat.get('host', '?')}"
    return f"{run.path} is in use by {who}; wait for it or stop it, then repeat the command"


def _keep_beating(run: Run, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        _beat(run)


def _beat(run: Run, ended: bool = False) -> None:
    beat = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "time": time.time(),
        "ended": ended,
        "progress": run._progress,
    }
    # A full disk must not kill the run here: its own saves report that.
    with suppress(OSError, UserError):
        files.write_json(run.path / "heartbeat.json", beat)


def _record_attempt(run: Run, identity: Identity, machine: dict[str, Any]) -> None:
    attempts = run.document()["attempts"] if (run.path / "run.yaml").exists() else []
    document = {
        "stage": identity.stage,
        "format": identity.format,
        "hash": identity.hash,
        "parent": identity.parent,
        "config": identity.config,
        "machine": machine,
        "attempts": [*attempts, provenance.collect()],
    }
    files.write_yaml(run.path / "run.yaml", document)
    if diff := provenance.dirty_diff():
        files.write_text(run.path / f"attempt-{len(attempts) + 1}.diff", diff + "\n")
