"""The configs of datasets and views. Light, because planning a study imports them: neither torch nor OpenCV."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, WithJsonSchema

from runtime.config import Config, Fraction, added_later, require

# Mean and standard deviation of ImageNet's red, green and blue in 0..1, as for torchvision's weights.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean, standard deviation
IMAGENET: Normalisation = (MEAN, STD)
_Colours = Annotated[list[float], Field(min_length=3, max_length=3)]
# Of an evaluation. null: those that came with the weights, else ImageNet's, refused for a network of others; imagenet;
# network (its own); a tag of timm's weights of it; or both, as [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]].
NormalisationChoice = Annotated[
    str | Annotated[list[_Colours], Field(min_length=2, max_length=2)] | None,
    Field(description="imagenet, network, a tag of timm's weights, [mean, deviation] of red, green and blue, or null"),
]
Interpolation = Literal["bilinear", "bicubic"]

# data/catalog.py opens them; `register` there adds others.
DATASETS = ["scenes", "imagefolder", "imagenet", "voc", "vocfolder", "cityscapes", "ade20k"]
MMSEG = "mmseg:"  # before the name of a dataset class of mmsegmentation: data/mmseg_sets.py
PUBLISHED = ("imagenet", "voc", "cityscapes", "ade20k")  # their names say what they hold, wherever that is


def _check_dataset(name: str) -> str:
    if name not in DATASETS and not re.fullmatch(rf"{MMSEG}\w+", name):
        raise ValueError(", ".join([*DATASETS, f"{MMSEG}<class of mmsegmentation>"]))
    return name


_DATASET_SCHEMA = {"anyOf": [{"enum": [*DATASETS]}, {"type": "string"}]}
DatasetName = Annotated[str, AfterValidator(_check_dataset), WithJsonSchema(_DATASET_SCHEMA)]
WorkerKind = Literal["processes", "threads"]  # data/workers.py compares them
ImageCount = Annotated[int, Field(ge=10, description="at least one of each class")]
Side = Annotated[int, Field(ge=8, le=4096)]  # pixels


def data_root() -> Path:
    """Return the folder of datasets that have no root of their own: $VICREGL_DATA, or data/cache in the checkout."""
    return Path(os.environ.get("VICREGL_DATA") or Path(__file__).parent / "cache")


class ScenesConfig(Config):
    """How the embedded dataset is made; every combination of values has its own folder."""

    version: Literal[1] = 1  # raise it when the same options come to give other pixels
    seed: NonNegativeInt = 0
    size: Annotated[int, Field(ge=16, le=256)] = 32  # side of an image in pixels
    train: ImageCount = 5000  # images
    val: ImageCount = 1000
    digit: list[int] = [20, 28]  # side of the dominant digit in pixels
    distractors: NonNegativeInt = 2  # at most
    distractor: list[int] = [8, 12]  # side in pixels
    contrast: list[float] = [0.15, 0.4]  # of the photograph
    background: list[int] = [30, 110]  # mean level of the photograph, of 255
    ink: list[int] = [120, 255]  # level of a digit, before its tint

    def check(self) -> None:
        for name, least, most in (
            *(("digit", 4, self.size), ("distractor", 4, self.size)),
            *(("background", 0, 255), ("ink", 0, 255), ("contrast", 0, 1)),
        ):
            bounds = getattr(self, name)
            ok = len(bounds) == 2 and least <= bounds[0] <= bounds[1] <= most
            require(ok, f"data.scenes.{name}", bounds, f"[low, high] with {least} <= low <= high <= {most}")
        lightest = self.background[1] + 100  # below it, no ink may contrast enough with the background
        require(self.ink[1] >= lightest, "data.scenes.ink", self.ink, f"up to {lightest} or more, for this background")


class MmsegSplit(Config):
    """The files of a split, in the root, by mmsegmentation's names."""

    img_path: str = ""
    seg_map_path: str = ""
    ann_file: str = ""  # a list of names without suffix, one a line; empty: every image in img_path, at any depth


class MmsegConfig(Config):
    """Of `data.name=mmseg:<class>`. The class has the classes, colours and suffixes."""

    train: MmsegSplit = MmsegSplit()
    val: MmsegSplit = MmsegSplit()
    reduce_zero_label: bool | None = None  # true: 0 in a mask is ignored, 1 is the first class; null: the class's own


