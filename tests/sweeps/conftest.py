"""A study of fake stages in a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fake_stages  # noqa: E402
import yaml  # noqa: E402

from sweeps import stages  # noqa: E402
from sweeps.graph import Graph, build  # noqa: E402
from sweeps.study import load_study  # noqa: E402

SCRIPT = str(HERE / "fake_stages.py")


def fake_registry() -> dict[str, stages.Stage]:
    """As `sweeps.stages.STAGES`; the module's two `identity` functions need a module each."""
    sys.modules["fake_pretrain"] = type(sys)("fake_pretrain")
    sys.modules["fake_eval"] = type(sys)("fake_eval")
    sys.modules["fake_pretrain"].__dict__.update(
        Config=fake_stages.FakePretrainConfig, identity=fake_stages.pretrain_identity
    )
    sys.modules["fake_eval"].__dict__.update(Config=fake_stages.FakeEvalConfig, identity=fake_stages.eval_identity)
    return {
        "pretrain": stages.Stage("pretrain", "fake_pretrain", "Config", (SCRIPT, "pretrain"), fake_stages.work_of),
        "linear": stages.Stage("linear", "fake_eval", "Config", (SCRIPT, "linear")),
    }


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGES", fake_registry())


STUDY = """
name: fake
question: Does it run?
pretrain:
  config: pretrain.yaml
  grid: {loss.alpha: [0.0, 0.5, 1.0], seed: [0, 1]}
  controls: {no pretraining: {train.duration: 0 steps}}
evals:
  linear: {stage: linear, config: linear.yaml}
report: {vary: loss.alpha, baseline: 1.0, x: linear.top1, y: pretrain.rank_pooled}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: None) -> Path:
    """A folder with study.yaml and the configs that it names; it is the working directory."""
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "pretrain.yaml").write_text("train: {duration: 4 steps}\n")
    (tmp_path / "linear.yaml").write_text("noise: 0.0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Callable[..., Path]:
    """Change values of study.yaml by dotted path; None removes one."""

    def change(**changes: object) -> Path:
        values = yaml.safe_load((folder / "study.yaml").read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = values
            for parent in parents:
                place = place[parent]
            if value is None:
                del place[last]
            else:
                place[last] = value
        (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return folder / "study.yaml"

    return change


@pytest.fixture
def make_graph(folder: Path) -> Callable[[], Graph]:
    return lambda: build(load_study("study.yaml"))
