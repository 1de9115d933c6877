"""The demo model server: OpenAI's chat API over real sockets, with made-up answers.

Owns the life of the server (its thread, its loop, its socket, fork, the end) and the one server of this
process behind `demo/…` models. What it answers is in `demo_endpoints`, what it counted in `demo_counts`.
Called by the client's provider table, the command line and the tests. Importing starts nothing.

Its endpoints, with and without `/v1`: `POST /chat/completions`, `GET /models`, `GET /stats`,
`POST /stats/reset`, `GET /health`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ..kept import kept
from .demo_counts import Counts
from .demo_endpoints import Endpoints

BACKLOG = 4096  # a kernel that sends 1000 requests at once needs as many new connections


class DemoServer:
    """A demo model server in a daemon thread of this process, with a loop of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        keepalive_timeout: Seconds that an idle connection is kept open.
        pace: Factor on every delay of an answer: 2.0 is half as fast, 0 is without delay.
        ssl_context: Serves TLS with it.

    Used as a context manager it listens inside the `with` block.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keepalive_timeout: float = 3600,
        pace: float = 1.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._keepalive_timeout = keepalive_timeout
        self._ssl_context = ssl_context
        self._counts = Counts()
        self._endpoints = Endpoints(self._counts, pace)
        self._server: _CountingServer | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._pid = 0

    @property
    def url(self) -> str:
        """Base URL, as OpenAI clients want it: with `/v1`, without a slash at the end."""
        scheme = "http" if self._ssl_context is None else "https"
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def start(self) -> DemoServer:
        """Listen. Returns when requests can be sent; raises OSError if the port is taken."""
        if self._thread is not None:
            return self
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._socket = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        self.port = self._socket.getsockname()[1]
        self._pid = os.getpid()
        listening: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name="nbllm-demo-server", daemon=True
        )
        self._thread.start()
        listening.result()
        atexit.register(self.stop)  # a daemon thread that the interpreter leaves behind may end noisily
        return self

    def stop(self) -> None:
        """Drop all connections and end the thread. Does nothing if it does not run in this process."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._thread = None
        atexit.unregister(self.stop)
        if self._loop is not None and self._stop is not None and thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(timeout=5)

    def __enter__(self) -> DemoServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What the server counted since its start or the last reset. May be called from any thread.

        Keys:
            connections_opened, connections_closed: TCP connections (with TLS: after the handshake).
            connections_open, connections_open_peak: Open now; most at once.
            connections_with_model_requests: Those that carried a chat request at least.
            requests_total: Chat requests whose headers arrived; the sum of the next four.
            requests_ok: Answered in full with status 200.
            requests_failed: Answered with an error, or dropped by the server.
            requests_disconnected: The client went away before the answer was complete.
            requests_open: Under way now.
            requests_open_peak: Most under way at once.
            requests_streamed: Accepted ones that asked for a stream.
            other_requests: Requests to all other endpoints; they count nowhere else.
            request_body_bytes: Bytes of chat requests' bodies, without headers, decompressed.
            response_body_bytes: Bytes of their answers' bodies, without headers and chunk framing.
            prompt_tokens, completion_tokens: Sums over the requests that are ok.
            connections: One dict for each connection: id, peer ("address:port" of the client), open,
                model_requests, other_requests. Of the closed ones the last 10 000.

        A reset zeroes the events: a request under way then is still open, but not in the new total.
        """
        return self._counts.stats()

    def reset(self) -> None:
        """Zero the counters, as `POST /stats/reset` does."""
        self._endpoints.reset()

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], *, timeout: float = 5.0
    ) -> dict[str, Any]:
        """Block until `condition(stats)` is true and return those stats; TimeoutError if it never is."""
        return self._counts.wait_for(condition, timeout)

    def _run(self, listening: Future[None]) -> None:
        try:
            # Not asyncio.run: nest-asyncio2, applied in the kernel's main thread, replaces it.
            with asyncio.Runner() as runner:
                runner.run(self._serve(listening))
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    async def _serve(self, listening: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._server = _CountingServer(
            self._endpoints.handle,
            counts=self._counts,
            handler_cancellation=True,
            keepalive_timeout=self._keepalive_timeout,
            access_log=None,
        )
        runner = web.ServerRunner(self._server, shutdown_timeout=1)
        await runner.setup()
        assert self._socket is not None
        site = web.SockSite(runner, self._socket, ssl_context=self._ssl_context, backlog=BACKLOG)
        await site.start()
        listening.set_result(None)
        await self._stop.wait()
        self._endpoints.stopping = True
        await site.stop()
        # aiohttp would wait for handlers that never end; without their connection they are cancelled.
        for transport in list(self._server.transports.values()):
            transport.abort()
        await runner.cleanup()

    def _forget_in_child(self) -> None:
        """After fork: let go of the parent's sockets without disturbing them.

        The thread has not come along, but copies of the sockets have; while these live, the client of a
        connection that the parent drops is not told. They are replaced, not closed, because objects of the
        dead loop still hold their numbers.
        """
        transports = list(self._server.transports.values()) if self._server is not None else []
        sockets = [transport.get_extra_info("socket") for transport in transports]
        null = os.open(os.devnull, os.O_RDWR)
        for inherited in (self._socket, *sockets):
            if inherited is not None and (number := inherited.fileno()) >= 0:
                os.dup2(null, number, inheritable=False)
        os.close(null)


class _CountingServer(web.Server):
    """Counts connections where aiohttp tells of them: when they are accepted, and when they are lost."""

    def __init__(self, handler: Any, *, counts: Counts, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.transports: dict[RequestHandler, asyncio.Transport] = {}
        self._counts = counts

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport
        peer = transport.get_extra_info("peername") or ("unknown", 0)
        self._counts.connection_opened(handler, f"{peer[0]}:{peer[1]}")

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.transports.pop(handler, None) is not None:
            self._counts.connection_closed(handler)


class _Shared:
    """The one demo server of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.server: DemoServer | None = None
        self.pid = 0
        self.parents: list[DemoServer] = []

    def get(self) -> DemoServer:
        with self.lock:
            if self.server is None or self.pid != os.getpid():
                if hasattr(os, "register_at_fork") and self.pid == 0:
                    os.register_at_fork(after_in_child=self.after_fork)
                self.server, self.pid = DemoServer().start(), os.getpid()
            return self.server

    def after_fork(self) -> None:
        self.lock = threading.Lock()  # another thread of the parent may have held it
        if self.server is not None:
            self.server._forget_in_child()
            self.parents.append(self.server)  # never collected: its loop would complain
            self.server = None


_shared = kept(__name__, _Shared)


def demo_server() -> DemoServer:
    """The demo server of this process; the first call starts it, also the first after a fork."""
    return _shared.get()


def demo_url() -> str:
    """Base URL (ending in `/v1`) for `demo/…` models: env `NBLLM_DEMO_URL`, else this process's server."""
    return os.environ.get("NBLLM_DEMO_URL", "").rstrip("/") or demo_server().url
