"""What the numbers say, computed: does pretraining beat the control, and what happens as the varied field falls?

Every statement that rests on one seed says so. With more, each sentence allows for all the differences that it was
chosen from (statistics.decided_together), so that it decides something that is not so in at most 5 % of studies; the
rest is undecided. That every setting beats the control needs no allowance: each of the tests has to succeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

from analysis.labels import is_percent, number, score_name, value_text
from analysis.statistics import Estimate, K, decided_together, rejected
from analysis.summary import Row, Summary

ONE_SEED = "one seed cannot support it"


def findings(summary: Summary) -> list[str]:
    """For each curve: against the control, then each axis as the varied field falls, then the trade-off itself."""
    report = summary.study.report
    scores = list(dict.fromkeys([report.x, report.y]))
    lines: list[str] = []
    for group, rows in summary.groups():
        prefix = summary.group_name(group)
        controls = summary.controls_of(group)
        found = [against_control(summary, rows, control, score) for control in controls for score in scores]
        found += [course(summary, rows, score) for score in scores]
        found.append(tradeoff(summary, rows))
        lines += [f"{prefix}: {line}" if prefix else line for line in found if line]
    return lines or ["No finding: no run has a score yet."]


def against_control(summary: Summary, rows: Sequence[Row], control: Row, score: str) -> str:
    """Whether each setting scores above the control that was not trained; how far it is from one that was."""
    name, vary = score_name(score), summary.study.report.vary
    known = {row.varied: d for row in rows if (d := summary.difference(row, control, score)) is not None}
    if not known:
        return ""
    below = [value for value, d in known.items() if d.mean <= 0]
    decided = decided_together(known)
    unsure = [value for value, d in known.items() if value not in decided and d.half is not None]
    low, high = (number(f(d.mean for d in known.values()), is_percent(score), signed=True) for f in (min, max))
    spread = f"{low} to {high}" if low != high else low
    if not _is_untrained(summary, control):
        settings = f"every {vary} that was scored differs by {spread}"
        text = f", undecided at {_values(unsure)}: {_doubt(known, unsure)}" if unsure else ""
        return f"{name}: from the control {control.control!r} {settings}{text}.{_reservation(known.values())}"
    if below:
        where = f"{vary} = {_values(below)}"
        return (
            f"**{name}: pretraining does not beat {control.control!r} at {where}** (differences over all settings: "
            f"{spread}). Look for the mistake before reading on.{_reservation(known.values())}"
        )
    text = f"{name}: pretraining beats {control.control!r} at every {vary} that was scored, by {spread}"
    if all(d.sign > 0 for d in known.values()):
        text += ", and every 95 % interval of the difference excludes 0"
    elif unsure:
        text += f", but undecided at {vary} = {_values(unsure)}: {_doubt(known, unsure)}"
    return f"{text}.{_reservation(known.values())}"


def _is_untrained(summary: Summary, control: Row) -> bool:
    changes = summary.study.pretrain.controls[str(control.control)]
    return str(changes.get("train.duration", "")).startswith("0 ")


def course(summary: Summary, rows: Sequence[Row], score: str) -> str:
    """Where a score goes as the varied field falls: to its extremes in order, and whether each leg is supported."""
    vary = summary.study.report.vary
    if not summary.varies_a_number:
        return ""  # names have no order to fall in
    scored = {row.varied: row for row in reversed(rows) if row.scores[score].by_seed}
    means = {value: found.mean for value, row in scored.items() if (found := row.scores[score].estimate)}
    if len(scored) < 2:
        return ""
    values = list(means)  # falling
    extremes = {values[0], values[-1], max(values, key=means.__getitem__), min(values, key=means.__getitem__)}
    turns = [value for value in values if value in extremes]
    pairs = {(a, b): summary.difference(scored[b], scored[a], score) for a, b in combinations(values, 2)}
    decided = decided_together(pairs)
    legs, differences = [], []
    for start, end in pairwise(turns):
        found = pairs[start, end]
        if found is None:
            continue
        differences.append(found)
        open_end = found.half is not None and (start, end) not in decided
        verdict = f", undecided: {_doubt(pairs, [(start, end)])}" if open_end else ""
        way = "rises" if found.mean > 0 else "falls" if found.mean < 0 else "stays the same"
        size = _size(found, score)
        legs.append(f"{way} from {value_text(start)} to {value_text(end)} ({size}{verdict})")
    return f"{score_name(score)}, as {vary} falls, {', then '.join(legs)}.{_reservation(differences)}"


def tradeoff(summary: Summary, rows: Sequence[Row]) -> str:
    """Which settings give up the first score for the second, against the baseline."""
    report = summary.study.report
    known: dict[object, tuple[Estimate, Estimate]] = {}
    for row in rows:
        base = summary.baseline(row)
        x, y = (summary.difference(row, base, score) for score in (report.x, report.y))
        if row is not base and x is not None and y is not None:
            known[row.varied] = x, y
    kinds: dict[str, list[object]] = {}
    decided = _both_decided(known)
    for value, (x, y) in known.items():
        kinds.setdefault(_kind(x, y) if value in decided else "undecided", []).append(value)
    if not kinds:
        return ""
    x_name, y_name = score_name(report.x), score_name(report.y)
    texts = {  # in the order in which they are told
        "trade": f"{y_name} gains and {x_name} loses at",
        "other way": f"{x_name} gains and {y_name} loses at",
        "both up": "both gain at",
        "both down": "both lose at",
        "undecided": "one or both undecided at",
    }
    parts = [f"{text} {_values(kinds[kind])}" for kind, text in texts.items() if kind in kinds]
    if "trade" not in kinds:
        gains = "is shown to gain" if "undecided" in kinds else "gains"
        parts.insert(0, f"no setting {gains} {y_name} at the cost of {x_name}")
    where = f"Against {report.vary} = {value_text(report.baseline)}"
    return f"{where}: {'; '.join(parts)}.{_reservation(d for pair in known.values() for d in pair)}"


def _both_decided(known: Mapping[object, tuple[Estimate, Estimate]]) -> set[object]:
    """The settings whose two differences both hold among all settings; with one seed all, by the bare sign.

    Both have to be decided, so the larger of the two p-values is that of the pair.
    """
    bare = {value for value, pair in known.items() if any(found.p is None for found in pair)}
    return bare | rejected({v: max(x.p or 0.0, y.p or 0.0) for v, (x, y) in known.items() if v not in bare})


def _kind(x: Estimate, y: Estimate) -> str:
    if 0 in (x.mean, y.mean):
        return "undecided"
    return {(False, True): "trade", (True, False): "other way", (True, True): "both up", (False, False): "both down"}[
        x.mean > 0, y.mean > 0
    ]


def _size(found: Estimate, score: str) -> str:
    text = number(found.mean, is_percent(score), signed=True)
    return text if found.half is None else f"{text} ± {number(found.half, is_percent(score))}"


def _doubt(known: Mapping[K, Estimate | None], undecided: Sequence[K]) -> str:
    """Why these of the known differences are not decided."""
    if any((found := known[key]) is not None and found.sign for key in undecided):
        return f"not beyond chance among {len(known)} differences"
    return "the interval includes 0"


def _values(values: Sequence[object]) -> str:
    return ", ".join(value_text(value) for value in values)


def _reservation(estimates: Iterable[Estimate]) -> str:
    """What a figure without repetitions must not be read without."""
    return "" if all(found.half is not None for found in estimates) else f" {ONE_SEED.capitalize()}."
