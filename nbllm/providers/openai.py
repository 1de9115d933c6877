"""OpenAI's chat wire format, which most servers speak.

Source: OpenAI API reference, "Chat completions", "Streaming", "Error codes"; the quirks of other servers
that are met here are named where they are handled.
"""

from __future__ import annotations

import difflib
import email.utils
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from ..exceptions import APIError, UsageProblem, error_class
from ..types import ChatCompletion, ChatCompletionChunk, decoder, parse
from .base import Route

# OpenAI's parameters of chat completions, without model, messages and stream.
_CHAT_PARAMETERS = """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed
    service_tier stop store stream_options temperature tool_choice tools top_logprobs top_p user verbosity
    web_search_options
"""
CHAT_PARAMETERS = frozenset(_CHAT_PARAMETERS.split())

# Options of litellm and the openai SDK themselves: no server takes them.
_CLIENT_OPTIONS = frozenset(
    (
        *("api_version", "cache", "caching", "context_window_fallback_dict", "custom_llm_provider"),
        *("drop_params", "fallbacks", "headers", "max_budget", "max_retries", "mock_response"),
        *("num_retries", "organization", "request_timeout"),
    )
)


def chat_request(
    route: Route,
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[str, bytes, bytes | None]:
    """The URL, the JSON body and, for the log, the parameters alone as JSON (None where there are none).

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
    if metadata and sent.get("store"):
        body["metadata"] = metadata
    return f"{route.base_url}/chat/completions", _encode(body), _encode(shown) if shown else None


def chat_headers(route: Route, extra: Mapping[str, str] | None) -> Mapping[str, str]:
    """The request's headers; the caller's win, whatever their case.

    Raises:
        UsageProblem: A name or value that HTTP can't hold.
    """
    if not extra:
        return route.headers
    headers = dict(route.headers)
    for name, value in extra.items():
        if not (isinstance(name, str) and isinstance(value, str) and (name + value).isprintable()):
            raise UsageProblem(f"extra_headers: {name!r} and its value must be texts of one line")
        for present in [known for known in headers if known.lower() == name.lower()]:
            del headers[present]
        headers[name] = value
    return headers


# From JSON text to a whole answer, and to one event of a streamed one. They raise msgspec.DecodeError where
# the text is not a JSON object.
chat_response = decoder(ChatCompletion)
chat_chunk = decoder(ChatCompletionChunk)


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    model: str,
    route: Route,
    redact: Callable[[str], str],
) -> APIError:
    """The error that an HTTP status of 400 or above, with its body, stands for.

    `redact` masks keys: providers quote the key that they refuse.
    """
    decoded: Any = None
    try:
        decoded = parse(body)
    except msgspec.DecodeError:
        pass
    message, code = _error_text(decoded)
    if not message:
        kind = headers.get("Content-Type", "").partition(";")[0] or "no content type"
        start = " ".join(body[:200].decode("utf-8", "replace").split())
        message = f"{route.base_url} answered {status} ({kind}): {start}" if start else f"HTTP {status}"
    message = redact(message)
    cls = error_class(status, code, message)
    return cls(
        f"{cls.__name__} {status}: {message}",
        status_code=status,
        model=model,
        llm_provider=route.provider.name,
        code=_masked(code, redact),
        body=_masked(decoded, redact) if decoded is not None else redact(body.decode("utf-8", "replace")),
        request_id=_masked(headers.get("x-request-id"), redact),
        retry_after=retry_after(headers),
        response=_masked(kept_headers(headers), redact),
    )


def error_inside(data: bytes, *, model: str, route: Route, redact: Callable[[str], str]) -> APIError | None:
    """The error that the body of a 200, or an event of a stream, holds; None where it holds none."""
    try:
        decoded = parse(data)
    except msgspec.DecodeError:
        return None
    if not isinstance(decoded, dict) or not decoded.get("error"):
        return None
    error = decoded["error"]
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return error_from(status, {}, data, model=model, route=route, redact=redact)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `retry-after-ms`, else `retry-after` as seconds or as an HTTP date."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _seconds(float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        try:
            return _seconds(float(value))
        except ValueError:
            return _seconds(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds(value: float) -> float | None:
    return max(0.0, value) if math.isfinite(value) else None


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The response headers worth keeping, by an allow-list: no header of unknown content is stored."""
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower() in _KEPT or name.lower().startswith(("x-ratelimit-", "x-litellm-"))
    }


_KEPT = frozenset({"content-type", "retry-after", "retry-after-ms", "x-request-id", "openai-processing-ms"})


def _error_text(decoded: Any) -> tuple[str, str | None]:
    # OpenAI: {"error": {"message", "code", "type"}}; FastAPI and vLLM: {"detail"} or {"message"}; Ollama:
    # {"error": "text"}.
    if not isinstance(decoded, dict):
        return "", None
    error = decoded.get("error", decoded)
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "", None
    text = error.get("message") or error.get("detail") or ""
    code = error.get("code") or error.get("type")
    return (text if isinstance(text, str) else str(text)), (None if code is None else str(code))


def _masked(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _masked(item, redact) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, redact) for item in value]
    return value


@lru_cache(maxsize=1024)
def _refuse_near_miss(name: str) -> None:
    if name in _CLIENT_OPTIONS:
        instead = "timeout=" if name == "request_timeout" else "leave it out"
        raise UsageProblem(f"{name} is an option of another client, which nbllm does not have: {instead}")
    # Other servers' own parameters must pass: Groq's reasoning_format is 0.875 from reasoning_effort.
    near = difflib.get_close_matches(name, CHAT_PARAMETERS, n=1, cutoff=0.88)
    if near:
        raise UsageProblem(
            f"there is no parameter {name!r}; did you mean {near[0]!r}? "
            f"To send it as it is: extra_body={{{name!r}: …}}"
        )


def _to_json(value: Any) -> Any:
    """What msgspec doesn't know: objects of SDKs, numpy numbers and arrays."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"objects of type {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_to_json)


def _encode(body: dict[str, Any]) -> bytes:
    try:
        data = _encoder.encode(body)
    except (TypeError, NotImplementedError, ValueError, RecursionError) as error:
        raise UsageProblem(f"the messages or parameters can't be written as JSON: {error}") from error
    if b"null" in data:  # may stand for NaN, as from an empty cell of a DataFrame
        _refuse_nan(body, "")
    return data


def _refuse_nan(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageProblem(f"{where} is {value}, which JSON can't hold")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(item, f"{where}[{key!r}]" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_nan(item, f"{where}[{index}]")
