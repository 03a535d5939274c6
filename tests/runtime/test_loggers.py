"""Loggers: rows and scores arrive, a resumed run stays one run in the group of its study, and none stops a run.

Each is its real library, without a network; one that is not installed skips.
"""

import os
import struct
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import get_args

import pytest

from runtime import loggers
from runtime.config import Config, MachineConfig
from runtime.errors import Unfinished, UserError
from runtime.loggers import LOGGERS, LoggerName
from runtime.rundir import Identity, Run
from runtime.stage import _logged, run_stage
from runtime.world import World

NAME = Identity("linear", "run", 1, {"loss": {"alpha": 0.5}, "sizes": [3, 1], "k": None}, parent="c0ffee")
STEPS = [1, 2, 3, 4, 5]


class StageConfig(Config):
    machine: MachineConfig = MachineConfig()


def attempt(runs: Path, *names: LoggerName, first: int = 0, stop: int | None = None) -> Run:
    """Run from the step after `first` to 5, or be asked to stop after `stop`."""

    def work(run, _device, _world):
        run.resume_metrics_after(first)
        for step in STEPS[first:stop]:
            run.append_metrics(
                {"step": step, "epoch": 1, "time": 5.5, "loss": 1 / step, "top1": [step, None, 2.0 * step]}
            )
        if stop is not None:
            raise Unfinished("told to")
        return {"top1": 90.5, "iou": {"sky": 40.0}, "protocol": "linear", "chosen": True}

    machine = MachineConfig(device="cpu", runs=str(runs), loggers=list(names), group="alpha")
    run_stage(StageConfig(machine=machine), NAME, work, World())
    return Run.at(runs, NAME)


def attempts(runs: Path, name: LoggerName) -> Run:
    """Stop after step 4, and go on after step 2, the last one that was saved."""
    with pytest.raises(Unfinished):
        attempt(runs, name, stop=4)
    return attempt(runs, name, first=2)


def program(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the code in another process, with this module as `tests`."""
    first = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_loggers as tests\n"
    return subprocess.run(
        [sys.executable, "-c", first + code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_every_logger_of_the_config_is_there():
    assert set(get_args(LoggerName)) == set(LOGGERS)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(attempts(tmp_path, "tensorboard").path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == STEPS  # each once
    assert [event.value for event in board.Scalars("top1/2")] == [2.0 * step for step in STEPS]
    assert set(board.Tags()["scalars"]) == {"loss", "top1/0", "top1/2", "result/top1", "result/iou/sky"}
    assert [(event.step, event.value) for event in board.Scalars("result/top1")] == [(5, 90.5)]


def wandb_records(file: Path):
    """Read W&B's file: after 7 bytes LevelDB's log format, whose records do not cross blocks of 32 KiB undivided."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    done = program(f"tests.attempts(tests.Path({str(tmp_path)!r}), 'wandb')", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    files = sorted((Run.at(tmp_path, NAME).path / "wandb").glob(f"offline-run-*-{NAME.hash}/run-{NAME.hash}.wandb"))
    first, second = ([*wandb_records(file)] for file in files)
    for records in (first, second):
        (made,) = [record.run for record in records if record.HasField("run")]
        assert (made.run_id, made.run_group, made.job_type) == (NAME.hash, "alpha", "linear")
        assert (made.display_name, made.project) == (NAME.name, "vicregl")
    rows = [record.history for record in second if record.HasField("history")]
    assert [row.step.num for row in rows] == [3, 4, 5]
    values = {"/".join(item.nested_key) or item.key: item.value_json for item in rows[-1].item}
    assert values["loss"] == "0.2"
    assert values["top1/2"] == "10"
    scores = {item.key: item.value_json for record in second for item in record.summary.update}
    assert scores["result/top1"] == "90.5"
    assert [record.exit.exit_code for records in (first, second) for record in records if record.HasField("exit")] == [
        1,
        0,
    ]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = attempts(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(run.path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("alpha")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (NAME.name, "FINISHED")
    assert found.data.params["loss.alpha"] == "0.5"
    assert found.data.tags["stage"] == "linear"
    assert found.data.metrics["result/top1"] == 90.5
    assert {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")} == {
        step: 1 / step for step in STEPS
    }


KILL_IT = """
import psutil
from runtime.loggers import WandB
log = WandB.log
def killed(self, values, step):
    if step == 3:
        [child.kill() for child in psutil.Process().children(recursive=True)]
    log(self, values, step)
WandB.log = killed
"""


def test_a_run_outlives_the_process_of_wandb(tmp_path):
    pytest.importorskip("wandb")
    done = program(f"{KILL_IT}tests.attempt(tests.Path({str(tmp_path)!r}), 'wandb')", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: the run goes on without the logger wandb: ") == 1
    assert Run.at(tmp_path, NAME).result()["top1"] == 90.5


ROWS_OF_TRACKIO = """
import trackio
from trackio.sqlite_storage import SQLiteStorage
for run in trackio.Api().runs("vicregl"):
    rows = SQLiteStorage.get_logs("vicregl", run.name)
    print("row", run.name, run.config["_Group"], sorted({row["step"] for row in rows}), rows[-1]["result/top1"])
"""


def test_trackio(tmp_path):
    pytest.importorskip("trackio")
    code = f"tests.attempts(tests.Path({str(tmp_path)!r}), 'trackio')\n{ROWS_OF_TRACKIO}"
    done = program(code, TRACKIO_DIR=str(tmp_path / "trackio"))  # which is read when it is imported
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("row")]
    assert rows == [f"row {NAME.name} alpha {STEPS} 90.5"]


class Broken:
    """Fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, 0

    def call(self, method: str) -> "Broken":
        self.calls += 1
        if method == self.where:
            raise ConnectionError(f"no answer\nin {method}")
        return self

    def start(self, _run, _step):
        return self.call("start")

    def log(self, _values, _step):
        self.call("log")

    def log_scores(self, _scores, _step):
        self.call("log_scores")

    def close(self, _done):
        self.call("close")


@pytest.mark.parametrize(("where", "calls"), [("start", 1), ("log", 2), ("log_scores", 7), ("close", 8)])
def test_a_logger_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch, capsys, where, calls):
    broken = Broken(where)
    monkeypatch.setattr("runtime.stage.require_loggers", lambda _: None)
    monkeypatch.setitem(LOGGERS, "wandb", broken.start)
    run = attempt(tmp_path, "wandb", "tensorboard")
    assert run.result()["top1"] == 90.5
    assert len(run.metrics()) == 5
    assert list((run.path / "tensorboard").iterdir())  # the others go on
    assert broken.calls == calls
    lines = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert lines == ["warning: the run goes on without the logger wandb: ConnectionError: no answer"]


@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None)], ids=["missing", "a folder of its data"])
def test_a_logger_that_is_not_installed_is_refused_before_the_run(tmp_path, monkeypatch, spec):
    monkeypatch.setattr(loggers, "find_spec", lambda name: spec)
    with pytest.raises(
        UserError, match=r"machine.loggers = \['wandb'\]: wandb is not installed here; pip install wandb"
    ):
        attempt(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())


def test_nothing_is_logged_where_nothing_is_asked_for_and_by_other_processes(tmp_path):
    run = attempt(tmp_path)
    config = StageConfig(machine=MachineConfig(runs=str(tmp_path), loggers=["tensorboard"]))
    with _logged(config, NAME, run, World(rank=1, local_rank=1, size=2)):
        run.loggers.start(0)
    assert not [path for path in run.path.iterdir() if path.is_dir()]
