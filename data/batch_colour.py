"""Colour augmentation of a whole batch on a device (`views.execution=device`), as data/colour.py does it for a view.

Every view keeps its own random choices. It works on a CPU too, but slowly. Eager, an operation gets only the rows that
it changes; compiled, all rows pass through one kernel, which chooses for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.colour import Jitter, box_kernel
from data.config import ViewsConfig

Operation = Callable[..., Tensor]


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
    """The choices of one view of B images: as row numbers for each operation, and as columns of all rows.

    The sizes of the groups stay on the CPU: boolean masks on the device would have to be read back to know them, which
    makes the CPU wait. Groups: mirrored; (position, operation) of jitter, 16 of them; gray; blurred; solarised.
    """

    rows: Tensor  # int64, all groups in one tensor: one copy to the device
    sizes: list[int]  # of the groups
    factors: Tensor  # float32, of the jitter groups' rows in their order; hue in levels of 255
    kernels: Tensor  # (B, K) float32: box filters; for a row without blur the identity
    columns: Tensor  # (11, B) float32: mirrored, gray, solarised; at each position of jitter its operation; its factor

    def map(self, move: Callable[[Tensor], Tensor]) -> BatchPlan:
        tensors = (move(tensor) for tensor in (self.factors, self.kernels, self.columns))
        return BatchPlan(move(self.rows), self.sizes, *tensors)


def plan_batch(plans: Sequence[ViewChoices]) -> BatchPlan:
    """Group the rows of a batch by operation."""
    jitters = [(row, plan.jitter) for row, plan in enumerate(plans) if plan.jitter is not None]
    jittered = [[row for row, j in jitters if j.order[p : p + 1] == (n,)] for p in range(4) for n in range(4)]
    groups = [
        [row for row, plan in enumerate(plans) if plan.mirrored],
        *jittered,
        [row for row, plan in enumerate(plans) if plan.gray],
        [row for row, plan in enumerate(plans) if plan.blur_sigma > 0],
        [row for row, plan in enumerate(plans) if plan.solarized],
    ]
    # Filled in numpy: a small tensor for each row takes as long as a tenth of the work on small views.
    amounts = np.ones((len(plans), 4), np.float32)
    for row, j in jitters:
        amounts[row] = (j.brightness, j.contrast, j.saturation, int(j.hue * 255))
    factors = np.concatenate([amounts[group, number % 4] for number, group in enumerate(jittered)])
    columns = np.zeros((11, len(plans)), np.float32)
    for column, group in enumerate((groups[0], groups[-3], groups[-1])):
        columns[column, group] = 1
    columns[3:7] = NO_JITTER
    for number, group in enumerate(jittered):
        columns[3 + number // 4, group] = number % 4
        columns[7 + number // 4, group] = amounts[group, number % 4]
    rows = torch.tensor([row for group in groups for row in group], dtype=torch.int64)
    kernels = _kernels([plan.blur_sigma for plan in plans])
    sizes = [len(group) for group in groups]
    return BatchPlan(rows, sizes, torch.from_numpy(factors), kernels, torch.from_numpy(columns))


def _kernels(sigmas: Sequence[float]) -> Tensor:
    """Return box filters (n, K), each in the middle of as many taps as the longest needs; of sigma 0 the identity."""
    boxes = [box_kernel(round(sigma, 3))[0] for sigma in sigmas]
    longest = max((len(box) for box in boxes), default=1)
    kernels = np.zeros((len(boxes), longest), np.float32)
    for kernel, box in zip(kernels, boxes, strict=True):
        margin = (longest - len(box)) // 2
        kernel[margin : margin + len(box)] = box
    return torch.from_numpy(kernels)


@cache
def compiled_version(operation: Operation) -> Operation:
    """Compile an operation for each shape of its arguments, with the rounding of eager mode.

    A fused multiply-add or an approximate division may fall just below a whole level, and is then truncated to the
    level below.
    """
    from torch._inductor import config as inductor  # takes a second

    options: dict[str, Any] = {"emulate_precision_casts": True}  # no fused multiply-add
    if hasattr(inductor, "eager_numerics"):
        options["eager_numerics.division_rounding"] = True
    return torch.compile(operation, dynamic=False, options=options)


def mirror_and_colour(levels: Tensor, plan: BatchPlan, config: ViewsConfig, compiled: bool = False) -> Tensor:
    """Mirror, colour and normalise: uint8 (B, S, S, 3) -> float32 (B, 3, S, S), channels_last in memory.

    `levels` and `plan` are on the device that does it. `compiled`: a dozen kernels in place of hundreds; numbers may
    differ in a last bit before they are truncated to levels.
    """
    if compiled:
        return _compiled_colour(levels, plan, config)
    mirrored, *jittered, gray, blurred, solarized = plan.rows.split(plan.sizes)
    # A GPU reads and writes a quarter of the bytes in uint8; a CPU is slow to convert floats to it.
    storage = torch.float32 if levels.device.type == "cpu" else torch.uint8
    x = levels.permute(0, 3, 1, 2).to(storage, memory_format=torch.contiguous_format)

    def change(rows: Tensor, operation: Operation, *arguments: Any) -> None:
        if len(rows):
            x[rows] = operation(x[rows], *arguments)

    change(mirrored, mirror)
    for number, (rows, factors) in enumerate(zip(jittered, plan.factors.split(plan.sizes[1:17]), strict=True)):
        change(rows, JITTER[number % 4], factors.view(-1, 1, 1, 1))
    change(gray, batch_gray)
    if len(blurred):
        change(blurred, batch_blur, plan.kernels[blurred])
    change(solarized, batch_solarize, config.solarize_threshold)
    return normalise_batch(x.permute(0, 2, 3, 1).contiguous(), config)


def _compiled_colour(levels: Tensor, plan: BatchPlan, config: ViewsConfig) -> Tensor:
    """Pass all rows through every operation: shapes do not depend on the choices, so each is compiled once a size."""
    mirrored, gray, solarized, *jitter = plan.columns.view(11, -1, 1, 1, 1).unbind()
    x = compiled_version(mirror_rows)(levels, mirrored)
    for operation, factor in zip(jitter[:4], jitter[4:], strict=True):
        x = compiled_version(jitter_rows)(x, operation, factor)
    x = compiled_version(gray_rows)(x, gray)
    if plan.sizes[-2]:  # as many rows are blurred
        for axis in (3, 3, 3, 2, 2, 2):
            x = compiled_version(shifted_sum)(x, plan.kernels, axis)
    constants = device_constants(tuple(config.mean), tuple(config.std), levels.device)
    return compiled_version(solarize_and_standardise)(x, solarized, config.solarize_threshold, *constants)


def normalise_batch(levels: Tensor, config: ViewsConfig) -> Tensor:
    """Normalise uint8 (B, S, S, 3) to float32 (B, 3, S, S), channels_last in memory, on its device."""
    return standardise(levels, *device_constants(tuple(config.mean), tuple(config.std), levels.device))


@cache
def device_constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation in levels of 255. Made once, because the host waits for such a copy to a GPU."""
    middle, spread = 255 * torch.tensor(mean), 255 * torch.tensor(std)
    return middle.to(device), spread.to(device)


