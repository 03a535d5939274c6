"""An evaluation gets exactly the weights of a finished pretraining run, or stops and says why."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from eval import dense_knn, knn, linear, segmentation
from eval.config import KnnConfig, identity
from eval.features import PooledFeatures
from eval.parent import load_parent_backbone, open_parent
from runtime.errors import UserError
from runtime.rundir import Identity, open_run
from vicregl.config import BackboneConfig, ModelConfig
from vicregl.model import VICRegLModel


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


def test_a_run_of_a_package_that_is_not_here_is_refused_before_anything_is_made(tmp_path):
    config = {"imports": {"no_such_package": "1.2"}, "model": {"backbone": {"name": "scenes_resnet"}}}
    with open_run(tmp_path / "runs", Identity("pretrain", "own", 1, config), {}) as run:
        run.write_result({})
    command = [str(run.path), "--config", "eval/configs/knn_scenes.yaml", f"machine.runs={tmp_path / 'made'}"]
    with pytest.raises(UserError, match=f"{run.path}: imports: no_such_package cannot be imported: ModuleNotFound"):
        knn.main(command)
    assert not (tmp_path / "made").exists()


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


@pytest.fixture
def kept(parent):
    """The weights of a checkpoint that the run kept after 3 steps; other parts of the training state beside them."""
    torch.manual_seed(7)
    backbone = BackboneConfig("scenes_resnet")
    model = VICRegLModel(ModelConfig(backbone, expander="16-16", projector="8-8"), alpha=0.5)
    probe = {"weight": torch.zeros(2, 3)}
    (parent / "checkpoints").mkdir()
    contents = {"format": 2, "step": 3, "model": model.state_dict(), "optimizer": {"state": {}}, "probe": probe}
    torch.save(contents, parent / "checkpoints" / "step-00000003.pt")
    return model.backbone.trunk.state_dict()


def test_a_kept_checkpoint_is_read_in_place_of_the_last(parent, kept):
    opened = open_parent(parent, "3 steps")
    loaded = load_parent_backbone(opened).trunk.state_dict()
    assert loaded.keys() == kept.keys()
    assert all(torch.equal(loaded[key], kept[key]) for key in kept)
    last = load_parent_backbone(open_parent(parent)).trunk.state_dict()
    assert not torch.equal(last["stem.conv.weight"], kept["stem.conv.weight"])


def test_a_network_whose_keys_begin_with_encoder(make_parent):
    """As the prefix that is taken off the files of other projects; at the end of training and at a kept checkpoint."""
    name, args = "qwen3_vit_88m", {"embed_dim": 32, "depth": 1, "num_heads": 2}
    parent = make_parent(name, args=args)
    expected = load_file(parent / "backbone.safetensors")
    assert all(key.startswith("encoder.") for key in expected)
    (parent / "checkpoints").mkdir()
    whole = {f"backbone.trunk.{key}": value for key, value in expected.items()} | {"expander.0.weight": torch.ones(3)}
    torch.save({"format": 2, "step": 3, "model": whole}, parent / "checkpoints" / "step-00000003.pt")
    for at in (None, "3 steps"):
        loaded = load_parent_backbone(open_parent(parent, at)).trunk.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_checkpoint_that_was_not_kept_is_refused(parent, kept):
    with pytest.raises(UserError, match=r"kept no checkpoint after 2 epochs; it kept step-00000003.*machine\.keep_at"):
        open_parent(parent, "2 epochs")


def test_a_kept_checkpoint_of_another_network_is_refused(parent, kept):
    del kept["stem.conv.weight"]
    state = {f"backbone.trunk.{key}": value for key, value in kept.items()}
    torch.save({"model": state}, parent / "checkpoints" / "step-00000003.pt")
    with pytest.raises(UserError, match=r"step-00000003.*missing \(1\): stem\.conv\.weight"):
        load_parent_backbone(open_parent(parent, "3 steps"))


def test_the_moment_is_part_of_the_name():
    names = [identity(KnnConfig(), "0123456789", at).name for at in (None, "3 steps", "3 epochs")]
    assert [name.rpartition("-")[0] for name in names] == [
        "scenes-knn-of-012345-seed0",
        "scenes-knn-of-012345-at-3-steps-seed0",
        "scenes-knn-of-012345-at-3-epochs-seed0",
    ]
    assert len({name.rpartition("-")[2] for name in names}) == 3
    assert names[0].endswith("0224bc5298")


EVALUATIONS = {
    "linear": (linear, "linear_scenes", ["epochs=1", "learning_rates=[0.1]", "held_out=0"], "top1"),
    "knn": (knn, "knn_scenes", ["neighbours=[3]"], "top1"),
    "dense_knn": (dense_knn, "dense_knn_scenes", [], "miou"),
    "segmentation": (segmentation, "seg_scenes", ["iterations=2", "batch_size=2"], "miou"),
}


@pytest.mark.parametrize("stage", EVALUATIONS)
def test_every_evaluation_takes_a_kept_checkpoint(stage, evaluate, parent, kept, scenes):
    """Its score is that of a run which ended with those weights."""
    module, config, quick, score = EVALUATIONS[stage]
    file, overrides = f"eval/configs/{config}.yaml", [*scenes, *quick]
    code, err, at_step = evaluate(module.main, parent, file, *overrides, "--at", "3 steps")
    assert code == 0, err
    assert at_step.result()["at"] == "3 steps"
    save_file({key: value.contiguous() for key, value in kept.items()}, parent / "backbone.safetensors")
    code, err, at_end = evaluate(module.main, parent, file, *overrides)
    assert (code, at_end.path == at_step.path, "at" in at_end.result()) == (0, False, False), err
    assert at_end.result()[score] == at_step.result()[score]


def test_a_moment_without_unit_is_refused(evaluate, parent, scenes):
    code, err, _ = evaluate(knn.main, parent, "eval/configs/knn_scenes.yaml", *scenes, "--at", "10")
    assert (code, "expected a whole number and its unit" in err) == (2, True), err


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize("stage", ["knn", "linear"])
def test_the_class_token_in_place_of_the_maps_mean(stage, evaluate, make_parent, scenes):
    module, config, quick, _ = EVALUATIONS[stage]
    file, parent = f"eval/configs/{config}.yaml", make_parent("vit_tiny_patch16_224", args=VIT)
    runs = {}
    for pooled in ("mean", "class_token"):
        code, err, runs[pooled] = evaluate(module.main, parent, file, *scenes, *quick, f"pooled={pooled}")
        assert code == 0, err
        assert runs[pooled].result()["pooled"] == pooled
    name, result = runs["class_token"].path, runs["class_token"].result()
    assert name != runs["mean"].path
    assert result["protocol"] == runs["mean"].result()["protocol"] + ", class token"
    evaluate(module.main, parent, file, *scenes, *quick)
    assert evaluate.output == [f"{runs['mean'].path} is done"]  # runs of before keep their names


def test_features_are_the_class_token(make_parent):
    backbone = load_parent_backbone(open_parent(make_parent("vit_tiny_patch16_224", args=VIT))).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = backbone.trunk.forward_features(images)[:, 0]
    actual = PooledFeatures(backbone, torch.device("cpu"), KnnConfig(pooled="class_token"))(images)
    torch.testing.assert_close(actual, expected)


def test_a_network_without_a_class_token_is_refused_before_anything_is_made(evaluate, parent, scenes, tmp_path):
    code, err, _ = evaluate(knn.main, parent, "eval/configs/knn_scenes.yaml", *scenes, "pooled=class_token")
    assert (code, "scenes_resnet has no class token; allowed: mean" in err) == (2, True), err
    assert not (tmp_path / "runs" / "knn").exists()
