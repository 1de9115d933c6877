"""What an output's metadata tell of the requests behind it: written by a cell, read from a saved notebook.

Owns its shape, `{"nbllm": {"requests": [{"request_id": …}, …]}}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from . import tracing

REQUEST: dict[str, str] = {
    "request_id": "text",
    "session_id": "label",
    "model": "label",
    "status": "label",
    "input_tokens": "int",
    "output_tokens": "int",
    "cost_usd": "float",
    "duration_ms": "float",
    "ttft_ms": "float",
    "started_at": "time",
}
"""What is told of a request: name -> kind, as in `schema`; a time is ISO 8601 in UTC."""


def pack(requests: Iterable[tracing.Record | SimpleNamespace]) -> dict[str, Any]:
    """The metadata of an output that shows what came of `requests`; empty where there are none.

    Args:
        requests: Records, or rows of the log with the same names. What is unknown of one is left out.
    """
    return _packed([_told(request) for request in requests])


def joined(several: Iterable[Any]) -> dict[str, Any]:
    """The metadata of an output that stands for several, each with metadata of its own or None."""
    return _packed([request for metadata in several for request in unpack(metadata)])


def unpack(metadata: Any) -> list[dict[str, Any]]:
    """What an output's metadata tell of requests; whatever is not as `pack` makes it is passed over."""
    ours = metadata.get("nbllm") if isinstance(metadata, dict) else None
    requests = ours.get("requests") if isinstance(ours, dict) else None
    return [one for one in requests if isinstance(one, dict)] if isinstance(requests, list) else []


def _packed(requests: list[dict[str, Any]]) -> dict[str, Any]:
    return {"nbllm": {"requests": requests}} if requests else {}


def _told(request: tracing.Record | SimpleNamespace) -> dict[str, Any]:
    told = {name: getattr(request, "request_model" if name == "model" else name) for name in REQUEST}
    told["started_at"] = datetime.fromtimestamp(request.started_at, UTC).isoformat(timespec="milliseconds")
    return {name: value for name, value in told.items() if value is not None}
