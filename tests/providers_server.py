"""A server that speaks every provider's format at that provider's paths, and misbehaves by model name.

A `RawServer`, so it counts connections, requests and bytes. `server.base_url("groq")` is where the provider
groq is: it takes groq's key only, and answers as groq does. What it got is in `server.requests`. The formats
are those of the API references: OpenAI and Azure OpenAI, Anthropic "Messages", Gemini "generateContent".

Model names of all verbs: `error-429` (any status; it quotes the key that came, as careless servers do),
`fails-twice` (503, 503, then an answer), `hang`, `html`, `reset`. Of chat alone: see `HOSTILE`. Any other
name gets an answer. Pauses between attempts are `RETRY_MS`.
"""

from __future__ import annotations

import asyncio
import base64
import email.parser
import email.policy
import gzip
import json
import re
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests import servers
from tests.servers import Exchange, RawServer, Request, Reset, head, piece, whole

WORDS = ["Grüße", " an", " die", " 🐧", "!"]
TEXT = "".join(WORDS)
TOKENS = (11, 5)
"""Input and output tokens of every answer of a chat model, and of images and transcriptions."""
RETRY_MS = 10
REQUEST_ID = "req_provider"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
MP3 = b"ID3\x04" + b"\0" * 60
MODELS = ["first-model", "second-model"]


def key_of(provider: str) -> str:
    """The only key that the server takes for a provider."""
    return f"sk-planted-{provider.replace('_', '-')}-0123456789"


# -- the formats -----------------------------------------------------------------------------------


def event(data: Any) -> bytes:
    """A server-sent event, with characters as they are."""
    return servers.event(json.dumps(data, ensure_ascii=False).encode())


@dataclass(frozen=True)
class Format:
    """One wire format: where the key is, and how answers, events and errors are written."""

    answer: Callable[[str, str], Any]
    """Model and text → the JSON of a whole answer."""
    events: Callable[[str, list[str]], list[bytes]]
    """Model and words → all events of a streamed answer."""
    error: Callable[[int, str], Any]
    models: Callable[[list[str]], Any]
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    request_id: str = "x-request-id"
    needs: Mapping[str, str] = field(default_factory=dict)
    """Other headers that a request must have."""
    error_event: bytes = b""
    """How the event with an error begins, before its data."""


def _openai_answer(model: str, text: str) -> Any:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1760000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _openai_usage(),
    }


def _openai_usage() -> Any:
    return {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}


def _openai_events(model: str, words: list[str]) -> list[bytes]:
    def chunk(choices: list[Any], **more: Any) -> bytes:
        frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": model}
        return event({**frame, "choices": choices, **more})

    def choice(delta: Any, finish_reason: str | None = None) -> Any:
        return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]

    return [
        chunk(choice({"role": "assistant", "content": ""})),
        *(chunk(choice({"content": word})) for word in words),
        chunk(choice({}, "stop")),
        chunk([], usage=_openai_usage()),
        servers.event(b"[DONE]"),
    ]


def _openai_error(status: int, message: str) -> Any:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": f"code_{status}"}}


def _openai_models(names: list[str]) -> Any:
    rows = [{"id": n, "object": "model", "created": 1760000000, "owned_by": "owner"} for n in names]
    return {"object": "list", "data": rows}


def _anthropic_answer(model: str, text: str) -> Any:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": TOKENS[0], "output_tokens": TOKENS[1]},
    }


def _anthropic_events(model: str, words: list[str]) -> list[bytes]:
    begun = _anthropic_answer(model, "") | {"content": [], "stop_reason": None}
    begun["usage"] = {"input_tokens": TOKENS[0], "output_tokens": 1}
    deltas = [{"type": "text_delta", "text": word} for word in words]
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        _named_event("message_start", message=begun),
        _named_event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _named_event("ping"),
        *(_named_event("content_block_delta", index=0, delta=delta) for delta in deltas),
        _named_event("content_block_stop", index=0),
        _named_event("message_delta", delta=ended, usage={"output_tokens": TOKENS[1]}),
        _named_event("message_stop"),
    ]


