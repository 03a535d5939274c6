"""A study: one YAML file with a question, a grid of pretrainings, their evaluations, and the report's contents.

name: quickstart
question: "..."
pretrain:
  config: pretrain/configs/quickstart.yaml
  set: {train.duration: 500 steps}                         # for every run of the study
  grid: {loss.alpha: [0.0, 0.5, 1.0], seed: [0, 1]}        # every combination
  controls: {no pretraining: {train.duration: 0 steps}}    # extra rows, over every grid key but the varied one
evals:
  linear: {stage: linear, config: eval/configs/linear_scenes.yaml}   # with `at`, kept checkpoints too: see EvalPart
report: {vary: loss.alpha, baseline: 1.0, x: linear.top1, y: segmentation.miou}

In place of `pretrain`, or beside it, checkpoints of any origin, each a row:

checkpoints:
  MoCo 2: {weights: $CHECKPOINTS/moco_v2_800ep.pth.tar, arch: resnet50, method: MoCo, columns: {epochs: 800}}
  supervised: {timm: resnet50.a1_in1k}
report: {vary: checkpoint, x: linear.top1, y: segmentation.miou}

Beside `pretrain`, each setting of its grid is such a row too, named by its values.

`imports: [my_package]` is that key of the configs of all its pretrainings and evaluations, in place of their own.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from runtime import config as configs
from runtime import files
from runtime.config import Config, Duration, Moment, parse_moment, require
from runtime.errors import UserError
from runtime.imports import Imports
from runtime.yaml_files import file_layers
from sweeps import STUDIES, stages
from sweeps.checkpoints import PRETRAIN, CheckpointPart
from sweeps.keys import as_text

KEPT = "kept"  # in `at`: every checkpoint of pretrain.keep_every
CHECKPOINT, METHOD = "checkpoint", "method"  # the keys in which the rows of a study of checkpoints differ
# Scores that no trade-off can have as an axis: its sentences take more to be better.
LOWER_IS_BETTER = ("loss", "seconds", "seconds_per_step", "peak_memory_gb", "correlation_pooled", "correlation_local")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME_DESCRIPTION = "up to 100 letters, digits, '.', '_' and '-' (it names the folder of the report)"
_Values = Annotated[list[Any], Field(min_length=1)]


class PretrainPart(Config):
    """The pretrainings: a base config, the values set for all, the grid, and the controls.

    `keep_every` ("100 steps") says which checkpoints they keep, for evaluations with `at: kept`. `method` is their name
    among the methods of `checkpoints`.
    """

    config: str
    set: dict[str, Any] = {}
    grid: dict[str, _Values] = {}
    controls: dict[str, dict[str, Any]] = {}
    keep_every: Moment | None = None
    method: str = ""

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Values by dotted keys of the pretraining's config, by the section of the study that has them."""
        controls = {f"controls.{name}": changes for name, changes in self.controls.items()}
        return {"grid": self.grid, "set": self.set} | controls

    def check(self) -> None:
        for key, values in self.grid.items():
            distinct = {repr(value) for value in values}
            require(len(distinct) == len(values), f"pretrain.grid.{key}", values, "each value once")


def _kept_or_moment(text: str) -> str:
    return KEPT if text == KEPT else parse_moment(text)


_AT = "kept (see pretrain.keep_every), or moments, as [100 steps, 300 steps]"
_Moments = Annotated[
    list[Annotated[str, AfterValidator(_kept_or_moment), Field(description=_AT)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}], "description": _AT}),
]


class EvalPart(Config):
    """One evaluation of every pretraining (or checkpoint): of its end and, with `at`, of moments before that.

    The pretrainings keep their checkpoints of those moments, which are in the unit of train.duration; moments after
    the end of one are left out of it. To keep other checkpoints by hand: machine.keep_at and machine.keep_every_epochs.
    """

    stage: str
    config: str
    set: dict[str, Any] = {}
    at: _Moments = []


class ReportPart(Config):
    """The report's contents; a score is named <evaluation>.<score of its result.json>."""

    vary: str
    baseline: Any = None  # the value of `vary`, or the control, with which the other rows are compared
    x: str
    y: str
    scores: list[str] = []  # columns of the table; empty: see Study.scores
    labels: dict[str, list[str]] = {}  # by key of the grid: what the report calls its values, in the grid's order
    join: str | None = None  # with `checkpoints`: points of one method are joined in the order of this column


