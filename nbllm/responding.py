"""OpenAI's Responses API: `aresponses` and its synchronous twin.

Where a provider speaks it, its own endpoint is asked; elsewhere it is built on chat completions, and nbllm
keeps the conversation: in memory, and in the log, where another kernel finds it. Responses that follow each
other are one session. A call's way is `calls`'.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from . import calls, failures, log, loops, tagging, tracing
from .client import whole_answer
from .exceptions import UsageProblem
from .kept import kept
from .options import take_options
from .providers import HttpRequest, Route, openai, openai_responses
from .providers.encoding import encode
from .response_bridge import to_chat
from .response_events import ChunkEvents
from .response_output import assistant_message, finish_reason, from_chat
from .response_types import Response, ResponseEvent, chat_usage
from .streaming import CompletionStream, EventStream
from .types import ChatCompletion, mimebundle, parse

T = TypeVar("T")

KEPT_CONVERSATIONS = 1000
"""How many conversations stay in memory; older ones are in the log, where contents are kept."""
KEPT_SESSIONS = 10_000
"""Of how many responses the session stays in memory; those of older ones are in the log."""
LOG_SECONDS = 2.0
"""How long a call waits for the log to tell the session of the response that it follows."""


async def aresponses(
    input: Any, model: str, *, stream: bool = False, previous_response_id: str | None = None, **params: Any
) -> Response | ResponseStream | BridgedStream:
    """Ask a model by OpenAI's Responses API, on every provider.

    Args:
        input: A text, or a list of items as in OpenAI's API reference.
        model: As for `acompletion`.
        stream: True gives a stream of events, as soon as the answer begins.
        previous_response_id: The `id` of the response that this one follows. On providers without the
            Responses API nbllm looks its conversation up, also in another kernel as long as the log holds
            the contents. Unless another session was chosen, this response belongs to the session of that
            one; where nothing is known of it, its id is the session.
        **params: OpenAI's parameters (instructions, tools, max_output_tokens, reasoning, …), and the options
            of all verbs: see `acompletion`. The id of a `conversation`, which OpenAI keeps, is the session
            unless another one was chosen.

    Returns:
        A `Response` with `.output_text`; or a stream of events, whose `.response` is that at the end.

    Raises:
        UsageProblem: A value that can't work, or an unknown `previous_response_id`; nothing was sent.
        UnsupportedParamsError: A parameter that the provider has no equivalent for, such as `conversation`
            on those without the Responses API; nothing was sent.
        APIError: The call failed.
    """
    options = take_options(params)
    if options.session_id is None and tagging.chosen_session() is None:
        options.session_id = await _session_followed(params.get("conversation"), previous_response_id)
    stream = bool(stream)
    turn = _Turn(input, params, previous_response_id, await _logged_conversation(previous_response_id))

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        if not route.provider.has_responses:
            return turn.chat_request(route, stream, added, options.metadata)
        given = {**params, "previous_response_id": previous_response_id}
        return openai_responses.responses_request(route, input, stream, given, added, options.metadata)

    async def read(
        call: tracing.Call, response: aiohttp.ClientResponse, route: Route
    ) -> Response | ResponseStream | BridgedStream:
        if route.provider.has_responses:
            if stream:
                return ResponseStream(call, response, route)
            return await _whole(call, response, route)
        if stream:
            return BridgedStream(_ChatStream(call, response, route, turn))
        return await _whole_bridged(call, response, route, turn)

    return await calls.run("responses", model, options, translate, read, stream=stream)


def responses(
    input: Any, model: str, *, stream: bool = False, previous_response_id: str | None = None, **params: Any
) -> Response | ResponseStream | BridgedStream:
    """`aresponses` for synchronous code: any cell, script or thread. A stream is iterated with `for`."""
    return loops.run_sync(
        aresponses(input, model, stream=stream, previous_response_id=previous_response_id, **params)
    )


# -- sessions --------------------------------------------------------------------------------------


async def _session_followed(conversation: Any, previous: Any) -> str | None:
    """The session of what a response goes on with; None where that gives none."""
    if conversation is not None:  # its id, or an object with that
        found = conversation.get("id") if isinstance(conversation, Mapping) else conversation
    elif previous and isinstance(previous, str):
        found = _state.sessions.get(previous) or await _logged_session(previous) or previous
    else:
        return None
    try:
        return tagging.check_session_id(found)
    except UsageProblem:  # nobody meant it as a session's name
        return None


async def _logged_session(response_id: str) -> str | None:
    return await _asked(log.session_of, response_id)


async def _logged_conversation(response_id: Any) -> tuple[str, str] | None:
    """What the log has of a response that is built on chat, where memory has lost it."""
    if not isinstance(response_id, str) or response_id in _state.conversations:
        return None
    return await _asked(log.content_of, response_id) if _OURS.fullmatch(response_id) else None


async def _asked(question: Callable[[str], T | None], response_id: str) -> T | None:
    # In a thread, since the log may be far away, or locked by another process.
    try:
        return await asyncio.wait_for(asyncio.to_thread(question, response_id), LOG_SECONDS)
    except Exception:  # what it would have said is not worth the call
        return None


def _keep_session(response_id: str | None, session_id: str) -> None:
    """Keep the session of a response for those that follow it."""
    if isinstance(response_id, str):  # servers say what they like
        _keep(_state.sessions, response_id, session_id, KEPT_SESSIONS)


# -- the provider's own ----------------------------------------------------------------------------


async def _whole(call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> Response:
    body, answer = await calls.read_answer(call, response, route, openai_responses.responses_response)
    if answer.error is not None:
        raise failures.from_body(response, encode({"error": answer.error}), call, route)
    if answer.object != "response" and not answer.output:
        raise failures.from_body(response, body, call, route)
    _keep_session(answer.id, call.session_id)
    if (record := call.record) is not None:
        if record.content is not None:
            record.response_content = body
        record.finish_reason = finish_reason(answer)
        tracing.note_answer(record, answer.id, answer.model, chat_usage(answer.usage))
        answer.__dict__["_request"] = record
    return answer


class ResponseStream(EventStream[ResponseEvent]):
    """A response as it comes: `async for event in stream`, or `for` in synchronous code.

    Leaving the loop early closes the answer and frees its connection. `response` holds what has come so far,
    and at the end all of it.
    """

    _assembly: openai_responses.ResponseAssembly

    def __init__(self, call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> None:
        super().__init__(call, response, route, openai_responses.ResponseAssembly())
        self._decode = openai_responses.event_decoder()

    @property
    def response(self) -> Response:
        """The response so far."""
        answer = self._assembly.response
        answer.__dict__["_request"] = self.request
        return answer

    @property
    def output_text(self) -> str:
        """The text so far."""
        return self.text

    def _read(self, data: bytes) -> ResponseEvent | None:
        event = self._decode(data)
        if event is None:
            return None
        if (error := openai_responses.event_error(event)) is not None:
            raise self._bad(encode({"error": error}))
        if self._assembly.add(event) and self._awaits_content:
            self._note_first_content()
        return event

    def _is_finished(self) -> bool:
        return self._assembly.finished

    def _note_answer(self, record: tracing.Record) -> None:
        answer = self._assembly.response
        _keep_session(answer.id, record.session_id)
        record.finish_reason = finish_reason(answer)
        tracing.note_answer(record, answer.id, answer.model, chat_usage(answer.usage))
        if record.content is not None and self._assembly.count:
            record.response_content = encode(answer.model_dump(exclude_none=True))


# -- built on chat ---------------------------------------------------------------------------------


class _Turn:
    """One turn of a conversation that nbllm keeps."""

    def __init__(
        self, input: Any, params: Mapping[str, Any], previous: str | None, logged: tuple[str, str] | None
    ) -> None:
        self.input = input
        self.params = params
        self.previous = previous
        self.logged = logged
        self.messages: list[dict[str, Any]] = []

    def chat_request(
        self,
        route: Route,
        stream: bool,
        extra_body: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> HttpRequest:
        history = [] if self.previous is None else _conversation(self.previous, self.logged)
        messages, params = to_chat(history, self.input, self.params)
        request = route.dialect.chat_request(route, messages, stream, params, extra_body, metadata)
        # Instructions hold for one turn only, as in OpenAI's API.
        self.messages = messages[1:] if self.params.get("instructions") else messages
        return replace(request, content=encode({"model": route.model, "messages": self.messages}))

    def keep(self, response_id: str, completion: ChatCompletion) -> None:
        """Keep the conversation, with its answer, under the response's id."""
        messages = [*self.messages, assistant_message(completion)]
        _keep(_state.conversations, response_id, messages, KEPT_CONVERSATIONS)


