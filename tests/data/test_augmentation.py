"""The views against the published recipe written with PIL and torchvision: each operation, and the distribution."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as tf
from view_statistics import KINDS, SIZE, SMALL_SCALE, SMALL_SIZE, VIEWS, smallest_p, statistics

from data import colour
from data.batch_colour import mirror_and_colour, normalise_batch, plan_batch
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


@pytest.mark.parametrize("execution", ["cpu", "device", "compiled"])
def test_a_jitter_of_nothing_changes_nothing(monkeypatch: pytest.MonkeyPatch, execution: str) -> None:
    """As torchvision's, which leaves the operations out; a shift of hue by 0 would round every colour."""
    monkeypatch.setattr("data.batch_colour.compiled_version", lambda operation: operation)
    config = CONFIG.replace(jitter_probability=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    noise = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    maker = ViewMaker(config, lambda side: (1, 1))
    plans = [maker.draw(SIZE, SIZE, sample_generator(0, 0, index))[0] for index in range(len(noise))]
    plans = [replace(plan, mirrored=False, gray=False, blur_sigma=0.0, solarized=False) for plan in plans]
    if execution == "cpu":
        assert all((maker.colour(image, plan) == image).all() for image, plan in zip(noise, plans, strict=True))
        return
    levels = torch.from_numpy(noise)
    coloured = mirror_and_colour(levels, plan_batch(plans), config, execution == "compiled")
    assert torch.equal(coloured, normalise_batch(levels, config))


def test_without_hue_all_else_is_drawn_as_with_it() -> None:
    with_hue, without = (
        ViewMaker(CONFIG.replace(hue=hue), lambda side: (1, 1)).draw(60, 60, sample_generator(0, 0, 1))
        for hue in (0.1, 0.0)
    )
    assert any(plan.jitter for plan in without)
    for one, other in zip(with_hue, without, strict=True):
        if one.jitter is not None:
            order = tuple(number for number in one.jitter.order if number != 3)
            assert other.jitter == replace(one.jitter, hue=other.jitter.hue, order=order)
        assert replace(other, jitter=None) == replace(one, jitter=None)


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
