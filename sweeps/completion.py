"""Completion of the command `vicregl` in bash and zsh: commands, options, studies, configs, keys with values, runs.

    source <(vicregl completion bash)        # in ~/.bashrc
    source <(vicregl completion zsh)         # in ~/.zshrc

Where nothing is known, file names are completed. Answers must come at once, so nothing here loads torch, or pydantic:
keys and values are those of schemas/*.json, and options are read in the source of their command.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime import PROJECT
from runtime.console import COMMANDS, find_command, make_parser, own_evaluations
from runtime.errors import run_command
from runtime.files import yaml_names
from sweeps import STUDIES

SCRIPTS = {
    "bash": """
_vicregl() {
    mapfile -t COMPREPLY < <("${1/#\\~/$HOME}" completion --line "${COMP_LINE:0:COMP_POINT}" \\
        --breaks "$COMP_WORDBREAKS" 2>/dev/null)
    if ((${#COMPREPLY[@]})); then compopt -o nospace; fi
}
complete -o default -F _vicregl vicregl
""",
    "zsh": """
(( $+functions[compdef] )) || { autoload -Uz compinit; compinit; }
_vicregl() {
    local -a found
    found=("${(@f)$(${~words[1]} completion --line "${(j. .)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -n $found[1] ]]; then
        compadd -Q -S '' -- $found
    else
        compset -P '*='; _files
    fi
}
compdef _vicregl vicregl
""",
}
Options = Mapping[str, Sequence[str] | None]  # by name: the values that are allowed, if few; None: it takes none
_RUNS = ("pretrain", "weights")  # stages whose runs are evaluated
# The words of a command before its keys: kinds of `_words_of`, or the words themselves.
_WORDS: Mapping[str, Sequence[Sequence[str]]] = {
    "analysis": (("STUDY", "compare", "best", "--check", "--refresh", "--site"), ("STUDY",)),
    "analysis.cost_bench": (("STUDY",),),
    "analysis.pictures": (("RUN",),) * 9,
    "data.cache": (("DATASET",),),
    "data.check": (("DATASET",),),
    "pretrain.bench": (("CONFIG",),),
    "pretrain.export": (("RUN",),),
    "pretrain.show": (("CONFIG",),),
    "sweeps.completion": (tuple(SCRIPTS),),
}
_EVALUATION = (("RUN",),)  # the same of an evaluation
_SWEEP = (("STUDY",), ("RUN",))  # the same of a command of `sweep`
# Keys that are not all of the schema that has the command's name: the schema, how they begin, and what is left out.
_KEYS = {
    "data.check": ("pretrain", "data.", ""),
    "data.cache": ("pretrain", "data.", "data."),
    "data.scenes": ("pretrain", "data.scenes.", "data.scenes."),
    "pretrain.bench": ("pretrain", "", ""),
    "pretrain.show": ("pretrain", "", ""),
    **dict.fromkeys(("sweeps", "analysis", "analysis.cost_bench", "analysis.pictures"), ("pretrain", "machine.", "")),
}


def main(argv: Sequence[str]) -> None:
    parser = make_parser("sweeps.completion", __doc__)
    parser.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="print its script")
    parser.add_argument("--line", help=argparse.SUPPRESS)  # the command line before the cursor, from a script
    parser.add_argument("--breaks", default="", help=argparse.SUPPRESS)  # $COMP_WORDBREAKS of bash
    options = parser.parse_args(argv)
    if options.line is None:
        if options.shell is None:
            parser.error(f"no shell was given; expected one of {', '.join(SCRIPTS)}")
        print(SCRIPTS[options.shell].strip())
        return
    words = split_line(options.line)[1:]
    for candidate in complete(words):
        print(_as_typed(candidate, words[-1], options.breaks))


def split_line(line: str) -> list[str]:
    """Split the line as a shell does; its last word, perhaps empty or in an open quote, is the one at the cursor."""
    for closing in ("", "\\", '"', "'"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        ended = closing == "" and line.endswith(" ") and not line.endswith("\\ ")
        return [*words, ""] if ended else words
    return [""]


def _as_typed(candidate: str, word: str, breaks: str) -> str:
    """Quote what the shell puts in place of the word: in bash, of what follows its last "=" or ":"."""
    start = max((word.rfind(mark) + 1 for mark in "=:" if mark in breaks), default=0)
    quoted = re.sub(r"[^\w.=:/,@%+-]", lambda match: f"\\{match[0]}", candidate[start:])
    return quoted if candidate.endswith(("=", ".", "/")) else f"{quoted} "


def complete(words: Sequence[str]) -> list[str]:
    """List what may stand for the last word, after the words before it."""
    *before, word = words
    return sorted({text for text in _candidates(before, word) if text.startswith(word)})


def _candidates(before: Sequence[str], word: str) -> Iterable[str]:
    found = find_command(before)
    if found is None:
        return _commands(before)
    name, command = found
    module, before = command.module.replace(" ", "."), before[len(name.split()) :]
    options = _options(module, before) if any(text.startswith("-") for text in (*before, word)) else {}
    takes_value = {name for name, values in options.items() if values is not None}
    if before and before[-1] in takes_value:
        return _option_values(before[-1], options, module)
    pairs = zip(["", *before], before, strict=False)
    given = [text for last, text in pairs if "=" not in text and text[:1] != "-" and last not in takes_value]
    if module == "sweeps" and not given:
        return [*_sweep_commands(), "--help"]
    keys, kinds = _keys(module), _kinds(module, len(given))
    plain = word.removeprefix("--")
    if "=" in plain:
        key = plain.partition("=")[0]
        return [f"{word.partition('=')[0]}={value}" for value in _values(keys.get(key, {}))]
    if word.startswith("-"):
        return [*options, "--help", *(kind for kind in kinds if kind.startswith("-"))]
    return [*_words_of(kinds, module, before), *_sections(keys, word)]


def _commands(before: Sequence[str]) -> Iterator[str]:
    """Yield the commands, or those of a group."""
    if not before:
        yield from ("--help", "--version")
    names = [*COMMANDS, *(f"eval {name}" for name in own_evaluations())]
    group = "".join(f"{word} " for word in before)
    yield from (name.removeprefix(group).partition(" ")[0] for name in names if name.startswith(group))


def _kinds(module: str, position: int) -> Sequence[str]:
    """Return which words the command takes after `position` others."""
    if module == "sweeps":
        words: Sequence[Sequence[str]] = ((), *_SWEEP)
    else:
        evaluation = module.startswith("eval.") and module != "eval.weights"
        words = _EVALUATION if evaluation else _WORDS.get(module, ())
    return words[position] if position < len(words) else ()


def _words_of(kinds: Iterable[str], module: str, before: Sequence[str]) -> Iterator[str]:
    for kind in kinds:
        if kind == "STUDY":
            yield from (*yaml_names(STUDIES), *(file.name for file in Path().glob("*.yaml")))
        elif kind == "CONFIG":
            yield from _configs(module)
        elif kind == "DATASET":
            yield from _values(_keys("data.cache")["name"])
        elif kind == "RUN":
            yield from _runs(module, before)
        else:
            yield kind


def _configs(module: str) -> list[str]:
    """List the configs of the command's stage: the first line of each names the schema."""
    folder, _, stage = module.partition(".")
    schema = f"{stage if folder == 'eval' else 'pretrain'}.json"
    folder = f"{folder}/configs"
    first = {
        name: (PROJECT / folder / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        for name in yaml_names(folder)
    }
    return [name for name, line in first.items() if "$schema=" not in line or line.endswith(f"/{schema}")]


def _runs(module: str, before: Sequence[str]) -> Iterator[str]:
    """Yield the directories of the runs that the command takes."""
    given = [word.removeprefix("--").removeprefix("machine.runs=") for word in before if "machine.runs=" in word]
    root = Path(given[-1] if given else "runs")
    stages = _RUNS if module.startswith("eval.") else ("*",)
    yield from (str(file.parent) for stage in stages for file in root.glob(f"{stage}/*/run.yaml"))


def _option_values(option: str, options: Options, module: str) -> Iterable[str]:
    kinds = {"--config": "CONFIG", "--study": "STUDY", "--run": "RUN", "--subtree": "RUN"}
    return _words_of([kinds[option]], module, ()) if option in kinds else options[option] or ()


def _options(module: str, before: Sequence[str]) -> Options:
    """Read the options of a command in its source: importing it could load torch."""
    if module == "sweeps":
        return _sweep_options(before)
    path = PROJECT / module.replace(".", "/")
    file = path / "__main__.py"
    file = file if file.is_file() else path.with_suffix(".py")  # data/cache may be a folder too
    if module.startswith("eval.") and module != "eval.weights":
        file = PROJECT / "eval" / "command.py"
    options: dict[str, Sequence[str] | None] = {}
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            texts = [word.value for word in call.args if isinstance(word, ast.Constant)]
            flag = getattr(keywords.get("action"), "value", "") == "store_true"
            choices = keywords.get("choices")
            values = [str(ast.literal_eval(c)) for c in choices.elts] if isinstance(choices, ast.Tuple) else []
            options |= {name: None if flag else values for name in map(str, texts) if name.startswith("--")}
    return options


def _sweep_commands() -> Mapping[str, argparse.ArgumentParser]:
    from sweeps.__main__ import make_sweep_parser  # no torch, but it takes a while

    (commands,) = (a for a in make_sweep_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices


def _sweep_options(before: Sequence[str]) -> Options:
    """Return the options of a command of `sweep`."""
    parser = _sweep_commands().get(before[0]) if before else None
    actions = parser._option_string_actions.items() if parser else ()
    return {
        name: None if action.nargs == 0 else [str(choice) for choice in action.choices or ()]
        for name, action in actions
        if name.startswith("--")
    }


def _keys(module: str) -> dict[str, dict[str, Any]]:
    """Return the schema of each key that the command takes as key=value."""
    name, start, left_out = _KEYS.get(module, (module.removeprefix("eval."), "", ""))
    file = PROJECT / "schemas" / f"{name}.json"
    if not file.is_file():
        return {}
    schema = json.loads(file.read_text(encoding="utf-8"))
    leaves = _leaves(schema, schema.get("$defs", {}))
    return {key.removeprefix(left_out): leaf for key, leaf in leaves if key.startswith(start) and key != "base"}


def _leaves(section: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in section["properties"].items():
        inner = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        if "properties" in inner:
            yield from ((f"{name}.{key}", leaf) for key, leaf in _leaves(inner, definitions))
        else:
            yield name, inner | field


def _sections(keys: Iterable[str], word: str) -> Iterator[str]:
    """Yield the keys that begin with the word, up to the next dot: "loss.", and then "loss.alpha="."""
    for key in keys:
        if key.startswith(word):
            name, dot, _ = key[len(word) :].partition(".")
            yield f"{word}{name}{dot or '='}"


def _values(field: Mapping[str, Any]) -> list[str]:
    """List the values that a key may have, if they are few, and its default."""
    values = [field["default"]] if "default" in field else []
    few: dict[str, list[Any]] = {"boolean": [True, False], "null": [None]}
    for kind in field.get("anyOf", [field]):
        values += [*kind.get("enum", ()), *few.get(kind.get("type", ""), ())]
    return [value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for value in values]


if __name__ == "__main__":
    run_command(main)
