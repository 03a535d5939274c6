"""The views against the published recipe written with PIL and torchvision: each operation, and the distribution.

The recipe's parts and probabilities: shared definitions of arXiv 2210.01571's code (README of tests/golden).
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import functional as tf

from data import colour
from data.images import resize
from data.views import ViewMaker, ViewsConfig, sample_generator

SIZE = 48
VIEWS = 1000
CONFIG = ViewsConfig(large_size=SIZE, large_scale=[0.08, 1.0])


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Eight pieces of 120 x 160 pixels of two photographs."""
    pieces = []
    for photo in load_sample_images().images:
        pieces += [photo[top : top + 120, left : left + 160] for top in (30, 260) for left in (100, 400)]
    return [np.ascontiguousarray(piece) for piece in pieces]


def mean_difference(ours: np.ndarray, pil: Image.Image) -> float:
    return float(np.abs(ours.astype(int) - np.asarray(pil.convert("RGB"), int)).mean())


# Each operation alone, levels of 255. The factors are no round numbers: where a product is a whole level, PIL's
# truncation follows the last bit of its float.


@pytest.mark.parametrize("factor", [0.613, 0.857, 1.0, 1.391])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_equal_pil(photos: list[np.ndarray], name: str, factor: float) -> None:
    for photo in photos:
        amounts = colour.Jitter(factor, factor, factor, 0.0, (("brightness", "contrast", "saturation").index(name),))
        expected = getattr(tf, f"adjust_{name}")(Image.fromarray(photo), factor)
        assert mean_difference(colour.jitter(photo, amounts), expected) < 0.02


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.1])
def test_hue_equals_pil(photos: list[np.ndarray], shift: float) -> None:
    for photo in photos:
        # PIL and OpenCV quantise hue and saturation to 256 levels differently: about a level
        assert mean_difference(colour.shift_hue(photo, shift), tf.adjust_hue(Image.fromarray(photo), shift)) < 1.5


@pytest.mark.parametrize("sigma", [0.113, 0.517, 0.997, 1.42, 1.983])
def test_blur_equals_pil(photos: list[np.ndarray], sigma: float) -> None:
    for photo in photos:
        expected = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma))
        assert mean_difference(colour.blur(photo, sigma), expected) < 0.001


def test_solarize_and_gray_equal_pil(photos: list[np.ndarray]) -> None:
    for photo in photos:
        assert mean_difference(colour.solarize(photo, 128), ImageOps.solarize(Image.fromarray(photo))) == 0
        assert mean_difference(colour.to_gray(photo), ImageOps.grayscale(Image.fromarray(photo))) < 0.01


@pytest.mark.parametrize("side", [32, 100, 224])
def test_resize_equals_pil_bicubic(photos: list[np.ndarray], side: int) -> None:
    other_filter = []
    for photo in photos:
        crop = photo[3:90, 11:131]
        pil = Image.fromarray(crop)
        ours = resize(crop, side, side)
        assert mean_difference(ours, pil.resize((side, side), Image.Resampling.BICUBIC)) < 0.02
        other_filter.append(mean_difference(ours, pil.resize((side, side), Image.Resampling.BILINEAR)))
    assert np.mean(other_filter) > 0.2  # so the bound above tells the filters apart


# The whole recipe: distributions of image statistics.


class PublishedRecipe:
    """One view as the published code makes it, plainly."""

    def __init__(self, odd: bool) -> None:
        self.geometry = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=(0.08, 1.0), interpolation=tf.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
            ]
        )
        self.blur_probability, self.solarize_probability = (0.1, 0.2) if odd else (1.0, 0.0)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        view = self.geometry(Image.fromarray(image))
        if random.random() < self.blur_probability:
            view = view.filter(ImageFilter.GaussianBlur(radius=random.random() * 1.9 + 0.1))
        if random.random() < self.solarize_probability:
            view = ImageOps.solarize(view)
        return np.asarray(view)


