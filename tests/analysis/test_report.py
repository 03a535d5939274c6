"""The report's folder: complete, the same for the same results, with gaps where there are some."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analysis import __main__ as command
from analysis import report as report_module
from analysis.evidence import unlike_machines
from analysis.figures import tradeoff
from analysis.pictures.__main__ import source
from analysis.report import CAPTION, SOURCE, of_one_type, write_report
from analysis.report_data import ReportData, load_report_data
from analysis.results import load_results
from runtime import PROJECT, provenance
from runtime.errors import UserError
from sweeps.graph import Graph

LATEX = ["published-rows-narrow.tex", "published-rows.tex", "table-narrow.tex", "table.tex"]
TABLES = sorted(["README.md", "index.html", "results.csv", "table.csv", "table.md", *LATEX])
FILES = [*TABLES, "tradeoff.pdf", "tradeoff.png", "tradeoff.svg"]


@pytest.fixture(autouse=True)
def _one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All six take seconds; test_figures.py and test_page.py draw the others."""
    monkeypatch.setattr(report_module, "FIGURES", (tradeoff.PLOT,))


def top1(alpha: float | None, seed: int) -> float:
    return 10.0 if alpha is None else 50 + 20 * alpha + seed


def top5(alpha: float | None, seed: int) -> float:
    return 20.0 if alpha is None else 95 - 10 * alpha + seed / 2


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_report_shows_everything(fill: Callable[..., Graph], folder: Path) -> None:
    fill(top1, top5)
    report = write_report("study.yaml")
    assert report == Path("reports/fake")
    assert sorted(path.name for path in report.iterdir()) == FILES
    page = (report / "README.md").read_text()
    assert (report / "table.md").read_text().splitlines()[0] in page
    for part in (
        "Does it run?",
        "![linear.top5 against linear.top1](tradeoff.png)",
        "[tradeoff.pdf](tradeoff.pdf)",
        "linear top-1: pretraining beats 'no pretraining' at every scored loss.alpha",
        "linear top-5 gains and linear top-1 loses at 0, 0.5",
        "| rank pooled |",
        "8 of 8",
        "8 min 0 s",  # 8 pretrainings of 60 s
        f"commit {provenance.collect()['commit'][:12]}",
        "`pretrain.yaml`, `linear.yaml`",
        "python 3.",
        "python -m analysis study.yaml",
    ):
        assert part in page
    assert "Gaps" not in page
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert [float(row["score.top1"]) for row in rows[:2]] == [50.0, 51.0]
    assert rows[0]["control"] == ""
    everything = page + (report / "results.csv").read_text()
    assert str(folder) not in everything
    assert str(PROJECT) not in everything
    assert not [name for name in rows[0] if name.endswith((".host", ".argv"))]


def test_nothing_changes_when_nothing_changed(fill: Callable[..., Graph], folder: Path) -> None:
    fill(top1, top5)
    before = contents(write_report("study.yaml"))
    code = (
        f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'tests' / 'sweeps')!r}]\n"
        "import fake_study; from sweeps import stages\n"
        "stages.STAGES.clear(); stages.STAGES.update(fake_study.fake_registry())\n"
        "from analysis import report; from analysis.figures import tradeoff; report.FIGURES = (tradeoff.PLOT,)\n"
        "from analysis.__main__ import main; main(['study.yaml', '--reports', 'again', 'machine.runs=runs'])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert contents(Path("again/fake")) == before


def test_drawn_again_from_its_table_it_is_the_same(fill: Callable[..., Graph], folder: Path) -> None:
    """Without the run directories; fake runs have no training curves, which alone would be missing."""
    fill(top1, top5)
    before = contents(write_report("study.yaml", figures=()))
    shutil.rmtree("runs")
    again = write_report("study.yaml", "again", figures=(), results="reports/fake/results.csv")
    assert contents(again) == before


def test_the_table_of_one_study_is_not_that_of_two(folder: Path) -> None:
    with pytest.raises(UserError, match="table of one study, and 2 were given"):
        command.main(["study.yaml", "study.yaml", "--results", "results.csv"])


