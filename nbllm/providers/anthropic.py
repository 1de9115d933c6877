"""Anthropic's Messages API: its wire format from and to OpenAI's chat format.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors"; guides "Tool use", "Extended
thinking", "Adaptive thinking", "Effort", "Structured outputs", "Prompt caching", "Handling stop reasons".

What the two formats have no common word for: blocks of the provider's own tools (a web search and its
results) are not in the answer, only the text and its `citations`; an answer has no `created`; `stop_sequence`
and `stop_details` stand in the message; stop reasons that OpenAI has no name for (`pause_turn`) stay as they
are. One file for both directions, although it is long: they mirror each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..exceptions import UnsupportedParamsError, UsageProblem
from ..types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    Function,
    ToolCallPiece,
    Usage,
    build,
    parse,
    plain,
)
from .base import HttpRequest, Route
from .encoding import encode
from .openai import CHAT_PARAMETERS

# The Messages API wants a limit. This one leaves room for thinking, every current model takes it, and an
# answer of that length comes within the ten minutes after which Anthropic asks for a stream.
DEFAULT_MAX_TOKENS = 16384

# reasoning_effort -> the effort of models that think adaptively, and the thinking budget, in tokens, of
# those up to Claude 4.5. The budgets are litellm's up to "high"; 1024 is the least that the API takes.
_EFFORTS = {
    "minimal": ("low", 1024),
    "low": ("low", 1024),
    "medium": ("medium", 2048),
    "high": ("high", 4096),
    "xhigh": ("xhigh", 8192),
    "max": ("max", 8192),
}
_LEAST_BUDGET = 1024

# Newer models refuse a budget (from Opus 4.7) or advise against it (4.6), so only the closed list of older
# ones gets one.
_TAKES_BUDGET = re.compile(r"claude-(3|(opus|sonnet|haiku)-4(-[0-5])?([-@]\d{8}|-latest)?$)")

_SAME = frozenset({"service_tier", "temperature", "top_p"})
_TRANSLATED = frozenset(
    (
        *(
            "max_completion_tokens",
            "max_tokens",
            "parallel_tool_calls",
            "reasoning_effort",
            "response_format",
        ),
        *("safety_identifier", "stop", "stream_options", "tool_choice", "tools", "user"),
    )
)
# Values that ask for what happens anyway. A seed is not among them: without it, answers can't be reproduced.
_NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "store": False,
}

_TOOL_CHOICES = {"auto": "auto", "none": "none", "required": "any"}

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


# -- requests --------------------------------------------------------------------------------------


def chat_request(
    route: Route,
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for a chat completion.

    System messages, wherever they stand, become `system`. Without a limit, `max_tokens` is
    `DEFAULT_MAX_TOKENS`. `reasoning_effort` becomes adaptive thinking with that effort, or for models up to
    Claude 4.5 a budget for thinking: 1024 tokens for minimal and low, 2048 for medium, 4096 for high, 8192
    above; at most half of `max_tokens`, but never less than 1024. Of `metadata`, the API takes `user_id`
    only. Names that are not OpenAI's (`top_k`, `thinking`, `container`, …) pass as they are: the API itself
    refuses those that it doesn't know.

    Raises:
        UsageProblem: A value that can't work.
        UnsupportedParamsError: A parameter of OpenAI's that the Messages API has no equivalent for.
    """
    given = {name: value for name, value in params.items() if value is not None}
    body = _parameters(route, given, metadata or {})
    if "system" in body:
        messages = [{"role": "system", "content": body.pop("system")}, *messages]
    system, turns = _conversation(messages)
    body = {"model": route.model, "messages": turns, **body}
    if system:
        body["system"] = system
    if stream:
        body["stream"] = True
    shown = {**given, **(extra_body or {})}
    if metadata:
        shown["metadata"] = metadata
    return HttpRequest(
        route.url("messages"),
        encode({**body, **(extra_body or {})}),
        route.headers,
        encode(shown) if shown else None,
    )


