"""Requests of other clients over our HTTP session: their rows say what those of our own verbs say."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import log, notices
from nbllm.providers.places import kind_of
from tests import servers
from tests.providers_server import MODELS, ProvidersServer, key_of
from tests.rows import only_row, request_rows
from tests.servers import Exchange, RawServer, refused_port

TOLD = (
    *("operation", "provider", "request_model", "response_model", "response_id", "provider_request_id"),
    *("http_method", "url_path", "http_status", "status", "finish_reason", "error_type", "error_message"),
    *("retry_after_ms", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "cost_usd", "cost_source", "chunks", "bytes_received", "response_headers"),
    *("params", "stream"),
)  # fmt: skip
CHATTING = ("openai", "azure", "anthropic", "gemini", "groq", "openrouter", "litellm_proxy", "ollama")


async def same_again(server: RawServer, **headers: str) -> bytes:
    """Send the last request once more, byte for byte, as another client would; gives the answer's body."""
    last = server.requests[-1]
    sent = {name: value for name, value in last.headers.items() if name not in ("host", "content-length")}
    url = f"http://{server.host}:{server.port}{last.path}"
    async with nbllm.shared_session().post(url, data=last.body, headers=sent | headers) as response:
        return await response.read()


def check_alike(*, without: tuple[str, ...] = ()) -> Any:
    ours, theirs = request_rows()
    for name in TOLD:
        if name not in without:
            assert getattr(theirs, name) == getattr(ours, name), name
    assert (ours.ttft_ms is None) == (theirs.ttft_ms is None)
    assert not notices._state.warned
    return theirs


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", CHATTING)
async def test_a_chat_completion(providers: ProvidersServer, name: str, stream: bool) -> None:
    answer: Any = await nbllm.acompletion(
        f"{name}/{MODELS[0]}", "Hi", stream=stream, max_tokens=50, num_retries=0
    )
    if stream:
        assert [chunk async for chunk in answer]
    await same_again(providers)
    row = check_alike(without=("params",))  # ours are in OpenAI's words
    assert (row.provider, row.request_model, row.session_id) == (name, MODELS[0], nbllm.current_session())
    assert nbllm.transcript().turns[1].answer == nbllm.transcript().turns[0].answer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["openai", "azure", "litellm_proxy"])
async def test_a_response(providers: ProvidersServer, name: str, stream: bool) -> None:
    answer: Any = await nbllm.aresponses("Hi", f"{name}/{MODELS[0]}", stream=stream)
    if stream:
        assert [event async for event in answer]
    await same_again(providers)
    check_alike(without=("params",))


@pytest.mark.parametrize("name", ["openai", "azure", "ollama"])
async def test_embeddings(providers: ProvidersServer, name: str) -> None:
    await nbllm.aembedding(f"{name}/{MODELS[0]}", ["one", "two"])
    await same_again(providers)
    check_alike(without=("params",))


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
async def test_a_refusal(providers: ProvidersServer, name: str, status: int) -> None:
    with pytest.raises(nbllm.APIError):
        await nbllm.acompletion(f"{name}/error-{status}", "Hi", num_retries=0)
    await same_again(providers)
    row = check_alike(without=("params", "error_message"))  # which names the base URL, as we know it
    assert key_of(name) not in str(row)


# -- sessions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({"litellm_session_id": "a"}, {"x-session-id": "b"}, "a"),
        ({"litellm_trace_id": "t"}, {}, "t"),
        ({"metadata": {"session_id": "m", "user": "x"}}, {"x-session-id": "b"}, "m"),
        ({"metadata": {"litellm_session_id": "m"}}, {}, "m"),
        ({"metadata": ["no mapping"]}, {"x-litellm-session-id": "h"}, "h"),
        ({}, {"X-Session-Id": "h"}, "h"),
        ({"litellm_session_id": 7}, {}, None),
        ({"litellm_session_id": "no\nname"}, {}, None),
    ],
)
async def test_the_session_that_a_request_names(
    server: RawServer, body: dict[str, Any], headers: dict[str, str], session: str | None
) -> None:
    with nbllm.session("around"):
        url = f"{server.url()}/chat/completions"
        said = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body}
        async with nbllm.shared_session().post(url, json=said, headers=headers) as response:
            await response.read()
    (row,) = request_rows()
    assert row.session_id == (session or "around")
    assert (row.operation, row.provider, row.input_tokens) == ("chat", "openai", 11)


# -- off the wire ------------------------------------------------------------------------------------


