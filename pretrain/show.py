"""Draw a sheet of views, to check by eye the input that a config trains on.

    python -m pretrain.show pretrain/configs/quickstart.yaml --images 4 --out build/views.png [key=value ...]

A row is an image with the boxes of its views, and the views with the cells of the network's map. Lines join the cells
of the two large views that VICRegL's criterion matches by location.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data.batch_colour import mirror_and_colour, plan_batch
from data.cache import open_store
from data.catalog import open_dataset
from data.images import Pixels
from data.views import ViewMaker, ViewPlan, sample_generator
from runtime import config as configs
from runtime import files
from runtime.config import require
from runtime.console import make_parser
from runtime.errors import run_command

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from vicregl.config import CriterionConfig

COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def load_config(path: str, overrides: Sequence[str]) -> PretrainConfig:
    """Load a pretraining config."""
    from pretrain.config import PretrainConfig

    return configs.load(PretrainConfig, path, overrides)


def view_maker(config: PretrainConfig) -> ViewMaker:
    """Create the view maker of the config, with the grid sizes of its network."""
    from vicregl.backbones import create_backbone

    return ViewMaker(config.views, create_backbone(config.model.backbone).grid_size)


def rendered(maker: ViewMaker, image: Pixels, plans: Sequence[ViewPlan]) -> list[Pixels]:
    """Render the views by the config's execution, as pixels (S, S, 3)."""
    views = []
    for plan, side in zip(plans, maker.sides, strict=True):
        if maker.config.execution == "cpu":
            views.append(maker.render(image, plan, side))
            continue
        crop = torch.from_numpy(maker.crop(image, plan, side).copy())[None]
        normalised = mirror_and_colour(crop, plan_batch([plan]), maker.config)[0].permute(1, 2, 0)
        levels = 255 * (normalised * torch.tensor(maker.config.std) + torch.tensor(maker.config.mean))
        views.append(levels.round().clamp(0, 255).numpy().astype(np.uint8))
    return views


def draw_sheet(
    maker: ViewMaker, images: Mapping[int, Pixels], seed: int, criterion: CriterionConfig, out: Path
) -> None:
    """Draw one row per image, by its number: the views that a run with that seed makes of it in epoch 0."""
    from matplotlib.figure import Figure

    from vicregl.local import matched_pairs

    columns = 1 + len(maker.sides)
    figure = Figure(figsize=(2.4 * columns, 2.5 * len(images)), dpi=120, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for (number, image), row in zip(images.items(), axes, strict=True):
        plans = maker.draw(image.shape[0], image.shape[1], sample_generator(seed, 0, number))
        locations = [maker.locations([plan], view)[0] for view, plan in enumerate(plans)]
        draw_image(row[0], image, plans, locations)
        for view, pixels in enumerate(rendered(maker, image, plans)):
            draw_view(row[view + 1], pixels, plans[view], maker.grids[view], COLOURS[view % len(COLOURS)])
        pairs = matched_pairs(criterion, "location", locations[0], locations[1])
        join(figure, row[1], row[2], maker, pairs.tolist())
    files.make_folder(out.parent, "write elsewhere: --out FILE")
    figure.savefig(out)


def draw_image(axes: Any, image: Pixels, plans: Sequence[ViewPlan], locations: Sequence[Tensor]) -> None:
    """Draw the image, the boxes of the views, and the cell locations of the large ones."""
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_title(f"{image.shape[1]} x {image.shape[0]}", fontsize=8)
    axes.axis("off")
    for view, (plan, grid) in enumerate(zip(plans, locations, strict=True)):
        top, left, height, width = plan.box
        colour = COLOURS[view % len(COLOURS)]
        x, y = [left, left + width, left + width, left, left], [top, top, top + height, top + height, top]
        axes.plot(x, y, color=colour, linewidth=1.2)
        if view < 2:
            axes.scatter(grid[..., 1], grid[..., 0], s=3, color=colour, linewidths=0)


def draw_view(axes: Any, pixels: Pixels, plan: ViewPlan, grid: tuple[int, int], colour: str) -> None:
    """Draw the view with the borders of its cells; the title lists its augmentations."""
    side = len(pixels)
    axes.imshow(pixels, extent=(0, side, side, 0))
    for lines, draw in ((grid[0], axes.axhline), (grid[1], axes.axvline)):
        for cell in range(1, lines):
            draw(cell * side / lines, color="white", linewidth=0.3, alpha=0.7)
    applied = {"mirrored": plan.mirrored, "jitter": plan.jitter is not None, "gray": plan.gray}
    applied |= {f"blur {plan.blur_sigma:.1f}": plan.blur_sigma > 0, "solarised": plan.solarized}
    axes.set_title(", ".join(name for name, used in applied.items() if used) or "crop alone", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=colour, linewidth=2)


def join(
    figure: Any,
    first: Any,
    second: Any,
    maker: ViewMaker,
    pairs: Sequence[tuple[int, int]],
    colours: Sequence[Any] = (),
) -> None:
    """Draw lines between cells of the first view (on the axes `first`) and the second; yellow without `colours`."""
    from matplotlib.patches import ConnectionPatch

    for (one, other), colour in zip(pairs, colours or ["yellow"] * len(pairs), strict=True):
        points = [cell_centre(cell, maker, view) for view, cell in enumerate((one, other))]
        line = ConnectionPatch(points[0], points[1], "data", "data", axesA=first, axesB=second)
        line.set(color=colour, linewidth=0.6, alpha=0.8)
        figure.add_artist(line)
        for axes, point in zip((first, second), points, strict=True):
            axes.plot(*point, ".", color=colour, markersize=3)


def cell_centre(cell: int, maker: ViewMaker, view: int) -> tuple[float, float]:
    """Return (x, y) of a cell in the pixels of its view."""
    rows, columns = maker.grids[view]
    row, column = divmod(cell, columns)
    return (column + 0.5) * maker.sides[view] / columns, (row + 0.5) * maker.sides[view] / rows


def main(argv: Sequence[str]) -> None:
    parser = make_parser("pretrain.show", __doc__)
    parser.add_argument("config", help="a pretraining config, as pretrain/configs/quickstart.yaml")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("build/views.png"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as seed=1")
    arguments = configs.parse_command(parser, argv)
    require(arguments.images >= 1, "--images", arguments.images, "1 or more")
    config = load_config(arguments.config, arguments.overrides)
    store = open_store(open_dataset(config.data), config.views.short_side, config.data.on_bad_image, memory_bytes=0)
    numbers = np.linspace(0, len(store) - 1, min(arguments.images, len(store))).astype(int).tolist()
    images = dict(store.read(number) for number in numbers)
    draw_sheet(view_maker(config), images, config.seed, config.loss, arguments.out)
    print(f"wrote {arguments.out}: {len(images)} images, {len(config.views.sides())} views each")


if __name__ == "__main__":
    run_command(main)
