"""Anthropic's Messages API of the gateway, between its SDK and curl, and servers of all formats."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbllm
from nbllm import tracing
from nbllm.assembly import Assembly
from nbllm.exceptions import UnsupportedParamsError
from nbllm.providers import anthropic as anthropic_format
from nbllm.providers import resolve
from nbllm.servers.gateway import Gateway
from nbllm.servers.gateway_message_input import to_chat
from nbllm.servers.gateway_message_output import MessageEvents, message
from nbllm.servers.gateway_requests import LARGEST_BODY
from nbllm.types import ChatCompletionChunk, build, decoder
from tests import servers
from tests.providers_server import PNG, TEXT, TOKENS, ProvidersServer, key_of
from tests.rows import only_row, request_rows
from tests.test_anthropic_format import TEXT as TEXT_EVENTS
from tests.test_anthropic_format import (
    TEXT_WHOLE,
    THINKING_WHOLE,
    TOOLS,
    TOOLS_WHOLE,
    chunks_of,
    response,
)
from tests.test_gateway import CHATTING, Answer, alone, wait_until  # noqa: F401 (a fixture among them)

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 100, "messages": HELLO}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL: dict[str, Any] = {"name": "get_weather", "description": "The weather", "input_schema": WEATHER}
FUNCTION = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER},
}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with nbllm.gateway(0) as running:
        yield running


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="anything", max_retries=0) as client:
        yield client


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def error_of(answer: Answer) -> dict[str, Any]:
    """The error in Anthropic's shape."""
    body = json.loads(answer.body)
    assert body["type"] == "error"
    assert {"type", "message"} <= body["error"].keys()
    error: dict[str, Any] = body["error"]
    return error


def answering(*answers: Any) -> Callable[[servers.Exchange], Awaitable[None]]:
    """The behaviour of a server with these answers in turn: JSON, or the chunks of a stream."""
    waiting = iter(answers)

    async def answer(x: servers.Exchange) -> None:
        body = next(waiting)
        if isinstance(body, list):
            await servers._stream(x, [*map(servers.event, body), servers.event(b"[DONE]")])
        else:
            await x.send(servers.whole("200 OK", json.dumps(body).encode()))

    return answer


# -- every provider ----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", CHATTING)
def test_a_message_of_every_provider(
    provider: str, sdk: anthropic.Anthropic, providers: ProvidersServer
) -> None:
    asked: dict[str, Any] = {**ASK, "model": f"{provider}/some-model", "system": "Be brief."}
    answer = sdk.messages.create(**asked)
    with sdk.messages.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    for found in (answer, streamed):
        assert (found.type, found.role, found.model) == ("message", "assistant", "some-model")
        (block,) = found.content
        assert isinstance(block, anthropic.types.TextBlock)
        assert block.text == TEXT
        assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
        assert (found.usage.input_tokens, found.usage.output_tokens) == TOKENS
    assert [event.text for event in events if event.type == "text"] == ["Grüße", " an", " die", " 🐧", "!"]
    for row in request_rows():
        assert (row.provider, row.request_model, row.operation) == (provider, "some-model", "chat")
        assert (row.status, row.input_tokens, row.output_tokens) == ("ok", *TOKENS)


async def test_the_async_sdk(gateway: Gateway, providers: ProvidersServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="x", max_retries=0) as client:
        answer = await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as stream:
            words = [word async for word in stream.text_stream]
    assert "".join(words) == TEXT
    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]
    assert [row.status for row in request_rows()] == ["ok", "ok"]


@pytest.mark.parametrize("path", ["/messages", "/v1/messages", "/v1/messages/", "/v1/messages?beta=true"])
@pytest.mark.parametrize("model", ["openai/x", "anthropic/x"])
def test_paths_and_headers(gateway: Gateway, providers: ProvidersServer, path: str, model: str) -> None:
    nbllm.set_price("x", input=1, output=2)
    answer = Answer(gateway.url + path, body={**ASK, "model": model})
    row = only_row()
    assert answer.headers["x-nbllm-request-id"] == row.request_id
    assert answer.headers["x-nbllm-session-id"] == row.session_id
    assert answer.headers["request-id"] == row.provider_request_id == "req_provider"
    assert float(answer.headers["x-nbllm-cost-usd"]) == pytest.approx(21e-6)


