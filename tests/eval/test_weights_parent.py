"""--weights FILE --arch NAME: a file of the published layout is scored strictly, and under its hash."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

from data.catalog import open_dataset
from data.config import MEAN, STD, DataConfig
from data.transforms import LabelledDataset, eval_transform
from eval import knn, linear, segmentation
from eval.config import KnnConfig, identity
from eval.parent import Parent, load_parent_backbone, normalisation_of_run, normalisation_of_weights, open_parent
from eval.published import published_score
from eval.weights import import_weights, parse_args
from eval.weights_config import WeightsConfig
from runtime import config as configs
from runtime.config import MachineConfig
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "vicregl"))
from published_weights import ARGS, BACKBONES, as_full_checkpoint, golden_images, published_state

CONFIG = "eval/configs/linear_scenes.yaml"
QUICK = ["epochs=1", "learning_rates=[0.1]", "held_out=0"]


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """started(main, *arguments) -> (exit code, stdout, stderr); runs are made under tmp_path/runs."""

    def run(main, *arguments: object) -> tuple[int, str, str]:
        words = [*map(str, arguments), f"machine.runs={tmp_path / 'runs'}"]
        monkeypatch.setattr(sys, "argv", ["eval", *words])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


def imported(runs: Path, file: Path, arch: str, args: dict, prefix: str | None = None, ignore: list[str] | None = None):
    described = {"file": str(file), "arch": arch, "args": args, "prefix": prefix, "ignore": ignore or []}
    return import_weights(WeightsConfig(**described, machine=MachineConfig(runs=str(runs))))


@pytest.fixture
def small_file(tmp_path) -> Path:
    """A full checkpoint of scenes_resnet, as a training script of several processes saves it."""
    state = {k: v.clone() for k, v in create_backbone(BackboneConfig("scenes_resnet")).trunk.state_dict().items()}
    torch.save(as_full_checkpoint(state), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_published_file_end_to_end(started, image_folder, tmp_path):
    """ResNet-50 of the published key layout, by linear classification of a small folder."""
    file = tmp_path / "resnet50_alpha0.9.pth"
    torch.save(published_state("resnet50"), file)
    data = ["data.name=imagefolder", f"data.root={image_folder}", *QUICK]
    code, out, err = started(linear.main, "--weights", file, "--arch", "resnet50", "--config", CONFIG, *data)
    assert code == 0, err
    assert "all 318 tensors" in out
    assert "published" not in out.replace(str(tmp_path), "")  # a figure of ImageNet has no place beside this one
    (run,) = (tmp_path / "runs" / "linear").iterdir()
    described = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "arch": "resnet50",
        "args": {},
    }
    document = yaml.safe_load((run / "run.yaml").read_text())
    assert document["machine"]["weights"] == described
    assert json.loads((run / "result.json").read_text())["weights"] == described
    (parent,) = (tmp_path / "runs" / "weights").iterdir()
    assert document["parent"] == yaml.safe_load((parent / "run.yaml").read_text())["hash"]
    # The imported folder is a parent by its path, too, and the same evaluation: done already.
    code, out, _ = started(linear.main, parent, "--config", CONFIG, *data)
    assert (code, out.strip().endswith("is done")) == (0, True)


@pytest.mark.slow
def test_the_published_figure_stands_beside_imagenets(started, imagenet_tree, tmp_path):
    file = tmp_path / "resnet50_alpha0.75.pth"
    torch.save(published_state("resnet50"), file)
    data = [f"data.root={imagenet_tree}", "image_size=8", "resize=8", "machine.workers=0", *QUICK]
    config = "eval/configs/linear_imagenet.yaml"
    code, out, err = started(linear.main, "--weights", file, "--arch", "resnet50", "--config", config, *data)
    assert code == 0, err
    assert "published top1 of the weights of this file name: 70.4 %" in out
    (result,) = (tmp_path / "runs" / "linear").glob("*/result.json")
    assert json.loads(result.read_text())["published"]["value"] == 70.4


@pytest.mark.parametrize("arch", ["resnet50", "convnext_small"])
@pytest.mark.slow
def test_imported_weights_give_the_published_outputs(arch, tmp_path):
    """Through file, import and parent, the pooled features of the golden backbones (float64)."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in published_state(arch).items()}
    torch.save(as_full_checkpoint(state), tmp_path / "model.pth")
    parent = imported(tmp_path / "runs", tmp_path / "model.pth", arch, ARGS[arch])
    backbone = load_parent_backbone(parent).double().eval()
    with torch.no_grad():
        _, pooled = backbone(golden_images(0))
    for key, value in load_file(parent.weights).items():
        assert torch.equal(backbone.trunk.state_dict()[key].float(), value.float())
    expected = torch.tensor(BACKBONES[arch]["pooled_head"], dtype=torch.float64)
    # The weights went through float32 files.
    torch.testing.assert_close(pooled[:, : expected.shape[1]], expected, rtol=2e-4, atol=2e-5)
    assert pooled.norm().item() == pytest.approx(BACKBONES[arch]["pooled_norm"], rel=1e-5)


