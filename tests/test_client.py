"""The verbs over real sockets: what is sent, what comes back, and how it ends."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest

import nbllm
from nbllm import notices, tracing
from nbllm.servers.demo import DemoServer
from nbllm.types import ChatCompletion, ChatCompletionChunk, Message
from tests.rows import only_row, request_rows, until
from tests.servers import SSE_HEAD, TEXT, WORDS, RawServer, chunk, chunks, completion, event, piece, whole

KEY = "sk-planted-client-0123456789"
MESSAGES = [{"role": "user", "content": "Hi"}]


async def ask(server: RawServer, behaviour: str = "chat", messages: Any = "Hi", **options: Any) -> Any:
    return await nbllm.acompletion("m", messages, base_url=server.url(behaviour), **options)


async def words_of(stream: Any) -> list[str]:
    return [c.choices[0].delta.content async for c in stream if c.choices and c.choices[0].delta.content]


def serving(server: RawServer, name: str, data: bytes) -> str:
    """A base URL that answers with these bytes."""

    async def answer(x: Any) -> None:
        await x.send(data)

    server.behaviours[name] = answer
    return server.url(name)


def streaming(*items: Any, done: bool = True) -> bytes:
    """A whole response with these chunks as events."""
    events = [event(item) for item in items] + ([event(b"[DONE]")] if done else [])
    return SSE_HEAD + b"".join(piece(e) for e in events) + b"0\r\n\r\n"


# -- what is sent ----------------------------------------------------------------------------------


async def test_a_request_on_the_wire(server: RawServer) -> None:
    await ask(server, api_key=KEY, temperature=0.5, tools=[], seed=None)
    (seen,) = server.requests
    assert (seen.method, seen.path) == ("POST", "/chat/v1/chat/completions")
    assert seen.json == {"model": "m", "messages": MESSAGES, "temperature": 0.5, "tools": []}
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json"
    assert int(seen.headers["content-length"]) == len(seen.body)


async def test_no_key_is_no_header(server: RawServer) -> None:
    await ask(server)
    assert "authorization" not in server.requests[0].headers


async def test_headers_and_body_of_the_callers_own(server: RawServer) -> None:
    await ask(
        server,
        api_key=KEY,
        extra_headers={"authorization": "Basic abc", "X-Title": "größe"},
        extra_body={"provider": {"order": ["a"]}, "max_tokens": 5},
        max_tokens=1,
    )
    (seen,) = server.requests
    assert seen.headers["authorization"] == "Basic abc"
    assert seen.headers["x-title"].encode("latin-1").decode() == "größe"
    assert seen.json == {"model": "m", "messages": MESSAGES, "provider": {"order": ["a"]}, "max_tokens": 5}


async def test_api_base_is_base_url(server: RawServer) -> None:
    await nbllm.acompletion("m", "Hi", api_base=server.url())
    assert server.requests[0].path == "/chat/v1/chat/completions"


async def test_the_environment_names_server_and_key(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    await nbllm.acompletion("gpt-4o-mini", "Hi")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert only_row().provider == "openai"


async def test_demo_models_answer_without_any_setting(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    answer = await nbllm.acompletion("demo/fast", "Compare penguins with albatrosses")
    assert "penguins" in answer.text
    row = only_row()
    assert (row.provider, row.request_model, row.cost_usd) == ("demo", "fast", None)
    stats = demo.stats()
    assert (row.input_tokens, row.output_tokens) == (stats["prompt_tokens"], stats["completion_tokens"])


async def test_metadata_is_logged_and_not_sent(server: RawServer) -> None:
    await ask(server, metadata={"session_id": "from-metadata", "topic": "x"})
    assert "metadata" not in server.requests[0].json
    row = only_row()
    assert row.session_id == "from-metadata"
    assert json.loads(row.params) == {"metadata": {"session_id": "from-metadata", "topic": "x"}}


@pytest.mark.parametrize(
    ("options", "session_id"),
    [
        ({"session_id": "a"}, "a"),
        ({"session_id": "a", "litellm_session_id": "b"}, "a"),
        ({"litellm_session_id": "b", "metadata": {"session_id": "c"}}, "b"),
        ({"metadata": {"litellm_session_id": "d"}}, "d"),
        ({}, "around"),
    ],
)
async def test_the_session_of_a_call(options: Any, session_id: str, server: RawServer) -> None:
    with nbllm.session("around"):
        await ask(server, **options)
    assert only_row().session_id == session_id
    assert "litellm_session_id" not in server.requests[0].json


# -- messages --------------------------------------------------------------------------------------


async def test_a_talk_goes_on_with_the_answers_own_message(server: RawServer) -> None:
    talk: list[Any] = [{"role": "user", "content": "Hi"}]
    answer = await ask(server, messages=talk)
    talk.append(answer.choices[0].message)
    talk.append({"role": "user", "content": "And?"})
    await ask(server, messages=talk)
    assert server.requests[1].json["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": TEXT},
        {"role": "user", "content": "And?"},
    ]


TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
    "extra_content": {"google": {"thought_signature": "abc"}},
}


async def test_tool_calls_go_back_whole(server: RawServer) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    data = completion()
    data["choices"][0]["message"] = message
    url = serving(server, "tools", whole("200 OK", json.dumps(data).encode()))
    answer = await nbllm.acompletion("m", "Hi", base_url=url)
    calls = answer.choices[0].message.tool_calls
    as_object = [answer.choices[0].message]
    as_dict = [{"role": "assistant", "content": None, "tool_calls": calls}]
    for messages in (as_object, as_dict, [answer.choices[0].message.model_dump()]):
        await ask(server, messages=messages)
        sent = server.requests[-1].json["messages"][0]
        assert sent["tool_calls"] == [TOOL_CALL]
        assert sent["role"] == "assistant"


async def test_messages_of_the_openai_sdk(server: RawServer) -> None:
    theirs = openai.types.chat.ChatCompletionMessage(role="assistant", content="Hello")
    await ask(server, messages=({"role": "user", "content": "Hi"}, theirs))
    assert server.requests[0].json["messages"][1] == {"role": "assistant", "content": "Hello"}


async def test_messages_in_parts_and_numpy_values(server: RawServer) -> None:
    parts = [
        {"type": "text", "text": np.str_("x")},
        {"type": "image_url", "image_url": {"url": "data:image/png;"}},
    ]
    await ask(server, messages=[{"role": "user", "content": parts}], max_tokens=np.int64(5))
    assert server.requests[0].json["messages"][0]["content"] == parts
    assert server.requests[0].json["max_tokens"] == 5


@pytest.mark.parametrize(
    "messages",
    [
        None, 5, b"Hi", {}, {"role": "user", "content": "Hi"}, [], (), ["Hi"], [None], [{"content": "Hi"}],
        [["user", "Hi"]], float("nan"), [float("nan")], [Message(content="x")], iter([]), {"x"},
        [{"role": "user", "content": float("nan")}], [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": object()}],
    ],
)  # fmt: skip
async def test_messages_that_cant_work_are_refused_before_anything_is_sent(messages: Any) -> None:
    with pytest.raises(nbllm.UsageProblem):
        await nbllm.acompletion("m", messages, base_url="http://127.0.0.1:9/v1")
    assert request_rows() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"session_id": "ä"}, "session id"),
        ({"session_id": 5}, "session id"),
        ({"session_id": ""}, "session id"),
        ({"stream_options": "include_usage"}, "stream_options"),
        ({"extra_headers": [("a", "b")]}, "extra_headers"),
        ({"extra_body": "x"}, "extra_body"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"session_id": "x" * 200}}, "session id"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"api_key": "a\nb"}, "API key"),
        ({"extra_headers": {"X": "a\r\nEvil: 1"}}, "extra_headers"),
        ({"shared_session": "session"}, "shared_session"),
        ({"extra_body": {"x": object()}}, "JSON"),
    ],
)
async def test_options_that_cant_work_are_refused_before_anything_is_sent(options: Any, text: str) -> None:
    with pytest.raises(nbllm.UsageProblem, match=text):
        await nbllm.acompletion("m", "Hi", **{"base_url": "http://127.0.0.1:9/v1", **options})
    assert request_rows() == []
    assert tracing.running() == []


# -- answers ---------------------------------------------------------------------------------------


async def test_an_answer(server: RawServer) -> None:
    answer = await ask(server)
    assert isinstance(answer, ChatCompletion)
    assert (
        answer.text == answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == TEXT
    )
    assert answer.usage.total_tokens == 16
    assert answer.model_dump(exclude_none=True) == completion()
    assert answer._repr_mimebundle_()["text/markdown"] == TEXT
    assert answer.request.status == "ok"
    assert (answer.request.input_tokens, answer.request.session_id) == (11, nbllm.current_session())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
async def test_an_answer_can_be_copied(copied: Any, server: RawServer) -> None:
    answer = await ask(server)
    other = copied(answer)
    assert other.model_dump() == answer.model_dump()
    assert other.text == TEXT


async def test_what_an_answer_shows_holds_no_key(server: RawServer) -> None:
    answer = await ask(server, api_key=KEY)
    stream = await ask(server, api_key=KEY, stream=True)
    assert await words_of(stream) == WORDS
    shown = [
        answer,
        answer.request,
        answer.model_dump(),
        vars(answer),
        stream,
        stream.request,
        stream.completion,
    ]
    for item in shown:
        assert KEY not in repr(item)
        assert KEY not in str(item)


async def test_a_known_price(server: RawServer) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
    data = whole("200 OK", json.dumps(completion(model="gpt-4o-mini", usage=usage)).encode())
    answer = await nbllm.acompletion("gpt-4o-mini", "Hi", base_url=serving(server, "priced", data))
    row = only_row()
    assert (row.cost_usd, row.cost_source) == (pytest.approx(0.15), "genai-prices")
    assert answer.cost_usd == row.cost_usd


async def test_a_price_told_by_the_server_wins(server: RawServer) -> None:
    data = completion(model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25})
    url = serving(server, "told", whole("200 OK", json.dumps(data).encode()))
    await nbllm.acompletion("gpt-4o-mini", "Hi", base_url=url)
    assert (only_row().cost_usd, only_row().cost_source) == (0.25, "provider")


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "12", "completion_tokens": [1], "cost": "free", "prompt_tokens_details": "none"},
        {"prompt_tokens": 1.5, "completion_tokens": 10**30, "cost": True},
        {"prompt_tokens": {"x": 1}, "prompt_tokens_details": {"cached_tokens": "x"}},
        {"prompt_tokens": -5, "completion_tokens": None},
        {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 500}},
        [],
        "none",
        {},
    ],
)
async def test_odd_usage_breaks_neither_the_answer_nor_the_log(usage: Any, server: RawServer) -> None:
    data = completion(usage=usage, id=7, model=["m"], created={"x": 1}, system_fingerprint=3)
    data["choices"][0]["finish_reason"] = {"reason": "odd"}
    url = serving(server, "odd", whole("200 OK", json.dumps(data).encode(), x_request_id="\xff\xfe"))
    answer = await nbllm.acompletion("gpt-4o-mini", "Hi", base_url=url)
    stream = await nbllm.acompletion(
        "m",
        "Hi",
        stream=True,
        base_url=serving(server, "odder", streaming(chunk({"content": "x"}, usage=usage))),
    )
    assert await words_of(stream) == ["x"]
    await ask(server)
    assert answer.text == TEXT
    assert [row.status for row in request_rows()] == ["ok", "ok", "ok"]
    assert nbllm.log.path() is not None
    assert not notices._state.warned


# -- streams ---------------------------------------------------------------------------------------


async def test_a_stream(server: RawServer) -> None:
    stream = await ask(server, stream=True)
    seen = [c async for c in stream]
    assert all(isinstance(c, ChatCompletionChunk) for c in seen)
    assert [c.model_dump(exclude_none=True) for c in seen] == _without_nulls(chunks()[:-1])
    assert stream.text == TEXT
    assert stream.usage.total_tokens == 16
    assert stream.completion.model_dump(exclude_none=True) == completion()
    assert stream.completion.request is stream.request
    assert stream.request.status == "ok"
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


async def test_the_first_chunk_alone(server: RawServer) -> None:
    stream = await ask(server, "gatedbody", stream=True)
    first = await anext(aiter(stream))
    assert first.choices[0].delta.role == "assistant"
    assert only_row().status == "incomplete"


async def test_reasoning_grows_while_a_stream_is_read(server: RawServer) -> None:
    deltas = [
        {"role": "assistant"},
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m"},
        {"content": "so"},
    ]
    serving(server, "thinks", streaming(*(chunk(delta) for delta in deltas), chunk({}, "stop")))
    stream = await ask(server, "thinks", stream=True)
    assert stream.reasoning == ""
    assert [stream.reasoning async for c in stream] == ["", "Hm", "Hmm", "Hmm", "Hmm"]
    assert (stream.completion.reasoning, stream.text) == ("Hmm", "so")


async def test_text_grows_while_a_stream_is_read(server: RawServer) -> None:
    stream = await ask(server, stream=True)
    assert (stream.text, stream.usage) == ("", None)
    texts = [stream.text async for c in stream]
    assert texts[-1] == TEXT
    assert stream.completion.text == TEXT


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True}}, True),
        ({"extra_body": {"stream_options": {"include_usage": True}}}, True),
    ],
)
async def test_the_usage_chunk_is_shown_to_who_asks_for_it(
    options: Any, shown: bool, server: RawServer
) -> None:
    stream = await ask(server, stream=True, **options)
    seen = [c async for c in stream]
    assert [bool(c.choices) for c in seen] == [True] * 7 + [False] * shown
    if shown:
        assert seen[-1].usage.total_tokens == 16
    assert stream.usage.total_tokens == 16


async def test_batches_hold_every_event_and_what_iteration_gives_for_it(server: RawServer) -> None:
    stream = await ask(server, stream=True)
    pairs = [pair async for batch in stream.batches() for pair in batch]
    assert [b"data: " + data + b"\n\n" for data, _ in pairs] == [event(item) for item in chunks()] + [
        event(b"[DONE]")
    ]
    assert [c.model_dump(exclude_none=True) for _, c in pairs[:-2]] == _without_nulls(chunks()[:-1])
    assert [c for _, c in pairs[-2:]] == [None, None]  # the usage, for which nobody asked, and [DONE]
    assert (stream.text, stream.usage.total_tokens, stream.request.status) == (TEXT, 16, "ok")


async def test_batches_end_with_the_error_after_the_events_before_it(server: RawServer) -> None:
    stream = await ask(server, "streamerror", stream=True)
    seen: list[Any] = []

    async def read() -> None:
        async for batch in stream.batches():
            seen.extend(batch)

    with pytest.raises(nbllm.APIError, match="overloaded"):
        await read()
    assert [c.choices[0].delta.content for _, c in seen] == ["", "Hello", " from"]
    assert only_row().status == "error"


async def test_a_usage_chunk_with_choices_is_always_shown(server: RawServer) -> None:
    """LiteLLM's proxy and others send usage together with a last choice."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    url = serving(server, "both", streaming(chunk({"content": "x"}), chunk({}, "stop", usage=usage)))
    stream = await nbllm.acompletion("m", "Hi", base_url=url, stream=True)
    assert len([c async for c in stream]) == 2
    assert stream.usage.total_tokens == 2


