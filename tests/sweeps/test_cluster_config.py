"""The cluster file is read section over section, and an error in it is named before SLURM is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import UserError
from sweeps.slurm import config as cluster_config
from sweeps.slurm.config import load_cluster


def write(folder: Path, text: str) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(text)
    return file


def test_a_stage_over_evals_over_all(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "all: {partition: gpu, cpus: 4, setup: [module load cuda]}\n"
        "pretrain: {nodes: 2, gpus: 4, minutes: 1200, parallel: 8}\n"
        "evals: {minutes: 60, cpus: 2}\n"
        "linear: {cpus: 3}\n"
        "max_array_size: 500\n",
    )
    cluster = load_cluster(file)
    pretrain, linear, segmentation = (cluster.stages[name] for name in ("pretrain", "linear", "segmentation"))
    assert (pretrain.nodes, pretrain.gpus, pretrain.cpus, pretrain.minutes) == (2, 4, 4, 1200)
    assert (pretrain.tasks_per_node, pretrain.processes) == (4, 8)  # one process a GPU
    assert (linear.cpus, linear.minutes, segmentation.cpus) == (3, 60, 2)
    assert {stage.partition for stage in cluster.stages.values()} == {"gpu"}
    assert linear.setup == ["module load cuda"]
    assert cluster.max_array_size == 500


def test_evaluations_by_several_processes(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, "evals: {nodes: 2, gpus: 4, tasks: 4}\nknn: {nodes: 1}\n"))
    processes = {name: stage.processes for name, stage in cluster.stages.items()}
    shared = {"linear": 8, "dense_knn": 8, "segmentation": 8, "knn": 4}
    assert processes == {"pretrain": 1, "weights": 1, **shared}


def test_the_user_s_file_is_read_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_config, "USER_FILE", tmp_path / "cluster.yaml")
    assert load_cluster().stages["pretrain"].partition is None
    assert load_cluster().file == ""
    write(tmp_path, "all: {partition: mine}")
    assert load_cluster().stages["pretrain"].partition == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrian: {nodes: 2}", ["'pretrian'", "did you mean pretrain"]),
        ("all: {gpu: 2}", ["cluster.yaml: all", "'gpu'", "gpus"]),
        ("all: gpu", ["cluster.yaml: all = 'gpu'", "key: value"]),
        ("all: {minutes: 1-00:00:00}", ["minutes", "1-00:00:00"]),
        ("pretrain: {minutes: 0}", ["pretrain: minutes = 0", "1 or more"]),
        ("pretrain: {nodes: 0}", ["nodes = 0"]),
        ("pretrain: {minutes: 2, signal_seconds: 90}", ["signal_seconds = 90", "2 minutes"]),
        ("weights: {nodes: 2}", ["weights: 2 nodes", "in one process"]),
        ("max_array_size: many", ["cluster.yaml: max_array_size = 'many'"]),
        ("max_array_size: -1", ["max_array_size = -1", "0 or more"]),
        ("all: [", ["not readable YAML"]),
    ],
)
def test_an_error_is_named(text: str, expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_cluster(write(tmp_path, text))
    for part in expected:
        assert part in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_cluster(tmp_path / "none.yaml")
