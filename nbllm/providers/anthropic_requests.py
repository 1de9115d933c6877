"""Requests to Anthropic's Messages API: OpenAI's chat parameters in its words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..exceptions import UsageProblem
from .anthropic_messages import conversation
from .base import HttpRequest, Route
from .encoding import encode
from .openai import CHAT_PARAMETERS
from .translation import given, shown, unsupported

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
    sent = given(params)
    body = _parameters(route, sent, metadata or {})
    if "system" in body:
        messages = [{"role": "system", "content": body.pop("system")}, *messages]
    system, turns = conversation(messages)
    body = {"model": route.model, "messages": turns, **body}
    if system:
        body["system"] = system
    if stream:
        body["stream"] = True
    return HttpRequest(
        route.url("messages"),
        encode({**body, **(extra_body or {})}),
        route.headers,
        shown(sent, extra_body, metadata),
    )


def _parameters(route: Route, sent: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name, value in sent.items():
        if name in _SAME or name not in CHAT_PARAMETERS:
            body[name] = value
        elif name not in _TRANSLATED and (name not in _NEUTRAL or value != _NEUTRAL[name]):
            raise unsupported(route, f"{name} has no equivalent there")
    max_tokens = sent.get("max_completion_tokens", sent.get("max_tokens", DEFAULT_MAX_TOKENS))
    body["max_tokens"] = max_tokens
    if "stop" in sent:
        body["stop_sequences"] = [sent["stop"]] if isinstance(sent["stop"], str) else sent["stop"]
    user = sent.get("user", sent.get("safety_identifier", metadata.get("user_id")))
    if user is not None:
        body["metadata"] = {"user_id": user}
    if tools := sent.get("tools"):
        if not isinstance(tools, (list, tuple)):
            raise UsageProblem(f"tools must be a list of dicts; got {tools!r:.80}")
        body["tools"] = [_tool(tool) for tool in tools]
    one_at_a_time = bool(tools) and sent.get("parallel_tool_calls") is False
    if (choice := _tool_choice(sent.get("tool_choice"), one_at_a_time)) is not None:
        body["tool_choice"] = choice
    output: dict[str, Any] = {}
    if "response_format" in sent:
        output |= _output_format(route, sent["response_format"])
    if "reasoning_effort" in sent:
        effort, thinking = _thinking(route, sent["reasoning_effort"], max_tokens)
        output |= effort
        body.setdefault("thinking", thinking)
    if output:
        body["output_config"] = {**output, **(body.get("output_config") or {})}
    return body


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
        raise unsupported(
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
