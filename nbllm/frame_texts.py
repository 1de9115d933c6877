"""A frame of the log as the texts of a table for people.

Owns which columns such a table shows, under which headings and in which units. The frames are `frames`', how
a number looks is `units`'. Called by `styles`, which gives the table its looks, and `commands`.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import frames, overview, units

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 200
"""How many rows a table shows: of more, the first and the last ones."""

CHOSEN_COLUMNS = 10
"""Up to so many columns are all shown, as somebody chose them; of more, those that one looks for."""

TEXT_CHARACTERS = 80
"""How much of a text a cell shows."""

# Of many columns those that one looks for, by the function that gives them. What else is there, such as
# a column of the user's own, is shown too.
SHOWN = {
    "requests": (
        "session_id execution_count request_model status duration_ms ttft_ms input_tokens output_tokens "
        "cost_usd attempt finish_reason error_type error_message connection_reused connection_reason "
        "started_at"
    ),
    "connections": (
        "connection_id host port requests connect_ms bytes_sent bytes_received opened_at closed_at "
        "close_reason tls_version"
    ),
    "sessions": (
        "session_id owner tags models cells requests errors running cancelled incomplete input_tokens "
        "output_tokens cost_usd unpriced duration_ms ttft_p50_ms connections_opened reuse_ratio started_at"
    ),
}

# All columns of each.
_VIEWS = {
    "requests": frames.REQUESTS,
    "connections": frames.CONNECTIONS,
    "sessions": {"owner": "label", **frames.SESSIONS},
}

# Of many columns these are left out where they have nothing to tell: what all rows say that is as usual.
USUAL: dict[str, Any] = {
    **dict.fromkeys(("errors", "unpriced", "running", "cancelled", "incomplete"), 0),
    "attempt": 1,
    "finish_reason": "stop",
    "tags": "",
    "cells": "",
}

HEADINGS = {
    "request_id": "request",
    "call_id": "call",
    "session_id": "session",
    "kernel_id": "kernel",
    "execution_count": "cell",
    "run_id": "run",
    "request_model": "model",
    "response_model": "answered by",
    "response_id": "response",
    "server_address": "server",
    "server_port": "port",
    "url_path": "path",
    "started_at": "started",
    "first_chunk_at": "first chunk",
    "ended_at": "ended",
    "opened_at": "opened",
    "closed_at": "closed",
    "duration_ms": "time",
    "duration_p95_ms": "time, p95",
    "ttft_ms": "first token",
    "ttft_p50_ms": "first token, p50",
    "dns_ms": "DNS",
    "ssl_ms": "TLS",
    "connection_id": "connection",
    "connection_reused": "reuse",
    "connection_reason": "why new",
    "connection_idle_ms": "idle before",
    "connections_opened": "new connections",
    "reuse_ratio": "reuse",
    "bytes_sent": "sent",
    "bytes_received": "received",
    "http_status": "HTTP",
    "finish_reason": "finish",
    "error_type": "error",
    "error_message": "message",
    "close_reason": "why closed",
    "tls_version": "TLS",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "cost_usd": "cost",
    "cost_source": "price by",
}

BARS = {"duration_ms": "63, 154, 217", "cost_usd": "0, 158, 115"}
"""Columns whose numbers have a bar behind them, and its red, green and blue."""

_KINDS = {**frames.REQUESTS, **frames.CONNECTIONS, **frames.SESSIONS}
_NUMBERS: dict[str, Callable[[float], str]] = {
    "_ms": units.seconds,
    "_usd": units.money,
    "_ratio": units.percent,
}
_SWITCHES = {"connection_reused": ("reused", "new")}
_NAMES = ("execution_count", "port", "server_port", "local_port", "http_status")
"""Whole numbers that count nothing."""

# What keeps the unit of its column, of that which `frame.groupby(…).agg(…)` may do.
_SAME_UNIT = ("first", "last", "max", "mean", "median", "min", "std", "sum")


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is shown.

    Attributes:
        heading: In words.
        cells: The texts.
        is_number: They stand to the right.
        shares: How long the bars behind them are, 0 to 1; empty without.
        colour: That of the bars.
    """

    heading: str
    cells: list[str]
    is_number: bool = False
    shares: Sequence[float] = ()
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The whole of it.

    Attributes:
        columns: At least one, if there are rows.
        failed: Which rows are errors.
        gap: After how many rows others are left out, if any are.
        left_out: How many.
    """

    columns: list[Column]
    failed: list[bool]
    gap: int
    left_out: int


def table_of(frame: pd.DataFrame) -> Table:
    """The table that shows a frame, or any part of one."""
    half, count = SHOWN_ROWS // 2, len(frame)
    left_out = max(0, count - SHOWN_ROWS)
    shown = frame.iloc[[*range(half), *range(count - half, count)]] if left_out else frame
    places = readable_columns(frame)
    named = [*_index(shown.index), *((frame.columns[at], shown.iloc[:, at]) for at in places)]
    columns = [_column(name, values, shown) for name, values in named]
    failed = [False] * len(shown)
    if _fits(shown, "status"):
        failed = [status == "error" for status in shown["status"]]
    return Table(columns, failed, half, left_out)


def readable_columns(frame: pd.DataFrame) -> list[int]:
    """Which columns one looks for that have something to tell, by their place: two may have the same name."""
    names = list(frame.columns)
    known = {name for name in names if isinstance(name, str)}
    view, all_names = max(_VIEWS.items(), key=lambda one: len(known & one[1].keys()))
    is_choice = len(names) <= CHOSEN_COLUMNS
    hidden = set() if is_choice else all_names.keys() - SHOWN[view].split()
    places = [at for at, name in enumerate(names) if not (isinstance(name, str) and name in hidden)]
    return [at for at in places if _tells(frame.iloc[:, at], is_choice)] if len(frame) else places


def _tells(values: pd.Series[Any], is_choice: bool) -> bool:
    known = values.dropna()
    if is_choice or values.name not in USUAL:
        return len(known) > 0
    return not (known == USUAL[values.name]).all()


def _index(index: pd.Index[Any]) -> list[tuple[Any, pd.Series[Any]]]:
    """The levels of the index that tell something: other than the numbers of rows."""
    import pandas as pd

    levels = [index.get_level_values(level) for level in range(index.nlevels)]
    return [
        (level.name if level.name is not None else "", pd.Series(level, index=index))
        for level in levels
        if level.name is not None or not pd.api.types.is_integer_dtype(level.dtype)
    ]


def _column(name: Any, values: pd.Series[Any], frame: pd.DataFrame) -> Column:
    known, heading = _meaning(name)
    kind = _KINDS.get(known, "")
    if not _is_of(kind, values):
        return Column(heading, *_as_pandas(values))
    if known == "request_model":
        return Column(heading, _models(values, frame))
    if known == "status":
        return Column(heading, [_status(value) for value in _plain(values)])
    if kind == "time":
        return Column(heading, _times(values))
    if kind == "bool":
        yes, no = _SWITCHES.get(known, ("yes", "no"))
        return Column(heading, [units.UNKNOWN if v is None else yes if v else no for v in _plain(values)])
    if kind in ("int", "float"):
        numbers = [None if value is None else float(value) for value in _plain(values)]
        cells = [_number(known, number) for number in numbers]
        shares = _shares(numbers) if known in BARS else ()
        return Column(heading, cells, True, shares, BARS.get(known, ""))
    # Null is here what does not apply, such as the error of what went well.
    texts = ["" if value is None else _one_line(str(value)) for value in _plain(values)]
    return Column(heading, _short(texts) if known.endswith("_id") else texts)


def _meaning(name: Any) -> tuple[str, str]:
    """The log's column that is meant, or "", and the heading."""
    if isinstance(name, tuple):  # of `agg`, as ("duration_ms", "mean")
        parts = [str(part) for part in name if part != ""]
        heading = " ".join(HEADINGS.get(part, part) for part in parts)
        known = parts[0] if parts and all(part in _SAME_UNIT for part in parts[1:]) else ""
        return known, _one_line(heading)
    known = name if isinstance(name, str) and name in _KINDS else ""
    plain = HEADINGS.get(known) or known.removesuffix("_ms").replace("_", " ")
    return known, plain or _one_line(str(name))


