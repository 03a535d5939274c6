"""What a segmentation evaluation predicts for images of val, beside the truth, from its checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis.figures.base import add_title, grid_size, image_grid
from data.catalog import open_dataset
from data.images import Pixels, read_image
from data.layout import SegmentationLayout
from eval.mmseg_config import val_loader
from eval.predictions import colour, legend_handles, spread, thin
from eval.segmentation import CHECKPOINT, MMSEG_CONFIG
from eval.segmentation_config import STAGE, SegmentationConfig
from runtime import compat
from runtime import config as configs
from runtime.config import require
from runtime.errors import UserError
from runtime.rundir import Run


@dataclass(frozen=True)
class Segmented:
    """An image of val; truth and prediction are classes, (H, W), at its own size."""

    name: str
    image: Pixels
    truth: np.ndarray
    prediction: np.ndarray

    def miou(self, classes: int) -> float:
        """Mean IoU in percent over the classes that are in the truth or the prediction, of this image alone."""
        counted = self.truth < classes
        truth, found = self.truth[counted], self.prediction[counted]
        present = np.union1d(truth, found)
        shares = [((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum() for k in present]
        return 100 * float(np.mean(shares)) if shares else float("nan")


@dataclass(frozen=True)
class Segmentation:
    """A run of the stage segmentation that is done, and what it predicts."""

    name: str
    layout: SegmentationLayout
    images: list[Segmented]
    miou: float  # of its result, over all of val

    def colours(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) classes -> (h, w, 3) uint8, thinned where they are large."""
        return thin(colour(labels, self.layout))


def load_segmentation(path: str | Path, count: int, root: str | None = None) -> Segmentation:
    """Predict `count` images of val, evenly spaced; the data lie at `root`, or where the run's config says.

    UserError where the run is of another stage, is not done, or misses its checkpoint, its pretraining or its data.
    """
    require(count >= 1, "--images", count, "1 or more")
    run = Run(Path(path))
    document = run.document()
    if document["stage"] != STAGE:
        raise UserError(f"{run.path} is a run of the stage {document['stage']!r}; expected one of {STAGE!r}")
    result = run.result()
    if result is None:
        raise UserError(f"{run.path} is {run.state()}; only a run that is done has predictions to show")
    where, given = str(run.path / "run.yaml"), {} if root is None else {"data": {"root": root}}
    layers = [(where, document["config"]), ("--data", given)]
    config = configs.from_layers(SegmentationConfig, layers)
    cfg = _mmseg_config(run)
    cfg.model.backbone.run = str(_parent_of(run, document["parent"]))
    layout = open_dataset(config.data).segmentation()
    cfg.val_dataloader = val_loader(config, layout)  # here the data lie, and files are read as today
    images = _predict(cfg, _load_model(cfg, run, config.finetune), count)
    return Segmentation(run.name, layout, images, float(result["miou"]))


def _mmseg_config(run: Run) -> Any:
    """The config that ran, which the run keeps; its parts are registered."""
    file = run.path / MMSEG_CONFIG
    for needed in (file, run.path / CHECKPOINT):
        if not needed.is_file():
            raise UserError(f"{needed} is missing, and nothing can be predicted without it")
    compat.prepare_mmcv()
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|seg)\.")
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    return cfg


def _parent_of(run: Run, parent: str) -> Path:
    """The run that was evaluated, beside this one, wherever both were moved to."""
    found = sorted(run.path.resolve().parent.parent.glob(f"*/*-{parent}"))
    if not found:
        raise UserError(
            f"{run.path}: the run that it evaluates, of hash {parent}, is not in {run.path.resolve().parent.parent}; "
            "put both into one folder of runs"
        )
    return found[0]


def _load_model(cfg: Any, run: Run, finetuned: bool) -> Any:
    """Head and backbone; a frozen backbone is the pretraining's own, and only the head is in the checkpoint."""
    from mmseg.registry import MODELS

    model = MODELS.build(cfg.model)
    contents = torch.load(run.path / CHECKPOINT, map_location="cpu", weights_only=True)
    wrong = model.load_state_dict(contents["state_dict"], strict=False)
    missing = [key for key in wrong.missing_keys if finetuned or not key.startswith("backbone.")]
    if missing or wrong.unexpected_keys:
        raise UserError(f"{run.path / CHECKPOINT}: missing {missing[:3]}, unexpected {wrong.unexpected_keys[:3]}")
    return model.eval()


@torch.no_grad()
def _predict(cfg: Any, model: Any, count: int) -> list[Segmented]:
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS

    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    found = []
    for number in spread(len(dataset), count):
        sample = dataset[number]
        truth = sample["data_samples"].gt_sem_seg.data[0].numpy().astype(np.uint8)
        file = Path(sample["data_samples"].img_path)
        prediction = model.test_step(pseudo_collate([sample]))[0].pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        found.append(Segmented(file.stem, read_image(file), truth, prediction))
    return found


def draw_segmentations(found: Segmentation) -> Figure:
    """A column an image: the image, the truth, the prediction; the classes that occur, in their colours, below."""
    columns = [(thin(one.image), found.colours(one.truth), found.colours(one.prediction)) for one in found.images]
    figure, grid = image_grid(list(zip(*columns, strict=True)), grid_size(3, len(columns), extra=0.85))
    for axes, one in zip(grid[2], found.images, strict=True):
        axes.set_xlabel(f"{one.miou(len(found.layout.classes)):.0f} %", fontsize=6)
    for axes, name in zip(grid[:, 0], ("image", "truth", "prediction"), strict=True):
        axes.set_ylabel(name, fontsize=6.5)
    title = f"{found.name}\nmIoU {found.miou:.1f} % over all of val; below each image its own, over its classes."
    add_title(figure, title)
    add_legend(figure, [found])
    return figure


def add_legend(figure: Figure, of: Sequence[Segmentation]) -> None:
    """The colours of the classes that occur in a truth or a prediction."""
    labels = [array.ravel() for one in of for image in one.images for array in (image.truth, image.prediction)]
    handles = legend_handles(of[0].layout, np.bincount(np.concatenate(labels), minlength=256))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(12, len(handles)), fontsize=5.5)
