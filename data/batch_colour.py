"""Colour augmentation of a whole batch in float tensors: what `execution: device` leaves to the GPU.

The operations, levels and roundings are PIL's: without truncating to levels after every operation the distribution is
another one (solarised views tell). Every view has its own random choices, those that its `ViewPlan` holds. On a CPU
it works and is slow: data.colour is the version for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import colour
from data.config import MEAN, STD
from data.views import ViewPlan


@dataclass
class BatchPlan:
    """The choices of one view of B images, as the rows that each operation is for: so no mask has to be read back.

    `rows` holds, one group after the other: mirrored; (position, operation) of jitter, 16 groups; gray; blurred;
    solarised.
    """

    rows: Tensor  # int64, all groups in one tensor: one copy to the device
    sizes: list[int]  # of the groups
    factors: Tensor  # (B, 4) float32: brightness, contrast, saturation, hue in levels of 255
    kernels: Tensor  # (blurred, K) float32: box filters

    def map(self, move: Callable[[Tensor], Tensor]) -> BatchPlan:
        return BatchPlan(move(self.rows), self.sizes, move(self.factors), move(self.kernels))


def plan_batch(plans: Sequence[ViewPlan]) -> BatchPlan:
    """Group the rows of a batch by what is to be done with them."""
    jitters = [(row, plan.jitter) for row, plan in enumerate(plans) if plan.jitter is not None]
    groups = [
        [row for row, plan in enumerate(plans) if plan.mirrored],
        *([row for row, j in jitters if j.order[position] == n] for position in range(4) for n in range(4)),
        [row for row, plan in enumerate(plans) if plan.gray],
        [row for row, plan in enumerate(plans) if plan.blur_sigma > 0],
        [row for row, plan in enumerate(plans) if plan.solarized],
    ]
    # Filled in numpy: making a small tensor for each row takes a tenth of the time that small views take.
    factors = np.ones((len(plans), 4), np.float32)
    for row, j in jitters:
        factors[row] = (j.brightness, j.contrast, j.saturation, int(j.hue * 255))
    rows = torch.tensor([row for group in groups for row in group], dtype=torch.int64)
    kernels = _kernels([plans[row] for row in groups[-2]])
    return BatchPlan(rows, [len(group) for group in groups], torch.from_numpy(factors), kernels)


def _kernels(blurred: Sequence[ViewPlan]) -> Tensor:
    """(n, K): each plan's box filter, in the middle of as many taps as the longest needs."""
    boxes = [colour.box_kernel(round(plan.blur_sigma, 3))[0] for plan in blurred]
    longest = max((len(box) for box in boxes), default=1)
    kernels = np.zeros((len(boxes), longest), np.float32)
    for kernel, box in zip(kernels, boxes, strict=True):
        beside = (longest - len(box)) // 2
        kernel[beside : beside + len(box)] = box
    return torch.from_numpy(kernels)


def mirror_and_colour(
    levels: Tensor,
    plan: BatchPlan,
    solarize_threshold: int,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Mirror, colour and normalise: uint8 (B, S, S, 3) -> float32 (B, 3, S, S), channels_last in memory.

    `levels`, which are overwritten, and `plan` lie on the device that does it.
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
        x[gray] = luma(x[gray]).expand(-1, 3, -1, -1)
    if len(blurred):
        x[blurred] = blur(x[blurred], plan.kernels)
    if len(solarized):
        part = x[solarized]
        x[solarized] = torch.where(part >= solarize_threshold, 255 - part, part)
    middle, spread = (255 * torch.tensor(values, device=x.device).view(3, 1, 1) for values in (mean, std))
    return x.sub_(middle).div_(spread).contiguous(memory_format=torch.channels_last)


# The operations take (n, 3, S, S) levels, which they may overwrite, and (n, 1, 1, 1) factors.


def to_levels(x: Tensor) -> Tensor:
    """As PIL's blend ends: clipped, then truncated."""
    return x.clamp_(0, 255).floor_()


def luma(x: Tensor) -> Tensor:
    """(n, 1, S, S) gray levels in PIL's fixed-point arithmetic, which float32 carries out without error."""
    weights = x.new_tensor([19595.0, 38470.0, 7471.0]).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True).add_(32768).mul_(1 / 65536).floor_()


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return to_levels(x.mul_(factor))


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = luma(x).mean((2, 3), keepdim=True).add_(0.5).floor_()
    return to_levels(x.sub_(mean).mul_(factor).add_(mean))


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    gray = luma(x)
    return to_levels(x.sub_(gray).mul_(factor).add_(gray))


def _hue(x: Tensor, levels: Tensor) -> Tensor:
    """Shift by whole levels of a hue and a saturation that are kept in 256 levels, as PIL's HSV images are."""
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


JITTER = (_brightness, _contrast, _saturation, _hue)  # in the order of colour.Jitter.order's numbers


def blur(x: Tensor, kernels: Tensor) -> Tensor:
    """PIL's GaussianBlur, as data.colour.blur: three box filters along each axis, rounded to levels after each."""
    taps = kernels.shape[1]
    image = x.flatten(0, 1).unsqueeze(0)  # a channel of each image is a channel of one image: a filter for each
    weights = kernels.repeat_interleave(3, dim=0)
    for shape in ((1, taps), (taps, 1)):
        reach = [(shape[1] - 1) // 2] * 2 + [(shape[0] - 1) // 2] * 2
        for _ in range(3):
            padded = F.pad(image, reach, mode="replicate")
            image = F.conv2d(padded, weights.view(-1, 1, *shape), groups=len(weights)).round_()
    return image.view_as(x)
