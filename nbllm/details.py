"""What a view shows of one request when somebody looks closer, and which requests hold a text.

Owns `detail_of` and `found`. All comes from the log, whose thread answers; what was said is cut where it is
long, and no key stands in it. Called by `feeds`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import masking, overview, schema, selection, snippets
from .contents import answer_of, logged_object, messages_of, text_of
from .exceptions import UsageProblem
from .selection import Selection

LONGEST_TEXT = 100_000
"""How many characters of one text are shown."""
LONGEST_WHOLE = 1_000_000
"""How many of all messages together: the texts of the oldest are left out first."""

ATTEMPT = (
    *("request_id", "attempt", "status", "http_status", "error_type", "error_message", "duration_ms"),
    "started_at",
)
"""What is told of each attempt of the call."""

Row = dict[str, Any]


def detail_of(request_id: str) -> dict[str, Any]:
    """What is known of a request beyond its row.

    Returns:
        - messages: dicts with role, text and calls, those being dicts with name and arguments; empty where
          the content is not kept.
        - answer: a dict with text, reasoning (None where there is none) and calls; or None.
        - content_kept: whether the log holds what was said.
        - params, headers: the caller's parameters, and the answer's headers that are kept; or None.
        - attempts: dicts with the columns of `ATTEMPT`, of all attempts of the call.
        - connection: its row in the log; or None.
        - code, curl: the request as one would type it; or None.

    Raises:
        UsageProblem: The log has no such request.
    """
    row, attempts = _rows(request_id)
    request, response = selection.contents([row["id"]]).get(row["id"], (None, None))
    connection = _connection(row)
    is_secure = row["server_port"] == 443 if connection is None else connection["tls_version"] is not None
    answer = answer_of(response)
    detail = {
        "messages": _messages(messages_of(request)),
        "answer": None if answer is None else _answer(answer),
        "content_kept": request is not None,
        "params": logged_object(row["params"]) or None,
        "headers": logged_object(row["response_headers"]) or None,
        "attempts": [{name: one[name] for name in ATTEMPT} for one in attempts],
        "connection": connection,
        "code": snippets.as_code(row, request, is_secure),
        "curl": snippets.as_curl(row, request, is_secure),
    }
    masked: dict[str, Any] = _masked(detail)
    return masked


def found(chosen: Selection, text: str) -> list[str]:
    """The `request_id` of the requests that are meant and hold a text, the newest first.

    It is looked for in messages, answers and errors, whatever the case of ASCII letters.

    Raises:
        UsageProblem: The text is too long.
    """
    rows = selection.read(
        replace(chosen, search=text),
        lambda where, _: (
            f"SELECT request_id FROM requests WHERE {where} "
            f"ORDER BY started_at DESC, id DESC LIMIT {overview.LIMIT}"
        ),
    )
    return [row[0] for row in rows]


def _rows(request_id: str) -> tuple[Row, list[Row]]:
    """The row of a request, and those of all attempts of its call, in order."""
    known = re.fullmatch(r"([0-9a-f]{8})-r(\d{1,9})", request_id)
    if known is None:
        raise UsageProblem(f"a request's id is like '0badcafe-r1'; got {masking.redact(request_id)!r:.80}")
    names = tuple(schema.REQUESTS)
    rows = selection.read(
        Selection(kernel=known[1]),
        lambda where, _: (
            f"SELECT {', '.join(names)} FROM requests WHERE {where} AND call_id = "
            f"(SELECT call_id FROM requests WHERE id = :first + {int(known[2])}) ORDER BY attempt, id"
        ),
    )
    attempts = [dict(zip(names, values, strict=True)) for values in rows]
    row = next((one for one in attempts if one["request_id"] == request_id), None)
    if row is None:
        raise UsageProblem(f"the log has no request {request_id}: it was forgotten, or pruned")
    return row, attempts


def _connection(row: Row) -> Row | None:
    names = overview.CONNECTIONS
    rows = selection.read(
        Selection(kernel=row["kernel_id"]),
        lambda where, _: (
            f"SELECT {', '.join(names)} FROM connections WHERE connection_id = "
            f"(SELECT connection_id FROM requests WHERE {where} AND id = {int(row['id'])})"
        ),
    )
    return dict(zip(names, rows[0], strict=True)) if rows else None


def _messages(messages: list[Row]) -> list[Row]:
    shown = []
    left = LONGEST_WHOLE
    for message in reversed(messages):
        text = text_of(message)
        if left <= 0 and text:
            text = f"… ({len(text):,} characters are not shown)"
        left -= len(text)
        shown.append({"role": message["role"], "text": _cut(text), "calls": _calls(message)})
    return shown[::-1]


def _answer(answer: Row) -> Row:
    reasoning = answer.get("reasoning_content")
    return {
        "text": _cut(text_of(answer)),
        "reasoning": None if reasoning is None else _cut(reasoning),
        "calls": _calls(answer),
    }


def _calls(message: Mapping[str, Any]) -> list[Row]:
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [{"name": one["name"], "arguments": _cut(one["arguments"])} for one in functions]


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… (cut here: {len(text) - LONGEST_TEXT:,} more characters)"


def _masked(value: Any) -> Any:
    """A value without keys in its texts."""
    if isinstance(value, str):
        return masking.redact(value)
    if isinstance(value, dict):
        return {name: _masked(item) for name, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list) else value
