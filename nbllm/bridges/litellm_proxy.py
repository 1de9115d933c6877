"""What a LiteLLM proxy has noted of its requests, beside what this log knows of them.

Owns `fetch_sessions` and its columns. Source of the formats: the proxy's own code, 1.106
(proxy/spend_tracking/spend_management_endpoints.py, and LiteLLM_SpendLogs in schema.prisma). Called by the
user, as `nbllm.bridges.litellm.fetch_sessions`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
import msgspec

from .. import calls, frames, loops, selection, tagging, tracing
from ..exceptions import APIError, UsageProblem
from ..options import checked_options
from ..providers import HttpRequest, Route
from ..selection import Since
from ..types import parse

if TYPE_CHECKING:
    import pandas as pd

# The proxy's names → ours, where there is one; and their kinds, as in `schema`.
_PROXYS = {
    "session_id": ("session_id", "label"),
    "startTime": ("started_at", "time"),
    "completionStartTime": ("first_chunk_at", "time"),
    "endTime": ("ended_at", "time"),
    "request_duration_ms": ("duration_ms", "float"),
    "call_type": ("call_type", "label"),
    "model_group": ("request_model", "label"),
    "model": ("response_model", "label"),
    "custom_llm_provider": ("provider", "label"),
    "api_base": ("api_base", "label"),
    "status": ("status", "label"),
    "prompt_tokens": ("input_tokens", "int"),
    "completion_tokens": ("output_tokens", "int"),
    "spend": ("cost_usd", "float"),
    "cache_hit": ("cache_hit", "label"),
    "request_id": ("proxy_request_id", "text"),
    "litellm_call_id": ("litellm_call_id", "text"),
}
_OURS = {
    "request_id": "text",
    "session_id": "label",
    "owner": "label",
    "kernel_id": "label",
    "notebook": "label",
    "cell_id": "label",
    "execution_count": "int",
    "duration_ms": "float",
    "ttft_ms": "float",
    "connection_id": "text",
    "connection_reused": "bool",
    "status": "label",
    "cost_usd": "float",
}
PREFIX = "local_"

_SESSION_PAGE, _PAGE = 100, 1000
"""The most rows that the proxy puts on a page: of one session, and of all."""
_SKEW_SECONDS = 3600.0
"""How far the proxy's clock may be from ours."""


def fetch_sessions(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    session_id: str | None = None,
    since: Since = "7d",
    timeout: Any = None,
) -> pd.DataFrame:
    """The requests that a LiteLLM proxy has noted, each with the row of this log that it belongs to.

    A proxy notes what everybody sends who may use it, and what it cost; this log knows the cell, the
    connection and the time on the way.

    Args:
        base_url: The proxy's address; None is that in LITELLM_PROXY_API_BASE.
        api_key: A key that may read its log; None is that in LITELLM_PROXY_API_KEY.
        session_id: Only those of this session.
        since: Only those that started since then, as for `nbllm.requests`; None for all.
        timeout: Seconds for each page.

    Returns:
        One row per request of the proxy's, oldest first. Columns session_id, started_at, first_chunk_at,
        ended_at (UTC), duration_ms, call_type (litellm's name of the verb), request_model (as asked of the
        proxy), response_model (as the proxy asked for it), provider, api_base, status (success or failure),
        input_tokens, output_tokens, cost_usd, cache_hit, proxy_request_id, litellm_call_id (newer proxies
        only): what the proxy says, null where it doesn't. Then, from this log and null where it has no such
        request: local_request_id, local_session_id, local_owner, local_kernel_id, local_notebook,
        local_cell_id, local_execution_count, local_duration_ms, local_ttft_ms, local_connection_id,
        local_connection_reused, local_status, local_cost_usd.

    Raises:
        UsageProblem: The proxy has no database, and so no log; or a value that can't be used.
        APIError: The proxy can't be asked, or refuses.
    """
    return loops.run_sync(
        afetch_sessions(base_url, api_key, session_id=session_id, since=since, timeout=timeout)
    )


