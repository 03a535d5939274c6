"""Rows of a study from a timm tag, a run, a kept checkpoint, a loader; and beside the study's own pretrainings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from analysis.report_data import load_report_data
from analysis.tables import results_table, score_values
from analysis.versions import version_of_each_point
from runtime.errors import UserError
from runtime.rundir import open_run
from sweeps.control import check_checkpoints
from sweeps.graph import Graph, Node, build
from sweeps.slurm.submit import _Submitter
from sweeps.study import load_study
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

PRETRAIN = {
    "config": "pretrain/configs/quickstart.yaml",
    "grid": {"loss.alpha": [0.5, 1.0], "seed": [0, 1]},
    "controls": {"no pretraining": {"train.duration": "0 steps"}},
    "method": "VICRegL",
}
EVALS = {
    "knn": {"stage": "knn", "config": "eval/configs/knn_scenes.yaml"},
    "linear": {"stage": "linear", "config": "eval/configs/linear_imagenet.yaml"},
    "dense": {"stage": "dense_knn", "config": "eval/configs/dense_knn_scenes.yaml"},
}
REPORT = {"vary": "checkpoint", "x": "knn.top1", "y": "dense.miou"}


def planned(folder: Path, checkpoints: dict, **more) -> Graph:
    values = {"name": "zoo", "question": "Which?", "checkpoints": checkpoints, "evals": EVALS, "report": REPORT}
    (folder / "zoo.yaml").write_text(yaml.safe_dump(values | more, sort_keys=False))
    return build(load_study(folder / "zoo.yaml"), [f"machine.runs={folder / 'runs'}"])


@pytest.fixture
def run(tmp_path) -> Node:
    """A finished pretraining in other/pretrain/, with a checkpoint that it kept."""
    study = {"name": "own", "question": "", "pretrain": PRETRAIN, "report": REPORT | {"vary": "loss.alpha"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study | {"evals": EVALS}))
    node = build(load_study(tmp_path / "own.yaml"), [f"machine.runs={tmp_path / 'other'}"]).points[0].pretrain
    with open_run(node.root, node.identity, {}) as made:
        save_file(
            create_backbone(BackboneConfig("scenes_resnet")).trunk.state_dict(), made.path / "backbone.safetensors"
        )
        (made.path / "checkpoints").mkdir()
        (made.path / "checkpoints" / "step-00000100.pt").touch()
        (made.path / "checkpoints" / "epoch-0002.pt").touch()
        made.write_result({"seconds": 1.0})
    return node


@pytest.fixture
def tag(tmp_path, monkeypatch) -> str:
    """A tag of timm's in an otherwise empty cache, without a network."""
    name = "resnet10t.c3_in1k"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / f"models--timm--{name}"
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), folder / "snapshots" / "0123" / "model.safetensors")
    return name


def config(graph: Graph, row: int, evaluation: str) -> dict:
    return graph.points[row].evals[evaluation].identity.config


def test_a_run_is_evaluated_where_it_lies(run, tmp_path, monkeypatch):
    graph = planned(tmp_path, {"own": {"run": str(run.run.path)}})
    (point,) = graph.points
    assert point.pretrain.run.path == run.run.path
    assert point.pretrain.identity.hash == run.identity.hash
    assert point.evals["knn"].identity.parent == run.identity.hash
    assert point.evals["knn"].run.path.is_relative_to(tmp_path / "runs")
    assert str(run.run.path) in point.evals["knn"].argv()
    assert [state for node, state in graph.states().items() if node.parent is None] == ["done"]
    monkeypatch.chdir(tmp_path)
    relative = planned(tmp_path, {"own": {"run": f"other/{run.name}"}})
    assert [node.name for node in relative.nodes] == [node.name for node in graph.nodes]


def test_a_job_on_slurm_gets_the_place_of_such_a_run(run, tmp_path):
    graph = planned(tmp_path, {"own": {"run": str(run.run.path)}})
    assert graph.root == str(tmp_path / "runs")
    submitter = _Submitter(graph, tmp_path / "runs", [])
    (tmp_path / "configs").mkdir()
    submitter.submission = SimpleNamespace(path=tmp_path)
    task = submitter._task(graph.points[0].evals["knn"], SimpleNamespace(interpreter=sys.executable))
    assert task["argv"][3] == str(run.run.path)


def test_a_run_that_is_not_there_or_not_done_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints.own: .*nowhere is not a folder"):
        planned(tmp_path, {"own": {"run": str(tmp_path / "nowhere")}})
    (run.run.path / "result.json").unlink()
    with pytest.raises(UserError, match="only a pretrain run that is done"):
        planned(tmp_path, {"own": {"run": str(run.run.path)}})


