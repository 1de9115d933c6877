"""What the log keeps, read as OpenAI's messages: what the translators make, and whatever else is there."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.contents import answer_of, messages_of, text_of
from nbllm.providers import openai_responses, resolve
from nbllm.providers.gemini import embedding_request
from tests.servers import completion

PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": PNG}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "Thanks"},
]
MODELS = ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-flash"]


def sent(model: str, messages: list[dict[str, Any]], **params: Any) -> str:
    """The wire body that goes to a provider."""
    route = resolve(model, api_key="k")
    body = route.dialect.chat_request(route, messages, False, params, None, None).body
    assert body is not None
    return body.decode()


def plainly(messages: list[dict[str, Any]]) -> list[Any]:
    """The messages without what a provider has no place for."""
    return [
        (message["role"], message["content"], [call["function"] for call in message.get("tool_calls", [])])
        for message in messages
    ]


# -- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_what_was_sent_is_read_back_from_every_format(model: str) -> None:
    read = messages_of(sent(model, CONVERSATION, max_tokens=10))
    assert plainly(read) == plainly(CONVERSATION)
    assert read[5]["tool_call_id"] == "c1"
    again = messages_of(sent(model, read))
    assert again == read, "what was read can be sent again"


@pytest.mark.parametrize("model", MODELS)
def test_files_are_read_back(model: str) -> None:
    file = {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}}
    (read,) = messages_of(sent(model, [{"role": "user", "content": [file, {"type": "text", "text": "?"}]}]))
    assert read["content"][0]["file"]["file_data"] == PDF
    assert text_of(read).startswith("[file")


def test_anthropic_s_results_of_tools_may_hold_pictures_and_its_thoughts_stay() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    image = {"type": "image", "source": source}
    body = {
        "messages": [
            {"role": "assistant", "content": [thought, {"type": "text", "text": "Look."}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [image]}]},
        ]
    }
    said, result = messages_of(json.dumps(body))
    assert (said["content"], said["thinking_blocks"]) == ("Look.", [thought])
    assert (result["role"], text_of(result)) == ("tool", "[image]")
    assert result["content"] == [{"type": "image_url", "image_url": {"url": PNG}}]


def test_input_of_responses() -> None:
    route = resolve("gpt-4o", api_key="k")
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "web_search_call", "id": "w1"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
    ]
    body = openai_responses.responses_request(route, items, False, {"instructions": "Be brief."}).body
    assert plainly(messages_of((body or b"").decode())) == [
        ("system", "Be brief.", []),
        ("user", "Hi", []),
        ("assistant", None, [CALL["function"]]),
        ("tool", "Rain", []),
    ]
    assert messages_of('{"input": "Hi"}') == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ({"input": "a"}, "a"),
        ({"input": ["a"]}, "a"),
        ({"input": ["a", "b"]}, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ({"prompt": "A cat"}, "A cat"),
        ({"input": "Hello", "voice": "nova", "instructions": "Whisper."}, "Hello"),
    ],
)
def test_embeddings_images_and_speech_have_one_message(body: dict[str, Any], content: Any) -> None:
    assert messages_of(json.dumps(body)) == [{"role": "user", "content": content}]


def test_embeddings_of_gemini_and_of_token_ids() -> None:
    route = resolve("gemini/gemini-embedding-001", api_key="k")
    body = embedding_request(route, ["a", "b"], {}).body or b""
    assert text_of(messages_of(body.decode())[0]) == "a\nb"
    assert messages_of('{"input": [[1, 2], [3]]}') == []


# -- answers -----------------------------------------------------------------------------------------------


def test_answers_of_every_format() -> None:
    message = {"role": "assistant", "content": "It rains.", "tool_calls": [CALL], "reasoning_content": "Hm."}
    tool_use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
    text = {"type": "text", "text": "It rains."}
    thought = {"type": "thinking", "thinking": "Hm."}
    call = {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Paris"}}}
    parts = [{"text": "Hm.", "thought": True}, {"text": "It rains."}, call]
    item = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'}
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "It rains."}]},
        item,
    ]
    for body in (
        {**completion(), "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]},
        {"type": "message", "role": "assistant", "content": [thought, text, tool_use]},
        {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]},
        {"object": "response", "output": output},
    ):
        read = answer_of(json.dumps(body))
        assert read is not None
        assert {name: read[name] for name in message} == message


def test_refusals_are_read() -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": None, "refusal": "No."}}]}
    refusal = answer_of(json.dumps(body))
    assert refusal is not None
    assert (refusal["content"], text_of(refusal)) == (None, "No.")
    assert answer_of('{"promptFeedback": {"blockReason": "SAFETY"}}') == {
        "role": "assistant",
        "content": None,
        "refusal": "Gemini refused the prompt: SAFETY",
    }
    parts = [{"type": "refusal", "refusal": "No."}]
    read = answer_of(json.dumps({"output": [{"type": "message", "content": parts}]}))
    assert read == {"role": "assistant", "content": None, "refusal": "No."}


# -- whatever else stands there ----------------------------------------------------------------------------

_NAMES = """
    messages contents input prompt requests choices candidates content output role parts text type message
    tool_calls function name arguments functionCall functionResponse response inlineData source image_url
    system systemInstruction instructions refusal reasoning_content summary tool_result tool_use item
"""
_KEYS = _NAMES.split()
_WORDS = [*_KEYS, "user", "assistant", "model", "image", "document", "function_call", "reasoning", "\ud800"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(_WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=30,
)


@given(_JSON)
def test_no_json_breaks_the_readers(value: Any) -> None:
    well_formed(json.dumps(value))


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_no_text_breaks_the_readers(text: str) -> None:
    well_formed(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{", '"x"', "1e999", '{"error": {"message": "no"}}', '{"input": 5}', "\ud800"),
        *(f'{{"{key}": {"[" * depth}{"]" * depth}}}' for key in _KEYS for depth in (300, 100_000)),
        *(f'{{"{key}": {"""{"a":""" * 400}1{"}" * 400}}}' for key in ("choices", "messages", "output")),
        f'{{"choices": [{{"message": {{"content": {"[" * 400}{"]" * 400}}}}}]}}',
        '{"choices": [{"message": {"tool_calls": [{"function": {"name": 5}}, 7]}}]}',
        '{"input": [{"role": "assistant", "content": "x", "tool_calls": 5}, {"type": "function_call"}]}',
    ],
    ids=lambda text: ascii(text[:40]),
)  # fmt: skip
def test_broken_and_foreign_texts_have_nothing_to_say(text: str) -> None:
    well_formed(text)


def test_what_is_none_has_nothing_to_say() -> None:
    assert messages_of(None) == []
    assert answer_of(None) is None


def well_formed(text: str) -> None:
    """Whatever is read has the shape that readers rely on."""
    answer = answer_of(text)
    for message in [*messages_of(text), *([] if answer is None else [answer])]:
        assert message["role"]
        content = message["content"]
        assert content is None or isinstance(content, (str, list))
        assert all(isinstance(part, dict) for part in content or [] if not isinstance(content, str))
        for call in message.get("tool_calls", []):
            assert {type(call["function"][name]) for name in ("name", "arguments")} == {str}
        assert isinstance(text_of(message), str)
        msgspec.json.encode(message)
