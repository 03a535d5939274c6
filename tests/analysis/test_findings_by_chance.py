"""How often findings are false where all settings are alike, and how often they miss a difference: simulated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from analysis.findings import course, tradeoff
from analysis.summary import Scores, Summary

SummaryOf = Callable[..., Summary]
NOISES = {"alike": [1.0] * 5, "one scatters ten times as much": [1.0, 1.0, 1.0, 1.0, 10.0]}
COUNT = 1000  # data sets of a simulation
FEW = 250  # where many of them need Dunnett's p-values, which take time


def at_most(level: float, count: int) -> float:
    """The level, and two standard errors of the simulation."""
    return level + 2 * math.sqrt(level * (1 - level) / count)


AT_MOST = at_most(0.05, COUNT)


def drawn_summaries(summary_of: SummaryOf, draws: np.ndarray) -> Iterator[Summary]:
    """A summary for each of the draws (data sets, settings, seeds), NaN for no score; both scores are the same."""
    settings, seeds = draws.shape[1:]
    grid: dict[str, list[object]] = {"loss.alpha": [*range(settings)], "seed": [*range(seeds)]}
    rows = [(None, {"loss.alpha": a, "seed": s}, 1.0, 1.0) for a in range(settings) for s in range(seeds)]
    summary = summary_of(grid, rows, baseline=settings - 1)
    for draw in draws:
        for row in summary.settings:
            scores = Scores({s: x for s, x in enumerate(draw[row.varied]) if not math.isnan(x)})
            row.scores.update({"linear.top1": scores, "segmentation.miou": scores})
        yield summary


def share(summary_of: SummaryOf, draws: np.ndarray, decides: Callable[[Summary], bool]) -> float:
    return sum(map(decides, drawn_summaries(summary_of, draws))) / len(draws)


def decides_a_course(summary: Summary) -> bool:
    return re.search(r"± [\d.]+\)", course(summary, summary.settings, "linear.top1")) is not None


def decides_against_the_baseline(summary: Summary) -> bool:
    return re.search("both (gain|lose) at", tradeoff(summary, summary.settings)) is not None


def equal_settings(seeds: int, noise: list[float], seed_effect: float = 20.0, count: int = COUNT) -> np.ndarray:
    """Settings of one mean: (data sets, settings, seeds)."""
    random = np.random.default_rng(seeds + round(seed_effect))
    own = random.normal(size=(count, len(noise), seeds)) * np.array(noise)[:, None]
    return 50 + own + seed_effect * random.normal(size=(count, 1, seeds))


@pytest.mark.parametrize("seed_effect", [0.0, 20.0])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_settings_rarely_make_a_course(
    summary_of: SummaryOf, seeds: int, noise: list[float], seed_effect: float
) -> None:
    draws = equal_settings(seeds, noise, seed_effect)
    assert share(summary_of, draws, decides_a_course) <= AT_MOST
    draws[:, 0, 0] = draws[:, 2, 1] = math.nan  # runs that failed
    assert share(summary_of, draws, decides_a_course) <= AT_MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "level"),
    [([1.0] * 5, 0.05), ([10.0, 1.0, 1.0, 1.0, 1.0], 0.05), ([1.0] * 4 + [10.0], 0.075), ([1.0] * 4 + [3.0], 0.09)],
    ids=["alike", "a setting scatters ten times as much", "the baseline does", "the baseline, three times as much"],
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_settings_rarely_beat_the_baseline(
    summary_of: SummaryOf, seeds: int, noise: list[float], level: float
) -> None:
    # An effect of the seed only makes Dunnett's test decide less.
    draws = equal_settings(seeds, noise, seed_effect=0.0, count=FEW)
    assert share(summary_of, draws, decides_against_the_baseline) <= at_most(level, FEW)


@pytest.mark.parametrize("lower", [0.0, 50.0], ids=["all alike", "two alike, far above the others"])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_equal_settings_rarely_have_a_best(summary_of: SummaryOf, noise: list[float], lower: float) -> None:
    """The best has to beat every other one, which needs no allowance for its choice (Gutmann and Maymin 1987)."""
    draws = equal_settings(3, noise) - np.array([lower, lower, lower, 0, 0])[:, None]
    assert share(summary_of, draws, lambda s: s.best(s.settings, "linear.top1") is not None) <= AT_MOST


@pytest.mark.parametrize(("seeds", "effect"), [(3, 16.0), (5, 5.0)])
def test_a_real_rise_is_found(summary_of: SummaryOf, seeds: int, effect: float) -> None:
    """Four settings alike, one above them by that many deviations of a single score; a strong effect of the seed."""
    draws = equal_settings(seeds, [1.0] * 5, count=200) + np.array([0, 0, effect, 0, 0])[:, None]
    assert share(summary_of, draws, decides_a_course) > 0.9
