"""Tables as Markdown, HTML, LaTeX (booktabs) and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import markup


@dataclass(frozen=True)
class Table:
    """A header, and blocks of lines that are set apart from each other; every line is as long as the header."""

    header: list[str]
    blocks: list[list[list[str]]]

    @property
    def is_text(self) -> list[bool]:
        """For each column, whether it reads from the left: the first one, and words alone."""
        columns = zip(*(line for block in self.blocks for line in block), strict=True)
        words = [any(cells) and all(cell.lstrip("*")[:1].isalpha() for cell in cells if cell) for cells in columns]
        return [True, *words[1:]] if words else [True] * len(self.header)


def to_markdown(table: Table) -> str:
    """A table whose source lines up too; an empty row between blocks."""
    lines: list[list[str]] = []
    for block in table.blocks:
        lines += [[""] * len(table.header)] * bool(lines) + block
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [table.header, *lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(table.header))]
    first, *rest = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    ends = ["-" if is_text else ":" for is_text in table.is_text]
    rule = "|" + "|".join("-" * (width + 1) + end for width, end in zip(widths, ends, strict=True)) + "|"
    return "\n".join([first, rule, *rest])


def to_html(table: Table) -> str:
    """In a box that scrolls sideways by itself on a narrow screen."""
    kinds = [' class="text"' if is_text else "" for is_text in table.is_text]
    named = zip(table.header, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{markup.to_html(cell)}</th>' for cell, kind in named)
    bodies = ["".join(f"<tr>{_html_line(line, kinds)}</tr>\n" for line in block) for block in table.blocks]
    inner = "".join(f"<tbody>\n{body}</tbody>\n" for body in bodies)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n{inner}</table></div>'


def _html_line(line: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = map(markup.to_html, line)
    cells = (f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
    return f'<th scope="row" class="text">{first}</th>' + "".join(cells)


def to_latex(table: Table, note: str = "") -> str:
    r"""A tabular for \input into a table; it needs \usepackage{booktabs} alone. The note becomes a comment."""
    columns = "".join("l" if is_text else "r" for is_text in table.is_text)
    blocks = ["".join(_latex_line(line) for line in block) for block in table.blocks]
    comment = "".join(f"% {line}\n" for line in _ascii(note).splitlines())
    return (
        f"% \\usepackage{{booktabs}}\n{comment}\\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n\\toprule\n"
        + _latex_line(table.header)
        + "\\midrule\n"
        + "\\midrule\n".join(blocks)
        + "\\bottomrule\n\\end{tabular}\n"
    )


def _latex_line(line: Sequence[str]) -> str:
    return " & ".join(map(markup.to_latex, line)) + " \\\\\n"


def _ascii(text: str) -> str:
    words = {"±": "+-", "Δ": "Delta", "α": "alpha", "−": "-", "–": "-"}
    return "".join(words.get(c, c if c.isascii() else "?") for c in markup.plain(text))
