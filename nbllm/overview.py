"""What the views show of the log: the rows of requests and connections, and the numbers over them.

Owns `Overview`, `totals`, `sessions_of`, `spend`, the phases of a request, and how it is called. Which
requests are meant is `selection`'s. Called by all views; the dashboard computes the same numbers in the
browser, where its filter stands (`static/store.js`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import masking, schema, selection, tagging, text_tables
from .contents import messages_of, text_of
from .selection import Selection

LIMIT = 10_000
"""How many requests a view holds: the newest."""

PROMPT_CHARACTERS = 120
ERROR_CHARACTERS = 500
LONGEST_TEXT = 20_000
"""How much of a text is looked at: much more than is shown, so that no key is cut before it is masked."""

READABLE_BYTES = 1 << 16
"""How large a body may be of which the prompt is told: to read megabytes for a line would take too long."""

Row = dict[str, Any]

_UNSEEN = {
    *("id", "cell_source", "response_id", "provider_request_id", "http_method", "url_path", "params"),
    *("first_chunk_at", "retry_after_ms", "response_headers", "cache_write_tokens"),
    *(f"{way}_{kind}_tokens" for way in ("input", "output") for kind in ("audio", "image")),
}
_NAMES = [name for name in schema.REQUESTS if name not in _UNSEEN]
COLUMNS = (*_NAMES, "notebook", "prompt")
CONNECTIONS = tuple(schema.CONNECTIONS)


class Phase(NamedTuple):
    """A part of a request's time.

    Attributes:
        label: Its name for people.
        colour: "#rrggbb", apart from its neighbours for the colour-blind too, on light and on dark ground.
        meaning: What happens in it.
    """

    label: str
    colour: str
    meaning: str


PHASES = {
    "queued": Phase("queued", "#8a8f98", "waited for the limits that were set"),
    "blocked": Phase("blocked", "#b9bec6", "waited for a free connection"),
    "dns": Phase("DNS", "#009e73", "looked up the server's address"),
    "connect": Phase("connect", "#e69f00", "opened the connection (TCP)"),
    "tls": Phase("TLS", "#cc79a7", "agreed on the encryption"),
    "send": Phase("send", "#d55e00", "sent the request"),
    "wait": Phase("wait", "#8ec5ef", "waited for the server's first byte"),
    "first_token": Phase("first token", "#3f9ad9", "from the first byte to the first content"),
    "stream": Phase("stream", "#1565b0", "received the rest of the answer"),
}


@dataclass(frozen=True, slots=True)
class Overview:
    """Rows at one moment.

    Attributes:
        requests: By the names of `COLUMNS`, oldest first. Times are seconds since 1970 UTC, None is unknown,
            and `status` None is running; `prompt` is the beginning of the last message of the user.
        connections: By the names of `CONNECTIONS`, oldest first: those that the requests used, and of
            a kernel that is not filtered also those that served none.
        left_out: How many older requests are meant, too.
        taken_at: Seconds since 1970 UTC.
    """

    requests: list[Row]
    connections: list[Row]
    left_out: int
    taken_at: float


def overview(chosen: Selection, limit: int = LIMIT) -> Overview:
    """The requests that are meant, the newest `limit` of them, and their connections."""
    taken_at = time.time()
    requests = _requests(chosen, "1 = 1", limit)
    left_out = 0
    if len(requests) == limit:
        counted = selection.read(chosen, lambda where, _: f"SELECT count(*) FROM requests WHERE {where}")
        left_out = max(0, counted[0][0] - limit)
    is_filtered = chosen != Selection(kernel=chosen.kernel)
    if is_filtered:
        condition = "1 = 0"
    elif chosen.kernel == "all":
        condition = "1 = 1"
    else:
        condition = f"kernel_id = '{chosen.kernel or tagging.kernel_id()}'"  # checked by `Selection`
    connections = _connections(
        chosen,
        lambda where: f"{condition} OR connection_id IN (SELECT connection_id FROM requests WHERE {where})",
    )
    if left_out:
        used = {row["connection_id"] for row in requests}
        connections = [row for row in connections if row["connection_id"] in used]
    return Overview(requests, connections, left_out, taken_at)


def changed(chosen: Selection, ids: Collection[int], connection_ids: Collection[str]) -> Overview:
    """Those of these requests and connections of this kernel that are meant, as they are now.

    Args:
        chosen: Which requests are meant.
        ids: The requests' `id`.
        connection_ids: The connections'; those of the requests are told in any case.
    """
    taken_at = time.time()
    own = dataclasses.replace(chosen, kernel=tagging.kernel_id())
    requests = _requests(own, f"id IN ({_listed(map(str, map(int, ids)))})", len(ids)) if ids else []
    wanted = {*connection_ids, *(row["connection_id"] for row in requests)} - {None}
    listed = _listed(f"'{name}'" for name in wanted)  # they are made by us
    connections = _connections(own, lambda _: f"connection_id IN ({listed})") if wanted else []
    return Overview(requests, connections, 0, taken_at)


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _requests(chosen: Selection, condition: str, limit: int) -> list[Row]:
    is_said = f"contents.id = requests.id AND length(request) <= {READABLE_BYTES}"
    body = f"(SELECT request FROM contents WHERE {is_said})"
    names = ", ".join((*_NAMES, selection.NOTEBOOK, body))
    found = selection.read(
        chosen,
        lambda where, _: (
            f"SELECT {names} FROM requests WHERE {where} AND {condition} "
            f"ORDER BY started_at DESC, id DESC LIMIT {limit}"
        ),
    )
    rows = selection.as_dicts(COLUMNS, reversed(found))
    for row in rows:
        row["prompt"] = _prompt(row["prompt"])
        if row["error_message"]:
            row["error_message"] = row["error_message"][:ERROR_CHARACTERS]
    return rows


def _prompt(request: str | None) -> str | None:
    """How the last message of the user begins, in one line."""
    said = [message for message in messages_of(request) if message["role"] == "user"] if request else []
    if not said:
        return None
    # More is looked at than is told, so that no key is cut before it is masked.
    text = masking.redact(text_of(said[-1])[: 8 * PROMPT_CHARACTERS])
    return " ".join(text[: 4 * PROMPT_CHARACTERS].split())[:PROMPT_CHARACTERS]


def _connections(chosen: Selection, condition: Callable[[str], str]) -> list[Row]:
    found = selection.read(
        chosen,
        lambda where, _: (
            f"SELECT {', '.join(CONNECTIONS)} FROM connections WHERE {condition(where)} "
            "ORDER BY opened_at, connection_id"
        ),
    )
    return [dict(zip(CONNECTIONS, values, strict=True)) for values in found]


# -- one request -------------------------------------------------------------------------------------------


def phases(row: Row) -> list[tuple[str, float]]:
    """Name and milliseconds of the phases that a request had, in order; they begin `queued_ms` before it.

    What they leave of its duration belongs to none, as where it failed on the way.
    """
    before = sum(row[name] or 0.0 for name in ("blocked_ms", "dns_ms", "connect_ms", "send_ms", "wait_ms"))
    received, first = row["receive_ms"] or 0.0, 0.0
    if row["ttft_ms"] is not None:
        first = min(max(0.0, row["ttft_ms"] - before), received)
    took = {
        "queued": row["queued_ms"],
        "blocked": row["blocked_ms"],
        "dns": row["dns_ms"],
        "connect": (row["connect_ms"] or 0.0) - (row["ssl_ms"] or 0.0),
        "tls": row["ssl_ms"],
        "send": row["send_ms"],
        "wait": row["wait_ms"],
        "first_token": first,
        "stream": received - first,
    }
    return [(name, value) for name, value in took.items() if value and value > 0]


def said(value: Any, length: int) -> str:
    """A text from outside, as a view may show it: masked, in one line, and no longer than that."""
    text = text_tables.one_line(masking.redact(str(value)[:LONGEST_TEXT]))
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def model_of(row: Row) -> str:
    """The model as one types it; what was asked for, where no model is known."""
    if (model := row["request_model"]) is None:
        return row["operation"] or f"foreign {row['server_address'] or ''}".strip()
    return f"demo/{model}" if row["provider"] == "demo" else str(model)


def cell_of(row: Row) -> str:
    """The cell's number as `[3]`, else its id, else a dash."""
    if row["execution_count"] is not None:
        return f"[{row['execution_count']}]"
    return str(row["cell_id"] or "\N{EN DASH}")


