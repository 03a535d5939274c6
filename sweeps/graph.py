"""The runs of a study, each named by its identity, and each evaluation a child of its pretraining.

Building the graph reads the study's configs and creates nothing. No state is stored here: it is read from the run
directories, whether this machine made them, another one, or an earlier sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.config import DataConfig
from data.record import refuse_other_data
from eval.published import Published, figure_of
from runtime import config as configs
from runtime.config import kept_checkpoint, require, split_machine
from runtime.config_keys import Layer, lookup, merge_layers, nested
from runtime.errors import UserError, errors_at
from runtime.rundir import Identity, Run
from runtime.yaml_files import file_layers, parse_overrides
from sweeps.checkpoints import PRETRAIN, RUN, WEIGHTS, CheckpointPart, EvalChange, open_finished
from sweeps.keys import as_override, check_keys, require_machine_keys
from sweeps.stages import Stage, get_stage
from sweeps.study import CHECKPOINT, METHOD, EvalPart, PretrainPart, Study, is_seed

PARENT_STAGES = (PRETRAIN, WEIGHTS)


@dataclass(eq=False)
class Node:
    """One run: a pretraining (or an imported checkpoint), or one evaluation of it."""

    stage: Stage
    # "pretrain", "weights", "run" (another study's), or the evaluation's name, with its moment: "linear at 100 steps"
    part: str
    label: str  # the values that distinguish it from the other runs of its part
    identity: Identity
    root: str
    config_file: str
    overrides: tuple[str, ...]
    work: float
    study: str  # its name
    parent: Node | None = None
    at: str | None = None  # the moment of the checkpoint that it evaluates, as "100 steps"; None: the end
    keep: tuple[str, ...] = ()  # the moments at which it keeps a checkpoint
    places: dict[str, Any] = field(default_factory=dict)  # in its config, and left out of its identity
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
        overrides = [*self.overrides, *self.machine_overrides(self.root, machine)]
        return self.stage.argv(self.config_file, overrides, parent, self.at)

    def machine_overrides(self, root: str | Path, given: Sequence[str]) -> list[str]:
        """Return all `machine.*` overrides of its command, for runs at `root`; `given`: those of the user."""
        others = [text for text in given if not text.startswith("machine.runs=")]  # which made `root`
        keep = [as_override("machine.keep_at", list(self.keep))] if self.keep else []
        return [f"machine.runs={root}", as_override("machine.group", self.study), *others, *keep]

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
    published: dict[str, Published | None] = field(default_factory=dict)  # beside each evaluation


@dataclass(frozen=True)
class Graph:
    study: Study
    points: list[Point]
    nodes: list[Node]  # each run once, parents first

    @property
    def root(self) -> str:
        """Where the runs of the study are made: those that it only evaluates may lie elsewhere."""
        return next((node.root for node in self.nodes if node.part != RUN), "runs")

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
    """Return whether a run in `state` cannot begin, because the pretraining that it evaluates failed."""
    return state not in ("done", "running") and parent_state in ("failed", "blocked")


def _names(node: Node) -> tuple[str, ...]:
    path = node.run.path
    return node.identity.hash, node.run.name, node.name, str(path), str(path.resolve()), node.title


def build(study: Study, machine: Sequence[str] = ()) -> Graph:
    """Build the graph of a study; `machine` are `machine.*=value` overrides, for example of the run directories' place.

    Raises UserError for a config file that is missing, a grid, set or control key that the stage's
    config does not have, a value that it refuses, an unknown stage, or configs that put the runs in several folders.
    """
    require_machine_keys(machine)
    builder = _Builder(study, tuple(machine))
    graph = Graph(study, list(builder.points()), list(builder.nodes.values()))
    _require_one_root(graph)
    return graph


def _require_one_root(graph: Graph) -> None:
    """Refuse configs that put the runs of the study in several folders: its jobs are recorded in one."""
    by_root = {node.root: node for node in reversed(graph.nodes) if node.part != RUN}
    if len({Path(root).resolve() for root in by_root}) > 1:
        found = ", ".join(f"{root} ({node.config_file or node.part})" for root, node in by_root.items())
        raise UserError(
            f"{graph.study.file}: machine.runs of its configs names several folders: {found}; expected one for all "
            "runs of a study; give machine.runs=FOLDER to the command, or write the same in each config"
        )


def _grid(study: Study, grid: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the points of the pretrainings' grid, and of each control over all keys but those that name a row."""
    named = {key for key in grid if not is_seed(key)} if study.checkpoints else {study.report.vary}
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True)), None
    for control, changes in study.controls.items():
        kept = {key: values for key, values in grid.items() if key not in named and key not in changes}
        for values in itertools.product(*kept.values()):
            yield dict(zip(kept, values, strict=True)), control


