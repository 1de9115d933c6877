"""A DataFrame or Series as a Markdown table for a model, which pays for every character.

Owns the form of such tables, and what is cut. Never imports pandas: a frame can only come from a pandas that
is loaded already.
"""

from __future__ import annotations

import numbers
import sys
from typing import Any

from .exceptions import UsageProblem

_MAX_COLUMNS = 30
_MAX_CELL = 500  # characters


def is_table(value: Any) -> bool:
    """Whether `value` is a pandas DataFrame or Series."""
    pandas = sys.modules.get("pandas")
    return isinstance(value, (getattr(pandas, "DataFrame", ()), getattr(pandas, "Series", ())))


def markdown(frame: Any, *, max_rows: int = 100) -> tuple[str, str | None]:
    """A frame as a Markdown table without padding: a header, a rule, one line per row.

    Floats have six significant digits and missing values are empty. The index is left out where it is
    pandas' default. Of a frame with more than `max_rows` rows or 30 columns the first ones are shown, of a
    cell 500 characters; a line below the table says so.

    Args:
        frame: A pandas DataFrame or Series.
        max_rows: How many rows are shown at most.

    Returns:
        The text; and what was cut, such as "only the first 100 of 12,345 rows", or None.

    Raises:
        UsageProblem: `max_rows` is negative.
    """
    if max_rows < 0:
        raise UsageProblem(f"max_rows is {max_rows}; give 0 or more")
    if frame.ndim == 1:
        frame = frame.to_frame("value" if frame.name is None else frame.name)
    part = frame.iloc[:max_rows, :_MAX_COLUMNS]
    columns = [] if _is_default(part.index) else _index_columns(part.index)
    columns += [[_label(label), *_texts(part.iloc[:, at])] for at, label in enumerate(part.columns)]
    lines = ["|" + "|".join(map(_cell, row)) + "|" for row in zip(*columns, strict=True)]
    if lines:
        lines.insert(1, "|" + "---|" * len(columns))
    notice = _notice(frame, max_rows, columns)
    note = notice or (size(frame, max_rows=max_rows) if frame.size == 0 else None)
    # Right below the table, Markdown would take the note for one of its rows.
    return "\n\n".join(filter(None, ["\n".join(lines), note and f"({note})"])), notice


def size(frame: Any, *, max_rows: int = 100) -> str:
    """How much of a frame its table shows: rows times columns, such as "100 of 12,345 rows"."""
    rows, columns = _shape(frame)
    shown = [_count(max_rows, rows, "row"), _count(_MAX_COLUMNS, columns, "column")]
    return " \N{MULTIPLICATION SIGN} ".join(shown)


def _shape(frame: Any) -> tuple[int, int]:
    return len(frame), 1 if frame.ndim == 1 else frame.shape[1]


def _count(limit: int, total: int, noun: str) -> str:
    shown = f"{limit:,} of " if total > limit else ""
    return f"{shown}{total:,} {noun}{'' if total == 1 else 's'}"


def _notice(frame: Any, max_rows: int, columns: list[list[str]]) -> str | None:
    rows, width = _shape(frame)
    limits = [(max_rows, rows, "row"), (_MAX_COLUMNS, width, "column")]
    parts = [_count(limit, total, noun) for limit, total, noun in limits if total > limit]
    said = ["only the first " + " and ".join(parts)] if parts else []
    if long := sum(len(text) > _MAX_CELL for column in columns for text in column):
        said.append(f"{_count(long, long, 'cell')} cut to {_MAX_CELL} characters")
    return "; ".join(said) or None


def _is_default(index: Any) -> bool:
    is_range = isinstance(index, sys.modules["pandas"].RangeIndex)
    return is_range and index.start == 0 and index.step == 1 and index.name is None


def _index_columns(index: Any) -> list[list[str]]:
    levels = [index.get_level_values(at) for at in range(index.nlevels)]
    return [[_label(level.name), *_texts(level)] for level in levels]


def _label(label: Any) -> str:
    """The name of a column; one of several levels is a tuple."""
    return ", ".join(map(_text, label)) if isinstance(label, tuple) else _text(label)


def _texts(values: Any) -> list[str]:
    """The texts of a Series or Index."""
    if values.dtype.kind == "M":
        values = values.astype(str).where(
            values.notna()
        )  # pandas leaves out the time where it is always 0:00
    return list(map(_text, values.tolist()))


def _text(value: Any) -> str:
    pandas = sys.modules["pandas"]
    if pandas.api.types.is_scalar(value) and pandas.isna(value):
        return ""
    is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational)
    text = f"{value:.6g}" if is_float else str(value)
    return " ".join(text.splitlines())


def _cell(text: str) -> str:
    text = text if len(text) <= _MAX_CELL else text[:_MAX_CELL] + "…"
    return text.replace("|", "\\|")
