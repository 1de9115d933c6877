"""The verbs: the story of a call. Translate, send, read, record.

`acompletion` is the implementation, `completion` its synchronous twin of the same signature. Called by
users and by `magics`; the wire format is `providers`', the wire `transport`'s, the record `tracing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import aiohttp
import msgspec

from . import failures, loops, tagging, tracing, transport
from .exceptions import UsageProblem
from .providers import Route, openai, resolve
from .settings import client_timeout, settings
from .streaming import CompletionStream
from .types import ChatCompletion, Object, plain

Messages = str | Sequence[Mapping[str, Any] | Object]


@overload
async def acompletion(
    model: str, messages: Messages, *, stream: Literal[False] = ..., **params: Any
) -> ChatCompletion: ...
@overload
async def acompletion(
    model: str, messages: Messages, *, stream: Literal[True], **params: Any
) -> CompletionStream: ...
@overload
async def acompletion(
    model: str, messages: Messages, *, stream: bool, **params: Any
) -> ChatCompletion | CompletionStream: ...
async def acompletion(
    model: str,
    messages: Messages,
    *,
    stream: bool = False,
    session_id: str | None = None,
    timeout: float | aiohttp.ClientTimeout | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    api_base: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shared_session: aiohttp.ClientSession | None = None,
    **params: Any,
) -> ChatCompletion | CompletionStream:
    """Ask a model, over the kernel's HTTP session.

    Args:
        model: "gpt-4o-mini", "openai/gpt-4o-mini", "demo/small", or any name together with `base_url`.
        messages: OpenAI's list of messages, or one text as the user's message.
        stream: True gives a `CompletionStream` to iterate over, as soon as the answer begins.
        session_id: Group of this request in `nbllm.sessions()`; default: that of `nbllm.session(...)`, of
            `nbllm.set_session(...)`, else the kernel's own. `litellm_session_id` is understood too.
        timeout: Seconds for the whole request, or an `aiohttp.ClientTimeout`; default as configured.
        api_key: The key; default: the provider's environment variable.
        base_url: Another server that speaks OpenAI's format, up to `/v1`.
        api_base: litellm's name for `base_url`.
        extra_headers: Headers to add or replace.
        extra_body: Fields to add to the JSON body as they are.
        metadata: Kept with the request's parameters in the log; sent only together with `store=True`.
        shared_session: A ClientSession of your own to send through. It is traced, and never closed.
        **params: All of OpenAI's chat parameters (temperature, max_tokens, tools, response_format, seed,
            …), and whatever else the server takes. None means not given.

    Returns:
        A `ChatCompletion` in OpenAI's shape, with `.text` and `.request`; or a `CompletionStream`.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed; its subclasses tell how (`nbllm.exceptions`).
    """
    if extra_headers is not None or extra_body is not None or metadata is not None:
        _check_mappings(extra_headers=extra_headers, extra_body=extra_body, metadata=metadata)
    if (options := params.get("stream_options")) is not None:
        _check_mappings(stream_options=options)
    litellm_session_id = params.pop("litellm_session_id", None)
    meta = metadata or {}
    if session_id is not None:
        tagging.check_session_id(session_id)  # an empty one too: it is no way to leave it out
    grouped = session_id or litellm_session_id or meta.get("session_id") or meta.get("litellm_session_id")
    sending = _acompletion(
        model,
        _checked_messages(messages),
        bool(stream),
        session_id=None if grouped is None else tagging.check_session_id(grouped),
        timeout=None if timeout is None else client_timeout(timeout),
        api_key=api_key,
        base_url=base_url or api_base,
        extra_headers=extra_headers,
        extra_body=extra_body,
        metadata=metadata,
        shared_session=shared_session,
        params=params,
    )
    if shared_session is None and loops.elsewhere():
        return await loops.at_home(sending)
    return await sending


@overload
def completion(
    model: str, messages: Messages, *, stream: Literal[False] = ..., **params: Any
) -> ChatCompletion: ...
@overload
def completion(
    model: str, messages: Messages, *, stream: Literal[True], **params: Any
) -> CompletionStream: ...
@overload
def completion(
    model: str, messages: Messages, *, stream: bool, **params: Any
) -> ChatCompletion | CompletionStream: ...
def completion(
    model: str,
    messages: Messages,
    *,
    stream: bool = False,
    session_id: str | None = None,
    timeout: float | aiohttp.ClientTimeout | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    api_base: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shared_session: aiohttp.ClientSession | None = None,
    **params: Any,
) -> ChatCompletion | CompletionStream:
    """`acompletion` for synchronous code: any cell, script or thread. A stream is iterated with `for`.

    The stop button or Ctrl-C cancels the request and raises KeyboardInterrupt. Arguments, result and
    errors: see `acompletion`.
    """
    return loops.run_sync(
        acompletion(
            model,
            messages,
            stream=stream,
            session_id=session_id,
            timeout=timeout,
            api_key=api_key,
            base_url=base_url,
            api_base=api_base,
            extra_headers=extra_headers,
            extra_body=extra_body,
            metadata=metadata,
            shared_session=shared_session,
            **params,
        )
    )


async def _acompletion(
    model: str,
    messages: list[Any],
    stream: bool,
    *,
    session_id: str | None,
    timeout: aiohttp.ClientTimeout | None,
    api_key: str | None,
    base_url: str | None,
    extra_headers: Mapping[str, str] | None,
    extra_body: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    shared_session: aiohttp.ClientSession | None,
    params: Mapping[str, Any],
) -> ChatCompletion | CompletionStream:
    route = resolve(model, base_url=base_url, api_key=api_key)
    url, body, shown = openai.chat_request(route, messages, stream, params, extra_body, metadata)
    headers = openai.chat_headers(route, extra_headers)
    session = transport.session_for(shared_session)
    tracing.keep_secret(route.api_key)
    if extra_headers:
        _keep_secrets(extra_headers)
    call = tracing.Call(session_id)
    call.operation, call.provider, call.model, call.stream = "chat", route.provider.name, route.model, stream
    call.params = shown
    call.content = body if settings().content else None
    try:
        response = await transport.send(call, session, url, body, headers, timeout)
        if response.status >= 400:
            raise failures.from_refusal(response, await _read(response), call, model, route)
        if stream:
            return CompletionStream(call, response, model, route, _asks_for_usage(params, extra_body))
        answer = await _whole_answer(call, response, model, route)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise failures.from_transport(error, call, model, route) from error
    except BaseException as error:
        failures.give_up(call, error)
        raise
    if call.record is not None:
        tracing.end(call.record)
    return answer


async def _whole_answer(
    call: tracing.Call, response: aiohttp.ClientResponse, model: str, route: Route
) -> ChatCompletion:
    body = await _read(response)
    try:
        answer = openai.chat_response(body)
    except msgspec.DecodeError:
        raise failures.from_body(response, body, call, model, route) from None
    if not answer.choices:
        raise failures.from_body(response, body, call, model, route)
    record = call.record
    if record is not None:
        call.response_content = body if call.content is not None else None
        record.finish_reason = answer.choices[0].finish_reason
        record.provider_request_id = response.headers.get("x-request-id")
        tracing.note_answer(record, answer.id, answer.model, answer.usage)
        answer.__dict__["_request"] = record
    return answer


def _check_mappings(**values: Any) -> None:
    for name, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            raise UsageProblem(f"{name} must be a dict; got {tracing.redact(repr(value)):.80}")


def _keep_secrets(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if any(mark in name.lower() for mark in ("auth", "key", "token", "secret", "cookie")):
            tracing.keep_secret(value.rpartition(" ")[2])


def _asks_for_usage(params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> bool:
    """Whether the caller wants to see the chunk with the usage, which nbllm asks for otherwise too."""
    options = (extra_body or {}).get("stream_options") or params.get("stream_options") or {}
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except BaseException:
        response.close()
        raise


def _checked_messages(messages: Any) -> list[Any]:
    """The messages as a list of dicts: a text is the user's, result objects become plain."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)):
        raise UsageProblem(
            "messages must be a text or a list such as "
            f'[{{"role": "user", "content": "Hello"}}]; got {type(messages).__name__}'
        )
    if not messages:
        raise UsageProblem("messages is empty: give at least one message")
    return [
        message
        if type(message) is dict and "role" in message and "tool_calls" not in message
        else _plain(message)
        for message in messages
    ]


def _plain(message: Any) -> Any:
    if hasattr(message, "model_dump"):  # ours, or that of an SDK
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageProblem(f"a message is a dict with a role and content; got {message!r:.80}")
    # Tool calls may be our objects, whose unknown fields msgspec would leave out.
    return {name: plain(value, exclude_none=True) for name, value in message.items()}
