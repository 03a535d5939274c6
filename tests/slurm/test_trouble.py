"""Runs that fail or are cancelled on a real cluster: each told by its class, siblings unharmed, `retry` mends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from sweep import CLUSTER, PROJECT, Sweep, study, undisturbed

from runtime.rundir import Run
from sweeps.slurm.parse import array_id
from sweeps.slurm.records import Job, read_jobs

pytestmark = pytest.mark.slurm
ACCOUNTED = ["PENDING", "RUNNING", "RUNNING"]
ON_SLURM = ("--cluster", "slurm", "--cluster-config", "cluster.yaml")


def status(sweep: Sweep, code: int) -> dict[str, dict[str, Any]]:
    """What `status --json` says of each run, by its title."""
    shown = json.loads(sweep.command("status", "--json", code=code))
    return {f"{run['part']} {run['label']}": run for run in shown["runs"]}


def kinds(runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of each pretraining: its class of failure, or its state."""
    return {
        title.partition("=")[2]: run["failure"]["kind"] if run["failure"] else run["state"]
        for title, run in runs.items()
        if run["part"] == "pretrain"
    }


def job_of(sweep: Sweep, alpha: str) -> Job:
    jobs = read_jobs(sweep.folder / "runs")
    return next(job for run, job in jobs.items() if run.startswith(f"pretrain/light-alpha{alpha}-"))


def run_of(sweep: Sweep, alpha: str) -> Run:
    return Run(sweep.folder / "runs" / job_of(sweep, alpha).run)


def wait_for_quiet(sweep: Sweep) -> None:
    """Until no job waits or runs."""
    wait_until(lambda: not sweep.jobs_left(), "no job is left", poll=0.5)


def test_each_way_to_fail_has_its_class_and_retry_mends(cluster: Cluster, tmp_path: Path) -> None:
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    five = study(steps=3, alpha=alphas, seed=[0])
    trouble = tmp_path / "trouble"
    trouble.mkdir()
    for alpha, word in (("0.25", "raise"), ("0.5", "nan"), ("0.75", "allocate"), ("1", "grow")):
        (trouble / alpha).write_text(word)
    sweep = Sweep(cluster, tmp_path / "slurm", study=five)
    sweep.write("pretrain.yaml", {"machine": {"trouble": str(trouble)}})
    sweep.submit()
    wait_for_quiet(sweep)
    runs = status(sweep, code=1)
    expected = {"0.25": "exception", "0.5": "not_finite", "0.75": "out_of_memory", "1.0": "out_of_memory"}
    assert kinds(runs) == {"0.0": "done", **expected}
    assert runs["pretrain loss.alpha=0.25"]["failure"]["last_line"] == "RuntimeError: told to raise"
    assert "step 1" in runs["pretrain loss.alpha=0.5"]["failure"]["last_line"]
    evaluations = {title: run["state"] for title, run in runs.items() if run["part"] != "pretrain"}
    assert {state for title, state in evaluations.items() if title.endswith("=0.0")} == {"done"}
    assert {state for title, state in evaluations.items() if not title.endswith("=0.0")} == {"blocked"}
    assert len(sweep.results()) == 3  # none of the failed ones has been evaluated
    shown = sweep.command("logs", "pretrain loss.alpha=0.25")
    assert "RuntimeError: told to raise" in shown

    assert "nothing is missing" in sweep.command("reconcile", *ON_SLURM)
    for file in trouble.iterdir():
        file.unlink()
    assert "6 runs queued now" in sweep.command("retry", "--kind", "out_of_memory", *ON_SLURM)
    assert "3 runs queued now" in sweep.command("retry", "--run", run_of(sweep, "0.25").name, *ON_SLURM)
    assert "3 runs queued now" in sweep.command("retry", *ON_SLURM)
    sweep.wait_for_end(15)
    assert sweep.results() == undisturbed(cluster, tmp_path / "local", five)
    assert kinds(status(sweep, code=0)) == {str(alpha): "done" for alpha in alphas}
    assert "nothing to retry" in sweep.command("retry", *ON_SLURM)