async def _whole_bridged(
    call: tracing.Call, response: aiohttp.ClientResponse, route: Route, turn: _Turn
) -> Response:
    completion = await whole_answer(call, response, route)
    response_id = _response_id(call)
    turn.keep(response_id, completion)
    _keep_session(response_id, call.session_id)
    answer = from_chat(completion, response_id, turn.previous)
    if (record := call.record) is not None:
        record.response_id = response_id
        if record.content is not None:  # in OpenAI's format, in which `_conversation` reads it
            record.response_content = encode(completion.model_dump(exclude_none=True))
        answer.__dict__["_request"] = record
    return answer


class _ChatStream(CompletionStream):
    """The chat beneath a bridged stream; its record bears the response's id."""

    def __init__(
        self, call: tracing.Call, response: aiohttp.ClientResponse, route: Route, turn: _Turn
    ) -> None:
        super().__init__(call, response, route, show_usage=True, parse=None)
        self.response_id = _response_id(call)
        self.turn = turn

    def _note_answer(self, record: tracing.Record) -> None:
        super()._note_answer(record)
        record.response_id = self.response_id
        _keep_session(self.response_id, record.session_id)
        if self._is_finished():
            self.turn.keep(self.response_id, self.completion)


class BridgedStream:
    """A response as it comes, from a provider that speaks chat only; used as `ResponseStream` is."""

    def __init__(self, chat: _ChatStream) -> None:
        self._chat = chat
        self._events = ChunkEvents(chat.response_id, chat.turn.previous)
        self.request: tracing.Record | None = chat.request
        """The trace record of the request."""

    @property
    def response(self) -> Response:
        """The response so far."""
        answer = from_chat(self._chat.completion, self._chat.response_id, self._chat.turn.previous)
        answer.__dict__["_request"] = self.request
        return answer

    @property
    def output_text(self) -> str:
        """The text so far."""
        return self._chat.text

    text = output_text

    async def __aiter__(self) -> AsyncIterator[ResponseEvent]:
        async for chunk in self._chat:
            for event in self._events.feed(chunk):
                yield event
        for event in self._events.finish(self._chat.completion):
            yield event

    def __iter__(self) -> Iterator[ResponseEvent]:
        for chunk in self._chat:
            yield from self._events.feed(chunk)
        yield from self._events.finish(self._chat.completion)

    async def aclose(self) -> None:
        """Stop reading and free the connection; after the end it does nothing."""
        self._chat.close()

    def close(self) -> None:
        """`aclose` for synchronous code."""
        self._chat.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chat.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chat.close()

    def __repr__(self) -> str:
        return repr(self._chat).replace("_ChatStream", "BridgedStream")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.text, self)


