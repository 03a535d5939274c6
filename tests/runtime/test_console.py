"""The command `vicregl`, and studies and configs by name, from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from runtime import PROJECT, files
from runtime.console import COMMANDS, find_command
from runtime.errors import UserError
from sweeps import STUDIES
from sweeps.study import load_study

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
# What pip's script does: the checkout's vicregl is on the path, and none of its other packages.
SCRIPT = f"""import importlib.util, sys
spec = importlib.util.spec_from_file_location("vicregl", {str(PROJECT / "vicregl" / "__init__.py")!r},
    submodule_search_locations=[{str(PROJECT / "vicregl")!r}])
sys.modules["vicregl"] = importlib.util.module_from_spec(spec)
from vicregl.__main__ import main
sys.path = [entry for entry in sys.path if entry]
main()
"""


def vicregl(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder."""
    settings = ENVIRONMENT | {"VICREGL_DATA": str(folder / "data-of-test")} | environment
    argv = [sys.executable, "-c", SCRIPT, *words]
    return subprocess.run(argv, cwd=folder, env=settings, capture_output=True, encoding="utf-8", check=False)


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = SCRIPT.replace("main()\n", "try:\n    main()\nexcept SystemExit: print(sorted(sys.modules))\n")
    argv = [sys.executable, "-c", code, "--help"]
    shown = subprocess.run(
        argv, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    *page, modules = shown.splitlines()
    assert all(f"  {name} " in "\n".join(page) for name in COMMANDS)
    assert "'runtime.console'" in modules
    assert not any(f"'{name}'" in modules for name in ("torch", "numpy", "pydantic", "yaml"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_module_that_runs_and_its_examples_name_files_that_exist(name: str) -> None:
    module = COMMANDS[name].module.replace(".", "/")
    (file,) = (PROJECT / each for each in (f"{module}.py", f"{module}/__main__.py") if (PROJECT / each).is_file())
    assert 'if __name__ == "__main__":\n    run_command(main)' in file.read_text(encoding="utf-8")
    for example in COMMANDS[name].examples:
        words = example.split()
        if "--config" in words:
            files.find_yaml(words[words.index("--config") + 1], f"{module.partition('/')[0]}/configs", "config file")
        elif name in ("sweep", "report", "pictures", "cost") and words[-1][0] != "r":
            study = next(
                word for word in words if word not in ("plan", "run", "submit", "status", "compare", "--study")
            )
            assert study in files.yaml_names(STUDIES)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["swep"], 2, "error: no command 'swep'; did you mean sweep? expected one of pretrain, eval linear"),
        ([], 2, "error: no command was given; expected one of pretrain"),
        (["eval"], 2, "error: no command of eval was given; expected one of eval linear, eval knn"),
        (["eval", "liner"], 2, "did you mean eval linear"),
        (["sweep", "plan"], 2, "usage: vicregl sweep plan STUDY [options]"),
        (["sweep", "plan", "alhpa"], 2, "error: study alhpa does not exist; near it: alpha"),
        (["sweep", "plan", "smoke", "loss.alpha=1"], 2, "cannot take 'loss.alpha=1'"),
        (["sweep", "status", "smoke"], 3, ""),  # not finished
    ],
    ids=str,
)
def test_errors_and_exit_codes(words: list[str], code: int, expected: str, tmp_path: Path) -> None:
    done = vicregl(tmp_path, *words)
    assert (done.returncode, expected in done.stderr) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_does_what_python_m_does(tmp_path: Path) -> None:
    """With packages and a module of other people in the working directory, which hide none of ours."""
    for name in ("data", "runtime", "sweeps"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    by_name = vicregl(tmp_path, "sweep", "plan", "smoke", "--json")
    argv = [sys.executable, "-m", "sweeps", "plan", f"{PROJECT}/sweeps/studies/smoke.yaml", "--json"]
    path = {"PYTHONPATH": str(PROJECT), "PYTHONSAFEPATH": "1"}
    by_path = subprocess.run(
        argv, cwd=tmp_path, env=ENVIRONMENT | path, capture_output=True, encoding="utf-8", check=True
    )
    assert json.loads(by_name.stdout) == json.loads(by_path.stdout)
    assert len(json.loads(by_name.stdout)["runs"]) == 9


def test_an_evaluation_of_the_users_own_is_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "class_mean.py").write_text('if __name__ == "__main__":\n    run_command(main)\n')
    (tmp_path / "eval" / "helper.py").write_text("")
    monkeypatch.setattr("runtime.console.PROJECT", tmp_path)
    name, command = find_command(["eval", "class_mean", "runs/x"]) or ("", COMMANDS["sweep"])
    assert (name, command.module) == ("eval class_mean", "eval.class_mean")
    assert find_command(["eval", "helper"]) is None


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_checkout = PROJECT / "sweeps" / "studies" / "alpha.yaml"
    for name in ("alpha", "alpha.yaml", "sweeps/studies/alpha.yaml", str(in_checkout)):
        assert files.find_yaml(name, STUDIES, "study") == in_checkout
    Path("alpha").mkdir()  # a folder is no study
    assert files.find_yaml("alpha", STUDIES, "study") == in_checkout
    Path("alpha.yaml").write_text("name: mine\n")
    assert files.find_yaml("alpha.yaml", STUDIES, "study") == Path("alpha.yaml")
    assert files.find_yaml("alpha", STUDIES, "study") == in_checkout
    Path("alpha").rmdir()
    Path("alpha").write_text("name: mine\n")
    assert files.find_yaml("alpha", STUDIES, "study") == Path("alpha")


