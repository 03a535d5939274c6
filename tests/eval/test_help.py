"""The help of the evaluations names files that exist, and only what is needed is called required."""

from __future__ import annotations

import re

import pytest

from eval import dense_knn, knn, linear, segmentation
from eval.command import EvalArguments
from runtime.provenance import PROJECT


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
