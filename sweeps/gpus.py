"""The GPUs of this machine, found without loading torch."""

from __future__ import annotations

import os
import subprocess

from runtime.config import require


def found_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES allows, else all that the driver lists; empty where there is none."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu.strip() for gpu in allowed.split(",") if gpu.strip() and gpu.strip() != "-1"]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip().isdigit()]


def choose_gpus(count: int | None) -> list[str]:
    """The first `count` of them, all for None; UserError where there are fewer."""
    found = found_gpus()
    if count is None:
        return found
    require(0 <= count <= len(found), "--gpus", count, f"0 to {len(found)}: this machine has {len(found)}")
    return found[:count]
