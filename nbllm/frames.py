"""The log as DataFrames: sessions, requests, connections.

Which requests are meant is `selection`'s; pandas loads on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from . import schema, selection, tagging
from .selection import Selection, Since

if TYPE_CHECKING:
    import pandas as pd

# Columns of requests(), in order. pandas shows the first ten and the last ten of so many: there stands what
# one looks for, and between them, in the log's order, the rest.
_FIRST = (
    *("request_id", "session_id", "execution_count", "request_model", "status"),
    *("duration_ms", "ttft_ms", "input_tokens", "output_tokens", "cost_usd"),
)
_LAST = (
    *("provider", "operation", "attempt", "finish_reason", "http_status"),
    *("error_type", "error_message", "connection_reused", "connection_reason", "started_at"),
)
_LOGGED = {name: kind for name, kind in schema.REQUESTS.items() if name != "id"} | {"notebook": "label"}
REQUESTS: dict[str, str] = {
    name: _LOGGED[name]
    for name in (*_FIRST, *(name for name in _LOGGED if name not in (*_FIRST, *_LAST)), *_LAST)
}

# Columns of connections(), in order.
CONNECTIONS: dict[str, str] = {
    "connection_id": "text",
    "host": "label",
    "port": "int",
    "requests": "int",
    "connect_ms": "float",
    "bytes_sent": "int",
    "bytes_received": "int",
    "opened_at": "time",
    "closed_at": "time",
    "close_reason": "label",
    "tls_version": "label",
    "peer": "text",
    "local_port": "int",
    "kernel_id": "label",
}

# Columns of sessions(), beside owner, in order. With it pandas leaves out the one in the middle.
SESSIONS: dict[str, str] = {
    "session_id": "text",
    "tags": "text",
    "models": "text",
    "cells": "text",
    "requests": "int",
    "errors": "int",
    "input_tokens": "int",
    "output_tokens": "int",
    "cost_usd": "float",
    "unpriced": "int",
    "duration_ms": "float",
    "duration_p95_ms": "float",
    "ttft_p50_ms": "float",
    "connections_opened": "int",
    "reuse_ratio": "float",
    "running": "int",
    "cancelled": "int",
    "incomplete": "int",
    "started_at": "time",
    "ended_at": "time",
}


def requests(
    session: str | None = None,
    kernel: str | None = None,
    *,
    since: Since = None,
    notebook: str | None = None,
    model: str | None = None,
    search: str | None = None,
    errors: bool = False,
    cell: int | str | None = None,
    latest: bool = False,
) -> pd.DataFrame:
    """Every request, one row per HTTP attempt, oldest first.

    Args:
        session: Only those of this session id.
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given; "all" for the
            whole log; or a kernel_id.
        since: Only those that started since then: "90s", "30m", "12h", "7d", "2w" ago, a timedelta ago, a
            date or datetime (local time where it names no zone), or one in ISO 8601 such as "2026-11-20".
        notebook: Only those of this notebook: its path, or the name alone.
        model: Only those that asked for this model, or were answered by it.
        search: Only those with this text in their messages, answers or errors, whatever the case of ASCII
            letters. What was said is known only where contents are kept.
        errors: Only those that failed.
        cell: Only those of this cell: its number, or its id.
        latest: Only those of the last run of each cell.

    Returns:
        Columns are the log's, those that one looks for first and last; null means unknown or not applicable.
        Times are UTC timestamps, `*_ms` are milliseconds, counts are nullable integers, names with few values
        are categories. `nbllm.styled` shows them in human units.

        - request_id, call_id, attempt: this attempt; the call that it belongs to; its number in that call.
        - session_id, owner; kernel_id, notebook (null where neither server nor front end tells it); cell_id,
          execution_count, run_id: the cell and this run of it; cell_source: where the cell's id comes from
          (frontend, execution_count, last_cell).
        - operation, provider, request_model, response_model, response_id, provider_request_id, params.
        - http_method, server_address, server_port, url_path, stream, http_status.
        - started_at, first_chunk_at, ended_at; queued_ms: waited for nbllm's own limits (`configure(rpm=…)`)
          before that; duration_ms, and its phases blocked_ms (waited for a free
          connection), dns_ms, connect_ms (TCP and TLS), ssl_ms (TLS, part of connect_ms), send_ms, wait_ms,
          receive_ms; ttft_ms: to the first content of a stream.
        - connection_id, connection_reused; connection_reason: why a new one (first, all busy, limit, idle
          expired, closed by server, …); connection_idle_ms: how long the reused, or lost, one had idled.
        - bytes_sent, bytes_received (headers included, before TLS), chunks.
        - status: ok, error, cancelled, incomplete (abandoned before its end), or null while running.
        - error_type, error_message, retry_after_ms, finish_reason.
        - input_tokens (cached included), cache_read_tokens, cache_write_tokens, output_tokens (reasoning
          included), reasoning_tokens, and of all these input_audio_tokens, output_audio_tokens,
          input_image_tokens, output_image_tokens; cost_usd and cost_source (provider: as it says itself;
          user: `nbllm.set_price`; genai-prices: by the model's name, wherever it runs); null if unknown.
        - response_headers: those that are kept, as JSON.

        More in docs/log.md.

    Raises:
        UsageProblem: A filter that can't be used.
    """
    chosen = Selection(session, kernel, since, notebook, model, search, errors, cell, latest)
    rows = [row[1:] for row in selection.read_requests(chosen)]
    return typed_frame(_LOGGED, rows, order=REQUESTS)


def connections(kernel: str | None = None) -> pd.DataFrame:
    """Every connection, one row per TCP (TLS) connection, oldest first.

    Args:
        kernel: None for this kernel, "all" for the whole log, or a kernel_id.

    Returns:
        Columns connection_id, host, port; over its requests: requests, connect_ms, bytes_sent,
        bytes_received; opened_at, closed_at (null while open, or if the kernel was killed), close_reason,
        tls_version (null for plain TCP), peer, local_port, kernel_id.
    """
    chosen = Selection(kernel=kernel)
    own = {name: f"connections.{name}" for name in schema.CONNECTIONS}
    summed = {"requests": "coalesce(served.requests, 0)"}
    columns = ", ".join(own.get(name) or summed.get(name, name) for name in CONNECTIONS)
    scope = "1 = 1" if kernel == "all" else f"kernel_id = '{kernel or tagging.kernel_id()}'"
    rows = selection.read(
        chosen,
        lambda where, _: (
            f"""
            SELECT {columns} FROM connections LEFT JOIN (
                SELECT connection_id, count(*) AS requests, {_SUM.format("bytes_sent")} AS bytes_sent,
                    {_SUM.format("bytes_received")} AS bytes_received, max(connect_ms) AS connect_ms
                FROM requests WHERE {where} GROUP BY connection_id
            ) AS served ON served.connection_id = connections.connection_id
            WHERE {scope} ORDER BY opened_at, connections.connection_id"""
        ),
    )
    return typed_frame(CONNECTIONS, rows)


_SUM = "CAST(sum({}) AS BIGINT)"  # PostgreSQL's is a decimal number


def sessions(
    kernel: str | None = None,
    *,
    since: Since = None,
    notebook: str | None = None,
    model: str | None = None,
    search: str | None = None,
) -> pd.DataFrame:
    """Every session with what it did and cost, one row each, by first request.

    Args:
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given; "all" for the
            whole log (a session may span kernels); or a kernel_id.
        since: As for `requests`; so are the others. A session's numbers are those of the requests that are
            left.
        notebook: Only requests of this notebook.
        model: Only requests that asked for this model, or were answered by it.
        search: Only requests with this text.

    Returns:
        Columns session_id; tags (`nbllm.tag_session`), in one text; models, and cells (as `[3], [5]`, or ids
        where there is no number); requests (attempts), errors; input_tokens, output_tokens, cost_usd: sums of
        what is known, null if nothing is; unpriced: requests with tokens whose price is unknown; duration_ms:
        sum; duration_p95_ms; ttft_p50_ms; connections_opened; reuse_ratio: share of requests on a reused
        connection; running, cancelled, incomplete: requests by status, as errors, the others are ok;
        started_at, ended_at. Where other kernels are meant too there is also owner: sessions of the same name
        that belong to two people are two.

    Raises:
        UsageProblem: A filter that can't be used.
    """
    chosen = Selection(None, kernel, since, notebook, model, search)
    rows = []
    for row in selection.read(chosen, partial(_sessions_query, chosen.is_wide)):
        said = dict(zip(("owner", *SESSIONS), row, strict=True))
        said["tags"], said["models"] = _listed(said["tags"]), _listed(said["models"])
        said["cells"] = _listed(said["cells"], _cell)
        rows.append(tuple(said.values()))
    if not chosen.is_wide:
        return typed_frame(SESSIONS, [row[1:] for row in rows])
    frame = typed_frame({"owner": "label", **SESSIONS}, rows)
    return frame[["session_id", "owner", *frame.columns[2:]]]


def _sessions_query(is_wide: bool, where: str, is_postgres: bool) -> str:
    def listed(column: str) -> str:
        return f"string_agg(DISTINCT {column}, ',')" if is_postgres else f"group_concat(DISTINCT {column})"

    def percentile(column: str, percent: int) -> str:
        if is_postgres:
            return f"percentile_cont({percent / 100}) WITHIN GROUP (ORDER BY {column})"
        # Nulls are cheaper left out than handed over: the function is Python's.
        return f"percentile_{percent}({column}) FILTER (WHERE {column} IS NOT NULL)"

    def number(condition: str) -> str:
        return f"count(*) FILTER (WHERE {condition})"

    # SQLite puts numbers together as they are, and casts for nothing.
    count = "CAST(execution_count AS TEXT)" if is_postgres else "execution_count"
    # In the order of the index, which has it all, where SQLite would rather sort the rows of many kernels.
    way = "INDEXED BY requests_session" if is_wide and not is_postgres else ""
    return f"""
        SELECT owner, session_id,
            (SELECT {listed("tag")} FROM tags
                WHERE tags.owner = requests.owner AND tags.session_id = requests.session_id),
            {listed("request_model")}, {listed(f"coalesce({count}, cell_id)")},
            count(*), {number("status = 'error'")},
            {_SUM.format("input_tokens")}, {_SUM.format("output_tokens")}, sum(cost_usd),
            {number("input_tokens IS NOT NULL AND cost_usd IS NULL")},
            sum(duration_ms), {percentile("duration_ms", 95)}, {percentile("ttft_ms", 50)},
            {number("NOT connection_reused")},
            avg(CASE WHEN connection_reused THEN 1.0 WHEN NOT connection_reused THEN 0.0 END),
            {number("status IS NULL")}, {number("status = 'cancelled'")}, {number("status = 'incomplete'")},
            min(started_at), max(ended_at)
        FROM requests {way} WHERE {where} GROUP BY owner, session_id ORDER BY min(started_at), min(id)"""


def _listed(text: str | None, shown: Callable[[str], str] = str) -> str:
    """What a query has put together, in order: numbers by their size, before texts."""
    parts = sorted(text.split(",") if text else (), key=_order)
    return ", ".join(map(shown, parts))


def _order(part: str) -> tuple[bool, int, str]:
    return not part.isdigit(), len(part) if part.isdigit() else 0, part


def _cell(part: str) -> str:
    return f"[{part}]" if part.isdigit() else part


def typed_frame(
    columns: dict[str, str], rows: list[tuple[Any, ...]], *, order: Iterable[str] | None = None
) -> pd.DataFrame:
    """Rows as a DataFrame with columns of the kinds that `schema` names, also where there is no row.

    Args:
        columns: Name and kind of each value of a row.
        rows: The values.
        order: The columns of the frame, where that is another.
    """
    import pandas as pd

    series = zip(*rows, strict=True) if rows else ([] for _ in columns)
    data = {
        name: _typed(kind, list(values)) for (name, kind), values in zip(columns.items(), series, strict=True)
    }
    return pd.DataFrame(data, columns=list(columns if order is None else order))


def _typed(kind: str, values: list[Any]) -> Any:
    import pandas as pd

    if kind == "time":
        microseconds = [None if value is None else round(value * 1e6) for value in values]
        return pd.to_datetime(pd.Series(microseconds, dtype="Int64"), unit="us", utc=True)
    if kind == "bool":
        return pd.array([None if value is None else bool(value) for value in values], dtype="boolean")
    dtype = {"int": "Int64", "float": "float64", "label": "category", "text": "string"}[kind]
    return pd.Series(values, dtype=dtype)
