"""One record per HTTP attempt, whatever happens to it; the raw server is the witness."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import notices, tracing, transport
from tests.rows import connection_rows, only_row, phases, request_rows, until
from tests.servers import OK, TEXT, RawServer, full_backlog, refused_port

KEY = "sk-planted-0123456789"
QUICK = aiohttp.ClientTimeout(total=None, sock_connect=0.2, sock_read=0.2)

Call = Callable[..., Awaitable[Any]]


async def ours(url: str, **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=url, api_key=KEY, **options)


async def ours_streamed(url: str, **options: Any) -> Any:
    stream = await nbllm.acompletion("m", "Hi", base_url=url, api_key=KEY, stream=True, **options)
    async for _ in stream:
        pass
    return stream


async def foreign(url: str, **options: Any) -> Any:
    session = nbllm.shared_session()
    body = {"model": "m", "messages": []}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with session.post(f"{url}/chat/completions", json=body, headers=headers, **options) as response:
        return await response.read()


async def foreign_streamed(url: str, **options: Any) -> Any:
    session = nbllm.shared_session()
    body = {"model": "m", "messages": [], "stream": True}
    async with session.post(f"{url}/chat/completions", json=body, **options) as response:
        return [piece async for piece in response.content.iter_any()]


clients = pytest.mark.parametrize("call", [ours, ours_streamed, foreign, foreign_streamed])


async def failing(call: Call, url: str, **options: Any) -> BaseException:
    """The error of a call that must fail: one of ours from our verbs, aiohttp's from its own."""
    root = (nbllm.APIError,) if call in (ours, ours_streamed) else (aiohttp.ClientError, OSError)
    with pytest.raises(root) as caught:
        await call(url, **options)
    return caught.value


@clients
async def test_a_good_request_is_ok(call: Call, server: RawServer) -> None:
    await call(server.url())
    row = only_row()
    (seen,) = server.requests
    assert (row.status, row.http_status, row.error_type, row.error_message) == ("ok", 200, None, None)
    assert (row.http_method, row.url_path) == (seen.method, seen.path)
    assert (row.server_address, row.server_port) == ("127.0.0.1", server.port)
    assert (row.bytes_sent, row.bytes_received) == (seen.bytes_in, seen.bytes_out)
    assert row.duration_ms == pytest.approx((row.ended_at - row.started_at) * 1e3, abs=0.01)


@clients
async def test_a_refused_connection_is_an_error_without_a_connection(call: Call) -> None:
    with refused_port() as port:
        await failing(call, f"http://127.0.0.1:{port}/v1")
    row = only_row()
    assert (row.status, row.http_status, row.connection_id) == ("error", None, None)
    assert row.error_type in ("APIConnectionError", "ClientConnectorError")
    assert (row.bytes_sent, row.bytes_received, row.wait_ms) == (None, None, None)
    assert connection_rows() == []


@clients
async def test_an_unknown_host_is_an_error(call: Call) -> None:
    error = await failing(call, "http://nbllm-test.invalid/v1")
    row = only_row()
    assert (row.status, row.server_address, row.server_port) == ("error", "nbllm-test.invalid", 80)
    assert "nbllm-test.invalid" in str(error)
    assert row.dns_ms > 0
    assert row.connect_ms is None


@clients
async def test_an_untrusted_certificate_is_an_error(call: Call, server_context: ssl.SSLContext) -> None:
    with RawServer(ssl_context=server_context) as server:
        error = await failing(call, server.url())
    row = only_row()
    assert row.status == "error"
    assert "certificate verify failed" in str(error)
    assert "certificate verify failed" in row.error_message
    assert server.requests == []


@clients
async def test_a_connect_timeout_is_an_error(call: Call) -> None:
    with full_backlog() as port:
        error = await failing(call, f"http://127.0.0.1:{port}/v1", timeout=QUICK)
    row = only_row()
    assert (row.status, row.connection_id) == ("error", None)
    assert row.error_type in ("Timeout", "ConnectionTimeoutError", "TimeoutError")
    assert isinstance(error, nbllm.Timeout | TimeoutError)
    assert row.connect_ms >= 199
    assert adds_up(row)


