"""The configs of the evaluations, and the identity of their runs. Light: planning a study imports it, and no torch.

A package of the user's own adds evaluations by `register_evaluation`; configs and studies name it in `imports`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from data.config import DataConfig, Interpolation, NormalisationChoice
from eval.segmentation_config import SegmentationConfig
from eval.subset import digest
from runtime.config import (
    COLUMNS,
    ComputeConfig,
    EvalMachineConfig,
    Fraction,
    HeldOut,
    MachineConfig,
    Momentum,
    PositiveInt,
    added_later,
    require,
    split_machine,
)
from runtime.config_keys import types_of
from runtime.errors import UserError
from runtime.rundir import Identity


class PooledConfig(ComputeConfig):
    """An evaluation of pooled features: the mean of the map's positions, or the class token of a transformer."""

    pooled: Literal["mean", "class_token"] = added_later("mean")

    def named(self, protocol: str) -> str:
        return super().named(protocol if self.pooled == "mean" else f"{protocol}, class token")


class LinearConfig(PooledConfig):
    """Several learning rates are trained in one backbone pass; the held-out slice of train chooses one.

    mode `augmented` crops every training image anew each epoch: the published protocol. mode `cached` computes the
    features of the uncropped training images once, which is many times quicker and scores differently: its results
    have the protocol name "linear cached". `finetune` trains the backbone too ("finetuned"). `subset` trains on the
    images of a list alone; its name joins the protocol's ("linear 1percent").
    """

    stage: ClassVar[str] = "linear"

    data: DataConfig = DataConfig()
    mode: Literal["augmented", "cached"] = "augmented"
    resize: int = 256  # pixels of the shorter side before the central crop, at test time
    image_size: PositiveInt = 224  # pixels
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)  # of the image's area; augmented
    flip: bool = True  # augmented
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.02]
    momentum: Momentum = 0.9
    weight_decay: NonNegativeFloat = 1e-6
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 256
    # A share of each class of train (in scenes, of its source digits) to choose the rate on; 0 with a single rate.
    held_out: HeldOut = 0.02
    seed: NonNegativeInt = 0
    subset: str | None = added_later(None)  # path of a text file: an image a line, as n01440764_10026.JPEG
    finetune: bool = added_later(False)  # augmented, with one of learning_rates
    backbone_learning_rate: float = added_later(0.0)  # with finetune; learning_rates is the head's
    normalisation: NormalisationChoice = added_later(None)
    interpolation: Interpolation = added_later("bilinear")  # of every resize
    machine: EvalMachineConfig = EvalMachineConfig()

    def check(self) -> None:
        require(self.resize >= self.image_size, "resize", self.resize, f"image_size ({self.image_size}) or more")
        low, high = scale = self.crop_scale
        require(0 < low <= high, "crop_scale", list(scale), "[low, high] within 0 to 1")
        rates = self.learning_rates
        require(len(set(rates)) == len(rates), "learning_rates", rates, "each only once")
        several = "above 0, because several learning_rates have to be chosen from"
        require(self.held_out > 0 or len(rates) == 1, "held_out", self.held_out, several)
        plain = self.subset is None or re.fullmatch(r"[\w.%+-]+", self.subset_name or "") is not None
        require(plain, "subset", self.subset, "a file whose name, which names the run, has letters, digits and .%+-_")
        self._check_finetune()

    def _check_finetune(self) -> None:
        rate = self.backbone_learning_rate
        if not self.finetune:
            frozen = "0, because the backbone is frozen; or set finetune=true"
            require(rate == 0, "backbone_learning_rate", rate, frozen)
            return
        require(rate > 0, "backbone_learning_rate", rate, "above 0, because finetune is true")
        augmented = "augmented, because features of a finetuned network change"
        require(self.mode == "augmented", "mode", self.mode, augmented)
        one = "one, because finetune is true: heads of several would train one backbone together. One run a rate"
        require(len(self.learning_rates) == 1, "learning_rates", self.learning_rates, one)

    @property
    def subset_name(self) -> str | None:
        """The list's file name without its suffix, as 1percent."""
        return None if self.subset is None else Path(self.subset).stem

    @property
    def protocol(self) -> str:
        kind = "finetuned" if self.finetune else {"augmented": "linear", "cached": "linear cached"}[self.mode]
        return self.named(kind if self.subset is None else f"{kind} {self.subset_name}")

    @property
    def label(self) -> str:
        kind = "finetuned" if self.finetune else self.mode
        return kind if self.subset is None else f"{kind}-{self.subset_name}"

    @property
    def format_version(self) -> int:
        # In 1, the held-out slice of scenes was chosen by image; in 2, by source digit.
        return 2 if self.data.name == "scenes" and self.held_out > 0 else 1


