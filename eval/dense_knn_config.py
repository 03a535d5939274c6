"""The config of a dense kNN evaluation, and the name that it gives the run. Light: planning imports it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from data.config import DataConfig
from runtime.config import Config, MachineConfig, PositiveInt, require, split_machine
from runtime.rundir import Identity

STAGE = "dense_knn"
FORMAT = 1  # raise it when the same config comes to measure something else
PROTOCOL = "dense kNN"


class DenseKnnMachineConfig(MachineConfig):
    chunk_megabytes: PositiveInt = 256  # of the product of validation with memory positions, at a time


class DenseKnnConfig(Config):
    """Nothing is trained: the nearest positions of training images, with the labels below them, vote.

    All of `neighbours` are scored in one pass; the first is the result, the others stand beside it.
    """

    data: DataConfig = DataConfig(name="voc")
    image_size: PositiveInt = 512  # pixels a side: images become squares; masks stay as they are
    memory: Annotated[int, Field(ge=1)] | None = 102_400  # positions of training images; null: all of them
    neighbours: Annotated[list[PositiveInt], Field(min_length=1)] = [30]
    temperature: Annotated[float, Field(ge=0.005)] = 0.02  # a neighbour votes with exp(cosine / temperature)
    batch_size: PositiveInt = 32
    seed: NonNegativeInt = 0  # of the positions that are kept
    # null: ImageNet's, refused for a network of others; imagenet, network (its own), or a tag of timm's weights of it
    normalisation: str | None = None
    machine: DenseKnnMachineConfig = DenseKnnMachineConfig()

    def check(self) -> None:
        ks = self.neighbours
        require(len(set(ks)) == len(ks), "neighbours", ks, "each only once")
        most = self.memory
        require(most is None or max(ks) <= most, "neighbours", ks, f"at most memory ({most}), which holds so many")


def identity(config: DenseKnnConfig, parent_hash: str) -> Identity:
    """Name the run that evaluates the pretraining run of that hash."""
    slug = f"{config.data.name}-dense-knn-of-{parent_hash[:6]}-seed{config.seed}"
    return Identity(STAGE, slug, FORMAT, split_machine(config)[0], parent_hash)
