"""How much a report can say: whether rows differ as expected, its seeds, machines and the length of its training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import pandas as pd

from analysis.findings import has_no_step
from analysis.labels import NONE, is_percent, label, score_name, short_labels
from analysis.report_data import ReportData
from analysis.statistics import Estimate, decided_together
from analysis.summary import Row, Summary
from analysis.tables import estimate_text
from runtime.config import Duration
from sweeps.checkpoints import PRETRAIN

STILL = 1.0  # percentage points over the last quarter of a training: above that, it had not reached a plateau
UNLIKE = "Not all on one kind of machine"
LATE = 0.75  # of a training: where its last quarter begins

Pair = tuple[str, Row, Row]  # a score, and two rows, of which the first is expected to be higher


def _why_undecided(summary: Summary, score: str) -> str:
    return "one seed" if summary.most_seeds < 2 else f"no difference of {score_name(score)} is significant"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def row_label(summary: Summary, row: Row) -> str:
    """Name a row for a sentence: a control by its name, a setting by its values, of which a word needs no key."""
    words = label(summary.study, summary.row_keys[0], row.varied)
    is_word = len(row.values) == 1 and words[:1].isalpha() and not isinstance(row.varied, bool)
    return row.control or (words if is_word else short_labels(summary.study, summary.row_keys, row.values))


def verdict(data: ReportData, expected: Sequence[Pair]) -> str:
    """Say whether rows differ as expected, in the score of the first pair, and by how much in every score.

    A difference to the baseline is decided as on the study's own page, the others together (Holm's procedure). Another
    score that loses is named beside it.
    """
    summary = data.summary
    differences = {i: summary.difference(a, b, score) for i, (score, a, b) in enumerate(expected)}
    settings = {i: summary.setting_against_baseline(a, b) for i, (_, a, b) in enumerate(expected)}
    decided = decided_together({i: gap for i, gap in differences.items() if settings[i] is None})
    decided |= {i for i, row in settings.items() if row is not None and summary.is_decided(row, expected[i][0])}
    means = {i: found.mean for i, found in differences.items() if found is not None}
    main = [i for i, (score, _, _) in enumerate(expected) if score == expected[0][0]]
    held = [i for i in main if i in decided and means[i] > 0]
    against = [i for i in main if i in decided and means[i] < 0]
    if held and against:
        word = "In part"
    elif held or against:
        word = ("Yes" if held else "No") + ("" if len(main) in (len(held), len(against)) else ", in part")
    else:
        word = f"Undecided ({_why_undecided(summary, expected[0][0])})"
    lost = dict.fromkeys(score_name(s) for i, (s, _, _) in enumerate(expected) if i in decided and means[i] < 0)
    lost.pop(score_name(expected[0][0]), None)
    word += f", but {' and '.join(lost)} loses" if lost and (held or not against) else ""
    texts: dict[str, list[str]] = {}
    for i, (score, a, b) in enumerate(expected):
        doubt = "" if i in decided or not decided else " (undecided)"
        gap = _gap_text(score, differences[i]) + doubt
        texts.setdefault(score, []).append(f"{row_label(summary, a)} over {row_label(summary, b)} {gap}")
    parts = [f"{score_name(score)}: {', '.join(gaps)}" for score, gaps in texts.items()]
    return f"**{word}.** {_capital('; '.join(parts))}."


def _gap_text(score: str, difference: Estimate | None) -> str:
    return NONE if difference is None else estimate_text(difference, is_percent(score), signed=True)


def seeds(data: ReportData) -> str:
    """Return the number of seeds of the settings, as "3" or "2 to 3"."""
    counts = {len(row.scores[data.study.report.y].by_seed) for row in data.summary.settings}
    low, high = (min(counts), max(counts)) if counts else (0, 0)
    return str(low) if low == high else f"{low} to {high}"


def strength(data: ReportData) -> str:
    """Return how much the answer rests on: seeds, length and precision of training, and whether scores still moved."""
    count, lengths = data.summary.most_seeds, _lengths(data.frame)
    precisions = trained(data.frame).get("pretrain.result.precision", pd.Series(dtype=str)).dropna()
    length, precision = " to ".join(lengths), " and ".join(dict.fromkeys(precisions))
    known = ", ".join(filter(None, [f"{count} seed{'s' * (count != 1)}", length, precision]))
    return f"{known}; {plateau(data)}"


def _lengths(frame: pd.DataFrame) -> list[str]:
    column = frame.get("pretrain.train.duration", pd.Series(dtype=str))
    texts = sorted(set(column[frame["control"].isna()].dropna()), key=lambda text: Duration.parse(text).amount)
    return [texts[0], texts[-1]] if len(texts) > 1 else texts


def unlike_machines(data: ReportData) -> str:
    """Say which pretrainings computed on what, where those of one seed differ in that; else empty.

    On a GPU, by its name, or on the CPU; and in which precision, where `auto` chose it. The rows of a curve are
    compared seed by seed, so a difference of machines would count as one of settings.
    """
    summary, computed = data.summary, _computed_on(data.frame)
    named: dict[str, dict[str, None]] = {}
    for group, settings in summary.groups():
        rows = [*settings, *summary.controls_of(group)]
        places = [{seed: computed[run] for seed, run in row.runs.items() if run in computed} for row in rows]
        if not _differ(places):
            continue
        for row, by_seed in zip(rows, places, strict=True):
            for place, count in Counter(by_seed.values()).items():
                some = "" if count == len(by_seed) else f" ({count} of {len(by_seed)} runs)"
                named.setdefault(place, {})[row_label(summary, row) + some] = None
    return "; ".join(f"{place}: {' / '.join(labels)}" for place, labels in named.items())


def _differ(rows: Sequence[Mapping[Hashable, str]]) -> bool:
    """Return whether two rows have different values for one seed."""
    first: dict[Hashable, str] = {}
    return any(first.setdefault(seed, value) != value for row in rows for seed, value in row.items())


def trained(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row of each pretraining that is done: not of imported weights, nor of a control without a step."""
    if not {"pretrain.stage", "pretrain.train.duration"} <= set(frame.columns):
        return frame[:0]
    done = frame[(frame["pretrain.state"] == "done") & (frame["pretrain.stage"] == PRETRAIN)]
    has_steps = [not has_no_step(duration) for duration in done["pretrain.train.duration"]]
    return done[has_steps].drop_duplicates("pretrain.hash")


