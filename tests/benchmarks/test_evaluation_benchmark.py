"""benchmarks/evaluation.py measures every case, on few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import evaluation as benchmark


@pytest.mark.slow
def test_every_case_is_measured_with_the_scores_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network and small images."""
    cases = {name: [*case, "image_size=32", "resize=32"] for name, case in benchmark.CASES.items()}
    for name, value in {"ARCH": "resnet10t", "BATCH": 4, "CASES": cases}.items():
        monkeypatch.setattr(benchmark, name, value)
    benchmark.main(["--images", "12", "--rounds", "1", "--out", str(tmp_path / "page.md")])
    rows = [
        line.split("|")
        for line in (tmp_path / "page.md").read_text().splitlines()
        if line.startswith(("| lin", "| kNN"))
    ]
    assert [row[1].strip() for row in rows] == list(benchmark.CASES)
    for row in rows:
        assert min(float(cell) for cell in row[2:4]) > 0
        one, two = row[5].split(",")
        assert float(one) == pytest.approx(float(two), abs=100 / 12)
