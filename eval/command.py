"""The command line that every evaluation shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.check import preflight
from data.config import DataConfig
from eval.parent import Parent, normalisation_of_run, normalisation_of_weights, open_parent
from eval.published import published_score
from eval.weights import import_weights, parse_args
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Identity, Run
from runtime.stage import refuse_several, run_stage
from runtime.world import World, world_from_environment

Work = Callable[[Any, Parent, Run, torch.device], dict[str, Any]]


def evaluate(
    argv: Sequence[str],
    stage: str,
    schema: type[Any],
    identity: Callable[[Any, str], Identity],
    work: Work,
    several: bool = False,
) -> None:
    """`python -m eval.<stage> RUN --config FILE key=value`: make (or go on with) the run and write its scores.

    `--weights FILE --arch NAME` takes the place of RUN. `schema` is the stage's config class, which has a `machine`.
    `several`: the work can be shared by several processes (torchrun, srun).
    """
    world = world_from_environment()
    if not several:
        refuse_several(world, f"eval.{stage}")
    asked = Asked.read(argv, stage)
    config = configs.load(schema, asked.config, asked.overrides)
    parent = asked.parent(config.machine.runs, config.normalisation)
    name = identity(config, parent.hash)
    if Run.at(config.machine.runs, name).result() is None:
        preflight(config.data, masks=stage in ("segmentation", "dense_knn"))

    def scored(run: Run, device: torch.device, world: World) -> dict[str, Any]:
        scores = work(config, parent, run, device)
        if not world.is_main:
            return scores
        mean, std = map(list, parent.normalisation)
        used = {"normalisation_mean": mean, "normalisation_std": std}
        return scores | used | asked.beside(parent, stage, config.data, scores)

    run_stage(config, name, scored, world, asked.described(parent))


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    config: str
    overrides: list[str]
    run: str | None
    weights: Path | None
    arch: str | None
    arch_args: list[str]

    @classmethod
    def read(cls, argv: Sequence[str], stage: str) -> Asked:
        parser = argparse.ArgumentParser(
            prog=f"python -m eval.{stage}",
            usage="%(prog)s RUN | --weights FILE --arch NAME [--arch-arg key=value]  --config FILE [key=value ...]",
        )
        parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a finished pretraining run; overrides")
        parser.add_argument("--config", required=True, help=f"a YAML file, as eval/configs/{stage}_scenes.yaml")
        parser.add_argument("--weights", type=Path, help="in place of RUN: a published file, or a backbone.safetensors")
        parser.add_argument("--arch", help="the network that --weights is of, by timm's name, as resnet50")
        parser.add_argument("--arch-arg", action="append", default=[], metavar="key=value", help="ls_init_value=null")
        found = parser.parse_intermixed_args(argv)
        words = list(found.words)
        if found.weights is None:
            _require(bool(words), "no run was given; expected a directory as runs/pretrain/<run>, or --weights FILE")
            _require(not (found.arch or found.arch_arg), "--arch and --arch-arg are of --weights, which was not given")
            return cls(found.config, words[1:], words[0], None, None, [])
        _require(bool(found.arch), "--weights needs --arch NAME, the network that it is of, as --arch resnet50")
        paths = [word for word in words if "=" not in word]
        _require(not paths, f"got --weights and also {paths}; expected one of them, a run or a file")
        return cls(found.config, words, None, found.weights, found.arch, found.arch_arg)

    def parent(self, runs: str, normalisation: str | None) -> Parent:
        if self.weights is None:
            parent = open_parent(self.run or "")
            return replace(parent, normalisation=normalisation_of_run(parent, normalisation))
        chosen = normalisation_of_weights(self.arch or "", normalisation)
        parent = import_weights(runs, self.weights, self.arch or "", parse_args(self.arch_args))
        return replace(parent, normalisation=chosen)

    def described(self, parent: Parent) -> dict[str, Any]:
        """What run.yaml and result.json say of the weights file; nothing of a pretraining run, whose hash tells all."""
        if self.weights is None:
            return {}
        backbone, digest = parent.config["model"]["backbone"], parent.config["weights"]["sha256"]
        return {
            "weights": {"file": self.weights.name, "sha256": digest, "arch": backbone["name"], "args": backbone["args"]}
        }

    def beside(self, parent: Parent, stage: str, data: DataConfig, scores: dict[str, Any]) -> dict[str, Any]:
        """What stands in result.json beside the scores; prints the published figure where there is one."""
        if self.weights is None:
            return {}
        figure = published_score(self.weights.name, self.arch or "", stage, data, scores)
        if figure is None:
            return self.described(parent)
        print(f"{figure}; here: {scores[figure.score]:.2f} %", flush=True)
        return self.described(parent) | {
            "published": {"score": figure.score, "value": figure.value, "source": figure.source}
        }


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
