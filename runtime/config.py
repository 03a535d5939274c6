"""Configs: pydantic models, YAML files that fill them, `key=value` overrides; nothing unknown passes.

A config class derives from `Config`. Types and `Field` say what a value may be; `check(self)` calls `require` for what
they cannot say, as one field that limits another. A section named `machine` holds what cannot change a result (workers,
device, paths) and stays out of a run's identity. Light: planning a study imports it, and neither torch nor timm.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from runtime import files
from runtime.errors import UserError
from vicregl.errors import InvalidInputError

T = TypeVar("T", bound="Config")
Layer = tuple[str, dict[str, Any]]  # where the values come from, and the values
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
HeldOut = Annotated[float, Field(ge=0, lt=1)]  # a share that leaves something to train on
DurationText = Annotated[str, Field(description='a number and its unit, as "1000 steps" or "100 epochs"')]
_ADDED_LATER = "added_later"


class Config(BaseModel):
    """A section of settings: frozen, checked when it is made, closed to unknown keys and to values of another type."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def check(self) -> None:
        """Refuse, by `require`, what types cannot say."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        self.check()
        return self

    def replace(self: T, **changes: Any) -> T:
        """A checked copy with these fields changed."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


class MachineConfig(Config):
    """What cannot change a result. Every stage's config has it as `machine`."""

    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    threads: NonNegativeInt = 0  # of torch on the CPU; 0: torch's own choice
    workers: NonNegativeInt = 0  # data loading processes; 0: in the main process
    runs: str = "runs"  # where run directories are made
    log_seconds: NonNegativeFloat = 10.0  # between two printed lines