async def test_several_choices_in_a_stream(demo: DemoServer) -> None:
    stream = await nbllm.acompletion("fast", "Compare penguins", n=2, stream=True, base_url=demo.url)
    texts = {0: "", 1: ""}
    async for c in stream:
        for choice in c.choices:
            texts[choice.index] += choice.delta.content or ""
    assert [c.message.content for c in stream.completion.choices] == [texts[0], texts[1]]
    assert stream.text == texts[0]
    assert all(texts.values())


async def test_tool_calls_in_a_stream(server: RawServer) -> None:
    def call(**more: Any) -> dict[str, Any]:
        return chunk({"tool_calls": [{"index": 0, **more}]})

    url = serving(
        server,
        "calls",
        streaming(
            chunk({"role": "assistant", "content": None}),
            call(id="call_1", type="function", function={"name": "f", "arguments": ""}),
            call(function={"arguments": '{"x":'}),
            call(function={"arguments": " 1}"}),
            chunk({}, "tool_calls"),
        ),
    )
    stream = await nbllm.acompletion("m", "Hi", base_url=url, stream=True)
    pieces = [c.choices[0].delta.tool_calls async for c in stream]
    assert pieces[2][0].function.arguments == '{"x":'
    (found,) = stream.completion.choices[0].message.tool_calls
    assert found.model_dump(exclude_none=True) == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": 1}'},
    }
    assert stream.completion.choices[0].finish_reason == "tool_calls"
    assert stream.text == ""
    assert only_row().ttft_ms is not None


