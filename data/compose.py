"""Composes one scene: a dominant digit and small distractors over a crop of a photograph, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from data.images import Pixels

if TYPE_CHECKING:
    from data.config import ScenesConfig

Floats = npt.NDArray[np.float32]

CLASSES = [str(digit) for digit in range(10)]
IGNORE = 255
VAL_SHARE = 0.25  # of each photograph's width, and of each class's digits
# A pixel belongs to a digit from this share of ink on, to the background up to the other; what lies between is
# neither, as the borders of Pascal VOC's masks are.
INK, NO_INK = 0.6, 0.3
# Digits are lighter than what lies behind them: with ink of either polarity this network learns far more slowly.
MIN_LUMA_DISTANCE = 60.0  # levels
INK_TINT = 40.0  # levels, of each channel


def _palette() -> list[int]:
    """Pascal VOC's colours: the bits of the class number, dealt to red, green and blue from the highest bit down."""
    colours = []
    for value in range(256):
        for channel in range(3):
            colours.append(sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)))
    return colours


PALETTE = _palette()  # 256 x (red, green, blue), flat


@dataclass(frozen=True)
class Glyph:
    """One source digit: its number in `load_digits`, its class, and its ink, (8, 8) in 0..1."""

    source: int
    label: int
    ink: Floats


@dataclass(frozen=True)
class Photo:
    """The part of a photograph that a split may use: columns `left` and on."""

    number: int
    left: int
    pixels: Pixels


@dataclass(frozen=True)
class Sources:
    """What one split is made of: digits by class, and photographs."""

    glyphs: list[list[Glyph]]
    photos: list[Photo]


@cache
def split_sources(split: str) -> Sources:
    """The digits and photograph regions of "train" or "val"; the two share neither."""
    from sklearn.datasets import load_digits, load_sample_images  # a second to import, and only the maker needs it

    digits = load_digits()
    glyphs: list[list[Glyph]] = []
    for label in range(10):
        of_class = np.random.default_rng([2022, label]).permutation(np.flatnonzero(digits.target == label))
        cut = round(len(of_class) * VAL_SHARE)
        chosen = of_class[:cut] if split == "val" else of_class[cut:]
        glyphs.append([Glyph(int(n), label, (digits.images[n] / 16).astype(np.float32)) for n in sorted(chosen)])
    photos = []
    for number, photo in enumerate(load_sample_images().images):
        cut = round(photo.shape[1] * (1 - VAL_SHARE))
        left = cut if split == "val" else 0
        photos.append(Photo(number, left, np.ascontiguousarray(photo[:, left:] if split == "val" else photo[:, :cut])))
    return Sources(glyphs, photos)


@dataclass(frozen=True)
class Scene:
    """One image with its mask and what it was made of."""

    MANIFEST_COLUMNS: ClassVar[list[str]] = [
        *("image", "split", "label", "photo", "top", "left", "side", "digit", "digit_size"),
        *("distractors", "distractor_labels"),
    ]

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


class Composer:
    """Makes scenes of one split."""

    def __init__(self, config: ScenesConfig, sources: Sources) -> None:
        self.config = config
        self.sources = sources

    def compose(self, label: int, generator: np.random.Generator) -> Scene:
        """A scene whose dominant digit is `label`."""
        config = self.config
        photo = self.sources.photos[generator.integers(len(self.sources.photos))]
        background, box = _background(photo, config, generator)
        taken = np.zeros((config.size, config.size), np.float32)  # ink of the digits so far
        mask = np.zeros((config.size, config.size), np.uint8)
        image = background.copy()
        digit = self._pick(label, generator)
        digit_size = int(generator.integers(config.digit[0], config.digit[1] + 1))
        self._draw(digit, digit_size, image, mask, taken, background, generator)
        distractors = []
        for _ in range(generator.integers(config.distractors + 1)):
            other = self._pick((label + int(generator.integers(1, 10))) % 10, generator)
            size = int(generator.integers(config.distractor[0], config.distractor[1] + 1))
            if self._draw(other, size, image, mask, taken, background, generator):
                distractors.append(other)
        pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return Scene(pixels, mask, label, photo.number, box, digit, digit_size, distractors)

    def _pick(self, label: int, generator: np.random.Generator) -> Glyph:
        of_class = self.sources.glyphs[label]
        return of_class[generator.integers(len(of_class))]

    def _draw(
        self,
        glyph: Glyph,
        size: int,
        image: Floats,
        mask: Pixels,
        taken: Floats,
        background: Floats,
        generator: np.random.Generator,
    ) -> bool:
        """Draw the digit where no other has ink; False, and nothing drawn, where twenty places had some."""
        ink = upscale(glyph.ink, size)
        for _ in range(20):
            top, left = (int(n) for n in generator.integers(0, self.config.size - size + 1, 2))
            place = (slice(top, top + size), slice(left, left + size))
            if not np.any((ink > NO_INK) & (taken[place] > NO_INK)):
                break
        else:
            return False
        colour = _ink_colour(background[place], self.config.ink, generator)
        image[place] += ink[..., None] * (colour - image[place])
        region = mask[place]
        region[(ink > NO_INK) & (region == 0)] = IGNORE
        region[ink >= INK] = glyph.label + 1
        np.maximum(taken[place], ink, out=taken[place])
        return True


def upscale(ink: Floats, size: int) -> Floats:
    """(8, 8) -> (size, size) in 0..1: bicubic, then steeper, so that strokes have edges of about a pixel."""
    smooth = cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC)
    steepness = max(1.0, size / 12)
    return np.clip((smooth - 0.45) * steepness + 0.5, 0, 1)


def _background(
    photo: Photo, config: ScenesConfig, generator: np.random.Generator
) -> tuple[Floats, tuple[int, int, int]]:
    """A square of the photograph as (size, size, 3) levels at reduced contrast, and its (top, left, side)."""
    size = config.size
    height, width = photo.pixels.shape[:2]
    side = int(generator.integers(size, min(height, width, 5 * size) + 1))
    top, left = int(generator.integers(height - side + 1)), int(generator.integers(width - side + 1))
    crop = photo.pixels[top : top + side, left : left + side].astype(np.float32)
    small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    mean = small.mean(axis=(0, 1))
    level = generator.uniform(*config.background)  # drawn afresh: a photograph's own brightness would tell its region
    factor = generator.uniform(config.contrast[0], config.contrast[1])
    tinted = level + 0.5 * (mean - mean.mean())
    return (tinted + factor * (small - mean)).astype(np.float32), (top, photo.left + left, side)


def _ink_colour(behind: Floats, levels: Sequence[int], generator: np.random.Generator) -> Floats:
    """A tinted colour, lighter by its luma than what lies behind the digit."""
    weights = np.array([0.299, 0.587, 0.114])
    luma = behind.mean(axis=(0, 1)) @ weights
    while True:
        colour = np.clip(generator.uniform(*levels) + generator.uniform(-INK_TINT, INK_TINT, 3), 0, 255)
        if colour @ weights >= luma + MIN_LUMA_DISTANCE:
            return colour.astype(np.float32)
