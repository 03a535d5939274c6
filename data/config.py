"""The configs of datasets, views and loaders. Light: planning a study imports them, and neither torch nor OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.config import Config, added_later, require

# data/catalog.py opens them.
DATASETS = ("scenes", "imagefolder", "imagenet", "voc", "vocfolder", "cityscapes", "ade20k")
# ImageNet's mean and deviation of red, green and blue in 0..1, as torchvision's weights and every evaluation use them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean, deviation
IMAGENET: Normalisation = (MEAN, STD)
SCENES_VERSION = 1  # raised when the same options come to mean other pixels
WORKER_KINDS = ("processes", "threads")  # data/workers.py tells them apart


class ScenesConfig(Config):
    """What the images are; every combination has a folder of its own."""

    version: int = SCENES_VERSION
    seed: int = 0
    size: int = 32  # pixels a side
    train: int = 5000  # images
    val: int = 1000
    digit: list[int] = [20, 28]  # pixels a side of the dominant digit
    distractors: int = 2  # at most
    distractor: list[int] = [8, 12]
    contrast: list[float] = [0.15, 0.4]  # of the photograph
    background: list[int] = [30, 110]  # its mean level, of 255
    ink: list[int] = [120, 255]  # level of a digit, before its tint

    def check(self) -> None:
        allowed = f"{SCENES_VERSION}, what this code makes"
        require(self.version == SCENES_VERSION, "data.scenes.version", self.version, allowed)
        require(self.seed >= 0, "data.scenes.seed", self.seed, "0 or more")
        require(16 <= self.size <= 256, "data.scenes.size", self.size, "16 to 256 pixels")
        require(self.train >= 10, "data.scenes.train", self.train, "10 or more (one of each class)")
        require(self.val >= 10, "data.scenes.val", self.val, "10 or more (one of each class)")
        require(self.distractors >= 0, "data.scenes.distractors", self.distractors, "0 or more")
        for name in ("digit", "distractor"):
            low, *rest = sizes = getattr(self, name)
            ok = len(rest) == 1 and 4 <= low <= rest[0] <= self.size
            require(ok, f"data.scenes.{name}", sizes, "[low, high] pixels, 4 to the image's size")
        for name in ("background", "ink"):
            low, *rest = levels = getattr(self, name)
            ok = len(rest) == 1 and 0 <= low <= rest[0] <= 255
            require(ok, f"data.scenes.{name}", levels, "[low, high] levels, 0 to 255")
        # Else there is no ink that keeps its distance from the background.
        ok = self.ink[1] >= self.background[1] + 100
        require(ok, "data.scenes.ink", self.ink, f"up to {self.background[1] + 100} or more, for this background")
        ok = len(self.contrast) == 2 and 0 <= self.contrast[0] <= self.contrast[1] <= 1
        require(ok, "data.scenes.contrast", self.contrast, "[low, high], 0 to 1")


class DataConfig(Config):
    """Which dataset, and where it lies: `root`; or, where that is null, $VICREGL_<NAME> (as $VICREGL_IMAGENET), or else
    <name> in $VICREGL_DATA (or in data/cache). A root is part of a run's name; the environment never is, so a study
    that leaves it null is the same study on every machine.
    """

    name: str = "scenes"  # scenes | imagefolder | imagenet | voc | vocfolder | cityscapes | ade20k
    root: str | None = None
    on_bad_image: str = "stop"  # stop | skip (and count); of pretraining only
    segmentation_train: str = "train"  # train | train_aug: VOC's train.txt, and SBD's further images and masks
    scenes: ScenesConfig = ScenesConfig()

    def check(self) -> None:
        require(self.name in DATASETS, "data.name", self.name, ", ".join(DATASETS))
        require(self.on_bad_image in ("stop", "skip"), "data.on_bad_image", self.on_bad_image, "stop, skip")
        lists = ("train", "train_aug") if self.name.startswith("voc") else ("train",)
        allowed = f"{', '.join(lists)} for data.name={self.name}"
        require(self.segmentation_train in lists, "data.segmentation_train", self.segmentation_train, allowed)


class ViewsConfig(Config):
    """What the views are. The defaults are the published recipe for ResNet-50 (two crops of 224)."""

    large_count: int = 2
    large_size: int = 224  # pixels
    large_scale: list[float] = [0.08, 1.0]  # share of the image's area
    small_count: int = 0  # 6 in the published recipe with small crops
    small_size: int = 96
    small_scale: list[float] = [0.08, 0.4]
    aspect: list[float] = [3 / 4, 4 / 3]  # width / height of a crop
    flip: bool = True  # mirror half of the crops
    flip_grid: bool = True  # mirror their location grids with them; false: ablation (the published default)
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray_probability: float = 0.2
    blur_sigma: list[float] = [0.1, 2.0]  # pixels of the view
    blur_probability: list[float] = [1.0, 0.1]  # of even, of odd views
    solarize_probability: list[float] = [0.0, 0.2]  # of even, of odd views
    solarize_threshold: int = 128  # level of 255
    # Pixels in 0..1 are normalised by these, red, green, blue. The published pretraining divides red by 0.228.
    mean: list[float] = added_later(list(MEAN))
    std: list[float] = added_later(list(STD))
    short_side: int = 0  # pixels; larger images are reduced to it before their views are cut; 0: as they are
    # cpu: all in the loader's workers. device: these decode, cut and resize; mirror and colour follow on the device, in
    # batches. The same distribution from the same random choices, but not the same last digits: hence no `auto`.
    execution: str = "cpu"

    def check(self) -> None:
        require(self.large_count >= 2, "views.large_count", self.large_count, "2 or more (each view needs a pair)")
        require(self.small_count >= 0, "views.small_count", self.small_count, "0 or more")
        for name in ("large_size", "small_size"):
            size = getattr(self, name)
            require(8 <= size <= 4096, f"views.{name}", size, "8 to 4096 pixels")
        for name in ("large_scale", "small_scale"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        _check_range("aspect", self.aspect, 0.0, 100.0)
        _check_range("blur_sigma", self.blur_sigma, 0.0, 50.0)
        for name in ("blur_probability", "solarize_probability"):
            shares = getattr(self, name)
            ok = len(shares) == 2 and all(0 <= share <= 1 for share in shares)
            require(ok, f"views.{name}", shares, "[of even views, of odd views], each 0 to 1")
        for name in ("jitter_probability", "gray_probability", "brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "0 to 1")
        require(0 <= self.hue <= 0.5, "views.hue", self.hue, "0 to 0.5 turns")
        require(0 <= self.solarize_threshold <= 256, "views.solarize_threshold", self.solarize_threshold, "0 to 256")
        require(len(self.mean) == 3, "views.mean", self.mean, "[red, green, blue]")
        require(len(self.std) == 3 and min(self.std) > 0, "views.std", self.std, "[red, green, blue], above 0")
        check_short_side(self.short_side)
        require(self.execution in ("cpu", "device"), "views.execution", self.execution, "cpu, device")

    def sides(self) -> list[int]:
        """Pixels of each view's side, large ones first."""
        return [self.large_size] * self.large_count + [self.small_size] * self.small_count

    def scales(self) -> list[list[float]]:
        return [self.large_scale] * self.large_count + [self.small_scale] * self.small_count


def check_short_side(pixels: int) -> None:
    require(pixels == 0 or 8 <= pixels <= 4096, "views.short_side", pixels, "0 (as the files are) or 8 to 4096 pixels")


def _check_range(name: str, bounds: Sequence[float], above: float, most: float) -> None:
    ok = len(bounds) == 2 and above < bounds[0] <= bounds[1] <= most
    require(ok, f"views.{name}", list(bounds), f"[low, high] with {above:g} < low <= high <= {most:g}")