def standardise(levels: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    return (levels - middle).div_(spread).permute(0, 3, 1, 2)


# The operations get (n, 3, S, S) levels, uint8 or whole floats, and (n, 1, 1, 1) factors; they return levels likewise.


def mirror(x: Tensor) -> Tensor:
    return x.flip(3)


def _to_levels(values: Tensor, kind: torch.dtype) -> Tensor:
    """Clip and truncate, as PIL's blend ends."""
    values.clamp_(0, 255)
    return values.floor_() if kind.is_floating_point else values.to(kind)


def batch_luma(x: Tensor) -> Tensor:
    """Return gray levels (n, 1, S, S) float32 by PIL's fixed-point arithmetic, which is exact in float32.

    In float32 from the start: compiled for CUDA, a byte times 38470 overflows (seen with torch 2.11).
    """
    red, green, blue = x.float().split(1, dim=1)
    scaled = torch.add(red * 19595.0, green, alpha=38470).add_(blue, alpha=7471)
    return scaled.add_(32768).mul_(1 / 65536).floor_()


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return _to_levels(x * factor, x.dtype)


def _blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return _to_levels((x - base).mul_(factor).add_(base), x.dtype)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, batch_luma(x).mean((2, 3), keepdim=True).add_(0.5).floor_(), factor)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, batch_luma(x), factor)


