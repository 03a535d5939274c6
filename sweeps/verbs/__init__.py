"""The verbs of `python -m sweeps`: here what they share, in the modules the verbs themselves.

A verb is a function of a Request that returns an exit code. Its docstring is its help; `add_..._options` defines its
options.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from runtime.config import require
from runtime.errors import UserError
from sweeps.graph import Graph, Node

_SLURM_CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


@dataclass(frozen=True)
class Request:
    """One command: the graph of its study, its options, and the `machine.*=value` for all of its runs."""

    graph: Graph
    arguments: argparse.Namespace
    machine: tuple[str, ...]


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        default=default_cluster(),
        help="slurm, or local: this machine, in the background (here the default is %(default)s)",
    )
    parser.add_argument("--cluster-config", type=Path, help="default: ~/.config/vicregl-bench/cluster.yaml")
    add_worker_options(parser)


def default_cluster() -> str:
    """slurm where this machine has its commands and a config for them, else local."""
    configured = "SLURM_CONF" in os.environ or any(Path(file).is_file() for file in _SLURM_CONFIGS)
    return "slurm" if configured and shutil.which("sbatch") else "local"


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_count,
        help="runs at a time on this machine, which share its cores (default: one per GPU; one per core, 8 at most)",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine to use (default: all; 0: none)")


def _count(text: str) -> int:
    count = int(text)
    require(count >= 1, "--workers", count, "1 or more")
    return count


def find_run(graph: Graph, text: str) -> Node:
    """Find the run that `text` names: its hash, its directory, <stage>/<name>, or its title in `status`.

    Raises UserError, with near names, where it names none or several.
    """
    exact = [node for node in graph.nodes if text.rstrip("/") in _names(node)]
    matches = exact or [node for node in graph.nodes if text in node.title]
    if len(matches) == 1:
        return matches[0]
    if matches:
        titles = ", ".join(node.title for node in matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise UserError(f"{text!r} names {len(matches)} runs: {titles}; give its hash")
    near = get_close_matches(text, [name for node in graph.nodes for name in _names(node)], n=3, cutoff=0.5)
    hint = f"near it: {', '.join(near)}" if near else "`status` shows every run with its hash"
    raise UserError(f"no run of {graph.study.name} is named {text!r}; {hint}")


def _names(node: Node) -> tuple[str, ...]:
    path = node.run.path
    return node.identity.hash, node.run.name, node.name, str(path), str(path.resolve()), node.title