@clients
@pytest.mark.parametrize("behaviour", ["hang", "stall"])
async def test_silence_is_a_read_timeout(call: Call, behaviour: str, server: RawServer) -> None:
    error = await failing(call, server.url(behaviour), timeout=QUICK)
    row = only_row()
    assert isinstance(error, nbllm.Timeout | TimeoutError)
    assert row.status == "error"
    assert row.error_type in ("Timeout", "SocketTimeoutError")
    assert row.http_status == (200 if behaviour == "stall" else None)
    assert row.bytes_sent == server.requests[0].bytes_in
    await server.seen(lambda: server.requests[0].client_gone)
    assert row.bytes_received <= server.requests[0].bytes_out
    assert (row.bytes_received > 0) == (behaviour == "stall")


@clients
@pytest.mark.parametrize("behaviour", ["hang", "stall"])
async def test_a_total_timeout_is_an_error(call: Call, behaviour: str, server: RawServer) -> None:
    error = await failing(call, server.url(behaviour), timeout=aiohttp.ClientTimeout(total=0.2))
    row = only_row()
    assert isinstance(error, nbllm.Timeout | TimeoutError)
    assert row.status == "error"
    assert row.error_type in ("Timeout", "TimeoutError")
    await server.seen(lambda: server.requests[0].client_gone)
    assert row.bytes_received <= server.requests[0].bytes_out
    assert (row.bytes_received > 0) == (behaviour == "stall")


@clients
async def test_a_total_timeout_while_connecting_is_an_error(call: Call) -> None:
    with full_backlog() as port:
        error = await failing(call, f"http://127.0.0.1:{port}/v1", timeout=aiohttp.ClientTimeout(total=0.2))
    row = only_row()
    assert isinstance(error, nbllm.Timeout | TimeoutError)
    assert (row.status, row.connection_id) == ("error", None)


async def cancelled_at(call: Call, url: str, ready: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(call(url))
    await ready()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@clients
async def test_a_cancel_while_connecting_is_cancelled(call: Call) -> None:
    async def connecting() -> None:
        await until(tracing.running)

    with full_backlog() as port:
        await cancelled_at(call, f"http://127.0.0.1:{port}/v1", connecting)
    row = only_row()
    assert (row.status, row.error_type, row.connection_id) == ("cancelled", None, None)


@clients
async def test_a_cancel_before_the_first_step_leaves_no_row(call: Call, server: RawServer) -> None:
    async def at_once() -> None:
        pass

    await cancelled_at(call, server.url(), at_once)
    assert request_rows() == []


@clients
@pytest.mark.parametrize("behaviour", ["hang", "stall"])
async def test_a_cancel_while_waiting_or_reading_is_cancelled(
    call: Call, behaviour: str, server: RawServer
) -> None:
    async def answer_on_its_way() -> None:
        size = len(OK) - 20 if behaviour == "stall" else 0
        await server.seen(lambda: bool(server.requests and server.requests[0].bytes_out >= min(size, 200)))
        await until(lambda: behaviour == "hang" or tracing.running()[0].http_status)

    await cancelled_at(call, server.url(behaviour), answer_on_its_way)
    row = only_row()
    assert (row.status, row.error_type) == ("cancelled", None)
    assert row.http_status == (200 if behaviour == "stall" else None)
    assert row.bytes_sent == server.requests[0].bytes_in
    await server.seen(lambda: server.requests[0].client_gone)
    (connection,) = connection_rows()
    assert connection.close_reason == "request cancelled"


@clients
@pytest.mark.parametrize("behaviour", ["hang", "stall"])
async def test_wait_for_cancels(call: Call, behaviour: str, server: RawServer) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call(server.url(behaviour)), 0.2)
    assert only_row().status == "cancelled"
    await server.seen(lambda: server.requests[0].client_gone)


@clients
@pytest.mark.parametrize("behaviour", ["gated", "gatedbody"])
async def test_a_cancel_that_meets_the_end_of_the_answer_ends_the_record(
    call: Call, behaviour: str, server: RawServer
) -> None:
    """The loop learns of the whole answer and of the cancel in the same turn."""
    task = asyncio.ensure_future(call(server.url(behaviour)))
    await server.seen(lambda: bool(server.requests))
    if behaviour == "gatedbody":
        await server.seen(lambda: server.requests[0].bytes_out > 0)
        await until(lambda: tracing.running()[0].http_status)
    server.open_gate()
    server.wait_for(lambda: server.requests[0].answered)  # blocks the loop: the answer waits in the socket
    record = tracing.running()[0]
    async with asyncio.timeout(10):
        while record.wire_ended is None:
            await asyncio.sleep(0)
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert only_row().status in ("cancelled", "ok")


