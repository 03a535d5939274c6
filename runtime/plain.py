"""A config as plain values, many times as quick as by OmegaConf, where its fields hold what their types say."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

_SCALARS = {"bool": bool, "int": int, "str": str}


class NotPlainError(Exception):
    """Something that OmegaConf must convert."""


def plain_fields(config: Any) -> dict[str, Any]:
    """{field: value} of a dataclass, dataclasses in it as dicts; as OmegaConf has it.

    Raises NotPlainError for what OmegaConf would change (a whole number in a field of floats is changed here too) or
    refuse.
    """
    return {name: _plain(getattr(config, name), kind) for name, kind in _fields(type(config))}  # type: ignore[arg-type]


@cache
def _fields(schema: type) -> tuple[tuple[str, str], ...]:
    """(name, annotation as text) of each field."""
    kinds = ((f.name, f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "")) for f in _all(schema))
    return tuple((name, str(kind).replace(" ", "")) for name, kind in kinds)


def _all(schema: type) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(schema):
        raise NotPlainError(schema)
    return dataclasses.fields(schema)


def _plain(value: Any, kind: str) -> Any:
    if kind == "float":
        if type(value) is float or type(value) is int:
            return float(value)
        raise NotPlainError(value)
    if kind in _SCALARS:
        if type(value) is not _SCALARS[kind]:
            raise NotPlainError(value)
        return _text(value)
    if dataclasses.is_dataclass(value):
        return plain_fields(value)
    if kind.endswith("|None"):
        return None if value is None else _plain(value, kind.removesuffix("|None"))
    if kind.startswith("list[") and type(value) is list:
        return [_plain(item, kind[5:-1]) for item in value]
    if kind.startswith("dict[str,") and type(value) is dict:
        return {_key(key): _plain(item, kind[9:-1]) for key, item in value.items()}
    if kind == "Any":
        return _any(value)
    raise NotPlainError(value)


def _any(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if type(value) is str:
        return _text(value)
    if type(value) is list:
        return [_any(item) for item in value]
    if type(value) is dict:
        return {_key(key): _any(item) for key, item in value.items()}
    raise NotPlainError(value)


def _key(key: Any) -> str:
    if type(key) is not str:
        raise NotPlainError(key)
    return key


def _text(value: Any) -> Any:
    if type(value) is str and ("${" in value or value == "???"):  # of OmegaConf's own language
        raise NotPlainError(value)
    return value
