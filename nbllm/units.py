"""Numbers as people read them: "1.8 s", "$0.0011", "12 kB", "87 %".

Owns how an amount looks in a line of text, wherever it stands: footers, tables, reports, pictures. Pure. An
unknown amount (None, NaN, infinite) is a dash.
"""

from __future__ import annotations

import math
import time

UNKNOWN = "\N{EN DASH}"


def seconds(milliseconds: float | None) -> str:
    """A time: "0.4 ms", "85 ms", "1.8 s", "2 min 3 s"."""
    if milliseconds is None or not math.isfinite(milliseconds):
        return UNKNOWN
    if milliseconds < 0:
        return f"-{seconds(-milliseconds)}"
    if milliseconds < 99.5:
        return f"{milliseconds:.{1 if 0.05 < milliseconds < 0.95 else 0}f} ms"
    if milliseconds < 59_950:
        return f"{milliseconds / 1e3:.1f} s"
    minutes, rest = divmod(round(milliseconds / 1e3), 60)
    return f"{minutes:,} min {rest} s"


def money(usd: float | None) -> str:
    """US dollars: "free", "$0.0011", "$1.20"; two digits that count, at least cents."""
    if usd is None or not math.isfinite(usd):
        return UNKNOWN
    if usd == 0:
        return "free"
    decimals = max(2, 1 - math.floor(math.log10(abs(usd))))
    return f"{'-' if usd < 0 else ''}${abs(usd):,.{decimals}f}"


def count(number: float | None) -> str:
    """How many: "12,345"; "412.5" of an average."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    return f"{number:,.0f}" if number == round(number) else f"{number:,.1f}"


def plural(number: int, noun: str) -> str:
    """So many of something: "1 request", "12,345 requests"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(count_of_bytes: float | None) -> str:
    """Bytes, in powers of 1,000: "950 B", "1.2 kB", "12 kB"."""
    if count_of_bytes is None or not math.isfinite(count_of_bytes):
        return UNKNOWN
    value, unit = count_of_bytes, "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1e3, larger
    decimals = 1 if unit != "B" and abs(value) < 9.95 else 0
    return f"{value:,.{decimals}f} {unit}"


def percent(ratio: float | None) -> str:
    """A share of 1: "87 %"."""
    return UNKNOWN if ratio is None or not math.isfinite(ratio) else f"{ratio * 100:.0f} %"


def tokens(sent: float | None, got: float | None) -> str:
    """Tokens in and out: "412→96"; a dash for the one that is unknown."""
    return UNKNOWN if sent is None and got is None else f"{count(sent)}→{count(got)}"


def clock(moment: float | None, *, has_day: bool = False) -> str:
    """A time in seconds since 1970 UTC, as clocks here have it: "14:03:22"; "2026-11-21 14:03:22"."""
    if moment is None:
        return UNKNOWN
    return time.strftime("%Y-%m-%d %H:%M:%S" if has_day else "%H:%M:%S", time.localtime(moment))
