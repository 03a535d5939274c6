"""The options of the criterion, as a config file gives them."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.config import require

LOCAL = ("none", "location", "feature", "both")
TERMS = ("invariance", "variance", "covariance")


@dataclass
class CriterionConfig:
    alpha: float = 0.75  # weight of the global criterion; 1 is VICReg, 0 is local alone
    local: str = "both"  # none | location | feature | both
    num_matches: list[int] = field(default_factory=lambda: [20, 4])  # from a large and from a small view (paper)
    feature_matches: list[int] | None = None  # the same for feature; 0: all; null: num_matches (reference: all)
    profile: str = "paper"  # paper | reference: as the published code, num_matches for i -> j and j -> i
    select: str = "top"  # top: the nearest num_matches | threshold: all that are nearer than the threshold
    location_threshold: float = 32.0  # pixels of the original image
    feature_threshold: float = 0.5  # root mean square over the C dimensions
    statistics: str = "matches"  # matches | maps: variance and covariance of the matched positions or whole maps
    local_stage_weights: list[float] = field(default_factory=list)  # for several stages; empty: their mean
    invariance_coefficient: float = 25.0
    variance_coefficient: float = 25.0
    covariance_coefficient: float = 1.0

    def check(self) -> None:
        require(0 <= self.alpha <= 1, "loss.alpha", self.alpha, "0 to 1")
        choices = {"local": LOCAL, "profile": ("paper", "reference")}
        choices |= {"select": ("top", "threshold"), "statistics": ("matches", "maps")}
        for key, allowed in choices.items():
            require(getattr(self, key) in allowed, f"loss.{key}", getattr(self, key), " | ".join(allowed))
        require(
            self.local != "none" or self.alpha > 0,
            "loss.alpha",
            self.alpha,
            "above 0 with local: none, or no loss is left",
        )
        matches = self.num_matches
        require(len(matches) == 2 and min(matches) >= 1, "loss.num_matches", matches, "two numbers of at least 1")
        feature = self.feature_matches
        require(
            feature is None or (len(feature) == 2 and min(feature) >= 0),
            "loss.feature_matches",
            feature,
            "null, or two numbers; 0 for all positions",
        )
        for key in ("location_threshold", "feature_threshold"):
            require(getattr(self, key) > 0, f"loss.{key}", getattr(self, key), "above 0")
        for term in TERMS:
            value = getattr(self, f"{term}_coefficient")
            require(value >= 0, f"loss.{term}_coefficient", value, "0 or more")
        weights = self.local_stage_weights
        require(all(w >= 0 for w in weights), "loss.local_stage_weights", weights, "numbers of 0 or more")

    @property
    def global_weight(self) -> float:
        """alpha, or 1 without a local criterion."""
        return 1.0 if self.local == "none" else self.alpha
