"""The suite runs from its checkout: nobody else's packages, in the working directory, take the place of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import PROJECT, import_path
from runtime.errors import UserError, run_command
from sweeps import processes
from vicregl.criterion import VICRegLCriterion
from vicregl.errors import InvalidInputError


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("other", ["data.py", "data/__init__.py", "vicregl/__init__.py"])
def test_a_package_that_hides_ours_is_named(other: str, tmp_path: Path) -> None:
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("")
    refused = run(tmp_path, "-m", "pretrain", "--help")
    assert refused.returncode == 1
    name = other.partition("/")[0].removesuffix(".py")
    message = refused.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: {tmp_path / other} hides the package {name!r} of {PROJECT}"), (
        refused.stderr
    )
    assert run(tmp_path, "-m", "pretrain", "--help", **import_path()).returncode == 0


def test_processes_that_we_start_import_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a `data/` in the working directory, and with nothing in PYTHONPATH."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    child = processes._environment({})
    assert {key: child[key] for key in import_path()} == import_path()
    code = "import data, pretrain; print(data.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=child, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(PROJECT / "data" / "__init__.py")


def test_another_folder_of_code_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/first{os.pathsep}{os.pathsep}/code")
    assert import_path("/code")["PYTHONPATH"] == f"/code{os.pathsep}/first"


def test_an_error_of_the_library_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        VICRegLCriterion(alpha=2.0)

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: alpha = 2.0 is not possible; allowed: 0 to 1\n"
    assert issubclass(InvalidInputError, UserError)
    assert issubclass(InvalidInputError, ValueError)


def test_options_load_neither_torch_nor_timm(tmp_path: Path) -> None:
    code = "import sys, vicregl.config, pretrain.config; print([m for m in ('torch', 'timm') if m in sys.modules])"
    assert run(tmp_path, "-c", code).stdout == "[]\n"


@pytest.mark.parametrize("command", ["pretrain", "eval.linear", "sweeps", "analysis"])
def test_a_deleted_working_directory_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m {command} --help"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert done.stderr == "error: the working directory was deleted; go to one that exists (cd) and repeat\n"
