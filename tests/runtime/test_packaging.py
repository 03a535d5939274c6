"""One source of versions: requirements.txt; what else names packages must agree with it."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


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


def test_makefile_and_ci_install_from_the_pins():
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install (.*)", makefile)
    assert all("requirements.txt" in line or "--no-deps" in line for line in installs), installs
    assert "pip install" not in (ROOT / ".ci/run").read_text()


def test_pins_lie_within_the_ranges_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_installed_versions_are_the_pinned_ones():
    for name in ("torch", "torchvision", "timm", "mmengine", "mmsegmentation", "submitit", "pandas", "matplotlib"):
        assert metadata.version(name).split("+")[0] == pins()[name]
