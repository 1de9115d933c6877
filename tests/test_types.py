"""The result objects: attributes and items, unknown fields, odd servers, copies."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm import masking, types
from nbllm.types import (
    ChatCompletion,
    ChatCompletionChunk,
    Message,
    Object,
    Usage,
    build,
    decoder,
    series_decoder,
)
from tests.servers import chunks, completion


def made(data: Any) -> ChatCompletion:
    return decoder(ChatCompletion)(json.dumps(data).encode())


PLAIN = completion("Hello")
RICH = completion(
    "Hello",
    provider="Fireworks",
    choices=[
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "citations": [{"url": "http://x"}],
                "_hidden": 1,
            },
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "He", "logprob": -0.1, "top_logprobs": []}]},
            "native_finish_reason": "STOP",
        }
    ],
    usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "queue_time": 0.5},
)


@pytest.mark.parametrize("data", [PLAIN, RICH], ids=["plain", "rich"])
def test_attributes_and_items_are_the_same(data: dict[str, Any]) -> None:
    answer = made(data)
    assert answer.choices[0].message.content == "Hello"
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer.get("model") == answer.model == "raw-model"
    assert answer.usage["prompt_tokens"] == answer.usage.prompt_tokens == data["usage"]["prompt_tokens"]
    assert answer.text == "Hello"


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_unknown_fields_are_kept_at_every_level() -> None:
    answer = made(RICH)
    assert answer.provider == answer["provider"] == "Fireworks"
    assert answer.usage.queue_time == 0.5
    assert answer.choices[0].native_finish_reason == "STOP"
    assert answer.choices[0].message.citations[0].url == "http://x"
    assert answer.choices[0].message["_hidden"] == 1
    assert answer.choices[0].logprobs.content[0].token == "He"
    assert answer.choices[0]["logprobs"]["content"][0]["logprob"] == -0.1
    assert isinstance(answer.usage, Usage)
    assert isinstance(answer.choices[0].message, Message)


@pytest.mark.parametrize("data", [PLAIN, RICH, *chunks()])
def test_a_dump_is_what_came(data: dict[str, Any]) -> None:
    cls = ChatCompletion if data["object"] == "chat.completion" else ChatCompletionChunk
    item = decoder(cls)(json.dumps(data))
    assert item.model_dump(exclude_none=True) == without_nulls(data)
    assert json.loads(item.model_dump_json(exclude_none=True)) == without_nulls(data)
    assert json.loads(item.model_dump_json(indent=2)) == item.model_dump()
    assert decoder(cls)(item.model_dump_json()) == item


def test_a_missing_field_is_none_and_there() -> None:
    answer = made({"id": "x"})
    assert answer.usage is None
    assert answer["usage"] is None
    assert "usage" in answer
    assert answer.get("usage", "none") == "none"
    assert answer.choices == []
    assert answer.text == ""
    assert answer.model_dump()["service_tier"] is None


def test_what_no_object_has_is_an_error() -> None:
    answer = made(PLAIN)
    with pytest.raises(AttributeError):
        answer.nonsense  # noqa: B018
    with pytest.raises(KeyError):
        answer["nonsense"]
    with pytest.raises(KeyError):
        answer["_request"]
    assert answer.get("nonsense", 3) == 3
    assert "nonsense" not in answer
    assert 3 not in answer


def test_objects_are_iterated_by_name_as_dicts_are() -> None:
    answer = made({"id": "x", "extra": 1})
    assert list(answer) == answer.keys()
    assert dict(answer)["extra"] == {**answer}["extra"] == 1


def test_a_field_may_be_set_by_attribute_or_item() -> None:
    message = Message(role="assistant", content="a")
    message["content"] = "b"
    message["note"] = "mine"
    assert (message.content, message.note, message.model_dump(exclude_none=True)["note"]) == (
        "b",
        "mine",
        "mine",
    )


@pytest.mark.parametrize("data", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal(data: dict[str, Any], copied: Any) -> None:
    answer = made(data)
    other = copied(answer)
    assert other == answer
    other["more"] = 1
    assert other != answer
    del other.more
    assert other.model_dump() == answer.model_dump()
    assert type(other) is ChatCompletion
    assert other.choices[0].message.content == "Hello"


def test_a_print_shows_what_there_is() -> None:
    text = repr(made(RICH))
    assert text.startswith("ChatCompletion(id='chatcmpl-raw', object='chat.completion'")
    assert "provider='Fireworks'" in text
    assert "None" not in text


def test_a_cell_shows_markdown() -> None:
    bundle = made(PLAIN)._repr_mimebundle_()
    assert bundle == {"text/plain": "Hello", "text/markdown": "Hello"}
    tool_call = made(completion(None))  # type: ignore[arg-type]
    assert list(tool_call._repr_mimebundle_()) == ["text/plain"]


# -- odd servers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'"text"', b"null", b"3", b"\xff", b'{"id": "\xff"}', b"[" * 99_999]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decoder(ChatCompletion)(data)


def test_an_object_nested_too_deeply_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decoder(ChatCompletion)(b'{"x":' * 99_999)
    with pytest.raises(msgspec.DecodeError):
        decoder(ChatCompletion)(b'{"x":' * 900 + b"1" + b"}" * 900)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("choices", None, []),
        ("choices", "text", []),
        ("choices", {"0": {}}, []),
        ("choices", ["text", None, {"index": 3}], [3]),
        ("usage", "none", None),
        ("usage", [], None),
        ("usage", 3, None),
    ],
)
def test_where_an_object_belongs_nothing_else_is_kept(field: str, value: Any, expected: Any) -> None:
    found = made({**PLAIN, field: value})[field]
    assert [item.index for item in found] == expected if isinstance(found, list) else found is expected


def test_plain_values_of_odd_types_are_kept() -> None:
    answer = made({**PLAIN, "created": "yesterday", "id": 7, "usage": {"prompt_tokens": "12"}})
    assert (answer.created, answer.id, answer.usage.prompt_tokens) == ("yesterday", 7, "12")


def test_an_answer_tells_its_reasoning() -> None:
    def reasoning(**fields: Any) -> str:
        return made({**PLAIN, "choices": [{"message": {"content": "x", **fields}}]}).reasoning

    assert reasoning(reasoning_content="Hm") == reasoning(reasoning="Hm", reasoning_content="") == "Hm"
    assert reasoning() == reasoning(reasoning=["odd"]) == made({"choices": []}).reasoning == ""


SERIES = [
    *chunks(),
    {**chunks()[1], "provider": "Fireworks"},
    {**chunks()[1], "choices": [{"index": 0, "delta": {"content": [{"text": "x"}], "new": {"a": None}}}]},
    {"usage": {"prompt_tokens": "12"}, "choices": None},
]


@given(st.lists(st.sampled_from(SERIES), min_size=1, max_size=12))
def test_objects_of_a_series_are_what_they_are_alone(items: list[dict[str, Any]]) -> None:
    decode = series_decoder(ChatCompletionChunk)()
    for item in items:
        data = json.dumps(item)
        alone = decoder(ChatCompletionChunk)(data)
        assert decode(data) == alone
        assert [choice.keys() for choice in decode(data).choices] == [c.keys() for c in alone.choices]


def test_what_is_no_object_is_an_error_anywhere_in_a_series() -> None:
    decode = series_decoder(ChatCompletionChunk)()
    for _ in range(3):
        assert decode(b'{"provider": "Fireworks"}')["provider"] == "Fireworks"
        for data in (b"", b"[DONE]", b"[1]", b"7", b'"\xff"', b"[" * 100_000):
            with pytest.raises(msgspec.DecodeError):
                decode(data)


def test_an_answer_in_parts_has_its_text() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image"}, {"type": "text", "text": "lo"}]
    assert made(completion(parts)).text == "Hello"  # type: ignore[arg-type]
    assert made(completion(7)).text == ""  # type: ignore[arg-type]


def test_fields_called_like_methods_break_nothing() -> None:
    odd = {"keys": [1], "get": 2, "model_dump": 3, "items": 4, "text": "5", "__class__": 6}
    answer = made({**PLAIN, "usage": {**odd}, **odd})
    assert answer["keys"] == [1]
    assert answer["get"] == 2
    assert answer.text == "Hello"
    assert answer["text"] == "5"
    assert Object.model_dump(answer)["usage"]["keys"] == [1]
    assert "keys=[1]" in repr(answer)
    assert "get" in answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
NAMES = ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "x"]
INNER = [
    "index",
    "message",
    "delta",
    "finish_reason",
    "logprobs",
    "role",
    "content",
    "tool_calls",
    "function",
]
ODD = st.dictionaries(
    st.sampled_from(NAMES),
    JSON
    | st.lists(st.dictionaries(st.sampled_from(INNER), JSON | st.dictionaries(st.sampled_from(INNER), JSON))),
)


@settings(max_examples=60, deadline=None)
@given(ODD, st.sampled_from([ChatCompletion, ChatCompletionChunk]))
def test_whatever_a_server_sends_becomes_an_object(data: dict[str, Any], cls: Any) -> None:
    item = decoder(cls)(json.dumps(data))
    assert isinstance(item.choices, list)
    for choice in item.choices:
        inner = choice.message if cls is ChatCompletion else choice.delta
        assert inner is None or isinstance(inner, Message)
        assert inner is None or inner.tool_calls is None or isinstance(inner.tool_calls, list)
    assert item.usage is None or isinstance(item.usage, Usage)
    assert isinstance(repr(item), str)
    assert isinstance(item.model_dump(), dict)
    if cls is ChatCompletion:
        assert isinstance(item.text, str)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*NAMES[:4], "extra"]), JSON))
def test_the_lenient_path_keeps_all_plain_values(data: dict[str, Any]) -> None:
    dumped = build(ChatCompletion, json.loads(json.dumps(data))).model_dump()
    assert {name: dumped[name] for name in data} == data


def test_both_paths_give_equal_objects() -> None:
    fast = made(PLAIN)
    assert build(ChatCompletion, PLAIN) == fast
    for data in chunks():
        assert build(ChatCompletionChunk, data) == decoder(ChatCompletionChunk)(json.dumps(data))


def test_every_type_is_decoded_by_the_fast_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenAI sends must not need the lenient path: it costs several times as much."""
    monkeypatch.setattr(types, "_decode_leniently", lambda *args: pytest.fail("the lenient path was taken"))
    made(PLAIN)
    for data in chunks():
        decoder(ChatCompletionChunk)(json.dumps(data))


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"half \ud83d end", "half \ufffd end"),
        (r"\ude00 and \ud83d", "\ufffd and \ufffd"),
        (r"\ud83d\ude00 and \ud83d", "\U0001f600 and \ufffd"),
        (r"\\ud83d \ud83d", "\\ud83d \ufffd"),
    ],
)
def test_half_of_a_surrogate_pair_costs_one_character(escaped: str, text: str) -> None:
    data = json.dumps(completion("TEXT")).replace("TEXT", escaped).encode()
    assert decoder(ChatCompletion)(data).text == text
    assert decoder(ChatCompletion)(data.decode()).text == text
    assert types.parse(b'{"a": "%s"}' % escaped.encode()) == {"a": text}


def test_an_answer_that_quotes_a_key_does_not_show_it_in_a_cell() -> None:
    masking.keep_secret("my-own-key-123")
    answer = types.build(ChatCompletion, {"choices": [{"message": {"content": "It is my-own-key-123."}}]})
    shown = answer._repr_mimebundle_()
    assert shown["text/plain"] == shown["text/markdown"] == "It is [key]."
    assert answer.text == "It is my-own-key-123."
