"""OpenAI's chat wire format on recorded JSON: requests, answers, chunks, errors.

The examples are those of OpenAI's API reference ("Create chat completion", "Streaming", "Error codes") and,
where named, of other servers that speak the format.
"""

# ruff: noqa: E501 (JSON as it was recorded)

from __future__ import annotations

import datetime
import email.utils
import json
import math
from typing import Any

import msgspec
import numpy as np
import openai as openai_sdk
import pandas as pd
import pytest
from openai.types.chat import completion_create_params

from nbllm import exceptions
from nbllm.exceptions import UsageProblem
from nbllm.providers import errors, openai, resolve
from nbllm.providers.base import merged_headers
from nbllm.types import Message

ROUTE = resolve("openai/gpt-4o", base_url="https://host/v1/", api_key="sk-secret-key-123")
MESSAGES = [{"role": "user", "content": "Hi"}]
CHUNK: Any = openai.chunk_decoder()


def body_of(stream: bool = False, messages: Any = MESSAGES, **params: Any) -> dict[str, Any]:
    more = {name: params.pop(name) for name in ("extra_body", "metadata") if name in params}
    sent = openai.chat_request(ROUTE, messages, stream, params, **more)
    result: dict[str, Any] = json.loads(sent.body or b"")
    return result


# -- requests --------------------------------------------------------------------------------------


def test_the_smallest_request() -> None:
    sent = openai.chat_request(ROUTE, MESSAGES, False, {})
    assert sent.url == "https://host/v1/chat/completions"
    assert json.loads(sent.body or b"") == {"model": "gpt-4o", "messages": MESSAGES}
    assert sent.params is None


def test_a_stream_asks_for_usage() -> None:
    assert body_of(stream=True) == {
        "model": "gpt-4o",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": False}),
        ({"include_obfuscation": False}, {"include_usage": True, "include_obfuscation": False}),
    ],
)
def test_stream_options_are_the_callers(given: Any, sent: Any) -> None:
    assert body_of(stream=True, stream_options=given)["stream_options"] == sent
    assert body_of(stream=True, extra_body={"stream_options": given})["stream_options"] == sent


VALUES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 50,
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0,
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {}}},
    "seed": 7,
    "service_tier": "flex",
    "stop": ["\n", "END"],
    "store": False,
    "temperature": 0.0,
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "top_logprobs": 3,
    "top_p": 1,
    "user": "user-1",
    "verbosity": "low",
    "web_search_options": {},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_parameter_is_sent_as_given(name: str) -> None:
    assert body_of(**{name: VALUES[name]})[name] == VALUES[name]


def test_all_parameters_at_once() -> None:
    assert body_of(**VALUES) == {"model": "gpt-4o", "messages": MESSAGES, **VALUES}
    assert json.loads(openai.chat_request(ROUTE, MESSAGES, False, VALUES).params or b"") == VALUES


def test_none_means_not_given() -> None:
    assert body_of(**dict.fromkeys(VALUES)) == body_of()


def test_every_parameter_of_the_sdk_is_known() -> None:
    """Those of a newer SDK too: they may be unknown here, but are taken for nobody's slip."""
    known = set(completion_create_params.CompletionCreateParamsBase.__annotations__) - {"model", "messages"}
    assert len(known & openai.CHAT_PARAMETERS) > 30
    for name in known - {"metadata"}:
        assert body_of(**{name: "x"})[name] == "x"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("Temperature", "temperature"),
        ("stops", "stop"),
        ("tool", "tools"),
        ("stream_option", "stream_options"),
        ("frequency_penality", "frequency_penalty"),
    ],
)
def test_a_near_miss_is_refused(name: str, meant: str) -> None:
    with pytest.raises(UsageProblem, match=f"did you mean '{meant}'"):
        body_of(**{name: 1})
    assert body_of(extra_body={name: 1})[name] == 1


OTHERS = """
    top_k min_p top_a typical_p repetition_penalty length_penalty min_tokens best_of ignore_eos priority
    stop_token_ids prompt_logprobs guided_json guided_regex structured_outputs chat_template chat_template_kwargs
    skip_special_tokens add_generation_prompt documents truncate_prompt_tokens logits_processors
    transforms models route provider reasoning include_reasoning usage plugins reasoning_format enable_thinking
    thinking thinking_budget safe_prompt random_seed keep_alive options format num_ctx cached_content
    search_parameters max_new_tokens
"""


