"""Questions with a short answer: does A beat B, how many seeds more would settle it, and which setting is the best?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from analysis.labels import is_percent, score_name, value_text
from analysis.report_data import ReportData
from analysis.statistics import Estimate, difference, seeds_to_settle
from analysis.summary import Row, Summary, summarize
from analysis.tables import estimate_text, score_text
from runtime.errors import UserError
from runtime.yaml_files import parse_yaml


def compare(data: ReportData, a: str, b: str) -> list[str]:
    """A - B for every score of the study, paired by seed: the difference, its interval, and what would settle it."""
    summary = data.summary
    first, second = find_row(summary, a), find_row(summary, b)
    if first is second:
        raise UserError(f"{a!r} and {b!r} are the same row of the study; expected two different ones")
    lines = [f"{name_of(summary, first)} against {name_of(summary, second)}"]
    for score in data.study.scores:
        x, y = first.scores[score], second.scores[score]
        values = f"{score_text(x, is_percent(score))} against {score_text(y, is_percent(score))}"
        lines.append(f"  {score_name(score)}: {values}; {_verdict(x.by_seed, y.by_seed, score)}")
    return lines


def _verdict(x: Mapping[Hashable, float], y: Mapping[Hashable, float], score: str) -> str:
    found = difference(x, y)
    if found is None:
        return "no difference: one of them has no score yet"
    pairs = [x[seed] - y[seed] for seed in x if seed in y]
    how = f"{len(pairs)} seeds, paired" if len(pairs) > 1 else "one seed" if pairs else "no seed in common, unpaired"
    text = f"difference {estimate_text(found, is_percent(score), signed=True)} ({how})"
    if found.half is None:
        return f"{text}: one seed cannot support it; with 2 or more there is an interval"
    if found.sign:
        return f"{text}: {'higher' if found.sign > 0 else 'lower'}, the 95 % interval excludes 0"
    return f"{text}: undecided, the 95 % interval includes 0; {_more(pairs)}"


def _more(pairs: Sequence[float]) -> str:
    wanted = seeds_to_settle(pairs) if len(pairs) > 1 else None
    if wanted is None:
        return "how many seeds more would settle it cannot be told from these"
    more = wanted - len(pairs)
    return f"about {more} seed{'s' * (more != 1)} more would settle it, if difference and scatter stay as they are"


def best(data: ReportData, by: str, least: Mapping[str, float]) -> list[str]:
    """The settings by a score, highest first, of those whose other scores reach `least`; gaps are told, not ranked."""
    names = {score: find_score(data, score) for score in [by, *least]}
    summary = summarize(data.frame, data.study, list(dict.fromkeys(names.values())))
    scored = {id(row): {s: e for s in names.values() if (e := row.scores[s].estimate)} for row in summary.settings}
    rows = [row for row in summary.settings if len(scored[id(row)]) == len(set(names.values()))]
    unknown = [name_of(summary, row) for row in summary.settings if row not in rows]
    reaching = [row for row in rows if all(scored[id(row)][names[s]].mean >= floor for s, floor in least.items())]
    limits = ", ".join(f"{score_name(names[s])} of {floor:g} or more" for s, floor in least.items())
    lines = [f"By {score_name(names[by])}" + (f", with {limits}" if limits else "")]
    ordered = sorted(reaching, key=lambda row: -scored[id(row)][names[by]].mean)
    for place, row in enumerate(ordered, 1):
        lines.append(f"  {place}. {name_of(summary, row)}: {_scores_text(scored[id(row)])}")
    if not ordered:
        lines.append("  no setting that was scored reaches it")
    elif len(ordered) > 1:
        lines.append(f"  {_support(summary, ordered, names[by])}")
    lines += [f"  not ranked, without a score: {', '.join(unknown)}"] if unknown else []
    return lines


def _scores_text(scores: Mapping[str, Estimate]) -> str:
    return ", ".join(
        f"{score_name(s)} {estimate_text(found, is_percent(s))} (n {found.n})" for s, found in scores.items()
    )


def _support(summary: Summary, ordered: Sequence[Row], score: str) -> str:
    first, *others = ordered
    unsure = [row for row in others if (d := summary.difference(first, row, score)) is None or d.sign <= 0]
    if not unsure:
        return "the interval of the first one's difference to every other excludes 0"
    return f"the seeds do not tell the first from: {'; '.join(name_of(summary, row) for row in unsure)}"


def name_of(summary: Summary, row: Row) -> str:
    """loss.alpha = 0.9, ..."""
    named = [(k, v) for k, v in zip(summary.row_keys, row.values, strict=True) if v is not None]
    return ", ".join([*filter(None, [row.control]), *(f"{key} = {value_text(value)}" for key, value in named)])


def find_row(summary: Summary, text: str) -> Row:
    """The one row that `text` names: a control, 0.9 (of the varied key), or loss.alpha=0.9,version=1a2b3c4.

    Raises UserError for none, and for several with what tells them apart.
    """
    wanted = dict(_part(summary, part) for part in text.split(",")) if text not in _controls(summary) else {}
    rows = [row for row in summary.rows if _fits(summary, row, text, wanted)]
    if len(rows) == 1:
        return rows[0]
    known = "; ".join(name_of(summary, row) for row in (rows or summary.rows))
    problem = f"{len(rows)} rows of the study fit" if rows else "no row of the study fits"
    raise UserError(f"{text!r}: {problem}; expected one of: {known} (as KEY=VALUE,KEY=VALUE, or a control's name)")


def _controls(summary: Summary) -> list[str | None]:
    return [row.control for row in summary.controls]


def _part(summary: Summary, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        return summary.row_keys[0], parse_yaml(part)
    if key.strip() not in summary.row_keys:
        near = get_close_matches(key.strip(), summary.row_keys, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{part!r}: the study's rows have no key {key.strip()!r}{hint}; they have {summary.row_keys}")
    return key.strip(), parse_yaml(value)


def _fits(summary: Summary, row: Row, text: str, wanted: Mapping[str, Any]) -> bool:
    if not wanted:
        return row.control == text
    values = dict(zip(summary.row_keys, row.values, strict=True))
    return row.control is None and all(
        values[key] == value or str(values[key]) == str(value) for key, value in wanted.items()
    )


def find_score(data: ReportData, text: str) -> str:
    """The score that `text` means: linear.top1, or top1 where one evaluation alone has it. UserError otherwise."""
    study, frame = data.study, data.frame
    named = [str(c).removeprefix("score.") for c in frame.columns if str(c).startswith("score.")]
    rows = {name: frame[frame["eval.name"] == name] for name in study.evals}
    scores = [f"{e}.{n}" for e in study.evals for n in named if rows[e][f"score.{n}"].notna().any()]
    scores = list(dict.fromkeys([*study.scores, *scores]))
    found = [score for score in scores if text in (score, score.partition(".")[2])]
    if len(found) == 1:
        return found[0]
    allowed = ", ".join(found or scores)
    raise UserError(
        f"score {text!r}: {'several fit' if found else 'the study has none of that name'}; allowed: {allowed}"
    )
