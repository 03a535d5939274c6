"""The commands that start and stop runs: `run` here, `submit`, `retry` failures, `reconcile` lost runs, `cancel`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from eval.segmentation_config import SegmentationConfig, network_changes
from runtime import config as configs
from runtime import files
from runtime.errors import UserError, errors_at
from runtime.imports import import_recorded
from sweeps import local, processes
from sweeps.checkpoints import WEIGHTS
from sweeps.display import Display
from sweeps.failures import ASK_OWNER, MAY_SUCCEED_UNCHANGED, mark_cancelled
from sweeps.graph import Graph, Node
from sweeps.slurm import commands
from sweeps.slurm.config import load_cluster
from sweeps.status import ACTIVE, NOT_BEGUN, RunStatus, read_status

_FAMILIES = re.compile(r"(scenes_|wide_)?resn(et|ext)\d*|convnext")


def run(graph: Graph, options: Namespace) -> int:
    """Run all that is not done, on this machine, and wait for it.

    On a machine with GPUs each run gets one of them.
    """
    if options.only is not None:
        graph = _select(graph, options.only.split(","))
    preflight(graph)
    gpus = local.choose_gpus(options.gpus)
    workers = options.workers or local.default_workers(gpus)
    return local.LocalSweep(graph, workers, Display(), options.machine, gpus).run()


def _select(graph: Graph, names: Sequence[str]) -> Graph:
    """Return the graph of these runs, and of the pretrainings that they need."""
    chosen = {graph.find(name) for name in names}
    needed = chosen | {node.parent for node in chosen if node.parent is not None}
    return Graph(graph.study, graph.points, [node for node in graph.nodes if node in needed])


def submit(graph: Graph, options: Namespace) -> int:
    """Queue all that is not done: on SLURM, or on this machine in the background.

    On SLURM the evaluations of each checkpoint wait for its pretraining. Repeat it at will: runs that are done, running
    or queued are left alone.
    """
    return _submit(graph, options, None)


def retry(graph: Graph, options: Namespace) -> int:
    """Submit failed runs again, with their evaluations: all, one kind of failure, or one run."""
    statuses = read_status(graph)
    failed = [status for status in statuses.values() if status.state == "failed"]
    if options.run is not None:
        named = statuses[graph.find(options.run)]
        if named.state != "failed":
            hint = ": its pretraining failed, so retry that" if named.state == "blocked" else ""
            raise UserError(f"{named.node.title} is {named.state}, not failed{hint}")
        failed = [named]
    elif options.kind is not None:
        failed = [status for status in failed if status.failure and status.failure.kind == options.kind]
    if not failed:
        print("nothing to retry: no run has failed" + (f" by {options.kind}" if options.kind else ""))
        return 0
    chosen = {status.node for status in failed}
    chosen |= {node for node in statuses if node.parent in chosen and statuses[node].state != "done"}
    return _submit(graph, options, [node for node in statuses if node in chosen])


def reconcile(graph: Graph, options: Namespace) -> int:
    """Submit missing runs that may succeed with nothing changed; fit for cron.

    Those are runs that were never submitted, and runs that SLURM lost, preempted, ended at their limit or on a failed
    node without requeueing them. Runs that raised, ran out of memory or were cancelled are left to `retry`.
    """
    missing = missing_runs(read_status(graph))
    if not missing:
        print("nothing is missing")
        return 0
    return _submit(graph, options, missing)


def missing_runs(statuses: Mapping[Node, RunStatus]) -> list[Node]:
    """List the runs that `reconcile` submits, in the graph's order: pretrainings before their evaluations."""
    missing: list[Node] = []
    for node, status in statuses.items():
        parent_is_missing = status.state == "blocked" and node.parent in missing
        if status.state in NOT_BEGUN or parent_is_missing or _may_succeed_unchanged(status):
            missing.append(node)
    return missing


def _may_succeed_unchanged(status: RunStatus) -> bool:
    if status.failure is None or status.failure.kind not in MAY_SUCCEED_UNCHANGED:
        return False
    # A job that reaches its limit several times without a step writes failure.json (slurm/job.py): the next one would
    # reach it too.
    return status.failure.kind != "time_limit" or status.node.run.failure() is None


