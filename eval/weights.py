"""Weights from a file, imported as a parent of evaluations, strictly.

The parent is `runs/weights/<arch>-<hash>/`, made once. It has what an evaluation needs of a pretraining run: run.yaml
with the architecture and the file's SHA-256 (which name it), backbone.safetensors with exactly the file's tensors, and
result.json with what was matched.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from eval.parent import WEIGHTS, Parent, open_parent
from eval.weights_config import WeightsConfig, digest_of_file, identity
from runtime import config as configs
from runtime import files
from runtime.errors import BusyError, UserError, run_command
from runtime.rundir import Identity, Run, open_run
from runtime.yaml_files import parse_yaml
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weights import LoadReport, load_weights

WAIT_SECONDS = 600.0  # for another process that imports the same file


def import_weights(config: WeightsConfig) -> Parent:
    """Import a file as weights of a network, unless that was done before.

    UserError, with nothing made, if the file is missing or unreadable, or does not fit the network in every key and
    shape.
    """
    name = identity(config)
    run = Run.at(config.machine.runs, name)
    if run.result() is None:
        _import(config, name)
    _refuse_changed(run)
    return open_parent(run.path)


def _import(config: WeightsConfig, name: Identity) -> None:
    """Load the file before anything is made; a second process waits for the first."""
    path = config.path
    digest_of_file(config)  # refuses a file that is not the one of the name
    backbone = create_backbone(BackboneConfig(config.arch, config.args))
    try:
        report = load_weights(backbone, path, config.prefix, config.ignore)
    except UserError as error:
        hint = ": --arch-arg ls_init_value=null" if "ls_init_value" in str(error) else ""
        raise UserError(f"{error}{hint}") from error
    tensors = {key: value.contiguous() for key, value in backbone.trunk.state_dict().items()}
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with open_run(config.machine.runs, name, {"file": str(path.resolve())}) as run:
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
        "backbone_sha256": files.sha256(run.path / WEIGHTS),
    }


def _refuse_changed(run: Run) -> None:
    """UserError where the copy is no longer what was imported: it would be scored under the file's name."""
    copy, expected = run.path / WEIGHTS, (run.result() or {}).get("backbone_sha256")
    if not copy.is_file() or files.sha256(copy) != expected:
        raise UserError(
            f"{copy} differs from what was imported; delete the folder {run.path}, and the file is imported again"
        )


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


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.weights", description="Import weights from a file, strictly.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as file=resnet50.pth arch=resnet50")
    parent = import_weights(configs.load(WeightsConfig, None, parser.parse_args(argv).overrides))
    print(f"{parent.run.path} is done")


if __name__ == "__main__":
    run_command(main)