# -- Anthropic's own models ------------------------------------------------------------------------

CACHED = {"cache_control": {"type": "ephemeral"}}
EVERYTHING: dict[str, Any] = {
    "system": [{**text("Be brief."), **CACHED}],
    "messages": [
        {"role": "user", "content": [{**text("Weather?"), **CACHED}]},
        {"role": "assistant", "content": TOOLS_WHOLE["content"]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01T1", "content": "15", "is_error": False},
                {"type": "tool_result", "tool_use_id": "toolu_01T2", "content": [text("noon")]},
                text(""),
            ],
        },
        {"role": "assistant", "content": THINKING_WHOLE["content"]},
        {"role": "system", "content": "From now on in French."},
        {"role": "user", "content": "Go on."},
        {"role": "user", "content": "Please."},
    ],
    "tools": [{**TOOL, **CACHED}, {"type": "web_search_20250305", "name": "web_search"}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stop_sequences": ["END"],
    "top_k": 5,
    "temperature": 0.5,
    "context_management": {"edits": []},
    "brand_new": {"x": [1, None]},
    "max_tokens": 2000,
}


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_anthropic_model_gets_and_says_passes_as_it_is(
    gateway: Gateway,
    providers: ProvidersServer,
    stream: bool,
) -> None:
    asked = {**EVERYTHING, "model": "anthropic/claude-x", "stream": stream}
    beta = ("-H", "anthropic-beta: one-2025-01-01,two-2025-01-01")
    answer = Answer(
        gateway.url + "/v1/messages", *beta, body={**asked, "metadata": {"user_id": "u", "session_id": "s"}}
    )
    (request,) = providers.requests
    sent = {**EVERYTHING, "model": "claude-x", "metadata": {"user_id": "u"}}
    assert request.json == ({**sent, "stream": True} if stream else sent)
    assert request.headers["anthropic-beta"] == "one-2025-01-01,two-2025-01-01"
    assert request.headers["x-api-key"] == key_of("anthropic")
    direct = Answer(
        f"http://127.0.0.1:{providers.port}{request.path}",
        *("-H", f"x-api-key: {key_of('anthropic')}", "-H", "anthropic-version: 2023-06-01"),
        body=request.body.decode(),
    )
    assert answer.body == direct.body
    row = only_row()
    assert (row.session_id, row.stream, row.status) == ("s", stream, "ok")
    assert (row.finish_reason, row.input_tokens, row.output_tokens) == ("stop", *TOKENS)
    params = json.loads(row.params)
    assert not params.keys() & {"messages", "system", "model", "stream"}
    assert params["top_k"] == 5


def test_the_features_that_a_client_asks_for_reach_no_other_provider(
    gateway: Gateway,
    providers: ProvidersServer,
) -> None:
    Answer(gateway.url + "/messages", "-H", "anthropic-beta: one-2025-01-01", body=ASK)
    assert "anthropic-beta" not in providers.requests[0].headers


# -- requests, translated --------------------------------------------------------------------------


def chat_of(signed: bool = False, **fields: Any) -> tuple[Any, Any]:
    return to_chat({"messages": HELLO, **fields}, signed=signed)


CONVERSATION: list[Any] = [
    {
        "role": "user",
        "content": [
            text("What is it?"),
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            },
        ],
    },
    {
        "role": "assistant",
        "content": [
            text("Let me see."),
            {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris", "n": [1.5]}},
            {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [text("15 degrees")]},
            {"type": "tool_result", "tool_use_id": "t2"},
            text("Go on."),
        ],
    },
]


