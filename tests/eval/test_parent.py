"""An evaluation gets exactly the weights of a finished pretraining run, or stops and says why."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval.parent import load_parent_backbone, open_parent
from runtime.errors import UserError
from runtime.rundir import Identity, open_run


def test_every_tensor_is_the_files(parent):
    backbone = load_parent_backbone(open_parent(parent))
    expected = load_file(parent / "backbone.safetensors")
    loaded = backbone.trunk.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_parent_carries_the_hash_and_the_config(parent):
    opened = open_parent(parent)
    document = yaml.safe_load((parent / "run.yaml").read_text())
    assert opened.hash == document["hash"]
    assert opened.config["model"]["backbone"]["name"] == "scenes_resnet"


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_parent(tmp_path / "nothing")


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run\.yaml"):
        open_parent(tmp_path)


def test_run_of_another_stage(tmp_path):
    with open_run(tmp_path, Identity("linear", "x", 1, {}), {}) as run:
        run.write_result({})
    with pytest.raises(UserError, match="stage 'linear'"):
        open_parent(run.path)


def test_run_that_is_not_done(parent):
    (parent / "result.json").unlink()
    with pytest.raises(UserError, match=r"interrupted.*done"):
        open_parent(parent)


def test_failed_run(parent):
    (parent / "result.json").unlink()
    (parent / "failure.json").write_text(json.dumps({"message": "loss is nan"}))
    with pytest.raises(UserError, match="is failed"):
        open_parent(parent)


def test_run_whose_config_was_edited(parent):
    file = parent / "run.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="was changed"):
        open_parent(parent)


def test_lost_backbone(parent):
    (parent / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="is missing, though the run is done"):
        open_parent(parent)


def test_truncated_backbone(parent):
    file = parent / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"backbone\.safetensors"):
        load_parent_backbone(open_parent(parent))


def test_file_that_is_no_checkpoint(parent):
    (parent / "backbone.safetensors").write_bytes(b"not a checkpoint at all" * 100)
    with pytest.raises(UserError, match=r"backbone\.safetensors"):
        load_parent_backbone(open_parent(parent))


def test_backbone_of_another_architecture(make_parent):
    small, other = make_parent("scenes_resnet"), make_parent("resnet10t")
    (small / "backbone.safetensors").write_bytes((other / "backbone.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit"):
        load_parent_backbone(open_parent(small))


def test_output_stride_dilates_the_same_weights(make_parent):
    parent = open_parent(make_parent("resnet10t"))
    assert load_parent_backbone(parent).grid_size(64) == (2, 2)
    assert load_parent_backbone(parent, output_stride=8).grid_size(64) == (8, 8)
