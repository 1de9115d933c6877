"""The stream of a chat completion as the events of a response.

Pure: chunks come in, events go out. Source of the events and their order: OpenAI API reference, "Streaming
events".
"""

from __future__ import annotations

import copy
from typing import Any

from .response_output import ItemIds, completed_item, from_chat, opened_item, text_part
from .response_types import OutputItem, Response, ResponseEvent
from .types import ChatCompletion, ChatCompletionChunk, Delta, ToolCallPiece

_TEXT_EVENTS = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
}


class _Streamed:
    """An item of which something has been told."""

    def __init__(self, item: OutputItem, index: int) -> None:
        self.item = item
        self.index = index
        self.texts: dict[str, list[str]] = {}  # by the kind of part, in the order of the parts
        self.arguments: list[str] = []

    def whole(self) -> OutputItem:
        item = copy.copy(self.item)
        if item.type == "function_call":
            return completed_item(item, {}, arguments="".join(self.arguments))
        parts = [text_part(kind, "".join(texts)) for kind, texts in self.texts.items()]
        return completed_item(item, {}, content=parts)


class ChunkEvents:
    """The chunks of a chat completion as events of a response, in OpenAI's order.

    An item is done when the next one begins. What comes for it later still (a server that thinks, speaks and
    thinks again) is told as further deltas; the last event has all of it.
    """

    def __init__(self, response_id: str, previous_response_id: str | None = None) -> None:
        self._response_id = response_id
        self._previous_response_id = previous_response_id
        self._ids = ItemIds(response_id)
        self._sequence_number = 0
        self._events: list[ResponseEvent] = []
        self._streamed: dict[str, _Streamed] = {}
        self._calls: dict[int, _Streamed] = {}
        self._current: _Streamed | None = None

    def feed(self, chunk: ChatCompletionChunk) -> list[ResponseEvent]:
        """The events that a chunk brings; none where it says nothing of them."""
        self._begin(chunk)
        for choice in chunk.choices:
            if not choice.index and choice.delta is not None:
                self._add(choice.delta)
        return self._taken()

    def finish(self, completion: ChatCompletion) -> list[ResponseEvent]:
        """The last events, given the whole answer; the very last holds the response of `from_chat`."""
        self._begin(completion)
        response = from_chat(completion, self._response_id, self._previous_response_id)
        items = {item.id: item for item in response.output}
        for item in response.output:
            if item.id not in self._streamed:
                self._add_whole(item)
        if self._current is not None:
            self._close(self._current, items.get(self._current.item.id))
        order = list(self._streamed)
        response.output.sort(key=lambda item: order.index(item.id or ""))
        self._emit(f"response.{response.status}", response=response)
        return self._taken()

    def _begin(self, first: ChatCompletionChunk | ChatCompletion) -> None:
        if self._sequence_number:
            return
        for kind in ("response.created", "response.in_progress"):
            response = Response(
                id=self._response_id,
                object="response",
                created_at=first.created,
                status="in_progress",
                model=first.model,
                previous_response_id=self._previous_response_id,
            )
            self._emit(kind, response=response)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append(ResponseEvent(type=kind, sequence_number=self._sequence_number, **fields))
        self._sequence_number += 1

    def _taken(self) -> list[ResponseEvent]:
        events, self._events = self._events, []
        return events

    def _add(self, delta: Delta) -> None:
        self._add_text("reasoning_text", delta.reasoning_content or delta.reasoning)
        self._add_text("output_text", delta.content)
        self._add_text("refusal", delta.refusal)
        for piece in delta.tool_calls or ():
            self._add_call(piece)

    def _add_text(self, kind: str, text: Any) -> None:
        if not isinstance(text, str) or not text:
            return
        reasons = kind == "reasoning_text"
        item_id = self._ids.reasoning if reasons else self._ids.message
        streamed = self._streamed.get(item_id)
        if streamed is None:
            streamed = self._open(opened_item(item_id, "reasoning" if reasons else "message"))
        if kind not in streamed.texts:
            streamed.texts[kind] = []
            self._emit_part("response.content_part.added", streamed, kind, part=text_part(kind, ""))
        streamed.texts[kind].append(text)
        self._emit_part(f"{_TEXT_EVENTS[kind]}.delta", streamed, kind, delta=text)

    def _emit_part(self, event: str, streamed: _Streamed, kind: str, **fields: Any) -> None:
        self._emit(
            event,
            item_id=streamed.item.id,
            output_index=streamed.index,
            content_index=list(streamed.texts).index(kind),
            **fields,
        )

    def _add_call(self, piece: ToolCallPiece) -> None:
        index = piece.index if isinstance(piece.index, int) else len(self._calls)
        streamed = self._calls.get(index)
        function = piece.function
        if streamed is None:
            item = opened_item(self._ids.call(len(self._calls)), "function_call")
            item.call_id, item.name = piece.id, function.name if function is not None else None
            streamed = self._calls[index] = self._open(item)
        if function is not None:
            self._add_arguments(streamed, function.arguments)

    def _add_arguments(self, streamed: _Streamed, text: Any) -> None:
        if not isinstance(text, str) or not text:
            return
        streamed.arguments.append(text)
        place = {"item_id": streamed.item.id, "output_index": streamed.index}
        self._emit("response.function_call_arguments.delta", **place, delta=text)

    def _add_whole(self, item: OutputItem) -> None:
        """An item of the whole answer that no chunk has brought."""
        kind = item.type or ""
        opened = opened_item(item.id or "", kind)
        opened.call_id, opened.name = item.call_id, item.name
        streamed = self._open(opened)
        if kind == "function_call":
            self._add_arguments(streamed, item.arguments)
        for part in item.content or ():
            self._add_text(part.type or "", part.text or part.refusal)

    def _open(self, item: OutputItem) -> _Streamed:
        if self._current is not None:
            self._close(self._current)
        streamed = self._streamed[item.id or ""] = self._current = _Streamed(item, len(self._streamed))
        self._emit("response.output_item.added", output_index=streamed.index, item=copy.copy(item))
        return streamed

    def _close(self, streamed: _Streamed, item: OutputItem | None = None) -> None:
        item = item or streamed.whole()
        place = {"item_id": item.id, "output_index": streamed.index}
        if item.type == "function_call":
            self._emit("response.function_call_arguments.done", **place, arguments=item.arguments)
        for index, part in enumerate(item.content or ()):
            field = "refusal" if part.type == "refusal" else "text"
            done = f"{_TEXT_EVENTS[part.type or 'output_text']}.done"
            self._emit(done, **place, content_index=index, **{field: part[field]})
            self._emit("response.content_part.done", **place, content_index=index, part=part)
        self._emit("response.output_item.done", output_index=streamed.index, item=item)
