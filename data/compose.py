"""Composes one scene: a dominant digit and small distractors over a crop of a photograph, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data.config import ScenesConfig
from data.images import Pixels
from data.layout import IGNORE

Floats = npt.NDArray[np.float32]

CLASSES = [str(digit) for digit in range(10)]
VAL_SHARE = 0.25  # of each photograph's width, and of each class's digits
# A pixel belongs to a digit from INK on, and to the background up to NO_INK (shares of full ink). In between it is
# ignored, like the borders in Pascal VOC's masks.
INK, NO_INK = 0.6, 0.3
# Digits are lighter than their background: with ink of either polarity this network learns far more slowly.
MIN_LUMA_DISTANCE = 60.0  # levels
INK_TINT = 40.0  # levels, of each channel


@dataclass(frozen=True)
class Glyph:
    """One source digit: its number in `load_digits`, its class, and its ink, (8, 8) in 0..1."""

    source: int
    label: int
    ink: Floats


@dataclass(frozen=True)
class Photo:
    """The part of a photograph that a split may use: the columns from `left` on."""

    number: int
    left: int
    pixels: Pixels


@dataclass(frozen=True)
class Sources:
    """What one split is made from: digits by class, and photographs."""

    glyphs: list[list[Glyph]]
    photos: list[Photo]


@cache
def split_sources(split: str) -> Sources:
    """Return the digits and photograph regions of "train" or "val", which share neither."""
    from sklearn.datasets import load_digits, load_sample_images  # takes a second to import; only needed here

    digits = load_digits()
    glyphs: list[list[Glyph]] = []
    for label in range(10):
        members = np.random.default_rng([2022, label]).permutation(np.flatnonzero(digits.target == label))
        cut = round(len(members) * VAL_SHARE)
        chosen = members[:cut] if split == "val" else members[cut:]
        glyphs.append([Glyph(int(n), label, (digits.images[n] / 16).astype(np.float32)) for n in sorted(chosen)])
    photos = []
    for number, photo in enumerate(load_sample_images().images):
        cut = round(photo.shape[1] * (1 - VAL_SHARE))
        left = cut if split == "val" else 0
        photos.append(Photo(number, left, np.ascontiguousarray(photo[:, left:] if split == "val" else photo[:, :cut])))
    return Sources(glyphs, photos)


@dataclass(frozen=True)
class Scene:
    """One image with its mask and what it was made from."""

    image: Pixels  # (S, S, 3)
    mask: Pixels  # (S, S): 0 background, 1..10 the digit 0..9, 255 neither
    label: int
    photo: int
    box: tuple[int, int, int]  # top, left, side in the whole photograph
    digit: Glyph
    digit_size: int
    distractors: list[Glyph]

    def manifest_row(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "photo": self.photo,
            "top": self.box[0],
            "left": self.box[1],
            "side": self.box[2],
            "digit": self.digit.source,
            "digit_size": self.digit_size,
            "distractors": " ".join(str(glyph.source) for glyph in self.distractors),
            "distractor_labels": " ".join(str(glyph.label) for glyph in self.distractors),
        }


def compose(config: ScenesConfig, sources: Sources, label: int, generator: np.random.Generator) -> Scene:
    """Compose a scene whose dominant digit is `label`. The order of the random draws is part of the dataset."""

    def pick(label: int) -> Glyph:
        return sources.glyphs[label][generator.integers(len(sources.glyphs[label]))]

    photo = sources.photos[generator.integers(len(sources.photos))]
    background, box = _background(photo, config, generator)
    canvas = _Canvas(background)
    digit = pick(label)
    digit_size = int(generator.integers(config.digit[0], config.digit[1] + 1))
    canvas.draw(digit, digit_size, config.ink, generator)
    distractors = []
    for _ in range(generator.integers(config.distractors + 1)):
        other = pick((label + int(generator.integers(1, 10))) % 10)
        size = int(generator.integers(config.distractor[0], config.distractor[1] + 1))
        if canvas.draw(other, size, config.ink, generator):
            distractors.append(other)
    pixels = np.clip(np.rint(canvas.image), 0, 255).astype(np.uint8)
    return Scene(pixels, canvas.mask, label, photo.number, box, digit, digit_size, distractors)


class _Canvas:
    """An image and its mask, on which digits are drawn that do not overlap."""

    def __init__(self, background: Floats) -> None:
        self.background = background  # (S, S, 3) levels
        self.image = background.copy()
        self.mask = np.zeros(background.shape[:2], np.uint8)
        self.ink = np.zeros(background.shape[:2], np.float32)  # of all digits so far, 0..1

    def draw(self, glyph: Glyph, size: int, levels: Sequence[int], generator: np.random.Generator) -> bool:
        """Draw the digit at a random free place; after twenty places with ink, draw nothing and return False."""
        ink = upscale(glyph.ink, size)
        for _ in range(20):
            top, left = (int(n) for n in generator.integers(0, len(self.mask) - size + 1, 2))
            place = (slice(top, top + size), slice(left, left + size))
            if not np.any((ink > NO_INK) & (self.ink[place] > NO_INK)):
                break
        else:
            return False
        colour = _ink_colour(self.background[place], levels, generator)
        self.image[place] += ink[..., None] * (colour - self.image[place])
        region = self.mask[place]
        region[(ink > NO_INK) & (region == 0)] = IGNORE
        region[ink >= INK] = glyph.label + 1
        np.maximum(self.ink[place], ink, out=self.ink[place])
        return True


def upscale(ink: Floats, size: int) -> Floats:
    """(8, 8) -> (size, size) in 0..1: bicubic, then steeper, so that strokes have edges of about a pixel."""
    smooth = cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC)
    steepness = max(1.0, size / 12)
    return np.clip((smooth - 0.45) * steepness + 0.5, 0, 1)


def _background(
    photo: Photo, config: ScenesConfig, generator: np.random.Generator
) -> tuple[Floats, tuple[int, int, int]]:
    """Return a square of the photograph as (size, size, 3) levels of low contrast, and its (top, left, side)."""
    size = config.size
    height, width = photo.pixels.shape[:2]
    side = int(generator.integers(size, min(height, width, 5 * size) + 1))
    top, left = int(generator.integers(height - side + 1)), int(generator.integers(width - side + 1))
    crop = photo.pixels[top : top + side, left : left + side].astype(np.float32)
    small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    mean = small.mean(axis=(0, 1))
    level = generator.uniform(*config.background)  # random, because the photograph's brightness would reveal the region
    factor = generator.uniform(config.contrast[0], config.contrast[1])
    tinted = level + 0.5 * (mean - mean.mean())
    return (tinted + factor * (small - mean)).astype(np.float32), (top, photo.left + left, side)


def _ink_colour(background: Floats, levels: Sequence[int], generator: np.random.Generator) -> Floats:
    """Return a tinted colour of a higher luma than the background of the digit."""
    weights = np.array([0.299, 0.587, 0.114])
    luma = background.mean(axis=(0, 1)) @ weights
    while True:
        colour = np.clip(generator.uniform(*levels) + generator.uniform(-INK_TINT, INK_TINT, 3), 0, 255)
        if colour @ weights >= luma + MIN_LUMA_DISTANCE:
            return colour.astype(np.float32)
