"""Training on a list of files: the lists of ImageNet's 1 % and 10 %, read exactly or refused."""

from pathlib import Path

import pytest

from data.images import ImageList
from eval import linear
from eval.config import LinearConfig, identity
from eval.subset import digest, read_lines, select_subset
from runtime import config as configs
from runtime.errors import UserError

CONFIG = "eval/configs/linear_scenes.yaml"
CLASSES = ["n01440764", "n01443537"]


@pytest.fixture
def train() -> ImageList:
    """Named as ImageNet's; one name stands in both classes."""
    names = ["n01440764_10026.JPEG", "n01440764_10027.JPEG", "same.JPEG"], ["n01443537_2.JPEG", "same.JPEG"]
    paths = [Path("/data/train") / CLASSES[label] / name for label in (0, 1) for name in names[label]]
    return ImageList(paths, [0, 0, 0, 1, 1])


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["n01443537_2.JPEG", "n01440764_10026.JPEG"],
        ["n01443537/n01443537_2.JPEG", "n01440764/n01440764_10026.JPEG", ""],
        ["train/n01443537/n01443537_2.JPEG", "./n01440764/n01440764_10026.JPEG\r"],
    ],
)
def test_names_and_paths(lines, train, tmp_path):
    chosen = select_subset(written(tmp_path / "1percent.txt", *lines), train, Path("/data/train"))
    assert [path.name for path in chosen.images.paths] == ["n01440764_10026.JPEG", "n01443537_2.JPEG"]
    assert (chosen.images.labels, chosen.per_class, chosen.name) == ([0, 1], [1, 1], "1percent")


def test_images_of_subfolders(tmp_path):
    """Named by their file names or by their whole paths under train/."""
    paths = [Path("/data/train/a") / name for name in ("1.png", "b/1.png", "b/2.png")]
    train = ImageList(paths, [0, 0, 0])
    listed = written(tmp_path / "list.txt", "train/a/b/1.png", "2.png")
    assert select_subset(listed, train, Path("/data/train")).images.paths == paths[1:]
    with pytest.raises(UserError, match=r"1 of 1 lines name no .*as \['b/1.png'\]"):
        select_subset(written(tmp_path / "list.txt", "b/1.png"), train, Path("/data/train"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["n01440764_10026.JPEG", "n01440764_9.JPEG", "x.JPEG"], r"2 of 3 lines name no .*n01440764_9.JPEG.*expected"),
        (["val/n01440764/n01440764_10026.JPEG"], "1 of 1 lines name no"),
        (["n01443537/n01440764_10026.JPEG"], "1 of 1 lines name no"),  # of another class
        (["n01440764_10026.JPEG"] * 2, r"1 lines are repeated, as \['n01440764_10026.JPEG'\]"),
        (["n01440764_10026.JPEG", "train/n01440764/n01440764_10026.JPEG"], "the same image"),
        (["n01440764_10026.JPEG", "./n01440764_10026.JPEG"], "the same image"),
        (["same.JPEG"], r"fit several images.*n01440764/same.JPEG.*n01443537/same.JPEG.*path under train/"),
        ([], "is empty"),
    ],
)
def test_nothing_is_guessed(lines, message, train, tmp_path):
    with pytest.raises(UserError, match=message):
        select_subset(written(tmp_path / "list.txt", *lines), train, Path("/data/train"))


def test_a_missing_list(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        read_lines(tmp_path / "none.txt")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_lines(tmp_path / "image.txt")


def test_the_images_of_a_list_name_the_run_and_its_place_does_not(tmp_path):
    (tmp_path / "b").mkdir()
    places = [written(tmp_path / "1percent.txt", "a", "b"), written(tmp_path / "b" / "1percent.txt", "b", "a")]
    other = written(tmp_path / "b" / "other.txt", "a", "c")
    names = [
        identity(configs.load(LinearConfig, CONFIG, [f"subset={path}"]), "0123456789") for path in (*places, other)
    ]
    assert names[0].name == names[1].name
    assert names[0].hash != names[2].hash
    assert "cached-1percent-of" in names[0].slug
    assert digest(places[0]) != digest(other)
    plain = identity(configs.load(LinearConfig, CONFIG), "0123456789")
    assert "subset" not in plain.config  # so that former runs keep their names
    assert plain.config.keys() == configs.split_machine(LinearConfig())[0].keys()
    with pytest.raises(UserError, match="names the run"):
        configs.load(LinearConfig, CONFIG, ["subset=a list.txt"])


def test_a_list_of_imagenet(imagenet_tree, parent, evaluate, tmp_path):
    """Its layout and its names; ten classes of the 1,000 have an image to train on."""
    listed = written(tmp_path / "1percent.txt", *(f"n{number:08d}_7.JPEG" for number in range(0, 1000, 100)))
    data = ["data.name=imagenet", f"data.root={imagenet_tree}", "image_size=8", "resize=8"]
    quick = ["mode=cached", "epochs=1", "held_out=0", "learning_rates=[0.1]", f"subset={listed}"]
    code, error, run = evaluate(
        linear.main, parent, "eval/configs/linear_imagenet.yaml", *data, *quick, "machine.workers=0"
    )
    assert code == 0, error
    result = run.result()
    assert (result["protocol"], result["classes"], result["subset_classes"]) == ("linear cached 1percent", 1000, 10)
    assert (result["train_images"], result["val_images"]) == (10, 1000)


def test_command_trains_on_the_list_alone(image_folder, parent, evaluate, tmp_path, monkeypatch):
    """Ten of the twelve images of each class; two of those ten choose the learning rate."""
    names = [f"class{label}/{number}.png" for label in range(4) for number in range(10)]
    used = []
    open_splits = linear.LinearTraining.train
    monkeypatch.setattr(linear.LinearTraining, "train", lambda self: used.append(self.splits) or open_splits(self))
    listed = f"subset={written(tmp_path / '80percent.txt', *names)}"
    data = ["data.name=imagefolder", f"data.root={image_folder}", "image_size=16", "resize=16", "epochs=2"]
    code, error, run = evaluate(linear.main, parent, CONFIG, *data, listed, "held_out=0.2")
    assert code == 0, error
    result = run.result()
    assert result["protocol"] == "linear cached 80percent"
    assert (result["subset"], result["subset_images"], result["subset_classes"]) == ("80percent", 40, 4)
    assert result["subset_images_per_class"] == [10, 10]
    assert (result["train_images"], result["held_out_images"], result["val_images"]) == (32, 8, 16)
    parts = [part.paths for part in (used[0].train, used[0].held_out)]
    seen = {f"{path.parent.name}/{path.name}" for paths in parts for path in paths}
    assert seen == set(names)
    assert not set(parts[0]) & set(parts[1])
