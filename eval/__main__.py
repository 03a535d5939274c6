"""Run an evaluation by its name, above all one of a package of your own:

    python -m eval my_evaluation runs/pretrain/<run> --config FILE imports=[my_package] [key=value ...]

`imports` may stand in the config file. `python -m eval knn ...` is `python -m eval.knn ...`.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from eval.command import EvalArguments, evaluate
from eval.config import EVALUATIONS
from runtime.config import Importing, from_layers
from runtime.console import evaluations
from runtime.errors import UserError, run_command
from runtime.files import find_yaml
from runtime.yaml_files import file_layers, parse_overrides


def main(argv: Sequence[str]) -> None:
    name, arguments = argv[0] if argv else "--help", list(argv[1:])
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name in evaluations():
        sys.argv[1:] = arguments
        runpy.run_module(f"eval.{name}", run_name="__main__", alter_sys=True)
        return
    words = EvalArguments.parse(arguments, name)
    file = find_yaml(words.config, "eval/configs", "config file")
    from_layers(Importing, [*file_layers(file), ("command line", parse_overrides(words.overrides))])
    if name not in EVALUATIONS:
        known = [*evaluations(), *EVALUATIONS]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"unknown evaluation {name!r}; {hint}allowed: {', '.join(known)}, and those that a package registers which "
            "`imports` of the config names"
        )
    evaluate(arguments, EVALUATIONS[name].schema, EVALUATIONS[name].work)


if __name__ == "__main__":
    run_command(main)
