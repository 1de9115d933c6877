"""One line about requests: which model answered, and what it took in tokens, money, time and connections.

Owns `footer` and `brief`, for one request, and `summary`, for several. Pure; called by the magics and
`transcripts`. Knows a `tracing.Record`, or a row of the log with the same names, and nothing of where it
comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from . import tagging, tracing, units


def footer(record: tracing.Record | None, *, mark: str | None = None) -> str:
    """One line about a request: model, session, tokens, cost, time, connection; what is unknown is left out.

    Args:
        record: Of the request; None where nothing was recorded.
        mark: What is to be known first, such as "interrupted".
    """
    if record is None:
        return mark or ""
    cost = record.cost_usd
    parts = (
        mark,
        _model(record),
        None if record.session_id == tagging.default_session() else record.session_id,
        _tokens(record),
        _cost(cost),
        _times(record),
        f"attempt {record.attempt}" if record.attempt > 1 else None,
        _finish(record.finish_reason),
        _connection(record),
    )
    return " · ".join(part for part in parts if part)


def summary(requests: Sequence[tracing.Record | SimpleNamespace]) -> str:
    """One line about several requests, at least one: as `footer`, with what they took together."""
    failed = sum(request.status != "ok" for request in requests)
    models = dict.fromkeys(_name(request) for request in requests if request.request_model)
    sessions = dict.fromkeys(request.session_id for request in requests)
    sessions.pop(tagging.default_session(), None)
    total = SimpleNamespace(
        input_tokens=_total(requests, "input_tokens"), output_tokens=_total(requests, "output_tokens")
    )
    parts = (
        units.plural(len(requests), "request"),
        f"{failed:,} not ok" if failed else None,
        ", ".join(models) if len(models) <= 3 else f"{len(models)} models",
        ", ".join(sessions) if len(sessions) <= 3 else f"{len(sessions)} sessions",
        _tokens(total),
        _cost(_total(requests, "cost_usd")),
    )
    return " · ".join(part for part in parts if part)


def brief(request: Any) -> str:
    """What a request took, and no more: model, tokens, cost, time; what is unknown is left out."""
    parts = (
        _name(request) if request.request_model else None,
        _tokens(request),
        _cost(request.cost_usd),
        None if request.duration_ms is None else units.seconds(request.duration_ms),
        f"attempt {request.attempt}" if request.attempt > 1 else None,
        None if request.finish_reason == "tool_calls" else _finish(request.finish_reason),
    )
    return " · ".join(part for part in parts if part)


def _total(requests: Sequence[tracing.Record | SimpleNamespace], name: str) -> Any:
    """The sum; None where it is unknown of a request that succeeded."""
    values = [getattr(request, name) for request in requests]
    known = [value for value in values if value is not None]
    is_whole = all(
        value is not None or request.status != "ok" for request, value in zip(requests, values, strict=True)
    )
    return sum(known) if known and is_whole else None


def _model(record: tracing.Record) -> str | None:
    return f"{_name(record)} (demo model)" if record.provider == "demo" else record.request_model


def _name(record: tracing.Record | SimpleNamespace) -> str:
    return f"demo/{record.request_model}" if record.provider == "demo" else str(record.request_model)


def _tokens(record: tracing.Record | SimpleNamespace) -> str | None:
    sent, got = record.input_tokens, record.output_tokens
    if sent is None:
        return None if got is None else f"{got:,} tok out"
    return f"{sent:,} tok in" if got is None else f"{sent:,}→{got:,} tok"


def _cost(cost: float | None) -> str | None:
    return None if cost is None or not cost >= 0 else units.money(cost)


def _times(record: tracing.Record) -> str | None:
    if record.duration_ms is None:
        return None
    first = "" if record.ttft_ms is None else f" (first {units.seconds(record.ttft_ms)})"
    return units.seconds(record.duration_ms) + first


def _finish(reason: str | None) -> str | None:
    """Why an answer ended, where that is not its natural end."""
    if reason in (None, "stop"):
        return None
    return "cut off at the token limit" if reason == "length" else f"finish: {reason}"


def _connection(record: tracing.Record) -> str | None:
    if record.connection_reused is None:
        return None
    if record.connection_reused:
        return "connection reused"
    if record.connection_reason is None:
        return "new connection"
    idle = record.connection_idle_ms
    if idle is None:
        return f"new connection: {record.connection_reason}"
    waited = units.seconds(idle) if idle < 9950 else f"{idle / 1e3:.0f} s"
    return f"new connection: idle {waited}, {record.connection_reason.removeprefix('idle ')}"
