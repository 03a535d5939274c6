"""Every run names the code that made it, wherever that code lies: never by a commit of somebody else's repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import provenance

ROOT = Path(__file__).resolve().parents[2]
ASK = (
    "import json, dataclasses; from runtime import provenance; print(json.dumps(dataclasses.asdict(provenance.code())))"
)
TAKE = "import sys; from pathlib import Path; from sweeps.slurm.records import copy_code; copy_code(Path(sys.argv[1]))"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


def python(project: Path, code: str, *arguments: object, **environment: str) -> str:
    settings = os.environ | {"PYTHONPATH": str(project)} | environment
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(argv, cwd=project, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(project: Path, **environment: str) -> provenance.Code:
    return provenance.Code(**json.loads(python(project, ASK, **environment)))


@pytest.fixture
def packages(tmp_path) -> Path:
    """The project's packages alone, as an installation has them: in site-packages, in somebody's repository."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README").write_text("another project\n")
    (tmp_path / "theirs" / ".gitignore").write_text("venv\n")
    site = tmp_path / "theirs" / "venv" / "site-packages"
    for package in provenance.PACKAGES:
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__", "cache"))
    commit_all(tmp_path / "theirs")
    return site


def test_the_packages_are_all_there_are():
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert packages - {"benchmarks", "tests"} == set(provenance.PACKAGES)


def test_a_copy_in_somebody_elses_repository_has_no_commit(packages):
    code = ask(packages)
    assert (code.commit, code.diff, code.warning) == (None, "", None)
    assert code.no_commit == "not a git checkout"
    assert code.version == provenance.metadata.version(provenance.DISTRIBUTION)
    assert code.sources is not None
    assert len(code.sources) == 64
    assert code.to_record()["dirty"] is None


@pytest.mark.parametrize(
    ("file", "changes"),
    [("vicregl/criterion.py", True), ("data/ade20k.csv", True), ("eval/new.py", True), ("eval/configs/x.yaml", False)],
)
def test_the_hash_follows_the_sources(packages, file, changes):
    before = ask(packages).sources
    assert ask(packages).sources == before
    with open(packages / file, "a") as edited:
        edited.write("# changed\n")
    (packages / "torch_of_somebody").mkdir()
    (packages / "torch_of_somebody" / "__init__.py").touch()
    assert (ask(packages).sources != before) == changes


def test_an_unpacked_archive_says_what_it_is(packages):
    """It has the hash of an installed copy of the same sources, and the version that its pyproject.toml says."""
    installed = ask(packages)
    text = f'[project]\nname = "{provenance.DISTRIBUTION}"\nversion = "7.8"\n'
    (packages / "pyproject.toml").write_text(text)
    unpacked = ask(packages)
    assert (unpacked.commit, unpacked.version, unpacked.sources) == (None, "7.8", installed.sources)
    (packages / "pyproject.toml").write_text('[project]\nname = "theirs"\nversion = "9"\n')
    assert ask(packages).version == installed.version


def test_a_repository_around_site_packages_is_not_the_projects(packages):
    (packages / "README").write_text("my environment\n")
    (packages / ".gitignore").write_text("\n".join(provenance.PACKAGES))
    commit_all(packages)
    code = ask(packages)
    assert (code.commit, code.no_commit) == (None, "in a git repository that does not hold this code")
    (packages / "snapshot").mkdir()
    python(packages, TAKE, packages / "snapshot")
    assert not (packages / "snapshot" / "README").exists()


def test_a_checkout_is_named_by_its_commit_whatever_git_is_said_to_look_at(packages, tmp_path):
    (packages / "runtime" / "latin.csv").write_bytes(b"gr\xfc\xdfe\n")
    commit = commit_all(packages)
    code = ask(packages, GIT_DIR=str(tmp_path / "theirs" / ".git"))
    assert (code.commit, code.diff, code.sources) == (commit, "", None)
    (packages / "runtime" / "latin.csv").write_bytes(b"gr\xfc\xdf Gott\n")
    code = ask(packages)
    assert code.commit == commit
    assert "+gr\ufffd\ufffd Gott" in code.diff
    assert code.to_record() == {"commit": commit, "dirty": True}


