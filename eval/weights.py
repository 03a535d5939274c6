"""Weights from a file, imported as a parent of evaluations, strictly.

The parent is `runs/weights/<arch>-<hash>/`, made once. It has what an evaluation needs of a pretraining run: run.yaml
with the architecture and the file's SHA-256 (which name it), backbone.safetensors with exactly the file's tensors, and
result.json with what was matched.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from eval.parent import WEIGHTS, WEIGHTS_STAGE, Parent, open_parent
from runtime import files
from runtime.errors import BusyError, UserError
from runtime.rundir import Identity, Run, open_run
from runtime.yaml_files import parse_yaml
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weights import LoadReport, load_weights

FORMAT = 1
WAIT_SECONDS = 600.0  # for another process that imports the same file


def import_weights(
    runs: str | Path,
    file: str | Path,
    arch: str,
    args: dict[str, Any],
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> Parent:
    """Import `file` as weights of timm's network `arch` made with `args`, unless that was done before.

    `prefix` and `ignore` are those of load_weights.

    UserError, with nothing made, if the file is missing or unreadable, or does not fit the network in every key and
    shape.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--weights {path} does not exist; expected a checkpoint file")
    digest = sha256(path)
    weights: dict[str, Any] = {"sha256": digest}
    weights |= {} if prefix is None else {"prefix": prefix}
    weights |= {"ignore": sorted(ignore)} if ignore else {}
    config = {"model": {"backbone": {"name": arch, "args": args}}, "weights": weights}
    name = Identity(WEIGHTS_STAGE, f"{arch}-of-{digest[:6]}", FORMAT, config)
    run = Run.at(runs, name)
    if run.result() is None:
        _import(runs, name, path)
    _refuse_changed(run)
    return open_parent(run.path)


def _import(runs: str | Path, name: Identity, path: Path) -> None:
    """Load the file before anything is made; a second process waits for the first."""
    described = name.config["model"]["backbone"]
    backbone = create_backbone(BackboneConfig(described["name"], described["args"]))
    try:
        weights = name.config["weights"]
        report = load_weights(backbone, path, weights.get("prefix"), weights.get("ignore", ()))
    except UserError as error:
        hint = ": --arch-arg ls_init_value=null" if "ls_init_value" in str(error) else ""
        raise UserError(f"{error}{hint}") from error
    tensors = {key: value.contiguous() for key, value in backbone.trunk.state_dict().items()}
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with open_run(runs, name, {"file": str(path.resolve())}) as run:
                if run.result() is None:
                    files.write_atomic(run.path / WEIGHTS, lambda temporary: save_file(tensors, temporary))
                    run.write_result(_describe(path, report, run))
            print(report, flush=True)
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _describe(path: Path, report: LoadReport, run: Run) -> dict[str, Any]:
    return {
        "file": path.name,
        "tensors": report.tensors,
        "values": report.values,
        "container": report.container,
        "prefix": report.prefix,
        "renamed": report.renamed,
        "left_out": len(report.ignored),
        "backbone_sha256": sha256(run.path / WEIGHTS),
    }


def _refuse_changed(run: Run) -> None:
    """UserError where the copy is no longer what was imported: it would be scored under the file's name."""
    copy, expected = run.path / WEIGHTS, (run.result() or {}).get("backbone_sha256")
    if not copy.is_file() or sha256(copy) != expected:
        raise UserError(
            f"{copy} differs from what was imported; delete the folder {run.path}, and the file is imported again"
        )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_args(pairs: Sequence[str]) -> dict[str, Any]:
    """["ls_init_value=null", "drop_path_rate=0.1"] -> {"ls_init_value": None, "drop_path_rate": 0.1}."""
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"cannot read --arch-arg {pair!r}; expected key=value, as ls_init_value=null")
        if key in args:
            raise UserError(f"--arch-arg {key} is given twice: {args[key]!r} and {value!r}")
        try:
            args[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"cannot read the value of --arch-arg {pair!r}: expected a YAML value, as null or 0.1"
            ) from error
    return args