def test_checkpoints_that_a_run_kept_are_rows(run, tmp_path):
    path = str(run.run.path)
    rows = {"end": {"run": path}, "epoch": {"run": path, "epoch": 2}, "step": {"run": path, "at": "100 steps"}}
    graph = planned(tmp_path, rows)
    assert [point.evals["knn"].at for point in graph.points] == [None, "2 epochs", "100 steps"]
    assert len({point.evals["knn"].identity.hash for point in graph.points}) == 3
    assert len({point.pretrain for point in graph.points}) == 1
    with pytest.raises(UserError, match=r"checkpoints.lost: .*epoch or at = '3 epochs'"):
        planned(tmp_path, {"lost": {"run": path, "epoch": 3}})


def test_a_tag_brings_its_size_crop_and_interpolation(tag, tmp_path):
    """resnet10t.c3_in1k: 176 pixels, crop 0.875, bicubic; the row may choose others."""
    row = {"timm": tag, "input_size": 64, "crop_pct": 1.0, "interpolation": "bilinear", "normalisation": "network"}
    graph = planned(tmp_path, {"tag": {"timm": tag}, "chosen": row})
    own = timm.get_pretrained_cfg(tag)
    assert (own.input_size[1], own.crop_pct, own.interpolation) == (176, 0.875, "bicubic")
    for name in ("knn", "linear"):
        images = config(graph, 0, name)
        assert (images["image_size"], images["resize"], images["interpolation"]) == (176, 201, "bicubic")
        images = config(graph, 1, name)
        assert (images["image_size"], images["resize"], images["normalisation"]) == (64, 64, "network")
        assert "interpolation" not in images  # the default stays out of the identity
    assert config(graph, 0, "dense")["image_size"] == 32
    assert [config(graph, row, "dense")["normalisation"] for row in (0, 1)] == [None, "network"]


def test_a_row_that_says_nothing_has_the_protocol_of_the_evaluation(tmp_path):
    torch.save(create_backbone(BackboneConfig("scenes_resnet")).trunk.state_dict(), tmp_path / "a.pth")
    file = {"weights": str(tmp_path / "a.pth"), "arch": "scenes_resnet"}
    change = {"knn": {"config": "eval/configs/knn_imagenet.yaml", "set": {"image_size": 128}}}
    graph = planned(tmp_path, {"plain": file, "size": file | {"input_size": 112}, "changed": file | {"evals": change}})
    alone = graph.points[0].evals["linear"].stage.load("eval/configs/linear_imagenet.yaml", [])
    identity = graph.points[0].evals["linear"].stage.identity(alone, graph.points[0].pretrain.identity)
    assert graph.points[0].evals["linear"].identity == identity
    sizes = [(config(graph, row, "linear")["image_size"], config(graph, row, "linear")["resize"]) for row in range(3)]
    assert sizes == [(224, 256), (112, 128), (224, 256)]
    images = [config(graph, row, "knn") for row in range(3)]
    assert [each["image_size"] for each in images] == [32, 112, 128]
    assert [each["data"]["name"] for each in images] == ["scenes", "scenes", "imagenet"]


