"""`aresponses`: the provider's own endpoint, and the same built on chat, with its conversation kept."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import nbllm
from nbllm import responding, tracing
from nbllm.servers.demo import DemoServer
from tests.rows import only_row, request_rows, until

USAGE = {
    "input_tokens": 36,
    "output_tokens": 87,
    "total_tokens": 123,
    "input_tokens_details": {"cached_tokens": 4},
}
MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hello there", "annotations": []}],
}
WHOLE = {
    "id": "resp_67ccd2bed1ec",
    "object": "response",
    "created_at": 1741476542,
    "status": "completed",
    "error": None,
    "model": "gpt-4.1-2025-04-14",
    "output": [MESSAGE],
    "usage": USAGE,
}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "response.created",
        "sequence_number": 0,
        "response": {**WHOLE, "status": "in_progress", "output": []},
    },
    {"type": "response.output_item.added", "output_index": 0, "item": {**MESSAGE, "content": []}},
    {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "Hello ",
    },
    {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "there",
    },
    {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
    {"type": "response.completed", "sequence_number": 5, "response": WHOLE},
]
FAILED = {
    "type": "response.failed",
    "response": {**WHOLE, "status": "failed", "error": {"code": "server_error", "message": "It broke"}},
}


HANGS: dict[str, Any] = {}  # in the place of an event: nothing more comes


class Api:
    """A server with OpenAI's endpoint."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.events = EVENTS
        self.whole: dict[str, Any] = WHOLE

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append(body)
        if not body.get("stream"):
            return web.json_response(self.whole)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events:
            if event is HANGS:
                await asyncio.Event().wait()
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        return response


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_post("/v1/responses", api.answer)
    async with TestServer(app) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", str(server.make_url("/v1")))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
        yield api


async def test_a_response_of_openai(api: Api) -> None:
    answer = await nbllm.aresponses(
        "Hi", model="gpt-4.1", previous_response_id="resp_before", max_output_tokens=50
    )
    assert (answer.output_text, answer.id, answer.usage.input_tokens) == ("Hello there", WHOLE["id"], 36)
    assert api.received == [
        {"model": "gpt-4.1", "input": "Hi", "previous_response_id": "resp_before", "max_output_tokens": 50}
    ]
    row = only_row()
    assert (row.operation, row.provider, row.request_model, row.status) == (
        "responses",
        "openai",
        "gpt-4.1",
        "ok",
    )
    assert (row.response_id, row.input_tokens, row.output_tokens, row.cache_read_tokens) == (
        WHOLE["id"],
        36,
        87,
        4,
    )
    assert answer.request.request_id == row.request_id
    assert answer.cost_usd is not None


async def test_a_stream_of_openai(api: Api) -> None:
    stream = await nbllm.aresponses("Hi", model="gpt-4.1", stream=True)
    assert [event.type async for event in stream] == [event["type"] for event in EVENTS]
    assert stream.output_text == "Hello there"
    assert stream.response.model_dump(exclude_none=True)["output"] == [MESSAGE]
    row = only_row()
    assert (row.status, row.chunks, row.input_tokens, row.response_id) == ("ok", len(EVENTS), 36, WHOLE["id"])
    assert row.ttft_ms is not None


async def test_a_stream_that_is_left_early(api: Api) -> None:
    api.events = [*EVENTS[:1], HANGS]
    async for event in await nbllm.aresponses("Hi", model="gpt-4.1", stream=True):
        assert event.type == "response.created"
        break
    await until(lambda: not tracing.running())
    assert only_row().status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_response_is_an_error(api: Api, stream: bool) -> None:
    api.events, api.whole = [*EVENTS[:3], FAILED], FAILED["response"]  # type: ignore[assignment]
    with pytest.raises(nbllm.APIError, match="It broke"):
        async for _ in await nbllm.aresponses("Hi", model="gpt-4.1", stream=stream):
            pass
    assert only_row().status == "error"


