"""What every stage stands on: config, run directories, provenance, errors, compatibility."""

import importlib.util
import os
import sys
from pathlib import Path

from runtime import compat

# Every package of the suite imports this one first. vicregl does not: beside its own dependencies it needs nothing.
PACKAGES = ("analysis", "data", "eval", "pretrain", "runtime", "sweeps", "vicregl")


def _refuse_others_packages() -> None:
    """Stop where another `data`, say a data.py in the working directory, comes before ours on Python's path."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and root not in Path(spec.origin).resolve().parents:
            raise ImportError(
                f"{spec.origin} hides the package {name!r} of {root}. Work in that folder, or set PYTHONSAFEPATH=1, by "
                "which Python does not look into the working directory, with the folder in PYTHONPATH"
            )


def _refuse_deleted_directory() -> None:
    """Stop before torch does, whose libraries end the process where the working directory is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working directory was deleted; go to one that exists (cd) and repeat", file=sys.stderr)
        raise SystemExit(2) from None


_refuse_deleted_directory()
_refuse_others_packages()
compat.prepare_torchvision_on_import()
