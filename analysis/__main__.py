"""Report on a study from whatever runs there are: python -m analysis sweeps/studies/quickstart.yaml

Writes reports/<study name>/. `machine.runs=...` after the study says where the runs are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analysis.report import write_report
from runtime.errors import run_command


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("study", help="a YAML file, as sweeps/studies/quickstart.yaml")
    parser.add_argument("machine", nargs="*", help="machine.runs=FOLDER, where the runs are")
    parser.add_argument("--reports", default="reports", help="where to write (default: %(default)s)")
    arguments = parser.parse_intermixed_args(argv)
    print(write_report(arguments.study, arguments.reports, arguments.machine) / "README.md")


if __name__ == "__main__":
    run_command(main)
