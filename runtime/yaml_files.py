"""Read and write YAML: config files with their `base:` files, `key=value` overrides, and our own run.yaml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runtime import PROJECT, files
from runtime.config_keys import Layer, merge, nested
from runtime.errors import UserError

_MOST_NODES = 100_000  # after aliases are expanded
_MOST_NESTED = 5000  # libyaml crashes from some 20,000 on


def parse_dumped(text: str) -> Any:
    """Parse YAML that PyYAML wrote, whose numbers are those of YAML 1.1 (`1e6` is text). Raise yaml.YAMLError."""
    # libyaml is many times as quick, but it recurses in C: deep nesting crashes the process, which Python would refuse.
    shallow = sum(text.count(mark) for mark in ("[", "{", "- ", "? ")) < _MOST_NESTED
    return _parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader) if shallow else yaml.SafeLoader)


def _parse(text: str, loader: Any) -> Any:
    """Parse YAML within limits.

    Raise yaml.YAMLError also for aliases that expand beyond a limit (a few lines can stand for billions of values;
    some are allowed, because safe_dump writes them for repeated objects), for nesting beyond Python's recursion limit,
    and for an impossible number or date.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        most = max(_MOST_NODES, 2 * len(text))  # without an alias, each node takes a character
        _count_nodes(node, most, {})
        return reader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        reader.dispose()


def _count_nodes(node: yaml.Node, most: int, counted: dict[int, int]) -> int:
    """Count the nodes of the tree with every alias expanded; `counted` caches the counts by node."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = most + 1  # until it is known: an alias inside the node that it names never ends
    children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    count = 1 + sum(_count_nodes(child, most, counted) for child in children)
    if count > most:
        raise yaml.YAMLError(f"its aliases (*name) stand for more than {most:,} values; write them out")
    counted[id(node)] = count
    return count


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-6 is a number and 16:00 is text (YAML 1.2), and a repeated key an error."""

    def construct_number(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else self.construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if wrong := [key for key in keys if not isinstance(key, str)]:
            raise yaml.constructor.ConstructorError(None, None, f"key {wrong[0]!r} is not text", node.start_mark)
        if repeated := [key for key, count in Counter(keys).items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML that a user wrote. Raise yaml.YAMLError."""
    return _parse(text, _Loader)


def file_layers(path: Path, above: Sequence[Path] = ()) -> list[Layer]:
    """Read a YAML file and, as earlier layers, its `base:` files; `above`: the files that named it.

    A base is a path relative to its file, or one in the checkout, as sweeps/studies/alpha.yaml.
    """
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return [(str(path), values)]
    if not isinstance(base, str) or path.resolve() in above:
        what = f"leads in a circle, to {path}" if path.resolve() in above else "is not the name of a file"
        raise UserError(
            f"config file {path}: base: {base!r} {what}; expected another config file, relative to this one"
        )
    file = next((file for file in (path.parent / base, PROJECT / base) if file.is_file()), None)
    if file is None:
        missing = files.no_such_yaml(path.parent / base, f"config file {path}: base:")
        expected = "a file relative to this one, or one of the checkout, as sweeps/studies/alpha.yaml"
        raise UserError(f"{missing}; expected {expected}")
    return [*file_layers(file, [*above, path.resolve()]), (str(path), values)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file. UserError where it is missing, not YAML, or holds something else."""
    if not path.is_file():
        raise files.no_such_yaml(path, "config file")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not readable YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {path} holds a {type(values).__name__}, expected `key: value` lines")
    return values


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` texts into nested values; each value is YAML."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"cannot read the override {override!r}; expected key=value, for example loss.alpha=0.9")
        try:
            values = merge(values, nested({key: parse_yaml(text)}))
        except yaml.YAMLError as error:
            raise UserError(f"cannot read the override {override!r}: {error}") from error
    return values


def dump_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, width=100))


def write_yaml(path: Path, value: Any) -> None:
    files.write_text(path, dump_yaml(value))
