"""The trade-off seen: a row an image, a column a setting of the study; feature maps in colours, or segmentations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import GREY, PAGE
from analysis.labels import is_percent, number, score_label, symbol, value_text
from analysis.pictures.components import FITTED, RULE, fit, show
from analysis.pictures.network import Images, Network
from analysis.pictures.segmentations import Segmentation, add_legend, load_segmentation
from eval.predictions import thin
from eval.segmentation_config import STAGE
from runtime.errors import UserError
from sweeps.graph import Graph, Node, Point
from sweeps.study import PRETRAIN, Study, is_seed

MAPS = "Feature maps in colours."
Pictures = Sequence[np.ndarray]  # (H, W, 3) each, a row of the grid each


@dataclass(frozen=True)
class Panel:
    """The columns of one picture: one curve of the study at its first seed, in order, then its controls."""

    name: str  # what tells the curve from the others; empty for the only one
    points: list[Point]


def panels(graph: Graph) -> list[Panel]:
    study = graph.study
    keys = study.row_keys[1:]
    seeds = {key: values[0] for key, values in study.pretrain.grid.items() if is_seed(key)}
    points = [p for p in graph.points if all(p.varied[key] in (None, seed) for key, seed in seeds.items())]
    groups = dict.fromkeys(tuple(map(str, (p.varied[k] for k in keys))) for p in points if p.control is None)
    found = []
    for group in groups:
        own = [p for p in points if all(str(p.varied[k]) in ("None", v) for k, v in zip(keys, group, strict=True))]
        name = ", ".join(f"{symbol(key)} = {value}" for key, value in zip(keys, group, strict=True))
        found.append(Panel(name, own))
    return found


def draw_maps(study: Study, panel: Panel, count: int, split: str, root: str | None, side: int | None) -> Figure:
    """Feature maps in colours, all by the one rule of components.py. UserError where no run of the panel is done."""
    nodes = [point.pretrain for point in panel.points]
    networks = {node: Network.open(node.run.path) for node in _done(nodes, "pretrainings")}
    first = next(iter(networks.values()))
    pixels = side or first.config.views.large_size
    images, fitted = (Images.choose(first.config.data, split, n, root) for n in (count, FITTED))
    squares = images.squares(pixels)
    columns: list[Pictures | str] = []
    for node in nodes:
        if node not in networks:
            columns.append(node.run.state())
            continue
        network = networks[node]
        columns.append(list(fit(network, fitted, pixels).colours(network.maps(squares))))
    figure = _grid(study, panel, [("image", squares)], columns)
    _title(figure, study, panel, f"{MAPS} {RULE} They compare within a column.")
    return figure


def segmentation_evals(study: Study) -> list[str]:
    return [name for name, part in study.evals.items() if part.stage == STAGE]


def draw_predictions(study: Study, panel: Panel, name: str, count: int, root: str | None) -> Figure:
    """Predicted segmentations by the evaluation `name`. UserError where none of its runs is done."""
    nodes = [point.evals[name] for point in panel.points]
    found = {node: load_segmentation(node.run.path, count, root) for node in _done(nodes, f"evaluations {name}")}
    one = next(iter(found.values()))
    before: list[tuple[str, Pictures]] = [("image", [thin(image.image) for image in one.images])]
    before.append(("truth", [one.colours(image.truth) for image in one.images]))
    columns = [_predicted(found[node]) if node in found else node.run.state() for node in nodes]
    figure = _grid(study, panel, before, columns)
    _title(figure, study, panel, predictions_caption(name))
    add_legend(figure, list(found.values()))
    return figure


def predictions_caption(name: str) -> str:
    return f"What the evaluation {name} predicts for images of val, beside the truth."


def source(nodes: Sequence[Node]) -> str:
    """For the picture's file: which runs it shows, in which state; as shown.py reads it."""
    return " ".join(f"{node.identity.hash}:{node.run.state()}" for node in nodes)


def _predicted(found: Segmentation) -> Pictures:
    return [found.colours(image.prediction) for image in found.images]


def _done(nodes: Sequence[Node], what: str) -> list[Node]:
    done = [node for node in nodes if node.run.state() == "done"]
    if not done:
        states = ", ".join(sorted({node.run.state() for node in nodes}))
        raise UserError(f"none of the study's {what} is done (they are {states}), so there is nothing to show")
    return done


def _grid(
    study: Study,
    panel: Panel,
    before: Sequence[tuple[str, Pictures]],
    columns: Sequence[Pictures | str],
) -> Figure:
    """`before` are columns that no run made; a column that is a text is a gap with that state."""
    rows, width = len(before[0][1]), len(before) + len(columns)
    cell = PAGE / width
    figure, grid = plt.subplots(rows, width, figsize=(PAGE, 0.92 * cell * rows + 0.95), squeeze=False)
    titles = [name for name, _ in before] + [_column_title(study, point) for point in panel.points]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=5.5)
    for column, pictures in zip(grid.T, [*(shown for _, shown in before), *columns], strict=True):
        if isinstance(pictures, str):
            for axes in column:
                _gap(axes, pictures)
        else:
            for axes, picture in zip(column, pictures, strict=True):
                show(axes, picture)
    return figure


def _gap(axes: Axes, state: str) -> None:
    axes.text(0.5, 0.5, state, ha="center", va="center", color=GREY, fontsize=6)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def _column_title(study: Study, point: Point) -> str:
    """The setting, and what this very run scored."""
    vary = study.report.vary
    name = point.control or f"{symbol(vary)} = {value_text(point.varied[vary])}"
    return "\n".join([name, *_scores(study, point)])


def _scores(study: Study, point: Point) -> Iterator[str]:
    for score in dict.fromkeys([study.report.x, study.report.y]):
        source, _, key = score.partition(".")
        node = point.pretrain if source == PRETRAIN else point.evals[source]
        value = (node.run.result() or {}).get(key)
        label = score_label(score).partition(" ")[2] or score
        yield f"{label.removesuffix(' (%)')} " + (number(value, is_percent(score)) if value is not None else "–")


def _title(figure: Figure, study: Study, panel: Panel, words: str) -> None:
    name = f"{study.name}, {panel.name}" if panel.name else study.name
    figure.suptitle(
        f"{name}: one seed; above each column the scores of that run.\n{words}",
        fontsize=6,
        x=0.01,
        ha="left",
        wrap=True,
    )
