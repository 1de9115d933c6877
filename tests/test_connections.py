"""Which connection served which request, and why it was a new one; the raw server is the witness."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import protocol, tracing
from tests.rows import connection_rows, request_rows, until
from tests.servers import RawServer


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


async def settled() -> None:
    """Wait until the pool has seen every close that the server has sent."""
    await until(lambda: not tracing.connections())


def agree(server: RawServer) -> None:
    """Every number of the rows is the server's: connections, ports, requests, bytes, reuse."""
    connections = {row.connection_id: row for row in connection_rows()}
    requests = [row for row in request_rows() if row.connection_id]
    by_port = {row.local_port: row for row in connections.values()}
    assert sorted(by_port) == sorted(c.peer_port for c in server.connections)
    for seen in server.connections:
        row = by_port[seen.peer_port]
        assert row.requests == seen.requests
        assert (row.bytes_sent, row.bytes_received) == (seen.bytes_in, seen.bytes_out)
        assert row.peer == f"127.0.0.1:{server.port}"
        assert row.port == server.port
        mine = [r for r in requests if r.connection_id == row.connection_id]
        assert [r.connection_reused for r in mine] == [False, True, True, True, True][: len(mine)]
        assert all((r.connection_reason is None) == r.connection_reused for r in mine)


async def test_the_first_connection_is_new_and_then_reused(server: RawServer) -> None:
    for _ in range(3):
        await ask(server)
    agree(server)
    rows = request_rows()
    assert [row.connection_reason for row in rows] == ["first", None, None]
    assert [row.connection_idle_ms is None for row in rows] == [True, False, False]
    (connection,) = connection_rows()
    assert (connection.closed_at, connection.close_reason, connection.tls_version) == (None, None, None)
    assert connection.host == "127.0.0.1"
    assert connection.connect_ms == rows[0].connect_ms > 0


async def test_all_busy(server: RawServer) -> None:
    waiting = [asyncio.ensure_future(ask(server, "gated")) for _ in range(4)]
    await server.seen(lambda: len(server.requests) == 4)
    server.open_gate()
    await asyncio.gather(*waiting)
    assert Counter(row.connection_reason for row in request_rows()) == {"first": 1, "all busy": 3}
    agree(server)


async def test_a_streams_connection_is_busy_until_it_ends(server: RawServer) -> None:
    stream = await ask(server, "gatedbody", stream=True)
    await ask(server)
    server.open_gate()
    async for _ in stream:
        pass
    await ask(server)
    assert sorted(row.connection_reason or "" for row in request_rows()) == ["", "all busy", "first"]
    agree(server)


async def test_idle_expired(server: RawServer) -> None:
    nbllm.configure(keepalive_timeout=0.05)
    await ask(server)
    await asyncio.sleep(0.06)
    await ask(server)
    second = request_rows()[1]
    assert second.connection_reason == "idle expired"
    assert second.connection_idle_ms >= 50
    closed = connection_rows()[0]
    assert closed.close_reason == "idle expired"
    assert closed.closed_at >= closed.opened_at
    agree(server)


async def test_closed_by_server(server: RawServer) -> None:
    await ask(server)
    await asyncio.to_thread(server.close_idle)
    await settled()
    await ask(server)
    rows = request_rows()
    assert [row.connection_reason for row in rows] == ["first", "closed by server"]
    assert rows[1].connection_idle_ms > 0
    assert connection_rows()[0].close_reason == "closed by server"
    agree(server)


async def test_server_asked_to_close(server: RawServer) -> None:
    await ask(server, "bye")
    await ask(server)
    assert [row.connection_reason for row in request_rows()] == ["first", "server asked to close"]
    await server.seen(lambda: not server.connections[0].open)
    agree(server)