@pytest.mark.parametrize("name", OTHERS.split())
def test_parameters_of_other_servers_pass(name: str) -> None:
    assert body_of(**{name: "x"})[name] == "x"


def test_extra_body_wins() -> None:
    sent = body_of(temperature=1, extra_body={"temperature": 2, "model": "other", "provider": {"order": []}})
    assert (sent["temperature"], sent["model"], sent["provider"]) == (2, "other", {"order": []})


def test_metadata_is_sent_only_with_store() -> None:
    metadata = {"topic": "review"}
    sent = openai.chat_request(ROUTE, MESSAGES, False, {}, None, metadata)
    body, shown = sent.body or b"", sent.params
    assert "metadata" not in json.loads(body)
    assert json.loads(shown or b"") == {"metadata": metadata}
    assert body_of(store=True, metadata=metadata)["metadata"] == metadata


def test_numpy_values_become_numbers() -> None:
    sent = body_of(
        temperature=np.float32(0.5),
        max_tokens=np.int64(7),
        top_p=np.float64(0.25),
        logprobs=np.True_,
        logit_bias={np.int64(5): np.int8(-1)},
        stop=np.array(["a", "b"]),
        user=np.str_("me"),
    )
    del sent["model"], sent["messages"]
    assert sent == {
        "temperature": 0.5,
        "max_tokens": 7,
        "top_p": 0.25,
        "logprobs": True,
        "logit_bias": {"5": -1},
        "stop": ["a", "b"],
        "user": "me",
    }


def cyclic() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        np.nan,
        np.float64("nan"),
        [1.0, math.nan],
        {"a": {"b": (math.nan,)}},
        pd.NA,
        pd.NaT,
        "\ud800",
        {"\udfff": 1},
        object(),
        lambda: None,
        {object(): 1},
        cyclic(),
        1 + 2j,
    ],
)
def test_what_json_cant_hold_is_refused(value: Any) -> None:
    for params in ({"temperature": value}, {"extra_body": {"x": value}}, {"metadata": {"x": value}}):
        with pytest.raises(UsageProblem):
            body_of(**params)
    with pytest.raises(UsageProblem):
        body_of(messages=[{"role": "user", "content": value}])


def test_the_refusal_of_a_nan_says_where_it_is() -> None:
    with pytest.raises(UsageProblem, match=r"messages\[0\]\['content'\] is nan"):
        body_of(messages=[{"role": "user", "content": math.nan}])


def test_a_null_is_no_nan() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "null"}]
    assert body_of(messages=messages)["messages"] == messages


def test_objects_of_the_sdk_are_encoded() -> None:
    tool = openai_sdk.types.chat.ChatCompletionMessage(role="assistant", content="Hi")
    assert body_of(extra_body={"x": [tool]})["x"] == [{"role": "assistant", "content": "Hi"}]


def test_text_of_all_planes_arrives() -> None:
    text = "größer \u0000 \U0001f427 \u2028 漢字"
    assert body_of(messages=[{"role": "user", "content": text}])["messages"][0]["content"] == text


# -- headers ---------------------------------------------------------------------------------------


def test_the_headers_carry_the_key() -> None:
    assert merged_headers(ROUTE.headers, None) == {
        "Content-Type": "application/json",
        "Authorization": "Bearer sk-secret-key-123",
    }


def test_the_callers_headers_win_in_any_case() -> None:
    headers = merged_headers(ROUTE.headers, {"authorization": "Basic x", "X-Title": "t"})
    assert headers == {"Content-Type": "application/json", "authorization": "Basic x", "X-Title": "t"}
    assert "authorization" not in merged_headers(ROUTE.headers, None)


@pytest.mark.parametrize(
    "headers", [{"X": "a\nb"}, {"X\r": "a"}, {"X": 1}, {1: "a"}, {"X": "\ud800"}, {"X": None}]
)
def test_headers_that_http_cant_hold_are_refused(headers: Any) -> None:
    with pytest.raises(UsageProblem, match="extra_headers"):
        merged_headers(ROUTE.headers, headers)


# -- answers ---------------------------------------------------------------------------------------