@pytest.mark.parametrize("how", ["break", "aclose", "forgotten", "async with"])
async def test_an_abandoned_stream_of_ours_is_incomplete(how: str, server: RawServer) -> None:
    stream = await nbllm.acompletion("m", "Hi", base_url=server.url("endless"), api_key=KEY, stream=True)
    if how == "break":
        async for _ in stream:
            break
    elif how == "aclose":
        await anext(aiter(stream))
        await stream.aclose()
    elif how == "async with":
        async with stream:
            await anext(aiter(stream))
    del stream
    gc.collect()
    await server.seen(lambda: server.requests[0].client_gone)
    row = only_row()
    assert (row.status, row.error_type, row.http_status) == ("incomplete", None, 200)
    assert row.bytes_received <= server.requests[0].bytes_out
    (connection,) = connection_rows()
    assert connection.close_reason == "answer abandoned"


# Not "forgotten": aiohttp itself holds a response whose body has not ended.
@pytest.mark.parametrize("how", ["break", "close", "exit"])
async def test_an_abandoned_stream_of_others_is_incomplete(how: str, server: RawServer) -> None:
    response = await nbllm.shared_session().post(f"{server.url('endless')}/chat/completions", data=b"{}")
    if how == "break":
        async for _ in response.content.iter_any():
            break
        response.release()
    elif how == "close":
        response.close()
    elif how == "exit":
        async with response:
            await response.content.readany()
    del response
    gc.collect()
    await server.seen(lambda: server.requests[0].client_gone)
    row = only_row()
    assert (row.status, row.error_type, row.http_status) == ("incomplete", None, 200)


async def test_an_error_of_the_reader_leaves_an_incomplete_stream(server: RawServer) -> None:
    async def read() -> None:
        stream = await nbllm.acompletion("m", "Hi", base_url=server.url("endless"), api_key=KEY, stream=True)
        async for _ in stream:
            raise LookupError("the reader's own")

    with pytest.raises(LookupError):
        await read()
    gc.collect()
    await server.seen(lambda: server.requests[0].client_gone)
    assert only_row().status == "incomplete"


async def test_the_exception_around_an_abandoned_stream_is_not_its_own(server: RawServer) -> None:
    """A fallback: another error is being handled while the stream is read and left."""
    try:
        raise TimeoutError
    except TimeoutError:
        stream = await nbllm.acompletion("m", "Hi", base_url=server.url("endless"), api_key=KEY, stream=True)
        async for _ in stream:
            break
        await ours(server.url())
    abandoned, good = request_rows()
    assert (abandoned.status, abandoned.error_type) == ("incomplete", None)
    assert good.status == "ok"


async def test_a_stream_closed_by_another_task_ends_quietly(server: RawServer) -> None:
    stream = await nbllm.acompletion("m", "Hi", base_url=server.url("stall"), api_key=KEY, stream=True)
    reader = asyncio.ensure_future(anext(stream, None))
    await reader
    while (await anext(stream)).choices[0].delta.content != " from":
        pass
    reader = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    stream.close()
    assert await reader is None
    assert only_row().status == "incomplete"


BROKEN = {
    "close": None,
    "reset": None,
    "halfhead": None,
    "halfbody": 200,
    "resetbody": 200,
}


@clients
@pytest.mark.parametrize("behaviour", BROKEN)
async def test_a_connection_that_breaks_is_an_error(call: Call, behaviour: str, server: RawServer) -> None:
    await failing(call, server.url(behaviour))
    row = only_row()
    assert (row.status, row.http_status) == ("error", BROKEN[behaviour])
    assert row.error_type in (
        "APIConnectionError",
        "ServerDisconnectedError",
        "ClientOSError",
        "ClientPayloadError",
    )
    assert row.error_message
    assert (row.bytes_sent, row.bytes_received) == (server.requests[0].bytes_in, server.requests[0].bytes_out)
    (connection,) = connection_rows()
    if "reset" in behaviour:
        assert connection.close_reason == "connection lost: ConnectionResetError"
    else:
        assert connection.close_reason == "closed by server"


async def test_a_body_that_breaks_while_nobody_reads_is_an_error(server: RawServer) -> None:
    response = await nbllm.shared_session().post(f"{server.url('halfbody')}/chat/completions", data=b"{}")
    await server.all_closed()
    await until(lambda: not tracing.running())
    assert only_row().status == "error"
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    assert only_row().status == "error"


