"""Weights from a file, a tag of timm's or a loader, imported as a parent of evaluations, strictly.

The parent is `runs/weights/<arch>-<hash>/`, made once. It has what an evaluation needs of a pretraining run: run.yaml
with the architecture and the SHA-256 of the weights (which name it), backbone.safetensors with exactly their tensors,
and result.json with what was matched.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from eval.parent import WEIGHTS, Parent, open_parent
from eval.sources import assumed_images, call_loader, digest_of_tensors, load_tag
from eval.weights_config import WeightsConfig, digest_of, identity
from runtime import config as configs
from runtime import files
from runtime.console import make_parser
from runtime.errors import BusyError, UserError, run_command
from runtime.rundir import Identity, Run, open_run
from runtime.yaml_files import parse_yaml
from vicregl.backbones import Backbone, create_backbone
from vicregl.config import BackboneConfig
from vicregl.weights import LoadReport, load_weights

WAIT_SECONDS = 600.0  # for another process that imports the same file


def import_weights(config: WeightsConfig) -> Parent:
    """Import weights of a network, unless that was done before. UserError as `read_weights`, with nothing made."""
    name = identity(config)
    run = Run.at(config.machine.runs, name)
    if run.result() is None:
        _import(config, name)
    _refuse_changed(run)
    return open_parent(run.path)


def read_weights(config: WeightsConfig, device: str = "cpu") -> tuple[Backbone, LoadReport]:
    """Load the weights strictly; on the device "meta", a file is checked as strictly and its values are dropped.

    The networks of tags and loaders, and those whose positions are compared, are made on the CPU in any case.

    UserError if they are missing or unreadable, not those that the config expects, or do not fit the network in every
    key and shape.
    """
    digest = digest_of(config)
    name, args = config.network
    if config.loader is not None:
        backbone = call_loader(config.loader, config.args)
        if digest_of_tensors(backbone.trunk.state_dict()) != digest:
            raise UserError(f"loader {name} returned other weights when it was called again; expected the same tensors")
    else:
        backbone = _create(name, args, device if config.timm is None else "cpu")
        if config.timm is None:
            return backbone, _load_file(config, backbone)
        load_tag(config.timm, config.path, backbone)
    tensors = backbone.trunk.state_dict()
    values = sum(tensor.numel() for tensor in tensors.values())
    return backbone, LoadReport(Path(config.timm or name), len(tensors), values, "", [], "", "")


def _create(name: str, args: dict[str, Any], device: str) -> Backbone:
    """Create the network on the device; on the CPU if it has values beside its weights, as periods of positions."""
    with torch.device(device):
        backbone = create_backbone(BackboneConfig(name, args))
    tensors = [*backbone.trunk.parameters(), *backbone.trunk.buffers()]
    computed = len(tensors) > len(backbone.trunk.state_dict())
    return create_backbone(BackboneConfig(name, args)) if computed and device != "cpu" else backbone


def _load_file(config: WeightsConfig, backbone: Backbone) -> LoadReport:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*parameter in the checkpoint to a meta parameter.*")
            return load_weights(backbone, config.path, config.prefix, config.ignore)
    except UserError as error:
        hints = {"ls_init_value": ": --arch-arg ls_init_value=null", "num_heads": ": --arch-arg num_heads=12"}
        raise UserError(f"{error}{''.join(hint for key, hint in hints.items() if key in str(error))}") from error


def _import(config: WeightsConfig, name: Identity) -> None:
    """Load the weights before anything is made; a second process waits for the first."""
    backbone, report = read_weights(config)
    # Copies: safetensors refuses tensors that share memory, as tied layers do.
    tensors = {key: value.contiguous().clone() for key, value in backbone.trunk.state_dict().items()}
    source = {"loader": config.loader} if config.loader else {"file": str(config.path.resolve())}
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with open_run(config.machine.runs, name, source) as run:
                if run.result() is None:
                    files.write_tensors(run.path / WEIGHTS, tensors)
                    run.write_result(_describe(config, backbone, report, run))
            print(report, flush=True)
            if config.timm and (assumed := assumed_images(config.timm)):
                print(assumed, flush=True)
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _describe(config: WeightsConfig, backbone: Backbone, report: LoadReport, run: Run) -> dict[str, Any]:
    return {
        "file": config.path.name if config.file else report.path.name,
        "tensors": report.tensors,
        "values": report.values,
        "container": report.container,
        "prefix": report.prefix,
        "names": report.names,
        "left_out": len(report.ignored),
        "backbone_sha256": files.sha256(run.path / WEIGHTS),
        **({} if config.file else _stated_normalisation(backbone)),
        **({"assumed_images": assumed_images(config.timm)} if config.timm else {}),
    }


def _stated_normalisation(backbone: Backbone) -> dict[str, Any]:
    """Return the mean and deviation that came with the weights: those of a tag, or of a loader's network of timm's."""
    stated = backbone.trunk.pretrained_cfg
    return {"normalisation": [list(stated["mean"]), list(stated["std"])]} if "mean" in stated else {}


def _refuse_changed(run: Run) -> None:
    """Raise UserError where the copy is no longer what was imported: it would be scored under the file's name."""
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
    parser = make_parser("eval.weights", __doc__)
    help_text = "file=resnet50.pth arch=resnet50; or timm=resnet50.a1_in1k; or loader=my_module:function"
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help_text)
    parent = import_weights(configs.load(WeightsConfig, None, configs.parse_command(parser, argv).overrides))
    print(f"{parent.run.path} is done")


if __name__ == "__main__":
    run_command(main)
