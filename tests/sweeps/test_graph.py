"""The graph has the runs that a study means, each once, named as the stages name them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import fake_stages
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime import config as configs
from runtime.config import Config
from runtime.errors import UserError
from runtime.rundir import open_run
from runtime.yaml_files import dump_yaml, parse_overrides
from sweeps.graph import Graph, build
from sweeps.keys import as_override, check_keys
from sweeps.study import load_study

MakeGraph = Callable[[], Graph]


def test_every_combination_and_the_controls_over_the_seeds(make_graph: MakeGraph) -> None:
    graph = make_graph()
    rows = [(point.control, point.varied["loss.alpha"], point.varied["seed"]) for point in graph.points]
    grid = [(None, alpha, seed) for alpha in (0.0, 0.5, 1.0) for seed in (0, 1)]
    assert rows == [*grid, ("no pretraining", None, 0), ("no pretraining", None, 1)]
    assert len(graph.nodes) == 2 * len(rows)
    assert not Path("runs").exists()


def test_a_run_is_named_as_its_stage_names_it(make_graph: MakeGraph) -> None:
    node = make_graph().points[2].pretrain
    overrides = ["loss.alpha=0.5", "seed=0"]
    config = configs.load(fake_stages.FakePretrainConfig, "pretrain.yaml", overrides)
    assert node.identity == fake_stages.pretrain_identity(config)
    assert node.argv(["machine.threads=3"])[1:] == [
        str(Path(fake_stages.__file__)),
        *["pretrain", "--config", "pretrain.yaml", *overrides],
        *["machine.runs=runs", "machine.group=fake", "machine.threads=3"],
    ]
    child = node.children[0]
    assert child.identity.parent == node.identity.hash
    assert child.argv()[2:4] == ["linear", str(node.run.path)]
    assert sys.executable == child.argv()[0]


def test_a_cleared_mapping_is_cleared_for_the_plan_and_for_the_job_alike(tmp_path: Path) -> None:
    study = {
        "name": "cleared",
        "question": "?",
        "pretrain": {
            "config": "convnext_small",
            "set": {"model.backbone.args": {}},
            "grid": {"model.backbone.args.drop_path_rate": [0.0, 0.2]},
        },
        "evals": {"knn": {"stage": "knn", "config": "knn_scenes"}},
        "report": {"vary": "model.backbone.args.drop_path_rate", "x": "knn.top1", "y": "knn.top1"},
    }
    (tmp_path / "study.yaml").write_text(dump_yaml(study))
    node, other = (point.pretrain for point in build(load_study(tmp_path / "study.yaml")).points)
    assert node.identity.config["model"]["backbone"]["args"] == {"drop_path_rate": 0.0}
    assert node.identity == node.stage.identity(node.stage.load(node.config_file, node.overrides))
    assert node.identity.hash != other.identity.hash


def test_the_runs_of_a_study_lie_in_one_folder(make_graph: MakeGraph, folder: Path) -> None:
    """`submit` records their jobs, and makes them, in one: elsewhere they would never be seen as done."""
    (folder / "pretrain.yaml").write_text("machine: {runs: scratch}\n")
    expected = r"study.yaml: .*several folders: runs \(linear.yaml\), scratch \(pretrain.yaml\); .*machine.runs=FOLDER"
    with pytest.raises(UserError, match=expected):
        make_graph()
    assert build(load_study("study.yaml"), ["machine.runs=elsewhere"]).root == "elsewhere"
    (folder / "linear.yaml").write_text(f"machine: {{runs: {folder}/scratch}}\n")
    assert make_graph().root == "scratch"


def test_points_that_mean_the_same_run_share_it(edit: Callable[..., Path]) -> None:
    edit(pretrain__controls={"plain": {"loss.alpha": 1.0}})
    graph = build(load_study("study.yaml"))
    assert len(graph.points) == 8
    assert len(graph.nodes) == 12
    assert graph.points[6].pretrain is graph.points[4].pretrain
    assert len(graph.points[4].pretrain.children) == 1


def test_states_are_read_from_the_run_directories(make_graph: MakeGraph) -> None:
    graph = make_graph()
    assert set(graph.states().values()) == {"new"}
    done, failed, running = (graph.points[i].pretrain for i in range(3))
    with open_run("runs", done.identity, {}) as run:
        run.write_result({})
    with pytest.raises(ValueError), open_run("runs", failed.identity, {}):
        raise ValueError("no")
    with open_run("runs", running.identity, {}):
        states = make_graph().states()
    by_path = {node.run.path: state for node, state in states.items()}
    assert by_path[done.run.path] == "done"
    assert by_path[done.children[0].run.path] == "new"
    assert by_path[failed.run.path] == "failed"
    assert by_path[failed.children[0].run.path] == "blocked"
    assert by_path[running.run.path] == "running"
    assert graph.states()[running] == "interrupted"


def test_a_changed_default_is_a_new_run(make_graph: MakeGraph, folder: Path) -> None:
    before = make_graph()
    (folder / "pretrain.yaml").write_text("train: {duration: 5 steps}\n")
    after = make_graph()
    assert not {n.run.path for n in before.nodes[:6]} & {n.run.path for n in after.nodes[:6]}
    (folder / "linear.yaml").write_text("noise: 0.5\n")
    again = make_graph()
    assert again.points[0].pretrain.run.path == after.points[0].pretrain.run.path
    assert again.points[0].evals["linear"].run.path != after.points[0].evals["linear"].run.path


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), max_size=12),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(values)
@example("1e5")
def test_an_override_carries_any_value(value: Any) -> None:
    parsed = parse_overrides([as_override("some.key", value)])
    assert parsed == {"some": {"key": value}}
    assert type(parsed["some"]["key"]) is type(value)


class Section(Config):
    width: int = 1


class Optionals(Config):
    section: Optional[Section] = None  # noqa: UP045  # a user's code may spell it so
    args: dict[str, Any] | None = None
    extra: dict = {}  # type: ignore[type-arg]  # as a user's code may have it


@pytest.mark.parametrize("key", ["section.width", "args.depth", "extra.depth"])
def test_a_study_takes_the_keys_that_the_command_line_takes(key: str) -> None:
    configs.load(Optionals, None, [f"{key}=3"])
    check_keys("study", {key: 3}, Optionals)
