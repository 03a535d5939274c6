"""Configs: pydantic models that YAML files and `key=value` overrides fill; unknown keys are errors.

A config class derives from `Config`. Types and `Field` say what a value may be; `check(self)` calls `require` for what
they cannot express, such as one field that limits another. A section named `machine` holds what cannot change a result
(workers, device, paths) and stays out of a run's identity. Neither torch nor timm is imported here, so that planning a
study is quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from runtime import files
from runtime.config_keys import Layer, explain, flatten, merge_layers
from runtime.errors import UserError
from runtime.imports import Imports
from runtime.loggers import LoggerName
from runtime.yaml_files import dump_yaml, file_layers, parse_overrides

T = TypeVar("T", bound="Config")
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
HeldOut = Annotated[float, Field(ge=0, lt=1)]  # a share that leaves something to train on
# What a table of results says of every run, beside its config: no key of a config may have such a name.
COLUMNS = {"name", "stage", "run", "hash", "format", "state", "config_file", "result", "provenance"}
ADDED_LATER: dict[str, Any] = {"added_later": True}  # also the metadata of a dataclass's field; see `added_later`


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit, read from "1000 steps" or "100 epochs"."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Raise ValueError for a text without a unit, below 0, or of a part of a step."""
        amount, _, unit = text.strip().partition(" ")
        duration = cls(float(amount), unit.strip().removesuffix("s") + "s")
        whole = duration.unit == "epochs" or duration.amount.is_integer()
        if duration.unit not in ("steps", "epochs") or not 0 <= duration.amount < math.inf or not whole:
            raise ValueError(f"{text!r} is not a duration")
        return duration

    def steps(self, steps_per_epoch: int) -> int:
        return round(self.amount * (steps_per_epoch if self.unit == "epochs" else 1))


def _check_duration(text: str) -> str:
    Duration.parse(text)
    return text  # a config keeps the text: it is part of a run's identity


DurationText = Annotated[
    str,
    AfterValidator(_check_duration),
    Field(description='a number and its unit, as "1000 steps" or "100 epochs"'),
]
_MOMENT = 'a whole number and its unit, as "500 steps" or "10 epochs"'


def parse_moment(text: str) -> str:
    """Write a moment in one way, which is part of a run's identity: "1 epoch" -> "1 epochs". ValueError for others."""
    try:
        moment = Duration.parse(text)
    except ValueError:
        raise ValueError(_MOMENT) from None
    if moment.amount < 1 or not moment.amount.is_integer():
        raise ValueError(_MOMENT)
    return f"{int(moment.amount)} {moment.unit}"


# When a pretraining keeps a checkpoint, counted from its start.
Moment = Annotated[str, AfterValidator(parse_moment), Field(description=_MOMENT)]


def kept_checkpoint(moment: str) -> str:
    """Return the file that a pretraining keeps at the moment, relative to its directory."""
    number, unit = moment.split()
    return f"checkpoints/step-{int(number):08}.pt" if unit == "steps" else f"checkpoints/epoch-{int(number):04}.pt"


class Config(BaseModel):
    """A section of settings: frozen, checked when it is made, closed to unknown keys and to values of another type."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def check(self) -> None:
        """Call `require` for what types cannot express."""

    def places(self) -> dict[str, Any]:
        """Return the fields that say where something is, and not what: in a run's identity they are null."""
        return {}

    @model_validator(mode="after")
    def _check(self) -> Config:
        self.check()
        return self

    def replace(self: T, **changes: Any) -> T:
        """Return a checked copy with these fields changed."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def added_later(default: Any, **constraints: Any) -> Any:
    """Declare a field that was added when runs existed already: at its default it stays out of a run's identity.

    So those runs keep their names and stay done. The default must mean what the code did before. Only for a field of a
    section that is always there: not of one that may be null, nor of one in a list or a mapping.
    """
    return Field(default, json_schema_extra=ADDED_LATER, **constraints)


class Importing(Config):
    """The packages of a config whose class one of them may register; its other keys are not looked at."""

    model_config = ConfigDict(extra="ignore")
    imports: Imports = {}


class MachineConfig(Config):
    """What cannot change a result. Every stage's config has it as `machine`."""

    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    threads: NonNegativeInt = 0  # of torch on the CPU; 0: torch's own choice
    workers: NonNegativeInt = 0  # data loading processes; 0: in the main process
    runs: str = "runs"  # where run directories are made
    log_seconds: NonNegativeFloat = 10.0  # between two printed lines
    loggers: list[LoggerName] = []  # of rows and scores, beside metrics.jsonl (runtime/loggers.py)
    group: str = ""  # of the run in loggers: its study, which a sweep sets


class EvalMachineConfig(MachineConfig):
    save_seconds: NonNegativeFloat = 60.0  # between two checkpoints; 0: as often as possible


