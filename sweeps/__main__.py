"""Plan, run and watch a study.

    python -m sweeps plan   sweeps/studies/quickstart.yaml             # what would run; nothing does
    python -m sweeps run    sweeps/studies/quickstart.yaml --workers 2
    python -m sweeps submit sweeps/studies/quickstart.yaml             # to SLURM, or here in the background
    python -m sweeps status sweeps/studies/quickstart.yaml --watch     # exit code 0 done, 1 failed, 3 not finished

`machine.*=value` after the study (as machine.runs=/scratch/runs machine.device=cuda) holds for all of its runs.
`python -m sweeps VERB --help` tells what else a verb takes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from runtime.errors import run_command
from sweeps.graph import build
from sweeps.study import load_study
from sweeps.verbs import VERBS, Request


def main(argv: Sequence[str]) -> int:
    # Wherever among the options; a run's title, which has a "=" too, has a space before it.
    machine = [text for text in argv if re.match(r"[\w.]+=", text)]
    arguments = _parser().parse_args([text for text in argv if text not in machine])
    graph = build(load_study(arguments.study), machine)
    return VERBS[arguments.verb].main(Request(graph, arguments, tuple(machine)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar=" | ".join(VERBS))
    for verb, module in VERBS.items():
        one = verbs.add_parser(
            verb,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"python -m sweeps {verb} STUDY [options] [machine.key=value ...]",
        )
        one.add_argument("study", help="a YAML file, as sweeps/studies/quickstart.yaml")
        module.add_options(one)
    return parser


if __name__ == "__main__":
    run_command(main)
