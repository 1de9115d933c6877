"""Tables of text for a terminal: aligned, also where characters are two cells wide, and no wider than it.

Owns the layout; what stands in the cells is the caller's. Called by what has a `text/plain` form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wcwidth import wcswidth, wcwidth

GAP = "  "

# Control characters, which a terminal obeys, halves of characters, and what turns the direction of a line.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+")


Cut = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: What stands above it.
        is_number: It stands to the right, and is never cut.
        least: How many cells are left of it where the table is too wide; None leaves it as it is.
        cut: Where its texts lose what has no room: away from what tells them apart.
        yields: It becomes narrower before those that don't.
    """

    heading: str
    is_number: bool = False
    least: int | None = None
    cut: Cut = "end"
    yields: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table, headings first; columns that can be narrower share what `width` leaves them."""
    cells = [[one_line(text) for text in row] for row in rows]
    widths = _widths(columns, cells)
    _narrow(columns, widths, width - len(GAP) * (len(columns) - 1))
    headings = [
        fitted(column.heading, room, is_right=column.is_number)
        for column, room in zip(columns, widths, strict=True)
    ]
    lines = [
        [
            fitted(text, room, is_right=column.is_number, cut=column.cut)
            for text, room, column in zip(line, widths, columns, strict=True)
        ]
        for line in cells
    ]
    return [GAP.join(line).rstrip() for line in (headings, *lines)]


def least_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """How narrow the table of these can be."""
    widths = _widths(columns, [[one_line(text) for text in row] for row in rows])
    _narrow(columns, widths, 0)
    return sum(widths) + len(GAP) * (len(columns) - 1)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
    """How many cells of a terminal each column would take."""
    texts = [[column.heading for column in columns], *cells]
    return [max(map(width_of, column)) for column in zip(*texts, strict=True)]


def _narrow(columns: Sequence[Column], widths: list[int], room: int) -> None:
    """Take from the widest that can be narrower, one by one, until all of them have room."""
    while sum(widths) > room:
        spare = [
            (column.yields, widths[at], at)
            for at, column in enumerate(columns)
            if column.least is not None and widths[at] > max(column.least, 1)
        ]
        if not spare:
            return
        widths[max(spare)[-1]] -= 1


def width_of(text: str) -> int:
    """How many cells of a terminal a printable text takes."""
    return len(text) if text.isascii() else max(0, wcswidth(text))


def fitted(text: str, width: int, *, is_right: bool = False, cut: Cut = "end") -> str:
    """`text` in `width` cells exactly: filled up with spaces, or cut with an ellipsis."""
    text = shortened(text, width, cut)
    space = " " * (width - width_of(text))
    return space + text if is_right else text + space


def shortened(text: str, width: int, cut: Cut = "end") -> str:
    """`text` in `width` cells at most; an ellipsis stands for what was cut."""
    if width_of(text) <= width:
        return text
    if width < 1:
        return ""
    room = width - 1
    behind = {"start": room, "middle": room // 2, "end": 0}[cut]
    end = _beginning(text[::-1], behind)[::-1].lstrip().removeprefix("\N{ZERO WIDTH JOINER}")
    start = _beginning(text, room - behind).rstrip().removesuffix("\N{ZERO WIDTH JOINER}")
    return f"{start}\N{HORIZONTAL ELLIPSIS}{end}"


def _beginning(text: str, width: int) -> str:
    """As many of the first characters as have room."""
    used = 0
    for at, character in enumerate(text):
        used += max(0, wcwidth(character))
        if used > width:
            return text[:at]
    return text


def one_line(text: str) -> str:
    """`text` in one line, without what a terminal or the direction of writing would obey."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())
