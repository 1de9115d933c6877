"""Chat completions as messages of Anthropic's API: whole, as a stream's events, and errors.

Pure; called by `gateway_answers`. Requests are read in `gateway_message_input`. Source: Anthropic API
reference, "Messages", "Streaming messages", "Errors"; guides "Extended thinking", "Handling stop reasons".
`providers.anthropic_answers` translates the other way.

Reasoning becomes a thinking block, with an empty signature where the server gives none. Counts that a server
doesn't tell are 0, because the format demands numbers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from ..exceptions import APIResponseValidationError
from ..providers.anthropic_answers import FINISH_REASONS
from ..providers.errors import STATUS_BY_TYPE
from ..providers.translation import json_object
from ..types import (
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    Message,
    TokensDetails,
    ToolCall,
    ToolCallPiece,
    Usage,
    plain,
)

Fields = dict[str, Any]

# Of the stop reasons that are one word in OpenAI's format, the first.
_STOP_REASONS = {finish: stop for stop, finish in reversed(FINISH_REASONS.items())}
_ERROR_TYPES = {status: kind for kind, status in STATUS_BY_TYPE.items()}


# -- whole answers ---------------------------------------------------------------------------------------


def message(completion: ChatCompletion) -> Fields:
    """A chat completion as a message."""
    said = completion.choices[0].message or Message()
    content = _thinking(said)
    if text := completion.text or _text(said.refusal):
        content.append({"type": "text", "text": text})
    for call in said.tool_calls or ():
        arguments = plain(call.function.arguments) if call.function is not None else None
        given = json_object(arguments or {})
        # What is no object (cut off, or a model's mistake) is shown: {} would call the tool with nothing.
        content.append(_tool_use(call, {"arguments": arguments} if given is None else dict(given)))
    return {
        **_begun(completion),
        "content": content,
        **_ending(completion),
        "usage": _usage(completion.usage),
    }


def _begun(first: ChatCompletion | ChatCompletionChunk) -> Fields:
    return {
        "id": first.id or f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": first.model or "",
    }


def _thinking(said: Message) -> list[Fields]:
    """The thinking blocks of a message: those it holds, else one for its reasoning."""
    blocks = plain(said.get("thinking_blocks"))
    if isinstance(blocks, list) and blocks and all(isinstance(block, dict) for block in blocks):
        return blocks
    text = _text(said.reasoning_content) or _text(said.reasoning)
    return [_thinking_block(text)] if text else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _thinking_block(text: str) -> Fields:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call: ToolCall, arguments: Fields) -> Fields:
    name = call.function.name if call.function is not None else None
    block = {
        "type": "tool_use",
        "id": call.id or f"toolu_{secrets.token_hex(12)}",
        "name": name or "",
        "input": arguments,
    }
    if (signature := call.get("extra_content")) is not None:  # Gemini's, who wants it back with the call
        block["extra_content"] = plain(signature)
    return block


def _ending(completion: ChatCompletion) -> Fields:
    choice = completion.choices[0]
    said = choice.message or Message()
    reason = _STOP_REASONS.get(choice.finish_reason or "stop", choice.finish_reason)
    sequence = said.get("stop_sequence")
    if reason == "end_turn":  # OpenAI's word says less, and some servers say it for tools too
        says_more = {"tool_use": said.tool_calls, "refusal": said.refusal, "stop_sequence": sequence}
        reason = next((word for word, told in says_more.items() if told), reason)
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(usage: Usage | None) -> Fields:
    """Anthropic's counts, in which `input_tokens` are those that no cache had to do with."""
    usage = usage or Usage()
    given, answered = usage.prompt_tokens_details or TokensDetails(), usage.completion_tokens_details
    read, written = _count(given.cached_tokens), _count(given.cache_write_tokens)
    new = (_count(usage.prompt_tokens) or 0) - (read or 0) - (written or 0)
    counts: Fields = {"input_tokens": max(new, 0), "output_tokens": _count(usage.completion_tokens) or 0}
    if read is not None:
        counts["cache_read_input_tokens"] = read
    if written is not None:
        counts["cache_creation_input_tokens"] = written
    if answered is not None and (thought := _count(answered.reasoning_tokens)) is not None:
        counts["output_tokens_details"] = {"thinking_tokens": thought}
    return counts


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


# -- streams ---------------------------------------------------------------------------------------------