class KnnMachineConfig(MachineConfig):
    # Of the product of features of val and train, at a time; null: a quarter of what is free on a GPU, 256 on a CPU.
    chunk_megabytes: PositiveInt | None = None


class KnnConfig(PooledConfig):
    """Nothing is trained: the nearest training images vote. All of `neighbours` are scored; one of them is the result.

    That is `k` if it is set, else the best on a held-out slice of train, whose images vote for the score on val too.
    """

    stage: ClassVar[str] = "knn"
    label: ClassVar[str] = "knn"

    data: DataConfig = DataConfig()
    resize: int = 256  # pixels of the shorter side before the central crop
    image_size: PositiveInt = 224  # pixels
    neighbours: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 20, 100, 200]
    k: int | None = None  # one of `neighbours`; null: chosen on the held-out slice
    temperature: Annotated[float, Field(ge=0.005)] = 0.07  # a neighbour votes with exp(cosine / temperature)
    held_out: HeldOut = 0.02  # share of each class of train (in scenes, of its source digits); unused if k is set
    batch_size: PositiveInt = 256
    seed: NonNegativeInt = 0  # of the held-out slice
    normalisation: NormalisationChoice = added_later(None)
    interpolation: Interpolation = added_later("bilinear")  # of every resize
    machine: KnnMachineConfig = KnnMachineConfig()

    def check(self) -> None:
        require(self.resize >= self.image_size, "resize", self.resize, f"image_size ({self.image_size}) or more")
        ks = self.neighbours
        require(len(set(ks)) == len(ks), "neighbours", ks, "each only once")
        require(self.k is None or self.k in ks, "k", self.k, f"one of neighbours {ks}, or null to choose among them")
        several = "above 0, because one of several neighbours has to be chosen; or set k"
        require(self.held_out > 0 or self.fixed_k is not None, "held_out", self.held_out, several)

    @property
    def protocol(self) -> str:
        return self.named("knn")

    @property
    def fixed_k(self) -> int | None:
        """The k of the result where there is nothing to choose."""
        return self.neighbours[0] if len(self.neighbours) == 1 else self.k

    @property
    def format_version(self) -> int:
        # As for LinearConfig.
        return 2 if self.data.name == "scenes" and self.fixed_k is None else 1


class DenseKnnConfig(ComputeConfig):
    """Nothing is trained: the nearest positions of training images, with the labels below them, vote.

    All of `neighbours` are scored in one pass; the first is the result, the others are listed with it.
    """

    stage: ClassVar[str] = "dense_knn"
    label: ClassVar[str] = "dense-knn"
    format_version: ClassVar[int] = 1

    data: DataConfig = DataConfig(name="voc")
    image_size: PositiveInt = 512  # pixels a side: images become squares; masks stay as they are
    memory: PositiveInt | None = 102_400  # positions of training images; null: all of them
    neighbours: Annotated[list[PositiveInt], Field(min_length=1)] = [30]
    temperature: Annotated[float, Field(ge=0.005)] = 0.02  # a neighbour votes with exp(cosine / temperature)
    batch_size: PositiveInt = 32
    seed: NonNegativeInt = 0  # of the positions that are kept
    normalisation: NormalisationChoice = None
    machine: KnnMachineConfig = KnnMachineConfig()

    def check(self) -> None:
        ks = self.neighbours
        require(len(set(ks)) == len(ks), "neighbours", ks, "each only once")
        enough = self.memory is None or max(ks) <= self.memory
        require(enough, "neighbours", ks, f"at most memory ({self.memory}), which holds so many")

    @property
    def protocol(self) -> str:
        return self.named("dense kNN")


