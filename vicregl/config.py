"""The options of the criterion and of the network: frozen dataclasses that check themselves when they are made.

It imports no torch, and timm only to look up a network outside KNOWN_BACKBONES, so that reading a config is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from vicregl.errors import InvalidInputError, require

Kind = Literal["feature", "location"]  # of matching
KINDS: tuple[Kind, ...] = get_args(Kind)
TERMS = ("invariance", "variance", "covariance")
Local = Literal["none", "location", "feature", "both"]
Profile = Literal["paper", "reference"]
Select = Literal["top", "threshold"]
Statistics = Literal["matches", "maps"]
Norm = Literal["batch", "layer"]
CHOICES = {"local": Local, "profile": Profile, "select": Select, "statistics": Statistics}
# Arguments of a timm network that vicregl/backbones.py sets itself.
RESERVED_ARGS = ("pretrained", "num_classes", "features_only", "global_pool", "in_chans", "checkpoint_path")
# Accepted without asking timm, whose import takes seconds.
KNOWN_BACKBONES = (
    *("scenes_resnet", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("convnext_small", "convnext_base", "convnext_xlarge", "vit_tiny_patch16_224"),
)


LOCAL_OPTIONS = (  # of CriterionConfig, that the local criterion alone uses
    *("num_matches", "feature_matches", "profile", "select", "location_threshold", "feature_threshold"),
    *("statistics", "local_stage_weights"),
)


@dataclass(frozen=True)
class CriterionConfig:
    """The options of VICRegLCriterion, with their defaults."""

    alpha: float = 0.75  # weight of the global criterion; 1 is VICReg, 0 is local alone
    local: Local = "both"
    num_matches: list[int] = field(default_factory=lambda: [20, 4])  # from a large and from a small view (paper)
    feature_matches: list[int] | None = None  # the same for feature; 0: all; null: num_matches (reference: all)
    profile: Profile = "paper"  # reference: as the published code, num_matches for i -> j and j -> i
    select: Select = "top"  # top: the nearest num_matches | threshold: all that are nearer than the threshold
    location_threshold: float = 32.0  # in the unit of the locations: pixels of the original image
    feature_threshold: float = 0.5  # root mean square over the C dimensions
    statistics: Statistics = "matches"  # variance and covariance of the matched positions or of whole maps
    local_stage_weights: list[float] = field(default_factory=list)  # for several stages; empty: their mean
    invariance_coefficient: float = 25.0
    variance_coefficient: float = 25.0
    covariance_coefficient: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "0 to 1")
        for key, choice in CHOICES.items():
            require(getattr(self, key) in get_args(choice), key, getattr(self, key), " | ".join(get_args(choice)))
        some_loss = self.local != "none" or self.alpha > 0
        require(some_loss, "alpha", self.alpha, "above 0 with local: none, or no loss is left")
        pair = len(self.num_matches) == 2 and min(self.num_matches) >= 1
        require(pair, "num_matches", self.num_matches, "two numbers of at least 1")
        feature = self.feature_matches
        pair = feature is None or (len(feature) == 2 and min(feature) >= 0)
        require(pair, "feature_matches", feature, "null, or two numbers; 0 for all positions")
        for key in ("location_threshold", "feature_threshold"):
            require(getattr(self, key) > 0, key, getattr(self, key), "above 0")
        for key in (f"{term}_coefficient" for term in TERMS):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        weights = self.local_stage_weights
        require(all(w >= 0 for w in weights), "local_stage_weights", weights, "numbers of 0 or more")

    @property
    def global_weight(self) -> float:
        """Return alpha, or 1 without a local criterion."""
        return 1.0 if self.local == "none" else self.alpha

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of matching that the local criterion sums."""
        return KINDS if self.local == "both" else tuple(kind for kind in KINDS if kind == self.local)

    @property
    def unused(self) -> tuple[str, ...]:
        """Return the options on which the loss does not depend, because of the values of others.

        Except alpha, on which it does not depend with `local: none`: there are runs whose names have it.
        """
        if self.alpha == 1:
            return ("local", *LOCAL_OPTIONS)
        if self.local == "none":
            return LOCAL_OPTIONS
        threshold = self.select == "threshold"
        options = [] if threshold else ["location_threshold", "feature_threshold"]
        if "location" not in self.kinds:
            options.append("location_threshold")
        if "feature" not in self.kinds:
            options += ["feature_matches", "feature_threshold"]
        # The numbers by location are num_matches.
        others = "location" not in self.kinds and (self.feature_matches is not None or self.profile == "reference")
        if threshold or others:
            options.append("num_matches")
        if threshold:
            options += ["feature_matches", "profile"]
        return tuple(dict.fromkeys(options))

    def without_unused(self) -> CriterionConfig:
        """Return the options with those that are not used at their defaults: the same loss, by one config."""
        defaults = CriterionConfig()
        return replace(self, **{name: getattr(defaults, name) for name in self.unused})

    def match_counts(self, kind: str) -> tuple[int, int]:
        """Return how many matches of a kind are kept, 0 for all: (from a large view, from a small one).

        With `profile: reference` the two are those of the directions i -> j and j -> i, as in the published code.
        """
        if self.select == "threshold":
            return 0, 0  # every position has a match, and the threshold decides which of them count
        if kind == "feature" and self.feature_matches is not None:
            return self.feature_matches[0], self.feature_matches[1]
        if kind == "feature" and self.profile == "reference":
            return 0, 0
        return self.num_matches[0], self.num_matches[1]

    def match_count(self, kind: str, direction: int, from_small_view: bool) -> int:
        """Return how many matches are kept for i -> j (direction 0) or j -> i (1), 0 for all."""
        return self.match_counts(kind)[direction if self.profile == "reference" else int(from_small_view)]

    def squared_threshold(self, kind: str, channels: int) -> float | None:
        """Return the squared distance from which a match is ignored; None with `select: top`, where all count."""
        if self.select == "top":
            return None
        return self.location_threshold**2 if kind == "location" else self.feature_threshold**2 * channels


