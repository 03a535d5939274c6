"""Measure evaluations by one process and by several, in turns on the same machine.

    make bench-evaluation                            # about seven minutes; writes benchmarks/evaluation.md
    python -m benchmarks.evaluation --processes 8    # on a machine with eight GPUs, or cores

A ResNet-50 of random weights on JPEGs at 224 pixels, each process with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from benchmarks import conditions
from benchmarks.data_cases import write_images
from runtime import import_path
from runtime.errors import UserError, run_command
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

OUT = Path(__file__).with_name("evaluation.md")
ARCH, BATCH = "resnet50", 8
LINEAR = ["linear", "learning_rates=[0.01,0.1]", "epochs=2", "held_out=0.1"]
CASES = {
    "linear, random crops, 2 epochs": LINEAR,
    "linear cached, 2 epochs": [*LINEAR, "mode=cached"],
    "kNN": ["knn", "neighbours=[10]"],
}


@dataclass(frozen=True)
class Inputs:
    """Images and weights, made once in a temporary folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, images: int) -> Inputs:
        write_images(folder / "images", images)
        torch.manual_seed(0)
        save_file(create_backbone(BackboneConfig(ARCH)).trunk.state_dict(), folder / "weights.safetensors")
        return cls(folder)

    def run(self, case: Sequence[str], processes: int) -> dict[str, float]:
        """Return result.json of an evaluation, whose directory is removed. UserError where it fails."""
        stage, *options = case
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        weights = ["--weights", f"{self.folder}/weights.safetensors", "--arch", ARCH]
        config = ["--config", f"eval/configs/{stage}_imagenet.yaml", "data.name=imagefolder"]
        places = [f"data.root={self.folder}/images", f"machine.runs={self.folder}/runs"]
        machine = ["machine.workers=0", "machine.threads=1", f"batch_size={BATCH}"]
        words = ["-m", f"eval.{stage}", *weights, *config, *places, *machine, *options]
        command = [sys.executable, *(launcher if processes > 1 else []), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | import_path()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise UserError(f"{' '.join(words)} by {processes} processes failed: {done.stderr.strip()[-500:]}")
        (file,) = (self.folder / "runs" / stage).glob("*/result.json")
        result: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        shutil.rmtree(file.parent)
        return result


def measure(images: int, processes: int, rounds: int) -> dict[str, list[tuple[dict[str, float], dict[str, float]]]]:
    """Return the results of each case by one process and by several, a pair a round."""
    with TemporaryDirectory() as folder:
        inputs = Inputs.make(Path(folder), images)
        pairs = {}
        for name, case in CASES.items():
            pairs[name] = [(inputs.run(case, 1), inputs.run(case, processes)) for _ in range(rounds)]
            print("\n".join(table({name: pairs[name]})), flush=True)
        return pairs


def table(pairs: Mapping[str, list[tuple[dict[str, float], dict[str, float]]]]) -> list[str]:
    """Return a row for each case: seconds by one process and by several, their ratio, and the score of each."""
    lines = []
    for name, rounds in pairs.items():
        alone, several = ([pair[k]["seconds"] for pair in rounds] for k in (0, 1))
        ratios = [one / many for one, many in zip(alone, several, strict=True)]
        span = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        tops = [f"{rounds[0][k]['top1']:.2f}" for k in (0, 1)]
        lines.append(f"| {name} | {median(alone):.1f} | {median(several):.1f} | {span} | {tops[0]}, {tops[1]} |")
    return lines


def document(rows: Sequence[str], images: int, processes: int, rounds: int) -> str:
    return "\n".join(
        [
            "# Evaluations by one process and by several",
            "",
            "A ResNet-50 of random weights at 224 pixels, on JPEGs (500 x 375); each process has one thread and reads",
            f"its own images. {images} images in train and in val, batches of {BATCH}. Seconds are those of the run,",
            f"without the start of Python: medians of {rounds} rounds of one process and then {processes}, and of the",
            "ratio the extremes too. With random weights the scores say only that they are the same.",
            "",
            conditions("make bench-evaluation"),
            f"| evaluation | 1 process, s | {processes} processes, s | times faster | top-1 of each, % |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=96, help="of train, and of val")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    pairs = measure(options.images, options.processes, options.rounds)
    page = document(table(pairs), options.images, options.processes, options.rounds)
    options.out.write_text(page, encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_command(main)
