"""An evaluation of the user's own package is made, named and read as those of the checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from pydantic import create_model

from data.config import DataConfig
from eval import knn
from eval.__main__ import main
from eval.command import plain_scores
from eval.config import EVALUATIONS, KnnConfig, own_protocol, register_evaluation
from eval.published import figure_of
from runtime.config import ComputeConfig
from runtime.errors import UserError
from sweeps.graph import build
from sweeps.study import load_study

FOLDER = Path(__file__).parent  # of own_evaluation.py


@pytest.fixture(autouse=True, scope="module")
def importable(forget: Callable[[str], None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    forget("own_evaluation")


def second(argv: list[str]) -> None:
    main(["second_knn", *argv])


def test_it_is_run_by_its_name_with_the_imports_of_its_config(parent, scenes, evaluate, tmp_path) -> None:
    config = tmp_path / "second.yaml"
    base = str(Path("eval/configs/knn_scenes.yaml").resolve())
    config.write_text(yaml.safe_dump({"base": base, "imports": ["own_evaluation"], "times": 2.0}))
    settings = [*scenes, "neighbours=[5]"]
    _, _, listed = evaluate(knn.main, parent, "knn_scenes", *settings)
    code, errors, own = evaluate(second, parent, str(config), *settings)
    assert code == 0, errors
    assert own.path.parent.name == "second_knn"
    assert own.path.name.startswith("scenes-second-of-")
    result, expected = own.result(), listed.result()
    assert result["top1"] == expected["top1"] > 0
    assert result["times"] == 2 * expected["top1"]
    assert (result["protocol"], expected["protocol"]) == ("second_knn: second", "knn")
    assert result["normalisation_source"] == "pretraining"  # what every result says
    assert own.document()["config"]["imports"]["own_evaluation"].startswith("sha256:")
    _, _, again = evaluate(second, parent, "knn_scenes", *settings, "imports=[own_evaluation]", "times=2.0")
    assert evaluate.output == [f"{own.path} is done"]
    assert again.path == own.path


def test_weights_of_an_own_network_name_its_package(parent, scenes, evaluate, tmp_path) -> None:
    settings = [*scenes, "neighbours=[5]", "imports=[own_evaluation]"]
    file = parent / "backbone.safetensors"
    code, errors, run = evaluate(knn.main, f"--weights={file}", "knn_scenes", "--arch=second_resnet", *settings)
    assert code == 0, errors
    _, _, expected = evaluate(knn.main, parent, "knn_scenes", *settings)
    assert run.result()["top1"] == expected.result()["top1"]
    (imported,) = (tmp_path / "runs" / "weights").glob("second_resnet-*")
    assert (
        yaml.safe_load((imported / "run.yaml").read_text())["config"]["imports"] == run.document()["config"]["imports"]
    )
    study = {"name": "own", "question": "?", "imports": ["own_evaluation"]}
    study |= {"checkpoints": {"x": {"weights": str(file), "arch": "second_resnet"}}}
    study |= {"evals": {"knn": {"stage": "knn", "config": "knn_scenes"}}}
    study |= {"report": {"vary": "checkpoint", "x": "knn.top1", "y": "knn.top5"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study))
    graph = build(load_study(tmp_path / "own.yaml"))
    assert graph.nodes[0].run.name == imported.name


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"protocol": "knn"}, "class_mean: knn"),
        ({}, "class_mean"),
        ({"protocol": "class mean, bfloat16"}, "class mean, bfloat16"),
        ({"protocol": "class"}, "class_mean: class"),
    ],
)
def test_its_protocol_is_none_of_the_checkout_s(scores, expected) -> None:
    assert own_protocol("class_mean", scores) == expected
    assert own_protocol("dense", {"protocol": "dense kNN"}) == "dense: dense kNN"  # ours, though it begins alike


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": "fresh"}, "Own.state: a table of results has this column of every run; choose another name"),
        ({"names": {"a", "b"}}, "Own.names: a set has no order, .*take a list"),
        ({"names": None}, "Own.names: a set has no order, .*take a list"),
        ({"answers": ...}, "Own.answers: expected a default"),
    ],
)
def test_a_config_that_would_hide_its_runs_is_refused(fields, expected) -> None:
    kinds = {"state": str, "names": set[str] | None, "answers": str}
    typed = {key: (kinds[key], value) for key, value in fields.items()}
    own = create_model("Own", __base__=KnnConfig, **typed)
    own.stage = "spread"
    with pytest.raises(UserError, match=expected):
        register_evaluation(own, knn.classify)
    assert "spread" not in EVALUATIONS


def test_its_scores_may_be_scalars_of_torch_and_numpy() -> None:
    scores = {"a": torch.tensor(1.5), "b": np.float32(0.5), "c": np.bool_(True), "d": [1, 2], "protocol": "own"}
    assert json.dumps(plain_scores(scores)) == '{"a": 1.5, "b": 0.5, "c": true, "d": [1, 2], "protocol": "own"}'


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"each": torch.ones(2)}, "score 'each', a Tensor: expected a number, text, or lists and mappings of these"),
        ({"each": {1: 2.0, "mean": 1.0}}, "score 'each', a dict: expected"),
        (None, "scores = None: expected a mapping"),
    ],
)
def test_a_score_that_no_result_can_hold_is_named(scores, expected) -> None:
    with pytest.raises(UserError, match=expected):
        plain_scores(scores)


def test_no_published_figure_is_of_its_measure() -> None:
    class Bare(ComputeConfig):
        stage: ClassVar[str] = "bare"
        data: DataConfig = DataConfig(name="imagenet")

    assert figure_of({"method": "VICRegL", "backbone": "resnet50", "alpha": 0.9}, Bare()) is None


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        (
            "secnd_knn",
            ["imports=[own_evaluation]"],
            "unknown evaluation 'secnd_knn'; did you mean second_knn? allowed: ",
        ),
        ("second_knn", ["imports=[no_such]"], "imports: no_such cannot be imported"),
        ("second_knn", ["imports=own_evaluation"], "command line: imports = 'own_evaluation' is not possible"),
        ("second_knn", ["imports=[own_evaluation]", "time=3.0"], "unknown key 'time'; did you mean times"),
    ],
)
def test_an_error_is_named_before_anything_is_made(name, overrides, expected, parent, evaluate) -> None:
    code, errors, made = evaluate(lambda argv: main([name, *argv]), parent, "knn_scenes", *overrides)
    assert (code, made) == (2, None)
    assert expected in errors


def test_an_evaluation_of_the_checkout_too(parent, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", "knn"])
    with pytest.raises(SystemExit) as ended:
        main(["knn", str(parent), "--config", "knn_scenes", "--cfg"])
    assert ended.value.code in (None, 0)
    assert "neighbours:" in capsys.readouterr().out
