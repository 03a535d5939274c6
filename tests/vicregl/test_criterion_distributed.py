"""k processes with N / k samples each against one process with all N: real processes, gloo, DDP, float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_worker import CASES, EMBEDDING, GATHERED, POSITIONS, SAMPLES, step
from torch.testing._internal.distributed.fake_pg import FakeStore

from vicregl.batch import ProcessBatch
from vicregl.terms import Slots, uses_gram

HERE = Path(__file__).parent
DOUBLE = 8  # bytes
# The size check (two integers), the invariances, the squared Gram matrices and the numbers of pairs within thresholds.
SCALARS = 200


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def processes(request, tmp_path_factory) -> list[dict]:
    """The results of each of k processes."""
    folder = tmp_path_factory.mktemp("processes")
    paths = [str(HERE.parents[1]), str(HERE)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    commands = [
        [sys.executable, str(HERE / "distributed_worker.py"), str(rank), str(request.param), str(folder)]
        for rank in range(request.param)
    ]
    workers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * request.param, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return {name: step(channels, options) for name, (channels, options) in (CASES | GATHERED).items()}


@pytest.mark.parametrize("case", CASES | GATHERED)
def test_same_loss_and_parameter_gradients(processes, alone, case) -> None:
    for result in processes:
        for name, value in alone[case]["losses"].items():
            torch.testing.assert_close(result["steps"][case]["losses"][name], value, rtol=1e-10, atol=1e-12)
        for name, grad in alone[case]["gradients"].items():
            torch.testing.assert_close(result["steps"][case]["gradients"][name], grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_no_product_is_computed_twice(processes, alone, case) -> None:
    for result in processes:
        assert result["steps"][case]["multiply_adds"] * len(processes) == alone[case]["multiply_adds"]


def slots(case: str) -> list[int]:
    """Match slots of each of the views 9, 9 and 4 with num_matches (4, 2)."""
    if case.startswith("maps"):
        return POSITIONS
    if case.startswith("threshold"):  # the whole map, and the target of both kinds of every other view it meets
        return [9 + 2 * (9 + 4), 9 + 2 * (9 + 4), 4 + 2 * (9 + 9)]
    if case.startswith("reference"):  # feature: all; location 0 -> 1 with 4 and with 2, 0 -> 2 with 4, 2 -> 0 with 2
        return [9 + 9 + 4 + 2 * (4 + 2) + 4 + 2] * 2 + [4 + 9 + 9 + 2 * (2 + 4)]
    return [2 * (4 + 4 + 4 + 2)] * 2 + [2 * 2 * (2 + 4)]


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_readme(processes, case) -> None:
    channels, options = CASES[case]
    expected = 0
    if options.get("alpha", 0.75) > 0:  # D = 20 is more than the samples
        expected += len(POSITIONS) * SAMPLES * (DOUBLE * EMBEDDING + 4)
    if options.get("alpha", 0.75) < 1:
        for s, p in zip(slots(case), POSITIONS, strict=True):
            gather = SAMPLES * (DOUBLE * p * channels + 4 * s)
            reduce = DOUBLE * s * (channels + channels**2)
            expected += gather if channels >= SAMPLES else reduce
    for result in processes:
        assert 0 <= result["steps"][case]["bytes"] - expected < SCALARS


def test_the_maps_are_gathered_where_sums_of_covariances_would_be_larger(processes) -> None:
    channels, _ = GATHERED["gathered"]
    by_view = list(zip(slots("paper"), POSITIONS, strict=True))
    summed = sum(DOUBLE * s * (channels + channels**2) for s, _ in by_view)
    gathered = sum(SAMPLES * (DOUBLE * p * channels + 4 * s) for s, p in by_view)
    embeddings = len(POSITIONS) * SAMPLES * (DOUBLE * EMBEDDING + 4)
    for result in processes:
        assert 0 <= result["steps"]["gathered"]["bytes"] - embeddings - gathered < SCALARS < summed - gathered


@pytest.mark.parametrize(
    ("samples", "positions", "slots", "gram"),
    [
        (512, [49] * 2, 160, True),  # not more samples than the 512 channels
        (576, [49] * 2 + [9] * 6, 1312, True),  # 8 x 72, the recipe of ConvNeXt-B: 0.18 GB in place of 1.4
        (1024, [49] * 2 + [9] * 6, 1312, True),
        (4096, [49] * 2 + [9] * 6, 1312, False),
        (600, [49] * 2, 160, True),
        (1024, [49] * 2, 160, False),
        (1024, [1] * 2, 2, False),
    ],
)
def test_which_matrices_several_processes_make(samples, positions, slots, gram) -> None:
    """512 channels in float32. One process makes the smaller ones."""
    maps = [torch.empty(1, p, 512, device="meta") for p in positions]
    of_views = Slots([0] * slots, torch.empty(slots, 1, device="meta"), torch.empty(slots, 1, device="meta"))
    assert uses_gram(maps, of_views, ProcessBatch(samples // 8, 8)) == gram
    assert uses_gram(maps, of_views, ProcessBatch(samples)) == (samples <= 512)


def test_an_uneven_batch_is_refused_by_every_process(processes) -> None:
    for rank, result in enumerate(processes):
        assert f"got {3 if rank == 0 else 4} samples in this process" in result["uneven"]
        assert "3 to 4" in result["uneven"]
        assert "drop_last" in result["uneven"]


def test_the_sizes_are_compared_without_waiting_for_the_device() -> None:
    """Over the CPU; a tensor on the device, here one without numbers, could not be read."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    try:
        assert ProcessBatch.from_group(8, torch.device("meta")) == ProcessBatch(8, 3, 1)
    finally:
        dist.destroy_process_group()