def test_a_partial_study_has_a_report_with_gaps(fill: Callable[..., Graph], folder: Path) -> None:
    graph = fill(top1, top5)
    lost, broken = graph.points[0].evals["linear"], graph.points[2].evals["linear"]
    (lost.run.path / "result.json").unlink()
    (broken.run.path / "result.json").write_text("[]")
    page = (write_report("study.yaml", figures=()) / "README.md").read_text()
    assert "Runs without a result" in page
    assert f"- linear/{lost.run.name}: interrupted" in page
    assert f"- linear/{broken.run.name}: interrupted" in page
    assert "51.0 (1 interrupted)" in page
    assert re.search(r"\bnan\b", page.lower()) is None


def test_a_study_without_runs_has_a_report_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["study.yaml"])
    assert capsys.readouterr().out.strip() == "reports/fake/README.md"
    page = Path("reports/fake/README.md").read_text()
    assert "No finding: no run has a score yet." in page
    assert "– (2 new)" in page
    assert page.count(": new\n") == 16
    assert "no run yet" in page
    assert sorted(path.name for path in Path("reports/fake").iterdir()) == FILES


def test_runs_of_two_commits_are_told_apart(fill: Callable[..., Graph], folder: Path) -> None:
    graph = fill(top1, top5)
    file = graph.points[0].pretrain.run.path / "run.yaml"
    text = file.read_text()
    file.write_text(text.replace(f"commit: {provenance.collect()['commit']}", f"commit: {'ab' * 20}"))
    page = (write_report("study.yaml", figures=()) / "README.md").read_text()
    assert "commit abababababab" in page
    assert "(1 run)" in page
    assert "(15 runs)" in page
    assert "several code versions" in page
    rows = [line for line in page.splitlines() if line.startswith("| 0 ")]
    assert "| abababa" in rows[0]  # the first seed of alpha 0 has a row of its own
    assert "| 50.0 " in rows[0]
    assert "51.0 " in rows[1]


def test_unlike_machines_are_named_above_the_findings(fill: Callable[..., Graph], folder: Path) -> None:
    fill(top1, top5)
    data = load_report_data("study.yaml")
    page = report_module.texts_of(data, folder, ())["README.md"]
    assert "kind of machine" not in page
    alphas = data.frame["grid.loss.alpha"]
    gpu = {"pretrain.provenance.gpu": alphas.map({1.0: "NVIDIA H100"})}
    page = report_module.texts_of(ReportData(data.study, data.frame.assign(**gpu)), folder, ())["README.md"]
    named = "the CPU: α = 0 / α = 0.5; NVIDIA H100: α = 1."
    assert 0 < page.index(named) < page.index("## Findings")
    # Seed by seed alike: no difference between rows holds the machines'.
    by_seed = {"pretrain.provenance.gpu": data.frame["grid.seed"].map({0: "NVIDIA H100"})}
    assert unlike_machines(ReportData(data.study, data.frame.assign(**by_seed))) == ""
    chosen = data.frame.assign(
        **{
            "pretrain.train.precision": "auto",
            "pretrain.result.precision": (alphas.eq(0.5) & data.frame["grid.seed"].eq(0)).map(
                {True: "bfloat16", False: "float32"}
            ),
        }
    )
    assert unlike_machines(ReportData(data.study, chosen)) == (
        "the CPU in float32: α = 0 / α = 0.5 (1 of 2 runs) / α = 1; the CPU in bfloat16: α = 0.5 (1 of 2 runs)"
    )


