"""Streams of Anthropic's Messages API as OpenAI's chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..types import ChatCompletionChunk, ChunkChoice, Delta, Function, ToolCallPiece, build
from .anthropic_answers import arguments_of, ending, finish_reason, json_fields, openai_usage, text_of
from .translation import error_chunk

# The events, as far as they are used. Fields that come with every token are typed, which is what makes
# decoding fast; an event whose types are wrong counts as an unknown one. The others are looked into. No event
# lives longer than its decoding or holds a cycle, so the garbage collector needn't watch them (`gc=False`).


class _TextDelta(msgspec.Struct, tag="text_delta", gc=False):
    text: str


class _ThinkingDelta(msgspec.Struct, tag="thinking_delta", gc=False):
    thinking: str


class _SignatureDelta(msgspec.Struct, tag="signature_delta", gc=False):
    signature: str


class _InputDelta(msgspec.Struct, tag="input_json_delta", gc=False):
    partial_json: str


class _CitationsDelta(msgspec.Struct, tag="citations_delta", gc=False):
    citation: Any


class _MessageStart(msgspec.Struct, tag="message_start", gc=False):
    message: dict[str, Any]


class _BlockStart(msgspec.Struct, tag="content_block_start", gc=False):
    index: int
    content_block: dict[str, Any]


class _BlockDelta(msgspec.Struct, tag="content_block_delta", gc=False):
    index: int
    delta: _TextDelta | _ThinkingDelta | _SignatureDelta | _InputDelta | _CitationsDelta


class _BlockStop(msgspec.Struct, tag="content_block_stop", gc=False):
    index: int


class _MessageDelta(msgspec.Struct, tag="message_delta", gc=False):
    delta: Any = None
    usage: Any = None


_CHUNK = "chat.completion.chunk"
_decode = msgspec.json.Decoder(_BlockDelta | _BlockStart | _BlockStop | _MessageStart | _MessageDelta).decode


def chunk_decoder() -> Callable[[bytes], ChatCompletionChunk | None]:
    """A decoder for one stream: the data of an event → a chunk, or None where it says nothing.

    `thinking_blocks` and `citations` come as the whole list so far, whenever one of them is complete, since
    a signature belongs to a whole block. The usage comes with the finish reason.
    """
    return _Stream().decode


class _OpenBlock:
    """A block that has begun and not ended: what began it, its place among tool calls, its pieces."""

    __slots__ = ("block", "call", "pieces")

    def __init__(self, block: dict[str, Any], call: int) -> None:
        self.block = block
        self.call = call
        self.pieces: list[str] = []


class _Stream:
    """What the events of a stream so far mean for those to come."""

    def __init__(self) -> None:
        self._id: Any = None
        self._model: Any = None
        self._usage: dict[str, Any] = {}
        self._open: dict[int, _OpenBlock] = {}
        self._calls = 0
        self._thinking: list[Any] = []
        self._citations: list[Any] = []

    def decode(self, data: bytes) -> ChatCompletionChunk | None:
        """The chunk that an event stands for, if it stands for one."""
        try:
            event = _decode(data)
            if type(event) is not _BlockDelta:
                return self._framed(event)
            delta = event.delta
            if type(delta) is _TextDelta:  # the common one: what `_chunk` does, without the call
                if not delta.text:
                    return None
                choice = ChunkChoice(0, Delta(None, delta.text))
                return ChatCompletionChunk(self._id, _CHUNK, None, self._model, [choice])
            return self._piece(event.index, delta)
        except msgspec.ValidationError:
            return _unknown(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    def _chunk(self, delta: Delta, finish_reason: str | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            object=_CHUNK,
            model=self._model,
            choices=[ChunkChoice(index=0, delta=delta, finish_reason=finish_reason)],
        )

    def _piece(self, index: int, delta: Any) -> ChatCompletionChunk | None:
        if type(delta) is _CitationsDelta:
            self._citations.append(delta.citation)
            return self._chunk(build(Delta, {"citations": self._citations}))
        opened = self._open.get(index)
        if opened is None:  # a piece of a block that has no place in OpenAI's format
            return None
        if type(delta) is _SignatureDelta:
            opened.block["signature"] = delta.signature
        elif type(delta) is _ThinkingDelta and delta.thinking:
            opened.pieces.append(delta.thinking)
            return self._chunk(Delta(reasoning_content=delta.thinking))
        elif type(delta) is _InputDelta and delta.partial_json:
            opened.pieces.append(delta.partial_json)
            return self._chunk(_call_delta(opened.call, delta.partial_json))
        return None

    def _framed(self, event: Any) -> ChatCompletionChunk | None:
        if type(event) is _BlockStart:
            return self._begin(event.index, event.content_block)
        if type(event) is _BlockStop:
            opened = self._open.pop(event.index, None)
            return None if opened is None else self._end(opened)
        if type(event) is _MessageStart:
            self._id, self._model = event.message.get("id"), event.message.get("model")
            self._count(event.message.get("usage"))
            chunk = self._chunk(Delta(role="assistant"))
            chunk.service_tier = self._usage.get("service_tier")
            return chunk
        self._count(event.usage)
        delta = event.delta if isinstance(event.delta, dict) else {}
        chunk = self._chunk(build(Delta, ending(delta)), finish_reason(delta.get("stop_reason")))
        chunk.usage = openai_usage(self._usage)
        return chunk

    def _count(self, usage: Any) -> None:
        """Take counts in; they are totals, and those at the end leave out what has not changed."""
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _begin(self, index: int, block: dict[str, Any]) -> ChatCompletionChunk | None:
        kind = block.get("type")
        if kind == "text":
            text = text_of(block.get("text"))
            return self._chunk(Delta(content=text)) if text else None
        if kind not in ("thinking", "redacted_thinking", "tool_use"):
            return None
        opened = self._open[index] = _OpenBlock(block, self._calls)
        if kind == "tool_use":
            self._calls += 1
            return self._chunk(_call_delta(opened.call, "", id=block.get("id"), name=block.get("name")))
        if kind == "thinking" and (start := text_of(block.get("thinking"))):
            opened.pieces.append(start)
            return self._chunk(Delta(reasoning_content=start))
        return None

    def _end(self, opened: _OpenBlock) -> ChatCompletionChunk | None:
        block = opened.block
        if block["type"] == "tool_use":  # one without arguments comes without pieces
            return None if opened.pieces else self._chunk(_call_delta(opened.call, arguments_of(block)))
        if block["type"] == "thinking":
            block["thinking"] = "".join(opened.pieces)
        self._thinking.append(block)
        return self._chunk(build(Delta, {"thinking_blocks": self._thinking}))


def _call_delta(index: int, arguments: str, *, id: Any = None, name: Any = None) -> Delta:
    function = Function(name=name, arguments=arguments)
    kind = "function" if id is not None else None
    return Delta(tool_calls=[ToolCallPiece(index=index, id=id, type=kind, function=function)])


def _unknown(data: bytes) -> ChatCompletionChunk | None:
    """An event of none of the types above: an error, or nothing that concerns us (ping, message_stop)."""
    event = json_fields(data)
    if event.get("type") != "error" and not event.get("error"):
        return None
    return error_chunk(event.get("error") or {"type": "error"})