def _fits(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column is there, once, and still what the log has under this name."""
    return list(frame.columns).count(name) == 1 and _is_of(_KINDS[name], frame[name])


def _is_of(kind: str, values: pd.Series[Any]) -> bool:
    """Whether the values are of this kind: a count of times is none, though it bears the same name."""
    from pandas.api import types

    dtype = values.dtype
    if kind in ("text", "label"):
        return dtype == "category" or types.is_string_dtype(values)
    checks: dict[str, Callable[[Any], bool]] = {
        "int": lambda dtype: types.is_numeric_dtype(dtype) and not types.is_bool_dtype(dtype),
        "float": types.is_float_dtype,
        "bool": types.is_bool_dtype,
        "time": types.is_datetime64_any_dtype,
    }
    return kind in checks and checks[kind](dtype)


def _plain(values: pd.Series[Any]) -> list[Any]:
    """The values, with None for all that is null."""
    return [None if is_null else value for value, is_null in zip(values, values.isna().tolist(), strict=True)]


# -- cells -------------------------------------------------------------------------------------------------


def _number(name: str, number: float | None) -> str:
    if number is None:
        return units.UNKNOWN
    if name in _NAMES:
        return f"[{number:.0f}]" if name == "execution_count" else f"{number:.0f}"
    if name.startswith("bytes_"):
        return units.size(number)
    return next((unit for end, unit in _NUMBERS.items() if name.endswith(end)), units.count)(number)


def _shares(numbers: Sequence[float | None]) -> list[float]:
    usable = [number if number and 0 < number < math.inf else 0.0 for number in numbers]
    largest = max(usable, default=0.0)
    return [number / largest for number in usable] if largest and len(usable) > 1 else []


def _status(value: Any) -> str:
    if value is None:
        return "running"
    return "\N{BALLOT X} error" if value == "error" else _one_line(str(value))


def _models(values: pd.Series[Any], frame: pd.DataFrame) -> list[str]:
    """As a view shows them; what that depends on may be in other columns."""
    needed = ("operation", "provider", "server_address")
    others = {name: _plain(frame[name]) if _fits(frame, name) else [None] * len(frame) for name in needed}
    rows = [
        dict(zip(("request_model", *needed), row, strict=True))
        for row in zip(_plain(values), *others.values(), strict=True)
    ]
    return [
        units.UNKNOWN if set(row.values()) == {None} else _one_line(overview.model_of(row)) for row in rows
    ]


def _times(values: pd.Series[Any]) -> list[str]:
    """Local ones where they are UTC, as the log's are; with the date, unless all of them are today's."""
    is_utc = str(values.dt.tz) == "UTC"
    moments = [None if one is None else one.to_pydatetime(warn=False) for one in _plain(values)]
    local = [one.astimezone() if one is not None and is_utc else one for one in moments]
    days = {one.date() for one in local if one is not None}
    form = "%H:%M:%S" if days == {datetime.date.today()} else "%Y-%m-%d %H:%M:%S"
    return [units.UNKNOWN if one is None else f"{one:{form}}" for one in local]


def _short(ids: list[str]) -> list[str]:
    """Ids without the kernel's, where it is one and the same."""
    kernels = {found[0] if (found := re.match("[0-9a-f]{8}-(?=[a-z][0-9]+$)", one)) else "" for one in ids}
    return [one.removeprefix(max(kernels)) for one in ids] if len(kernels) == 1 else ids


def _as_pandas(values: pd.Series[Any]) -> tuple[list[str], bool]:
    """The cells of a column that is not the log's, and whether they are numbers."""
    from pandas.api import types

    is_number = types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)
    if not len(values):
        return [], is_number
    lines = values.to_frame(name=0).to_string(index=False, header=False).split("\n")
    return [_one_line(line) for line in lines], is_number


def _one_line(text: str) -> str:
    return overview.said(text, TEXT_CHARACTERS)