EvalConfig = LinearConfig | KnnConfig | DenseKnnConfig | SegmentationConfig


def identity(config: EvalConfig, parent_hash: str, at: str | None = None) -> Identity:
    """Name the run that evaluates the pretraining run of that hash, or the checkpoint that it kept `at` a moment.

    Raise a config's `format_version` when the same config comes to measure something else. A subset's list
    counts by the images that it names, not by its place: UserError if it cannot be read.
    """
    values = split_machine(config)[0]
    if isinstance(config, LinearConfig) and config.subset is not None:
        values["subset"] = {"name": config.subset_name, "sha256": digest(config.subset)}
    values |= {} if at is None else {"at": at}
    moment = "" if at is None else f"-at-{at.replace(' ', '-')}"
    slug = f"{config.data.plain_name}-{config.label}-of-{parent_hash[:6]}{moment}-seed{config.seed}"
    return Identity(config.stage, slug, config.format_version, values, parent_hash)


class Evaluation(NamedTuple):
    """An evaluation of a package of the user's own; see `register_evaluation`."""

    schema: type[Any]
    work: Callable[..., dict[str, Any]]
    score: str
    several: bool


EVALUATIONS: dict[str, Evaluation] = {}  # of imported packages, by their stage
_NEEDED = ("label", "format_version", "data", "seed", "normalisation", "machine")
# Keys of cluster files, which stages are too; `check` would hide a method of their config.
_RESERVED = ("pretrain", "all", "evals", "imports", "max_array_size", "check")


def check_class(schema: type[Any]) -> None:
    """Raise UserError where the config class of an evaluation lacks what names its runs, or would hide a column."""
    name = schema.__name__
    missing = [key for key in _NEEDED if not hasattr(schema, key) and key not in schema.model_fields]
    if missing or not issubclass(schema, ComputeConfig):
        raise UserError(f"{name} lacks {', '.join(missing) or 'imports'}; derive it from KnnConfig, or as that")
    for key, field in schema.model_fields.items():
        if field.is_required():
            raise UserError(f"{name}.{key}: expected a default, as every key of a config has one")
        if key in COLUMNS:
            raise UserError(f"{name}.{key}: a table of results has this column of every run; choose another name")
    for key, kind in types_of(schema).items():
        if _has_set(kind):
            raise UserError(f"{name}.{key}: a set has no order, so each process would name its run anew; take a list")
    if isinstance(label := getattr(schema, "label", None), str) and not re.fullmatch(r"[\w.+-]+", label):
        raise UserError(f"{name}.label = {label!r}: expected letters, digits and .+-_, as it names runs")


def _has_set(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (set, frozenset) or any(map(_has_set, get_args(kind)))


def register_evaluation(
    schema: type[ComputeConfig], work: Callable[..., dict[str, Any]], *, score: str = "", several: bool = False
) -> None:
    """Add an evaluation of your own, named by the `stage` of its config class; `imports` loads its package.

    Derive the class from one of those above. `work` returns the scores, as eval.knn.classify does; `score` is the one
    of them that reports show if the study names none. `several`: `work` shares its images among the processes of its
    `world`, and returns the scores of one process. UserError where the name is another's, or the class lacks a key.
    """
    name = vars(schema).get("stage", "")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f'{schema.__name__}: expected a line `stage: ClassVar[str] = "name"`, of letters, digits and _')
    check_class(schema)
    known = EVALUATIONS.get(name)
    if name in _RESERVED or find_spec(f"eval.{name}") is not None or (known is not None and known.schema is not schema):
        raise UserError(f"evaluation {name!r} is registered already; choose another name")
    EVALUATIONS[name] = Evaluation(schema, work, score, several)


def own_protocol(stage: str, scores: dict[str, Any]) -> str:
    """Return the protocol of an evaluation of the user's own, with its stage: a plain "knn" would be ours."""
    protocol = str(scores.get("protocol", ""))
    named = re.split("[,:]", protocol)[0].replace(" ", "_") == stage
    return protocol if named else ": ".join(filter(None, [stage, protocol]))
