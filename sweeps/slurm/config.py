"""The resources of each stage's jobs, from one file: ~/.config/vicregl-bench/cluster.yaml, or --cluster-config FILE.

all:        {partition: gpu, account: vision, setup: [module load cuda]}   # of every stage
pretrain:   {nodes: 2, gpus: 4, minutes: 1200, parallel: 8}                # over `all`
evals:      {gpus: 4, tasks: 4, minutes: 240}                              # of every other stage, over `all`
linear:     {memory_gb: 24}                                                # of one stage, over `evals`
max_array_size: 500                                                        # 0: the cluster's maximum
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, create_model

from runtime import config as configs
from runtime.config import Config, PositiveInt, require
from runtime.errors import UserError
from runtime.yaml_files import file_layers
from sweeps import stages
from sweeps.study import PRETRAIN

USER_FILE = Path("~/.config/vicregl-bench/cluster.yaml")
_SLURM_CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


class Resources(Config):
    """The resources of one run of a stage; null leaves a value to the cluster's own default."""

    nodes: PositiveInt = 1
    gpus: NonNegativeInt = 1  # of each node
    tasks: NonNegativeInt = 0  # processes on each node; 0: one per GPU, at least one
    cpus: PositiveInt = 8  # of each process
    memory_gb: PositiveFloat = 32.0  # of each node
    minutes: PositiveInt = 240  # a run that is not done by then is requeued, and resumes
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes, for example gpu[03,17]
    parallel: NonNegativeInt = 0  # runs at a time; 0: as many as the cluster allows
    setup: list[str] = []  # shell lines before a run, for example `module load cuda`
    container: str = ""  # a command put before the run's, for example `apptainer exec --nv image.sif`
    python: str = ""  # the interpreter of the runs; empty: that of `submit`
    signal_seconds: PositiveInt = 90  # before the limit: then a run is asked to save

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or max(1, self.gpus)

    @property
    def processes(self) -> int:
        return self.nodes * self.tasks_per_node

    def check(self) -> None:
        # SLURM may signal a minute early: a job must not be asked to save as soon as it begins.
        early = self.signal_seconds <= 60 * self.minutes / 2
        require(early, "signal_seconds", self.signal_seconds, f"half of the limit ({self.minutes} minutes) at most")


@dataclass(frozen=True)
class ClusterConfig:
    """The resources of every stage."""

    stages: dict[str, Resources]
    max_array_size: int = 0
    file: str = ""  # its path; empty: built-in defaults


def default_cluster() -> str:
    """Return slurm if this machine has its commands and a config for them, else local."""
    configured = "SLURM_CONF" in os.environ or any(Path(file).is_file() for file in _SLURM_CONFIGS)
    return "slurm" if configured and shutil.which("sbatch") else "local"


def load_cluster(file: str | Path | None = None) -> ClusterConfig:
    """Read `file`, or the user's own file if there is one; else take the defaults above.

    UserError for a file that is missing, an unknown key or stage, a wrong type or an impossible value.
    """
    path = USER_FILE.expanduser() if file is None else Path(file).expanduser()
    layers = [] if file is None and not path.is_file() else file_layers(path)
    sections: dict[str, Any] = dict.fromkeys(["all", "evals", *stages.STAGES], (dict[str, Any], {}))
    schema = create_model("ClusterFile", __base__=Config, max_array_size=(NonNegativeInt, 0), **sections)
    contents: Any = configs.from_layers(schema, layers)
    resources = {name: _resources(name, layers, str(path)) for name in stages.STAGES}
    return ClusterConfig(resources, contents.max_array_size, str(path) if layers else "")


def _resources(stage: str, layers: Sequence[configs.Layer], file: str) -> Resources:
    sections = ["all", PRETRAIN] if stage == PRETRAIN else ["all", "evals", stage]
    chosen: list[configs.Layer] = [] if stage == PRETRAIN else [("defaults", {"tasks": 1})]
    for section in sections:
        if section == stage and not stages.STAGES[stage].several:  # `evals` is of stages that several may share
            chosen.append(("defaults", {"nodes": 1, "tasks": 1}))
        chosen += [(f"{origin}: {section}", layer[section]) for origin, layer in layers if section in layer]
    try:
        resources = configs.from_layers(Resources, chosen)
    except UserError as error:
        raise UserError(str(error).replace("config: ", f"{file}: {stage}: ", 1)) from error
    if resources.processes != 1 and not stages.STAGES[stage].several:
        raise UserError(
            f"{file}: {stage}: {resources.nodes} nodes with {resources.tasks_per_node} tasks each, and this stage "
            "runs in one process: give it nodes: 1 and tasks: 1"
        )
    return resources


def describe(resources: Resources) -> str:
    """Describe them in words, for a plan."""
    gpus = f"{resources.gpus} GPUs, " if resources.gpus != 1 else "1 GPU, "
    each = f"{resources.nodes} x ({gpus}{resources.memory_gb:g} GB)"
    named = "".join(f", {name}" for name in (resources.partition, resources.qos) if name)
    return f"{each}, {resources.processes} x {resources.cpus} CPUs, {resources.minutes} min{named}"
