"""python -m data.check and the preflight: each kind of damage is reported, intact datasets pass."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import check, check_files
from data.catalog import open_dataset
from data.check import BRIEF, IGNORED, masked, overlay, preflight
from data.check_files import check_images, check_masks, check_overlap, check_strays, same_content, sample
from data.config import DataConfig
from data.images import ImageList
from runtime.errors import UserError, run_command

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees


@pytest.fixture
def tree(image_folder, tmp_path) -> Path:
    """A copy of the ImageFolder of 48 + 16 images that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "tree"))


@pytest.fixture
def voc(tmp_path) -> Path:
    trees.vocfolder_tree(tmp_path / "voc", ["floor", "wall", "door"])
    return tmp_path / "voc"


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Run the command: checked(dataset, *arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments), "--out", str(tmp_path / "sheet.png")])
        with pytest.raises(SystemExit) as ended:
            run_command(check.main)
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


def problems_of(root: Path, samples: int | None = None) -> str:
    return "\n".join(check_images(open_dataset(DataConfig(name="imagefolder", root=str(root))), samples).problems)


def mask_problems_of(root: Path, samples: int | None = None) -> str:
    layout = open_dataset(DataConfig(name="vocfolder", root=str(root))).segmentation()
    findings = check_masks(layout, samples)
    findings.join(check_strays(layout))
    return "\n".join(findings.problems)


def test_an_intact_folder_passes_with_its_counts(tree, checked):
    (tree / "train" / "class2" / "11.png").unlink()
    code, out, err = checked("imagefolder", f"data.root={tree}")
    assert code == 0, err
    assert "train: 47 images in 4 classes, 11 to 12 (median 12) a class" in out
    assert "val: 16 images in 4 classes, 4 to 4 (median 4) a class" in out
    assert "no problem found" in out


def test_files_that_are_left_out_are_counted(tree, checked):
    (tree / "train" / "class1" / "more").mkdir()
    (tree / "train" / "class1" / "3.png").rename(tree / "train" / "class1" / "more" / "3.png")
    for name in ("a.txt", "more/b.txt", "c"):
        (tree / "train" / "class1" / name).touch()
    shutil.copy(tree / "val" / "class0" / "1.png", tree / "val" / "beside.png")
    code, out, err = checked("imagefolder", f"data.root={tree}")
    assert code == 0, err
    assert "train: 48 images in 4 classes, 12 to 12 (median 12) a class" in out
    lines = [
        "train: files left out: 3 (2 ending in .txt, 1 without a suffix)",
        "val: files left out: 1 (1 beside the class folders)",
    ]
    assert all(line in out.splitlines() for line in lines)


def test_damage_ends_with_2_and_a_list(tree, checked, tmp_path):
    damaged = tree / "train" / "class1" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    shutil.copy(tree / "train" / "class0" / "5.png", tree / "val" / "class0" / "new.png")
    code, _, err = checked("imagefolder", f"data.root={tree}")
    assert code == 2
    assert "2 kinds of problems" in err
    assert f"1 unreadable of 48 train images read: cannot decode the image {damaged}" in err
    assert f"1 val images are also in train, by content: {tree}/val/class0/new.png = {tree}/train/class0/5.png" in err
    assert (tmp_path / "sheet.png").is_file()  # to look at all the same


def test_all_finds_what_a_sample_may_miss(tree, checked):
    paths = open_dataset(DataConfig(name="imagefolder", root=str(tree))).images("train").paths
    unread = next(path for path in paths if path not in sample(paths, 2))
    unread.write_bytes(b"no image")
    assert checked("imagefolder", f"data.root={tree}", "--samples", 2)[0] == 0
    code, _, err = checked("imagefolder", f"data.root={tree}", "--all")
    assert (code, str(unread) in err) == (2, True)


def test_a_split_that_is_missing_or_of_other_classes(tree, checked):
    (tree / "val" / "class3").rename(tree / "val" / "class9")
    code, _, err = checked("imagefolder", f"data.root={tree}")
    assert (code, "has other classes" in err) == (2, True)
    shutil.rmtree(tree / "val")
    code, _, err = checked("imagefolder", f"data.root={tree}")
    assert (code, "does not exist" in err) == (2, True)


def test_links_between_the_splits_are_followed(tree):
    shutil.rmtree(tree / "val" / "class1")
    (tree / "val" / "class1").symlink_to(tree / "train" / "class1")
    assert "12 files are both in train and val: " in problems_of(tree)


