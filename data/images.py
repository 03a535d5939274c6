"""Image files to uint8 arrays; the resize and the normalising that pretraining and evaluations share."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from data.config import MEAN, STD
from runtime.errors import UserError

try:
    import simplejpeg
except ImportError:  # optional: faster than PIL, and the pixels are the same
    simplejpeg = None

if TYPE_CHECKING:
    from data.shards import Shards

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

# torchvision's IMG_EXTENSIONS, so that a folder holds the same images here and in torchvision's ImageFolder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 178_956_970  # per image, 0.5 GB decoded: above it, PIL refuses the file as a decompression bomb


def read_image(path: Path) -> Pixels:
    """Read the file as (H, W, 3) RGB; its EXIF orientation is ignored, as by torchvision's ImageFolder.

    Raises UserError, naming the file, if it is missing, truncated or not an image.
    """
    return decode(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Raises UserError if the file cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error


def decode(content: bytes, path: Path) -> Pixels:
    """Decode the bytes of an image file to (H, W, 3) RGB. Raises UserError, naming `path`, if that fails."""
    if simplejpeg is not None and content[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content)
            if space in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(content, colorspace="RGB")
        except ValueError:
            pass  # unusual or damaged: PIL decides, so that what is readable does not depend on simplejpeg
    with open_image(io.BytesIO(content), path) as image:
        if image.mode.startswith(("I", "F")):  # PIL would clip them to 255
            raise ValueError(f"its mode is {image.mode!r}, and 8 bits a channel are expected; convert it")
        return np.array(as_stored(image).convert("RGB"))


@contextmanager
def open_image(file: IO[bytes], path: Path) -> Iterator[Image.Image]:
    """Open the file with PIL, which reads only the header; the block may decode it.

    Raises UserError, naming `path`, if the header or the block's decoding fails, or for more than MAX_PIXELS.
    """
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image of a known format" if file.seek(0, io.SEEK_END) else "the file is empty"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"its header announces more pixels than the {MAX_PIXELS:,} that are allowed; shrink or crop it"
        raise UserError(
            f"cannot decode the image {path}: {reason}. Replace or remove the file; "
            "pretraining leaves unreadable images out with data.on_bad_image=skip"
        ) from error


def as_stored(image: Image.Image) -> Image.Image:
    """Undo PIL's handling of orientation tags: for TIFF alone it rotates the pixels when it decodes them.

    Every stage takes pixels as the file stores them, as the published code does, and a mask need not carry the tag of
    its image. So an image rotated here and not there would be cut, matched or scored at the wrong place.
    """
    if not isinstance(image, TiffImageFile):
        return image
    image.getexif().pop(ExifTags.Base.Orientation, None)
    image.load()
    return image.copy()  # has the size of the stored pixels; `image.size` stays that of the rotated ones


def stored_mode(image: Image.Image) -> str:
    """Return PIL's name of the mode, or what PIL rescales to it: "L;4" is gray of 4 bits, which it multiplies by 17."""
    tiles = getattr(image, "tile", [])  # of an image that a file holds, until it is decoded
    if image.mode != "L" or not tiles:
        return image.mode
    decoder, *_, arguments = tiles[0]
    first, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    if decoder.startswith("ppm") and others and others[0] != 255:
        return f"L with a maximum of {others[0]}"
    return first if isinstance(first, str) and first[:3] in ("L;2", "L;4") else image.mode


@dataclass(frozen=True)
class Header:
    """What a file says about its image before the pixels."""

    height: int  # as stored
    width: int
    mode: str  # `stored_mode`
    orientation: int  # EXIF: 1 is upright, 2 to 8 ask a viewer to rotate or mirror the image; ignored by every stage


