"""A raw HTTP/1.1 server, by hand and over real sockets, that behaves as it is told and counts.

The independent witness of the tests: it knows nothing of nbllm or aiohttp's HTTP code, counts every byte in
both directions, and can do what no decent server does. The first segment of the path names the behaviour:
`server.url("hang")` is a base URL under which every request hangs. `BEHAVIOURS` has them all; a test adds
its own with `server.behaviours["name"] = coroutine_function`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

MODEL = "raw-model"
WORDS = ["Hello", " from", " the", " raw", " server"]
TEXT = "".join(WORDS)
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


@dataclass(eq=False)
class Connection:
    """One TCP connection as the server saw it."""

    number: int
    peer_port: int
    tls: bool
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    open: bool = True


@dataclass(eq=False)
class Request:
    """One request as the server saw it: what came, and what was sent back."""

    connection: Connection
    method: str
    path: str
    headers: dict[str, str]
    bytes_in: int
    nth: int
    """Which request of its connection this is, from 1."""
    body: bytes = b""
    bytes_out: int = 0
    answered: bool = False
    """The behaviour came to its end."""
    client_gone: bool = False
    """The client closed the connection before that."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Close(Exception):
    """Ends the connection with a FIN."""


class Reset(Exception):
    """Ends the connection with a RST."""


class Gone(Exception):
    """The client went away."""