async def test_limit(server: RawServer) -> None:
    """At the limit, and the connection that comes free goes to another host: a new one is needed."""
    nbllm.configure(limit=1)
    with RawServer() as other:
        first = asyncio.ensure_future(ask(server, "gated"))
        await server.seen(lambda: bool(server.requests))
        second = asyncio.ensure_future(ask(other))
        await until(lambda: len(tracing.running()) == 2)
        server.open_gate()
        await asyncio.gather(first, second)
        one, two = request_rows()
        assert (one.connection_reason, two.connection_reason) == ("first", "limit")
        assert two.blocked_ms > 0


async def test_limit_per_host_holds(server: RawServer) -> None:
    nbllm.configure(limit_per_host=2)
    waiting = [asyncio.ensure_future(ask(server, "gated")) for _ in range(6)]
    await server.seen(lambda: len(server.requests) == 2)
    server.open_gate()
    await asyncio.gather(*waiting)
    assert len(server.connections) == 2
    rows = request_rows()
    assert sum(row.connection_reused for row in rows) == 4
    assert sum(row.blocked_ms is not None for row in rows) == 4
    agree(server)


async def test_a_raised_limit_lets_waiting_requests_go(server: RawServer) -> None:
    nbllm.configure(limit=1)
    waiting = [asyncio.ensure_future(ask(server, "gated")) for _ in range(3)]
    await server.seen(lambda: len(server.requests) == 1)
    nbllm.configure(limit=100)
    await server.seen(lambda: len(server.requests) == 3)
    server.open_gate()
    await asyncio.gather(*waiting)
    agree(server)


async def test_answer_abandoned(server: RawServer) -> None:
    stream = await ask(server, "endless", stream=True)
    await stream.aclose()
    await ask(server)
    assert [row.connection_reason for row in request_rows()] == ["first", "answer abandoned"]
    await server.seen(lambda: not server.connections[0].open)
    assert connection_rows()[0].close_reason == "answer abandoned"


