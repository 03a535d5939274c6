"""Report on a study from whatever runs there are: python -m analysis sweeps/studies/quickstart.yaml

    python -m analysis STUDY ... [--reports FOLDER]          write reports/<study name>/
    python -m analysis STUDY STUDY ... --together NAME       write one table of several studies: reports/NAME/
    python -m analysis REPORT/results.csv ... [...]          the same of tables, whose studies sweeps/studies has
    python -m analysis compare STUDY A B                     does A beat B? A: 0.9, KEY=VALUE,KEY=VALUE or a control
    python -m analysis best STUDY --by miou --min-top1 70    rank the settings by one score, with limits on others
    python -m analysis --check                               is every report current, or does it say that it is not?
    python -m analysis --refresh                             write every report again from its results.csv
    python -m analysis --site                                write reports/index.html, the overview of all reports

    python -m analysis.cost_bench STUDY                      measure a step's time and memory, on an idle machine

`machine.runs=FOLDER` after the study says where the runs are. `--results reports/scenes/results.csv` takes the table of
a report instead, whose run directories may be gone.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from analysis.committed import check, refresh, site
from analysis.questions import best, compare
from analysis.report import require_parquet, write_report
from analysis.report_data import load_report_data
from analysis.together import write_together
from runtime.config import parse_command
from runtime.console import make_parser
from runtime.errors import UserError, run_command
from sweeps.keys import require_machine_keys

LIMIT = "--min-"  # and the name of a score


def main(argv: Sequence[str]) -> int | None:
    commands = {"compare": _compare, "best": _best, "--check": _check, "--refresh": _refresh, "--site": _site}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    _report(argv)
    return None


def _parser(command: str, about: str) -> ArgumentParser:
    """Return a parser with the arguments of a command about a `study`, or about the folder of `reports`."""
    parser = make_parser("analysis", __doc__, command)
    if about == "study":
        parser.add_argument("study", help="its YAML file, or its name, such as quickstart")
        parser.add_argument("--results", help="results.csv of the study's report, in place of the run directories")
    else:
        parser.add_argument("--reports", default="reports", help="the folder of the reports (default: %(default)s)")
    return parser


def _report(argv: Sequence[str]) -> None:
    parser = _parser("", "reports")
    parser.add_argument("words", nargs="+", metavar="STUDY machine.runs=FOLDER", help="files or names; where runs are")
    parser.add_argument("--together", metavar="NAME", help="one table of all the studies, in its own report")
    parser.add_argument("--results", help="results.csv of the study's report, in place of the run directories")
    parser.add_argument("--points", metavar="FILE.csv", help="own or others' points: name,score,data,protocol,value")
    parser.add_argument("--parquet", action="store_true", help="write results.parquet too; needs pyarrow")
    parser.add_argument("--force", action="store_true", help="replace a report that has scores which this one lacks")
    arguments = parse_command(parser, argv)
    studies = [word for word in arguments.words if "=" not in word]
    machine = [word for word in arguments.words if "=" in word]
    if not studies:
        parser.error("no study was given; expected a YAML file, such as sweeps/studies/quickstart.yaml")
    if arguments.results and (arguments.together or len(studies) > 1):
        raise UserError(f"--results is the table of one study, and {len(studies)} were given; report on each by itself")
    if arguments.together:
        folder = write_together(studies, arguments.together, arguments.reports, machine, arguments.force)
        print(folder / "README.md")
        return
    if arguments.parquet:
        require_parquet()
    options = {"parquet": arguments.parquet, "results": arguments.results, "force": arguments.force}
    options["points"] = arguments.points
    for study in studies:
        print(write_report(study, arguments.reports, machine, **options) / "README.md", flush=True)


def _check(argv: Sequence[str]) -> int:
    verdicts = check(_parser("--check", "reports").parse_args(argv).reports)
    for verdict in verdicts:
        print(f"{'ok   ' if verdict.sound else 'WRONG'} {verdict.name}: {verdict.text}")
    if all(verdict.sound for verdict in verdicts):
        return 0
    print("`make reports` writes the reports again from their results.csv; correct a page that quotes one by hand")
    return 1


def _refresh(argv: Sequence[str]) -> None:
    for folder in refresh(_parser("--refresh", "reports").parse_args(argv).reports):
        print(folder if folder.suffix else folder / "README.md", flush=True)


def _site(argv: Sequence[str]) -> None:
    print(site(_parser("--site", "reports").parse_args(argv).reports))


def _compare(argv: Sequence[str]) -> None:
    parser = _parser("compare", "study")
    parser.add_argument("a", help='a row of the study: 0.9, loss.alpha=0.9,loss.local=both, or "no pretraining"')
    parser.add_argument("b", help="another row")
    parser.add_argument("machine", nargs="*", default=[], help="machine.runs=FOLDER, where the runs are")
    arguments = parse_command(parser, argv)
    require_machine_keys(arguments.machine)
    data = load_report_data(arguments.study, arguments.machine, arguments.results)
    print("\n".join(compare(data, arguments.a, arguments.b)))


def _best(argv: Sequence[str]) -> None:
    parser = _parser("best", "study")
    parser.add_argument("--by", required=True, help="the score that decides, such as miou or segmentation.miou")
    parser.add_argument("machine", nargs="*", default=[], help="machine.runs=FOLDER, where the runs are")
    limits, rest = _limits(argv)
    arguments = parse_command(parser, rest)
    require_machine_keys(arguments.machine)
    data = load_report_data(arguments.study, arguments.machine, arguments.results)
    print("\n".join(best(data, arguments.by, limits)))


def _limits(argv: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Split off the --min-<score> VALUE options, whose names depend on the study."""
    limits: dict[str, float] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(LIMIT):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix(LIMIT).partition("=")
        text = value if equals else next(words, "")
        try:
            limits[name] = float(text)
        except ValueError as error:
            raise UserError(f"{LIMIT}{name} {text!r}: expected a number, such as {LIMIT}top1 70") from error
    return limits, rest


if __name__ == "__main__":
    run_command(main)