STREAMS = {
    "halfevent": ("APIConnectionError", "broke off"),
    "halfstream": ("APIConnectionError", "broke off: the connection closed before its end"),
    "nodone": ("APIConnectionError", "broke off"),
    "streamerror": ("InternalServerError", "The model is overloaded"),
    "html": ("APIResponseValidationError", "text/html"),
    "nothing": ("APIResponseValidationError", "nothing"),
    "wholeerror": ("BadGatewayError", "upstream said no"),
}


@pytest.mark.parametrize("behaviour", STREAMS)
async def test_a_stream_that_is_no_whole_answer_is_an_error(behaviour: str, server: RawServer) -> None:
    error = await failing(ours_streamed, server.url(behaviour))
    row = only_row()
    name, text = STREAMS[behaviour]
    assert type(error).__name__ == row.error_type == name
    assert text in str(error)
    assert row.error_message == str(error)
    assert row.status == "error"
    assert row.duration_ms > 0
    assert row.bytes_received == server.requests[0].bytes_out
    assert error.request.request_id == row.request_id
    if behaviour in ("halfevent", "halfstream", "nodone", "streamerror"):
        assert (row.chunks, row.response_model, row.provider_request_id) == (3, "raw-model", "req_raw")


@pytest.mark.parametrize("behaviour", ["html", "nothing", "wholeerror"])
async def test_a_200_that_is_no_answer_is_an_error(behaviour: str, server: RawServer) -> None:
    error = await failing(ours, server.url(behaviour))
    row = only_row()
    name, text = STREAMS[behaviour]
    assert type(error).__name__ == row.error_type == name
    assert text in str(error)
    assert row.status == "error"


async def test_an_answer_nested_too_deeply_is_an_error(server: RawServer) -> None:
    async def deep(x: Any) -> None:
        body = b'{"choices":' + b"[" * 100_000
        await x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    server.behaviours["deep"] = deep
    await failing(ours, server.url("deep"))
    assert only_row().status == "error"


@pytest.mark.parametrize("call", [ours, foreign])
async def test_each_hop_of_a_redirect_is_a_row(call: Call, server: RawServer) -> None:
    await call(server.url("redirect"))
    first, second = request_rows()
    assert [r.path for r in server.requests] == [first.url_path, second.url_path]
    assert [first.http_status, second.http_status] == [307, 200]
    assert [first.status, second.status] == ["ok", "ok"]
    for row, seen in zip((first, second), server.requests, strict=True):
        assert (row.bytes_sent, row.bytes_received) == (seen.bytes_in, seen.bytes_out)
    if call is ours:
        assert first.call_id == second.call_id
        assert [first.attempt, second.attempt] == [1, 2]
    assert second.connection_reused is True


async def test_a_redirect_to_another_host_takes_no_key_along(server: RawServer) -> None:
    await ours(server.url("redirectaway"))
    first, second = request_rows()
    assert [first.server_address, second.server_address] == ["127.0.0.1", "localhost"]
    assert "authorization" in server.requests[0].headers
    assert "authorization" not in server.requests[1].headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_replies_without_a_body(method: str, server: RawServer) -> None:
    async with nbllm.shared_session().request(method, f"{server.url('nothing')}/x") as response:
        assert response.status == 204
    row = only_row()
    assert (row.status, row.http_status, row.http_method) == ("ok", 204, method)
    assert (row.bytes_sent, row.bytes_received) == (server.requests[0].bytes_in, server.requests[0].bytes_out)


async def test_head_of_a_resource_with_a_body(server: RawServer) -> None:
    async def headers_only(x: Any) -> None:
        await x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    server.behaviours["head"] = headers_only
    async with nbllm.shared_session().head(f"{server.url('head')}/x"):
        pass
    await nbllm.shared_session().head(f"{server.url('head')}/x")
    first, second = request_rows()
    assert (first.status, second.status) == ("ok", "ok")
    assert second.connection_reused is True


