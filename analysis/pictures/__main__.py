"""Pictures of what checkpoints have learned.

    python -m analysis.pictures RUN ...                   of pretrainings: matches.png and maps.png;
                                                          of segmentations: segmentations.png
    python -m analysis.pictures --study STUDY [machine.runs=FOLDER]    its settings side by side: maps.png, and
                                                          <evaluation>.png for each segmentation

RUN is the directory of a finished run. Its pictures are written to RUN/pictures/, or to DIR/<run>/ with --out DIR;
those of a study to reports/<study>/pictures/, or to DIR.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.base import PAGE, STYLE, add_title, image_grid
from analysis.labels import is_percent, number, score_label, short_labels
from analysis.pictures.maps import FITTED, RULE, draw_maps, fit
from analysis.pictures.matches import draw_matches
from analysis.pictures.network import Images, Network
from analysis.pictures.segmentations import add_legend, draw_segmentations, load_segmentation, refuse_different_images
from analysis.report import CAPTION, PICTURES, SOURCE
from analysis.results import run_mark
from eval.parent import STAGE as PRETRAIN
from eval.predictions import thin
from eval.segmentation_config import SegmentationConfig
from runtime import files
from runtime.config import parse_command, require
from runtime.console import make_parser
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from sweeps.graph import Graph, Node, Point, build
from sweeps.study import Study, is_seed, load_study

SEGMENTATION = SegmentationConfig.stage
Column = Sequence[np.ndarray] | str  # images (H, W, 3) from above; or the state of a run that has none


@dataclass(frozen=True)
class Picture:
    """A picture to draw, and the texts that its file carries; analysis/report.py reads them."""

    name: str  # of its file
    draw: Callable[[], Figure]
    texts: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    if options.study:
        study = load_study(options.study)
        pictures = _study_pictures(build(study, options.words), options)
        _write(pictures, options.out or Path("reports") / study.name / PICTURES)
        return
    # All runs are opened before anything is written, so that a wrong one stops the command at once.
    runs = {path: _run_pictures(path, options) for path in map(Path, options.words)}
    for path, drawings in runs.items():
        _write(drawings, options.out / path.name if options.out else path / PICTURES)


def _parse(argv: Sequence[str]) -> Namespace:
    parser = make_parser("analysis.pictures", __doc__)
    words = "run directories; with --study machine.runs=FOLDER"
    parser.add_argument("words", nargs="*", default=[], metavar="RUN", help=words)
    parser.add_argument("--study", help="its YAML file, or its name, such as quickstart")
    parser.add_argument("--out", type=Path, help="the folder to write to")
    parser.add_argument(
        "--images", type=int, help="number of images (default: 4 for matches, 8 for maps, 6 in a study)"
    )
    parser.add_argument("--split", choices=("val", "train"), default="val", help="for matches and maps (default: val)")
    parser.add_argument("--size", type=int, help="side of the images for maps, in pixels (default: the large views')")
    parser.add_argument("--matches", type=int, help="number of matches (default: as many as the run's criterion keeps)")
    parser.add_argument("--data", help="folder of the dataset, if it is no longer where the run's config says")
    options = parse_command(parser, argv)
    options.words = [word.rstrip("/") for word in options.words]
    for name, least in (("images", 1), ("size", 8), ("matches", 1)):
        value = getattr(options, name)
        require(value is None or value >= least, f"--{name}", value, f"{least} or more")
    if not options.study and not options.words:
        raise UserError("no run was given; expected run directories, as runs/pretrain/<run>, or --study STUDY")
    return options


def _write(pictures: Iterable[Picture], folder: Path) -> None:
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        with plt.style.context(STYLE):
            figure = picture.draw()
            files.make_folder(folder, "write elsewhere: --out FOLDER")
            save = partial(figure.savefig, format="png", metadata={"Software": None, **picture.texts})
            files.write_atomic(path, save)
            plt.close(figure)
        print(path, flush=True)


def _run_pictures(path: Path, options: Namespace) -> list[Picture]:
    """Return the pictures of a run; whatever is wrong with it raises UserError here, before the first is drawn."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected a run directory, as runs/pretrain/<run>")
    stage = Run(path).document()["stage"]
    if stage == SEGMENTATION:
        segmentation = load_segmentation(path, options.images, options.data)
        return [Picture("segmentations", partial(draw_segmentations, segmentation))]
    if stage != PRETRAIN:
        raise UserError(f"{path} is a run of the stage {stage!r}; pictures are of {PRETRAIN} and {SEGMENTATION} runs")
    network = Network.open(path)
    few, many, fitted = (
        Images.choose(network.config.data, options.split, count, options.data)
        for count in (options.images or 4, options.images or 8, FITTED)
    )
    side = options.size or network.config.views.large_size
    return [
        Picture("matches", partial(draw_matches, network, few, options.matches)),
        Picture("maps", partial(draw_maps, network, many, fitted, side)),
    ]


@dataclass(frozen=True)
class Panel:
    """The columns of one picture of a study: one curve at its first seed, in order, then its controls."""

    study: Study
    name: str  # of the curve, by the other grid keys; empty for the only one
    points: list[Point]


