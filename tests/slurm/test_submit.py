"""What is queued is queued once, in arrays that the cluster takes, and runs the code of its submission."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from sweep import CLUSTER, PROJECT, Sweep, study, undisturbed

from runtime import provenance
from sweeps.slurm.records import read_jobs, submissions

pytestmark = pytest.mark.slurm


def unique_runs(sweep: Sweep) -> list[str]:
    """The run of every job that was ever recorded, in all submissions."""
    found = [job.run for submission in submissions(sweep.folder / "runs") for job in submission.jobs()]
    assert len(found) == len(set(found)), "a run has two jobs"
    return found


def test_twelve_runs_where_an_array_may_have_six(cluster: Cluster, tmp_path: Path) -> None:
    twelve = study(steps=3, evals=1, alpha=[0.0, 0.5, 1.0], seed=[0, 1, 2, 3])
    truth = undisturbed(cluster, tmp_path / "local", twelve)
    cluster.configure(MaxArraySize="6")
    try:
        sweep = Sweep(cluster, tmp_path / "slurm", study=twelve)
        sweep.write("cluster.yaml", {**CLUSTER, "pretrain": {"parallel": 4}})
        shown = sweep.submit()
        assert "24 runs queued now" in shown
        assert shown.count("6 x pretrain") == shown.count("6 x linear after aftercorr") == 2
        limits = cluster.run("squeue", "-h", "-o", "%i %j").splitlines()
        assert sum("%2]" in line for line in limits if "pretrain" in line) <= 2  # four at a time, in two arrays
        sweep.wait_for_end(24)
        assert sweep.results() == truth
        assert len(unique_runs(sweep)) == 24
        assert "0 runs queued now, 24 done" in sweep.submit()
    finally:
        cluster.configure(MaxArraySize="1001")


def test_twenty_submits_at_once_queue_each_run_once(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    sweep = Sweep(cluster, tmp_path / "slurm", study=study(steps=3))
    sweep.write("pretrain.yaml", {"machine": {"hold": str(tmp_path / "hold")}})
    options = ("--cluster", "slurm", "--cluster-config", "cluster.yaml")
    shells = [sweep.start("submit", *options) for _ in range(20)]
    shown = [shell.communicate()[0] for shell in shells]
    assert [shell.returncode for shell in shells] == [0] * 20, shown
    assert sum("9 runs queued now" in text for text in shown) == 1
    assert sum("0 runs queued now" in text for text in shown) == 19
    assert len(sweep.jobs()) == len(unique_runs(sweep)) == 9
    (tmp_path / "hold").unlink()
    sweep.wait_for_end(9)


LOST = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'


@pytest.mark.parametrize(
    ("after", "ending", "code"), [(1, "kill -9 $PPID; exit 0", -9), (2, "kill -9 $PPID; exit 0", -9), (2, LOST, 2)]
)
def test_an_answer_of_sbatch_that_is_never_recorded(
    after: int, ending: str, code: int, cluster: Cluster, tmp_path: Path
) -> None:
    """The submitter is killed, or the answer gets lost: the next one knows the jobs by name, and queues none twice."""
    sweep = Sweep(cluster, tmp_path / "slurm", study=study(steps=3))
    tools = tmp_path / "tools"
    tools.mkdir()
    # The real sbatch; once it has queued the n-th job, it kills its caller, or says that the controller did not answer.
    (tools / "sbatch").write_text(
        f"""#!/bin/bash
{shutil.which("sbatch")} "$@" || exit
case "$*" in *--test-only*) exit;; esac
echo >> {tmp_path}/calls
[ $(wc -l < {tmp_path}/calls) != {after} ] && exit 0
{ending}
"""
    )
    (tools / "sbatch").chmod(0o755)
    path = f"{tools}:{cluster.environment['PATH']}"
    sweep.command("submit", "--cluster", "slurm", "--cluster-config", "cluster.yaml", code=code, PATH=path)
    queued = 3 * after
    assert len(read_jobs(sweep.folder / "runs")) == queued - 3
    assert len(sweep.jobs()) == queued
    shown = sweep.submit()
    assert "was queued, and that was not recorded" in shown
    sweep.wait_for_end(9)
    assert len(unique_runs(sweep)) == len(sweep.jobs()) == 9
    assert sweep.results() == undisturbed(cluster, tmp_path / "local", study(steps=3))


def test_the_shell_neither_changes_a_job_nor_hides_it(cluster: Cluster, tmp_path: Path) -> None:
    """The cluster file says the partition and the limit, `submit` the name."""
    sweep = Sweep(cluster, tmp_path / "slurm", study=study(steps=3, alpha=[0.5], seed=[0]))
    shell = {"SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "1", "SBATCH_JOB_NAME": "mine", "SQUEUE_PARTITION": "high"}
    around = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "1", "SLURM_MEM_PER_NODE": "1", "RANK": "1", "WORLD_SIZE": "2"}
    sweep.submit(**shell, **around)
    own = {job.split()[2] for job in sweep.jobs()}
    shown = map(str.split, cluster.run("squeue", "-h", "--states=all", "-o", "%j %P %l").splitlines())
    assert [options for name, *options in shown if name in own] == [["low", "10:00"]] * 3
    sweep.wait_for_end(3)
    assert "0 runs queued now, 3 done" in sweep.submit(**shell, **around)


def make_checkout(folder: Path) -> Path:
    """A project of its own, in git, with one file that is not committed and one that git does not know."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z", "*.py", "*.yaml"]
    names = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in names.stdout.split("\0"):
        if name and (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True)
    text = folder / "runtime" / "progress.py"
    text.write_text(text.read_text() + '\nWORD = "as submitted"\n')
    (folder / "runtime" / "unknown.py").write_text('WORD = "untracked, as submitted"\n')
    return folder