class _Loaded(NamedTuple):
    """A config of a stage, and the file and overrides that it was read from."""

    stage: Stage
    file: str
    overrides: tuple[str, ...]
    config: Any


class _Builder:
    """Makes each run's node once, whichever points of the study share it."""

    def __init__(self, study: Study, machine: tuple[str, ...]) -> None:
        self.study = study
        self.machine = machine
        self.imports: dict[str, Any] = {"imports": study.imports} if study.imports else {}
        self.nodes: dict[Path, Node] = {}
        self.pretrain_stage = get_stage(PRETRAIN, study.file)
        for section, values in (study.pretrain.sections if study.pretrain else {}).items():
            check_keys(f"{study.file}: pretrain.{section}", values, self.pretrain_stage.schema())
        self.evals = {name: self._load_eval(name, part) for name, part in study.evals.items()}

    def points(self) -> Iterator[Point]:
        """Make the points of the grid, then those of the checkpoints."""
        if (part := self.study.pretrain) is not None:
            base = self._read_once(part.config)
            for varied, control in _grid(self.study, part.grid):
                yield self._pretraining(part, base, varied, control)
        yield from (self._checkpoint(name, part) for name, part in self.study.checkpoints.items())

    def _read_once(self, config: str) -> Layer:
        """Merge the values of the config file and of this command's `machine` keys, once for all runs."""
        with errors_at(f"{self.study.file}: pretrain"):
            file = self.pretrain_stage.find(config)
            layers = [*file_layers(Path(file)), ("", parse_overrides(self.machine))]
        return file, merge_layers(layers)

    def _load_eval(self, name: str, part: EvalPart) -> _Loaded:
        where = f"{self.study.file}: evals.{name}"
        stage = get_stage(part.stage, where)
        if stage.name in PARENT_STAGES:
            raise UserError(f"{where}: {stage.name} is no evaluation; allowed: any other stage")
        check_keys(f"{where}.set", part.set, stage.schema())
        overrides = tuple(as_override(k, v) for k, v in (self.imports | part.set).items())
        with errors_at(where):
            file = stage.find(part.config)
            return _Loaded(stage, file, overrides, stage.load(file, [*overrides, *self.machine]))

    def _checkpoint(self, name: str, part: CheckpointPart) -> Point:
        with errors_at(f"{self.study.file}: checkpoints.{name}"):
            parent = self._weights(name, part) if part.run is None else self._run(name, part.run)
            evaluations = {each: self._eval_of(part, each) for each in self.evals}
            evals = {each: self._node(each, name, loaded, parent, part.moment) for each, loaded in evaluations.items()}
            kept = not any(node.lacks_checkpoint for node in evals.values())
            require(kept, "epoch or at", part.moment, "a checkpoint that the run kept, in its folder checkpoints/")
        varied = {CHECKPOINT: name, METHOD: part.method}
        published = {each: figure_of(part.published, loaded.config) for each, loaded in evaluations.items()}
        return Point({key: varied.get(key) for key in self.study.grid}, None, parent, evals, published)

    def _weights(self, name: str, part: CheckpointPart) -> Node:
        stage, overrides = get_stage(WEIGHTS, self.study.file), part.overrides(self.study.imports)
        config = stage.load(None, [*overrides, *self.machine])
        return self._node(WEIGHTS, name, _Loaded(stage, "", overrides, config))

    def _run(self, name: str, path: str) -> Node:
        """Make the node of a finished run, which is evaluated where it lies."""
        root, identity = open_finished(path)
        node = Node(self.pretrain_stage, RUN, name, identity, root, "", (), 1.0, self.study.name)
        return self.nodes.setdefault(node.run.path, node)

    def _eval_of(self, part: CheckpointPart, name: str) -> _Loaded:
        """Load the evaluation as it is for a row: with the row's images and changes."""
        common, change = self.study.evals[name], part.evals.get(name, EvalChange())
        chosen = common.replace(config=change.config or common.config, set=common.set | change.set)
        loaded = self._load_eval(name, chosen) if change != EvalChange() else self.evals[name]
        images = {k: v for k, v in part.image_settings(loaded.config).items() if k not in change.set}
        return self._load_eval(name, chosen.replace(set=chosen.set | images)) if images else loaded

    def _evaluations(self, label: str, parent: Node, moments: Mapping[str, Sequence[str]]) -> dict[str, Node]:
        """Make the evaluations of a point, by name; those of kept checkpoints as "linear at 100 steps"."""
        return {
            part: self._node(part, label, loaded, parent, at)
            for name, loaded in self.evals.items()
            for part, at in [(name, None), *((f"{name} at {moment}", moment) for moment in moments[name])]
        }

    def _keep(self, pretrain: Node) -> dict[str, list[str]]:
        """Have the pretraining keep its checkpoints, and return the moments at which each evaluation takes one."""
        duration = pretrain.identity.config["train"]["duration"]
        with errors_at(self.study.file):
            moments = {name: self.study.moments(name, duration) for name in self.evals}
            kept = {*self.study.kept_every(duration), *itertools.chain(*moments.values())}
        pretrain.keep = tuple(sorted(kept, key=lambda moment: int(moment.split()[0])))
        return moments

    def _pretraining(self, part: PretrainPart, base: Layer, varied: dict[str, Any], control: str | None) -> Point:
        changes = self.imports | part.set | varied | (part.controls[control] if control else {})
        several = (f"{k}={v}" for k, v in varied.items() if len(part.grid[k]) > 1)
        label = ", ".join([*([control] if control else []), *several])
        overrides = tuple(as_override(k, v) for k, v in changes.items())
        stage = self.pretrain_stage
        # One at a time, as the job reads them: `args: {}` clears what `args.depth: 2` adds to.
        layers = [("command line", nested({key: value})) for key, value in changes.items()]
        with errors_at(f"{self.study.file}: pretrain ({label})"):
            config = configs.from_layers(stage.schema(), [base, *layers])
        pretrain = self._node(PRETRAIN, label, _Loaded(stage, base[0], overrides, config))
        resolved = split_machine(config)[0]  # not the identity's, which leaves out what has no effect
        values = {key: lookup(resolved, key, varied[key]) if key in varied else None for key in part.grid}
        if self.study.checkpoints:
            row = {} if control else {CHECKPOINT: self.study.setting_name(varied), METHOD: part.method}
            values = {key: (row | values).get(key) for key in self.study.grid}
        return Point(values, control, pretrain, self._evaluations(label, pretrain, self._keep(pretrain)))

    def _node(self, part: str, label: str, loaded: _Loaded, parent: Node | None = None, at: str | None = None) -> Node:
        stage, file, overrides, config = loaded
        identity = stage.identity(config, None if parent is None else parent.identity, at)
        work, root, name = stage.work(config), config.machine.runs, self.study.name
        node = Node(stage, part, label, identity, root, file, overrides, work, name, parent, at)
        node.places = configs.places(config)
        known = self.nodes.setdefault(node.run.path, node)
        self._check_places(known, node.places, config)
        if known is node and parent is not None:
            parent.children.append(node)
        return known

    def _check_places(self, node: Node, here: dict[str, Any], config: Any) -> None:
        """Refuse another folder than that of the same run in this study, or than the run's own, if it began already."""
        if node.places != here:
            why = f"{node.title} would be one run with {node.places} and with {here}, which are no part of its name"
            raise UserError(f"{self.study.file}: {why}; name your own datasets imagefolder or vocfolder")
        data = getattr(config, "data", None)
        # The environment's folder is that of the machine which computes the run: the run checks it.
        if isinstance(data, DataConfig) and data.root is not None:
            refuse_other_data(node.run.path, data)
