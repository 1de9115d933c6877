"""What a cell shows of an answer, as it comes.

Owns the throttled display, and the sinks that it writes to: a notebook's display, a terminal. Called by the
magics. Knows nothing of where an answer comes from; the forms of what is shown are those of `formats`.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from . import formats, notices
from .formats import View, mime_bundle

INTERVAL = 0.05
"""Seconds between two updates of a display, at least."""

LONG_OUTPUT = 16_000
"""Bytes, in all forms together, from which on updates get rarer: Jupyter's server drops the messages of a
kernel that sends more than 1 MB/s (`iopub_data_rate_limit`), and a front end renders all of it at each."""

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
        show: Shows the present state and returns its size in bytes; 0 where there was nothing to show.
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
        began = self._clock()
        if size := self._show():
            now = self._clock()
            # Not all of the loop's time is for showing: it also reads what comes.
            self._due = now + max(INTERVAL * max(1.0, size / LONG_OUTPUT), 3 * (now - began))


def size_in_bytes(text: str) -> int:
    """How much a text is on the wire."""
    return len(text.encode("utf-8", "replace"))


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
        if not any(self._come()):
            self._throttle.request()

    def finish(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        """Show the final state, at once.

        Args:
            view: With a footer, which may be empty, as may all else.
            metadata: Of the output, as `output_metadata.pack` makes them.
        """
        self._throttle.cancel()
        self._show(view, metadata)

    def _show_now(self) -> int:
        text, reasoning = self._come()
        view = View(text, reasoning, progress=None if text or reasoning else self._progress)
        if size := size_in_bytes(f"{text}{reasoning}{view.progress or ''}"):
            self._show(view, None)
        return 2 * size  # as plain text and as Markdown

    def _come(self) -> tuple[str, str]:
        """The answer's text and reasoning so far."""
        if self._source is None:
            return "", ""
        return self._source.text, getattr(self._source, "reasoning", None) or ""

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
