"""How results are written: tables as Markdown and LaTeX, pages as Markdown from a template, and that as HTML.

Every text of a report is Markdown: **bold**, *italic*, `code` and [text](target); LaTeX and HTML are made of it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Generic, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

TEMPLATES = Path(__file__).with_name("templates")
R = TypeVar("R")

# The dialect of git forges, as far as reports use it. HTML within Markdown is shown as the text that it is.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
# Wide tables scroll by themselves on a narrow screen.
_MARKDOWN.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')
_MARKDOWN.add_render_rule("table_close", lambda *_: "</table></div>\n")

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "α": r"$\alpha$",
        "γ": r"$\gamma$",
        "λ": r"$\lambda$",
        "μ": r"$\mu$",
        "ν": r"$\nu$",
        "†": r"$^\dagger$",
        "Δ": r"$\Delta$",
        "×": r"$\times$",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)
_LATEX_MARKS = {"strong_open": r"\textbf{", "em_open": r"\emph{", "strong_close": "}", "em_close": "}"}
_ASCII = str.maketrans(
    {"±": "+-", "−": "-", "–": "-", "†": "+"}
    | {"Δ": "Delta", "α": "alpha", "γ": "gamma", "λ": "lambda", "μ": "mu", "ν": "nu"}
)
_HEADER_LETTERS = 12  # in a line of a header in LaTeX, unless a word is longer


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table of rows R: its name, its text in Markdown, and what it holds in a CSV file, by field."""

    name: str
    text: Callable[[R], str]
    fields: Callable[[R], dict[str, Any]] = lambda row: {}


@dataclass(frozen=True)
class Table:
    """A header, and blocks of lines that are set apart from each other; every line is as long as the header."""

    header: list[str]
    blocks: list[list[list[str]]]

    @classmethod
    def of(cls, columns: Sequence[Column[R]], *blocks: Sequence[R]) -> Table:
        lines = [[[column.text(row) for column in columns] for row in block] for block in blocks]
        return cls([column.name for column in columns], [block for block in lines if block])

    @property
    def is_text(self) -> list[bool]:
        """For each column, whether it is aligned to the left: the first one, and those of words alone."""
        columns = zip(*(line for block in self.blocks for line in block), strict=True)
        words = [any(cells) and all(cell.lstrip("*")[:1].isalpha() for cell in cells if cell) for cells in columns]
        return [True, *words[1:]] if words else [True] * len(self.header)


def to_markdown(table: Table) -> str:
    """Return a table whose columns line up in the source too, with an empty row between blocks."""
    lines: list[list[str]] = []
    for block in table.blocks:
        lines += [[""] * len(table.header)] * bool(lines) + block
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [table.header, *lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(table.header))]
    first, *rest = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    ends = ["-" if is_text else ":" for is_text in table.is_text]
    rule = "|" + "|".join("-" * (width + 1) + end for width, end in zip(widths, ends, strict=True)) + "|"
    return "\n".join([first, rule, *rest])


def to_latex(table: Table, note: str = "") -> str:
    r"""Return a table as wide as the line, for \input into a table or table*; the note becomes a comment.

    It needs \usepackage{booktabs,tabularx}. Columns of words share the width that the numbers leave.
    """
    words = r">{\raggedright\arraybackslash}X"
    columns = "".join(words if is_text else "r" for is_text in table.is_text)
    header = [
        _latex(n) if is_text else _latex_header(n) for n, is_text in zip(table.header, table.is_text, strict=True)
    ]
    blocks = ["".join(_latex_line(map(_latex, line)) for line in block) for block in table.blocks]
    plain = "".join(token.content for token in _inline(note)).translate(_ASCII)
    comment = "".join(f"% {_ascii(line)}\n" for line in plain.splitlines())
    return (
        f"% \\usepackage{{booktabs,tabularx}}\n{comment}\\begingroup\\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}%\n"
        f"\\begin{{tabularx}}{{\\linewidth}}{{@{{}}{columns}@{{}}}}\n\\toprule\n"
        + _latex_line(header)
        + "\\midrule\n"
        + "\\midrule\n".join(blocks)
        + "\\bottomrule\n\\end{tabularx}\\par\\endgroup\n"
    )


def _latex_header(name: str) -> str:
    """Return the name of a column of numbers in a few short lines."""
    lines = [_latex(line) for line in wrap(name, _HEADER_LETTERS, break_long_words=False, break_on_hyphens=False)]
    stacked = r" \\{} ".join(lines)  # {}: a line such as [4, 4] would be an option of the \\
    return stacked if len(lines) < 2 else rf"\shortstack[r]{{{stacked}}}"


def _latex_line(cells: Iterable[str]) -> str:
    r"""Return a row. A first cell such as [4, 4] would be an option of the \\ or \midrule before it, a * its star."""
    line = " & ".join(cells)
    return f"{'{}' if line.startswith(('[', '*')) else ''}{line} \\\\\n"


def _latex(markdown: str) -> str:
    """Return LaTeX for text mode; a character that its fonts may lack becomes a question mark rather than an error."""
    parts = []
    for token in _inline(markdown):
        text = _ascii(token.content.translate(_LATEX))
        parts.append(_LATEX_MARKS.get(token.type, rf"\texttt{{{text}}}" if token.type == "code_inline" else text))
    return "".join(parts)


def _inline(markdown: str) -> Sequence[Token]:
    return _MARKDOWN.parseInline(markdown)[0].children or []


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def from_template(template: str, **variables: Any) -> str:
    """Fill a file of templates/. A variable that is missing is an error, never an empty place."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown; page.html.j2 escapes its one text itself
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["table"] = to_markdown
    return environment.get_template(template).render(variables)


def to_html(title: str, markdown: str, folder: Path) -> str:
    """Return a page of Markdown as one file with the images of `folder` in it, which needs no server and no network."""
    tokens = _MARKDOWN.parse(markdown)
    _mark_headers(tokens)
    _make_figures(tokens, folder)
    body = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return from_template("page.html.j2", title=title, style=style, body=body)


def _mark_headers(tokens: Sequence[Token]) -> None:
    """Mark the headers of columns and of rows, for screen readers; Markdown knows headers of columns alone."""
    for i, token in enumerate(tokens):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and tokens[i - 1].type == "tr_open":
            token.tag = tokens[i + 2].tag = "th"
            token.attrSet("scope", "row")


def _make_figures(tokens: list[Token], folder: Path) -> None:
    """Turn a paragraph that is an image alone into a figure, and the paragraph after it into the caption."""
    for i in reversed(range(len(tokens))):
        children = tokens[i].children or []
        if [child.type for child in children] != ["image"]:
            continue
        image = children[0]
        drawing = _embedded(folder / str(image.attrGet("src")), image.content)
        caption = tokens[i + 3]  # after the end of this paragraph and the start of the next
        opening, closing = f"<figure>\n{drawing}\n<figcaption>", "</figcaption>\n</figure>\n"
        tokens[i - 1 : i + 5] = [_raw(opening), caption, _raw(closing)]


def _raw(text: str) -> Token:
    return Token("html_block", "", 0, content=text)


def _embedded(file: Path, alt: str) -> str:
    """Return an image as an element of the page: the SVG beside the PNG where there is one, else the pixels."""
    drawing = file.with_suffix(".svg")
    if drawing.is_file():
        return _inline_svg(drawing.read_text(encoding="utf-8"), file.stem, alt)
    content = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{html.escape(alt)}">'


def _inline_svg(text: str, name: str, alt: str) -> str:
    """Drop the XML head, and prefix the ids, because all figures of the page share one name space."""
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