def _named_event(kind: str, **more: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + event({"type": kind, **more})


_ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}


def _anthropic_error(status: int, message: str) -> Any:
    kind = _ANTHROPIC_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID}


def _anthropic_models(names: list[str]) -> Any:
    rows = [{"type": "model", "id": n, "created_at": "2025-10-09T08:53:20Z"} for n in names]
    return {"data": rows, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _gemini_answer(model: str, text: str) -> Any:
    return _gemini_piece(model, text) | {"usageMetadata": _gemini_usage()}


def _gemini_usage() -> Any:
    return {
        "promptTokenCount": TOKENS[0],
        "candidatesTokenCount": TOKENS[1],
        "totalTokenCount": sum(TOKENS),
    }


def _gemini_piece(model: str, text: str, finish_reason: str | None = "STOP") -> Any:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if finish_reason:
        candidate["finishReason"] = finish_reason
    return {"candidates": [candidate], "modelVersion": model, "responseId": "resp-1"}


def _gemini_events(model: str, words: list[str]) -> list[bytes]:
    *first, last = words
    return [
        *(event(_gemini_piece(model, word, None)) for word in first),
        event(_gemini_answer(model, last)),
    ]


_GEMINI_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}


def _gemini_error(status: int, message: str) -> Any:
    name = _GEMINI_STATUSES.get(status, "INTERNAL")
    return {"error": {"code": status, "message": message, "status": name}}


def _gemini_models(names: list[str]) -> Any:
    return {"models": [{"name": f"models/{n}", "displayName": n} for n in names]}


_OPENAI = Format(_openai_answer, _openai_events, _openai_error, _openai_models)
_AZURE = Format(_openai_answer, _openai_events, _openai_error, _openai_models, "api-key", "")
_ANTHROPIC = Format(
    _anthropic_answer,
    _anthropic_events,
    _anthropic_error,
    _anthropic_models,
    "x-api-key",
    "",
    "request-id",
    {"anthropic-version": "2023-06-01"},
    b"event: error\n",
)
_GEMINI = Format(_gemini_answer, _gemini_events, _gemini_error, _gemini_models, "x-goog-api-key", "")

FORMATS: dict[str, Format] = {
    "azure": _AZURE,
    "anthropic": _ANTHROPIC,
    "gemini": _GEMINI,
    **dict.fromkeys(
        (
            *("openai", "litellm_proxy", "openrouter", "groq", "mistral", "deepseek", "together_ai", "xai"),
            *("ollama", "hosted_vllm", "vllm", "lm_studio", "llamacpp", "demo"),
        ),
        _OPENAI,
    ),
}

# Paths below that of the provider; whatever else is asked for is not found.
_LIKE_OPENAI = re.compile(
    r"/v1/(?P<path>chat/completions|embeddings|images/generations|audio/(speech|transcriptions)|models|responses)"
)
_PATHS = {
    "azure": re.compile(
        r"/openai/((deployments/(?P<model>[^/]+)/)?(?P<path>[a-z/]+)\?api-version=\d{4}-\d\d-\d\d(-preview)?"
        r"|v1/(?P<v1_path>responses))"
    ),
    "anthropic": re.compile(r"/v1/(?P<path>messages|models(?=\?))(\?limit=1000)?"),
    "gemini": re.compile(
        r"/v1beta/models(/(?P<model>[^/:]+):"
        r"(?P<path>generateContent|batchEmbedContents|streamGenerateContent(?=\?alt=sse))(\?alt=sse)?"
        r"|\?pageSize=1000)"
    ),
}
_OPERATIONS = {
    **dict.fromkeys(("chat/completions", "messages", "generateContent", "streamGenerateContent"), "chat"),
    **dict.fromkeys(("embeddings", "batchEmbedContents"), "embeddings"),
    "images/generations": "image_generation",
    "audio/speech": "speech",
    "audio/transcriptions": "transcription",
    "models": "models",
    "responses": "responses",
}
HAVE_RESPONSES = frozenset({"openai", "azure", "litellm_proxy"})
"""Those that speak OpenAI's Responses API."""


