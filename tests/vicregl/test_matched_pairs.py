"""The pairs that pictures show are those that the criterion computes with."""

from __future__ import annotations

import pytest
import torch

from vicregl import local
from vicregl.config import KINDS, CriterionConfig
from vicregl.criterion import VICRegLCriterion

OPTIONS = {
    "paper": CriterionConfig(num_matches=[5, 2]),
    "reference": CriterionConfig(num_matches=[5, 2], profile="reference"),
    "larger_second": CriterionConfig(num_matches=[2, 5], profile="reference"),
    "feature_matches": CriterionConfig(num_matches=[5, 2], feature_matches=[7, 0]),
    "threshold": CriterionConfig(num_matches=[5, 2], select="threshold", location_threshold=18, feature_threshold=1.1),
}


def pairs_of_criterion(options: CriterionConfig, maps: list, locations: list, monkeypatch) -> dict[str, set]:
    """For each kind the pairs 0 -> 1 of the first sample whose invariance counts."""
    used: dict[str, set] = {kind: set() for kind in KINDS}
    real = local.invariance

    def recorded(views, matches, *rest):
        for match in matches:
            if (match.matching.source, match.matching.target) == (0, 1) and match.matching.kind in KINDS:
                counts = torch.ones_like(match.source) if match.counts is None else match.counts
                pairs = zip(
                    match.source[:, 0].tolist(), match.target[:, 0].tolist(), counts[:, 0].tolist(), strict=True
                )
                used[match.matching.kind] |= {(a, b) for a, b, count in pairs if count}
        return real(views, matches, *rest)

    monkeypatch.setattr(local, "invariance", recorded)
    VICRegLCriterion(options)([m.mean((1, 2)) for m in maps], maps, locations)
    return used


@pytest.mark.parametrize("name", OPTIONS)
def test_pairs_are_those_of_the_criterion(name: str, monkeypatch) -> None:
    torch.manual_seed(0)
    options = OPTIONS[name]
    maps = [torch.randn(3, side, side, 6) for side in (4, 4, 2)]
    locations = [100 * torch.rand(3, side, side, 2) for side in (4, 4, 2)]
    used = pairs_of_criterion(options, maps, locations, monkeypatch)
    for kind, spaces in (("feature", maps), ("location", locations)):
        shown = local.matched_pairs(options, kind, spaces[0][0], spaces[1][0]).tolist()
        assert {tuple(pair) for pair in shown} == used[kind]
        assert len(shown) == len(used[kind]) > 0
    if name == "reference":
        assert len(used["feature"]) == 16
        assert len(used["location"]) == 5
    if name == "threshold":
        assert all(5 < len(pairs) < 16 for pairs in used.values()), used


def test_another_count() -> None:
    first, second = torch.randn(2, 4, 4, 6)
    for options in OPTIONS.values():
        assert len(local.matched_pairs(options, "feature", first, second, 3)) == 3
        assert len(local.matched_pairs(options, "feature", first, second, 0)) == 16


def test_no_pair_is_near_enough() -> None:
    options = CriterionConfig(select="threshold", location_threshold=1.0)
    assert local.matched_pairs(options, "location", torch.zeros(2, 2, 2), torch.full((2, 2, 2), 9.0)).shape == (0, 2)
