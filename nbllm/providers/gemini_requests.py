"""Requests to Gemini's generateContent: OpenAI's chat parameters in its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..exceptions import UsageProblem
from .base import HttpRequest, Route
from .encoding import encode
from .gemini_contents import conversation, member
from .openai import CHAT_PARAMETERS
from .translation import given, shown, unsupported

# Parameters that stand under another name in generationConfig.
_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}

# Left out, since the answer is the same without them: Gemini has no field for an end user's id, caches and
# counts tokens without being asked.
_NEEDLESS = frozenset({"user", "safety_identifier", "prompt_cache_key", "stream_options"})

# Guide "OpenAI compatibility", "Thinking": tokens for the models of Gemini 2.5.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}

_CALLING_MODES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}


def chat_request(
    route: Route,
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for a chat completion.

    System and developer messages become the one `systemInstruction`, wherever they stand. What is no
    parameter of OpenAI's goes into the body as it is (`safety_settings`, `cachedContent`; the API takes snake
    and camel case), as `extra_body` does, whose `generationConfig` adds to the translated one. `metadata` is
    for the log alone: there is no field for it.

    Raises:
        UsageProblem: A message or value that can't work.
        UnsupportedParamsError: A parameter of OpenAI's without an equivalent.
    """
    sent = given(params)
    system, contents = conversation(messages, signed=_has_levels(route.model))
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    config: dict[str, Any] = {}
    for name, value in sent.items():
        _translate(name, value, route, body, config)
    if "reasoning_effort" in sent and "thinking" in sent:
        raise UsageProblem("reasoning_effort and thinking say the same to Gemini: give one of them")
    body |= extra_body or {}
    if "generationConfig" in body:
        config |= member(body, "generationConfig", "extra_body")
    if config:
        body["generationConfig"] = config
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return HttpRequest(
        f"{route.base_url}/{resource(route.model)}:{verb}",
        encode(body),
        route.headers,
        shown(sent, extra_body, metadata),
    )


def resource(model: str) -> str:
    """A model's name as it stands in URLs."""
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _has_levels(model: str) -> bool:
    """Whether a model thinks in levels and wants its signatures back, as those from Gemini 3 on do."""
    return not resource(model).startswith(("models/gemini-1", "models/gemini-2", "tunedModels/"))


def _translate(name: str, value: Any, route: Route, body: dict[str, Any], config: dict[str, Any]) -> None:
    """Put one parameter into the body or into its generationConfig."""
    match name:
        case "stop":
            config["stopSequences"] = [value] if isinstance(value, str) else value
        case "response_format":
            config |= _response_format(value)
        case "reasoning_effort":
            config["thinkingConfig"] = _effort(value, route)
        case "thinking":
            config["thinkingConfig"] = _thinking(value)
        case "modalities":
            if not isinstance(value, list) or any(kind not in ("text", "image") for kind in value):
                raise unsupported(route, f"only text and image are read of modalities={value!r}")
            config["responseModalities"] = [kind.upper() for kind in value]
        case "tools":
            body["tools"] = _tools(value, route)
        case "tool_choice":
            body["toolConfig"] = {"functionCallingConfig": _calling(value, route)}
        case "service_tier":
            if value != "auto":  # which leaves it to the provider, as nothing does
                body["serviceTier"] = "standard" if value == "default" else value
        case "parallel_tool_calls" if value is True:
            pass  # as Gemini does anyway
        case "store":
            body["store"] = value
        case _ if name in _CONFIG:
            config[_CONFIG[name]] = value
        case _ if name in _NEEDLESS:
            pass
        case _ if name in CHAT_PARAMETERS:
            raise unsupported(route, f"there is no equivalent of {name}={value!r:.80}")
        case _:
            body[name] = value


def _response_format(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = member(value, "json_schema", "response_format").get("schema")
        # Not responseSchema, which takes only a part of OpenAPI's schemas.
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise UsageProblem(f"response_format must have the type text, json_object or json_schema: {value!r}")


def _effort(value: Any, route: Route) -> dict[str, Any]:
    if not isinstance(value, str) or value not in _BUDGETS:
        raise unsupported(route, f"reasoning_effort={value!r} is none of {', '.join(_BUDGETS)}")
    if not _has_levels(route.model):
        return {"thinkingBudget": _BUDGETS[value], "includeThoughts": value != "none"}
    if value == "none":
        raise unsupported(
            route, f"{route.model} always thinks, at least a 'low' reasoning_effort, not 'none'"
        )
    return {"thinkingLevel": value, "includeThoughts": True}


def _thinking(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "disabled":
        return {"thinkingBudget": 0}
    if kind == "enabled":  # -1: as much as the model thinks right
        return {"thinkingBudget": value.get("budget_tokens", -1), "includeThoughts": True}
    raise UsageProblem(f"thinking must be like {{'type': 'enabled', 'budget_tokens': 1024}}: {value!r}")


def _tools(value: Any, route: Route) -> list[Any]:
    """Gemini's own tools, such as `{"google_search": {}}`, as they are; functions as one tool."""
    if not isinstance(value, list):
        raise UsageProblem(f"tools must be a list, not {value!r:.80}")
    tools: list[Any] = []
    functions: list[dict[str, Any]] = []
    for tool in value:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "function":
            function = member(tool, "function", "tools")
            declared = {name: function[name] for name in ("name", "description") if function.get(name)}
            if function.get("parameters"):  # the field `parameters` is OpenAPI's, not JSON Schema
                declared["parametersJsonSchema"] = function["parameters"]
            functions.append(declared)
        elif kind is None:
            tools.append(tool)
        else:
            raise unsupported(route, f"there is no tool of type {kind!r}")
    return [*tools, {"functionDeclarations": functions}] if functions else tools


def _calling(value: Any, route: Route) -> dict[str, Any]:
    if isinstance(value, str) and value in _CALLING_MODES:
        return {"mode": _CALLING_MODES[value]}
    if isinstance(value, dict) and value.get("type") == "function":
        return {
            "mode": "ANY",
            "allowedFunctionNames": [member(value, "function", "tool_choice").get("name")],
        }
    raise unsupported(route, f"tool_choice={value!r} is not none, auto, required or one function")
