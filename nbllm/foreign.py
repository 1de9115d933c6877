"""What other clients' requests to models say, read off the wire once they have ended.

Owns `read`, which puts it on their records: operation, provider, model, session, tokens, time to first token,
and why one failed. Called by `rows`, in the log's thread. What is not understood stays unknown, and nothing
here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from . import masking, notices, tagging, tracing
from .assembly import Assembly
from .exceptions import APIError, UsageProblem
from .providers import Route, errors, openai_responses
from .providers.encoding import encode
from .providers.places import Kind, kind_of, provider_at
from .providers.sse import EventDecoder
from .response_output import finish_reason
from .response_types import chat_usage
from .settings import settings
from .types import Usage, build, parse
from .wire import Message, Overheard
from .wire import read as read_message

_SAID = frozenset(("messages", "input", "prompt", "contents", "system", "systemInstruction"))
_NO_PARAMETERS = _SAID | {"model", "stream", "metadata", *tagging.SESSION_FIELDS}


def read(record: tracing.Record, overheard: Overheard) -> None:
    """Put on the record what its request and answer say.

    Args:
        record: Of a request that no verb of ours has sent; it has ended.
        overheard: What went over the connection.
    """
    try:
        _read(record, overheard)
    except msgspec.DecodeError:  # a page, half an answer, or nothing
        pass
    except Exception as error:  # the row is worth more than what else it could have told
        reason = masking.redact(repr(error))
        notices.warn_once(f"what another client's request to a model said could not be read: {reason}")


def _read(record: tracing.Record, overheard: Overheard) -> None:
    path = record.url_path or ""
    kind = kind_of(record.http_method, path)
    if kind is None:
        return
    provider = provider_at(record.server_address, record.server_port, path, kind.dialect)
    record.operation, record.provider = kind.operation, provider.name
    request = read_message((0.0, data) for data in overheard.sent)
    keys = _keys(request) if request is not None else []
    request = _without(keys, request)
    if record.error_message is not None:
        record.error_message = _masked(keys, record.error_message)
    body = _object(request)
    _mask_fields(body)
    record.request_model = _model(body, path)
    record.stream = body.get("stream") is True or "streamGenerateContent" in path
    if request is not None:
        _note_session(record, request.headers, body)
    if parameters := {name: value for name, value in body.items() if name not in _NO_PARAMETERS}:
        record.call.params = encode(parameters)
    keeps = settings().content and not _SAID.isdisjoint(body)
    if keeps:
        record.content = encode(body)
    answer = _without(keys, read_message(overheard.received))
    if answer is None:
        return
    record.headers = answer.headers
    record.provider_request_id = errors.request_id(answer.headers)
    route = Route(provider, record.request_model or "", record.request_model or "", "", None, {})
    if (record.http_status or 0) >= 400:
        _note_refusal(record, answer, route, keeps)
    elif record.status == "ok" or record.stream:
        _note_answer(record, answer, kind, route, keeps)


# Names of headers, of a URL's parameters, and of fields in which keys stand. (`max_tokens` holds a number.)
_SECRET_HEADER = re.compile("auth|(?<!idempotency-)key|token|secret|cookie", re.IGNORECASE)
_SECRET_FIELD = re.compile(
    r"^key$|api[_-]?key|authorization|password|secret|(access|auth|session)[_-]?token|^sig$", re.IGNORECASE
)
# A word as "ollama" or "not-needed", which stands where any key does, is none: it may be in every answer.
_LIKE_KEY = re.compile(r"(?=\S*[0-9]|\S{20})\S{8,}")


def _keys(request: Message) -> list[str]:
    """The keys that a request sends along, which its server may quote."""
    said = [value for name, value in request.headers.items() if _SECRET_HEADER.search(name)]
    found = [part for value in said for part in re.split(r"[\s;,=]+", value)]
    query = request.first.partition(" ")[2].partition("?")[2].partition(" ")[0]
    for name, _, value in (given.partition("=") for given in query.split("&")):
        if _SECRET_FIELD.search(name):
            found += value, unquote_plus(value)
    return sorted(filter(_LIKE_KEY.fullmatch, {*found}), key=len, reverse=True)


def _masked(keys: list[str], text: str) -> str:
    for key in keys:
        text = text.replace(key, "[key]")
    return text


def _without(keys: list[str], message: Message | None) -> Message | None:
    """The message with these keys masked in it."""
    if message is None or not keys:
        return message
    headers = {name: _masked(keys, value) for name, value in message.headers.items()}
    pieces, body = message.pieces, message.body
    for key in (key.encode("latin-1", "replace") for key in keys):
        if key in body:
            body = body.replace(key, b"[key]")
            pieces = [(now, data.replace(key, b"[key]")) for now, data in pieces]
    if b"".join(data for _, data in pieces) != body:  # one was cut in two
        pieces = [(pieces[-1][0], body)]
    return Message(message.first, headers, pieces)


def _mask_fields(body: dict[str, Any]) -> None:
    """Mask the texts under names that keys go by, as a tool's `authorization`, but in what is said."""
    waiting: list[Any] = [body]
    while waiting:
        held = waiting.pop()
        if isinstance(held, list):
            waiting += held
        elif isinstance(held, dict):
            for name, item in held.items():
                if isinstance(item, str) and _SECRET_FIELD.search(name):
                    held[name] = "[key]"
                elif held is not body or name not in _SAID:
                    waiting.append(item)


