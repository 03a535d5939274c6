"""Feature maps as colours: each position's three leading principal components are its red, green and blue.

The rule is the same for every network. Basis: principal components over the map positions of `FITTED` images of the
split. Colours: each component's values from the 2nd to the 98th percentile over those positions, from dark to bright.
Signs, which are arbitrary in principal components: positive where the image is brighter. So within one network,
colours can be compared between images. Between two networks they cannot, because their features differ; only which
positions share a colour can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.figures.base import add_title, grid_size, image_grid
from analysis.pictures.network import Images, Network
from data.images import Pixels, resize

FITTED = 256  # images to fit a basis on
RULE = (
    "Colours: the first three principal components (red, green, blue) of the network's own features over up to "
    f"{FITTED} images, 2nd to 98th percentile; signs: brighter with the image."
)
_SHARE = (0.02, 0.98)


@dataclass(frozen=True)
class Basis:
    """Three directions in a network's feature space, the range of each, and their shares of the variance."""

    mean: Tensor  # (F,)
    directions: Tensor  # (F, 3)
    low: Tensor  # (3,)
    high: Tensor  # (3,)
    shares: Tensor  # (3,)

    @classmethod
    def fit(cls, maps: Tensor, brightness: Tensor) -> Basis:
        """Fit on maps (B, h, w, F), in float64; brightness (B, h, w) fixes the signs."""
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
        """Return (..., F) as colours (..., 3) in 0..1; a component that does not vary is grey."""
        scores = (maps.double() - self.mean) @ self.directions
        width = self.high - self.low
        scaled = torch.where(width > 0, (scores - self.low) / width.clamp_min(1e-300), 0.5)
        return scaled.clamp(0, 1).numpy()


def brightness(images: Sequence[Pixels], grid: tuple[int, int]) -> Tensor:
    """Return the mean level of each image (S, S, 3) under each cell of its map, (B, h, w)."""
    small = np.stack([resize(image, *grid, mode="bilinear") for image in images])
    return torch.from_numpy(small.mean(axis=3))


def fit(network: Network, fitted: Images, side: int) -> Basis:
    """Fit the basis of a network on square images of `side` pixels."""
    squares = fitted.squares(side)
    maps = torch.cat([network.maps(squares[k : k + 32]) for k in range(0, len(squares), 32)])
    return Basis.fit(maps, brightness(squares, (maps.shape[1], maps.shape[2])))


def draw_maps(network: Network, images: Images, fitted: Images, side: int) -> Figure:
    """Draw one column for each image: the image, its map in colours, and both; `side` in pixels."""
    basis = fit(network, fitted, side)
    squares = images.squares(side)
    maps = basis.colours(network.maps(squares))
    overlays = [overlay(square, colours) for square, colours in zip(squares, maps, strict=True)]
    figure, grid = image_grid([squares, list(maps), overlays], grid_size(3, len(squares), extra=0.45))
    for axes, name in zip(grid[:, 0], ("image", f"map, {maps.shape[1]} x {maps.shape[2]}", "both"), strict=True):
        axes.set_ylabel(name, fontsize=6.5)
    share = 100 * float(basis.shares.sum())
    add_title(figure, f"{network.name}\n{RULE} They hold {share:.0f} % of the variance.")
    return figure


def overlay(image: Pixels, colours: np.ndarray) -> np.ndarray:
    """Lay the colours (h, w, 3), enlarged smoothly, at half strength over the grey image (S, S, 3); 0..1."""
    side = len(image)
    smooth = resize((255 * colours).round().astype(np.uint8), side, side, mode="bilinear") / 255
    return 0.5 * smooth + 0.5 * image.mean(axis=2, keepdims=True) / 255
