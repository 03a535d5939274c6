"""Image files to uint8 arrays, and the one resize that crops, views and evaluations share."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from data.config import MEAN, STD
from data.recycle import Recycler
from runtime.errors import UserError

try:
    import simplejpeg
except ImportError:  # only faster: the pixels are PIL's
    simplejpeg = None

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

# torchvision's IMG_EXTENSIONS, so that a folder holds the same images here and there
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 178_956_970  # of one image, 0.5 GB decoded: where PIL suspects a decompression bomb and stops


def read_image(path: Path) -> Pixels:
    """The file as (H, W, 3) RGB, without turning it by its EXIF tag (as torchvision's ImageFolder reads it).

    Raises UserError, naming the file, where it is missing, truncated or no image.
    """
    return decode(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Raises UserError where the file cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error


def decode(content: bytes, path: Path) -> Pixels:
    """The bytes of an image file as (H, W, 3) RGB. Raises UserError, naming `path`, for what is no whole image."""
    if simplejpeg is not None and content[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content)
            if space in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(content, colorspace="RGB")
        except ValueError:
            pass  # odd or damaged: PIL decides, so that what is readable does not depend on simplejpeg
    return _decode_with_pil(content, path)


def _decode_with_pil(content: bytes, path: Path) -> Pixels:
    with open_image(io.BytesIO(content), path) as image:
        if image.mode.startswith(("I", "F")):  # PIL would clip them to 255
            raise ValueError(f"its mode is {image.mode!r}, and 8 bits a channel are expected; convert it")
        return np.array(as_stored(image).convert("RGB"))


@contextmanager
def open_image(file: IO[bytes], path: Path) -> Iterator[Image.Image]:
    """The open file as PIL's image, of which the header alone is read; what is decoded within may fail as well.

    Raises UserError, naming `path`, for what is no whole image, or has more than MAX_PIXELS.
    """
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no image of a known format" if file.seek(0, io.SEEK_END) else "the file is empty"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"its header promises more pixels than the {MAX_PIXELS:,} that are allowed; shrink or cut it"
        raise UserError(
            f"cannot decode the image {path}: {reason}. Replace or remove the file; "
            "pretraining leaves unreadable images out with data.on_bad_image=skip"
        ) from error


def as_stored(image: Image.Image) -> Image.Image:
    """The image, to be decoded as its file stores it: PIL would turn a TIFF by its tag, and nothing else."""
    if not isinstance(image, TiffImageFile):
        return image
    image.getexif().pop(ExifTags.Base.Orientation, None)
    image.load()
    return image.copy()  # whose size is that of its pixels


@dataclass(frozen=True)
class Header:
    """What a file says of its image before the pixels."""

    height: int
    width: int
    mode: str  # as PIL has it
    orientation: int  # EXIF's: 1 is upright, 2 to 8 ask a viewer to turn or mirror the image; ignored at every stage


def read_header(path: Path) -> Header:
    """Raises UserError, naming the file, where it is missing, no image, or has more than MAX_PIXELS."""
    try:
        with open(path, "rb") as file, open_image(file, path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # where PIL's size is that of the image when it is turned
                width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
            return Header(height, width, image.mode, _orientation(image))
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # PngImageFile's own decodes the image
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1  # damaged tags turn nothing
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def resize(image: Pixels, height: int, width: int, mode: str = "bicubic", out: Pixels | None = None) -> Pixels:
    """Antialiased resize to (height, width, 3); equals PIL's to a fraction of a level, several times faster.

    With `out`, contiguous, the result is written there, and it is what is returned.
    """
    if image.shape[:2] == (height, width):
        if out is None:
            return image
        out[:] = image
        return out
    # channels_last in and out: half of the time
    if out is not None:
        _RESIZE[mode].out(_channels_last(np.ascontiguousarray(image)), (height, width), False, out=_channels_last(out))
        return out
    resized = _RESIZE[mode](_channels_last(np.ascontiguousarray(image)), (height, width), False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()[0])


def _channels_last(image: Pixels) -> torch.Tensor:
    """(1, 3, H, W), the same memory; torch must see a batch axis with a stride, which numpy's new axes have not."""
    height, width, channels = image.shape
    return torch.from_numpy(image).as_strided(
        (1, channels, height, width), (height * width * channels, 1, width * channels, channels)
    )


# What torch.nn.functional.interpolate(antialias=True) calls: for a small view its checks take as long as the work.
_RESIZE = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa, "bilinear": torch.ops.aten._upsample_bilinear2d_aa}


