"""Run a graph on this machine: several runs at a time, an evaluation as soon as its pretraining is done, longest first.

A machine with GPUs gives each run one of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from runtime.config import require
from runtime.device import available_cores
from runtime.errors import BusyError
from sweeps.display import Display, Snapshot
from sweeps.estimate import Estimator, time_left
from sweeps.failures import describe_end, is_cancelled, record_death, shell_code
from sweeps.graph import Graph, Node
from sweeps.processes import Child, stop_children

POLL_SECONDS = 0.2
# Between two checks of a run that another process is working on.
ELSEWHERE_SECONDS = 2.0
NO_GPU = ""  # as CUDA_VISIBLE_DEVICES: it hides all of them


def default_workers(gpus: Sequence[str] = ()) -> int:
    """Allow one run per GPU; without GPUs one per core, at most eight: each holds a network and a dataset in memory."""
    return sum(gpu != NO_GPU for gpu in gpus) or min(8, available_cores())


def threads_per_run(workers: int) -> int:
    """Share the cores out among the runs."""
    return max(1, available_cores() // workers)


def choose_gpus(count: int | None) -> list[str]:
    """Take the first `count` of this machine's GPUs, all for None; for 0 NO_GPU. UserError if there are fewer."""
    gpus = _visible_gpus()
    if count is None:
        return gpus
    require(0 <= count <= len(gpus), "--gpus", count, f"0 to {len(gpus)}: this machine has {len(gpus)}")
    return gpus[:count] or [NO_GPU]


def _visible_gpus() -> list[str]:
    """List what CUDA_VISIBLE_DEVICES allows, else all that the driver lists, without loading torch."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu.strip() for gpu in allowed.split(",") if gpu.strip() and gpu.strip() != "-1"]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip().isdigit()]


@dataclass
class LocalSweep:
    """One `run` of a graph; every node is in exactly one of the lists."""

    graph: Graph
    workers: int
    display: Display
    machine: Sequence[str] = ()  # `machine.*=value` overrides for every run
    gpus: Sequence[str] = ()  # one for each run, or NO_GPU; empty: every run sees those of this process
    waiting: list[Node] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)
    elsewhere: list[Node] = field(default_factory=list)  # another process works on them
    done: list[Node] = field(default_factory=list)
    failed: list[Node] = field(default_factory=list)
    blocked: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node, state in self.graph.states().items():
            # Failed runs are tried again: that is why a user repeats the command.
            {"done": self.done, "running": self.elsewhere}.get(state, self.waiting).append(node)
        self.estimator = Estimator.from_finished(self.done)
        self.waiting.sort(key=self.estimator.priority, reverse=True)
        self._checked_elsewhere = time.monotonic()
        self.began = time.time()

    def run(self) -> int:
        """Run all that is not done; return 0 if all runs are done at the end, 1 if any failed, 128 + n on signal n.

        A run that fails stops none of the others; its evaluations are reported as blocked. On INT, TERM
        and HUP the active runs save and stop; the next `run` resumes them. UserError, before anything starts, if a
        run's directory cannot be written.
        """
        for node in self.waiting:
            node.run.require_writable()
        self.display.begin(self.graph.study.name, self.snapshot())
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
                    stop_children(self.running)
        self.display.end(self.snapshot(), interrupted=bool(stop))
        if stop:
            return shell_code(-stop[0])
        return 1 if self.failed or self.blocked else 0

    def step(self) -> None:
        self._collect_ended()
        self._stop_cancelled()
        self._check_elsewhere()
        self._start_ready()
        self.display.update(self.snapshot)

    def _collect_ended(self) -> None:
        for child in [c for c in self.running if c.process.poll() is not None]:
            self.running.remove(child)
            run, code = child.node.run, child.process.returncode
            if run.result() is not None:
                self._finish(child.node, child.seconds)
            elif code == BusyError.exit_code:  # another sweep began it at the same moment, and holds its lease
                self.elsewhere.append(child.node)
            else:
                record_death(run, code, child.started_at, child.oom_kills)
                why = describe_end(run, code, child.started_at)
                self.display.failed(child, why, blocked=self._fail(child.node))

    def _stop_cancelled(self) -> None:
        for child in self.running:
            if not child.asked_to_stop and is_cancelled(child.node.run, child.started_at):
                child.asked_to_stop = True
                child.process.terminate()

    def _finish(self, node: Node, seconds: float | None) -> None:
        self.done.append(node)
        if seconds is not None:
            self.estimator.add(node, seconds)
        self.display.finished(node, seconds)

    def _fail(self, node: Node) -> list[Node]:
        """Give the run up, and return its evaluations, which are blocked by that."""
        self.failed.append(node)
        evaluations = [child for child in node.children if child in self.waiting]
        self.waiting = [waiting for waiting in self.waiting if waiting not in evaluations]
        self.blocked.extend(evaluations)
        return evaluations

    def _check_elsewhere(self) -> None:
        if time.monotonic() - self._checked_elsewhere < ELSEWHERE_SECONDS:
            return
        self._checked_elsewhere = time.monotonic()
        for node in list(self.elsewhere):
            state = node.run.state()
            if state == "running":
                continue
            self.elsewhere.remove(node)
            if state == "done":
                self._finish(node, None)
            else:  # the other process died or gave it up: it is ours now
                self.waiting.insert(0, node)

    def _start_ready(self) -> None:
        for node in [n for n in self.waiting if n.parent is None or n.parent in self.done]:
            if len(self.running) >= self.workers:
                return
            self.waiting.remove(node)
            if is_cancelled(node.run, self.began):
                self._fail(node)
                continue
            state = node.run.state()  # another sweep may have run it since this one began
            if state == "done":
                self._finish(node, None)
            elif state == "running":
                self.elsewhere.append(node)
            else:
                threads = threads_per_run(self.workers)
                self.running.append(Child.start(node, threads, self.machine, self._free_gpu()))
                self.display.started(self.running[-1])

    def _free_gpu(self) -> str | None:
        """Choose the GPU with the fewest runs on it."""
        used = Counter(child.gpu for child in self.running)
        return min(self.gpus, key=lambda gpu: used[gpu], default=None)

    def snapshot(self) -> Snapshot:
        left: dict[Node, float | None] = {node: self.estimator.seconds(node) for node in self.elsewhere}
        estimator = self.estimator.copy()
        for child in self.running:
            seconds = child.seconds_left()
            # Until a run of its kind is done, the speed of those that are active stands in for a sample.
            if seconds is not None and child.node.kind not in self.estimator.samples:
                estimator.add(child.node, child.seconds + seconds)
            expected = self.estimator.seconds(child.node)
            if seconds is None and expected is not None:
                seconds = max(0.0, expected - child.seconds)
            left[child.node] = seconds
        remaining = time_left(self.waiting, left, self.workers, estimator)
        counts = (len(self.graph.nodes), len(self.done), len(self.failed), len(self.blocked), len(self.elsewhere))
        return Snapshot(*counts, tuple(self.running), remaining)


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Yield a list that receives the first of INT, TERM and HUP; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    # nohup and shells, for background jobs, ignore some of them: those stay ignored.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {n: signal.signal(n, receive) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
