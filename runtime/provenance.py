"""Where a result came from: code, versions, machine, command."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
# In the folder of code that was copied for a submission (sweeps/slurm/snapshot.py): where the copy came from.
SNAPSHOT = "snapshot.json"
VERSIONS_OF = ("torch", "torchvision", "timm", "mmengine", "mmsegmentation", "mmcv-lite", "mmcv", "numpy")


def collect() -> dict[str, Any]:
    """Commit, dirty or not, versions, host, processor, command and time of this process."""
    import torch

    from runtime import distributed

    return {
        "commit": commit(),
        "dirty": bool(dirty_diff()),
        **({"snapshot": str(PROJECT)} if _snapshot() is not None else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": distributed.world_from_environment().size,
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": _versions(),
    }


def commit() -> str | None:
    """The commit of the code, or None outside a git checkout."""
    copied = _snapshot()
    return _git("rev-parse", "HEAD") if copied is None else copied["commit"]


def dirty_diff() -> str:
    """What tracked files of the code differ from the commit in ('' if nothing, or outside git).

    reports/ is left out: it is made by the code, so remaking it changes no result.
    """
    copied = _snapshot()
    return (_git("diff", "HEAD", "--", ".", ":!reports") if copied is None else copied["diff"]) or ""


def _snapshot() -> dict[str, Any] | None:
    """What is told of this copy of the code, None where it is no copy. It may lie within another checkout."""
    try:
        told: dict[str, Any] = json.loads((PROJECT / SNAPSHOT).read_text())
    except FileNotFoundError:
        return None
    return told


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor_name() -> str:
    """The processor's model name where Linux tells it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