async def test_a_stream_reaches_its_reader_as_it_comes_and_is_timed_so(server: RawServer) -> None:
    url = f"{server.url('gatedbody')}/chat/completions"
    said = {"model": "m", "messages": []}
    async with nbllm.shared_session().post(url, json=said) as response:
        first = await response.content.readany()
        assert first
        server.open_gate()
        await response.read()
    (row,) = request_rows()
    assert row.status == "ok"


async def gzipped(x: Exchange) -> None:
    """A stream compressed as a whole, in pieces that cut events and the compressed data anywhere."""
    data = gzip.compress(b"".join(servers._events()))
    await x.send(
        servers.head(Content_Type="text/event-stream", Content_Encoding="gzip", Transfer_Encoding="chunked")
    )
    for start in range(0, len(data), 7):
        await x.send(servers.piece(data[start : start + 7]))
    await x.send(b"0\r\n\r\n")


async def large(x: Exchange) -> None:
    await x.send(servers.whole("200 OK", json.dumps(servers.completion("x" * (33 << 20))).encode()))


BEHAVIOURS = {"gzipped": gzipped, "large": large}


async def post(server: RawServer, behaviour: str, **said: Any) -> bytes:
    url = f"{server.url(behaviour)}/chat/completions"
    async with nbllm.shared_session().post(url, json={"model": "m", "messages": [], **said}) as response:
        return await response.read()


async def test_a_compressed_stream() -> None:
    with RawServer(behaviours=BEHAVIOURS) as server:
        body = await post(server, "gzipped", stream=True)
    assert body.startswith(b"data: ")
    (row,) = request_rows()
    assert (row.input_tokens, row.output_tokens, row.finish_reason, row.stream) == (11, 5, "stop", True)
    assert 0 < row.ttft_ms <= row.duration_ms


async def test_of_a_very_large_answer_nothing_is_kept_and_all_arrives() -> None:
    with RawServer(behaviours=BEHAVIOURS) as server:
        body = await post(server, "large")
    assert len(body) > 33 << 20
    (row,) = request_rows()
    assert (row.status, row.operation, row.input_tokens) == ("ok", "chat", None)


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        *(("html", "ok"), ("nothing", "ok"), ("nodone", "ok"), ("zipped", "ok"), ("redirect", "ok")),
        *(("streamerror", "error"), ("wholeerror", "error"), ("reset", "error"), ("resetbody", "error")),
        *(("halfevent", "ok"), ("halfstream", "error"), ("halfbody", "error"), ("hang", "cancelled")),
        *(("stall", "cancelled"), ("big", "ok"), ("early", "error"), ("untilclose", "ok")),
    ],
)
async def test_answers_of_all_kinds(server: RawServer, behaviour: str, status: str) -> None:
    """Whatever comes, the row tells what was asked and how it ended; nobody is warned of anything."""
    stream = behaviour in ("streamerror", "halfstream", "halfevent", "nodone", "stall")
    try:
        await asyncio.wait_for(post(server, behaviour, stream=stream), 0.5)
    except (aiohttp.ClientError, TimeoutError):
        pass
    row = request_rows()[-1]
    assert (row.operation, row.request_model, row.status) == ("chat", "m", status)
    assert not notices._state.warned


@pytest.mark.parametrize(
    ("method", "path", "is_one"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/openai/deployments/gpt/chat/completions", True),
        ("POST", "/v1beta/models/gemini-2.5-pro:streamGenerateContent", True),
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", "/orders", False),
        ("GET", "/v1/responses", False),
        (None, None, False),
    ],
)
def test_which_requests_are_for_models(method: str | None, path: str | None, is_one: bool) -> None:
    assert (kind_of(method, path) is not None) is is_one


async def test_what_is_no_request_to_a_model_is_plain_http(server: RawServer) -> None:
    async with nbllm.shared_session().post(f"{server.url()}/orders", json={"model": "m"}) as response:
        await response.read()
    async with nbllm.shared_session().get(f"{server.url()}/chat/completions") as response:
        await response.read()
    assert [(row.operation, row.request_model, row.status) for row in request_rows()] == [
        (None, None, "ok")
    ] * 2


async def test_a_request_that_cannot_connect_still_says_who_was_asked() -> None:
    with refused_port() as port:
        url = f"http://127.0.0.1:{port}/v1/messages"
        with pytest.raises(aiohttp.ClientError):
            await nbllm.shared_session().post(url, json={"model": "m", "messages": []})
    (row,) = request_rows()
    assert (row.operation, row.provider, row.status) == ("chat", "anthropic", "error")


