"""httpx clients over the HTTP session: what is sent and what comes is httpx's own, and all of it is a row."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

import nbllm
from nbllm import loops, notices, tracing
from nbllm.bridges.httpx_clients import async_httpx_client, httpx_client
from tests import servers
from tests.rows import only_row, request_rows, until
from tests.servers import Exchange, RawServer, full_backlog, refused_port

LIBRARIES: dict[str, Any] = {"httpx": httpx, "httpx2": httpx2}
SAID = {"model": "m", "messages": [{"role": "user", "content": "Grüße 🐧"}]}

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

every_library = pytest.mark.parametrize("library", LIBRARIES)


@pytest.fixture(autouse=True)
def pools_closed(server: RawServer) -> Iterator[None]:
    """The background loop's pool outlives a test: its connections end before the test's log does."""
    yield
    nbllm.close()


def chat_url(server: RawServer, behaviour: str = "chat") -> str:
    return f"{server.url(behaviour)}/chat/completions"


# -- what is sent, and what comes --------------------------------------------------------------------

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "json": ("POST", {"json": SAID}),
    "query": ("GET", {"params": {"a": "b c", "d": "ü/&"}}),
    "headers": (
        "POST",
        {"json": {}, "headers": [("X-Twice", "1"), ("X-Twice", "2"), ("X-Umlaut", "ü".encode())]},
    ),
    "auth": ("POST", {"json": {}, "auth": ("user", "password")}),
    "cookies": ("POST", {"json": {}, "headers": {"Cookie": "a=b"}}),
    "form": ("POST", {"data": {"a": "1"}}),
    "file": ("POST", {"data": {"model": "m"}, "files": {"file": ("a.mp3", b"\0" * 70_000)}}),
    "nothing": ("POST", {}),
    "put": ("PUT", {"content": b"\xff" * 200_000}),
}
PATHS = ["/v1/a%3Ab%2Fc%20d", "/v1/ü", "/v1/a?sig=a%2Fb%2B%3D&x", "/v1/a?x=[1]", "/v1/a;b,c/../d"]


def told(request: servers.Request) -> tuple[Any, ...]:
    headers = {name: value for name, value in request.headers.items() if name != "host"}
    if "boundary=" in (kind := headers.get("content-type", "")):
        boundary = kind.partition("boundary=")[2]
        headers["content-type"] = "multipart"
        return request.method, request.path, headers, request.body.replace(boundary.encode(), b"")
    return request.method, request.path, headers, request.body


@every_library
@pytest.mark.parametrize("name", REQUESTS)
async def test_what_is_sent_is_what_httpx_sends(server: RawServer, library: str, name: str) -> None:
    method, options = REQUESTS[name]
    url = chat_url(server, "html")
    with LIBRARIES[library].Client(trust_env=False) as plain:
        await asyncio.to_thread(plain.request, method, url, **options)
    async with async_httpx_client(library=library) as client:
        await client.request(method, url, **options)
    with httpx_client(library=library) as client:
        await asyncio.to_thread(client.request, method, url, **options)
    plainly, ours, synchronously = map(told, server.requests)
    assert ours == plainly
    assert synchronously == plainly


@pytest.mark.parametrize("path", PATHS)
async def test_a_url_stays_as_it_is(server: RawServer, path: str) -> None:
    url = f"http://{server.host}:{server.port}/chat{path}"
    with httpx2.Client(trust_env=False) as plain:
        await asyncio.to_thread(plain.post, url, json=SAID)
    await async_httpx_client().post(url, json=SAID)
    assert server.requests[0].path == server.requests[1].path


async def test_an_upload_is_read_while_it_is_sent(server: RawServer) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number * 1000

    await async_httpx_client().post(chat_url(server, "html"), content=pieces())
    assert server.requests[0].headers["transfer-encoding"] == "chunked"
    assert server.requests[0].body == b"".join(b"%d" % number * 1000 for number in range(3))


def test_an_upload_of_synchronous_code(server: RawServer) -> None:
    httpx_client().post(chat_url(server, "html"), content=iter([b"a" * 1000, b"b" * 1000]))
    assert server.requests[0].body == b"a" * 1000 + b"b" * 1000


@every_library
@pytest.mark.parametrize(
    "behaviour", ["chat", "zipped", "big", "html", "nothing", "bye", "untilclose", "status-429"]
)
def test_what_comes_is_what_httpx_gives(server: RawServer, library: str, behaviour: str) -> None:
    url = chat_url(server, behaviour)
    with LIBRARIES[library].Client(trust_env=False) as plain, httpx_client(library=library) as client:
        plainly, ours = plain.post(url, json=SAID), client.post(url, json=SAID)
    asynchronously = asyncio.run(async_httpx_client(library=library).post(url, json=SAID))
    for found in (ours, asynchronously):
        assert isinstance(found, LIBRARIES[library].Response)
        assert (found.status_code, found.reason_phrase) == (plainly.status_code, plainly.reason_phrase)
        assert (found.http_version, found.content) == ("HTTP/1.1", plainly.content)
        assert found.headers.raw == plainly.headers.raw


@every_library
async def test_redirects_are_followed_and_keys_stay_at_home(server: RawServer, library: str) -> None:
    client = async_httpx_client(library=library, headers={"Authorization": "Bearer sk-planted"})
    assert (await client.post(chat_url(server, "redirect"), json=SAID)).status_code == 200
    assert server.requests[-1].headers["authorization"] == "Bearer sk-planted"
    assert (await client.post(chat_url(server, "redirectaway"), json=SAID)).status_code == 200
    assert "authorization" not in server.requests[-1].headers
    assert [row.http_status for row in request_rows()] == [307, 200, 307, 200]


# -- streams -----------------------------------------------------------------------------------------


async def test_a_stream_comes_piece_by_piece(server: RawServer) -> None:
    said = {**SAID, "stream": True}
    async with async_httpx_client().stream("POST", chat_url(server, "gatedbody"), json=said) as answer:
        lines = answer.aiter_lines()
        assert "role" in await anext(lines)  # the server waits at its gate
        server.open_gate()
        rest = [line async for line in lines]
    assert rest[-2] == "data: [DONE]"
    assert (only_row().status, only_row().input_tokens) == ("ok", 11)


def test_a_stream_comes_piece_by_piece_in_synchronous_code(server: RawServer) -> None:
    said = {**SAID, "stream": True}
    with httpx_client().stream("POST", chat_url(server, "gatedbody"), json=said) as answer:
        lines = answer.iter_lines()
        assert "role" in next(lines)
        server.open_gate()
        assert list(lines)[-2] == "data: [DONE]"
    row = only_row()
    assert (row.status, row.input_tokens, row.stream) == ("ok", 11, True)
    assert 0 < row.ttft_ms <= row.duration_ms


async def test_a_stream_that_is_left_closes_its_connection(server: RawServer) -> None:
    async with async_httpx_client().stream("POST", chat_url(server, "endless"), json=SAID) as answer:
        async for _ in answer.aiter_bytes():
            break
    await server.all_closed()
    assert only_row().status == "incomplete"


def test_a_stream_that_is_left_in_synchronous_code(server: RawServer) -> None:
    with httpx_client().stream("POST", chat_url(server, "endless"), json=SAID) as answer:
        next(answer.iter_bytes())
    server.wait_for(lambda: not server.connections[0].open)
    assert only_row().status == "incomplete"


async def late_end(x: Exchange) -> None:
    """What ends the body comes when the last event has been read."""
    await servers._stream(x, servers._events(), b"")
    await asyncio.sleep(0.005)
    await x.send(b"0\r\n\r\n")


async def no_end(x: Exchange) -> None:
    await servers._stream(x, servers._events(), b"")
    await x.gone()


LEFT = {"late": late_end, "never": no_end}


async def read_to_last_event(url: str) -> None:
    async with async_httpx_client().stream("POST", url, json={**SAID, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                break


def read_to_last_event_synchronously(url: str) -> None:
    with httpx_client().stream("POST", url, json={**SAID, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                break


async def test_a_stream_left_at_its_last_event_keeps_its_connection() -> None:
    with RawServer(behaviours=LEFT) as server:
        for _ in range(3):
            await read_to_last_event(chat_url(server, "late"))
        await asyncio.to_thread(read_to_last_event_synchronously, chat_url(server, "late"))
        assert len({request.connection for request in server.requests[:3]}) == 1
        await read_to_last_event(chat_url(server, "never"))
        server.wait_for(lambda: server.requests[-1].client_gone)
    assert [row.status for row in request_rows()] == ["ok"] * 4 + ["incomplete"]


# -- what goes wrong ---------------------------------------------------------------------------------

BROKEN = {
    "close": "RemoteProtocolError",
    "halfhead": "RemoteProtocolError",
    "halfbody": "RemoteProtocolError",
    "halfstream": "RemoteProtocolError",
    "reset": "ReadError",
    "hang": "ReadTimeout",
    "stall": "ReadTimeout",
}


@every_library
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("behaviour", BROKEN)
def test_what_goes_wrong_is_an_error_of_httpx(
    server: RawServer, library: str, is_async: bool, behaviour: str
) -> None:
    error = getattr(LIBRARIES[library], BROKEN[behaviour])
    options = {"library": library, "timeout": LIBRARIES[library].Timeout(10, read=0.2)}

    def post() -> None:
        if is_async:
            asyncio.run(async_httpx_client(**options).post(chat_url(server, behaviour), json=SAID))
        else:
            httpx_client(**options).post(chat_url(server, behaviour), json=SAID)

    with pytest.raises(error) as caught:
        post()
    assert type(caught.value) is error
    assert caught.value.request.method == "POST"
    assert only_row().status == "error"


@every_library
async def test_connecting_goes_wrong(library: str) -> None:
    found = LIBRARIES[library]
    client = async_httpx_client(library=library)
    with refused_port() as port, pytest.raises(found.ConnectError, match=str(port)):
        await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=SAID)
    with full_backlog() as port, pytest.raises(found.ConnectTimeout):
        await client.post(f"http://127.0.0.1:{port}/v1", timeout=found.Timeout(10, connect=0.1))
    with pytest.raises(found.ConnectError):
        await client.post("http://nowhere.invalid/v1", json=SAID)
    with pytest.raises(found.UnsupportedProtocol):
        await client.post("ftp://127.0.0.1/v1", json=SAID)


async def test_the_wait_for_a_connection_ends(server: RawServer) -> None:
    nbllm.configure(limit=1)
    client = async_httpx_client()
    holding = asyncio.ensure_future(client.post(chat_url(server, "gated"), json=SAID))
    await server.seen(lambda: len(server.requests) == 1)
    with pytest.raises(httpx2.PoolTimeout):
        await client.post(chat_url(server), json=SAID, timeout=httpx2.Timeout(10, connect=0.1, pool=0.1))
    server.open_gate()
    assert (await holding).status_code == 200


async def test_a_cancelled_request(server: RawServer) -> None:
    asking = asyncio.ensure_future(async_httpx_client(timeout=None).post(chat_url(server, "hang"), json=SAID))
    await server.seen(lambda: len(server.requests) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await server.all_closed()
    assert only_row().status == "cancelled"


@every_library
@pytest.mark.parametrize("make", [async_httpx_client, httpx_client])
def test_options_that_are_the_sessions(library: str, make: Callable[..., Any]) -> None:
    for name in ("proxy", "verify", "transport", "limits", "http2"):
        with pytest.raises(nbllm.UsageProblem, match=f"{name}= can't be given"):
            make(library=library, **{name: None})
    with pytest.raises(nbllm.UsageProblem, match="got 'requests'"):
        make(library="requests")


def test_no_library_is_loaded_half_later(tmp_path: Path) -> None:
    """The log's thread imports httpx2 with genai-prices; openai 2.54 failed where it saw that half done."""
    code = "import sys; from nbllm.bridges.httpx_clients import httpx_client as make; "
    code += "make(library='httpx'); print({'httpx', 'httpx2'} <= set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=ENV)
    assert (done.stdout, done.stderr) == ("True\n", "")


# -- loops, threads, closing -------------------------------------------------------------------------


async def test_closing_a_client_leaves_the_session_open(server: RawServer) -> None:
    for _ in range(2):
        async with async_httpx_client() as client:
            await client.post(chat_url(server), json=SAID)
        assert client.is_closed
    await nbllm.acompletion("m", "Hi", base_url=server.url())
    assert (len(server.requests), len(server.connections)) == (3, 1)


def test_a_client_serves_one_loop_after_another(server: RawServer) -> None:
    client = async_httpx_client()
    for _ in range(3):
        assert asyncio.run(client.post(chat_url(server), json=SAID)).status_code == 200
    assert (len(server.requests), len(server.connections)) == (3, 3)
    server.wait_for(lambda: not any(connection.open for connection in server.connections))
    assert [row.status for row in request_rows()] == ["ok"] * 3


def test_synchronous_calls_of_a_script_share_a_connection(server: RawServer) -> None:
    with httpx_client() as client:
        for _ in range(3):
            client.post(chat_url(server), json=SAID)
    nbllm.completion("m", "Hi", base_url=server.url())
    assert (len(server.requests), len(server.connections)) == (4, 1)


async def test_synchronous_code_inside_a_loop_that_is_not_nbllms(server: RawServer) -> None:
    """It holds that loop up, as httpx itself does; it neither fails nor waits for ever."""
    said = {**SAID, "stream": True}
    with nbllm.session("outer"), httpx_client() as client:
        assert client.post(chat_url(server), json=SAID).status_code == 200
        with client.stream("POST", chat_url(server), json=said) as answer:
            assert list(answer.iter_lines())[-2] == "data: [DONE]"
    assert [row.session_id for row in request_rows()] == ["outer"] * 2


@pytest.fixture
def home() -> Iterator[Callable[[Any], Any]]:
    """A loop that is the kernel's; gives what runs a coroutine on it."""
    loop = asyncio.new_event_loop()
    loops.set_home(loop, always_runs=True)
    yield loop.run_until_complete
    loop.run_until_complete(nbllm.aclose())
    loop.close()
    loops._state.home = loops._state.home_thread = None
    loops._state.home_always_runs = loops._state.home_blocked = False


def test_in_a_kernel_everything_shares_the_connections(server: RawServer, home: Callable[[Any], Any]) -> None:
    async def cell() -> None:
        httpx_client().post(chat_url(server), json=SAID)
        await async_httpx_client().post(chat_url(server), json=SAID)
        await asyncio.to_thread(httpx_client().post, chat_url(server), json=SAID)
        await asyncio.to_thread(read_to_last_event_synchronously, chat_url(server))
        await nbllm.acompletion("m", "Hi", base_url=server.url())

    home(cell())
    read_to_last_event_synchronously(chat_url(server))
    assert (len(server.requests), len(server.connections)) == (6, 1)
    assert [row.status for row in request_rows()] == ["ok"] * 6


def test_a_thread_that_the_home_loop_waits_for(server: RawServer, home: Callable[[Any], Any]) -> None:
    async def cell() -> None:
        for work in (
            lambda: httpx_client().post(chat_url(server), json=SAID),
            lambda: read_to_last_event_synchronously(chat_url(server)),
        ):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(20)  # blocks the loop
            assert not thread.is_alive()

    home(cell())
    assert [row.status for row in request_rows()] == ["ok"] * 2


async def test_many_at_once(server: RawServer) -> None:
    client = async_httpx_client()
    answers = await asyncio.gather(*(client.post(chat_url(server), json=SAID) for _ in range(50)))
    assert {answer.json()["usage"]["total_tokens"] for answer in answers} == {16}
    rows = request_rows()
    assert len(rows) == len(server.requests) == 50
    assert {row.input_tokens for row in rows} == {11}
    assert not tracing.running()


# -- sessions ----------------------------------------------------------------------------------------


async def sent(server: RawServer, body: Any, url: str | None = None, **headers: str) -> servers.Request:
    await async_httpx_client(headers=headers).post(url or chat_url(server), json=body)
    return server.requests[-1]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_session_in_the_body_is_kept_from_the_server(server: RawServer, is_async: bool) -> None:
    body = {**SAID, "litellm_session_id": "mine", "seed": 12345678901234567890, "top_p": 1.0}
    if is_async:
        asyncio.run(async_httpx_client().post(chat_url(server), json=body))
    else:
        httpx_client().post(chat_url(server), json=body)
    request = server.requests[0]
    assert json.loads(request.body) == {**SAID, "seed": 12345678901234567890, "top_p": 1.0}
    assert int(request.headers["content-length"]) == len(request.body)
    assert request.headers["x-litellm-session-id"] == "mine"  # it may be a proxy, for all we know
    assert only_row().session_id == "mine"


async def test_a_provider_that_is_known_hears_nothing_of_it(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url())
    request = await sent(server, {**SAID, "litellm_session_id": "mine", "litellm_trace_id": "trace"})
    assert json.loads(request.body) == SAID
    assert not [name for name in request.headers if "litellm" in name]
    assert only_row().session_id == "mine"


async def test_a_litellm_proxy_gets_what_was_said(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_PROXY_API_BASE", server.url())
    body = {**SAID, "litellm_session_id": "mine"}
    request = await sent(server, body)
    assert json.loads(request.body) == body
    assert "x-litellm-session-id" not in request.headers
    assert only_row().session_id == "mine"


async def test_a_header_that_is_there_already_stays(server: RawServer) -> None:
    request = await sent(server, {**SAID, "litellm_trace_id": "t"}, **{"X-LiteLLM-Trace-Id": "own"})
    assert request.headers["x-litellm-trace-id"] == "own"


@pytest.mark.parametrize("value", ["", None, 7, "no\nname", "ü", ["a"], "x" * 300, "\ud800"])
async def test_what_is_no_session_is_taken_out_all_the_same(server: RawServer, value: Any) -> None:
    text = json.dumps({**SAID, "litellm_session_id": value})
    with nbllm.session("around"):
        await async_httpx_client().post(
            chat_url(server), content=text, headers={"Content-Type": "application/json"}
        )
    assert json.loads(server.requests[0].body) == SAID
    assert "x-litellm-session-id" not in server.requests[0].headers
    assert only_row().session_id == "around"


async def test_what_stands_beside_a_session_stays_as_it_was_written(server: RawServer) -> None:
    rest = rb'"model":"m","x":1e999,"y":12345678901234567890.10,"z":"\u00e9\/","w":[1 , {}]'
    body = b'{"litellm_session_id": "mine", ' + rest + b"}"
    await async_httpx_client().post(chat_url(server, "html"), content=body)
    assert server.requests[0].body == b"{" + rest + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "messages": [{"role": "user", "content": "\\"litellm_session_id\\""}]}',
        b'{"metadata": {"litellm_session_id": "deep"}}',
        b'["litellm_session_id"]',
        b'{"litellm_session_id": ',
        b'\xff"litellm_session_id"',
        b'{"litellm_session_id": "a", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_other_bodies_stay_as_they_are(server: RawServer, body: bytes) -> None:
    await async_httpx_client().post(
        chat_url(server, "html"), content=body, headers={"Content-Type": "application/json"}
    )
    assert server.requests[0].body == body
    assert not notices._state.warned


async def test_the_session_around_holds_where_none_is_named(server: RawServer) -> None:
    with nbllm.session("around"):
        await sent(server, SAID)
        await asyncio.to_thread(httpx_client().post, chat_url(server), json=SAID)
    await sent(server, {**SAID, "litellm_session_id": "mine"})
    await sent(server, SAID)
    assert [row.session_id for row in request_rows()] == [
        "around",
        "around",
        "mine",
        nbllm.current_session(),
    ]


async def test_errors_hold_no_key(server: RawServer) -> None:
    key = "sk-planted-0123456789abcdef"
    nbllm.masking.keep_secret(key)
    with contextlib.suppress(httpx2.HTTPError):
        await async_httpx_client().post(f"http://{key}.invalid/v1/chat/completions", json=SAID)
    with pytest.raises(httpx2.ConnectError) as caught:
        await async_httpx_client().post(f"http://{key}.invalid/v1/chat/completions", json=SAID)
    assert key not in str(caught.value)
    await until(lambda: not tracing.running())
