"""A streamed answer: read, decoded, and given back whatever the reader does.

Made by `client` and `responding`. The reader may stop early, be cancelled, or forget the stream: the
connection is given back in each case, and the record ends.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import aiohttp
import msgspec

from . import failures, loops, tracing
from .assembly import Assembly
from .exceptions import APIConnectionError, APIError
from .providers import Route
from .providers.sse import EventDecoder
from .types import ChatCompletion, ChatCompletionChunk, Usage, mimebundle, parse

E = TypeVar("E")
_ERRORS = frozenset({"error", "detail"})  # under which servers tell, within a stream, what went wrong


class _Assembly(Protocol):
    """What has come of an answer."""

    count: int

    @property
    def text(self) -> str: ...


class EventStream(ABC, Generic[E]):
    """An answer that comes as server-sent events, read with `async for`, or `for` in synchronous code.

    A subclass says what an event is (`_read`), when the answer is whole (`_is_finished`), and what of it
    goes on the record (`_note_answer`).
    """

    def __init__(
        self, call: tracing.Call, response: aiohttp.ClientResponse, route: Route, assembly: _Assembly
    ) -> None:
        self._call = call
        self._response = response
        self._route = route
        self._loop = asyncio.get_running_loop()
        self._decoder = EventDecoder()
        self._assembly: Any = assembly
        self._events: deque[bytes] = deque()
        self._start_of_body = b""
        self._awaits_content = True
        self._done = False
        self._ended = False
        self._failure: APIError | None = None
        self.request: tracing.Record | None = call.record
        """The trace record of the request."""

    @property
    def text(self) -> str:
        """The text so far; of several choices, the first one's."""
        text: str = self._assembly.text
        return text

    @abstractmethod
    def _read(self, data: bytes) -> E | None:
        """One event's data as what the reader gets, None where that is nothing; raises what it holds."""

    @abstractmethod
    def _is_finished(self) -> bool:
        """Whether the answer has said that it is at its end."""

    @abstractmethod
    def _note_answer(self, record: tracing.Record) -> None:
        """Put what the answer says of itself on the record."""

    # -- iteration ---------------------------------------------------------------------------------

    def __aiter__(self) -> _Reading[E]:
        return _Reading(self)

    def __iter__(self) -> _Reading[E]:
        return _Reading(self)

    async def __anext__(self) -> E:
        while (chunk := self._next()) is None:
            if not await self._more():
                raise StopAsyncIteration
        return chunk

    def __next__(self) -> E:
        while (chunk := self._next()) is None:
            if not loops.run_sync(self._more()):
                raise StopIteration
        return chunk

    async def batches(self) -> AsyncGenerator[list[tuple[bytes, E | None]]]:
        """Iterate over what each read of the network brings, for those who pass the answer on.

        Yields:
            The events that have come, each as its data and what iteration gives for it: None where that is
            nothing, as for a ping, or `[DONE]`. Never an empty list.

        Raises:
            APIError: As iteration does, once the events before it have been yielded.
        """
        while await self._more():
            events, self._events = self._events, deque()
            batch: list[tuple[bytes, E | None]] = []
            try:
                while events:
                    self._events.append(data := events.popleft())  # alone, so that what comes of it is known
                    batch.append((data, self._next()))
            except APIError:
                if batch:
                    yield batch
                raise
            yield batch

    async def aclose(self) -> None:
        """Stop reading and free the connection; after the end it does nothing."""
        self.close()

    def close(self) -> None:
        """`aclose` for synchronous code."""
        if self._ended:
            self._events.clear()
            return
        if asyncio._get_running_loop() is self._loop or not self._loop.is_running():
            self._abandon()
        else:
            self._loop.call_soon_threadsafe(self._abandon)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the loop or the interpreter is going down
            pass

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        model, count = self._route.asked, self._assembly.count
        return f"<{type(self).__name__} {model} {state}, {count} chunks: {self.text[:60]!r}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.text, self)

    # -- reading -----------------------------------------------------------------------------------

    def _next(self) -> E | None:
        """The next of the events that have come, None where the network must be asked.

        Events are decoded one by one as they are read: one at a time stays in the processor's cache, and what
        nobody reads is not decoded.
        """
        events = self._events
        try:
            while events:
                data = events.popleft()
                if data == b"[DONE]":
                    self._done = True
                elif (item := self._read(data)) is not None:
                    return item
        except msgspec.DecodeError:
            error = self._bad(data)
            self._fail(error)
            raise error from None
        except APIError as error:
            self._fail(error)
            raise
        return None

    async def _more(self) -> bool:
        """Read until events have come; False at the end."""
        if asyncio.get_running_loop() is not self._loop:
            return await loops.on_loop(self._loop, self._more())
        try:
            while not self._events and not self._ended:
                if piece := await self._response.content.readany():
                    self._take(piece)
                else:
                    self._finish()
        except APIError as error:
            self._fail(error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if self._ended:  # closed by another task while this one waited
                return False
            self._note()
            self._fail(failures.from_transport(error, self._call, self._route))
        except BaseException as error:  # cancelled, interrupted
            self._note()
            failures.give_up(self._call, error)
            self._abandon()
            raise
        if self._failure is not None:
            raise self._failure
        return bool(self._events)

    def _take(self, piece: bytes) -> None:
        if not self._assembly.count:
            self._start_of_body = (self._start_of_body + piece)[:1000]
        self._events.extend(self._decoder.feed(piece))

    def _bad(self, data: bytes) -> APIError:
        self._note()
        return failures.from_body(self._response, data, self._call, self._route)

    def _finish(self) -> None:
        """At the end of the body: make sure that it was the end of the answer."""
        assembly = self._assembly
        last = self._decoder.finish()
        if last and (not assembly.count or all(map(_is_whole, last))):
            self._events.extend(last)
            return
        if not assembly.count and not self._done:
            raise self._bad(self._start_of_body)
        self._note()
        if not self._done and not self._is_finished():
            error = APIConnectionError(
                f"{self._route.base_url}: the answer broke off after {len(self.text)} characters",
                model=self._route.asked,
                llm_provider=self._route.provider.name,
            )
            failures.note(self._call, error)
            raise error
        self._ended = True
        if self.request is not None:
            tracing.end(self.request)

    def _fail(self, error: APIError) -> None:
        self._failure = error
        self._ended = True
        self._events.clear()
        self._response.close()

    def _abandon(self) -> None:
        if self._ended:
            return
        record = self.request
        if record is not None and record.wire_ended is not None and record.status == "ok":
            # All of it has come, only nobody has read it: take it in, so that its usage is known.
            try:
                self._take(self._response.content.read_nowait(-1))
                while not self._ended:
                    while self._next() is not None:
                        pass
                    self._finish()
            except APIError as error:
                self._fail(error)
            return
        self._events.clear()
        self._note()
        self._ended = True
        if record is not None and record.status is None:
            record.status = "incomplete"
        self._response.close()
        if record is not None:
            tracing.end(record)  # where the loop is gone, the connection doesn't tell its end

    def _note_first_content(self) -> None:
        self._awaits_content = False
        if self.request is not None:
            tracing.note_first_content(self.request)

    def _note(self) -> None:
        """Put what is known of the answer on the record, before that ends."""
        record = self.request
        if record is None or record.ended:
            return
        record.chunks = self._assembly.count
        self._note_answer(record)


class CompletionStream(EventStream[ChatCompletionChunk]):
    """A chat completion as it comes: `async for chunk in stream`, or `for` in synchronous code.

    Leaving the loop early closes the answer and frees its connection. `text`, `usage` and `completion`
    hold what has come so far, and at the end all of it; so does `reasoning`.
    """

    _assembly: Assembly

    def __init__(
        self,
        call: tracing.Call,
        response: aiohttp.ClientResponse,
        route: Route,
        show_usage: bool,
        parse: Callable[[str], Any] | None,
    ) -> None:
        super().__init__(call, response, route, Assembly())
        self._decode = route.dialect.chunk_decoder()
        self._show_usage = show_usage
        self._parse = parse

    @property
    def reasoning(self) -> str:
        """The model's reasoning so far, where the server tells it; of several choices, the first one's."""
        return self._assembly.reasoning

    @property
    def usage(self) -> Usage | None:
        """Token counts, once the server has sent them at the end; else None."""
        return self._assembly.usage

    @property
    def completion(self) -> ChatCompletion:
        """The answer so far as a `ChatCompletion`, tool calls put together."""
        answer = self._assembly.completion()
        answer.__dict__["_request"] = self.request
        if self._parse is not None:
            answer.__dict__["_parse"] = self._parse
        return answer

    def _read(self, data: bytes) -> ChatCompletionChunk | None:
        chunk = self._decode(data)
        if chunk is None:
            return None
        if not (choices := chunk.choices) and _is_error(chunk):
            raise self._bad(data)
        if self._assembly.add(chunk) and self._awaits_content:
            self._note_first_content()
        return chunk if choices or self._show_usage or chunk.usage is None else None

    def _is_finished(self) -> bool:
        return self._assembly.finish_reason is not None

    def _note_answer(self, record: tracing.Record) -> None:
        assembly = self._assembly
        record.finish_reason = assembly.finish_reason
        first = assembly.first or ChatCompletionChunk()
        tracing.note_answer(record, first.id, first.model, assembly.usage)
        if record.content is not None and assembly.count:
            answer = assembly.completion().model_dump(exclude_none=True)
            record.response_content = msgspec.json.encode(answer)


def _is_error(chunk: ChatCompletionChunk) -> bool:
    return chunk.object == "error" or not _ERRORS.isdisjoint(chunk.__dict__)


def _is_whole(data: bytes) -> bool:
    """Whether the last event of a body that just ends is whole, or the answer broke off in it."""
    try:
        return data == b"[DONE]" or parse(data) is not None
    except msgspec.DecodeError:
        return False


class _Reading(Generic[E]):
    """One loop over a stream. When the loop is left, this goes, and with it the connection."""

    __slots__ = ("_stream",)

    def __init__(self, stream: EventStream[E]) -> None:
        self._stream = stream

    def __aiter__(self) -> _Reading[E]:
        return self

    def __iter__(self) -> _Reading[E]:
        return self

    # Not the stream's own coroutine: this one keeps the reading alive while it waits, at no further cost.
    async def __anext__(self) -> E:
        stream = self._stream
        while (chunk := stream._next()) is None:
            if not await stream._more():
                raise StopAsyncIteration
        return chunk

    def __next__(self) -> E:
        return next(self._stream)

    def __del__(self) -> None:
        self._stream.__del__()