class MessageEvents:
    """The events of a message as it comes, from the chunks of a chat completion.

    One block is open at a time, as with Anthropic. The counts come at the end, since OpenAI's do.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._blocks = 0
        self._open: str | int | None = None  # the kind of the open block, or the index of its tool call
        self._calls: dict[int, int] = {}  # the blocks of tool calls, by the calls' indexes

    def add(self, chunk: ChatCompletionChunk) -> Iterator[Fields]:
        """The events that a chunk stands for; none where it says nothing of them."""
        yield from self._begin(chunk)
        for choice in chunk.choices:
            if not choice.index and choice.delta is not None:
                yield from self._add(choice.delta)

    def finish(self, completion: ChatCompletion) -> Iterator[Fields]:
        """The last events, given the whole answer.

        Raises:
            APIResponseValidationError: A tool would be called with arguments that are no object; readers of
                the stream may take what can't be parsed for {}.
        """
        yield from self._begin(completion)
        yield from self._close()
        if completion.choices and completion.choices[0].finish_reason == "tool_calls":
            _check_arguments(completion.choices[0].message or Message())
        yield {"type": "message_delta", "delta": _ending(completion), "usage": _usage(completion.usage)}
        yield {"type": "message_stop"}

    def _begin(self, first: ChatCompletion | ChatCompletionChunk) -> Iterator[Fields]:
        if not self._has_begun:
            self._has_begun = True
            rest: Fields = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(None)}
            yield {"type": "message_start", "message": {**_begun(first), **rest}}

    def _add(self, delta: Delta) -> Iterator[Fields]:
        yield from self._add_text("thinking", _text(delta.reasoning_content) or _text(delta.reasoning))
        if isinstance(blocks := plain(delta.get("thinking_blocks")), list):
            for block in blocks:
                yield from self._sign(block)
        yield from self._add_text("text", _text(delta.content) or _text(delta.refusal))
        for piece in delta.tool_calls or ():
            yield from self._add_call(piece)

    def _add_text(self, kind: str, text: str) -> Iterator[Fields]:
        if not text:
            return
        if self._open != kind:
            block = _thinking_block("") if kind == "thinking" else {"type": "text", "text": ""}
            yield from self._start(kind, block)
        yield _piece(self._blocks - 1, f"{kind}_delta", kind, text)

    def _sign(self, block: Any) -> Iterator[Fields]:
        """What a proxy adds to the reasoning: a block's signature at its end, or a redacted block."""
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "redacted_thinking":
            yield from self._start(kind, block)
        elif kind == "thinking" and block.get("signature"):
            if self._open != kind:  # its text is not shown
                yield from self._start(kind, _thinking_block(""))
            yield _piece(self._blocks - 1, "signature_delta", "signature", block["signature"])
            yield from self._close()

    def _add_call(self, piece: ToolCallPiece) -> Iterator[Fields]:
        index = piece.index if isinstance(piece.index, int) else len(self._calls)
        if index not in self._calls:
            yield from self._start(index, _tool_use(piece, {}))
            self._calls[index] = self._blocks - 1
        if arguments := _text(piece.function.arguments) if piece.function is not None else "":
            yield _piece(self._calls[index], "input_json_delta", "partial_json", arguments)

    def _start(self, what: str | int, block: Fields) -> Iterator[Fields]:
        yield from self._close()
        yield {"type": "content_block_start", "index": self._blocks, "content_block": block}
        self._open = what
        self._blocks += 1

    def _close(self) -> Iterator[Fields]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._blocks - 1}


def _check_arguments(said: Message) -> None:
    for call in said.tool_calls or ():
        arguments = plain(call.function.arguments) if call.function is not None else None
        if json_object(arguments or {}) is None:
            raise APIResponseValidationError(f"a tool's arguments are no JSON object: {arguments!r:.200}")


def _piece(index: int, kind: str, name: str, value: Any) -> Fields:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: value}}


# -- errors ----------------------------------------------------------------------------------------------


def anthropic_error(status: int, said: Mapping[str, Any]) -> Fields:
    """What went wrong as the body of an answer, or the data of a stream's `error` event.

    Args:
        status: HTTP's, which tells the type.
        said: `message`, and what else is known.
    """
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    rest = {name: value for name, value in said.items() if value is not None}
    return {"type": "error", "error": {"message": "", **rest, "type": kind}}
