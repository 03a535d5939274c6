"""The little markup that every text of a report uses, **bold**, *italic*, `code` and [text](target), for each format.

In Markdown it is what it is already; `to_html` and `to_latex` write it for the other two.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from re import Match

_TOKENS = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<italic>[^*]+)\*|\[(?P<text>[^]]+)\]\((?P<to>[^)]+)\)"
)
_LATEX = {
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
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def to_html(text: str) -> str:
    def write(found: Match[str]) -> str:
        if found["code"]:
            return f"<code>{html.escape(found['code'])}</code>"
        if found["bold"]:
            return f"<strong>{html.escape(found['bold'])}</strong>"
        if found["italic"]:
            return f"<em>{html.escape(found['italic'])}</em>"
        return f'<a href="{html.escape(found["to"])}">{html.escape(found["text"])}</a>'

    return _convert(text, write, html.escape)


def to_latex(text: str) -> str:
    """For text mode; a character that LaTeX's fonts may lack becomes a question mark rather than an error."""

    def write(found: Match[str]) -> str:
        if found["code"]:
            return rf"\texttt{{{_latex(found['code'])}}}"
        if found["bold"]:
            return rf"\textbf{{{_latex(found['bold'])}}}"
        return rf"\emph{{{_latex(found['italic'])}}}" if found["italic"] else _latex(found["text"])

    return _convert(text, write, _latex)


def plain(text: str) -> str:
    """Without the marks, for CSV and for alternative texts."""
    return _convert(
        text, lambda found: next(filter(None, (found["code"], found["bold"], found["italic"], found["text"]))), str
    )


def _convert(text: str, write: Callable[[Match[str]], str], rest: Callable[[str], str]) -> str:
    parts, end = [], 0
    for found in _TOKENS.finditer(text):
        parts += [rest(text[end : found.start()]), write(found)]
        end = found.end()
    return "".join([*parts, rest(text[end:])])


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c if c.isascii() else "?") for c in text)
