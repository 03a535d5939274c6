"""The keys and values of a study: checked against the config of a stage, and written as overrides and as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, get_origin

import yaml

from runtime.config_keys import types_of, without_null
from runtime.errors import UserError
from runtime.yaml_files import parse_yaml


def as_override(key: str, value: Any) -> str:
    """Write `key=value` for a command line, whatever the value's type."""
    if type(value) in (bool, int):  # most of a large grid, and PyYAML is slow
        return f"{key}={str(value).lower()}"
    return f"{key}={_scalar_text(value) if type(value) in (float, str) else _yaml_text(value)}"


def _yaml_text(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("...").strip()  # a scalar's document ends in "..."


@lru_cache(maxsize=10_000)  # a grid has few values, each many times
def _scalar_text(value: float | str) -> str:
    text = _yaml_text(value)
    return text if parse_yaml(text) == value else json.dumps(value)  # the text "1e5", which would be read as a number


def as_text(value: Any) -> Any:
    """Turn lists and mappings into JSON text, which can be compared and shown in a cell; others stay unchanged."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def check_keys(where: str, values: dict[str, Any], schema: type) -> None:
    """Raise UserError, with near names, for a key that the config does not have, or that cannot change a result.

    A section of the config may be set as a whole, and an open mapping (model.backbone.args) takes any key.
    """
    types = types_of(schema)
    known = list(types)
    kinds = {key: without_null(kind) for key, kind in types.items()}
    open_mappings = [key for key, kind in kinds.items() if (get_origin(kind) or kind) is dict]
    for key in values:
        if key.split(".")[0] == "machine":
            raise UserError(
                f"{where}: {key} cannot change a result, so it has no place in a study; give it to the command instead"
            )
        inside = any(key.startswith(f"{mapping}.") for mapping in open_mappings)
        if key not in known and not inside and not any(k.startswith(f"{key}.") for k in known):
            near = get_close_matches(key, known, n=3, cutoff=0.5)
            same_name = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
            hint = " or ".join(dict.fromkeys([*same_name, *near])) or ", ".join(known)
            raise UserError(f"{where}: unknown key {key!r}; did you mean {hint}?")


def require_machine_keys(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of a command that could change a result."""
    for text in overrides:
        if not text.startswith("machine.") or "=" not in text:
            raise UserError(
                f"cannot take {text!r}: a study's runs take machine.*=value here, for example machine.device=cuda; "
                "what changes a result belongs in the study (pretrain.set, evals.<name>.set), and a name of several "
                "words in quotes"
            )
