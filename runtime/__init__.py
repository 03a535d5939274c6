"""What every stage stands on: config, run directories, provenance, errors, compatibility."""

import importlib.util
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


_refuse_others_packages()
compat.prepare_torchvision_on_import()
