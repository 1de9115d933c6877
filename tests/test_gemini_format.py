"""Gemini's wire format on samples of JSON: requests, answers, streams, embeddings.

The samples are written after the examples of the Gemini API reference ("Generating content", "Embeddings") and
its guides ("Text generation", "Function calling", "Thinking", "Thought signatures", "Image generation",
"Grounding with Google Search", "Context caching"), shortened, and changed where a test needs it.
"""

# ruff: noqa: E501 (JSON as it comes on the wire)

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from nbllm.assembly import Assembly
from nbllm.exceptions import UnsupportedParamsError, UsageProblem
from nbllm.providers import gemini, resolve
from nbllm.types import ChatCompletion

ROUTE = resolve("gemini/gemini-2.5-flash", api_key="AIza-secret")
NEWER = replace(ROUTE, model="gemini-3-flash-preview")
MESSAGES = [{"role": "user", "content": "Hi"}]
SIGNATURE = "CiQB4/H/XpWbVGV0aGlua2luZw=="


def body_of(messages: Any = MESSAGES, route: Any = ROUTE, extra_body: Any = None, **params: Any) -> Any:
    return json.loads(gemini.chat_request(route, messages, False, params, extra_body, None).body)


def config_of(route: Any = ROUTE, **params: Any) -> Any:
    return body_of(route=route, **params).get("generationConfig")


def contents_of(*messages: Any, route: Any = ROUTE) -> Any:
    return body_of(list(messages), route)["contents"]


# -- requests --------------------------------------------------------------------------------------


def test_the_smallest_request() -> None:
    request = gemini.chat_request(ROUTE, MESSAGES, False, {})
    assert request.url == (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
    )
    assert json.loads(request.body) == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
    assert request.headers["x-goog-api-key"] == "AIza-secret"
    assert request.params is None


def test_a_stream_has_its_own_method() -> None:
    assert gemini.chat_request(ROUTE, MESSAGES, True, {}).url.endswith(
        "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    )


@pytest.mark.parametrize("model", ["models/gemini-2.5-pro", "tunedModels/mine-1"])
def test_a_resource_name_is_kept(model: str) -> None:
    url = gemini.chat_request(replace(ROUTE, model=model), MESSAGES, False, {}).url
    assert url == f"https://generativelanguage.googleapis.com/v1beta/{model}:generateContent"


@pytest.mark.parametrize(
    ("params", "config"),
    [
        ({"temperature": 0.2}, {"temperature": 0.2}),
        ({"top_p": 0.9, "top_k": 40}, {"topP": 0.9, "topK": 40}),
        ({"max_tokens": 9}, {"maxOutputTokens": 9}),
        ({"max_completion_tokens": 9}, {"maxOutputTokens": 9}),
        ({"stop": "END"}, {"stopSequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stopSequences": ["a", "b"]}),
        ({"n": 2, "seed": 7}, {"candidateCount": 2, "seed": 7}),
        ({"presence_penalty": 1, "frequency_penalty": 0.5}, {"presencePenalty": 1, "frequencyPenalty": 0.5}),
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "array"}},
        ),
        ({"modalities": ["text", "image"]}, {"responseModalities": ["TEXT", "IMAGE"]}),
        ({"temperature": None}, None),
    ],
)  # fmt: skip
def test_parameters_go_into_the_generation_config(params: Any, config: Any) -> None:
    assert config_of(**params) == config


@pytest.mark.parametrize(
    ("route", "params", "thinking"),
    [
        (ROUTE, {"reasoning_effort": "none"}, {"thinkingBudget": 0, "includeThoughts": False}),
        (ROUTE, {"reasoning_effort": "minimal"}, {"thinkingBudget": 1024, "includeThoughts": True}),
        (ROUTE, {"reasoning_effort": "medium"}, {"thinkingBudget": 8192, "includeThoughts": True}),
        (ROUTE, {"reasoning_effort": "high"}, {"thinkingBudget": 24576, "includeThoughts": True}),
        (NEWER, {"reasoning_effort": "minimal"}, {"thinkingLevel": "minimal", "includeThoughts": True}),
        (NEWER, {"reasoning_effort": "high"}, {"thinkingLevel": "high", "includeThoughts": True}),
        (
            ROUTE,
            {"thinking": {"type": "enabled", "budget_tokens": 500}},
            {"thinkingBudget": 500, "includeThoughts": True},
        ),
        (ROUTE, {"thinking": {"type": "enabled"}}, {"thinkingBudget": -1, "includeThoughts": True}),
        (ROUTE, {"thinking": {"type": "disabled"}}, {"thinkingBudget": 0}),
    ],
)
def test_thinking_is_told_in_levels_or_tokens(route: Any, params: Any, thinking: Any) -> None:
    assert config_of(route, **params) == {"thinkingConfig": thinking}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"functions": []}, "functions"),
        ({"prediction": {}}, "prediction"),
        ({"verbosity": "low"}, "verbosity"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "custom"),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort"),
        ({"reasoning_effort": []}, "reasoning_effort"),
    ],
)
def test_what_gemini_has_no_equivalent_for_is_refused(params: Any, named: str) -> None:
    with pytest.raises(UnsupportedParamsError, match="leave it out") as caught:
        body_of(**params)
    assert named in str(caught.value)
    assert caught.value.llm_provider == "gemini"


