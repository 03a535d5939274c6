"""The runs of a study, each named by its identity, and each evaluation a child of its pretraining.

Building the graph reads the study's configs and creates nothing. No state is stored here: it is read from the run
directories, whether this machine made them, another one, or an earlier sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from runtime import config as configs
from runtime.config import kept_checkpoint
from runtime.config_keys import lookup, merge, nested
from runtime.errors import UserError
from runtime.provenance import PROJECT
from runtime.rundir import Identity, Run
from runtime.yaml_files import file_layers, parse_overrides
from sweeps.keys import as_override, check_keys, require_machine_keys
from sweeps.stages import Stage, get_stage
from sweeps.study import CHECKPOINT, METHOD, PRETRAIN, CheckpointPart, EvalPart, PretrainPart, Study

WEIGHTS = "weights"  # the stage of a checkpoint
PARENT_STAGES = (PRETRAIN, WEIGHTS)


@dataclass(eq=False)
class Node:
    """One run: a pretraining (or an imported checkpoint), or one evaluation of it."""

    stage: Stage
    part: str  # "pretrain", "weights", or the evaluation's name in the study, with its moment: "linear at 100 steps"
    label: str  # the values that distinguish it from the other runs of its part
    identity: Identity
    root: str
    config_file: str
    overrides: tuple[str, ...]
    work: float
    parent: Node | None = None
    at: str | None = None  # the moment of the checkpoint that it evaluates, as "100 steps"; None: the end
    keep: tuple[str, ...] = ()  # the moments at which it keeps a checkpoint
    children: list[Node] = field(default_factory=list)

    @cached_property
    def run(self) -> Run:
        return Run.at(self.root, self.identity)

    @property
    def name(self) -> str:
        """`<stage>/<slug>-<hash>`: its directory, and its name in the records of jobs and on the command line."""
        return f"{self.identity.stage}/{self.run.name}"

    @property
    def kind(self) -> str:
        """Its part without the moment: runs of one kind take equally long."""
        return self.part if self.at is None else self.part.removesuffix(f" at {self.at}")

    @property
    def title(self) -> str:
        return f"{self.part} {self.label}".rstrip()

    def argv(self, machine: Sequence[str] = ()) -> list[str]:
        """Return the command line of this run; `machine`: the `machine.*` overrides of the command that starts it."""
        parent = None if self.parent is None else self.parent.run.path
        where = f"machine.runs={self.root}"
        others = [text for text in machine if not text.startswith("machine.runs=")]  # which made `root`
        overrides = [*self.overrides, where, *others, *self.keep_overrides]
        return self.stage.argv(self.config_file, overrides, parent, self.at)

    @property
    def keep_overrides(self) -> list[str]:
        """Return the override by which it keeps its checkpoints; it is of the machine, so no part of its identity."""
        return [as_override("machine.keep_at", list(self.keep))] if self.keep else []

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether its pretraining ended without keeping the checkpoint that it evaluates."""
        if self.parent is None or self.at is None or self.parent.run.result() is None:
            return False
        return not (self.parent.run.path / kept_checkpoint(self.at)).is_file()


@dataclass(frozen=True)
class Point:
    """One point of the study: a pretraining (of the grid, or a control) and its evaluations."""

    varied: dict[str, Any]  # the value of every grid key; None if the control does not take it from the grid
    control: str | None
    pretrain: Node
    evals: dict[str, Node]  # by their part