def test_a_tag_without_a_network_is_refused_before_anything_is_made(tag, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints.other: the weights resnet18\.a1_in1k are not in timm's cache"):
        planned(tmp_path, {"other": {"timm": "resnet18.a1_in1k"}})
    assert not (tmp_path / "runs").exists()


def test_every_row_is_read_before_anything_is_queued(tag, tmp_path, capsys):
    name = "resnetv2_50x1_bit"
    torch.save(create_backbone(BackboneConfig(name)).trunk.state_dict(), tmp_path / "bit.pth")
    file = {"weights": str(tmp_path / "bit.pth"), "arch": name}
    chosen = {"tag": {"timm": tag}, "bit": file | {"normalisation": [[0.5] * 3, [0.5] * 3]}}
    check_checkpoints(planned(tmp_path, chosen))
    assert f"{tag}: all " in (printed := capsys.readouterr()).err
    assert printed.out == ""  # `plan --json` prints JSON alone
    with pytest.raises(UserError, match=r"weights bit: .*normalisation is not set"):
        check_checkpoints(planned(tmp_path, {"bit": file}))
    with pytest.raises(UserError, match=r"weights bit: .*does not fit the backbone 'resnet50'"):
        check_checkpoints(planned(tmp_path, {"bit": file | {"arch": "resnet50"}}))
    assert not (tmp_path / "runs").exists()


def test_checkpoints_beside_pretrainings(run, tmp_path):
    """One table: a row for each setting of the grid, over its seeds, and one for each checkpoint."""
    rows = {"another": {"run": str(run.run.path), "method": "MoCo", "columns": {"loss.alpha": 0.9, "epochs": 200}}}
    graph = planned(tmp_path, rows, pretrain=PRETRAIN, report=REPORT | {"join": "loss.alpha"})
    study = graph.study
    assert study.grid == {
        "checkpoint": ["VICRegL, alpha 0.5", "VICRegL, alpha 1.0", "another"],
        "method": ["VICRegL", "MoCo"],
        "seed": [0, 1],
    }
    assert [tuple(point.varied.values()) for point in graph.points] == [
        ("VICRegL, alpha 0.5", "VICRegL", 0),
        ("VICRegL, alpha 0.5", "VICRegL", 1),
        ("VICRegL, alpha 1.0", "VICRegL", 0),
        ("VICRegL, alpha 1.0", "VICRegL", 1),
        (None, None, 0),
        (None, None, 1),
        ("another", "MoCo", None),
    ]
    with open_run(graph.points[6].evals["knn"].root, graph.points[6].evals["knn"].identity, {}) as made:
        made.write_result({"top1": 61.5})
    data = load_report_data(study, [f"machine.runs={tmp_path / 'runs'}"])
    table = results_table(data.summary)
    assert table.header[:5] == ["checkpoint", "method", "loss.alpha", "epochs", "n"]
    assert [row[:5] for block in table.blocks for row in block] == [
        ["VICRegL, alpha 0.5", "VICRegL", "0.5", "", "0 of 2"],
        ["VICRegL, alpha 1.0", "VICRegL", "1", "", "0 of 2"],
        ["another", "MoCo", "0.9", "200", "0 of 1"],
        ["*no pretraining (control)*", "", "", "", "0 of 2"],
    ]
    with pytest.raises(UserError, match="another name: a setting of pretrain has this one"):
        planned(tmp_path, {"VICRegL, alpha 1.0": rows["another"]}, pretrain=PRETRAIN)


def test_the_published_figure_stands_beside_its_row(run, tmp_path):
    """Where the row names one that the evaluation of this row measures; in the table, with the difference."""
    frozen = {"stage": "segmentation", "config": "eval/configs/seg_voc.yaml"}
    four_stages = {"segmentation": {"set": {"taps": "all"}}}
    selected = {"method": "VICRegL", "backbone": "resnet50", "alpha": 0.9}
    own = {"run": str(run.run.path)}
    rows = {"named": own | {"published": selected}, "four": own | {"published": selected, "evals": four_stages}}
    evals = {"linear": EVALS["linear"], "knn": EVALS["knn"], "segmentation": frozen}
    report = {"vary": "checkpoint", "x": "linear.top1", "y": "segmentation.miou"}
    graph = planned(tmp_path, rows | {"plain": own}, evals=evals, report=report)
    node = graph.points[0].evals["linear"]
    with open_run(node.root, node.identity, {}) as made:
        made.write_result({"top1": 70.9, "protocol": "linear"})
    data = load_report_data(graph.study, [f"machine.runs={tmp_path / 'runs'}"])
    table = results_table(data.summary)
    lines = [dict(zip(table.header, line, strict=True)) for line in table.blocks[0]]
    assert table.header.count("published") == 2  # not of kNN
    top1, miou = (at for at, name in enumerate(table.header) if name == "published")
    assert [(line[top1], line[top1 + 1], line[miou]) for line in table.blocks[0]] == [
        ("71.2", "−0.3", "54.0"),
        ("71.2", "−0.3", ""),  # the same evaluation as that of the first row
        ("", "", ""),
    ]
    assert lines[0]["linear top-1 (%)"] == "70.9"
    values = score_values(data.summary)
    assert values["published_difference"].dropna().round(6).tolist() == [-0.3, -0.3]
    data.frame.to_csv(tmp_path / "results.csv", index=False)
    again = load_report_data(graph.study, results=tmp_path / "results.csv")
    assert results_table(again.summary) == table


def test_the_code_that_made_a_given_checkpoint_is_no_version_of_the_study(run, tmp_path):
    """Runs of other commits may stand in one table; commits of their evaluations tell rows apart, as ever."""
    graph = planned(tmp_path, {"one": {"run": str(run.run.path)}, "kept": {"run": str(run.run.path), "epoch": 2}})
    for point in graph.points:
        with open_run(point.evals["knn"].root, point.evals["knn"].identity, {}) as made:
            made.write_result({"top1": 50.0, "protocol": "knn"})
    frame = load_report_data(graph.study, [f"machine.runs={tmp_path / 'runs'}"]).frame
    assert frame["pretrain.config_file"].isna().all()
    older = frame.assign(
        **{"pretrain.provenance.commits": ["a" * 40, "a" * 40, "a" * 40, "b" * 40, "b" * 40, "b" * 40]}
    )
    assert version_of_each_point(older).nunique() == 1
    theirs = older.assign(**{"eval.provenance.commits": older["pretrain.provenance.commits"]})
    assert version_of_each_point(theirs).nunique() == 2