def read_header(path: Path, content: bytes | None = None) -> Header:
    """Raises UserError, naming the file, if it is missing, not an image, or has more than MAX_PIXELS.

    `content`: its bytes, where they are known.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file, open_image(file, path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # PIL's size is that after rotation
                width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
            return Header(height, width, stored_mode(image), _orientation(image))
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # PngImageFile.getexif decodes the whole image
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1  # damaged tags ask for nothing
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def resize(image: Pixels, height: int, width: int, mode: str = "bicubic", out: Pixels | None = None) -> Pixels:
    """Resize with antialiasing to (height, width, 3): PIL's pixels to a fraction of a level, several times faster.

    Writes to `out` (contiguous) if that is given; else an image of that size is returned as it is.
    """
    same = image.shape[:2] == (height, width)
    if same and out is None:
        return image
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if same:
        out[:] = image
    else:
        _RESIZE[mode](_channels_last(np.ascontiguousarray(image)), (height, width), False, out=_channels_last(out))
    return out


def _channels_last(image: Pixels) -> torch.Tensor:
    """View the memory as (1, 3, H, W), in the order of axes that halves the time of a resize.

    torch needs a stride for the batch axis, which numpy's new axes do not have.
    """
    height, width, channels = image.shape
    return torch.from_numpy(image).as_strided(
        (1, channels, height, width), (height * width * channels, 1, width * channels, channels)
    )


# What torch.nn.functional.interpolate(antialias=True) calls: for a small view its checks take as long as the work.
_RESIZE = {mode: getattr(torch.ops.aten, f"_upsample_{mode}2d_aa").out for mode in ("bicubic", "bilinear")}


def shrink(image: Pixels, short_side: int) -> Pixels:
    """Reduce the shorter side to `short_side` pixels; 0 keeps the image, and no image is enlarged."""
    height, width = image.shape[:2]
    if not 0 < short_side < min(height, width):
        return image
    scale = short_side / min(height, width)
    return resize(image, max(short_side, round(height * scale)), max(short_side, round(width * scale)))


def normalise(
    images: Pixels | torch.Tensor,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    allocate: Callable[..., npt.NDArray[Any]] = np.empty,
) -> torch.Tensor:
    """Normalise uint8 (..., H, W, 3) to float32 (..., 3, H, W), channels_last in memory; on the CPU.

    `allocate(shape, dtype)` gives the memory of the result. On another device: `normalise_batch` of batch_colour.py.
    """
    levels = torch.as_tensor(images)
    # Constants for a whole row of pixels rather than for one pixel: a long innermost loop is fast.
    width = levels.shape[-2]
    scale = (1 / (255 * torch.tensor(std))).repeat(width)
    shift = (torch.tensor(mean) / torch.tensor(std)).repeat(width)
    # numpy allocates large arrays in huge pages and torch does not: a third of the time for a batch
    normalised = torch.from_numpy(allocate(tuple(levels.shape), np.float32))
    normalised.flatten(-2).copy_(levels.flatten(-2)).mul_(scale).sub_(shift)
    return normalised.movedim(-1, -3)


@dataclass(frozen=True)
class ImageList:
    """The images of one split; `labels` is None for a dataset without classes."""

    paths: list[Path]  # of an image in a shard: as if the shard were a folder
    labels: list[int] | None
    left_out: dict[str, int] = field(default_factory=dict)  # files of the split that are not used, by reason
    shards: Shards | None = field(default=None, compare=False)  # None: each image is a file

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, numbers: Sequence[int]) -> ImageList:
        """Return these images alone, in this order."""
        labels = None if self.labels is None else [self.labels[number] for number in numbers]
        shards = None if self.shards is None else self.shards.select(numbers)
        return ImageList([self.paths[number] for number in numbers], labels, shards=shards)

    def names(self, folder: Path) -> list[str]:
        """Return the path of each image under `folder`; of an image in a shard, that under the shard."""
        if self.shards is not None:
            return [self.shards.name(number, path) for number, path in enumerate(self.paths)]
        return [str(path)[len(f"{folder}/") :] for path in self.paths]

    def content(self, number: int) -> bytes:
        """Return the bytes of an image's file. Raises UserError if they cannot be read."""
        path = self.paths[number]
        return read_file(path) if self.shards is None else self.shards.read(number, path)

    def read(self, number: int) -> Pixels:
        """Raises UserError as `read_image`."""
        return decode(self.content(number), self.paths[number])

    def header(self, number: int) -> Header:
        """Raises UserError as `read_header`."""
        return read_header(self.paths[number], None if self.shards is None else self.content(number))

    def describe_left_out(self) -> str | None:
        """Write "files left out: 3 (2 ending in .txt, 1 beside the class folders)"; None if there are none."""
        if not self.left_out:
            return None
        most = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        more = ", ..." if len(most) > 5 else ""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in most[:5])
        return f"files left out: {sum(self.left_out.values()):,} ({reasons}{more})"