def test_pictures_are_shown_while_they_are_of_these_runs(fill: Callable[..., Graph], folder: Path) -> None:
    graph = fill(top1, top5)
    pictures = folder / "reports" / "fake" / "pictures"
    pictures.mkdir(parents=True)
    texts = PngInfo()
    texts.add_text(CAPTION, "Maps. In colours.")
    texts.add_text(SOURCE, source([point.pretrain for point in graph.points[:3]]))
    Image.new("RGB", (4, 4)).save(pictures / "maps.png", pnginfo=texts)
    Image.new("RGB", (4, 4)).save(pictures / "unknown.png")
    report = write_report("study.yaml", figures=())
    page, html = (report / "README.md").read_text(), (report / "index.html").read_text()
    assert "![Maps](pictures/maps.png)\n\nMaps. In colours." in page
    assert '<img src="data:image/png;base64,' in html
    assert "earlier results of these: `pictures/unknown.png`" in page
    assert "python -m analysis.pictures --study study.yaml" in page
    assert (
        "![Maps]" in (write_report("study.yaml", figures=(), results=report / "results.csv") / "README.md").read_text()
    )
    result = graph.points[0].pretrain.run.path / "result.json"
    scores = json.loads(result.read_text())
    result.write_text(json.dumps(scores | {"seconds": 1.0}))  # the same scores on another machine
    assert "![Maps]" in (write_report("study.yaml", figures=()) / "README.md").read_text()
    result.write_text(json.dumps(scores | {"rank_pooled": 1.0}))  # of the same config
    page = (write_report("study.yaml", figures=()) / "README.md").read_text()
    assert "![Maps]" not in page
    result.unlink()
    page = (write_report("study.yaml", figures=(), force=True) / "README.md").read_text()
    assert "![Maps]" not in page
    assert "`pictures/maps.png`, `pictures/unknown.png`" in page


def test_parquet_is_asked_for_and_holds_the_same(
    fill: Callable[..., Graph], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(top1, top5)
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(UserError, match="pip install pyarrow"):
            command.main(["study.yaml", "--parquet"])
        assert not Path("reports").exists()
    mixed = pd.DataFrame({"a": [1, "x", None], "b": [1.0, 2.0, math.nan]})
    assert of_one_type(mixed)["a"].tolist()[:2] == ["1", "x"]
    assert of_one_type(mixed)["a"].isna().tolist() == [False, False, True]
    assert of_one_type(mixed)["b"].equals(mixed["b"])
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(report_module, "FIGURES", ())
    command.main(["study.yaml", "--parquet"])
    stored = pd.read_parquet("reports/fake/results.parquet")
    assert stored["score.top1"].tolist() == pd.read_csv("reports/fake/results.csv")["score.top1"].tolist()


def test_what_cannot_be_read_leaves_the_former_report(fill: Callable[..., Graph], folder: Path) -> None:
    fill(top1, top5)
    before = contents(write_report("study.yaml", figures=()))
    study = folder / "study.yaml"
    study.write_text(study.read_text().replace("loss.alpha: [", "loss.alfa: ["))
    with pytest.raises(UserError, match="did you mean"):
        write_report("study.yaml", figures=())
    assert contents(folder / "reports" / "fake") == before


def test_runs_of_two_installed_versions_are_told_apart(fill: Callable[..., Graph], folder: Path) -> None:
    graph = fill(top1, top5)
    commit = f"commit: {provenance.collect()['commit']}"
    for place, point in enumerate(graph.points):
        for node in (point.pretrain, *point.evals.values()):
            text, sources = node.run.path.joinpath("run.yaml").read_text(), ("ab" if place == 0 else "12") * 32
            made = text.replace(commit, f"commit: null\n  version: 0.1.0\n  sources: '{sources}'")
            node.run.path.joinpath("run.yaml").write_text(made)
    page = (write_report("study.yaml", figures=()) / "README.md").read_text()
    assert "version 0.1.0 without a git commit, sources abababababab (SHA-256) (2 runs)" in page
    assert "sources 121212121212 (SHA-256) (14 runs)" in page
    assert "several code versions" in page
    frame = load_results("reports/fake/results.csv")
    assert frame["pretrain.provenance.sources"][1] == "12" * 32  # text, though it looks like a number


def test_a_mistyped_score_is_refused_with_near_ones(fill: Callable[..., Graph], folder: Path) -> None:
    fill(top1, top5)
    study = folder / "study.yaml"
    study.write_text(study.read_text().replace("linear.top5", "linear.top-5"))
    with pytest.raises(UserError, match=r"'linear.top-5': none of the 8 runs of linear.*did you mean linear.top5"):
        write_report("study.yaml", figures=())
    assert not Path("reports").exists()