def test_gemini_3_cant_be_kept_from_thinking() -> None:
    with pytest.raises(UnsupportedParamsError, match="gemini-3-flash-preview always thinks"):
        config_of(NEWER, reasoning_effort="none")


@pytest.mark.parametrize(
    "params",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": None}},
        {"thinking": True},
        {"tools": {"type": "function"}},
        {"tools": [{"type": "function", "function": "f"}]},
        {"tool_choice": {"type": "function", "function": None}},
        {"reasoning_effort": "low", "thinking": {"type": "disabled"}},
        {"extra_body": {"generationConfig": 5}},
        {"temperature": float("nan")},
        {"seed": object()},
    ],
)
def test_values_that_cant_work_are_refused(params: Any) -> None:
    with pytest.raises(UsageProblem):
        body_of(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"user": "u-1"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"stream_options": {"include_usage": True}},
        {"parallel_tool_calls": True},
        {"service_tier": "auto"},
    ],
)
def test_what_changes_no_answer_is_left_out(params: Any) -> None:
    assert body_of(**params) == body_of()


def test_geminis_own_fields_pass() -> None:
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    body = body_of(safety_settings=safety, cachedContent="cachedContents/1", store=False, service_tier="flex")
    assert body["safety_settings"] == safety
    assert body["cachedContent"] == "cachedContents/1"
    assert body["store"] is False
    assert body["serviceTier"] == "flex"
    assert body_of(service_tier="default")["serviceTier"] == "standard"


def test_extra_body_adds_to_the_generation_config() -> None:
    body = body_of(
        temperature=1, top_p=0.5, extra_body={"labels": {}, "generationConfig": {"temperature": 0, "speechConfig": {}}}
    )  # fmt: skip
    assert body["generationConfig"] == {"temperature": 0, "topP": 0.5, "speechConfig": {}}
    assert body["labels"] == {}


def test_the_log_sees_the_callers_own_parameters() -> None:
    params = {"max_tokens": 5, "stop": None}
    request = gemini.chat_request(ROUTE, MESSAGES, False, params, {"labels": {}}, {"team": "a"})
    assert json.loads(request.params or b"") == {"max_tokens": 5, "labels": {}, "metadata": {"team": "a"}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "additionalProperties": False,
        },
    },
}


def test_functions_stand_in_one_tool_beside_geminis_own() -> None:
    nothing = {"type": "function", "function": {"name": "now", "parameters": {}}}
    assert body_of(tools=[WEATHER, {"google_search": {}}, nothing])["tools"] == [
        {"google_search": {}},
        {
            "functionDeclarations": [
                {
                    "name": "get_weather",
                    "description": "Weather of a city",
                    "parametersJsonSchema": WEATHER["function"]["parameters"],  # type: ignore[index]
                },
                {"name": "now"},
            ]
        },
    ]


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        ("none", {"mode": "NONE"}),
        ("auto", {"mode": "AUTO"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tool_choice(choice: Any, calling: Any) -> None:
    assert body_of(tool_choice=choice)["toolConfig"] == {"functionCallingConfig": calling}


# -- messages --------------------------------------------------------------------------------------


def test_system_messages_become_the_system_instruction() -> None:
    body = body_of(
        [
            {"role": "system", "content": "Be short."},
            *MESSAGES,
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be short."}, {"text": "Be kind."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Hi"}]}]