@pytest.mark.parametrize(
    "tail",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data: [DONE]",
        b"data: [DONE]\n\n: bye\n\n",
        b"",  # no [DONE], but a finish reason
        b"data: [DONE]\n\ndata: [DONE]\n\n",
    ],
)
async def test_a_stream_may_end_in_many_ways(tail: bytes, server: RawServer) -> None:
    body = b"".join(event(c) for c in chunks()) + tail
    url = serving(server, "ends", whole("200 OK", body, "text/event-stream"))
    stream = await nbllm.acompletion("m", "Hi", base_url=url, stream=True)
    assert await words_of(stream) == WORDS
    assert only_row().status == "ok"


async def test_keep_alives_and_comments_are_passed_over(server: RawServer) -> None:
    noise = b": OPENROUTER PROCESSING\n\nevent: ping\n\ndata:\n\n\n\n"
    body = noise.join([b"", *(event(c) for c in chunks()), event(b"[DONE]")])
    url = serving(server, "noise", whole("200 OK", body, "text/event-stream"))
    stream = await nbllm.acompletion("m", "Hi", base_url=url, stream=True)
    assert await words_of(stream) == WORDS


async def test_a_stream_in_single_bytes(server: RawServer) -> None:
    async def drip(x: Any) -> None:
        for byte in streaming(chunk({"content": "größer 🐧"}), chunk({}, "stop")):
            await x.send(bytes([byte]))
            await asyncio.sleep(0)

    server.behaviours["drip"] = drip
    stream = await ask(server, "drip", stream=True)
    assert await words_of(stream) == ["größer 🐧"]


