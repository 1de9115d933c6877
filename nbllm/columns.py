"""The answers of several models side by side, each of which may come at any time.

Owns `notebook_sinks`, whose answers share one output of a cell, and `terminal_sinks`, where there are no
columns. Called by `cells`, which gives each answer a `rendering.StreamDisplay` on a sink of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import formats, markdown, markup, notices, output_metadata
from .formats import View
from .rendering import Later, Output, Sink, Throttle, printable, size_in_bytes

# What JupyterLab's themes define, and a grey that is seen on light and dark wherever they are missing.
_LINE = "var(--jp-border-color2, #8886)"
_ROW = "display:flex;flex-wrap:wrap;gap:12px;align-items:stretch"
_COLUMN = (
    "flex:1 1 20em;min-width:min(20em,100%);box-sizing:border-box;padding:8px 12px;"
    f"border:1px solid {_LINE};border-radius:4px;overflow-x:auto;overflow-wrap:break-word"
)
_TITLE = f"font-weight:600;margin:0 0 8px;padding-bottom:4px;border-bottom:1px solid {_LINE}"


def notebook_sinks(
    titles: Sequence[str],
    format: str = "md",
    publish: Callable[..., None] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    later: Later | None = None,
) -> list[Sink]:
    """One output that shows several answers side by side: a sink for each of them.

    Where there is no HTML they stand one below the other. The output's metadata hold the requests of all.

    Args:
        titles: One per column, plain text.
        format: As for `formats.mime_bundle`.
        publish: As for `rendering.Output`.
        clock: Seconds, monotonic.
        later: As for `rendering.Throttle`.
    """
    return [*_Row(titles, format, publish, clock, later).columns]


def terminal_sinks(titles: Sequence[str], format: str = "md") -> list[Sink]:
    """Standard output: each answer below its title when it is whole, in the order in which they end."""
    return [_WholeAnswer(title, format) for title in titles]


class _Row:
    """An output with all columns, which is published anew when one of them changes."""

    def __init__(
        self,
        titles: Sequence[str],
        format: str,
        publish: Callable[..., None] | None,
        clock: Callable[[], float],
        later: Later | None,
    ) -> None:
        self.columns = [_Column(title, format, self._note_change) for title in titles]
        self._output = Output(publish)
        self._throttle = Throttle(self._publish, clock=clock, later=later)

    def _note_change(self) -> None:
        if all(column.view.footer is not None for column in self.columns):
            self._throttle.cancel()
            self._publish()
        else:
            self._throttle.request()

    def _publish(self) -> int:
        """Publish all columns; their size in bytes."""
        texts = "\n".join(f"{column.view.reasoning}\n{column.view.text}" for column in self.columns)
        data = {
            "text/plain": "\n\n".join(column.plain() for column in self.columns),
            "text/markdown": "\n\n".join(column.rich(beside=texts) for column in self.columns),
            "text/html": f'<div style="{_ROW}">{"".join(column.html() for column in self.columns)}</div>',
        }
        metadata = output_metadata.joined(column.metadata for column in self.columns)
        try:
            self._output.show(data, metadata)
        except Exception as error:
            notices.warn_once(f"the answers could not be shown: {error!r}")
        return sum(map(size_in_bytes, data.values()))


class _Column:
    """A column's state, and its forms; a `Sink`."""

    def __init__(self, title: str, format: str, note_change: Callable[[], None]) -> None:
        self.view = View()
        self.metadata: Mapping[str, Any] | None = None
        self._title = title
        self._format = format
        self._note_change = note_change
        self._html: str | None = None  # of the present view, once it was asked for

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        self.view, self.metadata, self._html = view, metadata, None
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
