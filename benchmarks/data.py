"""Compare the input pipeline with the published recipe in PIL and torchvision, on the same files, in one run.

    make bench-data                                # about five minutes; writes benchmarks/data.md
    python -m benchmarks.data --device cuda        # colour on the GPU beside a training step; benchmarks/data_cuda.md

Contenders take turns, batch by batch. With one thread, its CPU time is measured, which other work on the machine hardly
affects; with two workers, wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import conditions, data_cases
from benchmarks.data_cases import CACHE_SIDE, DECODING, VIEWS, Contender
from runtime.errors import UserError, run_command

HERE = Path(__file__).parent
GOALS = {  # times the published pipeline's speed
    ("2 x 224", "cpu"): 4.5,
    ("2 x 224 + 6 x 96", "cpu"): 5,
    ("2 x 224", "worker of device"): 8,
    ("2 x 224 + 6 x 96", "worker of device"): 10,
    ("2 x 224", "worker of device, cache"): 30,
    ("2 x 224 + 6 x 96", "worker of device, cache"): 22,
    ("2 x 224", "device, 2 processes"): 6,
}


@dataclass(frozen=True)
class Timings:
    """Milliseconds an image of each contender: medians, and quartiles of the speed-up over the first contender."""

    milliseconds: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]

    @classmethod
    def from_seconds(cls, times: Mapping[str, Sequence[float]], batch: int) -> Timings:
        """times: seconds per batch of each contender, one value a round."""
        rounds = {name: np.array(seconds) for name, seconds in times.items()}
        base = next(iter(rounds.values()))
        ratios = {name: np.quantile(base / seconds, [0.25, 0.5, 0.75]).tolist() for name, seconds in rounds.items()}
        return cls({name: 1000 * float(np.median(seconds)) / batch for name, seconds in rounds.items()}, ratios)


def in_turns(contenders: Mapping[str, Contender], rounds: int, batch: int) -> Timings:
    """Measure one batch of each contender a round, in CPU time of this thread; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, make in contenders.items():
            started = time.thread_time()
            make()
            if turn:
                times[name].append(time.thread_time() - started)
    return Timings.from_seconds(times, batch)


def with_workers(
    contenders: Mapping[str, Callable[[], Iterator]], rounds: int, batches: int, batch: int, ahead: int = 4
) -> Timings:
    """Measure the wall time of a batch, after those that the workers made ahead."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, start in contenders.items():
            iterator = start()
            for _ in range(ahead):
                next(iterator)
            started = time.perf_counter()
            left = sum(1 for _ in iterator)
            times[name].append((time.perf_counter() - started) / left)
            if left != batches - ahead:
                raise UserError(f"{name} gave {left} batches, expected {batches - ahead}")
    return Timings.from_seconds(times, batch)


def table(case: str, timings: Timings) -> list[str]:
    lines = []
    for name, value in timings.milliseconds.items():
        low, middle, high = timings.ratios[name]
        goal = GOALS.get((case, name))
        reached = "" if goal is None else f"{goal:g}: {'reached' if middle >= goal else 'missed'}"
        lines.append(f"| {case} | {name} | {value:.2f} | {middle:.1f} ({low:.1f} to {high:.1f}) | {reached} |")
    return lines


def document(rows: Sequence[str], difference: float, rounds: int, batch: int) -> str:
    return "\n".join(
        [
            "# The input pipeline against the published recipe",
            "",
            "Milliseconds an image, from JPEG files (500 x 375, quality 96, 4:4:4; scikit-learn's photographs) to",
            'batches. "Published" is `benchmarks/published_recipe.py`: the recipe in PIL and torchvision, one view',
            "after another. Ratios: median over rounds (quartiles); contenders took turns, so load on the machine",
            f"affects all alike. `{DECODING}`: from files to pixels only, the bound of everything without a cache.",
            "`cpu`: float batches, ready to train on. `worker of device`: a loader worker's part when a GPU",
            "does the rest. `cache`: from the raw cache at full size, and reduced to",
            f"a short side of {CACHE_SIDE} (another augmentation: views are cut from the reduced image). Evaluation:",
            "torchvision's Resize(256) and CenterCrop(224) on PIL's images; the mean difference to it is",
            f"{difference:.4f} levels of 255.",
            "",
            f"One thread, or two workers where stated; {rounds} rounds, batches of {batch}.",
            "",
            conditions("make bench-data"),
            "| views | contender | ms an image | times faster | goal |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def measure(rounds: int, batch: int, batches: int) -> str:
    rows = []
    for case, views in VIEWS.items():
        with data_cases.images() as data:
            contenders = data_cases.one_thread(data, views, batch) | data_cases.cached(data, views, batch)
            rows += table(case, in_turns(contenders, rounds, batch))
        with data_cases.images() as data:
            workers = data_cases.end_to_end(data, views, batch, batches)
            rows += table(case, with_workers(workers, max(1, rounds // 5), batches, batch))
        print("\n".join(rows), flush=True)
    with data_cases.images() as data:
        contenders, difference = data_cases.evaluations(data, batch)
        rows += table("evaluation, 224", in_turns(contenders, rounds, batch))
    return document(rows, difference, rounds, batch)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    parser.add_argument("--batches", type=int, default=24, help="per measurement with workers")
    parser.add_argument("--out", type=Path, help="default: benchmarks/data.md, on a GPU data_cuda.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.device == "cuda":
        from benchmarks import data_cuda

        page = data_cuda.measure(options.batches)
    else:
        page = measure(options.rounds, options.batch, options.batches)
    out = options.out or HERE / ("data.md" if options.device == "cpu" else "data_cuda.md")
    out.write_text(page, encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
