"""What the frames say, as plain objects: null is None, times are seconds since 1970."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd

import nbllm
from nbllm import notices, tracing


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Let the loop turn until `condition()` holds, which no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


def _plain(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.timestamp()
    return None if pd.isna(value) else value


def _objects(frame: pd.DataFrame) -> list[Any]:
    return [SimpleNamespace(**{k: _plain(v) for k, v in row.items()}) for row in frame.to_dict("records")]


def request_rows(**filters: Any) -> list[Any]:
    """The rows of `nbllm.requests()`."""
    return _objects(nbllm.requests(**filters))


def connection_rows(**filters: Any) -> list[Any]:
    """The rows of `nbllm.connections()`."""
    return _objects(nbllm.connections(**filters))


def session_rows(**filters: Any) -> list[Any]:
    """The rows of `nbllm.sessions()`."""
    return _objects(nbllm.sessions(**filters))


def only_row() -> Any:
    """The one and only request, which must have ended."""
    (row,) = request_rows()
    assert tracing.running() == []
    assert not notices._state.warned  # as for a row that came twice
    return row


def phases(row: Any) -> float:
    """Milliseconds of all phases together."""
    names = ("blocked_ms", "dns_ms", "connect_ms", "send_ms", "wait_ms", "receive_ms")
    return sum(getattr(row, name) or 0.0 for name in names)
