"""Feature maps as colours: each position's three leading principal components are its red, green and blue.

The rule is the same for every network. Its basis: principal components of its own map's positions over `FITTED` images
of the split. Its colours: a component's values from the 2nd to the 98th percentile over those positions, from dark to
bright. Its signs: a component grows with the brightness of the image under its position. So colours within one network
can be compared between images; between two networks, which have different features, only which positions share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.figures.base import PAGE
from analysis.pictures.network import Images, Network
from data.images import Pixels, resize

FITTED = 256  # images that a basis is fitted on
RULE = (
    "Colours: the first three principal components (red, green, blue) of the network's own features over up to "
    f"{FITTED} images, 2nd to 98th percentile; signs: brighter with the image."
)
_SHARE = (0.02, 0.98)


@dataclass(frozen=True)
class Basis:
    """Three directions in a network's feature space, and the range of each; `shares` of the variance they hold."""

    mean: Tensor  # (F,)
    directions: Tensor  # (F, 3)
    low: Tensor  # (3,)
    high: Tensor  # (3,)
    shares: Tensor  # (3,)

    @classmethod
    def fit(cls, maps: Tensor, brightness: Tensor) -> Basis:
        """Of the maps (B, h, w, F), float64 inside; brightness (B, h, w) fixes the signs."""
        rows = maps.flatten(0, 2).double()
        mean = rows.mean(0)
        _, values, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        scores = (rows - mean) @ directions[:3].T
        light = brightness.flatten().double()
        signs = ((light - light.mean()) @ scores).sign()
        signs[signs == 0] = 1
        low, high = torch.quantile(scores * signs, torch.tensor(_SHARE, dtype=torch.float64), dim=0)
        shares = (values.square() / values.square().sum().clamp_min(1e-300))[:3]
        return cls(mean, directions[:3].T * signs, low, high, shares)

    def colours(self, maps: Tensor) -> np.ndarray:
        """(..., F) -> (..., 3) in 0..1; a component without any range is grey."""
        scores = (maps.double() - self.mean) @ self.directions
        width = self.high - self.low
        scaled = torch.where(width > 0, (scores - self.low) / width.clamp_min(1e-300), 0.5)
        return scaled.clamp(0, 1).numpy()


def brightness(images: Sequence[Pixels], grid: tuple[int, int]) -> Tensor:
    """The level of each image (S, S, 3) under each cell, as the antialiased resize weighs it, (B, h, w)."""
    small = np.stack([resize(image, *grid, mode="bilinear") for image in images])
    return torch.from_numpy(small.mean(axis=3))


def fit(network: Network, fitted: Images, side: int) -> Basis:
    squares = fitted.squares(side)
    maps = torch.cat([network.maps(squares[k : k + 32]) for k in range(0, len(squares), 32)])
    return Basis.fit(maps, brightness(squares, (maps.shape[1], maps.shape[2])))


def draw_components(network: Network, images: Images, fitted: Images, side: int) -> Figure:
    """A column an image: the image, its map in colours, and the colours over the image. `side` in pixels."""
    basis = fit(network, fitted, side)
    squares = images.squares(side)
    maps = basis.colours(network.maps(squares))
    figure, grid = plt.subplots(3, len(squares), figsize=_size(3, len(squares)), squeeze=False)
    for column, (square, colours) in enumerate(zip(squares, maps, strict=True)):
        show(grid[0, column], square)
        show(grid[1, column], colours)
        show(grid[2, column], overlay(square, colours))
    for axes, name in zip(grid[:, 0], ("image", f"map, {maps.shape[1]} x {maps.shape[2]}", "over it"), strict=True):
        axes.set_ylabel(name, fontsize=6.5)
    share = f"They hold {100 * float(basis.shares.sum()):.0f} % of the variance."
    figure.suptitle(f"{network.name}\n{RULE} {share}", fontsize=6, x=0.01, ha="left", wrap=True)
    return figure


def _size(rows: int, columns: int) -> tuple[float, float]:
    cell = min(1.1, PAGE / columns)
    return max(3.4, cell * columns + 0.3), cell * rows + 0.45


def overlay(image: Pixels, colours: np.ndarray) -> np.ndarray:
    """The colours (h, w, 3), enlarged smoothly, at half strength over the grey image (S, S, 3); 0..1."""
    side = len(image)
    smooth = resize((255 * colours).round().astype(np.uint8), side, side, mode="bilinear") / 255
    return 0.5 * smooth + 0.5 * image.mean(axis=2, keepdims=True) / 255


def show(axes: Axes, picture: np.ndarray) -> None:
    """Pixels (H, W, 3), uint8 or 0..1, without ticks and frame."""
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)
