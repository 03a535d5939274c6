"""A user's own packages: `imports: [my_package]` in a config or study imports them before the rest of it is checked.

So they can register datasets (data.catalog.register), backbones (timm.models.register_model), evaluations
(eval.config.register_evaluation) and criteria (pretrain.criterion.register_criterion). The resolved config, and with it
the identity of the run, has the version of each: imports.my_package = 1.2.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from runtime import PACKAGES
from runtime.errors import UserError, errors_at


def import_module(name: str) -> ModuleType:
    """Import a module of the user, from the working directory too. Raises ImportError."""
    if os.getcwd() not in sys.path:  # a job's path begins with its copy of this project
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def import_packages(names: Iterable[str]) -> dict[str, str]:
    """Import the packages and return their versions. UserError for one that is missing or raises."""
    return {name: _import_package(name) for name in names}


def import_recorded(config: Mapping[str, Any], run: Path) -> None:
    """Import the packages of a run's recorded config; warn where one has another version now."""
    recorded = config.get("imports", {})
    with errors_at(str(run)):
        versions = import_packages(recorded)
    for name, version in versions.items():
        if version != recorded[name]:
            print(f"warning: {run} was made with {name} {recorded[name]}, and this is {version}", file=sys.stderr)


@cache
def _import_package(name: str) -> str:
    if name.partition(".")[0] in {*PACKAGES, *sys.stdlib_module_names}:
        raise UserError(f"imports: {name} is this project's or Python's own; give your package another name")
    try:
        import_module(name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(
            f"imports: {name} cannot be imported: {type(error).__name__}: {error}; expected a package that is "
            "installed, in the working directory, or on the Python path"
        ) from error
    return _version(name.partition(".")[0])


def _version(name: str) -> str:
    """Return the version of an installed package; for one in a folder of sources, the SHA-256 of these."""
    module = sys.modules[name]
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    file = Path(module.__file__) if module.__file__ else folders[0] / "__init__.py"  # which a package may lack
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    if any(folder in file.parents for folder in installed):
        for distribution in metadata.packages_distributions().get(name, []):
            return metadata.version(distribution)
    digest = hashlib.sha256()
    # An editor's lock may be a link to nothing, named .#module.py.
    sources = [(folder, source) for folder in folders for source in sorted(folder.rglob("*.py")) if source.is_file()]
    for folder, source in sources or [(file.parent, file)]:
        content = source.read_bytes()
        digest.update(f"{source.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return f"sha256:{digest.hexdigest()[:16]}"


def _resolve(value: object) -> dict[str, str]:
    if not isinstance(value, list | dict) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of packages, as [my_package], or their versions, as {my_package: '1.2'}")
    versions = import_packages(value)
    for name, version in value.items() if isinstance(value, dict) else ():
        if version != versions[name]:
            raise UserError(
                f"imports.{name} = {version!r}, and the package here is {versions[name]}; install that one, or write "
                f"imports: [{name}], which makes another run"
            )
    return versions


_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}],
    "description": "own packages, which register datasets, backbones, evaluations and criteria",
}
Imports = Annotated[dict[str, str], BeforeValidator(_resolve), WithJsonSchema(_SCHEMA)]
