"""What a review of the whole found: cases in which a number, a row or money was lost."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path

import pytest

import nbllm
from nbllm import log, protocol, providers, tracing, transport
from nbllm.servers import demo as demo_module
from nbllm.servers.demo import DemoServer

REPLY = b'{"id":"x","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"}}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
WHOLE = HEAD % len(REPLY) + REPLY


async def test_a_server_that_dies_at_work_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have done, and charged, what it was asked for."""
    monkeypatch.setattr(transport, "STALE_SECONDS", 0.05)
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while head := await reader.readuntil(b"\r\n\r\n"):
            (length,) = (line[15:] for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
            await reader.readexactly(int(length))
            asked += 1
            if asked > 1:
                await asyncio.sleep(0.1)
                break
            writer.write(WHOLE)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        await nbllm.acompletion("m", "Hi", base_url=url)
        with pytest.raises(nbllm.APIConnectionError):
            await nbllm.acompletion("m", "Hi", base_url=url)
    assert asked == 2
    assert nbllm.requests().status.tolist() == ["ok", "error"]


async def test_rows_in_memory_survive_configure_and_go_into_a_file(demo: DemoServer, tmp_path: Path) -> None:
    nbllm.configure(log=None)
    await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    nbllm.configure(limit=7, model="demo/fast")
    assert len(nbllm.requests()) == 1
    nbllm.configure(log=tmp_path / "later.db")
    await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    assert len(nbllm.requests()) == 2
    assert len(nbllm.connections()) == 1
    assert log.path() == str(tmp_path / "later.db")


async def test_a_read_timeout_that_starts_after_the_answer_does_not_hit_the_next_request(
    demo: DemoServer,
) -> None:
    """aiohttp starts it when its writer has ended, and that may be after a quick answer."""
    await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    pool = next(pool for pool in transport.pools() if pool.loop is asyncio.get_running_loop())
    ((idle, _),) = next(iter(pool.connector._conns.values()))
    idle.read_timeout = 0.01
    idle.start_timeout()
    await asyncio.sleep(0.05)
    await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    assert nbllm.requests().connection_reused.tolist() == [False, True]


async def test_a_cancel_while_idle_connections_are_looked_at_ends_the_record(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    monkeypatch.setattr(protocol, "IDLE_BEFORE_RECHECK", -1.0)
    task = asyncio.ensure_future(nbllm.acompletion("fast", "Hi", base_url=demo.url))
    while not tracing.running():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tracing.running() == []
    assert nbllm.requests().status.tolist() == ["ok", "cancelled"]
    assert demo.stats()["requests_total"] == 1


async def test_an_answer_that_breaks_off_keeps_the_provider_s_request_id(demo: DemoServer) -> None:
    with pytest.raises(nbllm.APIConnectionError):
        async for _ in await nbllm.acompletion("break", "Hi there", base_url=demo.url, stream=True):
            pass
    assert nbllm.requests().provider_request_id.str.startswith("req_demo_").tolist() == [True]


@pytest.mark.parametrize("name", ["extra_headers", "extra_body", "metadata", "stream_options"])
async def test_a_text_where_a_dict_belongs_is_refused(name: str) -> None:
    with pytest.raises(nbllm.UsageProblem, match=f"{name} must be a dict"):
        await nbllm.acompletion("demo/fast", "Hi", **{name: "sk-not-a-dict"})


@pytest.mark.parametrize("name", ["request_timeout", "drop_params", "mock_response"])
async def test_options_of_other_clients_are_not_sent_to_the_server(name: str) -> None:
    with pytest.raises(nbllm.UsageProblem, match=name):
        await nbllm.acompletion("demo/fast", "Hi", **{name: 1})


async def test_an_empty_session_id_is_refused() -> None:
    with pytest.raises(nbllm.UsageProblem, match="session id"):
        await nbllm.acompletion("demo/fast", "Hi", session_id="")


def test_the_demo_server_and_the_table_of_providers_survive_a_reload() -> None:
    shared = demo_module._shared
    assert importlib.reload(demo_module)._shared is shared
    assert "demo" in importlib.reload(providers).PROVIDERS


async def test_an_answer_does_not_keep_the_bytes_of_its_call(demo: DemoServer) -> None:
    answer = await nbllm.acompletion("fast", "Hi", base_url=demo.url)
    log.flush()
    assert answer.request.content is answer.request.response_content is answer.request.call.content is None
