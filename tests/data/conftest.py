"""Small datasets for the tests of data/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.catalog import DataConfig
from data.scenes import ScenesConfig


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
