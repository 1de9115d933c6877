"""Anthropic's Messages format on samples of JSON: requests, answers, streams, errors.

The samples are written after the examples of Anthropic's documentation ("Messages", "Streaming messages",
"Tool use", "Extended thinking", "Prompt caching", "Handling stop reasons"), changed where a test needs it. Each
stream stands beside the same answer not streamed.
"""

# ruff: noqa: E501 (JSON as it comes on the wire)

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nbllm.assembly import Assembly
from nbllm.exceptions import UnsupportedParamsError, UsageProblem
from nbllm.providers import Route, anthropic, anthropic_requests, openai, resolve
from nbllm.types import ChatCompletion, ChatCompletionChunk, Delta

HELLO = [{"role": "user", "content": "Hello, Claude"}]
HELLO_SENT = [{"role": "user", "content": [{"type": "text", "text": "Hello, Claude"}]}]
NEW, OLD = "claude-opus-4-8", "claude-sonnet-4-5-20250929"


def route(model: str = NEW) -> Route:
    return resolve(f"anthropic/{model}", api_key="sk-ant-secret", environ={})


def body_of(messages: list[Any] = HELLO, model: str = NEW, stream: bool = False, **params: Any) -> Any:
    more = {name: params.pop(name) for name in ("extra_body", "metadata") if name in params}
    return json.loads(anthropic.chat_request(route(model), messages, stream, params, **more).body or b"")


def turns_of(*messages: dict[str, Any]) -> Any:
    return body_of(list(messages))["messages"]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


# -- requests --------------------------------------------------------------------------------------


def test_the_smallest_request() -> None:
    request = anthropic.chat_request(route(), HELLO, False, {})
    assert request.url == "https://api.anthropic.com/v1/messages"
    assert request.headers["x-api-key"] == "sk-ant-secret"
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.params is None
    assert json.loads(request.body or b"") == {
        "model": NEW,
        "messages": HELLO_SENT,
        "max_tokens": anthropic_requests.DEFAULT_MAX_TOKENS,
    }


def test_the_log_gets_the_callers_parameters() -> None:
    params = {"temperature": 0.5, "stop": "x", "user": None}
    request = anthropic.chat_request(route(), HELLO, True, params, {"speed": "fast"}, {"project": "p"})
    assert json.loads(request.params or b"") == {
        "temperature": 0.5,
        "stop": "x",
        "speed": "fast",
        "metadata": {"project": "p"},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_tokens": 100}, {"max_tokens": 100}),
        ({"max_tokens": 0}, {"max_tokens": 0}),  # fills the cache only
        ({"max_tokens": 100, "max_completion_tokens": 200}, {"max_tokens": 200}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 5}, {"temperature": 0, "top_p": 0.5, "top_k": 5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"safety_identifier": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"metadata": {"user_id": "u1", "project": "p"}}, {"metadata": {"user_id": "u1"}}),
        ({"metadata": {"project": "p"}}, {}),
        ({"service_tier": "standard_only"}, {"service_tier": "standard_only"}),
        ({"container": "c1", "mcp_servers": []}, {"container": "c1", "mcp_servers": []}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"stream": True}),
        ({"extra_body": {"max_tokens": 7, "speed": "fast"}}, {"max_tokens": 7, "speed": "fast"}),
        ({"temperature": None, "seed": None}, {}),
        ({"n": 1, "logprobs": False, "presence_penalty": 0.0, "logit_bias": {}, "store": False}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"parallel_tool_calls": False}, {}),  # a choice without tools is refused
        ({"system": "Be brief."}, {"system": [text("Be brief.")]}),
    ],
)  # fmt: skip
def test_parameters(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert body_of(**given) == {"model": NEW, "messages": HELLO_SENT, "max_tokens": 16384, **sent}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("seed", 1),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 5}),
        ("frequency_penalty", 0.1),
        ("presence_penalty", 0.1),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["audio"]),
        ("prediction", {"type": "content", "content": ""}),
        ("functions", [{"name": "f"}]),
        ("store", True),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("response_format", {"type": "json_object"}),
    ],
)
def test_parameters_without_equivalent_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParamsError, match=rf"{name}.*leave it out") as caught:
        body_of(**{name: value})
    assert (caught.value.model, caught.value.llm_provider) == (f"anthropic/{NEW}", "anthropic")