# -- the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request as the server understands it."""

    provider: str
    operation: str
    model: str | None
    stream: bool
    body: Any
    """The JSON; of a form its fields, files among them as bytes."""


class ProvidersServer(RawServer):
    """All providers under one address; a context manager."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.behaviours = {**self.behaviours, **{name: self._behaviour(name) for name in FORMATS}}

    def base_url(self, provider: str) -> str:
        """What the provider's variable for its base URL holds: some end in `/v1`, some have no version."""
        version = "" if provider in ("azure", "anthropic", "gemini") else "/v1"
        return f"http://{self.host}:{self.port}/{provider}{version}"

    def _behaviour(self, provider: str) -> Callable[[Exchange], Awaitable[None]]:
        async def answer(x: Exchange) -> None:
            await _answer(x, provider, self.failures)

        return answer


def understood(request: Request) -> Asked | None:
    """What a request asks for; None where the provider has nothing at that path."""
    _, provider, rest = request.path.split("/", 2)
    found = _PATHS.get(provider, _LIKE_OPENAI).fullmatch(f"/{rest}")
    if found is None:
        return None
    names = found.groupdict()
    path = names.get("path") or names.get("v1_path") or "models"
    body: Any = None
    if request.method == "POST":
        is_form = request.headers["content-type"].startswith("multipart/form-data")
        body = _form(request) if is_form else json.loads(request.body)
    if path not in _OPERATIONS or (request.method == "GET") != (path == "models"):
        return None
    if path == "responses" and provider not in HAVE_RESPONSES:
        return None
    model = names.get("model") or (body or {}).get("model")
    stream = path == "streamGenerateContent" or bool((body or {}).get("stream"))
    return Asked(provider, _OPERATIONS[path], model, stream, body)


def _form(request: Request) -> dict[str, Any]:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name = part.get_param("name", header="content-disposition")
        fields[str(name)] = (part.get_filename(), content) if part.get_filename() else content.decode()
    return fields


async def _answer(x: Exchange, provider: str, failures: Counter[tuple[str, str]]) -> None:
    how = FORMATS[provider]
    asked = understood(x.request)
    if asked is None:
        return await _refuse(x, how, 404, f"nothing at {x.request.path}")
    expected = "" if provider == "demo" else how.key_prefix + key_of(provider)
    if x.request.headers.get(how.key_header, "") != expected:
        return await _refuse(x, how, 401, "wrong key")
    if not how.needs.items() <= x.request.headers.items():
        return await _refuse(x, how, 400, f"needed: {how.needs}")
    model = asked.model or ""
    if model.startswith("error-"):
        quoted = x.request.headers.get(how.key_header, "no key")
        return await _refuse(x, how, int(model[6:]), f"no ({quoted})", retry_after_ms=RETRY_MS)
    if model == "fails-twice":
        failures[provider, asked.operation] += 1
        if failures[provider, asked.operation] <= 2:
            return await _refuse(x, how, 503, "overloaded", retry_after_ms=RETRY_MS)
    if model in ("hang", "html", "reset"):
        return await HOSTILE[model](x, how, asked)
    if asked.operation == "chat":
        return await HOSTILE.get(model, _chat)(x, how, asked)
    if asked.operation == "responses":
        return await _respond(x, how, asked)
    return await x.send(_MEDIA[asked.operation](how, asked))


async def _refuse(x: Exchange, how: Format, status: int, message: str, **headers: Any) -> None:
    headers[how.request_id] = REQUEST_ID
    await x.send(whole(f"{status} No", json.dumps(how.error(status, message)).encode(), **headers))


# -- chat ------------------------------------------------------------------------------------------


def _json(how: Format, body: Any, **headers: Any) -> bytes:
    headers[how.request_id] = REQUEST_ID
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return whole("200 OK", data, **headers)


def _stream_head(how: Format, **headers: Any) -> bytes:
    kind = "text/event-stream; charset=utf-8"
    return head(Content_Type=kind, Transfer_Encoding="chunked", **{how.request_id: REQUEST_ID}, **headers)