@pytest.mark.parametrize("call", [ours, foreign])
@pytest.mark.parametrize("behaviour", ["bye", "untilclose", "zipped", "big"])
async def test_unusual_but_good_replies(call: Call, behaviour: str, server: RawServer) -> None:
    answer = await call(server.url(behaviour))
    row = only_row()
    assert (row.status, row.http_status) == ("ok", 200)
    assert (row.bytes_sent, row.bytes_received) == (server.requests[0].bytes_in, server.requests[0].bytes_out)
    if call is ours and behaviour == "big":
        assert len(answer.text) == 10_000_000
    if behaviour in ("bye", "untilclose"):
        await server.all_closed()
        (connection,) = connection_rows()
        assert connection.close_reason in ("server asked to close", "closed by server")


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("call", [ours, foreign])
async def test_a_refusal_before_the_upload_is_out(call: Call, server: RawServer) -> None:
    text = "x" * 20_000_000
    session = nbllm.shared_session()
    if call is ours:
        with pytest.raises(nbllm.APIError) as caught:
            await nbllm.acompletion("m", text, base_url=server.url("early"), api_key=KEY)
        assert isinstance(caught.value, nbllm.BadRequestError | nbllm.APIConnectionError)
    else:
        try:
            async with session.post(f"{server.url('early')}/x", data=text.encode()) as response:
                await response.read()
        except aiohttp.ClientError:
            pass
    assert only_row().status == "error"


@pytest.mark.parametrize("number", [400, 401, 404, 429, 500, 503])
async def test_an_error_status_is_an_error_of_others_too(number: int, server: RawServer) -> None:
    async with nbllm.shared_session().get(f"{server.url(f'status-{number}')}/x") as response:
        await response.read()
    row = only_row()
    assert (row.status, row.http_status, row.error_type) == ("error", number, str(number))


async def test_a_websocket_is_one_row(demo: Any) -> None:
    from aiohttp import web

    async def handler(request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with nbllm.shared_session().ws_connect(f"http://127.0.0.1:{port}/") as socket:
        await socket.send_str("ping")
        assert await socket.receive_str() == "ping"
    row = only_row()
    assert row.http_status == 101
    assert row.status in ("ok", "incomplete")
    await runner.cleanup()


async def test_what_ours_brings_in_is_on_its_row(server: RawServer) -> None:
    with nbllm.session("review"):
        answer = await ours(server.url(), temperature=0.5, seed=7)
    row = only_row()
    assert (row.session_id, row.operation, row.provider) == ("review", "chat", "openai")
    assert (row.request_model, row.response_model, row.response_id) == ("m", "raw-model", "chatcmpl-raw")
    assert (row.provider_request_id, row.finish_reason, row.stream) == ("req_raw", "stop", False)
    assert (row.input_tokens, row.output_tokens, row.chunks) == (11, 5, None)
    assert (row.first_chunk_at, row.ttft_ms) == (None, None)
    assert row.params == '{"temperature":0.5,"seed":7}'
    assert answer.request.request_id == row.request_id
    assert answer.text == TEXT


async def test_a_streams_row_knows_its_first_content_and_its_chunks(server: RawServer) -> None:
    stream = await ours_streamed(server.url())
    row = only_row()
    assert (row.stream, row.chunks, row.finish_reason) == (True, 8, "stop")
    assert 0 < row.ttft_ms <= row.duration_ms
    assert row.first_chunk_at == pytest.approx(row.started_at + row.ttft_ms / 1e3, abs=1e-5)
    assert (row.input_tokens, row.output_tokens) == (11, 5)
    assert stream.request.request_id == row.request_id


async def test_what_is_no_request_to_a_model_is_a_row_of_plain_http(server: RawServer) -> None:
    async with nbllm.shared_session().post(f"{server.url()}/orders", json={"model": "m"}) as response:
        await response.read()
    row = only_row()
    unknown = ("operation", "provider", "request_model", "response_model", "stream", "params", "input_tokens")
    assert [getattr(row, name) for name in unknown] == [None] * 7
    assert row.session_id == nbllm.current_session()


async def test_phases_add_up_to_the_duration(server: RawServer) -> None:
    server.behaviours["later"] = later
    for _ in range(2):
        await ours(server.url("later", host="localhost"))
    new, reused = request_rows()
    assert new.dns_ms > 0
    assert new.connect_ms > 0
    assert [reused.dns_ms, reused.connect_ms] == [None, None]
    for row in (new, reused):
        assert [row.blocked_ms, row.ssl_ms] == [None, None]
        assert row.send_ms >= 0
        assert row.send_ms + row.wait_ms >= 199
        assert row.receive_ms >= 50
        assert adds_up(row)


async def later(x: Any) -> None:
    await asyncio.sleep(0.2)
    await x.send(OK[:50])
    await asyncio.sleep(0.1)
    await x.send(OK[50:])


def adds_up(row: Any) -> bool:
    """The phases make up the duration, but for what a busy machine does in between."""
    missing = row.duration_ms - phases(row)
    return -0.001 <= missing < 100


async def test_tls_is_a_part_of_connect(tls_server: RawServer) -> None:
    await ours(tls_server.url(host="localhost"))
    await foreign(tls_server.url(host="localhost"))
    new, reused = request_rows()
    assert 0 < new.ssl_ms < new.connect_ms
    assert reused.ssl_ms is None
    assert adds_up(new)
    for row, seen in zip((new, reused), tls_server.requests, strict=True):
        assert (row.bytes_sent, row.bytes_received) == (seen.bytes_in, seen.bytes_out)  # before TLS
    (connection,) = connection_rows()
    assert connection.tls_version == "TLSv1.3"


async def test_a_request_at_the_limit_is_blocked(server: RawServer) -> None:
    nbllm.configure(limit=1)
    first = asyncio.ensure_future(ours(server.url("gated")))
    await server.seen(lambda: bool(server.requests))
    second = asyncio.ensure_future(ours(server.url()))
    await until(lambda: len(tracing.running()) == 2)
    await asyncio.sleep(0.05)
    server.open_gate()
    await asyncio.gather(first, second)
    one, two = request_rows()
    assert one.blocked_ms is None
    assert two.blocked_ms >= 45
    assert two.connection_reused is True
    assert adds_up(two)


async def test_a_cancel_at_the_limit_keeps_the_time_that_it_was_blocked(server: RawServer) -> None:
    nbllm.configure(limit=1)
    first = asyncio.ensure_future(ours(server.url("gated")))
    await server.seen(lambda: bool(server.requests))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ours(server.url()), 0.05)
    server.open_gate()
    await first
    one, two = request_rows()
    assert (one.status, two.status) == ("ok", "cancelled")
    assert two.blocked_ms >= 45
    assert len(server.requests) == 1


