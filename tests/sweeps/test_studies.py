"""The studies that come with the project say what the project has."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from runtime import PROJECT
from runtime.errors import UserError
from sweeps.control import check_networks
from sweeps.graph import Graph, Point, build
from sweeps.study import load_study

FOLDER = PROJECT / "sweeps" / "studies"
STUDIES = sorted(FOLDER.glob("*.yaml"))
FILES = {"published", "zoo"}  # of checkpoints that a user has; planned with stand-ins in test_published_study.py
PLANNED = [file for file in STUDIES if file.stem not in FILES]
# Studies of ImageNet: what each varies, and how many pretrainings it is.
QUESTIONS = {
    "alpha": ("loss.alpha", 7),
    "criterion": ("loss.local", 4),
    "matches": ("loss.num_matches", 5),
    "feature_matches": ("loss.feature_matches", 3),
    "threshold": ("loss.location_threshold", 5),
    "flip_grid": ("views.flip_grid", 2),
    "multicrop": ("views.small_count", 3),
    "scales": ("model.local_stages", 3),
    "coefficients": ("loss.covariance_coefficient", 5),
    "expander": ("model.expander", 4),
    "epochs": ("train.duration", 8),
    "backbones": ("loss.alpha", 8),
}
TWINS = [name for name in QUESTIONS if name != "alpha"]  # the small twin of alpha is scenes.yaml
# Twins that cannot share the run of the base config, because they change it for every row.
APART = {"flip_grid", "multicrop"}


@cache
def plan(name: str) -> Graph:
    return build(load_study(FOLDER / f"{name}.yaml"), ["machine.runs=/nowhere"])


def pretrainings(name: str) -> set[str]:
    return {point.pretrain.run.name for point in plan(name).points}


def longest(name: str) -> int:
    """Return the steps of a study's longest pretraining."""
    lengths = [point.pretrain.identity.config["train"]["duration"] for point in plan(name).points]
    return max(int(length.split()[0]) for length in lengths)


def trained(point: Point) -> bool:
    return point.pretrain.identity.config["train"]["duration"] != "0 steps"


@pytest.mark.parametrize("file", PLANNED, ids=lambda file: file.stem)
def test_every_study_can_be_planned(file: Path) -> None:
    graph = plan(file.stem)
    assert graph.study.name == file.stem
    assert graph.study.question
    assert set(graph.states().values()) == {"new"}
    assert all(point.evals for point in graph.points)


def test_planning_loads_no_library_that_only_training_needs() -> None:
    """A command that shows a table should not wait seconds for torch."""
    code = (
        "import sys; from sweeps.graph import build; from sweeps.study import load_study\n"
        "for file in sys.argv[1:]: build(load_study(file))\n"
        "print([name for name in ('torch', 'timm', 'cv2', 'mmseg', 'pandas', 'submitit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *PLANNED], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_opens_with_its_command_and_time(file: Path) -> None:
    _, command, *more = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert command.startswith(("# make", "# python -m sweeps"))
    assert any("minute" in line or "hour" in line for line in more)


def test_the_alpha_study_has_a_small_twin_and_a_quick_one() -> None:
    """They differ in length, seeds and in how many alphas they have; both have plain VICReg and untrained weights."""
    quick, small = plan("quickstart").study, plan("scenes").study
    alphas = [study.pretrain.grid["loss.alpha"] for study in (quick, small)]
    assert 3 <= len(alphas[0]) <= 5
    assert set(alphas[0]) <= set(alphas[1]) <= set(plan("alpha").study.pretrain.grid["loss.alpha"])
    for study in (quick, small):
        assert (study.report.vary, study.report.baseline) == ("loss.alpha", 1.0)
        assert "no pretraining" in study.pretrain.controls
    composed = {
        str(node.identity.config["data"]["scenes"]) for name in ("quickstart", "scenes") for node in plan(name).nodes
    }
    assert len(composed) == 1
    assert len(small.pretrain.grid["seed"]) >= 3


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_each_question_costs_on_imagenet(name: str) -> None:
    """As many trainings as its header says, each with the published evaluations; the data come from the environment."""
    graph = plan(name)
    vary, trainings = QUESTIONS[name]
    assert graph.study.report.vary == vary
    assert graph.study.report.baseline in [*graph.study.pretrain.grid[vary], *graph.study.controls]
    runs = {point.pretrain.run.name for point in graph.points if trained(point)}
    assert len(runs) == trainings
    assert re.search(rf"; {trainings} trainings, about \d+ GPU hours", (FOLDER / f"{name}.yaml").read_text())
    for node in graph.nodes:
        data = node.identity.config["data"]
        assert (data["name"], data["root"]) == ("voc" if node.stage.name == "segmentation" else "imagenet", None)
    assert {node.stage.name for node in graph.nodes} == {"pretrain", "linear", "knn", "segmentation"}


@pytest.mark.parametrize("name", TWINS)
def test_each_question_has_a_small_twin(name: str) -> None:
    """It varies the same key, in three seeds, as long as it says, and shares runs with the twins of its length."""
    graph, vary = plan(f"scenes_{name}"), QUESTIONS[name][0]
    assert graph.study.report.vary == vary
    assert {node.stage.name for node in graph.nodes} == {"pretrain", "linear", "knn", "segmentation"}
    configs, steps = [point.pretrain.identity.config for point in graph.points], longest(f"scenes_{name}")
    assert steps in (1200, 2000, 4000)
    assert f"{steps:,} steps, three seeds" in graph.study.question
    assert {config["seed"] for config in configs} == {0, 1, 2}
    assert all(config["data"]["name"] == "scenes" for config in configs)
    others = [f"scenes_{other}" for other in TWINS if other != name and longest(f"scenes_{other}") == steps]
    runs = {run for other in others for run in pretrainings(other)}
    assert runs.isdisjoint(pretrainings(f"scenes_{name}")) == (name in APART or not others)


def test_options_of_no_effect_are_no_other_training(tmp_path: Path) -> None:
    """Of plain VICReg the number of matches is one: it is trained once, and each curve has its score."""
    (tmp_path / "study.yaml").write_text(
        f"base: {FOLDER}/scenes_matches.yaml\nname: two_keys\n"
        "pretrain: {grid: {loss.alpha: [0.5, 1.0], seed: [0]}}\n"
    )
    graph = build(load_study(tmp_path / "study.yaml"))
    runs = [(point.varied["loss.alpha"], point.pretrain.run.name) for point in graph.points]
    assert [len({run for value, run in runs if value == alpha}) for alpha in (0.5, 1.0)] == [3, 1]
    assert len(runs) == 6
    settings = {(point.varied["loss.alpha"], str(point.varied["loss.num_matches"])) for point in graph.points}
    assert len(settings) == 6  # each point keeps the values of the grid


@pytest.mark.parametrize("file", PLANNED, ids=lambda file: file.stem)
def test_every_segmentation_can_change_the_networks_of_its_study(file: Path) -> None:
    check_networks(plan(file.stem))


def test_a_network_that_cannot_be_dilated_is_named_before_it_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "vit.yaml"
    changes = "evals: {segmentation: {set: {output_stride: 8}}}"
    file.write_text(f"base: {FOLDER / 'scenes_vit.yaml'}\nname: vit\n{changes}\n")
    with pytest.raises(UserError, match=r"'output_stride'; output_stride = 0 leaves the network as it was pretrained"):
        check_networks(build(load_study(file), [f"machine.runs={tmp_path}"]))
