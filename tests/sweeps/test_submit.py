"""Answers of sbatch that get lost, without a scheduler; tests/slurm submits to a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import PROJECT
from runtime.errors import UserError
from sweeps.graph import Graph, build
from sweeps.slurm import commands as slurm_commands
from sweeps.slurm import submit
from sweeps.slurm.config import load_cluster
from sweeps.slurm.records import Submission, lock, read_jobs, submissions
from sweeps.study import load_study

Fake = Callable[..., Path]


@pytest.mark.parametrize(
    ("error", "lost"),
    [("Socket timed out on send/recv operation", True), ("Requested node configuration is not available", False)],
)
def test_a_job_whose_answer_was_lost_is_recorded_by_the_next_submission(
    error: str, lost: bool, make_graph: Callable[[], Graph], commands: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_graph()
    monkeypatch.setattr(submit, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(submit, "check_resources", lambda batch, folder: None)
    for name in ("sacct", "squeue", "srun"):
        commands(name)
    commands("scontrol", "MaxArraySize = 1001\n")
    commands("sbatch", code=1, error=f"sbatch: error: Batch job submission failed: {error}")
    with pytest.raises(UserError, match=error) as refused:
        submit.submit(graph, load_cluster(), (), None)
    assert ("repeat the command" in str(refused.value)) == lost
    runs = Path(graph.nodes[0].root).resolve()
    (submission,) = submissions(runs)
    (plan,) = (submission.path / "arrays").iterdir()
    commands("squeue", f"77|{plan.stem}\n")  # the controller had queued it
    with lock(runs):
        submit.adopt(runs)
    pretrainings = [node.name for node in graph.nodes if node.parent is None]
    recorded = {name: f"77_{i}" for i, name in enumerate(pretrainings)} if lost else {}
    assert {run: job.job for run, job in read_jobs(runs).items()} == recorded
    assert submission.unrecorded() == []


def test_an_array_that_a_full_disk_recorded_in_part_is_recorded_by_the_next_submission(
    small_disk: Callable[[int], Path], commands: Fake
) -> None:
    """Else the runs whose rows are missing would get a second job."""
    runs = small_disk(1)
    submission = Submission.begin(runs, {"name": "fake"})
    tasks = [{"run": f"pretrain/run{i}"} for i in range(200)]
    submission.write_plan("array", {"part": "pretrain", "tasks": tasks, "resources": {}})
    (runs / "filler").write_bytes(b"x" * (shutil.disk_usage(runs).free - 12_000))
    with pytest.raises(OSError, match="No space left"):
        submission.record("array", "7")
    assert 0 < len(list(submission.jobs())) < 200
    (runs / "filler").unlink()
    assert submission.unrecorded() == ["array"]
    commands("squeue", "7|array\n")
    with lock(runs):
        submit.adopt(runs)
    assert [(job.run, job.job) for job in submission.jobs()] == [(f"pretrain/run{i}", f"7_{i}") for i in range(200)]
    assert submission.unrecorded() == []


@pytest.mark.parametrize("container", ["", "apptainer exec image.sif"])
def test_a_job_begins_with_the_python_of_the_nodes(
    container: str, make_graph: Callable[[], Graph], commands: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login node may have no Python that runs on them. In a container there is another one than around it."""
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "cluster.yaml").write_text(f"all: {{python: ~/gpu/bin/python, container: {container!r}}}\n")
    for name in ("sacct", "squeue", "srun"):
        commands(name)
    commands("scontrol", "MaxArraySize = 1001\n")
    commands("sbatch", "Submitted batch job 7\n")
    graph = make_graph()
    submit.submit(graph, load_cluster(tmp_path / "cluster.yaml"), (), None)
    (submission,) = submissions(Path(graph.nodes[0].root).resolve())
    scripts = [file.read_text() for file in submission.logs.glob("*.sh")]
    supervisor = sys.executable if container else "/home/me/gpu/bin/python"
    assert scripts
    assert all(f" {supervisor} -u {submission.code}/sweeps/slurm/start.py" in script for script in scripts)
    plans = [json.loads(file.read_text()) for file in (submission.path / "arrays").iterdir()]
    assert {task["argv"][0] for plan in plans for task in plan["tasks"]} == {"/home/me/gpu/bin/python"}


RESOURCES = {
    "partition": "gpu",
    "account": "vision",
    "memory_gb": None,
    "sbatch": {"mem-per-cpu": "4G", "reserv": "spring"},  # SLURM takes the beginning of a name for the whole
}
OVERRIDDEN = ("PARTITION", "ACCOUNT", "TIMELIMIT", "SIGNAL", "JOB_NAME", "ARRAY_INX", "NO_REQUEUE", "WAIT", "OUTPUT")
OVERRIDDEN += ("GPUS", "GRES", "MEM_PER_NODE", "MEM_PER_GPU", "RESERVATION")
OF_A_JOB = ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_ADDR")


