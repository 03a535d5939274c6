"""The resources of each stage's jobs, from one file: ~/.config/vicregl-bench/cluster.yaml, or --cluster-config FILE.

all:        {partition: gpu, account: vision, setup: [module load cuda]}   # of every stage
pretrain:   {nodes: 2, gpus: 4, minutes: 1200, parallel: 8}                # over `all`
evals:      {gpus: 4, tasks: 4, minutes: 240}                              # of every other stage, over `all`
linear:     {memory_gb: 24}                                                # of one stage, over `evals`
max_array_size: 500                                                        # 0: the cluster's maximum
imports:    [my_package]                                                   # its evaluations may have sections too

`sbatch` and `srun` of a section are any other options of these commands, by their long names:

all:        {gpus: h100:4, memory_gb: null, sbatch: {reservation: spring, mail-user: me@lab.org, exclusive: true}}
pretrain:   {srun: {container-image: /images/torch.sqsh}}
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, create_model

from runtime import config as configs
from runtime.config import Config, PositiveInt, require
from runtime.config_keys import merge
from runtime.errors import UserError
from runtime.imports import Imports
from runtime.yaml_files import file_layers
from sweeps import stages
from sweeps.checkpoints import PRETRAIN

USER_FILE = Path("~/.config/vicregl-bench/cluster.yaml")
_SLURM_CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")

# Options that a key of the cluster file gives, which is checked, shown by `plan` and recorded.
_GIVEN_BY_KEY = {
    **{name: name for name in ("nodes", "partition", "account", "qos", "constraint", "exclude")},
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu"), "tasks"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus"),
    "mem": "memory_gb",
    "time": "minutes",
    "signal": "signal_seconds",
    "array": "parallel",
}
# Options that submit.py gives, or that would keep it from knowing its jobs.
_GIVEN_BY_SUITE = (
    *("job-name", "dependency", "kill-on-invalid-dep", "requeue", "no-requeue", "output", "error", "open-mode"),
    *("unbuffered", "kill-on-bad-exit", "wrap", "parsable", "quiet", "wait", "clusters"),
    *("test-only", "help", "usage", "version"),
)
_MEMORY_OPTIONS = ("mem-per-gpu", "mem-per-cpu")
_GPU_OPTIONS = ("gres", "tres-per-task")  # may ask for GPUs, and for other things
# Variables of sbatch that do not have the name of their option.
_VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE", "switches": "REQ_SWITCH"}


def _check_gpus(value: object) -> object:
    number = type(value) is int and value >= 0
    if not (number or value is None or (isinstance(value, str) and re.fullmatch(r"[\w.-]+:[1-9]\d*", value))):
        raise ValueError
    return value


def _check_option(value: object) -> object:
    one_line = isinstance(value, str) and value.isprintable()
    if not (one_line or value is None or isinstance(value, bool | int | float)):
        raise ValueError("a number, text of one line, true for an option without a value, or null for none")
    return value


GpuRequest = Annotated[
    int | str | None, BeforeValidator(_check_gpus), Field(description='a number, or a type and a number as "h100:4"')
]
Options = dict[str, Annotated[bool | int | float | str | None, BeforeValidator(_check_option)]]


class Resources(Config):
    """The resources of one run of a stage; null leaves a value to the cluster's own default."""

    nodes: PositiveInt = 1
    gpus: GpuRequest = 1  # of each node; "h100:4": of a type
    tasks: NonNegativeInt = 0  # processes on each node; 0: one per GPU, at least one
    cpus: PositiveInt = 8  # of each process
    memory_gb: PositiveFloat | None = 32.0  # of each node
    minutes: PositiveInt = 240  # a run that is not done by then is requeued, and resumes
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes, for example gpu[03,17]
    parallel: NonNegativeInt = 0  # runs at a time; 0: as many as the cluster allows
    setup: list[str] = []  # shell lines before a run, for example `module load cuda`
    container: str = ""  # a command put before the run's, for example `apptainer exec --nv image.sif`
    python: str = ""  # the interpreter on the nodes (or in the container); empty: that of `submit`
    signal_seconds: PositiveInt = 90  # before the limit: then a run is asked to save
    sbatch: Options = {}  # any other options by their long names; true: one without a value; null: not given
    srun: Options = {}  # of the srun that starts the run's processes

    @property
    def gpus_per_node(self) -> int:
        return _gpus_in(self.sbatch) if self.gpus is None else int(str(self.gpus).rpartition(":")[2])

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or max(1, self.gpus_per_node)

    @property
    def interpreter(self) -> str:
        """The Python of the runs."""
        return os.path.expanduser(self.python) or sys.executable

    @property
    def supervisor_interpreter(self) -> str:
        """The Python of the job itself, which is outside of a container."""
        return sys.executable if self.container else self.interpreter

    @property
    def processes(self) -> int:
        return self.nodes * self.tasks_per_node

    def check(self) -> None:
        # SLURM may signal a minute early: a job must not be asked to save as soon as it begins.
        early = self.signal_seconds <= 60 * self.minutes / 2
        require(early, "signal_seconds", self.signal_seconds, f"half of the limit ({self.minutes} minutes) at most")
        for section in ("sbatch", "srun"):
            for name, value in getattr(self, section).items():
                _check_name(name, value, f"{section}.{name}")
        for key, twice in (("gpus", _gpus_in(self.sbatch) > 0), ("memory_gb", _sets_memory(self.sbatch))):
            value = getattr(self, key)
            require(value is None or not twice, key, value, f"null, because an option in `sbatch` says {key} too")


