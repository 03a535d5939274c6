"""Finished pretraining runs with random weights, small datasets, and evaluations run in this process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from runtime.errors import run_command
from runtime.rundir import Identity, Run, open_run
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

sys.path.insert(0, str(Path(__file__).parent))  # segmentation_tools


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_parent(tmp_path) -> Callable[..., Path]:
    """make_parent(name=, seed=, args=) -> the folder of a finished pretraining run; BN statistics not trivial."""

    def make(name: str = "scenes_resnet", seed: int = 0, args: dict | None = None) -> Path:
        torch.manual_seed(seed)
        backbone = create_backbone(BackboneConfig(name, args or {}))
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.05, 0.2)
        config = {"model": {"backbone": {"name": name, "args": args or {}}}, "seed": seed}
        with open_run(tmp_path / "runs", Identity("pretrain", name, 1, config), {}) as run:
            tensors = {key: value.contiguous() for key, value in backbone.trunk.state_dict().items()}
            save_file(tensors, run.path / "backbone.safetensors")
            run.write_result({"steps": 0})
        return run.path

    return make


@pytest.fixture
def parent(make_parent) -> Path:
    return make_parent()


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory) -> Path:
    """$VICREGL_DATA for tests that read scenes."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def scenes(tiny_scenes, monkeypatch) -> list[str]:
    """Overrides for 60 training and 20 validation scenes."""
    monkeypatch.setenv("VICREGL_DATA", str(tiny_scenes))
    return ["data.name=scenes", "data.scenes.train=60", "data.scenes.val=20"]


@pytest.fixture(scope="session")
def imagenet_tree(tmp_path_factory) -> Path:
    """1,000 classes named as ImageNet's, each with one training and one validation image of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, level in (("train", 60), ("val", 61)):
        file = root / f"{split}.JPEG"
        Image.new("RGB", (8, 8), (level, 90, 120)).save(file)
        for number in range(1000):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            os.link(
                file, folder / (f"{folder.name}_7.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG")
            )
    return root


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, Run | None]]:
    """evaluate(main, parent, config, *overrides) -> (exit code, stderr, its run), as at the command line.

    `evaluate.output` are the printed lines of the latest.
    """

    def run(main, parent: Path | str, config: str, *overrides: str) -> tuple[int, str, Run | None]:
        runs = tmp_path / "runs"
        arguments = [str(parent), "--config", config, f"machine.runs={runs}", *overrides]
        monkeypatch.setattr(sys, "argv", ["eval", *arguments])
        before = set(runs.glob("[dkls]*/*"))
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        output = capsys.readouterr()
        run.output = output.out.splitlines()
        after = set(runs.glob("[dkls]*/*"))
        made = max(after - before or after, key=lambda path: path.stat().st_mtime, default=None)
        return ended.value.code or 0, output.err, None if made is None else Run(made)

    return run
