"""Means over seeds with their 95 % intervals (Student's t), differences paired by seed, many differences at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8  # the usual one, for "how many more seeds"
MOST_DUNNETT = 12  # comparisons; its p-values take seconds for 20 and minutes for 100, so that Holm's test stands in
_QUANTILES = (np.arange(1000) + 0.5) / 1000  # at which distributions are integrated
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean over n repetitions; `half` is half the width of its 95 % interval, None for a single one."""

    mean: float
    half: float | None
    n: int
    freedom: float = math.nan  # degrees of freedom of the interval

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0; otherwise, and without an interval, 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1

    @property
    def p(self) -> float | None:
        """The p-value of the two-sided t-test of a mean of 0, at most 0.05 where the interval excludes 0."""
        if self.half is None:
            return None
        if self.half == 0:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(_quantile(self.freedom) * abs(self.mean) / self.half, self.freedom))


@lru_cache(maxsize=1000)
def _quantile(freedom: float) -> float:
    """Return half the width of a 95 % interval, in standard errors."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean and t-interval of independent repetitions; None for no repetition."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=float)
    n = len(array)
    if n == 1:
        return Estimate(float(array[0]), None, 1)
    # Equal to stats.ttest_1samp(...).confidence_interval(), which takes 40 times as long; a report has thousands.
    half = _quantile(n - 1) * array.std(ddof=1) / np.sqrt(n)
    return Estimate(float(array.mean()), float(half), n, n - 1)


def pooled_deviation(samples: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation that samples of different means share; NaN where none has two values."""
    freedom = sum(len(sample) - 1 for sample in samples if sample)
    squares = sum(float(np.var(sample)) * len(sample) for sample in samples if sample)
    return math.sqrt(squares / freedom) if freedom else math.nan


