"""Files of a segmentation dataset: EXIF tags turn nothing; damage is named before training and while loading."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmentation_tools import CONFIG, runner_of

from data import check
from data.catalog import open_dataset
from data.check import preflight
from data.check_files import check_masks
from data.config import DataConfig
from data.layout import SegmentationLayout
from eval import command, segmentation
from runtime import compat
from runtime.errors import UserError, run_command

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

FEW = ["iterations=4", "batch_size=2", "machine.log_steps=1", "optimizer.lr=0.3"]


@pytest.fixture
def voc(tmp_path) -> Path:
    trees.voc_tree(tmp_path / "voc")
    return tmp_path / "voc"


def layout_of(root: Path, **others: str) -> SegmentationLayout:
    return open_dataset(DataConfig(name="voc", root=str(root), **others)).segmentation()


@pytest.mark.parametrize("orientation", [3, 6])  # by 180 degrees, by 90
def test_a_score_does_not_know_the_tags_of_its_images(orientation, voc, parent, evaluate, tmp_path):
    tagged = Path(shutil.copytree(voc, tmp_path / "tagged"))
    for split in ("train", "val"):
        for name in layout_of(tagged).names(split):
            trees.tag(layout_of(tagged).image(split, name), orientation)
    scores = []
    for root in (voc, tagged):
        code, error, run = evaluate(segmentation.main, parent, CONFIG, "data.name=voc", f"data.root={root}", *FEW)
        assert code == 0, error
        scores.append(run.result()["iou"])
        noted = [line for line in evaluate.output if "EXIF orientation" in line]
        assert len(noted) == (0 if root == voc else 2), noted
        if root == voc:  # both have the same name
            run.path.rename(run.path.with_name("first"))
    assert scores[0] == scores[1]
    picture = run.path / "predictions.png"
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(first_run(run.path, picture))))


def first_run(of_second: Path, picture: Path) -> Path:
    return next(path / picture.name for path in of_second.parent.iterdir() if path != of_second)


def test_the_check_names_files_with_a_tag_and_takes_no_offence(voc, tmp_path, monkeypatch, capsys):
    layout = layout_of(voc)
    path = layout.image("val", layout.names("val")[1])
    trees.tag(path, 3)
    findings = check_masks(layout, None)
    assert findings.problems == []
    assert preflight(DataConfig(name="voc", root=str(voc)), masks=True)[1][0] == findings.notes[0]
    assert findings.notes[0].startswith("1 of 4 val images carry an EXIF orientation tag, which every stage ignores")
    assert f"{path} (tag 3)" in findings.notes[0]
    arguments = ["check", "voc", f"data.root={voc}", "--out", str(tmp_path / "sheet.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        run_command(check.main)
    assert not ended.value.code
    assert findings.notes[0] in capsys.readouterr().out


def change(path: Path, to: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(to(np.array(Image.open(path)))).save(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def with_label_200(values: np.ndarray) -> np.ndarray:
    values[3, 4] = 200
    return values


def of_few_bits(path: Path) -> None:
    """PIL would read its 3 as 255, which means ignored."""
    Image.fromarray(np.array(Image.open(path)) % 4).save(path, "PNG", bits=2)


# what is done to a file, and words that say so
DAMAGE_OF_MASKS = {
    "label": (lambda path: change(path, with_label_200), "holds 200; expected 0 to 20, and 255 for ignored"),
    "colours": (lambda path: change(path, lambda values: np.stack([values] * 3, -1)), "is an image of mode RGB"),
    "few bits": (of_few_bits, "has gray values of 2 bits, which the decoder multiplies by 85"),
    "size": (lambda path: change(path, lambda values: values[:-8]), "is 56 x 32 pixels and its image 56 x 40"),
}
DAMAGE_OF_ANY = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "no image": (lambda path: path.write_bytes(b"<html>404</html>"), "it is not an image of a known format"),
    "loop": (loop, "Too many levels of symbolic links"),
    "bomb": (trees.bomb, "more pixels than the 178,956,970 that are allowed"),
}
DAMAGE = {f"mask-{name}": ("mask", *how) for name, how in {**DAMAGE_OF_MASKS, **DAMAGE_OF_ANY}.items()}
DAMAGE |= {f"image-{name}": ("image", *how) for name, how in DAMAGE_OF_ANY.items()}


def damage(root: Path, split: str, kind: str) -> tuple[Path, str]:
    """The file that was damaged, and words of the message."""
    what, spoil, words = DAMAGE[kind]
    layout = layout_of(root)
    path = getattr(layout, what)(split, layout.names(split)[1])
    spoil(path)
    return path, words


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_before_training(kind, split, voc):
    path, words = damage(voc, split, kind)
    problems = check_masks(layout_of(voc), None).problems
    assert len(problems) == 1
    assert str(path) in problems[0]
    assert words in problems[0]
    with pytest.raises(UserError, match="1 kinds of problems") as refused:
        preflight(DataConfig(name="voc", root=str(voc)), masks=True)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "kind", [kind for kind in DAMAGE if kind not in ("mask-label", "mask-truncated", "image-truncated")]
)
def test_headers_of_all_files_are_looked_at_before_training(kind, voc, monkeypatch):
    """Whatever file it is; damage of pixels is seen in a sample only."""
    path, _ = damage(voc, "train", kind)
    monkeypatch.setattr("data.check_files.sample", lambda files, count: list(files)[:0])
    with pytest.raises(UserError) as refused:
        preflight(DataConfig(name="voc", root=str(voc)), masks=True)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_while_loading(kind, voc, parent, tmp_path):
    expected = [damage(voc, split, kind) for split in ("train", "val")]
    runner, _ = runner_of(parent, tmp_path, ["data.name=voc", f"data.root={voc}"])
    datasets = [
        runner.build_dataloader(loader).dataset for loader in (runner._train_dataloader, runner._val_dataloader)
    ]
    for items, numbers, (path, words) in zip(datasets, ([(0, k) for k in range(4)], range(4)), expected, strict=True):
        refused = []
        for number in numbers:
            try:
                items[number]
            except UserError as error:
                refused.append(str(error))
        assert len(refused) == 1
        assert str(path) in refused[0]
        assert words in refused[0]


@pytest.mark.parametrize(("split", "kind"), [("train", "mask-label"), ("val", "image-truncated")])
def test_a_worker_that_meets_damage_ends_the_run_with_one_line(split, kind, voc, parent, evaluate, monkeypatch):
    path, words = damage(voc, split, kind)
    monkeypatch.setattr(command, "preflight", lambda data, masks: (open_dataset(data), []))
    data = ["data.name=voc", f"data.root={voc}", "machine.workers=2"]
    code, error, _ = evaluate(segmentation.main, parent, CONFIG, *data, *FEW)
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    assert str(path) in error
    assert words in error


def test_a_label_of_no_class_is_not_taken_for_unlabelled(tmp_path):
    """Of the datasets whose masks hold other numbers than the classes'."""
    trees.ade20k_tree(tmp_path / "ade20k")
    trees.cityscapes_tree(tmp_path / "cityscapes", train_ids=False)
    for name, value, words in (("ade20k", 151, "0 to 150"), ("cityscapes", 34, "0 to 33")):
        layout = open_dataset(DataConfig(name=name, root=str(tmp_path / name))).segmentation()
        mask = layout.mask("val", layout.names("val")[0])
        assert check_masks(layout, None).problems == []
        change(
            mask, lambda values, value=value: np.where(np.arange(values.shape[1]) == 3, value, values).astype(np.uint8)
        )
        assert f"{mask} holds {value}; expected {words}, and 255 for ignored" in check_masks(layout, None).problems[0]