def test_roles_alternate() -> None:
    assert contents_of(
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ) == [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {"role": "model", "parts": [{"text": "c"}]},
        {"role": "user", "parts": [{"text": "d"}]},
    ]


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
            {"inlineData": {"mimeType": "image/png", "data": "iVBO"}},
        ),
        (
            {"type": "image_url", "image_url": "https://h/a.webp?size=1"},
            {"fileData": {"fileUri": "https://h/a.webp?size=1", "mimeType": "image/webp"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "gs://bucket/a.JPG", "detail": "low"}},
            {"fileData": {"fileUri": "gs://bucket/a.JPG", "mimeType": "image/jpeg"}},
        ),
        (
            {"type": "file", "file": {"file_id": "https://generativelanguage.googleapis.com/v1beta/files/a1"}},
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a1"}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
            {"inlineData": {"mimeType": "audio/wav", "data": "UklG"}},
        ),
        ({"type": "refusal", "refusal": "No."}, {"text": "No."}),
    ],
)  # fmt: skip
def test_parts_of_a_message(part: Any, sent: Any) -> None:
    assert contents_of({"role": "user", "content": [part]}) == [{"role": "user", "parts": [sent]}]


def call(arguments: Any = '{"city": "Oslo"}', **extra: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": arguments},
                **extra,
            }
        ],
    }


@pytest.mark.parametrize(
    ("content", "response"),
    [
        ('{"temp": 3}', {"temp": 3}),
        ("3 degrees", {"result": "3 degrees"}),
        ("[1, 2]", {"result": "[1, 2]"}),
        ([{"type": "text", "text": '{"temp"'}, {"type": "text", "text": ": 3}"}], {"temp": 3}),
        ("", {"result": ""}),
        ("[" * 5000, {"result": "[" * 5000}),
    ],
)
def test_a_tools_result_goes_back_under_the_functions_name(content: Any, response: Any) -> None:
    tool = {"role": "tool", "tool_call_id": "call_1", "content": content}
    assert contents_of(*MESSAGES, call(), tool)[1:] == [
        {
            "role": "model",
            "parts": [{"functionCall": {"id": "call_1", "name": "get_weather", "args": {"city": "Oslo"}}}],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "call_1", "name": "get_weather", "response": response}},
            ],
        },
    ]


@pytest.mark.parametrize(("arguments", "args"), [("", {}), (None, {}), ({"a": 1}, {"a": 1}), ("{}", {})])
def test_arguments_of_a_call(arguments: Any, args: Any) -> None:
    assert contents_of(call(arguments))[0]["parts"][0]["functionCall"]["args"] == args


def test_gemini_3_gets_a_signature_with_the_first_call() -> None:
    foreign = call()
    foreign["tool_calls"] = foreign["tool_calls"] * 2
    first, second = contents_of(foreign, route=NEWER)[0]["parts"]
    assert first["thoughtSignature"] == "skip_thought_signature_validator"
    assert "thoughtSignature" not in second
    own = call(extra_content={"google": {"thought_signature": SIGNATURE}})
    assert contents_of(own, route=NEWER)[0]["parts"][0]["thoughtSignature"] == SIGNATURE


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "user", "content": ["text"]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
        {"role": "user", "content": [{"type": "video"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": None}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cat.png"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,raw"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf"}}]},
        {"role": "tool", "tool_call_id": "unknown", "content": "x"},
        {"role": "narrator", "content": "x"},
        {"role": "assistant", "tool_calls": [{"function": None}]},
        call("not json"),
        call("[1]"),
    ],
)
def test_a_message_that_cant_be_sent_is_named(message: Any) -> None:
    with pytest.raises(UsageProblem, match=r"messages\[1\]"):
        contents_of(*MESSAGES, message)


def test_a_tools_result_must_be_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
    with pytest.raises(UsageProblem, match="must be text"):
        contents_of(call(), {"role": "tool", "tool_call_id": "call_1", "content": [image]})


# -- answers ---------------------------------------------------------------------------------------

PLAIN = """{"candidates": [{"content": {"parts": [{"text": "AI learns from data."}], "role": "model"}, "finishReason": "STOP", "index": 0, "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}]}],
 "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 6, "totalTokenCount": 14, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}]},
 "modelVersion": "gemini-2.0-flash", "responseId": "jSdSaNmHMvKkz7IP"}"""

