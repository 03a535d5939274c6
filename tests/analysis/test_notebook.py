"""The worked notebook runs from first cell to last, in a kernel of its own: on the committed results, and live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from analysis import load_report_data, load_results, render
from analysis.tables import results_table
from runtime import PROJECT
from runtime.errors import UserError
from sweeps.graph import Graph, build
from sweeps.study import load_study
from tests.analysis.conftest import write

NOTEBOOK = PROJECT / "analysis" / "notebooks" / "alpha.ipynb"
SCENES = PROJECT / "reports" / "scenes"


def text_of(notebook: nbformat.NotebookNode) -> str:
    """What the cells show, figures left out; what a cell prints may come in any number of pieces."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text") or output["data"].get("text/markdown", "") for output in outputs)


def executed(parameters: Sequence[str] = ()) -> str:
    """Everything that the cells show, after running them with other parameters."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = "\n".join([cell.source, *parameters])
    # In its own folder, as Jupyter starts it.
    NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    return text_of(notebook)


@pytest.mark.slow
def test_on_the_committed_results() -> None:
    shown = executed()
    assert text_of(nbformat.read(NOTEBOOK, as_version=4)) == shown, (
        "its outputs are of other results than reports/scenes; make reports"
    )
    assert (SCENES / "table.md").read_text().splitlines()[2] in shown
    assert "loss.alpha = 0.75 against loss.alpha = 1" in shown
    assert "Spearman over all runs:" in shown


@pytest.mark.slow
def test_on_a_live_study(tmp_path: Path) -> None:
    graph = build(load_study("sweeps/studies/quickstart.yaml"), [f"machine.runs={tmp_path / 'runs'}"])
    for point in graph.points[:-2]:
        alpha = point.varied["loss.alpha"]
        write(point.pretrain, {"rank_pooled": 20 + 10 * alpha, "seconds": 9.0, "steps": 600})
        write(point.evals["linear"], {"top1": 80 + alpha, "protocol": "linear"})
        write(point.evals["segmentation"], {"miou": 40 - alpha, "protocol": "frozen linear"})
    live = ['STUDY = "sweeps/studies/quickstart.yaml"', "RESULTS = None", f'MACHINE = ["machine.runs={tmp_path}/runs"]']
    shown = executed(live)
    assert "loss.alpha = 0.75 against loss.alpha = 1\n  linear top-1: 80.8 against – (1 new)" in shown
    assert "1. loss.alpha = 0: segmentation mIoU 40.0 (n 1)" in shown
    assert "Spearman over all runs: -1.00 (n = 2)" in shown


def test_a_table_that_was_written_is_the_table_that_is_read(fill: Callable[..., Graph], folder: Path) -> None:
    graph = fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    hashes = folder / "hashes.csv"
    frame = load_results("study.yaml")
    frame.loc[0, "pretrain.hash"] = "0123456789"
    frame.loc[1, "pretrain.hash"] = "12345e6789"
    frame.to_csv(hashes, index=False)
    back = load_results(hashes)
    gaps_alike = (table.astype(object).where(table.notna(), np.nan) for table in (back, frame))
    pd.testing.assert_frame_equal(*gaps_alike)
    assert len(back) == len(graph.points)
    live, stored = load_report_data("study.yaml"), load_report_data("study.yaml", results=hashes)
    assert render.to_markdown(results_table(live.summary)) == render.to_markdown(results_table(stored.summary))
    assert stored.history.empty


def test_the_committed_report_is_of_its_results() -> None:
    data = load_report_data(PROJECT / "sweeps/studies/scenes.yaml", results=SCENES / "results.csv")
    assert (SCENES / "table.md").read_text().startswith(render.to_markdown(results_table(data.summary)))


def test_a_file_that_is_not_a_table_of_results(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    with pytest.raises(UserError, match="cannot be read"):
        load_results(file)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"not the results\.csv of a report"):
        load_results(file)
    with pytest.raises(UserError, match="has the study scenes; expected quickstart"):
        load_report_data(PROJECT / "sweeps/studies/quickstart.yaml", results=SCENES / "results.csv")
