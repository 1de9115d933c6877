"""The waterfall as a picture for a paper: `waterfall`.

Owns how it is drawn. The numbers are `overview`'s, the time axis `time_axis`'s, and matplotlib is an extra.
Called by users.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import overview, units
from .exceptions import UsageProblem
from .overview import PHASES, Overview, Row
from .selection import Selection, Since
from .time_axis import TimeAxis, segments, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REQUESTS = 60
"""How many requests are drawn, unless one wants others: the newest."""

LABEL_CHARACTERS = 36

TICKS = 10
"""How many numbers about stand at the time axis."""

BAR = 0.62
"""How much of a row's height a bar takes."""

REST = "#c9ced6"
ERROR = "#dc3545"
GREY = "#767676"
SMALL = 8.0
"""Colours: of time that is of no phase, of what marks an error, of lines and notes (the last two are read on
light and dark ground alike); and the points of small print."""

LEGEND_INCHES = 0.72
"""How wide an entry of the legend is, about."""

# Names of models and errors are no formulas, whatever dollars and backslashes are in them.
_AS_IS: dict[str, Any] = {"parse_math": False, "usetex": False}


def waterfall(
    session: str | None = None,
    kernel: str | None = None,
    *,
    since: Since = None,
    notebook: str | None = None,
    model: str | None = None,
    search: str | None = None,
    errors: bool = False,
    cell: int | str | None = None,
    latest: bool = False,
    limit: int = REQUESTS,
    ax: Axes | None = None,
) -> Axes:
    """Draw requests as a waterfall: one row each, oldest on top, their phases on a common time axis.

    Long pauses, in which nothing was under way, are cut to marked breaks. A request on a reused connection
    has no connect phase; what failed has a cross and its error's name; what still runs is open to the right.

    Args:
        session: As for `nbllm.requests`; so are the others, up to `latest`.
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given.
        since: When they started, at the earliest.
        notebook: Its path, or the name alone.
        model: That was asked for, or answered.
        search: A text in messages, answers or errors.
        errors: Only those that failed.
        cell: Its number, or its id.
        latest: Only those of the last run of each cell.
        limit: How many are drawn at most: the newest; the title says so where there are more.
        ax: Where to draw; None makes a new figure, as high as it needs.

    Returns:
        The axes, for titles and labels of your own; `.figure.savefig("requests.pdf")` writes a file. Its
        x axis has seconds since the first request, less what the breaks leave out.

    Raises:
        UsageProblem: A filter or `limit` can't be used, `ax` is none of matplotlib's axes, or matplotlib is
            missing.
    """
    try:
        from matplotlib import axes, pyplot
    except ImportError:
        raise UsageProblem("waterfall() needs matplotlib: pip install 'nbllm[plot]'") from None
    if ax is not None and not isinstance(ax, axes.Axes):
        raise UsageProblem(f"ax must be matplotlib's Axes, such as plt.gca(); got {type(ax).__name__}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= overview.LIMIT:
        raise UsageProblem(f"limit must be a number from 1 to {overview.LIMIT:,}; got {limit!r}")
    chosen = Selection(session, kernel, since, notebook, model, search, errors, cell, latest)
    found = overview.overview(chosen, limit)
    if ax is None:
        count = len(found.requests)
        height = 1.2 + max(3, count) * (0.24 if count <= 30 else 0.16)  # inches: sixty fit on a page
        _, ax = pyplot.subplots(figsize=(8, height), layout="constrained")
    if found.requests:
        _draw(ax, found, session)
    else:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no requests", ha="center", va="center", transform=ax.transAxes, color=GREY)
    return ax


def _draw(ax: Axes, found: Overview, session: str | None) -> None:
    rows = found.requests
    axis = TimeAxis(span(row, found.taken_at) for row in rows)
    ax.set_xlim(0, axis.seconds * 1.015 or 1.0)
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the oldest on top
    _draw_bars(ax, rows, axis, found.taken_at)
    _draw_breaks(ax, axis)
    for at, row in enumerate(rows):
        _mark(ax, at, row, axis, found.taken_at)
    labels = [_said(_label(row)) for row in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=SMALL, **_AS_IS)
    ticks = list(_ticks(axis))
    ax.set_xticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=SMALL)
    ax.set_xlabel("seconds since the first request", fontsize=SMALL + 1)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    lines = _draw_legend(ax)
    count = units.plural(len(rows), "request")
    if found.left_out:
        count = f"the last {len(rows):,} of {len(rows) + found.left_out:,} requests"
    title = count if session is None else f"{_said(session)} \N{MIDDLE DOT} {count}"
    ax.set_title(title, loc="left", pad=8 + 13 * lines, fontsize=SMALL + 2, **_AS_IS)