def study_panels(graph: Graph) -> list[Panel]:
    """Return the panels of the study's own pretrainings; a given checkpoint may be a network of any kind.

    UserError for a study that has no pretraining.
    """
    study = graph.study
    keys = study.row_keys[1:]
    seeds = {key: values[0] for key, values in study.grid.items() if is_seed(key)}
    own = [p for p in graph.points if p.pretrain.stage.name == PRETRAIN]
    if not own:
        raise UserError(f"{study.file} has imported weights alone; pictures of a study are of its pretrainings")
    points = [p for p in own if all(p.varied[key] in (None, seed) for key, seed in seeds.items())]
    groups = dict.fromkeys(tuple(str(p.varied[key]) for key in keys) for p in points if p.control is None)
    panels = []
    for group in groups:
        # A control that does not take a key from the grid (None) stands beside every curve.
        curve = [p for p in points if all(str(p.varied[k]) in ("None", v) for k, v in zip(keys, group, strict=True))]
        panels.append(Panel(study, short_labels(study, keys, group), curve))
    return panels


def _study_pictures(graph: Graph, options: Namespace) -> Iterator[Picture]:
    panels = study_panels(graph)
    for index, panel in enumerate(panels, 1):
        suffix, start = (f"-{index}", f"{panel.name}: ") if len(panels) > 1 else ("", "")
        nodes = [point.pretrain for point in panel.points]
        texts = {CAPTION: f"{start}Feature maps in colours. {RULE}", SOURCE: source(nodes)}
        yield Picture(f"maps{suffix}", partial(_draw_study_maps, panel, options), texts)
        for name in (name for name, part in graph.study.evals.items() if part.stage == SEGMENTATION):
            nodes = [point.evals[name] for point in panel.points]
            texts = {CAPTION: f"{start}{_predictions_text(name)}", SOURCE: source(nodes)}
            yield Picture(f"{name}{suffix}", partial(_draw_study_predictions, panel, name, options), texts)


def source(nodes: Sequence[Node]) -> str:
    """Return hash, state and result of each run that a picture shows; by it analysis/report.py sees outdated ones."""
    return " ".join(f"{node.identity.hash}:{node.run.state()}:{run_mark(node)}" for node in nodes)


def _draw_study_maps(panel: Panel, options: Namespace) -> Figure:
    nodes = [point.pretrain for point in panel.points]
    networks = {node: Network.open(node.run.path) for node in _done(nodes, "pretrainings")}
    first = next(iter(networks.values())).config
    side = options.size or first.views.large_size
    images, fitted = (
        Images.choose(first.data, options.split, count, options.data) for count in (options.images or 6, FITTED)
    )
    squares = images.squares(side)

    def colours(network: Network) -> Column:
        return list(fit(network, fitted, side).colours(network.maps(squares)))

    columns = [colours(networks[node]) if node in networks else node.run.state() for node in nodes]
    text = f"Feature maps in colours. {RULE} They compare within a column."
    return _draw_panel(panel, {"image": squares}, columns, text)


def _predictions_text(name: str) -> str:
    return f"What the evaluation {name} predicts for images of val, beside the truth."


def _draw_study_predictions(panel: Panel, name: str, options: Namespace) -> Figure:
    nodes, count = [point.evals[name] for point in panel.points], options.images or 6
    done = {node: load_segmentation(node.run.path, count, options.data) for node in _done(nodes, f"evaluations {name}")}
    refuse_different_images(list(done.values()))
    first = next(iter(done.values()))
    before = {
        "image": [thin(image.image) for image in first.images],
        "truth": [first.colours(image.truth) for image in first.images],
    }
    columns: list[Column] = [
        [done[node].colours(image.prediction) for image in done[node].images] if node in done else node.run.state()
        for node in nodes
    ]
    figure = _draw_panel(panel, before, columns, _predictions_text(name))
    add_legend(figure, list(done.values()))
    return figure


def _done(nodes: Sequence[Node], what: str) -> list[Node]:
    done = [node for node in nodes if node.run.state() == "done"]
    if not done:
        states = ", ".join(sorted({node.run.state() for node in nodes}))
        raise UserError(f"none of the study's {what} is done (they are {states}), so there is nothing to show")
    return done


def _draw_panel(
    panel: Panel, before: Mapping[str, Sequence[np.ndarray]], columns: Sequence[Column], text: str
) -> Figure:
    """Draw a row for each image: the columns `before`, which no run made, then one for each point of the panel."""
    count = len(next(iter(before.values())))
    whole = [[column] * count if isinstance(column, str) else column for column in (*before.values(), *columns)]
    cell = PAGE / len(whole)
    figure, grid = image_grid(list(zip(*whole, strict=True)), (PAGE, 0.92 * cell * count + 0.95))
    for axes, title in zip(grid[0], [*before, *(_point_title(panel.study, p) for p in panel.points)], strict=True):
        axes.set_title(title, fontsize=5.5)
    name = f"{panel.study.name}, {panel.name}" if panel.name else panel.study.name
    add_title(figure, f"{name}: one seed; above each column the scores of that run.\n{text}")
    return figure


def _point_title(study: Study, point: Point) -> str:
    """Return the setting of a point, and the scores of the very run that is shown."""
    vary = study.report.vary
    lines = [point.control or short_labels(study, [vary], [point.varied[vary]])]
    for score in dict.fromkeys([study.report.x, study.report.y]):
        stage, _, key = score.partition(".")
        node = point.pretrain if stage == PRETRAIN else point.evals[stage]
        value = (node.run.result() or {}).get(key)
        label = score_label(score).partition(" ")[2] or score
        lines.append(f"{label.removesuffix(' (%)')} {'–' if value is None else number(value, is_percent(score))}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
