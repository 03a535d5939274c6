"""Services that every stage uses: config, run directories, processes, provenance, errors, compatibility."""

import importlib.util
import os
import sys
from pathlib import Path

from runtime import compat

# The suite's packages import this one first; vicregl does not, because it is installed on its own.
PACKAGES = ("analysis", "data", "eval", "pretrain", "runtime", "sweeps", "vicregl")


def _refuse_foreign_packages() -> None:
    """Raise ImportError where another `data`, say ./data.py, precedes ours on Python's path."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and root not in Path(spec.origin).resolve().parents:
            raise ImportError(
                f"{spec.origin} hides the package {name!r} of {root}. Work in that folder, or set PYTHONPATH to it and "
                "PYTHONSAFEPATH=1, so that Python does not search the working directory"
            )


def _refuse_deleted_directory() -> None:
    """Stop here if the working directory was deleted: torch's libraries would abort the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working directory was deleted; go to one that exists (cd) and repeat", file=sys.stderr)
        raise SystemExit(2) from None


_refuse_deleted_directory()
_refuse_foreign_packages()
compat.prepare_torchvision_on_import()
