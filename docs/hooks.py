"""What mkdocs.yml needs beside plugins: pages from the whole checkout, and comments of fields as their docstrings."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(?:\]\(|(?:href|src)=")([^)"#:\s]+)')  # of Markdown or HTML, to a file
INTERACTIVE = "interactive.html"  # a report's own page, beside the one made of its README.md
FILE_OF_CODE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)  # as ```python eval/class_mean.py


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the navigation's pages from anywhere in the checkout, the files that they link to, and the library's API."""
    pages = {path for entry in _entries(config.nav) for path in ROOT.glob(entry)}
    reports = {html for page in pages if (html := page.with_name("index.html")).is_file()}
    texts = {path: path.read_text("utf-8") for path in pages | reports}
    linked = {(path.parent / link).resolve() for path, text in texts.items() for link in LINK.findall(text)}
    for path in pages | linked - reports:
        if path.is_file() and path.is_relative_to(ROOT):
            files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
    for path in reports:  # MkDocs makes index.html of README.md, so that they need another name
        text = texts[path].replace("index.html#", f"{INTERACTIVE}#")
        files.append(File.generated(config, _uri(path.with_name(INTERACTIVE)), content=text))
    for path in ROOT.glob("vicregl/[a-z]*.py"):
        text = f"# vicregl.{path.stem}\n\n::: vicregl.{path.stem}\n"
        files.append(File.generated(config, f"api/{path.stem}.md", content=text))
    uris = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = [{title: _filled_in(value, uris) for title, value in item.items()} for item in config.nav or []]
    return files


def _uri(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _entries(part)


def _filled_in(section: Any, uris: list[str]) -> Any:
    """Replace patterns by the pages that match; what matches none stays, for MkDocs to refuse."""
    if isinstance(section, str):
        return section
    found = [fnmatch.filter(uris, entry) if isinstance(entry, str) else [] for entry in section]
    return [page for entry, pages in zip(section, found, strict=True) for page in pages or [entry]]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name the file of a code block above it, and link a report to its page with sortable tables."""
    if files.get_file_from_path(posixpath.join(posixpath.dirname(page.file.src_uri), INTERACTIVE)):
        title, _, text = markdown.partition("\n")
        markdown = f"{title}\n\n[The interactive page]({INTERACTIVE}): points lead to their rows, tables sort.\n{text}"
    return FILE_OF_CODE.sub(r'```\1 title="\2"', markdown)


class Comments(griffe.Extension):
    """Takes comments of fields as their docstrings, and shows what a reader of the API needs."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Document a field by the comment at the end of its line, or above it."""
        lines = attr.lines_collection[attr.filepath]
        comment = [lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()]
        if not comment[0]:
            above = takewhile(lambda line: line.startswith("#"), map(str.strip, reversed(lines[: node.lineno - 1])))
            comment = list(above)[::-1]
        text = "\n".join(line.removeprefix("#").strip() for line in comment)
        if text and not attr.docstring:
            attr.docstring = griffe.Docstring(text, parent=attr)
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "added_later":
            attr.value = attr.value.arguments[0]  # the default
        if attr.labels == {"instance-attribute"} and attr.value is not None and not attr.docstring:
            attr.public = False  # set in __init__, for the class itself

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Show the keys of a config alone; of other classes, the methods that are documented."""
        is_config = any(str(base).endswith("Config") for base in cls.bases)
        for member in cls.members.values():
            if is_config:
                member.public = "instance-attribute" in member.labels
            elif member.is_function:
                member.public = member.has_docstring and not member.name.startswith("_")

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """Show a command in the docstring as code, and a class on the page of its own module alone."""
        if mod.docstring:
            mod.docstring.value = re.sub("^python -m", "    python -m", mod.docstring.value, flags=re.MULTILINE)
        if mod.exports:
            mod.exports = [name for name in mod.exports if not mod.members[str(name)].is_alias]
