"""Many configs of one stage that differ in numbers: what they share is read, typed and checked once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

Load = Callable[[Sequence[str]], Any]


class Variants:
    """Configs with some keys changed, each the same as `load` of its `key=value` overrides gives."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.bases: dict[Any, Any] = {}
        self.checked: set[int] = set()  # ids of the bases' sections: their check() has passed

    def make(self, changes: Mapping[str, Any], overrides: Sequence[str]) -> Any:
        """The config with these values (by dotted key), `overrides` being the same as text.

        It shares sections with others: change nothing in it. Raises UserError as `load` does.
        """
        # Text and lists are OmegaConf's to read: a base for each combination of them.
        others = tuple((key, repr(value)) for key, value in sorted(changes.items()) if not _is_number(value))
        kind = (frozenset(changes), others)
        if kind in self.bases:
            config = _with_numbers(self.bases[kind], {k: v for k, v in changes.items() if _is_number(v)})
            if config is not None:
                self._check(config)
                return config
        config = self.load(overrides)
        if kind not in self.bases:
            self.bases[kind] = config
            self._remember(config)
        return config

    def _remember(self, config: Any) -> None:
        """`config` has been checked, with all that is in it."""
        self.checked.add(id(config))
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                self._remember(value)

    def _check(self, config: Any) -> None:
        """As runtime.config.check, without the sections that were checked as part of a base."""
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value) and id(value) not in self.checked:
                self._check(value)
        if hasattr(config, "check"):
            config.check()


@cache
def _kinds(schema: type[Any]) -> dict[str, Any]:
    """{field: its type, as written}."""
    return {field.name: field.type for field in dataclasses.fields(schema)}


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float)


def _with_numbers(base: Any, changes: Mapping[str, Any]) -> Any | None:
    """A copy of `base` with these numbers, that shares what they are not in; None where one does not fit its field."""
    config = copy.copy(base)
    own = {id(config)}
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = config
        for section in sections:
            inner = getattr(place, section, None)
            if not dataclasses.is_dataclass(inner):
                return None
            if id(inner) not in own:
                inner = copy.copy(inner)
                own.add(id(inner))
                setattr(place, section, inner)
            place = inner
        kinds = _kinds(type(place))  # type: ignore[arg-type]  # a class can be hashed
        if kinds.get(last) == "float" and type(value) in (int, float):
            setattr(place, last, float(value))
        elif kinds.get(last) == type(value).__name__:
            setattr(place, last, value)
        else:
            return None
    return config
