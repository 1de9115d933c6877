"""A lean chat server on loopback, in a process of its own, that counts what reaches it.

HTTP/1.1 with keep-alive by hand over `asyncio.Protocol` and canned replies, so that the client under test is
what a benchmark measures. The first part of the path chooses what happens: `/reply/v1/chat/completions`
answers at once, `slow` after 50 ms, `held` when told to; `stream` sends 5000 events as fast as it can,
`extra` the same with unknown fields in each, `tokens` one each 10 ms, `first` one with text at once and the
rest a little later.

Counts are told on a port of its own, so that asking does not change them: `GET /stats`; `GET /release` lets
the held requests go. The process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import sys
from typing import Any

import orjson

from benchmarks import canned, formats

SLOW_S = 0.05
TOKEN_S = 0.01
FIRST_REST_S = 0.001

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEADERS = b"HTTP/1.1 200 OK\r\nx-request-id: req_5f0c2b7d9e1a4c36\r\nopenai-processing-ms: 12\r\n"
_JSON = _HEADERS + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % canned.REPLY_BYTES
_WHOLE = itertools.cycle([_JSON + reply for reply in canned.REPLIES])
_STREAM = _HEADERS + b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunks(count: int, extra: bool = False) -> list[bytes]:
    return [_chunk(event) for event in canned.events(count, extra)]


_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_USAGE_END = _chunk(canned.usage_event()) + _END
_STREAM_BODY = b"".join(_chunks(canned.STREAM_CHUNKS))
_EXTRA_BODY = b"".join(_chunks(canned.STREAM_CHUNKS, extra=True))
_TOKENS = _chunks(canned.TOKEN_CHUNKS)
_FIRST = _chunks(canned.FIRST_CHUNKS)


def _whole(body: bytes) -> bytes:
    return _HEADERS + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


_EMBEDDINGS = {in_base64: _whole(body) for in_base64, body in formats.EMBEDDINGS.items()}
_REPLIES = {b"anthropic": _whole(formats.ANTHROPIC), b"gemini": _whole(formats.GEMINI)}
_STREAMS = {
    mode: _STREAM + b"".join(map(_chunk, events)) + b"0\r\n\r\n"
    for mode, events in ((b"anthropic", formats.ANTHROPIC_STREAM), (b"gemini", formats.GEMINI_STREAM))
}


class Counts:
    """What the server saw since it started."""

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.requests = 0
        self.held: list[asyncio.Transport] = []

    def told(self) -> dict[str, int]:
        return {
            "connections": self.connections,
            "open": self.open,
            "requests": self.requests,
            "held": len(self.held),
        }

    def release(self) -> None:
        """Answer every request that is being held."""
        held, self.held = self.held, []
        for transport in held:
            transport.write(next(_WHOLE))


class Connection(asyncio.Protocol):
    """One client connection: cuts requests out of the bytes and answers each by its path."""

    transport: asyncio.Transport

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.rest = b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.counts.connections += 1
        self.counts.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.counts.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(data, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(data) < stop:
                break
            self.counts.requests += 1
            path = data[: data.index(b"\r\n")].split(b" ")[1]
            self.answer(path.split(b"/")[1], path, data[end + 4 : stop])
            data = data[stop:]
        self.rest = data

    def answer(self, mode: bytes, path: bytes, body: bytes) -> None:
        end = _USAGE_END if b'"include_usage"' in body else _END
        if mode == b"reply":
            self.transport.write(next(_WHOLE))
        elif mode == b"slow":
            self.loop.call_later(SLOW_S, self.transport.write, next(_WHOLE))
        elif mode == b"held":
            self.counts.held.append(self.transport)
        elif mode == b"stream":
            self.transport.write(_STREAM + _STREAM_BODY + end)
        elif mode == b"extra":
            self.transport.write(_STREAM + _EXTRA_BODY + end)
        elif mode == b"first":
            self.transport.write(_STREAM + _FIRST[0] + _FIRST[1])
            self.loop.call_later(FIRST_REST_S, self.transport.write, b"".join(_FIRST[2:]) + end)
        elif mode == b"tokens":
            self.transport.write(_STREAM + _TOKENS[0])
            self.tick(1, self.loop.time() + TOKEN_S, end)
        elif mode in _REPLIES:
            streams = b"streamGenerate" in path or b'"stream":true' in body
            self.transport.write((_STREAMS if streams else _REPLIES)[mode])
        elif mode == b"embeddings":
            self.transport.write(_EMBEDDINGS[b'"base64"' in body])
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def tick(self, number: int, due: float, end: bytes) -> None:
        """Send token `number` at `due`, and so on; the due times do not drift."""
        if number == len(_TOKENS):
            self.transport.write(end)
        else:
            self.loop.call_at(due, self.token, number, due, end)

    def token(self, number: int, due: float, end: bytes) -> None:
        self.transport.write(_TOKENS[number])
        self.tick(number + 1, due + TOKEN_S, end)


async def _control(counts: Counts, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    told = orjson.dumps(counts.told())
    if request.startswith(b"GET /release"):
        counts.release()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))
    await writer.drain()
    writer.close()


async def serve(certificate: str) -> None:
    """Listen on three free ports, print them as one line of JSON, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    counts = Counts()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "backlog": 4096}
    servers = {
        "http": await loop.create_server(lambda: Connection(counts), **options),
        "https": await loop.create_server(lambda: Connection(counts), ssl=context, **options),
        "control": await asyncio.start_server(lambda r, w: _control(counts, r, w), **options),
    }
    ports = {name: server.sockets[0].getsockname()[1] for name, server in servers.items()}
    print(orjson.dumps(ports).decode(), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
