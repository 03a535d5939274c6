"""The layouts of Pascal VOC, Cityscapes, ADE20K, and of any folder in Pascal VOC's layout.

Each function gets the root that the user named, and the training list; catalog.py checks the layout that it returns.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from data.images import IMAGE_SUFFIXES
from data.layout import IGNORE, SegmentationLayout, SegmentationPart, files_in, names_with_suffix, read_list
from runtime.errors import UserError

VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
# The bits of the class number go to red, green and blue in turn, from each channel's highest bit down.
VOC_PALETTE = [
    [sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    for value in range(256)
]
LISTS = "ImageSets/Segmentation"
# Lists that include SBD's images: all training images (the list that people share, and the one that mmsegmentation's
# voc_aug.py writes), or only those that are not in train.txt.
WHOLE_LISTS, FURTHER_LIST = ("train_aug.txt", "trainaug.txt"), "aug.txt"
IMAGES, MASKS, AUGMENTED_MASKS = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
CLASSES_FILE = "classes.txt"
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
CITYSCAPES_IDS = 34  # label ids in the archive's masks, 0 to 33


def voc_splits(root: Path, train: str) -> tuple[tuple[SegmentationPart, ...], tuple[SegmentationPart, ...]]:
    """Return the parts of training set "train" or "train_aug", and of val.

    "train_aug" is train.txt with VOC's own masks, then SBD's images with SBD's masks (as mmsegmentation's voc12aug).
    """
    own = SegmentationPart(IMAGES, MASKS, f"{LISTS}/train.txt")
    further = [SegmentationPart(IMAGES, AUGMENTED_MASKS, _augmented_list(root))] if train == "train_aug" else []
    return (own, *further), (SegmentationPart(IMAGES, MASKS, f"{LISTS}/val.txt"),)


def _augmented_list(root: Path) -> str:
    """Return the list that names SBD's images. UserError if there is none, or if two disagree."""
    present = [name for name in (*WHOLE_LISTS, FURTHER_LIST) if (root / LISTS / name).is_file()]
    if not present:
        raise UserError(
            f"{root / LISTS} holds no list of SBD's images; expected {WHOLE_LISTS[0]} (every training image) or "
            f"{FURTHER_LIST} (those that are not in train.txt), as mmsegmentation's voc_aug.py writes it"
        )
    own = set(read_list(root / LISTS / "train.txt"))
    named = {name: set(read_list(root / LISTS / name)) for name in present}
    if FURTHER_LIST in named:
        named[FURTHER_LIST] |= own
    for name, images in named.items():
        if difference := (own | named[present[0]]) ^ images:
            other = "train.txt" if difference & own else present[0]
            raise UserError(
                f"{root / LISTS}: {name} and {other} disagree on {len(difference)} training images, as "
                f"{min(difference)}; expected {' and '.join(WHOLE_LISTS)} to name every training image, and "
                f"{FURTHER_LIST} those that train.txt leaves out. Correct the wrong list, or remove it"
            )
    return f"{LISTS}/{present[0]}"


def voc(root: Path, train: str) -> SegmentationLayout:
    """Pascal VOC 2012: VOC2012, or a folder above it; 21 classes with the background."""
    root = _inner_folder(root, "VOCdevkit/VOC2012", "VOC2012")
    return SegmentationLayout("voc", root, *voc_splits(root, train), VOC_CLASSES, VOC_PALETTE[:21])


def vocfolder(root: Path, train: str) -> SegmentationLayout:
    """Any folder in VOC's layout with classes.txt: one class a line, the first is value 0 of the masks."""
    file = root / CLASSES_FILE
    if not file.is_file():
        raise UserError(f"vocfolder at {root}: {CLASSES_FILE} is missing; expected one class a line, value 0 first")
    classes = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not 2 <= len(classes) <= IGNORE or len(set(classes)) < len(classes):
        raise UserError(f"{file} names {len(classes)} classes; expected 2 to {IGNORE}, each once, one a line")
    suffixes = {Path(image).suffix for image in files_in(root / IMAGES)}
    suffixes = {suffix for suffix in suffixes if suffix.lower() in IMAGE_SUFFIXES}
    if len(suffixes) != 1:
        raise UserError(f"{root / IMAGES} holds images ending in {sorted(suffixes)}; expected one and the same suffix")
    palette = VOC_PALETTE[: len(classes)]
    return SegmentationLayout("vocfolder", root, *voc_splits(root, train), classes, palette, suffixes.pop())


def cityscapes(root: Path, _train: str) -> SegmentationLayout:
    """Cityscapes' fine annotations: leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/; 19 classes.

    Masks are *_labelTrainIds.png if the user made them (cityscapesscripts' csCreateTrainIdLabelImgs), else the
    archive's own *_labelIds.png, mapped to the same classes when they are read.
    """
    classes, palette, ids = _read_classes("cityscapes.csv")
    folder = root / "gtFine/train"
    if not folder.is_dir():
        raise UserError(f"cityscapes at {root}: gtFine/train is missing; unpack gtFine_trainvaltest.zip there")
    masks = files_in(folder)
    suffix = TRAIN_IDS if names_with_suffix(masks, TRAIN_IDS) else LABEL_IDS
    if not names_with_suffix(masks, suffix):
        raise UserError(
            f"cityscapes at {root}: gtFine/train holds {len(masks)} files and none ends in {LABEL_IDS} or {TRAIN_IDS}; "
            "unpack gtFine_trainvaltest.zip again"
        )
    values = None
    if suffix == LABEL_IDS:
        others = [IGNORE] * CITYSCAPES_IDS + list(range(CITYSCAPES_IDS, 256))  # what is not a label id stays an error
        values = tuple(ids.index(value) if value in ids else others[value] for value in range(256))
    return SegmentationLayout(
        "cityscapes",
        root,
        train=(SegmentationPart("leftImg8bit/train", "gtFine/train"),),
        val=(SegmentationPart("leftImg8bit/val", "gtFine/val"),),
        classes=classes,
        palette=palette,
        img_suffix="_leftImg8bit.png",
        mask_suffix=suffix,
        values=values,
    )


def ade20k(root: Path, _train: str) -> SegmentationLayout:
    """ADE20K in the layout of the MIT scene parsing benchmark: images/ and annotations/, training/ and validation/.

    150 classes; a mask's 0 is unlabelled and ignored, 1 is the first class, 151 and above are errors.
    """
    classes, palette, _ = _read_classes("ade20k.csv")
    return SegmentationLayout(
        "ade20k",
        _inner_folder(root, "ADEChallengeData2016"),
        train=(SegmentationPart("images/training", "annotations/training"),),
        val=(SegmentationPart("images/validation", "annotations/validation"),),
        classes=classes,
        palette=palette,
        values=(IGNORE, *range(150), *range(151, 256)),
    )


def _inner_folder(root: Path, *names: str) -> Path:
    """Return the first of these folders in `root` that exists, else `root`: archives have a top folder of their own."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _read_classes(file: str) -> tuple[list[str], list[list[int]], list[int]]:
    """Return names, colours and label ids (where there are any) from a table beside this file."""
    with open(Path(__file__).with_name(file), newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    colours = [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]
    return [row["name"] for row in rows], colours, [int(row["label_id"]) for row in rows if "label_id" in row]


# By name; (root, training list) -> layout.
LAYOUTS: dict[str, Callable[[Path, str], SegmentationLayout]] = {
    "voc": voc,
    "vocfolder": vocfolder,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
}
