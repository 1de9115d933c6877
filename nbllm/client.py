"""Chat completions: what is sent, and how the answer is read.

`acompletion` is the implementation, `completion` its synchronous twin of the same signature. Called by
users and by `magics`; a call's way is `calls`', the wire format `providers`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, Literal, overload

import aiohttp

from . import calls, failures, loops, masking, tracing
from .attachments import content_parts
from .exceptions import UsageProblem
from .options import checked_options
from .providers import HttpRequest, Route
from .streaming import CompletionStream
from .structured import response_format
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
    api_version: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shared_session: aiohttp.ClientSession | None = None,
    num_retries: int | None = None,
    max_retries: int | None = None,
    fallbacks: Sequence[str | Mapping[str, Any]] | None = None,
    **params: Any,
) -> ChatCompletion | CompletionStream:
    """Ask a model, over the kernel's HTTP session.

    Args:
        model: "gpt-4o-mini", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "azure/deployment",
            "ollama/llama3.2", "demo/small", or any name together with `base_url`.
        messages: OpenAI's list of messages, or one text as the user's message. A content may be, or hold, a
            path, bytes, a PIL image or a matplotlib figure.
        stream: True gives a `CompletionStream` to iterate over, as soon as the answer begins.
        session_id: Group of this request in `nbllm.sessions()`; default: that of `nbllm.session(...)`, of
            `nbllm.set_session(...)`, else the kernel's own. LiteLLM's spellings are understood too, in this
            order: `litellm_session_id=` and `litellm_trace_id=`; `session_id`, `litellm_session_id` and
            `trace_id` in `metadata`; in `extra_body` the same fields, and those of its `metadata`, which are
            taken out of it; the `extra_headers` `x-litellm-session-id`, `x-litellm-trace-id`,
            `x-session-id` and `x-claude-code-session-id`. A LiteLLM proxy (`litellm_proxy/…`) is told the
            session, and groups by it too.
        timeout: Seconds for each attempt, or an `aiohttp.ClientTimeout`; default as configured.
        api_key: The key; default: the provider's environment variable.
        base_url: Another server that speaks OpenAI's format, up to `/v1`.
        api_base: litellm's name for `base_url`.
        api_version: Azure's `api-version`.
        extra_headers: Headers to add or replace.
        extra_query: Fields to add to the URL's query, or to replace there.
        extra_body: Fields to add to the JSON body as they are.
        metadata: Kept with the request's parameters in the log; sent only together with `store=True`.
        shared_session: A ClientSession of your own to send through. It is traced, and never closed.
        num_retries: How many more attempts a failure that may pass is worth; default 2, 0 for none. Each is a
            row of its own. Nothing is retried once a stream has begun.
        max_retries: openai's name for `num_retries`.
        fallbacks: Models to ask, in this order, when the first keeps failing: names, or dicts with `model`,
            `api_key`, `base_url`.
        **params: All of OpenAI's chat parameters (temperature, max_tokens, tools, seed, …), and whatever else
            the server takes. None means not given. `response_format` may be a pydantic class, a dataclass or
            another type: `answer.parsed` is an object of it then.

    Returns:
        A `ChatCompletion` in OpenAI's shape, with `.text` and `.request`; or a `CompletionStream`.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed; its subclasses tell how (`nbllm.exceptions`).
    """
    options = checked_options(
        session_id=session_id,
        litellm_session_id=params.pop("litellm_session_id", None),
        litellm_trace_id=params.pop("litellm_trace_id", None),
        extra_query=params.pop("extra_query", None),
        timeout=timeout,
        api_key=api_key,
        base_url=base_url,
        api_base=api_base,
        api_version=api_version,
        extra_headers=extra_headers,
        extra_body=extra_body,
        metadata=metadata,
        shared_session=shared_session,
        num_retries=num_retries,
        max_retries=max_retries,
        fallbacks=fallbacks,
    )
    checked = _checked_messages(messages)
    stream = bool(stream)
    parse = None
    if (wanted := params.get("response_format")) is not None:
        params["response_format"], parse = response_format(wanted)
    show_usage = _asks_for_usage(params.get("stream_options"), extra_body)
    # Not closures: with many calls at once, their cells keep the garbage collector busy.
    translate = partial(chat_request, checked, stream, params, metadata)
    if stream:
        read = partial(streamed_answer, show_usage, parse)
        return await calls.run("chat", model, options, translate, read, stream=True)
    return await calls.run("chat", model, options, translate, partial(whole_answer, parse=parse))


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
    api_version: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shared_session: aiohttp.ClientSession | None = None,
    num_retries: int | None = None,
    max_retries: int | None = None,
    fallbacks: Sequence[str | Mapping[str, Any]] | None = None,
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
            api_version=api_version,
            extra_headers=extra_headers,
            extra_body=extra_body,
            metadata=metadata,
            shared_session=shared_session,
            num_retries=num_retries,
            max_retries=max_retries,
            fallbacks=fallbacks,
            **params,
        )
    )


def chat_request(
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
    route: Route,
    extra_body: Mapping[str, Any] | None,
) -> HttpRequest:
    """The request for a chat completion; a partial of it is what `calls.run` calls `translate`."""
    return route.dialect.chat_request(route, messages, stream, params, extra_body, metadata)


async def streamed_answer(
    show_usage: bool,
    parse: Callable[[str], Any] | None,
    call: tracing.Call,
    response: aiohttp.ClientResponse,
    route: Route,
) -> CompletionStream:
    """A chat completion that is streamed; `show_usage` shows the chunk that holds the usage alone."""
    return CompletionStream(call, response, route, show_usage, parse)


async def whole_answer(
    call: tracing.Call,
    response: aiohttp.ClientResponse,
    route: Route,
    parse: Callable[[str], Any] | None = None,
) -> ChatCompletion:
    """Read a chat completion that is not streamed, and note it on the record; `parse` gives `.parsed`."""
    body, answer = await calls.read_answer(call, response, route, route.dialect.chat_response)
    if not answer.choices:
        raise failures.from_body(response, body, call, route)
    if parse is not None:
        answer.__dict__["_parse"] = parse
    record = call.record
    if record is not None:
        if record.content is not None:
            record.response_content = body
        record.finish_reason = answer.choices[0].finish_reason
        tracing.note_answer(record, answer.id, answer.model, answer.usage)
        answer.__dict__["_request"] = record
    return answer


def _asks_for_usage(options: Any, extra_body: Mapping[str, Any] | None) -> bool:
    """Whether the caller wants to see the chunk with the usage, which nbllm asks for otherwise too."""
    if options is None and not extra_body:
        return False
    if options is not None and not isinstance(options, Mapping):
        raise UsageProblem(f"stream_options must be a dict; got {masking.redact(repr(options)):.80}")
    options = (extra_body or {}).get("stream_options") or options or {}
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


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
        if type(message) is dict
        and "role" in message
        and type(message.get("content")) is str
        and "tool_calls" not in message
        else _plain(message)
        for message in messages
    ]


def _plain(message: Any) -> Any:
    if hasattr(message, "model_dump"):  # ours, or that of an SDK
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageProblem(f"a message is a dict with a role and content; got {message!r:.80}")
    # Tool calls may be our objects, whose unknown fields msgspec would leave out.
    checked = {name: plain(value, exclude_none=True) for name, value in message.items()}
    if not isinstance(content := checked.get("content"), (str, NoneType)):
        checked["content"] = content_parts(content)
    return checked
