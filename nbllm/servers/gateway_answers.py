"""What the gateway writes: answers, streams and errors in OpenAI's shapes, and messages in Anthropic's.

Called by `gateway_endpoints`. Source of the shapes: OpenAI API reference, "Streaming", "Streaming events",
"Error codes"; Anthropic's are made in `gateway_message_output`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from .. import masking, tracing
from ..embeddings import EmbeddingResponse
from ..exceptions import APIError, AuthenticationError, NbllmError, Timeout, UsageProblem
from ..providers import PROVIDERS
from ..responding import BridgedStream, ResponseStream
from ..results import ModelList
from ..streaming import CompletionStream
from ..types import ChatCompletion, ChatCompletionChunk, Object
from . import gateway_message_output as messages

Record = tracing.Record

Shape = Callable[[int, Mapping[str, Any]], dict[str, Any]]
"""How a format says what went wrong: from a status, and `message` with what else is known, to a body."""

encode = msgspec.json.encode


# -- whole answers ---------------------------------------------------------------------------------------


def whole(
    body: bytes, records: Sequence[Record | None], content_type: str = "application/json"
) -> web.Response:
    """An answer that is not streamed.

    Args:
        body: What it says.
        records: Those of the requests that brought it.
        content_type: Of the body.
    """
    headers = _headers(records[0] if records else None)
    headers["Content-Type"] = content_type
    costs = [record.cost() for record in records if record is not None]
    if costs and None not in costs:
        headers["x-nbllm-cost-usd"] = str(sum(filter(None, costs)))
    return web.Response(body=body, headers=headers)


def completion(answer: ChatCompletion) -> bytes:
    """A chat completion that was translated, with the nulls that OpenAI's has."""
    shown = answer.model_dump(exclude_none=True)
    for choice in shown["choices"]:
        choice.setdefault("finish_reason", None)
        choice.setdefault("message", {}).setdefault("content", None)
    return encode(shown)


def message(answer: ChatCompletion) -> bytes:
    """A chat completion as a message of Anthropic's."""
    return encode(messages.message(answer))


def dumped(answer: Object) -> bytes:
    """Any other answer."""
    return encode(answer.model_dump(exclude_none=True))


def embeddings(answer: EmbeddingResponse, *, as_base64: bool) -> bytes:
    """Embeddings as numbers, or as base64 of little-endian float32."""
    shown = {name: answer[name] for name in answer if name != "data" and answer[name] is not None}
    vectors: Any = [row.embedding for row in answer.data] if not as_base64 else answer.array.astype("<f4")
    shown["data"] = [
        {
            "object": "embedding",
            "index": row.index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_base64 else vector,
        }
        for row, vector in zip(answer.data, vectors, strict=True)
    ]
    return encode(shown)


def models(found: ModelList) -> bytes:
    """The models, by the names that the gateway takes."""
    data = [
        {
            "id": f"{model['provider']}/{model['id']}",
            "object": "model",
            "created": int(model["created"].timestamp()) if model["created"] else 0,
            "owned_by": model["owned_by"] or model["provider"],
        }
        for model in found
    ]
    return encode({"object": "list", "data": data})


def _headers(record: Record | None) -> dict[str, str]:
    if record is None:
        return {}
    headers = {"x-nbllm-request-id": record.request_id, "x-nbllm-session-id": record.session_id}
    if (theirs := record.provider_request_id) is not None and theirs.isascii() and theirs.isprintable():
        headers["x-request-id"] = headers["request-id"] = theirs  # the latter for Anthropic's clients
    return headers


# -- streams ---------------------------------------------------------------------------------------------


async def chat_stream(request: web.BaseRequest, stream: CompletionStream) -> web.StreamResponse:
    """A chat completion as it comes: byte by byte, where the server speaks OpenAI's format."""

    async def events() -> AsyncGenerator[bytes]:
        as_it_came = _dialect(stream) == "openai"
        async with aclosing(stream.batches()) as batches:
            async for batch in batches:
                yield b"".join(
                    [
                        _event(data if as_it_came else _chunk(chunk))
                        for data, chunk in batch
                        if chunk is not None
                    ]
                )

    def failed(error: Exception) -> bytes:
        return _event(encode(_said(openai_error, error)))

    return await _relay(request, stream, events(), b"data: [DONE]\n\n", failed)


async def message_stream(request: web.BaseRequest, stream: CompletionStream) -> web.StreamResponse:
    """The same as a message: byte by byte, where the server speaks Anthropic's format."""

    async def as_it_came() -> AsyncGenerator[bytes]:
        async with aclosing(stream.batches()) as batches:
            async for batch in batches:
                yield b"".join([_event(data, _type_of(data)) for data, _ in batch])

    async def translated() -> AsyncGenerator[bytes]:
        made = messages.MessageEvents()
        async with aclosing(stream.batches()) as batches:
            async for batch in batches:
                yield _named(event for _, chunk in batch if chunk is not None for event in made.add(chunk))
        yield _named(made.finish(stream.completion))

    def failed(error: Exception) -> bytes:
        return _event(encode(_said(messages.anthropic_error, error)), "error")

    events = as_it_came() if _dialect(stream) == "anthropic" else translated()
    return await _relay(request, stream, events, b"", failed)


async def response_stream(request: web.BaseRequest, stream: ResponseStream) -> web.StreamResponse:
    """A response as it comes, byte by byte."""

    async def events() -> AsyncGenerator[bytes]:
        async with aclosing(stream.batches()) as batches:
            async for batch in batches:
                yield b"".join([_event(data, item.type) for data, item in batch if item is not None])

    return await _relay(request, stream, events(), b"", _failed_response)


