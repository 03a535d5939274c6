"""Diagnostics against numpy's definitions, and against features whose answer is known."""

import numpy as np
import pytest
import torch

from pretrain.diagnostics import feature_diagnostics, view_diagnostics
from runtime.errors import NotFiniteError
from runtime.world import World


@pytest.fixture
def decomposed(monkeypatch) -> list[int]:
    """The sides of the matrices whose eigenvalues are computed."""
    sides = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: sides.append(len(matrix)) or eigvalsh(matrix))
    return sides


@pytest.mark.parametrize("rows", [200, 13, 12, 11, 5, 2])
def test_equal_to_numpy(rows, decomposed):
    """More rows than dimensions, or fewer, where X^T X is singular and X X^T has the same eigenvalues beside zeros."""
    mixing = np.random.default_rng(1).normal(size=(12, 12))
    features = np.random.default_rng(0).normal(size=(rows, 12)) @ mixing + 0.3
    got = feature_diagnostics(torch.tensor(features), "x")
    singular = np.linalg.svd(features, compute_uv=False)
    shares = singular / singular.sum()
    correlation = np.corrcoef(features.T)[~np.eye(12, dtype=bool)]
    std = features.std(axis=0, ddof=1).mean() / np.sqrt((features**2).mean())
    assert got["rank_x"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert got["correlation_x"] == pytest.approx(np.sqrt((correlation**2).mean()), rel=1e-9)
    assert got["std_x"] == pytest.approx(std, rel=1e-9)
    assert decomposed == [min(rows, 12)]


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


@pytest.mark.gpu
@pytest.mark.parametrize(
    "features",
    [
        torch.randn(512, 2048, generator=torch.Generator().manual_seed(0)),
        torch.randn(512, 1).sign() @ torch.ones(1, 2048),
        torch.ones(512, 2048),
        torch.zeros(512, 2048),
        torch.randn(3000, 256, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["fewer rows", "one direction", "one point", "zero", "more rows"],
)
def test_a_gpu_gives_the_cpu_s_numbers(features):
    """The rank of one direction is 1 and what rounding adds by the square roots of eigenvalues that are 0."""
    expected = feature_diagnostics(features, "x")
    assert feature_diagnostics(features.cuda(), "x") == pytest.approx(expected, rel=0.01, abs=1e-4)


def features(local: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 6 samples, pooled in 12 dimensions and 4 positions each in 8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 12, generator=generator), local * torch.randn(24, 8, generator=generator)


def test_eigenvalues_that_do_not_converge_on_the_device_are_the_cpu_s(monkeypatch):
    expected = view_diagnostics(*features(), World())
    eigvalsh, failed = torch.linalg.eigvalsh, []

    def fail_once(matrix):
        if not failed:
            failed.append(matrix)
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigvalsh(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail_once)
    assert view_diagnostics(*features(), World()) == expected
    assert failed


def test_a_diagnostic_that_fails_is_a_gap_and_one_warning(monkeypatch, capsys):
    eigvalsh = torch.linalg.eigvalsh

    def fail(matrix):
        if len(matrix) == 6:
            raise RuntimeError("CUDA out of memory\nand more")
        return eigvalsh(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    for _ in range(3):
        assert list(view_diagnostics(*features(), World())) == ["std_local", "correlation_local", "rank_local"]
    assert capsys.readouterr().err == "warning: no diagnostics of the pooled features: CUDA out of memory\n"
    with pytest.raises(NotFiniteError, match="local features are not finite"):
        view_diagnostics(*features(local=float("inf")), World())