def _hue(x: Tensor, levels: Tensor) -> Tensor:
    """Shift by whole levels, with hue and saturation rounded to 256 levels, as in PIL's HSV images."""
    red, green, blue = x.float().split(1, dim=1)
    value = x.amax(1, keepdim=True).float()
    spread = value - x.amin(1, keepdim=True)
    divisor = spread.clamp(min=1)
    hue = torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(red == value, (green - blue) / divisor, hue)
    hue = hue.div_(6).add_(1).remainder_(1).mul_(255).floor_()  # gray: 0
    hue = hue.add_(levels).remainder_(256).mul_(6 / 255)
    saturation = spread.mul_(255).div_(value.clamp(min=1)).floor_().div_(255)
    offsets = 5 - 2 * torch.arange(3, device=x.device).view(3, 1, 1)  # of red, green, blue
    position = (hue + offsets).remainder_(6)
    share = torch.minimum(position, 4 - position).clamp_(0, 1)
    return share.mul_(saturation).neg_().add_(1).mul_(value).round_().to(x.dtype)


JITTER = (_brightness, _contrast, _saturation, _hue)  # in the order of the numbers in Jitter.order
NO_JITTER = len(JITTER)  # the number of no operation


def batch_gray(x: Tensor) -> Tensor:
    return batch_luma(x).to(x.dtype).expand(-1, 3, -1, -1)


def batch_solarize(x: Tensor, threshold: int) -> Tensor:
    return torch.where(x >= threshold, 255 - x, x)


def batch_blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Blur a batch as `blur` does: three box filters along each axis, rounded to levels after each."""
    taps = kernels.shape[1]
    # Every channel of every image becomes a channel, with its own filter.
    image = x.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1).unsqueeze(0)
    weights = kernels.repeat_interleave(3, dim=0)
    for shape in ((1, taps), (taps, 1)):
        padding = [(shape[1] - 1) // 2] * 2 + [(shape[0] - 1) // 2] * 2
        for _ in range(3):
            padded = F.pad(image, padding, mode="replicate")
            image = F.conv2d(padded, weights.view(-1, 1, *shape), groups=len(weights)).round_()
    return image.view(x.shape).to(x.dtype)


# What is compiled gets uint8 (B, 3, S, S) levels of all rows, and (B, 1, 1, 1) choices; it returns levels likewise.


def mirror_rows(levels: Tensor, mirrored: Tensor) -> Tensor:
    """(B, S, S, 3) levels as they were loaded."""
    x = levels.permute(0, 3, 1, 2)
    return torch.where(mirrored > 0, mirror(x), x).contiguous()


def jitter_rows(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Change each row by the operation of that number in JITTER, if it is one."""
    changed = x
    for number, change in enumerate(JITTER):
        changed = torch.where(operation == number, change(x, factor), changed)
    return changed


def gray_rows(x: Tensor, gray: Tensor) -> Tensor:
    return torch.where(gray > 0, batch_gray(x), x)


def solarize_and_standardise(x: Tensor, solarized: Tensor, threshold: int, middle: Tensor, spread: Tensor) -> Tensor:
    x = torch.where(solarized > 0, batch_solarize(x, threshold), x)
    return standardise(x.permute(0, 2, 3, 1).contiguous(), middle, spread)


def shifted_sum(x: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Filter along an axis, as `batch_blur` does; outside of the image its edge is repeated.

    By sums, because a convolution could not be joined with the rounding.
    """
    side, taps = x.shape[axis], kernels.shape[1]
    places = torch.arange(side, device=x.device)
    shifted = [x.index_select(axis, (places + (tap - taps // 2)).clamp(0, side - 1)) for tap in range(taps)]
    terms = [part * weight.view(-1, 1, 1, 1) for part, weight in zip(shifted, kernels.unbind(1), strict=True)]
    return sum(terms[1:], terms[0]).round().to(x.dtype)
