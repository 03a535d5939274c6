"""The reference profile against values computed by the published code (tests/golden/README.md)."""

import pytest
import torch
from criterion_cases import (
    GOLDEN_CASES,
    fast,
    golden_inputs,
    golden_options,
    losses_and_gradients,
    relative_error,
    slow,
)

TERMS = ("invariance", "variance", "covariance")
TOLERANCE = 1e-9


def test_there_are_five_cases() -> None:
    assert len(GOLDEN_CASES) == 5


@pytest.mark.parametrize("make", [fast, slow])
@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.filterwarnings("ignore:.*matches were asked for")
def test_values_and_gradients(name, make) -> None:
    embeddings, maps, locations, stored = golden_inputs(name)
    losses, grads = losses_and_gradients(make(**golden_options(name)), (embeddings, maps, locations))
    expected = GOLDEN_CASES[name]
    assert abs(losses["loss"] / expected["total"] - 1) < TOLERANCE
    for term in TERMS:
        assert abs(losses[f"global_{term}"] / expected["global_"][term] - 1) < TOLERANCE
        assert abs(losses[f"local_{term}"] / expected["local"][term] - 1) < TOLERANCE
    leaves = [f"{what}_{v}" for what in ("embedding", "map") for v in range(len(maps))]
    for leaf, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad, torch.tensor(stored[f"grad_{leaf}"])) < TOLERANCE, leaf


@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.parametrize("kind", ["feature", "location"])
@pytest.mark.filterwarnings("ignore:.*matches were asked for")
def test_one_kind_of_matching_alone(name, kind) -> None:
    embeddings, maps, locations, _ = golden_inputs(name)
    losses = fast(**golden_options(name), local=kind)(embeddings, maps, locations)
    for term in TERMS:
        expected = GOLDEN_CASES[name][f"local_{kind}_only"][term]
        assert abs(losses[f"local_{term}"].detach() / expected - 1) < TOLERANCE


@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.filterwarnings("ignore:.*matches were asked for")
def test_in_float32(name) -> None:
    embeddings, maps, locations, stored = golden_inputs(name)
    inputs = [[x.detach().float().requires_grad_(x.requires_grad) for x in views] for views in (embeddings, maps)]
    losses, grads = losses_and_gradients(fast(**golden_options(name)), (*inputs, [x.float() for x in locations]))
    assert losses["loss"].dtype == torch.float32
    assert abs(losses["loss"] / GOLDEN_CASES[name]["total"] - 1) < 1e-4
    leaves = [f"{what}_{v}" for what in ("embedding", "map") for v in range(len(maps))]
    for leaf, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad.double(), torch.tensor(stored[f"grad_{leaf}"])) < 1e-4, leaf
