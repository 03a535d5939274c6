"""The cluster of this session, and what every scenario on it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, why_not


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
