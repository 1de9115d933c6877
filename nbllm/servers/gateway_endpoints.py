"""The endpoints of the gateway: from an HTTP request to a verb, and from its answer to a response.

Owns who is let in, and where a path leads. The life of the server is `gateway`'s, which calls this; what a
request says is read in `gateway_requests`, answers and errors are written in `gateway_answers`. From OpenAI's
API reference, and Anthropic's for `/messages`.

What a server says that speaks the client's own format, of OpenAI's chat completions or Anthropic's messages,
comes back byte by byte; other answers are translated. Messages never go through `attachments`: a path in them
is not to be read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from .. import calls, client, endpoints, masking, responding, tracing
from ..exceptions import NbllmError, UsageProblem
from ..options import checked_options
from ..providers import HttpRequest, Route
from ..providers.base import merged_headers
from ..providers.encoding import encode
from ..providers.openai import CHAT_PARAMETERS
from ..providers.translation import shown
from ..streaming import CompletionStream
from . import gateway_answers as answers
from . import gateway_requests as requests
from .gateway_message_input import check_messages, to_chat
from .gateway_message_output import anthropic_error
from .gateway_requests import Fields

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_Reader = calls.Reader[CompletionStream | web.Response]


class _Refused(Exception):
    """A request that reaches no endpoint."""

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


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
            "/messages": ("POST", _messages),
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
        path = _without_version(request.path)
        shape = anthropic_error if path.startswith("/messages") else answers.openai_error
        try:
            self._admit(request.headers)
            return await self._endpoint(request, path)(request)
        except _Refused as refused:
            response = answers.refusal(shape, refused.status, refused.message, refused.code, refused.headers)
            if refused.status in (401, 403):  # nobody who may not ask keeps a connection
                response.force_close()
            return response
        except NbllmError as error:
            return answers.error(shape, error)
        except web.HTTPException as error:  # aiohttp's own, of a body that is too large or no form
            return answers.refusal(shape, error.status, error.text or error.reason, "bad_body")
        except (ConnectionError, asyncio.CancelledError):  # aiohttp logs the former as a crash of ours
            raise asyncio.CancelledError from None
        except Exception as error:
            text = masking.redact(f"the gateway failed: {error!r}")
            return answers.refusal(shape, 500, text, "internal_error")

    def _admit(self, headers: Mapping[str, str]) -> None:
        host = headers.get("Host", "")
        if self._only_local and not _names_this_machine(host):
            # A page elsewhere may have its own name lead here (DNS rebinding).
            raise _Refused(403, f"This gateway is reached as localhost, not as {host[:100]!r}.", "bad_host")
        origin = headers.get("Origin")
        if origin is not None and not _is_same_place(origin, host):
            raise _Refused(403, "Pages of other servers can't use this gateway.", "bad_origin")
        if self._key is not None and not any(hmac.compare_digest(k, self._key) for k in _sent_keys(headers)):
            raise _Refused(
                401,
                "Incorrect API key: send the gateway's as 'Authorization: Bearer …' or 'x-api-key: …'.",
                "invalid_api_key",
                **{"WWW-Authenticate": 'Basic realm="nbllm"'},  # a browser asks for it as a password
            )

    def _endpoint(self, request: web.BaseRequest, path: str) -> Endpoint:
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
            text="nbllm gateway: OpenAI's API and Anthropic's Messages; every request is in the log.\n\n"
            f"  base_url={self._url}\n\n{paths}\n\nAll of it also stands under /v1.\n"
        )


def _without_version(path: str) -> str:
    return path[3:] if path.startswith("/v1/") or path == "/v1" else path


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


def _sent_keys(headers: Mapping[str, str]) -> Iterator[bytes]:
    """The keys that a client sends: OpenAI's and a browser's header, and Anthropic's."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        yield value.strip().encode("utf-8", "surrogateescape")
    else:
        try:
            yield b64decode(value).partition(b":")[2]
        except ValueError:
            pass
    yield headers.get("x-api-key", "").encode("utf-8", "surrogateescape")


# -- chat ------------------------------------------------------------------------------------------------