def test_every_parameter_of_openai_is_sent_or_refused() -> None:
    for name in (
        openai.CHAT_PARAMETERS - anthropic_requests._SAME - anthropic_requests._TRANSLATED - {"metadata"}
    ):
        with pytest.raises(UnsupportedParamsError, match=name):
            body_of(**{name: "something"})


@pytest.mark.parametrize(
    "params",
    [
        {"response_format": "json"},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"reasoning_effort": "enormous"},
        {"reasoning_effort": 3},
        {"reasoning_effort": "low", "max_tokens": 1024, "model": OLD},
        {"reasoning_effort": "low", "max_tokens": "many", "model": OLD},
        {"tools": "get_weather"},
        {"tools": [{}], "tool_choice": "sometimes"},
        {"temperature": float("nan")},
        {"top_k": object()},
    ],
)
def test_values_that_cannot_work(params: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        body_of(**params)


@pytest.mark.parametrize(
    "model", ["claude-3-7-sonnet-20250219", "claude-3-7-sonnet-latest", "claude-opus-4-20250514", "claude-opus-4-1",
              "claude-sonnet-4-5", "claude-haiku-4-5-20251001", "claude-haiku-4-5@20251001"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("effort", "limit", "budget"),
    [
        ("minimal", None, 1024),
        ("low", None, 1024),
        ("medium", None, 2048),
        ("high", None, 4096),
        ("max", None, 8192),
        ("high", 3000, 1500),
        ("high", 1100, 1024),
    ],
)
def test_effort_of_older_models_is_a_budget(model: str, effort: str, limit: Any, budget: int) -> None:
    body = body_of(model=model, reasoning_effort=effort, max_tokens=limit)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert body["max_tokens"] > budget
    assert "output_config" not in body


@pytest.mark.parametrize(
    "model", [NEW, "claude-opus-4-6", "claude-sonnet-5", "claude-fable-5", "claude-haiku-5-5"]
)
@pytest.mark.parametrize(("effort", "sent"), [("minimal", "low"), ("medium", "medium"), ("xhigh", "xhigh")])
def test_newer_models_think_adaptively(model: str, effort: str, sent: str) -> None:
    body = body_of(model=model, reasoning_effort=effort, max_tokens=50)
    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert body["output_config"] == {"effort": sent}


def test_no_effort_and_thinking_of_the_callers_own() -> None:
    assert body_of(reasoning_effort="none")["thinking"] == {"type": "disabled"}
    own = {"type": "adaptive", "display": "omitted"}
    body = body_of(reasoning_effort="high", thinking=own, output_config={"effort": "max"})
    assert (body["thinking"], body["output_config"]) == (own, {"effort": "max"})


def test_a_json_schema_is_an_output_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = body_of(response_format=wanted, reasoning_effort="low")
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}


WEATHER = {
    "type": "object",
    "properties": {"location": {"type": "string", "description": "The city and state"}},
    "required": ["location"],
}
FUNCTION = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER, "strict": True},
}


@pytest.mark.parametrize(
    ("tool", "sent"),
    [
        (FUNCTION, {"name": "get_weather", "description": "The weather", "input_schema": WEATHER, "strict": True}),
        (
            {"type": "function", "function": {"name": "now"}, "cache_control": {"type": "ephemeral"}},
            {"name": "now", "input_schema": {"type": "object", "properties": {}}, "cache_control": {"type": "ephemeral"}},
        ),
        ({"type": "web_search_20250305", "name": "web_search"}, {"type": "web_search_20250305", "name": "web_search"}),
        ({"name": "f", "input_schema": WEATHER}, {"name": "f", "input_schema": WEATHER}),
    ],
)  # fmt: skip
def test_tools(tool: Any, sent: Any) -> None:
    body = body_of(tools=[tool])
    assert body["tools"] == [sent]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", True, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "f"}}, None, {"type": "tool", "name": "f"}),
        ({"type": "any"}, None, {"type": "any"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, True, None),
    ],
)
def test_tool_choices(choice: Any, parallel: bool | None, sent: Any) -> None:
    body = body_of(tools=[FUNCTION], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == sent


def test_system_messages_are_gathered() -> None:
    cached = {"type": "text", "text": "A book.", "cache_control": {"type": "ephemeral"}}
    body = body_of(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [cached]},
        ]
    )
    assert body["system"] == [text("Be brief."), cached]
    assert body["messages"] == [{"role": "user", "content": [text("Hi")]}]


