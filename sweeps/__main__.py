"""Plan, run and watch a study.

    python -m sweeps plan   sweeps/studies/quickstart.yaml             # what would run; nothing does
    python -m sweeps run    sweeps/studies/quickstart.yaml --workers 2
    python -m sweeps submit sweeps/studies/quickstart.yaml             # to SLURM, or here in the background
    python -m sweeps status sweeps/studies/quickstart.yaml --watch     # exit code 0 done, 1 failed, 3 not finished

`machine.*=value` after the study (as machine.runs=/scratch/runs machine.device=cuda) holds for all of its runs.
`python -m sweeps VERB --help` shows the options of a verb.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence

from runtime.errors import run_command
from sweeps.graph import build
from sweeps.study import load_study
from sweeps.verbs import Request, add_cluster_options, cancel, clean, logs, plan, status, submit

Verb = tuple[Callable[[Request], int], Callable[[argparse.ArgumentParser], None]]
VERBS: dict[str, Verb] = {
    "plan": (plan.plan, plan.add_options),
    "run": (submit.run, submit.add_run_options),
    "submit": (submit.submit, add_cluster_options),
    "status": (status.status, status.add_options),
    "logs": (logs.logs, logs.add_options),
    "retry": (submit.retry, submit.add_retry_options),
    "reconcile": (submit.reconcile, add_cluster_options),
    "cancel": (cancel.cancel, cancel.add_options),
    "clean": (clean.clean, clean.add_options),
}


def main(argv: Sequence[str]) -> int:
    # They may stand anywhere among the options. The title of a run, which has a "=" too, has a space before it.
    machine = [text for text in argv if re.match(r"[\w.]+=", text)]
    arguments = _parser().parse_args([text for text in argv if text not in machine])
    graph = build(load_study(arguments.study), machine)
    verb, _ = VERBS[arguments.verb]
    return verb(Request(graph, arguments, tuple(machine)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar=" | ".join(VERBS))
    for name, (verb, add_options) in VERBS.items():
        text = inspect.getdoc(verb) or ""
        one = verbs.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"python -m sweeps {name} STUDY [options] [machine.key=value ...]",
        )
        one.add_argument("study", help="a YAML file, as sweeps/studies/quickstart.yaml")
        add_options(one)
    return parser


if __name__ == "__main__":
    run_command(main)
