"""What went wrong in a call, as one of our errors and on its record.

Called by `calls`, the verbs and `streaming`; raises nothing itself.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from . import masking, tracing, transport
from .exceptions import APIConnectionError, APIError, APIResponseValidationError, Timeout, UsageProblem
from .providers import Route, errors


def from_transport(error: BaseException, call: tracing.Call, route: Route) -> APIConnectionError:
    """aiohttp's error as one of ours, with the URL that was tried."""
    details: dict[str, Any] = {"model": route.asked, "llm_provider": route.provider.name}
    if isinstance(error, TimeoutError):
        what = masking.redact(str(error)) or "no answer in time"
        result: APIConnectionError = Timeout(
            f"{route.base_url}: {what}. timeout= sets how long to wait", **details
        )
    else:
        reason = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
        text = masking.redact(str(reason) or type(error).__name__)
        if isinstance(error, aiohttp.ClientPayloadError):
            text = f"the answer broke off: {_cause_of_break(text)}"
        elif isinstance(reason, ConnectionRefusedError):
            text += ". Nothing listens there: is the server running, and the address right?"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            text += ". Is the address right, and the network there?"
        elif isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
            text += ". A CA bundle of your own goes into SSL_CERT_FILE"
        elif isinstance(error, aiohttp.ClientHttpProxyError):
            text = f"the proxy answered {error.status} {masking.redact(error.message)}"
            if error.status == 407:
                text += errors.PROXY_REFUSES
        result = APIConnectionError(f"{route.base_url}{_by_way_of(error, route)}: {text}", **details)
    if isinstance(error, aiohttp.ClientResponseError):  # it would show the headers that were sent
        error.request_info, error.history, error.args = None, (), ()  # type: ignore[assignment]
    note(call, result)
    return result


def _by_way_of(error: BaseException, route: Route) -> str:
    """The proxy, where it is what failed; its URL may hold a password, so only host and port."""
    url = URL(route.base_url)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        with contextlib.suppress(UsageProblem):  # a session of the caller's own has its own proxy
            if (proxy := transport.proxies().to(url.scheme, url.host or "")) is not None:
                return f", through the proxy {proxy.host}:{proxy.port}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f", through the proxy {error.host}:{error.port}"
    # aiohttp's error is the same where the name of a proxy can't be resolved, or that of a redirect's target.
    if isinstance(error, aiohttp.ClientConnectorDNSError) and error.host != url.raw_host:
        return f", through {error.host}:{error.port}"
    return ""


def _cause_of_break(text: str) -> str:
    """Why a body ended too early, where aiohttp's words tell of its parser instead."""
    if "ConnectionResetError" in text:
        return "the connection was reset"
    return "the connection closed before its end" if "Not enough data" in text else text


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
