"""How long runs take, and when a graph will be done, estimated from finished runs and from progress so far."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.progress import describe_seconds
from sweeps.graph import Node

# Starting Python and torch, reading data: the time of a run that trains nothing.
STARTUP_SECONDS = 10.0


@dataclass
class Estimator:
    """Predicts the seconds of a run from finished runs of its kind (pretrain, linear, ...)."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # (work, seconds)
    # By kind, work and number of samples: a study has thousands of runs, and few lengths of them.
    _cache: dict[tuple[str, float, int], float | None] = field(default_factory=dict)

    @classmethod
    def from_finished(cls, nodes: Sequence[Node]) -> Estimator:
        """Take the `seconds` in the result.json of every node as a sample."""
        estimator = cls()
        for node in nodes:
            result = node.run.result()
            seconds = result.get("seconds") if isinstance(result, dict) else None
            if isinstance(seconds, int | float):
                estimator.add(node, float(seconds))
        return estimator

    def copy(self) -> Estimator:
        estimator = Estimator()
        estimator.samples |= {part: list(samples) for part, samples in self.samples.items()}
        return estimator

    def add(self, node: Node, seconds: float) -> None:
        self.samples[node.kind].append((node.work, seconds))

    def seconds(self, node: Node) -> float | None:
        """Return the expected seconds of a whole run; None if no run of its kind has been measured."""
        key = (node.kind, node.work, len(self.samples.get(node.kind, [])))
        if key not in self._cache:
            self._cache[key] = self._seconds(node)
        return self._cache[key]

    def _seconds(self, node: Node) -> float | None:
        samples = self.samples.get(node.kind, [])
        same = [seconds for work, seconds in samples if work == node.work]
        if same:
            return sum(same) / len(same)
        if samples and node.work == 0:
            return STARTUP_SECONDS
        per_work = [seconds / work for work, seconds in samples if work > 0]
        return node.work * sum(per_work) / len(per_work) if per_work else None

    def seconds_or_guess(self, node: Node) -> float:
        """Assume one second per unit of work for an unmeasured run; for ordering only."""
        known = self.seconds(node)
        return STARTUP_SECONDS + node.work if known is None else known

    def priority(self, node: Node) -> float:
        """Add the seconds of its longest evaluation to its own; the run with the most starts first."""
        longest = max((self.seconds_or_guess(child) for child in node.children), default=0.0)
        return self.seconds_or_guess(node) + longest


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the graph is done; `complete` is false if the time of some remaining run is unknown."""

    seconds: float
    complete: bool

    def __str__(self) -> str:
        return f"{'about' if self.complete else 'at least'} {describe_seconds(self.seconds)} left"


def time_left(
    waiting: Sequence[Node], running: dict[Node, float | None], workers: int, estimator: Estimator
) -> TimeLeft | None:
    """Simulate the schedule: `running` maps to seconds left (None: unknown), `waiting` starts longest first.

    Return None if no time is known at all. Evaluations wait for a parent that is in `running` or `waiting`.
    """
    complete = True
    ends: dict[Node, float] = {}
    for node, left in running.items():
        complete &= left is not None
        ends[node] = left or 0.0
    slots = sorted(ends.values())[:workers] + [0.0] * max(0, workers - len(ends))
    heapq.heapify(slots)
    known_waiting = 0
    for node in sorted(waiting, key=lambda n: (n.parent is not None, -estimator.priority(n))):
        seconds = estimator.seconds(node)
        complete &= seconds is not None
        known_waiting += seconds is not None
        ready = ends.get(node.parent, 0.0) if node.parent is not None else 0.0
        ends[node] = max(heapq.heappop(slots), ready) + (seconds or 0.0)
        heapq.heappush(slots, ends[node])
    if ends and not known_waiting and all(left is None for left in running.values()):
        return None
    return TimeLeft(max(ends.values(), default=0.0), complete)
