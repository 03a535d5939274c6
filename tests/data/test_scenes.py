"""The embedded dataset: no leak, a correct manifest, deterministic, never incomplete."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from data import compose, scenes
from data.catalog import open_dataset
from data.config import DataConfig, ScenesConfig
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.prepare(ScenesConfig(train=600, val=200), tmp_path_factory.mktemp("made"))


def manifest(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def sources(rows: list[dict[str, str]]) -> set[int]:
    return {int(n) for row in rows for n in [row["digit"], *row["distractors"].split()]}


def rows_of(folder: Path, split: str) -> list[dict[str, str]]:
    return [row for row in manifest(folder) if row["split"] == split]


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train_and_val_share_no_digit_and_no_pixel_of_a_photograph(made: Path) -> None:
    train, val = rows_of(made, "train"), rows_of(made, "val")
    assert len(train) == 600
    assert len(val) == 200
    assert not sources(train) & sources(val)
    used = np.zeros((2, 2, 427, 640), bool)  # split, photograph, rows, columns
    for split, rows in enumerate((train, val)):
        for row in rows:
            top, left, side = int(row["top"]), int(row["left"]), int(row["side"])
            assert top + side <= 427
            assert left + side <= 640
            used[split, int(row["photo"]), top : top + side, left : left + side] = True
    assert used[0].any()
    assert used[1].any()
    assert not (used[0] & used[1]).any()


def test_no_two_digits_of_the_splits_are_the_same_drawing() -> None:
    """Two numbers of `load_digits` could hold the same image; then the split by number would leak."""
    drawings = [
        {glyph.ink.tobytes() for same_class in compose.split_sources(split).glyphs for glyph in same_class}
        for split in ("train", "val")
    ]
    assert not drawings[0] & drawings[1]


def test_the_manifest_lists_the_sources_of_images(made: Path) -> None:
    """The photo's crop explains the background pixels, and the source digit the dominant digit's ink."""
    photos, digits = load_sample_images().images, load_digits()
    similar = []
    for row in manifest(made)[::20]:
        image = read_image(made, row).astype(float)
        mask = read_mask(made, row["image"])
        top, left, side = int(row["top"]), int(row["left"]), int(row["side"])
        crop = photos[int(row["photo"])][top : top + side, left : left + side]
        small = cv2.resize(crop.astype(float), (32, 32), interpolation=cv2.INTER_AREA)
        background = cv2.dilate((mask > 0).astype(np.uint8), np.ones((3, 3))) == 0  # not a digit's faint edge
        similar.append(np.corrcoef(small[background].mean(1), image[background].mean(1))[0, 1])
        assert digits.target[int(row["digit"])] == int(row["label"])
        drawn = (mask == int(row["label"]) + 1).astype(np.float32)
        ink = cv2.resize(digits.images[int(row["digit"])].astype(np.float32), (int(row["digit_size"]),) * 2)
        padded = cv2.copyMakeBorder(drawn, 16, 16, 16, 16, cv2.BORDER_CONSTANT)
        assert cv2.matchTemplate(padded, ink, cv2.TM_CCOEFF_NORMED).max() > 0.6, row
    assert np.median(similar) > 0.9  # rounding hides it where the photograph is flat


def read_image(folder: Path, row: dict[str, str]) -> np.ndarray:
    return np.array(Image.open(folder / row["split"] / row["label"] / f"{row['image']}.png"))


def read_mask(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / "SegmentationClass" / f"{name}.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # Pascal VOC's first class is dark red
        return np.array(mask)


def test_masks_hold_the_dominant_digit_and_the_distractors(made: Path) -> None:
    ignored = []
    for row in manifest(made)[::10]:
        mask = read_mask(made, row["image"])
        labels = {int(row["label"]), *(int(label) for label in row["distractor_labels"].split())}
        assert set(np.unique(mask)) - {0, 255} == {label + 1 for label in labels}
        areas = np.bincount(mask.ravel(), minlength=256)[1:11]
        assert areas.argmax() == int(row["label"])
        ignored.append((mask == 255).mean())
    assert np.mean(ignored) < 0.08  # borders only


def test_classes_are_balanced_and_both_trees_hold_the_same_images(made: Path) -> None:
    for split, count in (("train", 600), ("val", 200)):
        names = (made / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        in_folders = sorted((made / split).rglob("*.png"))
        assert sorted(names) == sorted(path.stem for path in in_folders)
        assert [len(list(folder.iterdir())) for folder in (made / split).iterdir()] == [count // 10] * 10
        for path in in_folders[::30]:
            assert path.read_bytes() == (made / "JPEGImages" / path.name).read_bytes()


def test_made_again_is_byte_identical_and_another_seed_is_not(tmp_path: Path) -> None:
    config = ScenesConfig(train=30, val=10)
    first, second = (scenes.prepare(config, tmp_path / name) for name in ("a", "b"))
    assert first.name == second.name
    assert every_file(first) == every_file(second)
    other = scenes.prepare(ScenesConfig(train=30, val=10, seed=1), tmp_path / "a")
    assert other.name != first.name
    assert every_file(other)["manifest.csv"] != every_file(first)["manifest.csv"]


def test_a_killed_generation_leaves_nothing_incomplete(tmp_path: Path) -> None:
    program = (
        "import os, signal; from data import scenes; write = scenes._write_scene; made = []\n"
        "def write_until_killed(*scene):\n"
        "    made.append(write(*scene))\n"
        "    return made[-1] if len(made) < 100 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "scenes._write_scene = write_until_killed\n"
        "scenes.main(['train=200', 'val=10'])"
    )
    environment = os.environ | {"VICREGL_DATA": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".scenes-*.tmp/train/*/*.png"))) == 100
    assert not list(tmp_path.glob("scenes-*"))
    assert len(list(tmp_path.glob(".scenes-*.tmp"))) == 1
    folder = scenes.prepare(ScenesConfig(train=200, val=10), tmp_path)
    assert scenes.damage(folder) is None
    assert not list(tmp_path.glob(".scenes-*.tmp"))  # the killed maker's leftovers went


def test_processes_that_ask_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.scenes", "train=200", "val=10"]
    environment = os.environ | {"VICREGL_DATA": str(tmp_path)}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = tmp_path.glob("scenes-*")
    assert scenes.damage(folder) is None


@pytest.mark.parametrize("spoil", ["truncate", "remove", "add", "unmark"])
def test_a_damaged_dataset_is_noticed(tmp_path: Path, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path))
    config = DataConfig(scenes=ScenesConfig(train=20, val=10))
    folder = open_dataset(config).root
    before = every_file(folder)
    victim = next((folder / "train" / "3").iterdir())
    if spoil == "truncate":
        os.truncate(victim, 40)
    elif spoil == "remove":
        victim.unlink()
    elif spoil == "add":
        (victim.parent / "train_99999.png").write_bytes(victim.read_bytes())
    else:
        (folder / "complete.json").unlink()
    with pytest.raises(
        UserError, match=r"complete\.json|(train/3|JPEGImages) holds"
    ):  # a user's own folder is left as it is
        open_dataset(DataConfig(root=str(folder)))
    assert every_file(open_dataset(config).root) == before  # our own cache is made again


def test_a_folder_of_other_options_is_refused(made: Path) -> None:
    options = {"train": 600, "val": 200}
    assert open_dataset(DataConfig(root=str(made), scenes=ScenesConfig(**options))).root == made
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(root=str(made), scenes=ScenesConfig(**options | {"train": 500}, digit=[14, 22])))
    expected = (
        f"scenes at {made} were made with data.scenes.train=600 data.scenes.digit=[20,28], and the config says "
        "data.scenes.train=500 data.scenes.digit=[14,22]; say what they were made with, or leave data.root out"
    )
    assert str(caught.value).startswith(expected)


def test_options_that_cannot_be_are_refused(command) -> None:
    done = command("data.scenes", "digit=[28,18]")
    assert done.returncode == 2
    assert "data.scenes.digit" in done.stderr
    assert "Traceback" not in done.stderr
