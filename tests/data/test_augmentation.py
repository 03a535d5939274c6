"""The views against the published recipe written with PIL and torchvision: each operation, and the distribution."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as tf
from view_statistics import KINDS, SIZE, SMALL_SCALE, SMALL_SIZE, VIEWS, smallest_p, statistics

from data import colour
from data.config import ViewsConfig
from data.images import resize
from data.views import ViewMaker, sample_generator

CONFIG = ViewsConfig(
    large_size=SIZE, large_scale=[0.08, 1.0], small_count=1, small_size=SMALL_SIZE, small_scale=list(SMALL_SCALE)
)


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
    assert np.mean(other_filter) > 0.2  # so the bound above distinguishes the filters


# The whole recipe: distributions of image statistics.


def our_statistics(photos: list[np.ndarray], config: ViewsConfig, kind: str, count: int = VIEWS) -> np.ndarray:
    maker = ViewMaker(config, lambda side: (1, 1))
    view, rows = KINDS[kind], []
    for index in range(count):
        image = photos[index % len(photos)]
        plan = maker.draw(*image.shape[:2], sample_generator(7, 0, index))[view]
        rows.append(statistics(maker.render(image, plan, maker.sides[view])))
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_same_distribution_as_the_published_recipe(published, photos: list[np.ndarray], kind: str) -> None:
    assert smallest_p(our_statistics(photos, CONFIG, kind), published[kind]) > 0.01


# A test that cannot fail shows nothing: these are other distributions, and the test must notice.
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"blur_probability": [0.6, 0.1]}, "even"),
        ({"blur_probability": [1.0, 0.5]}, "odd"),
        ({"solarize_probability": [0.0, 0.5]}, "odd"),
        ({"gray_probability": 0.5}, "even"),
        ({"brightness": 0.9, "contrast": 0.9}, "odd"),
        ({"large_scale": [0.6, 1.0]}, "even"),
        ({"small_scale": [0.3, 1.0]}, "small"),
    ],
)
def test_another_distribution_is_noticed(published, photos: list[np.ndarray], wrong: dict, kind: str) -> None:
    assert smallest_p(our_statistics(photos, CONFIG.replace(**wrong), kind), published[kind]) < 0.001


def one_gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur without the roundings between PIL's passes."""
    return cv2.GaussianBlur(image, (13, 13), sigma, borderType=cv2.BORDER_REPLICATE)


def bilinear(image: np.ndarray, height: int, width: int, out: None) -> np.ndarray:
    return resize(image, height, width, mode="bilinear")


def no_antialias(image: np.ndarray, height: int, width: int, out: None) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


# Sharpness shows the difference, that of a crop best if no blur follows.
@pytest.mark.parametrize(
    ("replaced", "by", "kind"),
    [
        ("data.colour.blur", one_gaussian, "even"),
        ("data.views.resize", bilinear, "odd"),
        ("data.views.resize", no_antialias, "odd"),
    ],
)
def test_another_rendering_is_noticed(
    published, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, replaced: str, by: object, kind: str
) -> None:
    monkeypatch.setattr(replaced, by)
    assert smallest_p(our_statistics(photos, CONFIG, kind), published[kind]) < 0.001
