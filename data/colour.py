"""Colour augmentation with PIL's operations, levels and roundings, but faster: in two versions.

Here for one uint8 view on a CPU, with tables and OpenCV (`views.execution=cpu`); in batch_colour.py for a whole batch
on a device (`views.execution=device`). Truncating to whole levels after every operation belongs to the distribution:
without it, solarised views differ visibly. tests/data compares both versions with plain PIL and torchvision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from data.images import Pixels

# OpenCV rounds to the nearest level where PIL truncates; adding this first makes them agree.
_TRUNCATE = -0.4999
_ONE = np.ones((1, 1), np.float32)
_SMALL = 64  # pixels: up to this side, transposing an image costs more than it saves

cv2.setNumThreads(0)  # the loader's workers run views in parallel, so a single view should not


@dataclass(frozen=True, slots=True)
class Jitter:
    """Factors as torchvision's ColorJitter draws them.

    `order` holds what is done: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float  # shift in turns of the colour circle, -0.5..0.5
    order: tuple[int, ...]


def jitter(image: Pixels, amounts: Jitter) -> Pixels:
    """(H, W, 3) -> (H, W, 3), the operations in the drawn order."""
    for operation in amounts.order:
        if operation == 0:
            # convertScaleAbs takes the absolute value, which changes nothing here: the level nearest to -0.4999 is 0
            image = cv2.convertScaleAbs(image, alpha=amounts.brightness, beta=_TRUNCATE)
        elif operation == 1:
            image = scale_from(image, math.floor(cv2.mean(gray_levels(image))[0] + 0.5), amounts.contrast)
        elif operation == 2:
            image = saturate(image, amounts.saturation)
        else:
            image = shift_hue(image, amounts.hue)
    return image


def scale_from(image: Pixels, level: float, factor: float) -> Pixels:
    """level + factor * (image - level), truncated to whole levels as PIL's blend does."""
    return cv2.addWeighted(image, factor, image, 0.0, (1 - factor) * level + _TRUNCATE)


def gray_levels(image: Pixels) -> Pixels:
    """Luma (ITU-R 601), (H, W)."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def saturate(image: Pixels, factor: float) -> Pixels:
    return cv2.addWeighted(image, factor, to_gray(image), 1 - factor, _TRUNCATE)


def shift_hue(image: Pixels, turns: float) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    # As torchvision: truncated to a level, wrapped as uint8. Whole rows take a third of the time of hsv[..., 0].
    rows += _hue_row(int(turns * 255) & 255, hsv.shape[1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@lru_cache(maxsize=1024)
def _hue_row(levels: int, width: int) -> Pixels:
    """Return what is added to a row (W * 3,) of hue, saturation and value."""
    return np.tile(np.array([levels, 0, 0], np.uint8), width)


def to_gray(image: Pixels) -> Pixels:
    return cv2.cvtColor(gray_levels(image), cv2.COLOR_GRAY2RGB)


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Invert levels from `threshold` up."""
    return cv2.LUT(image, _solarize_table(threshold))


@cache
def _solarize_table(threshold: int) -> Pixels:
    levels = np.arange(256)
    return np.where(levels >= threshold, 255 - levels, levels).astype(np.uint8)


def blur(image: Pixels, sigma: float) -> Pixels:
    """PIL's GaussianBlur: three box filters along the rows, three along the columns, rounded to levels after each.

    One Gaussian kernel would be faster, and another distribution: without the roundings smooth areas stay smoother.
    """
    along_row = box_kernel(round(sigma, 3))
    if image.shape[0] <= _SMALL:
        for kernel in (along_row, along_row.T):
            for _ in range(3):
                image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        return image
    # The separable filter is fast along columns only, so the image is transposed for its rows.
    for _ in range(2):
        image = cv2.transpose(image)
        for _ in range(3):
            image = cv2.sepFilter2D(image, -1, _ONE, along_row.T, borderType=cv2.BORDER_REPLICATE)
    return image


@lru_cache(maxsize=8192)
def box_kernel(sigma: float) -> npt.NDArray[np.float32]:
    """(1, odd length): a box filter with soft edges of variance sigma^2 / 3.

    `half` whole pixels on both sides of the centre, and beyond them one pixel of weight `edge`. The variance is exact
    also for small sigma, where a sampled Gaussian would not blur at all.
    """
    variance = sigma**2 / 3
    half = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * half + 1) * (half * (half + 1) - 3 * variance) / (6 * (variance - (half + 1) ** 2))
    box = np.array([[edge, *[1.0] * (2 * half + 1), edge]])
    return (box / box.sum()).astype(np.float32)
