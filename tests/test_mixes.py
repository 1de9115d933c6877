"""Random mixes of everything at once: every number in the frames is the servers'.

The seeds are fixed, so that a failure can be repeated. The raw servers count requests, bytes and connections;
nothing here is compared with what nbllm itself counted.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import notices, tracing
from nbllm.servers.demo import DemoServer
from tests.rows import connection_rows, request_rows, session_rows, until
from tests.servers import RawServer, Request

SESSIONS = ("red", "green", "blue")

# behaviour -> the status that a request which is read to its end has
READ: dict[str, str] = {
    "chat": "ok",
    "zipped": "ok",
    "bye": "ok",
    "untilclose": "ok",
    "status-429": "error",
    "status-500": "error",
    "close": "error",
    "reset": "error",
    "halfhead": "error",
    "halfbody": "error",
    "html": "error",
    "streamerror": "error",
    "halfstream": "error",
    "nodone": "error",
}
STREAMED = ("chat", "status-429", "close", "reset", "html", "streamerror", "halfstream", "nodone")
WHOLE = tuple(name for name in READ if name not in ("streamerror", "halfstream", "nodone"))
FOREIGN = ("chat", "zipped", "bye", "untilclose", "status-429", "close", "halfbody")


BROKEN_OFF = {
    *("APIConnectionError", "Timeout"),
    *("ClientConnectionResetError", "ClientOSError", "ClientPayloadError", "ServerDisconnectedError"),
}


class Mix:
    """One run: what was asked, with the mark that tells which row and which request belong together."""

    def __init__(self, servers: list[RawServer], seed: int) -> None:
        self.servers = servers
        self.random = random.Random(seed)
        self.expected: dict[str, tuple[str, str]] = {}
        """mark -> status, session"""

    async def run(self, count: int, at_once: int) -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with gate:
                await self.ask(f"mark-{number}")

        await asyncio.gather(*(one(number) for number in range(count)))

    async def ask(self, mark: str) -> None:
        pick = self.random
        server, session = pick.choice(self.servers), pick.choice(SESSIONS)
        kind = pick.choices(
            ["whole", "stream", "foreign", "cancel", "abandon", "timeout"], [4, 4, 2, 1, 1, 1]
        )[0]
        with nbllm.session(session):
            status = await getattr(self, kind)(server, mark)
        self.expected[mark] = (status, session)

    def behaviour(self, names: tuple[str, ...]) -> str:
        return "chat" if self.random.random() < 0.5 else self.random.choice(names)

    async def acompletion(self, server: RawServer, behaviour: str, mark: str, **options: Any) -> Any:
        return await nbllm.acompletion("m", "Hi", base_url=f"{server.url(behaviour)}/{mark}", **options)

    async def whole(self, server: RawServer, mark: str) -> str:
        behaviour = self.behaviour(WHOLE)
        try:
            await self.acompletion(server, behaviour, mark)
        except nbllm.APIError:
            assert READ[behaviour] == "error"
        else:
            assert READ[behaviour] == "ok"
        return READ[behaviour]

    async def stream(self, server: RawServer, mark: str) -> str:
        behaviour = self.behaviour(STREAMED)
        try:
            async for _ in await self.acompletion(server, behaviour, mark, stream=True):
                await asyncio.sleep(0)
        except nbllm.APIError:
            assert READ[behaviour] == "error"
        else:
            assert READ[behaviour] == "ok"
        return READ[behaviour]

    async def foreign(self, server: RawServer, mark: str) -> str:
        behaviour = self.behaviour(FOREIGN)
        try:
            url = f"{server.url(behaviour)}/{mark}/chat/completions"
            async with nbllm.shared_session().post(url, json={}) as response:
                await response.read()
        except aiohttp.ClientError:
            assert READ[behaviour] == "error"
        return READ[behaviour]

    async def cancel(self, server: RawServer, mark: str) -> str:
        stream = self.random.random() < 0.5
        call = asyncio.ensure_future(self.acompletion(server, "hang", mark, stream=stream))
        await asyncio.sleep(0)  # a task that has not begun sends nothing
        await until(lambda: any(mark_of(record.url_path or "") == mark for record in tracing.running()))
        if self.random.random() < 0.7:
            await server.seen(lambda: any(mark_of(request.path) == mark for request in server.requests))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return "cancelled"

    async def abandon(self, server: RawServer, mark: str) -> str:
        stream = await self.acompletion(server, self.random.choice(["endless", "stall"]), mark, stream=True)
        async for _ in stream:
            break
        return "incomplete"

    async def timeout(self, server: RawServer, mark: str) -> str:
        behaviour, stream = self.random.choice(["hang", "stall"]), self.random.random() < 0.5
        limits = aiohttp.ClientTimeout(sock_read=0.1)

        async def read() -> None:
            async for _ in await self.acompletion(server, behaviour, mark, stream=stream, timeout=limits):
                pass

        with pytest.raises(nbllm.Timeout):
            await read()
        return "error"


def mark_of(path: str) -> str:
    return path.split("/")[3]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "limits", [{}, {"limit": 5}, {"limit_per_host": 3}], ids=["free", "limit", "per-host"]
)
async def test_every_number_is_the_servers(seed: int, limits: dict[str, int]) -> None:
    nbllm.configure(**limits)
    with RawServer() as one, RawServer() as two, RawServer() as three:
        servers = [one, two, three]
        mix = Mix(servers, seed)
        await mix.run(count=120, at_once=25)
        compare(mix, servers)
        still_open = Counter(row.port for row in connection_rows() if row.closed_at is None)
        await asyncio.gather(*(has_open(server, still_open[server.port]) for server in servers))


async def has_open(server: RawServer, count: int) -> None:
    await server.seen(lambda: sum(connection.open for connection in server.connections) == count)


def compare(mix: Mix, servers: list[RawServer]) -> None:
    assert tracing.running() == []
    rows = request_rows()
    assert not notices._state.warned
    compare_requests(mix, servers, rows)
    compare_connections(servers, rows)
    compare_sessions(mix, rows)


def compare_requests(mix: Mix, servers: list[RawServer], rows: list[Any]) -> None:
    attempts: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        attempts[mark_of(row.url_path)].append(row)
    arrived: dict[str, list[Request]] = defaultdict(list)
    for request in (request for server in servers for request in server.requests):
        arrived[mark_of(request.path)].append(request)
    assert set(attempts) == set(mix.expected) >= set(arrived)
    local_ports = {row.connection_id: row.local_port for row in connection_rows()}
    for mark, (status, session) in mix.expected.items():
        *stale, row = attempts[mark]
        assert (row.status, row.session_id) == (status, session), (mark, row)
        # A stale connection costs an attempt; whether that one arrived is a matter of luck.
        assert all(r.status == "error" and r.connection_reused and r.http_status is None for r in stale)
        if status == "cancelled" and not arrived[mark]:
            continue
        assert len(stale) + 1 >= len(arrived[mark]) >= 1
        request = arrived[mark][-1]
        assert row.bytes_sent == request.bytes_in
        assert row.connection_reused == (request.nth > 1)
        assert local_ports[row.connection_id] == request.connection.peer_port
        if read_to_its_end(row):
            assert row.bytes_received == request.bytes_out, (mark, row, request)
        else:
            assert row.bytes_received <= request.bytes_out


def read_to_its_end(row: Any) -> bool:
    """Else what a reset or a time-out cuts off may have been on its way."""
    return row.status == "ok" or (row.status == "error" and row.error_type not in BROKEN_OFF)


def compare_connections(servers: list[RawServer], rows: list[Any]) -> None:
    connections = {(row.port, row.local_port): row for row in connection_rows()}
    for server in servers:
        for seen in server.connections:
            if not seen.requests:
                continue  # cancelled while it was being made
            row = connections[server.port, seen.peer_port]
            mine = [r for r in rows if r.connection_id == row.connection_id]
            assert row.requests == len(mine)
            assert sorted(r.connection_reused for r in mine) == [False] + [True] * (len(mine) - 1)
            # A request that was cancelled before it was written, or met a stale connection, never arrived.
            assert len(mine) >= seen.requests
            if len(mine) == seen.requests:
                assert row.bytes_sent == seen.bytes_in
                if all(map(read_to_its_end, mine)):
                    assert row.bytes_received == seen.bytes_out
            assert row.bytes_received <= seen.bytes_out
    ports = {(server.port, seen.peer_port) for server in servers for seen in server.connections}
    assert set(connections) <= ports


def compare_sessions(mix: Mix, rows: list[Any]) -> None:
    found = {row.session_id: row for row in session_rows()}
    names = {"error": "errors", "cancelled": "cancelled", "incomplete": "incomplete"}
    for session in found:
        mine = [row for row in rows if row.session_id == session]
        assert found[session].requests == len(mine)
        for status, column in names.items():
            assert getattr(found[session], column) == sum(row.status == status for row in mine)
        expected = Counter(status for status, of in mix.expected.values() if of == session)
        assert found[session].cancelled == expected["cancelled"]
        assert found[session].incomplete == expected["incomplete"]
        assert found[session].errors >= expected["error"]


@pytest.mark.parametrize("seed", range(2))
async def test_tokens_and_connections_are_the_demo_servers(seed: int) -> None:
    """Whole answers, streams, refusals and broken answers: sums as the demo server counted them."""
    pick = random.Random(seed)
    with DemoServer(pace=0) as one, DemoServer(pace=0) as two:

        async def ask(number: int) -> None:
            server, stream = pick.choice([one, two]), pick.random() < 0.5
            model = pick.choice(["fast", "fast", "fast", "error", "rate-limited", "break"])
            try:
                answer = await nbllm.acompletion(
                    model, f"Compare penguins with {number} albatrosses", base_url=server.url, stream=stream
                )
                if stream:
                    async for _ in answer:
                        pass
            except nbllm.APIError:
                assert model != "fast"

        for _ in range(4):
            await asyncio.gather(*(ask(number) for number in range(40)))
        stats = [server.stats() for server in (one, two)]
    rows = [row for row in request_rows() if row.connection_id]
    ok = [row for row in rows if row.status == "ok"]
    assert len(rows) == sum(s["requests_total"] for s in stats)
    assert len(ok) == sum(s["requests_ok"] for s in stats)
    assert len(rows) - len(ok) == sum(s["requests_failed"] for s in stats)
    assert sum(row.input_tokens for row in ok) == sum(s["prompt_tokens"] for s in stats)
    assert sum(row.output_tokens for row in ok) == sum(s["completion_tokens"] for s in stats)
    assert len(connection_rows()) == sum(s["connections_opened"] for s in stats)
    assert {row.local_port for row in connection_rows()} == {
        int(c["peer"].rpartition(":")[2]) for s in stats for c in s["connections"]
    }
    (session,) = session_rows()
    assert session.input_tokens == sum(s["prompt_tokens"] for s in stats)
    assert session.connections_opened == len(connection_rows())
