"""What a cell shows of an answer: the text as it comes, and one footer line.

Owns the throttled display, the sinks that it writes to (a notebook's display, a terminal) and the footer.
Called by `magics`. Knows a `tracing.Record`, and nothing of where it comes from.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import markdown, tagging, tracing

INTERVAL = 0.05
"""Seconds between two updates of a display, at least."""

LONG_TEXT = 8000
"""Characters from which on updates get rarer: Jupyter's server drops the messages of a kernel that sends more
than 1 MB/s (`iopub_data_rate_limit`), and a front end renders the whole text at each."""


class Sink(Protocol):
    """Where an answer is shown. Each call gets all of the text so far; the one with a footer is the last."""

    def show(self, text: str, footer: str | None) -> None:
        """Show `text`, and below it `footer`, which is plain text."""


class HasText(Protocol):
    """An answer that grows."""

    @property
    def text(self) -> str:
        """The text so far."""


class StreamDisplay:
    """Shows an answer as it comes, at most once per `INTERVAL`; the last state is always shown.

    A failure to show never reaches the caller: it warns once.

    Args:
        sink: Where to.
        clock: Seconds, monotonic.
        later: Calls a function after some seconds and returns a handle with `cancel()`; default: the running
            loop's `call_later`. It shows what came just after an update when nothing follows for a while.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._later = later
        self._source: HasText | None = None
        self._due = -math.inf
        self._timer: Any = None

    def update(self, source: HasText) -> None:
        """Note that `source.text` has grown."""
        if self._timer is not None:
            return
        self._source = source
        wait = self._due - self._clock()
        if wait <= 0:
            self._show_now()
        else:
            later = self._later or asyncio.get_running_loop().call_later
            self._timer = later(wait, self._show_now)

    def finish(self, text: str, footer: str) -> None:
        """Show the final state: `text`, which may be empty, and the footer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._show(text, footer)

    def _show_now(self) -> None:
        self._timer = None
        text = self._source.text if self._source is not None else ""
        if text:
            self._show(text, None)
            self._due = self._clock() + INTERVAL * max(1.0, len(text) / LONG_TEXT)

    def _show(self, text: str, footer: str | None) -> None:
        try:
            self._sink.show(text, footer)
        except Exception as error:
            tracing.warn_once(f"the answer could not be shown: {error!r}")


class NotebookSink:
    """One output of a notebook's cell, updated by its display_id.

    A raw MIME bundle: IPython's Markdown class would read the file or fetch the URL that a text happens to
    name.
    """

    def __init__(self, publish: Callable[..., None] | None = None) -> None:
        self._publish = publish
        self._display_id = secrets.token_hex(8)
        self._shown = False

    def show(self, text: str, footer: str | None) -> None:
        """Publish the first state, or update the output to a later one."""
        if self._publish is None:
            from IPython.display import publish_display_data

            self._publish = publish_display_data
        transient = {"display_id": self._display_id}
        self._publish(data=mime_bundle(text, footer), metadata={}, transient=transient, update=self._shown)
        self._shown = True


class TerminalSink:
    """Standard output: a terminal can't change what it has shown, so each piece is written as it comes."""

    def __init__(self) -> None:
        self._written = 0

    def show(self, text: str, footer: str | None) -> None:
        """Write what is new, and at the end the footer."""
        new, self._written = text[self._written :], len(text)
        if footer is not None:
            new += f"\n\n{footer}\n" if text else f"{footer}\n"
        # A terminal obeys control sequences, which may set its title or the clipboard.
        sys.stdout.write(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", new))
        sys.stdout.flush()


def mime_bundle(text: str, footer: str | None = None) -> dict[str, str]:
    """`text/plain` as it is, and `text/markdown` that does nothing but show it; the footer below."""
    plain, rich = text, markdown.safe(text)
    if footer is not None:
        small = f"<small>{markdown.escape(footer)}</small>"
        plain, rich = (f"{text}\n\n{footer}", f"{rich}\n\n{small}") if text else (footer, small)
    return {"text/plain": plain, "text/markdown": rich}


def footer(record: tracing.Record | None, *, mark: str | None = None) -> str:
    """One line about a request: model, session, tokens, cost, time, connection; what is unknown is left out.

    Args:
        record: Of the request; None where nothing was recorded.
        mark: What is to be known first, such as "interrupted".
    """
    if record is None:
        return mark or ""
    cost = record.cost_usd
    parts = (
        mark,
        _model(record),
        None if record.session_id == tagging.default_session() else record.session_id,
        _tokens(record),
        None if record.provider == "demo" else _cost(cost),
        _times(record),
        _finish(record.finish_reason),
        _connection(record),
    )
    return " · ".join(part for part in parts if part)


def _model(record: tracing.Record) -> str | None:
    is_demo = record.provider == "demo"
    return f"demo/{record.request_model} (demo model)" if is_demo else record.request_model


def _tokens(record: tracing.Record) -> str | None:
    sent, got = record.input_tokens, record.output_tokens
    if sent is None:
        return None if got is None else f"{got:,} tok out"
    return f"{sent:,} tok in" if got is None else f"{sent:,}→{got:,} tok"


def _cost(cost: float | None) -> str | None:
    if cost is None or not cost >= 0:
        return None
    if cost == 0:
        return "free"
    decimals = max(2, 1 - math.floor(math.log10(cost)))  # two digits that count, at least cents
    return f"${cost:,.{decimals}f}"


def _times(record: tracing.Record) -> str | None:
    if record.duration_ms is None:
        return None
    first = "" if record.ttft_ms is None else f" (first {_seconds(record.ttft_ms)})"
    return _seconds(record.duration_ms) + first


def _seconds(milliseconds: float) -> str:
    seconds = milliseconds / 1e3
    if seconds < 0.0995:
        return f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _finish(reason: str | None) -> str | None:
    """Why an answer ended, where that is not its natural end."""
    if reason in (None, "stop"):
        return None
    return "cut off at the token limit" if reason == "length" else f"finish: {reason}"


def _connection(record: tracing.Record) -> str | None:
    if record.connection_reused is None:
        return None
    if record.connection_reused:
        return "connection reused"
    if record.connection_reason is None:
        return "new connection"
    idle = record.connection_idle_ms
    if idle is None:
        return f"new connection: {record.connection_reason}"
    waited = _seconds(idle) if idle < 9950 else f"{idle / 1e3:.0f} s"
    return f"new connection: idle {waited}, {record.connection_reason.removeprefix('idle ')}"