def _check_name(name: str, value: object, key: str) -> None:
    require(re.fullmatch(r"[a-z][a-z0-9-]+", name) is not None, key, value, "the long name of an option, as mail-user")
    # SLURM takes the beginning of a name for the whole.
    given = next((_GIVEN_BY_KEY[option] for option in _GIVEN_BY_KEY if option.startswith(name)), None)
    require(given is None, key, value, f"the key `{given}` of the stage, which says this")
    own = any(option.startswith(name) for option in _GIVEN_BY_SUITE)
    require(not own, key, value, "other options; this one is set by `submit`, or would keep it from knowing its jobs")


def _gpus_in(sbatch: Mapping[str, Any]) -> int:
    """Count the GPUs that --gres asks for on each node: 4 of "gpu:h100:4,nvme:1"."""
    parts = [part.removeprefix("gres/").replace("=", ":").split(":") for part in str(sbatch.get("gres")).split(",")]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in parts if part[0] == "gpu")


def _sets_memory(sbatch: Mapping[str, Any]) -> bool:
    return any(sbatch.get(option) for option in _MEMORY_OPTIONS)


def option_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given; true stands for one without a value."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Write the options as a command takes them: --exclusive, --comment=text."""
    return [f"--{k}" if v is True else f"--{k}={v}" for k, v in option_values(options).items()]


def overriding_variables(resources: Resources) -> list[str]:
    """List this process's variables of sbatch (SBATCH_...) for options that a job with these resources has already.

    sbatch would let them override what is in the job's script.
    """
    gpus, memory = _gpus_in(resources.sbatch) > 0, _sets_memory(resources.sbatch)
    keys = {key for key in _GIVEN_BY_KEY.values() if getattr(resources, key) is not None}
    keys |= {key for key, given in {"gpus": gpus, "memory_gb": memory}.items() if given}
    options = [option for option, key in _GIVEN_BY_KEY.items() if key in keys]
    options += [*(_GPU_OPTIONS if "gpus" in keys else ()), *(_MEMORY_OPTIONS if "memory_gb" in keys else ())]
    given = {_variable(option) for option in (*options, *_GIVEN_BY_SUITE)}
    others = tuple(_variable(option) for option in option_values(resources.sbatch))  # or the beginnings of such
    return [name for name in os.environ if name in given or name.startswith(others)]


def _variable(option: str) -> str:
    return f"SBATCH_{_VARIABLES.get(option, option.upper().replace('-', '_'))}"


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
    configs.from_layers(configs.Importing, layers)  # they may register evaluations, which have a section each
    known = stages.known_stages()
    sections: dict[str, Any] = dict.fromkeys(["all", "evals", *known], (dict[str, Any], {}))
    sections |= {"imports": (Imports, {}), "max_array_size": (NonNegativeInt, 0)}
    schema = create_model("ClusterFile", __base__=Config, **sections)
    contents: Any = configs.from_layers(schema, layers)
    resources = {name: _resources(name, layers, str(path)) for name in known}
    return ClusterConfig(resources, contents.max_array_size, str(path) if layers else "")


def _resources(stage: str, layers: Sequence[configs.Layer], file: str) -> Resources:
    sections = ["all", PRETRAIN] if stage == PRETRAIN else ["all", "evals", stage]
    chosen: list[configs.Layer] = [] if stage == PRETRAIN else [("defaults", {"tasks": 1})]
    several = stages.get_stage(stage, file).several
    for section in sections:
        if section == stage and not several:  # `evals` is of stages that several may share
            chosen.append(("defaults", {"nodes": 1, "tasks": 1}))
        chosen += [(f"{origin}: {section}", layer[section]) for origin, layer in layers if section in layer]
    values: dict[str, Any] = {}
    sbatch = reduce(merge, (layer for _, layer in chosen if isinstance(layer, dict)), values).get("sbatch")
    if isinstance(sbatch, dict):  # the defaults give way to it; what a section says does not
        given = {"gpus": _gpus_in(sbatch) > 0, "memory_gb": _sets_memory(sbatch)}
        chosen.insert(0, ("defaults", {key: None for key, found in given.items() if found}))
    try:
        resources = configs.from_layers(Resources, chosen)
    except UserError as error:
        raise UserError(str(error).replace("config: ", f"{file}: {stage}: ", 1)) from error
    if resources.processes != 1 and not several:
        raise UserError(
            f"{file}: {stage}: {resources.nodes} nodes with {resources.tasks_per_node} tasks each, and this stage "
            "runs in one process: give it nodes: 1 and tasks: 1"
        )
    return resources


def describe(resources: Resources) -> str:
    """Describe them in words, for a plan."""
    kind = f" {resources.gpus.rpartition(':')[0]}" if isinstance(resources.gpus, str) else ""
    gpus = f"{resources.gpus_per_node}{kind} GPU{'s' if resources.gpus_per_node != 1 else ''}"
    memory = "" if resources.memory_gb is None else f", {resources.memory_gb:g} GB"
    named = [name for name in (resources.partition, resources.qos) if name]
    processes = f"{resources.processes} x {resources.cpus} CPUs"
    if resources.gpus_per_node > resources.tasks_per_node:  # each process computes on one
        processes += f" on {resources.tasks_per_node} of the {resources.gpus_per_node} GPUs"
    each = [f"{resources.nodes} x ({gpus}{memory})", processes, f"{resources.minutes} min", *named]
    srun = ["srun", *as_arguments(resources.srun)] if option_values(resources.srun) else []
    return ", ".join([*each, *(" ".join(part) for part in (as_arguments(resources.sbatch), srun) if part)])