def test_code_edited_while_jobs_wait_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    project = make_checkout(tmp_path / "project")
    (tmp_path / "hold").touch()
    sweep = Sweep(cluster, tmp_path / "slurm", project, study(steps=3, alpha=[0.5, 1.0]))
    sweep.write("pretrain.yaml", {"machine": {"hold": str(tmp_path / "hold")}})
    sweep.write("cluster.yaml", {**CLUSTER, "pretrain": {"parallel": 1}})  # the second waits, as all evaluations do
    sweep.submit()
    for file in (project / "runtime").glob("*.py"):
        file.write_text("raise RuntimeError('edited meanwhile')\n")
    sweep.write("pretrain.yaml", {"train": {"duration": "999 steps"}})
    sweep.write("linear.yaml", {"rounds": 77})
    (tmp_path / "hold").unlink()
    sweep.wait_for_end(6)
    assert sweep.results() == undisturbed(cluster, tmp_path / "local", study(steps=3, alpha=[0.5, 1.0]))

    submission = submissions(sweep.folder / "runs")[0]
    told = json.loads((submission.code / provenance.SNAPSHOT).read_text())
    assert "as submitted" in told["diff"]
    assert told["untracked"] == ["runtime/unknown.py"]
    assert (submission.code / "runtime" / "unknown.py").exists()
    # The environment has an editable install of another copy, and the working directory is a third place.
    assert sweep.logs().count(f"with the code of {submission.code}") == 6
    for file in sweep.folder.glob("runs/*/*/run.yaml"):
        attempt = yaml.safe_load(file.read_text())["attempts"][0]
        assert attempt["snapshot"] == str(submission.code)
        assert (attempt["commit"], attempt["dirty"]) == (told["commit"], True)


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"sbatch": {"reservation": "never"}}, "reservation is invalid"),
        ({"srun": {"container-imag": "x.sqsh"}}, "unrecognized option '--container-imag=x.sqsh'"),
    ],
)
def test_what_slurm_refuses_is_told_before_anything_is_queued(
    linear: dict[str, Any], message: str, cluster: Cluster, tmp_path: Path
) -> None:
    sweep = Sweep(cluster, tmp_path)
    sweep.write("cluster.yaml", {**CLUSTER, "linear": linear})
    options = ("--cluster", "slurm", "--cluster-config", "cluster.yaml")
    shown = sweep.command("submit", *options, code=2)
    assert message in shown.lower()
    assert "nothing was queued" in shown
    assert sweep.jobs() == []
    assert submissions(tmp_path / "runs") == []


def test_options_of_sbatch_and_srun_arrive(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run(
        "scontrol",
        "create",
        "reservation=spring",
        "users=root",
        "nodes=n2",
        "starttime=now",
        "duration=10",
        "flags=ignore_jobs",
    )
    try:
        sweep = Sweep(cluster, tmp_path, study=study(steps=3, evals=1, alpha=[0.5, 1.0]))
        everywhere = {**CLUSTER["all"], "memory_gb": None}
        everywhere |= {"sbatch": {"comment": "two words", "mail-user": "me@lab.org", "mail-type": "END,FAIL"}}
        pretrain = {"gpus": "tiny:1", "sbatch": {"reservation": "spring"}, "srun": {"label": True}}
        linear = {"gpus": None, "sbatch": {"gres": "gpu:tiny:2", "exclusive": True, "mem-per-cpu": "100M"}}
        sweep.write("cluster.yaml", {"all": everywhere, "pretrain": pretrain, "linear": linear})
        sweep.submit()
        # slurmctld still shows the ended jobs of other tests.
        jobs = [job for job in cluster.run("scontrol", "-o", "show", "job").splitlines() if f"{tmp_path}/" in job]
        shown = {part: next(job for job in jobs if f"-{part}-" in job) for part in ("pretrain", "linear")}
        for job in shown.values():
            for option in ("Comment=two words", "MailUser=me@lab.org", "MailType=END,FAIL"):
                assert option in job
        for option in ("Reservation=spring", "gpu:tiny:1 ", "MinMemoryNode=500M"):
            assert option in shown["pretrain"]
        for option in ("gpu:tiny:2 ", "OverSubscribe=NO", "MinMemoryCPU=100M"):
            assert option in shown["linear"]
        sweep.wait_for_end(4)
        assert "0: [job] pretrain/" in sweep.logs()
        assert {job.resources["gpus"] for job in read_jobs(tmp_path / "runs").values()} == {1, 2}
    finally:
        cluster.clear()
        cluster.run("scontrol", "delete", "reservation=spring")
