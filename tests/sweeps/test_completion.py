"""Completion of `vicregl`: what is offered is what the commands take, and real shells put it on the command line."""

from __future__ import annotations

import contextlib
import importlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import sweeps.__main__ as sweeps
from runtime import PROJECT
from runtime.config_keys import types_of
from runtime.console import COMMANDS
from sweeps import stages
from sweeps.completion import _keys, _options, complete, main, split_line
from vicregl.config import CriterionConfig


@pytest.mark.parametrize("stage", stages.STAGES)
def test_the_keys_are_those_of_the_config_class(stage: str) -> None:
    """Nothing is offered for an open mapping, whose keys are the user's own."""
    module = "pretrain" if stage == "pretrain" else f"eval.{stage}"
    assert set(_keys(module)) == set(types_of(stages.STAGES[stage].schema()))


def test_keys_come_section_by_section_and_then_their_values() -> None:
    assert complete(["pretrain", "lo"]) == ["loss."]
    assert {"loss.alpha=", "loss.local=", "loss.profile="} <= set(complete(["pretrain", "loss."]))
    allowed = get_args(get_type_hints(CriterionConfig)["local"])
    assert complete(["pretrain", "loss.local="]) == sorted(f"loss.local={value}" for value in allowed)
    assert complete(["pretrain", "--config", "quickstart", "--loss.profile=r"]) == ["--loss.profile=reference"]
    assert complete(["pretrain", "views.flip="]) == ["views.flip=false", "views.flip=true"]
    assert complete(["pretrain", "train.duration="]) == ["train.duration=100 epochs"]  # the default
    assert complete(["pretrain", "data.root=/"]) == []  # for the shell, which knows files
    assert complete(["sweep", "plan", "alpha", "mac"]) == ["machine."]
    assert complete(["sweep", "plan", "alpha", "loss."]) == []  # a study's runs take machine.* alone
    assert complete(["check", "voc", "data.segm"]) == ["data.segmentation_train="]
    assert complete(["data", "cache", "voc", "segm"]) == ["segmentation_train="]
    assert complete(["data", "scenes", "distractors="]) == ["distractors=2"]


def test_configs_are_those_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    assert complete(["eval", "linear", "--config", ""]) == [
        "finetune_imagenet",
        "finetune_scenes",
        "linear_imagenet",
        "linear_scenes",
    ]
    assert complete(["pretrain", "--config", "vit"]) == ["vit_small"]
    assert complete(["data", "show", "quick"]) == ["quickstart"]
    assert complete(["sweep", "submit", "alph"]) == ["alpha"]
    assert complete(["sweep", "submit", "--cluster", "local", "alph"]) == ["alpha"]
    assert complete(["report", "mi"]) == ["mine.yaml"]
    assert complete(["check", "im"]) == ["imagefolder", "imagenet"]
    assert complete(["sweep", "plan", "x.yaml", "--cluster", ""]) == ["local", "slurm"]
    assert complete(["completion", ""]) == ["bash", "zsh"]


def test_runs_are_those_that_the_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/pretrain/a-1", "runs/weights/b-2", "runs/linear/c-3", "elsewhere/pretrain/d-4"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.yaml").write_text("")
    (tmp_path / "runs/pretrain/not-begun").mkdir()
    assert [text for text in complete(["eval", "knn", ""]) if "/" in text] == ["runs/pretrain/a-1", "runs/weights/b-2"]
    assert complete(["eval", "knn", "machine.runs=elsewhere", "e"]) == ["elsewhere/pretrain/d-4"]
    assert complete(["export", "r"]) == ["runs/linear/c-3", "runs/pretrain/a-1", "runs/weights/b-2"]
    assert complete(["sweep", "logs", "alpha", "runs/l"]) == ["runs/linear/c-3"]
    assert complete(["sweep", "retry", "alpha", "--run", "runs/l"]) == ["runs/linear/c-3"]