def _events(how: Format, asked: Asked) -> list[bytes]:
    return how.events(str(asked.model), WORDS)


async def _chat(x: Exchange, how: Format, asked: Asked) -> None:
    if not asked.stream:
        return await x.send(_json(how, how.answer(str(asked.model), TEXT)))
    return await _send_pieces(x, how, _events(how, asked))


async def _send_pieces(x: Exchange, how: Format, pieces: list[bytes], end: bytes = b"0\r\n\r\n") -> None:
    await x.send(_stream_head(how))
    for data in pieces:
        await x.send(piece(data))
    if end:
        await x.send(end)


def _begun(how: Format, asked: Asked) -> list[bytes]:
    """The events of a stream up to and including the first words, which are two."""
    events = _events(how, asked)
    second = next(i for i, data in enumerate(events) if json.dumps(WORDS[1]).encode() in data)
    return events[: second + 1]


async def _hang(x: Exchange, how: Format, asked: Asked) -> None:
    await x.gone()


async def _stall(x: Exchange, how: Format, asked: Asked) -> None:
    """Half an answer, then silence."""
    if asked.stream:
        await _send_pieces(x, how, _begun(how, asked), b"")
    else:
        await x.send(_json(how, how.answer(str(asked.model), TEXT))[:-20])
    await x.gone()


async def _reset(x: Exchange, how: Format, asked: Asked) -> None:
    """A RST, in a stream after its first words."""
    if asked.stream:
        await _send_pieces(x, how, _begun(how, asked), b"")
        await x.gate()  # a RST throws away what the client has not read: the test opens the gate then
    raise Reset


async def _half_event(x: Exchange, how: Format, asked: Asked) -> None:
    """A stream that ends, well-formed as HTTP, in the middle of an event; or half a JSON document."""
    if asked.stream:
        begun = _begun(how, asked)
        await _send_pieces(x, how, [*begun, begun[-1][:-30]])
    else:
        await x.send(_json(how, json.dumps(how.answer(str(asked.model), TEXT)).encode()[:-20]))


async def _no_end(x: Exchange, how: Format, asked: Asked) -> None:
    """A stream that ends after the first words as if that were all."""
    await _send_pieces(x, how, _begun(how, asked))


async def _error_inside(x: Exchange, how: Format, asked: Asked) -> None:
    """An error inside a 200, in a stream after the first words; it quotes the key."""
    error = how.error(429, f"overloaded ({x.request.headers.get(how.key_header)})")
    if asked.stream:
        await _send_pieces(x, how, [*_begun(how, asked), how.error_event + event(error)])
    else:
        await x.send(_json(how, error))


async def _html(x: Exchange, how: Format, asked: Asked) -> None:
    await x.send(whole("200 OK", b"<html><body>Please log in</body></html>", "text/html"))


async def _crlf(x: Exchange, how: Format, asked: Asked) -> None:
    """CRLF for LF, in pieces of a single byte: every character beyond ASCII is split."""
    data = b"".join(_events(how, asked)).replace(b"\n", b"\r\n")
    await _send_pieces(x, how, [data[i : i + 1] for i in range(len(data))])


async def _endless(x: Exchange, how: Format, asked: Asked) -> None:
    """Words without an end."""
    data = piece(_begun(how, asked)[-1])
    await x.send(_stream_head(how))
    while True:
        await x.send(data)
        await asyncio.sleep(0)


async def _big(x: Exchange, how: Format, asked: Asked) -> None:
    """10 MB of text; in a stream as a single event."""
    text = "0123456789" * 1_000_000
    if asked.stream:
        await _send_pieces(x, how, how.events(str(asked.model), [text, "!"]))
    else:
        await x.send(_json(how, how.answer(str(asked.model), text)))


async def _gzip(x: Exchange, how: Format, asked: Asked) -> None:
    await _encoded(x, how, asked, "gzip", gzip.compress)


async def _br(x: Exchange, how: Format, asked: Asked) -> None:
    await _encoded(x, how, asked, "br", _brotli)


