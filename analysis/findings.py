"""What the scores say, in sentences: an answer to quote, a comparison with the controls, and the course of the scores.

A sentence that rests on one seed says so. With more seeds, each sentence is corrected for all the differences that it
was chosen from: against the baseline by Dunnett's test (statistics.decided_against), elsewhere by Holm's
(decided_together), so that it rarely decides something false (in 5 % of studies; those functions say where in more);
the rest is undecided. That every setting beats the control needs no correction: every one of the tests has to succeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

from analysis.labels import is_percent, number, score_name, short_labels
from analysis.statistics import POWER, Estimate, K, decided_together, pooled_deviation, seeds_to_settle
from analysis.summary import Row, Summary
from analysis.tables import estimate_text
from runtime.config import Duration
from sweeps.study import CHECKPOINT

ONE_SEED = "one seed cannot support it"
NO_SCORES = "No finding: no run has a score yet."


def findings(summary: Summary) -> list[str]:
    """Return, for each curve: against its controls, each score as the varied key falls, then the trade-off itself."""
    report = summary.study.report
    scores = list(dict.fromkeys([report.x, report.y]))
    lines: list[str] = []
    for group, rows in summary.groups():
        prefix = summary.group_name(group)
        base = summary.baseline(rows[0])  # what is said of the others against it says it of a trained control too
        controls = [c for c in summary.controls_of(group) if c is not base or _is_untrained(summary, c)]
        trained = [row for row in rows if not _is_given(summary, row)]  # a control says nothing of another network
        sentences = [against_control(summary, trained, control, score) for control in controls for score in scores]
        sentences += [course(summary, rows, score) for score in scores]
        sentences.append(tradeoff(summary, rows))
        lines += [f"{prefix}: {sentence}" if prefix else sentence for sentence in sentences if sentence]
    if lines:
        return lines
    scored = any(cell.by_seed for row in summary.rows for cell in row.scores.values())
    return ["No finding: the study compares no settings in an order, and no control." if scored else NO_SCORES]


def _is_given(summary: Summary, row: Row) -> bool:
    """Return whether the row is a checkpoint that the study was given, and did not pretrain."""
    return dict(zip(summary.row_keys, row.values, strict=True)).get(CHECKPOINT) in summary.study.checkpoints


def answers(summary: Summary) -> list[str]:
    """Return a sentence to quote for each curve: its best setting by report.y, what that does to report.x, and n.

    Checkpoints without a baseline are compared all together, whatever their methods.
    """
    lines = []
    together = summary.study.checkpoints and summary.study.report.baseline is None
    curves = [("", summary.settings)] if together else [(summary.group_name(g), rows) for g, rows in summary.groups()]
    for prefix, rows in curves:
        if sentence := _gain(summary, rows) or _highest(summary, rows):
            lines.append(f"{prefix}: {sentence}" if prefix else sentence)
    return lines


def _gain(summary: Summary, rows: Sequence[Row]) -> str:
    """Say which setting gains most over the baseline; empty without a baseline."""
    report = summary.study.report
    base = summary.baseline(rows[0])
    gains = {id(r): d for r in rows if r is not base and (d := summary.difference(r, base, report.y)) is not None}
    if base is None or not gains:
        return ""
    row = max((row for row in rows if id(row) in gains), key=lambda row: gains[id(row)].mean)
    gain, several = gains[id(row)], len(gains) > 1
    verb, over = ("gains the most", "over") if gain.mean > 0 else ("loses the least", "against")
    verb = (verb if several else verb.partition(" ")[0]) if gain.mean else "neither gains nor loses"
    text = (
        f"{f'Of {len(gains)} values, ' if several else ''}{_setting(summary, row)} {verb} "
        f"{score_name(report.y)} {over} {_setting(summary, base)}: {_gap_text(summary, row, base, report.y)}"
    )
    has_intervals = any(difference.half is not None for difference in gains.values())
    close = [r.varied for r in summary.open_leads(row, rows, report.y) if id(r) in gains] if has_intervals else []
    if close:
        text += f"; its lead over {_values(summary, close)} is undecided"
    if (other := summary.difference(row, base, report.x)) is not None and report.x != report.y:
        text += f"; {score_name(report.x)} there: {_gap_text(summary, row, base, report.x)}"
        gain = other if other.half is None else gain
    return f"{text}.{_unlearnt(summary, base)}{_caveat([gain])}"


def _unlearnt(summary: Summary, base: Row) -> str:
    """Say which scores of the baseline do not beat those of untrained weights: a gain over it says little then."""
    report = summary.study.report
    controls = [c for c in summary.controls_of(base.group) if c is not base and _is_untrained(summary, c)]
    texts = [
        f"{score_name(score)} of {_setting(summary, base)} does not beat {control.control!r}"
        for control in controls
        for score in dict.fromkeys([report.x, report.y])
        if (gap := summary.difference(base, control, score)) is not None and gap.mean <= 0
    ]
    return f" But {' and '.join(texts)}." if texts else ""


def _setting(summary: Summary, row: Row) -> str:
    return row.control or short_labels(summary.study, [summary.study.report.vary], [row.varied])


def _gap_text(summary: Summary, row: Row, base: Row, score: str) -> str:
    """Return text such as "+14.3 ± 10.3 points (3 seeds)", with what would settle it where it is undecided."""
    gap, percent = summary.difference(row, base, score), is_percent(score)
    assert gap is not None, "only rows with this score are named"
    text = f"{estimate_text(gap, percent, signed=True)}{' points' if percent else ''}"
    if gap.half is None:
        return text
    if summary.is_decided(row, score):
        return f"{text} ({gap.n} seeds)"
    x, y = row.scores[score].by_seed, base.scores[score].by_seed
    samples = [list(r.scores[score].by_seed.values()) for r in (base, *summary.compared_with(base))]
    compared = [sample for sample in samples if len(sample) > 1]
    more = seeds_text([x[s] - y[s] for s in x if s in y], len(compared) - 1, pooled_deviation(compared))
    return f"{text} ({gap.n} seeds, undecided{' among all comparisons' if gap.sign else ''}: {more})"


def seeds_text(differences: Sequence[float], comparisons: int = 1, scatter: float = 0.0) -> str:
    """Say how many more seeds would settle an undecided difference, by the rule of `seeds_to_settle`."""
    needed = seeds_to_settle(differences, comparisons, scatter)
    if needed is None:
        return "these seeds cannot say how many more would settle it"
    more = max(needed - len(differences), 1)
    return (
        f"about {more} seed{'s' * (more != 1)} more would settle it with {POWER:.0%} power, "
        "if difference and scatter stay as they are"
    ).replace("%", " %")


def _highest(summary: Summary, rows: Sequence[Row]) -> str:
    """Say which setting has the highest scores, for a study without a baseline."""
    parts, means, counts = [], [], set()
    for score in dict.fromkeys([summary.study.report.y, summary.study.report.x]):
        scored = [row for row in rows if row.scores[score].by_seed]
        if len(scored) < 2:
            return ""
        counts.add(len(scored))
        row, mean = max(((r, e) for r in scored if (e := r.scores[score].estimate)), key=lambda pair: pair[1].mean)
        open_question = mean.half is not None and summary.best(rows, score) is not row
        doubt = ", not decided among them" if open_question else ""
        parts.append(
            f"{score_name(score)} at {_setting(summary, row)} ({estimate_text(mean, is_percent(score))}{doubt})"
        )
        means.append(mean)
    text = ", the highest ".join(parts)
    vary = summary.study.report.vary
    kinds = "checkpoints" if vary == CHECKPOINT else f"values of {vary}"
    among = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{counts.pop()}"
    return f"Of {among} {kinds}, the highest {text}.{_caveat(means)}"


def against_control(summary: Summary, rows: Sequence[Row], control: Row, score: str) -> str:
    """Say whether each setting beats a control that was not trained, or how far it is from one that was."""
    name, vary = score_name(score), summary.study.report.vary
    differences = {row.varied: d for row in rows if (d := summary.difference(row, control, score)) is not None}
    if not differences:
        return ""
    decided = decided_together(differences)
    undecided = [value for value, d in differences.items() if value not in decided and d.half is not None]
    low, high = (number(f(d.mean for d in differences.values()), is_percent(score), signed=True) for f in (min, max))
    spread = f"{low} to {high}" if low != high else low
    caveat = _caveat(differences.values())
    if not _is_untrained(summary, control):
        doubt = f", undecided at {_values(summary, undecided)}: {_doubt(differences, undecided)}" if undecided else ""
        return f"{name}: every scored {vary} differs from the control {control.control!r} by {spread}{doubt}.{caveat}"
    if below := [value for value, d in differences.items() if d.mean <= 0]:
        return (
            f"**{name}: pretraining does not beat {control.control!r} at {vary} = {_values(summary, below)}** "
            f"(differences over all settings: {spread}). Look for the mistake before reading on.{caveat}"
        )
    text = f"{name}: pretraining beats {control.control!r} at every scored {vary}, by {spread}"
    if all(d.sign > 0 for d in differences.values()):
        text += ", and every 95 % interval of the difference excludes 0"
    elif undecided:
        text += f", but undecided at {vary} = {_values(summary, undecided)}: {_doubt(differences, undecided)}"
    return f"{text}.{caveat}"


def _is_untrained(summary: Summary, control: Row) -> bool:
    changes = summary.study.controls.get(str(control.control), {})  # a table may have one that its study renamed
    return has_no_step(changes.get("train.duration"))


def has_no_step(duration: object) -> bool:
    """Return whether a train.duration is "0 steps" or "0 epochs": that pretraining keeps its random weights."""
    return isinstance(duration, str) and Duration.parse(duration).amount == 0


def course(summary: Summary, rows: Sequence[Row], score: str) -> str:
    """Say where a score goes as the varied key falls: to its extremes in order, and which legs are undecided."""
    if summary.order is None:
        return ""  # names have no order to fall in
    scored = {row.varied: row for row in reversed(rows) if row.scores[score].by_seed}
    means = {value: mean.mean for value, row in scored.items() if (mean := row.scores[score].estimate)}
    if len(scored) < 2:
        return ""
    values = list(means)  # falling
    extremes = {values[0], values[-1], max(values, key=means.__getitem__), min(values, key=means.__getitem__)}
    pairs = {(a, b): summary.difference(scored[b], scored[a], score) for a, b in combinations(values, 2)}
    decided = decided_together(pairs)
    legs, differences = [], []
    for leg in pairwise(value for value in values if value in extremes):
        if (difference := pairs[leg]) is None:
            continue
        differences.append(difference)
        is_open = difference.half is not None and leg not in decided
        verdict = f", undecided: {_doubt(pairs, [leg], 'differences between any two values')}" if is_open else ""
        way = "rises" if difference.mean > 0 else "falls" if difference.mean < 0 else "stays the same"
        size = estimate_text(difference, is_percent(score), signed=True)
        legs.append(f"{way} from {summary.label(leg[0])} to {summary.label(leg[1])} ({size}{verdict})")
    vary = summary.study.report.vary
    return f"{score_name(score)}, as {vary} falls, {', then '.join(legs)}.{_caveat(differences)}"


def tradeoff(summary: Summary, rows: Sequence[Row]) -> str:
    """Say which settings give up the first score for the second, against the baseline."""
    report = summary.study.report
    pairs: list[tuple[Estimate, Estimate]] = []
    settings: dict[tuple[int, int], list[object]] = {}  # by the signs of both differences
    for row in rows:
        base = summary.baseline(row)
        x, y = (summary.difference(row, base, score) for score in (report.x, report.y))
        if row is not base and x is not None and y is not None:
            pairs.append((x, y))
            signs = _decided_sign(summary, row, report.x, x), _decided_sign(summary, row, report.y, y)
            settings.setdefault(signs, []).append(row.varied)
    if not pairs:
        return ""
    x_name, y_name = score_name(report.x), score_name(report.y)
    texts = {
        (-1, 1): f"{y_name} gains and {x_name} loses at",
        (1, -1): f"{x_name} gains and {y_name} loses at",
        (1, 1): "both scores gain at",
        (-1, -1): "both scores lose at",
        (0, 1): f"{y_name} gains, and {x_name} is undecided, at",
        (0, -1): f"{y_name} loses, and {x_name} is undecided, at",
        (1, 0): f"{x_name} gains, and {y_name} is undecided, at",
        (-1, 0): f"{x_name} loses, and {y_name} is undecided, at",
        (0, 0): "both scores undecided at",
    }
    parts = [f"{text} {_values(summary, settings[signs])}" for signs, text in texts.items() if signs in settings]
    if (-1, 1) not in settings:
        gains = "is shown to gain" if any(0 in signs for signs in settings) else "gains"
        parts.insert(0, f"no setting {gains} {y_name} at the cost of {x_name}")
    caveat = _caveat(difference for pair in pairs for difference in pair)
    return f"Against {summary.baseline_label}: {'; '.join(parts)}.{caveat}"


def _decided_sign(summary: Summary, row: Row, score: str, gap: Estimate) -> int:
    """Return the sign of a difference to the baseline that is decided, and of one seed its bare sign; otherwise 0."""
    counts = gap.half is None or summary.is_decided(row, score)
    return (gap.mean > 0) - (gap.mean < 0) if counts else 0


def _doubt(differences: Mapping[K, Estimate | None], undecided: Sequence[K], among: str = "comparisons") -> str:
    """Say why these of the differences are not decided."""
    if any((difference := differences[key]) is not None and difference.sign for key in undecided):
        return f"not significant among {len(differences)} {among}"
    return "the interval includes 0"


def _values(summary: Summary, values: Sequence[object]) -> str:
    return ", ".join(map(summary.label, values))


def _caveat(differences: Iterable[Estimate]) -> str:
    return "" if all(difference.half is not None for difference in differences) else f" {ONE_SEED.capitalize()}."


# Below these a representation says little; the untrained network's own values are the comparison where there is one.
COLLAPSED_STD, COLLAPSED_RANK, REPEATED = 0.05, 2.0, 0.9
COLLAPSE = (
    f"a standard deviation below {COLLAPSED_STD:g}, an effective rank below {COLLAPSED_RANK:g} or a correlation above "
    f"{REPEATED:g}"
)


def collapse_verdict(diagnostics: Summary) -> str:
    """Say in words whether the features of any setting have collapsed; empty where no run wrote diagnostics."""
    known = [row for row in diagnostics.settings if any(cell.by_seed for cell in row.scores.values())]
    if not known:
        return ""
    keys = diagnostics.row_keys
    names = {id(row): short_labels(diagnostics.study, keys, row.values) for row in diagnostics.settings}
    unknown = [names[id(row)] for row in diagnostics.settings if row not in known]
    missing = f" Not measured: {'; '.join(unknown)}." if unknown else ""
    signs = {id(row): signs for row in known if (signs := collapse_signs(row))}
    if not signs:
        return f"No setting has collapsed: no seed has {COLLAPSE}.{missing}"
    named = [f"{names[id(row)]} ({', '.join(signs[id(row)])})" for row in known if id(row) in signs]
    return f"**Collapsed, in one seed or more: {'; '.join(named)}.**{missing}"


def collapse_signs(row: Row) -> list[str]:
    """Return what shows a collapse in some seed of a row, such as "rank pooled 1.2"."""
    signs = []
    for name, cell in row.scores.items():
        short = name.partition(".")[2].replace("_", " ")
        values = list(cell.by_seed.values())
        if values and short.startswith("correlation") and max(values) > REPEATED:
            signs.append(f"{short} {number(max(values), percent=False)}")
        limit = COLLAPSED_STD if short.startswith("std") else COLLAPSED_RANK if short.startswith("rank") else None
        if values and limit is not None and min(values) < limit:
            signs.append(f"{short} {number(min(values), percent=False)}")
    return signs