class EvalMachineConfig(MachineConfig):
    save_seconds: NonNegativeFloat = 60.0  # between two checkpoints; 0: as often as can be


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Stop with a message that names the key, the value and what is allowed, unless `ok`."""
    if not ok:
        raise UserError(f"config: {key} = {value!r} is not possible; allowed: {allowed}")


def load(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """The config of class `schema` from a YAML file (its `base:` file first) and `key=value` overrides.

    Raises UserError, before anything is made, for a file that is missing or not YAML, an unknown key, a wrong type, or
    an impossible value.
    """
    layers = [] if path is None else file_layers(Path(path))
    return from_layers(schema, [*layers, ("command line", parse_overrides(overrides))])


def from_layers(schema: type[T], layers: Sequence[Layer]) -> T:
    """Merge the layers, the last one wins, over the schema's defaults."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = merge(values, layer)
    try:
        # As JSON, a list may fill a tuple and a mapping a section; otherwise no type is converted into another.
        return schema.model_validate_json(json.dumps(values, ensure_ascii=False).encode())
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], layers, schema)) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{layers[-1][0]}: {error.object[error.start :][:80]!r} has bytes that are no text in this locale; use a "
            "locale of UTF-8, as by LC_ALL=C.UTF-8, or names in ASCII"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:  # a date, a number that JSON does not have
        raise UserError(f"{layers[-1][0]}: expected text, numbers, lists and mappings: {error}") from error


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` over them: mappings are merged key by key, anything else is replaced."""
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], change) if both else change
    return merged


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}"""
    result: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def file_layers(path: Path, above: Sequence[Path] = ()) -> list[Layer]:
    """The values of a YAML file and, before it, of the files that its `base:` names; `above`: what named it."""
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return [(str(path), values)]
    if not isinstance(base, str) or path.resolve() in above:
        what = f"leads in a circle, to {path}" if path.resolve() in above else "is not the name of a file"
        raise UserError(
            f"config file {path}: base: {base!r} {what}; expected another config file, relative to this one"
        )
    return [*file_layers(path.parent / base, [*above, path.resolve()]), (str(path), values)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. UserError where it is missing, not YAML, or something else."""
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} does not exist{hint}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not readable YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {path} holds a {type(values).__name__}, expected `key: value` lines")
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 1e-6 as a number (YAML 1.2) and a key at most once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if wrong := [key for key in keys if not isinstance(key, str)]:
            raise yaml.constructor.ConstructorError(None, None, f"key {wrong[0]!r} is not text", node.start_mark)
        if repeated := [key for key, count in Counter(keys).items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text that somebody wrote. Raises yaml.YAMLError."""
    return files.parse_yaml(text, _Loader)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as nested values; each value is YAML."""
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


def _explain(error: ErrorDetails, layers: Sequence[Layer], schema: type[BaseModel]) -> str:
    """The first problem of a config as one sentence: where it stands, the key, the value, what is allowed."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section = ".".join([*path[:-1], ""])
        known = [f"{section}{name}" for name in _names(schema, path[:-1])]
        near = get_close_matches(key, [*keys_of(schema), *known], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        return f"{_origin(layers, path)}: unknown key {key!r}; {hint}allowed here: {', '.join(known)}"
    if error["type"] == "missing" and path[-1].isdigit():
        return f"{_origin(layers, path)}: {'.'.join(path[:-1])} has {path[-1]} values, too few"
    if error["type"] == "missing":
        return f"{layers[-1][0]}: {key} is missing; it has no default"
    if isinstance(cause := error.get("ctx", {}).get("error"), InvalidInputError):
        # The library names its options without the section that they have in a config.
        return f"{_origin(layers, path)}: {'.'.join([*path, ''])}{cause}"
    allowed = _allowed(error, _field(schema, path))
    return f"{_origin(layers, path)}: {key} = {error['input']!r} is not possible; allowed: {allowed}"


def _origin(layers: Sequence[Layer], path: Sequence[str]) -> str:
    """The last layer that sets the key, or the section that it is in."""
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
    if error["type"] == "string_pattern_mismatch" and field is not None:
        return str(field.description)
    limits = _limits(context) if field is None else _limits_of(field) or _limits(context)
    if error["type"] in ("too_long", "too_short"):
        lengths = {"min_length": "ge", "max_length": "le"}
        return f"{_limits({lengths[key]: value for key, value in context.items() if key in lengths})} values"
    if "greater" in error["type"] or "less" in error["type"]:
        return limits
    kind = _KINDS.get(error["type"].partition("_")[0], error["msg"])
    more = limits or (field.description if field is not None else None)
    return f"{kind}, {more}" if more else kind


def _limits_of(field: FieldInfo) -> str:
    """The range of a field in words, from its constraints."""
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
    """The field of that path; None inside a list, an open mapping or another library's section."""
    section = _section(schema, path[:-1])
    field = getattr(section, "model_fields", {}).get(path[-1]) if path else None
    return field if isinstance(field, FieldInfo) else None


def _names(schema: Any, path: Sequence[str]) -> list[str]:
    """The keys of the section at that path."""
    section = _section(schema, path)
    fields = getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {})
    return [name for name, field in fields.items() if getattr(field, "init", True) is not False]


def _section(schema: Any, path: Sequence[str]) -> Any:
    """The class that holds the keys below that path, through mappings of sections too."""
    for name in path:
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            schema = get_type_hints(schema).get(name) if isinstance(schema, type) else None
    return schema


@cache
def types_of(schema: Any) -> dict[str, Any]:
    """Every dotted key of a config class, with its type."""
    types: dict[str, Any] = {}
    for name in _names(schema, ()):
        kind = get_type_hints(schema)[name]
        inner = types_of(kind) if _names(kind, ()) else {}
        types |= {f"{name}.{key}": value for key, value in inner.items()} or {name: kind}
    return types


def keys_of(schema: Any) -> list[str]:
    """Every dotted key of a config class."""
    return list(types_of(schema))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values; an empty mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def lookup(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a dotted key in nested mappings; `default` where there is none, or a section."""
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return default if isinstance(value, Mapping) and value else value


def to_dict(config: BaseModel) -> dict[str, Any]:
    """The resolved config as plain dicts, lists, numbers and strings."""
    return config.model_dump(mode="json")


def added_later(default: Any, **constraints: Any) -> Any:
    """A field that a config class got after runs of it were made: at its default it stays out of their identity.

    So those runs keep their names and stay done. The default must mean what the code did before.
    """
    return Field(default, json_schema_extra={_ADDED_LATER: True}, **constraints)


def split_machine(config: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what identifies the run, what cannot change its result) of a stage's config."""
    values = to_dict(config)
    machine = values.pop("machine", {})
    for *sections, name in _added_keys(type(config)):
        place, own = values, config
        for section in sections:
            place, own = place[section], getattr(own, section)
        if getattr(own, name) == type(own).model_fields[name].default:
            del place[name]
    return values, machine


def added_defaults(config: BaseModel) -> dict[str, Any]:
    """Dotted key -> default of every field that was added later, in a config and in its sections."""
    defaults = to_dict(type(config)())
    return flatten(nested({".".join(path): reduce(getitem, path, defaults) for path in _added_keys(type(config))}))


@cache
def _added_keys(schema: type[BaseModel]) -> list[tuple[str, ...]]:
    """The path of every field that was added later."""
    return list(_iterate_added(schema))


def _iterate_added(schema: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in schema.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get(_ADDED_LATER):
            yield (name,)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and name != "machine":
            yield from ((name, *inner) for inner in _iterate_added(field.annotation))


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
        finite = math.isfinite(number) and number >= 0
        valid = finite and unit in ("steps", "epochs") and (unit == "epochs" or number == int(number))
        require(valid, key, text, 'a number and its unit, as "1000 steps" or "100 epochs"')
        return cls(number, unit)

    def steps(self, steps_per_epoch: int) -> int:
        return round(self.amount * (steps_per_epoch if self.unit == "epochs" else 1))
