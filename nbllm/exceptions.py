"""The errors of nbllm, split by what a caller can do about them::

    NbllmError
    ├── UsageProblem (ValueError)              fix the call: noticed before anything was sent
    └── APIError                               base of every error of a call
        ├── BadRequestError 400                fix the call
        │   ├── ContextWindowExceededError
        │   ├── ContentPolicyViolationError
        │   └── UnsupportedParamsError
        ├── AuthenticationError 401            change the key
        ├── PermissionDeniedError 403
        ├── NotFoundError 404                  fix the model name or the URL
        ├── UnprocessableEntityError 422
        ├── RateLimitError 429                 wait `retry_after` seconds
        ├── InternalServerError 500            try again, then report
        │   ├── BadGatewayError 502
        │   └── ServiceUnavailableError 503
        ├── APIResponseValidationError         report: the answer is not what the API promises
        └── APIConnectionError                 look at the network or the URL
            └── Timeout 408

The names are those of litellm and the openai SDK. Unlike litellm's, `APIError` catches them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


class NbllmError(Exception):
    """Root of all errors that nbllm raises."""


class UsageProblem(NbllmError, ValueError):
    """A value that cannot work, noticed before anything was sent."""


class APIError(NbllmError):
    """A call failed.

    Attributes:
        message: What happened, with the next step where there is one. Never holds a key.
        status_code: HTTP status; for errors without one, the closest (408 for a timeout), else None.
        model: The model as the caller wrote it.
        llm_provider: Name of the provider, such as "openai".
        code: The provider's own error code, such as "model_not_found".
        body: The provider's error body, decoded where it is JSON.
        request_id: The provider's request id, to quote in a report to it.
        retry_after: Seconds to wait, where the provider said so.
        response: Headers kept from the response, by lower-case name; None where there was none.
        request: The trace record of the request.
    """

    status_code: int | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        model: str | None = None,
        llm_provider: str | None = None,
        code: str | None = None,
        body: Any = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        response: Any = None,
        request: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if status_code is not None:
            self.status_code = status_code
        self.model = model
        self.llm_provider = llm_provider
        self.code = code
        self.body = body
        self.request_id = request_id
        self.retry_after = retry_after
        self.response = response
        self.request = request

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call __init__ with the message alone and lose the rest; the record stays behind.
        state = {key: value for key, value in self.__dict__.items() if key != "request"}
        return (_rebuild, (type(self), self.message, {**state, "request": None}))


def _rebuild(cls: type[APIError], message: str, state: dict[str, Any]) -> APIError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class BadRequestError(APIError):
    """The provider refused the request as it is (400)."""

    status_code = 400


class ContextWindowExceededError(BadRequestError):
    """The messages are longer than the model's context window."""


class ContentPolicyViolationError(BadRequestError):
    """The provider's content policy refused the request."""


class UnsupportedParamsError(BadRequestError):
    """A parameter that this model or provider does not take."""


class AuthenticationError(APIError):
    """The key is missing or wrong (401)."""

    status_code = 401


class PermissionDeniedError(APIError):
    """The key is right but may not do this (403)."""

    status_code = 403


class NotFoundError(APIError):
    """No such model or URL (404)."""

    status_code = 404


class UnprocessableEntityError(APIError):
    """The request was understood but cannot be processed (422)."""

    status_code = 422


class RateLimitError(APIError):
    """Too many requests or tokens, or the quota is used up (429)."""

    status_code = 429


class InternalServerError(APIError):
    """The provider failed (500 and above)."""

    status_code = 500


class BadGatewayError(InternalServerError):
    """A gateway in front of the provider failed (502)."""

    status_code = 502


class ServiceUnavailableError(InternalServerError):
    """The provider is overloaded or down (503)."""

    status_code = 503


class APIResponseValidationError(APIError):
    """The provider's answer is not in the format that its API promises."""


class APIConnectionError(APIError):
    """No connection, or it broke: refused, reset, DNS, TLS."""


class Timeout(APIConnectionError):
    """The call took longer than its timeout, or the provider said so (408, 504)."""

    status_code = 408


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`"; did you mean 'x'?"` for a name that is nearly one of those known, else an empty text."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: Timeout,
    422: UnprocessableEntityError,
    429: RateLimitError,
    502: BadGatewayError,
    503: ServiceUnavailableError,
    504: Timeout,
}


# Anthropic: "prompt is too long: 210000 tokens > 200000 maximum"; Gemini: "The input token count (…) exceeds
# the maximum number of tokens allowed".
_TOO_LONG = re.compile(r"prompt is too long|input token count .* exceeds")


def error_class(status: int, code: str | None = None, message: str = "") -> type[APIError]:
    """The class for an HTTP status, refined by the provider's error code and text.

    Source of the mapping: litellm's documentation, "Exception mapping".
    """
    if status in (400, 413):
        text = f"{code or ''} {message}".lower()
        if (
            "context_length" in text
            or "context window" in text
            or "maximum context" in text
            or _TOO_LONG.search(text)
        ):
            return ContextWindowExceededError
        if "content_policy" in text or "content_filter" in text or "content management policy" in text:
            return ContentPolicyViolationError
        if "api_key_invalid" in text:  # Gemini's, which is a 400
            return AuthenticationError
        if "unsupported_parameter" in text or "unsupported_value" in text:
            return UnsupportedParamsError
        return BadRequestError
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIError)
