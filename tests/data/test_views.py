"""Location grids against the published code's values and against pixels; what a view is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.config import MEAN, STD, ViewsConfig
from data.views import Purpose, SampleStreams, ViewMaker, draw_box, location_grid, sample_generator
from pretrain.config import PretrainConfig
from pretrain.show import rendered
from runtime import config as configs
from runtime.errors import UserError

GRIDS = json.loads((Path(__file__).parents[1] / "golden" / "grids.json").read_text())
GEOMETRY_ONLY = {"jitter_probability": 0.0, "gray_probability": 0.0, "solarize_probability": [0.0, 0.0]} | {
    "blur_probability": [0.0, 0.0]
}


@pytest.mark.parametrize("case", GRIDS, ids=lambda case: f"side{case['side']}-flipped{case['flipped']}")
def test_grid_equals_the_published_code(case: dict) -> None:
    box = torch.tensor([[case["crop"][key] for key in ("top", "left", "height", "width")]])
    grid = location_grid(box, torch.tensor([case["flipped"]]), case["side"], case["side"])
    assert grid.dtype == torch.float32
    # the golden grids were computed in float32, so to its rounding at some hundred pixels
    torch.testing.assert_close(grid[0], torch.tensor(case["grid"]), rtol=2e-7, atol=2e-5)


@pytest.mark.parametrize("flip_grid", [True, False])
def test_the_grid_says_where_the_pixels_came_from(flip_grid: bool) -> None:
    """An image whose red is its row and whose green is its column: the mean over a cell is the cell's location."""
    rows, columns = np.mgrid[0:200, 0:240]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    config = ViewsConfig(large_size=64, large_scale=[0.1, 0.6], flip_grid=flip_grid, **GEOMETRY_ONLY)
    maker = ViewMaker(config, lambda side: (4, 8))
    matches, mirrored = [], []
    for index in range(30):
        images, locations = maker(image, sample_generator(0, 0, index))
        for view, location in zip(images, locations, strict=True):
            levels = 255 * (view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1))
            cells = levels[:2].reshape(2, 4, 16, 8, 8).mean(dim=(2, 4)).permute(1, 2, 0)
            mirrored.append(bool(cells[0, 0, 1] > cells[0, -1, 1]))
            # a level is the centre of its pixel, half a pixel beyond its edge
            matches.append(bool((cells + 0.5 - location).abs().max() < 1.0))
    assert 15 < sum(mirrored) < 45
    assert matches == ([True] * 60 if flip_grid else [not m for m in mirrored])


def test_the_grid_has_the_size_of_the_networks_map() -> None:
    sizes = {32: (8, 8), 16: (3, 5)}
    config = ViewsConfig(large_size=32, small_size=16, small_count=3)
    images, locations = ViewMaker(config, sizes.__getitem__)(Image.new("RGB", (50, 40)), sample_generator(0, 0, 0))
    assert [tuple(image.shape) for image in images] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert [tuple(location.shape) for location in locations] == [(8, 8, 2)] * 2 + [(3, 5, 2)] * 3


@pytest.mark.parametrize(("height", "width"), [(40, 60), (300, 20), (20, 300), (1, 1)])
def test_boxes_lie_in_the_image(height: int, width: int) -> None:
    generator = sample_generator(0, 0, 0)
    for _ in range(200):
        top, left, box_height, box_width = draw_box(height, width, [0.08, 1.0], [0.75, 4 / 3], generator)
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert min(box_height, box_width) >= 1


def test_random_streams_of_samples_differ() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    numbers = [tuple(sample_generator(*key).random(4)) for key in keys]
    assert len(set(numbers)) == len(keys)
    assert tuple(sample_generator(0, 0, 1).random(4)) == numbers[3]
    assert tuple(sample_generator(0, 0, 1, purpose=Purpose.EPOCH_ORDER).random(4)) != numbers[3]


def test_streams_of_samples_in_turn_are_the_same() -> None:
    streams = SampleStreams(5, 3, purpose=Purpose.EPOCH_ORDER)
    for index in (7, 0, 7, 2**40):
        generator = sample_generator(5, 3, index, purpose=Purpose.EPOCH_ORDER)
        from_streams = streams.at(index)
        for count in (1, 5, 3):
            assert from_streams.random(count).tolist() == generator.random(count).tolist()
        assert from_streams.integers(100, size=3).tolist() == generator.integers(100, size=3).tolist()


@pytest.mark.parametrize("execution", ["cpu", "device"])
def test_normalisation_is_the_configs(execution: str) -> None:
    """Views are divided by its deviation; a sheet of views undoes just that, and shows the same pixels."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    makers = [
        ViewMaker(ViewsConfig(large_size=32, execution=execution, std=std, **GEOMETRY_ONLY), lambda side: (1, 1))
        for std in (list(STD), [0.5, 0.224, 0.225])
    ]
    one, other = (maker(image, sample_generator(0, 0, 0))[0][0] for maker in makers)
    torch.testing.assert_close(other[0] * 0.5, one[0] * 0.229)
    assert torch.equal(other[1:], one[1:])
    plans = makers[0].draw(60, 60, sample_generator(0, 0, 0))
    shown, expected = (rendered(maker, image, plans) for maker in reversed(makers))
    assert all((a == b).all() for a, b in zip(shown, expected, strict=True))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"large_count": 1}, "views.large_count = 1 is not possible; allowed: 2"),
        ({"large_count": 3}, "views.large_count = 3 is not possible; allowed: 2"),
        ({"large_scale": [0.5, 0.1]}, "views.large_scale"),
        ({"large_scale": [0.0, 1.0]}, "views.large_scale"),
        ({"hue": 0.7}, "views.hue"),
        ({"blur_probability": [1.0]}, "views.blur_probability"),
        ({"gray_probability": 1.2}, "views.gray_probability"),
        ({"small_size": 4}, "views.small_size"),
        ({"mean": [0.5]}, "views.mean"),
        ({"std": [0.2, 0.2, 0.0]}, "views.std"),
    ],
)
def test_impossible_values_are_refused(wrong: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        configs.from_layers(PretrainConfig, [("test", {"views": wrong})])