async def test_contents_are_kept_only_where_they_are_wanted(server: RawServer) -> None:
    await post(server, "chat", messages=[{"role": "user", "content": "planted words"}])
    log.flush()
    nbllm.configure(content=False)
    await post(server, "chat", messages=[{"role": "user", "content": "other words"}])
    assert len(nbllm.requests(search="planted words")) == 1
    assert len(nbllm.requests(search="other words")) == 0


async def test_a_key_in_the_body_is_masked(server: RawServer) -> None:
    key = "sk-planted-0123456789abcdef"
    nbllm.masking.keep_secret(key)
    await post(server, "chat", messages=[{"role": "user", "content": f"my key is {key}"}], user=key)
    assert len(nbllm.requests(search=key)) == 0
    assert key not in nbllm.requests().params.iloc[0]


async def quoting(x: Exchange) -> None:
    """Quotes all that it was sent in a refusal, or in a stream whose pieces cut the quotation."""
    request = x.request
    said = f"no: {request.path} {request.headers}".replace('"', "'")
    named = {"X_Request_Id": request.headers.get("api-key", "r")}
    if b'"stream":true' not in request.body.replace(b" ", b""):
        body = json.dumps({"error": {"message": said}}).encode()
        await x.send(servers.head("401 No", **named, Content_Length=len(body)) + body)
        return
    event = f"data: {json.dumps(servers.chunk({'content': said}, 'stop'))}\n\n".encode()
    await x.send(servers.head(**named, Content_Type="text/event-stream", Transfer_Encoding="chunked"))
    for start in range(0, len(event), 9):
        await x.send(servers.piece(event[start : start + 9]))
    await x.send(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("Authorization", "Bearer {}"), ("x-api-key", "{}"), ("api-key", "{}"), ("x-goog-api-key", "{}")),
        *(("Cookie", "a=b; session={}"), ("X-Other-Token", "{}")),
    ],
)
async def test_no_key_of_a_request_is_kept_though_its_server_quotes_it(
    log_path: Path, name: str, form: str, stream: bool
) -> None:
    key, in_query = "opaque/0123456789abcdef", "other0123456789abcdef"
    with RawServer(behaviours={"quoting": quoting}) as server:
        url = f"{server.url('quoting')}/chat/completions?key={in_query}"
        said = {"model": "m", "messages": [{"role": "user", "content": f"I have {key}"}], "stream": stream}
        said["tools"] = [{"type": "mcp", "authorization": "word", "headers": {"Authorization": "word"}}]
        headers = {name: form.format(key)}
        async with nbllm.shared_session().post(url, json=said, headers=headers) as response:
            told = await response.text()
        assert stream or key in told
    row = only_row()
    assert (row.status, row.request_model) == ("ok" if stream else "error", "m")
    assert json.loads(row.params) == {
        "tools": [{"type": "mcp", "authorization": "[key]", "headers": {"Authorization": "[key]"}}]
    }
    assert len(nbllm.requests(search="I have [key]")) == 1
    assert len(nbllm.requests(search="no: /quoting/v1/chat/completions?key=[key]")) == 1
    log.close()
    for file in log_path.parent.iterdir():
        for secret in (key, in_query):
            assert secret.encode() not in file.read_bytes()


async def test_what_stands_in_place_of_a_key_is_none(server: RawServer) -> None:
    said = {"model": "ollama/llama3", "messages": [{"role": "user", "content": "What is ollama?"}]}
    url = f"{server.url()}/chat/completions"
    async with nbllm.shared_session().post(url, json=said, headers={"Authorization": "Bearer ollama"}) as it:
        await it.read()
    assert only_row().request_model == "ollama/llama3"
    assert len(nbllm.requests(search="What is ollama?")) == 1


async def test_deep_parameters_are_no_trouble(server: RawServer) -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    await post(server, "chat", tools=deep)
    assert (only_row().operation, only_row().input_tokens) == ("chat", 11)
    assert not notices._state.warned


# -- a session of the user's own ---------------------------------------------------------------------


async def test_a_session_of_ones_own_is_traced_as_ours_is(server: RawServer) -> None:
    async with aiohttp.ClientSession() as own:
        assert nbllm.trace(own) is own
        assert nbllm.trace(own) is own
        said = {"model": "m", "messages": [], "metadata": {"session_id": "mine"}}
        async with own.post(f"{server.url()}/chat/completions", json=said) as response:
            await response.read()
    (row,) = request_rows()
    assert (row.session_id, row.input_tokens, row.connection_reason) == ("mine", 11, "first")
    with pytest.raises(nbllm.UsageProblem, match="closed"):
        nbllm.trace(own)
    with pytest.raises(nbllm.UsageProblem, match="got str"):
        nbllm.trace("session")  # type: ignore[arg-type]
