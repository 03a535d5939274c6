"""Who the processes of a run are: torchrun, submitit or srun tells by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The processes of this run, and which of them this one is."""

    rank: int = 0
    local_rank: int = 0  # among those on this machine
    size: int = 1
    node: int = 0  # number of this machine
    address: str = ""  # host:port where they meet
    hosted: bool = False  # by the launcher; else by process 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """What torchrun (or submitit's TorchDistributedEnvironment) or, in a step of several tasks, srun says; else one
    process. UserError where the variables contradict each other or some are missing."""
    variables = os.environ if environment is None else environment
    if "WORLD_SIZE" in variables or "RANK" in variables:
        return _from_torchrun(variables)
    # A batch script has SLURM_NTASKS too, and is one process: only a step (srun) has a number.
    tasks = variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in variables and _number("SLURM_NTASKS", tasks) > 1:
        return _from_slurm(variables, int(tasks))
    return World()


def _from_torchrun(variables: Mapping[str, str]) -> World:
    if variables.get("WORLD_SIZE") == "1":
        return World()
    missing = [name for name in _TORCHRUN if name not in variables]
    if missing:
        raise UserError(
            f"the environment has some of torchrun's variables ({', '.join(_TORCHRUN)}) and not {', '.join(missing)}; "
            "start by torchrun or srun, or unset them for one process"
        )
    rank, size = _number("RANK", variables["RANK"]), _number("WORLD_SIZE", variables["WORLD_SIZE"])
    if not 0 <= rank < size:
        raise UserError(f"the environment says RANK={rank} of WORLD_SIZE={size}; expected 0 to {size - 1}")
    return World(
        rank,
        _number("LOCAL_RANK", variables.get("LOCAL_RANK", str(rank))),
        size,
        _number("GROUP_RANK", variables.get("GROUP_RANK", variables.get("SLURM_NODEID", "0"))),
        f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}",
        hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(variables: Mapping[str, str], size: int) -> World:
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", "127.0.0.1")
    job, step = _number("SLURM_JOB_ID", variables["SLURM_JOB_ID"]), _number("SLURM_STEP_ID", variables["SLURM_STEP_ID"])
    host = variables.get("MASTER_ADDR") or first_host(nodes)
    # Below the ports that the kernel gives to outgoing connections; steps of one job may share a machine.
    port = variables.get("MASTER_PORT") or str(10000 + (job * 16 + step) % 20000)
    return World(
        _number("SLURM_PROCID", variables["SLURM_PROCID"]),
        _number("SLURM_LOCALID", variables["SLURM_LOCALID"]),
        size,
        _number("SLURM_NODEID", variables.get("SLURM_NODEID", "0")),
        f"{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "rack[1-2]node[3-4],cpu1" -> "rack1node3"; UserError for no such list."""
    from submitit.slurm.slurm import SlurmParseException, _parse_node_list  # here, for it is slow to import

    try:
        return str(_parse_node_list(nodes)[0])
    except (SlurmParseException, IndexError) as error:
        raise UserError(f"the environment says SLURM_STEP_NODELIST={nodes!r}; expected hosts, as n[1-2],n7") from error


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"the environment says {name}={text!r}; expected a whole number") from error
