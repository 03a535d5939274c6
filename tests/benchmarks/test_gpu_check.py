"""The check of a GPU in its small form on the CPU, so that it is not found broken on the day; and that it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import SECTIONS, Finding
from runtime.errors import UserError

SMALL = ["--device=cpu", "--small"]


@pytest.mark.slow
def test_the_small_form_passes_whole(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    assert gpu_check.main([*SMALL, f"--out={page}"]) == 0
    text = page.read_text()
    assert "FAIL" not in text
    assert "no GPU" in text
    assert text.count("| PASS |") > len(SECTIONS)
    for name in ("criterion, threshold", "diagnostics, one direction", "pretraining, stopped", "step, ", "-m gpu"):
        assert name in text


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match=r"no CUDA device.*--device cpu --small"):
        gpu_check.main([])


def broken(_: gpu_check.Check) -> Iterator[Finding]:
    yield Finding("first part", True)
    raise RuntimeError("no kernel image is available")


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that raises, numbers that are wrong in float32 alone, and one for which there is no time."""
    compute = gpu_check.gradients

    def wrong(criterion, views, read=True):
        found = compute(criterion, views, read)
        return [2 * tensor for tensor in found] if views[0][0].dtype == torch.float32 else found

    monkeypatch.setattr(gpu_check, "gradients", wrong)
    monkeypatch.setattr(gpu_check, "SECTIONS", (broken, gpu_check.criterion))
    page = tmp_path / "gpu.md"
    assert gpu_check.main([*SMALL, f"--out={page}"]) == 1
    text = page.read_text()
    assert "| PASS | first part" in text
    assert "| FAIL | broken | error RuntimeError: no kernel image is available" in text
    assert text.count("| FAIL | criterion, ") == len(gpu_check.OPTIONS)
    assert gpu_check.main([*SMALL, "--seconds=-1", f"--out={page}"]) == 1
    assert "criterion: not begun" in page.read_text()