async def test_a_stream_that_is_left_gives_its_connection_back(server: RawServer) -> None:
    nbllm.configure(limit=1)
    for how in ("break", "aclose", "async with", "del", "raise"):
        stream = await ask(server, "endless", stream=True)
        if how == "break":
            async for _ in stream:
                break
        elif how == "aclose":
            await stream.aclose()
            await stream.aclose()
        elif how == "async with":
            async with stream as same:
                assert same is stream
        elif how == "raise":
            with pytest.raises(LookupError):
                await reader_that_raises(stream)
        del stream
        gc.collect()
        async with asyncio.timeout(5):
            assert (await ask(server)).text == TEXT
    assert [row.status for row in request_rows()] == ["incomplete", "ok"] * 5


async def reader_that_raises(stream: Any) -> None:
    async for _ in stream:
        raise LookupError


async def test_what_had_come_of_a_stream_that_was_left_is_there(server: RawServer) -> None:
    stream = await ask(server, "stall", stream=True)
    async for _ in stream:
        if stream.text == "Hello from":
            break
    assert stream.text == stream.completion.text == "Hello from"
    assert stream.completion.choices[0].finish_reason is None
    assert [c async for c in stream] == []
    assert "ended" in repr(stream)


async def test_a_stream_that_ended_while_nobody_read_it_is_ok(server: RawServer) -> None:
    stream = await ask(server, stream=True)
    await until(lambda: stream.request.wire_ended is not None)
    await stream.aclose()
    row = only_row()
    assert (row.status, row.input_tokens, row.chunks) == ("ok", 11, 8)
    assert stream.text == TEXT


