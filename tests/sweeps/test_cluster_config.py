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


def test_options_of_sbatch_and_srun(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "all: {gpus: h100:4, memory_gb: null, sbatch: {reservation: spring, exclusive: true, begin: 16:00}}\n"
        "pretrain: {sbatch: {exclusive: null, switches: 1@10:00}, srun: {container-image: /a b.sqsh}}\n",
    )
    pretrain, linear = (load_cluster(file).stages[name] for name in ("pretrain", "linear"))
    assert cluster_config.option_values(pretrain.sbatch) == {
        "reservation": "spring",
        "begin": "16:00",
        "switches": "1@10:00",
    }
    assert cluster_config.as_arguments(pretrain.srun) == ["--container-image=/a b.sqsh"]
    assert cluster_config.as_arguments(linear.sbatch) == ["--reservation=spring", "--exclusive", "--begin=16:00"]
    assert (pretrain.gpus_per_node, pretrain.processes) == (4, 4)
    assert "1 x 8 CPUs on 1 of the 4 GPUs" in cluster_config.describe(linear)
    assert cluster_config.describe(pretrain) == (
        "1 x (4 h100 GPUs), 4 x 8 CPUs, 240 min, --reservation=spring --begin=16:00 --switches=1@10:00, "
        "srun --container-image=/a b.sqsh"
    )


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu", 1), ("gpu:3", 3), ("gpu:h100", 1), ("gpu:h100:2,nvme:8", 2), ("gres/gpu:a:1,gpu:b:2", 3)],
)
def test_the_defaults_give_way_to_options_of_sbatch(gres: str, count: int, tmp_path: Path) -> None:
    text = f"all: {{sbatch: {{gres: '{gres}', mem-per-cpu: 4G}}}}"
    pretrain = load_cluster(write(tmp_path, text)).stages["pretrain"]
    assert (pretrain.gpus, pretrain.gpus_per_node, pretrain.tasks_per_node) == (None, count, count)
    assert pretrain.memory_gb is None


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
        ("all: {gpus: 2}\nlinear: {sbatch: {gres: gpu:1}}", ["linear: gpus = 2", "null, because", "says gpus too"]),
        ("all: {memory_gb: 9, sbatch: {mem-per-gpu: 9G}}", ["memory_gb = 9", "null, because"]),
        ("all: {sbatch: {partition: low}}", ["sbatch.partition = 'low'", "the key `partition` of the stage"]),
        ("all: {sbatch: {gpus-per-node: 2}}", ["the key `gpus`"]),
        ("all: {sbatch: {part: low}}", ["sbatch.part = 'low'", "the key `partition`"]),
        ("all: {sbatch: {parsable: true}}", ["sbatch.parsable = True", "set by `submit`"]),
        ("all: {srun: {cpus-per-task: 2}}", ["srun.cpus-per-task = 2", "the key `cpus`"]),
        ("all: {sbatch: {mail_user: me}}", ["sbatch.mail_user = 'me'", "the long name of an option"]),
        ("all: {sbatch: {--comment: me}}", ["sbatch.--comment = 'me'", "the long name of an option"]),
        ('all: {sbatch: {comment: "a\\nb"}}', ["sbatch.comment = 'a\\nb'", "one line"]),
        ("all: {sbatch: {licenses: [a, b]}}", ["sbatch.licenses = ['a', 'b']", "a number, text"]),
        ("all: {gpus: h100}", ["gpus = 'h100'", 'a type and a number as "h100:4"']),
        ("all: {gpus: -1}", ["gpus = -1", "a number"]),
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
