"""mmsegmentation's dataset classes, as `data.name: mmseg:COCOStuffDataset`.

The class says its classes, colours and suffixes, and whether a mask's 0 is ignored; `data.mmseg` says where the files
of each split are, by the names of mmsegmentation's configs (data_prefix, ann_file). Files are read and checked as those
of every other dataset here. `imports` may register classes of your own.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data.config import MMSEG, DataConfig, MmsegSplit
from data.layout import IGNORE, SegmentationLayout, SegmentationPart, require_parts
from runtime import compat
from runtime.errors import UserError


def mmseg_layout(config: DataConfig, root: Path) -> SegmentationLayout:
    """Return the layout of the class. UserError if it is unknown, or has files or labels of another kind."""
    kind, files = _dataset_class(config.name.removeprefix(MMSEG)), config.mmseg
    train, val = (SegmentationPart(s.img_path, s.seg_map_path, s.ann_file) for s in (files.train, files.val))
    require_parts(config.name, root, (train, val))
    opened = _open(kind, root, files.train, files.reduce_zero_label)
    classes, palette = opened.metainfo["classes"], opened.metainfo["palette"]
    if not 2 <= len(classes) < IGNORE or opened.ignore_index != IGNORE:
        raise UserError(
            f"{config.name} has {len(classes)} classes and ignores the label {opened.ignore_index}; "
            f"expected 2 to {IGNORE - 1} classes, and {IGNORE} for ignored pixels"
        )
    count = len(classes)
    # As mmsegmentation's reduce_zero_label; a value beyond the classes stays an error.
    values = (IGNORE, *range(count), *range(count + 1, 256)) if opened.reduce_zero_label else None
    return SegmentationLayout(
        config.name,
        root,
        train=(train,),
        val=(val,),
        classes=list(classes),
        palette=[list(colour) for colour in palette],
        img_suffix=opened.img_suffix,
        mask_suffix=opened.seg_map_suffix,
        values=values,
    )


def _open(kind: Any, root: Path, split: MmsegSplit, reduce_zero_label: bool | None) -> Any:
    """Make the class's object, which has its suffixes, without listing its files."""
    prefix = {"img_path": split.img_path, "seg_map_path": split.seg_map_path}
    options = {} if reduce_zero_label is None else {"reduce_zero_label": reduce_zero_label}
    try:
        return kind(data_root=str(root), data_prefix=prefix, ann_file=split.ann_file, lazy_init=True, **options)
    except (AssertionError, TypeError) as error:
        given = {**prefix, "ann_file": split.ann_file, **options}
        raise UserError(f"data.name = {MMSEG}{kind.__name__} does not take {given} in {root}: {error!r}") from error


def _dataset_class(name: str) -> Any:
    """Look the class up. UserError, with the known ones, if it is not among them."""
    compat.prepare_mmcv()
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    def fits(kind: Any) -> bool:
        is_segmentation = isinstance(kind, type) and issubclass(kind, BaseSegDataset)
        # One that lists its files in another way has other files: volumes, depths, several masks.
        return is_segmentation and kind.METAINFO.get("classes") and kind.load_data_list is BaseSegDataset.load_data_list

    known = {key: kind for key, kind in sorted(DATASETS.module_dict.items()) if fits(kind)}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"data.name = {MMSEG}{name}: mmsegmentation has no such class; {hint}allowed: {', '.join(known)}"
        )
    return known[name]
