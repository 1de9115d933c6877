"""The wire format of OpenAI's Responses API on recorded JSON: requests, answers, events, errors.

The examples are those of OpenAI's API reference ("Create a model response", "Streaming events"), shortened.
"""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import msgspec
import openai as openai_sdk
import pytest
from openai.types.responses import response_create_params

from nbllm.exceptions import UsageProblem
from nbllm.providers import openai_responses, resolve
from nbllm.providers.openai_responses import ResponseAssembly, event_error, responses_response
from nbllm.response_types import (
    OutputItem,
    Response,
    ResponseEvent,
    ResponseUsage,
    chat_usage,
    response_usage,
)
from nbllm.types import Usage

ROUTE = resolve("openai/gpt-5.4", base_url="https://host/v1/", api_key="sk-secret-key-123")
EVENT: Any = openai_responses.event_decoder()

MESSAGE = {
    "type": "message",
    "id": "msg_67cc",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "A unicorn named Lumina.", "annotations": []}],
}
CALL = {
    "type": "function_call",
    "id": "fc_67ca",
    "call_id": "call_unLA",
    "name": "get_current_weather",
    "arguments": '{"location":"Boston, MA","unit":"celsius"}',
    "status": "completed",
}
USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 123,
}


def wire(**fields: Any) -> dict[str, Any]:
    """A response as it comes, with every field that OpenAI echoes."""
    return {
        "id": "resp_67cc",
        "object": "response",
        "created_at": 1741476542,
        "status": "completed",
        "completed_at": 1741476543,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "gpt-5.4",
        "output": [MESSAGE],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": USAGE,
        "user": None,
        "metadata": {},
        **fields,
    }


def decoded(**fields: Any) -> Response:
    return responses_response(json.dumps(wire(**fields)).encode())


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list) else value


def event(kind: str | None, **fields: Any) -> ResponseEvent:
    found: ResponseEvent = EVENT(json.dumps({**({"type": kind} if kind else {}), **fields}).encode())
    return found


def body_of(input: Any = "Hi", stream: bool = False, **params: Any) -> dict[str, Any]:
    more = {name: params.pop(name) for name in ("extra_body", "metadata") if name in params}
    sent = openai_responses.responses_request(ROUTE, input, stream, params, **more)
    result: dict[str, Any] = json.loads(sent.body or b"")
    return result


# -- requests --------------------------------------------------------------------------------------


def test_the_smallest_request() -> None:
    sent = openai_responses.responses_request(ROUTE, "Hi", False, {})
    assert sent.url == "https://host/v1/responses"
    assert json.loads(sent.body or b"") == {"model": "gpt-5.4", "input": "Hi"}
    assert sent.params is None
    assert sent.headers["Authorization"] == "Bearer sk-secret-key-123"


def test_parameters_metadata_and_extra_body_are_sent_and_shown() -> None:
    sent = openai_responses.responses_request(
        ROUTE,
        "Hi",
        True,
        {"instructions": "Be brief.", "temperature": None, "reasoning": {"effort": "low"}},
        {"prompt_cache_key": "k"},
        {"project": "x"},
    )
    shown = {
        "instructions": "Be brief.",
        "reasoning": {"effort": "low"},
        "prompt_cache_key": "k",
        "metadata": {"project": "x"},
    }
    assert json.loads(sent.body or b"") == {"model": "gpt-5.4", "input": "Hi", "stream": True, **shown}
    del shown["instructions"]  # what is said is content, which can be switched off
    assert json.loads(sent.params or b"") == shown


def test_every_parameter_of_the_sdk_is_known() -> None:
    """Those of a newer SDK too: they may be unknown here, but are taken for nobody's slip."""
    known = set(response_create_params.ResponseCreateParamsBase.__annotations__) - {"model", "input"}
    assert len(known & openai_responses._PARAMETERS) > 25
    for name in known:
        assert body_of("Hi", **{name: "x"})[name] == "x"


def test_output_items_go_into_the_next_input_with_unknown_fields_but_without_nulls() -> None:
    searched = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "x"}}
    answer = decoded(output=[searched, MESSAGE, CALL])
    result = {"type": "function_call_output", "call_id": "call_unLA", "output": "8 °C"}
    sent = body_of([*answer.output, result])
    assert sent["input"] == [searched, MESSAGE, CALL, result]
    nested = body_of([{"role": "assistant", "content": answer.output[1].content}])
    assert nested["input"] == [{"role": "assistant", "content": MESSAGE["content"]}]


def test_items_of_the_sdk_go_into_the_next_input() -> None:
    item = openai_sdk.types.responses.ResponseFunctionToolCall.model_validate(CALL)
    assert body_of((item,))["input"] == [CALL]


@pytest.mark.parametrize("wrong", [None, 7, {"role": "user", "content": "Hi"}, ["Hi"], decoded()])
def test_an_input_that_is_no_list_of_items_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageProblem, match="input"):
        body_of(wrong)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_tokens", "max_output_tokens="),
        ("response_format", "text={'format'"),
        ("previous_respond_id", "did you mean 'previous_response_id'"),
    ],
)
def test_names_of_chat_and_near_misses_are_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        body_of(**{name: 1})
    assert hint in str(caught.value)


