"""Runs of different code or protocol are never averaged together; two results for one seed cancel each other."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.labels import order_of
from analysis.summary import Summary, summarize
from analysis.tables import notes, results_table
from analysis.versions import version_of_each_point
from sweeps.study import EvalPart, PretrainPart, ReportPart, Study

A, B = "a" * 40, "b" * 40


def row(
    alpha: float, seed: int, top1: float, commits: str, protocol: str = "linear", state: str = "done"
) -> dict[str, object]:
    point: dict[str, object] = {"control": None, "grid.loss.alpha": alpha, "grid.seed": seed, "eval.name": "linear"}
    done = {"score.top1": top1, "score.protocol": protocol} if state == "done" else {}
    return point | {"pretrain.state": "done", "eval.state": state, "pretrain.provenance.commits": commits} | done


def a_study() -> Study:
    evals = {
        "linear": EvalPart(stage="linear", config="l.yaml"),
        "segmentation": EvalPart(stage="segmentation", config="s.yaml"),
    }
    report = ReportPart(vary="loss.alpha", baseline=1.0, x="linear.top1", y="segmentation.miou")
    grid: dict[str, list[object]] = {"loss.alpha": [0.5, 1.0], "seed": [0, 1]}
    return Study(
        name="made",
        question="?",
        pretrain=PretrainPart(config="p.yaml", grid=grid, controls={}),
        evals=evals,
        report=report,
    )


def summary(rows: list[dict[str, object]]) -> Summary:
    return summarize(pd.DataFrame(rows), a_study(), ["linear.top1"])


def means(found: Summary) -> dict[tuple[object, ...], float]:
    return {r.values: e.mean for r in found.rows if (e := r.scores["linear.top1"].estimate)}


def test_one_version_adds_nothing() -> None:
    found = summary([row(a, s, 60 + s, A) for a in (0.5, 1.0) for s in (0, 1)])
    assert not found.split
    assert found.row_keys == ["loss.alpha"]
    assert means(found) == {(0.5,): 60.5, (1.0,): 60.5}


def test_commits_split_rows_and_differences() -> None:
    rows = [row(0.5, 0, 60, A), row(1.0, 0, 61, A), row(0.5, 1, 70, B), row(1.0, 1, 75, f"{B}+dirty")]
    found = summary(rows)
    assert found.split
    assert means(found) == {
        (0.5, "aaaaaaa"): 60,
        (1.0, "aaaaaaa"): 61,
        (0.5, "bbbbbbb"): 70,
        (1.0, "bbbbbbb+"): 75,
    }
    first = {r.values: found.difference(r, found.baseline(r), "linear.top1") for r in found.rows}
    difference = first[0.5, "aaaaaaa"]
    assert difference is not None
    assert difference.mean == -1
    assert first[0.5, "bbbbbbb"] is None  # its baseline is of other code
    assert "several code versions" in notes(Summary(found.study, [], found.row_keys))[-1]


def test_code_without_a_commit_is_told_apart_by_its_sources() -> None:
    rows = [row(0.5, s, 60 + s, f"0.1.0:{sources}") for s, sources in enumerate(("1" * 64, "2" * 64))]
    assert means(summary(rows)) == {(0.5, "0.1.0:1111111"): 60, (0.5, "0.1.0:2222222"): 61}


@pytest.mark.parametrize("protocol", ["linear cached", "finetuned", "linear 1percent", "finetuned 10percent", "knn"])
def test_protocols_split_rows(protocol: str) -> None:
    found = summary([row(0.5, 0, 60, A), row(0.5, 1, 80, A, protocol), row(1.0, 0, 61, A), row(1.0, 1, 62, A)])
    assert means(found)[0.5, "aaaaaaa then linear"] == 60
    assert means(found)[0.5, f"aaaaaaa then {protocol}"] == 80


def test_evaluations_of_one_stage_are_columns_of_their_own() -> None:
    evals = {
        "linear": EvalPart(stage="linear", config="l.yaml"),
        "knn": EvalPart(stage="knn", config="k.yaml"),
        "segmentation": EvalPart(stage="segmentation", config="s.yaml"),
        "finetuned": EvalPart(stage="segmentation", config="s.yaml", set={"finetune": True}),
    }
    report = ReportPart(vary="loss.alpha", baseline=1.0, x="linear.top1", y="segmentation.miou")
    study = Study(
        name="made",
        question="?",
        pretrain=PretrainPart(config="p.yaml", grid={"loss.alpha": [0.5, 1.0], "seed": [0]}, controls={}),
        evals=evals,
        report=report,
    )
    scores = {
        "linear": ("top1", "linear"),
        "knn": ("top1", "knn"),
        "segmentation": ("miou", "frozen linear"),
        "finetuned": ("miou", "finetuned linear"),
    }
    rows = []
    for alpha in (0.5, 1.0):
        for place, (name, (score, protocol)) in enumerate(scores.items()):
            one = row(alpha, 0, 0.0, A, protocol) | {"eval.name": name, "score.top1": None, "score.miou": None}
            rows.append(one | {f"score.{score}": 10 * place + alpha})
    found = summarize(pd.DataFrame(rows), study, study.scores)
    table = results_table(found)
    assert not found.split  # different evaluations may differ in protocol, they are never averaged
    assert table.header[2::2] == ["linear top-1 (%)", "kNN top-1 (%)", "segmentation mIoU (%)", "finetuned mIoU (%)"]
    assert [line[2::2] for line in table.blocks[0]] == [
        ["0.5", "10.5", "20.5", "30.5"],
        ["1.0", "11.0", "21.0", "31.0"],
    ]


def test_an_unfinished_point_counts_to_what_it_can_become() -> None:
    rows = [row(0.5, 0, 60, f"{A} {B}"), row(0.5, 1, 0, A, state="running"), row(1.0, 0, 0, "", state="new")]
    assert list(version_of_each_point(pd.DataFrame(rows))) == ["aaaaaaa then bbbbbbb"] * 3


def test_two_results_for_one_seed() -> None:
    same = [row(0.5, 0, 60, A), row(0.5, 0, 60, A), row(0.5, 1, 61, A)]
    found = summary(same)
    assert found.rows[0].scores["linear.top1"].by_seed == {(0,): 60, (1,): 61}
    assert found.contradictions == []
    found = summary([*same, row(0.5, 0, 65, A), row(0.5, 0, 60, A)])
    cell = found.rows[0].scores["linear.top1"]
    assert cell.by_seed == {(1,): 61}
    assert cell.gaps == {"contradictory": 1}
    assert found.contradictions == ["linear top-1 at loss.alpha = 0.5, seed = 0: 60 and another value; neither counts"]


def test_a_split_table_says_so() -> None:
    rows = [
        row(a, s, 60 + s, A if s else B) | {"eval.name": name, "score.miou": 1.0}
        for a in (0.5, 1.0)
        for s in (0, 1)
        for name in ("linear", "segmentation")
    ]
    study = a_study()
    table = results_table(summarize(pd.DataFrame(rows), study, study.scores))
    assert table.header[:3] == ["loss.alpha", "version", "n"]
    assert [line[1] for line in table.blocks[0]] == ["bbbbbbb", "bbbbbbb", "aaaaaaa", "aaaaaaa"]


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("loss.alpha", [1, 0.5], [0.5, 1]),
        ("loss.num_matches", ["[20, 4]", "[4, 4]"], ["[4, 4]", "[20, 4]"]),
        ("loss.feature_matches", ["[0, 0]", "[20, 4]"], ["[20, 4]", "[0, 0]"]),  # 0: all of them
        ("train.duration", ["300 steps", "20 steps"], ["20 steps", "300 steps"]),
        ("model.expander", ["512-512", "64-64"], ["64-64", "512-512"]),
        ("loss.num_matches", ["[4, 20]", "[20, 4]"], None),  # one number grows, the other falls
        ("model.local_stages", ["[-1]", "[-2, -1]"], None),
        ("train.duration", ["3 epochs", "20 steps"], None),
        ("views.flip", [True, False], None),
        ("loss.local", ["none", "both"], None),
        ("model.backbone", ['{"name": "resnet18"}', '{"name": "resnet50"}'], None),
    ],
)
def test_the_order_of_values(key: str, values: list[object], expected: list[object] | None) -> None:
    order = order_of(key, values)
    assert (None if order is None else sorted(order, key=order.__getitem__)) == expected