async def _chat(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
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
    translate = partial(client.chat_request, messages, stream, fields, options.metadata)
    show_usage = bool(wanted.get("include_usage"))
    read: _Reader = partial(client.streamed_answer, show_usage, None) if stream else _whole_chat
    answer = await calls.run("chat", model, options, translate, read, stream=stream)
    if isinstance(answer, CompletionStream):
        return await answers.chat_stream(request, answer)
    return answer


async def _whole_chat(call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> web.Response:
    answer = await client.whole_answer(call, response, route)
    as_it_came = route.provider.dialect == "openai"
    return answers.whole(await response.read() if as_it_came else answers.completion(answer), [call.record])


# -- messages --------------------------------------------------------------------------------------------


async def _messages(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
    model, stream = asked.take("model"), asked.stream()
    check_messages(asked.fields.get("messages"))
    options = checked_options(**asked.options)
    translate = partial(
        _message_request, asked.fields, stream, options.metadata, request.headers.get("anthropic-beta")
    )
    read: _Reader = partial(client.streamed_answer, False, None) if stream else _whole_message
    answer = await calls.run("chat", model, options, translate, read, stream=stream)
    if isinstance(answer, CompletionStream):
        return await answers.message_stream(request, answer)
    return answer


def _message_request(
    fields: Fields,
    stream: bool,
    metadata: Mapping[str, Any] | None,
    beta: str | None,
    route: Route,
    added: Mapping[str, Any] | None,
) -> HttpRequest:
    if route.provider.dialect != "anthropic":
        chat, params = to_chat(fields, signed=route.provider.takes_session)
        return client.chat_request(chat, stream, params, metadata, route, added)
    # In its own words: what the client says goes on as it is, with the features that it asks for by a header.
    user = (metadata or {}).get("user_id")  # the API takes nothing else
    body = {
        **fields,
        "model": route.model,
        **({"stream": True} if stream else {}),
        **({"metadata": {"user_id": user}} if user is not None else {}),
        **(added or {}),
    }
    params = {name: value for name, value in fields.items() if name not in ("messages", "system")}
    headers = merged_headers(route.headers, {"anthropic-beta": beta} if beta is not None else None)
    return HttpRequest(route.url("messages"), encode(body), headers, shown(params, added, metadata))


async def _whole_message(call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> web.Response:
    answer = await client.whole_answer(call, response, route)
    as_it_came = route.provider.dialect == "anthropic"
    return answers.whole(await response.read() if as_it_came else answers.message(answer), [call.record])


# -- responses -------------------------------------------------------------------------------------------


async def _responses(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
    model, given, stream = asked.take("model"), asked.take("input"), asked.stream()
    answer = await responding.aresponses(given, model, stream=stream, **asked.fields, **asked.options)
    if isinstance(answer, responding.ResponseStream):
        return await answers.response_stream(request, answer)
    if isinstance(answer, responding.BridgedStream):
        return await answers.bridged_stream(request, answer)
    return answers.whole(answers.dumped(answer), [answer.request])


# -- the others ------------------------------------------------------------------------------------------


async def _embeddings(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
    model, texts, fields = asked.take("model"), asked.take("input"), asked.whole()
    wanted = fields.pop("encoding_format", None)
    if wanted != "base64":  # for which the verb asks by itself, where it can be had
        fields["encoding_format"] = wanted
    answer = await endpoints.aembedding(model, texts, **fields, **asked.options)
    return answers.whole(answers.embeddings(answer, as_base64=wanted == "base64"), answer.requests)


async def _images(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
    prompt = asked.take("prompt")
    answer = await endpoints.aimage_generation(prompt, **asked.whole(), **asked.options)
    return answers.whole(answers.dumped(answer), answer.requests)


async def _speech(request: web.BaseRequest) -> web.StreamResponse:
    asked = await requests.asked(request)
    model, text, voice = asked.take("model"), asked.take("input"), asked.take("voice")
    answer = await endpoints.aspeech(model, text, voice, **asked.whole(), **asked.options)
    return answers.whole(answer.content, answer.requests, answer.content_type or "audio/mpeg")


async def _transcription(request: web.BaseRequest) -> web.StreamResponse:
    asked, (name, data) = await requests.form(request)
    model, as_text = asked.take("model"), asked.fields.get("response_format") in ("text", "srt", "vtt")
    answer = await endpoints.atranscription(model, (name, data), **asked.whole(), **asked.options)
    if as_text:
        return answers.whole((answer.text or "").encode(), answer.requests, "text/plain; charset=utf-8")
    return answers.whole(answers.dumped(answer), answer.requests)


async def _models(request: web.BaseRequest) -> web.StreamResponse:
    found = await endpoints.amodels(**requests.taken_apart({}, request.headers).options)
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