def test_overlap_of_a_large_set_by_name(tree, monkeypatch):
    """Where train is too large to compare sizes with, images of the same name are compared."""
    monkeypatch.setattr(check_files, "STATS", 0)
    shutil.copy(tree / "train" / "class2" / "7.png", tree / "val" / "class3" / "7.png")
    lists = [open_dataset(DataConfig(name="imagefolder", root=str(tree))).images(split) for split in ("train", "val")]
    copied = tree / "val" / "class3" / "7.png"
    for count in range(1, 18):
        problems = "\n".join(check_overlap(*lists, count).problems)
        assert (f"{copied} = " in problems) == (copied in sample(lists[1].paths, count))


def test_files_of_equal_size_that_differ_are_no_pair(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)

    def files(*names: str) -> ImageList:
        return ImageList([tmp_path / name for name in names], None)

    assert same_content(files("a"), files("b", "c")) == [(tmp_path / "a", tmp_path / "c")]
    assert same_content(files("a"), files("a", "none")) == []


@pytest.mark.parametrize("name", ["voc", "vocfolder", "cityscapes", "ade20k"])
def test_segmentation_layouts_pass(name, tmp_path, checked):
    arguments = {"vocfolder": [["floor", "wall", "door"]], "cityscapes": [False]}
    getattr(trees, f"{name}_tree")(tmp_path / name, *arguments.get(name, []))
    code, out, err = checked(name, f"data.root={tmp_path / name}")
    assert code == 0, err
    assert "classes seen" in out


def test_counts_of_masks_equal_a_count_by_hand(voc):
    layout = open_dataset(DataConfig(name="vocfolder", root=str(voc))).segmentation()
    values = np.concatenate([np.array(Image.open(layout.mask("val", name))).ravel() for name in layout.names("val")])
    seen = len(set(values.tolist()) - {255})
    line = f"val: {seen} of 3 classes seen, {100 * np.mean(values == 255):.1f} % of the pixels ignored"
    assert line in "\n".join(check_masks(layout, None).lines)


def damage_mask(voc: Path, change) -> Path:
    """The first validation mask as `change` makes it of its values."""
    layout = open_dataset(DataConfig(name="vocfolder", root=str(voc))).segmentation()
    path = layout.mask("val", layout.names("val")[0])
    changed = Image.fromarray(change(np.array(Image.open(path))))
    changed.save(path)
    return path


def with_value(values: np.ndarray) -> np.ndarray:
    values[0, :2] = 3, 200
    return values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_value, r"1 val masks with values that are no class \(0 to 2, and 255 for ignored\): .* holds 3, 200"),
        (lambda values: values[:-1], "1 val masks of another size than their image: "),
        (lambda values: np.stack([values] * 3, axis=-1), r"1 val masks that cannot be read: .*mode RGB"),
    ],
)
def test_damaged_masks(change, words, voc):
    assert mask_problems_of(voc) == ""
    path = damage_mask(voc, change)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(mask_problems_of(voc))
    assert str(path) in mask_problems_of(voc)


def test_masks_that_say_nothing_and_masks_without_images(voc):
    layout = open_dataset(DataConfig(name="vocfolder", root=str(voc))).segmentation()
    for name in layout.names("val"):
        path = layout.mask("val", name)
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    (voc / "SegmentationClass" / "stray.png").write_bytes(path.read_bytes())
    problems = mask_problems_of(voc)
    assert "val masks read are ignored" in problems
    assert "1 masks in SegmentationClass have no image in JPEGImages: stray" in problems


def test_the_picture_shows_masks_in_their_colours(voc, checked, tmp_path):
    layout = open_dataset(DataConfig(name="vocfolder", root=str(voc))).segmentation()
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    colours = [*layout.palette, list(IGNORED)]
    assert overlay(None, labels, layout).reshape(-1, 3).tolist() == colours
    gray = np.full((2, 2, 3), 100, np.uint8)
    expected = (0.4 * 100 + 0.6 * np.array(colours)).astype(np.uint8)
    assert overlay(gray, labels, layout).reshape(-1, 3).tolist() == expected.tolist()
    plain, covered = masked(layout, "val")
    assert [title for title, _ in plain] == [f"val\n{layout.image('val', n).name}" for n in layout.names("val")][:6]
    assert covered[0][0].split("\n")[0].split(", ")[0] in layout.classes
    checked("vocfolder", f"data.root={voc}")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_the_preflight_is_brief(tree, monkeypatch):
    for number in range(12, 60):
        shutil.copy(tree / "train" / "class0" / "0.png", tree / "train" / "class0" / f"{number}.png")
    read = []
    monkeypatch.setattr(ImageList, "read", lambda images, number: read.append(images.paths[number]))
    preflight(DataConfig(name="imagefolder", root=str(tree)), masks=False)
    assert len(read) == 2 * BRIEF
    with pytest.raises(UserError, match="has no segmentation masks"):
        preflight(DataConfig(name="imagefolder", root=str(tree)), masks=True)
