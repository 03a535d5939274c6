"""A finished pretraining run as a network to look into, and images to show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.catalog import open_dataset
from data.config import DataConfig
from data.images import Pixels, normalise
from data.record import recorded_root
from data.transforms import eval_transform
from data.views import ViewMaker, sample_generator
from eval.parent import load_parent_backbone, open_parent
from eval.predictions import spread
from pretrain.config import PretrainConfig
from runtime import config as configs
from runtime.config import require
from runtime.errors import CHECKPOINT_ERRORS, UserError
from vicregl.backbones import Backbone
from vicregl.model import VICRegLModel


@dataclass(frozen=True)
class Network:
    """The network of a finished run, in eval mode, without gradients, on the CPU."""

    name: str
    config: PretrainConfig
    backbone: Backbone
    projector: nn.Module | None  # of the last map; None where the criterion had no local half

    @classmethod
    def open(cls, run: str | Path) -> Network:
        """Load the network of a run; UserError unless it is a finished, intact pretraining. Never random weights."""
        parent = open_parent(run)
        where = str(parent.run.path / "run.yaml")
        layers = [(where, parent.config), recorded_root(parent.run.path)]
        config = configs.from_layers(PretrainConfig, layers)
        backbone = load_parent_backbone(parent).eval().requires_grad_(False)
        return cls(parent.run.name, config, backbone, _projector(config, parent.run.path))

    @torch.no_grad()
    def maps(self, images: Sequence[Pixels]) -> Tensor:
        """Return the backbone's maps (B, h, w, F) of images of one size, (S, S, 3) each."""
        views = self.config.views  # the network was pretrained with their mean and deviation, ImageNet's or others
        return self.backbone(normalise(np.stack(images), mean=views.mean, std=views.std))[0].permute(0, 2, 3, 1)

    @torch.no_grad()
    def compared(self, images: Sequence[Pixels]) -> Tensor:
        """Return what the criterion matches by feature, (B, h, w, C): the projected map; without projector, the map."""
        maps = self.maps(images)
        return maps if self.projector is None else self.projector(maps)

    def view_maker(self) -> ViewMaker:
        return ViewMaker(self.config.views, self.backbone.grid_size)

    def generator(self, number: int) -> np.random.Generator:
        """Return the generator of the run's random choices for image `number` in epoch 0."""
        return sample_generator(self.config.seed, 0, number)


def _projector(config: PretrainConfig, run: Path) -> nn.Module | None:
    if config.loss.global_weight == 1:
        return None
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is missing: it alone holds the projector, which matching by feature needs")
    model = VICRegLModel(config.model, config.loss.global_weight)
    try:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
    except CHECKPOINT_ERRORS as error:
        raise UserError(f"{checkpoint} cannot be read, or is of another network: {error}") from error
    projector = model.eval().requires_grad_(False).projector
    if not isinstance(projector, nn.ModuleList):
        return projector
    last = len(model.backbone.stage_channels) - 1
    return dict(zip(model.stages, projector, strict=True)).get(last)


@dataclass(frozen=True)
class Images:
    """Images of one split, at the size of their files, by their number in the split."""

    pixels: dict[int, Pixels]

    @classmethod
    def choose(cls, config: DataConfig, split: str, count: int, root: str | None = None) -> Images:
        """Read `count` images, evenly spaced over the split; `root`, if given, replaces the config's."""
        require(count >= 1, "--images", count, "1 or more")
        if root is not None:
            config = config.replace(root=root)
        try:
            images = open_dataset(config).images(split)
        except UserError as error:
            raise UserError(f"{error} (for pictures: --data FOLDER, --split train)") from error
        return cls({number: images.read(number) for number in spread(len(images), count)})

    def squares(self, side: int) -> list[Pixels]:
        """Return the central square of each image, (side, side, 3)."""
        crop = eval_transform(side, side)
        return [crop(image, np.random.default_rng(0)) for image in self.pixels.values()]