def test_a_conversation_as_openais() -> None:
    messages, params = chat_of(
        system=[text("Be brief."), {**text("And kind."), **CACHED}], messages=CONVERSATION
    )
    assert params == {}
    paris = {"name": "get_weather", "arguments": '{"city":"Paris","n":[1.5]}'}
    assert messages == [
        {"role": "system", "content": "Be brief.\nAnd kind."},
        {
            "role": "user",
            "content": [
                text("What is it?"),
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
                {
                    "type": "file",
                    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": paris},
                {"id": "t2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "15 degrees"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": "Go on."},
    ]


def test_a_conversation_there_and_back_is_the_same() -> None:
    fields = {
        "system": [text("Be brief.")],
        "messages": CONVERSATION,
        "tools": [TOOL],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "stop_sequences": ["END"],
    }
    messages, params = to_chat(fields, signed=True)
    route = resolve("anthropic/x", api_key="k", environ={})
    sent = json.loads(anthropic_format.chat_request(route, messages, False, params).body or b"")
    assert sent == {**fields, "model": "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text", [{"role": "user", "content": "text"}]),
        ([text("a"), text("b")], [{"role": "user", "content": "a\nb"}]),
        ([], []),
        (
            [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A book."}}],
            [{"role": "user", "content": "A book."}],
        ),
        (
            [{"type": "document", "source": {"type": "content", "content": [text("A"), text("book.")]}}],
            [{"role": "user", "content": "A\nbook."}],
        ),
        (
            [{"type": "document", "source": {"type": "url", "url": "https://host/a.pdf"}}],
            [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "file",
                            "file": {"filename": "document.pdf", "file_data": "https://host/a.pdf"},
                        }
                    ],
                }
            ],
        ),
        (  # pictures of a tool follow its text, which is all that chat's results hold
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "is_error": True,
                    "content": [
                        text("a screen"),
                        {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
                    ],
                },
                {"type": "tool_result", "tool_use_id": "t2", "content": "x"},
            ],
            [
                {"role": "tool", "tool_call_id": "t1", "content": "a screen"},
                {"role": "tool", "tool_call_id": "t2", "content": "x"},
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://host/a.png"}}],
                },
            ],
        ),
    ],
)
def test_what_users_say(content: Any, said: Any) -> None:
    assert chat_of(messages=[{"role": "user", "content": content}])[0] == said


THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": ""}
SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "eA=="}


@pytest.mark.parametrize(
    ("content", "signed", "said"),
    [
        ([THOUGHT, text("a"), text("b")], False, {"content": "ab", "reasoning_content": "Hm."}),
        ([SIGNED, REDACTED, text("a")], False, {"content": "a"}),
        ([SIGNED, REDACTED, text("a")], True, {"content": "a", "thinking_blocks": [SIGNED, REDACTED]}),
        ([THOUGHT], False, None),
        ("text", False, {"content": "text"}),
    ],
)
def test_what_assistants_said(content: Any, signed: bool, said: Any) -> None:
    messages, _ = chat_of(signed, messages=[{"role": "assistant", "content": content}])
    assert messages == ([] if said is None else [{"role": "assistant", **said}])


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            {"max_tokens": 7, "temperature": 0, "top_p": 0.5},
            {"max_tokens": 7, "temperature": 0, "top_p": 0.5},
        ),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {}),
        ({"tools": [{**TOOL, **CACHED, "type": "custom"}]}, {"tools": [FUNCTION]}),
        ({"tools": []}, {}),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": WEATHER}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": WEATHER, "strict": True},
                }
            },
        ),
        ({"thinking": {"type": "adaptive"}, "context_management": {}, "service_tier": "auto"}, {}),
        ({"top_k": 5, "seed": 1}, {"top_k": 5, "seed": 1}),
        ({"tools": None, "tool_choice": None, "stop_sequences": None, "system": None}, {}),
    ],
)
def test_parameters(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert chat_of(**given) == (HELLO, sent)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[1\]"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "x"}]}]},
            r"messages\[0\]\.content\[0\]",
        ),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "search_result"}]}]},
            r"messages\[1\]\.content\[0\]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            r"messages\[0\]\.content\[0\]\.source",
        ),
    ],
)
def test_what_has_no_equivalent(fields: Any, named: str) -> None:
    with pytest.raises(UnsupportedParamsError, match=named):
        chat_of(**fields)


def test_geminis_signature_comes_back_with_its_call() -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    function = {"name": "f", "arguments": "{}"}
    call = {"id": "t1", "type": "function", "function": function, "extra_content": extra}
    answer = servers.completion(None)  # type: ignore[arg-type]
    answer["choices"][0]["message"]["tool_calls"] = [call]
    said = message(_completion(json.dumps(answer).encode()))["content"]
    assert chat_of(messages=[{"role": "assistant", "content": said}])[0][0]["tool_calls"] == [call]


# -- answers, translated ---------------------------------------------------------------------------

_completion = decoder(nbllm.types.ChatCompletion)


