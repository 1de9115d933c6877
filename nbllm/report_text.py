"""A report as text tables for a terminal.

Owns their layout; what they say is `report_parts`', how a table is aligned `text_tables`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import overview, report_parts, text_tables, units
from .overview import Overview, Row
from .report_parts import DOT, Parts
from .text_tables import Column
from .time_axis import TimeAxis, segments, span

REQUESTS = 20
SESSIONS = 15
LANES = 15
ERRORS = 10
SPENDERS = 8
WIDEST = 160
"""Wider lines are hard to read."""

NARROWEST = 40
BAR_SHARE = 5
"""The part of the width that the waterfall takes: a fifth, or less where the rest has no room beside it."""
LEAST_BAR = 8
SPEND_BAR = 20
LEAST_SHARE = 0.3
"""How much of a cell a phase must fill to be drawn in it."""
TLS_FROM = 110
"""How wide a terminal must be for the version of TLS to have room beside the server."""

MARKS = {
    "queued": "\N{MIDDLE DOT}",
    "blocked": "\N{MIDDLE DOT}",
    "dns": "\N{LIGHT SHADE}",
    "connect": "\N{LIGHT SHADE}",
    "tls": "\N{LIGHT SHADE}",
    "send": "\N{MEDIUM SHADE}",
    "wait": "\N{MEDIUM SHADE}",
    "first_token": "\N{DARK SHADE}",
    "stream": "\N{FULL BLOCK}",
    "": "\N{BOX DRAWINGS LIGHT HORIZONTAL}",
}
BREAK = "\N{BOX DRAWINGS LIGHT VERTICAL}"

Paint = Callable[[str, str], str]


def text(seen: Overview, scope: str, width: int, *, has_colour: bool = False) -> str:
    """The report in lines of `width` cells at most.

    Args:
        seen: What it tells of.
        scope: Which requests are meant, in words.
        width: Of the terminal.
        has_colour: Colour phases and errors by escape sequences.
    """
    width = max(NARROWEST, min(width, WIDEST))
    parts = Parts(seen, scope, REQUESTS)
    paint = _paint if has_colour else _plain
    blocks = [[*_flow(parts.heading.split(DOT), width), *_headline(parts, width)]]
    if seen.requests:
        blocks += [_sessions(parts, width), _requests(parts, width, paint)]
        blocks += [_errors(parts, width, paint), _connections(parts, width, paint), _spend(parts, width)]
    if parts.notes:
        blocks.append(_flow([note[0].upper() + note[1:] for note in parts.notes], width))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _headline(parts: Parts, width: int) -> list[str]:
    """What was sent and spent, and beneath it how long it took."""
    if not parts.overview.requests:
        return ["no requests"]
    tiles = report_parts.headline(parts.totals)
    pieces = [f"{label} {value}" for label, value in tiles]
    times = [label for label, _ in tiles].index("time p50")
    return [*_flow(pieces[:times], width), *_flow(pieces[times:], width)]


def _flow(pieces: Sequence[str], width: int) -> list[str]:
    """Pieces with dots between, in as many lines as they take."""
    lines: list[str] = []
    for piece in pieces:
        if lines and text_tables.width_of(lines[-1] + DOT + piece) <= width:
            lines[-1] += DOT + piece
        else:
            lines.append(piece)
    return [text_tables.shortened(line, width) for line in lines]


def _sessions(parts: Parts, width: int) -> list[str]:
    columns = [
        Column("session", least=8, cut="middle"),
        Column("requests", is_number=True),
        Column("errors", is_number=True),
        Column("tokens", is_number=True),
        Column("cost", is_number=True),
        Column("time", is_number=True),
        Column("reused", is_number=True),
        Column("models", least=6, yields=True),
    ]
    rows = []
    for group in parts.sessions[-SESSIONS:]:
        totals = group.totals
        rows.append(
            (
                report_parts.session_name(group, parts.sessions),
                units.count(totals.requests),
                units.count(totals.errors),
                units.tokens(totals.input_tokens, totals.output_tokens),
                units.money(totals.cost_usd),
                units.seconds(totals.duration_ms),
                units.percent(totals.reuse_ratio),
                report_parts.listed(group.models),
            )
        )
    return [*text_tables.table(columns, rows, width), *_more(parts.sessions, SESSIONS, "session")]


def _more(every: Sequence[object], told: int, noun: str) -> list[str]:
    rest = len(every) - told
    return [f"and {units.plural(rest, f'older {noun}')}"] if rest > 0 else []


def _requests(parts: Parts, width: int, paint: Paint) -> list[str]:
    axis = TimeAxis(span(row, parts.now) for row in parts.requests)
    columns = [
        Column("cell", least=4),
        Column("prompt", least=12, yields=True),
        Column("model", least=8, yields=True),
        Column("status", least=len("incomplete")),
        Column("tokens", is_number=True),
        Column("cost", is_number=True),
        Column("time", is_number=True),
        Column("first", is_number=True),
    ]
    rows: list[tuple[str, ...]] = [
        (
            report_parts.cell(row),
            report_parts.prompt(row, width),
            report_parts.model(row),
            report_parts.outcome(row),
            units.tokens(row["input_tokens"], row["output_tokens"]),
            units.money(row["cost_usd"]),
            report_parts.duration(row, parts.now),
            units.seconds(row["ttft_ms"]),
        )
        for row in parts.requests
    ]
    gap = len(text_tables.GAP)
    if text_tables.least_width(columns, rows) > width - gap - LEAST_BAR:
        del columns[1]
        rows = [(row[0], *row[2:]) for row in rows]
    bar = max(LEAST_BAR, min(width // BAR_SHARE, width - gap - text_tables.least_width(columns, rows)))
    lines = text_tables.table(columns, rows, width - gap - bar)
    length = units.seconds(axis.seconds * 1e3)
    beside = [heading if len(heading := f"waterfall, {length}") <= bar else length]
    beside += [_bar(row, axis, parts.now, bar, paint) for row in parts.requests]
    pauses = report_parts.pauses(axis)
    return [*_beside(lines, beside), _legend(parts, paint), *([f"{BREAK} {pauses}"] if pauses else [])]


def _beside(lines: Sequence[str], bars: Sequence[str]) -> list[str]:
    """The lines of a table, each with its bar."""
    left = max(map(text_tables.width_of, lines))
    return [
        f"{text_tables.fitted(line, left)}{text_tables.GAP}{bar}".rstrip()
        for line, bar in zip(lines, bars, strict=True)
    ]


def _legend(parts: Parts, paint: Paint) -> str:
    used = {name for row in parts.requests for name, _ in overview.phases(row)}
    labels: dict[str, list[str]] = {}
    for name, phase in overview.PHASES.items():
        if name in used:  # without colours, several have the same mark
            labels.setdefault(paint(MARKS[name], name), []).append(phase.label)
    return "  ".join(f"{mark} {', '.join(together)}" for mark, together in labels.items())


def _bar(row: Row, axis: TimeAxis, now: float, width: int, paint: Paint) -> str:
    """A request's line of the waterfall: each cell shows the phase that fills most of it."""
    cells = [(" ", "")] * width
    for pause in axis.pauses:
        cells[min(width - 1, int((pause.start + pause.end) / 2 * width))] = (BREAK, "")
    drawn = [
        (axis.place(part.start) * width, axis.place(part.end) * width, part.phase)
        for part in segments(row, now)
    ]
    first, last = int(drawn[0][0]) if drawn else 0, int(drawn[-1][1]) if drawn else -1
    for at in range(first, min(last, width - 1) + 1):
        share, name = max((min(end, at + 1) - max(start, at), name) for start, end, name in drawn)
        if share > LEAST_SHARE:
            cells[at] = (MARKS[name], name)
    if drawn and not any(mark in MARKS.values() for mark, _ in cells):  # too short for a cell of its own
        start, _, name = max(drawn, key=lambda part: part[1] - part[0])
        cells[min(width - 1, int(start))] = (MARKS[name], name)
    return "".join(paint(mark, name) for mark, name in cells).rstrip()


