"""benchmarks/sweeps.py measures every command, on a study in every state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import sweeps as benchmark


@pytest.mark.slow
def test_every_command_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ballast = np.ones(50_000_000)  # 400 MB of this process, which are not the command's
    benchmark.main(["--runs", "200", "--output", "page.md"])
    assert Path.cwd() == tmp_path
    rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| `python -m")]
    assert [row.split("`")[1] for row in rows] == [
        "python -m sweeps plan",
        "python -m sweeps status",
        "python -m analysis",
    ]
    assert float(rows[0].split("|")[5].split()[0]) < ballast.nbytes / 1e6
    assert min(float(cell) for row in rows for cell in row.split("|")[2:4]) > 0
