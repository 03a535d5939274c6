"""EXIF's orientation tag is ignored by every reader: pixels are taken as the file stores them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import cache, images
from data.cache import CacheReader, open_source
from data.catalog import Dataset, open_dataset
from data.config import DataConfig, ViewsConfig
from data.images import read_header, read_image
from data.layout import MaskLabels
from data.loader import PretrainLoader
from data.store import ImageStore, decoded_bytes
from data.transforms import LabelledDataset, eval_transform
from eval.features import ImageBatches
from runtime.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

VIEWS = ViewsConfig(large_size=32, small_count=1, small_size=16)


@pytest.fixture
def plain(photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Eight JPEGs of 120 x 160 pixels without a tag, as an ImageFolder tree."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "caches"))
    for split in ("train", "val"):
        for number, photo in enumerate(photos):
            folder = tmp_path / "plain" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(folder / f"{number}.jpg", quality=95)
    return open_dataset(DataConfig(name="imagefolder", root=str(tmp_path / "plain")))


@pytest.fixture(params=[3, 6], ids=["180 degrees", "90 degrees"])
def tagged(plain: Dataset, request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """The same files with a tag."""
    shutil.copytree(plain.root, tmp_path / "tagged")
    for path in (tmp_path / "tagged").rglob("*.jpg"):
        trees.tag(path, request.param)
        assert read_header(path).orientation == request.param
    return open_dataset(DataConfig(name="imagefolder", root=str(tmp_path / "tagged")))


def from_files(dataset: Dataset) -> Iterator[np.ndarray]:
    yield from map(read_image, dataset.images("train").paths)


def from_memory(dataset: Dataset) -> Iterator[np.ndarray]:
    store = ImageStore(dataset.images("train"))
    assert store.in_memory
    yield from (store.read(number)[1] for number in range(len(store)))


def from_cache(dataset: Dataset) -> Iterator[np.ndarray]:
    cache.build(dataset, 64, workers=1, skip_bad=False)
    source = open_source(dataset, 64)
    assert isinstance(source, CacheReader)
    yield from map(source, range(8))


def from_pretraining(dataset: Dataset) -> Iterator[np.ndarray]:
    loader = PretrainLoader(dataset, VIEWS, lambda side: (2, 2), 4, 0, 0, memory_bytes=0)
    for batch in loader.batches(0, 2):
        yield from (view.numpy() for view in batch.tensors())


def from_linear_and_knn(dataset: Dataset) -> Iterator[np.ndarray]:
    batches = ImageBatches(LabelledDataset(dataset.images("train"), eval_transform(64, 56), 0), 4)
    yield from (pixels.numpy() for pixels, _ in batches.of_epoch(0, 0, 0))


READERS = [from_files, from_memory, from_cache, from_pretraining, from_linear_and_knn]


@pytest.mark.parametrize("with_simplejpeg", [True, False], ids=["simplejpeg", "PIL"])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_reader_rotates_an_image(reader, with_simplejpeg, plain, tagged, monkeypatch) -> None:
    if not with_simplejpeg:
        monkeypatch.setattr(images, "simplejpeg", None)
    expected, actual = list(reader(plain)), list(reader(tagged))
    assert len(expected) > 1
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other)


def test_headers_have_size_mode_and_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        for orientation in (1, 8):
            exif[0x0112] = orientation
            Image.new("RGB", (30, 20)).save(tmp_path / name, exif=exif)
            header = read_header(tmp_path / name)
            assert (header.height, header.width, header.mode, header.orientation) == (20, 30, "RGB", orientation)
    with pytest.raises(UserError, match=r"none\.png: No such file"):
        read_header(tmp_path / "none.png")
    exif[0x0112] = 77
    Image.new("L", (30, 20)).save(tmp_path / "odd.png", exif=exif)
    assert read_header(tmp_path / "odd.png").orientation == 1
    segment = b"Exif\0\0no tags at all"
    content = (tmp_path / "a.jpg").read_bytes()
    broken = content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]
    (tmp_path / "broken.jpg").write_bytes(broken)
    assert read_header(tmp_path / "broken.jpg").orientation == 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_no_format_is_rotated(suffix: str, orientation: int, compression: str | None, photos, tmp_path: Path) -> None:
    """PIL rotates TIFFs when it decodes them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    settings = {".tif": {"compression": compression}, ".webp": {"lossless": True}, ".png": {}}[suffix]
    Image.fromarray(photos[0]).save(path, exif=exif, **settings)
    header = read_header(path)
    assert (header.height, header.width, header.orientation) == (*photos[0].shape[:2], orientation)
    np.testing.assert_array_equal(read_image(path), photos[0])
    if suffix != ".webp":
        Image.fromarray(photos[0][..., 0]).save(path, exif=exif, **settings)
        np.testing.assert_array_equal(MaskLabels(256).read(path), photos[0][..., 0])


def test_memory_is_estimated_from_stored_sizes(plain, tagged) -> None:
    assert decoded_bytes(plain.images("train")) == decoded_bytes(tagged.images("train"))