@dataclass(frozen=True)
class BackboneConfig:
    """A timm network."""

    name: str = "resnet50"  # timm.list_models() has the names
    args: dict[str, Any] = field(default_factory=dict)  # of timm.create_model; null is passed on as None

    def __post_init__(self) -> None:
        if self.name not in KNOWN_BACKBONES:
            _require_timm_network(self.name)
        for key in self.args:
            require(key not in RESERVED_ARGS, "args", key, f"any argument of the network but {RESERVED_ARGS}")


def _require_timm_network(name: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise InvalidInputError(f"name = {name!r} is looked up in timm, which cannot be imported: {error}") from error
    known = timm.is_model(name) and "." not in name
    names = {*KNOWN_BACKBONES, *timm.list_models()}
    near = [] if known else get_close_matches(name.partition(".")[0], sorted(names), n=4, cutoff=0.5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    require(known, "name", name, f"a timm network, without the tag of its weights{hint}")


@dataclass(frozen=True)
class ModelConfig:
    """The options of VICRegLModel: backbone, expander and local projectors."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    expander: str = "8192-8192-8192"  # widths of the layers after pooling; the last is D
    projector: str = "512-512-512"  # widths of the layers on every position of the map; the last is C
    projector_norm: Norm = "batch"  # batch (the paper's ResNets) | layer (its ConvNeXts); of both heads
    # Backbone stages with a local criterion; -1: the last.
    local_stages: list[int] = field(default_factory=lambda: [-1])

    def __post_init__(self) -> None:
        for key in ("expander", "projector"):
            text = getattr(self, key)
            widths = text.split("-")
            require(all(w.isdigit() and int(w) > 0 for w in widths), key, text, "widths, as 512-512-512")
        require(
            self.projector_norm in get_args(Norm), "projector_norm", self.projector_norm, " | ".join(get_args(Norm))
        )
        stages = self.local_stages
        unique = len(set(stages)) == len(stages) > 0
        require(unique, "local_stages", stages, "stages of the backbone, each once, as [-2, -1]")