def test_a_name_is_shown_as_a_path_of_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert load_study("alpha").file == "sweeps/studies/alpha.yaml"
    monkeypatch.chdir("/")
    assert load_study("alpha").file == str(PROJECT / "sweeps/studies/alpha.yaml")


def test_an_unknown_name_lists_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine_alpha.yaml").write_text("")
    with pytest.raises(UserError, match=r"^study mine_alph.yaml does not exist; near it: mine_alpha.yaml"):
        load_study("mine_alph.yaml")
    with pytest.raises(UserError, match=r"^study zzz does not exist; in sweeps/studies there are: alpha, backbones"):
        load_study("zzz")
    with pytest.raises(UserError, match=r"does not exist; near it: scenes_scales"):
        load_study("no/such/folder/scenes_scale")


def test_a_study_names_configs(tmp_path: Path) -> None:
    """As it does on the command line; `linear_scenes` is of eval/configs, `quickstart` of pretrain/configs."""
    study = {
        "name": "named",
        "question": "",
        "pretrain": {"config": "quickstart", "grid": {"loss.alpha": [0.5]}},
        "evals": {"linear": {"stage": "linear", "config": "linear_scenes"}},
        "report": {"vary": "loss.alpha", "x": "linear.top1", "y": "linear.top1"},
    }
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(study))
    plan = json.loads(vicregl(tmp_path, "sweep", "plan", "named.yaml", "--json").stdout)
    assert [run["part"] for run in plan["runs"]] == ["pretrain", "linear"]
    assert str(PROJECT / "pretrain/configs/quickstart.yaml") in plan["runs"][0]["command"]
    study["evals"]["linear"]["config"] = "liner_scenes"
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(study))
    refused = vicregl(tmp_path, "sweep", "plan", "named.yaml").stderr
    assert "named.yaml: evals.linear: config file liner_scenes does not exist; near it: linear_scenes" in refused


TINY = """
name: tiny
question: ""
pretrain:
  config: quickstart
  set:
    train.duration: 4 steps
    train.batch_size: 32
    optimizer.warmup: 2 steps
    model.expander: 32-32
    model.projector: 16-16
    diagnostics_images: 64
    data.scenes: {train: 300, val: 32}
  grid: {loss.alpha: [0.5]}
evals:
  knn: {stage: knn, config: knn_scenes, set: {data.scenes: {train: 300, val: 32}}}
report: {vary: loss.alpha, x: knn.top1, y: knn.top1}
"""


@pytest.mark.slow
def test_a_study_runs_from_another_folder(tmp_path: Path) -> None:
    """Run, evaluate, report: all that is made lies in that folder."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "data.py").write_text("raise SystemExit('the wrong one')\n")

    def shown(*words: str) -> str:
        done = vicregl(tmp_path, *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert "all 2 runs done" in shown("sweep", "run", "tiny.yaml", "--workers", "1", "machine.device=cpu")
    (run,) = tmp_path.glob("runs/pretrain/*-*")
    words = ("eval", "knn", f"runs/pretrain/{run.name}", "--config", "knn_scenes", "data.scenes={train: 300, val: 32}")
    assert shown(*words, "machine.device=cpu").endswith(" is done\n")  # the study's own evaluation
    assert shown("report", "tiny.yaml") == "reports/tiny/README.md\n"
    assert len((tmp_path / "reports" / "tiny" / "results.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert len(list(tmp_path.glob("runs/knn/*/result.json"))) == 1
    recorded = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["attempts"][0]["argv"]
    assert str(PROJECT / "pretrain" / "configs" / "quickstart.yaml") in recorded


def test_the_version_is_one() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == version
    changes = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in changes if line.startswith("## ")) == f"## {version}"
    assert vicregl(PROJECT, "--version").stdout == f"vicregl-bench {version}\n"