def test_a_turn_with_tools() -> None:
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Paris"}'}},
        {"id": "t2", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]  # fmt: skip
    thinking = [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eA=="},
    ]
    sent = turns_of(
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls, "thinking_blocks": thinking, "reasoning_content": "Hm."},
        {"role": "user", "content": "Go on."},
        {"role": "tool", "tool_call_id": "t1", "content": "15 degrees"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
    )  # fmt: skip
    assert sent[1:] == [
        {
            "role": "assistant",
            "content": [
                *thinking,
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"location": "Paris"}},
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


def test_turns_of_one_role_are_merged() -> None:
    assert turns_of(
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": " \n"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "c"},
    ) == [
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [text("No."), text("c")]},
    ]


PNG = "iVBORw0KGgo="


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (text("Hi"), text("Hi")),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": "https://host/a.png", "cache_control": {"type": "ephemeral"}},
            {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}, "cache_control": {"type": "ephemeral"}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                "title": "a.pdf",
            },
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
        ),
    ],
)  # fmt: skip
def test_parts(part: Any, sent: Any) -> None:
    assert turns_of({"role": "user", "content": [part]}) == [{"role": "user", "content": [sent]}]
    results = turns_of({"role": "tool", "tool_call_id": "t1", "content": [part]})[0]["content"]
    assert results == [{"type": "tool_result", "tool_use_id": "t1", "content": [sent]}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "narrator", "content": "x"},
        {"role": "tool", "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,raw"}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,YQ=="}}]},
        {"role": "assistant", "tool_calls": [{"id": "t1", "function": {"name": "f", "arguments": "{oops"}}]},
        {"role": "assistant", "tool_calls": [{"id": "t1", "function": {"name": "f", "arguments": "[]"}}]},
        {"role": "assistant", "tool_calls": [{"id": "t1", "type": "custom"}]},
        {"role": "assistant", "tool_calls": 5},
        {"role": "assistant", "thinking_blocks": 5},
    ],
)
def test_messages_that_cannot_work(message: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        turns_of(message)


# -- answers, whole and streamed -------------------------------------------------------------------

START = '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude-opus-4-8","stop_reason":null,"stop_sequence":null,"usage":%s}}'
STOP = ['{"type":"message_stop"}']
PING = '{"type": "ping"}'


def whole(content: list[Any], stop_reason: str, usage: Any, **more: Any) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": NEW, "stop_sequence": None}
    return {**head, "content": content, "stop_reason": stop_reason, "usage": usage, **more}


TEXT = [
    START % '{"input_tokens":25,"output_tokens":1}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    PING,
    '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}',
    *STOP,
]
TEXT_WHOLE = whole([text("Hello!")], "end_turn", {"input_tokens": 25, "output_tokens": 15})

TOOLS = [
    START
    % '{"input_tokens":472,"cache_creation_input_tokens":0,"cache_read_input_tokens":400,"output_tokens":2,"service_tier":"standard"}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    PING,
    '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Okay"}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":", let\'s check:"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_01T1","name":"get_weather","input":{}}}',
    '{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":""}}',
    '{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"location\\":"}}',
    '{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":" \\"San Francisc"}}',
    '{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"o, CA\\"}"}}',
    '{"type":"content_block_stop","index":1}',
    '{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_01T2","name":"now","input":{}}}',
    '{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}',
    '{"type":"content_block_stop","index":2}',
    '{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":89}}',
    *STOP,
]
TOOLS_WHOLE = whole(
    [
        text("Okay, let's check:"),
        {
            "type": "tool_use",
            "id": "toolu_01T1",
            "name": "get_weather",
            "input": {"location": "San Francisco, CA"},
        },
        {"type": "tool_use", "id": "toolu_01T2", "name": "now", "input": {}},
    ],
    "tool_use",
    {
        "input_tokens": 472,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 400,
        "output_tokens": 89,
        "service_tier": "standard",
    },
)

THINKING = [
    START % '{"input_tokens":40,"output_tokens":3}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me solve this step by step:\\n\\n1. First break down 27 * 453"}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"\\n2. 453 = 400 + 50 + 3"}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"EmwKAhgBEgy3va3pzix"}}',
    '{"type":"content_block_stop","index":1}',
    '{"type":"content_block_start","index":2,"content_block":{"type":"text","text":""}}',
    '{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"27 * 453 = 12,231"}}',
    '{"type":"content_block_stop","index":2}',
    '{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":40,"output_tokens":106,"output_tokens_details":{"thinking_tokens":67}}}',
    *STOP,
]
THINKING_WHOLE = whole(
    [
        {
            "type": "thinking",
            "thinking": "Let me solve this step by step:\n\n1. First break down 27 * 453\n2. 453 = 400 + 50 + 3",
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h",
        },
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
        text("27 * 453 = 12,231"),
    ],
    "end_turn",
    {"input_tokens": 40, "output_tokens": 106, "output_tokens_details": {"thinking_tokens": 67}},
)

OMITTED = [
    START % '{"input_tokens":40,"output_tokens":3}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EosnCkYICxIMMb3LzNrMu"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"12"}}',
    '{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":",231"}}',
    '{"type":"content_block_stop","index":1}',
    '{"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"END"},"usage":{"output_tokens":20}}',
    *STOP,
]
OMITTED_WHOLE = whole(
    [{"type": "thinking", "thinking": "", "signature": "EosnCkYICxIMMb3LzNrMu"}, text("12,231")],
    "stop_sequence",
    {"input_tokens": 40, "output_tokens": 20},
    stop_sequence="END",
)

CITATION = {
    "type": "char_location",
    "cited_text": "The grass is green.",
    "document_index": 0,
    "start_char_index": 0,
}
SEARCH = [
    START % '{"input_tokens":2679,"cache_creation_input_tokens":null,"output_tokens":3}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}}}',
    '{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\\"query\\": \\"grass\\"}"}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"content_block_start","index":1,"content_block":{"type":"web_search_tool_result","tool_use_id":"srvtoolu_1","content":[]}}',
    '{"type":"content_block_stop","index":1}',
    '{"type":"content_block_start","index":2,"content_block":{"type":"text","text":"","citations":[]}}',
    '{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"The grass is "}}',
    '{"type":"content_block_delta","index":2,"delta":{"type":"citations_delta","citation":'
    + f"{json.dumps(CITATION)}}}}}",
    '{"type":"content_block_stop","index":2}',
    '{"type":"content_block_start","index":3,"content_block":{"type":"text","text":"","citations":[]}}',
    '{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"green."}}',
    '{"type":"content_block_delta","index":3,"delta":{"type":"citations_delta","citation":'
    + f"{json.dumps(CITATION)}}}}}",
    '{"type":"content_block_stop","index":3}',
    '{"type":"message_delta","delta":{"stop_reason":"pause_turn","stop_sequence":null},"usage":{"input_tokens":10682,"output_tokens":510,"server_tool_use":{"web_search_requests":1}}}',
    *STOP,
]
SEARCH_WHOLE = whole(
    [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "grass"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {**text("The grass is "), "citations": [CITATION]},
        {**text("green."), "citations": [CITATION]},
    ],
    "pause_turn",
    {"input_tokens": 10682, "output_tokens": 510, "server_tool_use": {"web_search_requests": 1}},
)

DETAILS = {"type": "refusal", "category": "cyber", "explanation": "This request was refused due to policy."}
REFUSAL = [
    START % '{"input_tokens":20,"output_tokens":1}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    '{"type":"content_block_stop","index":0}',
    '{"type":"message_delta","delta":{"stop_reason":"refusal","stop_sequence":null,"stop_details":'
    + json.dumps(DETAILS)
    + '},"usage":{"output_tokens":0}}',
    *STOP,
]
REFUSAL_WHOLE = whole([], "refusal", {"input_tokens": 20, "output_tokens": 0}, stop_details=DETAILS)

PAIRS = {
    "text": (TEXT, TEXT_WHOLE),
    "tools": (TOOLS, TOOLS_WHOLE),
    "thinking": (THINKING, THINKING_WHOLE),
    "thinking omitted": (OMITTED, OMITTED_WHOLE),
    "search": (SEARCH, SEARCH_WHOLE),
    "refusal": (REFUSAL, REFUSAL_WHOLE),
}


def response(message: Any) -> ChatCompletion:
    return anthropic.chat_response(json.dumps(message).encode())


def chunks_of(events: list[str]) -> list[ChatCompletionChunk]:
    decode = anthropic.chunk_decoder()
    return [chunk for event in events if (chunk := decode(event.encode())) is not None]


def assembled(events: list[str]) -> ChatCompletion:
    assembly = Assembly()
    for chunk in chunks_of(events):
        assembly.add(chunk)
    return assembly.completion()


def comparable(answer: ChatCompletion) -> dict[str, Any]:
    """As a dict, with arguments decoded: a model writes JSON with other spaces than an encoder."""
    dumped = answer.model_dump()
    for call in dumped["choices"][0]["message"]["tool_calls"] or []:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return dumped


@pytest.mark.parametrize("name", PAIRS)
def test_a_stream_adds_up_to_the_whole_answer(name: str) -> None:
    events, message = PAIRS[name]
    assert comparable(assembled(events)) == comparable(response(message))


@pytest.mark.parametrize("name", PAIRS)
def test_a_stream_ends_with_finish_reason_and_usage(name: str) -> None:
    events, _ = PAIRS[name]
    chunks = chunks_of(events)
    assert chunks[0].choices[0].delta == Delta(role="assistant")
    assert all(chunk.id == "msg_1" and chunk.model == NEW for chunk in chunks)
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason is not None
    assert chunks[-1].usage is not None


def test_a_plain_answer() -> None:
    answer = response(TEXT_WHOLE)
    assert answer.model_dump(exclude_none=True) == {
        "id": "msg_1",
        "object": "chat.completion",
        "model": NEW,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 25, "completion_tokens": 15, "total_tokens": 40},
    }  # fmt: skip


