"""What each stage asks of the cluster: one user file, ~/.config/vicregl-bench/cluster.yaml or --cluster-config FILE.

all:        {partition: gpu, account: vision, setup: [module load cuda]}   # of every stage
pretrain:   {nodes: 2, gpus: 4, minutes: 1200, parallel: 8}                # over `all`
evals:      {gpus: 1, minutes: 240}                                        # of every other stage, over `all`
linear:     {memory_gb: 24}                                                # of one stage, over `evals`
max_array_size: 500                                                        # 0: what the cluster allows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from runtime import config as configs
from runtime.config import Config, require
from runtime.errors import UserError
from sweeps import stages
from sweeps.study import PRETRAIN

USER_FILE = Path("~/.config/vicregl-bench/cluster.yaml")
_LIMITS = "max_array_size"


class Resources(Config):
    """Of one run of a stage. What is null is left to the cluster's own default."""

    nodes: int = 1
    gpus: int = 1  # of each node
    tasks: int = 0  # processes on each node; 0: one a GPU, at least one
    cpus: int = 8  # of each process
    memory_gb: float = 32.0  # of each node
    minutes: int = 240  # what is not done by then goes back into the queue, and on where it was
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes, as gpu[03,17]
    parallel: int = 0  # runs at a time; 0: as many as the cluster lets
    setup: list[str] = []  # shell lines before a run, as `module load cuda`
    container: str = ""  # a command that is put before the run's, as `apptainer exec --nv image.sif`
    python: str = ""  # of the runs; empty: the one that submits
    signal_seconds: int = 90  # before the limit, a run is told to save

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or max(1, self.gpus)

    @property
    def processes(self) -> int:
        return self.nodes * self.tasks_per_node

    def check(self) -> None:
        for key in ("nodes", "cpus", "minutes", "signal_seconds"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        for key in ("gpus", "tasks", "parallel"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        require(self.memory_gb > 0, "memory_gb", self.memory_gb, "a number above 0")
        # SLURM may send it a minute early: a job must not be told to save as soon as it begins.
        early = self.signal_seconds <= 60 * self.minutes / 2
        require(early, "signal_seconds", self.signal_seconds, f"half of the limit ({self.minutes} minutes) at most")


@dataclass(frozen=True)
class ClusterConfig:
    """The resources of every stage."""

    stages: dict[str, Resources]
    max_array_size: int = 0
    file: str = ""  # where it was read; empty: built-in defaults


def load_cluster(file: str | Path | None = None) -> ClusterConfig:
    """From `file`, or the user's own where there is one, or the defaults above.

    UserError for a file that is not there, an unknown key or stage, a wrong type or an impossible value.
    """
    path = USER_FILE.expanduser() if file is None else Path(file).expanduser()
    if file is None and not path.is_file():
        return ClusterConfig({name: _resources(name, [], "") for name in stages.STAGES})
    layers = configs.file_layers(path)
    for origin, layer in layers:
        _check_sections(origin, layer)
    found = {name: _resources(name, layers, str(path)) for name in stages.STAGES}
    sizes = [layer[_LIMITS] for _, layer in layers if _LIMITS in layer]
    largest = sizes[-1] if sizes else 0
    valid = isinstance(largest, int) and not isinstance(largest, bool) and largest >= 0
    require(valid, _LIMITS, largest, "0 (what the cluster allows) or a whole number above")
    return ClusterConfig(found, largest, str(path))


def _sections(stage: str) -> list[str]:
    return ["all", PRETRAIN] if stage == PRETRAIN else ["all", "evals", stage]


def _check_sections(origin: str, layer: dict[str, Any]) -> None:
    allowed = ["all", "evals", *stages.STAGES]
    for name in map(str, layer):
        if name != _LIMITS and name not in allowed:
            near = get_close_matches(name, [*allowed, _LIMITS], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{origin}: unknown section {name!r}; {hint}allowed: {', '.join(allowed)}, {_LIMITS}")
        if name != _LIMITS and not isinstance(layer[name], dict):
            raise UserError(f"{origin}: {name} is {layer[name]!r}, expected {{key: value}} lines")


def _resources(stage: str, layers: Sequence[configs.Layer], file: str) -> Resources:
    found: list[configs.Layer] = []
    for section in _sections(stage):
        found += [(f"{origin}: {section}", layer[section]) for origin, layer in layers if section in layer]
    if stage != PRETRAIN:
        found.insert(0, ("defaults", {"tasks": 1}))
    try:
        resources = configs.from_layers(Resources, found)
    except UserError as error:
        raise UserError(str(error).replace("config: ", f"{file}: {stage}: ", 1)) from error
    if resources.processes != 1 and not stages.STAGES[stage].several:
        raise UserError(
            f"{file}: {stage}: {resources.nodes} nodes with {resources.tasks_per_node} tasks each, and this stage "
            "runs in one process: give it nodes: 1 and tasks: 1"
        )
    return resources


def describe(resources: Resources) -> str:
    """In words, for a plan."""
    gpus = f"{resources.gpus} GPUs, " if resources.gpus != 1 else "1 GPU, "
    each = f"{resources.nodes} x ({gpus}{resources.memory_gb:g} GB)"
    where: list[Any] = [resources.partition, resources.qos]
    named = "".join(f", {name}" for name in where if name)
    return f"{each}, {resources.processes} x {resources.cpus} CPUs, {resources.minutes} min{named}"
