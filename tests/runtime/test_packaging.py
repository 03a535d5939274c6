"""One source of versions, requirements.txt; and what is installed: the library vicregl, beside anybody's packages."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.provenance import package_files

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SITE_PACKAGES = Path(metadata.distribution("torch").locate_file(""))  # type: ignore[arg-type]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line) for line in lines), lines
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_environment_installs_exactly_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    names = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip_lines = [line for entry in environment["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]
    assert names == ["python=3.11", "pip"]  # nothing that could bring versions of its own
    assert pip_lines == ["-r requirements.txt"]


@pytest.mark.parametrize("loads", [True, False])
def test_a_server_without_libgl_gets_the_headless_opencv(loads: bool, tmp_path: Path):
    """By the command that environment.yml names; a stand-in for Python notes what it is asked to do."""
    commands = [
        line[2:].partition("  #")[0].strip() for line in (ROOT / "environment.yml").read_text().splitlines()[:3]
    ]
    assert commands[:2] == [
        "conda env create -f environment.yml && conda activate vicregl-bench",
        "pip install --no-deps -e .",
    ]
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$*" >> {log}\n[ "$1" != -c ] || exit {0 if loads else 1}\n')
    python.chmod(0o755)
    done = subprocess.run(
        commands[2].split(), cwd=ROOT, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False
    )
    assert done.returncode == 0
    asked = log.read_text().splitlines()
    assert asked[0] == "-c import cv2"
    assert asked[1:] == (
        []
        if loads
        else [
            "-m pip uninstall --quiet --yes opencv-python",
            f"-m pip install --quiet --no-deps opencv-python-headless=={pins()['opencv-python']}",
        ]
    )


def test_makefile_and_ci_install_from_the_pins():
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install (.*)", makefile)
    assert all("requirements.txt" in line or "--no-deps" in line for line in installs), installs
    assert "pip install" not in (ROOT / ".ci/run").read_text()


def test_pins_lie_within_the_ranges_of_pyproject():
    pinned = pins()
    for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_installed_versions_are_the_pinned_ones():
    for name in ("torch", "torchvision", "timm", "mmengine", "mmsegmentation", "submitit", "pandas", "matplotlib"):
        assert metadata.version(name).split("+")[0] == pins()[name]


def test_the_library_needs_torch_and_timm_alone():
    """safetensors comes with timm."""
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch", "timm"]
    assert "safetensors" in {Requirement(line).name for line in metadata.requires("timm")}
    imported = set()
    for file in (ROOT / "vicregl").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "timm", "safetensors", "vicregl"}


def test_imports_run_down():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by pip from a copy of the project, all its packages included."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "project")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "project")
    return next(folder.glob("*.whl"))


def copy_project(folder: Path) -> None:
    for name in [*package_files(), "pyproject.toml", "LICENSE"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def pip(python: Path | str, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_library_alone(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {f"vicregl/{path.name}" for path in (ROOT / "vicregl").glob("*.py")} | {
        "vicregl/py.typed",
        "vicregl/README.md",
    }


SOMEBODYS_SCRIPT = """
import data, runtime
assert data.OURS and runtime.OURS
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 16)
    def forward(self, images):
        positions = self.trunk(images).flatten(2).transpose(1, 2)
        return self.head(positions.mean(1)), positions

network = Network()
views = [torch.randn(4, 3, side, side) for side in (32, 32, 16)]
locations = [100 * torch.rand(4, p, 2) for p in (64, 64, 16)]
{example}
assert loss > 0 and network.trunk.weight.grad.abs().sum() > 0

from vicregl.config import BackboneConfig, ModelConfig
from vicregl.model import VICRegLModel
from vicregl.weights import load_weights
model = VICRegLModel(ModelConfig(BackboneConfig("scenes_resnet"), expander="8-8", projector="8-8"), alpha=0.5)
torch.save(model.backbone.trunk.state_dict(), "weights.pth")
print(load_weights(model.backbone, "weights.pth").tensors, vicregl.__file__)
"""


def test_the_wheel_beside_somebody_elses_packages(wheel: Path, tmp_path: Path):
    """The lines of vicregl/README.md in a fresh environment, in a folder with its own data/ and runtime/."""
    python = fresh_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", "--no-index", wheel)
    for name in ("data", "runtime"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").write_text("OURS = True\n")
    example = re.search(r"```python\n(.*?)```", (ROOT / "vicregl" / "README.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "work" / "train.py").write_text("import vicregl\n" + SOMEBODYS_SCRIPT.replace("{example}", example))
    command, bare = [python, "train.py"], {"PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path / "work", env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tensors, file = done.stdout.split()
    assert int(tensors) > 20
    assert Path(file).is_relative_to(tmp_path / "venv")
    alone = subprocess.run(
        [python.with_name("vicregl"), "sweep"], env=bare, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 2
    assert re.match(r"error: \S+/site-packages/vicregl is the library alone, and .*pip install -e \.", alone.stderr)


def test_an_editable_install_runs_the_checkout_from_any_folder(tmp_path: Path):
    """Its packages, its studies by name and its exit codes, with somebody else's `data` in the folder."""
    copy_project(tmp_path / "checkout")
    python = fresh_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", "--no-index", "--no-build-isolation", "-e", tmp_path / "checkout")
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "data" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")

    def vicregl(*words: str) -> subprocess.CompletedProcess[str]:
        command, bare = [python.with_name("vicregl"), *words], {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path / "work", env=bare, capture_output=True, text=True, check=False)

    assert str(tmp_path / "checkout") in vicregl("--help").stdout
    assert "smoke: 9 runs, 9 new" in vicregl("sweep", "plan", "smoke").stdout
    assert vicregl("sweep", "status", "smoke").returncode == 3
    assert vicregl("sweep", "plan", "smoek").stderr == "error: study smoek does not exist; near it: smoke\n"
    assert "name: scenes_resnet" in vicregl("pretrain", "--config", "quickstart", "--cfg").stdout


def fresh_environment(folder: Path) -> Path:
    """A virtual environment that has what is installed here, by a path file, and nothing of this project.

    The stand-in goes there too, for machines whose torchvision does not fit their torch: a healthy one needs none.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    shutil.copy(ROOT / "runtime" / "compat.py", packages / "stand_in.py")
    lines = f"{SITE_PACKAGES}\nimport stand_in; stand_in.prepare_torchvision_on_import()\n"
    (packages / "installed_here.pth").write_text(lines)
    return folder / "bin" / "python"
