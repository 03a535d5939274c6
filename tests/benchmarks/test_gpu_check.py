"""The check of a GPU in its small form on the CPU, so that it is not found broken on the day; and that it can fail."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check, gpu_method
from benchmarks.gpu_method import Check, Finding
from runtime.errors import UserError

SMALL = ["--device=cpu", "--small"]


@pytest.mark.slow
def test_the_small_form_passes_whole(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    assert gpu_check.main([*SMALL, "--seconds=1700", f"--out={page}"]) == 0
    text = page.read_text()
    assert "FAIL" not in text
    assert "no GPU" in text
    assert text.count("| PASS |") > len(gpu_check.sections())
    # Without a GPU its tests are skipped: a run of none would be a failure.
    assert re.search(r"\| PASS \| pytest -m gpu \|.* skipped 5\b", text)
    for name in (
        *("environment", "criterion, threshold", "diagnostics, one direction", "-m gpu", "pretraining, stopped"),
        *("segmentation, bfloat16", "step, ", "criterion's time", "gloo in place of NCCL", "colour", "frozen features"),
        *("kNN", "compiled step"),
    ):
        assert name in text


def test_the_small_form_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its page says by which command it was made."""
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu.md").write_text("measured")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.main([*SMALL, "--only", "environment"]) == 0
    assert (tmp_path / "benchmarks" / "gpu.md").read_text() == "measured"
    command = "python -m benchmarks.gpu_check --device=cpu --small --only environment"
    assert f"Made by `{command}` at" in (tmp_path / "build" / "gpu.md").read_text()


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match=r"no CUDA device.*--device cpu --small"):
        gpu_check.main([])


def test_packages_that_are_missing_are_named_before_anything(tmp_path: Path) -> None:
    """In an interpreter that has none of them: a message, no traceback."""
    bare = [sys.executable, "-S", "-m", "benchmarks.gpu_check"]
    done = subprocess.run(bare, cwd=gpu_check.ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(
        r"packages .* not installed in .*: torch, torchvision, timm, .*pytest.*pip install -r", done.stderr
    )


def test_a_package_s_other_name_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_check.missing_packages() == []
    monkeypatch.setattr(gpu_check, "INSTEAD", {})
    monkeypatch.setattr(
        gpu_check.metadata,
        "distributions",
        lambda: [SimpleNamespace(name="Torch"), SimpleNamespace(name="scikit_learn")],
    )
    missing = gpu_check.missing_packages()
    assert {"torch", "scikit-learn"}.isdisjoint(missing)
    assert {"timm", "mmcv-lite", "hypothesis"} <= set(missing)


def test_a_section_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"--only colors: no such section; there are environment, criterion"):
        gpu_check.main([*SMALL, "--only", "colors"])


def test_a_wait_is_counted_and_the_debug_mode_s_notice_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's words (c10/cuda/CUDAFunctions.cpp, torch/csrc/cuda/Module.cpp)."""
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn(notice, stacklevel=2))
    check = Check(torch.device("cuda", 0), small=True, ends=0.0)
    assert check.waits(lambda: None) == []
    found = check.waits(lambda: warnings.warn("called a synchronizing CUDA operation (Triggered ...)", stacklevel=1))
    assert [place.partition(":")[0] for place in found] == ["test_gpu_check.py"]


def broken(_: Check) -> Iterator[Finding]:
    yield Finding("first part", True)
    raise RuntimeError("no kernel image is available")


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that raises, numbers that are wrong in float32 alone, and one for which there is no time."""
    compute = gpu_method.gradients

    def wrong(criterion, views, read=True):
        found = compute(criterion, views, read)
        return [2 * tensor for tensor in found] if views[0][0].dtype == torch.float32 else found

    monkeypatch.setattr(gpu_method, "gradients", wrong)
    monkeypatch.setattr(gpu_check, "sections", lambda: (broken, gpu_method.criterion))
    page = tmp_path / "gpu.md"
    assert gpu_check.main([*SMALL, f"--out={page}"]) == 1
    text = page.read_text()
    assert "| PASS | first part" in text
    assert "| FAIL | broken | error RuntimeError: no kernel image is available" in text
    assert text.count("| FAIL | criterion, ") == len(gpu_method.OPTIONS) == 8
    assert gpu_check.main([*SMALL, "--seconds=-1", f"--out={page}"]) == 1
    assert "criterion: not begun" in page.read_text()
