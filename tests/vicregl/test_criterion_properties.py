"""What must hold whatever the numbers are."""

from unittest.mock import patch

import pytest
import torch
from criterion_cases import fast, losses_and_gradients, random_inputs, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import definitions
from vicregl.matching import keep_nearest, nearest
from vicregl.terms import CHUNK_NUMBERS

pytestmark = pytest.mark.filterwarnings("ignore:.*matches were asked for")

sizes = st.fixed_dictionaries(
    {"batch": st.integers(2, 6), "width": st.integers(1, 5), "channels": st.integers(1, 6), "seed": st.integers(0, 999)}
)
options = st.fixed_dictionaries(
    {
        "profile": st.sampled_from(["paper", "reference"]),
        "select": st.sampled_from(["top", "threshold"]),
        "statistics": st.sampled_from(["matches", "maps"]),
        "num_matches": st.integers(1, 6).map(lambda m: (m, m)),
    }
)


@settings(max_examples=20, deadline=None)
@given(sizes, options, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(sizes, options, random) -> None:
    inputs = random_inputs(positions=[5, 6, 3], **sizes)
    order = list(range(sizes["batch"]))
    random.shuffle(order)
    shuffled = [[x.detach()[order].requires_grad_(x.requires_grad) for x in views] for views in inputs]
    losses, grads = losses_and_gradients(fast(**options), inputs)
    shuffled_losses, shuffled_grads = losses_and_gradients(fast(**options), shuffled)
    for name, value in losses.items():
        assert float(shuffled_losses[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-9)
    for grad, shuffled_grad in zip(grads, shuffled_grads, strict=True):
        torch.testing.assert_close(shuffled_grad, grad[order], rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(sizes, options, st.permutations([2, 3, 4]), st.booleans())
def test_the_order_of_views_of_a_kind_does_not_matter(sizes, options, small, swap) -> None:
    """The two large ones may change places, and so may the small ones."""
    inputs = random_inputs(positions=[5, 5, 3, 4, 2], **sizes)
    order = [1, 0, *small] if swap else [0, 1, *small]
    losses, grads = losses_and_gradients(fast(**options), inputs)
    moved = tuple([views[v] for v in order] for views in inputs)
    moved_losses, moved_grads = losses_and_gradients(fast(**options), moved)
    for name, value in losses.items():
        assert float(moved_losses[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-9)
    for k, v in enumerate(order):
        for offset in (0, len(order)):
            torch.testing.assert_close(moved_grads[offset + k], grads[offset + v], rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(sizes, options)
def test_equal_views_have_no_invariance(sizes, options) -> None:
    embeddings, maps, locations = random_inputs(positions=[6], **sizes)
    losses = fast(**options)(embeddings * 2, maps * 2, locations * 2)
    assert float(losses["local_invariance"]) == 0
    assert float(losses["global_invariance"]) == 0


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([2, 3, 8]),
    st.integers(0, 999),
    st.integers(1, 9),
    st.integers(1, 300),
)
def test_matches_of_brute_force_with_ties(batch, p, q, channels, seed, count, chunk) -> None:
    """Coordinates of 0, 1 and 2 are full of ties: of equal ones the first counts, in searching and in ranking."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (batch, p, channels), generator=random).float()
    y = torch.randint(0, 3, (batch, q, channels), generator=random).float()
    count = min(count, p, q)
    with patch.dict(CHUNK_NUMBERS, cpu=chunk):  # one sample to all of them at a time
        actual = nearest([x], [y])
    for (source, target), near in zip([(x, y), (y, x)], actual, strict=True):
        kept = keep_nearest(near, count)[0]
        for sample in range(batch):
            distance, index = definitions.nearest(source[sample], target[sample])
            assert near.index[0, sample].tolist() == index.tolist()
            assert kept[sample].tolist() == definitions.kept_positions(distance, count).tolist()


def test_grids_of_two_crops_are_full_of_ties() -> None:
    """A small crop's cells inside a large one's: what the first-of-equals rule is for."""
    coarse = torch.cartesian_prod(torch.arange(3) * 2.0, torch.arange(3) * 2.0)[None]
    fine = torch.cartesian_prod(torch.arange(5) * 1.0, torch.arange(5) * 1.0)[None]
    near = nearest([fine], [coarse])[0]
    distance, index = definitions.nearest(fine[0], coarse[0])
    assert near.index[0, 0].tolist() == index.tolist()
    for count in range(1, 26):
        assert keep_nearest(near, count)[0, 0].tolist() == definitions.kept_positions(distance, count).tolist()


def test_a_pair_swapped_has_the_same_local_loss_with_unequal_maps() -> None:
    """Views (a, b) and (b, a) with different numbers of positions."""
    embeddings, maps, locations = random_inputs(5, 3, 4, [6, 4])
    one = losses_and_gradients(fast(num_matches=(3, 3)), (embeddings, maps, locations))
    other = losses_and_gradients(fast(num_matches=(3, 3)), (embeddings[::-1], maps[::-1], locations[::-1]))
    assert float(one[0]["loss"]) == pytest.approx(float(other[0]["loss"]), rel=1e-12)
    assert relative_error(one[1][2], other[1][3]) < 1e-12
