"""The layouts of Pascal VOC, Cityscapes, ADE20K, and of any folder that is laid out as Pascal VOC is.

Each function takes the root that the user gave and returns a layout that was checked: every image has its mask.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from data.compose import IGNORE, PALETTE
from data.images import IMAGE_SUFFIXES
from data.layout import SegmentationLayout, SegmentationPart, files_in, read_list, strip
from runtime.errors import UserError

VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
LISTS = "ImageSets/Segmentation"
# With SBD's images: every training image (the list that is passed on, and what mmsegmentation's voc_aug.py writes), or
# those that are not in train.txt.
WHOLE_LISTS, FURTHER_LIST = ("train_aug.txt", "trainaug.txt"), "aug.txt"
IMAGES, MASKS, AUGMENTED_MASKS = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
CLASSES_FILE = "classes.txt"
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
CITYSCAPES_IDS = 34  # label ids in the archive's masks, 0 to 33


def voc_palette(classes: int) -> list[list[int]]:
    return [list(PALETTE[3 * k : 3 * k + 3]) for k in range(classes)]


def voc_splits(root: Path, train: str) -> tuple[tuple[SegmentationPart, ...], tuple[SegmentationPart, ...]]:
    """The parts of training set "train" or "train_aug", and of val.

    "train_aug" is train.txt with VOC's own masks, and SBD's further images with SBD's (as mmsegmentation's voc12aug).
    """
    own = SegmentationPart(IMAGES, MASKS, f"{LISTS}/train.txt")
    further = [SegmentationPart(IMAGES, AUGMENTED_MASKS, augmented_list(root))] if train == "train_aug" else []
    return (own, *further), (SegmentationPart(IMAGES, MASKS, f"{LISTS}/val.txt"),)


def augmented_list(root: Path) -> str:
    """The list that names SBD's images. UserError where there is none, or two that disagree."""
    found = [name for name in (*WHOLE_LISTS, FURTHER_LIST) if (root / LISTS / name).is_file()]
    if not found:
        raise UserError(
            f"{root / LISTS} holds no list of SBD's images; expected {WHOLE_LISTS[0]} (every training image) or "
            f"{FURTHER_LIST} (those that are not in train.txt), as mmsegmentation's voc_aug.py writes it"
        )
    own = set(read_list(root / LISTS / "train.txt"))
    named = {name: set(read_list(root / LISTS / name)) for name in found}
    if FURTHER_LIST in named:
        named[FURTHER_LIST] |= own
    for name, images in named.items():
        if left := (own | named[found[0]]) ^ images:
            other = "train.txt" if left & own else found[0]
            raise UserError(
                f"{root / LISTS}: {name} and {other} disagree on {len(left)} training images, as {min(left)}; "
                f"expected {' and '.join(WHOLE_LISTS)} to name every training image, and {FURTHER_LIST} those that "
                "train.txt leaves out. Mend the wrong list, or remove it"
            )
    return f"{LISTS}/{found[0]}"


def voc(root: Path, train: str) -> SegmentationLayout:
    """Pascal VOC 2012: VOC2012, or a folder above it; 21 classes with the background."""
    root = inner_folder(root, "VOCdevkit/VOC2012", "VOC2012")
    layout = SegmentationLayout("voc", root, *voc_splits(root, train), VOC_CLASSES, voc_palette(21))
    layout.check()
    return layout


def vocfolder(root: Path, train: str) -> SegmentationLayout:
    """Any folder in VOC's layout with classes.txt: one class a line, the first is value 0 of the masks."""
    file = root / CLASSES_FILE
    if not file.is_file():
        raise UserError(f"vocfolder at {root}: {CLASSES_FILE} is missing; expected one class a line, value 0 first")
    classes = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not 2 <= len(classes) <= IGNORE or len(set(classes)) < len(classes):
        raise UserError(f"{file} names {len(classes)} classes; expected 2 to {IGNORE}, each once, one a line")
    suffix = image_suffix(root / IMAGES)
    layout = SegmentationLayout(
        "vocfolder", root, *voc_splits(root, train), classes, voc_palette(len(classes)), img_suffix=suffix
    )
    layout.check()
    return layout


def image_suffix(folder: Path) -> str:
    """The one suffix of the images in a folder; UserError for several, or none."""
    found = {Path(file).suffix for file in files_in(folder) if Path(file).suffix.lower() in IMAGE_SUFFIXES}
    if len(found) != 1:
        raise UserError(f"{folder} holds images ending in {sorted(found)}; expected one and the same suffix")
    return found.pop()


def cityscapes(root: Path, _train: str = "train") -> SegmentationLayout:
    """Cityscapes' fine annotations: leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/; 19 classes.

    Masks are *_labelTrainIds.png where the user made them (cityscapesscripts' csCreateTrainIdLabelImgs), or else the
    archive's own *_labelIds.png, mapped to the same classes when they are read.
    """
    rows = read_table("cityscapes.csv")
    folder = root / "gtFine/train"
    if not folder.is_dir():
        raise UserError(f"cityscapes at {root}: gtFine/train is missing; unpack gtFine_trainvaltest.zip there")
    masks = files_in(folder)
    suffix = TRAIN_IDS if strip(masks, TRAIN_IDS) else LABEL_IDS
    if not strip(masks, suffix):
        raise UserError(
            f"cityscapes at {root}: gtFine/train holds {len(masks)} files and none ends in {LABEL_IDS} or {TRAIN_IDS}; "
            "unpack gtFine_trainvaltest.zip again"
        )
    values = None
    if suffix == LABEL_IDS:
        ids = [int(row["label_id"]) for row in rows]
        others = [IGNORE] * CITYSCAPES_IDS + list(range(CITYSCAPES_IDS, 256))  # a value that is no label id is no class
        values = tuple(ids.index(value) if value in ids else others[value] for value in range(256))
    layout = SegmentationLayout(
        "cityscapes",
        root,
        train=(SegmentationPart("leftImg8bit/train", "gtFine/train"),),
        val=(SegmentationPart("leftImg8bit/val", "gtFine/val"),),
        classes=[row["name"] for row in rows],
        palette=colours(rows),
        img_suffix="_leftImg8bit.png",
        mask_suffix=suffix,
        values=values,
    )
    layout.check()
    return layout


def ade20k(root: Path, _train: str = "train") -> SegmentationLayout:
    """ADE20K in the layout of the MIT scene parsing benchmark: images/ and annotations/, training/ and validation/.

    150 classes; a mask's 0 is unlabelled and counts for nothing, 1 is the first class, 151 and more are none.
    """
    root = inner_folder(root, "ADEChallengeData2016")
    rows = read_table("ade20k.csv")
    layout = SegmentationLayout(
        "ade20k",
        root,
        train=(SegmentationPart("images/training", "annotations/training"),),
        val=(SegmentationPart("images/validation", "annotations/validation"),),
        classes=[row["name"] for row in rows],
        palette=colours(rows),
        values=(IGNORE, *range(150), *range(151, 256)),
    )
    layout.check()
    return layout


def inner_folder(root: Path, *names: str) -> Path:
    """The first of those folders in `root` that exists, or `root`: archives bring their own folder."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def read_table(file: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(file), newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def colours(rows: list[dict[str, str]]) -> list[list[int]]:
    return [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]


# By name; (root, training list) -> layout.
LAYOUTS: dict[str, Callable[[Path, str], SegmentationLayout]] = {
    "voc": voc,
    "vocfolder": vocfolder,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
}
