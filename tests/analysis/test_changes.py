"""What a table has otherwise than its study now is named, field by field; what is the same is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.report import STALE, write_report
from analysis.report_data import load_report_data
from runtime import config as configs
from runtime.config import Config, MachineConfig, added_later
from runtime.rundir import Identity
from sweeps.graph import Graph


@pytest.fixture
def table(fill: Callable[..., Graph], folder: Path) -> Path:
    """The results.csv of a study that is done; its run directories are gone."""
    fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    return write_report("study.yaml", figures=()) / "results.csv"


def changed(table: Path) -> list[str]:
    return load_report_data("study.yaml", results=table).changes


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def test_the_same_settings_are_no_change(table: Path) -> None:
    assert changed(table) == []


def test_a_field_of_an_evaluation(table: Path) -> None:
    edit("linear.yaml", "noise: 0.0", "noise: 0.5")
    assert changed(table) == ["linear `noise` 0 → 0.5"]


def test_a_field_of_the_pretraining_names_the_runs_and_not_their_evaluations(table: Path) -> None:
    edit("pretrain.yaml", "4 steps", "8 steps")
    assert changed(table) == ["pretrain `train.duration` 4 steps → 8 steps (6 of 8 runs)"]


def test_settings_of_the_machine_are_no_change(table: Path) -> None:
    Path("linear.yaml").write_text("{noise: 0.0, machine: {workers: 1}}")
    assert changed(table) == []


def test_rows_that_came_and_went(table: Path) -> None:
    edit("study.yaml", "loss.alpha: [0.0, 0.5, 1.0]", "loss.alpha: [0.5, 0.75, 1.0]")
    assert changed(table) == ["study 2 of its 8 rows are not here, 2 of these 8 rows are no longer part of it"]
    edit("study.yaml", "[0.5, 0.75, 1.0], seed: [0, 1]", "[0.0, 0.5, 1.0]")
    assert "study seed is no longer varied" in changed(table)[0]


class Grown(Config):
    noise: float = 0.0
    width: int = added_later(8)
    taps: list[str] = ["last"]
    machine: MachineConfig = MachineConfig()


def grow(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.setattr(sys.modules["fake_eval"], name, value)


def test_fields_that_the_table_lacks(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was added later stands for its default; of another nobody knows what the code did before."""
    grow(monkeypatch, "Config", Grown)
    assert changed(table) == ['linear `taps` (not there) → ["last"]']
    Path("linear.yaml").write_text("{noise: 0.0, width: 16}")
    assert changed(table) == ['linear `width` 8 → 16, `taps` (not there) → ["last"]']


def test_a_field_added_later_that_is_back_at_its_default(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.read_csv(table).assign(**{"eval.width": 16, "eval.taps": '["last"]', "eval.hash": "0123456789"})
    frame.to_csv(table, index=False)
    grow(monkeypatch, "Config", Grown)
    assert changed(table) == ["linear `width` 16 → 8"]


def test_a_field_that_is_gone(table: Path) -> None:
    frame = pd.read_csv(table).assign(**{"eval.dropout": 0.1, "eval.hash": "0123456789"})
    frame.to_csv(table, index=False)
    assert changed(table) == ["linear `dropout` 0.1 → (gone)"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_format_that_was_raised(table: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    """Where the table has no column for it, the hash says it."""

    def identity(config: object, parent: str) -> Identity:
        return Identity("linear", "fake", 3, configs.split_machine(config)[0], parent)

    grow(monkeypatch, "identity", identity)
    if not recorded:
        pd.read_csv(table).drop(columns=["eval.format"]).to_csv(table, index=False)
    assert changed(table) == ["linear format 1 → 3: the same settings now measure something else"]
    edit("pretrain.yaml", "4 steps", "8 steps")  # another parent does not hide it
    assert changed(table)[1:] == ["linear format 1 → 3: the same settings now measure something else"]


def test_another_hash_of_the_same_settings_is_a_change(table: Path) -> None:
    frame = pd.read_csv(table).assign(**{"eval.hash": "0123456789"}).drop(columns=["eval.format"])
    frame.to_csv(table, index=False)
    assert changed(table) == ["linear something that results.csv does not record"]


def test_a_report_says_so_at_its_top_and_at_its_commands(table: Path) -> None:
    edit("linear.yaml", "noise: 0.0", "noise: 0.5")
    folder = write_report("study.yaml", figures=(), results=table)
    page = (folder / "README.md").read_text()
    said = page.splitlines()[2]
    assert said.startswith(f"**{STALE}** (commit ")
    assert "linear `noise` 0 → 0.5. The commands at the end of this page would make a different report." in said
    commands = page[page.index("Made at commit") :]
    assert "which now make a different report" in commands.splitlines()[0]
    assert STALE in (folder / "index.html").read_text()
    edit("linear.yaml", "noise: 0.5", "noise: 0.0")
    assert STALE not in (write_report("study.yaml", figures=(), results=table) / "README.md").read_text()
