"""Answers of sbatch that get lost, without a scheduler; tests/slurm submits to a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.provenance import PROJECT
from sweeps.graph import Graph, build
from sweeps.slurm import submit
from sweeps.slurm.config import load_cluster
from sweeps.slurm.records import lock, read_jobs, submissions
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
