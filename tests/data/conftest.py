"""Small datasets for the tests of data/."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from data.config import DataConfig, ScenesConfig

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks.published_recipe import SIZE, SMALL_SCALE, SMALL_SIZE, VIEWS, PublishedRecipe, statistics

torch.set_num_threads(1)  # tests run side by side with other work


@pytest.fixture(scope="session")
def scenes_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def small_scenes(scenes_parent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataConfig]:
    """The embedded dataset with 60 + 20 images, made once a session."""
    monkeypatch.setenv("VICREGL_DATA", str(scenes_parent))
    return DataConfig(scenes=ScenesConfig(train=60, val=20))


@pytest.fixture
def folder_of_60(small_scenes: DataConfig, tmp_path: Path) -> DataConfig:
    """A copy of those 60 images as an ImageFolder tree that a test may spoil."""
    import shutil

    from data.catalog import open_dataset

    root = open_dataset(small_scenes).root
    for split in ("train", "val"):
        shutil.copytree(root / split, tmp_path / "tree" / split)
    return DataConfig(name="imagefolder", root=str(tmp_path / "tree"))


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
