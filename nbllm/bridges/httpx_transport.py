"""The transport below a client of httpx that sends over the kernel's HTTP session.

Owns the translation: a request of httpx goes to aiohttp, and the answer back, byte for byte and piece by
piece, with the timeouts and the errors of httpx. Knows nothing of SDKs. Called by `httpx_clients`.

The package httpx-aiohttp does the same for asynchronous clients. It isn't used: it keeps the session of the
loop that it saw first and closes it with the client, requotes URLs, takes every connection that breaks for a
connect timeout, and has nothing for synchronous clients, so that none of it would be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import cache
from typing import Any, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from .. import loops, masking, tagging
from ..exceptions import UsageProblem
from ..providers.places import provider_at
from ..transport import shared_session
from ..types import parse

T = TypeVar("T")

END_SECONDS = 0.05
"""How long the end of a stream is waited for after its last event, so that its connection can be kept."""

_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # aiohttp adds them unasked


class Library:
    """httpx or httpx2, and our transports as it wants them: of its own classes, which it checks.

    Attributes:
        module: The library.
        transport: What sends for its `Client`.
        async_transport: What sends for its `AsyncClient`, on any loop.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.stream = type("Stream", (_Stream, module.SyncByteStream), {})
        self.async_stream = type("AsyncStream", (_AsyncStream, module.AsyncByteStream), {})
        self.transport = type("Transport", (_Transport, module.BaseTransport), {"library": self})()
        self.async_transport = type(
            "AsyncTransport", (_AsyncTransport, module.AsyncBaseTransport), {"library": self}
        )()

    def answer(self, response: aiohttp.ClientResponse, stream: Any) -> Any:
        """aiohttp's response as one of httpx."""
        version = response.version or aiohttp.HttpVersion11
        return self.module.Response(
            response.status,
            headers=response.raw_headers,
            stream=stream,
            extensions={
                "http_version": b"HTTP/%d.%d" % version,
                "reason_phrase": (response.reason or "").encode("latin-1", "replace"),
            },
        )

    def error(self, error: BaseException) -> Exception:
        """The exception of httpx that means the same."""
        kind = next(name for known, name in _ERRORS if isinstance(error, known))
        found: Exception = getattr(self.module, kind)(masking.redact(str(error) or type(error).__name__))
        return found


@cache
def library(name: str) -> Library:
    """The library that is called "httpx" or "httpx2".

    Raises:
        UsageProblem: It is not installed.
    """
    # Both are loaded here and now: the openai SDK looks for the other one in sys.modules, and fails where it
    # finds it half loaded, as while the log's thread imports genai-prices, which is built on httpx2.
    for each in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(each)
    if name not in sys.modules:
        raise UsageProblem(f"{name} is not installed: pip install {name}")
    return Library(sys.modules[name])


_ERRORS: tuple[tuple[type[BaseException], str], ...] = (  # the first that fits counts
    (aiohttp.ConnectionTimeoutError, "ConnectTimeout"),
    (TimeoutError, "ReadTimeout"),
    (aiohttp.ClientProxyConnectionError, "ProxyError"),
    (aiohttp.ClientHttpProxyError, "ProxyError"),
    (aiohttp.ClientConnectorError, "ConnectError"),
    (aiohttp.ServerDisconnectedError, "RemoteProtocolError"),
    (aiohttp.ClientPayloadError, "RemoteProtocolError"),
    (aiohttp.ClientResponseError, "RemoteProtocolError"),
    (aiohttp.InvalidURL, "UnsupportedProtocol"),
    (aiohttp.NonHttpUrlClientError, "UnsupportedProtocol"),
    (BaseException, "ReadError"),
)
_FAILURES = (aiohttp.ClientError, OSError)  # a TimeoutError is an OSError


# -- what httpx calls --------------------------------------------------------------------------------


class _AsyncTransport:
    library: Library

    async def handle_async_request(self, request: Any) -> Any:
        try:
            body = request.content
        except self.library.module.RequestNotRead:
            body = request.stream
        response = await _send(self.library, request, body)
        return self.library.answer(response, self.library.async_stream(_Body(self.library, response)))