class ComputeConfig(Config):
    """How the network of an evaluation computes: a part of the protocol, because both change scores by rounding.

    Outputs are float32 whatever the pass, and so is all that is computed of them.
    """

    imports: Imports = added_later({})  # own packages; first, because what they register may be named below
    # Of the network, by autocast. float32 is torch's: on GPUs that have TF32, convolutions use it.
    precision: Literal["float32", "bfloat16"] = added_later("float32")
    channels_last: bool = added_later(False)  # the memory layout of convolutions' weights, and so of maps

    def named(self, protocol: str) -> str:
        """Append what differs from the reference to the protocol's name: "linear, bfloat16, channels last"."""
        precision = [] if self.precision == "float32" else [self.precision]
        return ", ".join([protocol, *precision, *(["channels last"] if self.channels_last else [])])


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise a UserError that names the key, the value and what is allowed, unless `ok`."""
    if not ok:
        raise UserError(f"config: {key} = {value!r} is not possible; allowed: {allowed}")


def parse_command(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse a command line on which overrides may stand anywhere, as `key=value` or `--key=value`."""

    def plain(word: str) -> str:
        name = word.partition("=")[0]
        # argparse takes the beginning of an option's name for the whole
        is_option = any(option.startswith(name) for option in parser._option_string_actions)
        return word if is_option or not re.match(r"--[\w.]+=", word) else word[2:]

    return parser.parse_intermixed_args([plain(word) for word in argv])


def load(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Load a config of class `schema` from a YAML file, by path or name, and `key=value` overrides.

    UserError for a file that is missing or not YAML, an unknown key, a wrong type, or an impossible value.
    """
    layers = [] if path is None else file_layers(find_file(schema, path))
    # One at a time: `args={} args.depth=2` clears first, which would be lost where the two are merged.
    given = [("command line", parse_overrides([override])) for override in overrides]
    return from_layers(schema, [*layers, *(given or [("command line", {})])])


def find_file(schema: type[Config], name: str | Path) -> Path:
    """Return the YAML file that a path or a name stands for; a stage's configs lie in its package's folder configs/.

    Those of evaluations, which say their `stage`, in eval/configs/, whichever package has the class.
    """
    package = "eval" if hasattr(schema, "stage") else schema.__module__.partition(".")[0]
    return files.find_yaml(name, f"{package}/configs", "config file")


def from_layers(schema: type[T], layers: Sequence[Layer]) -> T:
    """Merge the layers over the schema's defaults; later layers win."""
    values = merge_layers(layers)
    try:
        # As JSON, a list may fill a tuple and a mapping a section; otherwise no type is converted into another.
        config = schema.model_validate_json(json.dumps(values, ensure_ascii=False).encode())
    except ValidationError as error:
        raise UserError(explain(error.errors()[0], layers, schema)) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{layers[-1][0]}: {error.object[error.start :][:80]!r} has bytes that are not text in this locale; "
            "use a locale of UTF-8 (LC_ALL=C.UTF-8), or ASCII names"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:  # a date, a number that JSON does not have
        raise UserError(f"{layers[-1][0]}: expected text, numbers, lists and mappings: {error}") from error
    if not _is_finite(values):  # in a mapping of any content: recorded as null, all of them would name one run
        known = [(origin, key, value) for origin, layer in layers for key, value in flatten(layer).items()]
        origin, key, value = next(each for each in reversed(known) if not _is_finite(each[2]))
        raise UserError(f"{origin}: {key} = {value!r} is not possible; allowed: finite numbers")
    return config


def _is_finite(values: Any) -> bool:
    """Return whether JSON holds the values: it has neither .inf nor .nan."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        return False
    return True


def as_yaml(config: BaseModel) -> str:
    """Write the resolved config as a file that `load` reads."""
    return dump_yaml(to_dict(config))


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Return the resolved config as plain dicts, lists, numbers and strings."""
    return config.model_dump(mode="json")


def split_machine(config: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stage's config into what identifies the run and what cannot change its result."""
    values = to_dict(config)
    for key in places(config):
        *sections, name = key.split(".")
        reduce(getitem, sections, values)[name] = None
    machine = values.pop("machine", {})
    for key, default in added_defaults(type(config)).items():
        *sections, name = key.split(".")
        section = reduce(getitem, sections, values)
        if section[name] == default:
            del section[name]
    return values, machine


def places(config: BaseModel) -> dict[str, Any]:
    """Return what the sections of a config leave out of a run's identity as a place, by dotted key."""
    own = config.places() if isinstance(config, Config) else {}
    sections = {name: value for name in type(config).model_fields if isinstance(value := getattr(config, name), Config)}
    return own | {f"{name}.{key}": place for name, part in sections.items() for key, place in places(part).items()}


@cache
def added_defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the default of every field that was added later, by dotted key."""
    defaults = to_dict(schema())
    return {key: reduce(getitem, key.split("."), defaults) for key in _added_keys(schema)}


def _added_keys(schema: type[BaseModel]) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        extra, kind = field.json_schema_extra, field.annotation
        if isinstance(extra, dict) and extra.items() >= ADDED_LATER.items():
            yield name
        elif is_dataclass(kind):
            yield from (f"{name}.{part.name}" for part in fields(kind) if part.metadata.items() >= ADDED_LATER.items())
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and name != "machine":
            yield from (f"{name}.{inner}" for inner in _added_keys(kind))


def identity_hash(*parts: Any) -> str:
    """Return ten hexadecimal digits of the SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
