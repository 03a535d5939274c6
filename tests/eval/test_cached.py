"""Linear and kNN read a cache of unreduced training images in place of their files, with the same scores."""

from __future__ import annotations

import shutil

import pytest

from data import cache, store
from data.catalog import open_dataset
from data.config import DataConfig
from eval import knn, linear

OPTIONS = {
    knn: ["knn_scenes", "image_size=16", "resize=16", "neighbours=[3]", "held_out=0.2"],
    linear: ["linear_scenes", "image_size=16", "resize=16", "mode=augmented", "epochs=2", "learning_rates=[0.1,1]"],
}


@pytest.fixture
def dataset(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "data"))
    shutil.copytree(image_folder, tmp_path / "images")
    return open_dataset(DataConfig(name="imagefolder", root=str(tmp_path / "images")))


@pytest.mark.parametrize("stage", OPTIONS, ids=lambda stage: stage.__name__)
def test_the_scores_are_those_of_the_files(stage, dataset, parent, evaluate, monkeypatch):
    config, *options = OPTIONS[stage]
    arguments = [f"eval/configs/{config}.yaml", "data.name=imagefolder", f"data.root={dataset.root}", *options]
    code, error, run = evaluate(stage.main, parent, *arguments)
    assert code == 0, error
    of_files = run.result()
    shutil.rmtree(run.path)
    cache.build(dataset, 0, workers=1, skip_bad=False)
    read = store.FileSource.__call__
    splits = []

    def recorded(self, number):
        splits.append(self.images.paths[number].relative_to(dataset.root).parts[0])
        return read(self, number)

    monkeypatch.setattr(store.FileSource, "__call__", recorded)
    code, error, run = evaluate(stage.main, parent, *arguments)
    assert code == 0, error
    assert {**run.result(), "seconds": 0} == {**of_files, "seconds": 0}
    assert set(splits) == {"val"}


def test_a_cache_of_reduced_images_is_not_used(dataset, parent, evaluate):
    """Its pixels are others: the scores would change."""
    folder = cache.build(dataset, 16, workers=1, skip_bad=False)
    (folder / "done.json").unlink()  # would be refused if it were opened
    config, *options = OPTIONS[knn]
    data = ["data.name=imagefolder", f"data.root={dataset.root}"]
    assert evaluate(knn.main, parent, f"eval/configs/{config}.yaml", *data, *options)[0] == 0


def test_a_cache_of_other_files_is_refused(dataset, parent, evaluate):
    cache.build(dataset, 0, workers=1, skip_bad=False)
    file = dataset.images("train").paths[5]
    shutil.copy(dataset.images("train").paths[20], file)
    config, *options = OPTIONS[knn]
    data = ["data.name=imagefolder", f"data.root={dataset.root}"]
    code, error, _ = evaluate(knn.main, parent, f"eval/configs/{config}.yaml", *data, *options)
    assert (code, "was made from other files" in error) == (2, True), error
