"""Which code made a score, and by which protocol: runs that differ in either are never averaged together."""

from __future__ import annotations

from collections import Counter

import pandas as pd

VERSION_KEY = "version"
_POINT = ("control", "grid.")


def version_of_each_point(frame: pd.DataFrame) -> pd.Series:
    """For each row of the frame, the version of its point (a pretraining and all its evaluations), as text.

    That is the commits of all its runs, a dirty one marked with +, and the protocols of those evaluations whose
    protocol differs within the study. A point that is not complete counts to the most usual version that its
    runs so far can still become; one that was not begun, to the most usual of all.
    """
    keys = [c for c in frame.columns if c == _POINT[0] or c.startswith(_POINT[1])]
    point = frame.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, frame.index)
    marks = pd.DataFrame({"point": point, "mark": _marks(frame)}).explode("mark").dropna()
    texts = marks.groupby("point")["mark"].agg(lambda found: " then ".join(dict.fromkeys(found)))
    begun = point.map(texts).fillna("")
    open_points = set(point[frame["eval.state"] != "done"]) if "eval.state" in frame else set()
    whole = begun[~point.isin(open_points)]
    usual = [version for version, _ in Counter(whole if len(whole) else begun).most_common()]
    ends = {text: next((v for v in usual if v.startswith(text)), text) for text in begun.unique()}
    return begun.where(~point.isin(open_points), begun.map(ends))


def _marks(frame: pd.DataFrame) -> pd.Series:
    """For each row, the list of what its version consists of; empty where nothing was begun."""
    found: list[list[str]] = [[] for _ in range(len(frame))]
    for side in ("pretrain", "eval"):
        column = f"{side}.provenance.commits"
        if column in frame:
            for marks, commits in zip(found, frame[column], strict=True):
                marks += [_short(commit) for commit in str(commits).split()] if isinstance(commits, str) else []
    for marks, protocol in zip(found, _telling_protocols(frame), strict=True):
        marks += [protocol] if protocol else []
    return pd.Series(found, frame.index)


def _short(commit: str) -> str:
    version, colon, sources = commit.partition(":")  # without a commit: as analysis.results writes it
    if colon:
        return f"{version}:{sources[:7]}"
    name, plus, _ = commit.partition("+")
    return name[:7] + plus


def _telling_protocols(frame: pd.DataFrame) -> list[str]:
    """The protocol of each row where its evaluation has several; "" elsewhere."""
    if "score.protocol" not in frame:
        return [""] * len(frame)
    protocols = frame["score.protocol"].where(frame["score.protocol"].notna(), "").astype(str)
    several = protocols[protocols != ""].groupby(frame["eval.name"]).nunique()
    telling = frame["eval.name"].map(several).fillna(0) > 1
    return [protocol if tells else "" for protocol, tells in zip(protocols, telling, strict=True)]
