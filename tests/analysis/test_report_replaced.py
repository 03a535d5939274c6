"""A report that knows less than the one in its place does not replace it; what cannot be drawn again stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import report as report_module
from analysis.__main__ import main
from analysis.figures import training
from analysis.report import write_report
from runtime.errors import UserError
from sweeps.graph import Graph

CURVES = ["training.pdf", "training.png", "training.svg"]


@pytest.fixture(autouse=True)
def _one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "FIGURES", (training.PLOT,))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def graph(fill: Callable[..., Graph]) -> Graph:
    """A study that is done, with training curves; its report is written."""
    made = fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    for point in made.points:
        for step in (10, 20, 30):
            point.pretrain.run.append_metrics({"step": step, "loss": 30.0 - step / 2})
    write_report("study.yaml")
    return made


def test_a_fresh_clone_keeps_the_report(graph: Graph) -> None:
    before = contents(Path("reports/fake"))
    assert set(CURVES) <= set(before)
    shutil.rmtree("runs")
    with pytest.raises(UserError, match=r"the scores of 8 of its 8 evaluations .*--force replaces the present one"):
        main(["study.yaml"])
    assert contents(Path("reports/fake")) == before
    main(["study.yaml", "--force"])
    assert "No finding: no run has a score yet." in Path("reports/fake/README.md").read_text()
    assert not Path("reports/fake/training.svg").exists()


def test_one_lost_score_is_enough_and_is_named(graph: Graph) -> None:
    before = contents(Path("reports/fake"))
    (graph.points[3].evals["linear"].run.path / "result.json").unlink()
    with pytest.raises(
        UserError, match=r"1 of its 8 evaluations \(study fake, loss.alpha 0.5, seed 1, eval.name linear\)"
    ):
        write_report("study.yaml")
    assert contents(Path("reports/fake")) == before
    assert write_report("study.yaml", "elsewhere").is_dir()


def test_more_scores_replace_fewer(graph: Graph) -> None:
    result = graph.points[3].evals["linear"].run.path / "result.json"
    text = result.read_text()
    result.unlink()
    write_report("study.yaml", force=True)
    result.write_text(text)
    page = (write_report("study.yaml") / "README.md").read_text()
    assert "Gaps" not in page


def test_a_table_keeps_the_curves_that_it_cannot_draw_and_their_place(graph: Graph) -> None:
    before = contents(Path("reports/fake"))
    shutil.rmtree("runs")
    write_report("study.yaml", results="reports/fake/results.csv")
    assert contents(Path("reports/fake")) == before
    assert b"](training.png)" in before["README.md"]


def test_curves_of_other_runs_do_not_stay_beside_a_table(graph: Graph) -> None:
    text = Path("reports/fake/results.csv").read_text()
    Path("other.csv").write_text(text.replace(graph.points[0].pretrain.identity.hash, "0123456789"))
    with pytest.raises(UserError, match="the training curves of other runs"):
        write_report("study.yaml", results="other.csv")
    write_report("study.yaml", results="other.csv", force=True)
    assert not Path("reports/fake/training.svg").exists()
    assert "training.png" not in Path("reports/fake/README.md").read_text()


def test_several_studies_together_keep_theirs_too(graph: Graph) -> None:
    main(["study.yaml", "--together", "both"])
    shutil.rmtree("runs")
    with pytest.raises(UserError, match="8 of its 8 evaluations"):
        main(["study.yaml", "--together", "both"])
    main(["study.yaml", "--together", "both", "--force"])
