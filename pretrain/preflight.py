"""What is told of a new run before anything of it is made."""

from __future__ import annotations

import torch

from data.catalog import open_dataset
from pretrain.config import PretrainConfig, durations
from pretrain.step import refuse_batch_statistics
from vicregl.model import VICRegLModel


def preflight(config: PretrainConfig) -> None:
    """UserError for a dataset that is missing or too small for the batch or the warm-up, and for a network that does
    not fit."""
    dataset = open_dataset(config.data)
    durations(config, dataset.steps_per_epoch(len(dataset.images("train")), config.train.batch_size))
    try:
        with torch.device("meta"):  # no memory, no time
            model = VICRegLModel(config.model, config.loss.global_weight)
    except (NotImplementedError, RuntimeError):
        return  # timm has networks that cannot be built there: what is wrong with them is told later
    if config.train.accumulate > 1:
        refuse_batch_statistics(model)
