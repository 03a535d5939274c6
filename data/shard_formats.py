"""What a shard holds: a tar file in WebDataset's convention, or a parquet file in Hugging Face's."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.images import IMAGE_SUFFIXES
from runtime import files
from runtime.errors import UserError

_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # as WebDataset: the key ends at the first dot of the file's name
_LONGEST_END = 1 << 20  # bytes
_SYNSET = re.compile(r"_n\d{8}(?=\.\w+$)")  # Hugging Face's ImageNet appends it: n01440764_10026_n01440764.JPEG


class PackedImage(NamedTuple):
    """An image in a shard; the place of its bytes is in the shard, or in the copy of its images."""

    name: str
    label: int
    offset: int  # bytes
    length: int


@dataclass
class Contents:
    """What a shard holds."""

    images: list[PackedImage] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # files that are not used, by reason
    classes: list[str] | None = None  # their names, if the shard gives them apart from its images


def read_tar(shard: Path) -> Contents:
    """Raises UserError or an error of tarfile for a damaged file, and for an image without its label."""
    members: dict[str, tarfile.TarInfo] = {}
    texts: dict[tuple[str, str], bytes] = {}
    left_out: Counter[str] = Counter()
    with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        for member in tar:
            if member.islnk() or member.issym():
                raise UserError(f"the shard {shard} holds the link {member.name}; expected files alone: make it again")
            if not member.isfile():
                continue
            sample = _SAMPLE.fullmatch(member.name.removeprefix("./"))
            key, suffix = (sample[1], f".{sample[2].lower()}") if sample else (member.name, "")
            if suffix in IMAGE_SUFFIXES:
                if members.setdefault(key, member) is not member:
                    raise UserError(f"the shard {shard} holds two images of the name {key}; expected one a sample")
            elif suffix in (".cls", ".json") and (text := tar.extractfile(member)) is not None:
                texts[key, suffix] = text.read()
            else:
                left_out[f"ending in {suffix}" if suffix else "without a suffix"] += 1
        # tarfile takes a damaged header, or the end of a file that was cut off, for the end of the archive. A download
        # leaves zeros where bytes are missing, which look like the end too; an archive ends in a few kilobytes of them.
        rest = os.pread(file.fileno(), _LONGEST_END + 1, tar.offset)
        if not tarfile.BLOCKSIZE <= len(rest) <= _LONGEST_END or any(rest):
            raise UserError(
                f"the shard {shard} is damaged, cut off or joined of several after {tar.offset:,} bytes; copy it again"
            )
    if lost := {key for key, _ in texts} - members.keys():
        left_out["labels without an image"] = len(lost)
    images = [_describe(shard, key, member, texts) for key, member in members.items()]
    return Contents(images, dict(left_out))


def _describe(shard: Path, key: str, member: tarfile.TarInfo, texts: dict[tuple[str, str], bytes]) -> PackedImage:
    text, record = texts.get((key, ".cls")), _parse(texts.get((key, ".json")))
    try:
        label = int(str(record["label"]) if text is None else text)  # int(0.7) would be 0
        if label < 0:
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"the shard {shard} has no class number of the image {key}; expected 0, 1, ... in {key}.cls, or "
            f"as label in {key}.json. Tars of one class each, as in ImageNet's archive, unpack into train/<class>/"
        ) from error
    original = record.get("filename")
    name = member.name
    if isinstance(original, str) and original.lower().endswith(IMAGE_SUFFIXES):
        name = original
    return PackedImage(name.removeprefix("./"), label, member.offset_data, member.size)


def _parse(text: bytes | None) -> dict[str, Any]:
    try:
        record = json.loads(text or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def unpack_parquet(shard: Path, copy: Path) -> Contents:
    """Write the bytes of its images to `copy`. Raises UserError, or an error of pyarrow for a damaged file."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading {shard} needs pyarrow, which is not installed: pip install pyarrow") from error
    contents = Contents()

    def unpack(temporary: Path) -> None:
        with parquet.ParquetFile(shard) as table, open(temporary, "wb") as file:
            image, label, contents.classes = _columns(shard, table.schema_arrow)
            for batch in table.iter_batches(64, columns=[image, label], use_threads=False):
                cells = (batch.column(name).to_pylist() for name in (image, label))
                for cell, number in zip(*cells, strict=True):
                    name, content = _split(shard, len(contents.images), cell, number)
                    contents.images.append(PackedImage(name, number, file.tell(), len(content)))
                    file.write(content)

    files.write_atomic(copy, unpack)
    return contents


def _split(shard: Path, row: int, cell: Any, label: Any) -> tuple[str, bytes]:
    """Return (name, bytes) of the image in a cell: {bytes, path}, or the bytes themselves."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if not isinstance(content, bytes):
        got = f"only the path {path} of an image; embed the files" if path else "no image"
        raise UserError(f"row {row} of the shard {shard} holds {got}: expected its bytes, or {{bytes, path}}")
    if not isinstance(label, int) or label < 0:
        raise UserError(f"row {row} of the shard {shard} has the label {label!r}; expected a class number, 0, 1, ...")
    return _SYNSET.sub("", os.path.basename(path or "")), content


def _columns(shard: Path, schema: Any) -> tuple[str, str, list[str] | None]:
    """Return (the column of images, that of labels, names of the classes if there are any)."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})

    def choose(kind: str, usual: Sequence[str]) -> str:
        fitting = [
            name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind
        ]
        fitting = fitting if len(fitting) == 1 else [name for name in usual if name in schema.names]
        if not fitting:
            raise UserError(f"the shard {shard} has the columns {schema.names}; expected one of {', '.join(usual)}")
        return fitting[0]

    image, label = choose("Image", ("image", "img", "jpg")), choose("ClassLabel", ("label", "labels", "cls"))
    return image, label, features.get(label, {}).get("names")
