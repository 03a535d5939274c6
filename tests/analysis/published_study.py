"""A study evaluated as the published figures were: ImageNet, Pascal VOC, frozen, by the last map of ResNet-50."""

from __future__ import annotations

import pandas as pd

from analysis.report_data import ReportData

OF_EVALUATION = {
    "linear": {"eval.stage": "linear", "eval.data.name": "imagenet", "score.protocol": "linear"},
    "segmentation": {
        "eval.stage": "segmentation",
        "eval.data.name": "voc",
        "eval.data.segmentation_train": "train_aug",
        "score.protocol": "frozen linear",
        "eval.taps": "last",
    },
}


def measured_as_published(data: ReportData, **changes: dict[str, str]) -> ReportData:
    """With those columns, by evaluation; `changes` to them, as segmentation={"eval.taps": "all"}."""
    values = {name: columns | changes.get(name, {}) for name, columns in OF_EVALUATION.items()}
    columns = pd.DataFrame([values[name] for name in data.frame["eval.name"]], index=data.frame.index)
    network = {"pretrain.model.backbone.name": "resnet50", "pretrain.data.name": "imagenet"}
    return ReportData(data.study, data.frame.assign(**columns, **network))
