"""What benchmarks/data.py lets take turns: the published pipeline in PIL and torchvision, and this one's executions.

The images are pieces of scikit-learn's two photographs, 500 x 375 JPEGs of quality 96 without chroma subsampling, as
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
from data.loader import PretrainLoader, WorkerBatch
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
    """The dataset, and room for its caches, in a folder that goes again."""
    with TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"VICREGL_DATA": f"{folder}/caches"}):
        write_images(Path(folder) / "images", count)
        data = DataConfig(name="imagefolder", root=f"{folder}/images")
        yield data


class PublishedImages(Dataset):
    """(views, grids) of a file, as the published dataset gives them to torch's DataLoader."""

    def __init__(self, data: DataConfig, views: ViewsConfig) -> None:
        self.paths = open_dataset(data).images("train").paths
        self.make = PublishedViews(views.sides(), views.scales(), [GRIDS[side][0] for side in views.sides()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.make(self.paths[index % IMAGES].read_bytes())


@dataclass(frozen=True)
class Repeated(Dataset):
    """A dataset of `length` items: those of another, again and again."""

    of: PublishedImages
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.of[index]


def loader(
    data: DataConfig,
    views: ViewsConfig,
    batch: int,
    workers: int = 0,
    kind: WorkerKind = "processes",
    device: torch.device | str = "cpu",
) -> PretrainLoader:
    """This project's; nothing is held in memory, as with a large dataset."""
    return PretrainLoader(
        data, views, GRIDS.__getitem__, batch, 0, workers, memory_bytes=0, worker_kind=kind, device=device
    )


Contender = Callable[[], object]  # makes one batch


def one_thread(data: DataConfig, views: ViewsConfig, batch: int) -> dict[str, Contender]:
    """Contenders that make a batch from files. Caches are made by `cached`, afterwards: they would be found."""
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
    """The worker's part of `device`, from a raw cache: of the full size, and reduced."""
    found = {}
    for name, side in (("cache", 0), (f"cache, short side {CACHE_SIDE}", CACHE_SIDE)):
        cache.build(open_dataset(data), side, workers=1, skip_bad=False)
        of_side = views.replace(execution="device", short_side=side)
        found[f"worker of device, {name}"] = _batches(loader(data, of_side, batch), whole=False)
    return found


def _batches(source: PretrainLoader, whole: bool) -> Contender:
    """Batch after batch: what a worker does, and, for the `whole`, what is left to the process that trains."""
    steps = iter(range(1 << 30))

    def make() -> object:
        raw = source.make(next(steps))
        if not isinstance(raw, WorkerBatch):
            raise raw
        return source.finish(raw) if whole else raw

    return make


def end_to_end(data: DataConfig, views: ViewsConfig, batch: int, batches: int) -> Mapping[str, Callable[[], Iterator]]:
    """Iterators over `batches` batches, made by two workers."""
    published = Repeated(PublishedImages(data, views), batch * batches)
    contenders: dict[str, Callable[[], Iterator]] = {
        "published, 2 workers": lambda: iter(DataLoader(published, batch, num_workers=2))
    }
    for execution in ("cpu", "device"):
        for kind in get_args(WorkerKind):
            of = loader(data, views.replace(execution=execution), batch, 2, kind)
            # of `device`, only what a worker does and the copy to the process that trains: the rest is the GPU's
            run: Callable[..., Iterator] = of.batches if execution == "cpu" else of.worker_batches
            contenders[f"{execution}, 2 {kind}"] = partial(run, 0, batches)
    return contenders


def evaluations(data: DataConfig, batch: int) -> tuple[dict[str, Contender], float]:
    """torchvision's evaluation transform on PIL's images against this one, and their mean difference in levels."""
    listed: ImageList = open_dataset(data).images("val")
    ours = LabelledDataset(listed, eval_transform(256, 224), memory_bytes=0)
    resize = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    to_tensor = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def torchvision_batch() -> object:
        return torch.stack([to_tensor(Image.open(path).convert("RGB")) for path in listed.paths[:batch]])

    differences = []
    for index in range(min(8, len(listed))):
        expected = np.array(resize(Image.open(listed.paths[index]).convert("RGB")))
        difference = ours[index][0] - normalise(expected)
        differences.append(float((difference * torch.tensor(STD).view(3, 1, 1) * 255).abs().mean()))
    return {"torchvision": torchvision_batch, "this": lambda: ours.batch(range(batch))}, max(differences)
