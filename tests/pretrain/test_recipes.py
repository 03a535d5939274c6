"""Each recipe is what its header says, and trains at full size: real heads, real networks, tiny batches."""

from __future__ import annotations

import re
from math import prod

import pytest
import torch
from torch import Tensor, nn

from eval.published import published_rows
from pretrain import export
from pretrain.config import PretrainConfig
from pretrain.optimizers import make_optimizer, set_learning_rate
from runtime import PROJECT
from runtime import config as configs
from runtime.config import Duration
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

FOLDER = PROJECT / "pretrain" / "configs"
IMAGES = {"imagenet": 1_281_167, "imagefolder": 14_197_122}  # ImageNet-1k; ImageNet-22k as a folder

# What was read of the published recipes: crops, optimiser with its decay, batch, epochs, and whether heads are
# normalised over the batch (ResNets) or each row (ConvNeXts).
RESNET = {"large": [0.08, 1.0], "small": 0, "optimizer": ("lars", 1e-6), "norm": "batch", "args": {}}
CONVNEXT = {
    "large": [0.4, 1.0],
    "small": 6,
    "optimizer": ("adamw", 0.05),
    "norm": "layer",
    "args": {"ls_init_value": None, "drop_path_rate": 0.1},
}
PUBLISHED = {
    "resnet50_100ep": RESNET | {"backbone": "resnet50", "lr": 0.3, "batch": 512, "epochs": 100},
    "resnet50_300ep": RESNET | {"backbone": "resnet50", "lr": 0.2, "batch": 2048, "epochs": 300},
    "vicreg_resnet50": RESNET | {"backbone": "resnet50", "lr": 0.2, "batch": 2048, "epochs": 300},
    "convnext_small": CONVNEXT | {"backbone": "convnext_small", "lr": 7.5e-4, "batch": 384},
    "vicreg_convnext_small": CONVNEXT | {"backbone": "convnext_small", "lr": 7.5e-4, "batch": 384},
    "convnext_base": CONVNEXT | {"backbone": "convnext_base", "lr": 5e-4, "batch": 576, "epochs": 400},
    "convnext_xlarge_in22k": CONVNEXT | {"backbone": "convnext_xlarge"},
}
BACKBONES = {recipe: said["backbone"] for recipe, said in PUBLISHED.items()} | {"small_gpu": "resnet50"}
BACKBONES |= {"vit_small": "vit_small_patch16_224"}
RECIPES = list(BACKBONES)
# backbone: (millions as published, parameters here). The publication says 85 M of ConvNeXt-B, which has 88 M.
PARAMETERS = {
    "resnet50": (23, 23_508_032),
    "convnext_small": (50, 49_441_152),
    "convnext_base": (85, 87_548_416),
    "convnext_xlarge": (350, 348_111_872),
    "vit_small_patch16_224": (22, 21_665_664),  # "as published": DeiT-S
}
STRIDES = {"vit_small_patch16_224": 16}  # pixels between positions; 32 of the others


def load(recipe: str, *overrides: str) -> PretrainConfig:
    return configs.load(PretrainConfig, FOLDER / f"{recipe}.yaml", overrides)


def header(recipe: str) -> list[str]:
    _, *lines = (FOLDER / f"{recipe}.yaml").read_text().splitlines()  # the first line names the schema
    return [line.removeprefix("# ") for line in lines[: lines.index("")]]


