"""What a study's runs took, and what code, versions and machines made them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.labels import NONE, number, project_path, symbol, value_text
from analysis.render import Table
from analysis.report_data import ReportData
from runtime.progress import describe_seconds
from sweeps.study import Study


def runs_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Each run once, with the columns part, run, state, seconds, config_file and provenance.*."""
    parts = []
    for side, scores in (("pretrain", "pretrain.result."), ("eval", "score.")):
        columns = {c: c.removeprefix(f"{side}.") for c in map(str, frame.columns) if _is_about_the_run(c, side)}
        if f"{side}.run" not in frame:
            continue
        renames = columns | {f"{scores}seconds": "seconds"}
        runs = frame.rename(columns=renames)[[new for old, new in renames.items() if old in frame]]
        parts.append(runs.assign(part="pretrain" if side == "pretrain" else frame["eval.name"]))
    runs = pd.concat(parts).dropna(subset=["run"]).drop_duplicates("run")
    return runs.reindex(columns=list(dict.fromkeys([*runs.columns, "seconds", "provenance.commits"])))


def _is_about_the_run(column: str, side: str) -> bool:
    about = ("run", "state", "config_file")
    return column in {f"{side}.{name}" for name in about} or column.startswith(f"{side}.provenance.")


def table_of(frame: pd.DataFrame) -> Table:
    """Time of each stage: runs, total, a run (mean, shortest to longest)."""
    lines = []
    for part, runs in runs_of(frame).groupby("part", sort=False):
        seconds = pd.to_numeric(runs["seconds"], errors="coerce").dropna()
        if seconds.empty:
            lines.append([str(part), f"0 of {len(runs)}", "–", "–", "–"])
            continue
        spread = f"{describe_seconds(seconds.min())} to {describe_seconds(seconds.max())}"
        times = (describe_seconds(seconds.sum()), describe_seconds(seconds.mean()), spread)
        lines.append([str(part), f"{len(seconds)} of {len(runs)}", *times])
    return Table(["stage", "runs with a time", "together", "a run", "shortest to longest"], [lines])


TIME, MEMORY = "milliseconds", "gigabytes"  # columns of cost_of_a_step


def cost_of_a_step(data: ReportData) -> pd.DataFrame:
    """Columns varied, group, milliseconds, gigabytes; a row each finished pretraining of the grid that trained at all.

    The run's own seconds over its steps: data, diagnostics and saving included. Gigabytes: the most that a process
    took; NaN for a run that did not measure it.
    """
    keys = [f"grid.{key}" for key in data.study.row_keys]
    frame, wanted = data.frame, ["pretrain.result.seconds", "pretrain.result.steps"]
    if not set(wanted) <= set(frame.columns):
        return pd.DataFrame({name: [] for name in ("varied", "group", TIME, MEMORY)})
    runs = frame[frame["control"].isna()].drop_duplicates("pretrain.run").dropna(subset=wanted)
    runs = runs[runs["pretrain.result.steps"] > 0]
    names = [", ".join(f"{symbol(k)} = {value_text(r[k])}" for k in keys[1:]) for r in runs.to_dict("records")]
    milliseconds = 1000 * runs["pretrain.result.seconds"] / runs["pretrain.result.steps"]
    memory = runs.get("pretrain.result.peak_memory_gb", pd.Series(math.nan, runs.index))
    columns = {"varied": runs[keys[0]], "group": names, TIME: milliseconds}
    return pd.DataFrame(columns | {MEMORY: pd.to_numeric(memory, errors="coerce")})


def step_table(data: ReportData) -> Table | None:
    """A step at each setting: medians over the runs, and their range; None where no run has a time."""
    costs = cost_of_a_step(data)
    if costs.empty:
        return None
    several = costs["group"].nunique() > 1
    header = [data.study.report.vary, *(["curve"] if several else []), "runs", "ms a step", "peak memory (GB)"]
    lines = []
    for (varied, group), rows in costs.groupby(["varied", "group"], sort=False):
        name = [value_text(varied), *([str(group)] if several else [])]
        lines.append([*name, str(len(rows)), _spread(rows[TIME]), _spread(rows[MEMORY])])
    return Table(header, [lines])


def _spread(values: pd.Series) -> str:
    """ "310 (305 to 322)"; how many of the runs have no value, where some have not."""
    known = values.dropna()
    if known.empty:
        return NONE
    text = number(known.median(), False)
    if len(known) > 1:
        text += f" ({number(known.min(), False)} to {number(known.max(), False)})"
    return text if len(known) == len(values) else f"{text}, {len(values) - len(known)} not measured"


def provenance(frame: pd.DataFrame, study: Study, file: str) -> list[str]:
    """Commits, files, machines and versions of the runs that there are, a line each."""
    runs = runs_of(frame)
    configs = [study.pretrain.config, *(part.config for part in study.evals.values())]
    lines = [
        ("study", f"`{file}`"),
        ("configs", ", ".join(f"`{project_path(config)}`" for config in dict.fromkeys(configs))),
        ("code", _commits(runs)),
        ("machine", _counted(runs, ["processor", "cores", "gpu"], _machine)),
        ("versions", _counted(runs, ["python", *_versions(runs)], _version_text)),
    ]
    return [f"{name}: {text}" for name, text in lines]


def commits(frame: pd.DataFrame) -> list[str]:
    """The commits of each run of the frame that was begun, as results.py writes them."""
    return [str(found) for found in runs_of(frame)["provenance.commits"].dropna()]


def _commits(runs: pd.DataFrame) -> str:
    counted = Counter(str(found) for found in runs["provenance.commits"].dropna())
    if not counted:
        return "no run yet"
    texts = []
    for commits, count in counted.items():
        named = " then ".join(commit_text(commit) for commit in commits.split())
        texts.append(f"{named} ({_runs(count)})" if len(counted) > 1 else named)
    return "; ".join(texts)


def commit_text(commit: str) -> str:
    version, colon, sources = commit.partition(":")
    if colon:
        return f"version {version} without a git commit, sources {sources[:12]} (SHA-256)"
    name, plus, _ = commit.partition("+")
    return f"commit {name[:12]}" + (" with uncommitted changes (the runs keep the diff)" if plus else "")


def _versions(runs: pd.DataFrame) -> list[str]:
    return [
        column.removeprefix("provenance.")
        for column in map(str, runs.columns)
        if column.startswith("provenance.versions.")
    ]


def _counted(runs: pd.DataFrame, names: list[str], write: Callable[[dict[str, Any]], str]) -> str:
    """Each combination of the columns that occurs, with how many runs it has where there are several."""
    columns = [f"provenance.{name}" for name in names if f"provenance.{name}" in runs]
    begun = runs[runs["provenance.commits"].notna()]
    counted = Counter(
        write({str(c).removeprefix("provenance."): v for c, v in row.items() if pd.notna(v)})
        for row in begun[columns].to_dict("records")
    )
    texts = [f"{text} ({_runs(count)})" if len(counted) > 1 else text for text, count in counted.items()]
    return "; ".join(texts) or "no run yet"


def _machine(values: dict[str, Any]) -> str:
    parts = [str(values.get("processor", "unknown processor"))]
    if "cores" in values:
        parts.append(f"{float(str(values['cores'])):.0f} cores")
    return ", ".join([*parts, str(values["gpu"]) if "gpu" in values else "no GPU"])


def _version_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('versions.')} {value}" for name, value in values.items())


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
