"""One call, whatever the verb: options, attempts, fallbacks, until there is an answer or an error that stays.

Called by `client`, `endpoints` and `responding`, whose verbs say what is sent and how the answer is read.
The wire is `transport`'s, the policy of retrying `retries`', the waiting for limits `limits`', the record
`tracing`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import aiohttp
import msgspec

from . import failures, limits, loops, retries, tagging, tracing, transport
from .exceptions import APIError, UsageProblem
from .providers import HttpRequest, Route, errors, resolve
from .providers.base import merged_headers
from .settings import check_retries, client_timeout, model_of, settings
from .types import parse

T = TypeVar("T")

_logger = logging.getLogger("nbllm")

Reader = Callable[[tracing.Call, aiohttp.ClientResponse, Route], Awaitable[T]]
Translator = Callable[[Route, Mapping[str, Any] | None], HttpRequest]


@dataclass(slots=True)
class Options:
    """What every verb takes beside the parameters of its endpoint.

    Attributes:
        session_id: Group of this request, as the caller named it in this call by whatever spelling; None for
            that of `nbllm.session(...)`, of `nbllm.set_session(...)`, else the kernel's own.
        timeout: For one attempt; None for the configured one.
        api_key: The key; default: the provider's environment variable.
        base_url: Another server; `api_base` is litellm's name for it.
        api_version: Azure's.
        extra_headers: Headers to add or replace.
        extra_body: Fields to add to the JSON body as they are, without those that named the session.
        metadata: Kept with the request's parameters in the log.
        shared_session: A ClientSession of the caller's own.
        retries: How many further attempts a failure that may pass is worth, None for the configured
            number; `num_retries` and `max_retries` are its names for callers.
        fallbacks: Models to ask when the first keeps failing, each as the arguments of `resolve`.
    """

    session_id: str | None = None
    timeout: aiohttp.ClientTimeout | None = None
    api_key: str | None = field(default=None, repr=False)  # verbose tracebacks show locals
    base_url: str | None = None
    api_version: str | None = None
    extra_headers: Mapping[str, str] | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    shared_session: aiohttp.ClientSession | None = None
    retries: int | None = None
    fallbacks: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


def take_options(given: dict[str, Any]) -> Options:
    """Take the options out of a verb's keyword arguments, and check them.

    Raises:
        UsageProblem: One of them can't be used.
    """
    return checked_options(**{name: given.pop(name) for name in OPTION_NAMES.intersection(given)})


def checked_options(
    *,
    session_id: Any = None,
    litellm_session_id: Any = None,
    litellm_trace_id: Any = None,
    timeout: Any = None,
    api_key: Any = None,
    base_url: Any = None,
    api_base: Any = None,
    api_version: Any = None,
    extra_headers: Any = None,
    extra_body: Any = None,
    metadata: Any = None,
    shared_session: Any = None,
    num_retries: Any = None,
    max_retries: Any = None,
    fallbacks: Any = None,
) -> Options:
    """The options under the names that callers use, checked; None is not given.

    Raises:
        UsageProblem: One of them can't be used.
    """
    options = Options()
    options.api_key, options.base_url, options.api_version = api_key, base_url or api_base, api_version
    options.shared_session = shared_session
    if metadata is not None:
        options.metadata = _mapping("metadata", metadata)
    if extra_headers is not None:
        options.extra_headers = _mapping("extra_headers", extra_headers)
    named = litellm_session_id or litellm_trace_id or _first(metadata, _SESSION_METADATA)
    if extra_body is not None:
        options.extra_body, in_body = _without_session(_mapping("extra_body", extra_body))
        named = named or in_body
    if extra_headers:
        headers = {str(name).lower(): value for name, value in extra_headers.items()}
        named = named or _first(headers, _SESSION_HEADERS)
    if session_id is not None:  # an empty one too: it is no way to leave it out
        options.session_id = tagging.check_session_id(session_id)
    elif named:
        options.session_id = tagging.check_session_id(named)
    if timeout is not None:
        options.timeout = client_timeout(timeout)
    if (times := max_retries if num_retries is None else num_retries) is not None:
        options.retries = check_retries(times)
    if fallbacks is not None:
        options.fallbacks = _fallbacks(fallbacks)
    return options


OPTION_NAMES = frozenset(inspect.signature(checked_options).parameters)

# LiteLLM's names for a session beside the arguments; of several, the first counts. A trace id is one of them:
# its proxy groups by it too (docs.litellm.ai, "Session Logs", and `get_standard_logging_payload_trace_id` and
# `get_chain_id_from_headers` in its source, 1.106).
_SESSION_METADATA = ("session_id", "litellm_session_id", "trace_id")
_SESSION_FIELDS = ("litellm_session_id", "litellm_trace_id")
_SESSION_HEADERS = ("x-litellm-session-id", "x-litellm-trace-id", "x-session-id")


def _first(given: Mapping[str, Any] | None, names: Sequence[str]) -> Any:
    return next(filter(None, map(given.get, names)), None) if given else None


def _without_session(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The fields of a body without those that name a session, and that session.

    OpenAI and others refuse fields that they don't know, in `metadata` too; for a proxy `_ask` adds its own.
    """
    rest = {name: value for name, value in fields.items() if name not in _SESSION_FIELDS}
    named, metadata = _first(fields, _SESSION_FIELDS), fields.get("metadata")
    if isinstance(metadata, Mapping) and not metadata.keys().isdisjoint(_SESSION_METADATA):
        named = named or _first(metadata, _SESSION_METADATA)
        rest["metadata"] = {name: value for name, value in metadata.items() if name not in _SESSION_METADATA}
        if not rest["metadata"]:
            del rest["metadata"]
    return rest, named


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageProblem(f"{name} must be a dict; got {tracing.redact(repr(value)):.80}")
    return value


