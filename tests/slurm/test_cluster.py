"""The test cluster is a real one: it runs jobs on two nodes, keeps accounts, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, end_processes_of, wait_until, why_not

pytestmark = pytest.mark.slurm


def test_two_nodes_with_gpus_that_are_scheduled(cluster: Cluster) -> None:
    script = "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    shown = cluster.run("srun", "--nodes=2", "--gpus-per-node=1", "--mem=100", "bash", "-c", script)
    assert sorted(shown.splitlines()) == ["0 n1 0", "1 n2 0"]
    with pytest.raises(RuntimeError, match="3"):
        cluster.run("srun", "--immediate=2", "--gpus-per-node=3", "--mem=100", "true")


def test_what_ran_is_accounted_for(cluster: Cluster) -> None:
    job = cluster.run("sbatch", "--parsable", "--mem=100", "--output=/dev/null", "--wrap=exit 3", check=False).strip()

    def state() -> str:
        return cluster.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode").strip()

    wait_until(lambda: state().startswith("FAILED"), "the job has ended")
    assert state() == "FAILED|3:0"


def test_a_cluster_whose_starter_was_killed_is_cleared_away_by_the_next() -> None:
    if reason := why_not():
        pytest.skip(reason)
    start = "import time, cluster; c = cluster.Cluster(accounting=False); c.start(); print(c.folder, flush=True)"
    run = "c.run('sbatch', '--mem=100', '--output=/dev/null', '--wrap=sleep 600'); print('ran', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{start}; {run}; time.sleep(600)"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert process.stdout.readline() == "ran\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (folder / "owner").exists()
    Cluster(accounting=False)
    assert not folder.exists()
    end_processes_of(folder)  # returns at once where there are none
