"""Intervals against scipy's own tests."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import decided_together, difference, estimate, rejected

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
