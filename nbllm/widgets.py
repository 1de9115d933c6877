"""`nbllm.dashboard()`: a live view of the requests, and the static form that stays when it is gone.

Owns the widget and its two outputs. What is sent to the browser is `feeds`', what the static form says
`reports`', how the live one looks that of the scripts in `static`. Called by users and `%nbllm dashboard`.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable
from importlib import resources
from typing import Any

import anywidget
import msgspec
import traitlets

from . import feeds, notices, overview, reports, tagging
from .kept import kept
from .selection import Selection, Since

SCRIPTS = ("units", "store", "headline", "table", "lanes", "spend", "drawer", "panel")
"""The scripts that make up the widget's module, in this order; each may have a style sheet of its name."""

MANY_ROWS = 500
"""From so many requests on, rows are sent as bytes: the kernel writes them ten times as fast."""

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# One of the two outputs is seen at a time: the live one while it lives, else the static one below it. Where a
# notebook is opened again there is no live one, but an error of the front end in its place. Without `:has`,
# or in a notebook that is not trusted, which keeps no style, both are seen.
STYLE = """
.jp-OutputArea-child:has(.nbllm-panel.nbllm-live) + .jp-OutputArea-child:has(.nbllm-still),
.jp-OutputArea-child:not(:has(.nbllm-panel.nbllm-live)):has(+ .jp-OutputArea-child .nbllm-still)
{ display: none; }
"""


def dashboard(
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
) -> Dashboard:
    """A live view of the requests, as the network panel of a browser: show it as the last line of a cell.

    Below it stands the same as static HTML, which is seen when the notebook is opened again. A cell that runs
    again closes the dashboard that it made before. In a terminal it is a table of text.

    Args:
        session: Only those of this session id.
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given; "all" for the
            whole log; or a kernel_id. What other kernels do comes when the view is refreshed.
        since: Only those that started since then: "30m", "12h", "7d" ago, a timedelta ago, a date, ….
        notebook: Only those of this notebook: its path, or the name alone.
        model: Only those that asked for this model, or were answered by it.
        search: Only those with this text in their messages, answers or errors.
        errors: Only those that failed.
        cell: Only those of this cell: its number, or its id.
        latest: Only those of the last run of each cell.

    Returns:
        A `Dashboard`; it holds the newest 10,000 requests.

    Raises:
        UsageProblem: A filter that can't be used.
    """
    chosen = Selection(session, kernel, since, notebook, model, search, errors, cell, latest)
    made = Dashboard(chosen)
    _state.take_place(made)
    return made


class Dashboard:
    """What `nbllm.dashboard` gives: as the last line of a cell it shows, live while its kernel runs.

    Attributes:
        selection: Which requests are meant.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.cell = tagging.current_cell()
        self._lock = threading.Lock()  # the feed sends in a thread of its own
        self._is_closed = False
        self._widget: LiveView | None = None
        self._publish: Callable[..., None] | None = None
        self._still_id = secrets.token_hex(8)

    @property
    def report(self) -> reports.Report:
        """What it shows, as it stands now: HTML without scripts, and text."""
        return reports.Report.of(self.selection)

    @property
    def widget(self) -> LiveView | None:
        """The widget alone, for a layout of one's own; None where there is no kernel, or it is closed."""
        if self._widget is None and not self._is_closed and _kernel_shell() is not None:
            phases = {name: list(phase) for name, phase in overview.PHASES.items()}
            self._widget = LiveView(phases=phases, scope=str(self.selection), is_wide=self.selection.is_wide)
            self._widget.on_msg(self._hear)
            feeds.add(self)
        return self._widget

    def close(self) -> None:
        """End the live view; the static one stays, as it is now."""
        feeds.remove(self)
        if not self._is_closed:
            self._try_to_show_still()
        self._end()

    def give_way(self) -> None:
        """End the live view, whose outputs are gone: the cell that made it runs again."""
        feeds.remove(self)
        self._end()

    def send(self, message: feeds.Message) -> None:
        """Send a message to the browser, unless it is closed."""
        with self._lock:
            if self._widget is None:
                return
            if len(message.get("requests", ())) < MANY_ROWS:
                self._widget.send(message)
            else:
                self._widget.send({"kind": "packed"}, buffers=[msgspec.json.encode(message)])

    def show_still(self) -> None:
        """Bring the static form up to date, where it is shown."""
        if self._publish is not None:
            self._show_still(self._publish, update=True)

    def __repr__(self) -> str:
        if _kernel_shell() is None:
            return str(self.report)
        return f"nbllm dashboard · {self.selection} · run the cell to see it live"

    def _ipython_display_(self) -> None:
        shell = _kernel_shell()
        if shell is None:
            print(self.report)
            return
        publisher = shell.display_pub
        if (widget := self.widget) is not None:
            view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
            publisher.publish(data={WIDGET_VIEW: view, "text/plain": repr(self)})
        self._try_to_show_still(publisher.publish)
        if hasattr(publisher, "session"):  # else `%%capture` has taken what the cell shows
            self._publish = publisher.publish

    def _try_to_show_still(self, publish: Callable[..., None] | None = None) -> None:
        try:
            if publish is None:
                self.show_still()
            else:
                self._show_still(publish, update=False)
        except Exception as error:
            notices.warn_once(f"a dashboard's static form could not be made: {error!r}")

    def _show_still(self, publish: Callable[..., None], update: bool) -> None:
        before = feeds.mark()
        report = self.report
        if not update:
            feeds.offer(self, report.overview, before)
        html = f'<div class="nbllm-still"><style>{STYLE}</style>{report.html}</div>'
        data = {"text/html": html, "text/plain": str(report)}
        with self._lock:
            if not (update and self._is_closed):
                publish(data=data, transient={"display_id": self._still_id}, update=update)

    def _hear(self, widget: object, content: object, buffers: object) -> None:
        # In ipykernel 7.0 to 7.3 another thread calls this: the feed's does the work.
        if isinstance(content, dict):
            feeds.ask(self, content)

    def _end(self) -> None:
        with self._lock:
            self._is_closed = True
            widget, self._widget = self._widget, None
            if widget is not None:
                widget.send({"kind": "closed"})
                widget.close()


def _joined(kind: str) -> str:
    files = [resources.files(__package__) / "static" / f"{name}.{kind}" for name in SCRIPTS]
    return "\n".join(file.read_text("utf-8") for file in files if file.is_file())


class LiveView(anywidget.AnyWidget):
    """The widget as the browser knows it. Rows come as messages: what it holds is not state."""

    _esm = _joined("js")
    _css = _joined("css")
    phases = traitlets.Dict().tag(sync=True)
    scope = traitlets.Unicode().tag(sync=True)
    is_wide = traitlets.Bool().tag(sync=True)


def _kernel_shell() -> Any:
    """IPython's shell, where it is that of a kernel; else None."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


class _State:
    """The dashboards that there are."""

    def __init__(self) -> None:
        self.made: weakref.WeakSet[Dashboard] = weakref.WeakSet()

    def take_place(self, made: Dashboard) -> None:
        """Close those that an earlier run of the same cell has made."""
        for other in list(self.made):
            if made.cell.cell_id is not None and _is_earlier(other.cell, made.cell):
                other.give_way()
                self.made.discard(other)
        self.made.add(made)


def _is_earlier(one: tagging.Cell, other: tagging.Cell) -> bool:
    return one.cell_id == other.cell_id and one.run_id != other.run_id


_state = kept(__name__, _State)