def _submit(graph: Graph, options: Namespace, nodes: Collection[Node] | None) -> int:
    """Queue these runs (None: all that are not done) on the cluster that the options name."""
    if options.cluster == "local":
        return _submit_here(graph, options, nodes)
    cluster = load_cluster(options.cluster_config)  # its errors come before SLURM is asked
    from sweeps.slurm import submit as slurm  # loads submitit

    preflight(graph)
    _import_checkpoints(graph)
    slurm.submit(graph, cluster, options.machine, nodes)
    return 0


def preflight(graph: Graph) -> None:
    """Check what an evaluation would only stop at after its pretraining; nothing is made. UserError, naming the run."""
    check_networks(graph)
    check_checkpoints(graph)


def check_networks(graph: Graph) -> None:
    """Make, without storage, each network that a segmentation of the study dilates or gives another drop path."""
    made: list[tuple[Any, Any]] = []  # mappings, which no set holds
    for node in graph.nodes:
        config, parent = node.identity.config, node.parent
        if node.stage.name != SegmentationConfig.stage or parent is None:
            continue
        changes = network_changes(config.get("output_stride", 0), config.get("drop_path"))
        network = parent.identity.config["model"]["backbone"]
        # ResNets and ConvNeXts take both: to ask timm takes seconds.
        if not changes or _FAMILIES.match(network["name"]) or (network, changes) in made:
            continue
        made.append((network, changes))
        if node.run.result() is None:
            from eval.parent import require_changes  # loads torch

            with errors_at(node.title):
                import_recorded(parent.identity.config, parent.run.path)  # of a run that another study has made
                require_changes(network, changes)


def check_checkpoints(graph: Graph) -> None:
    """Read the weights of every row that is not imported yet, strictly, and make nothing.

    UserError, naming the row, for weights that are missing or do not fit their network, and for a network of another
    mean and deviation than ImageNet's where nothing says which to take.
    """
    for node in graph.nodes:
        if node.stage.name == WEIGHTS and node.run.result() is None:
            normalisations = [child.identity.config.get("normalisation") for child in node.children]
            with errors_at(node.title), contextlib.redirect_stdout(sys.stderr):  # `plan --json` prints JSON alone
                _check_weights(node.overrides, normalisations)


def _check_weights(overrides: Sequence[str], normalisations: Sequence[Any]) -> None:
    """Read a row's weights, and choose the mean and deviation of each of its evaluations."""
    from eval.parent import normalisation_of_weights  # loads torch
    from eval.weights import read_weights
    from eval.weights_config import WeightsConfig

    config = configs.load(WeightsConfig, None, overrides)
    print(read_weights(config, "meta")[1], flush=True)
    for k, choice in enumerate(normalisations):
        if config.arch is not None and choice not in normalisations[:k]:  # may be lists, which no set holds
            normalisation_of_weights(config.arch, choice)


def _import_checkpoints(graph: Graph) -> None:
    """Import a study's checkpoints here, before anything is queued: it takes seconds, and a file that does not fit in
    every tensor is refused now. Raises UserError for it."""
    for node in graph.nodes:
        if node.stage.name == WEIGHTS and node.run.result() is None:
            from eval.weights import import_weights  # loads torch

            with errors_at(node.title):
                import_weights(node.stage.load(None, [*node.overrides, f"machine.runs={node.root}"]))


def _submit_here(graph: Graph, options: Namespace, nodes: Collection[Node] | None) -> int:
    """Run them on this machine, in the background."""
    preflight(graph)
    states = graph.states()
    for node in graph.nodes if nodes is None else nodes:
        if states[node] != "done":
            node.run.require_writable()
    given = {key: getattr(options, key) for key in ("workers", "gpus")}
    argv = [f"--{key}={value}" for key, value in given.items() if value is not None]
    if nodes is not None:
        argv.append(f"--only={','.join(node.identity.hash for node in nodes)}")
    sweep = processes.start_background(graph, [*argv, *options.machine])
    log = processes.background_log(graph)
    if sweep is None:
        print(f"a sweep of {graph.study.name} is running already: {log}; repeat this when it has ended")
        return 0
    print(f"running in the background, process {sweep['pid']}: {log}")
    return 0


