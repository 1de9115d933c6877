"""Chunks put together: texts, several choices, tool calls, reasoning, logprobs, usage, odd deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.assembly import Assembly
from nbllm.types import ChatCompletionChunk, decoder
from tests.servers import TEXT, USAGE, chunk, chunks


def fed(items: list[dict[str, Any]]) -> tuple[Assembly, list[bool]]:
    assembly = Assembly()
    return assembly, [assembly.add(decoder(ChatCompletionChunk)(json.dumps(item))) for item in items]


def put_together(items: list[dict[str, Any]]) -> Any:
    return fed(items)[0].completion()


def choice(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return chunk(None) | {"choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}


def test_a_plain_answer() -> None:
    assembly, content = fed(chunks())
    assert assembly.text == TEXT
    assert content == [False, True, True, True, True, True, False, False]
    assert (assembly.count, assembly.finish_reason) == (8, "stop")
    answer = assembly.completion()
    assert answer.model_dump(exclude_none=True) == {
        "id": "chatcmpl-raw",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "raw-model",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
        ],
        "usage": USAGE,
    }


def test_nothing_yet_is_an_empty_answer() -> None:
    answer = Assembly().completion()
    assert answer.text == ""
    assert answer.choices[0].message.content is None
    assert answer.usage is None


def test_what_has_come_can_be_seen_at_any_time() -> None:
    assembly = Assembly()
    texts = []
    for item in chunks():
        assembly.add(decoder(ChatCompletionChunk)(json.dumps(item)))
        texts.append(assembly.completion().text)
        assert texts[-1] == assembly.text
    assert texts[-1] == TEXT
    assert texts == sorted(texts, key=len)


def test_choices_are_told_apart_by_their_index() -> None:
    answer = put_together(
        [
            choice({"role": "assistant", "content": ""}, 1),
            choice({"content": "b"}, 1),
            choice({"content": "a"}, 0),
            choice({"content": "B"}, 1, "length"),
            choice({"content": "A"}, 0, "stop"),
        ]
    )
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "aA", "stop"),
        (1, "bB", "length"),
    ]


def test_several_choices_in_one_chunk() -> None:
    both = chunk(None) | {"choices": [{"index": i, "delta": {"content": str(i)}} for i in (0, 1)]}
    assert [c.message.content for c in put_together([both, both]).choices] == ["00", "11"]


def test_the_first_choices_finish_reason_is_not_another_ones() -> None:
    assembly, _ = fed([choice({"content": "x"}, 1, "length"), choice({"content": "y"}, 0)])
    assert assembly.finish_reason is None


def call(index: int | None, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{**({} if index is None else {"index": index}), **more}]}


def test_tool_calls_come_in_pieces() -> None:
    answer = put_together(
        [
            choice({"role": "assistant", "content": None}),
            choice(call(0, id="call_a", type="function", function={"name": "add", "arguments": ""})),
            choice(call(1, id="call_b", type="function", function={"name": "mul", "arguments": ""})),
            choice(call(0, function={"arguments": '{"x"'})),
            choice(call(1, function={"arguments": '{"y"'})),
            choice(call(0, function={"arguments": ": 1}"})),
            choice(call(1, function={"arguments": ": 2}"})),
            choice({}, finish="tool_calls"),
        ]
    )
    message = answer.choices[0].message
    assert message.content is None
    assert [c.model_dump(exclude_none=True) for c in message.tool_calls] == [
        {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "mul", "arguments": '{"y": 2}'}},
    ]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.text == ""


def test_tool_calls_without_an_index_are_whole_ones() -> None:
    pieces = [choice(call(None, id=f"c{i}", function={"name": f"f{i}", "arguments": "{}"})) for i in (0, 1)]
    found = put_together(pieces).choices[0].message.tool_calls
    assert [(c.id, c.function.name, c.type) for c in found] == [
        ("c0", "f0", "function"),
        ("c1", "f1", "function"),
    ]


def test_arguments_sent_as_an_object_become_their_json() -> None:
    found = put_together(
        [choice(call(0, id="c", function={"name": "f", "arguments": {"x": [1, {"y": None}]}}))]
    )
    assert json.loads(found.choices[0].message.tool_calls[0].function.arguments) == {"x": [1, {"y": None}]}


def test_fields_that_a_server_adds_to_tool_calls_are_kept() -> None:
    """Gemini's thought signatures, without which it refuses the next request."""
    extra = {"google": {"thought_signature": "abc"}}
    found = put_together(
        [
            choice(call(0, id="c", extra_content=extra, function={"name": "f", "arguments": "{"})),
            choice(call(0, function={"arguments": "}"})),
        ]
    )
    (tool_call,) = found.choices[0].message.tool_calls
    assert tool_call.extra_content.google.thought_signature == "abc"
    assert tool_call.function.arguments == "{}"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "refusal", "thinking"])
