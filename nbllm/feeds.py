"""The live feed of the dashboards: what changed goes to the browser, what the browser asks is answered.

Owns the one thread that serves all dashboards, while there are any. The event loop does no more for it than
append a request's number to a queue; the rows are read by the log's thread and sent by this one, so that they
come also while a cell blocks the loop. Called by `widgets`. A failure never reaches a request: it warns once.
"""

from __future__ import annotations

import contextvars
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from . import details, log, masking, notices, overview, tagging, tracing
from .exceptions import UsageProblem
from .kept import kept
from .overview import COLUMNS, CONNECTIONS, Overview
from .selection import Selection

BATCH_SECONDS = 0.2
"""How long changes are put together."""
SHARE = 4
"""After it was at work for some time, the thread rests for so many times that: there is one interpreter, and
the requests want it."""
REPEATS = (0.3, 1.0, 3.0, 8.0)
"""Seconds after which a browser that was not heard is sent everything: its scripts may not have been ready
before, and what it says waits until the running cell ends."""
AGAIN_SECONDS = 5.0
"""After how long everything is sent anew where the log could not be asked."""
QUIET_SECONDS = 1.0
"""How long nothing changes before the static form is made anew."""
STILL_SECONDS = 10.0
"""How often that is done, at most."""

Message = dict[str, Any]


class View(Protocol):
    """What is served: a dashboard."""

    selection: Selection

    def send(self, message: Message) -> None:
        """Send a message to the browser."""

    def show_still(self) -> None:
        """Make the static form anew."""


def add(view: View) -> None:
    """Serve a view from now on."""
    _state.feed.add(view)


def remove(view: View) -> None:
    """Serve a view no more. The thread ends with the last one."""
    _state.feed.remove(view)


def mark() -> int:
    """A mark of this moment, for `offer`."""
    return _state.feed.drained


def offer(view: View, seen: Overview, since: int) -> None:
    """Spare a new view the reading of what was just read for it: with many rows that is what takes longest.

    Args:
        view: What is served.
        seen: The rows.
        since: The mark of a moment before they were read: what a view was told since then must not be undone.
    """
    _state.feed.offer(view, seen, since)


def ask(view: View, message: Mapping[str, Any]) -> None:
    """Have a browser's message answered, in the feed's thread."""
    _state.feed.ask(view, message)


class _Served:
    """One view, and when it is due to get what. Of the feed's thread alone."""

    def __init__(self, view: View) -> None:
        self.view = view
        # What this kernel does is nothing to a view of another one.
        self.is_live = view.selection.kernel in (None, "all", tagging.kernel_id())
        now = time.monotonic()
        self.all_due = [now + seconds for seconds in REPEATS]
        self.changed_at = math.inf  # the last change that the static form lacks
        self.still_at = -math.inf
        self.known: Overview | None = None  # everything, where nothing was told that is not in it

    def due(self) -> float:
        """When there is something to do."""
        return min([*self.all_due, self._still_due()])

    def _still_due(self) -> float:
        return max(self.changed_at + QUIET_SECONDS, self.still_at + STILL_SECONDS)

    def do_what_is_due(self) -> None:
        """Send everything, or make the static form anew, where it is time."""
        now = time.monotonic()
        if self.all_due and self.all_due[0] <= now:
            self.all_due = [due for due in self.all_due if due > now]
            self._try(self.send_all)
            if not self.all_due:
                self.known = None
        if self._still_due() <= now:
            self.changed_at, self.still_at = math.inf, now
            self._try(self.view.show_still)

    def note_changes(self, ids: set[int], connection_ids: set[str]) -> None:
        """Send what is meant of these requests and connections."""
        if not self.is_live:
            return
        if (
            self.view.selection.latest or len(ids) >= overview.LIMIT
        ):  # a cell's new run replaces the one before
            self._try(self.send_all)
        else:
            self._try(lambda: self._send_changes(ids, connection_ids))

    def answer(self, message: Mapping[str, Any]) -> None:
        """Do what the browser asks for."""
        match message:
            case {"kind": "hello" | "refresh" as kind}:
                self.all_due = []
                if kind == "refresh":  # other kernels may have gone on
                    self.known = None
                    self.changed_at = time.monotonic()
                self._try(self.send_all)
                self.known = None
            case {"kind": "detail", "request_id": str(request_id)}:
                self._try(lambda: self._send_detail(request_id))
            case {"kind": "search", "text": str(text)}:
                self._try(lambda: self._send_found(text))

    def send_all(self) -> None:
        """Send everything that is meant."""
        found = self.known
        if found is None:
            found = overview.overview(self.view.selection)
        else:
            found = replace(found, taken_at=time.time())
        self.view.send(_rows(found, reset=True))

    def _send_changes(self, ids: set[int], connection_ids: set[str]) -> None:
        found = overview.changed(self.view.selection, ids, connection_ids)
        if found.requests or found.connections:
            self.view.send(_rows(found, reset=False))
            self.changed_at = time.monotonic()

    def _send_detail(self, request_id: str) -> None:
        message: Message = {"kind": "detail", "request_id": request_id}
        try:
            message["detail"] = details.detail_of(request_id)
        except UsageProblem as problem:
            message["problem"] = str(problem)
        self.view.send(message)

    def _send_found(self, text: str) -> None:
        try:
            found = details.found(self.view.selection, text)
        except UsageProblem:  # nothing is as long as that
            found = []
        self.view.send({"kind": "found", "text": text, "request_ids": found})

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            notices.warn_once(f"a dashboard could not be brought up to date: {masking.redact(str(error))}")
            self.all_due = [time.monotonic() + AGAIN_SECONDS]