@dataclass(frozen=True)
class Graph:
    study: Study
    points: list[Point]
    nodes: list[Node]  # each run once, parents first

    def states(self) -> dict[Node, str]:
        """Read the state of every run, now: that of its directory (see Run.state), or blocked."""
        states: dict[Node, str] = {}
        for node in self.nodes:
            state = node.run.state()
            parent = None if node.parent is None else states.get(node.parent)
            states[node] = "blocked" if is_blocked(state, parent) else state
        return states

    def find(self, text: str) -> Node:
        """Find the run that `text` names: its hash, its directory, <stage>/<name>, or (part of) its title.

        Raises UserError, with near names, if it names none or several.
        """
        exact = [node for node in self.nodes if text.rstrip("/") in _names(node)]
        matches = exact or [node for node in self.nodes if text in node.title]
        if len(matches) == 1:
            return matches[0]
        if matches:
            titles = ", ".join(node.title for node in matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise UserError(f"{text!r} names {len(matches)} runs: {titles}; give its hash")
        near = get_close_matches(text, [name for node in self.nodes for name in _names(node)], n=3, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else "`status` shows every run with its hash"
        raise UserError(f"no run of {self.study.name} is named {text!r}; {hint}")


def is_blocked(state: str, parent_state: str | None) -> bool:
    """Whether a run in `state` cannot begin, because the pretraining that it evaluates failed."""
    return state not in ("done", "running") and parent_state in ("failed", "blocked")


def _names(node: Node) -> tuple[str, ...]:
    path = node.run.path
    return node.identity.hash, node.run.name, node.name, str(path), str(path.resolve()), node.title


def build(study: Study, machine: Sequence[str] = ()) -> Graph:
    """Build the graph of a study; `machine` are `machine.*=value` overrides, for example of the run directories' place.

    Raises UserError for a config file that is missing, a grid, set or control key that the stage's
    config does not have, a value that it refuses, or an unknown stage.
    """
    require_machine_keys(machine)
    builder = _Builder(study, tuple(machine))
    return Graph(study, list(builder.points()), list(builder.nodes.values()))


def _grid(study: Study) -> Iterator[tuple[dict[str, Any], str | None]]:
    grid = study.grid
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True)), None
    for control, changes in study.controls.items():
        kept = {key: values for key, values in grid.items() if key != study.report.vary and key not in changes}
        for values in itertools.product(*kept.values()):
            yield dict(zip(kept, values, strict=True)), control


