"""published.yaml and zoo.yaml with stand-ins of the real files: names, layouts and shapes are real, values are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from runtime import PROJECT
from runtime.errors import UserError
from sweeps.control import check_checkpoints
from sweeps.graph import build
from sweeps.study import load_study

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "vicregl"))
import trees
from published_weights import BACKBONES, published_state

STUDIES = PROJECT / "sweeps" / "studies"
# Channels over those of ConvNeXt-S, whose depths B and XL share.
WIDTHS = {"resnet50": 1.0, "convnext_small": 1.0, "convnext_base": 128 / 96, "convnext_xlarge": 256 / 96}
PUBLISHED = [(arch, alpha) for arch in WIDTHS for alpha in (0.9, 0.75) if (arch, alpha) != ("convnext_xlarge", 0.9)]


def stand_in(arch: str, value: float) -> dict[str, torch.Tensor]:
    """Tensors of the published names and shapes, each with one value, so that the file is small."""
    keys = BACKBONES["resnet50" if arch == "resnet50" else "convnext_small"]["keys"]
    shapes = {key: [round(n * WIDTHS[arch]) if n >= 96 else n for n in shape] for key, shape in keys.items()}
    number = {key: 0 if key.endswith("num_batches_tracked") else value for key in keys}
    return {key: torch.tensor(number[key]).expand(shape) for key, shape in shapes.items()}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setenv("CHECKPOINTS", str(folder))
    for arch, alpha in PUBLISHED:
        torch.save(stand_in(arch, alpha), folder / f"{arch}_alpha{alpha}.pth")
    return folder


@pytest.mark.slow
def test_the_published_files_are_planned(files, tmp_path):
    graph = build(load_study(STUDIES / "published.yaml"), [f"machine.runs={tmp_path / 'runs'}"])
    assert len(graph.points) == 7
    assert len(graph.nodes) == 7 + 28
    check_checkpoints(graph)
    figures = {name: [point.published[name] for point in graph.points] for name in graph.points[0].evals}
    values = {name: [figure and figure.value for figure in found] for name, found in figures.items()}
    assert values == {
        "linear": [71.2, 70.4, 75.9, 74.6, 77.1, 76.3, 79.4],
        "voc": [54.0, 55.9, 66.7, 67.5, 69.3, 70.4, 78.7],
        "cityscapes": [25.1, 25.2, *[None] * 5],  # none could be verified for ConvNeXts, and none on ADE20K
        "ade20k": [None] * 7,
    }
    configs = [{name: node.identity.config for name, node in point.evals.items()} for point in graph.points]
    for name, data in (("voc", "voc"), ("cityscapes", "cityscapes"), ("ade20k", "ade20k")):
        assert [config[name]["taps"] for config in configs] == ["last"] * 2 + ["all"] * 5
        assert [config[name]["optimizer"]["lr"] for config in configs] == [0.01] * 2 + [1e-4] * 4 + [8e-5]
        assert {config[name]["data"]["name"] for config in configs} == {data}
    (files / "resnet50_alpha0.9.pth").write_bytes((files / "convnext_small_alpha0.9.pth").read_bytes())
    with pytest.raises(UserError, match=r"weights ResNet-50, 0\.9: .*does not fit the backbone 'resnet50'"):
        check_checkpoints(build(load_study(STUDIES / "published.yaml"), [f"machine.runs={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_there_is_named(files):
    (files / "convnext_xlarge_alpha0.75.pth").unlink()
    with pytest.raises(UserError, match=r"checkpoints\.ConvNeXt-XL, 0\.75: weights .* do not exist"):
        build(load_study(STUDIES / "published.yaml"))


def test_the_zoo_reads_each_methods_layout(files, tmp_path, monkeypatch):
    """Layouts as their authors write them; a row of a timm tag beside them, from timm's cache."""
    plain = stand_in("resnet50", 0.5)
    head = {"fc.weight": torch.zeros(128, 2048), "fc.bias": torch.zeros(128)}
    moco = {f"module.encoder_q.{key}": value for key, value in plain.items()}
    moco |= {"module.encoder_q.fc.0.weight": torch.zeros(2), "module.queue": torch.zeros(2)}
    swav = {f"module.{key}": value for key, value in plain.items()} | {"module.prototypes.weight": torch.zeros(2)}
    layouts = {
        "vicreg_resnet50.pth": plain,
        "moco_v2_200ep_pretrain.pth.tar": {"epoch": 200, "arch": "resnet50", "state_dict": moco},
        "densecl_r50_imagenet_200ep.pth": {"state_dict": plain, "author": "densecl"},
        "swav_800ep_pretrain.pth.tar": swav,
        "dino_resnet50_pretrain.pth": plain,
        "barlowtwins_resnet50.pth": plain | head,
    }
    for name, contents in layouts.items():
        torch.save(contents, files / name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--timm--resnet50.tv_in1k"
    (cached / "snapshots" / "0123").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    whole = {key: value.clone() for key, value in timm.create_model("resnet50").state_dict().items()}
    save_file(whole, cached / "snapshots" / "0123" / "model.safetensors")
    graph = build(load_study(STUDIES / "zoo.yaml"), [f"machine.runs={tmp_path / 'runs'}"])
    check_checkpoints(graph)
    plain_file = graph.points[2].evals["linear"].identity.config
    assert [point.evals["linear"].identity.config for point in graph.points] == [plain_file] * 9  # one protocol
    known = {point.varied["checkpoint"]: point.published["segmentation"] for point in graph.points}
    assert {name: figure.value for name, figure in known.items() if figure} == {
        "VICRegL 0.9": 54.0,
        "VICRegL 0.75": 55.9,
        "MoCo v2": 35.6,
        "DenseCL": 45.3,
    }


@pytest.mark.slow
def test_a_published_file_at_full_size(files, image_folder, tmp_path):
    """Two steps of linear classification at 224 pixels and of segmentation at 512, and the figures beside them."""
    state = {key: v.float() if v.is_floating_point() else v for key, v in published_state("resnet50").items()}
    torch.save(state, files / "resnet50_alpha0.9.pth")
    trees.voc_tree(tmp_path / "voc", shape=(376, 504))
    (tmp_path / "voc" / "ImageSets/Segmentation/val.txt").write_text("2007_val0\n")
    values = yaml.safe_load((STUDIES / "published.yaml").read_text())
    linear = {"data.name": "imagefolder", "data.root": str(image_folder), "epochs": 1, "batch_size": 24}
    linear |= {"learning_rates": [0.02], "held_out": 0.0}
    voc = {"data.root": str(tmp_path / "voc"), "iterations": 2, "batch_size": 2}
    values["evals"] = {name: values["evals"][name] for name in ("linear", "voc")}
    values["evals"]["linear"]["set"] = linear
    values["evals"]["voc"]["set"] = voc
    row = "ResNet-50, 0.9"
    values["checkpoints"] = {row: values["checkpoints"][row]}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for command in (
        ["sweeps", "run", "--workers=2", "machine.workers=0", "machine.threads=1"],
        ["analysis", f"--reports={tmp_path / 'reports'}"],
    ):
        argv = [sys.executable, "-m", *command, tmp_path / "published.yaml", f"machine.runs={tmp_path / 'runs'}"]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "reports" / "published" / "table.md").read_text(encoding="utf-8").splitlines()
    header, cells = ([cell.strip() for cell in lines[at].split("|")[1:-1]] for at in (0, 2))
    assert header[-3:] == ["voc mIoU (%)", "published", "Δ to published"]
    assert (cells[:4], cells[-2]) == ([row, "ResNet-50", "0.9", "ImageNet-1k"], "54.0")
    assert cells[-1].startswith("−")
