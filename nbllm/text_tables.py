"""Tables of text for a terminal: aligned, also where characters are two cells wide, and no wider than it.

Owns the layout; what stands in the cells is the caller's. Called by what has a `text/plain` form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wcwidth import wcswidth, wcwidth

GAP = "  "

# Control characters, which a terminal obeys, halves of characters, and what turns the direction of a line.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: What stands above it.
        is_number: It stands to the right, and is never cut.
        least: How many cells are left of it where the table is too wide; None leaves it as it is.
    """

    heading: str
    is_number: bool = False
    least: int | None = None


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table, headings first; columns that can be narrower share what `width` leaves them."""
    cells = [[one_line(text) for text in row] for row in rows]
    texts = [[column.heading for column in columns], *cells]
    widths = [max(map(width_of, column)) for column in zip(*texts, strict=True)]
    _narrow(columns, widths, width - len(GAP) * (len(columns) - 1))
    return [
        GAP.join(
            fitted(text, cell_width, is_right=column.is_number)
            for text, cell_width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in texts
    ]


def _narrow(columns: Sequence[Column], widths: list[int], room: int) -> None:
    """Take from the widest that can be narrower, one by one, until all of them have room."""
    while sum(widths) > room:
        spare = [
            (widths[at], at)
            for at, column in enumerate(columns)
            if column.least is not None and widths[at] > max(column.least, 1)
        ]
        if not spare:
            return
        widths[max(spare)[1]] -= 1


def width_of(text: str) -> int:
    """How many cells of a terminal a printable text takes."""
    return len(text) if text.isascii() else max(0, wcswidth(text))


def fitted(text: str, width: int, *, is_right: bool = False) -> str:
    """`text` in `width` cells exactly: filled up with spaces, or cut with an ellipsis."""
    text = shortened(text, width)
    space = " " * (width - width_of(text))
    return space + text if is_right else text + space


def shortened(text: str, width: int) -> str:
    """`text` in `width` cells at most; an ellipsis stands for what was cut."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += max(0, wcwidth(character))
        if used > width - 1:
            break
        kept.append(character)
    kept_text = "".join(kept).rstrip().removesuffix("\N{ZERO WIDTH JOINER}")
    return f"{kept_text}\N{HORIZONTAL ELLIPSIS}" if width > 0 else ""


def one_line(text: str) -> str:
    """`text` in one line, without what a terminal or the direction of writing would obey."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())
