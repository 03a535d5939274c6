"""Several studies in one table: rows by study, the same score columns, differences within a study alone."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import report_data
from analysis.__main__ import main
from analysis.report_data import load_report_data
from analysis.together import together_table
from runtime.errors import UserError
from sweeps.graph import Graph, build
from sweeps.study import load_study
from tests.analysis.conftest import write


@pytest.fixture
def two(fill: Callable[..., Graph], folder: Path) -> Path:
    """study.yaml, whole; second.yaml, which asks for top5 alone, varies the noise of a longer run and has a gap."""
    fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    text = (folder / "study.yaml").read_text().replace("name: fake", "name: second")
    text = text.replace("loss.alpha: [0.0, 0.5, 1.0]", "loss.alpha: [0.5, 1.0], train.duration: [8 steps]")
    (folder / "second.yaml").write_text(
        text.replace("x: linear.top1", "x: linear.top5").replace("0 steps}", "1 steps}")
    )
    graph = build(load_study("second.yaml"))
    for point in graph.points[:-1]:
        alpha = point.varied["loss.alpha"]
        write(point.pretrain, {"seconds": 60.0})
        write(point.evals["linear"], {"top5": 80 - 2 * (alpha or 0.0), "protocol": "another"})
    return folder


def test_rows_by_study_and_the_same_columns(two: Path) -> None:
    table = together_table([load_report_data(name) for name in ("study.yaml", "second.yaml")])
    top1, top5, delta = "linear top-1 (%)", "linear top-5 (%)", "Δ to its baseline"
    assert table.header == ["study", "setting", "n", top1, delta, top5, delta]
    first, second = table.blocks
    assert [line[0] for line in first] == ["fake", "", "", ""]
    assert first[0][1:5] == ["loss.alpha = 0", "2", "50.5 ± 6.4", "−20.0 ± 0.0†"]
    assert [line[0] for line in second] == ["second", "", "", ""][: len(second)]
    assert second[0] == [
        "second",
        "loss.alpha = 0.5, train.duration = 8 steps",
        "2",
        "",
        "",
        "**79.0 ± 0.0**",
        "+1.0 ± 0.0†",
    ]
    assert second[1][5:] == ["78.0 ± 0.0", "baseline"]
    assert "(1 new)" in second[-1][5]


def test_the_report_tells_what_keeps_the_studies_apart(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study.yaml", "second.yaml", "--together", "both"])
    assert capsys.readouterr().out.strip() == "reports/both/README.md"
    page = Path("reports/both/README.md").read_text()
    assert "**linear is not one measurement: its protocol differs** (fake: fake; second: another)" in page
    assert "python -m analysis study.yaml second.yaml --together both" in page
    assert (
        "\n- Δ: difference to the baseline row of its own study, paired by seed.\n- †: decided among all rows" in page
    )
    assert "\n- Bold: the best row" in page
    assert re.search(r"\bnan\b", page.lower()) is None
    rows = csv.DictReader(Path("reports/both/table.csv").read_text().splitlines())
    assert {row["study"] for row in rows} == {"fake", "second"}
    names = ["README.md", "index.html", "results.csv", "table-narrow.tex", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in Path("reports/both").iterdir()) == names


def test_tables_in_place_of_run_directories(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["study.yaml", "second.yaml"])
    main(["study.yaml", "second.yaml", "--together", "both"])
    monkeypatch.setattr(report_data, "STUDIES", two)
    (two / "study.yaml").rename(two / "fake.yaml")
    (two / "runs").rename(two / "gone")
    main(["reports/fake/results.csv", "reports/second/results.csv", "--together", "tables"])
    tables = [Path("reports", name, "table.md").read_text(encoding="utf-8") for name in ("both", "tables")]
    assert tables[0] == tables[1]
    page = Path("reports/tables/README.md").read_text(encoding="utf-8")
    assert "python -m analysis reports/fake/results.csv reports/second/results.csv --together tables" in page
    with pytest.raises(UserError, match="has rows of fake, second; expected the table of one study"):
        main(["reports/both/results.csv", "reports/second/results.csv", "--together", "more"])


def test_names_that_would_overwrite_or_mix(two: Path) -> None:
    with pytest.raises(UserError, match="share a name"):
        main(["study.yaml", "study.yaml", "--together", "both"])
    with pytest.raises(UserError, match="the name of one of the studies"):
        main(["study.yaml", "second.yaml", "--together", "fake"])
    with pytest.raises(UserError, match="expected letters"):
        main(["study.yaml", "second.yaml", "--together", "../up"])
    assert not Path("reports").exists()