async def bridged_stream(request: web.BaseRequest, stream: BridgedStream) -> web.StreamResponse:
    """A response as it comes from a provider that speaks chat only."""

    async def events() -> AsyncGenerator[bytes]:
        async for event in stream:
            yield _event(dumped(event), event.type)

    return await _relay(request, stream, events(), b"", _failed_response)


async def _relay(
    request: web.BaseRequest,
    stream: CompletionStream | ResponseStream | BridgedStream,
    events: AsyncGenerator[bytes],
    end: bytes,
    failed: Callable[[Exception], bytes],
) -> web.StreamResponse:
    """Write a stream as it comes. What fails before its first event keeps its status: it is raised."""
    record = stream.request
    headers = {
        **_headers(record),
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",  # nginx
    }
    response = web.StreamResponse(headers=headers)
    try:
        async with aclosing(events):
            async for data in events:
                if not data:  # nothing that concerns the client
                    continue
                if not response.prepared:
                    await response.prepare(request)
                await response.write(data)
    except (asyncio.CancelledError, ConnectionError):
        if record is not None and record.status is None:  # the client went away
            record.status = "cancelled"
        raise
    except Exception as error:
        if not response.prepared:
            raise
        end = failed(error)
    finally:
        stream.close()
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof(end)
    return response


def _event(data: bytes, kind: str | None = None) -> bytes:
    if b"\n" in data:  # between the values of JSON that is written in lines
        data = data.replace(b"\n", b"\ndata: ")
    if kind is not None and kind.isprintable():
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
    return b"data: " + data + b"\n\n"


def _named(events: Iterable[dict[str, Any]]) -> bytes:
    """Events in the manner of Anthropic, whose names are their types."""
    return b"".join([_event(encode(event), event["type"]) for event in events])


class _Typed(msgspec.Struct):
    type: str | None = None


_typed = msgspec.json.Decoder(_Typed)


def _type_of(data: bytes) -> str | None:
    try:
        return _typed.decode(data).type
    except msgspec.DecodeError:  # such as [DONE]
        return None


def _dialect(stream: CompletionStream) -> str | None:
    """The wire format in which a stream comes."""
    record = stream.request
    return PROVIDERS[record.provider or "openai"].dialect if record is not None else None


def _chunk(chunk: ChatCompletionChunk) -> bytes:
    """A chunk that was translated, with the nulls that OpenAI's has."""
    shown = chunk.model_dump(exclude_none=True)
    for choice in shown["choices"]:
        choice.setdefault("finish_reason", None)
    return encode(shown)


def _failed_response(error: Exception) -> bytes:
    # As in the reference, and once more under `error`, by which the openai SDK raises.
    said = _said(openai_error, error)
    fields = {"type": "error", **{name: said["error"][name] for name in ("code", "message", "param")}}
    return _event(encode({**fields, **said}), "error")


# -- errors ----------------------------------------------------------------------------------------------


def refusal(
    shape: Shape, status: int, message: str, code: str | None, headers: Mapping[str, str] = {}
) -> web.Response:
    """An error of the gateway's own."""
    return web.Response(
        status=status,
        body=encode(shape(status, {"message": message, "code": code})),
        headers={**headers, "Content-Type": "application/json"},
    )


def error(shape: Shape, error: NbllmError) -> web.Response:
    """What went wrong, with the status and the body that the server asked gave it."""
    headers: dict[str, str] = {}
    if isinstance(error, APIError):
        headers |= error.response or {}
        headers |= _headers(error.request)
        if error.retry_after is not None:
            headers["retry-after"] = f"{error.retry_after:g}"
    headers["content-type"] = "application/json"
    return web.Response(status=_status(error), body=encode(_said(shape, error)), headers=headers)


def _status(error: Exception) -> int:
    if isinstance(error, UsageProblem):
        return 400
    if _lacks_key(error):
        return 500  # a 401 would say that the client's key is wrong
    if isinstance(error, Timeout) and error.response is None:
        return 504  # no answer came; a 408 would say that the client is slow
    status = error.status_code if isinstance(error, APIError) else 500
    return 502 if status is None or status < 400 else status  # no connection, or no answer in a 200


def _lacks_key(error: Exception) -> bool:
    """Whether the gateway itself has no key for the provider: nothing was sent."""
    return isinstance(error, AuthenticationError) and error.request is None


def _said(shape: Shape, error: Exception) -> dict[str, Any]:
    """An error as the body of an answer; keys are masked."""
    status = _status(error)
    if not isinstance(error, APIError):
        return shape(status, {"message": masking.redact(str(error) or repr(error))})
    if _lacks_key(error):
        reason, _, _ = error.message.partition(" (")  # what follows is for a notebook
        message = f"the gateway has {reason}, where it runs"
        return shape(status, {"message": message, "code": "provider_key_missing"})
    theirs = error.body.get("error") if isinstance(error.body, dict) else None
    if not isinstance(theirs, dict) or not isinstance(theirs.get("message"), str):
        theirs = {"message": error.message, "code": error.code}
    return shape(status, theirs)


def openai_error(status: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """What went wrong, in OpenAI's shape; `gateway_message_output.anthropic_error` gives Anthropic's."""
    kind = (
        "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return {"error": {"message": "", "type": kind, "param": None, "code": None, **said}}