async def _encoded(
    x: Exchange, how: Format, asked: Asked, name: str, encode: Callable[[bytes], bytes]
) -> None:
    if not asked.stream:
        body = encode(json.dumps(how.answer(str(asked.model), TEXT)).encode())
        return await x.send(_json(how, body, Content_Encoding=name))
    await x.send(_stream_head(how, Content_Encoding=name))
    data = encode(b"".join(_events(how, asked)))
    for start in range(0, len(data), 50):
        await x.send(piece(data[start : start + 50]))
    return await x.send(b"0\r\n\r\n")


def _brotli(data: bytes) -> bytes:
    """Brotli (RFC 7932, section 9.2) without compression: a stored block of up to 64 KiB, an empty one."""
    return ((len(data) - 1) << 4 | 1 << 20).to_bytes(3, "little") + data + b"\x03"


HOSTILE: dict[str, Callable[[Exchange, Format, Asked], Awaitable[None]]] = {
    "hang": _hang,
    "stall": _stall,
    "reset": _reset,
    "half-event": _half_event,
    "no-end": _no_end,
    "inside-error": _error_inside,
    "html": _html,
    "crlf": _crlf,
    "endless": _endless,
    "big": _big,
    "gzip": _gzip,
    "br": _br,
}


# -- the other verbs -------------------------------------------------------------------------------


async def _respond(x: Exchange, how: Format, asked: Asked) -> None:
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    message = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    usage = {"input_tokens": TOKENS[0], "output_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
    begun = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "status": "in_progress",
        "model": asked.model,
        "output": [],
    }
    ended = {**begun, "status": "completed", "output": [message], "usage": usage}
    if not asked.stream:
        return await x.send(_json(how, ended))
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return await _send_pieces(
        x,
        how,
        [
            _named_event("response.created", response=begun),
            _named_event("response.output_item.added", output_index=0, item={**message, "content": []}),
            *(_named_event("response.output_text.delta", **place, delta=word) for word in WORDS),
            _named_event("response.output_item.done", output_index=0, item=message),
            _named_event("response.completed", response=ended),
        ],
    )


def vector(index: int) -> list[float]:
    """The embedding of the input at a place."""
    return [float(index), 0.5, -0.25]


def _embeddings(how: Format, asked: Asked) -> bytes:
    if how is _GEMINI:
        count = len(asked.body["requests"])
        rows: list[Any] = [{"values": vector(index)} for index in range(count)]
        return _json(how, {"embeddings": rows, "usageMetadata": {"promptTokenCount": TOKENS[0]}})
    rows = []
    for index in range(len(asked.body["input"])):
        numbers: Any = vector(index)
        if asked.body.get("encoding_format") == "base64":
            numbers = base64.b64encode(struct.pack("<3f", *numbers)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": numbers})
    usage = {"prompt_tokens": TOKENS[0], "total_tokens": TOKENS[0]}
    return _json(how, {"object": "list", "data": rows, "model": asked.model, "usage": usage})


def _media_usage() -> Any:
    return {
        "type": "tokens",
        "input_tokens": TOKENS[0],
        "output_tokens": TOKENS[1],
        "total_tokens": sum(TOKENS),
    }


def _image(how: Format, asked: Asked) -> bytes:
    assert asked.body["prompt"]
    return _json(how, {"created": 1760000000, "data": [{"b64_json": PNG}], "usage": _media_usage()})


def _speech(how: Format, asked: Asked) -> bytes:
    assert asked.body["input"]
    assert asked.body["voice"]
    return whole("200 OK", MP3, "audio/mpeg", **{how.request_id: REQUEST_ID})


def _transcription(how: Format, asked: Asked) -> bytes:
    name, data = asked.body["file"]
    return _json(how, {"text": f"{name} {len(data)}", "usage": _media_usage()})


def _models(how: Format, asked: Asked) -> bytes:
    return _json(how, how.models(MODELS))


_MEDIA: dict[str, Callable[[Format, Asked], bytes]] = {
    "embeddings": _embeddings,
    "image_generation": _image,
    "speech": _speech,
    "transcription": _transcription,
    "models": _models,
}