async def test_chunks_before_a_failure_are_given_first(server: RawServer) -> None:
    stream = await ask(server, "streamerror", stream=True)
    texts = []

    async def read() -> None:
        async for c in stream:
            texts.append(c.choices[0].delta.content)

    with pytest.raises(nbllm.InternalServerError, match="overloaded"):
        await read()
    assert texts == ["", "Hello", " from"]
    with pytest.raises(nbllm.InternalServerError):
        await anext(stream)
    assert stream.text == "Hello from"


@pytest.mark.parametrize("number", [400, 429, 500])
async def test_a_refused_stream_raises_at_once(number: int, server: RawServer) -> None:
    with pytest.raises(nbllm.APIError) as caught:
        await ask(server, f"status-{number}", stream=True)
    assert caught.value.status_code == number


# -- errors ----------------------------------------------------------------------------------------

CLASSES = {
    400: nbllm.BadRequestError,
    401: nbllm.AuthenticationError,
    403: nbllm.PermissionDeniedError,
    404: nbllm.NotFoundError,
    408: nbllm.Timeout,
    409: nbllm.APIError,
    413: nbllm.BadRequestError,
    422: nbllm.UnprocessableEntityError,
    429: nbllm.RateLimitError,
    500: nbllm.InternalServerError,
    502: nbllm.BadGatewayError,
    503: nbllm.ServiceUnavailableError,
    504: nbllm.Timeout,
}


