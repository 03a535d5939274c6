"""Which device a stage computes on: what `auto` takes and refuses, and torch's current device."""

import pytest
import torch

from pretrain.bench import main as bench
from runtime import device
from runtime.config import Config, MachineConfig
from runtime.device import choose_device, driver_version, sign_of_gpu
from runtime.errors import UserError
from runtime.rundir import Identity
from runtime.stage import run_stage
from runtime.world import World

SIGNS = ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")


class StageConfig(Config):
    machine: MachineConfig = MachineConfig()


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path) -> None:
    """A machine without a sign of a GPU."""
    for name in SIGNS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("GPU_FILE", "DRIVER_FILE"):
        monkeypatch.setattr(device, name, tmp_path / name)


@pytest.mark.parametrize(
    ("environment", "sign"),
    [
        ({}, None),
        ({"SLURM_JOB_GPUS": "0,1"}, "SLURM_JOB_GPUS=0,1"),
        ({"SLURM_GPUS_ON_NODE": "2"}, "SLURM_GPUS_ON_NODE=2"),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "CUDA_VISIBLE_DEVICES=3"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1b2c"}, "CUDA_VISIBLE_DEVICES=MIG-1b2c"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_GPUS": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
    ],
)
def test_auto_refuses_where_a_gpu_would_be_left_unused(monkeypatch, environment, sign) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sign_of_gpu() == sign
    assert choose_device(MachineConfig(device="cpu")).type == "cpu"
    if sign is None:
        assert choose_device(MachineConfig()).type == "cpu"
        return
    with pytest.raises(UserError, match=rf"there is a GPU here \({sign}\).*machine\.device=cpu"):
        choose_device(MachineConfig())


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12\n", "580.65.06"),
        (None, "not readable"),
    ],
)
def test_the_error_names_both_versions(monkeypatch, text, driver) -> None:
    device.GPU_FILE.touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if text is not None:
        device.DRIVER_FILE.write_text(text)
        assert driver_version() == driver
    with pytest.raises(UserError, match=f"GPU_FILE.*built for CUDA 13.0, and NVIDIA's driver is {driver}"):
        choose_device(MachineConfig())


def test_it_is_said_before_a_run_is_made(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    config = StageConfig(machine=MachineConfig(runs=str(tmp_path / "runs")))
    with pytest.raises(UserError, match="SLURM_JOB_GPUS=0"):
        run_stage(config, Identity("pretrain", "run", 1, {}), lambda *_: {}, World())
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="SLURM_JOB_GPUS=0"):
        bench(["pretrain/configs/quickstart.yaml"])


@pytest.mark.parametrize(
    ("asked", "world", "current"),
    [("cuda:1", World(), 1), ("cuda", World(rank=1, local_rank=1, size=2), 1), ("cuda", World(), None)],
)
def test_the_chosen_gpu_is_the_current_one(monkeypatch, asked, world, current) -> None:
    """Whatever asks torch for the current device, as a seed or a stream, would use GPU 0."""
    chosen: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda given: chosen.append(torch.device(given).index))
    choose_device(MachineConfig(device=asked), world)
    assert chosen == ([] if current is None else [current])
