"""Decoding: every kind of file right, or an error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from data import images
from data.images import ImageList, normalise, read_header, read_image, stored_mode
from data.store import ImageStore
from runtime.errors import UserError


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[1][100:260, 200:420])


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_equals_pil(photo: Image.Image, tmp_path: Path, subsampling: int) -> None:
    photo.save(tmp_path / "a.jpg", quality=90, subsampling=subsampling)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), np.array(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_png_of_every_mode_is_rgb(photo: Image.Image, tmp_path: Path, mode: str) -> None:
    converted = photo.convert(mode)
    converted.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.array(converted.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_every_mode_is_close_to_the_photo(photo: Image.Image, tmp_path: Path, mode: str) -> None:
    photo.convert(mode).save(tmp_path / "a.jpg", quality=95)
    expected = np.array(photo.convert(mode).convert("RGB"), int)
    assert read_image(tmp_path / "a.jpg").shape == expected.shape
    assert np.abs(read_image(tmp_path / "a.jpg") - expected).mean() < 4  # not inverted, as CMYK easily is


@pytest.mark.parametrize("subsampling", [0, 2])
def test_progressive_jpeg_and_its_comments(photo: Image.Image, tmp_path: Path, subsampling: int) -> None:
    photo.save(tmp_path / "a.jpg", progressive=True, comment=b"x" * 1000, subsampling=subsampling)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), np.array(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_bits_than_eight_are_refused(photo: Image.Image, tmp_path: Path, mode: str) -> None:
    """PIL would clip their levels to 255."""
    levels = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 200)
    path = tmp_path / "a.tif"
    levels.convert(mode).save(path)
    with pytest.raises(UserError, match=r"a\.tif.*8 bits a channel"):
        read_image(path)


def test_exif_does_not_turn_the_image(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (photo.height, photo.width, 3)


def test_files_that_are_not_images_are_named(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "whole.jpg")
    photo.save(tmp_path / "whole.png")
    content = {name: (tmp_path / name).read_bytes() for name in ("whole.jpg", "whole.png")}
    bad = {
        "cut.jpg": content["whole.jpg"][:2000],
        "cut.png": content["whole.png"][:2000],
        "text.jpg": b"<html>404</html>",
        "empty.png": b"",
        "start.jpg": b"\xff\xd8",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_without_simplejpeg_the_pixels_are_the_same(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "a.jpg")
    fast = read_image(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "simplejpeg", None)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), fast)


def test_normalise_equals_torchvision(photo: Image.Image) -> None:
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(images.MEAN, images.STD)])(photo)
    pixels = np.array(photo)
    torch.testing.assert_close(normalise(pixels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalise(np.stack([pixels, pixels]))[1], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def three(photo: Image.Image, tmp_path: Path) -> ImageList:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for number, path in enumerate(paths):
        photo.resize((10 + number, 10)).save(path)
    paths[1].write_bytes(b"no image")
    return ImageList(paths, [5, 6, 7])


def test_a_small_set_is_read_at_once(three: ImageList) -> None:
    with pytest.raises(UserError, match=r"1\.png"):
        ImageStore(three)
    store = ImageStore(three, "skip")
    assert store.images.labels == [5, 7]
    assert [store.read(n)[1].shape[1] for n in range(2)] == [10, 12]
    assert store.skipped == {1}


def test_a_large_set_is_read_as_needed(three: ImageList) -> None:
    store = ImageStore(three, memory_bytes=0)
    assert store.read(0)[1].shape == (10, 10, 3)
    with pytest.raises(UserError, match=r"1\.png"):
        store.read(1)
    store = ImageStore(three, "skip", memory_bytes=0)
    assert store.read(1)[0] == 2  # the next readable one replaces it
    assert store.skipped == {1}
    for path in three.paths:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 3 images"):
        store.read(0)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [16, 30, 75])
def test_a_resize_into_a_batch_writes_the_same_pixels_there_and_nowhere_else(mode, side):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)[5:35, 7:37]
    batch = np.full((3, side, side, 3), 77, np.uint8)
    images.resize(image, side, side, mode, out=batch[1])
    np.testing.assert_array_equal(batch[1], images.resize(image, side, side, mode))
    assert (batch[[0, 2]] == 77).all()


@pytest.mark.parametrize(
    ("name", "options", "mode"),
    [
        ("a.png", {"bits": 4}, "L;4"),
        ("a.png", {}, "L"),
        ("a.tif", {}, "L"),
        ("a.tif", {"compression": "tiff_lzw"}, "L"),
        ("a.tif", {"tiffinfo": {262: 0}}, "L"),  # white is 0
        ("a.pgm", {}, "L"),
        ("a.bmp", {}, "L"),
        ("a.jpg", {}, "L"),
    ],
)
def test_gray_values_that_pil_rescales_are_told_from_those_it_keeps(name, options, mode, tmp_path) -> None:
    values = np.arange(16, dtype=np.uint8).reshape(2, 8)
    Image.fromarray(values).save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as image:
        assert stored_mode(image) == read_header(tmp_path / name).mode == mode
        assert np.array_equal(np.array(image), values) == (mode == "L") or name == "a.jpg"


def test_a_graymap_of_another_maximum_is_rescaled(tmp_path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 3\n\0\1\2\3")
    assert read_header(tmp_path / "a.pgm").mode == "L with a maximum of 3"
