"""A report as HTML that needs nothing: no script, no style sheet, no picture, no network.

Owns its layout; what it says is `report_parts`'. It must look right wherever a notebook is shown:

- JupyterLab sanitises the outputs of a notebook that is not trusted. Tags, attributes and CSS properties here
  are among those that it lets pass (@jupyterlab/apputils, src/sanitizer.ts); SVG, CSS variables, `gap` and
  flexible boxes of older versions are not.
- GitHub takes all styles away. Bars are then gone, so every number is text, too; separators that styles hide
  come to light, and `align` still holds.
- JupyterLab typesets what stands between dollars, or after a backslash, within one piece of text.
"""

from __future__ import annotations

from . import overview, report_parts, text_tables, units
from .markup import escape
from .overview import Group, Overview, Row
from .report_markup import (
    ALARM,
    CUT,
    FIGURE,
    HIDDEN,
    LINE,
    MUTED,
    PLAIN,
    ROOT,
    THINNEST,
    TILE,
    WRAPPED,
    Bar,
    Column,
    bars,
    fold,
    isolated,
    marked,
    muted,
    note,
    table,
    two,
    unbroken,
)
from .report_parts import DOT, Parts
from .time_axis import TimeAxis, segments, span

MOST_BYTES = 300_000
REQUESTS = 200
SESSIONS = 50
"""How many sessions are told of that have none of these requests."""
LANES = 40
ERRORS = 30
SPENDERS = 10
OPEN = 20
"""A part with so many rows at most is unfolded from the start; of the sessions, the newest of so many."""
PROMPT_CHARACTERS = 72
WIDEST = 200

SERVED, FAILED, ALIVE = "#3f9ad9", "#d64a3f", "rgba(128,128,128,0.28)"
REST = "rgba(128,128,128,0.45)"

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def fragment(seen: Overview, scope: str) -> str:
    """The report as one element, smaller than `MOST_BYTES`: where it would not be, fewer requests are listed.

    Args:
        seen: What it tells of.
        scope: Which requests are meant, in words.
    """
    limit, sessions = REQUESTS, SESSIONS
    while True:
        found = _fragment(Parts(seen, scope, limit), sessions)
        if limit == 1 or len(found.encode()) < MOST_BYTES:
            return found
        limit, sessions = limit * 3 // 4, sessions * 3 // 4