async def afetch_sessions(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    session_id: str | None = None,
    since: Since = "7d",
    timeout: Any = None,
) -> pd.DataFrame:
    """`fetch_sessions`, awaited."""
    if session_id is not None:
        tagging.check_session_id(session_id)
    start = 0.0 if since is None else max(selection.moment(since), 0.0)
    given = {"base_url": base_url, "api_key": api_key, "timeout": timeout}
    theirs = {row["request_id"]: row for row in await _all_pages(session_id, start, given)}
    local = _local_rows(start)
    rows = []
    for row in theirs.values():
        values = {name: _value(kind, row.get(name)) for name, (_, kind) in _PROXYS.items()}
        began, ended = values["startTime"], values["endTime"]
        if values["request_duration_ms"] is None and began is not None and ended is not None:
            values["request_duration_ms"] = (ended - began) * 1e3
        if began is not None and began < start:  # the pages of one session know no time
            continue
        ours = next((local[key] for key in _keys_of(row) if key in local), {})
        rows.append((*values.values(), *(ours.get(name) for name in _OURS)))
    rows.sort(key=lambda row: (row[1] is None, row[1]))
    columns = dict(_PROXYS.values()) | {PREFIX + name: kind for name, kind in _OURS.items()}
    return frames.typed_frame(columns, rows)


# -- the proxy's rows ----------------------------------------------------------------------------------


async def _all_pages(
    session_id: str | None, start: float, given: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    if session_id is not None:
        path, asked = "session/ui", {"session_id": session_id, "page_size": _SESSION_PAGE}
    else:
        end = datetime.datetime.now(datetime.UTC).timestamp() + _SKEW_SECONDS
        path, asked = "v2", {"start_date": _date(start), "end_date": _date(end), "page_size": _PAGE}
    found: list[Mapping[str, Any]] = []
    number = pages = 1
    while number <= pages:
        rows, pages = await _page(f"spend/logs/{path}?{urlencode({**asked, 'page': number})}", given)
        if not rows:
            break
        found += rows
        number += 1
    return found


async def _page(path: str, given: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], int]:
    """One page's rows, and how many pages there are."""

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        return HttpRequest(f"{route.base_url.removesuffix('/v1')}/{path}", None, route.headers)

    async def read(
        call: tracing.Call, response: aiohttp.ClientResponse, route: Route
    ) -> tuple[list[Mapping[str, Any]], int]:
        return (await calls.read_answer(call, response, route, _decoded))[1]

    try:
        options = checked_options(**given)
        return await calls.run("spend_logs", "litellm_proxy/spend_logs", options, translate, read)
    except APIError as error:
        if _lacks_database(error):
            raise UsageProblem(
                "this LiteLLM proxy keeps no log of its requests, as it has no database: whoever runs it can "
                "give it one (DATABASE_URL); nbllm.requests() has what this log knows"
            ) from error
        raise


def _lacks_database(error: APIError) -> bool:
    said = str(error).lower()
    return any(
        mark in said
        for mark in ("database not connected", "no connected db", "db not connected", "prisma client is not")
    )


def _decoded(body: bytes) -> tuple[list[Mapping[str, Any]], int]:
    page = parse(body)
    rows = page.get("data") if isinstance(page, dict) else None
    if not isinstance(rows, list):
        raise msgspec.DecodeError("no page of a proxy's log")
    pages = page.get("total_pages")
    usable: list[Mapping[str, Any]] = [
        row for row in rows if isinstance(row, dict) and isinstance(row.get("request_id"), str)
    ]
    return usable, pages if isinstance(pages, int) else 1


def _date(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _value(kind: str, value: Any) -> Any:
    """What the proxy says as a column of that kind takes it; None where it can't be that."""
    if kind == "time":
        try:
            said = datetime.datetime.fromisoformat(value)
            return (said if said.tzinfo else said.replace(tzinfo=datetime.UTC)).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None
    if kind in ("int", "float"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and abs(value) < 1 << 53 and (kind == "float" or value % 1 == 0) else None
    return str(value) if value not in (None, "") else None


# -- ours ----------------------------------------------------------------------------------------------


def _local_rows(start: float) -> dict[str, Mapping[str, Any]]:
    """The log's rows by the ids under which a proxy may know them."""
    since = datetime.datetime.fromtimestamp(max(start - _SKEW_SECONDS, 0.0), datetime.UTC)
    found: dict[str, Mapping[str, Any]] = {}
    for row in selection.request_rows(kernel="all", since=since):
        for key in _local_keys(row):
            found.setdefault(key, row)
    return found


def _local_keys(row: Mapping[str, Any]) -> Iterator[str]:
    headers = parse(row["response_headers"].encode()) if row["response_headers"] else None
    if isinstance(headers, dict):
        named = {name.lower(): value for name, value in headers.items()}
        if isinstance(call_id := named.get("x-litellm-call-id"), str):
            yield call_id
            if row["response_id"]:
                yield row["response_id"]


def _keys_of(row: Mapping[str, Any]) -> Iterator[str]:
    """The ids of a proxy's row. Its request_id is the answer's, and where that has none the call's."""
    for name in ("litellm_call_id", "request_id"):
        if isinstance(value := row.get(name), str):
            yield value