def test_what_is_cancelled_stays_so_until_it_is_retried(cluster: Cluster, tmp_path: Path) -> None:
    alphas = [0.0, 0.25, 0.5, 1.0]
    four = study(steps=6, alpha=alphas, seed=[0])
    hold = tmp_path / "hold"
    hold.touch()
    sweep = Sweep(cluster, tmp_path / "slurm", study=four)
    sweep.write("pretrain.yaml", {"machine": {"hold": str(hold)}})
    sweep.write("cluster.yaml", {**CLUSTER, "pretrain": {"parallel": 3}})  # alpha 1 waits
    sweep.submit()
    held = ("0", "0.25", "0.5")
    sweep.wait_for(lambda: all(run_of(sweep, alpha).state() == "running" for alpha in held), "three runs are held")

    cluster.run("scancel", job_of(sweep, "0.25").job)  # one task of the array, by hand
    assert "cancelled 1 of" in sweep.command("cancel", "--run", "pretrain loss.alpha=0.5")
    assert "cancelled 3 of" in sweep.command("cancel", "--subtree", "pretrain loss.alpha=1.0")
    hold.unlink()
    sweep.wait_for_end(3)
    wait_for_quiet(sweep)
    runs = status(sweep, code=1)
    cancelled = dict.fromkeys(("0.25", "0.5", "1.0"), "cancelled")
    assert kinds(runs) == {"0.0": "done", **cancelled}
    assert "nothing is missing" in sweep.command("reconcile", *ON_SLURM)
    # Those that were at work have saved, and go on from there.
    assert (run_of(sweep, "0.25").path / "checkpoint").is_file()
    assert (run_of(sweep, "0.5").path / "checkpoint").is_file()

    assert "9 runs queued now" in sweep.command("retry", "--kind", "cancelled", *ON_SLURM)
    sweep.wait_for_end(12)
    assert sweep.results() == undisturbed(cluster, tmp_path / "local", four)
    assert all(steps == list(range(6)) for steps in sweep.steps().values()), sweep.steps()

    hold.touch()  # the whole study, while its jobs wait or run
    longer = Sweep(cluster, sweep.folder, study=study(steps=7, alpha=alphas, seed=[0]))
    longer.write("pretrain.yaml", {"machine": {"hold": str(hold)}})
    longer.submit()
    assert "cancelled 12 of" in longer.command("cancel")
    wait_for_quiet(longer)
    assert set(kinds(status(longer, code=1)).values()) == {"cancelled"}


def test_what_slurmctld_forgot_in_a_crash_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    """Two tasks run and two wait: accounting calls them CANCELLED, by nobody, and the nodes end the two as nobody's."""
    hold = tmp_path / "hold"
    hold.touch()
    four = study(steps=6, evals=1, alpha=[0.5, 1.0, 0.0, 0.25])
    sweep = Sweep(cluster, tmp_path / "slurm", study=four)
    sweep.write("cluster.yaml", {**CLUSTER, "pretrain": {"parallel": 2}})
    sweep.write("pretrain.yaml", {"machine": {"hold": str(hold), "save_steps": 1}})
    with cluster.crash_and_forget():
        sweep.submit()
        sweep.wait_for(lambda: {run_of(sweep, alpha).state() for alpha in ("0.5", "1")} == {"running"}, "both run")
        array = array_id(job_of(sweep, "0.5").job)
        sweep.wait_for(
            lambda: sorted(cluster.run("sacct", "-X", "-n", "-P", "-j", array, "-o", "State").split()) == ACCOUNTED,
            "accounting knows the array as it is",
        )
    ended = ("interrupted", "failed")
    sweep.wait_for(lambda: all(run_of(sweep, alpha).state() in ended for alpha in ("0.5", "1")), "both are ended")
    hold.unlink()
    assert not any(run_of(sweep, alpha).path.exists() for alpha in ("0", "0.25"))
    assert kinds(status(sweep, code=1)) == dict.fromkeys(("0.5", "1.0", "0.0", "0.25"), "lost")
    assert "8 runs queued now" in sweep.command("reconcile", *ON_SLURM)
    sweep.wait_for_end(8)
    assert sweep.results() == undisturbed(cluster, tmp_path / "local", four)


def test_a_parent_that_slurm_has_forgotten_is_not_evaluated(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM lifts afterok on a job that it has purged, though that failed: the evaluation looks for itself."""
    trouble = tmp_path / "trouble"
    trouble.mkdir()
    (trouble / "0.5").write_text("raise")
    cluster.configure(MinJobAge="2")
    try:
        sweep = Sweep(cluster, tmp_path / "slurm", study=study(steps=3, alpha=[0.5], seed=[0]))
        sweep.write("pretrain.yaml", {"machine": {"trouble": str(trouble)}})
        sweep.submit()
        parent = job_of(sweep, "0.5").job
        sweep.wait_for(lambda: run_of(sweep, "0.5").failure() is not None, "the pretraining has failed")
        wait_until(lambda: parent not in cluster.run("squeue", "-h", "-t", "all", "-o", "%i"), "it is purged")
        assert kinds(status(sweep, code=1)) == {"": "exception"}

        array = next(json.loads(f.read_text()) for f in sweep.folder.glob("runs/jobs/*/arrays/*linear*.json"))
        argv = array["tasks"][0]["argv"]
        real = [sys.executable, "-m", "eval.linear", run_of(sweep, "0.5").path, "machine.runs=runs"]
        real += ["--config", PROJECT / "eval" / "configs" / "linear_scenes.yaml"]
        for command in (argv, real):
            submit = ["sbatch", "--parsable", "--mem=500", f"--dependency=afterok:{parent}", f"--chdir={sweep.folder}"]
            submit += [f"--export=ALL,PYTHONPATH={PROJECT}", f"--output={sweep.folder}/%j.out"]
            job = cluster.run(*submit, f"--wrap={' '.join(map(str, command))}").strip()
            log = sweep.folder / f"{job}.out"
            wait_until(lambda log=log: log.exists() and "error: " in log.read_text(), "the evaluation has refused")
            assert "is failed, and only a pretrain" in log.read_text()
        assert not list(sweep.folder.glob("runs/*/*/result.json"))
    finally:
        cluster.configure(MinJobAge="300")