def test_train_aug_has_the_files_of_mmsegmentations_voc12aug(voc, parent, tmp_path):
    """Its config: train.txt with SegmentationClass, then aug.txt with SegmentationClassAug."""
    compat.prepare_mmcv()
    from mmseg.datasets import BaseSegDataset

    lists = voc / "ImageSets/Segmentation"
    (lists / "train_aug.txt").unlink()
    (lists / "aug.txt").write_text("2007_train4\n2007_train5\n")
    plain = []
    for names, masks in (("train", "SegmentationClass"), ("aug", "SegmentationClassAug")):
        folders = {"img_path": "JPEGImages", "seg_map_path": masks}
        plain += BaseSegDataset(
            ann_file=f"ImageSets/Segmentation/{names}.txt", data_root=str(voc), data_prefix=folders, lazy_init=True
        ).load_data_list()
    data = ["data.name=voc", f"data.root={voc}", "data.segmentation_train=train_aug"]
    runner, _ = runner_of(parent, tmp_path, data)
    dataset = runner.build_dataloader(runner._train_dataloader).dataset
    wanted = [(Path(row["img_path"]), Path(row["seg_map_path"])) for row in plain]
    assert [(Path(row["img_path"]), Path(row["seg_map_path"])) for row in dataset.load_data_list()] == wanted