def test_an_answer_with_tools() -> None:
    answer = response(TOOLS_WHOLE)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert answer.text == "Okay, let's check:"
    calls = choice.message.tool_calls  # type: ignore[union-attr]
    assert [(call.id, call.type, call.function.name, call.function.arguments) for call in calls] == [  # type: ignore[union-attr]
        ("toolu_01T1", "function", "get_weather", '{"location":"San Francisco, CA"}'),
        ("toolu_01T2", "function", "now", "{}"),
    ]
    assert answer.service_tier == "standard"


def test_thinking_is_kept_whole_and_can_be_sent_back() -> None:
    for answer in (response(THINKING_WHOLE), assembled(THINKING)):
        message = answer.choices[0].message
        assert message.reasoning_content.startswith("Let me solve")  # type: ignore[union-attr]
        assert message["thinking_blocks"][0].signature == "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"  # type: ignore[index]
        for sent in (
            message.model_dump(exclude_none=True),  # type: ignore[union-attr]
            {"role": "assistant", "content": answer.text, "thinking_blocks": message["thinking_blocks"]},  # type: ignore[index]
        ):
            assert turns_of(sent)[0]["content"] == THINKING_WHOLE["content"]
        assert answer.usage.completion_tokens_details.reasoning_tokens == 67  # type: ignore[union-attr]


