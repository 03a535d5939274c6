"""Loggers of a run beside metrics.jsonl: machine.loggers=[tensorboard,wandb]. They get its rows, then its scores.

To add a logger, write a class with the methods of `Logger`, made from a LoggedRun and a step, and name it in LoggerName
and LOGGERS by the name of the package that it needs. One that fails gives a warning and is left out from then on: it
never stops a run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from runtime.config_keys import flatten
from runtime.errors import UserError

if TYPE_CHECKING:
    from runtime.rundir import Identity

DEFAULT_PROJECT = "vicregl"  # of W&B and trackio; the experiment of MLflow for runs of no study
# A training waits for its loggers, and a sweep that stops kills a run after 30 s. What W&B could not upload stays in
# the run's directory, for `wandb sync`.
TIMEOUTS = {
    "WANDB_FINISH_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
NOT_LOGGED = ("step", "epoch", "time")  # of a row: loggers have their own
Values = dict[str, float]
LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


@dataclass(frozen=True)
class LoggedRun:
    path: Path
    identity: Identity  # its hash is the same in every attempt, so that a resumed run stays one run
    group: str  # its study; empty: none

    @property
    def config(self) -> dict[str, Any]:
        return {**self.identity.config, "stage": self.identity.stage, "parent": self.identity.parent}


class Logger(Protocol):
    def log(self, values: Values, step: int) -> None: ...

    def log_scores(self, scores: Values, step: int) -> None: ...

    def close(self, done: bool) -> None:
        """End this attempt; `done`: it was the last."""


class TensorBoard:
    """Event files in the run's folder tensorboard/. Those of steps that are repeated are hidden."""

    def __init__(self, run: LoggedRun, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    log_scores = log

    def close(self, done: bool) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases; WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and so on hold as everywhere."""

    def __init__(self, run: LoggedRun, step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            group=run.group or None,
            job_type=run.identity.stage,
            name=run.identity.name,
            id=run.identity.hash,
            resume="allow",
            dir=str(run.path),
            config=run.config,
        )

    def log(self, values: Values, step: int) -> None:
        self.run.log(values, step=step)

    def log_scores(self, scores: Values, step: int) -> None:
        self.run.summary.update(scores)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class Trackio:
    """trackio, in its own folder (TRACKIO_DIR), or in a Space (TRACKIO_SPACE_ID)."""

    def __init__(self, run: LoggedRun, step: int) -> None:
        import trackio

        name, group = run.identity.name, run.group or None
        self.run = trackio.init(DEFAULT_PROJECT, name, group, config=run.config, resume="allow", embed=False)

    def log(self, values: Values, step: int) -> None:
        self.run.log(values, step=step)

    log_scores = log

    def close(self, done: bool) -> None:
        self.run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI, or else in files in the run's folder mlruns/."""

    def __init__(self, run: LoggedRun, step: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or (run.path / "mlruns").absolute().as_uri()
        self.client = MlflowClient(tracking_uri=place)
        name = run.group or DEFAULT_PROJECT
        known = self.client.get_experiment_by_name(name)
        self.id = self._open(run, self.client.create_experiment(name) if known is None else known.experiment_id)

    def _open(self, run: LoggedRun, experiment: str) -> str:
        """Return the id of the run, which MLflow chooses: it is found by its tag in the next attempt."""
        from mlflow.entities import Param

        identity = run.identity
        found = self.client.search_runs([experiment], f"tags.hash = '{identity.hash}'")
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {"hash": identity.hash, "stage": identity.stage}
        made = self.client.create_run(experiment, run_name=identity.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in flatten(run.config).items()]
        for start in range(0, len(params), 100):  # the most that a server takes at once
            self.client.log_batch(made, params=params[start : start + 100])
        return str(made)

    def log(self, values: Values, step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    log_scores = log

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


LOGGERS: dict[LoggerName, Callable[[LoggedRun, int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def require_loggers(names: Sequence[LoggerName]) -> None:
    """Raise UserError for a logger whose package, of the same name, is not installed."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without origin: a folder wandb/ of data, as wandb itself makes
            package = "mlflow-skinny (or mlflow)" if name == "mlflow" else name
            raise UserError(
                f"config: machine.loggers = {list(names)!r}: {name} is not installed here; pip install {package}, or "
                "leave it out"
            )


class Loggers:
    """All loggers of a run, in the process that writes it; by default none."""

    def __init__(self, names: Sequence[LoggerName] = (), run: LoggedRun | None = None) -> None:
        self.waiting: dict[str, Callable[[int], Logger]] = {}  # not opened yet
        if run is not None:
            self.waiting = {name: partial(LOGGERS[name], run) for name in names}
        self.active: dict[str, Logger] = {}
        self.step = 0  # the last one that was saved or logged

    def start(self, step: int) -> None:
        """Open them, at the last step that was saved: a resumed run may log later ones for the second time."""
        self.step = step
        if self.waiting:
            os.environ.update(TIMEOUTS | os.environ)
        for name in list(self.waiting):
            with self._warn_instead(name):
                self.active[name] = self.waiting.pop(name)(step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row of metrics.jsonl."""
        self.step = row["step"]
        values = dict(_numbers({key: value for key, value in row.items() if key not in NOT_LOGGED}))
        self._each(lambda logger: logger.log(values, self.step))

    def log_scores(self, scores: Mapping[str, Any]) -> None:
        """Log the numbers of result.json, as result/top1 and so on."""
        self.start(self.step)  # of a stage without rows
        values = dict(_numbers({"result": scores}))
        self._each(lambda logger: logger.log_scores(values, self.step))

    def close(self, done: bool) -> None:
        self._each(lambda logger: logger.close(done))

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self.active.items()):
            with self._warn_instead(name):
                act(logger)

    @contextmanager
    def _warn_instead(self, name: str) -> Iterator[None]:
        """Turn an exception of the block into a warning, and leave the logger out from then on."""
        try:
            yield
        except Exception as error:  # whatever the package raises
            self.active.pop(name, None)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"warning: the run goes on without the logger {name}: {reason}", file=sys.stderr, flush=True)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested values by name: those of a list or mapping as "loss/0" and "iou/background"."""
    for key, value in values.items():
        if isinstance(value, Mapping | list):
            inside = value if isinstance(value, Mapping) else {str(n): each for n, each in enumerate(value)}
            yield from _numbers(inside, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