# Each answer as a stream, and as it comes in one piece.
STREAMED: dict[str, tuple[list[str], str]] = {
    "text": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "AI learns"}], "role": "model"}, "index": 0}], "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}, "modelVersion": "gemini-2.0-flash", "responseId": "jSdSaNmHMvKkz7IP"}',
            '{"candidates": [{"content": {"parts": [{"text": " from data."}], "role": "model"}, "finishReason": "STOP", "index": 0}], "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 6, "totalTokenCount": 14}, "modelVersion": "gemini-2.0-flash", "responseId": "jSdSaNmHMvKkz7IP"}',
        ],
        PLAIN,
    ),
    "thoughts and parallel calls": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "**Planning**\\n", "thought": true}], "role": "model"}, "index": 0}], "usageMetadata": {"promptTokenCount": 60, "totalTokenCount": 90, "thoughtsTokenCount": 30}, "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
            '{"candidates": [{"content": {"parts": [{"text": "two cities", "thought": true}], "role": "model"}, "index": 0}], "usageMetadata": {"promptTokenCount": 60, "totalTokenCount": 101, "thoughtsTokenCount": 41}, "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
            '{"candidates": [{"content": {"parts": [{"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}, "thoughtSignature": "CiQB"}, {"functionCall": {"name": "get_weather", "args": {"city": "Rom"}}}], "role": "model"}, "index": 0}], "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
            '{"candidates": [{"content": {"parts": [{"functionCall": {"id": "fc-3", "name": "now"}}], "role": "model"}, "index": 0}], "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
            '{"candidates": [{"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": "STOP", "index": 0}], "usageMetadata": {"promptTokenCount": 60, "candidatesTokenCount": 20, "totalTokenCount": 121, "thoughtsTokenCount": 41}, "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
        ],
        '{"candidates": [{"content": {"parts": [{"text": "**Planning**\\ntwo cities", "thought": true}, {"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}, "thoughtSignature": "CiQB"}, {"functionCall": {"name": "get_weather", "args": {"city": "Rom"}}}, {"functionCall": {"id": "fc-3", "name": "now"}}], "role": "model"}, "finishReason": "STOP", "index": 0}], "usageMetadata": {"promptTokenCount": 60, "candidatesTokenCount": 20, "totalTokenCount": 121, "thoughtsTokenCount": 41}, "modelVersion": "gemini-3-flash-preview", "responseId": "r-1"}',
    ),
    "signed text": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "Four"}]}}], "responseId": "r-2"}',
            '{"candidates": [{"content": {"parts": [{"text": "", "thoughtSignature": "Zm91cg=="}]}, "finishReason": "MAX_TOKENS"}], "responseId": "r-2"}',
        ],
        '{"candidates": [{"content": {"parts": [{"text": "Four", "thoughtSignature": "Zm91cg=="}]}, "finishReason": "MAX_TOKENS"}], "responseId": "r-2"}',
    ),
    "images": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "Here: "}, {"inlineData": {"mimeType": "image/png", "data": "iVBO"}}]}}], "responseId": "r-3"}',
            '{"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/jpeg", "data": "/9j/"}, "thoughtSignature": "aW1n"}]}, "finishReason": "STOP"}], "responseId": "r-3"}',
        ],
        '{"candidates": [{"content": {"parts": [{"text": "Here: "}, {"inlineData": {"mimeType": "image/png", "data": "iVBO"}}, {"inlineData": {"mimeType": "image/jpeg", "data": "/9j/"}, "thoughtSignature": "aW1n"}]}, "finishReason": "STOP"}], "responseId": "r-3"}',
    ),
    "two candidates": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "He"}]}, "index": 0}, {"content": {"parts": [{"text": "Goo"}]}, "index": 1}], "responseId": "r-4"}',
            '{"candidates": [{"content": {"parts": [{"text": "y"}]}, "index": 0, "finishReason": "STOP"}, {"content": {"parts": [{"functionCall": {"name": "d", "args": {}}}]}, "index": 1, "finishReason": "STOP"}], "responseId": "r-4"}',
        ],
        '{"candidates": [{"content": {"parts": [{"text": "Hey"}]}, "index": 0, "finishReason": "STOP"}, {"content": {"parts": [{"text": "Goo"}, {"functionCall": {"name": "d", "args": {}}}]}, "index": 1, "finishReason": "STOP"}], "responseId": "r-4"}',
    ),
    "grounding": (
        [
            '{"candidates": [{"content": {"parts": [{"text": "Spain"}]}, "groundingMetadata": {"groundingChunks": [{"web": {"uri": "https://a", "title": "a"}}]}}], "responseId": "r-5"}',
            '{"candidates": [{"content": {"parts": [{"text": " won."}]}, "finishReason": "STOP", "groundingMetadata": {"webSearchQueries": ["who won"], "groundingChunks": [{"web": {"uri": "https://b", "title": "b"}}]}}], "responseId": "r-5"}',
        ],
        '{"candidates": [{"content": {"parts": [{"text": "Spain won."}]}, "finishReason": "STOP", "groundingMetadata": {"webSearchQueries": ["who won"], "groundingChunks": [{"web": {"uri": "https://a", "title": "a"}}, {"web": {"uri": "https://b", "title": "b"}}]}}], "responseId": "r-5"}',
    ),
    "code": (
        [
            '{"candidates": [{"content": {"parts": [{"executableCode": {"language": "PYTHON", "code": "print(5)"}}]}}], "responseId": "r-6"}',
            '{"candidates": [{"content": {"parts": [{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "5"}}, {"text": "It is 5."}]}, "finishReason": "STOP"}], "responseId": "r-6"}',
        ],
        '{"candidates": [{"content": {"parts": [{"executableCode": {"language": "PYTHON", "code": "print(5)"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "5"}}, {"text": "It is 5."}]}, "finishReason": "STOP"}], "responseId": "r-6"}',
    ),
    "a blocked prompt": (
        [
            '{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}, "modelVersion": "gemini-2.5-flash"}'
        ],
        '{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}, "modelVersion": "gemini-2.5-flash"}',
    ),
}  # fmt: skip


