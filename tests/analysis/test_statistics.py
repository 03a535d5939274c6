"""Intervals against scipy's own tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    MOST_DUNNETT,
    decided_against,
    decided_together,
    difference,
    dunnett_limit,
    estimate,
    pooled_deviation,
    rejected,
    seeds_to_settle,
)

scores = st.floats(0, 100).map(lambda value: round(value, 3))
samples = st.lists(scores, min_size=2, max_size=8).filter(lambda values: max(values) - min(values) > 0.01)


@given(samples)
def test_an_interval_is_that_of_scipy(values: list[float]) -> None:
    found = estimate(values)
    assert found is not None
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.n == len(values)
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-12)


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=8))
def test_a_difference_is_paired_by_seed(pairs: list[tuple[float, float]]) -> None:
    a = {seed: x for seed, (x, _) in enumerate(pairs)} | {99: 50.0}  # a seed that only one side has is left out
    b = {seed: y for seed, (_, y) in reversed(list(enumerate(pairs)))}
    found = difference(a, b)
    assert found is not None
    assert found.half is not None
    gaps = [x - y for x, y in pairs]
    if max(gaps) - min(gaps) < 0.01:
        return  # scipy warns of lost precision
    expected = stats.ttest_rel([x for x, _ in pairs], [y for _, y in pairs]).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-12)
    excludes_zero = expected.low > 0 or expected.high < 0
    assert (found.sign != 0) == excludes_zero


@given(samples, samples)
def test_without_common_seeds_it_is_welchs(x: list[float], y: list[float]) -> None:
    found = difference(dict(enumerate(x)), {100 + i: value for i, value in enumerate(y)})
    assert found is not None
    assert found.half is not None
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-12)


def test_one_repetition_has_no_interval_and_none_has_no_mean() -> None:
    single = estimate([3.0])
    assert single is not None
    assert (single.mean, single.half, single.n, single.sign) == (3.0, None, 1, 0)
    assert estimate([]) is None
    assert difference({0: 1.0}, {}) is None
    alone = difference({0: 5.0}, {1: 3.0, 2: 4.0})
    assert alone is not None
    assert (alone.mean, alone.half) == (1.5, None)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    found = difference({0: 1.0, 1: 1.0}, {2: 0.0, 3: 0.0})
    assert found is not None
    assert (found.mean, found.half, found.sign) == (1.0, 0.0, 1)
    assert not math.isnan(found.mean)


def test_equal_scores_on_one_side_are_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    found = difference({0: 50.1, 1: 50.1}, {2: 49.0, 3: 49.2})
    assert found is not None
    assert found.half == pytest.approx(stats.t.ppf(0.975, 1) * 0.1)  # of the other side alone
    assert list(recwarn) == []


@given(samples)
def test_a_p_value_is_that_of_scipy(values: list[float]) -> None:
    found = estimate([value - 50 for value in values])
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_1samp(values, 50.0).pvalue, rel=1e-6)


@given(st.lists(st.floats(0, 0.1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls when every set of hypotheses that it is in does, by its smallest p-value."""
    named = dict(enumerate(p_values))
    sets = [s for size in range(1, len(named) + 1) for s in itertools.combinations(named, size)]
    falls = {s: min(named[i] for i in s) <= (1 - 0.95) / len(s) for s in sets}
    assert rejected(named) == {i for i in named if all(falls[s] for s in sets if i in s)}


def test_what_has_no_interval_is_never_decided() -> None:
    assert decided_together({"one seed": estimate([3.0]), "none": None, "sure": estimate([1.0, 1.0])}) == {"sure"}


