"""One call, whatever the verb: attempts, fallbacks, until there is an answer or an error that stays.

Called by `client`, `endpoints` and `responding`, whose verbs say what is sent and how the answer is read.
The wire is `transport`'s, the policy of retrying `retries`', the waiting for limits `limits`', the record
`tracing`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from . import failures, limits, loops, masking, retries, tagging, tracing, transport
from .exceptions import APIError, UsageProblem
from .options import Options
from .providers import HttpRequest, Route, errors, resolve
from .providers.base import merged_headers
from .settings import model_of, settings
from .types import parse

T = TypeVar("T")

_logger = logging.getLogger("nbllm")

Reader = Callable[[tracing.Call, aiohttp.ClientResponse, Route], Awaitable[T]]
Translator = Callable[[Route, Mapping[str, Any] | None], HttpRequest]


def run(
    operation: str,
    model: str,
    options: Options,
    translate: Translator,
    read: Reader[T],
    *,
    stream: bool = False,
) -> Coroutine[Any, Any, T]:
    """Carry a call through, on the home loop where the caller is on another one.

    Args:
        operation: OpenTelemetry's name for what is done: chat, embeddings, …
        model: As the caller wrote it.
        options: What every verb takes.
        translate: From a route, and the fields to add to the body, to the request.
        read: From the response (its status is below 400) to the result. Raises APIError.
        stream: Whether the answer is streamed: `read` returns before its end.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed, and so did its fallbacks.
    """
    sending = _run(operation, model, options, translate, read, stream)
    if options.shared_session is None and loops.elsewhere():
        return loops.at_home(sending)
    return sending


async def _run(
    operation: str, model: str, options: Options, translate: Translator, read: Reader[T], stream: bool
) -> T:
    session = transport.session_for(options.shared_session)
    call = tracing.Call(options.session_id)
    call.operation, call.stream = operation, stream
    first_place: dict[str, Any] = {
        "model": model_of(model),
        "base_url": options.base_url,
        "api_key": options.api_key,
        "api_version": options.api_version,
    }
    first_url = None
    try:
        route = resolve(**first_place)
        first_url = route.base_url
        return await _ask(call, session, route, options, translate, read)
    except APIError as error:
        if not options.fallbacks:
            raise
        first = error
    for fallback in options.fallbacks:
        try:
            # Key and address belong to the first model; another provider's are looked up, or stand with it.
            # Without a model it is the first once more, with another key or address.
            if "model" in fallback:
                route = resolve(**{**fallback, "model": model_of(fallback["model"])})
            else:
                route = resolve(**{**first_place, **fallback})
            # So do headers and query, which may hold a key as well.
            is_first = route.base_url == first_url
            theirs = options if is_first else replace(options, extra_headers=None, extra_query=None)
            return await _ask(call, session, route, theirs, translate, read)
        except (APIError, UsageProblem) as error:
            asked = fallback.get("model", model)
            first.add_note(masking.redact(f"The fallback {asked!r} failed too: {error}"))
    raise first


async def _ask(
    call: tracing.Call,
    session: aiohttp.ClientSession,
    route: Route,
    options: Options,
    translate: Translator,
    read: Reader[T],
) -> T:
    """All attempts at one model."""
    extra_body, headers = options.extra_body, options.extra_headers
    if route.provider.takes_session:
        # Our row's and no other one, where the caller named several: a proxy heeds a trace id first.
        extra_body = {**(extra_body or {}), "litellm_session_id": call.session_id}
        given = (headers or {}).items()
        headers = {name: value for name, value in given if str(name).lower() not in tagging.SESSION_HEADERS}
        headers["x-litellm-session-id"] = call.session_id
    try:
        request = translate(route, extra_body)
    except (TypeError, AttributeError, LookupError, UnicodeError) as error:
        raise UsageProblem(
            f"the messages or parameters can't be put into the format of {route.provider.name}: {error}"
        ) from error
    sent_headers = merged_headers(request.headers, headers)
    masking.keep_secret(route.api_key)
    if options.extra_headers:
        _keep_secrets_by_name(options.extra_headers)
    if options.extra_query:
        _keep_secrets_by_name(options.extra_query)
        request.url = _with_query(request.url, options.extra_query)
    if request.params is not None and _SECRET_FIELD.search(request.params):
        keep_secrets(parse(request.params))
    provider = route.provider.name
    most = settings().num_retries if options.retries is None else options.retries
    call.provider, call.model, call.params = provider, route.model, request.params
    attempt = 1
    while True:
        call.record = None
        if (limiter := limits.limiter(provider, route.base_url)) is not None:
            await _be_admitted(call, limiter, request)
        try:
            return await _attempt(call, session, request, sent_headers, route, options, read)
        except APIError as error:
            limits.note(provider, error.response or {}, error.retry_after, route.base_url)
            pause = retries.pause_before(attempt, error) if attempt <= most else None
            if pause is None:
                raise
        finally:
            if call.record is None:  # nothing was sent
                tracing.give_back(call)
        await asyncio.sleep(pause)
        attempt += 1


async def _be_admitted(call: tracing.Call, limiter: limits.Limiter, request: HttpRequest) -> None:
    """Wait for a place under the provider's limits; the attempt's end on the wire gives it back."""
    estimated = limits.estimate_tokens(request.body or b"", None)
    call.queued_ms = await limiter.acquire(estimated)

    def settle(record: tracing.Record) -> None:
        if record.status == "error":
            limiter.settle(estimated, 0)
        elif record.input_tokens is not None:  # else the estimate stands
            limiter.settle(estimated, record.input_tokens + (record.output_tokens or 0))

    call.release, call.settle = limiter.release, settle


async def _attempt(
    call: tracing.Call,
    session: aiohttp.ClientSession,
    request: HttpRequest,
    headers: Mapping[str, str],
    route: Route,
    options: Options,
    read: Reader[T],
) -> T:
    # Audio and other forms stay out of the log.
    keeps = settings().content and request.headers.get("Content-Type") == "application/json"
    call.content = (request.content or request.body) if keeps else None
    try:
        response = await transport.send(
            call,
            session,
            request.url,
            request.body,
            headers,
            options.timeout,
            # aiohttp takes no other header than this one off where a redirect leads to another server.
            follow=route.provider.key_header == "Authorization",
        )
        call.content = None  # the record has it
        if (record := call.record) is not None:
            record.headers = response.headers
            record.provider_request_id = errors.request_id(response.headers)
        _say_which_connection(call, session)
        limits.note(route.provider.name, response.headers, None, route.base_url)
        if response.status >= 300:
            raise failures.from_refusal(response, await read_body(response), call, route)
        answer = await read(call, response, route)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise failures.from_transport(error, call, route) from error
    except BaseException as error:
        failures.give_up(call, error)
        raise
    if not call.stream and call.record is not None:
        tracing.end(call.record)
        call.record = None  # the record knows the call: the garbage collector would have to untie them
    return answer


async def read_answer(
    call: tracing.Call, response: aiohttp.ClientResponse, route: Route, decode: Callable[[bytes], T]
) -> tuple[bytes, T]:
    """The whole body, and what `decode` makes of it.

    Raises:
        APIError: It can't be decoded (msgspec.DecodeError).
    """
    body = await read_body(response)
    try:
        return body, decode(body)
    except msgspec.DecodeError:
        raise failures.from_body(response, body, call, route) from None


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """The whole body; where that fails, the connection is closed."""
    try:
        return await response.read()
    except BaseException:
        response.close()
        raise


def _say_which_connection(call: tracing.Call, session: aiohttp.ClientSession) -> None:
    """A debug line, for those who ask by `NBLLM_LOG=DEBUG` or by `logging`."""
    if "NBLLM_LOG" in os.environ and os.environ["NBLLM_LOG"].upper() == "DEBUG" and not _logger.handlers:
        _logger.addHandler(logging.StreamHandler())
        _logger.setLevel(logging.DEBUG)
        _logger.propagate = False  # else each line comes twice where logging is set up as well
    if not _logger.isEnabledFor(logging.DEBUG) or (record := call.record) is None:
        return
    reused = "reused" if record.connection_reused else f"new ({record.connection_reason})"
    _logger.debug(
        "nbllm: %s %s/%s: HTTP session %d, connection %s %s",
        *(call.operation, call.provider, call.model, id(session), record.connection_id, reused),
    )


def _with_query(url: str, fields: Mapping[str, Any]) -> str:
    try:
        return str(URL(url, encoded=True).update_query(fields))
    except TypeError as error:
        raise UsageProblem(f"extra_query must be a dict of texts and numbers: {error}") from error


def _keep_secrets_by_name(fields: Mapping[str, Any]) -> None:
    """Those of headers and of a query."""
    for name, value in fields.items():
        if any(mark in str(name).lower() for mark in ("auth", "key", "token", "secret", "cookie")):
            masking.keep_secret(str(value).rpartition(" ")[2])


# A field called `key` or `token` alone is mostly something else (prompt_cache_key, max_tokens).
_SECRET_NAME = re.compile(r"api[_-]?key|authorization|password|secret|(access|auth)[_-]?token", re.IGNORECASE)
_SECRET_FIELD = re.compile(_SECRET_NAME.pattern.encode(), re.IGNORECASE)


def keep_secrets(value: Any) -> None:
    """Have masked, wherever nbllm writes text, what stands in parameters under the names that keys go by."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, str) and _SECRET_NAME.search(str(name)):
                masking.keep_secret(item.rpartition(" ")[2])
            else:
                keep_secrets(item)
    elif isinstance(value, list):
        for item in value:
            keep_secrets(item)
