"""Answers of Anthropic's Messages API as OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

import msgspec

from ..types import ChatCompletion, Choice, Message, TokensDetails, Usage, build, parse

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_TRANSLATED = frozenset((*_COUNTS, "output_tokens_details", "service_tier"))


def chat_response(body: bytes) -> ChatCompletion:
    """The whole answer; it has no choices where the body is no message.

    Raises:
        msgspec.DecodeError: The body is no JSON object.
    """
    answer = json_fields(body)
    usage = answer.get("usage")
    fields: dict[str, Any] = {
        "id": answer.get("id"),
        "object": "chat.completion",
        "model": answer.get("model"),
        "service_tier": usage.get("service_tier") if isinstance(usage, dict) else None,
    }
    if answer.get("error"):
        fields["error"] = answer["error"]
    try:
        result = build(ChatCompletion, fields)
        result.usage = openai_usage(usage)
        if isinstance(content := answer.get("content"), list):
            message = build(Message, {"role": "assistant", **_message(content), **ending(answer)})
            result.choices = [Choice(0, message, finish_reason(answer.get("stop_reason")))]
        return result
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from None


def json_fields(data: bytes) -> dict[str, Any]:
    """A JSON object as a dict; raises msgspec.DecodeError where it is something else."""
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
            text += text_of(block.get("text"))
            citations += block.get("citations") or [] if isinstance(block.get("citations"), list) else []
        elif kind == "thinking":
            reasoning += text_of(block.get("thinking"))
            thinking.append(block)
        elif kind == "redacted_thinking":
            thinking.append(block)
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": arguments_of(block)}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
    fields = {
        "content": text,
        "tool_calls": calls,
        "reasoning_content": reasoning,
        "thinking_blocks": thinking,
        "citations": citations,
    }
    return {name: value for name, value in fields.items() if value}


def text_of(value: Any) -> str:
    """A text; empty where it is missing or something else."""
    return value if isinstance(value, str) else ""


def arguments_of(block: dict[str, Any]) -> str:
    """The arguments of a `tool_use` block as JSON."""
    return msgspec.json.encode(block.get("input") or {}).decode()


def ending(source: dict[str, Any]) -> dict[str, Any]:
    """What else is told of the end: the stop sequence that was met, why a model refused, its container."""
    names = ("stop_sequence", "stop_details", "container")
    return {name: source[name] for name in names if source.get(name) is not None}


def finish_reason(reason: Any) -> str | None:
    """OpenAI's finish reason for a stop reason; one that it has no name for stays."""
    return FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else None


def openai_usage(usage: Any) -> Usage | None:
    """OpenAI's counts from Anthropic's, in which `input_tokens` are those that no cache had to do with.

    Counts without an equivalent (`server_tool_use`, `cache_creation` by lifetime, …) keep their names.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    rest = {name: value for name, value in usage.items() if name not in _TRANSLATED and value is not None}
    result = build(Usage, rest) if rest else Usage()
    counts = [count if isinstance(count := usage.get(name), int) else None for name in _COUNTS]
    given, answered, read, written = counts
    prompt = None if given is None else given + (read or 0) + (written or 0)
    result.prompt_tokens, result.completion_tokens = prompt, answered
    if prompt is not None and answered is not None:
        result.total_tokens = prompt + answered
    if read is not None or written is not None:
        result.prompt_tokens_details = parts = TokensDetails(read, written)
        if written and isinstance(creation := usage.get("cache_creation"), dict):
            parts.cache_write_1h_tokens = creation.get("ephemeral_1h_input_tokens")
    details = usage.get("output_tokens_details")
    if isinstance(details, dict) and isinstance(thought := details.get("thinking_tokens"), int):
        result.completion_tokens_details = TokensDetails(reasoning_tokens=thought)
    return result
