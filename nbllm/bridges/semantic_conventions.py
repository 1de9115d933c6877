"""A request in OpenTelemetry's words: the name of its span, its attributes, its messages.

Owns the mapping of names, and nothing else: plain values in and out. Source: the GenAI conventions, status
Development (github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/client-inference.md and
model/gen-ai/gen-ai-input-messages.json, November 2026), and HTTP's (opentelemetry.io, "HTTP spans"). What
they have no name for stands under `nbllm.` and the column's name. Called by `opentelemetry`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .. import masking
from ..contents import answer_of, messages_of

Row = Mapping[str, Any]

ATTRIBUTES = {
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "input_audio_tokens": "gen_ai.usage.audio.input_tokens",
    "output_audio_tokens": "gen_ai.usage.audio.output_tokens",
    "input_image_tokens": "gen_ai.usage.image.input_tokens",
    "output_image_tokens": "gen_ai.usage.image.output_tokens",
    "cost_usd": "gen_ai.usage.cost",  # in no convention; what Langfuse, Laminar and OpenLIT read
    "server_address": "server.address",
    "server_port": "server.port",
    "error_type": "error.type",
    "http_method": "http.request.method",
    "http_status": "http.response.status_code",
}
"""Column → attribute of the same meaning, type and unit."""

OWN = (
    *("request_id", "call_id", "kernel_id", "notebook", "cell_id", "execution_count", "run_id", "status"),
    *("provider_request_id", "cost_source", "retry_after_ms", "bytes_sent", "bytes_received", "chunks"),
    *("queued_ms", "blocked_ms", "dns_ms", "connect_ms", "ssl_ms", "send_ms", "wait_ms", "receive_ms"),
    *("connection_id", "connection_reused", "connection_reason", "connection_idle_ms"),
)
"""Columns that are attributes under `nbllm.` and their own name."""

PARAMETERS: dict[str, tuple[str, type]] = {
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "max_output_tokens": ("gen_ai.request.max_tokens", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
    "reasoning_effort": ("gen_ai.request.reasoning.level", str),
    "previous_response_id": ("gen_ai.request.previous_response.id", str),
}
"""OpenAI's parameter → attribute and its type. Those that hold texts of the user are not among them."""

PROVIDERS = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""The providers whose name in the conventions is another one than litellm's and ours."""

OPERATIONS = {"responses": "chat"}
"""Our operations that the conventions count to another one."""


def span_name(row: Row) -> str:
    """`chat gpt-4o`; for the request of another client, of which only HTTP is known, its method."""
    operation = _operation(row)
    if operation is None:
        return str(row.get("http_method") or "HTTP")
    return f"{operation} {row['request_model']}" if row.get("request_model") else operation


def attributes(row: Row) -> dict[str, Any]:
    """The attributes of a request's span, keys masked; what is unknown is left out.

    Both `gen_ai.conversation.id` and `session.id` are the session: backends read the one or the other.
    """
    found = {name: row.get(column) for column, name in ATTRIBUTES.items()}
    found |= {f"nbllm.{column}": row.get(column) for column in OWN}
    found |= _parameters(row.get("params"))
    found["gen_ai.operation.name"] = _operation(row)
    found["gen_ai.conversation.id"] = found["session.id"] = row.get("session_id")
    if (provider := row.get("provider")) is not None:
        found["gen_ai.provider.name"] = PROVIDERS.get(provider, provider)
    if row.get("stream"):
        found["gen_ai.request.stream"] = True
        if (ttft_ms := row.get("ttft_ms")) is not None:
            found["gen_ai.response.time_to_first_chunk"] = ttft_ms / 1e3
    if (reason := row.get("finish_reason")) is not None:
        found["gen_ai.response.finish_reasons"] = (masking.redact(reason),)
    if (attempt := row.get("attempt") or 1) > 1:
        found["http.request.resend_count"] = attempt - 1
    return {
        name: masking.redact(value) if isinstance(value, str) else value
        for name, value in found.items()
        if value is not None
    }


def messages(request: str | None, response: str | None, finish_reason: str | None) -> dict[str, str]:
    """What was said, as JSON, keys masked: `gen_ai.input.messages` and `gen_ai.output.messages`.

    Args:
        request: What was sent, as the log keeps it.
        response: What was answered, likewise.
        finish_reason: Why the answer ended.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    if sent := messages_of(request):
        found["gen_ai.input.messages"] = [_message(message) for message in sent]
    if (answer := answer_of(response)) is not None:
        said = _message(answer) | ({"finish_reason": finish_reason} if finish_reason else {})
        found["gen_ai.output.messages"] = [said]
    return {name: masking.redact(json.dumps(value, ensure_ascii=False)) for name, value in found.items()}


def _operation(row: Row) -> str | None:
    operation = row.get("operation")
    return None if operation is None else OPERATIONS.get(operation, operation)


def _parameters(params: str | None) -> dict[str, Any]:
    try:
        given = json.loads(params or "{}")
    except (ValueError, RecursionError):
        return {}
    found = {}
    for name, (attribute, kind) in PARAMETERS.items():
        value = given.get(name) if isinstance(given, dict) else None
        if kind is str and isinstance(value, str):
            found[attribute] = value
        elif kind is not str and _is_number(value) and not (name == "n" and value == 1):
            found[attribute] = kind(value)
    return found


def _is_number(value: Any) -> bool:
    """Whether OTLP has a place for it: one number that has none, and the whole batch is not sent."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < 1 << 63


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI message as one of the conventions': a role and typed parts."""
    content = message.get("content")
    if message["role"] == "tool":
        result = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return {"role": "tool", "parts": [result]}
    parts = []
    if reasoning := message.get("reasoning_content"):
        parts.append({"type": "reasoning", "content": reasoning})
    if isinstance(content, list):
        parts += [_part(part) for part in content]
    elif text := content or message.get("refusal"):
        parts.append({"type": "text", "content": text})
    parts += [_tool_call(call) for call in message.get("tool_calls") or ()]
    return {"role": message["role"], "parts": parts}


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):  # as the model wrote them
        arguments = function["arguments"]
    return {"type": "tool_call", "id": call.get("id"), "name": function["name"], "arguments": arguments}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "content": str(part.get("text"))}
    if kind == "image_url":
        return _media("image", _inner(part, "image_url", "url"))
    if kind == "input_audio":
        return {**_media("audio", "data:"), "mime_type": f"audio/{_inner(part, 'input_audio', 'format')}"}
    if kind == "file":
        if file_id := _inner(part, "file", "file_id"):
            return {"type": "file", "modality": "document", "file_id": file_id}
        return _media("document", _inner(part, "file", "file_data"))
    return {"type": str(kind)}


def _inner(part: Mapping[str, Any], name: str, field: str) -> str:
    inner = part.get(name)
    return str(inner.get(field) or "") if isinstance(inner, dict) else ""


def _media(modality: str, url: str) -> dict[str, Any]:
    """A picture, sound or file. Its bytes stay behind: a collector refuses a span of megabytes."""
    if url.startswith("http"):
        return {"type": "uri", "modality": modality, "uri": url}
    kind = url.removeprefix("data:").partition(";")[0] if url.startswith("data:") else ""
    return {"type": "blob", "modality": modality, "mime_type": kind or None, "content": ""}
