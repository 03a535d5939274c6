"""The same blocks as index.html: one file that needs no server and no network, for light and dark, screen and phone."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from analysis import markup, render
from analysis.page import Block, Code, Heading, Items, Paragraph, Photo, Picture
from analysis.render import Table

STYLE = Path(__file__).with_name("page.css")


def to_html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The page; the figures' .svg files of the folder are written into it."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{markup.to_html(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{markup.to_html(text)}</p>"
        case Items(texts):
            return "<ul>\n" + "".join(f"<li>{markup.to_html(text)}</li>\n" for text in texts) + "</ul>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Picture(name, alt, caption):
            drawing = _inline_svg((folder / f"{name}.svg").read_text(encoding="utf-8"), name, alt)
            return f"<figure>\n{drawing}\n<figcaption>{markup.to_html(caption)}</figcaption>\n</figure>"
        case Photo(path, alt, caption):
            content = base64.b64encode((folder / path).read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{content}" alt="{html.escape(alt)}">'
            return f"<figure>\n{image}\n<figcaption>{markup.to_html(caption)}</figcaption>\n</figure>"
        case Table():
            return render.to_html(block)


def _inline_svg(text: str, name: str, alt: str) -> str:
    """Without the XML head; its names prefixed, because all figures of the page share one space of names."""
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    width = re.search(r'<svg[^>]*\bwidth="([0-9.]+)pt"', svg)
    points = float(width[1]) if width else 0.0
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # At twice its print size at most; on a phone never so small that its text is lost: it scrolls sideways instead.
    size = f"width: min(100%, {points * 2:.0f}px); min-width: {points * 1.25:.0f}px"
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{html.escape(alt)}" style="{size}"', svg, count=1
    )
