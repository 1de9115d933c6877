"""The endpoints of the gateway: from an HTTP request to a verb, and from its answer to a response.

Owns who is let in, where a path leads, and what of a body is a parameter, an option or a session. The life of
the server is `gateway`'s, which calls this; how answers and errors are written is `gateway_answers`'. From
OpenAI's API reference; the ways to name a session from docs.litellm.ai, "Session Logs".

What a server says that speaks OpenAI's chat format comes back byte by byte; other answers are translated as
for the verbs. A chat's messages never go through `attachments`: a path in them is not to be read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web

from .. import calls, client, endpoints, masking, responding, tagging, tracing
from ..exceptions import NbllmError, UsageProblem
from ..options import OPTION_NAMES, checked_options
from ..providers import HttpRequest, Route
from ..providers.openai import CHAT_PARAMETERS
from ..streaming import CompletionStream
from ..types import parse
from . import gateway_answers as answers

LARGEST_BODY = 100 * 1024**2
"""Bytes of a request's body: pictures and recordings are large."""

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Fields = dict[str, Any]

# What a client may not choose: where a key goes, and what else is this process's own.
_OURS = frozenset(
    ("api_key", "api_base", "base_url", "api_version", "extra_headers", "shared_session", "fallbacks")
)


class _Refused(Exception):
    """A request that reaches no endpoint."""

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(message)
        self.response = answers.refusal(status, message, code, headers)
        if status in (401, 403):  # nobody who may not ask keeps a connection
            self.response.force_close()