def test_tool_calls_can_be_sent_back() -> None:
    for answer in (response(TOOLS_WHOLE), assembled(TOOLS)):
        sent = answer.choices[0].message.model_dump(exclude_none=True)  # type: ignore[union-attr]
        assert turns_of(sent)[0]["content"] == TOOLS_WHOLE["content"]


def test_usage_of_the_cache() -> None:
    creation = {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100}
    usage = {
        "input_tokens": 2048,
        "cache_read_input_tokens": 1800,
        "cache_creation_input_tokens": 248,
        "output_tokens": 503,
        "cache_creation": creation,
        "service_tier": "standard",
    }
    answer = response(whole([text("x")], "max_tokens", usage))
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 4096,
        "completion_tokens": 503,
        "total_tokens": 4599,
        "prompt_tokens_details": {
            "cached_tokens": 1800,
            "cache_write_tokens": 248,
            "cache_write_1h_tokens": 100,
        },
        "cache_creation": creation,
    }


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        (None, None),
        (5, None),
    ],
)
def test_stop_reasons(reason: Any, finish_reason: str | None) -> None:
    assert response(whole([], reason, {})).choices[0].finish_reason == finish_reason
    event = json.dumps({"type": "message_delta", "delta": {"stop_reason": reason}})
    assert chunks_of([event])[0].choices[0].finish_reason == finish_reason


