"""HTTP messages read from what went over the wire, however it was cut."""

from __future__ import annotations

import gzip
import itertools
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm import wire
from tests.servers import head, piece

BODY = b'data: {"a": 1}\r\n\r\ndata: \xf0\x9f\x90\xa7\n\n' * 3


def cut(data: bytes, places: list[int]) -> list[tuple[float, bytes]]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [(float(at), data[start:end]) for at, (start, end) in enumerate(itertools.pairwise(edges))]


def chunked(data: bytes, size: int) -> bytes:
    parts = [piece(data[start : start + size]) for start in range(0, len(data), size)]
    return b"".join(parts) + b"0\r\nTrailer: x\r\n\r\n"


def headless(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


FORMS = {
    "length": head(Content_Length=len(BODY)) + BODY,
    "until close": head() + BODY,
    "chunked": head(Transfer_Encoding="chunked") + chunked(BODY, 5),
    "chunk extensions": head(Transfer_Encoding="Chunked")
    + b"2;x=y\r\n"
    + BODY[:2]
    + b"\r\n"
    + chunked(BODY[2:], 9),
    "gzip": head(Content_Encoding="gzip") + gzip.compress(BODY),
    "deflate": head(Content_Encoding="deflate") + zlib.compress(BODY),
    "deflate without a head": head(Content_Encoding="deflate") + headless(BODY),
    "gzip of two members, padded": head(Content_Encoding="gzip")
    + gzip.compress(BODY[:20])
    + gzip.compress(BODY[20:])
    + bytes(10),
    "gzip in chunks": head(Transfer_Encoding="chunked", Content_Encoding="gzip")
    + chunked(gzip.compress(BODY), 3),
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + head(Content_Length=len(BODY)) + BODY,
}


@pytest.mark.parametrize("form", FORMS)
@given(places=st.lists(st.integers(0, 500), max_size=12))
def test_a_message_is_the_same_however_it_was_cut(form: str, places: list[int]) -> None:
    message = wire.read(cut(FORMS[form], places))
    assert message is not None
    assert message.body == BODY
    times = [now for now, _ in message.pieces]
    assert times == sorted(times)


def test_each_piece_has_the_time_at_which_it_came() -> None:
    first, *rest = (piece(word) for word in (b"one", b"two", b"three"))
    whole = [
        (1.0, head(Transfer_Encoding="chunked")),
        (2.0, first),
        (3.0, rest[0][:4]),
        (4.0, rest[0][4:] + rest[1]),
    ]
    message = wire.read(whole)
    assert message is not None
    assert message.pieces == [(2.0, b"one"), (3.0, b"t"), (4.0, b"wothree")]


def test_half_a_head_is_no_message() -> None:
    assert wire.read([]) is None
    assert wire.read([(0.0, b"HTTP/1.1 200 OK\r\nContent-Type: a")]) is None


def test_a_body_that_broke_off_is_what_came_of_it() -> None:
    message = wire.read([(0.0, head(Transfer_Encoding="chunked") + b"10\r\nabc")])
    assert message is not None
    assert message.body == b"abc"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, coding: str) -> None:
    if coding == "br":
        bomb = pytest.importorskip("brotli").compress(bytes(1 << 24))
    else:
        bomb = (gzip if coding == "gzip" else zlib).compress(bytes(1 << 24))  # type: ignore[attr-defined]
    monkeypatch.setattr(wire, "LARGEST", 100_000)
    tracemalloc.start()
    try:
        whole = head(Content_Encoding=coding, X_Request_Id="r") + bomb
        message = wire.read(cut(whole, list(range(0, len(whole), 100))))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message is not None
    assert message.body == bytes(100_000)
    assert message.headers["x-request-id"] == "r"
    assert most < 1_000_000


def test_very_many_chunks_are_read_in_time_that_is_proportional() -> None:
    def seconds(chunks: int) -> float:
        data = head(Transfer_Encoding="chunked") + b"1\r\nx\r\n" * chunks
        began = time.process_time()
        message = wire.read([(0.0, data)])
        assert message is not None
        assert len(message.body) == chunks
        return time.process_time() - began

    assert min(seconds(80_000) for _ in range(3)) < 8 * min(seconds(20_000) for _ in range(3))


@pytest.mark.parametrize("data", [b"zz\r\nabc", b"-5\r\nabc"])
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|invalid"):
        wire.read([(0.0, head(Transfer_Encoding="chunked") + data)])


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(ValueError, match="'zstd'"):
        wire.read([(0.0, head(Content_Encoding="zstd") + BODY)])


def test_more_than_the_limit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGEST", 10)
    heard = wire.Overheard()
    heard.take_sent(b"12345")
    heard.take_received(1.0, b"1234567890")
    heard.take_received(2.0, b"1")
    assert (heard.sent, heard.received) == ([b"12345"], [])
