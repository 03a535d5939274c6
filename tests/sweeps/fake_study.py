"""A study of the fake stages, and the registry that knows them."""

from __future__ import annotations

import sys
from pathlib import Path

import fake_stages

from sweeps import stages

SCRIPT = str(Path(__file__).with_name("fake_stages.py"))

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
