"""OpenAI's chat wire format, which most servers speak.

Source: OpenAI API reference, "Chat completions", "Streaming", "Error codes"; the quirks of other servers
that are met here are named where they are handled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..exceptions import UsageProblem, did_you_mean
from ..types import ChatCompletion, ChatCompletionChunk, decoder, series_decoder
from .base import HttpRequest, Route
from .encoding import encode

# OpenAI's parameters of chat completions, without model, messages and stream.
_CHAT_PARAMETERS = """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed
    service_tier stop store stream_options temperature tool_choice tools top_logprobs top_p user verbosity
    web_search_options
"""
CHAT_PARAMETERS = frozenset(_CHAT_PARAMETERS.split())

# Options of litellm and the openai SDK themselves, which no server takes: name -> what to write instead.
_CLIENT_OPTIONS = {
    "headers": "write extra_headers=",
    "request_timeout": "write timeout=",
    "custom_llm_provider": "write it as the model's prefix, such as groq/…",
    "mock_response": "demo/small answers without a key",
    "organization": "write extra_headers={'OpenAI-Organization': …}",
    **dict.fromkeys(
        ("cache", "caching", "context_window_fallback_dict", "drop_params", "guardrails",
         "input_cost_per_token", "litellm_call_id", "max_budget", "model_info",
         "output_cost_per_token"),
        "leave it out",
    ),
}  # fmt: skip


_REASONING = re.compile(r"o\d|gpt-5")


def chat_request(
    route: Route,
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for a chat completion.

    Parameters that are None are left out. A stream asks for usage unless the caller says otherwise.
    `metadata` is sent where the answer is stored (`store=True`), since OpenAI refuses it elsewhere.

    Raises:
        UsageProblem: A value that JSON can't hold, or a parameter name that is nearly one of OpenAI's.
    """
    sent: dict[str, Any] = {}
    for name, value in params.items():
        if name not in CHAT_PARAMETERS:
            _refuse_near_miss(name)
        if value is not None:
            sent[name] = value
    if extra_body:
        sent.update(extra_body)
    shown = {**sent, "metadata": metadata} if metadata else sent
    body: dict[str, Any] = {"model": route.model, "messages": messages, **sent}
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, **(body.get("stream_options") or {})}
    if "max_tokens" in sent and _REASONING.match(route.model) and route.provider.name in ("openai", "azure"):
        # OpenAI's reasoning models refuse the older name ("o1 series models", API reference: max_tokens).
        body["max_completion_tokens"] = body.pop("max_tokens")
    if metadata and sent.get("store"):
        body["metadata"] = metadata
    return HttpRequest(
        route.url("chat/completions"), encode(body), route.headers, encode(shown) if shown else None
    )


# From JSON text to a whole answer; and a decoder for each stream, whose events are chunks already. They raise
# msgspec.DecodeError where the text is not a JSON object.
chat_response = decoder(ChatCompletion)
chunk_decoder = series_decoder(ChatCompletionChunk)


@lru_cache(maxsize=1024)
def _refuse_near_miss(name: str) -> None:
    if name in _CLIENT_OPTIONS:
        raise UsageProblem(f"{name} is an option of another client: {_CLIENT_OPTIONS[name]}")
    # Other servers' own parameters must pass: Groq's reasoning_format is 0.875 from reasoning_effort.
    if meant := did_you_mean(name, CHAT_PARAMETERS, cutoff=0.88):
        raise UsageProblem(
            f"there is no parameter {name!r}{meant} To send it as it is: extra_body={{{name!r}: …}}"
        )