def test_other_servers_parameters_pass() -> None:
    assert body_of(top_k=5)["top_k"] == 5


# -- answers ---------------------------------------------------------------------------------------


def test_a_plain_answer() -> None:
    answer = decoded()
    assert answer.output_text == "A unicorn named Lumina."
    assert (answer.id, answer.status, answer.created_at) == ("resp_67cc", "completed", 1741476542)
    assert answer.usage is not None
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 12
    assert answer["text"]["format"]["type"] == "text"
    assert answer.model_dump(exclude_none=True) == without_nulls(wire())
    assert answer._repr_mimebundle_()["text/markdown"] == "A unicorn named Lumina."
    assert answer.requests == ()


def test_an_answer_survives_pickle_and_copy() -> None:
    answer = decoded(output=[MESSAGE, {**CALL, "namespace": "crm"}])
    assert pickle.loads(pickle.dumps(answer)) == answer == copy.deepcopy(answer)


def test_a_function_call_has_no_text_and_shows_itself() -> None:
    answer = decoded(
        output=[CALL], tools=[{"type": "function", "name": "get_current_weather", "strict": True}]
    )
    assert answer.output_text == ""
    assert json.loads(answer.output[0].arguments or "") == {"location": "Boston, MA", "unit": "celsius"}
    assert answer.tools is not None
    assert answer.tools[0]["name"] == "get_current_weather"
    assert "get_current_weather" in answer._repr_mimebundle_()["text/plain"]


def test_a_structured_answer() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    part = {"type": "output_text", "text": '{"answer":42}', "annotations": [], "logprobs": []}
    answer = decoded(
        output=[{**MESSAGE, "content": [part]}],
        text={"format": {"type": "json_schema", "name": "sum", "schema": schema}, "verbosity": "medium"},
    )
    assert json.loads(answer.output_text) == {"answer": 42}
    assert answer.text is not None
    assert answer.text["format"]["schema"]["properties"]["answer"]["type"] == "integer"


def test_text_is_of_messages_alone_and_refusals_are_none() -> None:
    parts = [*MESSAGE["content"], {"type": "refusal", "refusal": "No."}]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    answer = decoded(output=[thought, {**MESSAGE, "content": parts}, MESSAGE])
    assert answer.output_text == "A unicorn named Lumina." * 2
    assert answer.output[0].summary is not None
    assert answer.output[0].summary[0].text == "Hm."


def test_an_incomplete_and_a_failed_answer() -> None:
    answer = decoded(status="incomplete", incomplete_details={"reason": "max_output_tokens"}, output=[])
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    failed = decoded(
        status="failed", error={"code": "server_error", "message": "The model failed."}, usage=None
    )
    assert failed.error is not None
    assert (failed.error.code, failed.usage) == ("server_error", None)


def test_what_is_no_json_object_is_refused() -> None:
    for body in (b"<html>", b"[]", b""):
        with pytest.raises(msgspec.DecodeError):
            responses_response(body)


def test_usage_turns_into_that_of_chat_and_back() -> None:
    answer = decoded()
    usage = chat_usage(answer.usage)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (36, 87, 123)
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.cache_write_tokens) == (
        4,
        2,
    )
    assert response_usage(usage) == answer.usage
    assert chat_usage(None) is None
    assert chat_usage(ResponseUsage()) == Usage()


# -- streams ---------------------------------------------------------------------------------------


def started() -> list[ResponseEvent]:
    response = wire(status="in_progress", output=[], usage=None, completed_at=None)
    return [
        event("response.created", response=response, sequence_number=0),
        event("response.in_progress", response=response, sequence_number=1),
    ]


PLACE = {"item_id": "msg_67cc", "output_index": 0, "content_index": 0}


def told(*deltas: str) -> list[ResponseEvent]:
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return [
        *started(),
        event(
            "response.output_item.added",
            output_index=0,
            item={**MESSAGE, "status": "in_progress", "content": []},
        ),
        event("response.content_part.added", **PLACE, part=empty),
        *(
            event("response.output_text.delta", **PLACE, delta=delta, logprobs=[], obfuscation="x9k")
            for delta in deltas
        ),
    ]


def test_a_streamed_answer_is_that_of_its_last_event() -> None:
    text = "A unicorn named Lumina."
    assembly = ResponseAssembly()
    brought = [assembly.add(item) for item in told("A unicorn", " named Lumina.")]
    assert brought == [False, False, False, False, True, True]
    assert (assembly.text, assembly.finished, assembly.usage) == (text, False, None)
    for item in (
        event("response.output_text.done", **PLACE, text=text),
        event("response.content_part.done", **PLACE, part=MESSAGE["content"][0]),
        event("response.output_item.done", output_index=0, item=MESSAGE),
        event("response.completed", response=wire()),
    ):
        assert not assembly.add(item)
    assert (assembly.text, assembly.finished, assembly.count) == (text, True, 10)
    assert assembly.response == decoded()
    assert assembly.usage == decoded().usage