def test_the_same_weights_by_another_name_are_the_same_parent(small_file, tmp_path):
    first = imported(tmp_path / "runs", small_file, "scenes_resnet", {})
    renamed = small_file.rename(tmp_path / "other.pth")
    assert imported(tmp_path / "runs", renamed, "scenes_resnet", {}).run.path == first.run.path
    assert len(list((tmp_path / "runs" / "weights").iterdir())) == 1
    assert json.loads((first.run.path / "result.json").read_text())["left_out"] == 2  # the heads


def test_members_of_a_group_may_evaluate_imported_weights(small_file, tmp_path):
    made = imported(tmp_path / "runs", small_file, "scenes_resnet", {}).run.path
    open_to = {(made / name).stat().st_mode & 0o777 for name in ("backbone.safetensors", "result.json")}
    assert len(open_to) == 1


def test_prefix_and_ignore_are_part_of_the_name(tmp_path):
    state = create_backbone(BackboneConfig("scenes_resnet")).trunk.state_dict()
    file = tmp_path / "other.pth"
    torch.save({f"net.visual.{key}": value for key, value in state.items()} | {"net.visual.pool": torch.ones(3)}, file)
    with pytest.raises(UserError, match="give prefix and ignore"):
        imported(tmp_path / "runs", file, "scenes_resnet", {})
    parent = imported(tmp_path / "runs", file, "scenes_resnet", {}, "net.visual.", ["pool"])
    assert parent.config["weights"].items() >= {"prefix": "net.visual.", "ignore": ["pool"]}.items()
    again = imported(tmp_path / "runs", file, "scenes_resnet", {}, "net.visual.", ["pool", "other"])
    assert again.hash != parent.hash


def test_a_changed_copy_is_refused(small_file, tmp_path):
    parent = imported(tmp_path / "runs", small_file, "scenes_resnet", {})
    content = bytearray(parent.weights.read_bytes())
    content[-1] ^= 1
    parent.weights.write_bytes(content)
    with pytest.raises(UserError, match="differs from what was imported"):
        imported(tmp_path / "runs", small_file, "scenes_resnet", {})


def test_weights_that_do_not_fit_are_never_scored(started, small_file, tmp_path):
    torch.save({"stem.conv.weight": torch.zeros(3)}, tmp_path / "part.pth")
    arguments = [
        (["--weights", tmp_path / "part.pth", "--arch", "scenes_resnet"], "does not fit the backbone 'scenes_resnet'"),
        (["--weights", small_file, "--arch", "scenes_resnet", "--arch-arg", "width_factor=0.5"], "does not fit"),
        (["--weights", tmp_path / "none.pth", "--arch", "resnet50"], "do not exist"),
        (["--weights", small_file, "--arch", "resnet_50"], "near it: resnet50"),
        (["--weights", small_file], "--arch NAME"),
        (["--weights", small_file, "--arch", "scenes_resnet", "runs/pretrain/x"], "a run or a file"),
        (["--arch", "resnet50", "runs/pretrain/x"], "describe --weights FILE, which was not given"),
        (["--prefix", "net.", "runs/pretrain/x"], "describe --weights FILE, which was not given"),
        (["--weights", small_file, "--arch", "scenes_resnet", "--arch-arg", "width_factor"], "expected key=value"),
    ]
    for words, message in arguments:
        code, _, err = started(linear.main, "--config", CONFIG, *words, "data.name=imagefolder")
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "runs").exists()
    code, _, err = started(linear.main, "--config", CONFIG)
    assert (code, "is not a folder" in err) == (2, True), err  # machine.runs=... stands where a run should


