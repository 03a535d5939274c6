"""Dotted keys of nested values and of config classes, and the error message for a wrong key or value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vicregl.errors import InvalidInputError

Layer = tuple[str, dict[str, Any]]  # where the values come from, and the values


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` updated by `changes`: mappings are merged key by key, anything else is replaced.

    An empty mapping replaces too: merged, it would change nothing.
    """
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], change) if both and change else change
    return merged


def merge_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the values of all layers; later layers win."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = merge(values, layer)
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"a.b": 1} into {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"a": {"b": 1}} into {"a.b": 1}; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def lookup(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return the value of a dotted key in nested mappings; `default` if it is missing or a section."""
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return default if isinstance(value, Mapping) and value else value


@cache
def types_of(schema: Any) -> dict[str, Any]:
    """Map every dotted key of a config class to its type."""
    types: dict[str, Any] = {}
    schema = _section(schema, ())
    for name in _names(schema, ()):
        kind = get_type_hints(schema)[name]
        inner = types_of(kind) if _names(kind, ()) else {}
        types |= {f"{name}.{key}": value for key, value in inner.items()} or {name: kind}
    return types


def explain(error: ErrorDetails, layers: Sequence[Layer], schema: type[BaseModel]) -> str:
    """Describe the first problem of a config: its file, the key, the value, what is allowed."""
    path = _path(error, merge_layers(layers))
    key = ".".join(path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section = ".".join([*path[:-1], ""])
        parent = _section(schema, path[:-1])
        classes = get_args(parent) if get_origin(parent) in (UnionType, Union) else [parent]
        known = list(dict.fromkeys(f"{section}{name}" for each in classes for name in _names(each, ())))
        near = get_close_matches(key, [*types_of(schema), *known], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        return f"{_origin(layers, path)}: unknown key {key!r}; {hint}allowed here: {', '.join(known)}"
    if error["type"] == "missing" and path[-1].isdigit():
        return f"{_origin(layers, path)}: {'.'.join(path[:-1])} has {path[-1]} values, too few"
    if error["type"] == "missing":
        return f"{layers[-1][0]}: {key} is missing; it has no default"
    if isinstance(cause := error.get("ctx", {}).get("error"), InvalidInputError):
        # The library names its options without the section that they have in a config.
        return f"{_origin(layers, path)}: {'.'.join([*path, ''])}{cause}"
    field = _field(schema, path)
    several = len(path) < len(error["loc"])  # the error is that of one member of a union
    allowed = field.description if several and field is not None and field.description else _allowed(error, field)
    return f"{_origin(layers, path)}: {key} = {error['input']!r} is not possible; allowed: {allowed}"


def _path(error: ErrorDetails, values: Any) -> list[str]:
    """Return the key of the problem, part by part: pydantic also names the tried member of a union, which is no key."""
    path = []
    for position, part in enumerate(error["loc"], 1):
        inner = dict(enumerate(values)) if isinstance(values, list) else values if isinstance(values, Mapping) else {}
        known = {str(key): value for key, value in inner.items()}
        if str(part) in known or (error["type"] == "missing" and position == len(error["loc"])):
            path.append(str(part))
            values = known.get(str(part))
    return path


def _origin(layers: Sequence[Layer], path: Sequence[str]) -> str:
    """Name the last layer that sets the key, or else its section."""
    for end in range(len(path), 0, -1):
        for origin, values in reversed(layers):
            if lookup(values, ".".join(path[:end]), None) is not None:
                return origin
    return layers[-1][0] if layers else "defaults"


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text (in quotes where it looks like a number)",
    "list": "a list, as [1, 2]",
    "tuple": "a list, as [1, 2]",
    "dict": "a mapping, as {key: value}",
    "model": "a section, as {key: value}",
    "dataclass": "a section, as {key: value}",
}


def _allowed(error: ErrorDetails, field: FieldInfo | None) -> str:
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    if error["type"] in ("string_pattern_mismatch", "value_error") and field is not None and field.description:
        return field.description
    limits = _limits(context) if field is None else _limits_of(field) or _limits(context)
    if error["type"] in ("too_long", "too_short"):
        lengths = {"min_length": "ge", "max_length": "le"}
        return f"{_limits({lengths[key]: value for key, value in context.items() if key in lengths})} values"
    if "greater" in error["type"] or "less" in error["type"]:
        return limits
    kind = _KINDS.get(error["type"].partition("_")[0], error["msg"].removeprefix("Value error, "))
    more = limits or (field.description if field is not None else None)
    return f"{kind}, {more}" if more else kind


def _limits_of(field: FieldInfo) -> str:
    """Describe the range that a field's constraints allow."""
    names = {annotated_types.Ge: "ge", annotated_types.Gt: "gt", annotated_types.Le: "le", annotated_types.Lt: "lt"}
    constraints = [*field.metadata, *(m for a in get_args(field.annotation) for m in getattr(a, "__metadata__", ()))]
    flat = [part for c in constraints for part in (c if isinstance(c, annotated_types.GroupedMetadata) else [c])]
    text = _limits({names[type(c)]: getattr(c, names[type(c)]) for c in flat if type(c) in names})
    return f"{text}: {field.description}" if text and field.description else text


def _limits(limits: Mapping[str, Any]) -> str:
    low = f"{limits['ge']:g}" if "ge" in limits else f"above {limits['gt']:g}" if "gt" in limits else ""
    high = f"{limits['le']:g}" if "le" in limits else f"below {limits['lt']:g}" if "lt" in limits else ""
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if "ge" in limits else low or (f"{high} or less" if "le" in limits else high)


def _field(schema: Any, path: Sequence[str]) -> FieldInfo | None:
    """Return the field at the path; None where a path ends in a list or an open mapping, and inside a dataclass."""
    section = _section(schema, path[:-1])
    field = getattr(section, "model_fields", {}).get(path[-1]) if path else None
    return field if isinstance(field, FieldInfo) else None


def _names(schema: Any, path: Sequence[str]) -> list[str]:
    """Return the keys of the section at the path."""
    section = _section(schema, path)
    fields = getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {})
    return [name for name, field in fields.items() if getattr(field, "init", True) is not False]


def _section(schema: Any, path: Sequence[str]) -> Any:
    """Return the class of the section at the path, also in mappings and lists of sections and where it may be null."""
    for name in path:
        schema = _section(schema, ())
        if get_origin(schema) in (dict, list):
            schema = get_args(schema)[-1]
        else:
            schema = get_type_hints(schema).get(name) if isinstance(schema, type) else None
    return without_null(schema)


def without_null(kind: Any) -> Any:
    """Return X for X | None, in either spelling; any other type as it is."""
    others = [other for other in get_args(kind) if other is not NoneType]
    return others[0] if get_origin(kind) in (UnionType, Union) and len(others) == 1 else kind