def made(choice_message: dict[str, Any], finish: str | None = "stop", usage: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **choice_message}, "finish_reason": finish}
    answer = {"id": "c1", "model": "m", "choices": [choice], "usage": usage}
    return message(_completion(json.dumps(answer).encode()))


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("pause_turn", "pause_turn"),
        (None, "end_turn"),
    ],
)
def test_stop_reasons(finish: str | None, stop: str) -> None:
    assert made({"content": "x"}, finish)["stop_reason"] == stop


def test_what_openais_stop_does_not_say() -> None:
    calls = [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert made({"tool_calls": calls})["stop_reason"] == "tool_use"
    refused = made({"refusal": "No."})
    assert (refused["stop_reason"], refused["content"]) == ("refusal", [text("No.")])
    stopped = made({"content": "x", "stop_sequence": "END"})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "END")


@pytest.mark.parametrize("arguments", ['{"city": "Par', "[1]", '"x"'])
def test_arguments_that_are_no_object_are_shown(arguments: str) -> None:
    function = {"name": "f", "arguments": arguments}
    said = made({"tool_calls": [{"id": "t1", "type": "function", "function": function}]}, "length")
    assert said["content"][0]["input"] == {"arguments": arguments}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, {"input_tokens": 0, "output_tokens": 0}),
        ({"prompt_tokens": "many", "completion_tokens": 3}, {"input_tokens": 0, "output_tokens": 3}),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            {
                "input_tokens": 30,
                "cache_read_input_tokens": 60,
                "cache_creation_input_tokens": 10,
                "output_tokens": 50,
                "output_tokens_details": {"thinking_tokens": 20},
            },
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
            {"input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 1},
        ),
    ],
)
def test_counts(usage: Any, counts: Any) -> None:
    assert made({"content": "x"}, usage=usage)["usage"] == counts


@pytest.mark.parametrize("whole", [TEXT_WHOLE, TOOLS_WHOLE, THINKING_WHOLE])
def test_a_message_there_and_back_is_the_same(whole: dict[str, Any]) -> None:
    known = {name: count for name, count in whole["usage"].items() if name != "service_tier"}
    assert message(response(whole)) == {**whole, "usage": known}


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
COUNTS = st.integers(0, 10**6)


@st.composite
def messages_of_anthropic(draw: Any) -> dict[str, Any]:
    """Whole messages with text, tools and usage."""
    said = [text(words) for words in draw(st.lists(WORDS, max_size=1))]
    inputs = draw(st.lists(st.dictionaries(WORDS, JSON, max_size=3), max_size=3))
    tools = [
        {"type": "tool_use", "id": f"toolu_{number}", "name": f"tool_{number}", "input": value}
        for number, value in enumerate(inputs)
    ]
    reason = "tool_use" if tools else draw(st.sampled_from(["end_turn", "max_tokens", "refusal"]))
    cached = st.fixed_dictionaries(
        {}, optional={"cache_read_input_tokens": COUNTS, "cache_creation_input_tokens": COUNTS}
    )
    usage = {"input_tokens": draw(COUNTS), "output_tokens": draw(COUNTS), **draw(cached)}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    return {**head, "content": [*said, *tools], "stop_reason": reason, "usage": usage}


@given(messages_of_anthropic())
def test_any_message_there_and_back_is_the_same(whole: dict[str, Any]) -> None:
    assert message(response(whole)) == whole


# -- streams, translated ---------------------------------------------------------------------------


