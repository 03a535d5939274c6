"""A package of the user's own registers what a config names, and its version is part of the run's identity."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from data.catalog import open_dataset
from pretrain.config import PretrainConfig, identity
from runtime import PROJECT, imports
from runtime import config as configs
from runtime.errors import UserError
from sweeps.graph import Graph, build
from sweeps.slurm.config import Resources, load_cluster
from sweeps.slurm.job import Supervisor
from sweeps.slurm.records import Submission
from sweeps.slurm.submit import _Submitter
from sweeps.study import load_study
from vicregl.backbones import create_backbone

SOURCE = """
from typing import ClassVar
from timm.models import create_model, register_model
from data.catalog import Dataset, read_folders, register, root_of
from eval.config import KnnConfig, register_evaluation
from pretrain.criterion import register_criterion
from vicregl.criterion import VICRegLCriterion

def open_own(config):
    return Dataset("own_images", root_of(config), [], lambda split: read_folders(root_of(config), split, []))

@register_model
def own_resnet(pretrained=False, **kwargs):
    return create_model("resnet18", pretrained, **kwargs)

class OwnConfig(KnnConfig):
    stage: ClassVar[str] = "own_share"
    label: ClassVar[str] = "own"
    share: float = 0.5

register("own_images", open_own)
register_criterion("own_criterion", lambda loss, embedding, channels, weight=1.0: VICRegLCriterion(loss))
register_evaluation(OwnConfig, lambda config, parent, run, device, world: {"share": config.share}, score="share")
"""
OVERRIDES = ["imports=[own_package]", "data.name=own_images", "data.root=.", "model.backbone.name=own_resnet"]
Write = Callable[[str], None]
pytestmark = pytest.mark.filterwarnings("ignore:Overwriting own_resnet")  # each test registers it anew


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]) -> Iterator[Write]:
    """Write the package's source as a new process would meet it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> None:
        forget("own_package")
        (tmp_path / "own_package.py").write_text(source, encoding="utf-8")

    yield write
    forget("own_package")


def test_a_config_of_an_own_dataset_and_network(write: Write, tmp_path: Path) -> None:
    write(SOURCE)
    config = configs.load(PretrainConfig, None, OVERRIDES)
    assert open_dataset(config.data).name == "own_images"
    assert create_backbone(config.model.backbone).channels == 512
    first = identity(config)
    (version,) = first.config["imports"].values()
    assert version.startswith("sha256:")
    stored = tmp_path / "resolved.yaml"  # as a job reads it
    stored.write_text(configs.as_yaml(config), encoding="utf-8")
    assert identity(configs.load(PretrainConfig, stored)).hash == first.hash
    write(f"{SOURCE}\n# other code\n")
    assert identity(configs.load(PretrainConfig, None, OVERRIDES)).hash != first.hash
    with pytest.raises(UserError, match=f"own_package = '{version}', and the package here is sha256:"):
        configs.load(PretrainConfig, stored)


def test_an_installed_package_has_its_version_and_none_changes_nothing() -> None:
    config = configs.load(PretrainConfig, None, ["imports=[yaml]"])
    assert config.imports == {"yaml": imports.metadata.version("PyYAML")}
    assert "imports" not in identity(PretrainConfig()).config


