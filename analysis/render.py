"""How results are written: tables as Markdown and LaTeX, pages as Markdown from a template; page.py makes HTML of it.

Every text of a report is Markdown: **bold**, *italic*, `code` and [text](target); LaTeX and HTML are made of it.
"""

from __future__ import annotations

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
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_\allowbreak{}",  # a name such as scenes_resnet may be wider than its column
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
_SHORT = 5  # letters of a text in a LaTeX column that takes no part in sharing the width
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

    It needs \usepackage{booktabs,tabularx}. Columns of words share the width that numbers and short texts leave.
    """
    columns = "".join(_latex_columns(table))
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


def _latex_columns(table: Table) -> list[str]:
    """Return the kind of each column; the first one of texts is of words in any case, because tabularx needs one."""
    words = r">{\raggedright\arraybackslash}X"
    lines = [table.header, *(line for block in table.blocks for line in block)]
    longest = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    long = [is_text and length > _SHORT for is_text, length in zip(table.is_text, longest, strict=True)]
    if not any(long) and True in table.is_text:
        long[list(table.is_text).index(True)] = True
    return [words if is_long else "l" if is_text else "r" for is_long, is_text in zip(long, table.is_text, strict=True)]


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
    return MARKDOWN.parseInline(markdown)[0].children or []


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
