"""Diagnostics against numpy's definitions, and against features whose answer is known."""

import numpy as np
import pytest
import torch

from pretrain.diagnostics import feature_diagnostics
from runtime.errors import NotFiniteError


def test_equal_to_numpy():
    features = np.random.default_rng(0).normal(size=(200, 12)) @ np.random.default_rng(1).normal(size=(12, 12)) + 0.3
    got = feature_diagnostics(torch.tensor(features), "x")
    singular = np.linalg.svd(features, compute_uv=False)
    shares = singular / singular.sum()
    correlation = np.corrcoef(features.T)[~np.eye(12, dtype=bool)]
    assert got["rank_x"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert got["correlation_x"] == pytest.approx(np.sqrt((correlation**2).mean()))
    assert got["std_x"] == pytest.approx(features.std(axis=0, ddof=1).mean() / np.sqrt((features**2).mean()))


def test_collapse_to_a_point_is_seen():
    got = feature_diagnostics(torch.full((50, 8), 2.0), "x")
    assert got["std_x"] == pytest.approx(0, abs=1e-6)
    assert got["rank_x"] == pytest.approx(1, abs=1e-3)


def test_collapse_to_one_dimension_is_seen():
    signs = torch.randn(500, 1).sign()
    got = feature_diagnostics(signs * torch.tensor([[1.0, -2.0, 3.0, 0.5]]), "x")
    assert got["correlation_x"] == pytest.approx(1, abs=1e-6)  # signed correlations would cancel here
    assert got["rank_x"] == pytest.approx(1, abs=1e-3)


def test_independent_dimensions_are_healthy():
    got = feature_diagnostics(torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0)), "x")
    assert got["rank_x"] == pytest.approx(16, rel=0.01)
    assert got["correlation_x"] < 0.02
    assert got["std_x"] == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("features", [torch.zeros(4, 3), torch.ones(2, 1), torch.eye(3)[:, :1].repeat(1, 2)])
def test_degenerate_features_give_finite_numbers(features):
    assert all(np.isfinite(value) for value in feature_diagnostics(features, "x").values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_features_of_a_training_that_diverged_are_no_error_of_the_eigenvalues(value):
    features = torch.ones(8, 4, dtype=torch.float64)
    features[3, 2] = value
    with pytest.raises(NotFiniteError, match="pooled features are not finite"):
        feature_diagnostics(features, "pooled")
