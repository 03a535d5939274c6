"""The config of imported weights, and the identity of their import. Light: planning imports it, and no torch unless the
weights are timm's or a loader's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from runtime import files
from runtime.config import Config, MachineConfig, added_later, require
from runtime.errors import UserError
from runtime.imports import Imports
from runtime.rundir import Identity

STAGE = "weights"
FORMAT = 1
LOADER = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
Sha256 = Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")]
Loader = Annotated[str | None, Field(pattern=LOADER, description="my_module:function")]


class WeightsConfig(Config):
    """Weights of a network, from one of: a file that is read strictly, with timm's name of its network; a tag of timm's
    weights; a function that returns the network.
    """

    imports: Imports = added_later({})  # own packages, which may have the network
    file: str | None = None  # ~ and $VARIABLES are expanded
    arch: str | None = None  # the network of the file, by timm's name
    timm: str | None = None  # as resnet50.a1_in1k
    loader: Loader = None  # what it returns: eval/sources.py
    args: dict[str, Any] = {}  # of the network, or of the loader
    prefix: str | None = None  # of the network's keys in the file; null: recognised
    ignore: list[str] = []  # beginnings of keys (after the prefix) to leave out
    # Of the file (with a loader: of the tensors); null: computed. With it other weights are refused, and what was
    # imported needs its file no more.
    sha256: Sha256 = None
    machine: MachineConfig = MachineConfig()

    def check(self) -> None:
        given = [name for name in ("file", "timm", "loader") if getattr(self, name) is not None]
        require(len(given) == 1, "weights", given or "none", "one of file (with arch), timm and loader")
        require(
            (self.arch is not None) == (given == ["file"]),
            "arch",
            self.arch,
            "timm's name of the network beside `file`, as resnet50, and null without a file",
        )
        plain = self.prefix is None and not self.ignore
        require(plain or given == ["file"], "prefix and ignore", [self.prefix, self.ignore], "for a file alone")

    @property
    def path(self) -> Path:
        """The file; that of a timm tag is downloaded if it is not in timm's cache."""
        if self.timm is None:
            return Path(os.path.expandvars(self.file or "")).expanduser()
        from eval.sources import tag_file  # loads torch

        return tag_file(self.timm)

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments, as BackboneConfig takes them; of a loader, its name and arguments."""
        if self.timm is None:
            return self.arch or self.loader or "", self.args
        arch, _, tag = self.timm.partition(".")
        return arch, self.args | {"pretrained_cfg": tag}


def identity(config: WeightsConfig) -> Identity:
    """Name the import by its content, never by its place. UserError if the content is unknown and cannot be read."""
    digest = config.sha256 or digest_of(config)
    name, args = config.network
    weights: dict[str, Any] = {"sha256": digest}
    weights |= {} if config.prefix is None else {"prefix": config.prefix}
    weights |= {"ignore": sorted(config.ignore)} if config.ignore else {}
    weights |= {key: value for key in ("timm", "loader") if (value := getattr(config, key)) is not None}
    values = {"model": {"backbone": {"name": name, "args": args}}, "weights": weights}
    values |= {"imports": config.imports} if config.imports else {}
    return Identity(STAGE, f"{name.rpartition(':')[2]}-of-{digest[:6]}", FORMAT, values)


def digest_of(config: WeightsConfig) -> str:
    """Return the SHA-256 of the file, or of a loader's tensors. UserError if they cannot be read, or are not those that
    the config expects."""
    if config.loader is not None:
        from eval.sources import call_loader, digest_of_tensors  # loads torch

        source = f"loader {config.loader}"
        digest = digest_of_tensors(call_loader(config.loader, config.args).trunk.state_dict())
    else:
        source, path = f"weights {config.timm or config.path}", config.path
        if not path.is_file():
            hint = "; is that variable of the environment set?" if "$" in str(path) else ""
            raise UserError(f"{source} do not exist; expected a checkpoint file{hint}")
        digest = files.sha256(path)
    if config.sha256 not in (None, digest):
        raise UserError(f"{source} have the SHA-256 {digest}; expected {config.sha256}, another file")
    return digest