def added_up(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that events make up, each of which must be allowed where it stands."""
    first, *rest = events
    assert first["type"] == "message_start"
    found: dict[str, Any] = first["message"]
    assert found["content"] == []
    pieces: list[str] = []
    opened: int | None = None
    for number, event in enumerate(rest):
        kind = event["type"]
        if kind == "content_block_start":
            assert opened is None
            assert event["index"] == len(found["content"])
            opened, pieces = event["index"], []
            found["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta":
            assert event["index"] == opened
            delta, block = event["delta"], found["content"][opened]
            if delta["type"] == "input_json_delta":
                pieces.append(delta["partial_json"])
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif kind == "content_block_stop":
            assert event["index"] == opened
            if pieces:
                found["content"][opened]["input"] = json.loads("".join(pieces))
            opened = None
        elif kind == "message_delta":
            assert opened is None
            found |= event["delta"]
            found["usage"] |= event["usage"]
        else:
            assert (kind, number) == ("message_stop", len(rest) - 1)
    return found


def events_of(chunks: list[ChatCompletionChunk]) -> list[dict[str, Any]]:
    assembly, events = Assembly(), MessageEvents()
    made = []
    for chunk in chunks:
        assembly.add(chunk)
        made += events.add(chunk)
    return [*made, *events.finish(assembly.completion())]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> ChatCompletionChunk:
    return build(ChatCompletionChunk, servers.chunk(delta, finish, **more))


@pytest.mark.parametrize(("events", "whole"), [(TEXT_EVENTS, TEXT_WHOLE), (TOOLS, TOOLS_WHOLE)])
def test_a_stream_there_and_back_is_the_same(events: list[str], whole: dict[str, Any]) -> None:
    known = {name: count for name, count in whole["usage"].items() if name != "service_tier"}
    assert added_up(events_of(chunks_of(events))) == {**whole, "usage": known}


def cut(words: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(words) + 1) for place in places} | {len(words)})
    return [words[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(messages_of_anthropic(), st.lists(st.integers(0, 1000), max_size=5))
def test_any_chunks_add_up_to_the_whole_message(whole: dict[str, Any], places: list[int]) -> None:
    """A message, in OpenAI's format and cut into pieces anywhere, comes out as it was."""
    completion = response(whole)
    choice = completion.choices[0]
    said = choice.message
    assert said is not None
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": piece}) for piece in cut(said.content or "", places)]
    for index, call in enumerate(said.tool_calls or []):
        assert call.function is not None
        begun = {"index": index, "id": call.id, "function": {"name": call.function.name, "arguments": ""}}
        chunks.append(chunk({"tool_calls": [begun]}))
        for piece in cut(call.function.arguments or "", places):
            chunks.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    chunks.append(chunk({}, choice.finish_reason))
    assert completion.usage is not None
    chunks.append(chunk(None, usage=completion.usage.model_dump()))  # type: ignore[arg-type]
    for item in chunks:
        item.id, item.model = "msg_1", "m"
    assert added_up(events_of(chunks)) == whole


@pytest.mark.parametrize("arguments", ['{"x":', "[1]", "many"])
def test_a_stream_ends_in_an_error_where_a_tool_would_be_called_with_nothing(arguments: str) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(nbllm.APIResponseValidationError, match="no JSON object"):
        events_of([chunk({"tool_calls": [call]}), chunk({}, "tool_calls")])
    assert events_of([chunk({"tool_calls": [call]}), chunk({}, "length")])[-1] == {"type": "message_stop"}


def test_reasoning_is_a_thinking_block() -> None:
    chunks = [
        chunk({"role": "assistant", "reasoning_content": "Hm"}),
        chunk({"reasoning_content": ", yes."}),
        chunk({"content": "Yes"}),
        chunk({"content": "."}, "stop"),
    ]
    found = added_up(events_of(chunks))
    assert found["content"] == [{"type": "thinking", "thinking": "Hm, yes.", "signature": ""}, text("Yes.")]
    assert found["content"] == made({"content": "Yes.", "reasoning_content": "Hm, yes."})["content"]
    assert found["content"] == made({"content": "Yes.", "reasoning": "Hm, yes."})["content"]


def test_the_signatures_of_a_litellm_proxy() -> None:
    """Its chunks hold pieces of thinking blocks beside the reasoning, the signature at the end."""

    def thought(words: str, signature: str | None = None) -> ChatCompletionChunk:
        block = {"type": "thinking", "thinking": words, "signature": signature}
        return chunk({"reasoning_content": words, "thinking_blocks": [block]})

    chunks = [
        thought("Hm"),
        thought(", yes."),
        thought("", "c2ln"),
        chunk({"thinking_blocks": [REDACTED]}),
        thought("", "bmV4dA=="),  # whose text is not shown
        chunk({"content": "Yes."}, "stop"),
    ]
    assert added_up(events_of(chunks))["content"] == [
        {"type": "thinking", "thinking": "Hm, yes.", "signature": "c2ln"},
        REDACTED,
        {"type": "thinking", "thinking": "", "signature": "bmV4dA=="},
        text("Yes."),
    ]


def test_of_several_choices_the_first_counts() -> None:
    second = build(ChatCompletionChunk, servers.chunk({"content": "second"}))
    second.choices[0].index = 1
    chunks = [chunk({"content": "first"}), second, chunk({}, "stop")]
    assert added_up(events_of(chunks))["content"] == [text("first")]


def test_a_stream_without_a_word() -> None:
    assert added_up(events_of([chunk({}, "stop")]))["content"] == []


# -- tools and pictures through the SDK ------------------------------------------------------------

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}


