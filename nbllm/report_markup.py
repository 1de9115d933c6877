"""The pieces of a report's HTML: texts, folds, bars and tables, with inline styles alone.

Owns the look; the escaping is `markup`'s, and `report_html` puts the pieces together. Pure. Colours are
inherited and grounds translucent, as nobody tells whether the theme is light or dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .markup import escape

LINE = "rgba(128,128,128,0.35)"
GROUND = "rgba(128,128,128,0.12)"
WARNING = "rgba(214,60,50,0.16)"
ALARM = "rgba(214,60,50,0.9)"
ROOT = "font-size:13px;line-height:1.35;font-variant-numeric:tabular-nums;max-width:1200px"
TILE = "display:inline-block;vertical-align:top;margin:2px 0 4px;padding:0 14px 0 7px"
FIGURE = "display:block;font-size:17px;font-weight:600;white-space:nowrap"
HIDDEN = "display:none"
MUTED = "opacity:0.72"
TABLE = (
    "width:100%;min-width:620px;border-collapse:collapse;table-layout:fixed;font-size:12px;margin:2px 0 10px"
)
SUMMARY = f"padding:5px 8px;cursor:pointer;background-color:{GROUND}"
FOLD = f"border-bottom:1px solid {LINE}"
NUMBER = "padding:3px 6px"
CELL = f"{NUMBER};text-align:left;overflow:hidden"
CUT = f"{CELL};white-space:nowrap;text-overflow:ellipsis"
WRAPPED = f"{CELL};white-space:normal;overflow-wrap:break-word"
PLAIN = "margin:4px 0 0;font-size:11px;line-height:1.4;overflow-x:auto;white-space:pre"
TRACK = "white-space:nowrap;overflow:hidden;height:14px;line-height:14px;font-size:0"
THINNEST = 0.004
"""The least share of a track that a bar takes, so that it is seen."""


class Bar(NamedTuple):
    """A part of a bar: from where to where (0 to 1), in which colour, how high in pixels."""

    start: float
    end: float
    colour: str
    height: int = 10


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: What stands above it.
        share: Its part of the width in percent.
        is_number: It stands to the right.
        style: How other texts stand: cut at the edge, or in as many lines as they take.
        ruler: Bars below its heading, which tell the scale of those in it.
    """

    heading: str
    share: int
    is_number: bool = False
    style: str = CELL
    ruler: Sequence[Bar] = ()


def isolated(text: str) -> str:
    """A text from outside, which may be written from right to left: what stands beside it is not."""
    return f"<bdi>{escape(text)}</bdi>" if not text.isascii() else escape(text)


def unbroken(text: str) -> str:
    """A number that no line is broken in."""
    return escape(text.replace(" ", "\N{NO-BREAK SPACE}"))


def bars(drawn: Iterable[Bar], text: str = "") -> str:
    """Bars side by side, with room between where there is a gap.

    Args:
        drawn: The bars.
        text: What they show: seen when hovered over, and where styles are taken away.
    """
    pieces, at = [], 0.0
    for start, end, colour, height in sorted(drawn):
        start = min(start, 1.0 - THINNEST)
        if start - at < THINNEST / 4:
            start = at
        else:
            pieces.append(f'<span style="display:inline-block;width:{100 * (start - at):.2f}%"></span>')
        if end <= start:
            continue
        width = max(end - start, THINNEST)
        at = start + width
        pieces.append(
            f'<span style="display:inline-block;width:{100 * width:.2f}%;height:{height}px;'
            f'vertical-align:middle;background-color:{colour}"></span>'
        )
    hover = f' title="{html.escape(text)}"' if text else ""
    hidden = f'<span style="{HIDDEN}">{escape(text)}</span>' if text else ""
    return f'<div{hover} style="{TRACK}">{"".join(pieces)}{hidden}</div>'


def muted(markup: str) -> str:
    """What is of less weight."""
    return f'<small style="{MUTED}">{markup}</small>'


def two(first: str, second: str) -> str:
    """Two lines of a cell; the second is the lesser one."""
    return "<br>".join(line for line in (first, muted(second) if second else "") if line)


def note(text: str) -> str:
    """A line on its own about the rest."""
    return f'<div style="padding:2px 0 4px">{muted(escape(text))}</div>\n'


def marked(text: str, *, is_alarm: bool) -> str:
    """A word that is to be seen."""
    return f'<b style="background-color:{WARNING if is_alarm else GROUND};padding:0 3px">{isolated(text)}</b>'


def fold(title: str, inner: str, is_open: bool) -> str:
    """What is unfolded by a click on its title."""
    return (
        f'<details style="{FOLD}"{" open" if is_open else ""}>'
        f'<summary style="{SUMMARY}">{title}</summary>\n{inner}</details>\n'
    )


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are markup; where it is too wide, it scrolls by itself."""

    def header(column: Column) -> str:
        side = ' align="right"' if column.is_number else ""
        way = "right" if column.is_number else "left"
        style = (
            f"width:{column.share}%;padding:3px 6px;text-align:{way};font-weight:normal;white-space:normal"
        )
        inner = muted(escape(column.heading)) + (bars(column.ruler) if column.ruler else "")
        return f'<th{side} style="{style};border-bottom:1px solid {LINE}">{inner}</th>'

    def cell(column: Column, inner: str) -> str:
        if column.is_number:
            return f'<td align="right" style="{NUMBER}">{inner}</td>'
        return f'<td style="{column.style}">{inner}</td>'

    heading = "".join(map(header, columns))
    body = "\n".join(
        f"<tr>{''.join(cell(column, inner) for column, inner in zip(columns, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div style="overflow-x:auto"><table style="{TABLE}"><thead><tr>{heading}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )
