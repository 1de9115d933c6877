"""The endpoints of the demo server: from an aiohttp request to its response.

Owns routing, pace, misbehaviour (hang, break, stall, …) and when an outcome is counted. What is answered is
`demo_chat`'s; the life of the server is `demo`'s, which calls this. The handler runs under aiohttp's
`handler_cancellation`: when the client goes away, it is cancelled wherever it waits.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import msgspec
from aiohttp import web

from . import demo_chat
from .demo_chat import Answer, ChatRequest, Problem
from .demo_counts import Counts, Exchange

DONE = b"data: [DONE]\n\n"

# Tokens do not come like clockwork. The mean is 1.
RHYTHM = (0.6, 1.3, 0.9, 1.5, 0.7)

# A whole answer comes after its first delay and this part of the time that streaming it would take.
WHOLE_ANSWER_SHARE = 0.3

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Endpoints:
    """Answers every request to one demo server."""

    def __init__(self, counts: Counts, pace: float) -> None:
        self.stopping = False
        self._counts = counts
        self._pace = pace
        self._flaky_refused: set[int] = set()
        self._routes: dict[tuple[str, str], Endpoint] = {
            ("POST", "/chat/completions"): self._chat,
            ("GET", "/models"): self._models,
            ("GET", "/stats"): self._stats,
            ("POST", "/stats/reset"): self._reset,
            ("GET", "/health"): self._health,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler for `web.Server`."""
        path = request.path.removeprefix("/v1").rstrip("/")
        endpoint = self._routes.get((request.method, path))
        if endpoint != self._chat:
            self._counts.other_request(request.protocol)
        try:
            if endpoint is not None:
                return await endpoint(request)
            if request.method == "GET" and path.startswith("/models/"):
                return _json(demo_chat.model_object(path.removeprefix("/models/")))
            raise self._no_route(request.method, path)
        except Problem as problem:
            return _error(problem)

    def _no_route(self, method: str, path: str) -> Problem:
        if allowed := [m for m, p in self._routes if p == path]:
            return Problem(405, f"{path} takes {allowed[0]}, not {method}.", code="method_not_allowed")
        known = ", ".join(f"{m} {p}" for m, p in self._routes)
        return Problem(404, f"The demo server has no {path or '/'}. It has: {known}.", code="unknown_url")

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(demo_chat.models_list())

    async def _stats(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(self._counts.stats())

    async def _reset(self, request: web.BaseRequest) -> web.StreamResponse:
        self.reset()
        return _json(self._counts.stats())

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json({"status": "ok"})

    def reset(self) -> None:
        """Zero the counters, and let `flaky` begin anew."""
        self._counts.reset()
        self._flaky_refused.clear()

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = self._counts.model_request(request.protocol)
        try:
            return await self._answer(request, exchange)
        except Problem as problem:
            exchange.settle("failed")
            return _error(problem, exchange)
        except (asyncio.CancelledError, ConnectionError):
            if exchange.outcome != "failed":  # else it is we who dropped the connection
                exchange.settle("failed" if self.stopping else "disconnected")
            # aiohttp logs a ConnectionError as a crash of the handler; a cancelled handler is silent.
            raise asyncio.CancelledError from None

    async def _answer(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        body = await _read_body(request)
        exchange.received(len(body))
        chat = demo_chat.parse_request(body)
        behaviour = demo_chat.MODELS[chat.model].behaviour
        self._refuse(chat, behaviour)
        if behaviour == "hang":
            await _forever()
        answer = demo_chat.make_answer(chat)
        if chat.stream:
            exchange.streamed()
            return await self._send_stream(request, exchange, chat, answer)
        return await self._send_whole(request, exchange, chat, answer)

    def _refuse(self, chat: ChatRequest, behaviour: demo_chat.Behaviour) -> None:
        """Raise the error that the model gives for an answer, if it does."""
        if behaviour == "error":
            raise Problem(500, "The demo model 'error' always fails.", kind="server_error")
        refused = behaviour == "rate-limited"
        if behaviour == "flaky":
            prompt = zlib.crc32(msgspec.json.encode(chat.messages, order="sorted"))
            refused = prompt not in self._flaky_refused
            self._flaky_refused ^= {prompt}
        if refused:
            wait = demo_chat.RETRY_AFTER_S
            message = f"Rate limit reached for the demo model '{chat.model}'. Try again in {wait} s."
            raise Problem(429, message, code="rate_limit_exceeded", kind="requests", retry_after=wait)

    async def _send_stream(
        self, request: web.BaseRequest, exchange: Exchange, chat: ChatRequest, answer: Answer
    ) -> web.StreamResponse:
        model = demo_chat.MODELS[chat.model]
        events = [_event(chunk) for chunk in answer.chunks(include_usage=chat.include_usage)]
        headers = _headers() | {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
        }
        response = web.StreamResponse(headers=headers)
        await self._pause(model.first_s)
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        due = loop.time()
        partial = model.behaviour in ("break", "stall")
        for event, rhythm in zip(events[: len(events) // 2] if partial else events, itertools.cycle(RHYTHM)):
            exchange.sending(len(event))
            await response.write(event)
            due += model.token_s / chat.n * rhythm * self._pace
            await asyncio.sleep(due - loop.time())
        if partial:
            await self._break_off(request, exchange, model)
        self._settle_ok(exchange, answer, len(DONE))
        await response.write_eof(DONE)
        return response

    async def _send_whole(
        self, request: web.BaseRequest, exchange: Exchange, chat: ChatRequest, answer: Answer
    ) -> web.StreamResponse:
        model = demo_chat.MODELS[chat.model]
        body = msgspec.json.encode(answer.completion())
        await self._pause(model.first_s + WHOLE_ANSWER_SHARE * model.token_s * len(answer.choices[0]))
        if model.behaviour in ("break", "stall"):
            response = web.StreamResponse(headers=_headers() | {"Content-Type": "application/json"})
            response.content_length = len(body)
            await response.prepare(request)
            half = body[: len(body) // 2]
            exchange.sending(len(half))
            await response.write(half)
            await self._break_off(request, exchange, model)
        self._settle_ok(exchange, answer, len(body))
        return web.Response(body=body, content_type="application/json", headers=_headers())

    async def _break_off(
        self, request: web.BaseRequest, exchange: Exchange, model: demo_chat.DemoModel
    ) -> NoReturn:
        """End half an answer as the model does: drop the connection, or fall silent."""
        if model.behaviour == "break":
            exchange.settle("failed")
            if request.transport is not None:
                request.transport.abort()
        await _forever()

    def _settle_ok(self, exchange: Exchange, answer: Answer, last_bytes: int) -> None:
        """Count a success, with what is about to be sent: a client that has it all finds it counted."""
        exchange.sending(last_bytes)
        exchange.settle(
            "ok",
            prompt_tokens=answer.usage["prompt_tokens"],
            completion_tokens=answer.usage["completion_tokens"],
        )

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._pace)


async def _read_body(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        # Not request.read(): that refuses more than 1 MB, and pictures in messages are larger.
        return await request.content.read()
    except web.RequestPayloadError as error:
        raise Problem(400, f"The body of the request could not be read: {error}.") from error


async def _forever() -> NoReturn:
    """Wait until the client goes away, which cancels."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets this future")


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _headers() -> dict[str, str]:
    return {"x-request-id": f"req_demo_{uuid.uuid4().hex}"}


def _json(body: Any, status: int = 200, extra: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers=_headers() | (extra or {}),
    )


def _error(problem: Problem, exchange: Exchange | None = None) -> web.Response:
    extra = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    response = _json(problem.body, problem.status, extra)
    if exchange is not None:
        exchange.sending(response.content_length or 0)
    return response
