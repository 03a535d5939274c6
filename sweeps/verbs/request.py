"""What a verb is asked, and options that several verbs have."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from runtime.config import require
from runtime.errors import UserError
from sweeps.graph import Graph, Node

CLUSTERS = ("slurm", "local")
_CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


@dataclass(frozen=True)
class Request:
    """One command: the graph of its study, its options, and the `machine.*=value` for all of its runs."""

    graph: Graph
    arguments: argparse.Namespace
    machine: tuple[str, ...]


def add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        choices=CLUSTERS,
        default=default_cluster(),
        help="slurm, or local: this machine, in the background (here the default is %(default)s)",
    )
    parser.add_argument("--cluster-config", type=Path, help="default: ~/.config/vicregl-bench/cluster.yaml")


def default_cluster() -> str:
    """slurm where this machine has its commands and a config for them."""
    configured = "SLURM_CONF" in os.environ or any(Path(file).is_file() for file in _CONFIGS)
    return "slurm" if configured and shutil.which("sbatch") else "local"


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_count,
        help="runs at a time on this machine, which share its cores (default: one a GPU; one a core, 8 at most)",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use of this machine (default: all; 0: none)")


def _count(text: str) -> int:
    count = int(text)
    require(count >= 1, "--workers", count, "1 or more")
    return count


def find_run(graph: Graph, text: str) -> Node:
    """The run that `text` names: its hash, its directory, <stage>/<name>, or what `status` calls it.

    Raises UserError, naming near ones, where it names none or several.
    """
    exact = [node for node in graph.nodes if text.rstrip("/") in _names(node)]
    found = exact or [node for node in graph.nodes if text in node.title]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{text!r} names {len(found)} runs: {_listed(node.title for node in found)}; give its hash")
    names = [name for node in graph.nodes for name in _names(node)]
    near = get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"near it: {', '.join(near)}" if near else "`status` shows every run with its hash"
    raise UserError(f"no run of {graph.study.name} is named {text!r}; {hint}")


def _names(node: Node) -> tuple[str, ...]:
    stage = node.identity.stage
    return (
        node.identity.hash,
        node.run.name,
        f"{stage}/{node.run.name}",
        str(node.run.path),
        str(node.run.path.resolve()),
        node.title,
    )


def _listed(titles: Iterable[str], most: int = 5) -> str:
    titles = list(titles)
    return ", ".join(titles[:most]) + (", ..." if len(titles) > most else "")
