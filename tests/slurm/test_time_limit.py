"""A run that needs longer than its job may last goes on in the next one, and in the one after that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import Cluster
from sweep import Sweep, undisturbed

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("told_by", ["USR2", "TERM"])
def test_a_limit_hit_twice(told_by: str, session_cluster: Cluster, limited: dict[str, Sweep], tmp_path: Path) -> None:
    sweep = limited[told_by]

    def third_attempt() -> bool:
        """And far from its limit: a run that ends in the very second of it is done, and SLURM calls it TIMEOUT."""
        sweep.hurry()
        files = list(sweep.folder.glob("runs/pretrain/*/run.yaml"))
        elapsed = session_cluster.run("squeue", "-h", "-t", "R", "-n", sweep.pretraining(), "-o", "%M").strip()
        minutes, _, seconds = elapsed.rpartition(":")
        recent = minutes == "0" and int(seconds) < 20
        return recent and bool(files) and files[0].read_text().count("started:") >= 3

    sweep.wait_for(third_attempt, "its third job is at work")
    (sweep.folder.parent / "hold").unlink()
    sweep.wait_for_end(2)
    assert sweep.results() == undisturbed(session_cluster, tmp_path, sweep.study)
    assert list(sweep.steps().values()) == [list(range(12))]  # each once: every job went on where the last had stopped
    log = sweep.logs()
    assert log.count(f"got SIG{told_by}") >= 2
    assert log.count("goes back into the queue") >= 2
    # Told ahead, a job is gone before its limit; each time that slurmctld is lost, it may fail to tell one.
    ended_by_limit = set(re.findall(r"CANCELLED AT (\S+) DUE TO TIME LIMIT", log))
    if told_by == "TERM":
        assert len(ended_by_limit) >= 2
    else:
        assert len(ended_by_limit) <= session_cluster.controllers_lost
        assert log.count("goes back into the queue") - len(ended_by_limit) >= 2
