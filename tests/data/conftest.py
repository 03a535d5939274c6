"""Small datasets for the tests of data/."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parent))
from view_statistics import SIZE, SMALL_SCALE, SMALL_SIZE, VIEWS, statistics

from benchmarks.published_recipe import PublishedRecipe
from tests.twins import FORMS, write_shards

torch.set_num_threads(1)  # tests run side by side with other work


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Eight pieces of 120 x 160 pixels of two photographs."""
    pieces = []
    for photo in load_sample_images().images:
        pieces += [photo[top : top + 120, left : left + 160] for top in (30, 260) for left in (100, 400)]
    return [np.ascontiguousarray(piece) for piece in pieces]


@pytest.fixture(scope="session")
def published(photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of even, odd and small (even) views of the plain recipe, each (VIEWS, 14)."""
    random.seed(1)
    torch.manual_seed(1)
    recipes = {
        "even": PublishedRecipe(False, SIZE),
        "odd": PublishedRecipe(True, SIZE),
        "small": PublishedRecipe(False, SMALL_SIZE, SMALL_SCALE),
    }
    images = [Image.fromarray(photo) for photo in photos]
    return {
        kind: np.array([statistics(np.asarray(recipe(images[n % len(images)]))) for n in range(VIEWS)])
        for kind, recipe in recipes.items()
    }


@pytest.fixture
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "indexes"))


@pytest.fixture(params=FORMS)
def twin(request, image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "twin", request.param)


@pytest.fixture
def tars(image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "tars", "tar")


@pytest.fixture
def tables(image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "tables", "parquet")
