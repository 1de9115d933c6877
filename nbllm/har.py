"""Requests as an HTTP Archive, which a browser's network panel opens.

Owns the format: HAR 1.2 (w3c.github.io/web-performance/specs/HAR/Overview.html; with explanations,
github.com/ahmadnassri/har-spec). Plain values in and out. A session is a page. Fields of our own begin with
an underscore, as the format wants it, and are named as the log's columns. Called by `exporting`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http.client import responses
from typing import Any

Row = Mapping[str, Any]

UNKNOWN = -1
"""The format's word for a size that is not known, and for a phase that there was not."""

PHASES = ("blocked", "dns", "connect", "send", "wait", "receive")
"""Those that make up an entry's time; `ssl` is a part of `connect`."""

SAID_OTHERWISE = {
    *("started_at", "duration_ms", "session_id", "http_method", "http_status", "url_path", "server_address"),
    *("server_port", "connection_id", "response_headers", "request", "response", "ssl_ms"),
    *(f"{phase}_ms" for phase in PHASES),
}
"""The columns that the format has a field for."""


def archive(rows: Iterable[Row], connections: Mapping[str, Row], version: str) -> dict[str, Any]:
    """The archive of requests, oldest first; those that have not ended are left out.

    Args:
        rows: Columns of the log, and `request` and `response`, where messages and answers shall be in it.
        connections: By `connection_id`; of those unknown, the port tells the scheme.
        version: That of nbllm.
    """
    pages: dict[str, dict[str, Any]] = {}
    entries = []
    for row in rows:
        if row["duration_ms"] is None:
            continue
        entry = _entry(row, connections.get(row["connection_id"], {}))
        entries.append(entry)
        pages.setdefault(entry["pageref"], _page(entry))
    creator = {"name": "nbllm", "version": version}
    return {"log": {"version": "1.2", "creator": creator, "pages": list(pages.values()), "entries": entries}}


def _page(first: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "startedDateTime": first["startedDateTime"],
        "id": first["pageref"],
        "title": first["pageref"],
        "pageTimings": {"onContentLoad": UNKNOWN, "onLoad": UNKNOWN},
    }


def _entry(row: Row, connection: Row) -> dict[str, Any]:
    timings = _timings(row)
    entry = {
        "pageref": row["session_id"],
        "startedDateTime": datetime.fromtimestamp(row["started_at"], UTC).isoformat(),
        "time": sum(timings[phase] for phase in PHASES if timings[phase] != UNKNOWN),
        "request": _request(row, connection),
        "response": _response(row),
        "cache": {},
        "timings": timings,
    }
    if (peer := connection.get("peer")) is not None:
        entry["serverIPAddress"] = peer.rpartition(":")[0].strip("[]")
    if row["connection_id"] is not None:
        entry["connection"] = row["connection_id"]
    ours = {name: value for name, value in row.items() if name not in SAID_OTHERWISE and value is not None}
    return entry | {f"_{name}": value for name, value in ours.items()}


def _timings(row: Row) -> dict[str, float]:
    """The phases in milliseconds. Of a request that broke off, the one that it was in takes up the rest."""
    timings = {phase: _known(row[f"{phase}_ms"]) for phase in (*PHASES, "ssl")}
    rest = row["duration_ms"] - sum(timings[phase] for phase in PHASES if timings[phase] != UNKNOWN)
    if timings["receive"] == UNKNOWN and rest > 0:
        phase = "blocked" if row["connection_reused"] is None else "wait"  # for a connection, or the answer
        timings[phase] = max(timings[phase], 0.0) + rest
    return timings | {phase: max(timings[phase], 0.0) for phase in ("send", "wait", "receive")}  # never -1


def _known(milliseconds: float | None) -> float:
    return UNKNOWN if milliseconds is None else max(milliseconds, 0.0)


def _request(row: Row, connection: Row) -> dict[str, Any]:
    port = row["server_port"]
    secure = port == 443 if not connection else connection.get("tls_version") is not None
    scheme, usual = ("https", 443) if secure else ("http", 80)
    host = row["server_address"] or "unknown"
    host = f"[{host}]" if ":" in host else host
    request: dict[str, Any] = {
        "method": row["http_method"] or "POST",
        "url": f"{scheme}://{host}{'' if port in (usual, None) else f':{port}'}{row['url_path'] or '/'}",
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": [],  # they are kept nowhere: a key is among them
        "queryString": [],
        "headersSize": UNKNOWN,
        "bodySize": UNKNOWN,
    }
    if (body := row.get("request")) is not None:
        request["postData"] = {"mimeType": "application/json", "text": body}
    return request


def _response(row: Row) -> dict[str, Any]:
    headers = _headers(row.get("response_headers"))
    status = row["http_status"] or 0
    response = {
        "status": status,
        "statusText": responses.get(status, ""),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": [{"name": name, "value": value} for name, value in headers.items()],
        "content": {"size": UNKNOWN, "mimeType": headers.get("content-type", "x-unknown")},
        "redirectURL": "",
        "headersSize": UNKNOWN,
        "bodySize": UNKNOWN,
        # Chromium's own fields: what its panel shows as size and as error.
        "_transferSize": UNKNOWN if row["bytes_received"] is None else row["bytes_received"],
        "_error": row["error_message"],
    }
    if (body := row.get("response")) is not None:  # of a stream, the answer put together
        response["content"] = {"size": len(body.encode()), "mimeType": "application/json", "text": body}
    return response


def _headers(text: str | None) -> dict[str, str]:
    try:
        headers = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(headers, dict):
        return {}
    return {name.lower(): str(value) for name, value in headers.items()}
