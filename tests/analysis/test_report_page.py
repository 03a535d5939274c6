"""index.html: whole in one file, the same text as the README; looked at in a browser where there is one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.report import write_report
from sweeps.graph import Graph

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "img", "br", "path", "use", "rect"}


class Outline(HTMLParser):
    """Headings, links and images' names; complains about a tag that is closed by another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.targets += [str(named[key]) for key in ("href", "src", "xlink:href") if key in named]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture
def report(fill: Callable[..., Graph]) -> Path:
    """With every figure that fake runs have data for, a training curve included."""
    graph = fill(
        lambda a, s: 10.0 + s if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a
    )
    for point in graph.points:
        for step in (10, 20, 30):
            point.pretrain.run.append_metrics({"step": step, "loss": 30.0 - step / 2, "rank_pooled": 5.0 + step})
        with open(point.pretrain.run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 40, "lo')  # a kill
        result = point.pretrain.run.path / "result.json"
        result.write_text(result.read_text().replace("{", '{"steps": 30,', 1))
    return write_report("study.yaml")


def test_the_page_is_whole(report: Path) -> None:
    text = (report / "index.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    figures = {path.stem for path in report.glob("*.svg")}
    assert figures == {"tradeoff", "scores", "training", "cost", "diagnostics"}
    assert text.count('role="img"') == len(figures)
    assert len(set(outline.ids)) == len(outline.ids)
    inner = [target for target in outline.targets if target.startswith("#")]
    assert {target[1:] for target in inner} <= set(outline.ids)
    for target in outline.targets:
        assert target.startswith("#") or (report / target).is_file()  # nothing from a network
    assert "@import" not in text
    assert "<script" not in text
    in_readme = re.findall(r"^#+ (.*)$", (report / "README.md").read_text(), flags=re.MULTILINE)
    assert outline.headings == in_readme
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    for name in ("tradeoff", "training"):
        assert (report / f"{name}.png").is_file()


def photograph(page: Path, to: Path, width: int, height: int, dark: bool) -> np.ndarray:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    size = f"--window-size={width},{height}"
    # Containers often have a /dev/shm that is too small for it.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    argv = [CHROMIUM, *options, scheme, size, f"--screenshot={to}", page.resolve().as_uri()]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)
    with Image.open(to) as image:
        return np.asarray(image.convert("L"), dtype=float)


@pytest.mark.slow
def test_a_browser_shows_it(report: Path, tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: make install-report")
    light = photograph(report / "index.html", tmp_path / "light.png", 1000, 1600, dark=False)
    dark = photograph(report / "index.html", tmp_path / "dark.png", 1000, 1600, dark=True)
    assert light.shape == dark.shape == (1600, 1000)
    assert np.median(light) > 240
    assert np.median(dark) < 40
    for shot, paper in ((light, np.median(light)), (dark, np.median(dark))):
        assert (np.abs(shot - paper) > 100).mean() > 0.005  # ink that contrasts with the paper
    # The figure's own paper is the page's: no white card at night.
    assert (dark > 200).mean() < 0.1
    # On a phone nothing but tables and wide figures, which scroll by themselves, is wider than the screen:
    # the page's right margin stays empty beside the text.
    phone = photograph(report / "index.html", tmp_path / "phone.png", 500, 1600, dark=False)
    assert phone.shape[1] == 500
    assert (phone[:, -12:] < 128).mean() < 0.001
