"""OpenAI's wire format of responses: requests, answers, and the events of a stream.

Source: OpenAI API reference, "Create a model response" and "Streaming events"; what other servers do
differently is named where it is handled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ..exceptions import UsageProblem, did_you_mean
from ..response_types import ContentPart, OutputItem, Response, ResponseEvent, ResponseUsage, input_items
from ..types import decoder, plain
from .base import HttpRequest, Route
from .encoding import encode

# OpenAI's parameters of responses, without model, input and stream.
_RESPONSE_PARAMETERS = """
    access_programs background context_management conversation image include instructions max_output_tokens
    max_tool_calls metadata moderation parallel_tool_calls previous_response_id prompt prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream_options
    temperature text tool_choice tools top_logprobs top_p truncation user
"""
_PARAMETERS = frozenset(_RESPONSE_PARAMETERS.split())

# Where chat's parameters have gone (OpenAI guide "Migrate to the Responses API").
_MOVED = {
    "messages": "input=",
    "max_tokens": "max_output_tokens=",
    "max_completion_tokens": "max_output_tokens=",
    "reasoning_effort": "reasoning={'effort': …}",
    "response_format": "text={'format': …}",
    "verbosity": "text={'verbosity': …}",
}


def responses_request(
    route: Route,
    input: Any,
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for a response.

    Args:
        route: Where it goes.
        input: A text, or a list of items in OpenAI's form; items of an earlier `response.output` may be
            among them.
        stream: Whether the answer shall come as server-sent events.
        params: OpenAI's parameters under their names; those that are None are left out.
        extra_body: Fields to put into the body as they are.
        metadata: The caller's `metadata`, which OpenAI keeps with the response.

    Raises:
        UsageProblem: A value that can't work, a parameter of chat completions, or a name that is nearly one
            of OpenAI's.
    """
    sent: dict[str, Any] = {}
    for name, value in params.items():
        if name not in _PARAMETERS:
            _refuse_misnamed(name)
        if value is not None:
            sent[name] = value
    if metadata:
        sent["metadata"] = metadata
    sent.update(extra_body or {})
    given = input if isinstance(input, str) else input_items(input)
    body: dict[str, Any] = {"model": route.model, "input": given, **sent}
    if stream:
        body["stream"] = True
    kept = {name: value for name, value in sent.items() if name not in _SAID}
    return HttpRequest(route.url("responses"), encode(body), route.headers, encode(kept) if kept else None)


_SAID = ("input", "instructions", "prompt")  # what the log keeps as content, or not at all


def _refuse_misnamed(name: str) -> None:
    if name in _MOVED:
        raise UsageProblem(f"responses have no parameter {name!r}: use {_MOVED[name]}")
    if meant := did_you_mean(name, _PARAMETERS, cutoff=0.88):  # other servers' own parameters must pass
        raise UsageProblem(
            f"there is no parameter {name!r}{meant} To send it as it is: extra_body={{{name!r}: …}}"
        )


# From JSON text to a whole answer, and to one event of a streamed one. They raise msgspec.DecodeError where
# the text is not a JSON object.
responses_response = decoder(Response)
_event = decoder(ResponseEvent)


def event_decoder() -> Callable[[bytes], ResponseEvent | None]:
    """The decoder of a stream's events."""
    return _event


def event_error(event: ResponseEvent) -> dict[str, Any] | None:
    """The error that an event holds, with `code` and `message`; None where it holds none."""
    if event.type == "response.failed":
        error: Any = event.response.error if event.response is not None else None
    elif event.type == "error" or (event.type is None and event.get("error")):
        # The reference has code and message in the event itself. OpenAI has sent them under `error` too, and
        # servers such as vLLM break off so, without a type.
        error = event.get("error") or {name: event[name] for name in _ERROR_FIELDS if event[name]}
    else:
        return None
    fields = plain(error, exclude_none=True)
    if not isinstance(fields, dict):
        fields = {} if fields is None else {"message": str(fields)}
    return {"code": None, "message": "the response failed; no reason was given", **fields}


_ERROR_FIELDS = ("code", "message", "param")
_ENDINGS = frozenset(("response.completed", "response.incomplete", "response.failed"))

# What a delta adds to: a field of the item, and for a list of parts the kind of part.
_DELTAS = {
    "response.output_text.delta": ("content", "output_text"),
    "response.refusal.delta": ("content", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text"),
    "response.function_call_arguments.delta": ("arguments", ""),
}


class ResponseAssembly:
    """A streamed answer so far.

    Attributes:
        finished: Whether the event has come that ends every answer: completed, incomplete or failed.
        count: Events taken in.
    """

    def __init__(self) -> None:
        self.finished = False
        self.count = 0
        self._latest = Response(object="response", status="in_progress")
        self._items: dict[int, OutputItem] = {}
        self._texts: list[str] = []
        # Deltas of items that are not done, by the item's place, the event's type and the part's place.
        self._pieces: dict[tuple[int, str, int], list[str]] = {}

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts) or self._latest.output_text

    @property
    def usage(self) -> ResponseUsage | None:
        """Token counts, once the last event has brought them; else None."""
        return self._latest.usage

    @property
    def response(self) -> Response:
        """The answer that the last event brought, or what has come of it so far."""
        if self._latest.output or not self._items:
            return self._latest
        response = copy.copy(self._latest)  # a last event without items: some servers leave them out
        response.output = [self._item(index) for index in sorted(self._items)]
        return response

    def add(self, event: ResponseEvent) -> bool:
        """Take an event in; True if it brought content (text, reasoning, a refusal, arguments)."""
        self.count += 1
        kind, delta = str(event.type), event.delta
        if isinstance(delta, str) and delta:
            if kind in _DELTAS:
                self._add_delta(event, kind, delta)
            return kind.endswith(".delta")
        if event.response is not None:
            self._latest = event.response
            self.finished = kind in _ENDINGS
        elif event.item is not None:
            index = _place(event.output_index)
            self._items[index] = event.item
            if kind == "response.output_item.done":  # it has all that its deltas brought
                self._pieces = {key: texts for key, texts in self._pieces.items() if key[0] != index}
        return False

    def _add_delta(self, event: ResponseEvent, kind: str, delta: str) -> None:
        if kind == "response.output_text.delta":
            self._texts.append(delta)
        part = event.content_index if event.summary_index is None else event.summary_index
        key = (_place(event.output_index), kind, _place(part))
        if (pieces := self._pieces.get(key)) is None:
            pieces = self._pieces[key] = []
            self._items.setdefault(key[0], OutputItem(type="message", id=event.item_id, role="assistant"))
        pieces.append(delta)

    def _item(self, index: int) -> OutputItem:
        item = copy.deepcopy(self._items[index])
        for (at, kind, place), pieces in sorted(self._pieces.items()):
            if at != index:
                continue
            name, part_type = _DELTAS[kind]
            if name == "arguments":
                item.arguments = _joined(item.arguments, pieces)
                continue
            parts: list[ContentPart] = item[name] or []
            if place >= len(parts):
                parts.append(ContentPart(type=part_type))
            part = parts[min(place, len(parts) - 1)]
            field = "refusal" if part_type == "refusal" else "text"
            part[field] = _joined(part[field], pieces)
            item[name] = parts
        return item


def _joined(begun: Any, pieces: list[str]) -> str:
    return (begun if isinstance(begun, str) else "") + "".join(pieces)


def _place(index: Any) -> int:
    """An index of an event; some servers leave them out."""
    return index if isinstance(index, int) and index >= 0 else 0
