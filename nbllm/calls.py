"""One call, whatever the verb: options, attempts, fallbacks, until there is an answer or an error that stays.

Called by `client`, whose verbs say what is sent and how the answer is read. The wire is `transport`'s, the
policy of retrying `retries`', the waiting for limits `limits`', the record `tracing`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from . import failures, limits, loops, retries, tagging, tracing, transport
from .exceptions import APIError, UsageProblem
from .providers import HttpRequest, Route, resolve
from .providers.base import merged_headers
from .settings import client_timeout, settings

T = TypeVar("T")

_logger = logging.getLogger("nbllm")

Reader = Callable[[tracing.Call, aiohttp.ClientResponse, Route], Awaitable[T]]
Translator = Callable[[Route, Mapping[str, Any] | None], HttpRequest]


@dataclass(slots=True)
class Options:
    """What every verb takes beside the parameters of its endpoint.

    Attributes:
        session_id: Group of this request in `nbllm.sessions()`; default: that of `nbllm.session(...)`, of
            `nbllm.set_session(...)`, else the kernel's own. `litellm_session_id` is understood too.
        timeout: For one attempt; None for the configured one.
        api_key: The key; default: the provider's environment variable.
        base_url: Another server; `api_base` is litellm's name for it.
        api_version: Azure's.
        extra_headers: Headers to add or replace.
        extra_body: Fields to add to the JSON body as they are.
        metadata: Kept with the request's parameters in the log.
        shared_session: A ClientSession of the caller's own.
        retries: How many further attempts a failure that may pass is worth, None for the configured
            number; `num_retries` and `max_retries` are its names for callers.
        fallbacks: Models to ask when the first keeps failing.
    """

    session_id: str | None = None
    timeout: aiohttp.ClientTimeout | None = None
    api_key: str | None = None
    base_url: str | None = None
    api_version: str | None = None
    extra_headers: Mapping[str, str] | None = None
    extra_body: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    shared_session: aiohttp.ClientSession | None = None
    retries: int | None = None
    fallbacks: Sequence[str | Mapping[str, Any]] = ()


_NAMES = frozenset(
    (
        *("session_id", "litellm_session_id", "timeout", "api_key", "base_url", "api_base", "api_version"),
        *("extra_headers", "extra_body", "metadata", "shared_session", "num_retries", "max_retries"),
        "fallbacks",
    )
)


def take_options(given: dict[str, Any]) -> Options:
    """Take the options out of a verb's keyword arguments, and check them.

    Raises:
        UsageProblem: One of them can't be used.
    """
    said = {name: given.pop(name) for name in _NAMES.intersection(given)}
    said = {name: value for name, value in said.items() if value is not None}
    options = Options()
    for name in ("extra_headers", "extra_body", "metadata"):
        if name in said:
            setattr(options, name, _mapping(name, said[name]))
    meta = options.metadata or {}
    if "session_id" in said:
        tagging.check_session_id(said["session_id"])  # an empty one too: it is no way to leave it out
    named = (said.get("session_id"), said.get("litellm_session_id"))
    grouped = next(
        (name for name in (*named, meta.get("session_id"), meta.get("litellm_session_id")) if name), None
    )
    if grouped is not None:
        options.session_id = tagging.check_session_id(grouped)
    if "timeout" in said:
        options.timeout = client_timeout(said["timeout"])
    options.api_key = said.get("api_key")
    options.base_url = said.get("base_url") or said.get("api_base")
    options.api_version = said.get("api_version")
    options.shared_session = said.get("shared_session")
    if (times := said.get("num_retries", said.get("max_retries"))) is not None:
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise UsageProblem(f"num_retries must be a whole number, 0 for none; got {times!r}")
        options.retries = times
    if "fallbacks" in said:
        options.fallbacks = _fallbacks(said["fallbacks"])
    return options


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageProblem(f"{name} must be a dict; got {tracing.redact(repr(value)):.80}")
    return value


def _fallbacks(value: Any) -> Sequence[str | Mapping[str, Any]]:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, (list, tuple)) or not all(
        isinstance(model, str) or (isinstance(model, Mapping) and "model" in model) for model in models
    ):
        raise UsageProblem(
            "fallbacks must be a list of models, or of dicts with model, api_key and base_url; "
            f"got {tracing.redact(repr(value)):.80}"
        )
    return models


async def run(
    operation: str,
    model: str,
    options: Options,
    translate: Translator,
    read: Reader[T],
    *,
    stream: bool = False,
) -> T:
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
        return await loops.at_home(sending)
    return await sending


async def _run(
    operation: str, model: str, options: Options, translate: Translator, read: Reader[T], stream: bool
) -> T:
    session = transport.session_for(options.shared_session)
    call = tracing.Call(options.session_id)
    call.operation, call.stream = operation, stream
    try:
        route = resolve(
            model, base_url=options.base_url, api_key=options.api_key, api_version=options.api_version
        )
        return await _ask(call, session, route, options, translate, read)
    except APIError as error:
        if not options.fallbacks:
            raise
        first = error
    for fallback in options.fallbacks:
        try:
            # Key and address belong to the first model; another provider's are looked up, or stand with it.
            route = resolve(fallback) if isinstance(fallback, str) else resolve(**fallback)
            return await _ask(call, session, route, options, translate, read)
        except APIError as error:
            first.add_note(f"The fallback {fallback!r} failed too: {error}")
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
        extra_body = {"litellm_session_id": call.session_id, **(extra_body or {})}
        headers = {"x-litellm-session-id": call.session_id, **(headers or {})}
    request = translate(route, extra_body)
    sent_headers = merged_headers(request.headers, headers)
    tracing.keep_secret(route.api_key)
    if options.extra_headers:
        _keep_secrets(options.extra_headers)
    provider = route.provider.name
    most = settings().num_retries if options.retries is None else options.retries
    call.provider, call.model, call.params = provider, route.model, request.params
    attempt = 1
    while True:
        call.record = None
        if (limiter := limits.limiter(provider)) is not None:
            await _be_admitted(call, limiter, request)
        try:
            return await _attempt(call, session, request, sent_headers, route, options, read)
        except APIError as error:
            limits.note(provider, error.response or {}, error.retry_after)
            pause = retries.pause_before(attempt, error) if attempt <= most else None
            if pause is None:
                raise
        finally:
            if call.record is None and call.release is not None:  # nothing was sent
                call.release(None)
                call.release = None
        await asyncio.sleep(pause)
        attempt += 1


async def _be_admitted(call: tracing.Call, limiter: limits.Limiter, request: HttpRequest) -> None:
    """Wait for a place under the provider's limits; the end of the attempt's record gives it back."""
    estimated = limits.estimate_tokens(request.body or b"", None)
    call.queued_ms = await limiter.acquire(estimated)

    def release(record: tracing.Record | None) -> None:
        actual = None  # unknown: the estimate stands
        if record is None or record.status == "error":
            actual = 0
        elif record.input_tokens is not None:
            actual = record.input_tokens + (record.output_tokens or 0)
        limiter.release(estimated, actual)

    call.release = release


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
        response = await transport.send(call, session, request.url, request.body, headers, options.timeout)
        call.content = None  # the record has it
        _say_which_connection(call, session)
        limits.note(route.provider.name, response.headers, None)
        if response.status >= 400:
            raise failures.from_refusal(response, await read_body(response), call, route)
        answer = await read(call, response, route)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise failures.from_transport(error, call, route) from error
    except BaseException as error:
        failures.give_up(call, error)
        raise
    if not call.stream and call.record is not None:
        tracing.end(call.record)
    return answer


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """The whole body; where that fails, the connection is closed."""
    try:
        return await response.read()
    except BaseException:
        response.close()
        raise


def _say_which_connection(call: tracing.Call, session: aiohttp.ClientSession) -> None:
    """A debug line, for those who ask by `NBLLM_LOG=DEBUG` or by `logging`."""
    if os.environ.get("NBLLM_LOG", "").upper() == "DEBUG" and not _logger.handlers:
        _logger.addHandler(logging.StreamHandler())
        _logger.setLevel(logging.DEBUG)
    record = call.record
    if record is None or not _logger.isEnabledFor(logging.DEBUG):
        return
    reused = "reused" if record.connection_reused else f"new ({record.connection_reason})"
    _logger.debug(
        "nbllm: %s %s/%s: HTTP session %d, connection %s %s",
        *(call.operation, call.provider, call.model, id(session), record.connection_id, reused),
    )


def _keep_secrets(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if any(mark in name.lower() for mark in ("auth", "key", "token", "secret", "cookie")):
            tracing.keep_secret(value.rpartition(" ")[2])
