"""The real stages: their settings are shown, and any of them that changes is named."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.changes import changes
from analysis.results import load_results, results_of
from analysis.settings import settings_table
from runtime import PROJECT
from runtime.yaml_files import read_yaml
from sweeps.graph import build
from sweeps.study import Study, load_study

CHANGES = [
    ("segmentation", "optimizer.power", 1.0, "`optimizer.power` 0.9 → 1"),
    ("segmentation", "flip", True, "`flip` false → true"),
    ("segmentation", "image_scale", [64, 32], "`image_scale` null → [64, 32]"),
    ("segmentation", "scale_range", [0.5, 1.5], "`scale_range` [0.5, 2.0] → [0.5, 1.5]"),
    ("segmentation", "crop_width", 64, "`crop_width` 0 → 64"),
    ("segmentation", "precision", "bfloat16", "`precision` float32 → bfloat16"),
    ("linear", "data.scenes.distractors", 1, "`data.scenes.distractors` 3 → 1"),
    ("linear", "seed", 3, "`seed` 0 → 3"),
]


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(PROJECT / "sweeps" / "studies" / "scenes.yaml")


@pytest.fixture(scope="module")
def table(study: Study, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What was planned, through a file and back."""
    folder = tmp_path_factory.mktemp("table")
    results_of(build(study, [f"machine.runs={folder}"])).to_csv(folder / "results.csv", index=False)
    return load_results(folder / "results.csv")


def test_nothing_has_changed(study: Study, table: pd.DataFrame) -> None:
    assert changes(table, build(study)) == []


@pytest.mark.parametrize(("part", "key", "value", "text"), CHANGES)
def test_a_changed_field_is_named_alone(
    study: Study, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, part: str, key: str, value: object, text: str
) -> None:
    if key.startswith("data.scenes."):  # the study sets data.scenes as a whole
        monkeypatch.setitem(study.evals[part].set["data.scenes"], key.removeprefix("data.scenes."), value)
    else:
        monkeypatch.setitem(study.evals[part].set, key, value)
    assert changes(table, build(study)) == [f"{part} {text}"]
    changed = results_of(build(study))  # and the other way round, from a field that is at its default again
    monkeypatch.undo()
    _, _, then = text.rpartition(" → ")
    assert [line.partition(" → ")[0].rpartition(" `")[2] for line in changes(changed, build(study))] == [
        f"{key}` {then}"
    ]


def test_a_pretraining_that_changed(study: Study, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(study.pretrain.set, "optimizer.base_lr", 0.5)
    base = read_yaml(PROJECT / study.pretrain.config)["optimizer"]["base_lr"]
    assert changes(table, build(study)) == [f"pretrain `optimizer.base_lr` {base} → 0.5"]


def test_the_settings_are_those_of_the_configs(study: Study, table: pd.DataFrame) -> None:
    found = settings_table(table, study)
    assert found is not None
    assert found.header == ["setting", "pretrain", "linear", "segmentation"]
    cells = {line[0]: dict(zip(found.header[1:], line[1:], strict=True)) for line in found.blocks[0]}
    pretrain, linear, segmentation = (
        read_yaml(PROJECT / file)
        for file in (study.pretrain.config, study.evals["linear"].config, study.evals["segmentation"].config)
    )
    assert cells["learning rate"] == {
        "pretrain": f"{pretrain['optimizer']['base_lr']} (base)",
        "linear": str([float(rate) for rate in linear["learning_rates"]]),
        "segmentation": str(segmentation["optimizer"]["lr"]),
    }
    assert cells["length"]["segmentation"] == f"{segmentation['iterations']} iterations"
    assert cells["length"]["pretrain"] == str(study.pretrain.set["train.duration"])
    assert cells["optimiser"] == {
        "pretrain": pretrain["optimizer"]["name"],
        "linear": "sgd, momentum 0.9",
        "segmentation": segmentation["optimizer"]["name"],
    }
    assert cells["batch (images)"]["segmentation"] == str(segmentation["batch_size"])
    assert cells["crop or image (pixels)"]["segmentation"] == str(segmentation["crop_size"])
    # No run yet says what auto chose; an evaluation at its default does not record it.
    assert cells["precision"] == {"pretrain": "auto", "linear": "float32", "segmentation": "float32"}


def _trained(table: pd.DataFrame, precision: dict[int, str]) -> pd.DataFrame:
    """The planned pretrainings, as if trained: by seed, the precision that `auto` chose."""
    return table.assign(**{"pretrain.result.precision": table["grid.seed"].map(precision)})


def test_the_precision_is_that_which_was_computed_in(study: Study, table: pd.DataFrame) -> None:
    found = settings_table(_trained(table, dict.fromkeys(range(5), "bfloat16")), study)
    assert found is not None
    assert found.blocks[0][-1] == ["precision", "bfloat16", "float32", "float32"]
    set_for_segmentation = table["eval.name"].eq("segmentation") & table["grid.seed"].eq(1)
    some = table.assign(**{"eval.precision": set_for_segmentation.map({True: "bfloat16", False: None})})
    found = settings_table(some, study)
    assert found is not None
    assert found.blocks[0][-1] == ["precision", "auto", "float32", "float32, bfloat16"]


def test_a_table_without_configs_has_no_settings(study: Study) -> None:
    assert settings_table(pd.DataFrame({"control": [None], "eval.name": ["linear"]}), study) is None
