"""Colour augmentation with PIL's operations, levels and roundings, but faster: in two versions.

For one uint8 view on a CPU, with tables and OpenCV (`views.execution=cpu`); and for a whole batch of float tensors on a
device (`views.execution=device`). Truncating to whole levels after every operation belongs to the distribution: without
it, solarised views differ visibly. tests/data compares both versions with plain PIL and torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data.config import ViewsConfig
from data.images import Pixels

# OpenCV rounds to the nearest level where PIL truncates; adding this first makes them agree.
_TRUNCATE = -0.4999
_ONE = np.ones((1, 1), np.float32)
_SMALL = 64  # pixels: up to this side, transposing an image costs more than it saves

cv2.setNumThreads(0)  # the loader's workers run views in parallel, so a single view should not


@dataclass(frozen=True, slots=True)
class Jitter:
    """Factors as torchvision's ColorJitter draws them; `order` holds 0 brightness, 1 contrast, 2 saturation, 3 hue."""

    brightness: float
    contrast: float
    saturation: float
    hue: float  # shift in turns of the colour circle, -0.5..0.5
    order: tuple[int, ...]


def jitter(image: Pixels, amounts: Jitter) -> Pixels:
    """(H, W, 3) -> (H, W, 3), the four operations in the drawn order."""
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
    """What is added to a row (W * 3,) of hue, saturation and value."""
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


# A batch on a device. Every view keeps its own random choices. It works on a CPU too, but slowly.


class ViewChoices(Protocol):
    """The random choices of one view that matter here; data.views.ViewPlan has them."""

    @property
    def mirrored(self) -> bool: ...
    @property
    def jitter(self) -> Jitter | None: ...
    @property
    def gray(self) -> bool: ...
    @property
    def blur_sigma(self) -> float: ...
    @property
    def solarized(self) -> bool: ...


@dataclass
class BatchPlan:
    """The choices of one view of B images, as row numbers for each operation.

    The sizes of the groups stay on the CPU: boolean masks on the device would have to be read back to know them, which
    makes the CPU wait. Groups: mirrored; (position, operation) of jitter, 16 of them; gray; blurred; solarised.
    """

    rows: Tensor  # int64, all groups in one tensor: one copy to the device
    sizes: list[int]  # of the groups
    factors: Tensor  # (B, 4) float32: brightness, contrast, saturation, hue in levels of 255
    kernels: Tensor  # (blurred, K) float32: box filters

    def map(self, move: Callable[[Tensor], Tensor]) -> BatchPlan:
        return BatchPlan(move(self.rows), self.sizes, move(self.factors), move(self.kernels))


def plan_batch(plans: Sequence[ViewChoices]) -> BatchPlan:
    """Group the rows of a batch by operation."""
    jitters = [(row, plan.jitter) for row, plan in enumerate(plans) if plan.jitter is not None]
    groups = [
        [row for row, plan in enumerate(plans) if plan.mirrored],
        *([row for row, j in jitters if j.order[position] == n] for position in range(4) for n in range(4)),
        [row for row, plan in enumerate(plans) if plan.gray],
        [row for row, plan in enumerate(plans) if plan.blur_sigma > 0],
        [row for row, plan in enumerate(plans) if plan.solarized],
    ]
    # Filled in numpy: a small tensor for each row takes as long as a tenth of the work on small views.
    factors = np.ones((len(plans), 4), np.float32)
    for row, j in jitters:
        factors[row] = (j.brightness, j.contrast, j.saturation, int(j.hue * 255))
    rows = torch.tensor([row for group in groups for row in group], dtype=torch.int64)
    kernels = _kernels([plans[row].blur_sigma for row in groups[-2]])
    return BatchPlan(rows, [len(group) for group in groups], torch.from_numpy(factors), kernels)


def _kernels(sigmas: Sequence[float]) -> Tensor:
    """(n, K): box filters, each in the middle of as many taps as the longest needs."""
    boxes = [box_kernel(round(sigma, 3))[0] for sigma in sigmas]
    longest = max((len(box) for box in boxes), default=1)
    kernels = np.zeros((len(boxes), longest), np.float32)
    for kernel, box in zip(kernels, boxes, strict=True):
        margin = (longest - len(box)) // 2
        kernel[margin : margin + len(box)] = box
    return torch.from_numpy(kernels)


