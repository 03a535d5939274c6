"""What the criterion computes, counted: nothing twice, nothing that is not used, the smaller matrix."""

import pytest
import torch
from criterion_cases import fast, random_inputs
from products import LargestResult, multiply_adds

from benchmarks import definitions
from vicregl.matching import nearest
from vicregl.terms import CHUNK_NUMBERS

pytestmark = pytest.mark.filterwarnings("ignore:.*matches were asked for")


def work(criterion, inputs, backward: bool = True) -> int:
    def step() -> None:
        loss = criterion(*inputs)["loss"]
        if backward:
            loss.backward()

    return multiply_adds(step)


def local_work(batch: int, channels: int, positions: list[int], slots: int, pairs: list[tuple[int, int]]) -> int:
    """Distances of each pair of maps once; for every slot the smaller matrix and its product with X."""
    distances = sum(batch * positions[i] * positions[j] * channels for i, j in pairs)
    return distances + slots * 2 * batch * channels * min(batch, channels)


@pytest.mark.parametrize(("batch", "channels"), [(5, 8), (8, 5), (6, 6)])
def test_two_views_of_the_reference_profile(batch, channels) -> None:
    """Feature: the whole map once, as the target of the other, for both views. Location: m = 4 and 2, both sides."""
    inputs = random_inputs(batch, 3, channels, [9, 9])
    slots = 2 * (9 + 9) + 2 * 2 * (4 + 2)
    actual = work(fast(alpha=0, profile="reference", num_matches=(4, 2)), inputs)
    assert actual == local_work(batch, channels, [9, 9], slots, [(0, 1)])


def test_two_views_of_the_paper_profile() -> None:
    """By the size of the view both ordered pairs hold the same four matchings, so half of them is computed."""
    inputs = random_inputs(5, 3, 8, [9, 9])
    actual = work(fast(alpha=0, num_matches=(4, 2)), inputs)
    assert actual == local_work(5, 8, [9, 9], 4 * 2 * 4, [(0, 1)])


def test_multi_crop() -> None:
    positions = [9, 9, 4, 4, 4]
    inputs = random_inputs(5, 3, 8, positions)
    large_small = [(i, j) for i in (0, 1) for j in (2, 3, 4)]
    actual = work(fast(alpha=0, local="feature", feature_matches=(0, 0)), inputs)
    targets = 2 * 9 + sum(positions[i] + positions[j] for i, j in large_small)
    assert actual == local_work(5, 8, positions, sum(positions) + targets, [(0, 1), *large_small])


def test_statistics_of_whole_maps() -> None:
    actual = work(fast(alpha=0, statistics="maps", num_matches=(4, 2)), random_inputs(5, 3, 8, [9, 9]))
    assert actual == local_work(5, 8, [9, 9], 18, [(0, 1)])


def test_global_criterion() -> None:
    inputs = random_inputs(5, 64, 8, [9, 9])
    assert work(fast(alpha=1), inputs) == 2 * 2 * 5 * 5 * 64
    inputs = random_inputs(64, 5, 8, [9, 9])
    assert work(fast(alpha=1), inputs) == 2 * 2 * 64 * 5 * 5


def test_no_gradient_no_work_for_it() -> None:
    embeddings, maps, locations = random_inputs(5, 64, 8, [9, 9])
    frozen = ([z.detach() for z in embeddings], [m.detach() for m in maps], locations)
    assert work(fast(alpha=1), frozen, backward=False) == 2 * 5 * 5 * 64


def test_far_below_the_definitions() -> None:
    """Case A of the benchmark at an eighth of its sizes."""
    inputs = random_inputs(16, 1024, 64, [49, 49], dtype=torch.float32)
    options = {"profile": "reference", "alpha": 0.5}
    by_definition = multiply_adds(lambda: definitions.criterion(*inputs, **options)["loss"].backward())
    assert work(fast(**options), inputs) < by_definition / 15


@pytest.mark.parametrize(("chunk", "most"), [(200, 2 * 81), (1, 81), (1 << 19, 16 * 81)])
def test_distances_are_never_all_there_at_once(monkeypatch, chunk, most) -> None:
    """Of 16 samples with 9 positions each, as many at a time as a chunk holds, one at least."""
    monkeypatch.setitem(CHUNK_NUMBERS, "cpu", chunk)
    maps = torch.randn(2, 16, 9, 1)
    with LargestResult() as largest:
        nearest([maps[0]], [maps[1]])
    assert largest.numbers == max(most, 16 * 9)  # the result is 16 x 9


def test_the_count_itself() -> None:
    x, y = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    out = torch.zeros(2, 3, 5)
    work = [lambda: torch.bmm(x, y), lambda: torch.baddbmm(out, x, y, out=out), lambda: out.baddbmm_(x, y)]
    assert [multiply_adds(w) for w in work] == [2 * 3 * 4 * 5] * 3