# -- several -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers over requests; None is unknown.

    Attributes:
        requests: How many; so are errors, cancelled, incomplete and running, by their status.
        input_tokens: Sum of those that are known; so are output_tokens and cost_usd (US dollars).
        unpriced: How many have tokens and no known price.
        duration_ms: Sum; duration_p50_ms, duration_p95_ms and ttft_p50_ms are percentiles.
        connections_opened: How many came over a new connection.
        handshakes_saved: How many came over one that was there.
        reuse_ratio: The share of these.
        handshakes_saved_ms: What their handshakes would have taken, an estimate: for each the median of those
            with the same server.
    """

    requests: int
    errors: int
    cancelled: int
    incomplete: int
    running: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    unpriced: int
    duration_ms: float | None
    duration_p50_ms: float | None
    duration_p95_ms: float | None
    ttft_p50_ms: float | None
    connections_opened: int
    handshakes_saved: int
    reuse_ratio: float | None
    handshakes_saved_ms: float | None


def totals(requests: Collection[Row]) -> Totals:
    """The numbers over these rows."""
    statuses = [row["status"] for row in requests]
    durations, firsts = _known(requests, "duration_ms"), _known(requests, "ttft_ms")
    opened = sum(row["connection_reused"] is False for row in requests)
    reused = sum(row["connection_reused"] is True for row in requests)
    return Totals(
        requests=len(requests),
        errors=statuses.count("error"),
        cancelled=statuses.count("cancelled"),
        incomplete=statuses.count("incomplete"),
        running=statuses.count(None),
        input_tokens=_sum(_known(requests, "input_tokens")),
        output_tokens=_sum(_known(requests, "output_tokens")),
        cost_usd=_sum(_known(requests, "cost_usd")),
        unpriced=sum(row["input_tokens"] is not None and row["cost_usd"] is None for row in requests),
        duration_ms=_sum(durations),
        duration_p50_ms=_percentile(durations, 50),
        duration_p95_ms=_percentile(durations, 95),
        ttft_p50_ms=_percentile(firsts, 50),
        connections_opened=opened,
        handshakes_saved=reused,
        reuse_ratio=reused / (opened + reused) if opened + reused else None,
        handshakes_saved_ms=_saved(requests),
    )


def _known(requests: Iterable[Row], name: str) -> list[Any]:
    return [value for row in requests if (value := row[name]) is not None]


def _sum(values: Sequence[Any]) -> Any:
    return sum(values) if values else None


def _percentile(values: Sequence[Any], percent: int) -> Any:
    """Between two values it is interpolated, as in SQL's percentile_cont and numpy's default."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _saved(requests: Iterable[Row]) -> Any:
    took: dict[Any, list[float]] = {}
    spared: dict[Any, int] = {}
    for row in requests:
        server = row["server_address"], row["server_port"]
        if row["connection_reused"]:
            spared[server] = spared.get(server, 0) + 1
        elif row["connection_reused"] is False and row["connect_ms"] is not None:
            took.setdefault(server, []).append((row["dns_ms"] or 0.0) + row["connect_ms"])
    known = [
        (_percentile(took[server], 50) or 0.0) * count for server, count in spared.items() if server in took
    ]
    return _sum(known)


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one session: of one owner, where a log holds those of several."""

    session_id: str
    owner: str | None
    requests: list[Row]

    @property
    def totals(self) -> Totals:
        return totals(self.requests)

    @property
    def models(self) -> list[str]:
        """By first use."""
        return list(dict.fromkeys(map(model_of, self.requests)))

    @property
    def cells(self) -> list[str]:
        """By first use."""
        return list(dict.fromkeys(map(cell_of, self.requests)))


def sessions_of(requests: Iterable[Row]) -> list[Group]:
    """The sessions of these rows, by their first."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in requests:
        groups.setdefault((row["session_id"], row["owner"]), []).append(row)
    return [Group(session_id, owner, rows) for (session_id, owner), rows in groups.items()]


def spender_of(requests: Collection[Row], by: str) -> Callable[[Row], str]:
    """Which model or session `spend` counts each of these requests to; `by` as there."""
    if by == "request_model":
        return model_of
    has_owners = len({row["owner"] for row in requests}) > 1

    def session(row: Row) -> str:
        owner = f" ({row['owner']})" if has_owners and row["owner"] else ""
        return f"{row['session_id']}{owner}"

    return session


def spend(requests: Collection[Row], by: str) -> list[tuple[str, Totals]]:
    """What was spent on each model or in each session, the dearest first.

    Args:
        requests: Rows.
        by: "request_model" or "session_id": each owner's own, called "review (anna)" where there are several.
    """
    name_of = spender_of(requests, by)
    groups: dict[str, list[Row]] = {}
    for row in requests:
        groups.setdefault(name_of(row), []).append(row)
    spent = [(name, totals(rows)) for name, rows in groups.items()]
    return sorted(spent, key=lambda one: (-(one[1].cost_usd or 0.0), -(one[1].input_tokens or 0), one[0]))