def _computed_on(frame: pd.DataFrame) -> dict[str, str]:
    """Return on what each pretraining that is done computed, by its hash."""
    places = {}
    for run in trained(frame).to_dict("records"):
        gpu, precision = run.get("pretrain.provenance.gpu"), run.get("pretrain.result.precision")
        place = str(gpu) if isinstance(gpu, str) and gpu else "the CPU"
        is_chosen = run.get("pretrain.train.precision") == "auto" and isinstance(precision, str)
        places[run["pretrain.hash"]] = f"{place} in {precision}" if is_chosen else place
    return places


def plateau(data: ReportData) -> str:
    """Say how far the scores moved over the last quarter of the trainings, by the checkpoints that were evaluated."""
    report = data.study.report
    changes = {score: _late_change(data, score) for score in dict.fromkeys([report.x, report.y])}
    known = {score: change for score, change in changes.items() if change is not None and is_percent(score)}
    if not known:
        return "plateau not measured"
    moves = ", ".join(f"{score_name(s)} {estimate_text(Estimate(c, None, 1), True, True)}" for s, c in known.items())
    at_plateau = all(abs(change) <= STILL for change in known.values())
    return f"{'at a plateau' if at_plateau else 'no plateau yet'} (last quarter, at most: {moves})"


def _late_change(data: ReportData, score: str) -> float | None:
    """Return a score's change since the last checkpoint before the last quarter, of the setting that changes most.

    A setting's change is the mean over its runs with such a checkpoint, in the second half of the training.
    """
    source, _, name = score.partition(".")
    frame, column = data.frame, f"score.{name}"
    if column not in frame or "pretrain.hash" not in frame or "pretrain.train.duration" not in frame:
        return None
    changes: dict[tuple[object, ...], list[float]] = {}
    keys = [f"grid.{key}" for key in data.study.row_keys if f"grid.{key}" in frame]
    trained = frame["control"].isna() & frame["pretrain.train.duration"].notna()  # a checkpoint of others has none
    for _, rows in frame[trained].groupby("pretrain.hash", sort=False):
        values = dict(zip(rows["eval.name"], pd.to_numeric(rows[column], errors="coerce"), strict=True))
        end = Duration.parse(rows["pretrain.train.duration"].iloc[0]).amount
        early = {m: value for m, value in _by_moment(values, source).items() if end / 2 <= m <= LATE * end}
        if early and pd.notna(values.get(source)):
            setting = tuple(map(str, rows.iloc[0][keys]))
            changes.setdefault(setting, []).append(values[source] - early[max(early)])
    return max((sum(c) / len(c) for c in changes.values()), key=abs, default=None)


def _by_moment(values: Mapping[str, float], source: str) -> dict[float, float]:
    """Return the scores of checkpoints before the end, by their step or epoch: of "linear at 100 steps", 100."""
    found = {re.fullmatch(rf"{re.escape(source)} at (\d+) \w+", str(name)): value for name, value in values.items()}
    return {float(match[1]): value for match, value in found.items() if match is not None and pd.notna(value)}
