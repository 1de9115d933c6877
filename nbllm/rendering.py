"""What a cell shows of an answer: the text as it comes, and one footer line.

Owns the throttled display, the sinks that it writes to (a notebook's display, a terminal), the footer and
what an output's metadata keep of a request. Called by the magics. Knows a `tracing.Record`, and nothing of
where it comes from; the forms of what is shown are those of `formats`.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Protocol

from . import formats, notices, tagging, tracing
from .formats import View as View
from .formats import mime_bundle as mime_bundle

INTERVAL = 0.05
"""Seconds between two updates of a display, at least."""

LONG_TEXT = 8000
"""Characters from which on updates get rarer: Jupyter's server drops the messages of a kernel that sends more
than 1 MB/s (`iopub_data_rate_limit`), and a front end renders the whole text at each."""

Later = Callable[[float, Callable[[], None]], Any]
"""Calls a function after some seconds and returns a handle with `cancel()`, as a loop's `call_later`."""


class Sink(Protocol):
    """Where an answer is shown. Each call gets all that there is; the one with a footer is the last."""

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Show `view`; `metadata` are the output's, and come with the last."""


class HasText(Protocol):
    """An answer that grows; it may also have `reasoning`, a str."""

    @property
    def text(self) -> str:
        """The text so far."""


