"""The maps of two keys: each mean at its place, and an option without an effect shown once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import pyplot as plt

from analysis.figures import heatmap
from analysis.figures.base import STYLE
from analysis.report_data import ReportData

MATCHES = ["[20, 4]", "[4, 4]", "[64, 4]"]


def test_each_mean_at_its_place_and_an_idle_option_once(report_data_of: Callable[..., ReportData]) -> None:
    rows = [
        (None, {"loss.alpha": a, "loss.num_matches": m, "seed": s}, 60 + 10 * a + i * (1 - a) + s, 30.0)
        for a in (0.5, 1.0)
        for i, m in enumerate(MATCHES)
        for s in (0, 1)
    ]
    data = report_data_of({"loss.alpha": [0.5, 1.0], "loss.num_matches": MATCHES, "seed": [0, 1]}, rows)
    with plt.style.context(STYLE):
        figure = heatmap.draw(data)
        plt.close("all")
    assert figure is not None
    first, _ = figure.axes
    shown = np.asarray(first.images[0].get_array())
    assert shown[:, 0] == pytest.approx([66.0, 65.5, 66.5])  # [4, 4], [20, 4], [64, 4]
    assert shown[:, 1] == pytest.approx([70.5] * 3)
    assert [text.get_text() for text in first.get_yticklabels()] == ["[4, 4]", "[20, 4]", "[64, 4]"]
    assert sorted(text.get_text() for text in first.texts) == ["65.5", "66.0", "66.5", "70.5"]
    assert "At loss.alpha = 1, loss.num_matches has no effect" in heatmap.caption(data)


def test_of_another_criterion_no_option_is_known_to_be_idle(report_data_of: Callable[..., ReportData]) -> None:
    grid = {"loss.alpha": [0.5, 1.0], "loss.num_matches": MATCHES, "seed": [0]}
    rows = [
        (None, {"loss.alpha": a, "loss.num_matches": m, "seed": 0}, 60.0 + i, 30.0)
        for a in (0.5, 1.0)
        for i, m in enumerate(MATCHES)
    ]
    data = report_data_of(grid, rows)
    data.frame["pretrain.loss.name"] = "own"
    with plt.style.context(STYLE):
        figure = heatmap.draw(data)
        plt.close("all")
    assert figure is not None
    assert len(figure.axes[0].texts) == 6
    assert "no effect" not in heatmap.caption(data)


def test_one_key_has_no_map(report_data_of: Callable[..., ReportData]) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60.0, 30.0) for a in (0.5, 1.0)]
    assert heatmap.draw(report_data_of({"loss.alpha": [0.5, 1.0], "seed": [0]}, rows)) is None