def mirror_and_colour(levels: Tensor, plan: BatchPlan, config: ViewsConfig) -> Tensor:
    """Mirror, colour and normalise: uint8 (B, S, S, 3) -> float32 (B, 3, S, S), channels_last in memory.

    `levels` (overwritten) and `plan` are on the device that does it.
    """
    mirrored, *jittered, gray, blurred, solarized = plan.rows.split(plan.sizes)
    if len(mirrored):
        levels[mirrored] = levels[mirrored].flip(2)
    x = levels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for number, rows in enumerate(jittered):
        if len(rows):
            operation = number % 4
            x[rows] = JITTER[operation](x[rows], plan.factors[rows, operation].view(-1, 1, 1, 1))
    if len(gray):
        x[gray] = batch_luma(x[gray]).expand(-1, 3, -1, -1)
    if len(blurred):
        x[blurred] = batch_blur(x[blurred], plan.kernels)
    if len(solarized):
        part = x[solarized]
        x[solarized] = torch.where(part >= config.solarize_threshold, 255 - part, part)
    middle, spread = (255 * torch.tensor(values, device=x.device).view(3, 1, 1) for values in (config.mean, config.std))
    return x.sub_(middle).div_(spread).contiguous(memory_format=torch.channels_last)


# The operations get (n, 3, S, S) levels, which they may overwrite, and (n, 1, 1, 1) factors.


def _to_levels(x: Tensor) -> Tensor:
    """Clip and truncate, as PIL's blend ends."""
    return x.clamp_(0, 255).floor_()


def batch_luma(x: Tensor) -> Tensor:
    """(n, 1, S, S) gray levels in PIL's fixed-point arithmetic, which is exact in float32."""
    weights = x.new_tensor([19595.0, 38470.0, 7471.0]).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True).add_(32768).mul_(1 / 65536).floor_()


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return _to_levels(x.mul_(factor))


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = batch_luma(x).mean((2, 3), keepdim=True).add_(0.5).floor_()
    return _to_levels(x.sub_(mean).mul_(factor).add_(mean))


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    gray = batch_luma(x)
    return _to_levels(x.sub_(gray).mul_(factor).add_(gray))


def _hue(x: Tensor, levels: Tensor) -> Tensor:
    """Shift by whole levels, with hue and saturation rounded to 256 levels, as in PIL's HSV images."""
    red, green, blue = x.unbind(1)
    value, spread = x.amax(1), x.amax(1) - x.amin(1)
    divisor = spread.clamp(min=1)
    hue = torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(red == value, (green - blue) / divisor, hue)
    hue = hue.div_(6).add_(1).remainder_(1).mul_(255).floor_()  # gray: 0
    hue = hue.add_(levels[:, 0]).remainder_(256).mul_(6 / 255)
    saturation = spread.mul_(255).div_(value.clamp(min=1)).floor_().div_(255)
    for channel, offset in enumerate((5, 3, 1)):
        position = (hue + offset).remainder_(6)
        share = torch.minimum(position, 4 - position).clamp_(0, 1)
        x[:, channel] = share.mul_(saturation).neg_().add_(1).mul_(value).round_()
    return x


JITTER = (_brightness, _contrast, _saturation, _hue)  # in the order of the numbers in Jitter.order


def batch_blur(x: Tensor, kernels: Tensor) -> Tensor:
    """`blur` of a batch: three box filters along each axis, rounded to levels after each."""
    taps = kernels.shape[1]
    image = x.flatten(0, 1).unsqueeze(0)  # every channel of every image becomes a channel, with its own filter
    weights = kernels.repeat_interleave(3, dim=0)
    for shape in ((1, taps), (taps, 1)):
        padding = [(shape[1] - 1) // 2] * 2 + [(shape[0] - 1) // 2] * 2
        for _ in range(3):
            padded = F.pad(image, padding, mode="replicate")
            image = F.conv2d(padded, weights.view(-1, 1, *shape), groups=len(weights)).round_()
    return image.view_as(x)
