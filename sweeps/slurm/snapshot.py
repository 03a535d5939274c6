"""A copy of the code as it is now: what is queued runs it, at its first start and at every later one.

Python pickles functions by name, so a job would otherwise read the code whenever it starts: an edit would change
runs that were submitted before it, half of a study, or between two attempts of one run.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from runtime import files, provenance
from runtime.provenance import PROJECT, SNAPSHOT, Code, NoCommitError

# Of a checkout: made by the code, or of no use to a run.
_LEFT_OUT = frozenset({"reports", "runs", ".ci", ".github"})


def take(folder: Path) -> Code:
    """Copy the project's files, uncommitted and untracked ones too, to `folder`; returns what identifies them."""
    for name in _files():
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    code = provenance.code()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files.write_json(folder / SNAPSHOT, {**asdict(code), "untracked": _untracked(), "taken": stamp})
    return code


def _files() -> list[str]:
    """Paths from the project's folder: of a checkout what git knows or would take, else the project's own packages."""
    try:
        listed = provenance.checkout_files("--cached", "--others")
    except NoCommitError:
        listed = [*provenance.package_files(), "pyproject.toml"]
    chosen = [name for name in listed if not _LEFT_OUT & set(Path(name).parts)]
    return [name for name in chosen if (PROJECT / name).is_file()]  # deleted, and not committed yet


def _untracked() -> list[str]:
    try:
        return provenance.checkout_files("--others")
    except NoCommitError:
        return []