def difference(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> Estimate | None:
    """Return a - b of scores by seed, over the seeds that both have; with Welch's interval where they share none.

    The same seed is the same initialisation and the same order of images, so pairing takes their share
    of the variance out of the difference. n is the number of pairs (of the smaller side without pairs).
    """
    shared = [seed for seed in a if seed in b]
    if shared:
        return estimate([a[seed] - b[seed] for seed in shared])
    if not a or not b:
        return None
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    mean, n = float(x.mean() - y.mean()), min(len(x), len(y))
    if n < 2:
        return Estimate(mean, None, n)
    if np.ptp(x) == np.ptp(y) == 0:
        return Estimate(mean, 0.0, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side of equal scores has a variance of 0, not a lost one
        test = stats.ttest_ind(x, y, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Estimate(mean, float(high - low) / 2, n, float(test.df))


def decided_together(differences: Mapping[K, Estimate | None]) -> set[K]:
    """Return the differences that are significant among all of these (Holm 1979, over their t-tests).

    If any of them are truly 0, one of those is in the answer in at most 5 % of data sets, whatever the variance of each
    and however they depend on each other. Tukey's range test for blocks would find more where all settings have the
    same variance, and is wrong three times as often where one has more. One without an interval is never decided.
    """
    p_values = {key: difference.p for key, difference in differences.items() if difference is not None}
    return rejected({key: p for key, p in p_values.items() if p is not None})


def rejected(p_values: Mapping[K, float]) -> set[K]:
    """Apply Holm's procedure: the smallest p-value against 5 % / n, the next against 5 % / (n - 1), until one fails."""
    smallest: set[K] = set()
    for key, p in sorted(p_values.items(), key=lambda item: item[1]):
        if p > (1 - CONFIDENCE) / (len(p_values) - len(smallest)):
            break
        smallest.add(key)
    return smallest


def decided_against(base: Mapping[Hashable, float], others: Mapping[K, Mapping[Hashable, float]]) -> set[K]:
    """Return which scores by seed differ from the baseline's, allowing for the comparison of all of them.

    Dunnett's test (1955) has to reject equality at 5 %, and the 95 % interval of the difference has to exclude 0.
    Dunnett takes the variances to be alike and the seeds to be unpaired; the interval, paired by seed where it can be,
    keeps a score that scatters more than the others from being decided by their small scatter. Both together decide
    something false in at most 5 % of data sets, but where the baseline scatters two to five times as much as the rest:
    simulated, in 6 % with two comparisons, 11 % with six, 14 % with twelve. A single comparison is that of its own
    interval.
    """
    own = {key: difference(other, base) for key, other in others.items() if len(other) > 1}
    found = {key: gap for key, gap in own.items() if gap is not None and len(base) > 1}
    if len(found) < 2 or len(found) > MOST_DUNNETT:
        return decided_together(found)
    samples = [list(others[key].values()) for key in found]
    control = list(base.values())
    if all(np.ptp(sample) == 0 for sample in [*samples, control]):
        return {key for key, gap in found.items() if gap.sign}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a sample of equal scores has a variance of 0, not a lost one
        test = stats.dunnett(*samples, control=control, random_state=np.random.default_rng(0))
    p_values = zip(found.items(), test.pvalue, strict=True)
    return {key for (key, gap), p in p_values if p <= 1 - CONFIDENCE and gap.sign}


def seeds_to_settle(
    differences: Sequence[float], comparisons: int = 1, scatter: float = 0.0, power: float = POWER, most: int = 10_000
) -> int | None:
    """Return the smallest number of seeds with which `decided_against` decides a difference with probability `power`.

    It takes the mean and the variance of `differences`, paired by seed, to be the true ones. With several comparisons
    Dunnett's test has to reject too; `scatter` is the deviation of a score over seeds, pooled over all the settings.
    None for a single difference, for a mean of 0, and where more than `most` were needed.
    """
    array = np.asarray(differences, dtype=float)
    if len(array) < 2 or array.mean() == 0:
        return None
    mean, deviation = abs(float(array.mean())), float(array.std(ddof=1))
    low, high = 1, 2
    while _chance_to_decide(high, mean, deviation, comparisons, scatter) < power:
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = _chance_to_decide(middle, mean, deviation, comparisons, scatter) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high if high <= most else None


def _chance_to_decide(n: int, mean: float, deviation: float, comparisons: int, scatter: float) -> float:
    """Return the probability that n seeds decide a difference of this mean and deviation, in its own direction."""
    by_dunnett = 1 < comparisons <= MOST_DUNNETT
    level = 1 - (1 - CONFIDENCE) / (1 if by_dunnett else comparisons)  # Holm's first step stands for its procedure
    limit = dunnett_limit(comparisons, (comparisons + 1) * (n - 1)) if by_dunnett else 0.0
    least = limit * scatter * math.sqrt(2 / n)
    if deviation == 0:
        return float(mean > least)
    # Over the measured deviation, by its quantiles: the mean of n differences has to exceed both limits.
    measured = deviation * np.sqrt(stats.chi2.ppf(_QUANTILES, n - 1) / (n - 1))
    limits = np.maximum(least, stats.t.ppf((1 + level) / 2, n - 1) * measured / math.sqrt(n))
    return float(stats.norm.sf((limits - mean) * math.sqrt(n) / deviation).mean())


@lru_cache(maxsize=1000)
def dunnett_limit(comparisons: int, freedom: int) -> float:
    """Return what the largest of the t-statistics against one baseline exceeds in 5 % of data sets (Dunnett 1955).

    For samples of one size and one variance, `freedom` degrees of which estimate it.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)  # the baseline's error
    errors, weights = nodes[:, None], weights / weights.sum()
    measured = np.sqrt(stats.chi2.ppf(_QUANTILES, freedom) / freedom)  # the pooled deviation, over the true one

    def excess(limit: float) -> float:
        width = math.sqrt(2) * limit * measured
        inside = stats.norm.cdf(errors + width) - stats.norm.cdf(errors - width)
        return float(weights @ (inside**comparisons).mean(1)) - CONFIDENCE

    return float(optimize.brentq(excess, 1.0, 1000.0))