async def test_a_stream_without_its_end_broke_off(api: Api) -> None:
    api.events = EVENTS[:4]
    with pytest.raises(nbllm.APIConnectionError, match="broke off after 11 characters"):
        async for _ in await nbllm.aresponses("Hi", model="gpt-4.1", stream=True):
            pass
    assert only_row().status == "error"


# -- built on chat ---------------------------------------------------------------------------------


@pytest.fixture
def forgetful() -> Any:
    """What this kernel remembers is gone, as in another one."""
    yield responding._state.conversations.clear
    responding._state.conversations.clear()


async def test_a_conversation_on_a_provider_that_speaks_chat(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    first = await nbllm.aresponses("I am Ann", model="demo/fast", instructions="Be brief")
    second = await nbllm.aresponses("Who am I?", model="demo/fast", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert "“I am Ann”" in second.output_text
    assert "Be brief" not in second.output_text
    rows = request_rows()
    assert [row.response_id for row in rows] == [first.id, second.id]
    assert [row.operation for row in rows] == ["responses", "responses"]


async def test_a_bridged_stream_has_openais_events(demo: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    stream = await nbllm.aresponses("Hi", model="demo/fast", stream=True)
    kinds = [event.type async for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert stream.response.output_text == stream.output_text != ""
    assert only_row().response_id == stream.response.id
    following = await nbllm.aresponses("Go on", model="demo/fast", previous_response_id=stream.response.id)
    assert "“Hi”" in following.output_text


def test_the_synchronous_twin(demo: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    answer: Any = nbllm.responses("Hi", model="demo/fast")
    stream: Any = nbllm.responses("And?", model="demo/fast", previous_response_id=answer.id, stream=True)
    assert [event.type for event in stream][-1] == "response.completed"
    with nbllm.responses("Hi", model="demo/fast", stream=True) as left:
        for _ in left:
            break
    assert [row.status for row in request_rows()][:2] == ["ok", "ok"]


async def test_another_kernel_finds_the_conversation_in_the_log(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch, log_path: Path
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    there = subprocess.run(
        [sys.executable, "-c", "import nbllm; print(nbllm.responses('I am Ann', model='demo/fast').id)"],
        env={**os.environ, "NBLLM_LOG_PATH": str(log_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    answer = await nbllm.aresponses("Who am I?", model="demo/fast", previous_response_id=there)
    assert "“I am Ann”" in answer.output_text


async def test_an_unknown_conversation_is_told(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch, forgetful: Any
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    nbllm.configure(content=False)
    first = await nbllm.aresponses("I am Ann", model="demo/fast")
    second = await nbllm.aresponses("Who am I?", model="demo/fast", previous_response_id=first.id)
    assert "“I am Ann”" in second.output_text
    forgetful()
    for unknown in (first.id, "resp_nope", 7, ["resp_nope"]):
        with pytest.raises(nbllm.UsageProblem, match="previous_response_id"):
            await nbllm.aresponses("Who am I?", model="demo/fast", previous_response_id=unknown)


# -- debug lines -----------------------------------------------------------------------------------


def test_debug_lines_tell_which_connection() -> None:
    script = """
import logging, os, sys, nbllm
nbllm.completion("demo/fast", "Hi")
os.environ["NBLLM_LOG"] = "DEBUG"
nbllm.completion("demo/fast", "Hi", api_key="sk-never-shown")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("nbllm: chat demo/fast: HTTP session ")
    assert line.endswith(" reused")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "new_one"}}, "new_one"),
        ({"status": "incomplete"}, None),
        (
            {"output": [{"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}]},
            "tool_calls",
        ),
    ],
)
async def test_a_row_tells_why_a_response_ended(
    api: Api, changed: dict[str, Any], reason: str | None, stream: bool
) -> None:
    api.whole = {**WHOLE, **changed}
    end = {"incomplete": "response.incomplete"}.get(str(changed.get("status")), "response.completed")
    api.events = [*EVENTS[:-1], {"type": end, "response": api.whole}]
    answer = await nbllm.aresponses("Hi", "openai/gpt-5.4", stream=stream)
    if stream:
        async for _ in answer:
            pass
    assert only_row().finish_reason == reason