class _State:
    """The sessions of the newest responses, and the conversations of bridged ones, by their ids."""

    def __init__(self) -> None:
        self.sessions: OrderedDict[str, str] = OrderedDict()
        self.conversations: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()


_state = kept(__name__, _State)


def _keep(values: OrderedDict[str, T], response_id: str, value: T, most: int) -> None:
    values[response_id] = value
    while len(values) > most:
        values.popitem(last=False)


def _response_id(call: tracing.Call) -> str:
    return f"resp_{call.call_id}"


_OURS = re.compile(r"resp_[0-9a-f]{8}-c\d+")


def rename_session(old: str, new: str) -> None:
    """Have the responses that follow those of `old` be grouped under `new`."""
    for response_id, name in list(_state.sessions.items()):
        if name == old:
            _state.sessions[response_id] = new


def _conversation(response_id: str, logged: tuple[str, str] | None) -> list[dict[str, Any]]:
    """The chat messages up to a response, and that response."""
    if isinstance(response_id, str) and (known := _state.conversations.get(response_id)) is not None:
        return known
    if logged is not None:
        request, answer = logged
        messages = parse(request).get("messages")
        if isinstance(messages, list):
            return [*messages, assistant_message(openai.chat_response(answer.encode()))]
    raise UsageProblem(
        f"previous_response_id {response_id!r} is unknown: its conversation is neither in this kernel nor in "
        "the log (contents may be switched off)"
    )