def _errors(parts: Parts, width: int, paint: Paint) -> list[str]:
    columns = [
        Column("errors"),
        Column("cell", least=4),
        Column("model", least=8),
        Column("what", least=12),
        Column("message", least=20),
    ]
    rows = [
        (
            parts.clock(row["started_at"]),
            report_parts.cell(row),
            report_parts.model(row),
            report_parts.status(row),
            report_parts.said(row["error_message"] or "", width),
        )
        for row in parts.failed[:ERRORS]
    ]
    if not rows:
        return []
    heading, *lines = text_tables.table(columns, rows, width)
    return [heading, *(paint(line, "error") for line in lines), *_more(parts.failed, ERRORS, "error")]


def _connections(parts: Parts, width: int, paint: Paint) -> list[str]:
    lanes = report_parts.lanes(parts, LANES)
    names = [lane.name.rpartition("-") for lane in lanes]
    has_kernels = len({kernel for kernel, _, _ in names}) > 1
    columns = [
        Column("connection", least=6, cut="start"),
        Column("server", least=8, cut="start"),
        Column("requests", is_number=True),
        Column("sent", is_number=True),
        Column("received", is_number=True),
        Column("opened"),
        Column("why", least=5),
        Column("closed"),
        Column("why", least=4),
    ]
    rows = [
        (
            lane.name if has_kernels else number,
            lane.server if width >= TLS_FROM else lane.server.partition(" (TLS")[0],
            units.count(lane.count),
            units.size(lane.sent),
            units.size(lane.received),
            lane.opened,
            lane.why_opened,
            lane.closed,
            lane.why_closed,
        )
        for lane, (_, _, number) in zip(lanes, names, strict=True)
    ]
    if not rows:
        return []
    return [
        *text_tables.table(columns, rows, width),
        *_more(parts.overview.connections, LANES, "connection"),
    ]


