"""The thread that serves dashboards: what it sends, when it lives, and what it never does to a request."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nbllm
from nbllm import feeds, log, notices, overview, selection, tagging, tracing
from nbllm.overview import Overview
from nbllm.selection import Selection
from tests.servers import RawServer

TIMEOUT = 20.0


class View:
    """A dashboard whose browser is the test."""

    def __init__(self, **filters: Any) -> None:
        self.selection = Selection(**filters)
        self.messages: list[dict[str, Any]] = []
        self.stills = 0
        self.rows: dict[str, dict[str, Any]] = {}
        self.connections: dict[str, dict[str, Any]] = {}
        self.states: dict[str, list[str | None]] = {}
        self.fails = False
        self.changed = threading.Condition()

    def send(self, message: dict[str, Any]) -> None:
        with self.changed:
            self.messages.append(message)
            if message["kind"] == "rows":
                self._take(message)
            self.changed.notify_all()
        if self.fails:
            raise OSError("the socket is gone, sk-0123456789abcdef")

    def show_still(self) -> None:
        with self.changed:
            self.stills += 1
            self.changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if message["reset"]:
            self.rows, self.connections = {}, {}
        for values in message["requests"]:
            row = dict(zip(message["columns"], values, strict=True))
            self.rows[row["request_id"]] = row
            self.states.setdefault(row["request_id"], []).append(row["status"])
        for values in message["connections"]:
            row = dict(zip(message["connection_columns"], values, strict=True))
            self.connections[row["connection_id"]] = row

    def wait_for(self, condition: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT), self.messages

    async def seen(self, condition: Callable[[], object]) -> None:
        await asyncio.to_thread(self.wait_for, condition)

    def last(self, kind: str) -> dict[str, Any]:
        return [message for message in self.messages if message["kind"] == kind][-1]


Show = Callable[..., View]


@pytest.fixture
def show() -> Iterator[Show]:
    """Makes views that are served until the test ends."""
    views: list[View] = []

    def made(**filters: Any) -> View:
        views.append(view := View(**filters))
        feeds.add(view)
        return view

    yield made
    thread = feeds._state.feed.thread
    for view in views:
        feeds.remove(view)
    if thread is not None:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nbllm-dashboards"]


def heard(view: View) -> View:
    """The view, whose browser has said that it is there, with its first rows."""
    feeds.ask(view, {"kind": "hello"})
    view.wait_for(lambda: view.messages)
    return view


async def ask(server: RawServer, behaviour: str = "chat", **params: Any) -> None:
    try:
        await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **params)
    except nbllm.APIError:
        pass


async def test_rows_come_while_requests_run_and_when_they_end(server: RawServer, show: Show) -> None:
    view = heard(show())
    assert view.messages[0]["reset"]
    assert view.messages[0]["columns"] == overview.COLUMNS
    task = asyncio.create_task(ask(server, "gated"))
    await view.seen(lambda: view.rows)
    (row,) = view.rows.values()
    assert (row["status"], row["request_model"]) == (None, "m")
    server.open_gate()
    await task
    await view.seen(lambda: [row["status"] for row in view.rows.values()] == ["ok"])
    await view.seen(lambda: len(view.connections) == 1)
    ((states),) = view.states.values()
    assert states == [None, "ok"]  # once each
    assert not any(message["reset"] for message in view.messages[1:])


async def test_what_was_just_read_for_a_view_is_not_read_again_unless_something_happened(
    server: RawServer, show: Show
) -> None:
    view = show()
    seen = Overview([], [], 7, 0.0)  # as many are left out as nowhere else
    feeds.offer(view, seen, feeds.mark())
    heard(view)
    assert view.messages[0]["left_out"] == 7
    assert view.messages[0]["now"] == pytest.approx(time.time(), abs=60)
    feeds.ask(view, {"kind": "hello"})  # another page: that may be much later
    await view.seen(lambda: view.last("rows")["left_out"] == 0)
    before = feeds.mark()
    await ask(server)
    await view.seen(lambda: [row["status"] for row in view.rows.values()] == ["ok"])
    feeds.offer(view, seen, before)
    count = len(view.messages)
    feeds.ask(view, {"kind": "hello"})
    await view.seen(lambda: any(message["reset"] for message in view.messages[count:]))
    assert view.last("rows")["left_out"] == 0
    assert len(view.rows) == 1


async def test_what_was_read_for_a_view_is_forgotten_once_something_happened(
    server: RawServer, show: Show
) -> None:
    view = show()
    feeds.offer(view, Overview([], [], 7, 0.0), feeds.mark())
    await ask(server)
    await view.seen(lambda: [row["status"] for row in view.rows.values()] == ["ok"])
    count = len(view.messages)
    feeds.ask(view, {"kind": "hello"})
    await view.seen(lambda: any(message["reset"] for message in view.messages[count:]))
    assert view.last("rows")["left_out"] == 0
    assert len(view.rows) == 1


async def test_the_numbers_are_those_that_the_server_counted(server: RawServer, show: Show) -> None:
    view = heard(show())
    calls = [ask(server, behaviour) for behaviour in ("chat", "status-500", "halfbody", "reset") * 10]
    await asyncio.gather(*calls)
    await view.seen(lambda: sum(row["status"] is not None for row in view.rows.values()) == 40)
    assert len(view.rows) == len(server.requests) == 40
    assert sorted(row["local_port"] for row in view.connections.values()) == sorted(
        connection.peer_port for connection in server.connections
    )
    answered = [row for row in view.rows.values() if row["status"] == "ok"]
    assert len(answered) == 10
    assert sum(row["input_tokens"] for row in answered) == 10 * 11
    sent = [one.bytes_out for one in server.requests if one.answered]
    told = [
        row["bytes_received"] for row in view.rows.values() if row["http_status"] and row["finish_reason"]
    ]
    assert set(told) <= set(sent)
    log_rows = {row["request_id"]: row for row in await asyncio.to_thread(selection.request_rows)}
    for request_id, row in view.rows.items():
        assert {k: v for k, v in row.items() if k in log_rows[request_id]} == {
            k: v for k, v in log_rows[request_id].items() if k in row
        }


async def test_rows_come_while_a_cell_blocks_the_loop(server: RawServer, show: Show) -> None:
    view = heard(show())
    await ask(server)
    task = asyncio.create_task(ask(server, "gated"))
    await server.seen(lambda: len(server.requests) == 2)
    view.wait_for(
        lambda: [row["status"] for row in view.rows.values()] == ["ok", None]
    )  # nothing runs meanwhile
    server.open_gate()
    await task


async def test_a_connection_that_closes_is_told_without_a_request(server: RawServer, show: Show) -> None:
    view = heard(show())
    await ask(server)
    await view.seen(lambda: view.connections)
    server.close_idle()
    await view.seen(lambda: all(row["closed_at"] for row in view.connections.values()))
    (row,) = view.connections.values()
    assert row["close_reason"] == "closed by server"


async def test_only_what_is_meant_is_sent(server: RawServer, show: Show) -> None:
    failed, review = heard(show(errors=True)), heard(show(session="review"))
    other, wide = heard(show(kernel="0badcafe")), heard(show(kernel="all"))
    await ask(server, session_id="review")
    await ask(server, "status-500")
    await wide.seen(lambda: [row["status"] for row in wide.rows.values()] == ["ok", "error"])
    await failed.seen(lambda: [row["status"] for row in failed.rows.values()] == ["error"])
    await review.seen(lambda: [row["session_id"] for row in review.rows.values()] == ["review"])
    assert not other.rows
    assert len(other.messages) == 1


async def test_a_new_run_of_a_cell_takes_the_place_of_the_one_before(server: RawServer, show: Show) -> None:
    view = heard(show(latest=True))
    for run in ("one", "two"):
        tagging.enter_cell(tagging.Cell("cell", 1, run, "frontend"))
        await ask(server)
        await view.seen(lambda run=run: [row["run_id"] for row in view.rows.values()] == [run])
    assert view.last("rows")["reset"]


async def test_a_browser_that_says_nothing_is_sent_everything_again(server: RawServer, show: Show) -> None:
    await ask(server)
    view = show()
    await view.seen(lambda: len(view.messages) == 2)
    assert [message["reset"] for message in view.messages] == [True, True]
    assert [len(message["requests"]) for message in view.messages] == [1, 1]
    feeds.ask(view, {"kind": "hello"})
    await view.seen(lambda: len(view.messages) == 3)
    assert feeds._state.feed.served[id(view)].all_due == []


async def test_questions_are_answered(server: RawServer, show: Show) -> None:
    await ask(server)
    view = heard(show())
    (request_id,) = view.rows
    feeds.ask(view, {"kind": "detail", "request_id": request_id})
    await view.seen(lambda: view.messages[-1]["kind"] == "detail")
    assert view.last("detail")["request_id"] == request_id
    assert view.last("detail")["detail"]["answer"]["text"] == "Hello from the raw server"
    feeds.ask(view, {"kind": "detail", "request_id": "0badcafe-r1"})
    await view.seen(lambda: view.messages[-1].get("problem"))
    feeds.ask(view, {"kind": "search", "text": "RAW server"})
    await view.seen(lambda: view.messages[-1]["kind"] == "found")
    assert view.last("found") == {"kind": "found", "text": "RAW server", "request_ids": [request_id]}
    feeds.ask(view, {"kind": "search", "text": "x" * 5000})
    await view.seen(lambda: view.last("found")["text"].startswith("x"))
    assert view.last("found")["request_ids"] == []
    feeds.ask(view, {"kind": "refresh"})
    await view.seen(lambda: view.messages[-1]["kind"] == "rows")
    assert view.last("rows")["reset"]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"kind": None},
        {"kind": "detail"},
        {"kind": "detail", "request_id": 5},
        {"kind": "search", "text": []},
    ],
)
async def test_what_makes_no_sense_is_passed_over(message: dict[str, Any], show: Show) -> None:
    view = heard(show())
    feeds.ask(view, message)
    feeds.ask(view, {"kind": "search", "text": "the next one"})
    await view.seen(lambda: view.messages[-1]["kind"] == "found")
    assert [one["kind"] for one in view.messages] == ["rows", "found"]
    assert not notices._state.warned


async def test_the_static_form_is_made_when_it_is_quiet(server: RawServer, show: Show) -> None:
    view = heard(show())
    await ask(server)
    await view.seen(lambda: view.stills)
    assert view.stills == 1
    await ask(server)
    await view.seen(lambda: len(view.rows) == 2)
    served = feeds._state.feed.served[id(view)]
    assert served.still_at + feeds.STILL_SECONDS <= served.due() < float("inf")
    assert view.stills == 1


async def test_what_is_deleted_renamed_or_priced_later_is_seen(server: RawServer, show: Show) -> None:
    for session in ("one", "two"):
        await ask(server, session_id=session)
    view = heard(show())
    assert len(view.rows) == 2

    def rows() -> list[dict[str, Any]]:
        last = [message for message in view.messages if message["kind"] == "rows" and message["reset"]][-1]
        return [dict(zip(last["columns"], row, strict=True)) for row in last["requests"]]

    nbllm.delete_session("one")
    await view.seen(lambda: [row["session_id"] for row in rows()] == ["two"])
    nbllm.rename_session("two", "three")
    await view.seen(lambda: [row["session_id"] for row in rows()] == ["three"])
    nbllm.set_price("m", input=1.0, output=1.0)
    await view.seen(lambda: rows()[0]["cost_usd"] is not None)


async def test_a_failure_warns_once_and_the_rest_goes_on(server: RawServer, show: Show) -> None:
    good, bad = heard(show()), show()
    bad.fails = True

    async def go_on() -> None:
        heard(bad)
        await ask(server)
        await bad.seen(lambda: len(bad.messages) > 1)
        await good.seen(lambda: [row["status"] for row in good.rows.values()] == ["ok"])

    with pytest.warns(RuntimeWarning, match=r"could not be brought up to date: the socket is gone, \[key\]"):
        await go_on()
    assert len(feeds._state.feed.served[id(bad)].all_due) == 1  # everything, later


async def test_a_log_that_can_not_be_asked_harms_no_request(
    server: RawServer, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = heard(show())

    def broken(*_: Any) -> Any:
        raise nbllm.UsageProblem("the log can't be asked now")

    async def go_on() -> None:
        await ask(server)
        await asyncio.to_thread(_wait_for, lambda: notices._state.warned)

    with monkeypatch.context() as patched:
        patched.setattr(selection, "read", broken)
        with pytest.warns(RuntimeWarning, match="could not be brought up"):
            await go_on()
    assert feeds._state.feed.served[id(view)].all_due
    feeds.ask(view, {"kind": "hello"})
    await view.seen(lambda: len(view.rows) == 1)


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_one_thread_serves_all_and_ends_with_the_last(server: RawServer) -> None:
    one, two = View(), View()
    feeds.add(one)
    feeds.add(two)
    (thread,) = threads()
    feeds.remove(one)
    heard(two)
    assert one.messages == []
    feeds.remove(two)
    thread.join(TIMEOUT)
    assert threads() == []
    feed = feeds._state.feed
    assert feed.note_request not in tracing._state.on_request
    assert feed.note_request not in tracing._state.on_begin
    assert feed.note_connection not in tracing._state.on_connection
    await ask(server)
    assert not feed.changes
    feeds.add(one)  # and another begins
    heard(one)
    assert len(one.rows) == 1
    feeds.remove(one)
    _wait_for(lambda: not threads())
    feeds.ask(one, {"kind": "hello"})
    assert len(one.messages) == 1


async def test_thousands_of_requests_are_all_told(server: RawServer, show: Show) -> None:
    view = heard(show())
    gate = asyncio.Semaphore(100)

    async def one() -> None:
        async with gate:
            await ask(server)

    await asyncio.gather(*(one() for _ in range(3000)))
    await view.seen(lambda: sum(row["status"] == "ok" for row in view.rows.values()) == 3000)
    assert len(view.messages) < 100
    assert not feeds._state.feed.changes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of any fork beside a thread
async def test_a_forked_child_has_no_feed_and_the_parent_keeps_its_own(server: RawServer, show: Show) -> None:
    view = heard(show())
    await ask(server)
    await view.seen(lambda: view.rows)

    def child() -> int:
        feed = feeds._state.feed
        own = (feed.thread, feed.served, threads()) == (None, {}, [])
        return 0 if own and tracing._state.on_begin == [log.request_began] else 1

    process = os.fork()
    if process == 0:
        try:
            os._exit(child())
        finally:
            os._exit(2)
    assert os.waitpid(process, 0)[1] == 0
    await ask(server)
    await view.seen(lambda: len(view.rows) == 2)
