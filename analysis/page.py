"""A page of Markdown as one HTML file: figures, style and script are in it, so it needs no server and no network.

Points of figures are links (`url` of matplotlib's artists), to a run or a setting of the page; the script (page.js)
shows what a point is, sorts and filters tables, and opens the row that a link leads to.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from analysis.render import MARKDOWN, TEMPLATES, from_template

SITE = "index.html"  # the overview, in the folder above the reports; and the name of every page


def to_html(title: str, markdown: str, folder: Path, points: Mapping[str, str] = {}, runs: str = "") -> str:
    """Return the page. `folder` has the images; `points`: what a link of a figure shows; `runs`: HTML at the end."""
    tokens = MARKDOWN.parse(markdown)
    _link_pages(tokens, folder)
    _mark_headers(tokens)
    _make_figures(tokens, folder, points)
    contents = _mark_sections(tokens) + ([("runs", "Runs")] if runs else [])
    body = _RENDERER.renderer.render(tokens, _RENDERER.options, {}) + runs
    texts = {kind: (TEMPLATES / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    home = (folder.parent / SITE).is_file()
    return from_template("page.html.j2", title=title, body=body, contents=contents, home=home, **texts)


def _renderer() -> MarkdownIt:
    """Return a renderer whose wide tables scroll by themselves, by keys too, and whose small images do not."""
    markdown = MarkdownIt("commonmark")
    markdown.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


_RENDERER = _renderer()


def _link_pages(tokens: Sequence[Token], folder: Path) -> None:
    """Have links to other reports lead from page to page, and images within text be drawings."""
    for token in itertools.chain.from_iterable(token.children or [] for token in tokens):
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            token.attrSet("href", re.sub(r"(^|/)README\.md(?=#|$)", rf"\1{SITE}", target))
        elif token.type == "image":
            drawing = Path(str(token.attrGet("src"))).with_suffix(".svg")
            token.attrs |= {"class": "small", "loading": "lazy"}
            token.attrs |= {"src": drawing.as_posix()} if (folder / drawing).is_file() else {}


def _mark_sections(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give the sections ids, and return each with its title."""
    contents = []
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            name = re.sub(r"\W+", "-", text.content.lower()).strip("-")
            heading.attrSet("id", name)
            contents.append((name, text.content))
    return contents


def _mark_headers(tokens: Sequence[Token]) -> None:
    """Mark the headers of columns and of rows, for screen readers; Markdown knows headers of columns alone."""
    for i, token in enumerate(tokens):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and tokens[i - 1].type == "tr_open":
            token.tag = tokens[i + 2].tag = "th"
            token.attrSet("scope", "row")


def _make_figures(tokens: list[Token], folder: Path, points: Mapping[str, str]) -> None:
    """Turn a paragraph that is an image alone into a figure, and the paragraph after it into the caption."""
    for i in reversed(range(len(tokens))):
        children = tokens[i].children or []
        if [child.type for child in children] != ["image"] or tokens[i - 1].type != "paragraph_open":
            continue
        image = children[0]
        drawing = _embedded(folder / str(image.attrGet("src")), image.content, points)
        caption = tokens[i + 3]  # after the end of this paragraph and the start of the next
        opening, closing = f"<figure>\n{drawing}\n<figcaption>", "</figcaption>\n</figure>\n"
        tokens[i - 1 : i + 5] = [_raw(opening), caption, _raw(closing)]


def _raw(text: str) -> Token:
    return Token("html_block", "", 0, content=text)


def _embedded(file: Path, alt: str, points: Mapping[str, str]) -> str:
    """Return an image as an element of the page: the SVG beside the PNG where there is one, else the pixels."""
    drawing = file.with_suffix(".svg")
    if drawing.is_file():
        return _inline_svg(drawing.read_text(encoding="utf-8"), file.stem, alt, points)
    content = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{html.escape(alt)}">'


def _inline_svg(text: str, name: str, alt: str, points: Mapping[str, str]) -> str:
    """Drop the XML head, prefix the ids, because all figures of the page share one name space, and name the points."""
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(<use xlink:href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r'<a xlink:href="([^"]*)"[^>]*>', lambda link: _point(html.unescape(link[1]), points), svg)
    width = re.search(r'<svg[^>]*\bwidth="([0-9.]+)pt"', svg)
    printed = float(width[1]) if width else 0.0
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # At twice its print size at most; on a phone never so small that its text is lost: it scrolls sideways instead.
    size = f"width: min(100%, {printed * 2:.0f}px); min-width: {printed * 1.25:.0f}px"
    role = "group" if 'class="point"' in svg else "img"  # screen readers pass over what is within an image
    described = f'role="{role}" aria-label="{html.escape(alt)}" style="{size}"'
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1 {described}", svg, count=1)


def _point(target: str, points: Mapping[str, str]) -> str:
    """Return the start of a point's link; where nothing is known of it, a link that leads nowhere."""
    if target not in points:
        return "<a>"
    return f'<a class="point" href="{html.escape(target)}"><title>{html.escape(points[target])}</title>'
