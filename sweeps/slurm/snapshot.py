"""A copy of the code as it is now: what is queued runs it, at its first start and at every later one.

Python pickles functions by name, so a job would otherwise read the code whenever it starts: an edit would change
runs that were submitted before it, half of a study, or between two attempts of one run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from runtime import files, provenance
from runtime.provenance import PROJECT, SNAPSHOT

# Made by the code, or of no use to a run; and what a folder that is no git checkout may hold besides code.
_LEFT_OUT = frozenset({"reports", ".git", ".venv", "runs", "__pycache__", ".ci", ".github"})


def take(folder: Path) -> dict[str, Any]:
    """Copy the project's files, uncommitted and untracked ones too, to `folder`; returns what is told of them."""
    for name in _files():
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    told = {
        "commit": provenance.commit(),
        "diff": provenance.dirty_diff(),
        "untracked": _git_lines("ls-files", "--others", "--exclude-standard", "-z"),
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    files.write_json(folder / SNAPSHOT, told)
    return told


def _files() -> list[str]:
    """Paths from the project's folder."""
    listed = _git_lines("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    found = listed or [name for name in _walk() if name != SNAPSHOT]
    chosen = [name for name in found if not _LEFT_OUT & set(Path(name).parts)]
    return [name for name in chosen if (PROJECT / name).is_file()]  # deleted, and not committed yet


def _walk() -> list[str]:
    """Where there is no git checkout: an installed project, or a snapshot that submits."""
    found = []
    for folder, inner, names in os.walk(PROJECT):
        inner[:] = [name for name in inner if name not in _LEFT_OUT and not name.startswith(".")]
        if Path(folder) == PROJECT / "data":
            inner[:] = [name for name in inner if name != "cache"]
        found += [str((Path(folder) / name).relative_to(PROJECT)) for name in names]
    return found


def _git_lines(*arguments: str) -> list[str]:
    if (PROJECT / SNAPSHOT).exists():  # within somebody's checkout, perhaps, whose files it is not
        return []
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(name for name in done.stdout.split("\0") if name)
