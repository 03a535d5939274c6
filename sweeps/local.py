"""Run a graph on this machine: N slots, an evaluation as soon as its pretraining is done, longest first."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from runtime.device import available_cores
from runtime.errors import BusyError, Unfinished
from sweeps.cancelled import is_cancelled
from sweeps.children import Child, stop_all
from sweeps.display import Display, Snapshot
from sweeps.estimate import Estimator, time_left
from sweeps.failures import record_death
from sweeps.graph import Graph, Node

POLL_SECONDS = 0.2
# Between two looks at a run that another process is working on.
ELSEWHERE_SECONDS = 2.0


def default_workers() -> int:
    """One slot a core, but no more than eight: each holds a network and a dataset in memory."""
    return min(8, available_cores())


@dataclass
class LocalSweep:
    """The state of one `run` of a graph; every node is in exactly one of the collections."""

    graph: Graph
    workers: int
    display: Display
    machine: tuple[str, ...] = ()  # `machine.*=value` overrides for every run
    gpus: tuple[str, ...] = ()  # shared out among the runs at work; none: every run sees what this process sees
    waiting: list[Node] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)
    elsewhere: list[Node] = field(default_factory=list)  # another process works on them
    done: list[Node] = field(default_factory=list)
    failed: list[Node] = field(default_factory=list)
    blocked: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        states = self.graph.states()
        for node in self.graph.nodes:
            state = states[node]
            # What failed before is tried again: that is what the user repeats the command for.
            place = {"done": self.done, "running": self.elsewhere}.get(state, self.waiting)
            place.append(node)
        self.done_before = len(self.done)
        self.estimator = Estimator.from_finished(self.done)
        self.waiting.sort(key=self.estimator.priority, reverse=True)
        self._looked_elsewhere = time.monotonic()
        self.began = time.time()

    def run(self) -> int:
        """Run what is not done; 0 if everything is done at the end, 1 if anything failed, 128 + n on signal n.

        A run that fails stops none of the others; its evaluations are reported as blocked. On INT, TERM
        and HUP the runs at work are stopped cleanly; the next `run` goes on with them.
        """
        self.display.begin(self)
        with _stop_signal() as stop:
            try:
                while self.waiting or self.running or self.elsewhere:
                    self.step()
                    if stop:
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                self.display.close()
                if self.running:
                    self.display.stopping(len(self.running))
                    stop_all(self.running)
        self.display.end(self, interrupted=bool(stop))
        if stop:
            return 128 + stop[0]
        return 1 if self.failed or self.blocked else 0

    def step(self) -> None:
        self._collect_ended()
        self._stop_cancelled()
        self._look_elsewhere()
        self._start_ready()
        self.display.update(self.snapshot)

    def _collect_ended(self) -> None:
        for child in [c for c in self.running if c.process.poll() is not None]:
            self.running.remove(child)
            code = child.process.returncode
            if child.node.run.result() is not None:
                self._finish(child.node, child.seconds)
            elif code == BusyError.exit_code:  # another sweep began it in the same moment
                self.elsewhere.append(child.node)
            else:
                record_death(child.node.run, code, child.started_at, child.oom_kills)
                self._fail(child, code)

    def _stop_cancelled(self) -> None:
        for child in self.running:
            if not child.told_to_stop and is_cancelled(child.node.run, child.started_at):
                child.told_to_stop = True
                child.process.terminate()

    def _finish(self, node: Node, seconds: float | None) -> None:
        self.done.append(node)
        if seconds is not None:
            self.estimator.add(node, seconds)
        self.display.finished(node, seconds)

    def _fail(self, child: Child, code: int) -> None:
        behind = self._give_up(child.node)
        self.display.failed(child, _ending(child, code), behind)

    def _give_up(self, node: Node) -> list[Node]:
        """What waits for the run is blocked."""
        self.failed.append(node)
        behind = [child for child in node.children if child in self.waiting]
        self.waiting = [waiting for waiting in self.waiting if waiting not in behind]
        self.blocked.extend(behind)
        return behind

    def _look_elsewhere(self) -> None:
        if time.monotonic() - self._looked_elsewhere < ELSEWHERE_SECONDS:
            return
        self._looked_elsewhere = time.monotonic()
        for node in list(self.elsewhere):
            state = node.run.state()
            if state == "done":
                self.elsewhere.remove(node)
                self._finish(node, None)
            elif state != "running":
                self.elsewhere.remove(node)
                self.waiting.insert(0, node)

    def _start_ready(self) -> None:
        threads = max(1, available_cores() // self.workers)
        for node in [n for n in self.waiting if n.parent is None or n.parent in self.done]:
            if len(self.running) >= self.workers:
                return
            self.waiting.remove(node)
            if is_cancelled(node.run, self.began):
                self._give_up(node)
                continue
            state = node.run.state()  # another sweep may have been at it since this one began
            if state == "done":
                self._finish(node, None)
            elif state == "running":
                self.elsewhere.append(node)
            else:
                self.running.append(Child.start(node, threads, self.machine, self._free_gpu()))
                self.display.started(self.running[-1])

    def _free_gpu(self) -> str | None:
        """The one that the fewest runs are on."""
        used = Counter(child.gpu for child in self.running)
        return min(self.gpus, key=lambda gpu: used[gpu], default=None)

    def snapshot(self) -> Snapshot:
        left: dict[Node, float | None] = {node: self.estimator.seconds(node) for node in self.elsewhere}
        estimator = Estimator({part: list(samples) for part, samples in self.estimator.samples.items()})
        for child in self.running:
            seconds = child.seconds_left()
            if seconds is not None and child.node.part not in self.estimator.samples:
                estimator = _with_sample(estimator, child.node, child.seconds + seconds)
            expected = self.estimator.seconds(child.node)
            if seconds is None and expected is not None:
                seconds = max(0.0, expected - child.seconds)
            left[child.node] = seconds
        remaining = time_left(self.waiting, left, self.workers, estimator)
        counts = (len(self.graph.nodes), len(self.done), len(self.failed), len(self.blocked), len(self.elsewhere))
        return Snapshot(*counts, tuple(self.running), remaining)


def _with_sample(estimator: Estimator, node: Node, seconds: float) -> Estimator:
    samples = {part: list(known) for part, known in estimator.samples.items()}
    samples.setdefault(node.part, []).append((node.work, seconds))
    return Estimator(samples)


def _ending(child: Child, code: int) -> str:
    """How a run ended that left no result, in words."""
    failure = child.node.run.failure()
    if isinstance(failure, dict) and failure.get("time", 0) >= child.started_at:  # else of a former attempt
        return f"{failure.get('class', 'error')}: {failure.get('message')}"
    if code == Unfinished.exit_code:
        return "it was asked to stop, and has saved where it is"
    if code < 0:
        return f"ended by signal {-code}"
    if code == 0:
        return "it ended well, but elsewhere: the code or its config was changed since this sweep began; repeat it"
    return f"exit code {code}"


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that holds the first of INT, TERM and HUP to arrive; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    # Under nohup, and for a shell's background jobs, some of them are ignored already: that stays.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, receive) for number in heard}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run(graph: Graph, workers: int, display: Display, machine: Sequence[str] = (), gpus: Sequence[str] = ()) -> int:
    """Run a graph here; the exit code says how it went."""
    sweep = LocalSweep(graph, workers, display, tuple(machine), tuple(gpus))
    for node in sweep.waiting:
        node.run.require_writable()
    return sweep.run()
