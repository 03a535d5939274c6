"""Linear and kNN evaluations have the scores of the folder when the same images come in shards."""

from __future__ import annotations

import shutil

import pytest

from eval import knn, linear
from tests.twins import samples_of, write_shards, write_tar

SMALL = ["image_size=16", "resize=16", "held_out=0.2"]
OPTIONS = {
    knn: ["knn_scenes", *SMALL, "neighbours=[1,3,8]"],
    linear: ["linear_scenes", *SMALL, "mode=augmented", "epochs=2", "learning_rates=[0.1,1]"],
}


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("stage", OPTIONS, ids=lambda stage: stage.__name__)
def test_the_scores_are_those_of_the_folder(stage, form, image_folder, tmp_path, parent, evaluate, monkeypatch):
    """Held-out images choose the setting."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "indexes"))
    results = []
    for root in (image_folder, write_shards(image_folder, tmp_path / "twin", form)):
        data = ["data.name=imagefolder", f"data.root={root}", "machine.workers=2"]
        config, *options = OPTIONS[stage]
        code, error, run = evaluate(stage.main, parent, f"eval/configs/{config}.yaml", *data, *options)
        assert code == 0, error
        results.append(run.result() | {"seconds": 0})
    assert results[0] == results[1]
    assert results[0]["held_out_images"] == 8


def test_a_list_names_the_images_of_shards(imagenet_tree, tmp_path, parent, evaluate, monkeypatch):
    """The published names, of shards whose writer has named them .jpg."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "indexes"))
    for split in ("train", "val"):
        renamed = [(tmp_path / f"{file.stem}.jpg", label) for file, label in samples_of(imagenet_tree / split)]
        for (file, _), (original, _) in zip(renamed, samples_of(imagenet_tree / split), strict=True):
            file.write_bytes(original.read_bytes())
        write_tar(tmp_path / f"twin/imagenet1k-{split}-0000.tar", renamed)
    listed = tmp_path / "1percent.txt"
    listed.write_text("".join(f"n{number:08d}_7.JPEG\n" for number in range(0, 1000, 100)))
    quick = ["image_size=8", "resize=8", "mode=cached", "epochs=1", "held_out=0", "learning_rates=[0.1]"]
    results = []
    for root in (imagenet_tree, tmp_path / "twin"):
        data = ["data.name=imagenet", f"data.root={root}", f"subset={listed}", "machine.workers=0"]
        code, error, run = evaluate(linear.main, parent, "eval/configs/linear_imagenet.yaml", *data, *quick)
        assert code == 0, error
        results.append(run.result() | {"seconds": 0})
        shutil.rmtree(run.path)  # imagenet's folder is no part of its name
    assert results[0] == results[1]
    assert (results[1]["subset_images"], results[1]["subset_classes"]) == (10, 10)
    listed.write_text("n00000100_7.JPEG\nn00000100_7.jpg\n")
    code, error, _ = evaluate(linear.main, parent, "eval/configs/linear_imagenet.yaml", *data, *quick)
    assert (code, "the same image" in error) == (2, True), error
