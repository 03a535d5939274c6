"""index.html: whole in one file, the same text as the README; looked at in a browser where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.report import write_report
from tests.analysis.browser import CHROMIUM, Browser

VOID = {"meta", "img", "br", "path", "use", "rect", "input"}


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


@pytest.fixture(scope="module")
def reports() -> list[Path]:
    """The report, once it is written: that takes longer than looking at it."""
    return []


@pytest.fixture
def report(reports: list[Path], request: pytest.FixtureRequest) -> Path:
    """With every figure that fake runs have data for, a training curve included."""
    if reports:
        return reports[0]
    graph = request.getfixturevalue("fill")(
        lambda a, s: 10.0 + s if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a
    )
    for point in graph.points:
        for step in (10, 20, 30):
            point.pretrain.run.append_metrics({"step": step, "loss": 30.0 - step / 2, "rank_pooled": 5.0 + step})
        with open(point.pretrain.run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 40, "lo')  # a kill
        result = point.pretrain.run.path / "result.json"
        result.write_text(result.read_text().replace("{", '{"steps": 30,', 1))
    reports.append(write_report("study.yaml").resolve())
    return reports[0]


def test_the_page_is_whole(report: Path) -> None:
    text = (report / "index.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    figures = {path.stem for path in report.glob("*.svg")}
    assert figures == {"tradeoff", "scores", "training", "diagnostics"}
    assert len(re.findall(r' role="(img|group)" aria-label="', text)) == len(figures)
    assert len(set(outline.ids)) == len(outline.ids)
    inner = [target for target in outline.targets if target.startswith("#")]
    assert {target[1:] for target in inner} <= set(outline.ids)
    for target in outline.targets:
        assert target.startswith("#") or (report / target).is_file()  # nothing from a network
    assert "@import" not in text
    curves = text[text.index('aria-label="Training curves') :].partition("</svg>")[0]
    assert len(set(re.findall(r'<a class="point" href="#run-(\w+)">', curves))) == 6  # each run of the grid
    assert re.findall("<script.*?>", text) == ['<script type="application/json" id="fields">', "<script>"]
    in_readme = re.findall(r"^#+ (.*)$", (report / "README.md").read_text(), flags=re.MULTILINE)
    assert outline.headings == [*in_readme, "Runs"]
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    for name in ("tradeoff", "training"):
        assert (report / f"{name}.png").is_file()


@pytest.fixture
def browser() -> Iterator[Callable[..., Browser]]:
    """Open pages in a real browser, without a network."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: make install-report")
    with ExitStack() as pages:
        yield lambda *arguments, **named: pages.enter_context(Browser(*arguments, **named))


def photograph(page: Browser, to: Path) -> np.ndarray:
    with Image.open(page.photograph(to)) as image:
        return np.asarray(image.convert("L"), dtype=float)


@pytest.mark.slow
def test_light_and_dark(report: Path, tmp_path: Path, browser: Callable[..., Browser]) -> None:
    pages = [browser(report / "index.html", 1000, 1600, dark=dark) for dark in (False, True)]
    light, dark = (photograph(page, tmp_path / "page.png") for page in pages)
    assert light.shape == dark.shape == (1600, 1000)
    assert np.median(light) > 240
    assert np.median(dark) < 40
    for shot, paper in ((light, np.median(light)), (dark, np.median(dark))):
        assert (np.abs(shot - paper) > 100).mean() > 0.005  # ink that contrasts with the paper
    # The figure's own paper is the page's: no white card at night.
    assert (dark > 200).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 768, 390])
def test_only_tables_and_figures_scroll_sideways(report: Path, browser: Callable[..., Browser], width: int) -> None:
    page = browser(report / "index.html", width, 800, phone=width < 500)
    assert page.run("document.documentElement.scrollWidth") == width
    wide = "e => e.getBoundingClientRect().right > innerWidth && !e.closest('.table, figure, pre')"
    assert page.run(f"[...document.querySelectorAll('main *, nav *')].filter({wide}).map(e => e.outerHTML)") == []