def _draw_bars(ax: Axes, rows: list[Row], axis: TimeAxis, now: float) -> None:
    """One container for a phase, so that each stands in the legend once, in order."""
    looks = {name: (phase.label, phase.colour) for name, phase in PHASES.items()}
    looks |= {"other": ("other", REST), "running": ("running", REST)}
    parts: dict[str, list[tuple[int, float, float]]] = {name: [] for name in looks}
    for at, row in enumerate(rows):
        for phase, start, end in segments(row, now):
            name = phase or ("running" if row["status"] is None else "other")
            left = _x(axis, start)
            parts[name].append((at, left, _x(axis, end) - left))
    for name, drawn in parts.items():
        if drawn:
            places, lefts, widths = zip(*drawn, strict=True)
            label, colour = looks[name]
            hatch = "////" if name == "running" else None
            ax.barh(
                places,
                widths,
                left=lefts,
                height=BAR,
                color=colour,
                label=label,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
            )


def _draw_breaks(ax: Axes, axis: TimeAxis) -> None:
    """A grey band with two strokes through the axis, and how long the pause was, where the band has room."""
    for pause in axis.pauses:
        start, end = pause.start * axis.seconds, pause.end * axis.seconds
        ax.axvspan(start, end, color=GREY, alpha=0.16, linewidth=0, zorder=0)
        middle = (start + end) / 2
        ax.annotate(
            "//", (middle, 0), xycoords=("data", "axes fraction"), ha="center", va="center", color=GREY
        )
        if pause.end - pause.start > 0.012:
            ax.annotate(
                f"{units.seconds(pause.seconds * 1e3)} idle",
                (middle, 0.97),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="center",
                va="top",
                fontsize=SMALL - 1.5,
                color=GREY,
            )


def _mark(ax: Axes, at: int, row: Row, axis: TimeAxis, now: float) -> None:
    """What is to be said of a request that did not go well, or still goes on, at its end."""
    status = row["status"]
    if status == "ok":
        return
    start, end = (_x(axis, moment) for moment in span(row, now))
    is_error = status == "error"
    colour = ERROR if is_error else GREY
    ax.plot(
        [end],
        [at],
        marker="x" if is_error else ">" if status is None else "|",
        color=colour,
        ms=5,
        mew=1.4,
        clip_on=False,
    )
    said = _said(row["error_type"] or status) if is_error else status or "running"
    # To the left of the bar, where there is no room to its right.
    is_left = end > 0.8 * axis.seconds and start > 0.2 * axis.seconds
    ax.annotate(
        said,
        (start if is_left else end, at),
        xytext=(-6 if is_left else 7, 0),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="center",
        fontsize=SMALL - 1,
        color=colour,
        **_AS_IS,
    )


def _draw_legend(ax: Axes) -> int:
    """Above the bars; gives how many lines it takes."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:  # none took any time
        return 0
    width = ax.get_window_extent().width / ax.figure.dpi
    lines = math.ceil(len(handles) / max(1, int(width / LEGEND_INCHES)))
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=math.ceil(len(handles) / lines),
        frameon=False,
        fontsize=SMALL,
        handlelength=1.0,
        handleheight=0.8,
        columnspacing=1.2,
        borderaxespad=0.4,
        borderpad=0.1,
    )
    return lines


def _ticks(axis: TimeAxis) -> Iterator[tuple[float, str]]:
    """Places and texts of round numbers of seconds, those in a break left out."""
    step = _round_step(axis.seconds / TICKS)
    breaks = [(one.start * axis.seconds, one.end * axis.seconds, one.seconds) for one in axis.pauses]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    before, offset = 0.0, 0.0
    last = -math.inf
    for start, end, length in [*breaks, (axis.seconds, axis.seconds, 0.0)]:
        number = math.ceil((before + offset) / step - 1e-9)
        while (place := number * step - offset) <= start + 1e-9 * step:
            if place - last > 0.6 * step:
                yield place, f"{number * step:,.{decimals}f}"
                last = place
            number += 1
        before, offset = end, offset + length - (end - start)


def _round_step(least: float) -> float:
    """The next of …, 0.1, 0.2, 0.5, 1, 2, 5, …"""
    if not least > 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _x(axis: TimeAxis, moment: float) -> float:
    return axis.place(moment) * axis.seconds


def _label(row: Row) -> str:
    cell = f"{overview.cell_of(row)} " if row["execution_count"] is not None else ""
    return cell + overview.model_of(row)


def _said(text: str) -> str:
    return overview.said(text, LABEL_CHARACTERS)