def _object(message: Message | None) -> dict[str, Any]:
    """A body's JSON object; empty where it is none, as a form with a recording."""
    if message is None or "json" not in message.headers.get("content-type", ""):
        return {}
    value = parse(message.body)
    return value if isinstance(value, dict) else {}


def _model(body: Mapping[str, Any], path: str) -> str | None:
    if isinstance(model := body.get("model"), str):
        return model
    named = re.search(r"/(?:deployments|models)/([^/:]+)", path)  # Azure's and Gemini's stand in the path
    return named[1] if named else None


def _note_session(record: tracing.Record, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
    try:
        if named := tagging.named_session(headers, body):
            record.session_id = tagging.check_session_id(named)
    except UsageProblem:  # it stays in the kernel's own
        pass


def _note_refusal(record: tracing.Record, answer: Message, route: Route, keeps: bool) -> None:
    error = errors.error_from(
        record.http_status or 0, answer.headers, answer.body, route=route, redact=masking.redact
    )
    _note_error(record, error)
    if keeps:
        record.response_content = answer.body


def _note_error(record: tracing.Record, error: APIError) -> None:
    record.status = "error"
    tracing.set_error(record, error)
    if error.retry_after is not None:
        record.retry_after_ms = error.retry_after * 1e3


def _note_answer(record: tracing.Record, answer: Message, kind: Kind, route: Route, keeps: bool) -> None:
    kept: bytes | None = answer.body
    if "event-stream" in answer.headers.get("content-type", ""):
        record.stream = True
        kept = _note_stream(record, answer, kind, route)
    elif kind.operation == "chat":
        whole = route.dialect.chat_response(answer.body)
        inside = (
            None if whole.choices else errors.error_inside(answer.body, route=route, redact=masking.redact)
        )
        if inside is not None:
            _note_error(record, inside)
        record.finish_reason = whole.choices[0].finish_reason if whole.choices else None
        tracing.note_answer(record, whole.id, whole.model, whole.usage)
    elif kind.operation == "responses":
        _note_response(record, openai_responses.responses_response(answer.body))
    elif usage := _object(answer).get("usage"):
        said = _object(answer)
        counts = build(Usage, usage) if isinstance(usage, dict) else None
        tracing.note_answer(record, said.get("id"), said.get("model"), counts)
    if keeps and kept and kind.operation in ("chat", "responses"):
        record.response_content = kept


def _note_response(record: tracing.Record, answer: Any) -> None:
    record.finish_reason = finish_reason(answer)
    tracing.note_answer(record, answer.id, answer.model, chat_usage(answer.usage))


def _note_stream(record: tracing.Record, answer: Message, kind: Kind, route: Route) -> bytes | None:
    """What the events of a stream say; gives the whole answer as JSON."""
    assembly: Any
    decode: Callable[[bytes], Any]
    if kind.operation == "responses":
        assembly, decode = openai_responses.ResponseAssembly(), openai_responses.event_decoder()
    else:
        assembly, decode = Assembly(), route.dialect.chunk_decoder()
    record.chunks = 0
    try:
        for now, data in _events(answer):
            if (event := decode(data)) is None:
                continue
            record.chunks += 1
            if assembly.add(event):
                if record.ttft_ms is None:
                    record.ttft_ms = (now - record.began) * 1e3
                    record.first_chunk_at = record.started_at + now - record.began
            elif b'"error"' in data and (
                said := errors.error_inside(data, route=route, redact=masking.redact)
            ):
                _note_error(record, said)
    except msgspec.DecodeError:  # what came before it counts
        pass
    if kind.operation == "responses":
        _note_response(record, assembly.response)
        return encode(assembly.response.model_dump(exclude_none=True))
    whole = assembly.completion()
    record.finish_reason = assembly.finish_reason
    tracing.note_answer(record, whole.id, whole.model, whole.usage)
    return encode(whole.model_dump(exclude_none=True))


def _events(answer: Message) -> Iterator[tuple[float, bytes]]:
    """The data of a stream's events, and when each was whole."""
    decoder, now = EventDecoder(), 0.0
    for now, piece in answer.pieces:
        yield from ((now, data) for data in decoder.feed(piece) if data != b"[DONE]")
    yield from ((now, data) for data in decoder.finish() if data != b"[DONE]")
