"""Queue what a graph still needs: pretrainings in arrays, and behind each checkpoint its own evaluations.

Nothing is queued twice: one submitter works at a time (a lock), writes down what it is about to queue under a name
that nobody else has, and asks SLURM by those names for what a killed one did not come to write down.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.place import data_root
from runtime import config as configs
from runtime.errors import UserError
from sweeps.cancelled import forgive
from sweeps.graph import Graph, Node
from sweeps.slurm import executor, snapshot
from sweeps.slurm.config import ClusterConfig, Resources
from sweeps.slurm.executor import Order
from sweeps.slurm.records import Submission, lock, submissions
from sweeps.view import View, look, run_name

# A submitter may be killed while sbatch still talks to the controller: the job may appear this much later.
SETTLE_SECONDS = 15.0
# Views of a run that needs a job. What failed is tried again: that is what the user repeats the command for.
WANTED = frozenset({"new", "interrupted", "failed", "blocked"})
Say = Callable[[str], None]
# The same as yaml.safe_dump, many times as quick where PyYAML was built with libyaml.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Batch:
    """Runs that become one job or array; `behind` is the batch of pretrainings that its evaluations wait for."""

    part: str
    nodes: tuple[Node, ...]
    resources: Resources
    parallel: int = 0
    behind: Batch | None = None  # run i waits for run i of that batch
    after: str = ""  # the job that its only run waits for


@dataclass
class Plan:
    """What a submission would queue, in order, and what it would leave out."""

    batches: list[Batch] = field(default_factory=list)
    left_out: list[Node] = field(default_factory=list)  # their pretraining is neither done nor a job

    @property
    def runs(self) -> int:
        return sum(len(batch.nodes) for batch in self.batches)


def make_plan(views: Mapping[Node, View], cluster: ClusterConfig, array_size: int, wanted: Collection[Node]) -> Plan:
    """Arrays of at most `array_size` runs for those of `wanted` that have no job and are not done."""
    plan = Plan()
    needed = [node for node in views if node in wanted and views[node].state in WANTED]
    queued = set(needed)
    size = min(array_size, cluster.max_array_size or array_size)
    for part, nodes in _by_part(node for node in needed if node.parent is None).items():
        for batch in _batches(part, nodes, cluster, size):
            plan.batches.append(batch)
            plan.batches.extend(_evaluations_behind(batch, queued, cluster))
    others = [node for node in needed if node.parent is not None and node.parent not in queued]
    ready = [node for node in others if _parent_view(views, node).state == "done"]
    for part, nodes in _by_part(iter(ready)).items():
        plan.batches.extend(_batches(part, nodes, cluster, size))
    for node in others:
        parent = _parent_view(views, node)
        if parent.state == "done":
            continue
        if parent.state in ("queued", "running") and parent.job and parent.info and not parent.info.ended:
            resources = cluster.stages[node.stage.name]
            plan.batches.append(Batch(node.part, (node,), resources, after=f"afterok:{parent.job.job}"))
        else:
            plan.left_out.append(node)
    return plan


def _parent_view(views: Mapping[Node, View], node: Node) -> View:
    assert node.parent is not None
    return views[node.parent]


def _by_part(nodes: Iterator[Node]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        found[node.part].append(node)
    return found


def _batches(part: str, nodes: Sequence[Node], cluster: ClusterConfig, size: int) -> list[Batch]:
    """Chunks of an equal number of runs; the limit on runs at a time is shared among them."""
    resources = cluster.stages[nodes[0].stage.name]
    count = -(-len(nodes) // size)
    length = -(-len(nodes) // count)
    parallel = max(1, resources.parallel // count) if resources.parallel else 0
    chunks = [tuple(nodes[i : i + length]) for i in range(0, len(nodes), length)]
    return [Batch(part, chunk, resources, parallel) for chunk in chunks]


def _evaluations_behind(batch: Batch, queued: Collection[Node], cluster: ClusterConfig) -> Iterator[Batch]:
    """One array a part, task i behind task i, where every pretraining has that evaluation to do; else job by job."""
    children = (child for node in batch.nodes for child in node.children if child in queued)
    for part, nodes in _by_part(children).items():
        resources = cluster.stages[nodes[0].stage.name]
        if [node.parent for node in nodes] == list(batch.nodes):
            yield Batch(part, tuple(nodes), resources, resources.parallel, behind=batch)
            continue
        for node in nodes:
            yield Batch(part, (node,), resources, behind=batch)


def submit(
    graph: Graph,
    cluster: ClusterConfig,
    machine: Sequence[str] = (),
    wanted: Callable[[View], bool] = lambda view: True,
    say: Say = print,
) -> int:
    """Queue the runs of `graph` that are not done and have no job, and for which `wanted` holds; how many.

    Their evaluations are queued behind them. Raises UserError, before anything is queued, where SLURM refuses a
    stage's resources or does not answer.
    """
    runs = Path(graph.nodes[0].root).resolve()
    with lock(runs):
        adopt(runs, say)
        views = look(graph)
        _require_answers(views)
        chosen = {node for node, view in views.items() if wanted(view)}
        plan = make_plan(views, cluster, executor.max_array_size(), chosen)
        if plan.batches:
            _Submitter(graph, runs, machine, say).queue(plan)
    for line in _summary(views, plan):
        say(line)
    return plan.runs


def adopt(runs: Path, say: Say = print) -> None:
    """Record the jobs that a submitter queued and was killed before it could. The lock is held."""
    for submission in submissions(runs):
        for name in submission.unrecorded():
            meant = submission.array_file(name).stat().st_mtime
            while (job := executor.known_names().get(name)) is None and time.time() - meant < SETTLE_SECONDS:
                time.sleep(1.0)
            if job is None:
                submission.abandon(name)
                continue
            jobs = submission.record(name, job)
            say(f"job {job} ({name}, {len(jobs)} runs) was queued by a submitter that was killed: recorded now")


def _require_answers(views: Mapping[Node, View]) -> None:
    silent = [view for view in views.values() if view.state != "done" and view.info and not view.info.source]
    if silent:
        raise UserError(
            f"SLURM does not answer about {len(silent)} runs that were submitted before, as "
            f"{run_name(silent[0].node)}; nothing was queued; repeat the command when `squeue` answers"
        )


class _Submitter:
    """Queues a plan, one order after the other."""

    def __init__(self, graph: Graph, runs: Path, machine: Sequence[str], say: Say) -> None:
        self.graph = graph
        self.runs = runs
        self.machine = [text for text in machine if not text.startswith("machine.runs=")]
        self.say = say
        self.jobs: dict[Node, str] = {}  # of this submission
        self.machines: dict[tuple[str, str], dict[str, Any]] = {}

    def queue(self, plan: Plan) -> None:
        study = {"file": self.graph.study.file, "name": self.graph.study.name}
        self._check(plan)
        self.submission = Submission.begin(self.runs, study)
        code = snapshot.take(self.submission.code)
        self.submission.describe(**code.to_record(), snapshot=str(self.submission.code))
        for number, batch in enumerate(plan.batches):
            self._queue_batch(number, batch)

    def _check(self, plan: Plan) -> None:
        """Whether the runs can be written, and sbatch's opinion of each stage's resources."""
        for node in (node for batch in plan.batches for node in batch.nodes):
            node.run.require_writable()
        seen: set[str] = set()
        for batch in plan.batches:
            if batch.part not in seen:
                seen.add(batch.part)
                order = Order(f"check-{_plain(batch.part)}", 1, batch.resources)
                executor.test_only(order, self.runs, self.runs)

    def _queue_batch(self, number: int, batch: Batch) -> None:
        submission = self.submission
        name = f"{self.graph.study.name}-{_plain(batch.part)}-{submission.id}-{number}"
        order = Order(name, len(batch.nodes), batch.resources, self._dependency(batch), batch.parallel)
        for node in batch.nodes:
            forgive(node.run)
        file = submission.intend(name, self._document(batch))
        try:
            job = executor.queue_order(order, file, submission.logs, submission.code)
        except UserError:
            submission.abandon(name)
            raise
        recorded = submission.record(name, job)
        self.jobs |= {node: one.job for node, one in zip(batch.nodes, recorded, strict=True)}
        behind = f" behind {order.dependency}" if order.dependency else ""
        self.say(f"job {job}: {len(batch.nodes)} x {batch.part}{behind}")

    def _dependency(self, batch: Batch) -> str:
        if batch.behind is None:
            return batch.after
        parent = batch.nodes[0].parent
        assert parent is not None
        if len(batch.nodes) > 1:
            return f"aftercorr:{self.jobs[parent].partition('_')[0]}"
        return f"afterok:{self.jobs[parent]}"

    def _document(self, batch: Batch) -> dict[str, Any]:
        """All that a job needs to know: paths are absolute, whatever the job's working directory."""
        return {
            "part": batch.part,
            "time": time.time(),
            "resources": executor.resources_document(batch.resources),
            "cwd": os.getcwd(),
            "code": str(self.submission.code),
            "logs": str(self.submission.logs),
            "container": batch.resources.container,
            "environment": {"VICREGL_DATA": str(data_root().resolve())},
            "tasks": [self._task(node, batch.resources) for node in batch.nodes],
        }

    def _task(self, node: Node, resources: Resources) -> dict[str, Any]:
        config = self.submission.path / "configs" / f"{node.identity.stage}-{node.identity.hash}.yaml"
        values = {**node.identity.config, "machine": self._machine(node)}
        config.write_text(yaml.dump(values, Dumper=_DUMPER, sort_keys=False), encoding="utf-8")
        parent = None if node.parent is None else (self.runs / node.parent.run.path.relative_to(node.root)).resolve()
        where = [f"machine.runs={self.runs}", *self.machine]
        argv = node.stage.argv(str(config), where, parent)
        python = resources.python or sys.executable
        path = self.runs / node.identity.stage / node.run.name
        return {"run": run_name(node), "path": str(path), "argv": [python, *argv[1:]]}

    def _machine(self, node: Node) -> dict[str, Any]:
        """The `machine` section of the node's config: of its file, since a study cannot set it."""
        key = (node.stage.name, node.config_file)
        if key not in self.machines:
            config = node.stage.load(node.config_file, node.overrides)
            self.machines[key] = configs.split_machine(config)[1]
        return self.machines[key]


def _plain(part: str) -> str:
    """Fit for the name of a job and of a file."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", part)


def _summary(views: Mapping[Node, View], plan: Plan) -> Iterator[str]:
    states = [view.state for view in views.values()]
    parts = [f"{plan.runs} runs queued now"]
    parts += [f"{states.count(state)} {state}" for state in ("done", "queued", "running") if state in states]
    yield ", ".join(parts) + f" of {len(states)}"
    if plan.left_out:
        first = plan.left_out[0].title
        yield f"{len(plan.left_out)} runs wait for a pretraining that is neither done nor queued, as {first}"


def gpu_hours(batches: Sequence[Batch], seconds: Callable[[Node], float | None]) -> tuple[float, bool]:
    """(GPU-hours of the batches, whether every run's time is known from measured ones)."""
    total, complete = 0.0, True
    for batch in batches:
        gpus = batch.resources.nodes * batch.resources.gpus
        for node in batch.nodes:
            needed = seconds(node)
            complete = complete and needed is not None
            total += gpus * (needed or 0.0) / 3600
    return total, complete