def read(text: str) -> ChatCompletion:
    return gemini.chat_response(text.encode())


def message_of(text: str) -> Any:
    return read(text).choices[0].message


def test_a_plain_answer() -> None:
    answer = read(PLAIN)
    assert answer.text == "AI learns from data."
    assert (answer.id, answer.model) == ("jSdSaNmHMvKkz7IP", "gemini-2.0-flash")
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert choice.message is not None
    assert choice.message.role == "assistant"


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_adds_up_to_the_answer_in_one_piece(name: str) -> None:
    events, whole = STREAMED[name]
    decode, assembly = gemini.chunk_decoder(), Assembly()
    for event in events:
        chunk = decode(event.encode())
        assert chunk is not None
        assert chunk.object == "chat.completion.chunk"
        assembly.add(chunk)
    assert assembly.completion() == read(whole)


def test_only_the_first_chunk_names_the_role() -> None:
    decode = gemini.chunk_decoder()
    chunks: list[Any] = [decode(event.encode()) for event in STREAMED["text"][0]]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
    assert chunks[0].usage.total_tokens == 8


def test_streams_share_no_state() -> None:
    event = STREAMED["thoughts and parallel calls"][0][2].encode()
    chunks: list[Any] = [gemini.chunk_decoder()(event) for _ in range(2)]
    assert chunks[0] == chunks[1]


def test_thoughts_and_calls() -> None:
    answer = read(STREAMED["thoughts and parallel calls"][1])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    message: Any = choice.message
    assert message.content is None
    assert message.reasoning_content == "**Planning**\ntwo cities"
    assert [(c.id, c.type, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("call_r-1_0_0", "function", "get_weather", '{"city":"Oslo"}'),
        ("call_r-1_0_1", "function", "get_weather", '{"city":"Rom"}'),
        ("fc-3", "function", "now", "{}"),
    ]
    assert message.tool_calls[0].extra_content.google.thought_signature == "CiQB"
    assert "extra_content" not in message.tool_calls[1]


@pytest.mark.parametrize("name", ["thoughts and parallel calls", "signed text", "images"])
def test_what_gemini_signed_goes_back_to_it(name: str) -> None:
    message = message_of(STREAMED[name][1]).model_dump(exclude_none=True)
    parts = contents_of(message, route=NEWER)[0]["parts"]
    received = json.loads(STREAMED[name][1])["candidates"][0]["content"]["parts"]
    thoughts = [part for part in received if part.get("thought")]
    expected = [part for part in received if part not in thoughts]
    for part in parts:
        part.get("functionCall", {}).pop("id", None)
    for part in expected:
        if "functionCall" in part:
            part["functionCall"].pop("id", None)
            part["functionCall"].setdefault("args", {})
    assert parts == expected


def test_images() -> None:
    message = message_of(STREAMED["images"][1])
    assert message.content == "Here: "
    assert [image.image_url.url for image in message.images] == [
        "data:image/png;base64,iVBO",
        "data:image/jpeg;base64,/9j/",
    ]


def test_grounding_is_kept_as_it_came() -> None:
    metadata = message_of(STREAMED["grounding"][1]).grounding_metadata
    assert metadata.webSearchQueries == ["who won"]
    assert [chunk.web.uri for chunk in metadata.groundingChunks] == ["https://a", "https://b"]


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "malformed_function_call"),
        ("A_NEW_ONE", "a_new_one"),
    ],
)
def test_finish_reasons(reason: str, meaning: str) -> None:
    answer = read(f'{{"candidates": [{{"finishReason": "{reason}", "finishMessage": "why"}}]}}')
    assert answer.choices[0].finish_reason == meaning
    assert message_of(f'{{"candidates": [{{"finishReason": "{reason}", "finishMessage": "why"}}]}}')[
        "finish_message"
    ] == "why"  # fmt: skip


