"""Questions with a short answer: does A beat B, how many more seeds would settle it, and which setting is best?"""

from __future__ import annotations

import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from yaml import YAMLError

from analysis.findings import seeds_text
from analysis.labels import is_percent, label, named_values, score_name
from analysis.report_data import ReportData
from analysis.statistics import difference
from analysis.summary import Row, Summary, summarize
from analysis.tables import estimate_text, score_text
from runtime.errors import UserError
from runtime.yaml_files import parse_yaml
from sweeps.keys import as_text


def compare(data: ReportData, a: str, b: str) -> list[str]:
    """Return lines on A - B for every score of the study: the difference, its interval, and what would settle it."""
    summary = data.summary
    first, second = find_row(summary, a), find_row(summary, b)
    if first is second:
        raise UserError(f"{a!r} and {b!r} are the same row of the study; expected two different ones")
    lines = [f"{row_name(summary, first)} against {row_name(summary, second)}"]
    for score in data.study.scores:
        x, y = first.scores[score], second.scores[score]
        values = f"{score_text(x, is_percent(score))} against {score_text(y, is_percent(score))}"
        lines.append(f"  {score_name(score)}: {values}; {_verdict(x.by_seed, y.by_seed, score)}")
    if len(summary.rows) > 2:
        lines.append("  each taken alone; the report corrects for all that it compares")
    return lines


def _verdict(x: Mapping[Hashable, float], y: Mapping[Hashable, float], score: str) -> str:
    gap = difference(x, y)
    if gap is None:
        return "no difference: one of them has no score yet"
    pairs = [x[seed] - y[seed] for seed in x if seed in y]
    how = f"{len(pairs)} seeds, paired" if len(pairs) > 1 else "one seed" if pairs else "no seed in common, unpaired"
    text = f"difference {estimate_text(gap, is_percent(score), signed=True)} ({how})"
    if gap.half is None:
        return f"{text}: one seed cannot support it; with 2 or more there is an interval"
    if gap.sign:
        return f"{text}: {'higher' if gap.sign > 0 else 'lower'}, the 95 % interval excludes 0"
    return f"{text}: undecided, the 95 % interval includes 0; {seeds_text(pairs)}"


def best(data: ReportData, by: str, least: Mapping[str, float]) -> list[str]:
    """Return the settings by a score, highest first, of those whose other scores reach `least`.

    Settings without a score are listed at the end, without a rank.
    """
    score, limits = find_score(data, by), {find_score(data, name): limit for name, limit in least.items()}
    wanted = list(dict.fromkeys([score, *limits]))
    summary = summarize(data.frame, data.study, wanted)
    texts = ", ".join(f"{score_name(name)} of {limit:g} or more" for name, limit in limits.items())
    lines = [f"By {score_name(score)}" + (f", with {texts}" if texts else "")]
    complete = [row for row in summary.settings if all(row.scores[name].by_seed for name in wanted)]
    reaching = [row for row in complete if all(_mean(row, name) >= limit for name, limit in limits.items())]
    ranked = sorted(reaching, key=lambda row: -_mean(row, score))
    for rank, row in enumerate(ranked, 1):
        lines.append(f"  {rank}. {row_name(summary, row)}: {', '.join(_score_text(row, name) for name in wanted)}")
    if not ranked:
        lines.append("  no setting that was scored reaches it")
    elif len(ranked) > 1:
        lines.append(f"  {_support(summary, ranked, score)}")
    unknown = [row_name(summary, row) for row in summary.settings if row not in complete]
    return [*lines, f"  not ranked, without a score: {', '.join(unknown)}"] if unknown else lines


def _mean(row: Row, score: str) -> float:
    return statistics.fmean(row.scores[score].by_seed.values())


def _score_text(row: Row, score: str) -> str:
    estimate = row.scores[score].estimate
    assert estimate is not None, "only rows with every score are ranked"
    return f"{score_name(score)} {estimate_text(estimate, is_percent(score))} (n {estimate.n})"


