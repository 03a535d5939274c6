"""A report as a list of blocks, and those blocks as the README.md of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import render
from analysis.render import Table


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    """<name>.png, .svg and .pdf beside the page."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Photo:
    """A PNG beside the page, by its path from there: pixels, where a figure is lines and text."""

    path: str
    alt: str
    caption: str


Block = Heading | Paragraph | Items | Code | Picture | Photo | Table


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Picture(name, alt, caption):
            return f"![{alt}]({name}.png)\n\n{caption}"
        case Photo(path, alt, caption):
            return f"![{alt}]({path})\n\n{caption}"
        case Table():
            return render.to_markdown(block)
