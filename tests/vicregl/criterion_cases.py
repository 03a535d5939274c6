"""Inputs and comparisons for the tests of the criterion."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vicregl.criterion import VICRegLCriterion

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
GOLDEN_CASES = json.loads((GOLDEN / "criterion.json").read_text())


def golden_inputs(name: str) -> tuple[list[Tensor], list[Tensor], list[Tensor], np.lib.npyio.NpzFile]:
    stored = np.load(GOLDEN / f"criterion_{name}.npz")
    views = range(len(GOLDEN_CASES[name]["case"]["sides"]))
    embeddings = [torch.tensor(stored[f"embedding_{v}"], requires_grad=True) for v in views]
    maps = [torch.tensor(stored[f"map_{v}"], requires_grad=True) for v in views]
    return embeddings, maps, [torch.tensor(stored[f"location_{v}"]) for v in views], stored


def golden_options(name: str) -> dict:
    """The published code's options of a case, by the criterion's names."""
    case = GOLDEN_CASES[name]["case"]
    matches = tuple(case.get("num_matches", (20, 4)))
    options = {"alpha": GOLDEN_CASES[name]["alpha"], "profile": "reference", "num_matches": matches}
    if not case.get("l2_all_matches", 1):
        options["feature_matches"] = matches
    for ours, theirs in (("invariance", "inv"), ("variance", "var"), ("covariance", "cov")):
        if f"{theirs}_coeff" in case:
            options[f"{ours}_coefficient"] = case[f"{theirs}_coeff"]
    return options


def random_inputs(
    batch: int, width: int, channels: int, positions: list[int], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Views that resemble each other, as two crops of an image do; locations are scattered over 100 pixels."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype)

    shared, scale = normal(batch, width), 0.5 + torch.rand(channels, generator=random, dtype=dtype)
    embeddings = [(shared + 0.5 * normal(batch, width)).requires_grad_() for _ in positions]
    maps = [(scale * normal(batch, p, channels) + 0.3).requires_grad_() for p in positions]
    locations = [100 * torch.rand(batch, p, 2, generator=random, dtype=dtype) for p in positions]
    return embeddings, maps, locations


def losses_and_gradients(criterion, inputs, term: str = "loss") -> tuple[dict[str, Tensor], list[Tensor]]:
    embeddings, maps, locations = inputs
    losses = criterion(embeddings, maps, locations)
    leaves = [*embeddings, *maps]
    grads = torch.autograd.grad(losses[term], leaves, allow_unused=True)
    pairs = zip(grads, leaves, strict=True)
    return {k: v.detach() for k, v in losses.items()}, [torch.zeros_like(x) if g is None else g for g, x in pairs]


def fast(**options):
    return VICRegLCriterion(**options)


def slow(**options):
    from benchmarks import definitions

    return lambda *inputs: definitions.criterion(*inputs, **options)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected number."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def assert_same(actual, expected, tolerance: float) -> None:
    """(losses, gradients) of two criteria are equal within the relative tolerance."""
    for name, value in expected[0].items():
        assert abs(float(actual[0][name]) - float(value)) <= tolerance * max(abs(float(value)), 1e-6), name
    for actual_grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert float((actual_grad - expected_grad).abs().max()) <= tolerance * float(expected_grad.abs().max() + 1e-9)
