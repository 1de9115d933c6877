"""The answers of several models side by side, each of which may come at any time.

Owns `Columns`, one output of a notebook's cell that holds all of them, and `TerminalColumns`, where there are
no columns. Called by `magics`, which gives each answer a `rendering.StreamDisplay` on `sink(index)`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import formats, markdown, markup, notices
from .formats import View
from .rendering import Later, Output, Sink, Throttle, printable

# What JupyterLab's themes define, and a grey that is seen on light and dark wherever they are missing.
_LINE = "var(--jp-border-color2, #8886)"
_ROW = "display:flex;flex-wrap:wrap;gap:12px;align-items:stretch"
_COLUMN = (
    "flex:1 1 20em;min-width:min(20em,100%);box-sizing:border-box;padding:8px 12px;"
    f"border:1px solid {_LINE};border-radius:4px;overflow-x:auto;overflow-wrap:break-word"
)
_TITLE = f"font-weight:600;margin:0 0 8px;padding-bottom:4px;border-bottom:1px solid {_LINE}"


class Columns:
    """One output that shows several answers side by side, and is published anew when one of them changes.

    Where there is no HTML they stand one below the other. The output's metadata hold the requests of all.

    Args:
        titles: One per column, plain text.
        publish: As for `rendering.Output`.
        format: As for `formats.mime_bundle`.
        clock: Seconds, monotonic.
        later: As for `rendering.Throttle`.
    """

    def __init__(
        self,
        titles: Sequence[str],
        publish: Callable[..., None] | None = None,
        *,
        format: str = "md",
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._columns = [_Column(title, format, self._note_change) for title in titles]
        self._output = Output(publish)
        self._throttle = Throttle(self._publish, clock=clock, later=later)

    def sink(self, index: int) -> Sink:
        """Where the answer of this column goes, counted from 0."""
        return self._columns[index]

    def _note_change(self) -> None:
        if all(column.view.footer is not None for column in self._columns):
            self._throttle.cancel()
            self._publish()
        else:
            self._throttle.request()

    def _publish(self) -> int:
        """Publish all columns; their size in characters."""
        texts = "\n".join(f"{column.view.reasoning}\n{column.view.text}" for column in self._columns)
        data = {
            "text/plain": "\n\n".join(column.plain() for column in self._columns),
            "text/markdown": "\n\n".join(column.rich(beside=texts) for column in self._columns),
            "text/html": f'<div style="{_ROW}">{"".join(column.html() for column in self._columns)}</div>',
        }
        requests = [request for column in self._columns for request in column.requests]
        try:
            self._output.show(data, {"nbllm": {"requests": requests}} if requests else None)
        except Exception as error:
            notices.warn_once(f"the answers could not be shown: {error!r}")
        return len(texts)


class _Column:
    """A column's state, and its forms; a `Sink`."""

    def __init__(self, title: str, format: str, note_change: Callable[[], None]) -> None:
        self.view = View()
        self.requests: Sequence[Any] = ()
        self._title = title
        self._format = format
        self._note_change = note_change
        self._html: str | None = None  # of the present view, once it was asked for

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        self.view, self._html = view, None
        self.requests = (metadata or {}).get("nbllm", {}).get("requests", ())
        self._note_change()

    def plain(self) -> str:
        body = formats.plain(self.view, self._format)
        return f"## {self._title}\n\n{body}" if body else f"## {self._title}"

    def rich(self, *, beside: str) -> str:
        body = formats.rich(self.view, self._format, beside=beside)
        title = f"### {markdown.escape(self._title)}"
        return f"{title}\n\n{body}" if body else title

    def html(self) -> str:
        if self._html is None:
            title = f'<div style="{_TITLE}">{markup.escape(self._title)}</div>'
            body = formats.hypertext(self.view, self._format)
            self._html = f'<div style="{_COLUMN}">{title}{body}</div>'
        return self._html


class TerminalColumns:
    """Standard output: each answer below its title when it is whole, in the order in which they end."""

    def __init__(self, titles: Sequence[str], *, format: str = "md") -> None:
        self._sinks = [_WholeAnswer(title, format) for title in titles]

    def sink(self, index: int) -> Sink:
        """Where the answer of this column goes, counted from 0."""
        return self._sinks[index]


class _WholeAnswer:
    """Writes an answer once it is whole; a `Sink`."""

    def __init__(self, title: str, format: str) -> None:
        self._title = title
        self._format = format

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        if view.footer is not None:
            text = formats.plain(view, self._format)
            sys.stdout.write(printable(f"## {self._title}\n\n{text}\n\n"))
            sys.stdout.flush()