def calling() -> dict[str, Any]:
    answer = servers.completion(None)  # type: ignore[arg-type]
    answer["choices"][0] |= {"finish_reason": "tool_calls"}
    answer["choices"][0]["message"]["tool_calls"] = [CALL]
    return answer


def calling_chunks() -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": ""}
    return [
        servers.chunk(
            {
                "role": "assistant",
                "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}],
            }
        ),
        *(
            servers.chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in ('{"city"', ': "Pa', 'ris"}')
        ),
        servers.chunk({}, "tool_calls"),
        servers.chunk(None, usage=servers.USAGE),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_answers(
    sdk: anthropic.Anthropic,
    providers: ProvidersServer,
    stream: bool,
) -> None:
    first_answer = calling_chunks() if stream else calling()
    providers.behaviours["openai"] = answering(first_answer, servers.completion("Fine."))
    asked: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 100, "tools": [TOOL]}
    messages: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
    if stream:
        with sdk.messages.stream(**asked, messages=messages) as reading:
            first = reading.get_final_message()
    else:
        first = sdk.messages.create(**asked, messages=messages)
    assert first.stop_reason == "tool_use"
    (use,) = first.content
    assert isinstance(use, anthropic.types.ToolUseBlock)
    assert (use.id, use.name, use.input) == ("call_1", "get_weather", {"city": "Paris"})
    assert (first.usage.input_tokens, first.usage.output_tokens) == (11, 5)
    messages += [
        {"role": "assistant", "content": first.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "15 degrees"}],
        },
    ]
    second = sdk.messages.create(**asked, messages=messages)
    assert second.to_param()["content"] == second.content
    assert [block.text for block in second.content if block.type == "text"] == ["Fine."]
    sent = providers.requests[1].json
    assert sent["tools"] == [FUNCTION]
    compact = {**CALL, "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    assert sent["messages"] == [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [compact]},
        {"role": "tool", "tool_call_id": "call_1", "content": "15 degrees"},
    ]


