"""The published augmentation written plainly with PIL and torchvision.

Its parts and probabilities are the defaults of the code of arXiv 2210.01571 (README of tests/golden). It is the truth
for the tests of data/, and what `make bench-data` compares with.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as tf

from data.config import MEAN, STD

BICUBIC = tf.InterpolationMode.BICUBIC


class PublishedRecipe:
    """One view of an image: colour differs between even and odd views."""

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
        """Return the view, its box (top, left, height, width) and whether it was mirrored."""
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
    """Make normalised views and location grids of JPEG bytes, one view and one cell after the other."""

    def __init__(self, sizes: Sequence[int], scales: Sequence[Sequence[float]], cells: Sequence[int]) -> None:
        views = zip(sizes, scales, strict=True)
        self.recipes = [PublishedRecipe(n % 2 == 1, size, scale) for n, (size, scale) in enumerate(views)]
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
    """Return the centre of each cell in the image, (row, column), as (cells, cells, 2)."""
    top, left, height, width = box
    grid = torch.empty(cells, cells, 2)
    for row in range(cells):
        for column in range(cells):
            shown = cells - 1 - column if mirrored else column
            grid[row, column, 0] = top + (row + 0.5) * height / cells
            grid[row, column, 1] = left + (shown + 0.5) * width / cells
    return grid