class Exchange:
    """What a behaviour has in hand."""

    def __init__(self, server: RawServer, request: Request, reader: Any, writer: Any) -> None:
        self.server = server
        self.request = request
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        with self.server.changed:
            self.request.bytes_out += len(data)
            self.request.connection.bytes_out += len(data)
            self.server.changed.notify_all()
        await self._writer.drain()

    async def gate(self) -> None:
        """Wait until the test calls `open_gate`; Gone if the client leaves before."""
        leaving = asyncio.ensure_future(self._reader.read(1))
        opening = asyncio.ensure_future(self.server.gate.wait())
        await asyncio.wait([leaving, opening], return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        if leaving.done():
            with contextlib.suppress(ConnectionError):
                leaving.result()
            raise Gone
        leaving.cancel()
        await asyncio.wait([leaving])

    async def gone(self) -> None:
        """Wait until the client leaves."""
        with contextlib.suppress(ConnectionError):
            await self._reader.read(1)
        raise Gone


Behaviour = Callable[[Exchange], Awaitable[None]]


@dataclass
class RawServer:
    """The server in a thread of its own, with its own event loop; a context manager."""

    ssl_context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    connections: list[Connection] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    drop_accepted: bool = False
    """Close every connection as soon as it is accepted."""
    port: int = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.behaviours = {**BEHAVIOURS, **self.behaviours}
        self._writers: dict[Connection, asyncio.StreamWriter] = {}

    def __enter__(self) -> RawServer:
        listening: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        listening.result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    # -- for tests ---------------------------------------------------------------------------------

    def url(self, behaviour: str = "chat", host: str | None = None) -> str:
        """A base URL under which every request gets `behaviour`."""
        return f"{'https' if self.ssl_context else 'http'}://{host or self.host}:{self.port}/{behaviour}/v1"

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Block until `condition()` is true; it is looked at whenever a number changes."""
        with self.changed:
            if not self.changed.wait_for(condition, timeout):
                raise TimeoutError(f"never true: {self.connections} {self.requests}")

    async def seen(self, condition: Callable[[], bool]) -> None:
        """`wait_for` that leaves the test's event loop running."""
        await asyncio.to_thread(self.wait_for, condition)

    async def all_closed(self) -> None:
        """Wait until the server has seen the end of every connection."""
        await self.seen(lambda: not any(c.open for c in self.connections))

    def open_gate(self) -> None:
        """Let all requests that wait at the gate, and those that come, go on."""
        self._loop.call_soon_threadsafe(self.gate.set)

    def close_gate(self) -> None:
        """Have the requests that come from now on wait at the gate again."""
        self._loop.call_soon_threadsafe(self.gate.clear)

    def close_idle(self) -> None:
        """Close all open connections with a FIN; returns when that has been done."""
        done: Future[None] = Future()

        def close() -> None:
            for writer in self._writers.values():
                writer.close()
            done.set_result(None)

        self._loop.call_soon_threadsafe(close)
        done.result(10)
        self.wait_for(lambda: not any(c.open for c in self.connections))

    # -- the server --------------------------------------------------------------------------------

    def _run(self, listening: Future[None]) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._main(listening))

    async def _main(self, listening: Future[None]) -> None:
        self._loop, self._stop, self.gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._loop.set_exception_handler(lambda loop, context: None)  # clients that break off are the point
        server = await asyncio.start_server(
            self._serve, self.host, 0, ssl=self.ssl_context, limit=1 << 24, backlog=4096
        )
        self.port = server.sockets[0].getsockname()[1]
        listening.set_result(None)
        await self._stop.wait()
        server.close()
        for writer in list(self._writers.values()):
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        with self.changed:
            connection = Connection(len(self.connections) + 1, peer[1], self.ssl_context is not None)
            self.connections.append(connection)
            self._writers[connection] = writer
            self.changed.notify_all()
        try:
            while not self.drop_accepted and await self._one(connection, reader, writer):
                pass
        except Reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        except (Close, Gone, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()
            with self.changed:
                del self._writers[connection]
                connection.open = False
                self.changed.notify_all()

    async def _one(self, connection: Connection, reader: Any, writer: Any) -> bool:
        """Serve one request; False at the end of the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines if x)}
        with self.changed:
            connection.requests += 1
            connection.bytes_in += len(head)
            request = Request(connection, method, path, headers, len(head), connection.requests)
            self.requests.append(request)
            self.changed.notify_all()
        name = path.split("/")[1]
        exchange = Exchange(self, request, reader, writer)
        if name != "early":
            await self._read_body(exchange)
        name, _, argument = name.partition("-") if name not in self.behaviours else (name, "", "")
        behaviour = self.behaviours[name]
        try:
            await (behaviour(exchange, argument) if argument else behaviour(exchange))  # type: ignore[call-arg]
        except (Gone, ConnectionError):
            with self.changed:
                request.client_gone = True
                self.changed.notify_all()
            raise
        with self.changed:
            request.answered = True
            self.changed.notify_all()
        return True

    async def _read_body(self, exchange: Exchange) -> None:
        request, reader = exchange.request, exchange._reader
        if "chunked" in request.headers.get("transfer-encoding", ""):
            read, body = 0, b""
            while True:
                line = await reader.readuntil(b"\r\n")
                data = await reader.readexactly(int(line, 16) + 2)
                read += len(line) + len(data)
                body += data[:-2]
                if data == b"\r\n":
                    break
        else:
            read = int(request.headers.get("content-length", 0))
            body = await reader.readexactly(read)
        with self.changed:
            request.body = body
            request.bytes_in += read
            request.connection.bytes_in += read
            self.changed.notify_all()


# -- what is answered ------------------------------------------------------------------------------


def completion(text: str = TEXT, **more: Any) -> dict[str, Any]:
    """A chat completion as OpenAI sends it."""
    return {
        "id": "chatcmpl-raw",
        "object": "chat.completion",
        "created": 1760000000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": USAGE,
        **more,
    }


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a streamed completion; without a delta, one without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "chatcmpl-raw",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": MODEL,
        "choices": choices,
        **more,
    }


def chunks(words: list[str] = WORDS) -> list[dict[str, Any]]:
    """All chunks of a streamed answer: role, words, finish, usage."""
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": word}) for word in words),
        chunk({}, "stop"),
        chunk(None, usage=USAGE),
    ]


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def head(status: str = "200 OK", **headers: Any) -> bytes:
    """Status line and headers; `content_type=` stands for `Content-Type:`."""
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status: str, body: bytes, kind: str = "application/json", **headers: Any) -> bytes:
    """A response with its length, in one piece."""
    return head(status, Content_Type=kind, Content_Length=len(body), **headers) + body


def piece(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


SSE_HEAD = head(Content_Type="text/event-stream", Transfer_Encoding="chunked", x_request_id="req_raw")
OK = whole("200 OK", json.dumps(completion()).encode(), x_request_id="req_raw")


async def _stream(x: Exchange, events: list[bytes], end: bytes = b"0\r\n\r\n") -> None:
    await x.send(SSE_HEAD)
    for data in events:
        await x.send(piece(data))
    if end:
        await x.send(end)


def _events(words: list[str] = WORDS) -> list[bytes]:
    return [*(event(c) for c in chunks(words)), event(b"[DONE]")]


async def chat(x: Exchange) -> None:
    """A decent server: a whole answer, or a stream where the request asks for one."""
    if x.request.body and x.request.json.get("stream"):
        await _stream(x, _events())
    else:
        await x.send(OK)


async def echo(x: Exchange) -> None:
    """The texts of the last message as the answer, some characters at a time."""
    asked = x.request.json
    content = asked["messages"][-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    if asked.get("stream"):
        pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
        await _stream(x, [event(c | {"model": asked["model"]}) for c in chunks(pieces)] + [event(b"[DONE]")])
    else:
        await x.send(whole("200 OK", json.dumps(completion(text, model=asked["model"])).encode()))


async def close(x: Exchange) -> None:
    raise Close


async def reset(x: Exchange) -> None:
    raise Reset


async def hang(x: Exchange) -> None:
    await x.gone()


async def gated(x: Exchange) -> None:
    await x.gate()
    await chat(x)


async def gatedbody(x: Exchange) -> None:
    """Headers and half the answer, then the gate, then the rest."""
    if x.request.body and x.request.json.get("stream"):
        events = _events()
        await _stream(x, events[:3], b"")
        await x.gate()
        for data in events[3:]:
            await x.send(piece(data))
        await x.send(b"0\r\n\r\n")
    else:
        await x.send(OK[:-20])
        await x.gate()
        await x.send(OK[-20:])


async def stall(x: Exchange) -> None:
    """Half an answer, then silence."""
    if x.request.body and x.request.json.get("stream"):
        await _stream(x, _events()[:3], b"")
    else:
        await x.send(OK[:-20])
    await x.gone()


async def halfhead(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    raise Close


async def halfbody(x: Exchange) -> None:
    await x.send(OK[:-20])
    raise Close


async def resetbody(x: Exchange) -> None:
    await x.send(OK[:-20])
    await asyncio.sleep(0.05)  # a RST throws away what the client has not read
    raise Reset


async def halfevent(x: Exchange) -> None:
    """A stream that ends, well-formed as HTTP, in the middle of an event."""
    await _stream(x, [*_events()[:3], event(chunk({"content": "lost"}))[:40]])


async def halfstream(x: Exchange) -> None:
    """A chunked stream that is cut in the middle of an event."""
    await _stream(x, [*_events()[:3], event(chunk({"content": "lost"}))[:40]], b"")
    raise Close


async def nodone(x: Exchange) -> None:
    """A stream that ends after some words, without finish_reason and without [DONE]."""
    await _stream(x, _events()[:3])


async def streamerror(x: Exchange) -> None:
    error = {"error": {"message": "The model is overloaded", "type": "server_error", "code": None}}
    await _stream(x, [*_events()[:3], event(error)], b"")
    await x.gone()


async def wholeerror(x: Exchange) -> None:
    """An error inside a 200."""
    error = {"error": {"message": "upstream said no", "type": "server_error", "code": 502}}
    await x.send(whole("200 OK", json.dumps(error).encode()))


async def html(x: Exchange) -> None:
    await x.send(whole("200 OK", b"<html><body>Welcome to nginx!</body></html>", "text/html"))


async def nothing(x: Exchange) -> None:
    await x.send(head("204 No Content"))


async def endless(x: Exchange) -> None:
    await x.send(SSE_HEAD)
    while True:
        await x.send(piece(event(chunk({"content": "x" * 100}))))
        await asyncio.sleep(0)


async def redirect(x: Exchange) -> None:
    await x.send(
        head(
            "307 Temporary Redirect",
            Location=x.request.path.replace("/redirect/", "/chat/"),
            Content_Length=0,
        )
    )


async def redirectaway(x: Exchange) -> None:
    location = x.server.url("chat", host="localhost") + "/chat/completions"
    await x.send(head("307 Temporary Redirect", Location=location, Content_Length=0))


async def bye(x: Exchange) -> None:
    """A whole answer with `Connection: close`."""
    await x.send(whole("200 OK", json.dumps(completion()).encode(), Connection="close"))
    raise Close


async def untilclose(x: Exchange) -> None:
    """A body that ends with the connection."""
    await x.send(head(Content_Type="application/json", Connection="close"))
    await x.send(json.dumps(completion()).encode())
    raise Close


async def zipped(x: Exchange) -> None:
    body = gzip.compress(json.dumps(completion("Hello " * 1000)).encode())
    await x.send(whole("200 OK", body, Content_Encoding="gzip"))


async def big(x: Exchange) -> None:
    await x.send(whole("200 OK", json.dumps(completion("0123456789" * 1_000_000)).encode()))


async def early(x: Exchange) -> None:
    """A refusal before the body was read."""
    error = {"error": {"message": "too large", "type": "invalid_request_error", "code": None}}
    await x.send(whole("413 Payload Too Large", json.dumps(error).encode(), Connection="close"))
    raise Close


async def fin(x: Exchange) -> None:
    """A whole answer, and then the connection closes although nothing announced it."""
    await x.send(OK)
    raise Close


async def once(x: Exchange) -> None:
    """Answers the first request of a connection, and drops the connection at the second."""
    if x.request.nth > 1:
        raise Close
    await chat(x)


async def status(x: Exchange, number: str) -> None:
    """An error with that HTTP status, which quotes the key that came, as careless servers do."""
    key = x.request.headers.get("authorization", "no key")
    error = {"error": {"message": f"no ({key})", "type": "some_type", "param": None, "code": "some_code"}}
    await x.send(
        whole(f"{number} Status", json.dumps(error).encode(), x_request_id="req_raw", Retry_After="7")
    )


BEHAVIOURS: dict[str, Any] = {
    function.__name__: function
    for function in (
        chat, echo, close, reset, hang, gated, gatedbody, stall, halfhead, halfbody, resetbody, halfevent,
        halfstream, nodone, streamerror, wholeerror, html, nothing, endless, redirect, redirectaway, bye,
        untilclose, zipped, big, early, fin, once, status,
    )
}  # fmt: skip


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port that nobody listens on, held so that nobody else takes it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose connections are never accepted: connecting to it takes for ever."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