class Endpoints:
    """Answers every request to one gateway.

    Args:
        url: Its base URL, for its own page.
        key: What clients must send; None where they need not.
        only_local: Whether only this machine can reach it, so that a name of another one tells of an attack.
    """

    def __init__(self, url: str, key: str | None, *, only_local: bool) -> None:
        self._url = url
        self._key = key.encode() if key is not None else None
        self._only_local = only_local
        self._routes: dict[str, tuple[str, Endpoint]] = {
            "/chat/completions": ("POST", _chat),
            "/responses": ("POST", _responses),
            "/embeddings": ("POST", _embeddings),
            "/images/generations": ("POST", _images),
            "/audio/speech": ("POST", _speech),
            "/audio/transcriptions": ("POST", _transcription),
            "/models": ("GET", _models),
            "/sessions": ("GET", _sessions),
            "": ("GET", self._about),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler for `web.Server`."""
        try:
            self._admit(request.headers)
            return await self._endpoint(request)(request)
        except _Refused as refused:
            return refused.response
        except NbllmError as error:
            return answers.error(error)
        except web.HTTPException as error:  # aiohttp's own, of a body that is too large or no form
            return answers.refusal(error.status, error.text or error.reason, "bad_body")
        except (ConnectionError, asyncio.CancelledError):  # aiohttp logs the former as a crash of ours
            raise asyncio.CancelledError from None
        except Exception as error:
            text = masking.redact(f"the gateway failed: {error!r}")
            return answers.refusal(500, text, "internal_error")

    def _admit(self, headers: Mapping[str, str]) -> None:
        host = headers.get("Host", "")
        if self._only_local and not _names_this_machine(host):
            # A page elsewhere may have its own name lead here (DNS rebinding).
            raise _Refused(403, f"This gateway is reached as localhost, not as {host[:100]!r}.", "bad_host")
        origin = headers.get("Origin")
        if origin is not None and not _is_same_place(origin, host):
            raise _Refused(403, "Pages of other servers can't use this gateway.", "bad_origin")
        if self._key is not None and not hmac.compare_digest(_sent_key(headers), self._key):
            raise _Refused(
                401,
                "Incorrect API key: send the gateway's as 'Authorization: Bearer …'.",
                "invalid_api_key",
                **{"WWW-Authenticate": 'Basic realm="nbllm"'},  # a browser asks for it as a password
            )

    def _endpoint(self, request: web.BaseRequest) -> Endpoint:
        path = request.path
        if path.startswith("/v1/") or path == "/v1":
            path = path[3:]
        method, endpoint = self._routes.get(path.rstrip("/"), ("", None))
        if endpoint is None:
            known = ", ".join(sorted(f"{method} {path or '/'}" for path, (method, _) in self._routes.items()))
            raise _Refused(404, f"There is no {request.path[:200]} here. There is: {known}.", "unknown_url")
        if request.method != method:
            raise _Refused(
                405, f"{path} takes {method}, not {request.method}.", "method_not_allowed", Allow=method
            )
        return endpoint

    async def _about(self, request: web.BaseRequest) -> web.StreamResponse:
        paths = "\n".join(f"  {method:4} {path}" for path, (method, _) in self._routes.items() if path)
        return web.Response(
            text=f"nbllm gateway: an OpenAI-compatible server, every request a row in nbllm's log.\n\n"
            f"  base_url={self._url}\n\n{paths}\n\nAll but /sessions also stand under /v1.\n"
        )


@lru_cache(maxsize=256)
def _names_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_unspecified  # 0.0.0.0 leads here too
    except ValueError:
        return False


def _is_same_place(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _sent_key(headers: Mapping[str, str]) -> bytes:
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return value.strip().encode("utf-8", "surrogateescape")
    try:
        return b64decode(value).partition(b":")[2]
    except ValueError:
        return b""


# -- what a request says ---------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """A request, taken apart.

    Attributes:
        fields: OpenAI's parameters, and whatever else the server asked may take.
        options: Those of all verbs.
    """

    fields: Fields
    options: Fields

    def take(self, name: str) -> Any:
        """Take a parameter out that must be there."""
        if (value := self.fields.pop(name, None)) is None:
            raise UsageProblem(f"the request holds no {name!r}")
        return value

    def stream(self) -> bool:
        """Take out whether the answer shall be streamed."""
        if not isinstance(stream := self.fields.pop("stream", None) or False, bool):
            raise UsageProblem("stream is true or false")
        return stream

    def whole(self) -> Fields:
        """The parameters of an endpoint that doesn't stream."""
        streams = self.fields.pop("stream", None) not in (None, False, "false")
        if streams or self.fields.get("stream_format") == "sse":
            raise UsageProblem("here only chat completions and responses are streamed: leave out stream")
        return self.fields


async def _asked(request: web.BaseRequest) -> _Asked:
    """What a JSON body says."""
    try:
        body = parse(await _body(request))
    except msgspec.DecodeError as error:
        raise UsageProblem(f"the body of the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageProblem(f"the body of the request must be a JSON object, not a {type(body).__name__}")
    return _taken_apart(body, request.headers)


async def _body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > LARGEST_BODY:
        raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)
    _let_it_come(request)
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise UsageProblem(f"the body of the request could not be read: {error}") from None


def _let_it_come(request: web.BaseRequest) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _taken_apart(body: Fields, headers: Mapping[str, str]) -> _Asked:
    given = {name: body.pop(name) for name in OPTION_NAMES.intersection(body)}
    if refused := _OURS.intersection(given):
        raise UsageProblem(f"the gateway takes no {sorted(refused)[0]}: addresses and keys are its own")
    metadata = given.get("metadata")
    # As for the verbs: fields first, then metadata, then headers. These are not sent on.
    named = {name: headers[name] for name in tagging.SESSION_HEADERS if name in headers}
    session_id = checked_options(**given, extra_headers=named or None).session_id
    options = {name: value for name, value in given.items() if name not in tagging.SESSION_FIELDS}
    if metadata:
        rest = {name: value for name, value in metadata.items() if name not in tagging.SESSION_METADATA}
        options["metadata"] = rest or None
    if session_id is not None:
        options["session_id"] = session_id
    return _Asked(body, options)


# -- chat ------------------------------------------------------------------------------------------------


async def _chat(request: web.BaseRequest) -> web.StreamResponse:
    asked = await _asked(request)
    fields, model, messages, stream = (
        asked.fields,
        asked.take("model"),
        asked.take("messages"),
        asked.stream(),
    )
    if not (isinstance(messages, list) and messages and all(type(message) is dict for message in messages)):
        raise UsageProblem('messages must be a list such as [{"role": "user", "content": "Hello"}]')
    options = checked_options(**asked.options)
    unknown = {name: value for name, value in fields.items() if name not in CHAT_PARAMETERS}
    if unknown:  # goes on as it is: the server asked may know it
        options.extra_body = {**unknown, **(options.extra_body or {})}
        fields = {name: value for name, value in fields.items() if name not in unknown}
    wanted = fields.get("stream_options") or {}
    if not isinstance(wanted, dict):
        raise UsageProblem("stream_options must be an object")
    # Not closures: with many calls at once, their cells keep the garbage collector busy.
    translate = partial(_chat_request, messages, stream, fields, options.metadata)
    read = partial(_read_chat, stream, bool(wanted.get("include_usage")))
    answer = await calls.run("chat", model, options, translate, read, stream=stream)
    if isinstance(answer, CompletionStream):
        return await answers.chat_stream(request, answer)
    return answer


def _chat_request(
    messages: list[Any],
    stream: bool,
    params: Fields,
    metadata: Mapping[str, Any] | None,
    route: Route,
    added: Mapping[str, Any] | None,
) -> HttpRequest:
    return route.dialect.chat_request(route, messages, stream, params, added, metadata)


async def _read_chat(
    stream: bool, show_usage: bool, call: tracing.Call, response: aiohttp.ClientResponse, route: Route
) -> CompletionStream | web.Response:
    if stream:
        return CompletionStream(call, response, route, show_usage, None)
    answer = await client.whole_answer(call, response, route)
    record = call.record
    if route.provider.dialect == "openai":
        return answers.whole(await response.read(), [record])  # as it came
    return answers.whole(answers.completion(answer), [record])


# -- responses -------------------------------------------------------------------------------------------


async def _responses(request: web.BaseRequest) -> web.StreamResponse:
    asked = await _asked(request)
    model, given, stream = asked.take("model"), asked.take("input"), asked.stream()
    answer = await responding.aresponses(given, model, stream=stream, **asked.fields, **asked.options)
    if isinstance(answer, responding.ResponseStream):
        return await answers.response_stream(request, answer)
    if isinstance(answer, responding.BridgedStream):
        return await answers.bridged_stream(request, answer)
    return answers.whole(answers.dumped(answer), [answer.request])


# -- the others ------------------------------------------------------------------------------------------


async def _embeddings(request: web.BaseRequest) -> web.StreamResponse:
    asked = await _asked(request)
    model, texts, fields = asked.take("model"), asked.take("input"), asked.whole()
    wanted = fields.pop("encoding_format", None)
    if wanted != "base64":  # for which the verb asks by itself, where it can be had
        fields["encoding_format"] = wanted
    answer = await endpoints.aembedding(model, texts, **fields, **asked.options)
    return answers.whole(answers.embeddings(answer, as_base64=wanted == "base64"), answer.requests)


async def _images(request: web.BaseRequest) -> web.StreamResponse:
    asked = await _asked(request)
    prompt = asked.take("prompt")
    answer = await endpoints.aimage_generation(prompt, **asked.whole(), **asked.options)
    return answers.whole(answers.dumped(answer), answer.requests)


async def _speech(request: web.BaseRequest) -> web.StreamResponse:
    asked = await _asked(request)
    model, text, voice = asked.take("model"), asked.take("input"), asked.take("voice")
    answer = await endpoints.aspeech(model, text, voice, **asked.whole(), **asked.options)
    return answers.whole(answer.content, answer.requests, answer.content_type or "audio/mpeg")


async def _transcription(request: web.BaseRequest) -> web.StreamResponse:
    asked, (name, data) = await _form(request)
    model, as_text = asked.take("model"), asked.fields.get("response_format") in ("text", "srt", "vtt")
    answer = await endpoints.atranscription(model, (name, data), **asked.whole(), **asked.options)
    if as_text:
        return answers.whole((answer.text or "").encode(), answer.requests, "text/plain; charset=utf-8")
    return answers.whole(answers.dumped(answer), answer.requests)


async def _form(request: web.BaseRequest) -> tuple[_Asked, tuple[str, bytes]]:
    """What a form says, and its file. Brackets make lists and objects: `include[]`, `metadata[x]`."""
    fields: Fields = {}
    file: tuple[str, bytes] | None = None
    _let_it_come(request)
    try:
        for name, value in (await request.post()).items():
            field, bracket, within = name.partition("[")
            if isinstance(value, web.FileField):
                with value.file:
                    file = value.filename, value.file.read()
            elif isinstance(value, bytes | bytearray):
                raise UsageProblem(f"the form's {name[:100]!r} is neither a text nor a file with a name")
            elif within == "]":
                fields.setdefault(field, []).append(value)
            elif bracket:
                fields.setdefault(field, {})[within.removesuffix("]")] = value
            else:
                fields[name] = value
    except (ValueError, TypeError, AttributeError, web.RequestPayloadError) as error:
        raise UsageProblem(f"the body of the request is no form with a file: {error}") from None
    if file is None:
        raise UsageProblem("the form holds no file: send multipart/form-data with 'file' and 'model'")
    return _taken_apart(fields, request.headers), file


async def _models(request: web.BaseRequest) -> web.StreamResponse:
    found = await endpoints.amodels(**_taken_apart({}, request.headers).options)
    return answers.whole(answers.models(found), [])


async def _sessions(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(
        text=await asyncio.to_thread(_sessions_page),
        content_type="text/html",
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"},
    )


def _sessions_page() -> str:
    """The report on this kernel as a page."""
    from .. import reports

    return reports.report().page