class _AsyncStream:
    def __init__(self, body: _Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._body.more():
            yield piece

    async def aclose(self) -> None:
        await self._body.close()


class _Transport:
    library: Library

    def handle_request(self, request: Any) -> Any:
        request.read()
        return _run(self._handle(request))

    async def _handle(self, request: Any) -> Any:
        response = await _send(self.library, request, request.content)
        body = _Body(self.library, response)
        came = b""
        if response.content_type == "application/json":  # nobody can use a part of it
            try:
                came = b"".join([piece async for piece in _AsyncStream(body)])
            finally:
                await body.close()
        return self.library.answer(response, self.library.stream(body, came))


class _Stream:
    def __init__(self, body: _Body, came: bytes) -> None:
        self._body = body
        self._came = came
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[bytes]:
        if self._came:
            yield self._came
        while not self._body.is_over():
            if piece := _run(loops.on_loop(self._loop, self._body.more())):
                yield piece

    def close(self) -> None:
        if not self._body.is_over():
            _run(loops.on_loop(self._loop, self._body.close()))


def _run(coro: Coroutine[Any, Any, T]) -> T:
    """`loops.run_sync`, and inside a loop that is not nbllm's on the background loop.

    An SDK's synchronous client may be used there, although it holds that loop up.
    """
    if asyncio._get_running_loop() in (None, loops.home()):
        return loops.run_sync(coro)
    future = asyncio.run_coroutine_threadsafe(coro, loops.background())
    try:
        return future.result()
    finally:
        future.cancel()


# -- what aiohttp does -------------------------------------------------------------------------------


class _Body:
    """An answer's body, read on the loop of its connection."""

    def __init__(self, library: Library, response: aiohttp.ClientResponse) -> None:
        self._library = library
        self._response = response
        self._last = b""

    def is_over(self) -> bool:
        """Whether all of it has been read."""
        return self._response.content.at_eof()

    async def more(self) -> bytes:
        """The next piece, as soon as it is there; nothing at the end."""
        try:
            piece = await self._response.content.readany()
        except _FAILURES as error:
            raise self._library.error(error) from error
        self._last = piece or self._last
        return piece

    async def close(self) -> None:
        """Give the connection back, or close it where the end of the body is not here.

        The SDKs leave a stream at its last event. What then ends the body may come a moment later.
        """
        content = self._response.content
        if self._last.endswith(_LAST_EVENT) and not content.is_eof():
            with contextlib.suppress(*_FAILURES):
                async with asyncio.timeout(END_SECONDS):
                    while await content.readany():
                        pass
        if not content.is_eof():
            try:
                if isinstance(sys.exception(), GeneratorExit):
                    raise _Left
                self._response.close()
            except _Left:
                self._response.close()
            await asyncio.sleep(0)  # the socket closes in the loop's next turn


_LAST_EVENT = b"data: [DONE]\n\n"


class _Left(Exception):
    """Hides a GeneratorExit in flight, by which a stream's reader left it: `protocol` would see a cancel."""


async def _send(library: Library, request: Any, body: Any) -> aiohttp.ClientResponse:
    """Send a request of httpx; gives the response as soon as its headers are there."""
    encoding = request.headers.encoding
    headers = CIMultiDict(
        (name.decode(encoding), value.decode(encoding)) for name, value in request.headers.raw
    )
    headers.pop("Transfer-Encoding", None)  # aiohttp's own doing
    session: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if isinstance(body, bytes) and any(field in body for field in _SESSION_FIELDS):
        body, session = _take_session(request.url, headers, body)
    timeouts = request.extensions.get("timeout", {})
    connect, pool = timeouts.get("connect"), timeouts.get("pool")
    # aiohttp's `connect` is the wait for a connection, and then the connecting.
    patience = None if connect is None or pool is None else connect + pool
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        with session:
            return await shared_session().request(
                request.method,
                URL(str(request.url), encoded=True),
                data=body or None,
                headers=headers,
                skip_auto_headers=_AUTO_HEADERS,
                allow_redirects=False,
                auto_decompress=False,
                raise_for_status=False,
                server_hostname=request.extensions.get("sni_hostname"),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=patience, sock_connect=connect, sock_read=timeouts.get("read")
                ),
            )
    except aiohttp.ConnectionTimeoutError as error:
        if patience is not None and loop.time() - began >= patience:
            raise library.module.PoolTimeout(str(error)) from error
        raise library.error(error) from error
    except _FAILURES as error:
        raise library.error(error) from error


# -- the session that a body names -------------------------------------------------------------------

_SESSION_FIELDS = tuple(f'"{name}"'.encode() for name in tagging.SESSION_FIELDS)


_ROOT = msgspec.json.Decoder(dict[str, msgspec.Raw])  # all else goes on as it was written


def _root(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, each as its JSON; none, where that is no such object."""
    try:
        return _ROOT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # takes halves of characters too
        root = json.loads(body)
        fields = root.items() if isinstance(root, dict) else ()
        return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields}
    except (ValueError, RecursionError):
        return {}


def _take_session(
    url: Any, headers: CIMultiDict[str], body: bytes
) -> tuple[bytes, contextlib.AbstractContextManager[object]]:
    """Take LiteLLM's fields from the root of a body, where `extra_body=` puts them, for other servers.

    OpenAI refuses a field that it doesn't know. A LiteLLM proxy at an address that nobody told nbllm of gets
    them as headers, which it takes as well, and which no server refuses.

    Returns:
        The body to send, and the session to send it in.
    """
    nothing = contextlib.nullcontext()
    root = _root(body)
    if root.keys().isdisjoint(tagging.SESSION_FIELDS):
        return body, nothing
    place = url.host, url.port or {"https": 443, "http": 80}.get(url.scheme), url.path
    if provider_at(*place, "openai").takes_session:
        return body, nothing
    is_unknown = provider_at(*place, "litellm_proxy").takes_session
    session: contextlib.AbstractContextManager[object] = nothing
    for name in reversed(tagging.SESSION_FIELDS):  # the first counts
        try:
            session_id = parse(bytes(root.pop(name, b"null")))
            session = tagging.session(session_id) if session_id else session
        except (UsageProblem, msgspec.DecodeError):  # nothing that could be a session
            continue
        if session_id and is_unknown:
            headers.setdefault(f"x-{name.replace('_', '-')}", session_id)
    headers.pop("Content-Length", None)
    return msgspec.json.encode(root), session
