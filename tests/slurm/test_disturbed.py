"""Whatever the cluster does meanwhile, the results are those of an undisturbed run on this machine."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from sweep import CLUSTER, Sweep, study, undisturbed

# What takes minutes begins now, to be looked at by test_time_limit.py.
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("limited")]
TWO: dict[str, Any] = study(steps=12, evals=1, alpha=[0.5, 1.0])


@pytest.fixture(scope="module")
def truth(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return undisturbed(session_cluster, tmp_path_factory.mktemp("local"), TWO)


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path) -> Sweep:
    """Two pretrainings, each of which fills most of a node, stopped in the middle until `release`."""
    (tmp_path / "hold").touch()
    made = Sweep(cluster, tmp_path / "slurm", study=TWO)
    made.write("cluster.yaml", {**CLUSTER, "pretrain": {"cpus": 6}})
    made.write("pretrain.yaml", {"machine": {"hold": str(tmp_path / "hold"), "save_steps": 1}})
    return made


def release(sweep: Sweep) -> None:
    (sweep.folder.parent / "hold").unlink()


def at_work(sweep: Sweep, attempts: int = 1) -> bool:
    """Whether both pretrainings are within a step, of their `attempts`-th attempt."""
    files = list(sweep.folder.glob("runs/pretrain/*/run.yaml"))
    return len(files) == 2 and all(file.read_text().count("started:") >= attempts for file in files)


def submit_and_wait(sweep: Sweep) -> None:
    sweep.submit()
    sweep.wait_for(lambda: at_work(sweep), "both pretrainings are at work")


def states(sweep: Sweep) -> set[str]:
    return {job.split()[0] for job in sweep.jobs()}


@pytest.mark.parametrize("user_signal", [False, True], ids=["TERM", "USR2"])
@pytest.mark.parametrize("grace", [0, 20], ids=["grace-0", "grace-20"])
def test_preempted_by_a_partition_of_higher_priority(
    grace: int, user_signal: bool, cluster: Cluster, sweep: Sweep, truth: dict[str, Any]
) -> None:
    cluster.configure(SlurmctldParameters="preempt_send_user_signal" if user_signal else "")
    cluster.run("scontrol", "update", "PartitionName=low", f"GraceTime={grace}")
    # Saved when it is told to, or not at all: what it goes on with is what the signal made it save.
    sweep.write("pretrain.yaml", {"machine": {"hold": str(sweep.folder.parent / "hold"), "save_steps": 0}})
    submit_and_wait(sweep)
    cluster.take_nodes("-N2", "--cpus-per-task=6", "--mem=100")
    release(sweep)
    sweep.wait_for_end(4)
    assert sweep.results() == truth
    assert at_work(sweep, attempts=2)
    for steps in sweep.steps().values():
        assert steps == list(range(12))  # none twice: it went on exactly where it had stopped


def test_slurmd_of_a_node_killed_and_started_again(cluster: Cluster, sweep: Sweep, truth: dict[str, Any]) -> None:
    """Jobs outlive their daemon, where SLURM does not take the node for dead before they end."""
    cluster.configure(SlurmdTimeout="600")
    try:
        submit_and_wait(sweep)
        cluster.kill("slurmd-n1", signal.SIGKILL)
        release(sweep)
        sweep.wait_for(lambda: len(sweep.results()) >= 2, "the pretrainings are done")
        cluster.start_node("n1")
        sweep.wait_for_end(4)
    finally:
        cluster.configure(SlurmdTimeout="15")
    assert sweep.results() == truth
    assert not at_work(sweep, attempts=2)


def test_a_node_that_loses_power(cluster: Cluster, sweep: Sweep, truth: dict[str, Any]) -> None:
    """Everything on it is gone without a word; the run goes on from its last periodic save."""
    submit_and_wait(sweep)
    cluster.kill("slurmd-n1", signal.SIGKILL)
    for pid in cluster.processes_of_node("n1"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.start_node("n1")
    sweep.wait_for(lambda: any("PENDING" in job and "pretrain" in job for job in sweep.jobs()), "it is requeued")
    release(sweep)
    sweep.wait_for_end(4)
    assert sweep.results() == truth
    assert max(file.read_text().count("started:") for file in sweep.folder.glob("runs/pretrain/*/run.yaml")) == 2


def test_slurmctld_restarted_while_jobs_run(cluster: Cluster, sweep: Sweep, truth: dict[str, Any]) -> None:
    submit_and_wait(sweep)
    cluster.lose_controller()
    release(sweep)
    sweep.wait_for(lambda: len(sweep.results()) >= 2, "the pretrainings are done")
    cluster.start_controller()
    sweep.wait_for_end(4)
    assert sweep.results() == truth


def test_a_job_that_has_to_go_back_while_slurmctld_is_away(
    cluster: Cluster, sweep: Sweep, truth: dict[str, Any]
) -> None:
    submit_and_wait(sweep)
    cluster.lose_controller()
    for task in cluster.tasks_of(sweep.folder):
        os.kill(task, signal.SIGUSR2)
    sweep.wait_for(lambda: sweep.logs().count("saved at step") == 2, "both runs have saved")
    release(sweep)
    cluster.start_controller()
    sweep.wait_for_end(4)
    assert sweep.results() == truth
    assert at_work(sweep, attempts=2)


def test_slurmdbd_stopped(cluster: Cluster, sweep: Sweep, truth: dict[str, Any]) -> None:
    """Nothing is accounted for: submitting, running and submitting again go on."""
    cluster.kill("slurmdbd", signal.SIGTERM)
    try:
        submit_and_wait(sweep)
        assert "0 runs queued now" in sweep.submit()
        release(sweep)
        sweep.wait_for_end(4)
        assert sweep.results() == truth
        assert "0 runs queued now, 4 done" in sweep.submit()
    finally:
        cluster.start_accounting()


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, sweep: Sweep) -> None:
    """scancel sends TERM as a preemption does; the run saves and stops, and nobody requeues it."""
    submit_and_wait(sweep)
    jobs = [job.split()[1] for job in sweep.jobs() if "pretrain" in job]
    cluster.run("scancel", *jobs)
    sweep.wait_for(lambda: not sweep.jobs_left(), "no job is left")
    assert states(sweep) == {"CANCELLED"}
    assert sweep.logs().count("saved at step") == 2
    assert sweep.results() == {}
