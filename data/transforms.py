"""Labelled images for evaluations, with the same decoding, resizing and normalising as the views."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from data.config import IMAGENET, Normalisation
from data.images import ImageList, Pixels, normalise, resize
from data.store import ImageStore
from data.views import draw_box, sample_generator
from runtime.config import require

Transform = Callable[[Pixels, np.random.Generator], Pixels]  # (H, W, 3) -> (S, S, 3), both uint8


def eval_transform(resize_to: int, size: int, interpolation: str = "bilinear") -> Transform:
    """Resize the shorter side to `resize_to` pixels, then take the central `size` x `size` (ImageNet: 256 and 224)."""
    require(0 < size <= resize_to, "evaluation image size", size, f"1 to {resize_to}, the side it is cut from")

    def transform(image: Pixels, _: np.random.Generator) -> Pixels:
        height, width = image.shape[:2]
        short = min(height, width)
        # torchvision's Resize truncates the longer side
        image = resize(image, height * resize_to // short, width * resize_to // short, mode=interpolation)
        top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
        return image[top : top + size, left : left + size]

    return transform


def train_transform(
    size: int, scale: Sequence[float] = (0.08, 1.0), flip: bool = True, interpolation: str = "bilinear"
) -> Transform:
    """Random resized crop, mirrored half of the time: what the published linear classification trains on."""

    def transform(image: Pixels, generator: np.random.Generator) -> Pixels:
        top, left, height, width = draw_box(image.shape[0], image.shape[1], scale, (3 / 4, 4 / 3), generator)
        crop = image[top : top + height, left : left + width]
        resized = resize(crop, size, size, mode=interpolation)
        return cv2.flip(resized, 1) if flip and generator.random() < 0.5 else resized

    return transform


class LabelledDataset:
    """Batches of images and labels by index. A set of at most `memory_bytes` when decoded is read at once and kept.

    Raises UserError for an unreadable image.
    """

    def __init__(
        self,
        images: ImageList,
        transform: Transform,
        seed: int = 0,
        memory_bytes: int = 1 << 30,
        normalisation: Normalisation = IMAGENET,
        source: Callable[[int], Pixels] | None = None,  # of an image by number; None: its file
    ) -> None:
        require(images.labels is not None, "dataset", "without labels", "one with class folders")
        self._store = ImageStore(images, memory_bytes=memory_bytes, source=source)
        self._labels = images.labels or []
        self._transform = transform
        self._seed = seed
        self._epoch = 0
        self._mean, self._std = normalisation

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, before its iterator is made: a sample's augmentation depends on (seed, epoch, index) alone."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._store)

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (images (B, 3, S, S) float32 normalised, labels (B,) int64)."""
        pixels = np.stack([self._pixels(index) for index in indices])
        return normalise(pixels, self._mean, self._std), torch.tensor([self._labels[index] for index in indices])

    def _pixels(self, index: int) -> Pixels:
        image = self._store.read(index)[1]
        return self._transform(image, sample_generator(self._seed, self._epoch, index))
