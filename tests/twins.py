"""Image folders written as shards, WebDataset's tars or Hugging Face's parquet, and what is read from them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.catalog import open_dataset
from data.config import DataConfig

FORMS = ("tar", "tar with json", "parquet")
Sample = tuple[Path, int]  # a file in its class folder, its label


def samples_of(folder: Path) -> list[Sample]:
    """The files of a split in an order of their own, as converters shuffle them."""
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*"))
    return [
        (files[number], classes.index(files[number].parent.name))
        for number in np.random.default_rng(0).permutation(len(files))
    ]


def write_shards(folder: Path, root: Path, form: str, count: int = 3) -> Path:
    """Write `count` shards a split of the ImageFolder tree `folder`; returns `root`."""
    for split in ("train", "val"):
        samples = samples_of(folder / split)
        for number in range(count):
            if form == "parquet":
                name = f"data/{'validation' if split == 'val' else split}-{number:05d}-of-{count:05d}.parquet"
                write_parquet(root / name, samples[number::count])
            else:
                write_tar(root / f"{split}/{number:06d}.tar", samples[number::count], form)
    return root


def write_tar(path: Path, samples: Sequence[Sample], form: str = "tar") -> None:
    """Keys are class/name and labels .cls; with json keys are numbers, and the record has the name and the label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (file, label) in enumerate(samples):
            named = f"{file.parent.name}/{file.name}"
            key = f"{number:09d}" if form == "tar with json" else named.removesuffix(file.suffix)
            add(tar, key + file.suffix.lower(), file.read_bytes())
            if form == "tar with json":
                add(tar, f"{key}.json", json.dumps({"filename": named, "label": label}).encode())
            else:
                add(tar, f"{key}.cls", str(label).encode())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, samples: Sequence[Sample], features: bool = True, **changes: list) -> None:
    """Columns and features as the library `datasets` writes them; row groups of five images, compressed by snappy."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file, _ in samples],
        "label": [label for _, label in samples],
    }
    table = pyarrow.table(columns | changes)
    if features:
        classes = sorted(folder.name for folder in samples[0][0].parents[1].iterdir())
        label = {"names": classes, "_type": "ClassLabel"}
        described = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=5, compression="snappy")


def at(root: Path, name: str = "imagefolder") -> DataConfig:
    return DataConfig(name=name, root=str(root))


def opened(root: Path, split: str = "train"):
    return open_dataset(at(root)).images(split)


def contents(root: Path, split: str) -> list[tuple[int, bytes]]:
    """The label and the file of every image of a split."""
    images = opened(root, split)
    return [(images.labels[number], images.content(number)) for number in range(len(images))]
