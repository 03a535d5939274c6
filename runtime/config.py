"""Configs: dataclasses, YAML files that fill them, key=value overrides; nothing unknown passes.

A config class may define `check(self)`, which calls `require` for what its types cannot say. A
field named `machine` holds what cannot change a result (workers, device, paths): it stays out of
the identity of a run.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from runtime.errors import UserError
from runtime.plain import NotPlainError, plain_fields

T = TypeVar("T")
_ADDED_LATER = "added_later"


@dataclass
class MachineConfig:
    """What cannot change a result. Every stage's config has it as `machine`."""

    device: str = "auto"  # auto | cpu | cuda | cuda:1 ...
    threads: int = 0  # of torch on the CPU; 0: torch's own choice
    workers: int = 0  # data loading processes; 0: in the main process
    runs: str = "runs"  # where run directories are made
    log_seconds: float = 10.0  # between two printed lines

    def check(self) -> None:
        require(self.threads >= 0, "machine.threads", self.threads, "0 (torch's choice) or more")
        require(self.workers >= 0, "machine.workers", self.workers, "0 (in the main process) or more")


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Stop with a message that names the key, the value and what is allowed, unless `ok`."""
    if not ok:
        raise UserError(f"config: {key} = {value!r} is not possible; allowed: {allowed}")


def load(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """The config of class `schema` from a YAML file (a `base:` file first) and `key=value` overrides.

    Raises UserError, before anything is made, for a file that is not there or not YAML, an unknown
    key, a wrong type, or a value that a `check()` refuses.
    """
    layers = [] if path is None else file_layers(Path(path))
    layers.append(("command line", _parse_overrides(overrides)))
    return from_layers(schema, layers)


def from_layers(schema: type[T], layers: Sequence[tuple[str, DictConfig]]) -> T:
    """Merge (where it came from, values) one after the other over the schema's defaults."""
    config = OmegaConf.structured(schema)
    for origin, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(_explain(error, origin, schema)) from error
    try:
        result = cast(T, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, layers[-1][0] if layers else "defaults", schema)) from error
    check(result)
    return result


def check(config: Any) -> None:
    """Call `check()` of a config and of every config in it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
    if hasattr(config, "check"):
        config.check()


def file_layers(path: Path) -> list[tuple[str, DictConfig]]:
    """(file, its values) of a YAML file and, before it, of the files that its `base:` names."""
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} does not exist{hint}")
    try:
        layer = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not readable YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"config file {path} holds a {type(layer).__name__}, expected `key: value` lines")
    base = layer.pop("base", None)
    before = [] if base is None else file_layers(path.parent / base)
    return [*before, (str(path), layer)]


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"cannot read the override {override!r}; expected key=value, for example loss.alpha=0.9")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read the overrides {list(overrides)}: {error}") from error


def _explain(error: Exception, origin: str, schema: type) -> str:
    key = getattr(error, "full_key", None) or "?"
    first_line = str(getattr(error, "msg", None) or error).splitlines()[0]
    if isinstance(error, ConfigKeyError) or "not in" in first_line:
        allowed = keys_of(schema)
        near = get_close_matches(key, allowed, n=3, cutoff=0.5)
        section = [k for k in allowed if k.rpartition(".")[0] == key.rpartition(".")[0]]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{origin}: unknown key {key!r}; {hint}allowed here: {', '.join(section or allowed)}"
    return f"{origin}: wrong value for {key!r}: {first_line}"


def keys_of(schema: type) -> list[str]:
    """Every dotted key of a config class."""
    return list(flatten(OmegaConf.to_container(OmegaConf.structured(schema))))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values; an empty mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def lookup(values: dict[str, Any], key: str, default: Any) -> Any:
    """flatten(values).get(key, default), without flattening."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return default
        found = found[part]
    return default if isinstance(found, dict) and found else found


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain dicts, lists, numbers and strings."""
    try:
        return plain_fields(config)
    except NotPlainError:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def added_later(default: Any) -> Any:
    """A field that a config class got after runs of it were made: at its default it stays out of their identity.

    So those runs keep their names and stay done. The default must mean what the code did before.
    """
    make = (lambda: default) if default.__hash__ else (lambda: copy.deepcopy(default))
    return dataclasses.field(default_factory=make, metadata={_ADDED_LATER: True})


def split_machine(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what identifies the run, what cannot change its result) of a stage's config."""
    values = to_dict(config)
    machine = values.pop("machine", {})
    _drop_added_defaults(config, values)
    return values, machine


def _drop_added_defaults(config: Any, values: dict[str, Any]) -> None:
    for name, default in _added_fields(type(config)):  # type: ignore[arg-type]  # a class can be hashed
        if default is not None and getattr(config, name) == default():
            values.pop(name, None)
        elif type(values.get(name)) is dict and dataclasses.is_dataclass(value := getattr(config, name)):
            _drop_added_defaults(value, values[name])


def added_defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> default of every field that was added later, in a config and in the configs that it holds."""
    found: dict[str, Any] = {}
    for name, default in _added_fields(type(config)):  # type: ignore[arg-type]  # a class can be hashed
        value = getattr(config, name) if default is None else default()
        if default is not None:
            found |= flatten({name: to_dict(value) if dataclasses.is_dataclass(value) else value}, prefix)
        elif dataclasses.is_dataclass(value):
            found |= added_defaults(value, f"{prefix}{name}.")
    return found


@cache
def _added_fields(schema: type) -> list[tuple[str, Callable[[], Any] | None]]:
    """(name, what makes its default if it was added later) of each field; studies ask for it thousands of times."""
    fields = dataclasses.fields(schema)
    return [(f.name, cast(Any, f.default_factory) if f.metadata.get(_ADDED_LATER) else None) for f in fields]


def identity_hash(*parts: Any) -> str:
    """Ten hexadecimal digits of the SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit, read from "1000 steps" or "100 epochs"."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str, key: str = "duration") -> Duration:
        amount, _, unit = text.strip().partition(" ")
        unit = unit.strip().rstrip("s") + "s"
        try:
            number = float(amount)
        except ValueError:
            number = -1.0
        valid = number >= 0 and unit in ("steps", "epochs") and (unit == "epochs" or number == int(number))
        require(valid, key, text, 'a number and its unit, as "1000 steps" or "100 epochs"')
        return cls(number, unit)

    def steps(self, steps_per_epoch: int) -> int:
        return round(self.amount * (steps_per_epoch if self.unit == "epochs" else 1))
