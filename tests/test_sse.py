"""Server-sent events, however the network cuts them; the reference is written from the standard."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.providers.sse import EventDecoder

BOM = b"\xef\xbb\xbf"


def reference(stream: bytes) -> list[bytes]:
    """The data of the events of a whole stream, after WHATWG HTML 9.2.6, "Interpreting an event stream".

    But for blank ones, which the standard would dispatch: servers send them to keep the connection alive.
    """
    stream = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in stream.split(b"\n")[:-1]:
        if not line:
            if (event := b"\n".join(data)).strip():
                events.append(event)
            data = []
        elif line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" "))
    return events


def decoded(pieces: list[bytes], *, finish: bool = False) -> list[bytes]:
    decoder = EventDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.finish() if finish else events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


STREAMS = {
    "LF": b"data: one\n\ndata: two\n\n",
    "CRLF": b"data: one\r\n\r\ndata: two\r\n\r\n",
    "CR": b"data: one\r\rdata: two\r\rdata: x\r\r",
    "mixed": b"data: one\r\n\ndata: two\r\r\ndata: three\n\r\n",
    "BOM": BOM + b"data: one\n\n",
    "multi-byte": "data: größer 🐧 ✓\r\n\r\ndata: 漢字\n\n".encode(),
    "several lines": b"data: one\ndata: two\ndata:\ndata: four\n\n",
    "comments": b": keep-alive\n\ndata: one\n:\n: x\ndata: two\n\n:\n\n",
    "other fields": b"event: message\nid: 7\nretry: 10\ndata: one\n\nevent: ping\n\n",
    "no space": b"data:one\n\ndata:  two\n\ndata:\tthree\n\n",
    "looks like data": b"datum: no\ndataset: no\n data: no\ndata: yes\n\n",
    "empty": b"data:\n\ndata: \n\ndata: one\n\n",
    "empty lines": b"\n\n\ndata: one\n\n\n\n\r\n\r\ndata: two\n\n",
    "colons": b'data: {"a": "b:c"}\n\n',
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_cut_gives_the_same_events(name: str) -> None:
    stream = STREAMS[name]
    expected = reference(stream)
    assert expected
    assert decoded([bytes([byte]) for byte in stream] + [b":\n"]) == expected
    for first in range(len(stream) + 1):
        assert decoded([*cut(stream, [first]), b":\n"]) == expected
        for second in range(first, len(stream) + 1):
            assert decoded([*cut(stream, [first, second]), b":\n"]) == expected


LINES = st.lists(
    st.sampled_from(
        [b"data: x", b"data:", b"data:  ", b": c", b"id: 1", b"data: \xc3\xbc", b"", b"", b"dat", b"a\0"]
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_stream_in_any_pieces(data: st.DataObject) -> None:
    lines = data.draw(LINES)
    stream = b"".join(line + data.draw(ENDS) for line in lines)
    if data.draw(st.booleans()):
        stream = BOM + stream
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    # A last CR may be half a CRLF: what follows decides. A comment follows.
    assert decoded([*cut(stream, places), b":\n"]) == reference(stream + b":\n")


def test_an_event_is_given_as_soon_as_it_is_complete() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: one\n\ndata: tw") == [b"one"]
    assert decoder.feed(b"o\n") == []
    assert decoder.feed(b"\n") == [b"two"]
    assert decoder.finish() == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r"])
def test_a_last_event_without_its_empty_line_is_given_at_the_end(end: bytes) -> None:
    assert decoded([b"data: one\n\n", b"data: last" + end], finish=True) == [b"one", b"last"]


@pytest.mark.parametrize("stream", [b"", BOM, BOM[:1], BOM[:2], b"\n", b": only a comment"])
def test_a_stream_without_events_has_none(stream: bytes) -> None:
    assert decoded([stream], finish=True) == []


def test_a_bom_counts_only_at_the_start() -> None:
    assert decoded([b"data: one\n\n", BOM + b"data: no\n\n"]) == [b"one"]


def test_half_a_bom_is_no_bom() -> None:
    assert decoded([BOM[:2], b"data: no\ndata: yes\n\n"]) == [b"yes"]


def test_a_large_event_in_small_pieces() -> None:
    text = b"0123456789" * 100_000
    stream = b"data: " + text + b"\n\n"
    pieces = [stream[at : at + 16_384] for at in range(0, len(stream), 16_384)]
    assert decoded(pieces) == [text]
