"""Chunks put together into the whole answer.

Pure: fed by `streaming`, chunk by chunk. Source of the rules: OpenAI API reference, "The chat completion
chunk object": deltas of one choice add up by its index, pieces of tool calls by theirs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Function,
    Message,
    Object,
    ToolCall,
    ToolCallPiece,
    Usage,
    build,
    plain,
)


class _Parts:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.other: dict[str, Any] = {}
        self.tool_calls: dict[int, ToolCall] = {}
        self.finish_reason: str | None = None
        self.logprobs: dict[str, list[Any]] = {}


class Assembly:
    """The answer so far.

    Attributes:
        usage: Token counts, once a chunk has brought them.
        finish_reason: Why the first choice ended, once it has.
        first: The first chunk, which holds id and model.
        count: Chunks taken in.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.first: ChatCompletionChunk | None = None
        self.count = 0
        self._content: list[str] = []  # the first choice's, which nearly every chunk adds to
        self._choices: dict[int, _Parts] = {}

    @property
    def text(self) -> str:
        """The first choice's text so far."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """The first choice's reasoning so far, whichever of its two names the server uses."""
        texts = self._choices[0].texts if 0 in self._choices else {}
        return "".join(texts.get("reasoning_content") or texts.get("reasoning") or ())  # some send both

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Take a chunk in; True if it brought content (text, reasoning, a refusal or a tool call)."""
        self.count += 1
        if self.first is None:
            self.first = chunk
        if chunk.usage is not None:
            self.usage = chunk.usage
        content = False
        for choice in chunk.choices:
            delta = choice.delta
            # The common one: some text, and nothing else. A call to find it out would cost 3 % of a stream.
            if (
                delta is not None
                and type(text := delta.content) is str
                and text
                and not choice.index
                and choice.finish_reason is None
                and choice.logprobs is None
                and delta.role is None
                and delta.tool_calls is None
                and delta.reasoning_content is None
                and delta.reasoning is None
                and delta.refusal is None
                and delta.annotations is None
                and delta.audio is None
                and delta.function_call is None
                and not delta.__dict__
            ):
                self._content.append(text)
                content = True
            else:
                content = self._add_choice(choice) or content
        return content

    def _add_choice(self, choice: ChunkChoice) -> bool:
        index = choice.index if isinstance(choice.index, int) else 0
        parts = self._choices.get(index)
        if parts is None:
            parts = self._choices[index] = _Parts()
            if index == 0:
                parts.content = self._content
        if choice.finish_reason is not None:
            parts.finish_reason = choice.finish_reason
            if index == 0:
                self.finish_reason = choice.finish_reason
        if choice.logprobs is not None:
            for name in choice.logprobs:
                if isinstance(tokens := choice.logprobs[name], list):
                    parts.logprobs.setdefault(name, []).extend(tokens)
        return choice.delta is not None and _add_delta(parts, choice.delta)

    def completion(self) -> ChatCompletion:
        """The whole answer so far, in the shape of one that was not streamed."""
        first = self.first or ChatCompletionChunk()
        if 0 not in self._choices:
            self._choices[0] = parts = _Parts()
            parts.content = self._content
        return ChatCompletion(
            id=first.id,
            object="chat.completion",
            created=first.created,
            model=first.model,
            choices=[_choice(index, parts) for index, parts in sorted(self._choices.items())],
            usage=self.usage,
            system_fingerprint=first.system_fingerprint,
            service_tier=first.service_tier,
        )


def _add_delta(parts: _Parts, delta: Delta) -> bool:
    found = False
    for name in delta:
        value = delta[name]
        if value is None or value == "":
            continue
        if name == "role":
            continue
        found = True
        if name == "content" and isinstance(value, str):
            parts.content.append(value)
        elif name == "tool_calls" and isinstance(value, list):
            for piece in value:
                _add_tool_call(parts, piece)
        elif isinstance(value, str):
            parts.texts.setdefault(name, []).append(value)
        else:
            parts.other[name] = value
    return found


def _add_tool_call(parts: _Parts, piece: ToolCallPiece) -> None:
    index = piece.index if isinstance(piece.index, int) else len(parts.tool_calls)
    call = parts.tool_calls.setdefault(index, ToolCall(function=Function(arguments="")))
    call.id = piece.id or call.id
    call.type = piece.type or call.type or "function"
    call.__dict__.update(piece.__dict__)
    function = call.function
    if piece.function is not None and function is not None:
        function.name = piece.function.name or function.name
        if isinstance(piece.function.arguments, str):
            function.arguments = (function.arguments or "") + piece.function.arguments
        elif piece.function.arguments is not None:  # an object, where OpenAI sends its JSON
            function.arguments = msgspec.json.encode(plain(piece.function.arguments)).decode()


def _choice(index: int, parts: _Parts) -> Choice:
    message = Message(role="assistant", content="".join(parts.content) if parts.content else None)
    for name, texts in parts.texts.items():
        message[name] = "".join(texts)
    for name, value in parts.other.items():
        if message.get(name) is None:
            message[name] = value
    if parts.tool_calls:
        message.tool_calls = [call for _, call in sorted(parts.tool_calls.items())]
    return Choice(
        index=index,
        message=message,
        finish_reason=parts.finish_reason,
        logprobs=build(Object, parts.logprobs) if parts.logprobs else None,
    )
