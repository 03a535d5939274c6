"""How long a report takes: 10,000 rows of results that are made up, from run directories to tables, figures and pages.

    python -m benchmarks.analysis                 # prints the seconds of each part; the goal is 20 together
    python -m benchmarks.analysis --rows 1000

What is left out is the planning of so large a study (sweeps.graph.build), which is not the analysis's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.report import write_report_data
from analysis.report_data import ReportData
from analysis.results import history_of, results_of
from runtime import provenance
from runtime.rundir import Identity
from sweeps.graph import Graph, Node, Point
from sweeps.stages import Stage
from sweeps.study import EvalPart, PretrainPart, ReportPart, Study

ALPHAS = [0.0, 0.5, 0.75, 0.9, 1.0]
LOCALS = ["both", "location", "feature", "none"]
EVALS = ("linear", "segmentation")
FIELDS = 60  # of a config
LOGGED = 24  # rows of a pretraining's metrics.jsonl


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000, help="of (pretraining, evaluation) pairs; default 10000")
    options = parser.parse_args(argv)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        graph = make_graph(Path(name), options.rows)
        with _timed(seconds, "run directories to the tidy table"):
            frame = results_of(graph)
        with _timed(seconds, "training curves"):
            history = history_of(graph)
        data = ReportData(graph.study, frame, history)
        with _timed(seconds, "tables, figures and pages"):
            folder = write_report_data(data, Path(name) / "reports")
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{len(frame)} rows, {len(frame.columns)} columns, {len(history)} logged rows; the report has {size:.1f} MB")
    for part, value in seconds.items():
        print(f"  {value:6.1f} s  {part}")
    print(f"  {sum(seconds.values()):6.1f} s  together")
    return seconds


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


def make_graph(root: Path, rows: int) -> Graph:
    """A study of `rows` rows whose run directories lie under `root`, all of them done."""
    seeds = list(range(max(1, rows // (len(ALPHAS) * len(LOCALS) * len(EVALS)))))
    grid: dict[str, list[Any]] = {"loss.alpha": ALPHAS, "loss.local": LOCALS, "seed": seeds}
    evals = {name: EvalPart(stage=name, config=f"{name}.yaml") for name in EVALS}
    report = ReportPart(vary="loss.alpha", baseline=1.0, x="linear.top1", y="segmentation.miou")
    pretrain = PretrainPart(config="p.yaml", grid=grid)
    study = Study(name="many", question="How long?", pretrain=pretrain, evals=evals, report=report, file="many.yaml")
    random, attempt = np.random.default_rng(0), provenance.collect()
    points = [
        _point(root, dict(zip(grid, values, strict=True)), random, attempt)
        for values in itertools.product(*grid.values())
    ]
    return Graph(study, points, [node for point in points for node in (point.pretrain, *point.evals.values())])


def _point(root: Path, varied: dict[str, Any], random: np.random.Generator, attempt: dict[str, Any]) -> Point:
    alpha = varied["loss.alpha"]
    pretrain = _node(root, "pretrain", varied, None)
    quality = {"rank_pooled": 40 + 10 * alpha + random.normal(), "rank_local": 90 - 20 * alpha + random.normal()}
    _fill(pretrain, {"steps": 1200, "seconds": 300 + 10 * random.normal(), "loss": 15.0} | quality, attempt)
    log = (
        {"step": 50 * (i + 1), "loss": 30 / (i + 1), "probe_top1": 90.0 * i / LOGGED, **quality} for i in range(LOGGED)
    )
    (pretrain.run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    scores = {
        "linear": {"top1": 90 + 6 * alpha + random.normal()},
        "segmentation": {"miou": 30 - 6 * alpha + random.normal()},
    }
    evals = {name: _node(root, name, varied, pretrain) for name in EVALS}
    for name, node in evals.items():
        _fill(node, scores[name] | {"seconds": 20.0, "protocol": name}, attempt)
    return Point(varied, None, pretrain, evals)


def _node(root: Path, part: str, varied: dict[str, Any], parent: Node | None) -> Node:
    config = {f"field_{i}": i / 7 for i in range(FIELDS)} | varied
    identity = Identity(part, part, 1, config, None if parent is None else parent.identity.hash)
    stage = Stage(part, part, "Config", (part,), lambda config: 1.0)
    return Node(stage, part, str(varied), identity, str(root / "runs"), f"{part}.yaml", (), 1.0, parent)


def _fill(node: Node, result: dict[str, Any], attempt: dict[str, Any]) -> None:
    """The files that the analysis reads, written plainly: making them safely would take longer than reading them."""
    node.run.path.mkdir(parents=True)
    identity = node.identity
    document = {"stage": identity.stage, "hash": identity.hash, "config": identity.config, "attempts": [attempt]}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    (node.run.path / "run.yaml").write_text(yaml.dump(document, Dumper=dumper, sort_keys=False), encoding="utf-8")
    (node.run.path / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
