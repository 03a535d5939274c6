"""Precisions, extremes, and the points where slopes are infinite if one is not careful."""

import warnings

import pytest
import torch
from criterion_cases import fast, losses_and_gradients, random_inputs, relative_error, slow

pytestmark = pytest.mark.filterwarnings("ignore:.*matches were asked for")
PROFILES = ("paper", "reference")


def in_dtype(inputs, dtype):
    return tuple([x.detach().to(dtype).requires_grad_(x.requires_grad) for x in views] for views in inputs)


def assert_finite(losses, grads) -> None:
    assert all(torch.isfinite(value) for value in losses.values()), losses
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("batch", "width", "channels"), [(16, 64, 48), (64, 32, 16)], ids=["gram", "moments"])
def test_float32_against_float64(profile, batch, width, channels) -> None:
    inputs = random_inputs(batch, width, channels, [9, 9, 4])
    options = {"profile": profile, "num_matches": (5, 2)}
    expected = losses_and_gradients(slow(**options), inputs)
    losses, grads = losses_and_gradients(fast(**options), in_dtype(inputs, torch.float32))
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(expected[0][name]), rel=1e-4)
    for grad, expected_grad in zip(grads, expected[1], strict=True):
        assert relative_error(grad.double(), expected_grad) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "reference"},
        {"select": "threshold", "feature_threshold": 1.4, "location_threshold": 30.0},
        {"statistics": "maps"},
        {"alpha": 0.0},
        {"alpha": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(("batch", "width", "channels"), [(16, 64, 48), (64, 32, 16)], ids=["gram", "moments"])
def test_a_gpu_against_the_cpu_in_float64(options, batch, width, channels) -> None:
    """In float64 nearly to the last digit; in float32 as near as its own rounding. No host waits for the GPU."""
    inputs = random_inputs(batch, width, channels, [9, 9, 4])
    options = {"num_matches": (5, 2), **options}
    expected = losses_and_gradients(fast(**options), inputs)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        there = tuple([x.detach().to("cuda", dtype).requires_grad_(x.requires_grad) for x in views] for views in inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses, grads = losses_and_gradients(fast(**options), there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name, value in losses.items():
            assert float(value) == pytest.approx(float(expected[0][name]), rel=tolerance), name
        for grad, expected_grad in zip(grads, expected[1], strict=True):
            assert relative_error(grad.double().cpu(), expected_grad) < tolerance


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_float32_far_from_the_origin(offset) -> None:
    """Statistics are of centred numbers: a mean far above the deviation costs what float32 itself loses, no more."""
    embeddings, maps, locations = random_inputs(16, 32, 24, [6, 6])
    moved = [[(x.detach() + offset).float().double().requires_grad_() for x in views] for views in (embeddings, maps)]
    inputs = (*moved, locations)
    expected = losses_and_gradients(slow(local="location"), inputs)
    losses, grads = losses_and_gradients(fast(local="location"), in_dtype(inputs, torch.float32))
    assert float(losses["loss"]) == pytest.approx(float(expected[0]["loss"]), rel=1e-3)
    for grad, expected_grad in zip(grads, expected[1], strict=True):
        assert relative_error(grad.double(), expected_grad) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_autocast(dtype) -> None:
    """Half-precision tensors under autocast give what the same numbers give in float32 outside of it."""
    inputs = in_dtype(random_inputs(8, 16, 12, [9, 9], dtype=torch.float32), dtype)
    with torch.autocast("cpu", dtype):
        losses, grads = losses_and_gradients(fast(), inputs)
    expected_losses, expected_grads = losses_and_gradients(fast(), in_dtype(inputs, torch.float32))
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(torch.equal(value, expected_losses[name]) for name, value in losses.items())
    assert all(grad.dtype == dtype for grad in grads)
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected.to(dtype))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("batch", "width"), [(12, 256), (96, 32)], ids=["gram", "moments"])
def test_no_overflow_at_the_range_of_float16(profile, batch, width) -> None:
    random = torch.Generator().manual_seed(0)

    def extreme(*shape: int) -> torch.Tensor:
        signs = torch.randint(0, 2, shape, generator=random) * 2 - 1
        return (signs * torch.finfo(torch.float16).max).half().requires_grad_()

    locations = [torch.rand(batch, 9, 2, generator=random).half() * 60000 for _ in range(2)]
    inputs = ([extreme(batch, width) for _ in range(2)], [extreme(batch, 9, width) for _ in range(2)], locations)
    losses = fast(profile=profile)(*inputs)
    assert all(torch.isfinite(value) for value in losses.values()), losses
    single = in_dtype(inputs, torch.float32)
    assert_finite(*losses_and_gradients(fast(profile=profile), single))


def first_sample_everywhere(x: torch.Tensor) -> torch.Tensor:
    return x.detach()[:1].repeat(len(x), *[1] * (x.dim() - 1)).requires_grad_()


def degenerate_inputs(kind: str) -> tuple:
    embeddings, maps, locations = random_inputs(4, 6, 5, [9, 9], dtype=torch.float32)
    if kind == "zero variance":
        embeddings, maps = (
            [x.detach()[:1].expand_as(x).clone().requires_grad_() for x in v] for v in (embeddings, maps)
        )
    elif kind == "equal features":
        maps = [torch.ones_like(m).requires_grad_() for m in maps]
        locations = [torch.zeros_like(grid) for grid in locations]
    elif kind == "equal views":
        embeddings, maps = [embeddings[0]] * 2, [maps[0]] * 2
    elif kind == "all zero":
        embeddings, maps = ([torch.zeros_like(x).requires_grad_() for x in v] for v in (embeddings, maps))
    elif kind == "batch 2":
        embeddings, maps, locations = in_dtype(
            [[x[:2] for x in v] for v in (embeddings, maps, locations)], torch.float32
        )
        embeddings, maps = ([x.requires_grad_() for x in v] for v in (embeddings, maps))
    return embeddings, maps, locations


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("select", ["top", "threshold"])
@pytest.mark.parametrize("kind", ["zero variance", "equal features", "equal views", "all zero", "batch 2"])
def test_degenerate_inputs_have_finite_gradients(kind, profile, select) -> None:
    losses, grads = losses_and_gradients(fast(profile=profile, select=select), degenerate_inputs(kind))
    assert_finite(losses, grads)


def test_no_pair_within_the_threshold() -> None:
    options = {"select": "threshold", "location_threshold": 1e-6, "feature_threshold": 1e-6}
    losses, grads = losses_and_gradients(fast(**options), random_inputs(4, 6, 5, [9, 9]))
    assert float(losses["local_invariance"]) == 0
    assert_finite(losses, grads)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("statistics", ["matches", "maps"])
@pytest.mark.parametrize(("batch", "width"), [(2, 3), (4, 2)], ids=["gram", "moments"])
def test_gradcheck(profile, statistics, batch, width) -> None:
    embeddings, maps, locations = random_inputs(batch, width, width, [3, 3, 2])
    criterion = fast(profile=profile, statistics=statistics, num_matches=(2, 1))

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return criterion(leaves[:3], leaves[3:], locations)["loss"]

    assert torch.autograd.gradcheck(loss, (*embeddings, *maps))


def test_the_loss_scales_and_can_be_taken_back_twice() -> None:
    embeddings, maps, locations = random_inputs(4, 6, 5, [9, 9])
    loss = fast()(embeddings, maps, locations)["loss"]
    once = torch.autograd.grad(loss, maps, retain_graph=True)
    twice = torch.autograd.grad(loss, maps, retain_graph=True)
    scaled = torch.autograd.grad(loss * 1024, maps)
    for first, second, third in zip(once, twice, scaled, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first * 1024, third)


def test_gradients_reach_what_is_before_and_add_up() -> None:
    """Through a shared parameter, accumulated over two steps."""
    embeddings, maps, locations = random_inputs(4, 6, 5, [9, 9])
    weight = torch.eye(5, dtype=torch.float64).requires_grad_()
    slow_loss = slow()(embeddings, [m @ weight for m in maps], locations)["loss"]
    expected = torch.autograd.grad(slow_loss, weight)[0]
    for _ in range(2):
        fast()(embeddings, [m @ weight for m in maps], locations)["loss"].backward()
    torch.testing.assert_close(weight.grad, 2 * expected)


def test_without_gradients() -> None:
    embeddings, maps, locations = random_inputs(4, 6, 5, [9, 9])
    expected = fast()(embeddings, maps, locations)["loss"].detach()
    with torch.no_grad():
        loss = fast()(embeddings, maps, locations)["loss"]
    assert not loss.requires_grad
    assert torch.equal(loss, expected)
    frozen = [m.detach() for m in maps]
    loss = fast()(embeddings, frozen, locations)["loss"]
    loss.backward()
    assert all(z.grad is not None for z in embeddings)
    assert all(m.grad is None for m in frozen)


def test_nothing_is_said_in_the_usual_case() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings, maps, locations = random_inputs(4, 6, 5, [49, 49, 9])
        fast()(embeddings, maps, locations)["loss"].backward()
