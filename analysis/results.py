"""The table of results of a study: one row for each pretraining and evaluation. Columns:

    study, control       the study's name; the control's name, empty for the grid
    grid.<key>           the value of each grid key; empty where a control does not take it from the grid
    pretrain.run, .hash, .format, .state, pretrain.<config key>, pretrain.result.<score>, pretrain.provenance.<key>
    eval.name, .stage, .run, .hash, .format, .state, eval.<config key>, score.<score>, eval.provenance.<key>
    published.score, .value, .source    where the row has one: the published figure of the same evaluation

A run that is missing, running or failed, and a score that a run did not write, are NaN or None, never zero.
All of analysis/ but pictures/ sees run directories through this file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.labels import project_path
from runtime.config_keys import flatten
from runtime.errors import UserError
from sweeps.checkpoints import PRETRAIN
from sweeps.graph import Graph, Node, Point, build
from sweeps.keys import as_text
from sweeps.study import Study, load_study

# Provenance that says nothing about the result, or only something about one person's machine.
_LEFT_OUT = ("host", "job", "argv", "no_commit", "snapshot")
_COSTS = ("seconds", "_per_step", "_gb")  # of a result; another machine has others, and the same scores
# Columns whose text may look like a number.
_TEXTS = (".hash", ".commit", ".commits", ".python", "provenance.version", ".sources")


def load_results(study: str | Path | Study, machine: Sequence[str] = ()) -> pd.DataFrame:
    """Return the table of a study (its file, or a Study), whatever state its runs are in, or of a report's results.csv.

    `machine` as in `python -m sweeps`, for machine.runs=... Raises UserError for a file that cannot be read.
    """
    if not isinstance(study, Study) and Path(study).suffix == ".csv":
        return _read_csv(Path(study))
    return results_of(build(study if isinstance(study, Study) else load_study(study), machine))


def _read_csv(file: Path) -> pd.DataFrame:
    """Read the table so that hashes stay text, whatever digits they have, and only an empty cell is a gap."""
    try:
        names = pd.read_csv(file, nrows=0).columns
        texts = dict.fromkeys((name for name in names if name.endswith(_TEXTS) or ".versions." in name), str)
        frame = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""], low_memory=False).copy()
    except (OSError, ValueError) as error:  # pandas' ParserError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{file} cannot be read as a table of results: {error}") from error
    if missing := {"study", "control", "eval.name"} - set(frame.columns):
        raise UserError(f"{file} is not the results.csv of a report: it has no column {', '.join(sorted(missing))}")
    return frame


def results_of(graph: Graph) -> pd.DataFrame:
    """Return the table of a graph."""
    states = graph.states()
    runs = {node: _run_columns(node, states[node]) for node in graph.nodes}
    rows = []
    for point in graph.points:
        start = {"study": graph.study.name, "control": point.control}
        start |= {f"grid.{key}": as_text(value) for key, value in point.varied.items()}
        start |= {f"pretrain.{key}": value for key, value in runs[point.pretrain].items()}
        for name, node in point.evals.items():
            figure = point.published.get(name)
            known = {} if figure is None else {f"published.{key}": value for key, value in asdict(figure).items()}
            rows.append(start | {"eval.name": name} | _eval_columns(runs[node]) | known)
        rows += [] if point.evals else [start | {"eval.name": None}]
    return pd.DataFrame(rows)


def _eval_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Name the columns of an evaluation: score.top1 for its result.top1, eval.<key> for the rest."""
    return {f"eval.{key}".replace("eval.result.", "score.", 1): value for key, value in columns.items()}


def _run_columns(node: Node, state: str) -> dict[str, Any]:
    """Describe one run, in dotted keys."""
    result = (node.run.result() or {}) if state == "done" else {}
    return {
        "stage": node.stage.name,
        "run": f"{node.stage.name}/{node.run.name}",
        "hash": node.identity.hash,
        "format": node.identity.format,
        "state": state,
        "config_file": project_path(node.config_file) if node.config_file else None,  # none of imported weights
        **{key: as_text(value) for key, value in flatten(node.identity.config).items()},
        **{f"result.{key}": _finite(value) for key, value in flatten(result).items()},
        **{f"provenance.{key}": value for key, value in _run_provenance(node).items()},
    }