def test_what_has_come_so_far_is_a_response() -> None:
    assembly = ResponseAssembly()
    assert assembly.response.output == []
    for item in told("A uni", "corn"):
        assembly.add(item)
    so_far = assembly.response
    assert (so_far.id, so_far.status, so_far.output_text) == ("resp_67cc", "in_progress", "A unicorn")
    assert so_far.output[0].id == "msg_67cc"
    assembly.add(event("response.output_text.delta", **PLACE, delta="!"))
    assert (so_far.output_text, assembly.response.output_text) == ("A unicorn", "A unicorn!")


def test_a_last_event_without_items_leaves_those_that_came() -> None:
    assembly = ResponseAssembly()
    for item in [*told("A"), event("response.output_item.done", output_index=0, item=MESSAGE)]:
        assembly.add(item)
    assembly.add(event("response.completed", response=wire(output=[])))
    assert assembly.response == decoded()


def test_reasoning_refusals_and_function_calls_are_content() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    begun = {**CALL, "arguments": "", "status": "in_progress"}
    summary = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    call = {"item_id": "fc_67ca", "output_index": 2}
    assembly = ResponseAssembly()
    brought = [
        assembly.add(item)
        for item in (
            *started(),
            event("response.output_item.added", output_index=0, item=thought),
            event("response.reasoning_summary_text.delta", **summary, delta="Hm"),
            event("response.reasoning_summary_text.delta", **{**summary, "summary_index": 1}, delta="So"),
            event(
                "response.reasoning_text.delta", item_id="rs_1", output_index=0, content_index=0, delta="1+1"
            ),
            event("response.refusal.delta", **{**PLACE, "output_index": 1}, delta="No"),
            event("response.output_item.added", output_index=2, item=begun),
            event("response.function_call_arguments.delta", **call, delta='{"location"'),
            event("response.function_call_arguments.delta", **call, delta=""),
            event("response.function_call_arguments.delta", **call, delta=":1}"),
        )
    ]
    assert brought == [False, False, False, True, True, True, True, False, True, False, True]
    reasoning, message, function_call = assembly.response.output
    assert [part.text for part in reasoning.summary or ()] == ["Hm", "So"]
    assert [(part.type, part.text) for part in reasoning.content or ()] == [("reasoning_text", "1+1")]
    assert [(part.type, part.refusal) for part in message.content or ()] == [("refusal", "No")]
    assert (function_call.name, function_call.arguments) == ("get_current_weather", '{"location":1}')
    assert assembly.text == ""


def test_an_event_with_fields_of_its_own_keeps_them() -> None:
    found = event(
        "response.output_text.annotation.added",
        **PLACE,
        annotation={"type": "url_citation", "url": "https://x"},
        annotation_index=0,
    )
    assert found["annotation"]["url"] == "https://x"
    assert found["annotation_index"] == 0


@pytest.mark.parametrize(
    "found",
    [
        event("error", code="ERR", message="It broke", param=None, sequence_number=1),
        event("error", error={"code": "ERR", "message": "It broke", "param": None}, sequence_number=2),
        event(
            "response.failed", response=wire(status="failed", error={"code": "ERR", "message": "It broke"})
        ),
        event(None, error={"code": "ERR", "message": "It broke"}),
    ],
)
def test_errors_in_a_stream_are_recognised(found: ResponseEvent) -> None:
    assert event_error(found) == {"code": "ERR", "message": "It broke"}


def test_an_error_without_a_reason_is_one_and_other_events_are_none() -> None:
    failed = event_error(event("response.failed", response=wire(status="failed")))
    assert failed == {"code": None, "message": "the response failed; no reason was given"}
    assert event_error(event(None, error="it broke")) == {"code": None, "message": "it broke"}
    assert [event_error(item) for item in [*told("A"), event("response.incomplete", response=wire())]] == [
        None
    ] * 6


@pytest.mark.parametrize(
    ("kind", "finished"),
    [("response.incomplete", True), ("response.failed", True), ("response.in_progress", False)],
)
def test_which_events_end_an_answer(kind: str, finished: bool) -> None:
    assembly = ResponseAssembly()
    assembly.add(event(kind, response=wire(output=[])))
    assert assembly.finished is finished


def test_items_of_odd_shapes_do_not_break_an_answer() -> None:
    answer = decoded(output=[{"type": "message", "content": "text"}, 7, {"type": "shell_call", "delta": [1]}])
    assert answer.output_text == ""
    assert [item.type for item in answer.output] == ["message", "shell_call"]
    assert isinstance(answer.output[0], OutputItem)


def test_events_without_places_and_of_odd_shapes_do_not_break_a_stream() -> None:
    assembly = ResponseAssembly()
    for item in (
        event("response.output_item.added", output_index={}, item={**CALL, "arguments": {}}),
        event("response.function_call_arguments.delta", delta="{}"),
        event("response.output_text.delta", delta="Hi", output_index=1, content_index=10**9),
        event("response.shell_call_output_content.delta", delta={"stdout": "x"}),
        event("response.audio.delta", delta="AAAA"),
    ):
        assembly.add(item)
    call, message = assembly.response.output
    assert (call.arguments, message.type, assembly.response.output_text) == ("{}", "message", "Hi")