ANSWER = """{
  "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion", "created": 1741569952,
  "model": "gpt-4.1-2025-04-14",
  "choices": [{"index": 0,
    "message": {"role": "assistant", "content": "Hello! How can I assist you today?", "refusal": null,
                "annotations": []},
    "logprobs": null, "finish_reason": "stop"}],
  "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                  "rejected_prediction_tokens": 0}},
  "service_tier": "default", "system_fingerprint": "fp_x"}"""

TOOLS = """{
  "id": "chatcmpl-abc123", "object": "chat.completion", "created": 1699896916, "model": "gpt-4o-mini",
  "choices": [{"index": 0, "message": {"role": "assistant", "content": null, "tool_calls": [
      {"id": "call_abc123", "type": "function",
       "function": {"name": "get_current_weather", "arguments": "{\\n\\"location\\": \\"Boston, MA\\"\\n}"}}]},
    "logprobs": null, "finish_reason": "tool_calls"}],
  "usage": {"prompt_tokens": 82, "completion_tokens": 17, "total_tokens": 99,
    "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0,
                                  "rejected_prediction_tokens": 0}}}"""

LOGPROBS = """{
  "id": "chatcmpl-123", "object": "chat.completion", "created": 1702685778, "model": "gpt-4o-mini",
  "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"},
    "logprobs": {"content": [{"token": "Hello", "logprob": -0.31725305, "bytes": [72, 101, 108, 108, 111],
      "top_logprobs": [{"token": "Hello", "logprob": -0.31725305, "bytes": [72]}]}], "refusal": null},
    "finish_reason": "stop"}],
  "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}, "system_fingerprint": null}"""

OPENROUTER = """{
  "id": "gen-1", "provider": "DeepInfra", "model": "meta/llama", "object": "chat.completion", "created": 1,
  "choices": [{"logprobs": null, "finish_reason": "stop", "native_finish_reason": "stop", "index": 0,
    "message": {"role": "assistant", "content": "Hi", "refusal": null, "reasoning": "Hm",
                "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]}}],
  "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.00014, "is_byok": false,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 5},
            "cost_details": {"upstream_inference_cost": null}}}"""


def test_a_plain_answer() -> None:
    answer = openai.chat_response(ANSWER.encode())
    assert answer.text == "Hello! How can I assist you today?"
    assert answer.usage.prompt_tokens_details.cached_tokens == 7
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    assert answer.model_dump(exclude_none=True) == _without_nulls(json.loads(ANSWER))


@pytest.mark.parametrize("recorded", [ANSWER, TOOLS, LOGPROBS, OPENROUTER])
def test_an_answer_reads_as_the_sdks(recorded: str) -> None:
    ours = openai.chat_response(recorded.encode())
    theirs = openai_sdk.types.chat.ChatCompletion.model_validate_json(recorded)
    assert ours.choices[0].message.content == theirs.choices[0].message.content
    assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason
    assert ours.usage.total_tokens == theirs.usage.total_tokens
    assert ours.model_dump(exclude_none=True) == _without_nulls(theirs.model_dump())


def test_a_tool_call() -> None:
    (call,) = openai.chat_response(TOOLS.encode()).choices[0].message.tool_calls
    assert (call.id, call.type, call.function.name) == ("call_abc123", "function", "get_current_weather")
    assert json.loads(call.function.arguments) == {"location": "Boston, MA"}


def test_logprobs_read_by_attribute_and_item() -> None:
    choice = openai.chat_response(LOGPROBS.encode()).choices[0]
    assert choice.logprobs.content[0].top_logprobs[0].token == "Hello"
    assert choice["logprobs"]["content"][0]["bytes"] == [72, 101, 108, 108, 111]


def test_what_another_server_adds_is_kept() -> None:
    answer = openai.chat_response(OPENROUTER.encode())
    assert (answer.provider, answer.usage.cost, answer.usage.is_byok) == ("DeepInfra", 0.00014, False)
    assert answer.usage.prompt_tokens_details.cache_write_tokens == 5
    assert answer.choices[0].message.reasoning_details[0].text == "Hm"


def test_a_message_goes_back_as_it_came() -> None:
    message = openai.chat_response(TOOLS.encode()).choices[0].message
    expected = {k: v for k, v in json.loads(TOOLS)["choices"][0]["message"].items() if v is not None}
    assert message.model_dump(exclude_none=True) == expected
    assert isinstance(message, Message)