def test_files_say_which_argument_their_network_needs(tmp_path):
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    without = create_backbone(BackboneConfig("convnext_atto", args | {"ls_init_value": None}))
    torch.save(without.trunk.state_dict(), tmp_path / "model.pth")
    with pytest.raises(UserError, match="--arch-arg ls_init_value=null"):
        imported(tmp_path / "runs", tmp_path / "model.pth", "convnext_atto", args)
    assert not (tmp_path / "runs").exists()
    vit = create_backbone(BackboneConfig("vit_small_patch16_224", {"depth": 1})).trunk.state_dict()
    torch.save({f"module.base_encoder.{key}": value for key, value in vit.items()}, tmp_path / "moco.pth")
    with pytest.raises(UserError, match="--arch-arg num_heads=12"):
        imported(tmp_path / "runs", tmp_path / "moco.pth", "vit_small_patch16_224", {"depth": 1})
    given = parse_args(["depths=[1,1,1,1]", "dims=[8,8,8,8]", "ls_init_value=null"])
    parent = imported(tmp_path / "runs", tmp_path / "model.pth", "convnext_atto", given)
    assert parent.config["model"]["backbone"]["args"] == args | {"ls_init_value": None}


@pytest.mark.parametrize("stage", ["knn", "segmentation"])
def test_other_evaluations_take_a_file_too(stage, started, small_file, scenes, tmp_path):
    module, config, quick = {
        "knn": (knn, "knn_scenes", ["neighbours=[3,9]"]),
        "segmentation": (segmentation, "seg_scenes", ["iterations=2", "batch_size=2"]),
    }[stage]
    words = ["--weights", small_file, "--arch", "scenes_resnet", "--config", f"eval/configs/{config}.yaml"]
    code, _, err = started(module.main, *words, *scenes, *quick)
    assert code == 0, err
    (result,) = (tmp_path / "runs" / stage).glob("*/result.json")
    assert json.loads(result.read_text())["weights"]["file"] == "model.pth"


def test_a_network_of_another_normalisation_needs_a_word(started, image_folder, tmp_path):
    """timm's BiT networks were trained with mean and deviation 0.5; without a word nothing is made."""
    name = "resnetv2_50x1_bit"
    torch.save(create_backbone(BackboneConfig(name=name)).trunk.state_dict(), tmp_path / "bit.pth")
    data = ["data.name=imagefolder", f"data.root={image_folder}", "neighbours=[3]", "image_size=32", "resize=32"]
    words = ["--weights", tmp_path / "bit.pth", "--arch", name, "--config", "eval/configs/knn_scenes.yaml", *data]
    code, _, err = started(knn.main, *words)
    assert (code, "[0.5, 0.5, 0.5]" in err, "[0.485, 0.456, 0.406]" in err) == (2, True, True), err
    assert not (tmp_path / "runs").exists()
    by_folder = imported(tmp_path / "runs", tmp_path / "bit.pth", name, {}).run.path
    code, _, err = started(knn.main, by_folder, "--config", "eval/configs/knn_scenes.yaml", *data)
    assert (code, "[0.5, 0.5, 0.5]" in err) == (2, True), err
    for chosen, mean in (("network", 0.5), ("imagenet", 0.485), ("goog_in21k", 0.5)):
        code, _, err = started(knn.main, *words, f"normalisation={chosen}")
        assert code == 0, err
        results = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "knn").glob("*/result.json")]
        assert mean in [result["normalisation_mean"][0] for result in results]
    assert len({(result["normalisation_mean"][0], result["normalisation_std"][0]) for result in results}) == 2
    code, _, err = started(knn.main, *words, "normalisation=clip")
    assert (code, "allowed: imagenet, network, goog_distilled_in1k" in err) == (2, True), err


def test_a_choice_of_normalisation_names_another_run():
    """Runs of before keep their names."""
    words = [], ["normalisation=network"]
    plain, chosen = (configs.load(KnnConfig, "eval/configs/knn_imagenet.yaml", each) for each in words)
    assert "normalisation" not in identity(plain, "0123456789").config
    assert identity(plain, "0123456789").hash != identity(chosen, "0123456789").hash


