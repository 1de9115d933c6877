"""The gateway: OpenAI's API and Anthropic's, served by this process to curl, other languages and processes.

Owns the gateways of this process: their sockets, their start and end, fork. What they answer is
`gateway_endpoints`'. Called by users and the command line. Importing starts nothing.

A gateway lives on nbllm's background loop, in a thread of its own, and sends over that loop's pool: the
settings, log and sessions are the kernel's, the connections are not. On the kernel's own loop it could share
these too, and would be silent for as long as a cell computes, or waits for a `curl` that waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import logging
import math
import os
import secrets
import socket
import threading
from functools import partial
from types import TracebackType
from typing import Any

from aiohttp import web

from .. import loops, masking, pricing
from ..exceptions import UsageProblem
from ..kept import kept
from .gateway_endpoints import Endpoints
from .gateway_requests import LARGEST_BODY

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BACKLOG = 4096
"""New connections that may wait; a program that sends 1000 requests at once opens as many."""
KEEPALIVE_SECONDS = 3600
HEAD_SECONDS = 30.0
"""How long a new connection may take until the head of its first request is there."""
CLOSE_SECONDS = 5

# What aiohttp says of requests that are no HTTP: nothing that a notebook should show.
_logger = logging.getLogger("nbllm.gateway")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


def gateway(port: int = 4000, *, host: str = "127.0.0.1", key: str | None = None) -> Gateway:
    """Let other programs ask models through this process: curl, other languages, any OpenAI client.

    `OpenAI(base_url=gateway.url, api_key="any")` speaks to it, and so does `Anthropic(…)`. Models go by the
    same names as in `acompletion`, keys are those of this process, and each request has its row in the log,
    grouped by `litellm_session_id`, `metadata` or headers as in the verbs. It answers while a cell runs.

    Args:
        port: Where it listens; 0 takes a free port, and each time another one. While a gateway listens on a
            port, a second call gives the same one.
        host: The address. Only this machine reaches the default.
        key: What clients must send as `Authorization: Bearer …` or `x-api-key: …`. None asks for none on this
            machine alone; elsewhere it makes one, and prints it once.

    Returns:
        The running `Gateway`, which is a context manager too: `with nbllm.gateway(0) as gateway:`.

    Raises:
        UsageProblem: The port is taken, or one of the values can't be used.
    """
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise UsageProblem(f"port is a number from 0 to 65535, where 0 takes a free one; got {port!r}")
    if not isinstance(host, str) or not host.strip():
        raise UsageProblem(f"host is an address such as '127.0.0.1'; got {host!r}")
    if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable() and key.strip()):
        raise UsageProblem("the gateway's key must be a text of printable ASCII")
    with _state.lock:
        if (running := _state.gateways.get(port)) is not None:
            if running.host != host or key not in (None, running.key):
                raise UsageProblem(
                    f"a gateway with another host or key listens on port {port}: close() it first, "
                    "or take port=0 for a free one"
                )
            return running
        if made := key is None and not _is_loopback(host):
            key = secrets.token_urlsafe(24)
        masking.keep_secret(key)
        started = Gateway(_listen(host, port), host, key)
        started._start()
        _state.gateways[started.port] = started
    if made:
        print(f"{started!r} asks for this key, which is shown once: {key}")
    return started


class Gateway:
    """A running gateway; `nbllm.gateway()` makes it.

    Attributes:
        host: The address it listens on.
        port: The port it listens on.
        key: What clients must send; None where they need not.
    """

    def __init__(self, listening: socket.socket, host: str, key: str | None) -> None:
        self.host = host
        self.port: int = listening.getsockname()[1]
        self.key = key
        self._socket = listening
        self._server: web.Server | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """Base URL for clients of OpenAI and Anthropic; with `/v1` at its end OpenAI's work as well."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def close(self) -> None:
        """Stop listening, and break off what is under way; after that it does nothing."""
        with _state.lock:
            if _state.gateways.get(self.port) is not self:
                return
            del _state.gateways[self.port]
        self._on_loop(self._serve_no_more())

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = "" if _state.gateways.get(self.port) is self else ", closed"
        return f"<Gateway {self.url}{closed}>"

    def _start(self) -> None:
        self._on_loop(self._serve())

    def _on_loop(self, coro: Any) -> None:
        # In a context of its own: else all its requests would belong to the session and the cell that
        # started it. Those that name no session belong to the kernel's, and to the cell that ran last.
        running = contextvars.Context().run(asyncio.run_coroutine_threadsafe, coro, loops.background())
        running.result(CLOSE_SECONDS)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()

        def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            server.heard(protocol)
            return web.BaseRequest(
                message, payload, protocol, writer, task, loop, client_max_size=LARGEST_BODY
            )

        self._server = server = _Server(
            Endpoints(self.url, self.key, only_local=_is_loopback(self.host)).handle,
            request_factory=request,
            handler_cancellation=True,  # a client that goes away
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,
            logger=_logger,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket, backlog=BACKLOG).start()
        # The price table takes a second to load. It would be that of the first answer, and of all beside it.
        loop.run_in_executor(None, partial(pricing.price_usd, "openai", "gpt-4o-mini", input_tokens=1))

    async def _serve_no_more(self) -> None:
        assert self._runner is not None
        for site in list(self._runner.sites):
            await site.stop()
        # aiohttp would wait for answers that never end; without their connection they are cancelled.
        for transport in self._transports():
            transport.abort()
        await self._runner.cleanup()

    def _transports(self) -> list[asyncio.Transport]:
        connections = self._server.connections if self._server is not None else []
        return [connection.transport for connection in connections if connection.transport is not None]

    def _forget_in_child(self) -> None:
        """After fork: let go of the parent's sockets without disturbing them.

        The thread has not come along, but copies of the sockets have, and the clients of a parent that closes
        would not be told. They are replaced, not closed, because objects of the dead loop hold their numbers.
        """
        null = os.open(os.devnull, os.O_RDWR)
        for inherited in (self._socket, *(t.get_extra_info("socket") for t in self._transports())):
            if inherited is not None and (number := inherited.fileno()) >= 0:
                os.dup2(null, number, inheritable=False)
        os.close(null)


class _Server(web.Server):
    """aiohttp's, which never loses a connection that says nothing.

    Their files are the kernel's. Whoever has opened all of them, and needs no key for that, would keep it
    from reading a file, or from reaching a server.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silent: dict[Any, asyncio.TimerHandle] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > _most_connections():
            transport.abort()
        else:
            self._silent[handler] = self._loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self.heard(handler)
        super().connection_lost(handler, exc)

    def heard(self, handler: web.RequestHandler) -> None:
        """Note that a request has come on a connection, or that it is gone."""
        if (timer := self._silent.pop(handler, None)) is not None:
            timer.cancel()


def _most_connections() -> float:
    """Half of the files that this process may have open: the other half is for those it opens itself."""
    if resource is None:
        return math.inf
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if files == resource.RLIM_INFINITY else files / 2


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UsageProblem(
            f"the gateway can't listen on {host}:{port}: {reason}. "
            "Give another port=, or port=0 for a free one"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _State:
    """The gateways of this process, by port."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gateways: dict[int, Gateway] = {}
        self.parents: list[Gateway] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.after_fork)

    def after_fork(self) -> None:
        self.lock = threading.Lock()  # another thread of the parent may have held it
        for inherited in self.gateways.values():
            inherited._forget_in_child()
            self.parents.append(inherited)  # never collected: its loop would complain
        self.gateways = {}
        loops.after_fork(())  # which the transport sees to once a request was sent


_state = kept(__name__, _State)
