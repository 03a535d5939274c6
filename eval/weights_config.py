"""The config of weights from a file, and the identity of their import. Light: planning imports it, and no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from runtime import files
from runtime.config import Config, MachineConfig
from runtime.errors import UserError
from runtime.rundir import Identity

STAGE = "weights"
FORMAT = 1


class WeightsConfig(Config):
    """A file that is read strictly as weights of timm's network `arch` made with `args`."""

    file: str  # ~ and $VARIABLES are expanded
    arch: str
    args: dict[str, Any] = {}
    prefix: str | None = None  # of the network's keys in the file; null: recognised
    ignore: list[str] = []  # beginnings of keys (after the prefix) to leave out
    # Of the file; null: computed. With it another file is refused, and what was imported needs its file no more.
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")] = None
    machine: MachineConfig = MachineConfig()

    @property
    def path(self) -> Path:
        return Path(os.path.expandvars(self.file)).expanduser()


def identity(config: WeightsConfig) -> Identity:
    """Name the import by the file's content, never by its place. UserError if the content is unknown and there is no
    file."""
    digest = config.sha256 or digest_of_file(config)
    weights: dict[str, Any] = {"sha256": digest}
    weights |= {} if config.prefix is None else {"prefix": config.prefix}
    weights |= {"ignore": sorted(config.ignore)} if config.ignore else {}
    values = {"model": {"backbone": {"name": config.arch, "args": config.args}}, "weights": weights}
    return Identity(STAGE, f"{config.arch}-of-{digest[:6]}", FORMAT, values)


def digest_of_file(config: WeightsConfig) -> str:
    """Return the file's SHA-256. UserError if it does not exist, or is not the one that the config expects."""
    if not config.path.is_file():
        hint = "; is that variable of the environment set?" if "$" in str(config.path) else ""
        raise UserError(f"weights {config.path} do not exist; expected a checkpoint file{hint}")
    digest = files.sha256(config.path)
    if config.sha256 not in (None, digest):
        raise UserError(f"weights {config.path} have the SHA-256 {digest}; expected {config.sha256}, another file")
    return digest