def test_a_folder_without_an_init_has_the_version_of_all_its_sources(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "own_package"
    folder.mkdir()
    versions = []
    for source in ("A = 1", "A = 2"):
        (folder / "part.py").write_text(source, encoding="utf-8")
        (folder / ".#part.py").unlink(missing_ok=True)
        (folder / ".#part.py").symlink_to("user@host.1234")  # an editor's lock, which leads nowhere
        versions += imports.import_packages(["own_package", "own_package.part"]).values()
        imports._import_package.cache_clear()
    sys.modules.pop("own_package.part")
    assert versions[0] == versions[1] != versions[2] == versions[3]


@pytest.mark.parametrize(
    ("source", "override", "expected"),
    [
        ("", "imports=[no_such_package]", "no_such_package cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "imports=[own_package]", "own_package cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(0)", "imports=[own_package]", "own_package cannot be imported: SystemExit: 0"),
        ("", "imports=[data]", "imports: data is this project's or Python's own"),
        ("", "imports=[platform]", "imports: platform is this project's or Python's own"),
        ("", "imports=own_package", "a list of packages, as [my_package]"),
        ("", "data.name=own_image", "data.name = 'own_image' is not possible; allowed: scenes, imagefolder"),
        (SOURCE.replace("own_images", "scenes"), "imports=[own_package]", "dataset 'scenes' is registered already"),
        (SOURCE.replace("own_images", "own/images"), "imports=[own_package]", "expected a name of letters, digits, _"),
    ],
)
def test_an_error_is_named(write: Write, source: str, override: str, expected: str) -> None:
    write(source)
    with pytest.raises(UserError) as caught:
        configs.load(PretrainConfig, None, [override])
    assert expected in str(caught.value)


def plan(**changes: Any) -> Graph:
    """Plan a study of this file, as a new process would."""
    study = {"base": str(PROJECT / "sweeps" / "studies" / "smoke.yaml"), "name": "own"} | changes
    Path("own.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return build(load_study("own.yaml"))


IMPORTS = {"imports": ["own_package"]}
OWN = {"own": {"stage": "own_share", "config": "knn_scenes", "set": {"share": 0.25}}}


def test_imports_of_a_study_are_those_of_all_its_runs(write: Write) -> None:
    write(SOURCE)
    common = plan(**IMPORTS)
    stated = plan(pretrain={"set": IMPORTS}, evals={name: {"set": IMPORTS} for name in ("linear", "segmentation")})
    names = {node.name for node in common.nodes}
    assert len(names) == 9
    assert names == {node.name for node in stated.nodes}
    assert all(list(node.identity.config["imports"]) == ["own_package"] for node in common.nodes)
    assert not names & {node.name for node in plan().nodes}
    write(f"{SOURCE}\n# other code\n")
    assert not names & {node.name for node in plan(**IMPORTS).nodes}


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("pretrain.set", {"pretrain": {"set": IMPORTS}}),
        ("pretrain.grid", {"pretrain": {"grid": {"imports": [["own_package"]]}}}),
        (
            "pretrain.controls.no pretraining",
            {"pretrain": {"controls": {"no pretraining": {"imports.own_package": "1"}}}},
        ),
        ("evals.linear.set", {"evals": {"linear": {"set": IMPORTS}}}),
        (
            "checkpoints.x.evals.linear.set",
            {"checkpoints": {"x": {"timm": "resnet18.a1_in1k", "evals": {"linear": {"set": IMPORTS}}}}},
        ),
    ],
)
def test_imports_said_twice_are_refused(section: str, changes: dict[str, Any], write: Write) -> None:
    write(SOURCE)
    with pytest.raises(UserError, match=rf"own.yaml: {section} = .*imports.* is not possible; allowed: no imports"):
        plan(**IMPORTS, **changes)


def test_a_study_treats_an_own_evaluation_as_any_other(write: Write, tmp_path: Path) -> None:
    write(SOURCE)
    report = {"x": "linear.top1", "y": "segmentation.miou", "scores": []}
    graph = plan(**IMPORTS, evals=OWN, pretrain={"set": {"loss.name": "own_criterion"}}, report=report)
    evaluations = [node for node in graph.nodes if node.part == "own"]
    assert len(evaluations) == len({node.name for node in evaluations}) == 3
    for node in evaluations:
        assert node.name.startswith(f"own_share/scenes-own-of-{node.parent.identity.hash[:6]}-seed0-")  # type: ignore[union-attr]
        assert node.identity.config["share"] == 0.25
        assert node.argv()[1:4] == ["-m", "eval", "own_share"]
    assert "scenes_resnet-own_criterion-alpha0.5-seed0-" in graph.nodes[0].name
    assert graph.study.scores == ["linear.top1", "segmentation.miou", "own.share"]

    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("evals: {minutes: 7, gpus: 2, tasks: 2}\nown_share: {cpus: 3}\n")
    own = load_cluster(cluster).stages["own_share"]
    assert (own.minutes, own.cpus, own.processes) == (7, 3, 1)  # it does not say that several may share a run
    write(SOURCE)
    with pytest.raises(UserError, match="unknown key 'own_share'"):
        load_cluster(cluster)
    cluster.write_text(f"imports: [own_package]\n{cluster.read_text()}")
    assert load_cluster(cluster).stages["own_share"] == own


@pytest.mark.slow
def test_a_job_on_slurm_imports_the_package(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the directory of `submit`, with the code of the submission first on Python's path."""
    write(SOURCE)
    graph = plan(**IMPORTS, evals=OWN, pretrain={"set": {"loss.name": "own_criterion"}})
    submitter = _Submitter(graph, tmp_path / "runs", [])
    (tmp_path / "configs").mkdir()
    submitter.submission = cast(Submission, SimpleNamespace(path=tmp_path))
    resources = cast(Resources, SimpleNamespace(interpreter=sys.executable))
    array = {"code": str(PROJECT), "environment": {}, "cwd": str(tmp_path), "container": ""}
    monkeypatch.setenv("PYTHONPATH", "")
    for node in (graph.points[0].pretrain, graph.points[0].evals["own"]):
        task = submitter._task(node, resources)
        job = Supervisor(array, task)
        command = [*job._argv(), "--cfg"]
        done = subprocess.run(command, cwd=tmp_path, env=job._environment(), capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        printed = tmp_path / "printed.yaml"
        printed.write_text(done.stdout, encoding="utf-8")
        parent = None if node.parent is None else node.parent.identity
        assert node.stage.identity(node.stage.load(printed, []), parent) == node.identity


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"evals": OWN}, "unknown stage 'own_share'.* name that in `imports` of the study"),
        (
            {"evals": {"linear": {"set": IMPORTS}, **OWN}},
            "evals.own: config: imports = {} .*allowed: the package that registers own_share",
        ),
        ({"imports": ["own_package"], "evals": {"own": OWN["own"] | {"set": {"shares": 1}}}}, "did you mean share"),
        ({"imports": ["no_such_package"]}, "own.yaml: .*no_such_package cannot be imported: ModuleNotFoundError"),
        ({"imports": {"own_package": "1.2"}}, "imports.own_package = '1.2', and the package here is sha256:"),
        ({"imports": "own_package"}, r"own.yaml: imports = 'own_package' .*a list of packages, as \[my_package\]"),
    ],
)
def test_an_error_of_a_study_is_named(changes: dict[str, Any], expected: str, write: Write) -> None:
    write(SOURCE)
    with pytest.raises(UserError, match=expected):
        plan(**changes)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (SOURCE.replace("own_share", "knn"), "evaluation 'knn' is registered already"),
        (SOURCE.replace("own_share", "pretrain"), "evaluation 'pretrain' is registered already"),
        (SOURCE.replace("own_share", "evals"), "evaluation 'evals' is registered already"),
        (SOURCE.replace("own_share", "own share"), "OwnConfig: expected a line `stage: ClassVar"),
        (SOURCE.replace("share: float = 0.5", "share: float"), "OwnConfig.share: expected a default"),
        (SOURCE.replace('"own"', '"a/../b"'), "OwnConfig.label = 'a/../b': expected letters"),
        (
            SOURCE.replace("OwnConfig(KnnConfig)", "OwnConfig(ComputeConfig)"),
            "OwnConfig lacks format_version, data, seed",
        ),
        (SOURCE.replace('"own_criterion"', '"vicregl"'), "criterion 'vicregl' is registered already"),
    ],
)
def test_a_registration_is_checked(source: str, expected: str, write: Write) -> None:
    write(source.replace("import ClassVar", "import ClassVar\nfrom runtime.config import ComputeConfig"))
    with pytest.raises(UserError, match=expected):
        configs.load(PretrainConfig, None, ["imports=[own_package]"])
