"""Pictures that `python -m analysis.pictures --study` left beside a report: shown if they are of the runs it is about.

Each PNG says in its text fields which runs it shows, in which state (SOURCE), and what it shows (CAPTION).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from analysis.page import Block, Heading, Paragraph, Photo

FOLDER = "pictures"
SOURCE, CAPTION = "Source", "Description"


def pictures_of(folder: Path, frame: pd.DataFrame) -> list[Block]:
    """Of the report in `folder`; those of other runs, or of runs that have gone on since, are named and not shown."""
    states = {
        f"{run}:{state}"
        for side in ("pretrain", "eval")
        if f"{side}.hash" in frame
        for run, state in frame[[f"{side}.hash", f"{side}.state"]].dropna().to_numpy()
    }
    shown: list[Block] = []
    former = []
    for file in sorted((folder / FOLDER).glob("*.png")):
        with Image.open(file) as image:
            texts = dict(getattr(image, "text", {}))
        runs = set(texts.get(SOURCE, "").split())
        if runs and {_settled(run) for run in runs} <= {_settled(run) for run in states}:
            caption = texts.get(CAPTION, "")
            shown.append(Photo(f"{FOLDER}/{file.name}", caption.partition(".")[0], caption))
        else:
            former.append(f"`{FOLDER}/{file.name}`")
    if former:
        again = "`python -m analysis.pictures --study` makes them again"
        shown.append(Paragraph(f"Of other runs, or of an earlier state of these: {', '.join(former)}; {again}."))
    return [Heading("What the networks see"), *shown] if shown else []


def _settled(run: str) -> str:
    """hash:done, or hash:not: a run that was running and is interrupted now shows the same gap."""
    name, _, state = run.partition(":")
    return f"{name}:{'done' if state == 'done' else 'not'}"