def page(inner: str) -> str:
    """A whole page around the fragment, light or dark as the reader's system is."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>nbllm report</title>\n</head>\n'
        f'<body style="margin:24px;font-family:system-ui,sans-serif">\n{inner}\n</body>\n</html>\n'
    )


def _fragment(parts: Parts, sessions: int) -> str:
    said = [note(parts.heading), _headline(parts)]
    if parts.notes:
        said.append(note(DOT.join(parts.notes)))
    if parts.overview.requests:
        said += [_legend(parts), *_sessions(parts, sessions), _errors(parts)]
        said += [_connections(parts), _spend(parts)]
    return f'<div style="{ROOT}">\n{"".join(said)}</div>'


# -- headline ----------------------------------------------------------------------------------------------


def _headline(parts: Parts) -> str:
    if not parts.overview.requests:
        return '<div style="padding:4px 0">No requests.</div>'
    # Where styles are taken away, it is one line with dots between.
    dot = f'<span style="{HIDDEN}">{DOT}</span>'
    tiles = dot.join(_tile(*tile) for tile in report_parts.headline(parts.totals))
    return f'<div style="padding:4px 0 2px">{tiles}</div>\n'


def _tile(label: str, value: str) -> str:
    edge = ALARM if label == "errors" and value != "0" else LINE
    number, _, estimate = value.partition(" (")
    beside = f' <small style="{MUTED};font-weight:normal">({escape(estimate)}</small>' if estimate else ""
    return (
        f'<span style="{TILE};border-left:2px solid {edge}">{muted(label)} '
        f'<b style="{FIGURE}">{escape(number)}{beside}</b></span>'
    )


def _legend(parts: Parts) -> str:
    used = {name for row in parts.requests for name, _ in overview.phases(row)}
    entries = [
        f'<span title="{phase.meaning}"><span style="color:{phase.colour}">\N{BLACK SQUARE}</span> '
        f'{muted(phase.label)}<span style="{HIDDEN}">: {phase.meaning}</span></span>'
        for name, phase in overview.PHASES.items()
        if name in used
    ]
    return f'<div style="padding:0 0 6px">{"&nbsp; ".join(entries)}</div>\n' if entries else ""


# -- sessions and requests ---------------------------------------------------------------------------------


def _sessions(parts: Parts, most: int) -> list[str]:
    told = {row["request_id"] for row in parts.requests}
    groups = [
        (group, [row for row in group.requests if row["request_id"] in told]) for group in parts.sessions
    ]
    spare = sum(not rows for _, rows in groups) - most  # older sessions than are told of
    listed = [(group, rows) for at, (group, rows) in enumerate(groups) if rows or at >= spare]
    notes = []
    if left := len(groups) - len(listed):
        notes.append(note(f"{units.plural(left, 'older session')} not listed"))
    newest_first, seen = [], 0
    for group, rows in reversed(listed):
        seen += len(rows)
        newest_first.append(_session(parts, group, rows, is_open=len(rows) > 0 and seen <= OPEN))
    return [*notes, *reversed(newest_first)]


def _session(parts: Parts, group: Group, rows: list[Row], *, is_open: bool) -> str:
    totals = group.totals
    has_notebooks = len({row["notebook"] for row in parts.overview.requests}) > 1
    facts = [
        units.plural(totals.requests, "request"),
        f"{units.tokens(totals.input_tokens, totals.output_tokens)} tokens",
        report_parts.cost(totals),
        f"\N{GREEK CAPITAL LETTER SIGMA} {units.seconds(totals.duration_ms)}",  # of requests side by side too
        f"first token {units.seconds(totals.ttft_p50_ms)}" if totals.ttft_p50_ms is not None else "",
        f"{units.percent(totals.reuse_ratio)} reused" if totals.reuse_ratio is not None else "",
        report_parts.listed(group.models),
        report_parts.notebooks(group.requests) if has_notebooks else "",
        f"{'cell' if len(group.cells) == 1 else 'cells'} {report_parts.listed(group.cells, 5)}",
        parts.clock(group.requests[0]["started_at"]),
    ]
    name = report_parts.session_name(group, parts.sessions)
    told = [f"<b>{isolated(name)}</b>", *(isolated(fact) for fact in facts if fact)]
    if trouble := report_parts.troubles(totals):
        told.insert(2, marked(trouble, is_alarm=totals.errors > 0))
    older = len(group.requests) - len(rows)
    inner = _requests(parts, rows) if rows else ""
    if older:
        inner += note(f"{units.plural(older, 'older request')} not listed")
    return fold(DOT.join(told), inner, is_open)


def _requests(parts: Parts, rows: list[Row]) -> str:
    axis = TimeAxis(span(row, parts.now) for row in rows)
    columns = [
        Column("cell", 6),
        Column("prompt, model", 28, style=CUT),
        Column("status", 14, style=CUT),
        Column("tokens, cost", 12, True),
        Column("time", 11, True),
        _timed("waterfall", 29, axis),
    ]
    return table(columns, [_request(parts, row, axis) for row in rows]) + _phases(rows)


def _timed(heading: str, share: int, axis: TimeAxis) -> Column:
    """A column of bars on this axis: how long it is, and a ruler in which cut pauses are gaps."""
    label = f"{heading}, {units.seconds(axis.seconds * 1e3)}"
    if not axis.pauses:
        return Column(label, share)
    ends = [0.0, *(end for pause in axis.pauses for end in (pause.start, pause.end)), 1.0]
    ruler = [Bar(start, end, REST, 3) for start, end in zip(ends[::2], ends[1::2], strict=True)]
    return Column(f"{label}, {report_parts.pauses(axis)}", share, ruler=ruler)


def _request(parts: Parts, row: Row, axis: TimeAxis) -> list[str]:
    prompt, first = report_parts.prompt(row, PROMPT_CHARACTERS), row["ttft_ms"]
    return [
        isolated(report_parts.cell(row)),
        two(isolated(prompt), isolated(report_parts.model(row))),
        _status(row),
        two(
            unbroken(units.tokens(row["input_tokens"], row["output_tokens"])),
            unbroken(units.money(row["cost_usd"])),
        ),
        two(
            unbroken(report_parts.duration(row, parts.now)),
            "" if first is None else unbroken(f"first {units.seconds(first)}"),
        ),
        bars(_waterfall(row, axis, parts.now), report_parts.phases(row)),
    ]


def _waterfall(row: Row, axis: TimeAxis, now: float) -> list[Bar]:
    """Its phases; those too short to be seen are left out, but for the longest."""
    drawn = [
        Bar(
            axis.place(part.start),
            axis.place(part.end),
            overview.PHASES[part.phase].colour if part.phase else REST,
        )
        for part in segments(row, now)
    ]
    longest = max((bar.end - bar.start for bar in drawn), default=0.0)
    return [bar for bar in drawn if bar.end - bar.start >= min(longest, THINNEST / 4)]


def _status(row: Row) -> str:
    word, _, more = report_parts.status(row).partition(" ")
    first = isolated(word.rstrip(","))
    if row["status"] != "ok":
        first = marked(word.rstrip(","), is_alarm=row["status"] == "error")
    return two(first, isolated(more))


def _phases(rows: list[Row]) -> str:
    """The phases of each request in numbers, folded away: what the bars show."""
    taken = [dict(overview.phases(row)) for row in rows]
    names = [name for name in overview.PHASES if any(name in took for took in taken)]
    if not names:
        return ""
    columns = [text_tables.Column("cell"), text_tables.Column("model")]
    columns += [text_tables.Column(overview.PHASES[name].label, is_number=True) for name in names]
    lines = []
    for row, took in zip(rows, taken, strict=True):
        numbers = [units.seconds(took[name]) if name in took else "" for name in names]
        lines.append([report_parts.cell(row), report_parts.model(row), *numbers])
    text = "\n".join(text_tables.table(columns, lines, WIDEST))
    summary = f'<summary style="cursor:pointer">{muted("the phases in numbers")}</summary>'
    return (
        f'<details style="padding:0 6px 8px">{summary}<pre style="{PLAIN}">{escape(text)}</pre></details>\n'
    )


# -- errors, connections, spend ----------------------------------------------------------------------------


def _errors(parts: Parts) -> str:
    failed = parts.failed
    if not failed:
        return ""
    columns = [
        Column("when", 12),
        Column("cell", 8),
        Column("session, model", 24, style=CUT),
        Column("error", 56, style=WRAPPED),
    ]
    rows = []
    for row in failed[:ERRORS]:
        message = report_parts.said(row["error_message"] or "", report_parts.MESSAGE_CHARACTERS)
        rows.append(
            [
                escape(parts.clock(row["started_at"])),
                isolated(report_parts.cell(row)),
                two(isolated(report_parts.said(row["session_id"])), isolated(report_parts.model(row))),
                f"<b>{isolated(report_parts.status(row))}</b> {isolated(message)}",
            ]
        )
    title = marked(units.plural(len(failed), "error"), is_alarm=True)
    if len(failed) > ERRORS:
        title += f"{DOT}the newest {ERRORS} are listed"
    return fold(title, table(columns, rows), len(failed) <= OPEN)


def _connections(parts: Parts) -> str:
    lanes = report_parts.lanes(parts, LANES)
    if not lanes:
        return ""
    axis = TimeAxis(span(row, parts.now) for row in parts.requests)
    columns = [
        Column("connection", 25, style=CUT),
        Column("opened", 13),
        Column("closed", 15),
        Column("requests", 9, True),
        Column("bytes", 11, True),
        _timed("use", 27, axis),
    ]
    rows = [
        [
            two(isolated(lane.name), isolated(lane.server)),
            two(escape(lane.opened), isolated(lane.why_opened)),
            two(escape(lane.closed), isolated(lane.why_closed)),
            units.count(lane.count),
            two(unbroken(f"{units.size(lane.received)} in"), unbroken(f"{units.size(lane.sent)} out")),
            bars(_lane(lane, axis, parts.now)),
        ]
        for lane in lanes
    ]
    totals, every = parts.totals, len(parts.overview.connections)
    title = DOT.join(
        [
            f"<b>{units.plural(every, 'connection')}</b>",
            *([f"the newest {len(lanes)} are listed"] if every > len(lanes) else []),
            f"{units.percent(totals.reuse_ratio)} of requests reused one",
        ]
    )
    return fold(title, table(columns, rows), len(lanes) <= OPEN)


def _lane(lane: report_parts.Lane, axis: TimeAxis, now: float) -> list[Bar]:
    """What it served, on the ground of its life."""
    at, end = (axis.place(moment) for moment in lane.life)
    drawn: list[Bar] = []
    for row in lane.requests:
        # A request has its connection only once one was free.
        start = axis.place(row["started_at"] + (row["blocked_ms"] or 0.0) / 1e3)
        stop = axis.place(span(row, now)[1])
        if start > at:
            drawn.append(Bar(at, start, ALIVE, 4))
        drawn.append(Bar(max(at, start), stop, FAILED if row["status"] == "error" else SERVED))
        at = max(at, stop)
    if end > at:
        drawn.append(Bar(at, end, ALIVE, 4))
    return drawn


def _spend(parts: Parts) -> str:
    tables = []
    for by, heading in (("request_model", "model"), ("session_id", "session")):
        spent = report_parts.spending(parts.overview.requests, by, SPENDERS)
        columns = [
            Column(heading, 28, style=CUT),
            Column("requests", 10, True),
            Column("tokens", 15, True),
            Column("cost", 10, True),
            *([Column("unpriced", 9, True)] if parts.totals.unpriced else []),
            Column(parts.share, 13, True),
            Column("", 17),
        ]
        rows = [
            [
                isolated(one.name),
                units.count(one.requests),
                unbroken(one.tokens),
                unbroken(one.cost),
                *([units.count(one.unpriced)] if parts.totals.unpriced else []),
                unbroken(units.percent(one.share)),
                bars([Bar(0.0, one.share or 0.0, SERVED)]),
            ]
            for one in spent
        ]
        tables.append(table(columns, rows))
    title = f"<b>Spend</b>{DOT}{escape(report_parts.cost(parts.totals))}"
    return fold(title, "".join(tables), len(parts.requests) <= OPEN)
