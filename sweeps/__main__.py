"""Plan, run and watch a study.

    python -m sweeps plan   sweeps/studies/quickstart.yaml             # what would run; nothing does
    python -m sweeps run    sweeps/studies/quickstart.yaml --workers 2
    python -m sweeps status sweeps/studies/quickstart.yaml --json      # exit code 0 done, 1 failed, 3 not finished

`machine.*=value` after the study (as machine.runs=/scratch/runs machine.device=cuda) holds for all of its runs.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.config import require
from runtime.device import available_cores
from runtime.errors import run_command
from sweeps import local
from sweeps.display import Display
from sweeps.estimate import Estimator, TimeLeft, describe_seconds, time_left
from sweeps.graph import STATES, Graph, Node, build
from sweeps.study import load_study

UNFINISHED = 3


def main(argv: Sequence[str]) -> int:
    machine = [text for text in argv if "=" in text and not text.startswith("-")]  # wherever among the options
    arguments = _parser().parse_args([text for text in argv if text not in machine])
    graph = build(load_study(arguments.study), machine)
    if arguments.verb == "run":
        return local.run(graph, arguments.workers, Display(), machine)
    states = graph.states()
    workers = arguments.workers if arguments.verb == "plan" else local.default_workers()
    left = expected(graph, states, workers)
    if arguments.json:
        print(json.dumps(document(graph, states, left), indent=2))
    elif arguments.verb == "plan":
        print_plan(graph, states, left, workers)
    else:
        print_status(graph, states, left)
    return exit_code(states) if arguments.verb == "status" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="plan | run | status")
    helps = {
        "plan": "show every run, its state and the time it takes",
        "run": "run what is not done, here",
        "status": "show how far each run is",
    }
    for verb, text in helps.items():
        one = verbs.add_parser(
            verb, help=text, usage=f"python -m sweeps {verb} STUDY [options] [machine.key=value ...]"
        )
        one.add_argument("study", help="a YAML file, as sweeps/studies/quickstart.yaml")
        if verb != "status":
            one.add_argument(
                "--workers",
                type=_workers,
                default=local.default_workers(),
                help="runs at a time; each gets its share of the cores (default: %(default)s)",
            )
        if verb != "run":
            one.add_argument("--json", action="store_true", help="for scripts")
    return parser


def _workers(text: str) -> int:
    count = int(text)
    require(count >= 1, "--workers", count, "1 or more")
    return count


def expected(graph: Graph, states: dict[Node, str], workers: int) -> TimeLeft | None:
    """Time until every run is done, from the durations of finished ones; None where nothing was measured."""
    estimator = Estimator.from_finished([node for node in graph.nodes if states[node] == "done"])
    waiting = [node for node in graph.nodes if states[node] not in ("done", "running")]
    running = {node: _seconds_left(node, estimator) for node in graph.nodes if states[node] == "running"}
    return time_left(waiting, running, workers, estimator)


def _seconds_left(node: Node, estimator: Estimator) -> float | None:
    whole, progress = estimator.seconds(node), _progress(node)
    if whole is None or not progress or not progress.get("total"):
        return whole
    return whole * (1 - progress["done"] / progress["total"])


def _progress(node: Node) -> dict[str, Any]:
    beat = node.run.heartbeat()
    return (beat.get("progress") or {}) if isinstance(beat, dict) else {}


def document(graph: Graph, states: dict[Node, str], left: TimeLeft | None) -> dict[str, Any]:
    """What `--json` prints."""
    estimator = Estimator.from_finished([node for node in graph.nodes if states[node] == "done"])
    return {
        "study": graph.study.name,
        "counts": _counts(states),
        "seconds_left": None if left is None else round(left.seconds),
        "seconds_left_is_complete": left is not None and left.complete,
        "runs": [_describe(node, states[node], estimator) for node in graph.nodes],
    }


def _describe(node: Node, state: str, estimator: Estimator) -> dict[str, Any]:
    failure = node.run.failure() if state == "failed" else None
    return {
        "part": node.part,
        "stage": node.stage.name,
        "label": node.label,
        "hash": node.identity.hash,
        "parent": node.identity.parent,
        "run": str(node.run.path),
        "state": state,
        "progress": _progress(node) if state in ("running", "interrupted") else {},
        "failure": failure,
        "expected_seconds": estimator.seconds(node),
        "command": node.argv(),
    }


def _counts(states: dict[Node, str]) -> dict[str, int]:
    found = Counter(states.values())
    return {state: found[state] for state in STATES if found[state]}


def print_plan(graph: Graph, states: dict[Node, str], left: TimeLeft | None, workers: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    estimator = Estimator.from_finished([node for node in graph.nodes if states[node] == "done"])
    rows = [(node, _seconds(estimator.seconds(node))) for node in graph.nodes]
    console.print(_table(graph, states, rows, "expected"))
    to_start = [node for node in graph.nodes if states[node] not in ("done", "running")]
    threads = max(1, available_cores() // workers)
    time = "of unknown length: nothing was measured yet" if left is None else _left(left)
    each = f"{threads} {'thread' if threads == 1 else 'threads'} each"
    runs = f"{len(to_start)} runs, {workers} at a time with {each}, {time}"
    console.print(f"`run` would start {runs}" if to_start else "`run` would start nothing")


def print_status(graph: Graph, states: dict[Node, str], left: TimeLeft | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    rows = [(node, _note(node, states[node])) for node in graph.nodes]
    console.print(_table(graph, states, rows, "progress"))
    if left is not None and left.seconds:
        console.print(_left(left))


def _table(graph: Graph, states: dict[Node, str], rows: list[tuple[Node, str]], last: str) -> Table:
    counts = ", ".join(f"{count} {state}" for state, count in _counts(states).items())
    table = Table(title=f"{graph.study.name}: {len(graph.nodes)} runs, {counts}", title_justify="left")
    for column in ("part", "what", "hash", "state", last):
        table.add_column(column, overflow="fold")
    for node, text in rows:
        table.add_row(node.part, node.label, node.identity.hash, states[node], text)
    return table


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else describe_seconds(seconds)


def _left(left: TimeLeft) -> str:
    return f"{'about' if left.complete else 'at least'} {describe_seconds(left.seconds)} left"


def _note(node: Node, state: str) -> str:
    if state == "failed":
        failure = node.run.failure() or {}
        return str(failure.get("message", "")).splitlines()[0]
    progress = _progress(node) if state in ("running", "interrupted") else {}
    if not progress.get("total"):
        return ""
    return f"{progress['done']}/{progress['total']} {progress.get('unit', '')}"


def exit_code(states: dict[Node, str]) -> int:
    """0: all done; 1: something failed; 3: not finished."""
    if any(state in ("failed", "blocked") for state in states.values()):
        return 1
    return 0 if all(state == "done" for state in states.values()) else UNFINISHED


if __name__ == "__main__":
    run_command(main)