CHUNKS = [
    '{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini", '
    '"system_fingerprint": "fp_44709d6fcb", "choices":[{"index":0,"delta":{"role":"assistant","content":""},'
    '"logprobs":null,"finish_reason":null}]}',
    '{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini", '
    '"system_fingerprint": "fp_44709d6fcb", "choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,'
    '"finish_reason":null}],"usage":null,"obfuscation":"aBc"}',
    '{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini", '
    '"system_fingerprint": "fp_44709d6fcb", "choices":[{"index":0,"delta":{},"logprobs":null,'
    '"finish_reason":"stop"}]}',
    '{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini", '
    '"choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}}',
]


@pytest.mark.parametrize("recorded", CHUNKS)
def test_a_chunk_reads_as_the_sdks(recorded: str) -> None:
    ours = CHUNK(recorded.encode())
    theirs = openai_sdk.types.chat.ChatCompletionChunk.model_validate_json(recorded)
    assert ours.model_dump(exclude_none=True) == theirs.model_dump(exclude_none=True)


def test_azures_first_chunk() -> None:
    chunk = CHUNK(
        b'{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
        b'"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}'
    )
    assert chunk.choices == []
    assert chunk.prompt_filter_results[0].content_filter_results.hate.severity == "safe"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


# -- errors ----------------------------------------------------------------------------------------


def masked(text: str) -> str:
    return text.replace("sk-secret-key-123", "[key]")


def error(status: int, body: Any, **headers: str) -> exceptions.APIError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return errors.error_from(
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        data,
        route=ROUTE,
        redact=masked,
    )


RECORDED: list[tuple[int, Any, str, str | None, str]] = [
    (
        401,
        {"error": {"message": "Incorrect API key provided: sk-secret-key-123.", "type": "invalid_request_error",
                   "param": None, "code": "invalid_api_key"}},
        "AuthenticationError", "invalid_api_key", "Incorrect API key provided: [key].",
    ),
    (
        404,
        {"error": {"message": "The model `gpt-9` does not exist", "type": "invalid_request_error", "param": None,
                   "code": "model_not_found"}},
        "NotFoundError", "model_not_found", "The model `gpt-9` does not exist",
    ),
    (
        400,
        {"error": {"message": "This model's maximum context length is 8192 tokens.", "param": "messages",
                   "type": "invalid_request_error", "code": "context_length_exceeded"}},
        "ContextWindowExceededError", "context_length_exceeded", "maximum context length",
    ),
    (
        400,
        {"error": {"message": "Unsupported parameter: 'max_tokens'", "type": "invalid_request_error",
                   "param": "max_tokens", "code": "unsupported_parameter"}},
        "UnsupportedParamsError", "unsupported_parameter", "Unsupported parameter: 'max_tokens'",
    ),
    (
        429,
        {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": None,
                   "code": "insufficient_quota"}},
        "RateLimitError", "insufficient_quota", "You exceeded your current quota",
    ),
    (429, {"error": {"message": "slow down", "type": "requests", "code": None}}, "RateLimitError", "requests", "slow"),
    (500, {"error": {"message": "oops", "type": "server_error", "code": 500}}, "InternalServerError", "500", "oops"),
    (422, {"detail": [{"loc": ["body", "model"], "msg": "field required"}]}, "UnprocessableEntityError", None,
     "field required"),
    (404, {"detail": "Not Found"}, "NotFoundError", None, "Not Found"),
    (400, {"object": "error", "message": "max_tokens is too large", "type": "BadRequestError", "code": 400},
     "BadRequestError", "400", "max_tokens is too large"),
    (404, {"error": "model 'x' not found"}, "NotFoundError", None, "model 'x' not found"),
    (403, b"<html><h1>403 Forbidden</h1></html>", "PermissionDeniedError", None, "403 Forbidden"),
    (502, b"", "BadGatewayError", None, "HTTP 502"),
    (503, b"\xff\xfe", "ServiceUnavailableError", None, "503"),
    (500, ["odd"], "InternalServerError", None, '["odd"]'),
    (500, {"error": []}, "InternalServerError", None, "500"),
    (500, {"error": {"message": {"a": 1}, "code": {"b": 2}}}, "InternalServerError", "{'b': 2}", "{'a': 1}"),
    (500, b"[" * 99_999, "InternalServerError", None, "[[["),
    (418, {"error": {"message": "teapot"}}, "APIError", None, "teapot"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("base_url", "body", "asks"),
    [
        # What api.openai.com says to a wrong path.
        ("https://api.openai.com/v2", {"error": {"message": "Invalid URL (POST /v2/chat/completions)",
                                                 "type": "invalid_request_error", "code": None}}, True),
        ("http://h", {"error": {"message": "no such route", "code": "not_found"}}, True),
        ("http://h", b"<html>404</html>", True),
        ("https://api.openai.com/v1", b"", True),
        ("http://h/v1", {"error": {"message": "The model `mine` does not exist", "code": 404}}, False),
        ("http://h/v1", {"error": 'model "mine" not found, try pulling it first'}, False),
        ("https://api.openai.com/v1", {"error": {"message": "Response 'resp_1' not found.",
                                                 "code": "previous_response_not_found"}}, False),
    ],
)  # fmt: skip
def test_a_404_that_names_no_model_asks_for_the_address(base_url: str, body: Any, asks: bool) -> None:
    found = errors.error_from(
        404,
        {},
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        route=resolve("openai/mine", base_url=base_url, environ={}),
        redact=str,
    )
    assert (f"Is {base_url} the whole base URL?" in str(found)) == asks


