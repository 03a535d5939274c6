"""The processes of a run, and this one's rank among them, from the environment of torchrun, submitit or srun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of this run, and the place of this one among them."""

    rank: int = 0
    local_rank: int = 0  # among those on this machine
    size: int = 1
    address: str = ""  # host:port where they meet
    hosted: bool = False  # the launcher listens at `address`; otherwise process 0 does

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of `count` things: in order of rank, of sizes that differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


ALONE = World()


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """Read the variables of torchrun (or submitit's TorchDistributedEnvironment) or, in a step of several tasks, of
    srun; one process where there are none. UserError where they contradict each other or some are missing."""
    variables = os.environ if environment is None else environment
    if "WORLD_SIZE" in variables or "RANK" in variables:
        return _from_torchrun(variables)
    # A batch script has SLURM_NTASKS too, and is one process: only a step (srun) has a number.
    if "SLURM_STEP_ID" in variables:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
        if (size := _number(variables, tasks, "1")) > 1:
            return _from_slurm(variables, size)
    return World()


def _from_torchrun(variables: Mapping[str, str]) -> World:
    if variables.get("WORLD_SIZE") == "1":
        return World()
    required = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in required if name not in variables]
    if missing:
        raise UserError(
            f"the environment has some of torchrun's variables ({', '.join(required)}) and not {', '.join(missing)}; "
            "start with torchrun or srun, or unset them for one process"
        )
    rank, size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    if not 0 <= rank < size:
        raise UserError(f"the environment says RANK={rank} of WORLD_SIZE={size}; expected 0 to {size - 1}")
    return World(
        rank,
        _number(variables, "LOCAL_RANK", str(rank)),
        size,
        f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}",
        hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(variables: Mapping[str, str], size: int) -> World:
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", "127.0.0.1")
    job, step = _number(variables, "SLURM_JOB_ID"), _number(variables, "SLURM_STEP_ID")
    host = variables.get("MASTER_ADDR") or first_host(nodes)
    # Below the ports that the kernel gives to outgoing connections; steps of one job may share a machine.
    port = variables.get("MASTER_PORT") or str(10000 + (job * 16 + step) % 20000)
    return World(
        _number(variables, "SLURM_PROCID"),
        _number(variables, "SLURM_LOCALID"),
        size,
        f"{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: "rack[1-2]node[3-4],cpu1" -> "rack1node3"."""
    # Here, for it is slow to import. Its public `hostnames` reads the job's list alone: a step may have fewer nodes.
    from submitit.slurm.slurm import SlurmParseException, _parse_node_list

    try:
        return str(_parse_node_list(nodes)[0])
    except (SlurmParseException, IndexError) as error:
        names = "SLURM_STEP_NODELIST (or SLURM_JOB_NODELIST)"
        raise UserError(f"the environment says {names} = {nodes!r}; expected hosts, as n[1-2],n7") from error


def _number(variables: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = variables[name] if default is None else variables.get(name, default)
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"the environment says {name}={text!r}; expected a whole number") from error