def _finite(value: Any) -> Any:
    """Return NaN for a number that is not finite, a list as text, and anything else as it is."""
    return math.nan if isinstance(value, float) and not math.isfinite(value) else as_text(value)


def _run_provenance(node: Node) -> dict[str, Any]:
    """Describe the last attempt; `commits` has those of all attempts, because each contributed to a resumed run."""
    attempts = node.run.attempts()
    if not attempts:
        return {}
    last = {key: value for key, value in attempts[-1].items() if key not in _LEFT_OUT}
    commits = dict.fromkeys(commit_name(attempt) for attempt in attempts)
    return {key: as_text(value) for key, value in flatten(last).items()} | {"commits": " ".join(commits)}


def commit_name(attempt: Mapping[str, Any]) -> str:
    """Return the commit, "+dirty" if it was changed; for code without one, "<version>:<SHA-256 of its sources>"."""
    if not attempt.get("commit") and attempt.get("sources"):
        return f"{attempt.get('version') or 'unknown'}:{attempt['sources']}"
    return f"{attempt.get('commit') or 'unknown'}{'+dirty' if attempt.get('dirty') else ''}"


def score_column(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return the rows that have a score such as linear.top1, one for each point.

    Their columns `value`, `state`, `published` and `run` hold the score, the state of its run, the published figure and
    the hash of the pretraining.
    `pretrain.<score>` is a score that the pretraining itself wrote.
    """
    source, _, name = score.partition(".")
    if source == PRETRAIN:
        keys = [c for c in frame.columns if c == "control" or c.startswith("grid.")]
        rows, column, state = frame.drop_duplicates(keys), f"pretrain.result.{name}", "pretrain.state"
    else:
        rows, column, state = frame[frame["eval.name"] == source], f"score.{name}", "eval.state"
    values = rows[column] if column in rows else pd.Series(math.nan, rows.index)
    known = rows["published.value"].where(rows["published.score"] == name) if "published.value" in rows else math.nan
    runs = rows.get("pretrain.hash", pd.Series(None, rows.index, dtype=object))
    return rows.assign(value=pd.to_numeric(values, errors="coerce"), state=rows[state], published=known, run=runs)


def result_mark(columns: Mapping[Hashable, Any]) -> str:
    """Return a short mark of a run's scores, by name: another result has another mark; time and memory do not count."""
    known = {str(k): v for k, v in columns.items() if v is not None and v == v and not str(k).endswith(_COSTS)}
    numbers = {k: float(v) for k, v in known.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    texts = {key: str(numbers.get(key, value)) for key, value in known.items()}  # a CSV file may turn 5 into 5.0
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:10]


def run_mark(node: Node) -> str:
    """Return `result_mark` of a run's directory, as its row in the table of results has it."""
    columns = _run_columns(node, node.run.state())
    return result_mark({k.removeprefix("result."): v for k, v in columns.items() if k.startswith("result.")})


def marks_of(frame: pd.DataFrame) -> set[str]:
    """Return hash:state:mark of every run of a table of results."""
    marks: set[str] = set()
    for side, start in (("pretrain", "pretrain.result."), ("eval", "score.")):
        if f"{side}.hash" not in frame:
            continue
        scores = [str(column) for column in frame.columns if str(column).startswith(start)]
        for run in frame.dropna(subset=[f"{side}.hash"]).drop_duplicates(f"{side}.hash").to_dict("records"):
            mark = result_mark({name.removeprefix(start): run[name] for name in scores})
            marks.add(f"{run[f'{side}.hash']}:{run[f'{side}.state']}:{mark}")
    return marks


def history_of(graph: Graph) -> pd.DataFrame:
    """Return what every pretraining of a study logged while it ran: one row for each logging step.

    Columns: run, control, grid.<key>, step, and whatever metrics.jsonl holds (loss terms, probe_top1, ...).
    A file that a kill cut off loses only its last line; a run that logged nothing has no rows.
    """
    once = {point.pretrain.run.path: point for point in reversed(graph.points)}  # two points may share a run
    rows = [row for point in reversed(once.values()) for row in _logged_rows(point)]
    return pd.DataFrame(rows, columns=None if rows else ["run", "control", "step"])


def _logged_rows(point: Point) -> Iterator[dict[str, Any]]:
    start = {"run": f"pretrain/{point.pretrain.run.name}", "control": point.control}
    start |= {f"grid.{key}": as_text(value) for key, value in point.varied.items()}
    for row in point.pretrain.run.metrics():
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield start | {key: value for key, value in row.items() if isinstance(value, int | float)}


def runs_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each run once, with the columns part, run, state, seconds, config_file and provenance.*."""
    parts = []
    for side, scores in (("pretrain", "pretrain.result."), ("eval", "score.")):
        if f"{side}.run" not in frame:
            continue
        kept = re.compile(rf"{side}\.(run|state|config_file|provenance\..+)")
        renames = {c: c.removeprefix(f"{side}.") for c in map(str, frame.columns) if kept.fullmatch(c)}
        renames |= {f"{scores}seconds": "seconds"}
        runs = frame.rename(columns=renames)[[new for old, new in renames.items() if old in frame]]
        parts.append(runs.assign(part="pretrain" if side == "pretrain" else frame["eval.name"]))
    runs = pd.concat(parts).dropna(subset=["run"]).drop_duplicates("run")
    return runs.reindex(columns=list(dict.fromkeys([*runs.columns, "seconds", "provenance.commits"])))


def commits(frame: pd.DataFrame) -> list[str]:
    """Return the commits of each run that was begun, as `commit_name` writes them."""
    return [str(text) for text in runs_of(frame)["provenance.commits"].dropna()]


def commit_text(commit: str) -> str:
    """Word a commit of `commit_name` for a reader."""
    version, colon, sources = commit.partition(":")
    if colon:
        return f"version {version} without a git commit, sources {sources[:12]} (SHA-256)"
    name, plus, _ = commit.partition("+")
    return f"commit {name[:12]}" + (" with uncommitted changes (the runs keep the diff)" if plus else "")


def provenance(frame: pd.DataFrame, study: Study) -> dict[str, str]:
    """Return which study, configs, code, machines and versions made the runs: a text for each."""
    runs = runs_of(frame)
    pretraining = [] if study.pretrain is None else [study.pretrain.config]
    configs = [*pretraining, *(part.config for part in study.evals.values())]
    begun = runs.dropna(subset=["provenance.commits"]).rename(columns=lambda name: name.removeprefix("provenance."))
    versions = [str(column) for column in begun.columns if str(column).startswith("versions.")]
    return {
        "study": f"`{project_path(study.file)}`",
        "configs": ", ".join(f"`{project_path(config)}`" for config in dict.fromkeys(configs)),
        "code": _count_texts([" then ".join(map(commit_text, text.split())) for text in begun["commits"]]),
        "machine": _count_texts([_machine_text(run) for run in begun.to_dict("records")]),
        "versions": _count_texts([_versions_text(run, versions) for run in begun.to_dict("records")]),
    }


def _count_texts(texts: Sequence[str]) -> str:
    """Join the different texts, with the number of runs of each where there are several."""
    counted = Counter(texts)
    named = [f"{text} ({n} run{'s' * (n != 1)})" if len(counted) > 1 else text for text, n in counted.items()]
    return "; ".join(named) or "no run yet"


def _machine_text(run: Mapping[Hashable, Any]) -> str:
    known = {key: value for key, value in run.items() if pd.notna(value)}
    cores = [f"{float(known['cores']):.0f} cores"] if "cores" in known else []
    return ", ".join([str(known.get("processor", "unknown processor")), *cores, str(known.get("gpu", "no GPU"))])


def _versions_text(run: Mapping[Hashable, Any], names: Sequence[str]) -> str:
    known = [name for name in ("python", *names) if name in run and pd.notna(run[name])]
    return ", ".join(f"{name.removeprefix('versions.')} {run[name]}" for name in known)