def _parameters(route: Route, given: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name, value in given.items():
        if name in _SAME or name not in CHAT_PARAMETERS:
            body[name] = value
        elif name not in _TRANSLATED and (name not in _NEUTRAL or value != _NEUTRAL[name]):
            raise _unsupported(route, f"{name} has no equivalent there")
    max_tokens = given.get("max_completion_tokens", given.get("max_tokens", DEFAULT_MAX_TOKENS))
    body["max_tokens"] = max_tokens
    if "stop" in given:
        body["stop_sequences"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    user = given.get("user", given.get("safety_identifier", metadata.get("user_id")))
    if user is not None:
        body["metadata"] = {"user_id": user}
    if tools := given.get("tools"):
        if not isinstance(tools, (list, tuple)):
            raise UsageProblem(f"tools must be a list of dicts; got {tools!r:.80}")
        body["tools"] = [_tool(tool) for tool in tools]
    one_at_a_time = bool(tools) and given.get("parallel_tool_calls") is False
    if (choice := _tool_choice(given.get("tool_choice"), one_at_a_time)) is not None:
        body["tool_choice"] = choice
    output: dict[str, Any] = {}
    if "response_format" in given:
        output |= _output_format(route, given["response_format"])
    if "reasoning_effort" in given:
        effort, thinking = _thinking(route, given["reasoning_effort"], max_tokens)
        output |= effort
        body.setdefault("thinking", thinking)
    if output:
        body["output_config"] = {**output, **(body.get("output_config") or {})}
    return body


def _unsupported(route: Route, what: str) -> UnsupportedParamsError:
    return UnsupportedParamsError(
        f"{route.provider.name}: {what}: leave it out", model=route.asked, llm_provider=route.provider.name
    )


def _tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or not isinstance(function := tool.get("function"), Mapping):
        return tool  # in Anthropic's own form
    result = {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    for name in ("description", "strict", "cache_control"):
        if (value := function.get(name, tool.get(name))) is not None:
            result[name] = value
    return result


def _tool_choice(choice: Any, one_at_a_time: bool) -> dict[str, Any] | None:
    if choice is None and not one_at_a_time:
        return None
    if choice is None or (isinstance(choice, str) and choice in _TOOL_CHOICES):
        result: dict[str, Any] = {"type": _TOOL_CHOICES[choice or "auto"]}
    elif isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        result = {"type": "tool", "name": choice["function"].get("name")}
    elif isinstance(choice, Mapping):
        result = dict(choice)  # in Anthropic's own form
    else:
        raise UsageProblem(f"tool_choice must be auto, none, required or name a function; got {choice!r}")
    if one_at_a_time and result.get("type") != "none":
        result["disable_parallel_tool_use"] = True
    return result


def _output_format(route: Route, wanted: Any) -> dict[str, Any]:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":  # to ask for JSON in words is the caller's to do: it changes the prompt
        raise _unsupported(
            route,
            "response_format of type json_object has no equivalent there; give a json_schema, or ask for "
            "JSON in the messages",
        )
    described = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise UsageProblem(
            "response_format must be like {'type': 'json_schema', 'json_schema': {'name': …, 'schema': …}}; "
            f"got {wanted!r:.80}"
        )
    return {"format": {"type": "json_schema", "schema": described["schema"]}}


def _thinking(route: Route, effort: Any, max_tokens: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `output_config` and the `thinking` that a reasoning effort asks for."""
    if effort == "none":
        return {}, {"type": "disabled"}
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise UsageProblem(f"reasoning_effort must be none, {', '.join(_EFFORTS)}; got {effort!r}")
    level, budget = _EFFORTS[effort]
    if not _TAKES_BUDGET.match(route.model):
        # Without `display`, newer models send no text of their thinking.
        return {"effort": level}, {"type": "adaptive", "display": "summarized"}
    if not isinstance(max_tokens, int) or max_tokens <= _LEAST_BUDGET:
        raise UsageProblem(
            f"with reasoning_effort, max_tokens must be above {_LEAST_BUDGET}, the least budget for "
            f"thinking; got {max_tokens!r:.80}"
        )
    return {}, {"type": "enabled", "budget_tokens": max(_LEAST_BUDGET, min(budget, max_tokens // 2))}


def _conversation(messages: list[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """The system's blocks, and turns of user and assistant by turns."""
    system: list[Any] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += _blocks(message.get("content"))
            continue
        if role not in _TURNS:
            raise UsageProblem(f"a message's role is {', '.join(_TURNS)}, system or developer; got {role!r}")
        turn, translate = _TURNS[role]
        blocks = translate(message)
        if turns and turns[-1]["role"] == turn:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": turn, "content": blocks})
    for item in turns:
        if item["role"] == "user":  # results of tools must come first (guide "Handle tool calls")
            item["content"].sort(key=lambda block: block.get("type") != "tool_result")
    return system, turns


def _user_blocks(message: Mapping[str, Any]) -> list[Any]:
    return _blocks(message.get("content"))


def _assistant_blocks(message: Mapping[str, Any]) -> list[Any]:
    thinking = plain(message.get("thinking_blocks")) or []
    calls = message.get("tool_calls") or []
    if not isinstance(thinking, list) or not isinstance(calls, list):
        raise UsageProblem("thinking_blocks and tool_calls of a message must be lists")
    return [*thinking, *_blocks(message.get("content")), *map(_tool_use, calls)]


def _tool_results(message: Mapping[str, Any]) -> list[Any]:
    if not message.get("tool_call_id"):
        raise UsageProblem("a message of role tool needs the tool_call_id that it answers")
    result = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
    return [{**result, "content": blocks} if (blocks := _blocks(message.get("content"))) else result]


_TURNS: dict[Any, tuple[str, Callable[[Mapping[str, Any]], list[Any]]]] = {
    "user": ("user", _user_blocks),
    "assistant": ("assistant", _assistant_blocks),
    "tool": ("user", _tool_results),
}


def _tool_use(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageProblem(f"a tool call names a function and its arguments; got {call!r:.80}")
    given = function.get("arguments") or {}
    try:
        arguments = parse(given) if isinstance(given, str) else given
    except msgspec.DecodeError:
        arguments = None
    if not isinstance(arguments, Mapping):
        raise UsageProblem(f"the arguments of a tool call must be a JSON object; got {given!r:.80}")
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _blocks(content: Any) -> list[Any]:
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content or ""}]
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise UsageProblem(f"a message's content is a text or a list of parts; got {content!r:.80}")
    # The API refuses blank texts, which OpenAI's format has beside tool calls.
    return [_block(part) for part in content if part.get("type") != "text" or str(part.get("text")).strip()]


def _block(part: Mapping[str, Any]) -> Any:
    kind = part.get("type")
    value = part.get(kind) if isinstance(kind, str) else None
    block: dict[str, Any]
    if kind == "image_url":
        block = {
            "type": "image",
            "source": _source(value.get("url") if isinstance(value, Mapping) else value),
        }
    elif kind == "file":
        file = value if isinstance(value, Mapping) else {}
        block = {"type": "document", "source": _source(file.get("file_data"))}
        if block["source"].get("media_type", _PDF) != _PDF:
            raise UsageProblem(f"a file must be a PDF; got {block['source']['media_type']}")
        if file.get("filename"):
            block["title"] = file["filename"]
    elif kind == "refusal":
        block = {"type": "text", "text": value}
    elif kind in ("input_audio", "video_url"):
        raise UsageProblem(f"a part of type {kind} has no equivalent in Anthropic's format")
    else:
        return part  # a text, or a block in Anthropic's own form
    if part.get("cache_control"):
        block["cache_control"] = part["cache_control"]
    return block


_PDF = "application/pdf"


def _source(url: Any) -> dict[str, Any]:
    if isinstance(url, str):
        head, _, data = url.partition(",")
        if head.startswith("data:") and head.endswith(";base64"):
            return {"type": "base64", "media_type": head[5:].partition(";")[0], "data": data}
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
    raise UsageProblem(f"an image or file is an http URL, or data:TYPE;base64,DATA; got {url!r:.60}")


# -- answers ---------------------------------------------------------------------------------------


def chat_response(body: bytes) -> ChatCompletion:
    """The whole answer; it has no choices where the body is no message.

    Raises:
        msgspec.DecodeError: The body is no JSON object.
    """
    answer = _object(body)
    usage = answer.get("usage")
    result: dict[str, Any] = {
        "id": answer.get("id"),
        "object": "chat.completion",
        "model": answer.get("model"),
        "usage": _usage(usage),
        "service_tier": usage.get("service_tier") if isinstance(usage, dict) else None,
    }
    if isinstance(content := answer.get("content"), list):
        finish_reason = _finish_reason(answer.get("stop_reason"))
        message = {"role": "assistant", **_message(content), **_ending(answer)}
        result["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    if answer.get("error"):
        result["error"] = answer["error"]
    try:
        return build(ChatCompletion, result)
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from None


def _object(data: bytes) -> dict[str, Any]:
    value = parse(data)
    if not isinstance(value, dict):
        raise msgspec.DecodeError(f"a JSON object was expected, not {type(value).__name__}")
    return value


def _message(content: list[Any]) -> dict[str, Any]:
    """The fields of a message that the blocks of an answer make up; empty ones are left out."""
    text, reasoning = "", ""
    calls: list[Any] = []
    thinking: list[Any] = []
    citations: list[Any] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            text += _text(block.get("text"))
            citations += block.get("citations") or [] if isinstance(block.get("citations"), list) else []
        elif kind == "thinking":
            reasoning += _text(block.get("thinking"))
            thinking.append(block)
        elif kind == "redacted_thinking":
            thinking.append(block)
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": _arguments(block)}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
    fields = {
        "content": text,
        "tool_calls": calls,
        "reasoning_content": reasoning,
        "thinking_blocks": thinking,
        "citations": citations,
    }
    return {name: value for name, value in fields.items() if value}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(block: dict[str, Any]) -> str:
    return msgspec.json.encode(block.get("input") or {}).decode()


def _ending(source: dict[str, Any]) -> dict[str, Any]:
    """What else is told of the end: the stop sequence that was met, why a model refused, its container."""
    names = ("stop_sequence", "stop_details", "container")
    return {name: source[name] for name in names if source.get(name) is not None}


def _finish_reason(reason: Any) -> str | None:
    return _FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else None


def _usage(usage: Any) -> dict[str, Any] | None:
    """OpenAI's counts from Anthropic's, in which `input_tokens` are those that no cache had to do with.

    Counts without an equivalent (`server_tool_use`, `cache_creation` by lifetime, …) keep their names.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    rest = {name: value for name, value in usage.items() if value is not None}
    rest.pop("service_tier", None)
    given, answered, read, written = (
        count if isinstance(count := rest.pop(name, None), int) else None
        for name in (
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        )
    )
    prompt = None if given is None else given + (read or 0) + (written or 0)
    result: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": answered}
    if prompt is not None and answered is not None:
        result["total_tokens"] = prompt + answered
    if read is not None or written is not None:
        result["prompt_tokens_details"] = {"cached_tokens": read, "cache_write_tokens": written}
    details = rest.pop("output_tokens_details", None)
    if isinstance(details, dict) and isinstance(details.get("thinking_tokens"), int):
        result["completion_tokens_details"] = {"reasoning_tokens": details["thinking_tokens"]}
    return {**rest, **result}


# -- streams ---------------------------------------------------------------------------------------
# The events, as far as they are used. Fields that come with every token are typed, which is what makes
# decoding fast; an event whose types are wrong counts as an unknown one. The others are looked into.


class _TextDelta(msgspec.Struct, tag="text_delta"):
    text: str


class _ThinkingDelta(msgspec.Struct, tag="thinking_delta"):
    thinking: str


class _SignatureDelta(msgspec.Struct, tag="signature_delta"):
    signature: str


class _InputDelta(msgspec.Struct, tag="input_json_delta"):
    partial_json: str


class _CitationsDelta(msgspec.Struct, tag="citations_delta"):
    citation: Any


class _MessageStart(msgspec.Struct, tag="message_start"):
    message: dict[str, Any]


class _BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: dict[str, Any]


class _BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: _TextDelta | _ThinkingDelta | _SignatureDelta | _InputDelta | _CitationsDelta


class _BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class _MessageDelta(msgspec.Struct, tag="message_delta"):
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
                choice = ChunkChoice(index=0, delta=Delta(content=delta.text))
                return ChatCompletionChunk(id=self._id, object=_CHUNK, model=self._model, choices=[choice])
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
        chunk = self._chunk(build(Delta, _ending(delta)), _finish_reason(delta.get("stop_reason")))
        chunk.usage = build(Usage, usage) if (usage := _usage(self._usage)) else None
        return chunk

    def _count(self, usage: Any) -> None:
        """Take counts in; they are totals, and those at the end leave out what has not changed."""
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _begin(self, index: int, block: dict[str, Any]) -> ChatCompletionChunk | None:
        kind = block.get("type")
        if kind == "text":
            text = _text(block.get("text"))
            return self._chunk(Delta(content=text)) if text else None
        if kind not in ("thinking", "redacted_thinking", "tool_use"):
            return None
        opened = self._open[index] = _OpenBlock(block, self._calls)
        if kind == "tool_use":
            self._calls += 1
            return self._chunk(_call_delta(opened.call, "", id=block.get("id"), name=block.get("name")))
        if kind == "thinking" and (start := _text(block.get("thinking"))):
            opened.pieces.append(start)
            return self._chunk(Delta(reasoning_content=start))
        return None

    def _end(self, opened: _OpenBlock) -> ChatCompletionChunk | None:
        block = opened.block
        if block["type"] == "tool_use":  # one without arguments comes without pieces
            return None if opened.pieces else self._chunk(_call_delta(opened.call, _arguments(block)))
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
    event = _object(data)
    if event.get("type") != "error" and not event.get("error"):
        return None
    chunk = ChatCompletionChunk()
    chunk.__dict__["error"] = event.get("error") or {"type": "error"}
    return chunk