def test_the_shell_overrides_nothing_of_a_job(
    make_graph: Callable[[], Graph], commands: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the cluster file says, nor its name; and a job around `submit` leaves nothing in it."""
    (tmp_path / "cluster.yaml").write_text(json.dumps({"all": RESOURCES}))
    for name in ("sacct", "squeue", "srun"):
        commands(name)
    commands("scontrol", "MaxArraySize = 1001\n")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\nenv >> {tmp_path}/environment; echo Submitted batch job 7\n")
    sbatch.chmod(0o755)
    hidden = [*(f"SBATCH_{name}" for name in OVERRIDDEN), *OF_A_JOB]
    kept = ["SBATCH_QOS", "SBATCH_CONSTRAINT", "SBATCH_MEM_BIND", "SLURM_CONF"]
    for name in [*hidden, *kept]:
        monkeypatch.setenv(name, "1")
    submit.submit(make_graph(), load_cluster(tmp_path / "cluster.yaml"), (), None)
    assert {name: os.environ.get(name) for name in hidden} == dict.fromkeys(hidden, "1")
    names = [line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()]
    assert [name for name in hidden if name in names] == []
    assert {names.count(name) for name in kept} == {names.count("PATH")}


def test_the_shell_does_not_hide_jobs(commands: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = commands("squeue").with_name("squeue")
    squeue.write_text('#!/bin/sh\necho "7|$SQUEUE_STATES$SQUEUE_PARTITION"\n')
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    assert slurm_commands.job_ids_by_name() == {"": "7"}


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        assert name not in {missing}, f"{{name}} is imported"
sys.meta_path.insert(0, Missing())
from runtime.errors import run_command
from sweeps.__main__ import main
run_command(main)
"""


def test_a_login_node_needs_four_packages(commands: Fake, tmp_path: Path) -> None:
    """They are named in sweeps/README.md; no other package that requirements.txt names for the suite is imported."""
    text = (PROJECT / "sweeps/README.md").read_text().partition("## A login node")[2]
    named = re.search(r"with ((?:`[a-z]+`[,\sand]+)+)in the versions", text)
    assert named is not None
    assert re.findall(r"`([a-z]+)`", named[1]) == ["pydantic", "pyyaml", "rich", "submitit"]
    missing = [
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pandas",
        "scipy",
        "sklearn",
        "cv2",
        "PIL",
        "matplotlib",
        "tqdm",
    ]
    missing += ["mmengine", "mmcv", "mmseg", "safetensors", "tensorboard", "simplejpeg", "jinja2", "markdown_it"]
    for name in ("sacct", "squeue", "srun"):
        commands(name)
    commands("scontrol", "MaxArraySize = 1001\n")
    commands("sbatch", "Submitted batch job 7\n")
    study = [str(PROJECT / "sweeps/studies/alpha.yaml"), f"machine.runs={tmp_path / 'runs'}"]
    for words in (["submit", *study, "--cluster", "slurm"], ["status", *study]):
        code = [sys.executable, "-c", WITHOUT.format(missing=missing), *words]
        done = subprocess.run(code, cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", check=False)
        assert "32 runs" in done.stdout, done.stderr


STUDY = """
base: {project}/sweeps/studies/smoke.yaml
name: moments
pretrain: {{set: {{data.name: imagenet, data.root: /big/imagenet}}}}
evals:
  linear: {{at: [1 steps], set: {{subset: listed.txt}}}}
  segmentation: {{set: {{data.name: voc, data.root: /big/voc}}}}
"""


def test_the_config_of_a_job_names_the_same_run(
    commands: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity of an evaluation has more than its config: its moment, and the images of its subset.

    That of a published dataset has less: its folder.
    """
    monkeypatch.chdir(tmp_path)
    Path("listed.txt").write_text("0/1.png\n")
    Path("study.yaml").write_text(STUDY.format(project=PROJECT))
    monkeypatch.setattr(submit, "check_resources", lambda batch, folder: None)
    for name in ("sacct", "squeue", "srun"):
        commands(name)
    commands("scontrol", "MaxArraySize = 1001\n")
    commands("sbatch", "Submitted batch job 7\n")
    graph = build(load_study("study.yaml"))
    submit.submit(graph, load_cluster(), (), None)
    (submission,) = submissions(Path("runs").resolve())
    assert {node.at for node in graph.nodes} == {None, "1 steps"}
    for node in graph.nodes:
        config = node.stage.load(submission.path / "configs" / f"{node.identity.stage}-{node.identity.hash}.yaml", ())
        parent = None if node.parent is None else node.parent.identity
        assert node.stage.identity(config, parent, node.at).hash == node.identity.hash
        roots = {"pretrain": "/big/imagenet", "segmentation": "/big/voc"}
        assert config.data.root == roots.get(node.identity.stage)
