"""The Responses API on top of chat completions: requests, answers, and the events of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from nbllm.assembly import Assembly
from nbllm.exceptions import UnsupportedParamsError, UsageProblem
from nbllm.providers import anthropic, gemini, resolve
from nbllm.providers.openai_responses import ResponseAssembly
from nbllm.response_bridge import to_chat
from nbllm.response_events import ChunkEvents
from nbllm.response_output import assistant_message, from_chat
from nbllm.response_types import Response, ResponseEvent
from nbllm.types import ChatCompletion, ChatCompletionChunk, build

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
CALL_ITEM = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Rome"}'}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def messages_of(input: Any, history: Any = (), **params: Any) -> list[dict[str, Any]]:
    return to_chat(list(history), input, params)[0]


def chat_params(**params: Any) -> dict[str, Any]:
    return to_chat([], "Hi", params)[1]


# -- requests --------------------------------------------------------------------------------------


def test_a_text_is_the_users_message_after_the_history() -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    messages, chat = to_chat(history, "Who are you?", {"instructions": "Be brief.", "store": True})
    assert messages == [
        {"role": "system", "content": "Be brief."},
        *history,
        {"role": "user", "content": "Who are you?"},
    ]
    assert chat == {}
    assert len(history) == 2


def test_messages_and_their_parts() -> None:
    made = messages_of(
        [
            {"role": "developer", "content": "Be brief."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?", "cache_control": {"type": "ephemeral"}},
                    {"type": "input_image", "image_url": "https://x/a.png", "detail": "low"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
                    {
                        "type": "input_file",
                        "filename": "a.pdf",
                        "file_data": "data:application/pdf;base64,AA==",
                    },
                    {"type": "input_file", "file_url": "https://x/a.pdf"},
                    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                    {"type": "image_url", "image_url": {"url": "https://x/b.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "A "}, {"type": "refusal", "refusal": "no."}],
            },
        ]
    )
    assert made == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {
                    "type": "file",
                    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
                },
                {"type": "file", "file": {"file_data": "https://x/a.pdf"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                {"type": "image_url", "image_url": {"url": "https://x/b.png"}},
            ],
        },
        {"role": "assistant", "content": "A no."},
    ]


def test_the_items_of_one_answer_become_one_message_and_outputs_follow() -> None:
    second = {**CALL_ITEM, "call_id": "call_2", "id": "fc_2", "status": "completed"}
    made = messages_of(
        [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
            {"type": "message", "role": "assistant", "content": "Let me see."},
            CALL_ITEM,
            second,
            {"type": "message", "role": "assistant", "content": " Done."},
            {"type": "function_call_output", "call_id": "call_1", "output": "8 °C"},
            {
                "type": "function_call_output",
                "call_id": "call_2",
                "output": [{"type": "input_text", "text": "9 °C"}],
            },
            CALL_ITEM,
        ]
    )
    assert made == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see. Done.",
            "tool_calls": [CALL, {**CALL, "id": "call_2"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "8 °C"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "9 °C"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]


def test_the_history_stays_as_it_is() -> None:
    history = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    before = json.dumps(history)
    messages_of([CALL_ITEM, {"type": "function_call_output", "call_id": "call_1", "output": "8"}], history)
    assert json.dumps(history) == before


def test_parameters_get_chats_names() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {
        "type": "function",
        "name": "weather",
        "parameters": parameters,
        "strict": True,
        "description": None,
    }
    schema = {"type": "object", "properties": {}}
    assert chat_params(
        max_output_tokens=50,
        temperature=0,
        top_p=None,
        user="me",
        top_k=3,
        text={
            "format": {"type": "json_schema", "name": "sum", "schema": schema, "strict": True},
            "verbosity": "low",
        },
        reasoning={"effort": "low", "summary": "auto"},
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        previous_response_id="resp_0",
        background=False,
        truncation="disabled",
        include=[],
    ) == {
        "max_tokens": 50,
        "temperature": 0,
        "user": "me",
        "top_k": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "sum", "schema": schema, "strict": True},
        },
        "verbosity": "low",
        "reasoning_effort": "low",
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    }


def test_other_forms_of_text_and_tools() -> None:
    assert chat_params(text={"format": {"type": "json_object"}}) == {
        "response_format": {"type": "json_object"}
    }
    assert (
        chat_params(text={"format": {"type": "text"}})
        == chat_params(text={})
        == chat_params(reasoning={})
        == {}
    )
    nested = {"type": "function", "function": {"name": "weather"}}
    assert chat_params(tools=[nested], tool_choice="required") == {
        "tools": [nested],
        "tool_choice": "required",
    }


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "file_search"}}, "file_search"),
    ],
)
def test_what_chat_lacks_is_refused_by_name(params: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedParamsError, match=f"{named}.*leave it out"):
        chat_params(**params)


def test_items_that_chat_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedParamsError, match=r"input\[1\], of type 'item_reference', .*leave it out"):
        messages_of([{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": "msg_1"}])


@pytest.mark.parametrize(
    ("input", "params"),
    [
        ([], {}),
        ([{"role": "user"}], {}),
        ([{"role": "king", "content": "Hi"}], {}),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}], {}),
        ([{"role": "user", "content": [{"type": "video"}]}], {}),
        ([{"role": "user", "content": ["Hi"]}], {}),
        ([{"role": "assistant", "content": None}], {}),
        ([{"type": "function_call_output", "call_id": "call_1", "output": {"temperature": 8}}], {}),
        ("Hi", {"text": "json"}),
        ("Hi", {"text": {"format": {"type": "json_schema", "json_schema": {}}}}),
        ("Hi", {"tools": [{"name": "weather"}]}),
        ("Hi", {"tools": "weather"}),
        ("Hi", {"reasoning": "low"}),
    ],
)
def test_values_that_cannot_work_are_refused(input: Any, params: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        to_chat([], input, params)


# -- answers ---------------------------------------------------------------------------------------


def completion(finish_reason: str = "stop", usage: Any = USAGE, **message: Any) -> ChatCompletion:
    return build(
        ChatCompletion,
        {
            "id": "chatcmpl-1",
            "created": 1741476542,
            "model": "m-1",
            "choices": [
                {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
            ],
            "usage": usage,
        },
    )


def test_an_answer_with_all_kinds_of_items() -> None:
    whole = completion("tool_calls", content="Let me see.", reasoning_content="Hm.", tool_calls=[CALL])
    response = from_chat(whole, "resp_1", "resp_0")
    assert response.model_dump(exclude_none=True) == {
        "id": "resp_1",
        "object": "response",
        "created_at": 1741476542,
        "status": "completed",
        "model": "m-1",
        "previous_response_id": "resp_0",
        "output": [
            {
                "type": "reasoning",
                "id": "rs_1",
                "status": "completed",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
            },
            {**CALL_ITEM, "id": "fc_1_0", "status": "completed"},
        ],
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 3},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 15,
        },
    }
    assert response.output_text == "Let me see."


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_incomplete_answer_says_why(finish_reason: str, reason: str) -> None:
    response = from_chat(completion(finish_reason, content="Once", reasoning="Hm."), "resp_1")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == reason
    assert [item.status for item in response.output] == ["completed", "incomplete"]


def test_refusals_citations_and_empty_answers() -> None:
    refused = from_chat(completion(content=None, refusal="No."), "resp_1").output[0]
    assert [(part.type, part.refusal) for part in refused.content or ()] == [("refusal", "No.")]
    citation = {"type": "url_citation", "url_citation": {"url": "https://x", "title": "X", "start_index": 0}}
    cited = from_chat(completion(content="See X.", annotations=[citation]), "resp_1").output[0]
    assert cited.content is not None
    assert cited.model_dump()["content"][0]["annotations"] == [
        {"type": "url_citation", "url": "https://x", "title": "X", "start_index": 0}
    ]
    assert from_chat(completion(content=""), "resp_1").output == []
    assert from_chat(ChatCompletion(), "resp_1").status == "completed"


def test_the_message_for_the_history_keeps_what_the_provider_added() -> None:
    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]
    call = {**CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
    whole = completion(content=None, reasoning_content="Hm.", thinking_blocks=blocks, tool_calls=[call])
    assert assistant_message(whole) == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm.",
        "thinking_blocks": blocks,
        "tool_calls": [call],
    }
    assert assistant_message(completion()) == {"role": "assistant", "content": ""}


def test_reasoning_goes_with_the_call_that_it_led_to() -> None:
    answer = from_chat(completion("tool_calls", reasoning_content="Hm.", tool_calls=[CALL]), "resp_1")
    assert messages_of([{"role": "user", "content": "Weather?"}, *answer.output])[1:] == [
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]}
    ]


def test_a_providers_id_of_a_message_is_not_that_of_the_item() -> None:
    events, whole = streamed({"content": "Hi", "id": "own", "status": "odd"})
    assert [item.id for item in from_chat(whole, "resp_1").output] == ["msg_1"]
    assert [event.item.id for event in events if event.item] == ["msg_1", "msg_1"]


def test_signatures_find_back_to_the_provider_through_the_next_input() -> None:
    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]
    signed = {**CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "8 °C"}
    answer = from_chat(
        completion(reasoning_content="Hm.", thinking_blocks=blocks, tool_calls=[signed]), "resp_1"
    )
    messages, chat = to_chat([], [{"role": "user", "content": "Weather?"}, *answer.output, output], {})
    assert messages[1]["thinking_blocks"] == blocks
    for provider, dialect in (("anthropic", anthropic), ("gemini", gemini)):
        route = resolve(f"{provider}/m", api_key="k")
        body = dialect.chat_request(route, messages, False, chat).body or b""
        assert b'"c2ln"' in body


# -- streams ---------------------------------------------------------------------------------------


def streamed(
    *deltas: dict[str, Any], finish_reason: str = "stop"
) -> tuple[list[ResponseEvent], ChatCompletion]:
    """The events for chunks of these deltas, and the whole answer."""
    base = {"id": "chatcmpl-1", "created": 1741476542, "model": "m-1"}
    chunks = [
        {**base, "choices": [{"index": 0, "delta": delta}]} for delta in ({"role": "assistant"}, *deltas)
    ]
    chunks.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    chunks.append({**base, "choices": [], "usage": USAGE})
    assembly, translator = Assembly(), ChunkEvents("resp_1", "resp_0")
    events = []
    for chunk in chunks:
        made = build(ChatCompletionChunk, chunk)
        assembly.add(made)
        events += translator.feed(made)
    return [*events, *translator.finish(assembly.completion())], assembly.completion()


def piece(index: int, arguments: str, **fields: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": fields.pop("name")} if "name" in fields else {})}
    return {"tool_calls": [{"index": index, "function": function, **fields}]}


TEXT = ({"content": "Once"}, {"content": " more"})
ALL = (
    {"reasoning_content": "H"},
    {"reasoning_content": "m."},
    *TEXT,
    piece(0, "", name="weather", id="call_1", type="function"),
    piece(0, '{"city":'),
    piece(0, '"Rome"}'),
    piece(1, "{}", name="time", id="call_2", type="function"),
)
LATE = ({"content": "A"}, {"reasoning_content": "H"}, {"content": "B"}, {"reasoning_content": "m"})
UNSEEN = ({"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}, piece(0, "{}", name="t", id="c"))


def test_the_events_of_a_text() -> None:
    events, whole = streamed(*TEXT)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    first = events[0].response
    assert first is not None
    assert (first.id, first.status, first.model, first.output) == ("resp_1", "in_progress", "m-1", [])
    added = events[2].item
    assert added is not None
    assert (added.id, added.status, added.content) == ("msg_1", "in_progress", [])
    assert [event.delta for event in events[4:6]] == ["Once", " more"]
    assert (events[6].text, events[6].content_index, events[6].output_index) == ("Once more", 0, 0)
    assert events[-1].response == from_chat(whole, "resp_1", "resp_0")


def test_each_item_is_done_before_the_next_begins() -> None:
    events, _ = streamed(*ALL)
    places = [event.output_index for event in events if event.output_index is not None]
    assert places == sorted(places)
    told = [(event.type, event.arguments) for event in events if event.output_index == 2]
    assert told == [
        ("response.output_item.added", None),
        ("response.function_call_arguments.delta", None),
        ("response.function_call_arguments.delta", None),
        ("response.function_call_arguments.done", '{"city":"Rome"}'),
        ("response.output_item.done", None),
    ]


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize(
    "deltas", [(), TEXT, ALL, ({"refusal": "No"}, {"refusal": "."}), (*TEXT, {"refusal": "No"})]
)
def test_a_stream_gives_the_response_of_the_whole_answer(deltas: Any, finish_reason: str) -> None:
    events, whole = streamed(*deltas, finish_reason=finish_reason)
    expected = from_chat(whole, "resp_1", "resp_0")
    assembly, broken_off = ResponseAssembly(), ResponseAssembly()
    for event in events:
        assembly.add(event)
    for event in events[:-1]:
        broken_off.add(event)
    assert assembly.response == expected
    assert (assembly.text, assembly.usage, assembly.finished) == (expected.output_text, expected.usage, True)
    assert broken_off.response.output == expected.output
    assert events[-1].type == f"response.{expected.status}"


@pytest.mark.parametrize("deltas", [LATE, UNSEEN])
def test_what_comes_out_of_order_is_in_the_last_event(deltas: Any) -> None:
    events, whole = streamed(*deltas)
    expected = from_chat(whole, "resp_1", "resp_0")
    assembly = ResponseAssembly()
    for event in events:
        assembly.add(event)
    assert sorted(assembly.response.output, key=str) == sorted(expected.output, key=str)
    added = [event.item.id for event in events if event.type == "response.output_item.added" and event.item]
    assert [item.id for item in assembly.response.output] == added
    assert assembly.text == expected.output_text


def test_late_deltas_add_to_an_item_that_is_done() -> None:
    assembly = ResponseAssembly()
    for event in streamed(*LATE)[0]:
        if event.type == "response.completed":
            break
        assembly.add(event)
    assert assembly.response.output_text == "AB"


def test_an_answer_without_chunks_is_told_whole() -> None:
    whole = completion(content="Hi", tool_calls=[CALL])
    events = ChunkEvents("resp_1").finish(whole)
    deltas = [event.delta for event in events if event.delta]
    assert deltas == ["Hi", '{"city":"Rome"}']
    assert events[-1].response == from_chat(whole, "resp_1")


@pytest.mark.parametrize("deltas", [TEXT, ALL, ({"refusal": "No"},)])
def test_the_events_are_valid_for_the_sdk(deltas: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    echoed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    for event in streamed(*deltas)[0]:
        plain = event.model_dump(exclude_none=True)
        if event.response is not None:
            plain["response"] |= echoed
            if usage := plain["response"].get("usage"):
                usage["input_tokens_details"]["cache_write_tokens"] = 0
        if event.type in ("response.output_text.delta", "response.output_text.done"):
            plain["logprobs"] = []
        found = adapter.validate_python(plain)
        assert found.type == event.type
    final = event.response
    assert isinstance(final, Response)
    assert SdkResponse.model_validate(plain["response"]).output_text == final.output_text
