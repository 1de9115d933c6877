"""The works that are measured on both sides in one process: what is done, how much, and its limit.

A work costs something per item (a request, a chunk, a stream) and yields the texts it got, which are compared
with what the server sent after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks import canned, formats
from benchmarks.sides import Client, Side


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds per item, and the texts of all requests that were made for it."""

    cost_s: float
    texts: list[str]


@dataclass(frozen=True)
class Work:
    """Something to measure; `size` is how much of it makes one round."""

    name: str
    title: str
    unit: str
    limit: float | None
    measure: Callable[[Side, int], Awaitable[Sample]]
    text: str
    size: int
    quick_size: int
    rounds: int
    by_line: bool = False


async def sequential(side: Client, size: int) -> Sample:
    """CPU time per request, one after the other."""
    start = time.process_time()
    texts = [await side.reply("reply") for _ in range(size)]
    side.settle()
    return Sample((time.process_time() - start) / size, texts)


async def concurrent(side: Client, size: int) -> Sample:
    """CPU time per request, 100 at once."""
    start = time.process_time()
    texts = []
    for _ in range(size):
        texts += await asyncio.gather(*(side.reply("reply") for _ in range(100)))
    side.settle()
    return Sample((time.process_time() - start) / len(texts), texts)


async def throughput(side: Side, size: int) -> Sample:
    """Wall time per request, 500 at once at a server that takes 50 ms."""
    start = time.perf_counter()
    texts = []
    for _ in range(size):
        texts += await asyncio.gather(*(side.reply("slow") for _ in range(500)))
    side.settle()
    return Sample((time.perf_counter() - start) / len(texts), texts)


async def stream(side: Client, size: int, mode: str = "stream") -> Sample:
    """CPU time per chunk of streams that come as fast as they are read."""
    start = time.process_time()
    texts = [await side.stream(mode) for _ in range(size)]
    side.settle()
    return Sample((time.process_time() - start) / (size * canned.STREAM_CHUNKS), texts)


async def extra(side: Side, size: int) -> Sample:
    """The same, with chunks that hold fields which OpenAI's format does not know."""
    return await stream(side, size, "extra")


async def tokens(side: Side, size: int) -> Sample:
    """CPU time per chunk of 100 streams at once that get a token each 10 ms."""
    start = time.process_time()
    texts = []
    for _ in range(size):
        texts += await asyncio.gather(*(side.stream("tokens") for _ in range(100)))
    side.settle()
    return Sample((time.process_time() - start) / (len(texts) * canned.TOKEN_CHUNKS), texts)


async def first(side: Side, size: int) -> Sample:
    """Median wall time from the call to the first text of a stream."""
    pairs = [await side.first("first") for _ in range(size)]
    side.settle()
    return Sample(statistics.median(seconds for seconds, _ in pairs), [text for _, text in pairs])


async def anthropic(side: Side, size: int) -> Sample:
    """CPU time per request in Anthropic's format, one after the other."""
    return await _replies(side, size, "anthropic")


async def gemini(side: Side, size: int) -> Sample:
    """The same in Gemini's format."""
    return await _replies(side, size, "gemini")


async def anthropic_stream(side: Side, size: int) -> Sample:
    """CPU time per event of Anthropic's streams, as fast as they are read."""
    return await _streams(side, size, "anthropic")


async def gemini_stream(side: Side, size: int) -> Sample:
    """The same of Gemini's."""
    return await _streams(side, size, "gemini")


async def embeddings(side: Client, size: int) -> Sample:
    """CPU time per request for 64 vectors, to an array of float32."""
    start = time.process_time()
    shapes = [await side.embeddings("embeddings") for _ in range(size)]
    side.settle()
    return Sample((time.process_time() - start) / size, shapes)


async def _replies(side: Side, size: int, name: str) -> Sample:
    start = time.process_time()
    texts = [await side.format_reply(name) for _ in range(size)]
    side.settle()
    return Sample((time.process_time() - start) / size, texts)


async def _streams(side: Side, size: int, name: str) -> Sample:
    start = time.process_time()
    texts = [await side.format_stream(name) for _ in range(size)]
    side.settle()
    return Sample((time.process_time() - start) / (size * formats.STREAM_CHUNKS), texts)


_STREAM_TEXT = canned.text(canned.STREAM_CHUNKS)
_TOKENS_TEXT = canned.text(canned.TOKEN_CHUNKS)
_FIRST_TEXT = canned.text(canned.FIRST_CHUNKS)

_REPLY = canned.REPLY_TEXT
_FORMAT_TEXT = formats.STREAM_TEXT
_SHAPE = str((formats.TEXTS, formats.DIMENSIONS))

# Many short rounds: the median of their ratios is then steady, even on a machine that does other things too.
WORKS = [
    Work("sequential", "sequential", "CPU µs/request", 1.2, sequential, _REPLY, 300, 150, 41),
    Work("concurrent", "100 at once", "CPU µs/request", 1.25, concurrent, _REPLY, 3, 2, 41),
    Work("throughput", "500 at once, 50 ms server", "requests/s", 1.2, throughput, _REPLY, 1, 1, 31),
    Work("stream", "5000-chunk stream", "CPU µs/chunk", 1.2, stream, _STREAM_TEXT, 3, 1, 31, True),
    Work("extra", "… with unknown fields", "CPU µs/chunk", None, extra, _STREAM_TEXT, 3, 1, 21),
    Work("tokens", "100 streams, 10 ms a token", "CPU µs/chunk", 1.35, tokens, _TOKENS_TEXT, 1, 1, 9, True),
    Work("anthropic", "Anthropic's format", "CPU µs/request", 1.4, anthropic, _REPLY, 300, 150, 21),
    Work("gemini", "Gemini's format", "CPU µs/request", 1.4, gemini, _REPLY, 300, 150, 21),
    Work(
        "anthropic-stream",
        "Anthropic's stream",
        "CPU µs/chunk",
        1.4,
        anthropic_stream,
        _FORMAT_TEXT,
        3,
        2,
        21,
    ),
    Work("gemini-stream", "Gemini's stream", "CPU µs/chunk", 1.4, gemini_stream, _FORMAT_TEXT, 3, 2, 21),
    Work("embeddings", "64 embeddings of 1536", "CPU µs/request", 1.0, embeddings, _SHAPE, 20, 10, 21),
    Work("first", "time to first content", "µs", 1.25, first, _FIRST_TEXT, 40, 30, 31),
]
