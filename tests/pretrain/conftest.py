"""A run of pretraining that takes seconds, and what it leaves."""

import pytest

from runtime.rundir import Run

STEPS = 14


@pytest.fixture
def arguments(image_folder):
    """A run of seconds; drop path draws from torch's generator, so that its state counts too."""

    def make(runs, *overrides):
        return [
            "pretrain",
            "--config=pretrain/configs/quickstart.yaml",
            "train.precision=float32",
            "data.name=imagefolder",
            f"data.root={image_folder}",
            "model.expander=32-32",
            "model.projector=16-16",
            "train.batch_size=16",
            f"train.duration={STEPS} steps",
            "optimizer.warmup=2 steps",
            "diagnostics_images=32",
            "machine.threads=1",
            "machine.save_minutes=0",
            "machine.log_steps=1",
            f"machine.runs={runs}",
            *overrides,
        ]

    return make


def only_run(runs) -> Run:
    (path,) = (runs / "pretrain").iterdir()
    return Run(path)
