"""Two views of an image with their matched positions joined: by location, and by feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from analysis.figures.base import PAGE
from analysis.pictures.network import Images, Network
from data.images import Pixels
from data.views import ViewMaker
from pretrain.show import COLOURS, draw_image, draw_view, join, rendered
from vicregl.config import Kind
from vicregl.local import matched_pairs

Pairs = list[tuple[int, int]]


def draw_matches(network: Network, images: Images, count: int | None = None) -> Figure:
    """Draw one row for each image: the boxes of two views in it, the views joined by location, and by feature.

    The matches are those that VICRegL's criterion uses with the run's options; with `count`, that many (0: all).
    """
    maker = network.view_maker()
    figure = plt.figure(figsize=(PAGE, 0.4 + 1.42 * len(images.pixels)), layout="constrained")
    rows = figure.subfigures(len(images.pixels), 1, squeeze=False)[:, 0]
    figure.suptitle(_title(network), fontsize=7, x=0.01, ha="left")
    for row, (number, image) in zip(rows, images.pixels.items(), strict=True):
        _draw_row(row, network, maker, number, image, count)
    return figure


def _title(network: Network) -> str:
    space = "projected map" if network.projector is not None else "backbone's map (this run has no projector)"
    loss = network.config.loss
    whose = f"Of VICRegL's options: this run's criterion is {loss.name}. " if loss.is_own else ""
    matches = f"Matches by location, and by feature in the {space}. A colour is a place in the first view."
    return f"{network.name}\n{whose}{matches}"


def _draw_row(
    row: SubFigure, network: Network, maker: ViewMaker, number: int, image: Pixels, count: int | None
) -> None:
    plans = maker.draw(image.shape[0], image.shape[1], network.generator(number))[:2]
    views = rendered(maker, image, plans)
    locations = [maker.locations([plan], view)[0] for view, plan in enumerate(plans)]
    features = network.compared(views)
    axes = row.subplots(1, 5, width_ratios=[1.0, 1, 1, 1, 1])
    draw_image(axes[0], image, plans, locations)
    spaces: dict[Kind, Sequence[Tensor]] = {"location": locations, "feature": list(features)}
    for first, (kind, space) in zip((1, 3), spaces.items(), strict=True):
        pair = axes[first], axes[first + 1]
        for view, ax in enumerate(pair):
            draw_view(ax, views[view], plans[view], maker.grids[view], COLOURS[view])
        pairs = matched_pairs(network.config.loss, kind, space[0], space[1], count).tolist()
        join(row, *pair, maker, pairs, place_colours(pairs, maker.grids[0]))
        _describe(pair, kind, pairs, distances(pairs, locations))


def distances(pairs: Pairs, locations: Sequence[Tensor]) -> np.ndarray:
    """Return the pixels of the original image between the two positions of each match; locations (H, W, 2)."""
    first, second = (grid.reshape(-1, 2) for grid in locations)
    one, other = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    return (first[one] - second[other]).norm(dim=1).numpy()


def place_colours(pairs: Pairs, grid: tuple[int, int]) -> list[tuple[float, ...]]:
    """Return a colour for each match: its hue is the direction of its cell from the centre of the first view."""
    rows, columns = grid
    y, x = np.divmod(np.array([one for one, _ in pairs], dtype=int), columns)
    turn = np.arctan2(y - (rows - 1) / 2, x - (columns - 1) / 2) / (2 * np.pi)
    return [tuple(colormaps["hsv"](t % 1.0)) for t in turn]


def _describe(pair: tuple[Axes, Axes], kind: str, pairs: Pairs, apart: np.ndarray) -> None:
    for ax in pair:
        ax.set_title("")  # draw_view lists the augmentations there
        ax.spines[:].set_visible(True)
    pair[0].set_xlabel(f"by {kind}: {len(pairs)} matches", fontsize=6)
    if pairs:  # with a threshold there may be none
        pair[1].set_xlabel(f"median {np.median(apart):.1f} px apart", fontsize=6)
