"""The command line that every evaluation shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.catalog import open_dataset
from data.check import BRIEF, preflight
from data.check_files import sample
from data.config import DataConfig
from data.images import read_header
from data.layout import SegmentationLayout
from data.record import EVALUATION, record_data, refuse_other_data
from eval.config import EVALUATIONS, DenseKnnConfig, EvalConfig, check_class, identity, own_protocol
from eval.parent import (
    Parent,
    choose_normalisation,
    normalisation_of_weights,
    normalisation_source,
    open_parent,
    require_changes,
    require_class_token,
    require_sizes,
)
from eval.published import published_score
from eval.segmentation_config import SegmentationConfig, network_changes
from eval.weights import import_weights, parse_args
from eval.weights_config import WeightsConfig
from runtime import PROJECT
from runtime import config as configs
from runtime.config import MachineConfig, parse_moment
from runtime.console import make_parser
from runtime.distributed import only_main_prints
from runtime.errors import UserError
from runtime.rundir import Run
from runtime.stage import run_stage
from runtime.world import World, world_from_environment

# (config, weights to evaluate, run directory, device, processes) -> the scores
Work = Callable[[Any, Parent, Run, torch.device, World], dict[str, Any]]
IMAGE_KEYS = ("resize", "image_size", "interpolation", "pooled")  # of a config; result.json repeats them


def evaluate(argv: Sequence[str], schema: type[EvalConfig], work: Work) -> None:
    """`python -m eval.<stage> RUN --config FILE key=value`: make (or go on with) the run and write its scores.

    `--weights FILE --arch NAME` takes the place of RUN. Several processes (torchrun, srun) share `work`.
    """
    world = world_from_environment()
    with only_main_prints(world):
        _evaluate(argv, schema, work, world)


def _evaluate(argv: Sequence[str], schema: type[EvalConfig], work: Work, world: World) -> None:
    arguments = EvalArguments.parse(argv, schema.stage)
    check_class(schema)
    config = configs.load(schema, arguments.config, arguments.overrides)
    if arguments.cfg:
        print(configs.as_yaml(config), end="")
        return
    parent = arguments.open_parent(config)
    name = identity(config, parent.hash, parent.at)
    place = Run.at(config.machine.runs, name)
    refuse_other_data(place.path, config.data)
    dataset = None
    if place.result() is None:
        if getattr(config, "pooled", "mean") == "class_token":
            require_class_token(parent)
        if isinstance(config, SegmentationConfig):
            changes = network_changes(config.output_stride, config.drop_path)
            require_changes(parent.config["model"]["backbone"], changes)
        refuse_size(config, parent)
        dataset, notes = preflight(config.data, masks=issubclass(schema, SegmentationConfig | DenseKnnConfig))
        if isinstance(config, SegmentationConfig):
            refuse_predicted_sizes(config, parent, dataset.segmentation())
        for note in notes:
            print(note, flush=True)

    weights = arguments.describe_weights(parent)

    def scored(run: Run, device: torch.device, world: World) -> dict[str, Any]:
        if world.is_main:
            record_data(run.path, config.data, dataset or open_dataset(config.data), EVALUATION)
        scores = plain_scores(work(config, parent, run, device, world))
        scores |= {"protocol": own_protocol(schema.stage, scores)} if schema.stage in EVALUATIONS else {}
        scores |= {} if parent.at is None else {"at": parent.at}
        mean, std = map(list, parent.normalisation)
        scores |= {"normalisation_mean": mean, "normalisation_std": std}
        scores |= {"normalisation_source": normalisation_source(parent, config.normalisation)}
        scores |= {key: getattr(config, key) for key in IMAGE_KEYS if hasattr(config, key)}
        return scores | weights | arguments.published(parent, schema.stage, config.data, scores)

    run_stage(config, name, scored, world, weights)


def plain_scores(scores: Any) -> dict[str, Any]:
    """Return scores as JSON can hold them: a number for a tensor or a NumPy value without dimensions.

    UserError, with the name of the score, for anything else that JSON does not have.
    """
    if not isinstance(scores, dict) or not all(isinstance(name, str) for name in scores):
        raise UserError(f"scores = {scores!r}: expected a mapping from the name of each score to its value")
    plain = {name: _plain(value) for name, value in scores.items()}
    for name, value in plain.items():
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            raise UserError(
                f"score {name!r}, a {kind}: expected a number, text, or lists and mappings of these ({error}); "
                "call .item() or .tolist()"
            ) from error
    return plain


def _plain(value: Any) -> Any:
    scalar = isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0
    return value.item() if scalar else value


def refuse_size(config: Any, parent: Parent) -> None:
    """Raise UserError where the network does not take the images that the config makes."""
    if isinstance(config, SegmentationConfig):
        key, size = "crop_width" if config.crop_width else "crop_size", config.crop
    elif isinstance(getattr(config, "image_size", None), int):
        key, size = "image_size", (config.image_size, config.image_size)
    else:
        return
    advice = (
        "choose the size that it takes or, where its weights fit, make it for this one "
        f"(--weights FILE --arch-arg img_size={size[0]})"
    )
    require_sizes(parent, {size: f"{key} = {getattr(config, key)}"}, advice)


def refuse_predicted_sizes(config: SegmentationConfig, parent: Parent, layout: SegmentationLayout) -> None:
    """Raise UserError where the network does not take validation images or, with slide inference, windows of them.

    Otherwise the first of them would end the evaluation after its training. Looks at BRIEF images, as `preflight` does.
    """
    from mmcv.image import rescale_size

    options: dict[tuple[int, int], str] = {}
    for name in sample(layout.names("val"), BRIEF):
        header = read_header(layout.image("val", name))
        width, height = header.width, header.height
        if config.image_scale is not None:
            width, height = rescale_size((width, height), tuple(config.image_scale))
        if config.inference == "slide":  # a window is no larger than the image
            height, width = min(height, config.crop[0]), min(width, config.crop[1])
        options.setdefault((height, width), f"inference = {config.inference!r} of the validation image {name}")
    advice = "choose slide with a crop_size that it takes, and an image_scale that makes no image smaller than that"
    require_sizes(parent, options, advice)


@dataclass(frozen=True)
class EvalArguments:
    """The parsed command line: a run, or a weights file and its network."""

    config: str
    overrides: list[str]
    run: str | None
    weights: Path | None
    arch: str | None
    arch_args: list[str]
    prefix: str | None = None
    ignore: tuple[str, ...] = ()
    at: str | None = None
    cfg: bool = False

    @classmethod
    def parse(cls, argv: Sequence[str], stage: str) -> EvalArguments:
        usage = "%(prog)s RUN | --weights FILE --arch NAME [--arch-arg key=value]  --config FILE [key=value ...]"
        in_checkout = find_spec(f"eval.{stage}") is not None
        parser = make_parser(f"eval.{stage}" if in_checkout else f"eval {stage}", None, usage=usage)
        about = "a finished pretraining run; overrides"
        parser.add_argument("words", nargs="*", default=[], metavar="RUN key=value", help=about)
        file = f"eval/configs/{'seg' if stage == 'segmentation' else stage}_scenes.yaml"
        example = f", as {file}," if (PROJECT / file).is_file() else ""
        parser.add_argument("--config", required=True, help=f"a YAML file{example} or its name")
        parser.add_argument("--cfg", action="store_true", help="print the resolved config, and stop; needs no RUN")
        parser.add_argument("--at", metavar="MOMENT", help='a checkpoint that RUN kept, as "500 steps" or "10 epochs"')
        parser.add_argument("--weights", type=Path, help="in place of RUN: a published file, or a backbone.safetensors")
        parser.add_argument("--arch", help="the network of --weights, by timm's name, as resnet50")
        parser.add_argument(
            "--arch-arg", action="append", default=[], metavar="key=value", help="its arguments, as ls_init_value=null"
        )
        parser.add_argument("--prefix", help="what its keys have before the network's, where it is not recognised")
        parser.add_argument(
            "--ignore", action="append", default=[], metavar="KEY", help="leave out its keys that begin so (repeatable)"
        )
        options = configs.parse_command(parser, argv)
        words = list(options.words)
        if options.cfg:  # needs no run
            return cls(options.config, [word for word in words if "=" in word], None, None, None, [], cfg=True)
        if options.weights is None:
            _require(bool(words), "no run was given; expected a directory as runs/pretrain/<run>, or --weights FILE")
            alone = not (options.arch or options.arch_arg or options.prefix or options.ignore)
            _require(alone, "--arch, --arch-arg, --prefix and --ignore describe --weights FILE, which was not given")
            at = None if options.at is None else _moment(options.at)
            return cls(options.config, words[1:], words[0], None, None, [], at=at)
        _require(options.at is None, "--at names a checkpoint of RUN, and --weights FILE takes its place")
        _require(bool(options.arch), "--weights needs --arch NAME, the file's network, as --arch resnet50")
        paths = [word for word in words if "=" not in word]
        _require(not paths, f"got --weights and also {paths}; expected one of them, a run or a file")
        described = options.weights, options.arch, options.arch_arg, options.prefix, tuple(options.ignore)
        return cls(options.config, words, None, *described)

    def open_parent(self, config: Any) -> Parent:
        """Open the run, or import the weights file; with the mean and deviation that its images are normalised by."""
        if self.weights is None:
            parent = open_parent(self.run or "", self.at)
            return replace(parent, normalisation=choose_normalisation(parent, config.normalisation))
        arch = self.arch or ""
        chosen = normalisation_of_weights(arch, config.normalisation)  # refused before anything is made
        weights = WeightsConfig(
            imports=config.imports,
            file=str(self.weights),
            arch=arch,
            args=parse_args(self.arch_args),
            prefix=self.prefix,
            ignore=list(self.ignore),
            machine=MachineConfig(runs=config.machine.runs),
        )
        return replace(import_weights(weights), normalisation=chosen)

    def describe_weights(self, parent: Parent) -> dict[str, Any]:
        """Return what run.yaml and result.json say of imported weights; nothing of a pretraining: it has a hash."""
        if (name := self.weights_name(parent)) is None:
            return {}
        backbone, weights = parent.config["model"]["backbone"], parent.config["weights"]
        return {"weights": {"file": name, **weights, "arch": backbone["name"], "args": backbone["args"]}}

    def weights_name(self, parent: Parent) -> str | None:
        """Return the name of the file that the parent was imported from; None for a pretraining run."""
        if "weights" not in parent.config:
            return None
        return str((parent.run.result() or {})["file"]) if self.weights is None else self.weights.name

    def published(self, parent: Parent, stage: str, data: DataConfig, scores: dict[str, Any]) -> dict[str, Any]:
        """Return and print the published figure, for result.json; nothing where there is none to compare with."""
        if (name := self.weights_name(parent)) is None:
            return {}
        figure = published_score(name, parent.config["model"]["backbone"]["name"], stage, data, scores)
        if figure is None:
            return {}
        print(f"{figure}; here: {scores[figure.score]:.2f} %", flush=True)
        return {"published": asdict(figure)}


def _moment(text: str) -> str:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise UserError(f"cannot read --at {text!r}; expected {error}") from error


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
