"""Multi-crop views of an image, each with the location of its map cells in the original image.

The recipe is the published one (arXiv 2210.01571 and its code's defaults): random resized crops, mirrored, colour
jitter, gray, blur and solarisation that differ between even and odd views. A view is first planned (`ViewPlan`: every
random choice, no pixels) and then rendered, so the choices do not depend on where and how it is rendered. An image that
`views.short_side` reduced is the original one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
import torch
from PIL import Image

from data import colour
from data.config import ViewsConfig
from data.images import Pixels, normalise, resize

GridSize = Callable[[int], tuple[int, int]]  # side of a view in pixels -> (rows, columns) of the network's last map


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Every random choice of one view."""

    box: tuple[int, int, int, int]  # top, left, height, width of the crop, pixels of the original image
    mirrored: bool
    jitter: colour.Jitter | None
    gray: bool
    blur_sigma: float  # pixels; 0: none
    solarized: bool


class Purpose(IntEnum):
    """What a random stream is for. The values are part of every result: a new purpose takes a new value."""

    # Also for the crops of an evaluation (data/transforms.py): a pretraining and an evaluation never share a run.
    VIEWS = 0
    EPOCH_ORDER = 1  # of pretraining
    EVALUATION_ORDER = 17
    SEGMENTATION_ORDER = 18
    SEGMENTATION_AUGMENTATION = 19
    # Seeds dropout and drop path in a step of a fine-tuning (eval/linear.py) or a segmentation (eval/mmseg_runner.py).
    # The two stages never share a run, so that the same number cannot couple anything within one.
    DROPOUT = 20
    MEMORY_POSITIONS = 21  # of a dense kNN evaluation


def sample_generator(seed: int, epoch: int, index: int, purpose: Purpose = Purpose.VIEWS) -> np.random.Generator:
    """Return the random numbers of one sample, a function of (seed, epoch, index, purpose) alone.

    Philox is counter-based: the key is (seed, epoch), and every index has its own 2^128 counters, so streams never
    overlap; nor do those of different purposes. A stateful generator would depend on what a worker drew before.
    """
    bits = np.random.Philox(key=[seed % 2**64, epoch], counter=[0, 0, index, purpose])
    return np.random.Generator(bits)


class SampleStreams:
    """`sample_generator` for many samples of an epoch, in a fifth of the time: only a counter is set for each."""

    def __init__(self, seed: int, epoch: int, purpose: Purpose = Purpose.VIEWS) -> None:
        self._bits = np.random.Philox(key=[seed % 2**64, epoch], counter=[0, 0, 0, purpose])
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, index: int) -> np.random.Generator:
        """Return the numbers that `sample_generator` gives; valid until the next call."""
        self._start["state"]["counter"][2] = index
        self._bits.state = self._start
        return self._generator


