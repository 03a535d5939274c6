"""The command `vicregl`: every command of the suite, from any folder.

`vicregl eval linear ...` is `python -m eval.linear ...` of the checkout: the same options, output and exit codes. In
place of the path of a study or a config, both take its name (files.find_yaml). torch is loaded by a command that needs
it, not here.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from runtime import PROJECT, import_path
from runtime.errors import UserError, run_command

_CALLED_AS = "VICREGL_CALLED_AS"  # environment variable: a module, and what the user typed in its place


class Command(NamedTuple):
    module: str  # of the checkout, which `python -m` starts; perhaps with a first word for it
    about: str
    examples: tuple[str, ...]  # what follows the command


_RUN = "runs/pretrain/<run>"
COMMANDS = {
    "pretrain": Command("pretrain", "pretrain a network", ("--config quickstart loss.alpha=0.9 seed=1",)),
    "eval linear": Command("eval.linear", "linear classification; finetuning", (f"{_RUN} --config linear_scenes",)),
    "eval knn": Command("eval.knn", "classification by nearest neighbours", (f"{_RUN} --config knn_scenes",)),
    "eval dense_knn": Command(
        "eval.dense_knn", "segmentation by nearest neighbours", (f"{_RUN} --config dense_knn_scenes",)
    ),
    "eval segmentation": Command("eval.segmentation", "segmentation", (f"{_RUN} --config seg_scenes",)),
    "eval weights": Command("eval.weights", "import weights of another origin", ("timm=resnet50.a1_in1k",)),
    "sweep": Command(
        "sweeps",
        "plan, run, submit and watch a study",
        ("plan quickstart", "run quickstart --workers 2", "submit alpha", "status alpha --watch"),
    ),
    "report": Command("analysis", "report on a study", ("quickstart", "compare quickstart 0.75 1")),
    "pictures": Command("analysis.pictures", "draw what networks have learned", ("--study quickstart", _RUN)),
    "cost": Command("analysis.cost_bench", "measure a step's time and memory", ("scenes",)),
    "check": Command("data.check", "check a dataset", ("imagenet data.root=/path/to/imagenet",)),
    "data cache": Command("data.cache", "decode a dataset once", ("imagenet --short-side 256",)),
    "data scenes": Command("data.scenes", "make the embedded dataset", ("train=500",)),
    "data show": Command("pretrain.show", "draw the views that a config trains on", ("quickstart --images 4",)),
    "data bench": Command("pretrain.bench", "measure the input pipeline", ("resnet50_100ep --workers 4,8",)),
    "export": Command("pretrain.export", "write a backbone for other programs", (f"{_RUN} --out resnet.pth",)),
    "completion": Command("sweeps.completion", "print the shell's completion", ("bash", "zsh")),
}


def find_command(words: Sequence[str]) -> tuple[str, Command] | None:
    """Return the command that the words begin with, and its name; None if there is none."""
    for name in (" ".join(words[:2]), " ".join(words[:1])):
        if name in COMMANDS:
            return name, COMMANDS[name]
    if words[:1] != ["eval"] or not words[1:2]:
        return None
    if words[1] in own_evaluations():
        return f"eval {words[1]}", Command(f"eval.{words[1]}", "", ())
    has_config = any(re.match("--config(=|$)", word) for word in words)  # which may import a package that has it
    return (f"eval {words[1]}", Command(f"eval {words[1]}", "", ())) if has_config else None


def evaluations() -> list[str]:
    """List the evaluations that the checkout has."""
    return [name.removeprefix("eval ") for name in COMMANDS if name.startswith("eval ")] + own_evaluations()


def own_evaluations() -> list[str]:
    """List the evaluations that a user has added to the checkout, each a file of eval/ that runs (EXTEND.md)."""
    known = [command.module for command in COMMANDS.values()]
    files = [file for file in sorted((PROJECT / "eval").glob("[!_]*.py")) if f"eval.{file.stem}" not in known]
    return [file.stem for file in files if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]


def main() -> None:
    run_command(_main)


def _main(argv: Sequence[str]) -> None:
    if argv[:1] == ["--version"]:
        from runtime.provenance import version  # takes a while

        print(f"vicregl-bench {version()}")
        return
    found = find_command(argv)
    if found is None:
        print("\n".join(_help(argv)))
        return
    name, command = found
    rest = argv[len(name.split()) :]
    if {"-h", "--help"} & {*rest}:
        print("\n".join([*(f"example: vicregl {name} {example}" for example in command.examples), ""]), flush=True)
    _start(name, command.module, rest)


def _help(words: Sequence[str]) -> Iterator[str]:
    """Yield the lines about all commands or those of a group; UserError unless they are asked for."""
    group = next((word for word in words[:1] if any(name.startswith(f"{word} ") for name in COMMANDS)), "")
    named = {name: command for name, command in COMMANDS.items() if name.startswith(group)}
    asked = [word for word in words if word != group]
    if asked not in (["--help"], ["-h"]):
        known = list(dict.fromkeys([*named, *(name.partition(" ")[0] for name in named)]))
        near = get_close_matches(" ".join(words), known, n=3) if asked else []
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        given = f"no command {' '.join(words)!r}" if asked else f"no command{f' of {group}' * bool(group)} was given"
        raise UserError(f"{given}; {hint}expected one of {', '.join(named)}; `vicregl --help` describes them")
    yield f"usage: vicregl {f'{group} ' if group else ''}COMMAND ...\n\ncommands, each with --help and examples:"
    yield from (f"  {name:<20}{command.about}" for name, command in named.items())
    yield "\nexamples:"
    yield from (f"  vicregl {name} {command.examples[0]}" for name, command in named.items())
    yield f"\nNames are of files in {PROJECT}; runs/ and reports/ are in the working directory."


def make_parser(module: str, about: str | None, subcommand: str = "", **options: Any) -> ArgumentParser:
    """Create the parser of `python -m module`; its help calls the command as the user did, perhaps `vicregl sweep`."""
    called, _, name = os.environ.get(_CALLED_AS, "").partition(":")
    prog = f"{name if called == module else f'python -m {module}'} {subcommand}".rstrip()
    return ArgumentParser(prog=prog, description=about, formatter_class=RawDescriptionHelpFormatter, **options)


def _start(name: str, module: str, argv: Sequence[str]) -> NoReturn:
    """Become `python -m module`."""
    environment = os.environ | import_path() | {_CALLED_AS: f"{module}:vicregl {name}"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", *module.split(), *argv], environment)