def help_of(main: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return set(re.findall(r"^  (?:-\w[^,]*, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("sweep", "completion")])
def test_the_options_are_those_of_the_parser(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = COMMANDS[name].module
    file = f"{module}.__main__" if (PROJECT / module.replace(".", "/") / "__main__.py").is_file() else module
    shown = help_of(importlib.import_module(file).main, capsys)
    of_others = {"--by"} if module == "analysis" else set()  # of `analysis best`
    assert set(_options(module, ())) == shown | of_others


def test_the_options_of_sweeps_are_those_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert complete(["sweep", ""]) == sorted([*sweeps.COMMANDS, "--help"])
    for command in sweeps.COMMANDS:
        assert set(_options("sweeps", [command])) - {"--help"} == help_of(sweeps.main, capsys, command)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vicregl ", ["vicregl", ""]),
        ("vicregl ev", ["vicregl", "ev"]),
        ("vicregl a\\ b", ["vicregl", "a b"]),
        ("vicregl a\\ ", ["vicregl", "a "]),
        ("vicregl 'a b", ["vicregl", "a b"]),
        ('vicregl "a ', ["vicregl", "a "]),
        ("vicregl a\\", ["vicregl", "a\\"]),
    ],
)
def test_a_line_is_split_as_the_shell_does(line: str, words: list[str]) -> None:
    assert split_line(line) == words


def test_no_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "expected one of bash, zsh" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["vicregl pretrain loss.", "vicregl eval knn --", "vicregl sweep plan al", "vicregl report --"]
)
def test_it_loads_nothing_slow(line: str) -> None:
    code = f"import sys; from sweeps.completion import main; main(['--line', {line!r}]); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, encoding="utf-8", check=True)
    *candidates, modules = shown.stdout.splitlines()
    assert candidates
    assert not any(f"'{name}'" in modules for name in ("torch", "numpy", "pydantic", "yaml"))


class Shell:
    """An interactive shell in a terminal of its own, with `vicregl` on its PATH."""

    def __init__(self, argv: list[str], folder: Path, setup: str) -> None:
        command = folder / "bin" / "vicregl"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vicregl "$@"\n')
        command.chmod(0o755)
        path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(PROJECT), "TERM": "dumb", "HOME": str(folder)}
        self.terminal, child = pty.openpty()
        self.process = subprocess.Popen(
            argv, cwd=folder, env=environment, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self.send(f"{setup}; echo rea''dy\n", "ready")

    def send(self, keys: str, until: str) -> str:
        """Type the keys, and return what the terminal shows up to a line that begins with `until`."""
        os.write(self.terminal, keys.encode())
        shown, deadline = "", time.monotonic() + 600
        while not re.search(rf"^{until}", shown.replace("\r", "\n"), re.MULTILINE):
            assert time.monotonic() < deadline, shown
            if select.select([self.terminal], [], [], 1)[0]:
                shown += os.read(self.terminal, 4096).decode(errors="replace")
        return shown.replace("\r", "\n")

    def complete(self, line: str) -> str:
        """Type the line and a TAB, and return the line as it stands then."""
        shown = self.send(f"{line}\t\x01echo '<' \x05'>'\n", "< .*>")  # Ctrl-A, Ctrl-E: to its beginning, its end
        return re.findall(r"^< (.*)>", shown, re.MULTILINE)[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    plain = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}[request.param]
    keys = {"bash": "PS1='$ '", "zsh": "bindkey -e; PS1='$ '; unsetopt zle_bracketed_paste"}[request.param]
    shell = Shell(plain, tmp_path, f"{keys}; source <(vicregl completion {request.param})")
    yield shell
    with contextlib.suppress(OSError):
        shell.end()


def test_a_real_shell_completes(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "runs" / "pretrain" / "quickstart-0123").mkdir(parents=True)
    (tmp_path / "runs" / "pretrain" / "quickstart-0123" / "run.yaml").write_text("")
    (tmp_path / "folder with images").mkdir()
    expected = {
        "vicregl pre": "vicregl pretrain ",
        "vicregl sweep submit scenes_fl": "vicregl sweep submit scenes_flip_grid ",
        "vicregl eval dense_knn runs": "vicregl eval dense_knn runs/pretrain/quickstart-0123 ",
        "vicregl eval linear --config linear_i": "vicregl eval linear --config linear_imagenet ",
        "vicregl pretrain loss.profile=ref": "vicregl pretrain loss.profile=reference ",
        "vicregl pretrain --loss.profile=ref": "vicregl pretrain --loss.profile=reference ",
        "vicregl pretrain loss.al": "vicregl pretrain loss.alpha=",
        "vicregl pretrain train.duration=": "vicregl pretrain train.duration=100 epochs ",
        "vicregl sweep retry alpha --ki": "vicregl sweep retry alpha --kind ",
        "vicregl check imagefolder data.root=fold": "vicregl check imagefolder data.root=folder with images",
    }
    # zsh takes the slash after a folder away again where the word ends
    assert {line: shell.complete(line).removesuffix("/") for line in expected} == expected
