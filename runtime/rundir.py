"""Run directories: `runs/<stage>/<slug>-<hash>/`, through which stages exchange results.

run.yaml        resolved config, identity, parent, provenance of each attempt
metrics.jsonl   one row per logged step
result.json     the scores; written last: a run is done if and only if it exists
failure.json    how the latest attempt failed; removed when a new one starts
data.json       the folder that it reads its data from (data/record.py)
heartbeat.json  the working process and its progress, every few seconds
checkpoints/    the training states that a pretraining kept, as step-00000500.pt and epoch-0010.pt
lock            held (POSIX lock) by the working process, so that two never write to one run
"""

from __future__ import annotations

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
from runtime.loggers import Loggers
from runtime.yaml_files import parse_dumped, write_yaml

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 120.0  # an older heartbeat from another host means that its process died
ELSEWHERE = "keep your runs elsewhere: machine.runs=FOLDER"
_held_by_this_process: set[Path] = set()


@dataclass(frozen=True)
class Identity:
    """Everything that names a run: equal configs of a stage have equal identities."""

    stage: str
    slug: str
    format: int  # of the stage; raised when equal configs come to give other results
    config: dict[str, Any]  # resolved, without `machine`
    parent: str | None = None  # hash of the evaluated run

    @cached_property
    def hash(self) -> str:
        return configs.identity_hash(self.stage, self.format, self.config, self.parent)

    @property
    def name(self) -> str:
        return f"{self.slug}-{self.hash}"


