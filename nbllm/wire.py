"""What went over a connection, kept as it went, and read as HTTP/1.1 messages afterwards.

Owns `Overheard`, into which `protocol` puts the bytes of other clients' requests to models, and the reading
of them. The event loop pays for a list's `append`, the log's thread for the rest. Called by `foreign`.

Source of the format: RFC 9112 (HTTP/1.1), sections 5 to 7.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

LARGEST = 32 << 20
"""Bytes of a request, or of an answer, that are kept at most; of a larger one nothing is read."""


class Overheard:
    """The bytes of one request and its answer, with the time of each piece that came."""

    __slots__ = ("received", "received_bytes", "sent", "sent_bytes")

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.received: list[tuple[float, bytes]] = []
        self.sent_bytes = self.received_bytes = 0

    def take_sent(self, data: Any) -> None:
        """Keep what is sent. aiohttp may use the memory again, so that it is copied."""
        self.sent_bytes += len(data)
        if self.sent_bytes <= LARGEST:
            self.sent.append(bytes(data))
        else:
            self.sent.clear()

    def take_received(self, now: float, data: bytes) -> None:
        """Keep what has come."""
        self.received_bytes += len(data)
        if self.received_bytes <= LARGEST:
            self.received.append((now, data))
        else:
            self.received.clear()


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer.

    Attributes:
        first: Its first line.
        headers: By their names in small letters; of several with one name, the last.
        pieces: The body, decompressed, as it came: when, and what.
    """

    first: str
    headers: dict[str, str]
    pieces: list[tuple[float, bytes]]

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


def read(pieces: Iterable[tuple[float, bytes]]) -> Message | None:
    """The message that was sent in these pieces; None where they hold no whole head of one.

    Interim answers (100 Continue) before it are passed over, and a body that broke off is what came of it; of
    one that is decompressed to more than `LARGEST` bytes, it is its beginning.

    Raises:
        ValueError: It is no HTTP, or compressed in a way that can't be read here.
    """
    head, first, headers, rest = b"", "", None, []
    for now, data in pieces:
        if headers is not None:
            rest.append((now, data))
            continue
        head += data
        while headers is None and b"\r\n\r\n" in head:
            lines, _, after = head.partition(b"\r\n\r\n")
            first, *fields = lines.decode("latin-1").split("\r\n")
            if re.match(r"HTTP/1\.\d 1\d\d", first):
                head = after
                continue
            headers = dict(map(_field, fields))
            rest.append((now, after))
    if headers is None:
        return None
    steps: list[Callable[[bytes], bytes]] = []
    if "chunked" in headers.get("transfer-encoding", "").lower():
        steps.append(_Chunks().feed)
    if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
        steps.append(_decompressor(coding))
    found, room = [], LARGEST
    for now, data in rest:
        for step in steps:
            data = step(data)
        if data:
            found.append((now, data[:room]))
            room -= len(data)
        if room <= 0:
            break
    return Message(first, headers, found)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


class _Chunks:
    """Takes the chunks of a body out of their frames."""

    def __init__(self) -> None:
        self._frame = b""  # what has come of a frame: the line with its size, or what ends it
        self._left = 0  # bytes that are still to come of the chunk
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        found, at = [], 0
        while at < len(data) and not self._is_over:
            if self._left:
                found.append(data[at : at + self._left])
                at, self._left = at + len(found[-1]), self._left - len(found[-1])
                continue
            if (end := data.find(b"\n", at)) < 0:
                self._frame += data[at:]
                break
            line, at, self._frame = self._frame + data[at:end], end + 1, b""
            if size := line.partition(b";")[0].strip():  # empty is the end of the chunk before it
                self._left = int(size, 16)
                if self._left < 0:
                    raise ValueError(f"a chunk of {self._left} bytes")
                self._is_over = not self._left
        return b"".join(found)


def _decompressor(coding: str) -> Callable[[bytes], bytes]:
    """What decompresses, and gives no more than `LARGEST` bytes at once: few bytes may become very many."""
    if coding in ("gzip", "x-gzip", "deflate"):
        return _Zlib().feed
    if coding == "br":
        try:
            import brotli

            take = partial(brotli.Decompressor().process, output_buffer_limit=LARGEST)
            take(b"")
        except (ImportError, TypeError):
            raise ValueError(
                "a body compressed by brotli is read where the package brotli is installed, 1.2 or newer"
            ) from None
        return take
    raise ValueError(f"a body is compressed by {coding!r}, which is not read here")


class _Zlib:
    """gzip, also of several members, and deflate in both its forms (RFC 9110, 8.4.1.2)."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        found, room = [], LARGEST
        while data and room and not self._is_over:
            if self._stream is None:
                # gzip's head begins with 0x1f, zlib's with an 8 as the low half of a byte; or there is none.
                has_head = data[0] == 0x1F or data[0] & 0x0F == 8
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32 if has_head else -zlib.MAX_WBITS)
            elif self._stream.eof:
                if data[0] != 0x1F:  # no other member: padding
                    self._is_over = True
                    break
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
            found.append(self._stream.decompress(data, room))
            room -= len(found[-1])
            data = self._stream.unused_data
        return b"".join(found)