def test_calls_that_were_cut_off_are_no_tool_calls() -> None:
    text = '{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}, "finishReason": "MAX_TOKENS"}]}'
    assert read(text).choices[0].finish_reason == "length"


def test_a_blocked_prompt_is_a_refusal() -> None:
    answer = read('{"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "bad words"}}')
    (choice,) = answer.choices
    assert choice.finish_reason == "content_filter"
    assert choice.message is not None
    assert choice.message.content is None
    assert choice.message.refusal == "Gemini refused the prompt: SAFETY (bad words)"


def test_usage() -> None:
    usage: Any = read(
        """{"candidates": [], "usageMetadata": {"promptTokenCount": 696219, "candidatesTokenCount": 214,
        "thoughtsTokenCount": 100, "toolUsePromptTokenCount": 10, "totalTokenCount": 696543,
        "cachedContentTokenCount": 696190, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 19},
        {"modality": "AUDIO", "tokenCount": 696200}], "candidatesTokensDetails": [{"modality": "TEXT"}]}}"""
    ).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (696229, 314, 696543)
    assert usage.prompt_tokens_details.cached_tokens == 696190
    assert usage.prompt_tokens_details.audio_tokens == 696200
    assert usage.completion_tokens_details.reasoning_tokens == 100
    assert usage.completion_tokens_details.audio_tokens is None


def test_logprobs() -> None:
    answer: Any = read(
        """{"candidates": [{"logprobsResult": {
        "topCandidates": [{"candidates": [{"token": "Hi", "logProbability": -0.1}, {"token": "Yo", "logProbability": -2}]}],
        "chosenCandidates": [{"token": "Hi", "tokenId": 5, "logProbability": -0.1}, {"token": "!", "logProbability": -0.2}]}}]}"""
    )
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.logprob) == ("Hi", -0.1)
    assert [top.token for top in first.top_logprobs] == ["Hi", "Yo"]
    assert second.top_logprobs == []


def test_an_error_in_a_stream() -> None:
    error = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
    chunk = gemini.chunk_decoder()(json.dumps({"error": error}).encode())
    assert chunk is not None
    assert chunk.choices == []
    assert chunk.__dict__["error"] == error


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"candidates": []}',
        '{"error": {"code": 400}}',
        '{"promptFeedback": {}}',
        '{"usageMetadata": {}}',
        '{"new": 1}',
    ],
)
def test_an_answer_that_says_nothing_has_no_choices(text: str) -> None:
    assert read(text).choices == []


def test_an_event_that_says_nothing_is_no_chunk() -> None:
    assert gemini.chunk_decoder()(b'{"responseId": "r"}') is None


@pytest.mark.parametrize(
    "candidate",
    [
        "{}",
        '{"content": {}}',
        '{"content": {"parts": []}}',
        '{"content": {"role": "model", "parts": [{}]}}',
        '{"content": {"parts": [{"videoMetadata": {"fps": 1}}, {"aNewOne": {"x": [1]}}]}}',
        '{"content": {"parts": [{"inlineData": {"mimeType": "audio/L16", "data": "AA=="}}]}}',
        '{"content": {"parts": [{"text": null, "thought": true}]}}',
    ],
)
def test_parts_that_are_unknown_or_missing_are_left_out(candidate: str) -> None:
    message = message_of(f'{{"candidates": [{candidate}]}}')
    assert message.model_dump(exclude_none=True) == {"role": "assistant"}


