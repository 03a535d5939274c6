"""A study file is read as written, and an error in it is named before anything is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import UserError
from sweeps.graph import build
from sweeps.study import load_study

Edit = Callable[..., Path]


def refusal(path: str | Path = "study.yaml") -> str:
    before = sorted(os.listdir())
    with pytest.raises(UserError) as caught:
        build(load_study(path))
    assert sorted(os.listdir()) == before
    return str(caught.value)


def test_a_study_is_read_as_written(folder: Path) -> None:
    study = load_study("study.yaml")
    assert study.pretrain.grid == {"loss.alpha": [0.0, 0.5, 1.0], "seed": [0, 1]}
    assert study.pretrain.controls == {"no pretraining": {"train.duration": "0 steps"}}
    assert study.evals["linear"].config == "linear.yaml"
    assert (study.report.vary, study.report.baseline) == ("loss.alpha", 1.0)
    assert study.scores == ["linear.top1", "pretrain.rank_pooled"]
    assert study.row_keys == ["loss.alpha"]


def test_a_base_study_is_read_first(folder: Path) -> None:
    (folder / "longer.yaml").write_text("base: study.yaml\nname: longer\npretrain: {set: {train.duration: 8 steps}}\n")
    study = load_study("longer.yaml")
    assert (study.name, study.question) == ("longer", "Does it run?")
    assert study.pretrain.set == {"train.duration": "8 steps"}
    assert {point.pretrain.work for point in build(study).points if not point.control} == {8.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "n" * 101}, ["name = ", "up to 100 letters"]),
        ({"questio": "x"}, ["'questio'", "question"]),
        ({"pretrain__gird": {}}, ["pretrain.gird", "pretrain.grid"]),
        ({"evals__linear__confg": "x"}, ["'evals.linear.confg'", "config"]),
        ({"evals__linear": "linear"}, ["evals.linear = 'linear'", "a section"]),
        ({"evals": ["linear"]}, ["evals = ['linear']", "a mapping"]),
        ({"pretrain__grid": {"loss.alfa": [0.5], "loss.alpha": [1.0]}}, ["grid", "'loss.alfa'", "loss.alpha"]),
        ({"pretrain__grid": {"alpha": [0.5], "loss.alpha": [1.0]}}, ["'alpha'", "did you mean loss.alpha"]),
        ({"pretrain__grid": {"loss.alpha": [0.5, 1.5, 1.0]}}, ["loss.alpha = 1.5", "0 to 1"]),
        ({"pretrain__grid": {"loss.alpha": []}}, ["loss.alpha", "1 or more values"]),
        ({"pretrain__grid": {"loss.alpha": [1.0, 1.0]}}, ["each value once"]),
        ({"pretrain__grid": {"loss.alpha": ["many", 1.0]}}, ["loss.alpha", "many"]),
        ({"pretrain__grid": {"loss.alpha": [1.0], "machine.threads": [1]}}, ["machine.threads", "cannot change"]),
        ({"pretrain__controls": {"none": {"train.durations": 1}}}, ["controls.none", "train.duration"]),
        ({"pretrain__config": "pretrian.yaml"}, ["pretrian.yaml does not exist", "pretrain.yaml"]),
        ({"evals__linear__stage": "liner"}, ["unknown stage 'liner'", "did you mean linear"]),
        ({"evals__linear__stage": "pretrain"}, ["pretrain is no evaluation"]),
        ({"evals__linear__set": {"nois": 1}}, ["evals.linear.set", "noise"]),
        ({"report__vary": "loss.alph"}, ["report.vary", "did you mean loss.alpha"]),
        ({"report__vary": "seed"}, ["report.vary", "repetitions"]),
        ({"report__baseline": 0.9}, ["report.baseline = 0.9", "[0.0, 0.5, 1.0], or a control: no pretraining"]),
        ({"report__x": "linaer.top1"}, ["report.x", "did you mean linear"]),
        ({"report__x": "linear"}, ["<evaluation>.<score>"]),
        ({"report__y": "pretrain.loss"}, ["report.y = 'pretrain.loss'", "of which more is better"]),
        ({"name": "a/b"}, ["name = 'a/b'"]),
        ({"name": None}, ["name is missing"]),
    ],
    ids=str,
)
def test_an_error_is_named(edit: Edit, change: dict[str, object], expected: list[str]) -> None:
    edit(**change)
    message = refusal()
    assert "study.yaml" in message
    for part in expected:
        assert part in message


def test_an_unknown_study_names_those_there_are(folder: Path) -> None:
    assert "quickstart" in refusal("quikstart.yaml")


def test_not_yaml(folder: Path) -> None:
    (folder / "study.yaml").write_text("a: [")
    assert "study.yaml is not readable YAML" in refusal()


def test_keys_of_an_open_mapping_are_not_refused(edit: Edit) -> None:
    edit(pretrain__grid={"loss.alpha": [1.0], "options.drop_path": [0.0, 0.1]})
    graph = build(load_study("study.yaml"))
    assert [point.varied["options.drop_path"] for point in graph.points] == [0.0, 0.1, 0.0, 0.1]


def test_commands_take_only_machine_overrides(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain\.set"):
        build(load_study("study.yaml"), ["loss.alpha=0.3"])
    graph = build(load_study("study.yaml"), ["machine.runs=elsewhere"])
    assert {node.run.path.parts[0] for node in graph.nodes} == {"elsewhere"}
