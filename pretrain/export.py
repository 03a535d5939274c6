"""Export a trained backbone for other programs: python -m pretrain.export runs/pretrain/<run> --out resnet50.pth

The file is a plain state dict of float32 tensors, which `torch.load(file, weights_only=True)` reads. Its keys are those
of the published VICRegL checkpoints (torchvision's for a ResNet, the authors' for a ConvNeXt) or, with `--format timm`,
timm's, as in the run's backbone.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime import files
from runtime.console import make_parser
from runtime.errors import UserError, run_command
from runtime.imports import import_recorded
from runtime.rundir import Run, finished_run

FORMATS = ("published", "timm")


def main(argv: Sequence[str]) -> None:
    parser = make_parser("pretrain.export", __doc__)
    parser.add_argument("run", help="directory of a finished pretraining run: runs/pretrain/<run>")
    parser.add_argument("--format", choices=FORMATS, default="published", help="naming of the tensors")
    parser.add_argument("--out", help="the file to write; default: backbone_<format>.pth in the run's directory")
    arguments = parser.parse_args(argv)
    run = Run(Path(arguments.run))
    out = Path(arguments.out) if arguments.out else run.path / f"backbone_{arguments.format}.pth"
    print(export(run, arguments.format, out))


def export(run: Run, names: str, out: Path) -> str:
    """Write the backbone of a finished run to `out` and return a line for the user.

    UserError, with nothing written, where the run is no pretraining, is not done, was changed by hand, has no weights,
    or has a network without published names.
    """
    from safetensors.torch import load_file
    from torch import save

    from vicregl.backbones import create_backbone
    from vicregl.config import BackboneConfig
    from vicregl.weight_names import published_state
    from vicregl.weights import load_weights

    document = finished_run(run.path, ("pretrain",))
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder; make it, or choose another --out")
    files.require_writable(out.parent, "write elsewhere: --out FILE")
    weights = run.path / "backbone.safetensors"
    import_recorded(document["config"], run.path)  # one of them may have registered the network
    network = document["config"]["model"]["backbone"]
    backbone = create_backbone(BackboneConfig(network["name"], network.get("args", {})))
    # Strict, so that incomplete weights or another network are refused; the file's keys are the network's own.
    load_weights(backbone, weights, prefix="")
    state = published_state(backbone) if names == "published" else load_file(weights)
    files.write_atomic(out, lambda temporary: save(state, temporary))
    return f"{out}: {len(state)} tensors of {network['name']}, {names} names, from {run.name}"


if __name__ == "__main__":
    run_command(main)
