"""Where on a common time axis the requests of a view stand, with idle pauses cut down to narrow breaks.

Owns `TimeAxis` and the `segments` of a request's bar. Pure; called by the static views.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from . import overview

IDLE_SECONDS = 2.0
IDLE_SHARE = 0.03
BREAK_SHARE = 0.03
BREAKS_SHARE = 0.25
"""A pause is cut where it is longer than this many seconds and this share of the busy time; then it takes
this share of the axis, and all of them together at most that one. As in static/units.js."""


class Segment(NamedTuple):
    """A part of a request's bar: a phase, or "" for time that belongs to none; epoch seconds."""

    phase: str
    start: float
    end: float


class Pause(NamedTuple):
    """A pause that is cut: where its break begins and ends on the axis (0 to 1), and how long it was."""

    start: float
    end: float
    seconds: float


def span(row: overview.Row, now: float) -> tuple[float, float]:
    """When a request began to wait for its turn, and when it ended.

    A running one ends `now`; one that nobody saw end, with what is known of its phases.
    """
    start = row["started_at"] - (row["queued_ms"] or 0.0) / 1e3
    if row["status"] is None:
        end = now
    elif row["duration_ms"] is not None:
        end = row["started_at"] + row["duration_ms"] / 1e3
    else:
        known = sum(milliseconds for _, milliseconds in overview.phases(row))
        end = max(row["ended_at"] or 0.0, start + known / 1e3)
    return start, max(row["started_at"], end)


def segments(row: overview.Row, now: float) -> list[Segment]:
    """The parts of a request's bar, one after the other."""
    at, end = span(row, now)
    parts = []
    for name, milliseconds in overview.phases(row):
        parts.append(Segment(name, at, at + milliseconds / 1e3))
        at += milliseconds / 1e3
    # What clocks differ by is no rest: a thousandth of what there is.
    if end - at > 1e-3 * (end - parts[0].start if parts else 0.0):
        parts.append(Segment("", at, end))
    return parts


class TimeAxis:
    """Moments as places from 0 to 1, over the time in which something was in flight."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        busy = _merged(sorted(spans))
        total = sum(end - start for start, end in busy)
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(busy)]
        is_cut = [gap > max(IDLE_SECONDS, IDLE_SHARE * total) for gap in gaps]
        breaks = sum(is_cut)
        shown = total + sum(gap for gap, cut in zip(gaps, is_cut, strict=True) if not cut) or 1.0
        share = min(BREAK_SHARE, BREAKS_SHARE / max(1, breaks))
        narrow = shown * share / (1 - share * breaks)
        self._moments: list[float] = []
        self._places: list[float] = []
        self.pauses: list[Pause] = []
        """Those that are cut, in order."""
        place = 0.0
        for number, (start, end) in enumerate(busy):
            self._add(start, place)
            self._add(end, place := place + end - start)
            if number < len(gaps):
                width = narrow if is_cut[number] else gaps[number]
                if is_cut[number]:
                    self.pauses.append(Pause(place, place + width, gaps[number]))
                place += width
        self.seconds: float = place
        """How much time it shows, the breaks included."""
        if place > 0:
            self._places = [one / place for one in self._places]
            self.pauses = [Pause(start / place, end / place, seconds) for start, end, seconds in self.pauses]

    def _add(self, moment: float, place: float) -> None:
        self._moments.append(moment)
        self._places.append(place)

    def place(self, moment: float) -> float:
        """Where a moment stands, from 0 to 1; what is outside of the axis stands at its end."""
        at = bisect.bisect_right(self._moments, moment)
        if at == 0:
            return 0.0
        if at == len(self._moments):
            return 1.0 if self.seconds else 0.0
        (before, after), (low, high) = self._moments[at - 1 : at + 1], self._places[at - 1 : at + 1]
        return low + (high - low) * (moment - before) / (after - before) if after > before else high


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[Any] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged
