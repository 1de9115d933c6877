"""The gateway between real clients (curl, the openai SDK, raw sockets) and real servers, which count."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

import nbllm
from nbllm import loops, tracing
from nbllm.servers.demo import DemoServer
from nbllm.servers.gateway import Gateway
from nbllm.servers.gateway_requests import LARGEST_BODY
from tests import servers
from tests.kernels import Kernel, environment, rows
from tests.providers_server import MODELS, MP3, PNG, TEXT, TOKENS, ProvidersServer, key_of, vector
from tests.rows import only_row, request_rows, session_rows
from tests.servers import RawServer, refused_port

UPSTREAM_KEY = "sk-upstream-0123456789"
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
CHATTING = ("openai", "azure", "anthropic", "gemini", "groq", "openrouter", "litellm_proxy", "ollama")


@pytest.fixture(autouse=True)
def alone(isolated: None) -> Iterator[None]:
    """The background loop outlives the tests: what it still does must not end in the next one's log."""
    yield
    nbllm.close()
    wait_until(lambda: not tracing.connections())


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with nbllm.gateway(0) as running:
        yield running


@pytest.fixture
def upstream(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RawServer]:
    """Make a raw server be OpenAI, with a behaviour."""

    def be(behaviour: str) -> RawServer:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url(behaviour))
        monkeypatch.setenv("OPENAI_API_KEY", UPSTREAM_KEY)
        return server

    be("chat")
    return be


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key="anything", max_retries=0) as client:
        yield client


class Answer:
    """What curl got."""

    def __init__(self, url: str, *args: str, body: Any = None) -> None:
        sent = [] if body is None else ["-d", body if isinstance(body, str) else json.dumps(body)]
        done = subprocess.run(
            ["curl", "-sS", "-i", "-N", *args, *sent, url], capture_output=True, timeout=30, check=True
        )
        head, _, self.body = done.stdout.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        return error


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for what no event tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- chat ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions", "/v1/chat/completions/"])
def test_an_answer_in_openais_format_passes_byte_by_byte(
    gateway: Gateway, upstream: Callable[[str], RawServer], path: str
) -> None:
    server = upstream("chat")
    answer = Answer(gateway.url + path, body={**ASK, "temperature": 0.5, "brand_new": {"x": [1, None]}})
    assert answer.status == 200
    assert answer.body == servers.OK.partition(b"\r\n\r\n")[2]
    (request,) = server.requests
    assert request.json == {**ASK, "temperature": 0.5, "brand_new": {"x": [1, None]}}
    assert request.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    row = only_row()
    assert (row.operation, row.provider, row.request_model, row.status) == (
        "chat",
        "openai",
        "gpt-4o-mini",
        "ok",
    )
    assert (row.input_tokens, row.output_tokens) == (11, 5)
    assert answer.headers["x-nbllm-request-id"] == row.request_id
    assert answer.headers["x-nbllm-session-id"] == row.session_id == nbllm.current_session()
    assert answer.headers["x-request-id"] == row.provider_request_id == "req_raw"
    assert row.cost_usd is None
    assert "x-nbllm-cost-usd" not in answer.headers