def statistics(view: np.ndarray) -> list[float]:
    """Thirteen numbers that colour, contrast, sharpness and inversion change."""
    levels = view.astype(np.float32)
    gray = levels.mean(axis=2)
    saturation = levels.max(axis=2) - levels.min(axis=2)
    red_green, yellow_blue = levels[..., 0] - levels[..., 1], levels[..., :2].mean(axis=2) - levels[..., 2]
    return [
        *levels.mean(axis=(0, 1)),
        *levels.std(axis=(0, 1)),
        float(saturation.mean()),
        math.log1p(float(np.abs(np.diff(gray, axis=0)).mean())),
        math.log1p(float(np.abs(np.diff(gray, axis=1)).mean())),
        math.log1p(float(np.abs(np.diff(gray, n=2, axis=1)).mean())),
        float((gray >= 128).mean()),
        float(red_green.mean()),
        float(yellow_blue.mean()),
    ]


def our_statistics(photos: list[np.ndarray], config: ViewsConfig, odd: bool, count: int) -> np.ndarray:
    maker = ViewMaker(config, lambda side: (1, 1))
    rows = []
    for index in range(count):
        image = photos[index % len(photos)]
        plan = maker.draw(*image.shape[:2], sample_generator(7, 0, index))[int(odd)]
        rows.append(statistics(maker.render(image, plan, SIZE)))
    return np.array(rows)


@pytest.fixture(scope="module")
def published(photos: list[np.ndarray]) -> dict[bool, np.ndarray]:
    """Statistics of even (False) and odd (True) views of the plain recipe."""
    random.seed(1)
    torch.manual_seed(1)
    recipes = {odd: PublishedRecipe(odd) for odd in (False, True)}
    return {
        odd: np.array([statistics(recipe(photos[n % len(photos)])) for n in range(VIEWS)])
        for odd, recipe in recipes.items()
    }


def smallest_p(a: np.ndarray, b: np.ndarray) -> float:
    """Of thirteen two-sample Kolmogorov-Smirnov tests."""
    return min(ks_2samp(a[:, k], b[:, k]).pvalue for k in range(a.shape[1]))


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
def test_same_distribution_as_the_published_recipe(published, photos: list[np.ndarray], odd: bool) -> None:
    assert smallest_p(our_statistics(photos, CONFIG, odd, VIEWS), published[odd]) > 0.01


# A test that cannot fail shows nothing: these are other distributions, and it tells.
@pytest.mark.parametrize(
    ("wrong", "odd"),
    [
        ({"blur_probability": [0.6, 0.1]}, False),
        ({"blur_probability": [1.0, 0.5]}, True),
        ({"solarize_probability": [0.0, 0.5]}, True),
        ({"gray_probability": 0.4}, False),
        ({"brightness": 0.7, "contrast": 0.7}, True),
        ({"large_scale": [0.4, 1.0]}, False),
    ],
)
def test_another_distribution_is_told_apart(published, photos: list[np.ndarray], wrong: dict, odd: bool) -> None:
    assert smallest_p(our_statistics(photos, replace(CONFIG, **wrong), odd, VIEWS), published[odd]) < 0.001


def one_gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur without the roundings between PIL's passes."""
    return cv2.GaussianBlur(image, (13, 13), sigma, borderType=cv2.BORDER_REPLICATE)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return resize(image, height, width, mode="bilinear")


def no_antialias(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


# Sharpness tells them; a crop's only where no blur follows.
@pytest.mark.parametrize(
    ("replaced", "by", "odd"),
    [
        ("data.colour.blur", one_gaussian, False),
        ("data.views.resize", bilinear, True),
        ("data.views.resize", no_antialias, True),
    ],
)
def test_another_rendering_is_told_apart(
    published, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, replaced: str, by: object, odd: bool
) -> None:
    monkeypatch.setattr(replaced, by)
    assert smallest_p(our_statistics(photos, CONFIG, odd, VIEWS), published[odd]) < 0.001