@pytest.mark.parametrize("number", CLASSES)
async def test_a_status_becomes_its_class(number: int, server: RawServer) -> None:
    with pytest.raises(nbllm.APIError) as caught:
        await ask(server, f"status-{number}", api_key=KEY)
    error = caught.value
    assert type(error) is CLASSES[number]
    assert (error.status_code, error.code, error.model, error.llm_provider) == (
        number,
        "some_code",
        "m",
        "openai",
    )
    assert (error.request_id, error.retry_after) == ("req_raw", 7.0)
    assert error.response["x-request-id"] == "req_raw"
    assert error.body["error"]["type"] == "some_type"
    row = only_row()
    assert error.request.request_id == row.request_id
    assert (row.status, row.http_status, row.error_type) == ("error", number, type(error).__name__)
    assert (row.retry_after_ms, row.provider_request_id, row.error_message) == (7000, "req_raw", str(error))
    assert KEY not in repr(error) + str(error) + repr(vars(error)) + row.error_message
    assert "Bearer [key]" in str(error)


async def test_an_error_can_be_pickled(server: RawServer) -> None:
    with pytest.raises(nbllm.RateLimitError) as caught:
        await ask(server, "status-429")
    other = pickle.loads(pickle.dumps(caught.value))
    assert (other.status_code, other.retry_after, str(other)) == (429, 7.0, str(caught.value))


async def test_nothing_that_is_kept_holds_a_key(server: RawServer, log_path: Path) -> None:
    """The server quotes every header it got, wherever it can."""

    async def quote(x: Any) -> None:
        keys = [value.rpartition(" ")[2] for value in x.request.headers.values()]
        text = " ".join(keys)
        error = {"error": {"message": text, "type": text, "code": text, "param": text}}
        data = json.dumps(completion(text, id=text, model=text)).encode()
        bad = x.request.path.endswith("bad/chat/completions")
        await x.send(
            whole(
                "401 No" if bad else "200 OK", json.dumps(error).encode() if bad else data, x_request_id=text
            )
        )

    server.behaviours["quote"] = quote
    planted = ["sk-planted-aaaaaaaaaaaa", "planted.other.style", "plantedcookie", "planted=basic=="]
    headers = {
        "X-API-Key": planted[1],
        "Cookie": f"session={planted[2]}",
        "Proxy-Authorization": f"Basic {planted[3]}",
    }
    for path in ("good", "bad"):
        try:
            await nbllm.acompletion(
                "m",
                f"my key is {planted[0]}",
                base_url=f"{server.url('quote')}/{path}",
                api_key=planted[0],
                extra_headers=headers,
            )
        except nbllm.AuthenticationError as error:
            shown = repr(error) + str(error) + repr(vars(error)) + repr(error.request)
            assert not [key for key in planted if key in shown]
    async with nbllm.shared_session().get(f"{server.url('status-401')}/{planted[0]}") as response:
        await response.read()
    rows = nbllm.requests()
    assert len(rows) == 3
    nbllm.log.flush()
    everything = rows.to_csv() + "".join(
        file.read_bytes().decode("latin-1") for file in log_path.parent.iterdir() if file.is_file()
    )
    assert [key for key in planted if key in everything] == []


# -- sessions and loops ----------------------------------------------------------------------------


