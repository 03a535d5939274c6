"""The rows of `checkpoints:` in a study: where each comes from, and how it gets its images."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from data.config import Interpolation, NormalisationChoice
from eval.published import row_of
from eval.weights_config import Loader, Sha256
from runtime.config import Config, Moment, require
from runtime.errors import UserError
from runtime.rundir import Identity, finished_run
from sweeps.keys import as_override

# Stages. In `report` pretrain is also the source of the pretraining's own scores (online probe, loss, diagnostics).
PRETRAIN, WEIGHTS = "pretrain", "weights"
RUN = "run"  # the part of a run that another study, or a command, has made


class EvalChange(Config):
    """What differs from the study's evaluation for one row."""

    config: str | None = None  # in place of the study's, for the same stage
    set: dict[str, Any] = {}  # over the study's


class CheckpointPart(Config):
    """A checkpoint that is evaluated as a point of the study, from one of `weights`, `timm`, `run` and `loader`."""

    weights: str | None = None  # a file; ~ and $VARIABLES are expanded
    arch: str | None = None  # the network of that file, by timm's name
    timm: str | None = None  # a tag of timm's weights, as resnet50.a1_in1k: from timm's cache, or downloaded
    run: str | None = None  # the directory of a finished pretraining of this suite
    epoch: PositiveInt | None = None  # of `run`: the checkpoint that it kept then, in place of the end
    at: Moment | None = None  # as `epoch`, in steps or epochs
    loader: Loader = None  # my_module:function, which returns a network that gives maps: eval/sources.py
    arch_args: dict[str, Any] = {}  # of the network, or of the loader
    prefix: str | None = None  # of the network's keys in the file; null: recognised
    ignore: list[str] = []  # beginnings of keys to leave out
    # Of the file (with `loader`: of the tensors): others are refused, and after the import the file is not needed.
    sha256: Sha256 = None
    # Images. null: those of the timm tag; for others, the evaluation's own. Sizes are those of linear and kNN.
    normalisation: NormalisationChoice = None
    input_size: PositiveInt | None = None  # pixels
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None  # input_size over the shorter side it is cut from
    interpolation: Interpolation | None = None
    evals: dict[str, EvalChange] = {}  # what else differs for this row, by the name of the evaluation
    published: dict[str, Any] = {}  # the row of eval/published.csv with its figures, by values of its columns
    method: str = ""  # checkpoints of one method have one colour in the figures
    columns: dict[str, Any] = {}  # what the table says of it, for example {epochs: 800}

    def check_row(self, row: str) -> None:
        """Check what depends on several keys; errors name the row."""
        given = [name for name in ("weights", "timm", "run", "loader") if getattr(self, name) is not None]
        require(len(given) == 1, row, given or "none", "one of weights (with arch), timm, run and loader")
        require(
            (self.arch is None) == (given != ["weights"]),
            f"{row}.arch",
            self.arch,
            "timm's name of the network beside `weights`, as resnet50, and null without them",
        )
        moments = [moment for moment in (self.epoch, self.at) if moment is not None]
        require(len(moments) <= (given == ["run"]), f"{row}.epoch, .at", moments, "one of them, beside `run`")
        own = [key for key in ("arch_args", "prefix", "ignore", "sha256") if getattr(self, key)]
        require(not own or given != ["run"], row, own, "none of these beside `run`, which has its own")
        known = not self.published or row_of(self.published) is not None
        require(known, f"{row}.published", self.published, "values of one row of eval/published.csv")

    @property
    def moment(self) -> str | None:
        """The moment of a kept checkpoint of `run`; None for its end, and for other sources."""
        return self.at if self.epoch is None else f"{self.epoch} epochs"

    def overrides(self, imports: dict[str, str]) -> tuple[str, ...]:
        """Return the command line of its import; `imports` are those of the study."""
        values: dict[str, Any] = {"imports": imports or None, "file": self.weights, "arch": self.arch}
        values |= {"timm": self.timm, "loader": self.loader}
        values |= {"args": self.arch_args, "ignore": self.ignore, "prefix": self.prefix, "sha256": self.sha256}
        return tuple(as_override(key, value) for key, value in values.items() if value is not None)

    def image_settings(self, config: Any) -> dict[str, Any]:
        """Return the keys of an evaluation's config that say how images are prepared for this checkpoint."""
        settings = {} if self.normalisation is None else {"normalisation": self.normalisation}
        if not hasattr(config, "interpolation"):  # segmentation and dense kNN keep the sizes of their protocol
            return settings
        own = {} if self.timm is None else _tag_images(self.timm)
        row = {key: getattr(self, key) for key in ("input_size", "crop_pct", "interpolation")}
        chosen = own | {key: value for key, value in row.items() if value is not None}
        if "interpolation" in chosen:
            settings["interpolation"] = chosen["interpolation"]
        if "input_size" in chosen or "crop_pct" in chosen:
            size = chosen.get("input_size", config.image_size)
            share = chosen.get("crop_pct", config.image_size / config.resize)
            settings |= {"image_size": size, "resize": max(size, math.floor(size / share))}  # floor: as timm
        return settings


def _tag_images(tag: str) -> dict[str, Any]:
    """Return input size, crop and interpolation of a tag of timm's weights."""
    from eval.sources import tag_config  # loads torch

    config = tag_config(tag)
    _, height, width = config.input_size
    square = {"input_size": height} if height == width else {}
    return square | {"crop_pct": config.crop_pct, "interpolation": config.interpolation}


def open_finished(run: str) -> tuple[str, Identity]:
    """Return where a finished pretraining lies (its folder of runs) and its identity. UserError as `finished_run`."""
    path = Path(os.path.expandvars(run)).expanduser()
    path = path if len(path.parts) > 2 else path.absolute()
    document = finished_run(path, (PRETRAIN,))
    slug = path.name.removesuffix(f"-{document['hash']}")
    identity = Identity(PRETRAIN, slug, document["format"], document["config"], document["parent"])
    if (path.parent.name, path.name) != (PRETRAIN, identity.name):
        raise UserError(f"{path} was renamed; expected a directory as runs/{PRETRAIN}/<name>-{document['hash']}")
    return str(path.parent.parent), identity
