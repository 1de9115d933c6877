"""The log as DataFrames: sessions, requests, connections.

One query path: `log.read` sees every row handed over before, and the requests still in flight are added
from `tracing`, with a null status. pandas loads on first use.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from . import log, schema, tagging, tracing
from .exceptions import UsageProblem

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

# Columns of sessions(), beside session_id, in order.
SESSIONS: dict[str, str] = {
    "session_id": "text",
    "requests": "int",
    "ok": "int",
    "errors": "int",
    "cancelled": "int",
    "incomplete": "int",
    "running": "int",
    "cells": "text",
    "models": "text",
    "input_tokens": "int",
    "output_tokens": "int",
    "cost_usd": "float",
    "unpriced": "int",
    "duration_ms": "float",
    "duration_p95_ms": "float",
    "ttft_p50_ms": "float",
    "connections_opened": "int",
    "reuse_ratio": "float",
    "started_at": "time",
    "ended_at": "time",
}


def requests(session: str | None = None, kernel: str | None = None) -> pd.DataFrame:
    """Every request, one row per HTTP attempt, oldest first.

    Args:
        session: Only those of this session id.
        kernel: None for this kernel, "all" for the whole log, or a kernel_id.

    Returns:
        Columns are the log's; null means unknown or not applicable. Times are UTC timestamps, `*_ms` are
        milliseconds, counts are nullable integers, names with few values are categories.

        - request_id, call_id, attempt: this attempt; the call that it belongs to; its number in that call.
        - session_id; kernel_id; cell_id, execution_count, run_id: the cell and this run of it; cell_source:
          where the cell's id comes from (frontend, execution_count, last_cell).
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
          included), reasoning_tokens; cost_usd and cost_source (provider:
          as it says itself; genai-prices: by the model's name, wherever it runs); null if unknown.
    """
    columns = {name: kind for name, kind in schema.REQUESTS.items() if name != "id"}
    return typed_frame(columns, [row[1:] for row in _request_rows(session, kernel)])


def connections(kernel: str | None = None) -> pd.DataFrame:
    """Every connection, one row per TCP (TLS) connection, oldest first.

    Args:
        kernel: None for this kernel, "all" for the whole log, or a kernel_id.

    Returns:
        Columns connection_id, kernel_id, host, port, peer, local_port, tls_version (null for plain TCP),
        opened_at, closed_at (null while open, or if the kernel was killed), close_reason, and over its
        requests: requests, bytes_sent, bytes_received, connect_ms.
    """
    columns = {
        **schema.CONNECTIONS,
        "requests": "int",
        "bytes_sent": "int",
        "bytes_received": "int",
        "connect_ms": "float",
    }
    conditions = {} if kernel == "all" else {"kernel_id = ?": kernel or tagging.kernel_id()}
    rows = _select(schema.CONNECTIONS, "connections", conditions, "opened_at")
    served: dict[str, list[tuple[Any, ...]]] = {}
    for row in _request_rows(None, kernel):
        if (connection_id := row[_AT["connection_id"]]) is not None:
            served.setdefault(connection_id, []).append(row)
    return typed_frame(columns, [(*row, *_served(served.get(row[0], []))) for row in rows])


def _served(rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What a connection did, from the requests that used it."""
    sent, received, connect_ms = (
        [row[_AT[name]] for row in rows if row[_AT[name]] is not None]
        for name in ("bytes_sent", "bytes_received", "connect_ms")
    )
    return len(rows), _sum(sent), _sum(received), connect_ms[0] if connect_ms else None


def sessions(kernel: str | None = None) -> pd.DataFrame:
    """Every session with what it did and cost, one row each, by first request.

    Args:
        kernel: None for this kernel, "all" for the whole log (a session may span kernels), or a kernel_id.

    Returns:
        Columns session_id; requests (attempts); ok, errors, cancelled, incomplete, running:
        requests by status; cells (as `[3], [5]`, or ids where there is no number) and models;
        input_tokens, output_tokens, cost_usd: sums of what is known, null if nothing is;
        unpriced: requests with tokens whose price is unknown; duration_ms: sum;
        duration_p95_ms; ttft_p50_ms; connections_opened; reuse_ratio: share of requests on a reused
        connection; started_at, ended_at.
    """
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for row in _request_rows(None, kernel):
        groups.setdefault(row[_AT["session_id"]], []).append(row)
    return typed_frame(SESSIONS, [_summary(name, rows) for name, rows in groups.items()])


def rows_of_run(run_id: str) -> list[dict[str, Any]]:
    """The requests of one run of a cell of this kernel as dicts, oldest first; pandas stays out of it."""
    rows = _request_rows(None, None)
    return [dict(zip(schema.REQUESTS, row, strict=True)) for row in rows if row[_AT["run_id"]] == run_id]


_AT = {name: index for index, name in enumerate(schema.REQUESTS)}


def _request_rows(session: str | None, kernel: str | None) -> list[tuple[Any, ...]]:
    # In this order: a request that ends in between is in the log by the time that it is read.
    alive = [schema.request_values(record) for record in tracing.running()]
    conditions: dict[str, Any] = {} if session is None else {"session_id = ?": session}
    if kernel != "all":
        first = _first_id(kernel)
        conditions |= {"id >= ?": first, "id <= ?": first + (1 << 31) - 1}
    rows = _select(schema.REQUESTS, "requests", conditions, "started_at, id")
    known = {row[0] for row in rows}
    if kernel in (None, "all", tagging.kernel_id()):
        for row in alive:
            if row[0] not in known and session in (None, row[_AT["session_id"]]):
                rows.append(row)
    return sorted(rows, key=operator.itemgetter(_AT["started_at"]))


def _first_id(kernel: str | None) -> int:
    if kernel is None:
        return tagging.first_request_id()
    if not isinstance(kernel, str) or not re.fullmatch("[0-9a-f]{8}", kernel):
        raise UsageProblem(f"kernel must be None, 'all' or a kernel's id such as '0badcafe'; got {kernel!r}")
    return tagging.first_id(kernel)


def _select(
    columns: dict[str, str], table: str, conditions: dict[str, Any], order: str
) -> list[tuple[Any, ...]]:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    values = tuple(conditions.values())
    statement = f"SELECT {', '.join(columns)} FROM {table}{where} ORDER BY {order}"

    def query(connection: sa.Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.exec_driver_sql(statement, values)]

    return log.read(query)


def _summary(session_id: str, rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    def column(name: str) -> list[Any]:
        index = _AT[name]
        return [row[index] for row in rows if row[index] is not None]

    statuses = [row[_AT["status"]] for row in rows]
    ends = column("ended_at")
    unpriced = [row for row in rows if row[_AT["input_tokens"]] is not None and row[_AT["cost_usd"]] is None]
    reused = column("connection_reused")
    numbers = [
        f"[{row[_AT['execution_count']]}]" if row[_AT["execution_count"]] is not None else row[_AT["cell_id"]]
        for row in rows
    ]
    durations = sorted(column("duration_ms"))
    return (
        session_id,
        len(rows),
        *(statuses.count(status) for status in ("ok", "error", "cancelled", "incomplete", None)),
        ", ".join(dict.fromkeys(number for number in numbers if number)),
        ", ".join(dict.fromkeys(column("request_model"))),
        _sum(column("input_tokens")),
        _sum(column("output_tokens")),
        _sum(column("cost_usd")),
        len(unpriced),
        _sum(durations),
        _quantile(durations, 0.95),
        _quantile(sorted(column("ttft_ms")), 0.5),
        len({row[_AT["connection_id"]] for row in rows if row[_AT["connection_reused"]] == 0}),
        sum(map(bool, reused)) / len(reused) if reused else None,
        min(column("started_at")),
        max(ends) if ends else None,
    )


def _sum(known: list[Any]) -> Any:
    """The sum of what is known; None where nothing is."""
    return sum(known) if known else None


def _quantile(ordered: list[float], share: float) -> float | None:
    """Linear interpolation between the nearest ranks, as numpy's default."""
    if not ordered:
        return None
    position = (len(ordered) - 1) * share
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def typed_frame(columns: dict[str, str], rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows as a DataFrame with columns of the kinds that `schema` names, also where there is no row."""
    import pandas as pd

    series = zip(*rows, strict=True) if rows else ([] for _ in columns)
    data = {
        name: _typed(kind, list(values)) for (name, kind), values in zip(columns.items(), series, strict=True)
    }
    return pd.DataFrame(data, columns=list(columns))


def _typed(kind: str, values: list[Any]) -> Any:
    import pandas as pd

    if kind == "time":
        microseconds = [None if value is None else round(value * 1e6) for value in values]
        return pd.to_datetime(pd.Series(microseconds, dtype="Int64"), unit="us", utc=True)
    if kind == "bool":
        return pd.array([None if value is None else bool(value) for value in values], dtype="boolean")
    dtype = {"int": "Int64", "float": "float64", "label": "category", "text": "string"}[kind]
    return pd.Series(values, dtype=dtype)
