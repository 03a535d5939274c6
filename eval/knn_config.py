"""The config of a kNN evaluation, and the name that it gives the run. Light: planning imports it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from data.config import DataConfig
from runtime.config import Config, HeldOut, MachineConfig, PositiveInt, added_later, require, split_machine
from runtime.rundir import Identity

STAGE = "knn"
# Raise one when the same config comes to measure something else. Of scenes: the held-out slice was by image in 1.
FORMAT, SCENES_FORMAT = 1, 2
PROTOCOL = "knn"


class KnnMachineConfig(MachineConfig):
    chunk_megabytes: PositiveInt = 256  # of the product of validation with training features, at a time


class KnnConfig(Config):
    """Nothing is trained: the nearest training images vote. All of `neighbours` are scored; one of them is the result.

    Which one: `k` where it is set, else the best on a held-out slice of train, whose images join the others for the
    score on val.
    """

    data: DataConfig = DataConfig()
    resize: int = 256  # pixels of the shorter side before the central crop
    image_size: PositiveInt = 224  # pixels
    neighbours: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 20, 100, 200]
    k: int | None = None  # one of `neighbours`; null: chosen on the held-out slice
    temperature: Annotated[float, Field(ge=0.005)] = 0.07  # a neighbour votes with exp(cosine / temperature)
    held_out: HeldOut = 0.02  # of each class of train (of scenes: of its source digits); not used where k is set
    batch_size: PositiveInt = 256
    seed: NonNegativeInt = 0  # of the held-out slice
    # null: ImageNet's, refused for a network of others; imagenet, network (its own), or a tag of timm's weights of it
    normalisation: str | None = added_later(None)
    machine: KnnMachineConfig = KnnMachineConfig()

    def check(self) -> None:
        require(self.resize >= self.image_size, "resize", self.resize, f"image_size ({self.image_size}) or more")
        ks = self.neighbours
        require(len(set(ks)) == len(ks), "neighbours", ks, "each only once")
        require(self.k is None or self.k in ks, "k", self.k, f"one of neighbours {ks}, or null to choose among them")
        alone = self.held_out > 0 or self.fixed_k is not None
        require(
            alone, "held_out", self.held_out, "above 0, because one of several neighbours has to be chosen; or set k"
        )

    @property
    def fixed_k(self) -> int | None:
        """The k of the result where there is nothing to choose."""
        return self.neighbours[0] if len(self.neighbours) == 1 else self.k


def identity(config: KnnConfig, parent_hash: str) -> Identity:
    """The run that evaluates the pretraining run of that hash."""
    slug = f"{config.data.name}-knn-of-{parent_hash[:6]}-seed{config.seed}"
    by_source = config.data.name == "scenes" and config.fixed_k is None
    return Identity(STAGE, slug, SCENES_FORMAT if by_source else FORMAT, split_machine(config)[0], parent_hash)