class Throttle:
    """Calls `show` at once, but at most once per `INTERVAL`; what changes meanwhile is shown after it.

    Args:
        show: Shows the present state and returns its size in characters; 0 where there was nothing to show.
        clock: Seconds, monotonic.
        later: Default: the running loop's `call_later`.
    """

    def __init__(
        self,
        show: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._show = show
        self._clock = clock
        self._later = later
        self._due = -math.inf
        self._timer: Any = None

    def request(self) -> None:
        """Note that there is something to show."""
        if self._timer is not None:
            return
        wait = self._due - self._clock()
        if wait <= 0:
            self._run()
        else:
            later = self._later or asyncio.get_running_loop().call_later
            self._timer = later(wait, self._run)

    def cancel(self) -> None:
        """Forget what was requested and is not shown yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        if size := self._show():
            self._due = self._clock() + INTERVAL * max(1.0, size / LONG_TEXT)


class StreamDisplay:
    """Shows an answer as it comes, at most once per `INTERVAL`; the last state is always shown.

    A failure to show never reaches the caller: it warns once.

    Args:
        sink: Where to.
        clock: Seconds, monotonic.
        later: As for `Throttle`. It shows what came just after an update when nothing follows for a while.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._sink = sink
        self._throttle = Throttle(self._show_now, clock=clock, later=later)
        self._source: HasText | None = None
        self._progress: str | None = None

    def update(self, source: HasText) -> None:
        """Note that `source.text`, or its `reasoning`, has grown."""
        self._source = source
        self._throttle.request()

    def progress(self, text: str) -> None:
        """Show `text`, one plain line, as long as nothing of the answer has come."""
        self._progress = text
        self._throttle.request()

    def finish(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Show the final state, at once.

        Args:
            view: With a footer, which may be empty, as may all else.
            metadata: Of the output: `{"nbllm": {"requests": […]}}`, each as `metadata` makes it.
        """
        self._throttle.cancel()
        self._show(view, metadata)

    def _show_now(self) -> int:
        source = self._source
        text = source.text if source is not None else ""
        reasoning = getattr(source, "reasoning", None) or ""
        begun = text or reasoning
        view = View(text, reasoning, progress=None if begun else self._progress)
        if size := len(text) + len(reasoning) + len(view.progress or ""):
            self._show(view, None)
        return size

    def _show(self, view: View, metadata: Mapping[str, Any] | None) -> None:
        try:
            self._sink.show(view, metadata)
        except Exception as error:
            notices.warn_once(f"the answer could not be shown: {error!r}")


class Output:
    """One output of a notebook's cell, which its display_id lets change.

    It takes raw MIME bundles: IPython's Markdown class would read the file or fetch the URL that a text
    happens to name.

    Args:
        publish: Default: IPython's `publish_display_data`.
    """

    def __init__(self, publish: Callable[..., None] | None = None) -> None:
        self._publish = publish
        self._display_id = secrets.token_hex(8)
        self._shown = False

    def show(self, data: dict[str, str], metadata: Mapping[str, Any] | None = None) -> None:
        """Publish the first state, or change the output to a later one."""
        if self._publish is None:
            from IPython.display import publish_display_data

            self._publish = publish_display_data
        self._publish(
            data=data,
            metadata=dict(metadata or {}),
            transient={"display_id": self._display_id},
            update=self._shown,
        )
        self._shown = True


class NotebookSink:
    """An output of a notebook's cell.

    Args:
        format: As for `mime_bundle`.
        publish: As for `Output`.
    """

    def __init__(self, format: str = "md", publish: Callable[..., None] | None = None) -> None:
        self._output = Output(publish)
        self._format = format

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Publish the first state, or change the output to a later one."""
        self._output.show(mime_bundle(view, self._format), metadata)


class TerminalSink:
    """Standard output: a terminal can't change what it has shown, so each piece is written as it comes.

    Of a format that is known only in the end, such as code, the whole is written then. Until something is
    written, a terminal has a line that tells what is waited for; a file or pipe has none.
    """

    def __init__(self, format: str = "md") -> None:
        self._format = format
        self._written = 0
        self._waits = False

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Write what is new, and at the end the footer."""
        is_last = view.footer is not None
        grows = self._format in ("md", "text")
        text = formats.shown(view, self._format) if grows or is_last else ""
        new, self._written = text[self._written :], len(text)
        if is_last:
            new += f"\n\n{view.footer}\n" if text and view.footer else f"{view.footer}\n"
        waiting = "(thinking…)" if view.reasoning else view.progress
        if new:
            self._write(printable(new))
        elif waiting and not text and sys.stdout.isatty():
            self._write(printable(waiting)[: shutil.get_terminal_size().columns - 1])
            self._waits = True

    def _write(self, text: str) -> None:
        erased = "\r\x1b[K" if self._waits else ""
        self._waits = False
        sys.stdout.write(erased + text)
        sys.stdout.flush()


class NullSink:
    """Shows nothing."""

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Do nothing."""


def printable(text: str) -> str:
    """`text` without control sequences, which a terminal obeys: they may set its title or the clipboard."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def metadata(record: tracing.Record | SimpleNamespace) -> dict[str, Any]:
    """What an output's metadata keep of a request; what is unknown is left out.

    Times are in milliseconds, the cost in US dollars, `started_at` is ISO 8601 in UTC.

    Args:
        record: Of the request, or a row of the log with the same names.
    """
    values = {
        "request_id": record.request_id,
        "session_id": record.session_id,
        "model": record.request_model,
        "status": record.status,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cost_usd": record.cost_usd,
        "duration_ms": record.duration_ms,
        "ttft_ms": record.ttft_ms,
        "started_at": datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="milliseconds"),
    }
    return {name: value for name, value in values.items() if value is not None}


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


def summary(requests: Sequence[tracing.Record | SimpleNamespace]) -> str:
    """One line about several requests, at least one: as `footer`, with what they took together."""
    failed = sum(request.status != "ok" for request in requests)
    models = dict.fromkeys(_name(request) for request in requests if request.request_model)
    sessions = dict.fromkeys(request.session_id for request in requests)
    sessions.pop(tagging.default_session(), None)
    is_demo = all(request.provider == "demo" for request in requests)
    total = SimpleNamespace(
        input_tokens=_total(requests, "input_tokens"), output_tokens=_total(requests, "output_tokens")
    )
    parts = (
        "1 request" if len(requests) == 1 else f"{len(requests):,} requests",
        f"{failed:,} not ok" if failed else None,
        ", ".join(models) if len(models) <= 3 else f"{len(models)} models",
        ", ".join(sessions) if len(sessions) <= 3 else f"{len(sessions)} sessions",
        _tokens(total),
        None if is_demo else _cost(_total(requests, "cost_usd")),
    )
    return " · ".join(part for part in parts if part)


def _total(requests: Sequence[tracing.Record | SimpleNamespace], name: str) -> Any:
    """The sum; None where it is unknown of a request that succeeded."""
    values = [getattr(request, name) for request in requests]
    known = [value for value in values if value is not None]
    is_whole = all(
        value is not None or request.status != "ok" for request, value in zip(requests, values, strict=True)
    )
    return sum(known) if known and is_whole else None


def _model(record: tracing.Record) -> str | None:
    return f"{_name(record)} (demo model)" if record.provider == "demo" else record.request_model


def _name(record: tracing.Record | SimpleNamespace) -> str:
    return f"demo/{record.request_model}" if record.provider == "demo" else str(record.request_model)


def _tokens(record: tracing.Record | SimpleNamespace) -> str | None:
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
