"""What a report says, in words: the same for its HTML and for a terminal, which only lay it out.

Owns which requests, sessions and connections are told one by one, and the texts about them. Whatever came
from outside leaves this module masked, in one line, and cut; it is not yet escaped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from . import overview, time_axis, units
from .overview import Group, Overview, Row, Totals

NAME_CHARACTERS = 60
MESSAGE_CHARACTERS = 300
DOT = " \N{MIDDLE DOT} "


@dataclass(frozen=True)
class Parts:
    """What a report tells: sums over all of an overview, and its newest rows one by one.

    Attributes:
        overview: The rows.
        scope: Which requests are meant, in words.
        limit: How many requests are told one by one.
    """

    overview: Overview
    scope: str
    limit: int

    @property
    def now(self) -> float:
        return self.overview.taken_at

    @cached_property
    def totals(self) -> Totals:
        return overview.totals(self.overview.requests)

    @cached_property
    def requests(self) -> list[Row]:
        """Those that are told one by one."""
        return self.overview.requests[-self.limit :]

    @cached_property
    def sessions(self) -> list[Group]:
        """All of them, by their first request."""
        return overview.sessions_of(self.overview.requests)

    @cached_property
    def failed(self) -> list[Row]:
        """The requests that ended with an error, the newest first."""
        return [row for row in reversed(self.overview.requests) if row["status"] == "error"]

    @cached_property
    def has_days(self) -> bool:
        """Whether a time of day would not tell which day."""
        moments = [self.now, *(row["started_at"] for row in self.overview.requests[:1])]
        return len({time.localtime(moment)[:3] for moment in moments}) > 1

    @property
    def share(self) -> str:
        """What `spending` tells the shares of."""
        return "share of cost" if self.totals.cost_usd else "share of tokens"

    @property
    def heading(self) -> str:
        taken = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.now)).strip()
        return DOT.join(["nbllm report", said(self.scope), taken])

    @property
    def notes(self) -> list[str]:
        """What is left out."""
        rows, older = len(self.overview.requests), self.overview.left_out
        notes = []
        if len(self.requests) < rows:
            notes.append(
                f"the newest {len(self.requests):,} of {rows:,} requests are listed, the sums are of all"
            )
        if older:
            notes.append(f"{older:,} older requests are not in it")
        return notes

    def clock(self, moment: float | None) -> str:
        return units.clock(moment, has_day=self.has_days)


def said(value: Any, length: int = NAME_CHARACTERS) -> str:
    """`overview.said`, as long as a name by default."""
    return overview.said(value, length)


# -- numbers over several requests -------------------------------------------------------------------------


def headline(totals: Totals) -> list[tuple[str, str]]:
    """The sums as label and value."""
    saved = units.count(totals.handshakes_saved)
    if totals.handshakes_saved_ms is not None:
        saved += f" (\N{ALMOST EQUAL TO} {units.seconds(totals.handshakes_saved_ms)})"
    tiles = [
        ("requests", units.count(totals.requests)),
        ("running", units.count(totals.running) if totals.running else ""),
        ("errors", units.count(totals.errors)),
        ("cancelled", units.count(totals.cancelled) if totals.cancelled else ""),
        ("incomplete", units.count(totals.incomplete) if totals.incomplete else ""),
        ("tokens", units.tokens(totals.input_tokens, totals.output_tokens)),
        ("cost", units.money(totals.cost_usd)),
        ("unpriced", units.count(totals.unpriced) if totals.unpriced else ""),
        ("time p50", units.seconds(totals.duration_p50_ms)),
        ("p95", units.seconds(totals.duration_p95_ms)),
        ("first token p50", units.seconds(totals.ttft_p50_ms)),
        ("connections opened", units.count(totals.connections_opened)),
        ("reused", units.percent(totals.reuse_ratio)),
        ("handshakes saved", saved),
    ]
    return [(label, value) for label, value in tiles if value]


def troubles(totals: Totals) -> str:
    """How many did not end well, or not yet; empty where all did."""
    counted = {
        "running": totals.running,
        "cancelled": totals.cancelled,
        "incomplete": totals.incomplete,
    }
    parts = [units.plural(totals.errors, "error")] if totals.errors else []
    return ", ".join([*parts, *(f"{number:,} {word}" for word, number in counted.items() if number)])


def cost(totals: Totals) -> str:
    """The cost, and of how many requests it is not known."""
    if not totals.unpriced:
        return units.money(totals.cost_usd)
    unpriced = f"{totals.unpriced:,} unpriced"
    return unpriced if totals.cost_usd is None else f"{units.money(totals.cost_usd)} ({unpriced})"


def session_name(group: Group, groups: Sequence[Group]) -> str:
    """Its id, and its owner where the log holds those of several."""
    has_owners = any(one.owner != group.owner for one in groups)
    return said(f"{group.session_id} ({group.owner})" if has_owners and group.owner else group.session_id)


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(said(name, NAME_CHARACTERS // 2) for name in names[:most]) + more


def notebooks(requests: Iterable[Row]) -> str:
    """The notebooks' names."""
    paths = dict.fromkeys(row["notebook"] for row in requests if row["notebook"])
    return listed(dict.fromkeys(PurePath(path.replace("\\", "/")).name for path in paths))