class DataConfig(Config):
    """Which dataset, and its folder: `root`; if that is null, `$VICREGL_<NAME>` (as $VICREGL_IMAGENET), or `<name>` in
    $VICREGL_DATA (or in data/cache). The environment is no part of a run's identity, so a study without roots is the
    same study on every machine. Neither is the root of a published dataset, which its name defines; that of a folder of
    your own is, as it is written. A run that has begun refuses a folder with other files (data/record.py). Images with
    class labels lie in class folders or in shards (data/shards.py); the files show in which.
    """

    name: DatasetName = "scenes"
    root: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"  # skip: leave out and count; for pretraining only
    segmentation_train: Literal["train", "train_aug"] = "train"  # train_aug: VOC with SBD's images and masks added
    scenes: ScenesConfig = ScenesConfig()
    mmseg: MmsegConfig = added_later(MmsegConfig())

    def check(self) -> None:
        for split in (self.mmseg.train, self.mmseg.val) if self.name.startswith(MMSEG) else ():
            require(bool(split.img_path and split.seg_map_path), "data.mmseg", split, "img_path and seg_map_path")
        needless = self.mmseg != MmsegConfig() and not self.name.startswith(MMSEG)
        require(not needless, "data.mmseg", self.mmseg, f"nothing for data.name={self.name}")
        ok = self.segmentation_train == "train" or self.name.startswith("voc")
        allowed = f"train for data.name={self.name}"
        require(ok, "data.segmentation_train", self.segmentation_train, allowed)

    def places(self) -> dict[str, Any]:
        is_published = self.name in PUBLISHED or self.name.startswith(MMSEG)
        return {"root": self.root} if is_published else {}

    @property
    def plain_name(self) -> str:
        """The name without a colon, for names of files and variables."""
        return self.name.replace(":", "_")

    @property
    def variable(self) -> str:
        """The environment variable that names the dataset's folder."""
        return f"VICREGL_{self.plain_name.upper()}"

    @property
    def folder(self) -> Path:
        """Where the dataset should be."""
        named = self.root or os.environ.get(self.variable)
        return Path(named).expanduser() if named else data_root() / self.plain_name


class ViewsConfig(Config):
    """What the views are. The defaults are the published recipe for ResNet-50 (two crops of 224)."""

    large_count: Literal[2] = 2  # the paper's; for the criterion the first two views are large, whatever their size
    large_size: Side = 224  # pixels
    large_scale: list[float] = [0.08, 1.0]  # share of the image's area
    small_count: NonNegativeInt = 0  # 6 in the published recipe with small crops
    small_size: Side = 96
    small_scale: list[float] = [0.08, 0.4]
    aspect: list[float] = [3 / 4, 4 / 3]  # width / height of a crop
    flip: bool = True  # mirror half of the crops
    flip_grid: bool = True  # mirror their location grids too; false: ablation (the published default)
    jitter_probability: Fraction = 0.8
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # turns of the colour circle
    gray_probability: Fraction = 0.2
    blur_sigma: list[float] = [0.1, 2.0]  # pixels of the view
    blur_probability: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [1.0, 0.1]  # even, odd views
    solarize_probability: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.0, 0.2]  # even, odd views
    solarize_threshold: Annotated[int, Field(ge=0, le=256)] = 128  # level of 255
    # Normalisation of pixels in 0..1: red, green, blue. The published pretraining divides red by 0.228.
    mean: list[float] = added_later(list(MEAN), min_length=3, max_length=3)
    std: list[PositiveFloat] = added_later(list(STD), min_length=3, max_length=3)
    # Pixels; larger images are reduced to it before views are cut, and locations are in pixels of what is left (so is
    # loss.location_threshold). 0: unchanged.
    short_side: int = 0
    # cpu: the workers do everything. device: they decode, crop and resize; the device mirrors and colours batches.
    # The random choices and the distribution are the same, but not every bit: hence no `auto`.
    execution: Literal["cpu", "device"] = "cpu"

    def check(self) -> None:
        for name, most in (("large_scale", 1.0), ("small_scale", 1.0), ("aspect", 100.0), ("blur_sigma", 50.0)):
            bounds = getattr(self, name)
            ok = len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= most
            require(ok, f"views.{name}", bounds, f"[low, high] with 0 < low <= high <= {most:g}")
        check_short_side(self.short_side)

    def sides(self) -> list[int]:
        """Return the side of each view in pixels, large views first."""
        return [self.large_size] * self.large_count + [self.small_size] * self.small_count

    def scales(self) -> list[list[float]]:
        """Return the range of each view's share of the image's area, large views first."""
        return [self.large_scale] * self.large_count + [self.small_scale] * self.small_count


def check_short_side(pixels: int) -> None:
    require(pixels == 0 or 8 <= pixels <= 4096, "views.short_side", pixels, "0 (images unchanged) or 8 to 4096 pixels")
