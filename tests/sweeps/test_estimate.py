"""Durations and schedules against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.estimate import STARTUP_SECONDS, Estimator, time_left
from sweeps.graph import Graph

MakeGraph = Callable[[], Graph]


def test_nothing_measured_is_not_a_number(make_graph: MakeGraph) -> None:
    graph = make_graph()
    assert Estimator().seconds(graph.points[0].pretrain) is None
    assert time_left(graph.nodes[:2], {}, 2, Estimator()) is None


def test_seconds_scale_with_the_length_of_training(make_graph: MakeGraph) -> None:
    trained, control = make_graph().points[0].pretrain, make_graph().points[-1].pretrain
    estimator = Estimator()
    estimator.samples["pretrain"] = [(2.0, 10.0), (8.0, 40.0)]
    assert trained.work == 4.0
    assert estimator.seconds(trained) == pytest.approx(20.0)
    assert estimator.seconds(control) == STARTUP_SECONDS
    estimator.add(trained, 30.0)
    assert estimator.seconds(trained) == 30.0


def test_longest_first_and_a_parent_before_its_evaluations(make_graph: MakeGraph) -> None:
    graph = make_graph()
    estimator = Estimator()
    order = sorted(graph.nodes, key=estimator.priority, reverse=True)
    parts = [(node.part, node.work > 0) for node in order]
    assert parts[:6] == [("pretrain", True)] * 6
    assert parts[6:8] == [("pretrain", False)] * 2


def test_time_left_is_that_of_the_schedule(make_graph: MakeGraph) -> None:
    graph = make_graph()
    trainings = [point.pretrain for point in graph.points[:3]]
    evaluations = [node.children[0] for node in trainings]
    estimator = Estimator()
    estimator.samples["pretrain"] = [(4.0, 100.0)]
    # Two slots: 0-60 (at work), 0-100, 60-160; the evaluations have no measured length.
    left = time_left([*trainings[1:], *evaluations], {trainings[0]: 60.0}, 2, estimator)
    assert left is not None
    assert (left.seconds, left.complete) == (160.0, False)
    # Then evaluations of 7 s: 100-107, 107-114 in one slot, and the last waits for its parent at 160.
    estimator.samples["linear"] = [(1.0, 7.0)]
    left = time_left([*trainings[1:], *evaluations], {trainings[0]: 60.0}, 2, estimator)
    assert left is not None
    assert (left.seconds, left.complete) == (167.0, True)
