"""The contenders of benchmarks/data.py: the published pipeline in PIL and torchvision, and this one's executions.

The images are crops of scikit-learn's two photographs, 500 x 375 JPEGs of quality 96 without chroma subsampling, as
large as ImageNet's; both pipelines read the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.published_recipe import PublishedViews
from data import cache
from data.catalog import open_dataset
from data.config import MEAN, STD, DataConfig, ViewsConfig, WorkerKind
from data.images import ImageList, normalise, read_image
from data.loader import PretrainLoader
from data.transforms import LabelledDataset, eval_transform

IMAGES = 64
DECODING = "decoding alone"
CACHE_SIDE = 256  # pixels of the shorter side, of the reduced cache
GRIDS = {224: (7, 7), 96: (3, 3)}
VIEWS = {
    "2 x 224": ViewsConfig(),
    "2 x 224 + 6 x 96": ViewsConfig(large_scale=[0.4, 1.0], small_count=6),
}


def write_images(root: Path, count: int) -> None:
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(count):
            photo = photos[number % 2]
            top, left = (int(random.integers(full - part + 1)) for full, part in ((427, 375), (640, 500)))
            piece = Image.fromarray(photo[top : top + 375, left : left + 500].copy())
            folder = root / split / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            piece.save(folder / f"{number:03d}.jpg", quality=96, subsampling=0)


@contextmanager
def images(count: int = IMAGES) -> Iterator[DataConfig]:
    """Make the dataset in a temporary folder, in which its caches are made too."""
    with TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"VICREGL_DATA": f"{folder}/caches"}):
        write_images(Path(folder) / "images", count)
        data = DataConfig(name="imagefolder", root=f"{folder}/images")
        yield data


class PublishedImages(Dataset):
    """(views, grids) of each file, as in the published dataset."""

    def __init__(self, data: DataConfig, views: ViewsConfig) -> None:
        self.paths = open_dataset(data).images("train").paths
        self.make = PublishedViews(views.sides(), views.scales(), [GRIDS[side][0] for side in views.sides()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.make(self.paths[index % len(self.paths)].read_bytes())


@dataclass(frozen=True)
class Repeated(Dataset):
    """A dataset of `length` items that repeats those of another."""

    images: PublishedImages
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.images[index]


def loader(
    data: DataConfig,
    views: ViewsConfig,
    batch: int,
    workers: int = 0,
    kind: WorkerKind = "processes",
    device: torch.device | str = "cpu",
) -> PretrainLoader:
    """Make this project's loader; nothing is held in memory, as with a large dataset."""
    dataset = open_dataset(data)
    return PretrainLoader(dataset, views, GRIDS.__getitem__, batch, 0, workers, kind, device, memory_bytes=0)


Contender = Callable[[], object]  # makes one batch


def one_thread(data: DataConfig, views: ViewsConfig, batch: int) -> dict[str, Contender]:
    """Return contenders that make a batch from files. Call `cached` afterwards: loaders use a cache that exists."""
    published = PublishedImages(data, views)
    collate = torch.utils.data.default_collate
    state = {"step": 0, "decoded": 0}

    def published_batch() -> object:
        first = state["step"] = state["step"] + batch
        return collate([published[index] for index in range(first, first + batch)])

    paths = published.paths

    def decoded_batch() -> object:
        first = state["decoded"] = state["decoded"] + batch
        return [read_image(paths[index % len(paths)]) for index in range(first, first + batch)]

    return {
        "published": published_batch,
        DECODING: decoded_batch,
        "cpu": _batches(loader(data, views, batch), whole=True),
        "worker of device": _batches(loader(data, views.replace(execution="device"), batch), whole=False),
    }


def cached(data: DataConfig, views: ViewsConfig, batch: int) -> dict[str, Contender]:
    """Return the worker's part of `device` from a raw cache, at full size and reduced."""
    contenders = {}
    for name, side in (("cache", 0), (f"cache, short side {CACHE_SIDE}", CACHE_SIDE)):
        cache.build(open_dataset(data), side, workers=1, skip_bad=False)
        reduced = views.replace(execution="device", short_side=side)
        contenders[f"worker of device, {name}"] = _batches(loader(data, reduced, batch), whole=False)
    return contenders


def _batches(source: PretrainLoader, whole: bool) -> Contender:
    """Return a function that makes the next batch: a worker's part, and, if `whole`, the training process's too."""
    steps = iter(range(1 << 30))

    def make() -> object:
        batch = source.make(next(steps))
        return source.finish(batch) if whole else batch

    return make


def end_to_end(data: DataConfig, views: ViewsConfig, batch: int, batches: int) -> Mapping[str, Callable[[], Iterator]]:
    """Return functions that start iterators over `batches` batches from two workers."""
    published = Repeated(PublishedImages(data, views), batch * batches)
    contenders: dict[str, Callable[[], Iterator]] = {
        "published, 2 workers": lambda: iter(DataLoader(published, batch, num_workers=2))
    }
    for execution in ("cpu", "device"):
        for kind in get_args(WorkerKind):
            source = loader(data, views.replace(execution=execution), batch, 2, kind)
            # For `device` only the worker's part and the copy to the training process: the rest is the GPU's.
            run: Callable[..., Iterator] = source.batches if execution == "cpu" else source.worker_batches
            contenders[f"{execution}, 2 {kind}"] = partial(run, 0, batches)
    return contenders


def evaluations(data: DataConfig, batch: int) -> tuple[dict[str, Contender], float]:
    """Return torchvision's evaluation transform on PIL's images and this one, and their mean difference in levels."""
    listed: ImageList = open_dataset(data).images("val")
    ours = LabelledDataset(listed, eval_transform(256, 224), memory_bytes=0)
    resize = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    to_tensor = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def torchvision_batch() -> object:
        return torch.stack([to_tensor(Image.open(path).convert("RGB")) for path in listed.paths[:batch]])

    differences = []
    for index in range(min(8, len(listed))):
        expected = np.array(resize(Image.open(listed.paths[index]).convert("RGB")))
        difference = ours.batch([index])[0][0] - normalise(expected)
        differences.append(float((difference * torch.tensor(STD).view(3, 1, 1) * 255).abs().mean()))
    return {"torchvision": torchvision_batch, "this": lambda: ours.batch(range(batch))}, max(differences)