def test_texts_of_other_names_are_added_up(name: str) -> None:
    assembly, content = fed([choice({name: "Hm", "content": ""}), choice({name: "m", "content": "so"})])
    message = assembly.completion().choices[0].message
    assert message[name] == "Hmm"
    assert message.content == "so"
    assert content == [True, True]


@pytest.mark.parametrize(
    "names", [("reasoning_content",), ("reasoning",), ("reasoning", "reasoning_content")]
)
def test_the_reasoning_so_far_whatever_its_name(names: tuple[str, ...]) -> None:
    pieces = [{"role": "assistant"}, {"x": "Hm"}, {"x": "m"}, {"content": "so", "x": None}]
    assembly = Assembly()
    seen = []
    for piece in pieces:
        delta = {name: value for key, value in piece.items() for name in (names if key == "x" else (key,))}
        other = {"index": 1, "delta": {"reasoning": "another choice's"}}
        item = chunk(None) | {"choices": [{"index": 0, "delta": delta}, other]}
        assembly.add(decoder(ChatCompletionChunk)(json.dumps(item)))
        seen.append(assembly.reasoning)
        assert assembly.completion().reasoning == assembly.reasoning
    assert seen == ["", "Hm", "Hmm", "Hmm"]
    assert assembly.text == "so"


def test_unknown_fields_of_a_delta_are_kept() -> None:
    answer = put_together(
        [
            choice({"content": "a", "citations": ["http://x"]}),
            choice({"content": "b", "annotations": [{"u": 1}]}),
        ]
    )
    assert answer.choices[0].message.citations == ["http://x"]
    assert answer.choices[0].message.annotations[0].u == 1
    assert answer.text == "ab"


def test_logprobs_are_put_together() -> None:
    tokens = [{"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": []} for t in "abc"]
    answer = put_together(
        [
            choice({"role": "assistant", "content": ""}, logprobs=None),
            *(choice({"content": t["token"]}, logprobs={"content": [t], "refusal": None}) for t in tokens),
            choice({}, finish="stop", logprobs=None),
        ]
    )
    assert answer.text == "abc"
    found = answer.choices[0].logprobs
    assert [t.token for t in found.content] == ["a", "b", "c"]
    assert found["content"][0]["logprob"] == -0.5


def test_no_logprobs_are_none() -> None:
    assert put_together(chunks()).choices[0].logprobs is None


def test_usage_may_come_anywhere() -> None:
    with_text = chunk({"content": "x"}, usage=USAGE)
    assert fed([with_text, chunk({"content": "y"}, usage=None)])[0].usage.prompt_tokens == 11


def test_the_first_chunk_names_the_answer() -> None:
    answer = put_together(
        [
            chunk({"content": "x"}, system_fingerprint="fp", service_tier="flex"),
            chunk({"content": "y"}) | {"id": "b"},
        ]
    )
    assert (answer.id, answer.system_fingerprint, answer.service_tier) == ("chatcmpl-raw", "fp", "flex")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 7},
        {"content": ["a", {"text": "b"}]},
        {"content": {"text": "b"}},
        {"tool_calls": "none"},
        {"tool_calls": [None, 3]},
        {"tool_calls": [{"index": "a"}]},
        {"tool_calls": [{"index": 0, "function": "f"}]},
        {"tool_calls": [{"index": 0, "function": {"name": 3, "arguments": {"x": 1}}}]},
        {"role": 3},
        {"audio": {"data": "xx"}},
    ],
)
def test_odd_deltas_break_nothing(delta: dict[str, Any]) -> None:
    items = [chunk({"content": "a"}), chunk(delta), chunk({"content": "b"}), chunk({}, "stop")]
    answer = put_together(items)
    assert answer.text == "ab"
    assert isinstance(answer.model_dump(), dict)


@pytest.mark.parametrize(
    "odd", [{"choices": None}, {"choices": ["x"]}, {"choices": [{"index": "x"}]}, {"usage": "x"}]
)
def test_odd_chunks_break_nothing(odd: dict[str, Any]) -> None:
    assert put_together([chunk({"content": "a"}), chunk(None) | odd, chunk({"content": "b"})]).text == "ab"


TEXTS = st.lists(st.text(min_size=1, max_size=4), max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["content", "refusal", "extra"]), st.text(max_size=3))
    )
)
def test_any_order_of_pieces_adds_up(pieces: list[tuple[int, str, str]]) -> None:
    answer = put_together([choice({name: text}, index) for index, name, text in pieces])
    for index in {index for index, _, _ in pieces} | {0}:
        (found,) = [c for c in answer.choices if c.index == index]
        for name in ("content", "refusal", "extra"):
            expected = "".join(text for i, n, text in pieces if (i, n) == (index, name))
            assert (found.message.get(name) or "") == expected
