"""Queue a plan's jobs by submitit, each run once, whatever happens to the submitter.

One submitter works at a time (a lock). It writes down each job, under a unique name, before it calls sbatch. If it is
killed before it records sbatch's answer, or the answer gets lost, the next submitter asks SLURM for those names.
"""

from __future__ import annotations

import os
import re
import shlex
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from submitit.slurm.slurm import SlurmExecutor

from data.config import data_root
from runtime import config as configs
from runtime.config_keys import merge, nested
from runtime.errors import UserError
from sweeps.failures import clear_cancelled
from sweeps.graph import Graph, Node
from sweeps.slurm import commands, parse
from sweeps.slurm.config import ClusterConfig, Resources, as_arguments, option_values, overriding_variables
from sweeps.slurm.job import Task
from sweeps.slurm.plan import JobBatch, Plan, make_plan
from sweeps.slurm.records import Submission, copy_code, lock, submissions
from sweeps.status import RunStatus, count_states, read_status

# A submitter may be killed while sbatch talks to the controller: its job may appear this much later.
SETTLE_SECONDS = 15.0
_RECORDED_RESOURCES = ("nodes", "tasks_per_node", "cpus", "memory_gb", "minutes", "partition")
# Of a job or a torchrun around `submit`, by the beginning of their names. sbatch passes its environment on to the job.
_SURROUNDING = (
    *("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "TORCHELASTIC_", "CUDA_VISIBLE_DEVICES"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
# The same as yaml.safe_dump, many times faster if PyYAML was built with libyaml.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def submit(graph: Graph, cluster: ClusterConfig, machine: Sequence[str], nodes: Collection[Node] | None) -> None:
    """Queue those of `nodes` (None: of all runs) that are not done and have no job.

    Raises UserError, before anything is queued, if a run cannot be written, or SLURM refuses the resources of a part or
    does not answer.
    """
    runs = Path(graph.root).resolve()
    with lock(runs):
        adopt(runs)
        statuses = read_status(graph)
        _require_answers(statuses)
        plan = make_plan(statuses, cluster, commands.max_array_size(), set(graph.nodes if nodes is None else nodes))
        if plan.batches:
            _Submitter(graph, runs, machine).queue(plan)
    for line in _summary(statuses, plan):
        print(line)


def adopt(runs: Path) -> None:
    """Record jobs that earlier submitters queued and did not record. The lock must be held."""
    for submission in submissions(runs):
        for name in submission.unrecorded():
            planned = submission.array_file(name).stat().st_mtime
            # Absence counts only after a while: sbatch may have been sent, and the controller not have queued it yet.
            while (job := commands.job_ids_by_name().get(name)) is None and time.time() - planned < SETTLE_SECONDS:
                time.sleep(1.0)
            if job is None:
                submission.abandon(name)
                continue
            jobs = submission.record(name, job)
            print(f"job {job} ({name}, {len(jobs)} runs) was queued, and that was not recorded; it is now")


def _require_answers(statuses: Mapping[Node, RunStatus]) -> None:
    """Refuse to queue a run that may have a job already."""
    unknown = [one for one in statuses.values() if one.state != "done" and one.info and not one.info.source]
    if unknown:
        raise UserError(
            f"SLURM does not answer about {len(unknown)} runs that were submitted before, for example "
            f"{unknown[0].node.name}; nothing was queued; repeat the command when `squeue` answers"
        )


class _Submitter:
    """Queues a plan, one batch after the other."""

    def __init__(self, graph: Graph, runs: Path, machine: Sequence[str]) -> None:
        self.graph = graph
        self.runs = runs
        self.machine = machine
        self.jobs: dict[Node, str] = {}  # of this submission
        self.configs: dict[tuple[str, str, tuple[str, ...]], dict[str, Any]] = {}

    def queue(self, plan: Plan) -> None:
        for node in (node for batch in plan.batches for node in batch.nodes):
            node.run.require_writable()
        for batch in {batch.part: batch for batch in plan.batches}.values():
            check_resources(batch, self.runs)
        self.submission = Submission.begin(self.runs, {"file": self.graph.study.file, "name": self.graph.study.name})
        code = copy_code(self.submission.code)
        self.submission.describe(**code.to_record(), snapshot=str(self.submission.code))
        for number, batch in enumerate(plan.batches):
            self._queue_batch(number, batch)

    def _queue_batch(self, number: int, batch: JobBatch) -> None:
        submission = self.submission
        name = f"{self.graph.study.name}-{_job_name(batch.part)}-{submission.id}-{number}"
        dependency = self._dependency(batch)
        for node in batch.nodes:
            clear_cancelled(node.run)
        array_file = submission.write_plan(name, self._document(batch))
        tasks = [Task(str(array_file), index) for index in range(len(batch.nodes))]
        executor = _executor(name, batch, dependency, submission.logs, submission.code)
        try:
            with _environment_of_sbatch(batch.resources), executor.batch():
                queued = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit raises FailedJobError, with sbatch's message at its end
            message = parse.error_summary(str(error))
            if parse.NO_CONTROLLER.search(message):
                # The controller may have queued the job, and only its answer got lost: `adopt` asks for the name.
                raise UserError(f"SLURM does not answer about {name}: {message}; repeat the command") from error
            submission.abandon(name)
            raise UserError(f"sbatch refused {name}: {message}") from error
        job = parse.array_id(str(queued[0].job_id))
        recorded = submission.record(name, job)
        self.jobs |= {node: one.job for node, one in zip(batch.nodes, recorded, strict=True)}
        print(f"job {job}: {len(batch.nodes)} x {batch.part}{f' after {dependency}' if dependency else ''}")

    def _dependency(self, batch: JobBatch) -> str:
        """Return the batch's dependency for sbatch; "" for none."""
        parent = batch.nodes[0].parent
        if batch.after_batch is None or parent is None:
            return batch.after_job
        if len(batch.nodes) > 1:
            return f"aftercorr:{parse.array_id(self.jobs[parent])}"
        return f"afterok:{self.jobs[parent]}"

    def _document(self, batch: JobBatch) -> dict[str, Any]:
        """Make the plan of a job for its tasks; paths are absolute, whatever the job's working directory."""
        return {
            "part": batch.part,
            "time": time.time(),
            "resources": {key: getattr(batch.resources, key) for key in _RECORDED_RESOURCES}
            | {"gpus": batch.resources.gpus_per_node},
            "cwd": os.getcwd(),
            "code": str(self.submission.code),
            "logs": str(self.submission.logs),
            "container": batch.resources.container,
            "environment": {"VICREGL_DATA": str(data_root().resolve())},
            "tasks": [self._task(node, batch.resources) for node in batch.nodes],
        }

    def _task(self, node: Node, resources: Resources) -> dict[str, Any]:
        config = self.submission.path / "configs" / f"{node.identity.stage}-{node.identity.hash}.yaml"
        config.write_text(yaml.dump(self._values(node), Dumper=_DUMPER, sort_keys=False), encoding="utf-8")
        parent = None
        if node.parent is not None:
            root = self.runs if node.parent.root == node.root else Path(node.parent.root)  # a run may lie elsewhere
            parent = (root / node.parent.name).resolve()
        _, *arguments = node.stage.argv(str(config), node.machine_overrides(self.runs, self.machine), parent, node.at)
        argv = [resources.interpreter, *arguments]
        return {"run": node.name, "path": str(self.runs / node.name), "argv": argv}

    def _values(self, node: Node) -> dict[str, Any]:
        """Return the resolved config; an evaluation's identity says more (a moment, a subset's images)."""
        is_eval = node.parent is not None
        key = (node.stage.name, node.config_file, node.overrides if is_eval else ())  # pretrainings share `machine`
        if key not in self.configs:
            self.configs[key] = configs.to_dict(node.stage.load(node.config_file, node.overrides))
        resolved = self.configs[key]
        values = resolved if is_eval else {**node.identity.config, "machine": resolved["machine"]}
        return merge(values, nested(node.places))


class Executor(SlurmExecutor):
    """Submitit's executor, but a job begins at start.py of the submission's code, not at submitit's own module."""

    def __init__(self, logs: Path, code: Path, python: str) -> None:
        super().__init__(folder=logs)
        self.start = [python, "-u", str(code / "sweeps" / "slurm" / "start.py")]

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([*self.start, str(self.folder)])


def _executor(name: str, batch: JobBatch, dependency: str, logs: Path, code: Path) -> Executor:
    """Make the executor of one job; one for all would not do, because submitit cannot unset a dependency."""
    resources = batch.resources
    optional = {
        "gpus_per_node": resources.gpus or None,
        "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "setup": list(resources.setup) or None,
        "dependency": dependency or None,
    }
    executor = Executor(logs, code, resources.supervisor_interpreter)
    executor.update_parameters(
        job_name=name,
        time=int(resources.minutes),  # submitit compares it as an integer
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        cpus_per_task=resources.cpus,
        signal_delay_s=resources.signal_seconds,
        array_parallelism=batch.parallel or len(batch.nodes),
        stderr_to_stdout=True,
        wckey=None,  # submitit's default is a key that accounting may refuse
        # sbatch's --requeue is off on some clusters, and submitit never gives it. An evaluation whose pretraining
        # failed would wait for ever: --kill-on-invalid-dep. --no-kill is left out: a lost node ends the job.
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes", **option_values(resources.sbatch)},
        # srun does not inherit the number of CPUs from sbatch in several versions. When one rank fails, the others
        # must not hang.
        srun_args=[f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1", *as_arguments(resources.srun)],
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def check_resources(batch: JobBatch, folder: Path) -> None:
    """Let SLURM check the resources of a batch without queueing it; UserError with its message if it refuses."""
    name = f"check-{_job_name(batch.part)}"
    executor = _executor(name, JobBatch(batch.part, batch.nodes[:1], batch.resources), "", folder, folder)
    script = executor._make_submission_file_text(executor._submitit_command_str, uuid.uuid4().hex)
    try:
        with _environment_of_sbatch(batch.resources):
            commands.test_only(script)
            commands.check_srun(as_arguments(batch.resources.srun))
    except UserError as error:
        raise UserError(f"{name}: {error}; correct the cluster config (nothing was queued)") from error


@contextmanager
def _environment_of_sbatch(resources: Resources) -> Iterator[None]:
    """Hide variables of this process that would override the cluster file, or that belong to a job around it."""
    names = overriding_variables(resources)
    if {"SLURM_JOB_ID", "RANK", "WORLD_SIZE"} & os.environ.keys():
        names += [name for name in os.environ if name.startswith(_SURROUNDING) and name not in _OF_THE_CLUSTER]
    hidden = {name: os.environ.pop(name) for name in names}  # submitit gives sbatch what is left
    try:
        yield
    finally:
        os.environ.update(hidden)


def _job_name(part: str) -> str:
    """Replace what does not belong in the name of a job and of a file."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", part)


def _summary(statuses: Mapping[Node, RunStatus], plan: Plan) -> Iterator[str]:
    counts = count_states(statuses)
    before = [f"{counts[state]} {state}" for state in ("done", "queued", "running") if state in counts]
    yield ", ".join([f"{plan.runs} runs queued now", *before]) + f" of {len(statuses)}"
    if plan.left_out:
        first = plan.left_out[0].title
        yield f"{len(plan.left_out)} runs wait for a pretraining that is neither done nor queued, for example {first}"