async def test_the_callers_own_session_is_used_and_never_closed(server: RawServer) -> None:
    async with aiohttp.ClientSession(headers={"X-Own": "1"}) as own:
        for stream in (False, True):
            answer = await ask(server, shared_session=own, stream=stream)
            if stream:
                await words_of(answer)
            assert server.requests[-1].headers["x-own"] == "1"
        assert not own.closed
        assert [row.status for row in request_rows()] == ["ok", "ok"]
        assert len(server.connections) == 1


async def test_a_closed_session_is_refused(server: RawServer) -> None:
    own = aiohttp.ClientSession()
    await own.close()
    with pytest.raises(nbllm.UsageProblem, match="closed"):
        await ask(server, shared_session=own)


def test_a_session_of_another_loop_is_refused(server: RawServer) -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    with asyncio.Runner() as runner:
        own = runner.run(make())
        with pytest.raises(nbllm.UsageProblem, match="another event loop"):
            asyncio.run(ask(server, shared_session=own))
        runner.run(own.close())


async def test_timeouts_are_obeyed(server: RawServer) -> None:
    with pytest.raises(nbllm.Timeout, match="timeout= sets how long to wait") as caught:
        await ask(server, "hang", timeout=0.1)
    assert caught.value.status_code == 408
    nbllm.configure(timeout=0.1)
    with pytest.raises(nbllm.Timeout):
        await ask(server, "hang")
    stream = await ask(server, "stall", stream=True)
    with pytest.raises(nbllm.Timeout):
        await words_of(stream)


async def test_a_connection_error_names_the_server() -> None:
    from tests.servers import refused_port

    with refused_port() as port, pytest.raises(nbllm.APIConnectionError) as caught:
        await nbllm.acompletion("m", "Hi", base_url=f"http://127.0.0.1:{port}/v1")
    assert f"http://127.0.0.1:{port}/v1" in str(caught.value)
    assert caught.value.status_code is None
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


# -- the synchronous verb --------------------------------------------------------------------------


VERBS = (
    *("completion", "responses", "embedding", "image_generation", "speech", "transcription", "models"),
    *("ask", "doctor", "close"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_and_its_twin_have_one_signature(verb: str) -> None:
    awaited, twin = getattr(nbllm, f"a{verb}"), getattr(nbllm, verb)
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(twin)
    assert (twin.__name__, awaited.__name__) == (verb, f"a{verb}")
    there, here = inspect.signature(awaited), inspect.signature(twin)
    assert list(there.parameters.values()) == list(here.parameters.values())
    assert there.return_annotation == here.return_annotation


def test_the_synchronous_verb(server: RawServer) -> None:
    answer = nbllm.completion("m", "Hi", base_url=server.url(), temperature=0.5)
    assert answer.text == TEXT
    assert server.requests[0].json["temperature"] == 0.5
    assert only_row().status == "ok"


def test_a_synchronous_stream(server: RawServer) -> None:
    stream = nbllm.completion("m", "Hi", base_url=server.url(), stream=True)
    words = [c.choices[0].delta.content for c in stream if c.choices[0].delta.content]
    assert words == WORDS
    assert (stream.text, stream.usage.total_tokens) == (TEXT, 16)
    assert only_row().status == "ok"


@pytest.mark.parametrize("how", ["break", "close", "with", "del"])
def test_a_synchronous_stream_that_is_left(how: str, server: RawServer) -> None:
    nbllm.configure(limit=1)
    stream = nbllm.completion("m", "Hi", base_url=server.url("endless"), stream=True)
    if how == "break":
        for _ in stream:
            break
    elif how == "close":
        next(stream)
        stream.close()
    elif how == "with":
        with stream:
            next(stream)
    del stream
    gc.collect()
    assert nbllm.completion("m", "Hi", base_url=server.url()).text == TEXT
    assert [row.status for row in request_rows()] == ["incomplete", "ok"]


def test_synchronous_errors(server: RawServer) -> None:
    with pytest.raises(nbllm.RateLimitError):
        nbllm.completion("m", "Hi", base_url=server.url("status-429"))
    with pytest.raises(nbllm.UsageProblem):
        nbllm.completion("m", [], base_url=server.url())


async def test_the_synchronous_verb_inside_a_loop_says_what_to_do(server: RawServer) -> None:
    with pytest.raises(nbllm.UsageProblem, match=r"await nbllm\.acompletion"):
        nbllm.completion("m", "Hi", base_url=server.url())
