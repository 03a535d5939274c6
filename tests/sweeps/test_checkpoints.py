"""A study of checkpoints: files of any origin as the points of a study, read strictly before anything is queued."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from runtime import PROJECT
from runtime.errors import UserError
from sweeps.control import _import_checkpoints
from sweeps.graph import build
from sweeps.study import Study, load_study
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

SIZE = {"data.scenes.train": 200, "data.scenes.val": 50}
STUDY = {
    "name": "zoo",
    "question": "Which of these checkpoints is the best?",
    "checkpoints": {
        "MoCo, 200 epochs": {
            "weights": "$CHECKPOINTS/a.pth",
            "arch": "scenes_resnet",
            "method": "MoCo",
            "columns": {"epochs": 200},
        },
        "another": {
            "weights": "$CHECKPOINTS/b.pth",
            "arch": "scenes_resnet",
            "arch_args": {"width_factor": 0.5},
            "prefix": "net.",
            "ignore": ["pool"],
            "method": "other",
        },
    },
    "evals": {
        "knn": {"stage": "knn", "config": "eval/configs/knn_scenes.yaml", "set": {"neighbours": [5], **SIZE}},
        "dense": {
            "stage": "dense_knn",
            "config": "eval/configs/dense_knn_scenes.yaml",
            "set": {"memory": 500, "neighbours": [5], **SIZE},
        },
    },
    "report": {"vary": "checkpoint", "x": "knn.top1", "y": "dense.miou"},
}


def state(seed: int, **args: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return create_backbone(BackboneConfig("scenes_resnet", args)).trunk.state_dict()


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setenv("CHECKPOINTS", str(folder))
    moco = {f"module.encoder_q.{key}": value for key, value in state(0).items()}
    torch.save({"state_dict": moco | {"module.queue": torch.ones(2)}}, folder / "a.pth")
    other = {f"net.{key}": value for key, value in state(1, width_factor=0.5).items()}
    torch.save(other | {"net.pool.weight": torch.ones(2)}, folder / "b.pth")
    return folder


@pytest.fixture
def study_file(tmp_path) -> Path:
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return tmp_path / "zoo.yaml"


def edited(study_file: Path, change) -> Study:
    values = yaml.safe_load(study_file.read_text())
    change(values)
    study_file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study(study_file)


def test_a_checkpoint_is_named_by_its_content(checkpoints, study_file, tmp_path, monkeypatch):
    graph = build(load_study(study_file), [f"machine.runs={tmp_path / 'runs'}"])
    assert [node.title for node in graph.nodes] == [
        f"{part} {name}" for name in STUDY["checkpoints"] for part in ("weights", "knn", "dense")
    ]
    assert [point.varied for point in graph.points] == [
        {"checkpoint": name, "method": part["method"]} for name, part in STUDY["checkpoints"].items()
    ]
    checkpoints.rename(tmp_path / "moved")
    monkeypatch.setenv("CHECKPOINTS", str(tmp_path / "moved"))
    again = build(load_study(study_file), [f"machine.runs={tmp_path / 'runs'}"])
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]
    torch.save(state(2), tmp_path / "moved" / "a.pth")
    changed = build(load_study(study_file), [f"machine.runs={tmp_path / 'runs'}"])
    pairs = zip(graph.nodes, changed.nodes, strict=True)
    assert [a.name != b.name for a, b in pairs] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["checkpoints"]["another"].update(weights="/nowhere.pth"), "another: weights /nowhere.pth do not"),
        (lambda v: v["checkpoints"]["another"].update(weights="$UNSET_1/b.pth"), "variable of the environment set"),
        (lambda v: v["checkpoints"]["another"].update(wieghts="x"), "did you mean checkpoints.another.weights"),
        (lambda v: v.pop("checkpoints"), "pretrain, checkpoints or both"),
        (lambda v: v["checkpoints"]["another"].update(timm="resnet50.a1_in1k"), "one of weights"),
        (lambda v: v["checkpoints"]["another"].update(epoch=3), "another.epoch, .at = .3. is not possible"),
        (lambda v: v["checkpoints"]["another"].pop("arch"), "another.arch = None"),
        (lambda v: v["checkpoints"]["another"].update(published={"method": "MoCo"}), "eval/published.csv"),
        (
            lambda v: v["checkpoints"]["another"].update(evals={"kNN": {}}),
            "another.evals = .kNN. is not possible; allowed: knn, dense",
        ),
        (lambda v: v["checkpoints"]["another"].update(evals={"knn": {"set": {"k_": 3}}}), "unknown key 'k_'"),
        (lambda v: v["report"].update(join="epoch"), "did you mean epochs"),
        (lambda v: v["report"].update(vary="loss.alpha"), "checkpoint, method"),
        (lambda v: v["evals"]["knn"].update(stage="weights"), "weights is no evaluation"),
    ],
)
def test_what_is_wrong_is_named(checkpoints, study_file, change, words):
    with pytest.raises(UserError, match=words):
        build(edited(study_file, change))


def test_a_file_that_does_not_fit_is_refused_before_anything_is_queued(checkpoints, study_file, tmp_path):
    study = edited(study_file, lambda values: values["checkpoints"]["another"].pop("ignore"))
    graph = build(study, [f"machine.runs={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match=r"weights another: .*unexpected \(1\): pool.weight"):
        _import_checkpoints(graph)
    assert [node.run.state() for node in graph.nodes if node.parent is None] == ["done", "new"]


def test_a_checkpoint_with_its_digest_is_needed_until_it_is_imported(checkpoints, study_file, tmp_path, monkeypatch):
    """And another file in its place is refused; paths may be relative to where the command is given."""
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256((checkpoints / "a.pth").read_bytes()).hexdigest()

    def change(values):
        values["checkpoints"] = {"a": {"weights": "checkpoints/a.pth", "arch": "scenes_resnet", "sha256": digest}}

    machine = ["machine.runs=runs"]
    plain = build(edited(study_file, lambda values: None), machine)
    content = (checkpoints / "a.pth").read_bytes()
    torch.save(state(2), checkpoints / "a.pth")
    study = edited(study_file, change)
    graph = build(study, machine)
    assert graph.nodes[0].name == plain.nodes[0].name
    with pytest.raises(UserError, match=f"have the SHA-256 .*; expected {digest}, another file"):
        _import_checkpoints(graph)
    assert not (tmp_path / "runs").exists()
    (checkpoints / "a.pth").write_bytes(content)
    _import_checkpoints(graph)
    (checkpoints / "a.pth").unlink()
    assert build(study, machine).nodes[0].run.state() == "done"
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        build(edited(study_file, lambda values: values["checkpoints"]["a"].update(sha256="12ab")), machine)


@pytest.mark.slow
def test_from_files_to_a_report(checkpoints, study_file, tmp_path):
    """`sweeps run` imports and evaluates; the table has the columns, the plane has the names."""
    runs = f"machine.runs={tmp_path / 'runs'}"
    for command in (
        ["sweeps", "run", study_file, runs, "--workers=1", "machine.workers=0", "machine.threads=1"],
        ["analysis", study_file, runs, f"--reports={tmp_path / 'reports'}"],
    ):
        done = subprocess.run([sys.executable, "-m", *command], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "reports" / "zoo"
    header, _, *rows = [line for line in (report / "table.md").read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[1:6]] == ["checkpoint", "method", "epochs", "n", "kNN top-1 (%)"]
    assert [[cell.strip() for cell in row.split("|")[1:5]] for row in rows] == [
        ["MoCo, 200 epochs", "MoCo", "200", "1"],
        ["another", "other", "", "1"],
    ]
    assert "another" in (report / "tradeoff.svg").read_text()
    graph = build(load_study(study_file), [runs])
    for point in graph.points:
        result = point.evals["knn"].run.result()
        assert result["weights"]["sha256"] == point.pretrain.identity.config["weights"]["sha256"]
    matched = json.loads((graph.points[1].pretrain.run.path / "result.json").read_text())
    assert (matched["prefix"], matched["left_out"]) == ("net.", 1)