class _Builder:
    """Makes each run's node once, whichever points of the study share it."""

    def __init__(self, study: Study, machine: tuple[str, ...]) -> None:
        self.study = study
        self.machine = machine
        self.nodes: dict[Path, Node] = {}
        self.pretrain_stage = get_stage(PRETRAIN, study.file)
        if study.pretrain is not None:
            self._check_pretrain_keys(study.pretrain)
        self.evals = {name: self._load_eval(name, part) for name, part in study.evals.items()}

    def points(self) -> Iterator[Point]:
        """Make the points of the grid, or of the checkpoints."""
        if self.study.pretrain is None:
            yield from (self._checkpoint(name, part) for name, part in self.study.checkpoints.items())
            return
        base = self._read_once(_config_path(self.study.pretrain.config))
        for varied, control in _grid(self.study):
            yield self._pretraining(self.study.pretrain, base, varied, control)

    def _read_once(self, file: str) -> dict[str, Any]:
        """Merge the values of the config file and of this command's `machine` keys, once for all runs."""
        try:
            layers = [*file_layers(Path(file)), ("", parse_overrides(self.machine))]
        except UserError as error:
            raise UserError(f"{self.study.file}: pretrain: {error}") from error
        return reduce(merge, (values for _, values in layers))

    def _check_pretrain_keys(self, part: PretrainPart) -> None:
        schema = self.pretrain_stage.schema()
        sections = {"grid": part.grid, "set": part.set}
        sections |= {f"controls.{name}": changes for name, changes in part.controls.items()}
        for section, values in sections.items():
            check_keys(f"{self.study.file}: pretrain.{section}", values, schema)

    def _load_eval(self, name: str, part: EvalPart) -> tuple[Stage, str, tuple[str, ...], Any]:
        where = f"{self.study.file}: evals.{name}"
        stage = get_stage(part.stage, where)
        if stage.name in PARENT_STAGES:
            raise UserError(f"{where}: {stage.name} is no evaluation; allowed: any other stage")
        check_keys(f"{where}.set", part.set, stage.schema())
        file, overrides = _config_path(part.config), tuple(as_override(k, v) for k, v in part.set.items())
        return stage, file, overrides, _load(where, stage, file, [*overrides, *self.machine])

    def _checkpoint(self, name: str, part: CheckpointPart) -> Point:
        stage = get_stage(WEIGHTS, self.study.file)
        values: dict[str, Any] = {"file": part.weights, "arch": part.arch, "args": part.arch_args}
        values |= {"ignore": part.ignore, "prefix": part.prefix, "sha256": part.sha256}
        overrides = tuple(as_override(key, value) for key, value in values.items() if value is not None)
        try:
            config = configs.load(stage.schema(), None, [*overrides, *self.machine])
            parent = self._node(stage, WEIGHTS, name, config, "", overrides, None)
        except UserError as error:
            raise UserError(f"{self.study.file}: checkpoints.{name}: {error}") from error
        varied = {CHECKPOINT: name, METHOD: part.method}
        return Point({key: varied[key] for key in self.study.grid}, None, parent, self._evaluations(name, parent))

    def _evaluations(self, label: str, parent: Node, moments: Mapping[str, Sequence[str]] = {}) -> dict[str, Node]:
        """Make the evaluations of a point, by name; those of kept checkpoints as "linear at 100 steps"."""
        return {
            part: self._node(stage, part, label, config, file, overrides, parent, at)
            for name, (stage, file, overrides, config) in self.evals.items()
            for part, at in [(name, None), *((f"{name} at {moment}", moment) for moment in moments.get(name, []))]
        }

    def _keep(self, pretrain: Node) -> dict[str, list[str]]:
        """Have the pretraining keep its checkpoints, and return the moments at which each evaluation takes one."""
        duration = pretrain.identity.config["train"]["duration"]
        try:
            moments = {name: self.study.moments(name, duration) for name in self.evals}
            kept = {*self.study.kept_every(duration), *itertools.chain(*moments.values())}
        except UserError as error:
            raise UserError(f"{self.study.file}: {error}") from error
        pretrain.keep = tuple(sorted(kept, key=lambda moment: int(moment.split()[0])))
        return moments

    def _pretraining(
        self, part: PretrainPart, base: dict[str, Any], varied: dict[str, Any], control: str | None
    ) -> Point:
        changes = part.set | varied | (part.controls[control] if control else {})
        label = ", ".join(
            [*([control] if control else []), *(f"{k}={v}" for k, v in varied.items() if len(part.grid[k]) > 1)]
        )
        overrides = tuple(as_override(k, v) for k, v in changes.items())
        file, stage = _config_path(part.config), self.pretrain_stage
        try:
            layers = [(file, base), ("command line", nested(changes))]
            config = configs.from_layers(stage.schema(), layers)
        except UserError as error:
            raise UserError(f"{self.study.file}: pretrain ({label}): {error}") from error
        pretrain = self._node(stage, PRETRAIN, label, config, file, overrides, None)
        resolved = pretrain.identity.config
        values = {key: lookup(resolved, key, varied[key]) if key in varied else None for key in part.grid}
        return Point(values, control, pretrain, self._evaluations(label, pretrain, self._keep(pretrain)))

    def _node(
        self,
        stage: Stage,
        part: str,
        label: str,
        config: Any,
        file: str,
        overrides: tuple[str, ...],
        parent: Node | None,
        at: str | None = None,
    ) -> Node:
        identity = stage.identity(config, None if parent is None else parent.identity, at)
        node = Node(stage, part, label, identity, config.machine.runs, file, overrides, stage.work(config), parent, at)
        known = self.nodes.setdefault(node.run.path, node)
        if known is node and parent is not None:
            parent.children.append(node)
        return known


def _config_path(config: str) -> str:
    """Resolve the path of a config: from the working directory, or else from the project's folder."""
    in_project = PROJECT / config
    return str(in_project) if not Path(config).is_file() and in_project.is_file() else config


def _load(where: str, stage: Stage, file: str, overrides: Sequence[str]) -> Any:
    try:
        return stage.load(file, overrides)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
