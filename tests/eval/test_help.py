"""The help of the evaluations names files that exist, and only what is needed is called required."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from eval import dense_knn, knn, linear, segmentation
from eval.command import EvalArguments
from runtime import PROJECT


@pytest.mark.parametrize("stage", ["linear", "knn", "dense_knn", "segmentation"])
def test_the_config_that_help_names_exists(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        EvalArguments.parse(["--help"], stage)
    (named,) = re.findall(r"eval/configs/\w+\.yaml", "".join(capsys.readouterr().out.split()))
    assert (PROJECT / named).is_file()


@pytest.mark.parametrize("module", [linear, knn, dense_knn, segmentation])
def test_optional_words_are_not_called_required(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module.main([])  # type: ignore[attr-defined]
    assert capsys.readouterr().err.strip().endswith("the following arguments are required: --config")


@pytest.mark.parametrize("module", [linear, knn, dense_knn, segmentation])
def test_cfg_prints_a_config_that_is_the_same_when_read(
    module: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "seg" if module is segmentation else module.__name__.rpartition(".")[2]
    stored = tmp_path / "printed.yaml"

    def shown(*argv: str) -> str:
        module.main([*argv, "--cfg"])
        return capsys.readouterr().out

    printed = shown("--config", f"{PROJECT}/eval/configs/{name}_scenes.yaml", "--seed=7", "machine.workers=3")
    stored.write_text(printed, encoding="utf-8")
    assert "seed: 7\n" in printed
    assert "workers: 3\n" in printed
    assert shown("--config", str(stored)) == printed
