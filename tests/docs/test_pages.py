"""The site of `make docs`: no link of it is broken, nothing comes from elsewhere, no path of the machine is in it."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (requirements.txt has it)")

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"script", "link", "img", "iframe", "source", "audio", "video", "object", "embed"}


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As the Makefile does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []  # tag, address
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "xlink:href", "src") and tag != "use":  # <use> refers to its own picture
                self.links.append((tag, value or ""))
            elif name in ("id", "name"):
                self.anchors.add(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    """Of every page but 404.html, which a server shows in place of any address."""
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path: Links(path.read_text(encoding="utf-8")) for path in paths}


def test_every_page_is_there(pages: dict[Path, Links], site: Path) -> None:
    names = {path.relative_to(site).as_posix() for path in pages}
    modules = {f"api/{path.stem}.html" for path in ROOT.glob("vicregl/[a-z]*.py")}
    reports = {f"{path.parent.relative_to(ROOT)}/index.html" for path in ROOT.glob("reports/*/README.md")}
    benchmarks = {f"benchmarks/{path.stem}.html" for path in ROOT.glob("benchmarks/*.md")}
    guides = {"index.html", "EXTEND.html", "vicregl/index.html", "pretrain/index.html", "sweeps/index.html"}
    assert len(modules) > 10
    assert modules | reports | benchmarks | guides <= names
    front = {os.path.normpath(link) for tag, link in pages[site / "index.html"].links if tag == "a"}
    assert {"sweeps/index.html", "vicregl/index.html", "reports/index.html", "evaluations.html"} <= front


def test_no_link_is_broken(pages: dict[Path, Links]) -> None:
    """By the files alone, HTML reports included: MkDocs checks the links of Markdown."""
    broken, checked = [], 0
    for path, page in pages.items():
        for _, link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(address.path))) if address.path else path
            anchor = unquote(address.fragment)
            checked += 1
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{path}: {link}")
    assert not broken, broken[:20]
    assert checked > 5000


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Links], site: Path) -> None:
    loaded = [link for page in pages.values() for tag, link in page.links if tag in LOADED]
    assert len(loaded) > 100
    assert [link for link in loaded if re.match("(https?:)?//", link)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", styles)


def test_no_path_of_this_machine(site: Path) -> None:
    for path in site.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(ROOT).encode() not in content, path
            assert str(site.parent).encode() not in content, path


def test_the_library_is_documented(site: Path) -> None:
    """Fields by their comments; commands, shapes and stars as they are written."""
    text = re.sub("<[^>]+>", "", (site / "api/config.html").read_text(encoding="utf-8"))
    assert "weight of the global criterion; 1 is VICReg, 0 is local alone" in text
    criterion = (site / "api/criterion.html").read_text(encoding="utf-8")
    assert "loss = w * sum(global_*) + (1 - w) * sum(local_*)" in re.sub("<[^>]+>", "", criterion)
    assert "<em>" not in criterion
    evaluations = (site / "evaluations.html").read_text(encoding="utf-8")
    assert "runs/pretrain/&lt;run&gt; --config" in re.sub("<[^>]+>", "", evaluations)


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in ("docs", "vicregl", "benchmarks", "reports", "eval", "data", "pretrain", "sweeps", "runtime"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    for path in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(path, folder)
    with (folder / "EXTEND.md").open("a", encoding="utf-8") as page:
        page.write("\n[page](gone.md) ![picture](gone.png) [source](gone.py) [section](README.md#gone)\n")
    done = build(folder, tmp_path / "site")
    assert done.returncode == 1
    named = [line for line in done.stderr.splitlines() if "'EXTEND.md' contains a link '" in line]
    links = {re.findall("link '(.*?)'", line)[0] for line in named}
    assert links == {"gone.md", "gone.png", "gone.py", "README.md#gone"}, done.stderr
