"""The config of a linear classification, and the name that it gives the run. Light: planning imports it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from data.config import DataConfig
from runtime.config import (
    Config,
    EvalMachineConfig,
    Fraction,
    HeldOut,
    Momentum,
    PositiveInt,
    added_later,
    require,
    split_machine,
)
from runtime.rundir import Identity

STAGE = "linear"
# Raise one when the same config comes to measure something else. Of scenes: the held-out slice was by image in 1.
FORMAT, SCENES_FORMAT = 1, 2
PROTOCOLS = {"augmented": "linear", "cached": "linear cached"}


class LinearConfig(Config):
    """Several learning rates are trained in one backbone pass; the held-out slice of train chooses one.

    mode `augmented` crops every training image anew each epoch: the published protocol. mode `cached`
    computes the features of the uncropped training images once, which is many times quicker and
    scores differently: its results carry the protocol name "linear cached". `finetune` trains the backbone too
    ("finetuned"). `subset` trains on the images of a list alone; its name joins the protocol's ("linear 1percent").
    """

    data: DataConfig = DataConfig()
    mode: Literal["augmented", "cached"] = "augmented"
    resize: int = 256  # pixels of the shorter side before the central crop, at test time
    image_size: PositiveInt = 224  # pixels
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)  # of the image's area; augmented
    flip: bool = True  # augmented
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.02]
    momentum: Momentum = 0.9
    weight_decay: NonNegativeFloat = 1e-6
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 256
    # Of each class of train (of scenes: of its source digits), to choose on; 0 with a single rate.
    held_out: HeldOut = 0.02
    seed: NonNegativeInt = 0
    subset: str | None = added_later(None)  # path of a text file: an image a line, as n01440764_10026.JPEG
    finetune: bool = added_later(False)  # augmented, with one of learning_rates
    backbone_learning_rate: float = added_later(0.0)  # with finetune; learning_rates is the head's
    # null: ImageNet's, refused for a network of others; imagenet, network (its own), or a tag of timm's weights of it
    normalisation: str | None = added_later(None)
    machine: EvalMachineConfig = EvalMachineConfig()

    def check(self) -> None:
        require(self.resize >= self.image_size, "resize", self.resize, f"image_size ({self.image_size}) or more")
        low, high = self.crop_scale
        require(0 < low <= high, "crop_scale", list(self.crop_scale), "[low, high] within 0 to 1")
        rates = self.learning_rates
        require(len(set(rates)) == len(rates), "learning_rates", rates, "each only once")
        alone = self.held_out > 0 or len(rates) == 1
        require(alone, "held_out", self.held_out, "above 0, because several learning_rates have to be chosen from")
        plain = self.subset is None or re.fullmatch(r"[\w.%+-]+", self.subset_name or "") is not None
        require(plain, "subset", self.subset, "a file whose name, which names the run, has letters, digits and .%+-_")
        self._check_finetune()

    def _check_finetune(self) -> None:
        rate = self.backbone_learning_rate
        if not self.finetune:
            require(
                rate == 0, "backbone_learning_rate", rate, "0, because the backbone is frozen; or set finetune=true"
            )
            return
        require(rate > 0, "backbone_learning_rate", rate, "above 0, because finetune is true")
        require(
            self.mode == "augmented", "mode", self.mode, "augmented, because features of a finetuned network change"
        )
        one = "one, because finetune is true: heads of several would train one backbone together. One run a rate"
        require(len(self.learning_rates) == 1, "learning_rates", self.learning_rates, one)

    @property
    def subset_name(self) -> str | None:
        """The list's file name without its suffix, as 1percent."""
        return None if self.subset is None else Path(self.subset).stem

    @property
    def protocol(self) -> str:
        how: str = "finetuned" if self.finetune else PROTOCOLS[self.mode]
        return how if self.subset is None else f"{how} {self.subset_name}"


def identity(config: LinearConfig, parent_hash: str) -> Identity:
    """The run that evaluates the pretraining run of that hash.

    Reads the list of a subset: what it names counts, not where it lies. UserError where it cannot be read.
    """
    how: str = "finetuned" if config.finetune else config.mode
    values: dict[str, Any] = split_machine(config)[0]
    if config.subset is not None:
        from eval.subset import digest

        how += f"-{config.subset_name}"
        values["subset"] = {"name": config.subset_name, "sha256": digest(config.subset)}
    slug = f"{config.data.name}-{how}-of-{parent_hash[:6]}-seed{config.seed}"
    by_source = config.data.name == "scenes" and config.held_out > 0
    return Identity(STAGE, slug, SCENES_FORMAT if by_source else FORMAT, values, parent_hash)