def test_a_run_of_another_normalisation_needs_a_word(parent):
    run = open_parent(parent)
    published = replace(run, config=run.config | {"views": {"mean": list(MEAN), "std": [0.228, 0.224, 0.225]}})
    assert normalisation_of_run(published, None) == normalisation_of_run(run, "network") == (MEAN, STD)
    half = replace(run, config=run.config | {"views": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    with pytest.raises(UserError, match="normalisation=network or normalisation=imagenet"):
        normalisation_of_run(half, None)
    assert normalisation_of_run(half, "network") == ([0.5] * 3, [0.5] * 3)


def test_images_are_normalised_as_the_network_wants(image_folder):
    """Equal to torchvision's ToTensor and Normalize."""
    images = open_dataset(DataConfig(name="imagefolder", root=str(image_folder))).images("val")
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    ours = LabelledDataset(images, eval_transform(32, 32), normalisation=(mean, std))
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = reference(Image.open(images.paths[3]).convert("RGB"))
    torch.testing.assert_close(ours.batch([3])[0][0], expected, atol=1e-5, rtol=1e-5)


def test_weights_of_another_normalisation_are_named(capsys):
    assert normalisation_of_weights("convnext_base", None) == (MEAN, STD)
    assert "normalisation=clip_laion" in capsys.readouterr().out
    assert normalisation_of_weights("convnext_base", "clip_laion2b_augreg")[0][0] == pytest.approx(0.4815, abs=1e-4)
    assert normalisation_of_weights("resnet50", None) == (MEAN, STD)
    assert capsys.readouterr().out == ""


def test_arguments_of_the_network():
    assert parse_args(["ls_init_value=null", "drop_path_rate=0.1"]) == {"ls_init_value": None, "drop_path_rate": 0.1}
    with pytest.raises(UserError, match="given twice"):
        parse_args(["a=1", "a=2"])


FROZEN = {"protocol": "frozen linear"}
LAST, ALL = FROZEN | {"taps": "last"}, FROZEN | {"taps": "all"}


@pytest.mark.parametrize(
    ("file", "stage", "data", "result", "value"),
    [
        ("resnet50_alpha0.9.pth", "linear", "imagenet", {"protocol": "linear"}, 71.2),
        ("resnet50_alpha0.75_fullckpt.pth", "linear", "imagenet", {"protocol": "linear"}, 70.4),
        ("convnext_xlarge_alpha0.75.pth", "linear", "imagenet", {"protocol": "linear"}, 79.4),
        ("resnet50_alpha0.9.pth", "segmentation", "voc", LAST, 54.0),
        ("resnet50_alpha0.9.pth", "segmentation", "cityscapes", LAST, 25.1),
        ("convnext_base_alpha0.9.pth", "segmentation", "voc", ALL, 69.3),
        ("resnet50_alpha0.9.pth", "segmentation", "voc", ALL, None),
        ("resnet50_alpha0.9.pth", "linear", "imagenet", {"protocol": "linear cached"}, None),
        ("resnet50_alpha0.9.pth", "linear", "imagenet", {"protocol": "linear 1percent"}, None),
        ("resnet50_alpha0.9.pth", "linear", "scenes", {"protocol": "linear"}, None),
        ("resnet50_alpha0.95.pth", "linear", "imagenet", {"protocol": "linear"}, None),
        ("checkpoint.pth", "linear", "imagenet", {"protocol": "linear"}, None),
        ("convnext_small_alpha0.9.pth", "segmentation", "cityscapes", ALL, None),
    ],
)
def test_published_figures_by_file_name(file, stage, data, result, value):
    arch = file.partition("_alpha")[0]
    config = DataConfig(name=data, segmentation_train="train_aug" if data == "voc" else "train")
    figure = published_score(file, arch, stage, config, result)
    assert (None if figure is None else figure.value) == value
    assert published_score(file, "resnet18", stage, config, result) is None
    if data == "voc":
        assert published_score(file, arch, stage, DataConfig(name=data), result) is None  # trained on fewer masks


def test_the_published_figure_is_printed_beside_the_result(capsys):
    from eval.command import EvalArguments

    arguments = EvalArguments("c.yaml", [], None, Path("x/resnet50_alpha0.9.pth"), "resnet50", [])
    described = {"model": {"backbone": {"name": "resnet50", "args": {}}}, "weights": {"sha256": "0"}}
    scores = {"protocol": "linear", "top1": 70.9}
    beside = arguments.published(Parent(Run(Path("x")), "0", described), "linear", DataConfig(name="imagenet"), scores)
    assert beside["published"] == {"score": "top1", "value": 71.2, "source": beside["published"]["source"]}
    assert "71.2 % (authors' README" in (printed := capsys.readouterr().out)
    assert "here: 70.90 %" in printed
