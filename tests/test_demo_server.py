"""The demo server over real sockets: its answers, its misbehaviour, and what it counts."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.servers import demo
from nbllm.servers.demo import DemoServer, demo_server, demo_url
from nbllm.servers.demo_answers import tokens
from nbllm.servers.demo_chat import MODELS

ROOT = Path(__file__).parent.parent
PROMPT = "Compare penguins with albatrosses"


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(pace=0) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def body(prompt: Any = PROMPT, model: str = "small", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


async def post(http: aiohttp.ClientSession, server: DemoServer, data: Any) -> tuple[int, dict[str, Any]]:
    async with http.post(f"{server.url}/chat/completions", json=data) as response:
        return response.status, await response.json()


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    lines = [line.strip() async for line in response.content]
    assert all(line.startswith(b"data: ") for line in lines[::2])
    assert not any(lines[1::2])
    assert lines[-2] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-2:2]]


async def collect(response: aiohttp.ClientResponse, received: bytearray) -> None:
    async for data in response.content.iter_any():
        received += data


async def stream(http: aiohttp.ClientSession, server: DemoServer, data: dict[str, Any]) -> list[Any]:
    async with http.post(f"{server.url}/chat/completions", json={**data, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        return await events(response)


async def seen(server: DemoServer, **expected: int) -> dict[str, Any]:
    """Wait until the server's numbers are these: it learns of a client's leaving a moment later."""
    return await asyncio.to_thread(
        server.wait_for, lambda stats: all(stats[key] == value for key, value in expected.items())
    )


def text_of(completion: dict[str, Any], choice: int = 0) -> str:
    content = completion["choices"][choice]["message"]["content"]
    assert isinstance(content, str)
    return content


def run_script(source: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


# --- answers


async def test_a_whole_answer_has_the_shape_of_openai_and_relates_to_the_prompt(server, http):
    async with http.post(f"{server.url}/chat/completions", json=body()) as response:
        answer = await response.json()
        assert response.headers["x-request-id"].startswith("req_")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "small"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert "demo" in text_of(answer).split(".")[0].lower()
    assert PROMPT in text_of(answer)
    assert "4 words" in text_of(answer)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len(tokens(text_of(answer)))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_a_stream_gives_the_same_text_and_usage_as_a_whole_answer(server, http):
    _, whole = await post(http, server, body())
    chunks = await stream(http, server, body(stream_options={"include_usage": True}))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == text_of(whole)
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]


async def test_a_stream_has_no_usage_unless_asked_for(server, http):
    assert not any("usage" in chunk for chunk in await stream(http, server, body()))


async def test_the_same_messages_get_the_same_answer_and_others_another(server, http):
    answers = [(await post(http, server, body(prompt)))[1] for prompt in (PROMPT, PROMPT, "Describe tea")]
    assert text_of(answers[0]) == text_of(answers[1]) != text_of(answers[2])
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["id"] != answers[1]["id"]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_cuts_the_answer(server, http, limit):
    _, whole = await post(http, server, body())
    _, cut = await post(http, server, body(**{limit: 5}))
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 5
    assert text_of(whole).startswith(text_of(cut))
    chunks = await stream(http, server, body(**{limit: 5}))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(chunks) == 1 + 5 + 1


async def test_a_limit_above_the_length_changes_nothing(server, http):
    _, answer = await post(http, server, body(max_tokens=10_000))
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_counts_as_completion_tokens_and_towards_the_limit(server, http):
    _, answer = await post(http, server, body(reasoning_effort="low"))
    reasoning = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning > 0
    assert answer["usage"]["completion_tokens"] == reasoning + len(tokens(text_of(answer)))
    _, cut = await post(http, server, body(reasoning_effort="low", max_completion_tokens=reasoning))
    assert (text_of(cut), cut["choices"][0]["finish_reason"]) == ("", "length")


async def test_n_gives_that_many_different_choices(server, http):
    _, answer = await post(http, server, body(n=3))
    texts = [text_of(answer, choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == sum(len(tokens(text)) for text in texts)
    streamed = ["", "", ""]
    for chunk in await stream(http, server, body(n=3)):
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


@pytest.mark.parametrize("stop", ["stand out", ["nowhere", "stand out", ""]])
async def test_stop_ends_the_answer_before_the_word(server, http, stop):
    _, whole = await post(http, server, body())
    _, answer = await post(http, server, body(stop=stop))
    assert text_of(answer) == text_of(whole).split("stand out")[0]
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_json_object_gives_json(server, http):
    _, answer = await post(http, server, body(response_format={"type": "json_object"}))
    content = json.loads(text_of(answer))
    assert content["demo"] is True
    assert content["prompt"] == PROMPT


async def test_json_schema_gives_a_value_of_that_shape(server, http):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer"},
            "kind": {"enum": ["a", "b"]},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        },
        "$defs": {"part": {"type": "object", "properties": {"fine": {"type": "boolean"}}}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, answer = await post(http, server, body(response_format=wanted))
    content = json.loads(text_of(answer))
    assert isinstance(content["name"], str)
    assert content["count"] == 4
    assert content["kind"] == "a"
    assert content["parts"] == [{"fine": True}] * 2


async def test_earlier_turns_and_instructions_are_understood_and_cached(server, http):
    messages = [
        {"role": "system", "content": "Answer in the style of a pirate, with ships and parrots and rum."},
        {"role": "user", "content": "Name a river"},
        {"role": "assistant", "content": "The Rhine"},
        {"role": "user", "content": [{"type": "text", "text": "And a lake?"}]},
    ]
    _, answer = await post(http, server, {"model": "small", "messages": messages})
    for said in ("And a lake?", "Name a river", "message 2", "style of a pirate"):
        assert said in text_of(answer)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < answer["usage"]["prompt_tokens"]


async def test_parts_that_are_not_text_count_as_tokens(server, http):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    _, without = await post(http, server, body([{"type": "text", "text": "Look"}]))
    _, with_it = await post(http, server, body([{"type": "text", "text": "Look"}, picture]))
    assert with_it["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"]
    assert "cannot see" in text_of(with_it)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Give me a list of birds", "- **birds**"),
        ("Make a table of planets and moons", "| planets | 7 |"),
        ("Write code about otters", "```python"),
        ("What is 12 * 7?", r"$$ 12 \times 7 = 84 $$"),
        ("Compute 9 / 0", r"\text{undefined}"),
        ("A formula, please", r"\frac"),
        ("An essay about tides", "### 1. About tides"),
    ],
)
async def test_markdown_follows_what_the_prompt_asks_for(server, http, prompt, expected):
    assert expected in text_of((await post(http, server, body(prompt)))[1])


@pytest.mark.parametrize(
    "prompt", ["", "   ", "?!", "你好 世界", "![x](https://a.b/c.png) <b>[y](z)</b>", None]
)
async def test_odd_prompts_are_answered_without_their_markup(server, http, prompt):
    status, answer = await post(http, server, body(prompt))
    assert status == 200
    assert not set("[]<") & set(text_of(answer))


@given(st.text())
def test_tokens_joined_are_the_text(text):
    assert "".join(tokens(text)) == text


# --- requests that are refused


@pytest.mark.parametrize(
    ("data", "param", "code"),
    [
        ([], "body", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x"}]}, "model", None),
        ({"model": 3, "messages": [{"role": "user", "content": "x"}]}, "model", "invalid_type"),
        ({"model": "small"}, "messages", "missing_required_parameter"),
        ({"model": "small", "messages": []}, "messages", "empty_array"),
        ({"model": "small", "messages": "x"}, "messages", "invalid_type"),
        ({"model": "small", "messages": ["x"]}, "messages[0]", "invalid_type"),
        ({"model": "small", "messages": [{"role": "boss"}]}, "messages[0].role", "invalid_value"),
        (body(7), "messages[0].content", "invalid_type"),
        (body(max_tokens=0), "max_tokens", "invalid_value"),
        (body(max_tokens="9"), "max_tokens", "invalid_type"),
        (body(n=1000), "n", "invalid_value"),
        (body(stream="yes"), "stream", "invalid_type"),
        (body(stop=[1]), "stop", "invalid_type"),
        (body(response_format="json"), "response_format", "invalid_type"),
    ],
)
async def test_a_bad_request_gets_400_in_the_shape_of_openai(server, http, data, param, code):
    status, answer = await post(http, server, data)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert answer["error"]["message"]


async def test_bad_json_gets_400(server, http):
    async with http.post(f"{server.url}/chat/completions", data=b'{"model"') as response:
        assert response.status == 400
        assert "not valid JSON" in (await response.json())["error"]["message"]


async def test_an_unknown_model_gets_404_that_names_the_demo_models(server, http):
    status, answer = await post(http, server, body(model="demo/huge"))
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert all(name in answer["error"]["message"] for name in MODELS)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)]
)
async def test_unknown_paths_and_methods_get_errors_in_json(server, http, method, path, status):
    async with http.request(method, server.url.removesuffix("/v1") + path) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]
        assert "x-request-id" in response.headers


async def test_paths_and_models_work_with_and_without_prefix(server, http):
    root = server.url.removesuffix("/v1")
    for path in ("/chat/completions", "/v1/chat/completions/"):
        for model in ("fast", "demo/fast"):
            async with http.post(root + path, json=body(model=model)) as response:
                assert (await response.json())["model"] == "fast"
    async with http.get(f"{server.url}/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == list(MODELS)
    async with http.get(f"{server.url}/models/fast") as response:
        assert (await response.json())["id"] == "fast"
    async with http.get(f"{root}/health") as response:
        assert await response.json() == {"status": "ok"}


# --- models that misbehave


async def test_rate_limited_always_gives_429_with_retry_after(server, http):
    for _ in range(2):
        async with http.post(f"{server.url}/chat/completions", json=body(model="rate-limited")) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"


async def test_flaky_refuses_every_odd_request_of_a_prompt(server, http):
    prompts = ["a", "a", "b", "a", "b", "a"]
    got = [(await post(http, server, body(prompt, "flaky")))[0] for prompt in prompts]
    assert got == [429, 200, 429, 429, 200, 200]


async def test_error_gives_500(server, http):
    status, answer = await post(http, server, body(model="error"))
    assert (status, answer["error"]["type"]) == (500, "server_error")


async def test_break_drops_the_connection_in_the_middle_of_a_stream(server, http):
    async with http.post(f"{server.url}/chat/completions", json=body(model="break", stream=True)) as response:
        received = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await collect(response, received)
    assert received.count(b"data: ") > 5
    assert b"[DONE]" not in received
    stats = await seen(server, connections_open=0)
    assert (stats["requests_failed"], stats["requests_disconnected"]) == (1, 0)
    assert stats["response_body_bytes"] == len(received)


async def test_break_drops_the_connection_in_the_middle_of_a_whole_answer(server, http):
    async with http.post(f"{server.url}/chat/completions", json=body(model="break")) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    stats = await seen(server, connections_open=0)
    assert (stats["requests_failed"], stats["connections_closed"]) == (1, 1)


async def leave(http: aiohttp.ClientSession, server: DemoServer, data: dict[str, Any], after: int) -> float:
    """Begin a request, go away after some bytes, and return how long the server took to notice."""
    request = asyncio.create_task(http.post(f"{server.url}/chat/completions", json=data))
    if after:
        response = await request
        await response.content.readexactly(after)
        left = time.monotonic()
        response.close()
    else:
        await seen(server, requests_open=1)
        left = time.monotonic()
        request.cancel()
    await seen(server, requests_open=0, connections_open=0)
    return time.monotonic() - left


@pytest.mark.parametrize(
    ("model", "streamed", "after"),
    [("hang", True, 0), ("hang", False, 0), ("stall", True, 400), ("slow", True, 0), ("small", True, 400)],
)
async def test_a_client_that_goes_away_is_noticed_at_once_and_counted(http, model, streamed, after):
    with DemoServer() as server:
        took = await leave(http, server, body(model=model, stream=streamed), after)
        stats = server.stats()
    assert took < 0.5  # a few milliseconds; the margin is for a busy machine
    assert stats["requests_disconnected"] == stats["requests_total"] == 1
    assert stats["connections_opened"] == stats["connections_closed"] == 1
    assert stats["completion_tokens"] == 0


async def test_stall_sends_a_part_and_then_nothing(server, http):
    async with http.post(f"{server.url}/chat/completions", json=body(model="stall")) as response:
        half = response.content_length // 2
        assert len(await response.content.readexactly(half)) == half
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.1)
        assert server.stats()["requests_open"] == 1


async def test_small_streams_at_a_human_pace(http):
    with DemoServer() as server:
        started = time.monotonic()
        await stream(http, server, body(max_tokens=30))
        assert 0.35 + 30 / 90 < time.monotonic() - started < 5


# --- counting


async def test_reuse_is_one_connection_and_requests_at_once_are_many(server, http):
    for _ in range(5):
        await post(http, server, body())
    stats = server.stats()
    assert (stats["connections_opened"], stats["connections_open"]) == (1, 1)
    assert [c["model_requests"] for c in stats["connections"]] == [5]
    await asyncio.gather(*(post(http, server, body(str(i))) for i in range(20)))
    stats = server.stats()
    assert stats["requests_total"] == stats["requests_ok"] == 25
    assert stats["connections_opened"] == stats["connections_with_model_requests"]
    assert sum(c["model_requests"] for c in stats["connections"]) == 25
    await http.close()
    stats = await seen(server, connections_open=0)
    assert stats["connections_closed"] == stats["connections_opened"]
    assert not any(c["open"] for c in stats["connections"])


async def test_the_peer_of_a_connection_is_the_clients_address(server, http):
    async with http.post(f"{server.url}/chat/completions", json=body(stream=True)) as response:
        address = "{}:{}".format(*response.connection.transport.get_extra_info("sockname"))
    assert [connection["peer"] for connection in server.stats()["connections"]] == [address]


async def test_all_requests_at_once_are_on_the_wire(server):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        url = f"{server.url}/chat/completions"
        tasks = [asyncio.create_task(session.post(url, json=body(model="hang"))) for _ in range(200)]
        stats = await seen(server, requests_open=200)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert stats["requests_open_peak"] == stats["connections_open_peak"] == 200
    stats = await seen(server, requests_open=0, connections_open=0)
    assert stats["requests_disconnected"] == 200


async def test_bytes_and_tokens_are_those_that_the_client_sees(server, http):
    sent = received = 0
    usages = []
    for data in (body(), body(stream=True, stream_options={"include_usage": True}), body(n=0)):
        raw = json.dumps(data).encode()
        async with http.post(f"{server.url}/chat/completions", data=raw) as response:
            answer = await response.read()
        sent, received = sent + len(raw), received + len(answer)
        if response.status == 200:
            found = answer if not data.get("stream") else answer.split(b"data: ")[-2]
            usages.append(json.loads(found)["usage"])
    stats = server.stats()
    assert (stats["request_body_bytes"], stats["response_body_bytes"]) == (sent, received)
    assert stats["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert stats["completion_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    assert (stats["requests_ok"], stats["requests_failed"], stats["requests_streamed"]) == (2, 1, 1)


async def test_stats_are_told_over_http_and_do_not_count_themselves(server, http):
    root = server.url.removesuffix("/v1")
    for url in (f"{root}/stats", f"{server.url}/stats"):
        async with http.get(url) as response:
            stats = await response.json()
    assert (stats["requests_total"], stats["other_requests"]) == (0, 2)
    assert (stats["connections_opened"], stats["connections_with_model_requests"]) == (1, 0)
    assert stats == server.stats()


async def test_reset_zeroes_events_and_keeps_what_is_open(server, http):
    await post(http, server, body())
    assert (await post(http, server, body("x", "flaky")))[0] == 429
    async with http.post(f"{server.url}/stats/reset") as response:
        stats = await response.json()
    assert stats == server.stats()
    assert stats["connections_open"] == 1
    assert not any(
        stats[key] for key in stats if key not in ("connections", "connections_open") and "peak" not in key
    )
    assert (await post(http, server, body("x", "flaky")))[0] == 429
    stats = server.stats()
    assert (stats["connections_opened"], stats["connections_with_model_requests"]) == (0, 1)


async def test_a_request_under_way_at_a_reset_is_not_in_the_new_total(server, http):
    request = asyncio.create_task(http.post(f"{server.url}/chat/completions", json=body(model="hang")))
    await seen(server, requests_open=1)
    server.reset()
    request.cancel()
    stats = await seen(server, requests_open=0)
    assert (stats["requests_total"], stats["requests_disconnected"]) == (0, 0)


def test_waiting_for_what_does_not_come_raises(server):
    with pytest.raises(TimeoutError, match="did not get there"):
        server.wait_for(lambda stats: stats["requests_total"] > 0, timeout=0.01)


async def test_large_and_expectant_bodies_are_read(server, http):
    large = io.BytesIO(json.dumps(body("word " * 500_000)).encode())
    async with http.post(f"{server.url}/chat/completions", data=large) as response:
        assert (await response.json())["usage"]["prompt_tokens"] > 500_000
    async with http.post(f"{server.url}/chat/completions", json=body(), expect100=True) as response:
        assert response.status == 200


# --- other clients


async def test_the_openai_client_works(server):
    messages: Any = [{"role": "user", "content": PROMPT}]
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model="small", messages=messages)
        streamed = ""
        options: Any = {"include_usage": True}
        async for chunk in await client.chat.completions.create(
            model="small", messages=messages, stream=True, stream_options=options
        ):
            streamed += chunk.choices[0].delta.content or "" if chunk.choices else ""
        assert streamed == whole.choices[0].message.content
        assert chunk.usage == whole.usage
        assert [model.id async for model in client.models.list()] == list(MODELS)
        for model, error in (
            ("rate-limited", openai.RateLimitError),
            ("error", openai.InternalServerError),
            ("nothing", openai.NotFoundError),
            ("break", openai.APIConnectionError),
        ):
            with pytest.raises(error):
                await client.chat.completions.create(model=model, messages=messages)
    stats = server.stats()
    assert (stats["requests_ok"], stats["requests_failed"]) == (2, 4)


async def test_tls_is_served_with_a_context(http):
    trustme = pytest.importorskip("trustme")
    import ssl

    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with DemoServer(pace=0, ssl_context=serving) as server:
        assert server.url.startswith("https://")
        url = f"{server.url}/chat/completions"
        for _ in range(2):
            async with http.post(url, json=body(), ssl=trusting) as response:
                assert response.status == 200
                await response.read()
        with pytest.raises(aiohttp.ClientPayloadError):
            async with http.post(url, json=body(model="break"), ssl=trusting) as response:
                await response.read()
        stats = await seen(server, connections_open=0)
        assert (stats["requests_ok"], stats["requests_failed"], stats["connections_opened"]) == (2, 1, 1)


# --- life of the server


def test_a_taken_port_raises_and_start_and_stop_may_be_repeated(server):
    with pytest.raises(OSError, match="in use"):
        DemoServer(port=server.port).start()
    assert server.start() is server
    server.stop()
    server.stop()


def test_a_stopped_server_listens_again_with_start():
    server = DemoServer(pace=0).start()
    url = server.url
    server.stop()
    with server:
        assert server.url == url
        assert server.stats()["connections_open"] == 0


async def test_stopping_ends_open_requests_and_does_not_blame_the_client(http):
    server = DemoServer().start()
    async with http.post(f"{server.url}/chat/completions", json=body(model="stall", stream=True)) as response:
        await response.content.readexactly(400)
        started = time.monotonic()
        await asyncio.to_thread(server.stop)
        assert time.monotonic() - started < 2
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    stats = server.stats()
    assert (stats["requests_failed"], stats["requests_disconnected"], stats["connections_open"]) == (1, 0, 0)


@pytest.mark.parametrize("ending", ["server.stop()", "pass"])
@pytest.mark.parametrize("prelude", ["pass", "nest_asyncio2.apply()"])
def test_the_end_is_silent_with_requests_under_way(ending, prelude):
    ended = run_script(
        f"""
        import asyncio, aiohttp, nest_asyncio2
        from nbllm.servers.demo import DemoServer
        {prelude}

        async def main():
            async with aiohttp.ClientSession() as http:
                message = dict(role="user", content="x")
                async def ask(model):
                    data = dict(model=model, messages=[message], stream=True)
                    async with http.post(server.url + "/chat/completions", json=data) as response:
                        return await response.read()
                assert b"[DONE]" in await ask("fast")
                tasks = [asyncio.create_task(ask(m)) for m in ("stall", "hang", "slow", "small")]
                await asyncio.to_thread(server.wait_for, lambda stats: stats["requests_open"] == 4)
                {ending}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        server = DemoServer(pace=0.1).start()
        asyncio.run(main())
        print("done")
        """,
        "-X",
        "dev",
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)


def test_importing_starts_nothing():
    ended = run_script(
        """
        import threading, nbllm.servers.demo
        print(threading.active_count())
        """
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")


@pytest.fixture
def shared(monkeypatch) -> Iterator[None]:
    """A process that has not started its shared server yet."""
    monkeypatch.delenv("NBLLM_DEMO_URL", raising=False)
    monkeypatch.setattr(demo, "_shared", demo._Shared())
    yield
    if demo._shared.server is not None:
        demo._shared.server.stop()


def test_demo_url_takes_the_environment_and_starts_nothing_then(shared, monkeypatch):
    monkeypatch.setenv("NBLLM_DEMO_URL", "http://127.0.0.1:1/v1/")
    assert demo_url() == "http://127.0.0.1:1/v1"
    assert demo._shared.server is None


def test_demo_url_starts_one_server_for_all_threads(shared):
    barrier = threading.Barrier(8)
    urls = []

    def ask() -> None:
        barrier.wait()
        urls.append(demo_url())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(urls) == {demo_server().url}
    assert len(urls) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_a_server_of_its_own_and_leaves_the_parents_alone():
    # The child lives on while the parent's server drops a connection: its client must be told, which it is
    # not while the child holds a copy of the socket.
    ended = run_script(
        """
        import http.client, json, os, sys
        from nbllm.servers.demo import demo_server, demo_url

        def ask(server, model):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            data = dict(model=model, messages=[dict(role="user", content="x")])
            connection.request("POST", "/v1/chat/completions", json.dumps(data))
            return connection, connection.getresponse()

        parents = demo_server()
        stalled, response = ask(parents, "stall")
        response.read(10)
        ready, ready_w = os.pipe()
        done, done_w = os.pipe()
        child = os.fork()
        if child == 0:
            url = demo_url()
            own = ask(demo_server(), "fast")[1].status
            os.write(ready_w, json.dumps([url, own]).encode())
            os.close(done_w)
            os.read(done, 1)
            sys.exit(0)
        os.close(done)
        url, status = json.loads(os.read(ready, 1000))
        assert url != parents.url and status == 200, (url, status)
        assert ask(parents, "fast")[1].status == 200
        broken = ask(parents, "break")[1]
        try:
            broken.read()
        except http.client.IncompleteRead:
            print("broken")
        parents.stop()
        try:
            response.read()
        except http.client.IncompleteRead:
            print("stopped")
        os.close(done_w)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        "-W",
        "ignore::DeprecationWarning",  # Python 3.12 warns of any fork beside a thread
        "-W",
        "ignore::ResourceWarning",  # the script leaves its own client sockets open
        NBLLM_DEMO_URL="",
    )
    assert (ended.stderr, ended.stdout.split()) == ("", ["broken", "stopped", "0"])
