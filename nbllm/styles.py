"""Frames of the log as tables for people: `styled`, and the `Styled` that it gives.

Owns how such a table looks, in a notebook and in a terminal. What stands in it is `frame_texts`', a text
table's layout `text_tables`'. Called by users.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import markup, text_tables
from .exceptions import UsageProblem
from .frame_texts import Column, Table, table_of

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMN = 24
"""How many cells of a terminal a column of texts has at least, if it needs them."""


def styled(frame: pd.DataFrame) -> Styled:
    """A frame of the log as a table for people: "1.8 s", "$0.0011", "87 %", local times, headings in words.

    Args:
        frame: What `nbllm.requests()`, `sessions()` or `connections()` gave, or any part of it: filtered,
            sorted, grouped, with some columns, or with your own. Of more than ten columns it shows those
            that one looks for, without the ids; columns in which nothing stands are left out always. Columns
            that it doesn't know show as in pandas. Of more than 200 rows it shows the first and the last.

    Returns:
        A `Styled`: as the last line of a cell it shows as a table; `print` gives it as text. The frame itself
        stays as it is, in `.frame`.

    Raises:
        UsageProblem: It is no DataFrame.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        hint = ": .to_frame() makes one of a Series" if isinstance(frame, pd.Series) else ""
        raise UsageProblem(
            f"styled() takes a DataFrame such as nbllm.requests(); got {type(frame).__name__}{hint}"
        )
    return Styled(frame)


@dataclass(frozen=True, repr=False, eq=False)
class Styled:
    """A table for people.

    Attributes:
        frame: What it shows.
    """

    frame: pd.DataFrame

    @property
    def html(self) -> str:
        """The table as HTML that stands for itself: no scripts, no classes; nothing in it loads."""
        return _html(table_of(self.frame))

    def __str__(self) -> str:
        return _text(table_of(self.frame), shutil.get_terminal_size().columns)

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        table = table_of(self.frame)
        return {
            "text/html": _html(table),
            "text/plain": _text(table, shutil.get_terminal_size().columns),
        }


# -- how it looks ------------------------------------------------------------------------------------------


def _note(left_out: int) -> str:
    return f"\N{HORIZONTAL ELLIPSIS} {left_out:,} rows are left out here \N{HORIZONTAL ELLIPSIS}"


def _html(table: Table) -> str:
    """Inline styles and inherited colours alone: right on light and dark ground, and readable without."""
    if not table.columns or not table.failed:
        return "<p>no rows</p>"
    cell = "padding:2px 10px;white-space:nowrap;"
    heading = f"{cell}font-weight:600;border-bottom:1px solid rgba(128,128,128,.5);"
    heads = "".join(
        f'<th style="{heading}{_side(column)}">{markup.escape(column.heading)}</th>'
        for column in table.columns
    )
    lines = []
    for at, failed in enumerate(table.failed):
        if table.left_out and at == table.gap:
            lines.append(
                f'<tr><td colspan="{len(table.columns)}" style="{cell}text-align:center;opacity:.75">'
                f"{_note(table.left_out)}</td></tr>"
            )
        tint = ' style="background-color:rgba(229,57,53,.13)"' if failed else ""
        cells = "".join(
            f'<td style="{cell}{_side(column)}{_bar(column, at)}">{markup.escape(column.cells[at])}</td>'
            for column in table.columns
        )
        lines.append(f"<tr{tint}>{cells}</tr>")
    body = "\n".join(lines)
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-variant-numeric:'
        f'tabular-nums"><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _side(column: Column) -> str:
    return f"text-align:{'right' if column.is_number else 'left'};"


def _bar(column: Column, at: int) -> str:
    """What shows nothing that the number does not say: a front end that takes it away loses nothing."""
    if not column.shares or not column.shares[at]:
        return ""
    colour = f"rgba({column.colour},.28)"
    share = max(1, round(column.shares[at] * 100))
    return f"background:linear-gradient({colour},{colour}) no-repeat right 50%/{share}% 76%;"


def _text(table: Table, width: int) -> str:
    """As many columns as have room, and below them the others, each time beside the first one again."""
    if not table.columns or not table.failed:
        return "no rows"
    first, *others = table.columns
    gap = len(text_tables.GAP)
    blocks = [[first]]
    room = width - _needed(first)
    for column in others:
        needed = gap + _needed(column)
        if needed > room:
            room = width - _needed(first)
            blocks.append([first] if needed <= room else [])  # it says which row a line is
        blocks[-1].append(column)
        room -= needed
    return "\n\n".join("\n".join(_lines(block, table, width)) for block in blocks)


def _needed(column: Column) -> int:
    """How many cells of a terminal a column may have before others go below."""
    widest = max(map(text_tables.width_of, (column.heading, *column.cells)))
    return widest if column.is_number else min(widest, TEXT_COLUMN)


def _lines(block: Sequence[Column], table: Table, width: int) -> list[str]:
    columns = [
        text_tables.Column(one.heading, one.is_number, None if one.is_number else _needed(one))
        for one in block
    ]
    lines = text_tables.table(columns, list(zip(*(one.cells for one in block), strict=True)), width)
    if table.left_out:
        lines.insert(table.gap + 1, _note(table.left_out))
    return lines
