"""From an HTTP status and a body to one of our errors, for every provider.

Sources: OpenAI API reference, "Error codes"; Anthropic API reference, "Errors"; Gemini API, "Troubleshooting"
and google.rpc.Status; the quirks of other servers are named where they are handled.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..exceptions import APIError, error_class
from ..types import parse
from .base import Route

PROXY_REFUSES = ". A name and password for the proxy go into its URL: http://NAME:PASSWORD@HOST:PORT"


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
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
    if status < 400:
        message = f"{route.base_url} redirects to {headers.get('Location', 'nowhere')}: give that as base_url"
    if not message:
        kind = headers.get("Content-Type", "").partition(";")[0] or "no content type"
        start = " ".join(body[:200].decode("utf-8", "replace").split())
        message = f"{route.base_url} answered {status} ({kind}): {start}" if start else f"HTTP {status}"
    if status == 404 and _asks_for_address(route, code, body):
        message += f". Is {route.base_url} the whole base URL? It mostly ends in /v1, never in an endpoint"
    if status == 407:
        message += PROXY_REFUSES
    message = redact(message)
    cls = error_class(status, code, message)
    return cls(
        f"{status}: {message}",
        status_code=status,
        model=route.asked,
        llm_provider=route.provider.name,
        code=_masked(code, redact),
        body=_masked(decoded, redact) if decoded is not None else redact(body.decode("utf-8", "replace")),
        request_id=_masked(request_id(headers), redact),
        retry_after=_retry_delay(decoded) if (told := retry_after(headers)) is None else told,
        response=_masked(kept_headers(headers), redact),
    )


def _asks_for_address(route: Route, code: str | None, body: bytes) -> bool:
    """Whether the base URL may be to blame for a 404."""
    provider = route.provider
    is_own = code is None or route.base_url != provider.base_url
    # Azure's addresses are put together otherwise.
    return provider.dialect == "openai" and not provider.url and is_own and route.model.encode() not in body


def error_inside(data: bytes, *, route: Route, redact: Callable[[str], str]) -> APIError | None:
    """The error that the body of a 200, or an event of a stream, holds; None where it holds none."""
    try:
        decoded = parse(data)
    except msgspec.DecodeError:
        return None
    error = _error_in(decoded)
    # vLLM's own is {"object": "error", "message", "code"}, FastAPI's {"detail"}.
    is_flat = isinstance(decoded, dict) and (decoded.get("object") == "error" or "detail" in decoded)
    if not error or (error is decoded and not is_flat):
        return None
    code = error.get("code") if isinstance(error, dict) else None
    kind = error.get("type") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else STATUS_BY_TYPE.get(str(kind), 500)
    return error_from(status, {}, data, route=route, redact=redact)


# Anthropic API reference, "Errors": the statuses that the types of error have outside of streams.
STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own id of a request, to quote in a report to it."""
    return headers.get("x-request-id") or headers.get("request-id")  # the latter is Anthropic's


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
        if name.lower() in _KEPT or name.lower().startswith(_KEPT_BEGINNINGS)
    }


_KEPT = frozenset(
    (
        *("content-type", "retry-after", "retry-after-ms", "x-should-retry"),
        *("x-request-id", "request-id", "openai-processing-ms"),
    )
)
_KEPT_BEGINNINGS = ("x-ratelimit-", "x-litellm-", "anthropic-ratelimit-")


def _error_in(decoded: Any) -> Any:
    """What stands under `error`: a dict or a text; the body itself where it has no such field."""
    if isinstance(decoded, list) and len(decoded) == 1:  # Gemini's, where a stream was asked for
        decoded = decoded[0]
    return decoded.get("error", decoded) if isinstance(decoded, dict) else None


def _error_text(decoded: Any) -> tuple[str, str | None]:
    # OpenAI: {"error": {"message", "code", "type"}}; Anthropic: {"error": {"type", "message"}}; Gemini:
    # {"error": {"code": the HTTP status, "message", "status", "details"}}; FastAPI and vLLM: {"detail"} or
    # {"message"}; Ollama: {"error": "text"}.
    error = _error_in(decoded)
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "", None
    text = error.get("message") or error.get("detail") or ""
    code = error.get("status") or error.get("code") or error.get("type")
    reasons = (detail.get("reason") for detail in _details(error))
    code = next((reason for reason in reasons if reason == "API_KEY_INVALID"), code)
    return (text if isinstance(text, str) else str(text)), (None if code is None else str(code))


def _details(error: Any) -> list[dict[str, Any]]:
    """The parts of a google.rpc.Status."""
    details = error.get("details") if isinstance(error, dict) else None
    return [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []


def _retry_delay(decoded: Any) -> float | None:
    """Seconds of google.rpc.RetryInfo, such as "37s"."""
    for detail in _details(_error_in(decoded)):
        try:
            return _seconds(float(str(detail["retryDelay"]).removesuffix("s")))
        except (KeyError, ValueError):
            continue
    return None


def _masked(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_masked(key, redact): _masked(item, redact) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, redact) for item in value]
    return value