def test_the_tool_runner_of_the_sdk(sdk: anthropic.Anthropic, providers: ProvidersServer) -> None:
    asked_for = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather."""
        asked_for.append(city)
        return "15 degrees"

    providers.behaviours["openai"] = answering(calling(), servers.completion("Fine."))
    runner = sdk.beta.messages.tool_runner(
        model="gpt-4o-mini", max_tokens=100, tools=[get_weather], messages=HELLO, betas=["some-2025-01-01"]
    )
    last = runner.until_done()
    assert asked_for == ["Paris"]
    assert [block.text for block in last.content if block.type == "text"] == ["Fine."]
    assert providers.requests[1].json["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "15 degrees",
    }


def test_a_picture(sdk: anthropic.Anthropic, providers: ProvidersServer) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PNG}
    messages: list[Any] = [
        {"role": "user", "content": [text("What is it?"), {"type": "image", "source": source}]}
    ]
    for model in ("openai/x", "gemini/x"):
        sdk.messages.create(model=model, max_tokens=10, messages=messages)
    first, second = (request.json for request in providers.requests)
    assert first["messages"][0]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert second["contents"][0]["parts"][1] == {"inlineData": {"mimeType": "image/png", "data": PNG}}


# -- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/x", "anthropic/x"])
@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"litellm_session_id": "one"}, {}),
        ({"metadata": {"session_id": "one", "user_id": "u"}}, {}),
        ({"metadata": {"trace_id": "one"}}, {}),
        ({}, {"x-litellm-session-id": "one"}),
        ({}, {"x-session-id": "one"}),
    ],
)
def test_who_names_a_session_is_grouped_by_it(
    sdk: anthropic.Anthropic,
    providers: ProvidersServer,
    model: str,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    sdk.messages.create(**{**ASK, "model": model}, extra_body=fields, extra_headers=headers)
    assert only_row().session_id == "one"
    (request,) = providers.requests
    assert b"one" not in request.body
    assert "one" not in request.headers.values()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (422, anthropic.UnprocessableEntityError, "invalid_request_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.APIStatusError, "overloaded_error"),
    ],
)
def test_an_error_keeps_its_status_and_gets_anthropics_shape(
    sdk: anthropic.Anthropic,
    providers: ProvidersServer,
    provider: str,
    status: int,
    error: type[anthropic.APIStatusError],
    kind: str,
    stream: bool,
) -> None:
    asked: dict[str, Any] = {**ASK, "model": f"{provider}/error-{status}"}
    with pytest.raises(error) as caught:
        sdk.messages.create(**asked, stream=stream)
    found = caught.value
    assert (found.status_code, found.type, found.request_id) == (status, kind, "req_provider")
    assert found.api_message is not None
    assert found.api_message.startswith("no (")
    assert key_of(provider) not in str(found.body)
    assert found.response.headers["x-nbllm-request-id"] == only_row().request_id


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_an_error_within_a_stream(
    sdk: anthropic.Anthropic, providers: ProvidersServer, provider: str
) -> None:
    asked: dict[str, Any] = {**ASK, "model": f"{provider}/inside-error"}
    words: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded") as caught,
        sdk.messages.stream(**asked) as stream,
    ):
        words.extend(stream.text_stream)
    assert "".join(words) == "Grüße an"
    assert caught.value.type is not None
    assert key_of(provider) not in str(caught.value.body)
    assert only_row().status == "error"


def test_a_stream_that_breaks_off(sdk: anthropic.Anthropic, providers: ProvidersServer) -> None:
    for provider in ("openai", "anthropic"):
        asked: dict[str, Any] = {**ASK, "model": f"{provider}/no-end"}
        with (
            pytest.raises(anthropic.APIStatusError, match="broke off"),
            sdk.messages.stream(**asked) as stream,
        ):
            stream.until_done()
    assert [row.status for row in request_rows()] == ["error", "error"]


def test_no_key_for_the_provider(gateway: Gateway) -> None:
    answer = Answer(gateway.url + "/v1/messages", body=ASK)
    assert (answer.status, error_of(answer)["type"]) == (500, "api_error")
    assert "no key for openai" in error_of(answer)["message"]


BAD_BODIES: list[tuple[Any, str]] = [
    ("", "JSON"),
    ("no JSON", "JSON"),
    ("[1, 2]", "JSON object"),
    ("[" * 100_000, "JSON"),
    ({"model": "x", "max_tokens": 1}, "messages"),
    ({"messages": HELLO, "max_tokens": 1}, "model"),
    ({**ASK, "model": 7}, "model"),
    ({**ASK, "messages": []}, "messages"),
    ({**ASK, "messages": "Hi"}, "messages"),
    ({**ASK, "messages": ["Hi"]}, "messages[0].role"),
    ({**ASK, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({**ASK, "messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    ({**ASK, "messages": [*HELLO, {"role": "user"}]}, "messages[1].content"),
    ({**ASK, "messages": [*HELLO, {"role": "assistant", "content": 7}]}, "messages[1].content"),
    ({**ASK, "messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({**ASK, "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
    ({**ASK, "messages": [{"role": "user", "content": [{"type": 7}]}]}, "messages[0].content[0]"),
    ({**ASK, "stream": "yes"}, "stream"),
    ({**ASK, "metadata": "x"}, "metadata"),
    ({**ASK, "litellm_session_id": "snow ☃"}, "session id"),
    ({**ASK, "api_base": "http://example.org"}, "api_base"),
    ({**ASK, "extra_headers": {"Host": "x"}}, "extra_headers"),
]
BAD_FOR_CHAT: list[tuple[Any, str]] = [
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
        "messages[0].content[0].source.media_type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": 7}]}
            ]
        },
        "messages[0].content[0].content",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]}]},
        "messages[0].content[0].input",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": 7, "name": "f", "input": {}}]}
            ]
        },
        "messages[0].content[0].id",
    ),
    ({"system": 7}, "system"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"tools": {}}, "tools"),
    ({"tools": ["x"]}, "tools[0]"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": []}}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"output_config": 7}, "output_config"),
    ({"output_config": {"format": {}}}, "output_config.format.schema"),
]


@pytest.mark.parametrize(
    ("body", "named"),
    [*BAD_BODIES, *(({**ASK, **fields}, named) for fields, named in BAD_FOR_CHAT)],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "body",
)
@pytest.mark.parametrize("model", ["gpt-4o-mini", "anthropic/x"])
def test_a_body_that_is_no_request(
    gateway: Gateway,
    providers: ProvidersServer,
    tmp_path: Any,
    body: Any,
    named: str,
    model: str,
) -> None:
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = {**body, "model": model}
    sent = tmp_path / "body"
    sent.write_text(body if isinstance(body, str) else json.dumps(body))
    answer = Answer(gateway.url + "/v1/messages", "--data-binary", f"@{sent}")
    if model == "anthropic/x" and not any(named == one for _, one in BAD_BODIES):
        assert answer.status == 200  # it is Anthropic's to refuse, which this server doesn't
        return
    assert (answer.status, error_of(answer)["type"]) == (400, "invalid_request_error")
    assert named in error_of(answer)["message"]
    assert providers.requests == []


@pytest.mark.parametrize(
    ("path", "args", "status", "kind"),
    [
        ("/v1/messages/count_tokens", ("-d", "{}"), 404, "not_found_error"),
        ("/messages/batches", (), 404, "not_found_error"),
        ("/v1/messages", (), 405, "invalid_request_error"),
        ("/v1/messages", ("-H", "Host: evil.example", "-d", "{}"), 403, "permission_error"),
        ("/v1/messages", ("-H", "Origin: http://evil.example", "-d", "{}"), 403, "permission_error"),
        (
            "/v1/messages",
            ("-X", "POST", "-H", f"Content-Length: {LARGEST_BODY + 1}", "-H", "Expect: 100-continue"),
            413,
            "request_too_large",
        ),
    ],
)
def test_refusals_have_anthropics_shape(
    gateway: Gateway,
    path: str,
    args: tuple[str, ...],
    status: int,
    kind: str,
) -> None:
    answer = Answer(gateway.url + path, *args)
    assert (answer.status, error_of(answer)["type"]) == (status, kind)
    assert error_of(answer)["message"]


def test_a_key(providers: ProvidersServer) -> None:
    key = "a-key-of-the-gateway"
    with nbllm.gateway(0, key=key) as gateway:
        for sent, status in {
            "X-Nothing: 1": 401,
            "x-api-key: wrong": 401,
            "x-api-key;": 401,
            "x-api-key: ☃": 401,
            "Authorization: Bearer wrong": 401,
            f"x-api-key: {key}": 200,
            f"Authorization: Bearer {key}": 200,
        }.items():
            answer = Answer(gateway.url + "/v1/messages", "-H", sent, body=ASK)
            assert answer.status == status, sent
            assert status == 200 or error_of(answer)["type"] == "authentication_error"
        with anthropic.Anthropic(base_url=gateway.url, auth_token=key, api_key=None, max_retries=0) as client:
            client.messages.create(**ASK)
        both = ("-H", f"x-api-key: {key}", "-H", "Authorization: Bearer another-services")
        assert Answer(gateway.url + "/v1/messages", *both, body=ASK).status == 200
    assert len(providers.requests) == 4
    assert not any(key.encode() in request.body for request in providers.requests)


# -- a client that goes away -----------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_client_that_leaves_a_stream_cancels_it(
    sdk: anthropic.Anthropic, providers: ProvidersServer, provider: str
) -> None:
    stream = sdk.messages.create(**{**ASK, "model": f"{provider}/stall"}, stream=True)
    next(iter(stream))
    stream.close()
    providers.wait_for(lambda: providers.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_answer_cancels_it(
    gateway: Gateway,
    providers: ProvidersServer,
    stream: bool,
) -> None:
    body = json.dumps({**ASK, "model": "anthropic/hang", "stream": stream}).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head.encode() + body)
        providers.wait_for(lambda: bool(providers.requests))
    providers.wait_for(lambda: providers.requests[0].client_gone)
    wait_until(lambda: not tracing.running())
    assert only_row().status == "cancelled"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_stream_comes_as_it_is_said(
    sdk: anthropic.Anthropic, providers: ProvidersServer, provider: str
) -> None:
    """The first words are there before the server has said more."""
    with sdk.messages.create(**{**ASK, "model": f"{provider}/stall"}, stream=True) as stream:
        words = []
        for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                words.append(event.delta.text)
            if len(words) == 2:
                break
        assert not providers.requests[0].answered
    assert words == ["Grüße", " an"]