def shrink(image: Pixels, short_side: int) -> Pixels:
    """Reduced so that the shorter side has `short_side` pixels; an image that is not larger, or 0, stays as it is."""
    height, width = image.shape[:2]
    if not 0 < short_side < min(height, width):
        return image
    scale = short_side / min(height, width)
    return resize(image, max(short_side, round(height * scale)), max(short_side, round(width * scale)))


def normalise(
    images: Pixels | torch.Tensor,
    recycler: Recycler | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> torch.Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W), channels_last in memory, with that mean and deviation.

    On a CPU its memory comes from the recycler, if there is one.
    """
    levels = torch.as_tensor(images)
    if levels.device.type != "cpu":
        middle, spread = (255 * torch.tensor(values, device=levels.device) for values in (mean, std))
        return levels.float().sub_(middle).div_(spread).movedim(-1, -3)
    # One row of constants for a row of pixels, not one value a channel: the innermost loop is then long.
    width = levels.shape[-2]
    scale = (1 / (255 * torch.tensor(std))).repeat(width)
    shift = (torch.tensor(mean) / torch.tensor(std)).repeat(width)
    # numpy takes large arrays in huge pages, torch does not: a third of the time for a batch
    empty = np.empty if recycler is None else recycler.take
    normalised = torch.from_numpy(empty(tuple(levels.shape), np.float32))
    normalised.flatten(-2).copy_(levels.flatten(-2)).mul_(scale).sub_(shift)
    return normalised.movedim(-1, -3)


@dataclass(frozen=True)
class ImageList:
    """The images of one split; `labels` is None for a dataset without classes."""

    paths: list[Path]
    labels: list[int] | None
    left_out: dict[str, int] = field(default_factory=dict)  # files of the split that are not taken, by reason

    def __len__(self) -> int:
        return len(self.paths)

    def describe_left_out(self) -> str | None:
        """As "files left out: 3 (2 ending in .txt, 1 beside the class folders)"; None where there are none."""
        if not self.left_out:
            return None
        most = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        more = ", ..." if len(most) > 5 else ""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in most[:5])
        return f"files left out: {sum(self.left_out.values()):,} ({reasons}{more})"


@dataclass(frozen=True)
class FileSource:
    """The image of a number, from its file. Raises UserError where that cannot be read."""

    paths: Sequence[Path]
    short_side: int = 0  # pixels, as of `shrink`

    def __call__(self, number: int) -> Pixels:
        return shrink(read_image(self.paths[number]), self.short_side)


class ImageStore:
    """Decoded images by number. A small set is read whole at once and kept; a large one is read as it is needed.

    `source` gives the image of a number of `images`; without one it is the file as it is.
    """

    def __init__(
        self,
        images: ImageList,
        on_bad_image: str = "stop",
        memory_bytes: int = 1 << 30,
        source: Callable[[int], Pixels] | None = None,
    ) -> None:
        self.images = images
        self.bad_files: set[Path] = set()
        self._source = source or FileSource(images.paths)
        self._skip = on_bad_image == "skip"
        self._kept: list[Pixels] | None = None
        if decoded_bytes(images.paths) <= memory_bytes:
            self._keep_all()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def _keep_all(self) -> None:
        """Read every image now, so that a bad one stops (or is dropped) before anything is trained."""
        kept, numbers = [], []
        for number, path in enumerate(self.images.paths):
            try:
                kept.append(self._source(number))
                numbers.append(number)
            except UserError:
                if not self._skip:
                    raise
                self.bad_files.add(path)
        self._kept = kept
        if self.bad_files:
            labels = self.images.labels
            kept_labels = None if labels is None else [labels[n] for n in numbers]
            self.images = ImageList([self.images.paths[n] for n in numbers], kept_labels)

    def read(self, index: int) -> tuple[int, Pixels]:
        """(number, image): the image asked for, or, where bad ones are skipped, the next readable one."""
        if self._kept is not None:
            return index, self._kept[index]
        for step in range(len(self)):
            number = (index + step) % len(self)
            try:
                return number, self._source(number)
            except UserError:
                if not self._skip:
                    raise
                self.bad_files.add(self.images.paths[number])
        raise UserError(f"none of the {len(self)} images can be read; the first is {self.images.paths[0]}")


def decoded_bytes(paths: Sequence[Path], short_side: int = 0, samples: int = 64) -> float:
    """Bytes that the decoded (and reduced) images take, from the headers of a few of them; 0 where none tells."""
    sizes = []
    for path in paths[:: max(1, len(paths) // samples)]:
        try:
            with Image.open(path) as image:
                scale = min(1.0, short_side / min(image.size)) if short_side else 1.0
                sizes.append(3 * image.width * image.height * scale**2)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    # A set of which no header can be read is read (and refused) at once.
    return len(paths) * float(np.mean(sizes)) if sizes else 0.0