DEEP = '{"a":' * 900 + "1" + "}" * 900
HOSTILE = [
    b"", b"null", b"[]", b"5", b'"x"', b"{", b"\xff", b'{"candidates": 5}', b'{"candidates": [null]}', b'{"candidates": {}}',
    b'{"candidates": [{"index": "0"}]}', b'{"candidates": [{"content": "x"}]}', b'{"candidates": [{"content": {"parts": {}}}]}',
    b'{"candidates": [{"content": {"parts": ["x"]}}]}', b'{"candidates": [{"content": {"parts": [{"text": 5}]}}]}',
    b'{"candidates": [{"content": {"parts": [{"functionCall": {"args": []}}]}}]}', b'{"candidates": [{"finishReason": 1}]}',
    b'{"candidates": [{"groundingMetadata": 5}]}', b'{"usageMetadata": {"promptTokenCount": "many"}}', b'{"usageMetadata": []}',
    b'{"modelVersion": 5}', b'{"responseId": {}}', b'{"promptFeedback": "no"}', b'{"candidates": [{"content": {"parts": [{"text": "\xff"}]}}]}',
    b"[" * 100_000, b'[{"error": {"code": 429}}]',
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body[:60].decode("latin-1"))
def test_what_is_no_answer_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        gemini.chat_response(body)
    with pytest.raises(msgspec.DecodeError):
        gemini.chunk_decoder()(body)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"candidates": [{{"content": {{"parts": [{{"functionCall": {{"args": {DEEP}}}}}]}}}}]}}',
        f'{{"candidates": [{{"groundingMetadata": {DEEP}}}]}}',
        f'{{"candidates": [{{"content": {{"parts": [{{"executableCode": {DEEP}}}]}}}}]}}',
        '{"candidates": [{"groundingMetadata": {"groundingChunks": 5}}]}',
        '{"candidates": [{"index": -1, "content": {"parts": [{"functionCall": {}}]}}]}',
        '{"candidates": [{"finishReason": ""}, {"finishReason": ""}]}',
    ],
    ids=range(6),
)
def test_odd_answers_raise_nothing_else(body: str) -> None:
    for reader in (gemini.chat_response, gemini.chunk_decoder()):
        try:
            reader(body.encode())
        except msgspec.DecodeError:
            pass


# -- embeddings ------------------------------------------------------------------------------------

EMBEDDER = replace(ROUTE, model="gemini-embedding-001")


def test_texts_are_embedded_in_one_request() -> None:
    params = {"dimensions": 768, "task_type": "RETRIEVAL_QUERY", "user": "u", "encoding_format": "float"}
    request = gemini.embedding_request(EMBEDDER, ["a", "b"], params, {"title": "T"})
    assert request.url.endswith("/v1beta/models/gemini-embedding-001:batchEmbedContents")
    assert json.loads(request.body) == {
        "requests": [
            {
                "model": "models/gemini-embedding-001",
                "task_type": "RETRIEVAL_QUERY",
                "outputDimensionality": 768,
                "title": "T",
                "content": {"parts": [{"text": text}]},
            }
            for text in ("a", "b")
        ]
    }
    assert json.loads(request.params or b"") == {**params, "title": "T"}
    assert gemini.embedding_request(EMBEDDER, ["a"], {"dimensions": None}).params is None


def test_embeddings_are_floats_of_texts() -> None:
    with pytest.raises(UnsupportedParamsError, match="encoding_format"):
        gemini.embedding_request(EMBEDDER, ["a"], {"encoding_format": "base64"})
    tokens: Any = [[1, 2]]
    with pytest.raises(UsageProblem, match="token ids"):
        gemini.embedding_request(EMBEDDER, tokens, {})


def test_vectors_and_their_tokens() -> None:
    body = b'{"embeddings": [{"values": [0.1, -2]}, {"values": [3, 4.5]}]}'
    assert gemini.embedding_response(body) == ([[0.1, -2.0], [3.0, 4.5]], None)
    counted = b'{"embeddings": [{"values": [1]}], "usageMetadata": {"promptTokenCount": 5, "promptTokenDetails": [{"modality": "TEXT", "tokenCount": 5}]}}'
    vectors, usage = gemini.embedding_response(counted)
    assert vectors == [[1.0]]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, None, 5)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"embeddings": 5}', b'{"embeddings": [{"values": ["x"]}]}', b"\xff"]
)
def test_what_is_no_embedding_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        gemini.embedding_response(body)