@dataclass(frozen=True)
class Spending:
    """What was spent on one model or session, or on all that are not told by name."""

    name: str
    requests: int
    tokens: str
    cost: str
    unpriced: int
    share: float | None
    """Of the cost; where nothing has cost anything, of the tokens. None where neither is known."""


def spending(requests: Sequence[Row], by: str, most: int) -> list[Spending]:
    """The dearest `most` by name, and the others together."""
    spent = overview.spend(requests, by)
    weights = [totals.cost_usd or 0.0 for _, totals in spent]
    if not any(weights):
        weights = [(totals.input_tokens or 0) + (totals.output_tokens or 0) for _, totals in spent]
    whole = sum(weights)
    told = [
        Spending(
            said(name),
            totals.requests,
            units.tokens(totals.input_tokens, totals.output_tokens),
            units.money(totals.cost_usd),
            totals.unpriced,
            weight / whole if whole else None,
        )
        for (name, totals), weight in zip(spent[:most], weights, strict=False)
    ]
    if len(spent) <= most:
        return told
    named, name_of = {name for name, _ in spent[:most]}, overview.spender_of(requests, by)
    rest = overview.totals([row for row in requests if name_of(row) not in named])
    return [
        *told,
        Spending(
            f"{len(spent) - most:,} others",
            rest.requests,
            units.tokens(rest.input_tokens, rest.output_tokens),
            units.money(rest.cost_usd),
            rest.unpriced,
            sum(weights[most:]) / whole if whole else None,
        ),
    ]


# -- one request -------------------------------------------------------------------------------------------


def cell(row: Row) -> str:
    return said(overview.cell_of(row), 12)


def model(row: Row) -> str:
    return said(overview.model_of(row))


def prompt(row: Row, length: int) -> str:
    return said(row["prompt"], length) if row["prompt"] else ""


def outcome(row: Row) -> str:
    """How it ended in a word: "ok", "429", "cancelled", "running"."""
    if row["status"] == "error":
        return str(row["http_status"]) if (row["http_status"] or 0) >= 400 else "error"
    return said(row["status"] or "running")


def status(row: Row) -> str:
    """How it ended, of an error its type too, and which attempt it was if not the first."""
    word = outcome(row)
    if row["error_type"]:
        word = said(f"{word} {row['error_type']}".removeprefix("error "))
    return f"{word}, attempt {row['attempt']}" if (row["attempt"] or 1) > 1 else word


def duration(row: Row, now: float) -> str:
    """How long it took; of a running one how long it has taken so far."""
    if row["status"] is None and row["duration_ms"] is None:
        return f"{units.seconds(max(0.0, now - row['started_at']) * 1e3)}\N{HORIZONTAL ELLIPSIS}"
    return units.seconds(row["duration_ms"])


def phases(row: Row) -> str:
    """Its phases as text; those that would round to nothing are left out."""
    took = [(name, value) for name, value in overview.phases(row) if value >= 0.5]
    return DOT.join(f"{overview.PHASES[name].label} {units.seconds(value)}" for name, value in took)


def pauses(axis: time_axis.TimeAxis) -> str:
    """Which pauses an axis leaves out; empty where none."""
    lengths = sorted((pause.seconds for pause in axis.pauses), reverse=True)
    if not lengths:
        return ""
    longest = ", ".join(units.seconds(seconds * 1e3) for seconds in lengths[:3])
    more = f" and {len(lengths) - 3:,} more" if len(lengths) > 3 else ""
    return f"{'pause' if len(lengths) == 1 else 'pauses'} of {longest}{more} cut"


# -- connections -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """A connection, and what it served."""

    name: str
    server: str
    opened: str
    why_opened: str
    closed: str
    why_closed: str
    count: int
    sent: int
    received: int
    life: tuple[float, float]
    requests: list[Row]
    """Those that are told one by one."""


def lanes(parts: Parts, most: int) -> list[Lane]:
    """The newest connections, oldest first."""
    served: dict[str, list[Row]] = {}
    for row in parts.overview.requests:
        served.setdefault(row["connection_id"], []).append(row)
    told = {row["request_id"] for row in parts.requests}
    return [
        _lane(parts, connection, served.get(connection["connection_id"], []), told)
        for connection in parts.overview.connections[-most:]
    ]


def _lane(parts: Parts, connection: Row, rows: list[Row], told: set[str]) -> Lane:
    opening = next((row for row in rows if row["connection_reused"] is False), None)
    closed = connection["closed_at"]
    tls = f" ({connection['tls_version']})" if connection["tls_version"] else ""
    return Lane(
        name=said(connection["connection_id"], 20),
        server=said(f"{connection['host']}:{connection['port']}{tls}"),
        opened=parts.clock(connection["opened_at"]),
        why_opened=said(opening["connection_reason"] or "") if opening else "",
        closed="open" if closed is None else parts.clock(closed),
        why_closed=said(connection["close_reason"] or ""),
        count=len(rows),
        sent=sum(row["bytes_sent"] or 0 for row in rows),
        received=sum(row["bytes_received"] or 0 for row in rows),
        life=(connection["opened_at"], parts.now if closed is None else closed),
        requests=[row for row in rows if row["request_id"] in told],
    )
