"""What went wrong in a call, as one of our errors and on its record.

Called by `calls`, the verbs and `streaming`; raises nothing itself.
"""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
import msgspec

from . import masking, tracing
from .exceptions import APIConnectionError, APIError, APIResponseValidationError, Timeout
from .providers import Route, errors


def from_transport(error: BaseException, call: tracing.Call, route: Route) -> APIConnectionError:
    """aiohttp's error as one of ours, with the URL that was tried."""
    details: dict[str, Any] = {"model": route.asked, "llm_provider": route.provider.name}
    if isinstance(error, TimeoutError):
        what = str(error) or "no answer in time"
        result: APIConnectionError = Timeout(
            f"{route.base_url}: {what}. timeout= sets how long to wait", **details
        )
    else:
        reason = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
        text = masking.redact(str(reason) or type(error).__name__)
        if isinstance(error, aiohttp.ClientPayloadError):
            # aiohttp's own words where a connection closes too early tell of its parser.
            why = "the connection closed before its end" if "not completed" in text else text
            text = f"the answer broke off: {why}"
        elif isinstance(reason, ConnectionRefusedError):
            text += ". Nothing listens there: is the server running, and the address right?"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            text += ". Is the address right, and the network there?"
        elif isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
            text += ". A CA bundle of your own goes into SSL_CERT_FILE"
        result = APIConnectionError(f"{route.base_url}: {text}", **details)
    if isinstance(error, aiohttp.ClientResponseError):  # it would show the headers that were sent
        error.request_info, error.history, error.args = None, (), ()  # type: ignore[assignment]
    note(call, result)
    return result


def from_refusal(response: aiohttp.ClientResponse, body: bytes, call: tracing.Call, route: Route) -> APIError:
    """The error that a status of 400 or above stands for."""
    error = errors.error_from(response.status, response.headers, body, route=route, redact=masking.redact)
    note(call, error)
    return error


def from_body(response: aiohttp.ClientResponse, body: bytes, call: tracing.Call, route: Route) -> APIError:
    """The error for a 200 whose body holds an error, or is not what was asked for."""
    error = errors.error_inside(body, route=route, redact=masking.redact)
    if error is None:
        start = " ".join(body[:120].decode("utf-8", "replace").split()) or "nothing"
        error = APIResponseValidationError(
            f"{route.base_url} answered with something that is no answer to {call.operation} "
            f"({response.content_type}): {masking.redact(start)}. Does the base URL end in /v1?",
            status_code=response.status,
            model=route.asked,
            llm_provider=route.provider.name,
            response=errors.kept_headers(response.headers),
        )
    note(call, error)
    return error


def note(call: tracing.Call, error: APIError) -> None:
    """Put an error on the call's last record and end that, or have it end when its connection closes."""
    error.request = record = call.record
    if record is None or record.ended:
        return
    record.status = "error"
    if error.retry_after is not None:
        record.retry_after_ms = error.retry_after * 1e3
    tracing.set_error(record, error)
    if record.content is not None and error.body is not None:
        record.response_content = (
            error.body if isinstance(error.body, str) else msgspec.json.encode(error.body)
        )
    if record.wire_ended is not None:
        tracing.end(record)


def give_up(call: tracing.Call, error: BaseException) -> None:
    """End the call's record where the call ends by a cancel, or by an error that is none of the API's."""
    record = call.record
    if record is None or record.ended:
        return
    if isinstance(error, Exception):
        record.status = "error"
        tracing.set_error(record, error)
    else:
        record.status = "cancelled"
    if record.wire_ended is not None:
        tracing.end(record)