@pytest.mark.parametrize(("status", "body", "name", "code", "text"), RECORDED)
def test_an_error_body_becomes_its_class(
    status: int, body: Any, name: str, code: str | None, text: str
) -> None:
    found = error(status, body, x_request_id="req_9", Content_Type="text/html")
    assert type(found).__name__ == name
    assert (found.status_code, found.code, found.request_id) == (status, code, "req_9")
    assert (found.model, found.llm_provider) == ("openai/gpt-4o", "openai")
    assert text in found.message
    assert str(found) == found.message
    assert found.message.startswith(f"{status}: ")


def test_no_part_of_an_error_holds_the_key() -> None:
    key = "sk-secret-key-123"
    body = {"error": {"message": key, "type": key, "code": key, "more": [{"x": key}]}}
    found = error(401, body, x_request_id=key, x_ratelimit_key=key, retry_after=key)
    assert key not in repr(vars(found)) + str(found) + repr(found)
    plain = error(401, key.encode())
    assert key not in repr(vars(plain)) + str(plain)


def test_the_body_of_an_error_is_kept() -> None:
    body = {
        "error": {"message": "x", "innererror": {"content_filter_result": {"jailbreak": {"filtered": True}}}}
    }
    assert error(400, body).body == body
    assert error(400, b"plain").body == "plain"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "250", "retry_after": "7"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": ""}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after_ms": "x"}, None),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert error(429, {}, **headers).retry_after == seconds


def test_retry_after_as_a_date_to_come() -> None:
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    assert error(
        429, {}, retry_after=email.utils.format_datetime(date, usegmt=True)
    ).retry_after == pytest.approx(60, abs=5)


def test_only_headers_of_known_content_are_kept() -> None:
    found = error(
        429, {}, Set_Cookie="secret", X_RateLimit_Remaining_Tokens="0", X_Request_ID="r", Authorization="secret",
        x_litellm_model_id="m", openai_organization="org", Retry_After="1", Content_Type="application/json",
    )  # fmt: skip
    assert found.response == {
        "x-ratelimit-remaining-tokens": "0",
        "x-request-id": "r",
        "x-litellm-model-id": "m",
        "retry-after": "1",
        "content-type": "application/json",
    }


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"error": {"message": "m", "code": 429}}', "RateLimitError"),
        (b'{"error": {"message": "m", "code": "x"}}', "InternalServerError"),
        (b'{"error": "m"}', "InternalServerError"),
        (b'{"error": {"message": "m", "code": 200}}', "InternalServerError"),
        (b'{"error": null}', None),
        (b'{"id": "x"}', None),
        (b"[]", None),
        (b"no json", None),
        (b"[" * 99_999, None),
    ],
)
def test_an_error_inside_a_good_answer(data: bytes, name: str | None) -> None:
    found = errors.error_inside(data, route=ROUTE, redact=masked)
    assert (None if found is None else type(found).__name__) == name


def test_an_answer_that_is_none_is_a_decode_error() -> None:
    for data in (b"", b"<html>", b"[]", b"\xff", b'"x"'):
        with pytest.raises(msgspec.DecodeError):
            openai.chat_response(data)
