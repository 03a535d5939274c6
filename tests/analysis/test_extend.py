"""EXTEND.md does what it says: its blocks are written and run, in order, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import PROJECT

PACKAGES = ("analysis", "sweeps", "pretrain", "eval", "data", "runtime", "vicregl")
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, ...]]:
    """The language, the file and the text of each block."""
    return BLOCK.findall((PROJECT / "EXTEND.md").read_text(encoding="utf-8"))


def follow(language: str, name: str, text: str, folder: Path) -> None:
    if language == "bash":
        settings = os.environ | {
            "PYTHONPATH": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = ["bash", "-eu", "-c", text]
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, encoding="utf-8", timeout=500)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if language != "diff":
        file.write_text(text, encoding="utf-8")
        return
    before, after = (
        "".join(f"{line[1:]}\n" for line in text.splitlines() if line[:1] in kept) for kept in ("- ", "+ ")
    )
    source = file.read_text(encoding="utf-8")
    assert source.count(before) == 1, f"{name} no longer has\n{before}"
    file.write_text(source.replace(before, after), encoding="utf-8")


def test_every_extension_is_short() -> None:
    lines = {name: text.splitlines() for language, name, text in blocks() if language != "bash"}
    lengths = {name: sum(not re.match(r"(from|import) |$", line) for line in text) for name, text in lines.items()}
    assert max(lengths.values()) <= 12, lengths
    new = {name for name in lengths if not name.startswith("build/")}
    assert new == {"eval/class_mean.py", "analysis/tables.py", "analysis/figures/spread.py"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a study and two reports, on a machine that may be busy
def test_the_page_is_followed(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    if (PROJECT / "data" / "cache").is_dir():
        (tmp_path / "data" / "cache").symlink_to(PROJECT / "data" / "cache")
    for language, name, text in blocks():
        follow(language, name, text, tmp_path)
    report = tmp_path / "build" / "extend" / "reports" / "extend"
    page = (report / "README.md").read_text(encoding="utf-8")
    header = next(line for line in page.splitlines() if line.startswith("| loss.name"))
    assert "class mean top-1 (%)" in header
    assert "linear top-5 (%)" in header
    assert "spread" in header
    assert re.search(r"^\| criterion +\| twins", page, re.MULTILINE)
    assert header.count("every seed") == 5
    assert page.index("## Scores") < page.index("![spread over seeds](spread.png)\n\nEvery seed of every row.")
    assert (report / "spread.pdf").is_file()
    assert re.search(r"\| My method +\| linear.top1 .* yes ", page)
    runs = tmp_path / "build" / "extend" / "runs"
    assert list(runs.glob("pretrain/resnet18-*"))
    own = [
        *runs.glob("pretrain/my_resnet-twins-*"),
        *runs.glob("pretrain/my_resnet-both-*"),
        *runs.glob("spread/shades-*"),
    ]
    assert len(own) == 4
    for run in own:
        assert "my_package: sha256:" in (run / "run.yaml").read_text(encoding="utf-8")
