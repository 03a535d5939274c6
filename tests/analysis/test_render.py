"""The same table in every format; bold where the seeds support it; the published rows apart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from jinja2 import UndefinedError

from analysis import page, published, render
from analysis.render import Table
from analysis.report_data import ReportData
from analysis.tables import results_table, score_values
from tests.analysis.published_study import measured_as_published

ReportDataOf = Callable[..., ReportData]
NASTY = Table(
    ["a_b & c", "x%", "words"], [[["50 #1 {x} ~^\\", "−1.0 ± 0.2", "one"]], [["*ctl*", "**3** (1 new)", "`two`"]]]
)


def some_report_data(report_data_of: ReportDataOf) -> ReportData:
    scores = {0.0: (60.0, 30.0), 0.5: (64.0, 29.9), 1.0: (66.0, 20.0)}
    shift = {0: -0.1, 1: 0.0, 2: 0.12}
    rows = [
        (None, {"loss.alpha": a, "seed": s}, x + shift[s], y + shift[s] * (1 - 30 * (a == 0.5)))
        for a, (x, y) in scores.items()
        for s in range(3)
    ]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 99.0, 5.0) for s in range(3)]
    return report_data_of({"loss.alpha": list(scores), "seed": [0, 1, 2]}, rows)


def test_best_only_where_the_interval_supports_it(report_data_of: ReportDataOf) -> None:
    settings, controls = results_table(some_report_data(report_data_of).summary).blocks
    assert [line[2].startswith("**") for line in settings] == [False, False, True]
    assert not any(line[4].startswith("**") for line in settings)  # 30.0 and 29.9 are too close
    assert not any("**" in cell for cell in controls[0])  # whatever a control scores, it is no setting


def test_one_seed_has_no_best(report_data_of: ReportDataOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, 20.0) for a in (0.5, 1.0)]
    table = results_table(report_data_of({"loss.alpha": [0.5, 1.0], "seed": [0]}, rows).summary)
    assert "**" not in render.to_markdown(table)


def test_latex_is_sound(report_data_of: ReportDataOf) -> None:
    rows = published.published()
    for table in (NASTY, results_table(some_report_data(report_data_of).summary), published.published_table(rows)):
        text = render.to_latex(table, "ρ ± 1 %")
        assert text.isascii()
        for line in (line for line in text.splitlines() if line.endswith("\\\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.header) - 1
            bare = re.sub(r"\\\\(\{\})?|\\[{}&%$#_]", "", line)
            assert bare.count("{") == bare.count("}")
            assert "%" not in bare
            assert bare.count("$") % 2 == 0
    assert r"\emph{ctl} & \textbf{3} (1 new) & \texttt{two}" in render.to_latex(NASTY)
    assert r"a\_\allowbreak{}b \& c & x\%" in render.to_latex(NASTY)


def html_of(markdown: str, folder: Path) -> str:
    text = page.to_html("<t> & u", markdown, folder)
    return text.partition('<main id="text">\n')[2].partition("</main>")[0]


def test_html_is_escaped_and_numbers_are_aligned_to_the_right(tmp_path: Path) -> None:
    table = Table(["<a>", "b", "c"], [[["x & y", "1.5", "word"]], [["z|", "2", "w `|`"]]])
    text = html_of(render.to_markdown(table), tmp_path)
    assert '<th scope="col">&lt;a&gt;</th>' in text
    assert '<th scope="row">x &amp; y</th>\n<td style="text-align:right">1.5</td>\n<td>word</td>' in text
    assert '<th scope="row">z|</th>' in text
    assert "<td>w <code>|</code></td>" in text
    assert "<title>&lt;t&gt; &amp; u</title>" in page.to_html("<t> & u", "", tmp_path)
    assert html_of("**b** *i* `c<` [t](u.md) <script>\n", tmp_path) == (
        '<p><strong>b</strong> <em>i</em> <code>c&lt;</code> <a href="u.md">t</a> &lt;script&gt;</p>\n'
    )


def test_an_image_alone_is_a_figure_and_the_next_paragraph_its_caption(tmp_path: Path) -> None:
    (tmp_path / "pixels.png").write_bytes(b"png")
    (tmp_path / "lines.png").write_bytes(b"png")
    (tmp_path / "lines.svg").write_text(
        '<?xml?><svg width="100pt" height="9pt"><g id="a"/><use xlink:href="#a"/></svg>'
    )
    text = html_of("![A <b>](pixels.png)\n\nOf *it*.\n\n![L](lines.png)\n\nLines.\n\nText.\n", tmp_path)
    pixels, lines, rest = text.split("</figure>\n")
    assert pixels == (
        '<figure>\n<img src="data:image/png;base64,cG5n" alt="A &lt;b&gt;">\n<figcaption>Of <em>it</em>.</figcaption>\n'
    )
    assert '<svg role="img" aria-label="L" style="width: min(100%, 200px); min-width: 125px">' in lines
    assert '<g id="lines-a"/><use xlink:href="#lines-a"/>' in lines
    assert rest == "<p>Text.</p>\n"


def test_a_variable_that_is_missing_stops_the_page() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render.from_template("page.html.j2", body="", css="", js="", contents=[], home=False)


def test_the_numbers_as_csv(report_data_of: ReportDataOf) -> None:
    data = measured_as_published(some_report_data(report_data_of))
    theirs = published.values_beside(data.frame, data.study.scores)
    text = score_values(data.summary, theirs).to_csv(index=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    ours = [row for row in rows if row["source"] == "this study"]
    assert len(ours) == 8  # three settings and a control, two scores
    best = [(row["loss.alpha"], row["score"]) for row in ours if row["best"] == "True"]
    assert best == [("1.0", "linear.top1")]
    zero = next(row for row in ours if row["loss.alpha"] == "0.0" and row["score"] == "linear.top1")
    assert float(zero["mean"]) == pytest.approx(60 + 0.02 / 3)
    assert float(zero["difference_mean"]) == pytest.approx(-6.0)
    others = [row for row in rows if row["source"] != "this study"]
    assert {row["source"].split(" (")[0] for row in others} == {"authors' README", "paper's main ResNet-50 table"}
    assert [row["mean"] for row in others if row["name"].startswith("VICReg,")] == ["71.5", "47.8"]


def test_published_rows_are_those_of_the_backbone() -> None:
    frame = pd.DataFrame({"pretrain.model.backbone.name": ["convnext_small"] * 2})
    rows = published.rows_beside(frame)
    assert set(rows["backbone"]) == {"convnext_small"}
    header = published.published_table(rows).header
    assert "VOC mIoU, frozen (%)" in header
    assert "VOC mIoU, finetuned (%)" not in header  # published for none of them
    assert set(published.rows_beside(pd.DataFrame())["backbone"]) == {"resnet50"}
    assert all(published.published()["source"].str.len() > 0)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "evaluated", "expected"),
    [
        ("resnet50", "imagenet", ["imagenet", "voc"], True),
        ("resnet50", "scenes", ["scenes", "scenes"], False),
        ("resnet50", "imagenet", ["imagenet", "scenes"], False),
        ("resnet18", "imagenet", ["imagenet", "voc"], False),
    ],
)
def test_only_the_same_measurement_is_comparable(
    backbone: str, pretrained: str, evaluated: list[str], expected: bool
) -> None:
    columns = {"pretrain.model.backbone.name": backbone, "pretrain.data.name": pretrained, "eval.data.name": evaluated}
    frame = pd.DataFrame(columns)
    assert published.is_comparable(frame) is expected
    assert ("same data" in published.notes(frame, published.published())) is expected