class Study(Config):
    """The contents of a study file; `file` is its path."""

    imports: Imports = {}  # own packages; first, because what they register may be named below
    name: Annotated[str, Field(pattern=_NAME, description=_NAME_DESCRIPTION)]
    question: str
    pretrain: PretrainPart | None = None
    checkpoints: dict[str, CheckpointPart] = {}  # by the name of the row
    evals: dict[str, EvalPart] = {}
    report: ReportPart
    file: str = ""

    def check(self) -> None:
        require(PRETRAIN not in self.evals, "evals", PRETRAIN, "any other name for an evaluation")
        self._check_imports()
        for name, part in self.evals.items():
            known = self.pretrain is not None and (KEPT not in part.at or self.pretrain.keep_every is not None)
            needs = "pretrain.keep_every beside it" if self.pretrain else "evaluations of checkpoints without it"
            require(known or not part.at, f"evals.{name}.at", part.at, needs)
        require(bool(self.pretrain or self.checkpoints), "study", "neither", "pretrain, checkpoints or both")
        self._check_checkpoints()
        self._check_report()

    def _check_imports(self) -> None:
        sections = {} if self.pretrain is None else {f"pretrain.{k}": v for k, v in self.pretrain.sections.items()}
        sections |= {f"evals.{name}.set": part.set for name, part in self.evals.items()}
        for row, part in self.checkpoints.items():
            sections |= {f"checkpoints.{row}.evals.{name}.set": change.set for name, change in part.evals.items()}
        for section, values in sections.items():
            own = {key: value for key, value in values.items() if key.partition(".")[0] == "imports"}
            require(
                not (own and self.imports), section, own, "no imports, which the study has already as a key of its own"
            )

    def _check_checkpoints(self) -> None:
        for row, part in self.checkpoints.items():
            own = f"checkpoints.{row}"
            part.check_row(own)
            require(row not in self.settings, own, row, "another name: a setting of pretrain has this one")
            reserved = {CHECKPOINT, METHOD} & part.columns.keys()
            require(
                not reserved, f"{own}.columns", sorted(reserved), "another name: this one is the row's or its method's"
            )
            for name in part.evals:
                _require_known(f"{own}.evals", name, list(self.evals))

    def _check_report(self) -> None:
        report = self.report
        require(not is_seed(report.vary), "report.vary", report.vary, "a key that is not a seed: seeds are repetitions")
        _require_known("report.vary", report.vary, [key for key in self.grid if not is_seed(key)])
        values = self.grid[report.vary]
        fits = report.baseline is None or report.baseline in [*values, *self.controls]
        controls = f", or a control: {', '.join(self.controls)}" if self.controls else ""
        require(fits, "report.baseline", report.baseline, f"null, or a value of {report.vary}: {values}{controls}")
        for key, labels in report.labels.items():
            _require_known("report.labels", key, list(self.grid))
            count = len(self.grid[key])
            require(len(labels) == count, f"report.labels.{key}", labels, f"{count} labels, one for each of its values")
        if report.join is not None:
            _require_known("report.join", report.join, self.columns)
        named = [("report.x", report.x), ("report.y", report.y), *(("report.scores", s) for s in report.scores)]
        for key, score in named:
            source, dot, _ = score.partition(".")
            require(bool(dot), key, score, "<evaluation>.<score>, for example linear.top1")
            _require_known(key, source, [*self.evals, PRETRAIN])
        for key, score in named[:2]:
            rises = score.rpartition(".")[2] not in LOWER_IS_BETTER
            require(rises, key, score, "a score of which more is better, as the sentences of a report take it")

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values of each key in which points differ. With checkpoints: names, methods if any are given, seeds."""
        trained = {} if self.pretrain is None else self.pretrain.grid
        if not self.checkpoints:
            return trained
        methods = [*([self.pretrain.method] if self.pretrain else []), *(p.method for p in self.checkpoints.values())]
        names = {CHECKPOINT: [*self.settings, *self.checkpoints]}
        names |= {METHOD: list(dict.fromkeys(methods))} if any(methods) else {}
        return names | {key: values for key, values in trained.items() if is_seed(key)}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of `pretrain` beside checkpoints, by the name of their row."""
        if self.pretrain is None or not self.checkpoints:
            return {}
        varied = {key: values for key, values in self.pretrain.grid.items() if not is_seed(key)}
        rows = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
        return {self.setting_name(row): row for row in rows}

    def setting_name(self, varied: dict[str, Any]) -> str:
        """Return "VICRegL, alpha 0.9": the method and the values of the keys of `pretrain.grid` that have several."""
        if self.pretrain is None:
            return ""
        several = {key: values for key, values in self.pretrain.grid.items() if len(values) > 1 and not is_seed(key)}
        values = [f"{key.rpartition('.')[2]} {as_text(varied[key])}" for key in several]
        return ", ".join([*([self.pretrain.method] if self.pretrain.method else []), *values]) or PRETRAIN

    @property
    def descriptions(self) -> dict[str, dict[str, Any]]:
        """What the table says of each row of a study with checkpoints: by its name, the value of each column."""
        return self.settings | {name: part.columns for name, part in self.checkpoints.items()}

    @property
    def columns(self) -> list[str]:
        """The columns of `descriptions`."""
        return list(dict.fromkeys(column for row in self.descriptions.values() for column in row))

    @property
    def controls(self) -> dict[str, dict[str, Any]]:
        return {} if self.pretrain is None else self.pretrain.controls

    def moments(self, evaluation: str, duration: str) -> list[str]:
        """Return the moments at which that evaluation takes a checkpoint of a pretraining, before its end, in order."""
        at = self.evals[evaluation].at
        kept = self.kept_every(duration) if KEPT in at else []
        return _before(Duration.parse(duration), [*kept, *(moment for moment in at if moment != KEPT)], evaluation)

    def kept_every(self, duration: str) -> list[str]:
        """Return the moments of pretrain.keep_every, before the end of a pretraining."""
        every = None if self.pretrain is None else self.pretrain.keep_every
        if every is None:
            return []
        (step, unit), end = every.split(), Duration.parse(duration)
        moments = [f"{n} {unit}" for n in range(int(step), math.ceil(end.amount), int(step))] or [every]
        return _before(end, moments, "")

    @property
    def scores(self) -> list[str]:
        """The columns of the table: report.scores; or x, y and the score of every other evaluation, in order."""
        if self.report.scores:
            return self.report.scores
        shown = list(dict.fromkeys([self.report.x, self.report.y]))
        sources = [score.partition(".")[0] for score in shown]
        known = stages.known_stages()
        others = {name: known.get(part.stage) for name, part in self.evals.items() if name not in sources}
        shown += [f"{name}.{stage.score}" for name, stage in others.items() if stage is not None and stage.score]
        order = [*self.evals, PRETRAIN]
        return sorted(shown, key=lambda score: order.index(score.partition(".")[0]))

    @property
    def unshown(self) -> list[str]:
        """The evaluations of which the report shows no score."""
        shown = {score.partition(".")[0] for score in [*self.scores, self.report.x, self.report.y]}
        return [name for name in self.evals if name not in shown]

    @property
    def row_keys(self) -> list[str]:
        """The keys in which the rows of the table differ: every grid key but the seeds, the varied one first."""
        others = [key for key in self.grid if not is_seed(key) and key != self.report.vary]
        return [self.report.vary, *others]