async def test_a_chunked_upload_is_counted(server: RawServer) -> None:
    async def parts() -> Any:
        for _ in range(10):
            yield b"x" * 1000

    async with nbllm.shared_session().post(f"{server.url('nothing')}/x", data=parts()) as response:
        await response.read()
    row = only_row()
    assert server.requests[0].body == b"x" * 10_000
    assert (row.bytes_sent, row.bytes_received) == (server.requests[0].bytes_in, server.requests[0].bytes_out)


@pytest.mark.parametrize("size", [1, transport.SMALL_BODY - 1, transport.SMALL_BODY + 1, 1_000_000])
async def test_a_body_arrives_whole_in_one_piece_or_many(size: int, server: RawServer) -> None:
    """Small ones go out together with the headers."""
    async with nbllm.shared_session().post(
        f"{server.url('nothing')}/x", data=b"x" * size, headers={"Content-Type": "text/plain"}
    ) as response:
        await response.read()
    row, (request,) = only_row(), server.requests
    assert request.body == b"x" * size
    assert (row.bytes_sent, row.status) == (request.bytes_in, "ok")
    assert row.send_ms >= 0


async def test_a_connection_that_closes_before_a_small_body_is_written_is_a_stale_one(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race that no server can be made to win: between the pool's look at the connection and the write."""
    await ours(server.url())
    connector: Any = nbllm.shared_session().connector
    connect = connector.connect

    async def then_close(*args: Any, **options: Any) -> Any:
        connection = await connect(*args, **options)
        connection.protocol.transport.close()
        monkeypatch.setattr(connector, "connect", connect)
        return connection

    monkeypatch.setattr(connector, "connect", then_close)
    assert (await ours(server.url())).text == TEXT
    assert [row.status for row in request_rows()] == ["ok", "error", "ok"]
    assert len(server.requests) == 2


async def test_a_raising_subscriber_breaks_no_call(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise LookupError("the subscriber's own")

    monkeypatch.setattr(tracing._state, "on_request", [broken, *tracing._state.on_request])
    monkeypatch.setattr(tracing._state, "on_connection", [broken, *tracing._state.on_connection])
    nbllm.shared_session()
    assert (await ours(server.url())).text == TEXT
    (row,) = request_rows()
    assert row.status == "ok"
    assert len(connection_rows()) == 1
    assert any("could not be kept" in text for text in notices._state.warned)