def _support(summary: Summary, ranked: Sequence[Row], score: str) -> str:
    """Return whether the seeds support the first rank: against which others its difference is undecided."""
    first, *_ = ranked
    unsure = summary.open_leads(first, ranked, score)
    if not unsure:
        return "the first one leads every other one, also after correction for all these comparisons"
    return f"the seeds do not tell the first from: {'; '.join(row_name(summary, row) for row in unsure)}"


def row_name(summary: Summary, row: Row) -> str:
    """Return text such as "loss.alpha = 0.9, loss.local = both"; of a control its name first."""
    # A control has no value of a key that it does not take from the grid; in a setting, None is a value.
    own = {k: v for k, v in zip(summary.row_keys, row.values, strict=True) if v is not None or row.control is None}
    labels = [label(summary.study, key, value) for key, value in own.items()]
    return ", ".join(filter(None, [row.control, named_values(list(own), labels)]))


def find_row(summary: Summary, text: str) -> Row:
    """Return the row that `text` names: a control, 0.9 (of the varied key), or loss.alpha=0.9,version=1a2b3c4.

    Raises UserError where no row fits, and where several do, with their names.
    """
    rows = [row for row in summary.rows if text in (row.control, row_name(summary, row))]
    if not rows:
        # Only at a comma before the next KEY=: a value may hold commas of its own, as loss.num_matches=[64, 4] does.
        wanted = dict(_key_and_value(summary, part) for part in re.split(r",(?=[^,=\[\]{}]+=)", text))
        rows = [row for row in summary.settings if _fits(summary, row, wanted)]
    if len(rows) == 1:
        return rows[0]
    known = "; ".join(row_name(summary, row) for row in (rows or summary.rows))
    problem = f"{len(rows)} rows of the study fit" if rows else "no row of the study fits"
    raise UserError(f"{text!r}: {problem}; expected one of: {known} (as KEY=VALUE,KEY=VALUE, or a control's name)")


def _key_and_value(summary: Summary, part: str) -> tuple[str, Any]:
    """Parse KEY=VALUE, or a value of the varied key alone."""
    start, equals, end = part.partition("=")
    key, text = (start.strip(), end) if equals else (summary.row_keys[0], part)
    if key not in summary.row_keys:
        near = get_close_matches(key, summary.row_keys, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{part!r}: the study's rows have no key {key!r}{hint}; they have {summary.row_keys}")
    try:
        return key, as_text(parse_yaml(text))  # lists are text in the rows, too
    except YAMLError as error:
        raise UserError(
            f"{part!r}: its value cannot be read; expected one as in YAML, such as 0.9 or [64, 4]"
        ) from error


def _fits(summary: Summary, row: Row, wanted: Mapping[str, Any]) -> bool:
    values = dict(zip(summary.row_keys, row.values, strict=True))
    return all(
        (values[key] == value and isinstance(values[key], bool) == isinstance(value, bool))  # to Python, false is 0
        or str(value) in (str(values[key]), label(summary.study, key, values[key]))
        for key, value in wanted.items()
    )


def find_score(data: ReportData, text: str) -> str:
    """Return the score that `text` means: linear.top1, or top1 where only one evaluation has it. Else UserError."""
    study, frame = data.study, data.frame
    columns = [str(column) for column in frame.columns if str(column).startswith("score.")]
    known = frame[columns].notna().groupby(frame["eval.name"]).any()
    names = [
        f"{name}.{column.removeprefix('score.')}"
        for name in study.evals
        for column in columns
        if name in known.index and known.loc[name, column]
    ]
    scores = list(dict.fromkeys([*study.scores, *names]))
    fitting = [score for score in scores if text in (score, score.partition(".")[2])]
    if len(fitting) == 1:
        return fitting[0]
    problem = "several fit" if fitting else "the study has none of that name"
    raise UserError(f"score {text!r}: {problem}; allowed: {', '.join(fitting or scores)}")