def _before(end: Duration, moments: Sequence[str], evaluation: str) -> list[str]:
    """Return the moments before the end, in order. UserError for another unit: steps of an epoch are not known here."""
    key = f"evals.{evaluation}.at" if evaluation else "pretrain.keep_every"
    for moment in moments:
        same = moment.endswith(f" {end.unit}") or end.amount == 0
        require(same, key, moment, f"{end.unit}, the unit of train.duration = {end.amount:g} {end.unit}")
    return sorted({m for m in moments if int(m.split()[0]) < end.amount}, key=lambda moment: int(moment.split()[0]))


def is_name(text: str) -> bool:
    """Return whether it can name the folder of a report."""
    return re.fullmatch(_NAME, text) is not None


def is_seed(key: str) -> bool:
    """Return whether runs that differ only in this key are repetitions of each other."""
    return key.rpartition(".")[2] == "seed"


def load_study(path: str | Path) -> Study:
    """Read and check a study, by its file or its name; its `base:` file, if it has one, is read before it.

    Raises UserError for a file that is missing or not YAML, an unknown key (naming near ones), a
    wrong type or an impossible value. `graph.build` reads the configs that it names.
    """
    file = files.find_yaml(path, STUDIES, "study")
    layers = file_layers(file)
    layers.append((str(file), {"file": str(file)}))
    try:
        return configs.from_layers(Study, layers)
    except UserError as error:
        text = str(error).replace("config: ", f"{file}: ", 1)
        raise UserError(text if str(file) in text else f"{file}: {text}") from error


def _require_known(key: str, value: str, allowed: list[str]) -> None:
    near = get_close_matches(value, allowed, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    require(value in allowed, key, value, f"{', '.join(allowed) or 'nothing: the list is empty'}{hint}")
