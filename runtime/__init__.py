"""Services that every stage uses: config, run directories, processes, provenance, errors, compatibility."""

import importlib.util
import os
import sys
from pathlib import Path

from runtime import compat

PROJECT = Path(__file__).resolve().parent.parent  # the checkout
# The suite's packages import this one first; vicregl does not, because it is installed on its own.
PACKAGES = ("analysis", "data", "eval", "pretrain", "runtime", "sweeps", "vicregl")


def import_path(code: Path | str = PROJECT) -> dict[str, str]:
    """Return environment variables that make a child process import the packages of the folder `code`.

    vicregl alone is installed, and without PYTHONSAFEPATH a `data.py` in the working directory would hide ours.
    """
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(code)]
    return {"PYTHONPATH": os.pathsep.join([str(code), *others]), "PYTHONSAFEPATH": "1"}


def _refuse_foreign_packages() -> None:
    """Raise ImportError where another `data`, say ./data.py, precedes ours on Python's path."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and PROJECT not in Path(spec.origin).resolve().parents:
            raise ImportError(
                f"{spec.origin} hides the package {name!r} of {PROJECT}. Work in that folder, or set PYTHONPATH to it "
                "and PYTHONSAFEPATH=1, so that Python does not search the working directory"
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
