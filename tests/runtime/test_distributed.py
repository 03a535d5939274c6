"""Who the processes are, and that they meet, agree and end together: real processes with gloo."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from runtime import distributed
from runtime.distributed import broadcast, largest
from runtime.errors import UserError
from runtime.world import World, first_host, world_from_environment

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "5",
}
STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_alone_without_a_launcher() -> None:
    assert world_from_environment({}) == World(rank=0, local_rank=0, size=1)
    assert world_from_environment({}).is_main


def test_torchrun() -> None:
    world = world_from_environment(TORCHRUN)
    assert (world.rank, world.local_rank, world.size) == (3, 1, 4)
    assert world.address == "a:5"
    assert not world.is_main
    assert not world.hosted
    assert world_from_environment(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).hosted
    assert world_from_environment(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) == World()


def test_torchrun_is_asked_before_slurm() -> None:
    assert world_from_environment(TORCHRUN | STEP).rank == 3


def test_a_slurm_step() -> None:
    world = world_from_environment(STEP)
    assert (world.rank, world.local_rank, world.size) == (2, 0, 4)
    host, port = world.address.split(":")
    assert host == "n1"
    assert 1024 <= int(port) < 32768
    # Every process of the step finds the same place, and another job another one.
    assert world_from_environment(STEP | {"SLURM_PROCID": "0"}).address == world.address
    assert world_from_environment(STEP | {"SLURM_JOB_ID": "1235"}).address != world.address


def test_a_slurm_batch_script_and_a_step_of_one_task_are_one_process() -> None:
    batch = {key: value for key, value in STEP.items() if not key.startswith("SLURM_STEP")}
    assert world_from_environment(batch | {"SLURM_PROCID": "0"}) == World()
    assert world_from_environment(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == World()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WORLD_SIZE": "2"}, ["RANK", "MASTER_ADDR", "torchrun"]),
        (TORCHRUN | {"RANK": "4"}, ["RANK=4", "0 to 3"]),
        (TORCHRUN | {"RANK": "x"}, ["RANK='x'"]),
    ],
)
def test_half_an_environment_is_refused(environment, expected) -> None:
    with pytest.raises(UserError) as refused:
        world_from_environment(environment)
    assert all(part in str(refused.value) for part in expected)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("a-[3,5]-ib,b2", "a-3-ib"),
        ("rack1-gpu[001,003-004]", "rack1-gpu001"),
        ("rack[1-2]node[3-4]", "rack1node3"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host) -> None:
    assert first_host(nodes) == host
    if shutil.which("scontrol"):  # SLURM's own answer
        asked = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
        assert asked.returncode or asked.stdout.split()[0] == host


@pytest.fixture
def pretended():
    """A group of three processes of which there is this one."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    yield
    dist.destroy_process_group()


def test_on_gpus_messages_between_processes_do_not_wait_for_the_gpu(pretended, monkeypatch) -> None:
    """They go over the CPU, by a backend of the group's for it; tensors on GPUs go by NCCL."""
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    assert largest(7) == 7
    assert broadcast("word") == "word"
    chosen: list[str] = []

    class Chosen(Exception):  # noqa: N818
        pass

    def choose(backend: str, **_: object) -> None:
        chosen.append(backend)
        raise Chosen

    monkeypatch.setattr(dist, "init_process_group", choose)
    for name in ("_connect", "exit_without_cleanup"):
        monkeypatch.setattr(distributed, name, lambda *_, **__: None)
    for device in ("cuda", "cpu"):
        with pytest.raises(Chosen), distributed.join(World(size=3), torch.device(device)):
            pass
    assert chosen == ["cpu:gloo,cuda:nccl", "gloo"]


@pytest.mark.slow
def test_they_agree(ranks) -> None:
    for rank, (code, said, errors) in enumerate(ranks.ended(ranks(3, WORKER, "agree"))):
        assert code == 0, errors
        assert said.strip() == f"{rank}/3 [0, 1, 14, {{'rank': 0}}]"


def nobody_listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


@pytest.mark.slow
def test_a_slurm_step_meets_by_its_job_number() -> None:
    jobs = (
        STEP | {"SLURM_JOB_ID": str(number), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
        for number in itertools.count(os.getpid())
    )
    step = next(step for step in jobs if nobody_listens(world_from_environment(step).address))
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | step
    command = [sys.executable, str(WORKER), "agree"]
    started = [
        subprocess.Popen(command, env=settings | {"SLURM_PROCID": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        assert "[0, 1, 7, {'rank': 0}]" in process.communicate()[0]


@pytest.mark.parametrize(
    ("case", "codes", "expected"),
    [
        ("user error", (1, 2), "process 1 of 2 on {host} failed: this image is cut off"),
        ("bug", (1, 1), "process 1 of 2 on {host} failed: ValueError: a bug"),
        ("killed", (1, -9), "another process ended without a word"),
        ("hang", (1, 1), "process 1 of 2 on {host} failed: ValueError: a bug"),
    ],
)
def test_a_process_that_fails_ends_the_other(ranks, case, codes, expected) -> None:
    first, second = ranks.ended(ranks(2, WORKER, case))
    assert (first[0], second[0]) == codes, first[2] + second[2]
    assert first[2].count("\n") == 1, first[2]
    assert first[2].startswith("error: " + expected.format(host=socket.gethostname()))
    assert ("lost: process 1" in first[1]) == (case == "hang")
