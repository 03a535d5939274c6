"""Pictures of what checkpoints have learned.

    python -m analysis.pictures RUN ...                   of pretrainings: matches.png and maps.png;
                                                          of segmentations: segmentations.png
    python -m analysis.pictures --study STUDY [machine.runs=FOLDER]    its settings side by side: maps.png, and
                                                          <evaluation>.png for each segmentation

RUN is a run directory that is done. Its pictures go to RUN/pictures/, or to DIR/<run>/ with --out DIR; those of a
study to reports/<study>/pictures/, or to DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.base import STYLE
from analysis.pictures import study as studies
from analysis.pictures.components import FITTED, RULE, draw_components
from analysis.pictures.matches import draw_matches
from analysis.pictures.network import Images, Network
from analysis.pictures.segmentations import draw_segmentations, load_segmentation
from analysis.report import CAPTION, FOLDER, SOURCE
from eval.parent import STAGE as PRETRAIN
from eval.segmentation_config import STAGE as SEGMENTATION
from runtime import files
from runtime.config import require
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from sweeps.graph import build
from sweeps.study import Study, load_study

Texts = dict[str, str]  # of the file, for whoever finds it later
Drawn = Iterator[tuple[str, Texts, Callable[[], Figure]]]  # name of the file, and what draws it


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    if options.study:
        study = load_study(options.study)
        _write_all(_of_study(study, options), options.out or Path("reports") / study.name / FOLDER)
        return
    drawings = [(path, _of_run(path, options)) for path in map(Path, options.words)]
    for path, drawn in drawings:
        _write_all(drawn, options.out / path.name if options.out else path / FOLDER)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m analysis.pictures", description=__doc__, formatter_class=formatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="run directories; with --study machine.runs=FOLDER")
    parser.add_argument("--study", help="a YAML file, as sweeps/studies/quickstart.yaml")
    parser.add_argument("--out", type=Path, help="where to write")
    parser.add_argument("--images", type=int, help="how many images (4 for matches, 8 for the others)")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="of matches and maps (default: val)")
    parser.add_argument("--size", type=int, help="pixels of the images that maps are of (default: as the large views)")
    parser.add_argument("--matches", type=int, help="how many matches (default: as many as the run's criterion keeps)")
    parser.add_argument("--data", help="where the data lie now, in place of the folder that the run's config names")
    options = parser.parse_intermixed_args(argv)
    options.words = [word.rstrip("/") for word in options.words]
    for name, least in (("images", 1), ("size", 8), ("matches", 1)):
        value = getattr(options, name)
        require(value is None or value >= least, f"--{name}", value, f"{least} or more")
    if not options.study and not options.words:
        raise UserError("no run was given; expected run directories, as runs/pretrain/<run>, or --study STUDY")
    return options


def _of_run(path: Path, options: argparse.Namespace) -> Drawn:
    """What there is to draw of a run; whatever hinders it is said before the first file is written."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected a run directory, as runs/pretrain/<run>")
    stage = Run(path).document()["stage"]
    if stage == PRETRAIN:
        return _of_pretraining(Network.open(path), options)
    if stage == SEGMENTATION:
        found = load_segmentation(path, options.images or 8, options.data)
        return iter([("segmentations", {}, partial(draw_segmentations, found))])
    raise UserError(f"{path} is a run of the stage {stage!r}; pictures are of {PRETRAIN} and {SEGMENTATION} runs")


def _of_pretraining(network: Network, options: argparse.Namespace) -> Drawn:
    data, split, root = network.config.data, options.split, options.data
    few, many, fitted = (
        Images.choose(data, split, n, root) for n in (options.images or 4, options.images or 8, FITTED)
    )
    side = options.size or network.config.views.large_size
    return iter(
        [
            ("matches", {}, partial(draw_matches, network, few, options.matches)),
            ("maps", {}, partial(draw_components, network, many, fitted, side)),
        ]
    )


def _of_study(study: Study, options: argparse.Namespace) -> Drawn:
    found = studies.panels(build(study, options.words))
    count, root = options.images or 6, options.data
    for index, panel in enumerate(found, 1):
        suffix, of = (f"-{index}", f" {panel.name}:") if len(found) > 1 else ("", "")
        texts = {
            CAPTION: f"{of} {studies.MAPS} {RULE}".strip(),
            SOURCE: studies.source([p.pretrain for p in panel.points]),
        }
        yield f"maps{suffix}", texts, partial(studies.draw_maps, study, panel, count, options.split, root, options.size)
        for name in studies.segmentation_evals(study):
            caption = f"{of} {studies.predictions_caption(name)}".strip()
            texts = {CAPTION: caption, SOURCE: studies.source([point.evals[name] for point in panel.points])}
            yield f"{name}{suffix}", texts, partial(studies.draw_predictions, study, panel, name, count, root)


def _write_all(drawn: Drawn, folder: Path) -> None:
    for name, texts, draw in drawn:
        with plt.style.context(STYLE):
            _write(draw(), folder / f"{name}.png", texts)
        print(folder / f"{name}.png", flush=True)


def _write(figure: Figure, path: Path, texts: Texts) -> None:
    def save(to: Path) -> None:
        figure.savefig(to, format="png", metadata={"Software": None, **texts})

    files.make_folder(path.parent, "write elsewhere: --out FOLDER")
    files.write_atomic(path, save)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
