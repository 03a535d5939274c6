"""How long runs take and how long a graph still needs, from what was measured: finished runs and progress so far."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.graph import Node

# Starting Python and torch, reading data: what a run takes that has nothing to train.
STARTUP_SECONDS = 10.0


@dataclass
class Estimator:
    """Learns seconds a run from samples of (work, seconds) of each part (pretrain, linear, ...) of a study."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    _found: dict[tuple[str, float, int], float | None] = field(default_factory=dict)  # by part, work, samples so far

    @classmethod
    def from_finished(cls, nodes: Sequence[Node]) -> Estimator:
        """From the `seconds` of every result.json among the nodes."""
        estimator = cls()
        for node in nodes:
            result = node.run.result()
            seconds = result.get("seconds") if isinstance(result, dict) else None
            if isinstance(seconds, int | float):
                estimator.add(node, float(seconds))
        return estimator

    def add(self, node: Node, seconds: float) -> None:
        self.samples[node.part].append((node.work, seconds))

    def seconds(self, node: Node) -> float | None:
        """Expected seconds of a whole run; None where nothing of its part was measured yet."""
        asked = (node.part, node.work, len(self.samples.get(node.part, [])))
        if asked not in self._found:
            self._found[asked] = self._seconds(node)
        return self._found[asked]

    def _seconds(self, node: Node) -> float | None:
        samples = self.samples.get(node.part, [])
        same = [seconds for work, seconds in samples if work == node.work]
        if same:
            return sum(same) / len(same)
        if samples and node.work == 0:
            return STARTUP_SECONDS
        per_work = [seconds / work for work, seconds in samples if work > 0]
        return node.work * sum(per_work) / len(per_work) if per_work else None

    def seconds_or_guess(self, node: Node) -> float:
        """For ordering alone: an unmeasured run counts as long as its work says."""
        known = self.seconds(node)
        return STARTUP_SECONDS + node.work if known is None else known

    def priority(self, node: Node) -> float:
        """Seconds of the run and of the longest evaluation behind it: what should start first."""
        behind = max((self.seconds_or_guess(child) for child in node.children), default=0.0)
        return self.seconds_or_guess(node) + behind


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the graph is done; `complete` says whether every run left could be counted."""

    seconds: float
    complete: bool


def time_left(
    waiting: Sequence[Node], running: dict[Node, float | None], workers: int, estimator: Estimator
) -> TimeLeft | None:
    """Simulate the schedule: `running` maps to seconds left (None: not known), `waiting` starts longest first.

    None where nothing at all is known. Evaluations wait for a parent that is in `running` or `waiting`.
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
