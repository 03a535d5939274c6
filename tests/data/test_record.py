"""A run refuses other files than it was begun with, where its name does not say which folder holds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.catalog import open_dataset
from data.config import DataConfig
from data.record import EVALUATION, PRETRAINING, record_data, refuse_other_data
from eval.config import LinearConfig
from eval.config import identity as eval_identity
from pretrain.config import PretrainConfig, identity
from runtime import PROJECT
from runtime import config as configs
from runtime.errors import UserError
from sweeps.graph import Graph, build
from sweeps.study import load_study

RECIPE = PROJECT / "pretrain/configs/resnet50_100ep.yaml"


def hash_of(*overrides: str) -> str:
    return identity(configs.load(PretrainConfig, RECIPE, overrides)).hash


def test_the_command_with_a_root_and_a_study_without_name_the_same_run() -> None:
    study = build(load_study(PROJECT / "sweeps/studies/alpha.yaml"), ["machine.runs=/nowhere"])
    planned = {point.pretrain.identity.hash: point.varied for point in study.points if point.control is None}
    assert planned[hash_of("data.root=/big/imagenet", "loss.alpha=0.75")]["loss.alpha"] == 0.75
    assert hash_of("data.root=/big/imagenet") == hash_of() == "f5d52f7436"  # as it always was
    layers = ["data.name=imagenet", "data.root=/a"], ["data.name=imagenet", "data.root=/b"]
    assert len({eval_identity(configs.load(LinearConfig, None, layer), "0").hash for layer in layers}) == 1


@pytest.mark.parametrize("name", ["imagefolder", "vocfolder"])
def test_a_folder_of_ones_own_stays_a_part_of_the_name(name: str) -> None:
    roots = [[f"data.name={name}", *root] for root in ([], ["data.root=/a"], ["data.root=/b"])]
    assert len({hash_of(*overrides) for overrides in roots}) == 3


@pytest.mark.parametrize("change", ["a missing image", "an image of another size", "nothing", "the same folder"])
def test_another_folder_must_hold_the_same_files(change: str, folder_of_60: DataConfig, tmp_path, monkeypatch) -> None:
    first, other, run = Path(str(folder_of_60.root)), tmp_path / "other", tmp_path / "run"
    run.mkdir()
    shutil.copytree(first, other)
    data = DataConfig(name="imagefolder")
    monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(first))
    refuse_other_data(run, data)  # nothing is recorded yet
    record_data(run, data, open_dataset(data), EVALUATION)
    victim = sorted((first if change == "the same folder" else other).glob("val/*/*"))[-1]
    if change == "a missing image":
        victim.unlink()
    elif change != "nothing":  # as after a download that was cut off, and is repaired
        victim.write_bytes(victim.read_bytes() + b"\0")
    if change != "the same folder":
        monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(other))
    if change in ("nothing", "the same folder"):
        refuse_other_data(run, data)
        return
    with pytest.raises(UserError, match=r"was begun with imagefolder in .*tree \(20 files of val\), and .*other holds"):
        refuse_other_data(run, data)
    refuse_other_data(run, data.replace(root=str(other)))  # this one's name has its folder
    shutil.rmtree(other)
    refuse_other_data(run, data)  # a run that is done does not read it; one that is not says so itself


@pytest.mark.parametrize("root", ["tree", "~/tree"])
def test_a_relative_root_is_another_folder_elsewhere(root: str, folder_of_60, tmp_path, monkeypatch) -> None:
    def go_to(place: Path) -> None:
        monkeypatch.chdir(place)
        monkeypatch.setenv("HOME", str(place))

    here, elsewhere, run = tmp_path, tmp_path / "elsewhere", tmp_path / "run"
    run.mkdir()
    shutil.copytree(here / "tree", elsewhere / "tree")
    next((elsewhere / "tree").glob("train/*/*")).unlink()
    data = folder_of_60.replace(root=root)
    go_to(here)
    refuse_other_data(run, data)  # made before this was recorded: it goes on
    record_data(run, data, open_dataset(data), PRETRAINING)
    refuse_other_data(run, data)
    go_to(elsewhere)
    with pytest.raises(UserError, match=r"\(60 files of train\), and .*elsewhere/tree holds others \(59\)"):
        refuse_other_data(run, data)
    shutil.copytree(here / "tree", elsewhere / "tree", dirs_exist_ok=True)
    refuse_other_data(run, data)  # moved


@pytest.mark.slow
def test_a_pretraining_neither_goes_on_nor_ends_with_other_images(folder_of_60, tmp_path, monkeypatch, command) -> None:
    monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(folder_of_60.root))
    options = ["model.expander=32-32", "model.projector=16-16", "train.batch_size=16", "train.duration=1 steps"]
    options += ["optimizer.warmup=0 steps", "diagnostics_images=32", f"machine.runs={tmp_path / 'runs'}"]
    arguments = ["pretrain", "--config=pretrain/configs/quickstart.yaml", "data.name=imagefolder", *options]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    other = shutil.copytree(str(folder_of_60.root), tmp_path / "other")
    monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(other))
    assert command(*arguments).returncode == 0  # moved
    next(other.glob("train/*/*")).unlink()
    refused = command(*arguments)
    assert refused.returncode == 2
    assert "was begun with imagefolder in" in refused.stderr


def test_a_study_cannot_take_two_folders_for_one_run(imagenet: Path, tmp_path: Path) -> None:
    def study(*roots: str) -> Path:
        file = tmp_path / "study.yaml"
        each = "\n".join(
            f"  on{k}: {{stage: linear, config: eval/configs/linear_imagenet.yaml, set: {{data.root: {root}}}}}"
            for k, root in enumerate(roots)
        )
        file.write_text(
            "name: roots\nquestion: Which?\npretrain: {config: pretrain/configs/quickstart.yaml, "
            f"grid: {{loss.alpha: [0.5, 1.0]}}}}\nevals:\n{each}\n"
            "report: {vary: loss.alpha, x: on0.top1, y: on0.top5}\n"
        )
        return file

    runs = [f"machine.runs={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match=r"would be one run with \{'data.root': '/a'\} and with \{'data.root': '/b'\}"):
        build(load_study(study("/a", "/b")), runs)
    graph = build(load_study(study(str(imagenet))), runs)
    run = graph.points[0].evals["on0"].run.path
    run.mkdir(parents=True)
    data = DataConfig(name="imagenet", root=str(imagenet))
    record_data(run, data, open_dataset(data), PRETRAINING)
    other = shutil.copytree(imagenet, tmp_path / "other")
    shutil.copy(other / "train/n00000000/7.JPEG", other / "train/n00000000/8.JPEG")
    with pytest.raises(UserError, match=r"1000 files of train\), and .*other holds others \(1001\)"):
        build(load_study(study(str(other))), runs)


def test_a_study_with_a_relative_root_is_refused_elsewhere(folder_of_60: DataConfig, tmp_path, monkeypatch) -> None:
    """Also where its runs are done, which no command of a stage would look at again."""
    (tmp_path / "study.yaml").write_text(
        "name: relative\nquestion: Which?\n"
        "pretrain: {config: pretrain/configs/quickstart.yaml, set: {data.name: imagefolder, data.root: tree}, "
        "grid: {loss.alpha: [0.5, 1.0]}}\n"
        "evals: {linear: {stage: linear, config: eval/configs/linear_scenes.yaml}}\n"
        "report: {vary: loss.alpha, x: linear.top1, y: pretrain.rank_pooled}\n"
    )

    def plan() -> Graph:
        return build(load_study(tmp_path / "study.yaml"), [f"machine.runs={tmp_path / 'runs'}"])

    monkeypatch.chdir(tmp_path)
    run = plan().points[0].pretrain.run
    run.path.mkdir(parents=True)
    run.write_result({})
    plan()  # without a record, as runs that were made before there were any
    data = folder_of_60.replace(root="tree")
    record_data(run.path, data, open_dataset(data), PRETRAINING)
    plan()
    shutil.copytree(tmp_path / "tree", tmp_path / "elsewhere/tree")
    next(tmp_path.glob("elsewhere/tree/train/*/*")).unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"was begun with imagefolder in .*elsewhere/tree holds others \(59\)"):
        plan()


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for number in range(1000):
        folder = root / "train" / f"n{number:08d}"
        folder.mkdir(parents=True)
        (folder / "7.JPEG").touch()
    return root