def _spend(parts: Parts, width: int) -> list[str]:
    lines: list[str] = []
    for by, heading in (("request_model", "spent by model"), ("session_id", "spent by session")):
        spent = report_parts.spending(parts.overview.requests, by, SPENDERS)
        columns = [
            Column(heading, least=12, cut="middle"),
            Column("requests", is_number=True),
            Column("tokens", is_number=True),
            Column("cost", is_number=True),
            *([Column("unpriced", is_number=True)] if parts.totals.unpriced else []),
            Column(parts.share, is_number=True),
        ]
        rows = [
            (
                one.name,
                units.count(one.requests),
                one.tokens,
                one.cost,
                *([units.count(one.unpriced)] if parts.totals.unpriced else []),
                units.percent(one.share),
            )
            for one in spent
        ]
        table = text_tables.table(columns, rows, width)
        left = max(map(text_tables.width_of, table))
        bar = min(SPEND_BAR, width - left - len(text_tables.GAP))
        bars = ["", *("\N{FULL BLOCK}" * round((one.share or 0.0) * bar) for one in spent)]
        lines += [*([""] if lines else []), *_beside(table, bars)]
    return lines


# -- colour ------------------------------------------------------------------------------------------------


def _plain(text: str, name: str) -> str:
    return text


def _paint(text: str, name: str) -> str:
    """`text` in the colour of a phase, or that of errors: by one of the 256 colours that terminals have."""
    colour = (
        "#d03b3b" if name == "error" else overview.PHASES[name].colour if name in overview.PHASES else None
    )
    if colour is None or not text.strip():
        return text
    red, green, blue = (round(int(colour[at : at + 2], 16) / 51) for at in (1, 3, 5))
    return f"\x1b[38;5;{16 + 36 * red + 6 * green + blue}m{text}\x1b[0m"