@pytest.mark.slow
def test_a_point_shows_its_run_and_leads_to_it(report: Path, browser: Callable[..., Browser]) -> None:
    page = browser(report / "index.html")
    tip, row = "document.getElementById('tip')", "document.querySelector('tr.chosen')"
    assert page.run(f"{tip}.hidden")
    at = "r => document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)?.closest('a')"
    uncovered = f"a => {{ a.scrollIntoView({{block: 'center'}}); return ({at})(a.getBoundingClientRect()) === a }}"
    seed, mean = (
        f"[...document.querySelectorAll('a.point[href^=\"#{kind}-\"]')].find({uncovered})"
        for kind in ("run", "setting")
    )
    page.hover(seed)
    page.wait(f"!{tip}.hidden")
    run = page.run(f"{seed}.getAttribute('href').slice(5)")
    alpha, number, top1, top5, _ = page.run(f"[...document.getElementById('run-{run}').cells].map(c => c.textContent)")
    text = page.run(f"{tip}.textContent")
    assert text == f"α = {alpha}, seed {number}: linear top-1 {top1}, linear top-5 {top5}; run {run}"
    page.hover(mean)
    page.wait(f"{tip}.textContent.includes('mean of n = 2: linear top-1 ')")
    page.click(seed)
    page.wait(row)  # the page follows the link in its own time
    assert page.run(f"{row}.dataset.run") == run
    own = page.run(f"{row}.nextSibling.textContent")
    assert f"pretrain.seed{number}" in own
    assert "linear.result.top1" in own
    top = page.run(f"{row}.getBoundingClientRect().top")
    assert 0 < top < 900
    page.hover("document.querySelector('h1')")
    page.wait(f"{tip}.hidden")


@pytest.mark.slow
def test_the_keyboard_reaches_points_and_headers(report: Path, browser: Callable[..., Browser]) -> None:
    page = browser(report / "index.html")
    page.run("document.querySelector('a.point').focus()")
    assert not page.run("document.getElementById('tip').hidden")
    head = "document.querySelectorAll('.runs th')[2]"
    page.run(f"{head}.querySelector('button').focus()")
    page.press("Enter", 13)
    page.wait(f"{head}.getAttribute('aria-sort') === 'ascending'")


@pytest.mark.slow
def test_tables_sort_by_number_and_filter(report: Path, browser: Callable[..., Browser]) -> None:
    page = browser(report / "index.html")
    table = "document.querySelector('#scores ~ .table table')"
    column = f"[...{table}.tBodies[0].rows].map(row => row.cells[%d].textContent)"
    scores = page.run(column % 2)
    assert [score[:4] for score in scores] == ["50.5", "60.5", "70.5", "", "10.5"]  # the control is set apart
    for expected, order in (("ascending", [0, 1, 2]), ("descending", [2, 1, 0])):
        page.click(f"{table}.querySelectorAll('th button')[2]")
        assert page.run(f"{table}.querySelectorAll('th')[2].getAttribute('aria-sort')") == expected
        assert page.run(column % 2) == [*(scores[i] for i in order), *scores[3:]]
    field = "document.querySelector('#runs input')"
    page.click(field)
    page.type("no pretraining")
    shown = "[...document.querySelectorAll('.runs tbody tr')].filter(row => !row.hidden).length"
    assert page.run(shown) == 2
    assert page.run("document.querySelector('#runs output').textContent") == "2 of 8 rows"


@pytest.mark.slow
def test_print_cuts_no_table(report: Path, browser: Callable[..., Browser]) -> None:
    page = browser(report / "index.html")
    page.resize(680, 1000)  # A4 within its margins
    page.send("Emulation.setEmulatedMedia", media="print")
    cut = "e => e.getBoundingClientRect().right > innerWidth + 1"
    assert page.run(f"[...document.querySelectorAll('table, figure svg')].filter({cut}).length") == 0
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