def _fallbacks(value: Any) -> list[dict[str, Any]]:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, (list, tuple)):
        raise UsageProblem(f"fallbacks must be a list of models; got {type(value).__name__}")
    return [_fallback(model) for model in models]


def _fallback(given: Any) -> dict[str, Any]:
    fallback = {"model": given} if isinstance(given, str) else given
    named = fallback.get("model", "the first") if isinstance(fallback, Mapping) and fallback else None
    if not isinstance(named, str) or not named.strip() or not _FALLBACK_NAMES.issuperset(fallback):
        names = f"a dict with {', '.join(map(str, given))}" if isinstance(given, Mapping) else repr(given)
        raise UsageProblem(  # no value is shown: it may be a key
            "each of the fallbacks must be a model, or a dict with model, api_key, base_url and api_version; "
            f"got {names:.80}"
        )
    return {"base_url" if name == "api_base" else name: value for name, value in fallback.items()}


_FALLBACK_NAMES = frozenset(("model", "api_key", "base_url", "api_base", "api_version"))


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
            # So do the headers, which may hold a key as well.
            theirs = options if route.base_url == first_url else replace(options, extra_headers=None)
            return await _ask(call, session, route, theirs, translate, read)
        except (APIError, UsageProblem) as error:
            asked = fallback.get("model", model)
            first.add_note(tracing.redact(f"The fallback {asked!r} failed too: {error}"))
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
        headers = {name: value for name, value in given if str(name).lower() not in _SESSION_HEADERS}
        headers["x-litellm-session-id"] = call.session_id
    try:
        request = translate(route, extra_body)
    except (TypeError, AttributeError, LookupError, UnicodeError) as error:
        raise UsageProblem(
            f"the messages or parameters can't be put into the format of {route.provider.name}: {error}"
        ) from error
    sent_headers = merged_headers(request.headers, headers)
    tracing.keep_secret(route.api_key)
    if options.extra_headers:
        _keep_header_secrets(options.extra_headers)
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


def _keep_header_secrets(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if any(mark in name.lower() for mark in ("auth", "key", "token", "secret", "cookie")):
            tracing.keep_secret(value.rpartition(" ")[2])


# A field called `key` or `token` alone is mostly something else (prompt_cache_key, max_tokens).
_SECRET_NAME = re.compile(r"api[_-]?key|authorization|password|secret|(access|auth)[_-]?token", re.IGNORECASE)
_SECRET_FIELD = re.compile(_SECRET_NAME.pattern.encode(), re.IGNORECASE)


def keep_secrets(value: Any) -> None:
    """Have masked, wherever nbllm writes text, what stands in parameters under the names that keys go by."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, str) and _SECRET_NAME.search(str(name)):
                tracing.keep_secret(item.rpartition(" ")[2])
            else:
                keep_secrets(item)
    elif isinstance(value, list):
        for item in value:
            keep_secrets(item)
