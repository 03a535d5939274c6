"""Small datasets with masks, written as the archives of the real ones are; and the classes that were meant."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

IGNORE = 255
# What Cityscapes' label ids mean, from the dataset's own table: 19 of 34 are classes, the others count for nothing.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
COUNTS = {"train": 6, "val": 4}
Truth = dict[str, list[np.ndarray]]  # of "train" and "val", in the order of the names


def blocks(random: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    """A mask of squares of 8 pixels of at most five classes, some of which count for nothing."""
    few = random.choice(classes, 5)
    cells = np.where(random.random((shape[0] // 8, shape[1] // 8)) < 0.1, IGNORE, random.choice(few, (1, 1)))
    cells = np.where(cells == IGNORE, cells, random.choice(few, cells.shape))
    return np.kron(cells, np.ones((8, 8), int)).astype(np.uint8)


def picture(random: np.random.Generator, mask: np.ndarray) -> Image.Image:
    """An image whose colours follow the mask."""
    colours = np.random.default_rng(1).integers(40, 216, (256, 3))
    return Image.fromarray((colours[mask] + random.normal(0, 20, (*mask.shape, 3))).clip(0, 255).astype(np.uint8))


def tag(path: Path, orientation: int) -> None:
    """Write an EXIF orientation into a JPEG, whose pixels stay byte for byte."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    segment, content = exif.tobytes(), path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:])
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == orientation


def bomb(path: Path, side: int = 60_000) -> None:
    """Let the header of a PNG or JPEG promise side x side pixels."""
    content = bytearray(path.read_bytes())
    if content[:2] == b"\xff\xd8":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = side.to_bytes(2, "big") * 2
    else:
        content[16:24] = side.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def voc_tree(root: Path, classes: int = 21, shape: tuple[int, int] = (40, 56), suffix: str = ".jpg") -> Truth:
    """VOC's folders. Two images of train are of SBD alone: in train_aug, with masks in SegmentationClassAug, which has
    masks of VOC's own images, too, other ones."""
    random, truth = np.random.default_rng(0), {}
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, count in COUNTS.items():
        names = [f"2007_{split}{k}" for k in range(count)]
        truth[split] = [blocks(random, shape, classes) for _ in names]
        for k, (name, mask) in enumerate(zip(names, truth[split], strict=True)):
            picture(random, mask).save(root / "JPEGImages" / f"{name}{suffix}")
            image = Image.fromarray(mask)
            image.putpalette(list(range(256)) * 3)
            if split == "val" or k < count - 2:
                image.save(root / "SegmentationClass" / f"{name}.png")
            if split == "train" and k < count - 2:
                image = image.point(lambda value: 0)
            if split == "train":
                image.save(root / "SegmentationClassAug" / f"{name}.png")
        lists = {"train": names[:-2], "train_aug": names} if split == "train" else {"val": names}
        for name, lines in lists.items():
            (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return truth


def vocfolder_tree(root: Path, classes: list[str]) -> Truth:
    truth = voc_tree(root, len(classes), suffix=".png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return truth


def cityscapes_tree(root: Path, train_ids: bool, shape: tuple[int, int] = (40, 80)) -> Truth:
    """Cityscapes' folders, with label ids alone (as the archive) or with the masks of train ids beside them."""
    random, truth = np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        truth[split] = [blocks(random, shape, 19) for _ in range(count)]
        for k, mask in enumerate(truth[split]):
            city = ("aachen", "bochum")[k * 2 // count]
            images, masks = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
            for folder in (images, masks):
                folder.mkdir(parents=True, exist_ok=True)
            name = f"{city}_{k:06d}_000019"
            picture(random, mask).save(images / f"{name}_leftImg8bit.png")
            others = np.array([0, 5, 29])[random.integers(0, 3, mask.shape)]  # void, dynamic, caravan
            ids = np.where(mask == IGNORE, others, np.array([*CITYSCAPES_IDS, *[0] * 237])[mask])
            Image.fromarray(ids.astype(np.uint8)).save(masks / f"{name}_gtFine_labelIds.png")
            (masks / f"{name}_gtFine_polygons.json").write_text("{}")
            if train_ids:
                Image.fromarray(mask).save(masks / f"{name}_gtFine_labelTrainIds.png")
    return truth


def ade20k_tree(root: Path, shape: tuple[int, int] = (40, 56)) -> Truth:
    """The MIT scene parsing benchmark's folders; a mask's value is the class plus one, 0 is unlabelled."""
    random, truth = np.random.default_rng(0), {}
    for split, folder, short in (("train", "training", "train"), ("val", "validation", "val")):
        truth[split] = [blocks(random, shape, 150) for _ in range(COUNTS[split])]
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for k, mask in enumerate(truth[split]):
            name = f"ADE_{short}_{k + 1:08d}"
            picture(random, mask).save(root / "images" / folder / f"{name}.jpg")
            values = np.where(mask == IGNORE, 0, mask.astype(int) + 1).astype(np.uint8)
            Image.fromarray(values).save(root / "annotations" / folder / f"{name}.png")
    return truth