def _rows(found: Overview, reset: bool) -> Message:
    return {
        "kind": "rows",
        "reset": reset,
        "columns": COLUMNS,
        "requests": [tuple(row.values()) for row in found.requests],
        "connection_columns": CONNECTIONS,
        "connections": [tuple(row.values()) for row in found.connections],
        "left_out": found.left_out,
        "now": found.taken_at,
    }


class _Feed:
    """The thread, and what it is told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of `served` and `thread`
        self.served: dict[int, _Served] = {}  # by the identity of the view
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.jobs: deque[tuple[View, Mapping[str, Any]]] = deque()
        self.changes: deque[int | str] = deque()  # requests and connections, by their ids
        self.drained = 0  # how often changes were taken, and told
        self.is_roused = False  # for the changes that are there: an event costs more than a look at this

    # -- on the event loop -----------------------------------------------------------------------

    def note_request(self, record: tracing.Record) -> None:
        """A request began, or ended."""
        self.changes.append(record.id)
        if not self.is_roused:
            self.is_roused = True
            self.wake.set()

    def note_connection(self, connection: tracing.Connection, is_open: bool) -> None:
        """A connection was opened, or closed."""
        self.changes.append(connection.connection_id)
        if not self.is_roused:
            self.is_roused = True
            self.wake.set()

    # -- from any thread -------------------------------------------------------------------------

    def note_all(self) -> None:
        """Rows that were there have changed, or are gone."""
        for one in list(self.served.values()):
            self.ask(one.view, {"kind": "refresh"})

    def add(self, view: View) -> None:
        with self.lock:
            self.served[id(view)] = _Served(view)
            if self.thread is None or not self.thread.is_alive():
                # The log hears of a request's end first, so that it knows of it when this thread asks.
                tracing.subscribe(log.add_request, log.add_connection, log.request_began)
                tracing.subscribe(self.note_request, self.note_connection, self.note_request)
                log.on_change(self.note_all)
                # With the context of the cell, in which ipykernel 7.0 to 7.3 look for where to send.
                run = contextvars.copy_context().run
                self.thread = threading.Thread(
                    target=run, args=(self._serve,), name="nbllm-dashboards", daemon=True
                )
                self.thread.start()
        self.wake.set()

    def remove(self, view: View) -> None:
        with self.lock:
            self.served.pop(id(view), None)
        self.wake.set()

    def offer(self, view: View, seen: Overview, since: int) -> None:
        with self.lock:
            if since == self.drained and (one := self.served.get(id(view))) is not None:
                one.known = seen

    def ask(self, view: View, message: Mapping[str, Any]) -> None:
        self.jobs.append((view, message))
        self.wake.set()

    # -- the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        changes_due, rest = math.inf, BATCH_SECONDS
        while served := self._all_served():
            wait = min([changes_due, *(one.due() for one in served)]) - time.monotonic()
            self.wake.wait(None if math.isinf(wait) else max(0.0, wait))
            self.wake.clear()
            began = time.monotonic()
            if not self.changes:
                self.is_roused = False  # and then another look: what comes between would rouse nobody
            if self.changes and math.isinf(changes_due):
                changes_due = began + rest
            self._answer()
            if changes_due <= began:
                changes_due = math.inf
                ids, connection_ids = self._take_changes()
                with self.lock:
                    self.drained += 1
                    for one in served:
                        one.known = None
                for one in served:
                    one.note_changes(ids, connection_ids)
            for one in served:
                one.do_what_is_due()
            rest = max(BATCH_SECONDS, SHARE * (time.monotonic() - began))

    def _all_served(self) -> list[_Served]:
        """Those that are served; where there is none, the thread is over."""
        with self.lock:
            if not self.served:
                tracing.unsubscribe(self.note_request, self.note_connection, self.note_request)
                self.jobs.clear()
                self._take_changes()
                self.thread = None
            return list(self.served.values())

    def _answer(self) -> None:
        while self.jobs:
            view, message = self.jobs.popleft()
            if (one := self.served.get(id(view))) is not None:
                one.answer(message)

    def _take_changes(self) -> tuple[set[int], set[str]]:
        self.is_roused = False
        ids: set[int] = set()
        connection_ids: set[str] = set()
        while self.changes:
            change = self.changes.popleft()
            if isinstance(change, int):
                ids.add(change)
            else:
                connection_ids.add(change)
        return ids, connection_ids


class _State:
    """The feed of this process."""

    def __init__(self) -> None:
        self.feed = _Feed()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.after_fork)

    def after_fork(self) -> None:
        """Begin anew in a forked child: the thread, and who it served, stay with the parent."""
        old, self.feed = self.feed, _Feed()
        tracing.unsubscribe(old.note_request, old.note_connection, old.note_request)


_state = kept(__name__, _State)
