"""The cluster of this session, and what every scenario on it needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import BESIDE, Cluster, why_not
from sweep import CLUSTER, Sweep, study


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The running cluster, empty of jobs before and after."""
    session_cluster.clear()
    yield session_cluster
    session_cluster.clear()


@pytest.fixture(scope="session")
def limited(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sweep]:
    """Two studies whose pretraining is told of its limit, or runs into it, until its hold is taken away.

    They go on beside the other tests, on a node and in a partition that those leave alone: limits are whole minutes.
    """
    sweeps = {}
    # Told a minute ahead: slurmctld looks at limits every 30 seconds, and counts anew where a test restarts it.
    limits = {"USR2": {"minutes": 2, "signal_seconds": 60}, "TERM": {"minutes": 1, "signal_seconds": 10}}
    for name, limit in limits.items():
        folder = tmp_path_factory.mktemp(f"limited-{name}")
        (folder / "hold").touch()
        sweep = Sweep(session_cluster, folder / "slurm", study=study(f"{BESIDE}-{name}", 12, 1, alpha=[0.5]))
        sweep.write("pretrain.yaml", {"machine": {"hold": str(folder / "hold"), "save_steps": 0}})
        own = {**limit, "partition": "high", "exclude": "n1"}
        sweep.write("cluster.yaml", {**CLUSTER, "pretrain": own})
        sweep.submit(**({"PATH": f"{_sbatch_without_signal(folder)}:{os.environ['PATH']}"} if name == "TERM" else {}))
        sweeps[name] = sweep
    return sweeps


def _sbatch_without_signal(folder: Path) -> Path:
    """A folder with an sbatch whose signal is one that means nothing: the TERM at the limit is the first."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(f'#!/bin/sh\nSBATCH_SIGNAL=CONT@1 exec {shutil.which("sbatch")} "$@"\n')
    (tools / "sbatch").chmod(0o755)
    return tools
