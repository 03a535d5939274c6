"""A study of fake stages in a temporary folder, and commands of SLURM that print what a test wants."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fake_study  # noqa: E402
import yaml  # noqa: E402

from sweeps import stages  # noqa: E402
from sweeps.graph import Graph, build  # noqa: E402
from sweeps.study import load_study  # noqa: E402


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGES", fake_study.fake_registry())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: None) -> Path:
    """A folder with study.yaml and the configs that it names; it is the working directory."""
    (tmp_path / "study.yaml").write_text(fake_study.STUDY)
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


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a command of SLURM onto the PATH that prints a recording, or fails; each call is a line in `calls`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, prints: str = "", code: int = 0, error: str = "", seconds: float = 0) -> Path:
        (tmp_path / f"{name}.out").write_text(prints)
        script = tmp_path / name
        wait = f"exec sleep {seconds}\n" if seconds else ""
        script.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{wait}cat {tmp_path}/{name}.out\n'
            f'echo "{error}" >&2\nexit {code}\n'
        )
        script.chmod(0o755)
        return tmp_path / "calls"

    return make
