"""An evaluation and a network as a user's package registers them: `imports=[own_evaluation]`, from this folder."""

from typing import ClassVar

from timm.models import register_model

from eval.config import KnnConfig, register_evaluation
from eval.knn import classify
from vicregl.backbones import scenes_resnet


class OwnConfig(KnnConfig):
    stage: ClassVar[str] = "second_knn"
    label: ClassVar[str] = "second"
    times: float = 1.0


def work(config, parent, run, device, world):
    scores = classify(config, parent, run, device, world)
    return scores | {"protocol": "second", "times": config.times * scores["top1"]}


@register_model
def second_resnet(pretrained=False, **kwargs):
    return scenes_resnet(**{k: v for k, v in kwargs.items() if not k.startswith("pretrained")})


register_evaluation(OwnConfig, work, score="times", several=True)
