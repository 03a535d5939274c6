"""Report on a study from whatever runs there are: python -m analysis sweeps/studies/quickstart.yaml

    python -m analysis STUDY ... [--reports FOLDER]   write reports/<study name>/
    python -m analysis STUDY STUDY ... --together NAME    one table of several studies: reports/NAME/
    python -m analysis compare STUDY A B              does A beat B? paired over seeds; A as 0.9, or KEY=VALUE,KEY=VALUE
    python -m analysis best STUDY --by miou --min-top1 70    the settings by a score, of those that reach another
    python -m analysis --check      do all reports say which settings they have, and are they what their tables make?
    python -m analysis --refresh    write all of them again from their tables

`machine.runs=...` after the study says where the runs are. `--results reports/scenes/results.csv` answers from what a
report was made of instead, whose run directories may be gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from analysis.committed import check, refresh
from analysis.questions import best, compare
from analysis.report import require_parquet, write_report
from analysis.report_data import ReportData, load_report_data
from analysis.together import write_together
from runtime.errors import UserError, run_command

LEAST = "--min-"


def main(argv: Sequence[str]) -> int | None:
    commands: dict[str, Callable[[Sequence[str]], int | None]]
    commands = {"compare": _compare, "best": _best, "--check": _check, "--refresh": _refresh}
    name, *rest = argv or [""]
    if name in commands:
        return commands[name](rest)
    _report(argv)
    return None


def _parser(command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m analysis{command}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="a YAML file, as sweeps/studies/quickstart.yaml")
    parser.add_argument("--results", help="results.csv of a report, in place of the run directories")


def _material(arguments: argparse.Namespace) -> ReportData:
    return load_report_data(arguments.study, arguments.machine, arguments.results)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", nargs="*", help="machine.runs=FOLDER, where the runs are")


def _report(argv: Sequence[str]) -> None:
    parser = _parser("")
    parser.add_argument("words", nargs="+", metavar="STUDY machine.runs=FOLDER", help="YAML files; where the runs are")
    parser.add_argument("--together", metavar="NAME", help="one table of all the studies, in its own report")
    parser.add_argument("--results", help="results.csv of the study's report, in place of the run directories")
    parser.add_argument("--parquet", action="store_true", help="results.parquet too; needs pyarrow")
    parser.add_argument("--force", action="store_true", help="replace a report that has scores which this one has not")
    _add_reports(parser)
    arguments = parser.parse_intermixed_args(argv)
    studies = [word for word in arguments.words if "=" not in word]
    machine = [word for word in arguments.words if "=" in word]
    if not studies:
        parser.error("no study was given; expected a YAML file, as sweeps/studies/quickstart.yaml")
    if arguments.results and (arguments.together or len(studies) > 1):
        raise UserError(f"--results is the table of one study, and {len(studies)} were given; report on each by itself")
    if arguments.together:
        folder = write_together(studies, arguments.together, arguments.reports, machine, arguments.force)
        print(folder / "README.md")
        return
    if arguments.parquet:
        require_parquet()
    options = {"parquet": arguments.parquet, "results": arguments.results, "force": arguments.force}
    for study in studies:
        print(write_report(study, arguments.reports, machine, **options) / "README.md", flush=True)


def _add_reports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reports", default="reports", help="where the reports lie (default: %(default)s)")


def _check(argv: Sequence[str]) -> int:
    parser = _parser(" --check")
    _add_reports(parser)
    verdicts = check(parser.parse_args(argv).reports)
    for verdict in verdicts:
        print(f"{'ok   ' if verdict.sound else 'WRONG'} {verdict.name}: {verdict.text}")
    if all(verdict.sound for verdict in verdicts):
        return 0
    print("`make reports` writes them again from their results.csv; a page that quotes one is yours to mend")
    return 1


def _refresh(argv: Sequence[str]) -> None:
    parser = _parser(" --refresh")
    _add_reports(parser)
    for folder in refresh(parser.parse_args(argv).reports):
        print(folder / "README.md", flush=True)


def _compare(argv: Sequence[str]) -> None:
    parser = _parser(" compare")
    _add_study(parser)
    parser.add_argument("a", help="a row of the study: 0.9, loss.alpha=0.9,loss.local=both, or a control's name")
    parser.add_argument("b", help="another row")
    _add_machine(parser)
    arguments = parser.parse_intermixed_args(argv)
    print("\n".join(compare(_material(arguments), arguments.a, arguments.b)))


def _best(argv: Sequence[str]) -> None:
    parser = _parser(" best")
    _add_study(parser)
    parser.add_argument("--by", required=True, help="the score that decides, as miou or segmentation.miou")
    _add_machine(parser)
    least, rest = _limits(argv)
    arguments = parser.parse_intermixed_args(rest)
    print("\n".join(best(_material(arguments), arguments.by, least)))


def _limits(argv: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The --min-<score> VALUE options, whose names depend on the study, and the rest of the arguments."""
    least: dict[str, float] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(LEAST):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix(LEAST).partition("=")
        text = value if equals else next(words, "")
        try:
            least[name] = float(text)
        except ValueError as error:
            raise UserError(f"{LEAST}{name} {text!r}: expected a number, as {LEAST}top1 70") from error
    return least, rest


if __name__ == "__main__":
    run_command(main)
