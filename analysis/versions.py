"""Which versions of code and protocol made the points of a study: those of two versions are never averaged."""

from __future__ import annotations

from collections import Counter

import pandas as pd


def version_of_each_point(frame: pd.DataFrame) -> pd.Series:
    """Return, for each row, the version of its point (a pretraining and all its evaluations), as text.

    That is the commits of all its runs (not of a checkpoint that is given), with a + where code was changed, and the
    protocols of those evaluations that have several within the study. A point that is not complete counts to the most
    common version that its runs so far can still become; one that was not started, to the most common of all.
    """
    keys = [c for c in frame.columns if c == "control" or c.startswith("grid.")]
    point = frame.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, frame.index)
    marks = pd.DataFrame({"point": point, "mark": _marks(frame)}).explode("mark").dropna()
    texts = marks.groupby("point")["mark"].agg(lambda marks: " then ".join(dict.fromkeys(marks)))
    started = point.map(texts).fillna("")
    open_points = set(point[frame["eval.state"] != "done"]) if "eval.state" in frame else set()
    complete = started[~point.isin(open_points)]
    common = [version for version, _ in Counter(complete if len(complete) else started).most_common() if version]
    ends = {text: next((v for v in common if v.startswith(text)), text) for text in started.unique()}
    return started.where(~point.isin(open_points), started.map(ends))


def _marks(frame: pd.DataFrame) -> pd.Series:
    """Return, for each row, the parts of its version; none where nothing was started."""
    parts: list[list[str]] = [[] for _ in range(len(frame))]
    nothing = pd.Series(None, frame.index, dtype=object)
    # A checkpoint that is given, as imported weights or another study's run, is named by its content, not by its code.
    trained = frame.get("pretrain.config_file", pd.Series("", frame.index)).notna()
    evaluated = frame.get("eval.provenance.commits", nothing)
    for column in (frame.get("pretrain.provenance.commits", nothing).where(trained), evaluated):
        for marks, commits in zip(parts, column, strict=True):
            marks += [_short_commit(commit) for commit in commits.split()] if isinstance(commits, str) else []
    for marks, protocol in zip(parts, _distinguishing_protocols(frame), strict=True):
        marks += [protocol] if protocol else []
    return pd.Series(parts, frame.index)


def _short_commit(commit: str) -> str:
    version, colon, sources = commit.partition(":")  # code without a commit, as analysis.results writes it
    if colon:
        return f"{version}:{sources[:7]}"
    name, plus, _ = commit.partition("+")
    return name[:7] + plus


def _distinguishing_protocols(frame: pd.DataFrame) -> list[str]:
    """Return the protocol of each row whose evaluation has several; "" elsewhere."""
    if "score.protocol" not in frame:
        return [""] * len(frame)
    protocols = frame["score.protocol"].fillna("").astype(str)
    counts = protocols[protocols != ""].groupby(frame["eval.name"]).nunique()
    several = frame["eval.name"].map(counts).fillna(0) > 1
    return list(protocols.where(several, ""))
