"""A figure is added by one file in analysis/figures, and stands where it says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis import figures
from analysis import report as report_module
from analysis.figures import Plot, cost, tradeoff
from analysis.report import write_report
from sweeps.graph import Graph

MINE = """
from matplotlib import pyplot as plt
from analysis.figures.base import Plot

def draw(data):
    figure, axes = plt.subplots()
    axes.plot([0, 1], [len(data.frame), 0])
    return figure

PLOT = Plot("mine", draw, lambda data: "My caption.", lambda data: "my figure", place="cost")
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Plot, ...]]:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(folder)])
    yield figures.discover()
    sys.modules.pop("analysis.figures.mine")


def test_one_file_is_a_figure_on_the_page(
    added: tuple[Plot, ...], fill: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [plot.name for plot in added if plot.name != "mine"] == [plot.name for plot in figures.FIGURES]
    kept = tuple(plot for plot in added if plot.name in ("tradeoff", "cost", "mine"))
    monkeypatch.setattr(report_module, "FIGURES", kept)
    fill(lambda a, s: 1.0, lambda a, s: 2.0)
    page = (write_report("study.yaml") / "README.md").read_text(encoding="utf-8")
    assert page.index("## Scores") < page.index("## Cost") < page.index("![my figure](mine.png)\n\nMy caption.")


def test_figures_stand_in_the_order_of_the_page() -> None:
    names = [plot.name for plot in figures.FIGURES]
    assert names[:2] == ["tradeoff", "scores"]
    assert names[-1] == "cost"
    assert {plot.name for plot in figures.FIGURES} >= {"diagnostics", "training"}


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="place 'bottom'; expected one of findings, scores"):
        Plot("mine", tradeoff.draw, cost.caption, cost.caption, place="bottom")