def test_every_config_is_tested() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} - {"quickstart"} == set(RECIPES)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_what_was_published(recipe: str) -> None:
    config, said = load(recipe), PUBLISHED[recipe]
    views, backbone = config.views, config.model.backbone
    assert (backbone.name, backbone.args) == (said["backbone"], said["args"])
    assert (views.large_count, views.large_size, views.large_scale) == (2, 224, said["large"])
    assert views.small_count == said["small"]
    assert (views.mean, views.std) == ([0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
    if views.small_count:
        assert (views.small_size, views.small_scale) == (96, [0.08, 0.4])
    assert (config.model.expander, config.model.projector) == ("8192-8192-8192", "512-512-512")
    assert config.model.projector_norm == said["norm"]
    assert (config.optimizer.name, config.optimizer.weight_decay) == said["optimizer"]
    assert (config.optimizer.warmup, config.optimizer.end_lr_ratio) == ("10 epochs", 0.001)
    assert config.optimizer.base_lr == said.get("lr", config.optimizer.base_lr)
    assert config.train.batch_size == said.get("batch", config.train.batch_size)
    assert Duration.parse(config.train.duration) == Duration(
        said.get("epochs", Duration.parse(config.train.duration).amount), "epochs"
    )
    assert config.loss.alpha == (1.0 if recipe.startswith("vicreg_") else 0.75)
    assert (config.loss.local, config.loss.num_matches) == ("both", [20, 4])
    assert config.loss.profile == "paper"
    # Blur and solarisation differ between even and odd views.
    assert (views.blur_probability, views.solarize_probability) == ([1.0, 0.1], [0.0, 0.2])
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_starts_this_recipe(recipe: str) -> None:
    """And as many processes as it starts can share the batch."""
    commands = [line for line in header(recipe) if "-m pretrain" in line]
    assert header(recipe)[0] == commands[0]
    for command in commands:
        assert command.endswith(f"-m pretrain --config pretrain/configs/{recipe}.yaml")
        counts = [int(n) for n in re.findall(r"--(?:nproc-per-node|nodes|ntasks-per-node)=(\d+)", command)]
        assert load(recipe).train.batch_size % (2 * prod(counts)) == 0  # at least two images a process


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_scores_are_those_that_were_read(recipe: str) -> None:
    """Every percentage of the header stands in eval/published.csv, in a row of this backbone and alpha."""
    text = " ".join(header(recipe))
    said = re.findall(
        r"(?:at (?:alpha )?(\d\.\d+)|VICReg, 300 epochs): (?:[\w -]+ )?(\d+\.\d) %, (?:[\w ]+ )?(\d+\.\d) %", text
    )
    assert len(re.findall(r"\d %", text)) == 2 * len(said)
    rows = [row for row in published_rows() if row["backbone"] == BACKBONES[recipe]]
    read = {
        (row["alpha"], row["linear_top1"], row["voc_frozen_miou"]) for row in rows if row["method"].startswith("VICReg")
    }
    assert {(float(alpha or 1), float(top1), float(miou)) for alpha, top1, miou in said} <= read
    assert said or "Published: nothing" in text


def on_meta(config: PretrainConfig) -> VICRegLModel:
    with torch.device("meta"):
        return VICRegLModel(config.model, config.loss.global_weight)


def multiply_adds(model: nn.Module, views: list[Tensor]) -> int:
    """Of all convolutions and linear layers in a forward pass."""
    counts: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        counts.append(output.numel() * prod(module.weight.shape[1:]))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(views)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("recipe", RECIPES)
def test_size_and_cost(recipe: str) -> None:
    """GFLOP an image (forward, backward as twice that) are counted anew, and the header's hours follow from them."""
    config = load(recipe)
    model = on_meta(config)
    published, exact = PARAMETERS[BACKBONES[recipe]]
    assert sum(p.numel() for p in model.backbone.trunk.parameters()) == exact
    assert exact / 1e6 == pytest.approx(published, rel=0.035)
    assert (model.projector is None) == (config.loss.alpha == 1)
    side, cells = config.views.large_size, config.views.large_size // STRIDES.get(BACKBONES[recipe], 32)
    assert model.backbone.grid_size(side) == (cells, cells)

    views = [torch.empty(2, 3, side, side, device="meta") for side in config.views.sides()]
    flop = 3 * 2 * multiply_adds(model, views) / 2
    text = " ".join(header(recipe)).replace(",", "")
    patterns = (r"Cost: (\S+) GFLOP an image", r"(\d+) GPU hours", r"at (\d+) TFLOP/s")
    said, hours, rate = (float(re.findall(pattern, text)[0]) for pattern in patterns)
    assert said * 1e9 == pytest.approx(flop, rel=0.01)
    images = IMAGES[config.data.name] * Duration.parse(config.train.duration).amount
    assert hours == pytest.approx(images * said * 1e9 / (rate * 1e12) / 3600, rel=0.03)
    assert re.search("not measured|nothing here was measured", text)


def locations(batch: int, model: VICRegLModel, sides: list[int]) -> list[Tensor]:
    """Of views that all cover their whole image of 500 pixels."""
    grids = []
    for side in sides:
        rows, columns = model.backbone.grid_size(side)
        centres = [(torch.arange(n) + 0.5) * 500 / n for n in (rows, columns)]
        grids.append(torch.stack(torch.meshgrid(*centres, indexing="ij"), -1).expand(batch, -1, -1, -1))
    return grids


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["resnet50_100ep", "convnext_small", "small_gpu", "vit_small"])
def test_two_steps_at_full_size(recipe: str) -> None:
    """The whole network with its whole heads on the CPU; images of 64 and 32 pixels, four of them, in its precision."""
    config = load(recipe, "views.large_size=64", "views.small_size=32")
    torch.manual_seed(0)
    model = VICRegLModel(config.model, config.loss.global_weight).to(memory_format=torch.channels_last)
    criterion = VICRegLCriterion(config.loss, num_matches=[4, 4])  # the whole map of a view of 64 pixels
    optimizer = make_optimizer(model, config.optimizer)
    grids = locations(4, model, config.views.sides())
    before = {name: p.detach().flatten()[:64].clone() for name, p in model.named_parameters()}
    for _ in range(2):
        views = [torch.randn(4, 3, side, side) for side in config.views.sides()]
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            output = model(views)
        losses = criterion(output.embeddings, output.maps, grids)
        assert torch.isfinite(losses["loss"])
        set_learning_rate(optimizer, config.optimizer.base_lr * config.train.batch_size / 256)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    same = [name for name, values in before.items() if torch.equal(values, after[name].detach().flatten()[:64])]
    assert not same, same


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["convnext_base", "convnext_xlarge_in22k"])
def test_two_steps_of_shapes(recipe: str) -> None:
    """What does not fit: every parameter gets a gradient of its shape, and the optimiser takes it, without numbers."""
    config = load(recipe)
    model = on_meta(config)
    optimizer = make_optimizer(model, config.optimizer)
    views = [torch.empty(2, 3, side, side, device="meta") for side in config.views.sides()]
    for _ in range(2):
        output = model(views)
        assert [tuple(e.shape) for e in output.embeddings] == [(2, 8192)] * 8
        assert [tuple(m.shape) for m in output.maps] == [(2, 49, 512)] * 2 + [(2, 9, 512)] * 6
        optimizer.zero_grad(set_to_none=True)
        sum(x.float().mean() for x in [*output.embeddings, *output.maps]).backward()
        optimizer.step()
    gradients = {name: None if p.grad is None else p.grad.shape for name, p in model.named_parameters()}
    assert gradients == {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.slow
def test_the_command_for_one_gpu_runs_here(tmp_path, image_folder, command) -> None:
    """Its own command line, with another place of the data, fewer images and smaller views; then the export of it."""
    small = ["views.large_size=64", "train.batch_size=4", "train.duration=2 steps", "optimizer.warmup=1 steps"]
    here = ["data.name=imagefolder", f"data.root={image_folder}", "machine.workers=0", "machine.device=cpu"]
    done = command(
        *header("small_gpu")[0].split()[2:], *small, *here, "diagnostics_images=4", f"machine.runs={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "pretrain").iterdir()
    export.main([str(run), "--out", str(tmp_path / "resnet50.pth")])
    assert len(torch.load(tmp_path / "resnet50.pth", weights_only=True)) == 318