def cancel(graph: Graph, options: Namespace) -> int:
    """Cancel active and queued runs: of the whole study, of one pretraining with its evaluations, or one run.

    An active run saves first. Cancelled runs are not requeued; `retry` submits them again. Finished runs stay.
    If SLURM does not answer, runs that wait will not begin, and the command has to be repeated for those at work.
    """
    nodes = _choose(graph, options.subtree, options.run)
    statuses = read_status(graph)
    active = [statuses[node] for node in nodes if statuses[node].state in ACTIVE]
    unanswered = [node for node in nodes if _may_be_in_job(statuses[node])]
    whole_study = len(nodes) == len(graph.nodes)
    sweep = processes.read_background(graph)
    # A background sweep that goes on with other runs must not begin these.
    not_begun = [] if whole_study or sweep is None else [n for n in nodes if statuses[n].state in NOT_BEGUN]
    to_mark = list(dict.fromkeys([*(status.node for status in active), *unanswered, *not_begun]))
    for node in to_mark:
        files.require_writable(node.run.path, ASK_OWNER)
    # Before any signal: the job of a run that saves and stops looks for this mark when it decides whether to requeue.
    for node in to_mark:
        mark_cancelled(node.run)
    commands.scancel([status.job.job for status in active if status.job is not None and _is_in_job(status)])
    stopped = whole_study and sweep is not None and processes.stop_background(graph)
    in_job = {status.node for status in active if _is_in_job(status)} | set(unanswered)
    missed = [status for status in active if status.node not in in_job and not stopped and not _stop_here(status)]
    count = len(to_mark) - len(missed) - len(unanswered)
    if count or not unanswered:
        print(f"cancelled {count} of {graph.study.name}'s runs" if count else "nothing runs or waits")
    for status in missed:
        print(f"{status.node.title} is running on {status.host}; its owner can stop it there")
    if unanswered:
        raise UserError(
            f"SLURM does not answer about {len(unanswered)} runs that were submitted before, for example "
            f"{unanswered[0].title}; they are marked as cancelled: those that wait will not begin, those at work go "
            "on; repeat the command when `squeue` answers"
        )
    return 1 if missed else 0


def _choose(graph: Graph, subtree: str | None, run: str | None) -> Sequence[Node]:
    """Return the runs that the options name: one pretraining with its evaluations, one run, or all."""
    if run is not None:
        return [graph.find(run)]
    if subtree is None:
        return graph.nodes
    pretrainings = [node for node in graph.nodes if node.parent is None]
    try:
        top = Graph(graph.study, graph.points, pretrainings).find(subtree)
    except UserError:  # it may name one of the evaluations
        node = graph.find(subtree)
        top = node if node.parent is None else node.parent
    return [top, *top.children]


def _may_be_in_job(status: RunStatus) -> bool:
    """Whether SLURM does not answer about its newest job, and nothing else says that it is in none."""
    if status.state == "done" or status.job is None or status.info is None or status.info.source:
        return False
    if status.state == "running":
        return status.heartbeat.get("job") is not None
    failure = status.node.run.failure()
    return failure is None or float(failure.get("time") or 0.0) < status.job.time  # else it ended in that job


def _is_in_job(status: RunStatus) -> bool:
    return status.info is not None and (status.info.waiting or status.info.working)


def _stop_here(status: RunStatus) -> bool:
    """Ask the process that holds the run to stop; False if it is on another machine, or belongs to another user."""
    beat = status.heartbeat
    if beat.get("host") != socket.gethostname() or not isinstance(beat.get("pid"), int):
        return False
    # The heartbeat may be of a process that has died, and its number another's by now. Whoever holds the lock lives.
    if status.node.run.state() == "running":
        try:
            os.kill(beat["pid"], signal.SIGTERM)
        except PermissionError:  # another user's, in a folder that both can write
            return False
    return True
