"""The stages that a study may name, each with its config module and its command; none is imported before it is used.

A new evaluation is one file, eval/<name>.py, or registered by a package that a study imports (EXTEND.md). A stage that
is listed here is planned without importing more than its config module, which has a config class and
`identity(config, parent_hash, at) -> Identity` (`at` where a checkpoint of a moment is evaluated), or
`identity(config)` if the stage has no parent.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eval.config import EVALUATIONS, check_class
from runtime import config as configs
from runtime.config import Duration, require
from runtime.console import own_evaluations
from runtime.errors import UserError
from runtime.rundir import Identity


@dataclass(frozen=True)
class Stage:
    """How one stage is configured, named and started."""

    name: str
    module: str  # holds the config class and `identity`
    config_class: str  # empty: that of an own evaluation, whose `stage` is this name
    command: tuple[str, ...]  # after the Python interpreter
    work: Callable[[Any], float] = lambda config: 1.0  # length of a run, relative to others of the stage
    several: bool = True  # whether several processes may share one run
    score: str = ""  # the score in its result.json that a report shows if the study names none

    def schema(self) -> type[Any]:
        """Return its config class. UserError for a file of eval/ that has none with its name."""
        if self.name in EVALUATIONS:
            return EVALUATIONS[self.name].schema
        module = importlib.import_module(self.module)
        if self.config_class:
            return getattr(module, self.config_class)
        classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
        if named := [kind for kind in classes if vars(kind).get("stage") == self.name]:
            check_class(named[0])
            return named[0]
        raise UserError(
            f'{module.__file__}: expected a config class with the line `stage: ClassVar[str] = "{self.name}"`'
        )

    def find(self, name: str) -> str:
        """Return the config file that a path or a name stands for."""
        return str(configs.find_file(self.schema(), name))

    def load(self, file: str | Path | None, overrides: Sequence[str]) -> Any:
        config = configs.load(self.schema(), file, overrides)
        if self.name in EVALUATIONS:  # which its job knows by its own config alone
            named = f"the package that registers {self.name}, as `imports` of the study"
            require(bool(config.imports), "imports", config.imports, named)
        return config

    def identity(self, config: Any, parent: Identity | None = None, at: str | None = None) -> Identity:
        make = importlib.import_module(self.module if self.config_class else "eval.config").identity
        evaluated = [] if parent is None else [parent.hash, *([] if at is None else [at])]
        return make(config, *evaluated)

    def argv(self, config_file: str, overrides: Sequence[str], parent: Path | None, at: str | None = None) -> list[str]:
        """Return the command line of a run; `parent` is the run directory that it evaluates, `at` a moment of it.

        Without a config file, the overrides are the whole config.
        """
        before = [] if parent is None else [str(parent), *([] if at is None else ["--at", at])]
        config = ["--config", config_file] if config_file else []
        return [sys.executable, *self.command, *before, *config, *overrides]


def _training_length(config: Any) -> float:
    """Return the steps or epochs: runs of one study are compared in one unit."""
    return Duration.parse(config.train.duration).amount


STAGES = {
    stage.name: stage
    for stage in (
        Stage("pretrain", "pretrain.config", "PretrainConfig", ("-m", "pretrain"), _training_length),
        Stage("weights", "eval.weights_config", "WeightsConfig", ("-m", "eval.weights"), several=False),
        Stage("linear", "eval.config", "LinearConfig", ("-m", "eval.linear"), score="top1"),
        Stage("knn", "eval.config", "KnnConfig", ("-m", "eval.knn"), score="top1"),
        Stage("dense_knn", "eval.config", "DenseKnnConfig", ("-m", "eval.dense_knn"), score="miou"),
        Stage("segmentation", "eval.config", "SegmentationConfig", ("-m", "eval.segmentation"), score="miou"),
    )
}


for _name in own_evaluations():
    STAGES[_name] = Stage(_name, f"eval.{_name}", "", ("-m", f"eval.{_name}"), several=False)


def known_stages() -> dict[str, Stage]:
    """Return every stage by its name: those of the checkout, and the evaluations that imported packages registered."""
    return STAGES | {
        name: Stage(name, "", "", ("-m", "eval", name), several=own.several, score=own.score)
        for name, own in EVALUATIONS.items()
    }


def get_stage(name: str, where: str) -> Stage:
    """Look the stage up; UserError, with the known names, if there is none."""
    known = known_stages()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    own = "; an evaluation of your own package: name that in `imports` of the study"
    raise UserError(f"{where}: unknown stage {name!r}; {hint}allowed: {', '.join(known)}{own}")