def test_what_an_answer_cost(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    nbllm.set_price("gpt-4o-mini", input=1, output=2)
    answer = Answer(gateway.url + "/chat/completions", body=ASK)
    assert float(answer.headers["x-nbllm-cost-usd"]) == pytest.approx(21e-6)
    assert only_row().cost_usd == pytest.approx(21e-6)


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_in_openais_format_passes_byte_by_byte(
    gateway: Gateway, upstream: Callable[[str], RawServer], usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = Answer(gateway.url + "/v1/chat/completions", body={**ASK, "stream": True, **options})
    events = servers._events()
    if not usage:  # which nbllm asked for, not the client
        del events[-2]
    assert answer.body == b"".join(events)
    assert answer.headers["content-type"].startswith("text/event-stream")
    row = only_row()
    assert answer.headers["x-nbllm-request-id"] == row.request_id
    assert (row.status, row.stream, row.finish_reason, row.output_tokens) == ("ok", True, "stop", 5)
    assert row.ttft_ms is not None


def test_json_in_several_lines_stays_one_event(
    gateway: Gateway, sdk: openai.OpenAI, upstream: Callable[[str], RawServer]
) -> None:
    async def lines(x: servers.Exchange) -> None:
        data = json.dumps(servers.chunk({"content": "two\nlines"}, "stop"), indent=1).encode()
        await servers._stream(x, [b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"])

    upstream("lines").behaviours["lines"] = lines
    chunks = list(sdk.chat.completions.create(**ASK, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["two\nlines"]


@pytest.mark.parametrize("provider", CHATTING)
def test_chat_with_every_provider(provider: str, sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    asked: dict[str, Any] = {**ASK, "model": f"{provider}/some-model"}
    answer = sdk.chat.completions.create(**asked)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == sum(TOKENS)
    chunks = list(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(word or "" for word in words) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == sum(TOKENS)
    for row in request_rows():
        assert (row.provider, row.request_model, row.status) == (provider, "some-model", "ok")
        assert row.input_tokens == TOKENS[0]


async def test_the_async_sdk(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:
        answer = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert answer.choices[0].message.content == "".join(words) == servers.TEXT
    assert [row.status for row in request_rows()] == ["ok", "ok"]


def test_an_alias_and_a_retry(
    sdk: openai.OpenAI, providers: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbllm.configure(aliases={"mine": "openai/fails-twice"})
    answer = sdk.chat.completions.create(**{**ASK, "model": "mine"}, extra_body={"num_retries": 2})
    assert answer.choices[0].message.content == TEXT
    assert [row.status for row in request_rows()] == ["error", "error", "ok"]
    assert len({row.call_id for row in request_rows()}) == 1


def test_a_path_in_a_message_is_not_read(
    gateway: Gateway, upstream: Callable[[str], RawServer], tmp_path: Path
) -> None:
    picture = tmp_path / "secret.png"
    picture.write_bytes(base64.b64decode(PNG))
    content = [{"type": "image_url", "image_url": {"url": str(picture)}}]
    messages = [{"role": "user", "content": content}]
    assert Answer(gateway.url + "/chat/completions", body={**ASK, "messages": messages}).status == 200
    assert upstream("chat").requests[0].json["messages"] == messages


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # which nobody is shown
def test_a_large_picture_passes(
    gateway: Gateway, sdk: openai.OpenAI, upstream: Callable[[str], RawServer]
) -> None:
    url = "data:image/png;base64," + "A" * 8_000_000
    messages: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    sdk.chat.completions.create(model="gpt-4o-mini", messages=messages)
    assert upstream("chat").requests[0].json["messages"] == messages


# -- streams in time -------------------------------------------------------------------------------


def test_a_stream_comes_chunk_by_chunk(sdk: openai.OpenAI, upstream: Callable[[str], RawServer]) -> None:
    server = upstream("gatedbody")
    with sdk.chat.completions.create(**ASK, stream=True) as stream:
        first = [next(stream).choices[0].delta.content for _ in range(3)]
        assert first == ["", "Hello", " from"]
        assert not server.requests[0].answered
        server.open_gate()
        rest = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(rest) == " the raw server"


def test_a_client_that_leaves_a_stream_cancels_it(
    gateway: Gateway, upstream: Callable[[str], RawServer]
) -> None:
    server = upstream("stall")
    with openai.OpenAI(base_url=gateway.url, api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        stream.close()
    server.wait_for(lambda: server.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_answer_cancels_it(
    gateway: Gateway, upstream: Callable[[str], RawServer], stream: bool
) -> None:
    server = upstream("hang")
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(raw(json.dumps({**ASK, "stream": stream}).encode()))
        server.wait_for(lambda: bool(server.requests))
    server.wait_for(lambda: server.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


def test_an_endless_stream_waits_for_its_reader_and_ends_with_it(
    sdk: openai.OpenAI, upstream: Callable[[str], RawServer]
) -> None:
    server = upstream("endless")
    with sdk.chat.completions.create(**ASK, stream=True) as stream:
        for _ in range(100):
            next(stream)
    server.wait_for(lambda: server.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


async def test_a_thousand_at_once(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    server = upstream("gated")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask(number: int) -> tuple[int, Any]:
            body = {**ASK, "litellm_session_id": f"s{number % 10}", "stream": number % 2 == 0}
            async with client.post(f"{gateway.url}/chat/completions", json=body) as response:
                text = await response.text()
                return response.status, text.endswith("[DONE]\n\n") or json.loads(text)["id"]

        tasks = [asyncio.create_task(ask(number)) for number in range(1000)]
        await server.seen(lambda: len(server.requests) == 1000)
        server.open_gate()
        answers = await asyncio.gather(*tasks)
    assert set(answers) == {(200, True), (200, "chatcmpl-raw")}
    found = request_rows()
    assert len(found) == len({row.request_id for row in found}) == 1000
    assert {row.status for row in found} == {"ok"}
    assert [row.requests for row in session_rows()] == [100] * 10


# -- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"litellm_session_id": "one"}, {}),
        ({"litellm_trace_id": "one"}, {}),
        ({"session_id": "one"}, {}),
        ({"metadata": {"session_id": "one", "other": "x"}}, {}),
        ({"metadata": {"litellm_session_id": "one"}}, {}),
        ({"metadata": {"trace_id": "one"}}, {}),
        ({"litellm_session_id": "one", "metadata": {"session_id": "two"}}, {"x-session-id": "three"}),
        ({"extra_body": {"litellm_session_id": "one"}}, {}),
        ({}, {"x-litellm-session-id": "one"}),
        ({}, {"X-LiteLLM-Trace-Id": "one"}),
        ({}, {"x-session-id": "one"}),
    ],
)
def test_who_names_a_session_is_grouped_by_it(
    gateway: Gateway, upstream: Callable[[str], RawServer], fields: Any, headers: dict[str, str]
) -> None:
    sent = [f"-H{name}: {value}" for name, value in headers.items()]
    answer = Answer(gateway.url + "/v1/chat/completions", *sent, body={**ASK, **fields})
    assert answer.headers["x-nbllm-session-id"] == "one"
    assert only_row().session_id == "one"
    (request,) = upstream("chat").requests
    assert request.json == ASK  # no provider is told
    assert not {"x-session-id", "x-litellm-session-id", "x-litellm-trace-id"} & request.headers.keys()


def test_a_litellm_proxy_behind_it_is_told_the_session(
    sdk: openai.OpenAI, providers: ProvidersServer
) -> None:
    sdk.chat.completions.create(
        **{**ASK, "model": "litellm_proxy/x"}, extra_headers={"x-litellm-session-id": "review"}
    )
    (request,) = providers.requests
    assert request.headers["x-litellm-session-id"] == request.json["litellm_session_id"] == "review"


def test_the_rest_of_metadata_goes_where_it_is_stored(
    sdk: openai.OpenAI, upstream: Callable[[str], RawServer]
) -> None:
    sdk.chat.completions.create(**ASK, metadata={"session_id": "one", "topic": "x"}, store=True)
    assert upstream("chat").requests[0].json["metadata"] == {"topic": "x"}


def test_where_none_is_named_it_is_the_kernels(
    gateway: Gateway, upstream: Callable[[str], RawServer]
) -> None:
    with nbllm.session("of the cell that starts it"), nbllm.gateway(0) as another:
        Answer(another.url + "/chat/completions", body=ASK)
        nbllm.set_session("chosen")
        Answer(another.url + "/chat/completions", body=ASK)
    assert [row.session_id for row in request_rows()] == [nbllm.tagging.default_session(), "chosen"]


@pytest.mark.parametrize("named", ["snow ☃", "x" * 200, 7, ["a"]])
def test_a_session_that_cant_be_one(
    gateway: Gateway, upstream: Callable[[str], RawServer], named: Any
) -> None:
    answer = Answer(gateway.url + "/chat/completions", body={**ASK, "litellm_session_id": named})
    assert (answer.status, "session id" in answer.error["message"]) == (400, True)
    assert upstream("chat").requests == []


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_an_error_keeps_status_and_shape(
    sdk: openai.OpenAI,
    upstream: Callable[[str], RawServer],
    status: int,
    kind: type[openai.APIStatusError],
    stream: bool,
) -> None:
    upstream(f"status-{status}")
    with pytest.raises(kind) as caught:
        sdk.chat.completions.create(**ASK, stream=stream)  # type: ignore[call-overload]
    error = caught.value
    assert (error.status_code, error.code, error.type) == (status, "some_code", "some_type")
    assert error.body == {
        "message": "no (Bearer [key])",
        "type": "some_type",
        "param": None,
        "code": "some_code",
    }
    row = only_row()
    assert (row.status, row.http_status) == ("error", status)
    assert error.response.headers["x-nbllm-request-id"] == row.request_id
    assert error.response.headers["retry-after"] == "7"
    assert error.request_id == "req_raw"


@pytest.mark.parametrize("provider", ["anthropic", "gemini"])
def test_an_error_in_another_format_gets_openais_shape(
    gateway: Gateway, providers: ProvidersServer, provider: str
) -> None:
    answer = Answer(gateway.url + "/chat/completions", body={**ASK, "model": f"{provider}/error-429"})
    assert answer.status == 429
    assert answer.error["message"].startswith("no (")
    assert key_of(provider) not in answer.body.decode()


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [("close", 502), ("halfbody", 502), ("html", 502), ("wholeerror", 502), ("nothing", 502)],
)
def test_no_answer_is_a_bad_gateway(
    gateway: Gateway, upstream: Callable[[str], RawServer], behaviour: str, status: int
) -> None:
    upstream(behaviour)
    answer = Answer(gateway.url + "/chat/completions", body=ASK)
    assert (answer.status, bool(answer.error["message"])) == (status, True)
    assert only_row().status == "error"


def test_nobody_listens_upstream(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", UPSTREAM_KEY)
    with refused_port() as port:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        answer = Answer(gateway.url + "/chat/completions", body=ASK)
    assert (answer.status, "Nothing listens there" in answer.error["message"]) == (502, True)


def test_no_answer_in_time(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    upstream("hang")
    answer = Answer(gateway.url + "/chat/completions", body={**ASK, "timeout": 0.05})
    assert (answer.status, answer.error["type"]) == (504, "server_error")
    assert only_row().error_type == "Timeout"


def test_no_key_for_the_provider(gateway: Gateway) -> None:
    answer = Answer(gateway.url + "/chat/completions", body=ASK)
    assert (answer.status, answer.error["code"]) == (500, "provider_key_missing")
    assert answer.error["message"] == (
        "the gateway has no key for openai: set the environment variable OPENAI_API_KEY, where it runs"
    )


@pytest.mark.parametrize(("behaviour", "said"), [("streamerror", "overloaded"), ("halfstream", "broke off")])
def test_an_error_within_a_stream(
    sdk: openai.OpenAI, upstream: Callable[[str], RawServer], behaviour: str, said: str
) -> None:
    upstream(behaviour)
    words: list[str | None] = []
    with pytest.raises(openai.APIError, match=said):
        words.extend(
            chunk.choices[0].delta.content for chunk in sdk.chat.completions.create(**ASK, stream=True)
        )
    assert only_row().status == "error"


def test_what_came_before_an_error_is_passed_on(
    gateway: Gateway, upstream: Callable[[str], RawServer]
) -> None:
    upstream("streamerror")
    answer = Answer(gateway.url + "/chat/completions", body={**ASK, "stream": True})
    *begun, last = answer.body.split(b"\n\n")[:-1]
    assert [event + b"\n\n" for event in begun] == servers._events()[:3]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "The model is overloaded"


def test_an_error_as_the_first_event_has_its_status(
    sdk: openai.OpenAI, upstream: Callable[[str], RawServer]
) -> None:
    async def refuse(x: servers.Exchange) -> None:
        error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}
        await servers._stream(x, [servers.event(error)])

    upstream("refuse").behaviours["refuse"] = refuse
    with pytest.raises(openai.RateLimitError, match="slow down"):
        sdk.chat.completions.create(**ASK, stream=True)


# -- hostile requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[1, 2]",
        '"text"',
        "null",
        "[" * 100_000,
        '{"model": "gpt-4o-mini"}',
        '{"messages": [{"role": "user", "content": "Hi"}]}',
        '{"model": 7, "messages": [{"role": "user", "content": "Hi"}]}',
        '{"model": "", "messages": [{"role": "user", "content": "Hi"}]}',
        {**ASK, "messages": []},
        {**ASK, "messages": "Hi"},
        {**ASK, "messages": ["Hi"]},
        {**ASK, "messages": {"role": "user"}},
        {**ASK, "stream": "yes"},
        {**ASK, "stream": True, "stream_options": [1]},
        {**ASK, "metadata": "x"},
        {**ASK, "extra_body": 1},
        {**ASK, "timeout": "soon"},
        {**ASK, "num_retries": -1},
        {**ASK, "api_base": "http://example.org"},
        {**ASK, "base_url": "http://example.org"},
        {**ASK, "api_key": "x"},
        {**ASK, "fallbacks": [{"model": "gpt-4o", "base_url": "http://example.org"}]},
        {**ASK, "extra_headers": {"Host": "x"}},
        {**ASK, "shared_session": 1},
        {**ASK, "model": "anthropic/x", "messages": [{"content": 7}]},
        {**ASK, "model": "gemini/x", "messages": [{"role": "user", "content": [7]}]},
    ],
)
def test_a_body_that_is_no_request(
    gateway: Gateway, providers: ProvidersServer, tmp_path: Path, body: Any
) -> None:
    sent = tmp_path / "body"
    sent.write_text(body if isinstance(body, str) else json.dumps(body))
    answer = Answer(gateway.url + "/v1/chat/completions", "--data-binary", f"@{sent}")
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["message"]
    assert providers.requests == []


def raw(body: bytes, **headers: Any) -> bytes:
    """A chat request as bytes."""
    given = {"Host": "localhost", "Content_Length": len(body), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


def test_a_body_that_is_too_large_is_not_waited_for(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(raw(b"", Content_Length=LARGEST_BODY + 1, Expect="100-continue"))
        answer = client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_what_is_no_http_is_refused_without_a_word(
    gateway: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 400 ")
    assert Answer(gateway.url).status == 200
    assert capfd.readouterr() == ("", "")


def test_a_packed_body(gateway: Gateway, upstream: Callable[[str], RawServer], tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(json.dumps(ASK).encode()))
    sent = ("--data-binary", f"@{packed}", "-H", "Content-Encoding: gzip")
    assert Answer(gateway.url + "/chat/completions", *sent).status == 200
    assert upstream("chat").requests[0].json == ASK


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("/nope",), 404),
        (("/v1",), 200),
        (("/v1/nope",), 404),
        (("/v1v1/models",), 404),
        (("/v1/chat/completions",), 405),
        (("/models", "-X", "DELETE"), 405),
        (("/v1/models", "-X", "OPTIONS"), 405),
        (("/v1/%2e%2e/%2e%2e/etc/passwd", "--path-as-is"), 404),
    ],
)
def test_other_paths_and_methods(gateway: Gateway, args: tuple[str, ...], status: int) -> None:
    path, *more = args
    answer = Answer(gateway.url + path, *more)
    assert answer.status == status
    assert status == 200 or answer.error["message"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_what_it_is(gateway: Gateway) -> None:
    answer = Answer(gateway.url)
    assert answer.headers["content-type"].startswith("text/plain")
    assert gateway.url in answer.body.decode()


# -- who is let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:4000", 200),
        ("127.0.0.1", 200),
        ("127.8.8.8:1", 200),
        ("[::1]:4000", 200),
        ("0.0.0.0:4000", 200),
        ("box.localhost", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:4000", 403),
        ("192.168.0.7", 403),
        ("[bad", 403),
        ("", 403),
    ],
)
def test_a_name_of_another_machine_is_refused(gateway: Gateway, host: str, status: int) -> None:
    answer = Answer(gateway.url, "-H", f"Host: {host}" if host else "Host;")
    assert answer.status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403), ("http://[", 403), ("", 403)],
)
def test_a_page_of_another_server_is_refused(
    gateway: Gateway, upstream: Callable[[str], RawServer], origin: str, status: int
) -> None:
    sent = ("-H", f"Origin: {origin}" if origin else "Origin;", "-H", "Content-Type: text/plain")
    answer = Answer(gateway.url + "/chat/completions", *sent, body=ASK)
    assert (answer.status, answer.error["code"]) == (status, "bad_origin")
    assert upstream("chat").requests == []
    own = Answer(gateway.url + "/chat/completions", "-H", f"Origin: {gateway.url}", body=ASK)
    assert own.status == 200


def test_a_key(upstream: Callable[[str], RawServer], log_path: Path) -> None:
    key = "a-key-of-the-gateway"
    with nbllm.gateway(0, key=key) as gateway:
        url = gateway.url + "/chat/completions"
        basic = base64.b64encode(f"anyone:{key}".encode()).decode()
        for sent, status in {
            "X-Nothing: 1": 401,
            "Authorization: Bearer wrong": 401,
            "Authorization: Bearer": 401,
            f"Authorization: Bearer {key}x": 401,
            "Authorization: Bearer ☃": 401,
            "Authorization: Basic !!!": 401,
            f"Authorization: Bearer {key}": 200,
            f"Authorization: Basic {basic}": 200,
        }.items():
            answer = Answer(url, "-H", sent, body=ASK)
            assert answer.status == status, sent
            assert status == 200 or answer.error["code"] == "invalid_api_key"
        assert Answer(gateway.url + "/sessions").status == 401
        assert key not in repr(gateway)
    assert len(upstream("chat").requests) == len(request_rows()) == 2
    assert {request.headers["authorization"] for request in upstream("chat").requests} == {
        f"Bearer {UPSTREAM_KEY}"
    }
    stored = b"".join(path.read_bytes() for path in log_path.parent.iterdir())
    assert key.encode() not in stored


def test_beyond_this_machine_there_is_a_key(
    upstream: Callable[[str], RawServer], capsys: pytest.CaptureFixture[str]
) -> None:
    with nbllm.gateway(0, host="0.0.0.0") as gateway:
        said = capsys.readouterr().out
        assert gateway.key is not None
        assert len(gateway.key) > 20
        assert said.count(gateway.key) == 1
        url = f"http://127.0.0.1:{gateway.port}/chat/completions"
        assert Answer(url, body=ASK).status == 401
        named = ("-H", "Host: box.example", "-H", f"Authorization: Bearer {gateway.key}")
        assert Answer(url, *named, body=ASK).status == 200
    with nbllm.gateway(0, host="0.0.0.0", key="a-key-of-mine") as gateway:
        assert gateway.key == "a-key-of-mine"
    assert capsys.readouterr().out == ""


def ended(client: socket.socket) -> bool:
    """Whether the gateway has closed a connection."""
    try:
        return client.recv(100_000) == b""
    except ConnectionError:
        return True


def test_who_says_nothing_loses_the_connection(
    upstream: Callable[[str], RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbllm.servers.gateway.HEAD_SECONDS", 0.3)
    server = upstream("gated")
    with nbllm.gateway(0) as gateway, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", gateway.port)
        quiet, slow, busy, idle = (
            stack.enter_context(socket.create_connection(place, timeout=5)) for _ in range(4)
        )
        slow.sendall(b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nX-")
        busy.sendall(raw(json.dumps(ASK).encode()))
        idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in idle.recv(1000)
        assert ended(quiet)
        assert ended(slow)
        server.open_gate()
        assert b" 200 " in busy.recv(1000)
        idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in idle.recv(1000)


def test_who_is_refused_loses_the_connection() -> None:
    with (
        nbllm.gateway(0, key="a-key-of-the-gateway") as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client,
    ):
        client.sendall(b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 401 " in client.recv(1000)
        assert ended(client)


def test_connections_never_take_all_the_files_of_the_process(
    gateway: Gateway, upstream: Callable[[str], RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbllm.servers.gateway._most_connections", lambda: 10)
    with contextlib.ExitStack() as stack:
        place = ("127.0.0.1", gateway.port)
        for _ in range(10):
            stack.enter_context(socket.create_connection(place))
        wait_until(lambda: len(gateway._transports()) == 10)
        assert ended(stack.enter_context(socket.create_connection(place, timeout=5)))
    wait_until(lambda: not gateway._transports())
    assert Answer(gateway.url + "/chat/completions", body=ASK).status == 200


# -- the life of a gateway -------------------------------------------------------------------------


def test_one_gateway_for_a_port(gateway: Gateway) -> None:
    assert nbllm.gateway(gateway.port) is gateway
    with pytest.raises(nbllm.UsageProblem, match=r"close\(\) it first"):
        nbllm.gateway(gateway.port, key="another-key")
    with pytest.raises(nbllm.UsageProblem, match="another host"):
        nbllm.gateway(gateway.port, host="localhost")


def test_closed_and_opened_again(upstream: Callable[[str], RawServer]) -> None:
    first = nbllm.gateway(0)
    port = first.port
    assert Answer(first.url + "/chat/completions", body=ASK).status == 200
    first.close()
    first.close()
    assert repr(first) == f"<Gateway http://127.0.0.1:{port}, closed>"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with nbllm.gateway(port) as second:
        assert second is not first
        first.close()
        assert Answer(second.url + "/chat/completions", body=ASK).status == 200


def test_closing_breaks_off_what_is_under_way(upstream: Callable[[str], RawServer]) -> None:
    server = upstream("hang")
    with nbllm.gateway(0) as gateway, socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(raw(json.dumps(ASK).encode()))
        server.wait_for(lambda: bool(server.requests))
        gateway.close()
        assert client.recv(1) == b""
    server.wait_for(lambda: server.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


def test_two_gateways(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    with nbllm.gateway(0) as another:
        for one in (gateway, another):
            assert Answer(one.url + "/chat/completions", body=ASK).status == 200
    assert len({row.connection_id for row in request_rows()}) == 1  # they share a pool


def test_a_port_that_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(nbllm.UsageProblem, match="port=0 for a free one"),
    ):
        nbllm.gateway(taken.getsockname()[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65536},
        {"port": "4000"},
        {"port": True},
        {"port": 0, "host": ""},
        {"port": 0, "host": "no.such.host.invalid"},
        {"port": 0, "host": "1.2.3.4"},
        {"port": 0, "key": ""},
        {"port": 0, "key": "two\nlines"},
        {"port": 0, "key": 7},
    ],
)
def test_values_that_cant_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(nbllm.UsageProblem):
        nbllm.gateway(**wrong)


def test_ipv6(upstream: Callable[[str], RawServer]) -> None:
    if not socket.has_ipv6:
        pytest.skip("this system has no IPv6")
    try:
        gateway = nbllm.gateway(0, host="::1")
    except nbllm.UsageProblem as problem:
        pytest.skip(f"this system has no IPv6 loopback: {problem}")
    with gateway:
        assert gateway.url == f"http://[::1]:{gateway.port}"
        assert Answer(gateway.url + "/chat/completions", "-g", body=ASK).status == 200


def test_a_script_that_ends_while_a_stream_runs_ends_quietly(server: RawServer, tmp_path: Path) -> None:
    code = """
import socket, sys, nbllm
gateway = nbllm.gateway(0)
client = socket.create_connection(("127.0.0.1", gateway.port))
client.sendall(sys.stdin.buffer.read())
assert b" 200 " in client.recv(1000)
print("streaming")
"""
    request = raw(json.dumps({**ASK, "model": "hosted_vllm/x", "stream": True}).encode())
    env = environment(tmp_path) | {"HOSTED_VLLM_API_BASE": server.url("stall")}
    done = subprocess.run(
        [sys.executable, "-c", code], input=request, env=env, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"streaming\n", b"")
    assert [row["status"] for row in rows(tmp_path / "log.db")] == ["incomplete"]


def test_a_forked_child_leaves_the_parents_gateway_alone(server: RawServer, tmp_path: Path) -> None:
    code = """
import os, socket, subprocess, nbllm
gateway = nbllm.gateway(0)
kept = socket.create_connection(("127.0.0.1", gateway.port))
kept.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
assert kept.recv(5000).startswith(b"HTTP/1.1 200")
reader, writer = os.pipe()
told, tell = os.pipe()
if (child := os.fork()) == 0:
    own = nbllm.gateway(0)
    assert own is not gateway
    with socket.create_connection(("127.0.0.1", own.port)) as client:
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert client.recv(5000).startswith(b"HTTP/1.1 200")
    os.write(tell, b"x")
    os.read(reader, 1)
    os._exit(0)
assert os.read(told, 1) == b"x"
gateway.close()
kept.settimeout(10)
try:
    assert kept.recv(1) == b""
except ConnectionResetError:
    pass
again = nbllm.gateway(gateway.port)
again.close()
os.write(writer, b"x")
assert os.waitpid(child, 0)[1] == 0
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_command(server: RawServer, tmp_path: Path) -> None:
    env = environment(tmp_path) | {"OPENAI_BASE_URL": server.url("chat"), "OPENAI_API_KEY": UPSTREAM_KEY}
    command = [sys.executable, "-W", "error", "-m", "nbllm.cli", "gateway", "--key", "a-key-of-mine"]
    with subprocess.Popen(
        [*command, "--port", "0"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = re.match(r"Gateway at (http://127\.0\.0\.1:(\d+)) ", process.stdout.readline())
        assert found is not None
        url = found[1] + "/v1/chat/completions"
        assert Answer(url, body=ASK).status == 401
        assert Answer(url, "-H", "Authorization: Bearer a-key-of-mine", body=ASK).status == 200
        taken = subprocess.run(
            [*command, "--port", found[2]], env=env, capture_output=True, text=True, timeout=30
        )
        assert (taken.returncode, taken.stderr.startswith("nbllm: the gateway can't listen")) == (2, True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "a-key-of-mine" not in process.stdout.read()
        assert process.stderr.read() == ""
    (row,) = rows(tmp_path / "log.db")
    assert (row["status"], row["request_model"]) == ("ok", "gpt-4o-mini")


# -- in a kernel -----------------------------------------------------------------------------------


def test_it_answers_while_a_cell_blocks_the_kernel(demo: DemoServer, tmp_path: Path) -> None:
    with Kernel(tmp_path, demo) as kernel:
        kernel.run("%load_ext nbllm\nimport nbllm, subprocess; gateway = nbllm.gateway(0)").ok()
        body = json.dumps({**ASK, "model": "demo/fast", "litellm_session_id": "from curl"})
        blocking = f"""
done = subprocess.run(["curl", "-sS", gateway.url + "/v1/chat/completions", "-d", {body!r}],
                      capture_output=True, text=True, timeout=20)
print(done.stdout)"""
        said = kernel.run(blocking, cell_id="blocks").ok().stdout
        assert json.loads(said)["object"] == "chat.completion"
        (row,) = kernel.rows(session_id="from curl")
        assert (row["status"], row["cell_id"], row["cell_source"]) == ("ok", "blocks", "last_cell")
        streamed = body.replace("{", '{"stream": true, ', 1)
        magic = f"%%bash\ncurl -sS -N {kernel.value('gateway.url')}/chat/completions -d '{streamed}'"
        assert kernel.run(magic).ok().stdout.endswith("data: [DONE]\n\n")
        assert kernel.value("nbllm.sessions().session_id.tolist()") == ["from curl"]
        kernel.run("%reload_ext nbllm").ok()
        assert kernel.value("nbllm.gateway(gateway.port) is gateway")
        kernel.run("gateway.close()").ok()


async def test_it_lives_beside_the_home_loop(
    gateway: Gateway, upstream: Callable[[str], RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't hand its calls over: this loop, which the call would wait for, is blocked."""
    monkeypatch.setattr(loops._state, "home", asyncio.get_running_loop())
    monkeypatch.setattr(loops._state, "home_always_runs", True)
    assert Answer(gateway.url + "/chat/completions", body=ASK).status == 200
    assert not loops._state.home_blocked


# -- responses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "groq"])
def test_responses(provider: str, sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    model = f"{provider}/some-model"
    first = sdk.responses.create(model=model, input="Hi", metadata={"session_id": "chain"})
    assert (first.output_text, first.status) == (TEXT, "completed")
    second = sdk.responses.create(model=model, input="And?", previous_response_id=first.id)
    assert second.output_text == TEXT
    events = list(sdk.responses.create(model=model, input="Hi", stream=True, previous_response_id=second.id))
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    assert [row.session_id for row in request_rows()] == ["chain"] * 3
    assert [row.operation for row in request_rows()] == ["responses"] * 3


def test_the_events_of_responses_pass_byte_by_byte(gateway: Gateway, providers: ProvidersServer) -> None:
    body = {"model": "openai/x", "input": "Hi", "stream": True}
    answer = Answer(gateway.url + "/v1/responses", body=body)
    request = providers.requests[0]
    direct = Answer(
        f"http://127.0.0.1:{providers.port}{request.path}",
        *("-H", f"Authorization: {request.headers['authorization']}"),
        *("-H", "Content-Type: application/json"),
        body=request.body.decode(),
    )
    assert answer.body == direct.body


@pytest.mark.parametrize("model", ["openai/inside-error", "anthropic/inside-error"])
def test_an_error_within_a_streamed_response(
    sdk: openai.OpenAI, providers: ProvidersServer, model: str
) -> None:
    if model.startswith("openai"):

        async def fail(x: servers.Exchange) -> None:
            begun = {"id": "r", "object": "response", "status": "in_progress", "model": "x", "output": []}
            created = {"type": "response.created", "sequence_number": 0, "response": begun}
            failed = {"type": "error", "code": "429", "message": "overloaded", "param": None}
            await servers._stream(x, [servers.event(created), servers.event(failed)])

        providers.behaviours["openai"] = fail
    stream = sdk.responses.create(model=model, input="Hi", stream=True)
    assert next(iter(stream)).type == "response.created"
    with pytest.raises(openai.APIError, match="overloaded"):
        list(stream)


def test_an_unknown_chain(gateway: Gateway, providers: ProvidersServer) -> None:
    body = {"model": "anthropic/x", "input": "Hi", "previous_response_id": "resp_nobody"}
    answer = Answer(gateway.url + "/v1/responses", body=body)
    assert (answer.status, "resp_nobody" in answer.error["message"]) == (400, True)


@pytest.mark.parametrize("body", [{"model": "gpt-4o"}, {"input": "Hi"}, {"model": "gpt-4o", "input": 7}])
def test_a_body_that_is_no_response(gateway: Gateway, providers: ProvidersServer, body: Any) -> None:
    assert Answer(gateway.url + "/v1/responses", body=body).error["type"] == "invalid_request_error"
    assert providers.requests == []


# -- the other verbs -------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "gemini"])
@pytest.mark.parametrize("format", [None, "float", "base64"])
def test_embeddings(sdk: openai.OpenAI, providers: ProvidersServer, provider: str, format: Any) -> None:
    asked = {} if format is None else {"encoding_format": format}
    answer = sdk.embeddings.create(model=f"{provider}/vectors", input=["a", "b"], **asked)
    wanted: list[Any] = [vector(0), vector(1)]
    if format == "base64":
        wanted = [base64.b64encode(__import__("array").array("f", row).tobytes()).decode() for row in wanted]
    assert [row.embedding for row in answer.data] == wanted
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == TOKENS[0]
    assert only_row().operation == "embeddings"


def test_embeddings_over_curl_are_numbers(gateway: Gateway, providers: ProvidersServer) -> None:
    answer = Answer(gateway.url + "/v1/embeddings", body={"model": "openai/vectors", "input": "a"})
    assert json.loads(answer.body)["data"] == [{"object": "embedding", "index": 0, "embedding": vector(0)}]
    assert answer.headers["x-nbllm-request-id"] == only_row().request_id


def test_images(sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    answer = sdk.images.generate(
        model="openai/gpt-image-1", prompt="a fox", n=1, extra_body={"litellm_session_id": "art"}
    )
    assert answer.data is not None
    assert answer.data[0].b64_json == PNG
    assert only_row().session_id == "art"


def test_speech(sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    answer = sdk.audio.speech.create(model="openai/tts-1", voice="alloy", input="Hello")
    assert answer.content == MP3
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert only_row().operation == "speech"


def test_transcriptions(sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    answer = sdk.audio.transcriptions.create(
        model="openai/whisper-1",
        file=("talk.mp3", MP3),
        language="en",
        timestamp_granularities=["word", "segment"],
        response_format="verbose_json",
        extra_body={"metadata": {"session_id": "talks"}},
    )
    assert answer.text == f"talk.mp3 {len(MP3)}"
    form = providers.requests[0].body
    assert form.count(b'name="timestamp_granularities[]"') == 2
    assert b'name="language"\r\n\r\nen\r\n' in form
    assert b"talks" not in form
    assert only_row().session_id == "talks"


def test_a_transcription_as_text(gateway: Gateway, providers: ProvidersServer, tmp_path: Path) -> None:
    (tmp_path / "talk.mp3").write_bytes(MP3)
    form = ("-F", f"file=@{tmp_path}/talk.mp3", "-F", "model=openai/whisper-1", "-F", "response_format=text")
    answer = Answer(gateway.url + "/v1/audio/transcriptions", *form)
    assert answer.body == f"talk.mp3 {len(MP3)}".encode()
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "args",
    [
        ("-d", '{"model": "openai/whisper-1"}'),
        ("-F", "model=openai/whisper-1"),
        ("-F", "file=@{file}"),
        ("-F", "file=@{file}", "-F", "model=openai/whisper-1", "-F", "stream=true"),
        ("-F", "file=@{file}", "-F", "a[]=1", "-F", "a[x]=1", "-F", "model=openai/whisper-1"),
        ("-F", "file=/etc/hostname", "-F", "model=openai/whisper-1"),
        ("-H", "Content-Type: multipart/form-data", "-d", "no form"),
        ("-H", "Content-Type: multipart/form-data; boundary=x", "-d", "no form"),
    ],
)
def test_a_form_that_is_no_request(
    gateway: Gateway, providers: ProvidersServer, tmp_path: Path, args: tuple[str, ...]
) -> None:
    (tmp_path / "talk.mp3").write_bytes(MP3)
    sent = [arg.replace("{file}", str(tmp_path / "talk.mp3")) for arg in args]
    answer = Answer(gateway.url + "/v1/audio/transcriptions", *sent)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert providers.requests == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/images/generations", {"model": "openai/gpt-image-1", "prompt": "x", "stream": True}),
        ("/images/generations", {"model": "openai/gpt-image-1"}),
        ("/images/generations", {"model": "anthropic/x", "prompt": "x"}),
        ("/audio/speech", {"model": "openai/tts-1", "input": "x", "voice": "alloy", "stream_format": "sse"}),
        ("/audio/speech", {"model": "openai/tts-1", "input": "x"}),
        ("/embeddings", {"model": "openai/x", "input": [{}]}),
        ("/embeddings", {"model": "openai/x", "input": "a", "api_base": "http://example.org"}),
    ],
)
def test_what_the_others_refuse(gateway: Gateway, providers: ProvidersServer, path: str, body: Any) -> None:
    answer = Answer(gateway.url + path, body=body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert providers.requests == []


def test_models(sdk: openai.OpenAI, providers: ProvidersServer) -> None:
    found = {model.id: model for model in sdk.models.list()}
    assert {f"openai/{MODELS[0]}", f"anthropic/{MODELS[0]}", f"gemini/{MODELS[0]}"} <= found.keys()
    answer = sdk.chat.completions.create(**{**ASK, "model": f"anthropic/{MODELS[0]}"})
    assert answer.choices[0].message.content == TEXT


# -- the report ------------------------------------------------------------------------------------


def test_the_sessions_as_a_page(gateway: Gateway, upstream: Callable[[str], RawServer]) -> None:
    named = "<script>alert(1)</script>"
    Answer(gateway.url + "/chat/completions", body={**ASK, "litellm_session_id": named})
    page = Answer(gateway.url + "/sessions")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src" not in page.headers["content-security-policy"]
    assert named not in page.body.decode()
    assert "&lt;script&gt;" in page.body.decode()