@dataclass
class Run:
    """One run directory. Creating the object touches no file; `open_run` makes and locks the directory."""

    path: Path
    loggers: Loggers = field(default_factory=Loggers)
    _progress: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, root: str | Path, identity: Identity) -> Run:
        return cls(Path(root) / identity.stage / identity.name)

    @property
    def name(self) -> str:
        return self.path.name

    def document(self) -> dict[str, Any]:
        """Read run.yaml; UserError where the folder is not a run directory."""
        file = self.path / "run.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run directory: it holds no run.yaml")
        try:
            document = parse_dumped(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        if not isinstance(document, dict) or not {"stage", "hash", "config"} <= set(document):
            raise UserError(f"{file} is not this project's run.yaml: expected the keys stage, hash and config")
        return document

    def attempts(self) -> list[dict[str, Any]]:
        """Read the provenance of each attempt; empty before the first one, or where a crash cut the file off."""
        try:
            attempts = parse_dumped(f"attempts:{self._attempts_text()}")["attempts"]
        except yaml.YAMLError:
            return []
        return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []

    def count_attempts(self) -> int:
        """Count the attempts by lines: parsing the YAML of thousands of runs would take seconds."""
        return self._attempts_text().count("\n- ")

    def _attempts_text(self) -> str:
        """Return the last section of run.yaml: the config before it is most of the file, and not needed here."""
        try:
            text = (self.path / "run.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return f"\n{text}".partition("\nattempts:")[2]

    def result(self) -> dict[str, Any] | None:
        return files.read_json_object(self.path / "result.json")

    def failure(self) -> dict[str, Any] | None:
        return files.read_json_object(self.path / "failure.json")

    def heartbeat(self) -> dict[str, Any] | None:
        return files.read_json_object(self.path / "heartbeat.json")

    def state(self) -> str:
        """Return new, running, done, failed, or interrupted (started, and no process works on it)."""
        if self.result() is not None:
            return "done"
        if self._is_held():
            return "running"
        if self.failure() is not None:
            return "failed"
        return "interrupted" if (self.path / "run.yaml").exists() else "new"

    def _is_held(self) -> bool:
        # POSIX locks belong to the process: opening and closing the file here would drop the lock that it holds.
        if self.path.resolve() in _held_by_this_process:
            return True
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY)  # enough to test a lock: other users may read the state
        except FileNotFoundError:
            return False
        except PermissionError:
            return self._heartbeat_is_fresh()
        try:
            os.lockf(handle, os.F_TEST, 0)
        except OSError as error:  # a file system that refuses locks says nothing about this one
            return error.errno in files.LOCK_TAKEN or self._heartbeat_is_fresh()
        finally:
            os.close(handle)
        return self._other_host_has_it()

    def _other_host_has_it(self) -> bool:
        """Return whether another host's heartbeat is fresh: some network file systems do not share locks."""
        beat = self.heartbeat()
        return beat is not None and beat["host"] != socket.gethostname() and self._heartbeat_is_fresh()

    def _heartbeat_is_fresh(self) -> bool:
        beat = self.heartbeat()
        return beat is not None and not beat.get("ended") and time.time() - beat["time"] < STALE_SECONDS

    def require_writable(self) -> None:
        """Raise UserError if its files cannot be written; called before anything starts."""
        files.require_writable(self.path, ELSEWHERE)

    def set_progress(self, done: int, total: int, unit: str, **extra: Any) -> None:
        """Set the progress that the heartbeat writes, within a few seconds."""
        self._progress = {"done": done, "total": total, "unit": unit, **extra}

    def append_metrics(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.loggers.log(row)

    def metrics(self) -> list[dict[str, Any]]:
        return list(files.read_json_lines(self.path / "metrics.jsonl"))

    def resume_metrics_after(self, step: int) -> None:
        """Remove the rows after the checkpoint's step, which will be written again, and start the loggers there."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        files.write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        self.loggers.start(step)

    def write_result(self, scores: dict[str, Any]) -> None:
        files.write_json(self.path / "result.json", scores)


def finished_run(path: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Read run.yaml at `path`, of a finished run of one of the stages.

    UserError where the folder is missing, is no run directory, is of another stage, is not done, or was edited by hand.
    """
    run = Run(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected that of a {stages[0]} run, as runs/{stages[0]}/<run>")
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
    """Make the run's directory if it is missing, and lock it during the block.

    Raises BusyError if another process works on it, UserError if its file system has no locks. An exception in the
    block is recorded in failure.json, except Unfinished: a requested stop is not a failure. The caller checks whether
    the run is done already.
    """
    run = Run.at(root, identity)
    files.make_folder(run.path, ELSEWHERE)
    with _lease(run):
        # Only the holder of the lease may touch files: before it, they could be those of a working process.
        files.remove_leftovers(run.path)
        (run.path / "failure.json").unlink(missing_ok=True)
        if run.result() is None:
            _record_attempt(run, identity, machine)
        try:
            yield run
        except Unfinished:
            raise
        except Exception as error:  # not KeyboardInterrupt: a user's Ctrl-C is no failure of the run
            record_failure(run, error)
            raise


def record_failure(run: Run, error: Exception) -> None:
    """Write failure.json. Only for the process that holds the run."""
    record = {"class": type(error).__name__, "message": str(error) or repr(error), "time": time.time()}
    with suppress(OSError, UserError):  # on a full disk: the error itself is what the user needs
        files.write_json(run.path / "failure.json", record)


@contextmanager
def _lease(run: Run) -> Iterator[None]:
    path = run.path.resolve()
    # The lock itself excludes other processes alone, and on some file systems other processes of this host alone.
    if path in _held_by_this_process or run._other_host_has_it():
        raise BusyError(_busy_message(run))
    with files.lock(path / "lock", wait=False, otherwise=ELSEWHERE) as held:
        if not held:
            raise BusyError(_busy_message(run))
        _held_by_this_process.add(path)
        stop = threading.Event()
        heartbeat = threading.Thread(target=_repeat_heartbeat, args=(run, stop), daemon=True)
        try:
            _write_heartbeat(run)
            heartbeat.start()
            yield
        finally:
            # The last heartbeat is written while the lock is still held: a successor's must not be overwritten.
            stop.set()
            if heartbeat.ident is not None:
                heartbeat.join()
            _write_heartbeat(run, ended=True)
            _held_by_this_process.discard(path)


def _busy_message(run: Run) -> str:
    heartbeat = run.heartbeat() or {}
    holder = f"process {heartbeat.get('pid', '?')} on {heartbeat.get('host', '?')}"
    return f"{run.path} is in use by {holder}; wait for it or stop it, then repeat the command"


def _repeat_heartbeat(run: Run, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        _write_heartbeat(run)


def _write_heartbeat(run: Run, ended: bool = False) -> None:
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "time": time.time(),
        "ended": ended,
        "progress": run._progress,
    }
    # A full disk must not end the run here: its own saves report that.
    with suppress(OSError, UserError):
        files.write_json(run.path / "heartbeat.json", record)


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
    write_yaml(run.path / "run.yaml", document)
    if diff := provenance.code().diff:
        files.write_text(run.path / f"attempt-{len(attempts) + 1}.diff", diff + "\n")
