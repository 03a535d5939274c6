"""An evaluation as a user's package registers it; `imports=[own_evaluation]` with this folder on Python's path."""

from typing import ClassVar

from eval.config import KnnConfig, register_evaluation
from eval.knn import classify


class OwnConfig(KnnConfig):
    stage: ClassVar[str] = "second_knn"
    label: ClassVar[str] = "second"
    times: float = 1.0


def work(config, parent, run, device, world):
    scores = classify(config, parent, run, device, world)
    return scores | {"protocol": "second", "times": config.times * scores["top1"]}


register_evaluation(OwnConfig, work, score="times", several=True)