async def test_request_cancelled(server: RawServer) -> None:
    task = asyncio.ensure_future(ask(server, "hang"))
    await server.seen(lambda: bool(server.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ask(server)
    assert [row.connection_reason for row in request_rows()] == ["first", "request cancelled"]
    await server.seen(lambda: not server.connections[0].open)
    agree(server)


async def test_request_failed(server: RawServer) -> None:
    with pytest.raises(nbllm.Timeout):
        await ask(server, "hang", timeout=aiohttp.ClientTimeout(sock_read=0.1))
    await ask(server)
    assert [row.connection_reason for row in request_rows()] == ["first", "request failed"]
    await server.seen(lambda: not server.connections[0].open)
    agree(server)


async def test_reasons_are_told_by_host(server: RawServer) -> None:
    with RawServer() as other:
        await ask(server, "bye")
        await ask(other)
        await ask(server)
        assert [row.connection_reason for row in request_rows()] == [
            "first",
            "first",
            "server asked to close",
        ]


async def test_a_cut_connection_says_so(server: RawServer) -> None:
    with pytest.raises(nbllm.APIConnectionError):
        await ask(server, "reset")
    await ask(server)
    assert request_rows()[1].connection_reason == "connection lost: ConnectionResetError"
    assert connection_rows()[0].close_reason == "connection lost: ConnectionResetError"


async def test_a_pool_that_closes_closes_its_connections(server: RawServer) -> None:
    await ask(server)
    await nbllm.shared_session().connector.close()
    await server.all_closed()
    await settled()
    assert connection_rows()[0].close_reason == "pool closed"
    await ask(server)
    assert request_rows()[1].connection_reason == "first"
    agree(server)


@pytest.mark.parametrize("blocked", [0.0, protocol.IDLE_BEFORE_RECHECK + 0.05])
async def test_a_connection_closed_while_the_loop_was_blocked_costs_no_error(
    blocked: float, server: RawServer
) -> None:
    """The FIN is in the socket, but the loop has not read it: a cell was computing."""
    await ask(server)
    server.close_idle()  # blocks this loop
    time.sleep(blocked)
    answer = await ask(server)
    assert answer.text
    rows = request_rows()
    assert rows[-1].status == "ok"
    assert rows[-1].connection_reused is False
    assert rows[-1].connection_reason == "closed by server"
    assert len({row.call_id for row in rows}) == 2
    if blocked:  # seen before use
        assert len(rows) == 2
    else:
        assert [row.status for row in rows] == ["ok", "error", "ok"]
        assert [row.attempt for row in rows] == [1, 1, 2]
        assert rows[1].error_type == "ServerDisconnectedError"
        assert rows[1].call_id == rows[2].call_id
        assert answer.request.request_id == rows[2].request_id


async def test_a_connection_dropped_at_its_second_request_costs_a_retry(server: RawServer) -> None:
    first = [asyncio.ensure_future(ask(server, "gated")) for _ in range(3)]
    await server.seen(lambda: len(server.requests) == 3)
    server.open_gate()
    await asyncio.gather(*first)  # three idle connections
    assert (await ask(server, "once")).text
    *_, last = request_rows()
    mine = [row for row in request_rows() if row.call_id == last.call_id]
    assert [row.attempt for row in mine] == [1, 2, 3, 4]
    assert [row.status for row in mine] == ["error", "error", "error", "ok"]
    assert [row.connection_reused for row in mine] == [True, True, True, False]
    agree(server)


async def test_a_stream_is_retried_too(server: RawServer) -> None:
    await ask(server, "once")
    stream = await ask(server, "once", stream=True)
    assert [chunk async for chunk in stream]
    assert [row.status for row in request_rows()] == ["ok", "error", "ok"]
    assert stream.request.request_id == request_rows()[2].request_id


async def test_a_new_connection_that_breaks_is_not_retried(server: RawServer) -> None:
    with pytest.raises(nbllm.APIConnectionError):
        await ask(server, "close")
    assert len(server.requests) == 1


async def test_an_answer_that_has_begun_is_not_retried(server: RawServer) -> None:
    await ask(server)
    with pytest.raises(nbllm.APIConnectionError):
        await ask(server, "halfhead")
    assert len(server.requests) == 2


async def test_a_server_that_worked_on_it_before_it_broke_is_not_asked_again(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbllm.transport, "STALE_SECONDS", 0.0)
    await ask(server)
    with pytest.raises(nbllm.APIConnectionError):
        await ask(server, "once")
    assert len(server.requests) == 2


async def test_a_cancel_while_the_pool_is_looked_over_is_cancelled(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(server)
    monkeypatch.setattr(protocol, "IDLE_BEFORE_RECHECK", -1.0)
    task = asyncio.ensure_future(ask(server))
    await until(tracing.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.status for row in request_rows()] == ["ok", "cancelled"]
    assert tracing.running() == []
    assert len(server.requests) == 1


async def test_a_cancel_is_not_retried(server: RawServer) -> None:
    await ask(server)
    task = asyncio.ensure_future(ask(server, "hang"))
    await server.seen(lambda: len(server.requests) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.seen(lambda: server.requests[1].client_gone)
    assert len(server.requests) == 2


async def test_connections_that_are_closed_as_soon_as_accepted_leave_nothing_behind(
    server: RawServer,
) -> None:
    server.drop_accepted = True
    failed = await asyncio.gather(*(ask(server) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(error, nbllm.APIConnectionError) for error in failed)
    server.drop_accepted = False
    await server.all_closed()
    await settled()
    here = asyncio.get_running_loop()  # another test may have left a pool on a loop in the background
    (watch,) = [pool.connector._nbllm_watch for pool in nbllm.transport.pools() if pool.loop is here]
    assert not watch.open
    await ask(server)
    assert request_rows()[-1].connection_reason != "all busy"
    rows = connection_rows()
    assert all(row.closed_at is not None for row in rows[:-1])
    assert len([row for row in request_rows() if row.status == "error"]) == 50


async def test_a_connection_lost_before_its_request_had_it_leaves_nothing_behind(server: RawServer) -> None:
    """The caller's own trace hook takes its time after the connection was made."""

    async def wait(*args: Any) -> None:
        await server.all_closed()
        await until(lambda: protocols[-1].connection.closed_at is not None)

    hooks = aiohttp.TraceConfig()
    hooks.on_connection_create_end.append(wait)
    server.drop_accepted = True
    async with aiohttp.ClientSession(trace_configs=[hooks]) as own:
        assert own.connector is not None
        nbllm.transport.session_for(own)
        make, protocols = own.connector._factory, []
        own.connector._factory = lambda: protocols.append(make()) or protocols[-1]  # type: ignore
        with pytest.raises(nbllm.APIConnectionError):
            await ask(server, shared_session=own)
        assert not own.connector._nbllm_watch.open  # type: ignore[attr-defined]
    assert tracing.connections() == []
    (row,) = connection_rows()
    assert (row.close_reason, row.requests) == ("closed by server", 1)
    assert row.closed_at is not None


async def test_the_callers_own_session_is_traced_from_its_next_connection_on(server: RawServer) -> None:
    async with aiohttp.ClientSession() as own:
        async with own.get(f"{server.url()}/before") as response:
            await response.read()
        assert (await ask(server, shared_session=own)).text
        async with own.get(f"{server.url()}/after") as response:
            await response.read()
        first, second = request_rows()
        assert (first.url_path, second.url_path) == ("/chat/v1/chat/completions", "/chat/v1/after")
        # The connection was opened before nbllm came: what it sends is not counted, and null says so.
        assert (first.status, first.connection_reused, first.bytes_sent) == ("ok", True, None)
        assert first.connection_id is None
        await asyncio.to_thread(server.close_idle)
        await asyncio.sleep(0)
        await ask(server, shared_session=own)
        third = request_rows()[-1]
        assert (third.bytes_sent, third.bytes_received) == (
            server.requests[-1].bytes_in,
            server.requests[-1].bytes_out,
        )
        assert not own.closed


@pytest.mark.parametrize("behaviour", ["hang", "stall", "endless", "close", "halfbody"])
async def test_untraced_connections_tell_their_end_too(behaviour: str, server: RawServer) -> None:
    async with aiohttp.ClientSession() as own:
        async with own.get(f"{server.url('nothing')}/before") as response:
            await response.read()
        await own.get(f"{server.url('nothing')}/before")
        nbllm.transport.session_for(own)  # watched from here on
        if behaviour in ("hang", "stall"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), own.post(f"{server.url(behaviour)}/x") as response:
                    await response.read()
        elif behaviour == "endless":
            async with own.post(f"{server.url(behaviour)}/x") as response:
                await response.content.readany()
        else:
            with pytest.raises(aiohttp.ClientError):
                async with own.post(f"{server.url(behaviour)}/x") as response:
                    await response.read()
        (row,) = request_rows()
        assert row.connection_reused is True
        expected = {"hang": "cancelled", "stall": "cancelled", "endless": "incomplete"}
        assert row.status == expected.get(behaviour, "error")
        async with own.get(f"{server.url()}/after") as response:
            await response.read()
        assert request_rows()[-1].status == "ok"


async def test_close_ends_the_connections_of_nbllm_and_of_nobody_else(server: RawServer) -> None:
    await nbllm.aclose()  # what another test has left on a loop in the background
    session = nbllm.shared_session()
    await asyncio.gather(ask(server), ask(server))
    async with aiohttp.ClientSession() as own:
        await ask(server, shared_session=own)
        assert await nbllm.aclose() == 2
        server.wait_for(lambda: [c.open for c in server.connections].count(True) == 1)
        await ask(server, shared_session=own)
        await ask(server)
    assert nbllm.shared_session() is session
    assert [c.requests for c in server.connections] == [1, 1, 2, 1]


async def test_close_reaches_the_loop_that_serves_other_threads(server: RawServer) -> None:
    def blocking() -> None:
        nbllm.completion("m", "Hi", base_url=server.url())

    await asyncio.to_thread(blocking)
    assert await nbllm.aclose() == 1
    server.wait_for(lambda: not any(c.open for c in server.connections))