def draw_box(
    height: int, width: int, scale: Sequence[float], aspect: Sequence[float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a random resized crop (top, left, height, width) with torchvision's distribution.

    The share of the area is uniform in `scale`, the logarithm of width / height uniform in `aspect`; after ten
    draws that do not fit the image, the largest central crop with an allowed shape.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        u = generator.random(4).tolist()
        area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
        shape = math.exp(low + u[1] * (high - low))
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(u[2] * (height - box_height + 1)), int(u[3] * (width - box_width + 1))
            return top, left, box_height, box_width
    shape = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, round(height * shape)), min(height, round(width / shape))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def location_grid(boxes: torch.Tensor, mirrored: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the centres of the map cells of crops, in pixels of the original image.

    boxes (B, 4): top, left, height, width; mirrored (B,) bool -> (B, rows, columns, 2) float32, (row, column) last.
    Row k of `rows` is centred at top + (k + 1/2) * height / rows; columns likewise, right to left where mirrored.
    """
    top, left, height, width = boxes.double().unbind(1)
    y = top[:, None] + (torch.arange(rows) + 0.5) * (height / rows)[:, None]
    x = left[:, None] + (torch.arange(columns) + 0.5) * (width / columns)[:, None]
    x = torch.where(mirrored[:, None], x.flip(1), x)
    shape = (len(boxes), rows, columns)
    return torch.stack([y[:, :, None].expand(shape), x[:, None, :].expand(shape)], dim=-1).float()


class ViewMaker:
    """Makes the views of one image; `grid_size` follows from the network's stride, as its backbone computes it."""

    def __init__(self, config: ViewsConfig, grid_size: GridSize) -> None:
        self.config = config
        self.sides = config.sides()
        self.scales = config.scales()
        self.grids = [grid_size(side) for side in self.sides]

    def __call__(
        self, image: Image.Image | Pixels, generator: np.random.Generator
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return (images, locations): per view, (3, S, S) float32 normalised and (H, W, 2) float32."""
        pixels = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else image
        plans = self.draw(pixels.shape[0], pixels.shape[1], generator)
        mean, std = self.config.mean, self.config.std
        rendered = [self.render(pixels, plan, side) for plan, side in zip(plans, self.sides, strict=True)]
        images = [normalise(view, mean=mean, std=std) for view in rendered]
        return images, [self.locations([plan], view)[0] for view, plan in enumerate(plans)]

    def draw(self, height: int, width: int, generator: np.random.Generator) -> list[ViewPlan]:
        """Draw the plan of each view of an image of that size."""
        return [self._draw_view(view, height, width, generator) for view in range(len(self.sides))]

    def _draw_view(self, view: int, height: int, width: int, generator: np.random.Generator) -> ViewPlan:
        config, odd = self.config, view % 2
        box = draw_box(height, width, self.scales[view], config.aspect, generator)
        u = generator.random(14).tolist()
        low, high = config.blur_sigma
        return ViewPlan(
            box=box,
            mirrored=config.flip and u[0] < 0.5,
            jitter=self._draw_jitter(u[6:]) if u[1] < config.jitter_probability else None,
            gray=u[2] < config.gray_probability,
            blur_sigma=low + u[4] * (high - low) if u[3] < config.blur_probability[odd] else 0.0,
            solarized=u[5] < config.solarize_probability[odd],
        )

    def _draw_jitter(self, u: list[float]) -> colour.Jitter:
        config = self.config
        # Without hue it is left out, as in torchvision: a shift by 0 would still round colours to those of 8-bit HSV.
        operations = range(4) if config.hue else range(3)
        return colour.Jitter(
            brightness=1 + (2 * u[0] - 1) * config.brightness,
            contrast=1 + (2 * u[1] - 1) * config.contrast,
            saturation=1 + (2 * u[2] - 1) * config.saturation,
            hue=(2 * u[3] - 1) * config.hue,
            order=tuple(sorted(operations, key=u[4:8].__getitem__)),
        )

    def crop(self, image: Pixels, plan: ViewPlan, side: int, out: Pixels | None = None) -> Pixels:
        """Cut out the plan's box as uint8 (side, side, 3), neither mirrored nor coloured; into `out` if given."""
        top, left, height, width = plan.box
        return resize(image[top : top + height, left : left + width], side, side, out=out)

    def render(self, image: Pixels, plan: ViewPlan, side: int, out: Pixels | None = None) -> Pixels:
        """Render the view as uint8 (side, side, 3); into `out` if given."""
        view = self.colour(self.crop(image, plan, side), plan)
        if out is None:
            return view
        out[:] = view
        return out

    def colour(self, view: Pixels, plan: ViewPlan) -> Pixels:
        """Mirror and colour as planned, (H, W, 3) -> (H, W, 3)."""
        if plan.mirrored:
            view = cv2.flip(view, 1)
        if plan.jitter is not None:
            view = colour.jitter(view, plan.jitter)
        if plan.gray:
            view = colour.to_gray(view)
        if plan.blur_sigma > 0:
            view = colour.blur(view, plan.blur_sigma)
        if plan.solarized:
            view = colour.solarize(view, self.config.solarize_threshold)
        return view

    def locations(self, plans: Sequence[ViewPlan], view: int) -> torch.Tensor:
        """Return the location grids of view number `view` of B images, (B, H, W, 2)."""
        boxes = torch.from_numpy(np.array([plan.box for plan in plans]))  # in a tenth of torch.tensor's time
        mirrored = torch.from_numpy(np.array([plan.mirrored and self.config.flip_grid for plan in plans]))
        return location_grid(boxes, mirrored, *self.grids[view])
