"""The published augmentation written plainly with PIL and torchvision, and statistics that tell distributions apart.

The recipe's parts and probabilities: the defaults of arXiv 2210.01571's code (README of tests/golden). It is the truth
for tests/data and the yardstick for `make bench-data`.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import functional as tf

from data.config import MEAN, STD

SIZE = 48  # pixels of the views that tests compare
SMALL_SIZE, SMALL_SCALE = 24, (0.08, 0.4)
VIEWS = 600  # of each kind
KINDS = {"even": 0, "odd": 1, "small": 2}  # and their numbers among the views of a config with two large ones
BICUBIC = tf.InterpolationMode.BICUBIC


class PublishedRecipe:
    """One view of an image, even or odd: the crop, and the whole."""

    def __init__(self, odd: bool, size: int, scale: Sequence[float] = (0.08, 1.0)) -> None:
        self.size = size
        self.scale = list(scale)
        self.colour = transforms.Compose(
            [
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
            ]
        )
        self.blur_probability, self.solarize_probability = (0.1, 0.2) if odd else (1.0, 0.0)

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.geometry(image)[0]

    def geometry(self, image: Image.Image) -> tuple[Image.Image, tuple[int, int, int, int], bool]:
        """The view, its box (top, left, height, width) and whether it was mirrored."""
        box = transforms.RandomResizedCrop.get_params(image, self.scale, [3 / 4, 4 / 3])
        view = tf.resized_crop(image, *box, [self.size, self.size], BICUBIC)
        mirrored = random.random() < 0.5
        view = self.colour(tf.hflip(view) if mirrored else view)
        if random.random() < self.blur_probability:
            view = view.filter(ImageFilter.GaussianBlur(radius=random.random() * 1.9 + 0.1))
        if random.random() < self.solarize_probability:
            view = ImageOps.solarize(view)
        return view, box, mirrored


class PublishedViews:
    """JPEG bytes -> (normalised views, location grids), one view and one cell after the other."""

    def __init__(self, sizes: Sequence[int], scales: Sequence[Sequence[float]], cells: Sequence[int]) -> None:
        self.recipes = [PublishedRecipe(n % 2 == 1, *of) for n, of in enumerate(zip(sizes, scales, strict=True))]
        self.cells = cells

    def __call__(self, content: bytes) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        views, grids = [], []
        for recipe, cells in zip(self.recipes, self.cells, strict=True):
            view, box, mirrored = recipe.geometry(image)
            views.append(tf.normalize(tf.to_tensor(view), MEAN, STD))
            grids.append(location_grid(box, mirrored, cells))
        return views, grids


def location_grid(box: tuple[int, int, int, int], mirrored: bool, cells: int) -> torch.Tensor:
    """(cells, cells, 2): the centre of each cell in the image, (row, column), cell by cell."""
    top, left, height, width = box
    grid = torch.empty(cells, cells, 2)
    for row in range(cells):
        for column in range(cells):
            shown = cells - 1 - column if mirrored else column
            grid[row, column, 0] = top + (row + 0.5) * height / cells
            grid[row, column, 1] = left + (shown + 0.5) * width / cells
    return grid


def statistics(view: np.ndarray) -> list[float]:
    """Fourteen numbers of a view (H, W, 3) that colour, contrast, sharpness and inversion change."""
    levels = view.astype(np.float32)
    gray = levels.mean(axis=2)
    saturation = levels.max(axis=2) - levels.min(axis=2)
    red_green, yellow_blue = levels[..., 0] - levels[..., 1], levels[..., :2].mean(axis=2) - levels[..., 2]
    return [
        *levels.mean(axis=(0, 1)),
        *levels.std(axis=(0, 1)),
        float(saturation.mean()),
        math.log1p(float(np.abs(np.diff(gray, axis=0)).mean())),
        math.log1p(float(np.abs(np.diff(gray, axis=1)).mean())),
        math.log1p(float(np.abs(np.diff(gray, n=2, axis=1)).mean())),
        _sharpness(gray),
        float((gray >= 128).mean()),
        float(red_green.mean()),
        float(yellow_blue.mean()),
    ]


def _sharpness(gray: np.ndarray) -> float:
    """Second differences against first ones: it depends on filters more than on what is shown."""
    first, second = (sum(np.abs(np.diff(gray, n=n, axis=axis)).mean() for axis in (0, 1)) for n in (1, 2))
    return math.log((second + 0.1) / (first + 0.1))


def smallest_p(a: np.ndarray, b: np.ndarray) -> float:
    """Of two-sample Kolmogorov-Smirnov tests of each of the statistics, the columns of a and b."""
    return min(ks_2samp(a[:, k], b[:, k]).pvalue for k in range(a.shape[1]))