def test_a_difference_to_the_baseline_is_decided_by_dunnett_and_its_own_interval() -> None:
    base = dict(enumerate([50.0, 50.4, 49.6]))
    scores = {"higher": [55.0, 55.3, 54.9], "alike": [50.1, 50.6, 49.5], "scatters": [40.0, 60.0, 71.0]}
    others = {name: dict(enumerate(values)) for name, values in scores.items()}
    near = {name: others[name] for name in ("higher", "alike")}
    assert decided_against(base, near) == {"higher"}
    assert stats.dunnett(*scores.values(), control=list(base.values())).pvalue[0] > 0.05  # the scatter is in all of it
    assert decided_against(base, others) == set()
    assert decided_against(base, {"one seed": {0: 90.0}}) == set()
    assert decided_against({0: 1.0, 1: 1.0}, {"a": {0: 2.0, 1: 2.0}, "b": {0: 1.0, 1: 1.0}}) == {"a"}


def test_one_comparison_is_that_of_its_own_interval() -> None:
    """Paired by seed the difference is sure; unpaired, as Dunnett's test takes it, the seeds would hide it."""
    base, other = dict(enumerate([40.0, 50.0, 60.0])), dict(enumerate([38.0, 47.9, 58.1]))
    assert stats.dunnett(list(other.values()), control=list(base.values())).pvalue[0] > 0.5
    assert decided_against(base, {"lower": other}) == {"lower"}


@pytest.mark.parametrize(("comparisons", "seeds"), [(2, 3), (3, 5), (6, 4)])
def test_the_limit_of_dunnett_is_that_of_scipy(comparisons: int, seeds: int) -> None:
    samples = np.random.default_rng(comparisons).normal(size=(comparisons + 1, seeds))
    limit = dunnett_limit(comparisons, (comparisons + 1) * (seeds - 1))
    error = pooled_deviation(samples.tolist()) * (2 / seeds) ** 0.5
    samples[1] += samples[0].mean() + limit * error - samples[1].mean()  # it lies at the limit
    test = stats.dunnett(*samples[1:], control=samples[0], random_state=np.random.default_rng(0))
    assert test.statistic[0] == pytest.approx(limit)
    assert test.pvalue[0] == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 0.5), (2.0, 3.0), (-0.4, 1.0)])
def test_the_seeds_that_settle_one_difference_are_those_of_the_noncentral_t(mean: float, deviation: float) -> None:
    pair = [mean - deviation / 2**0.5, mean + deviation / 2**0.5]
    counts = np.arange(2, 200)
    limits = stats.t.ppf(0.975, counts - 1)
    power = stats.nct.sf(limits, counts - 1, abs(mean) / deviation * np.sqrt(counts))
    assert seeds_to_settle(pair) == counts[power >= 0.8][0]


@pytest.mark.slow
@pytest.mark.parametrize("seed_effect", [0.0, 2.0], ids=["unpaired", "paired"])
def test_the_seeds_that_settle_a_difference_among_several_do_so(seed_effect: float) -> None:
    """Four settings and a baseline of one scatter, one of the settings higher; decided by the rule of the reports."""
    settings, gain, draws = 5, 1.5, 200
    scatter = (1 + seed_effect**2) ** 0.5
    pair = [gain - 1, gain + 1]  # of the mean and the deviation of a difference, 2 ** 0.5
    needed = seeds_to_settle(pair, settings - 1, scatter)
    alone = seeds_to_settle(pair)
    assert needed is not None
    assert alone is not None
    assert needed > alone

    def power(seeds: int) -> float:
        random = np.random.default_rng(0)
        found = 0
        for _ in range(draws):
            scores = random.normal(size=(settings, seeds)) + seed_effect * random.normal(size=seeds)
            scores[1] += gain
            base, *others = (dict(enumerate(row)) for row in scores)
            found += 0 in decided_against(base, dict(enumerate(others)))
        return found / draws

    error = 2 * (0.8 * 0.2 / draws) ** 0.5
    assert power(needed) > 0.8 - error
    assert power(needed - 2) < 0.8 + error


def test_many_comparisons_are_decided_by_holm() -> None:
    base = dict(enumerate([50.0, 50.4, 49.6]))
    others = {i: {s: x + (i == 7) * (9 + 0.01 * s) + i % 2 for s, x in base.items()} for i in range(MOST_DUNNETT + 1)}
    assert 7 in decided_against(base, others)
    assert 0 not in decided_against(base, others)
