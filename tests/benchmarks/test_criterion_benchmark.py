"""The benchmark runs, at small sizes, and refuses to compare what is not equal."""

import io
import json
import subprocess
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from benchmarks import criterion_cases
from benchmarks.criterion import check_losses, main
from benchmarks.criterion_cases import Measurement
from runtime.errors import UserError

SMALL = ["--shrink", "32", "--rounds", "1", "--threads", "1"]


def in_this_process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """The measurement of the command; a process of its own would import torch first."""
    with redirect_stdout(io.StringIO()) as printed:
        criterion_cases.main(json.loads(command[-1]))
    return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")


def test_every_case_on_a_cpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.criterion.subprocess", SimpleNamespace(run=in_this_process))
    main(["--cases", "B", "256-bf16", *SMALL, "--out", str(tmp_path / "criterion.md")])
    page = (tmp_path / "criterion.md").read_text()
    assert page.count("\n| B: ") == 5
    assert page.count("\n| 256-bf16: ") == 5
    assert "only shows that the benchmark works" in page


@pytest.mark.slow
def test_the_share_of_a_step_by_a_process_for_each_measurement(tmp_path) -> None:
    main(["--cases", "step-256", *SMALL, "--out", str(tmp_path / "criterion.md")])
    assert "The local criterion takes" in (tmp_path / "criterion.md").read_text()


def test_another_loss_is_an_error() -> None:
    found = {("A", "definitions"): Measurement(1, 1, 40.0), ("A", "reference"): Measurement(1, 1, 40.1)}
    with pytest.raises(UserError, match=r"reference gives a loss of 40\.1, and definitions one of 40"):
        check_losses(found)
