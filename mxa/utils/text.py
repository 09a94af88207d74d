"""Text from outside, as it is shown: file names, labels and cells may hold what a terminal or a page obeys."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["for_csv", "for_markdown", "printable", "without_formulas"]


def printable(text: object) -> str:
    r"""Writes control characters, marks of direction and what is no character as escapes such as ``\x1b``.

    Example:
        >>> print(printable("a\x1b[2Jb\n"))
        a\x1b[2Jb\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def for_markdown(text: object) -> str:
    """Writes text so that Markdown shows it as it is: no link, picture, code, HTML or cell of a table begins in it."""
    return re.sub(r"[\\`*<\[|]", r"\\\g<0>", printable(text))


def for_csv(value: object) -> object:
    """Puts a quote before text that a spreadsheet would take for a formula; other values stay as they are.

    Words after a plus or minus, such as ``+ MXA``, are not taken for one.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    formula = text.startswith(("=", "@")) or (text.startswith(("+", "-")) and not re.fullmatch(r"[\w +.-]*", text))
    return f"'{text}" if formula else text


def without_formulas(figure: Any) -> Any:
    """Makes matplotlib draw every text of a figure as it is; else ``$`` would begin a formula. Returns the figure."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)
    return figure
