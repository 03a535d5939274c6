"""A config as plain values, many times as quick as by OmegaConf, where its fields hold what their types say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

Convert = Callable[[Any], Any]


class NotPlainError(Exception):
    """Something that OmegaConf must convert."""


def plain_fields(config: Any) -> dict[str, Any]:
    """{field: value} of a dataclass, dataclasses in it as dicts; as OmegaConf has it.

    Raises NotPlainError for what OmegaConf would change (a whole number in a field of floats is changed here too) or
    refuse.
    """
    return {name: convert(getattr(config, name)) for name, convert in _fields(type(config))}  # type: ignore[arg-type]


@cache
def _fields(schema: type) -> tuple[tuple[str, Convert], ...]:
    """(name, what makes its value plain) of each field."""
    if not dataclasses.is_dataclass(schema):
        raise NotPlainError(schema)
    kinds = {
        f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "")
        for f in dataclasses.fields(schema)
    }
    return tuple((name, _converter(str(kind).replace(" ", ""))) for name, kind in kinds.items())


@cache
def _converter(kind: str) -> Convert:
    """What makes a value of that annotation plain."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind.endswith("|None"):
        return _optional(_converter(kind.removesuffix("|None")))
    if kind.startswith("list["):
        return _list_of(_converter(kind[5:-1]))
    if kind.startswith("dict[str,"):
        return _dict_of(_converter(kind[9:-1]))
    return _any if kind == "Any" else plain_fields


def _optional(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _list_of(convert: Convert) -> Convert:
    def plain(value: Any) -> Any:
        if type(value) is not list:
            raise NotPlainError(value)
        return [convert(item) for item in value]

    return plain


def _dict_of(convert: Convert) -> Convert:
    def plain(value: Any) -> Any:
        if type(value) is not dict:
            raise NotPlainError(value)
        return {_key(key): convert(item) for key, item in value.items()}

    return plain


def _float(value: Any) -> Any:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise NotPlainError(value)


def _exactly(kind: type) -> Convert:
    def plain(value: Any) -> Any:
        if type(value) is not kind:
            raise NotPlainError(value)
        return value

    return plain


def _text(value: Any) -> Any:
    if type(value) is not str or "${" in value or value == "???":  # of OmegaConf's own language
        raise NotPlainError(value)
    return value


def _key(key: Any) -> str:
    if type(key) is not str:
        raise NotPlainError(key)
    return key


def _any(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if type(value) is list:
        return [_any(item) for item in value]
    if type(value) is dict:
        return {_key(key): _any(item) for key, item in value.items()}
    return _text(value)


_SCALARS: dict[str, Convert] = {"bool": _exactly(bool), "int": _exactly(int), "float": _float, "str": _text}