def test_a_stream_cut_short_keeps_what_came() -> None:
    answer = assembled(TOOLS[:10])
    assert answer.text == "Okay, let's check:"
    assert answer.choices[0].finish_reason is None
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"location": "San Francisc'  # type: ignore[union-attr, index]


# -- errors and odd data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (
            '{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
            {"type": "overloaded_error", "message": "Overloaded"},
        ),
        ('{"error": {"message": "from a gateway"}}', {"message": "from a gateway"}),
        ('{"type": "error"}', {"type": "error"}),
    ],
)
def test_an_error_in_a_stream(event: str, error: Any) -> None:
    (chunk,) = chunks_of([event])
    assert chunk.choices == []
    assert chunk.__dict__["error"] == error


def test_an_error_as_a_whole_answer() -> None:
    answer = response(
        {"type": "error", "error": {"type": "api_error", "message": "x"}, "request_id": "req_1"}
    )
    assert answer.choices == []
    assert answer["error"]["message"] == "x"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"5", b'"x"', b"{", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000]
)
def test_what_is_no_json_object(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        anthropic.chat_response(data)
    with pytest.raises(msgspec.DecodeError):
        anthropic.chunk_decoder()(data)


@pytest.mark.parametrize(
    "event",
    [
        "{}",
        PING,
        *STOP,
        '{"type":"content_block_sideways","index":0}',
        '{"type":5}',
        '{"type":"content_block_delta"}',
        '{"type":"content_block_delta","index":0,"delta":null}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta"}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":null}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"compaction_delta","content":"x"}}',
        '{"type":"content_block_delta","index":9,"delta":{"type":"input_json_delta","partial_json":"x"}}',
        '{"type":"content_block_delta","index":9,"delta":{"type":"signature_delta","signature":"x"}}',
        '{"type":"content_block_start","index":"0","content_block":{"type":"text","text":"x"}}',
        '{"type":"content_block_start","index":0,"content_block":null}',
        '{"type":"content_block_start","index":0,"content_block":{}}',
        '{"type":"content_block_start","index":0,"content_block":{"type":["tool_use"]}}',
        '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":5}}',
        '{"type":"content_block_stop","index":7}',
        '{"type":"message_start","message":null}',
    ],
)
def test_events_that_say_nothing(event: str) -> None:
    assert chunks_of([event]) == []


ODD: list[Any] = [None, 5, 1.5, True, "x", [], [5], {}, {"type": "text"}, [{"type": ["x"]}], [[]]]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_raise_nothing(odd: Any) -> None:
    for _, message in PAIRS.values():
        for name in message:
            _read(response({**message, name: odd}))
        for position, block in enumerate(message["content"]):
            for name in block:
                content = [*message["content"]]
                content[position] = {**block, name: odd}
                _read(response({**message, "content": content}))
        for name in message["usage"]:
            _read(response({**message, "usage": {**message["usage"], name: odd}}))
    for events, _ in PAIRS.values():
        for position, event in enumerate(events):
            for changed in _changed(json.loads(event), odd):
                _read(assembled([*events[:position], json.dumps(changed), *events[position + 1 :]]))


def _changed(event: dict[str, Any], odd: Any) -> list[dict[str, Any]]:
    """The event with each of its fields in turn replaced or left out, at every depth."""
    result = []
    for name, value in event.items():
        result.append({**event, name: odd})
        result.append({key: item for key, item in event.items() if key != name})
        if isinstance(value, dict):
            result += [{**event, name: changed} for changed in _changed(value, odd)]
    return result


def _read(answer: ChatCompletion) -> None:
    """What a caller does with an answer."""
    assert isinstance(answer.text, str)
    answer.model_dump_json()
    for count in (answer.usage.prompt_tokens, answer.usage.total_tokens) if answer.usage else ():
        assert count is None or isinstance(count, int)