def test_a_study_that_was_edited_is_the_same_code(packages):
    """Its values are in every run.yaml; a page that called the code changed would hide a change of the code."""
    (packages / "README.md").write_text("the suite\n")
    commit_all(packages)
    clean = ask(packages)
    for name in ("sweeps/studies/quickstart.yaml", "README.md"):
        (packages / name).write_text("question: Longer?\n")
    assert ask(packages) == clean
    assert clean.to_record()["dirty"] is False
    with (packages / "vicregl" / "terms.py").open("a") as source:
        source.write("# changed\n")
    code = ask(packages)
    assert code.to_record()["dirty"]
    assert "+# changed" in code.diff
    assert "quickstart" not in code.diff


def test_sources_that_git_does_not_track_yet_make_another_code(packages):
    """As an evaluation that was just written: two versions of it are not one code."""
    commit_all(packages)
    clean = ask(packages)
    (packages / "eval" / "notes.txt").write_text("no source\n")
    (packages / "scratch.py").write_text("of no package\n")
    assert ask(packages) == clean
    (packages / "eval" / "own.py").write_text("weight = 1\n")
    first = ask(packages)
    (packages / "eval" / "own.py").write_text("weight = 2\n")
    second = ask(packages)
    assert first.commit == second.commit == clean.commit
    assert first.to_record()["dirty"]
    assert first.diff.startswith("untracked eval/own.py: SHA-256 ")
    assert first.diff != second.diff


def test_sources_that_git_does_not_list_one_by_one(packages, tmp_path):
    commit_all(packages)
    clean = ask(packages)
    (packages / "eval" / ".#own.py").symlink_to("user@host.123")  # an editor's lock
    assert ask(packages) == clean
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked.py").write_text("weight = 1\n")
    (packages / "eval" / "mine").symlink_to(tmp_path / "mine")
    (packages / "eval" / "theirs").mkdir()
    (packages / "eval" / "theirs" / "nested.py").write_text("weight = 1\n")
    commit_all(packages / "eval" / "theirs")
    diff = ask(packages).diff
    assert [line.split(": ")[0] for line in diff.splitlines()] == [
        "untracked eval/mine/linked.py",
        "untracked eval/theirs/nested.py",
    ]


def test_git_that_fails_differs_from_no_checkout(packages, tmp_path):
    commit_all(packages)
    (tmp_path / "bin").mkdir()
    missing = ask(packages, PATH=str(tmp_path / "bin"))
    assert missing.no_commit is not None
    assert missing.no_commit.startswith("git does not answer: it cannot be started")
    foreign = ask(packages, GIT_TEST_ASSUME_DIFFERENT_OWNER="1")  # git's own switch, for its own tests
    assert foreign.no_commit is not None
    assert "dubious ownership" in foreign.no_commit
    assert "safe.directory" in str(foreign.warning)  # git's own advice
    assert missing.sources == foreign.sources is not None


def test_a_snapshot_of_an_installed_copy_takes_the_project_alone(packages, tmp_path):
    for name in ("torch/lib.so", "data/cache/scenes/train.png", "eval/__pycache__/knn.pyc"):
        (packages / name).parent.mkdir(parents=True)
        (packages / name).write_text("large")
    copy = tmp_path / "copy"
    python(packages, TAKE, copy)
    assert {path.name for path in copy.iterdir()} == {*provenance.PACKAGES, provenance.SNAPSHOT}
    assert not list(copy.rglob("*.pyc"))
    assert not (copy / "data" / "cache").exists()
    assert ask(copy) == ask(packages)
    python(copy, TAKE, tmp_path / "again")  # a job that submits
    assert ask(tmp_path / "again") == ask(packages)


def test_versions_are_of_every_library_that_can_change_a_number(monkeypatch):
    versions = provenance.collect()["versions"]
    assert {"torch", "numpy", "scipy", "pillow", "submitit", "safetensors", "scikit-learn"} <= versions.keys()
    assert len({"opencv-python", "opencv-python-headless"} & versions.keys()) == 1
    assert not {"cuda", "cudnn", "driver"} & versions.keys()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # what cannot be here: a GPU
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91002)
    monkeypatch.setattr(provenance, "driver_version", lambda: "580.65.06")
    collected = provenance.collect()
    of_gpu = {name: collected["versions"][name] for name in ("cuda", "cudnn", "driver")}
    assert (collected["gpu"], of_gpu) == ("a GPU", {"cuda": "13.0", "cudnn": "91002", "driver": "580.65.06"})
