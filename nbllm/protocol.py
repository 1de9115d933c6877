"""Tracing inside aiohttp's connector and connections, below every client.

Owns the traced protocol (one per TCP connection) and `watch`, which has a connector use it. Works on any
`TCPConnector`: ours, and that of a session which a caller brings along. Feeds `tracing`.

Rests on aiohttp's connector and protocol as of 3.14: `BaseConnector.connect` and `_factory`, the
`ResponseHandler` methods overridden below, and `Connection.add_callback`, which fires when a connection
is given back or closed, and so at the true end of a body.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections import Counter, defaultdict
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from . import masking, notices, tracing, wire
from .providers import places
from .tracing import Record, perf_counter

IDLE_BEFORE_RECHECK = 1.0
"""Seconds without traffic after which pooled connections get a chance to be seen closed before use."""


_data_received = ResponseHandler.data_received
_feed_data = ResponseHandler.feed_data


class TracedProtocol(ResponseHandler):
    """One TCP (TLS) connection: times, counts and closes are noted where they happen."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.tcp_ready = perf_counter()  # asyncio asks for the protocol between TCP and TLS handshake
        self.tls_ready = self.tcp_ready
        self.connection = tracing.Connection()
        self.watch: Watch | None = None
        self.key: Any = None
        self.record: Record | None = None
        self.first_byte: float | None = None
        self.idle_since: float | None = None
        self.body: Any = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.bytes_out_known = True
        self.overheard: wire.Overheard | None = None
        self.close_reason: str | None = None
        self._read_deadline: float | None = None

    # -- the connection's life -------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.tls_ready = perf_counter()
        try:
            self._describe(transport)
            self._count_writes(transport)
        except Exception as error:
            notices.warn_once(f"a connection could not be traced: {error!r}")

    def _describe(self, transport: Any) -> None:
        connection, peer, here = (
            self.connection,
            transport.get_extra_info("peername"),
            transport.get_extra_info("sockname"),
        )
        if isinstance(peer, tuple):
            connection.peer = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        if isinstance(here, tuple):
            connection.local_port = here[1]
        if (ssl_object := transport.get_extra_info("ssl_object")) is not None:
            connection.tls_version = ssl_object.version()

    def _count_writes(self, transport: Any) -> None:
        write, writelines = transport.write, transport.writelines

        def counted_write(data: Any) -> None:
            self.bytes_out += len(data)
            if self.overheard is not None:
                self.overheard.take_sent(data)
            write(data)

        def counted_writelines(parts: Any) -> None:
            parts = list(parts)
            self.bytes_out += sum(map(len, parts))
            if self.overheard is not None:
                for part in parts:
                    self.overheard.take_sent(part)
            writelines(parts)

        try:
            transport.write, transport.writelines = counted_write, counted_writelines
        except AttributeError:  # a transport written in C (uvloop): unknown is unknown
            self.bytes_out_known = False

    def close(self) -> None:
        if self.transport is not None:
            self._leave(self.close_reason or self._why_we_close())
        super().close()

    def abort(self) -> None:
        if self.transport is not None:
            self._leave(self.close_reason or self._why_we_close())
        super().abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._leave("closed by server" if exc is None else f"connection lost: {exc.__class__.__name__}")
        record, idle = self.record, self.idle_since
        super().connection_lost(exc)
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None
        # Whoever reads the body will be told by aiohttp; the record needn't wait until somebody reads.
        if record is not None and idle is None and self.record is record and self.body is not None:
            error = self.body.exception()
            if error is not None:
                self._end(record, "error", error)
        self.connection.closed_at = time.time()
        self.connection.close_reason = masking.redact(self.close_reason or "closed")
        tracing.closed(self.connection)

    def _leave(self, reason: str) -> None:
        if self.close_reason is None:
            self.close_reason = reason
            if self.watch is not None:
                self.watch.left(self)

    def _why_we_close(self) -> str:
        connector = self.watch.connector if self.watch is not None else None
        if connector is not None and connector.closed:
            return "pool closed"
        if connector is not None and connector.force_close:
            return "pool keeps none"
        if self.idle_since is not None:
            return "server asked to close" if self._should_close else "idle expired"
        status = self.record.status if self.record is not None else None
        return {"cancelled": "request cancelled", "incomplete": "answer abandoned"}.get(
            status or "", "request failed"
        )

    # -- one request on it -----------------------------------------------------------------------

    def attach(self, record: Record, conn: Any) -> None:
        """Tie the connection to the request that has just got it."""
        now = perf_counter()
        record.acquired = now
        record.connection_id = self.connection.connection_id
        if self.idle_since is not None:
            record.connection_reused = True
            record.connection_idle_ms = (now - self.idle_since) * 1e3
        else:
            record.connection_reused = False
        self.record, self.body, self.idle_since, self.first_byte = record, None, None, None
        self._read_deadline = None
        self.bytes_in = self.bytes_out = 0
        self.overheard = record.overheard
        conn.add_callback(self._given_back)

    def start_timeout(self) -> None:  # aiohttp calls it when the request is wholly written
        record = self.record
        if record is not None and record.sent is None:
            record.sent = perf_counter()
        if record is None or record.wire_ended is None:
            # Else the answer has come before aiohttp's writer took notice: a deadline set now would hit the
            # next request on this connection.
            self._reschedule_timeout()

    def data_received(self, data: bytes) -> None:
        if data:
            self.bytes_in += len(data)
            if self.first_byte is None:
                self.first_byte = perf_counter()
            if self.overheard is not None:
                self.overheard.take_received(perf_counter(), data)
        _data_received(self, data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, body = data
        if message.code >= 200 or message.code == 101:
            self.body = body
            if (record := self.record) is not None:
                record.http_status = message.code
        _feed_data(self, data, size)

    def _given_back(self) -> None:
        # Called when the connection is released or closed: at the end of the body, or before it.
        record = self.record
        if record is None or record.wire_ended is not None:
            return
        body = self.body
        failure = self._exception if body is None else body.exception()
        if body is not None and body.is_eof() and failure is None:
            self.idle_since = perf_counter()
            refused = record.http_status is not None and record.http_status >= 400
            if refused and not record.held:
                record.error_type = str(record.http_status)
                self._end(record, "error")
            else:
                self._end(record, "ok")
            return
        self._end(record, *_how_it_broke(failure, body is not None))

    def _end(self, record: Record, status: str, error: BaseException | None = None) -> None:
        record.first_byte = self.first_byte
        record.bytes_received = self.bytes_in
        record.bytes_sent = self.bytes_out if self.bytes_out_known else None
        self.overheard = None
        tracing.end_wire(record, status, error)

    # -- read timeout ----------------------------------------------------------------------------
    # aiohttp cancels and re-makes a timer for each piece of data (6 to 9 µs). Here the timer stays and
    # looks, when it fires, whether the deadline has moved on.

    def _reschedule_timeout(self) -> None:
        timeout = self._read_timeout
        if not timeout:
            self._read_deadline = None
            return
        deadline = self._read_deadline = self._loop.time() + timeout
        handle = self._read_timeout_handle
        if handle is None or handle.when() > deadline:
            if handle is not None:
                handle.cancel()
            self._read_timeout_handle = self._loop.call_at(deadline, self._check_read_deadline)

    def _drop_timeout(self) -> None:
        self._read_deadline = None

    def _check_read_deadline(self) -> None:
        self._read_timeout_handle = None
        deadline = self._read_deadline
        if deadline is None:
            return
        if self._loop.time() >= deadline:
            self._on_read_timeout()
        else:
            self._read_timeout_handle = self._loop.call_at(deadline, self._check_read_deadline)


_CANCELS = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)


def _how_it_broke(failure: BaseException | None, begun: bool) -> tuple[str, BaseException | None]:
    """Status and error of a request whose connection goes before the end of its answer.

    Asked where that happens, with the exception in flight; `failure` is the connection's own.
    """
    raised = sys.exception()
    if isinstance(raised, TimeoutError):
        return "error", raised
    if isinstance(raised, _CANCELS) or _task_is_cancelled():
        return "cancelled", None
    if failure is not None and str(failure) != "Connection closed":  # that text: we closed it
        return "error", failure
    return ("incomplete", None) if begun else ("error", raised)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # a coroutine that is closed after its loop
        return None


def _task_is_cancelled() -> bool:
    task = _current_task()
    return task is not None and task.cancelling() > 0


class Watch:
    """What one connector has open, by host, so that a new connection can be given its reason."""

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        self.connector = connector
        self.open: defaultdict[Any, set[TracedProtocol]] = defaultdict(set)
        self.connecting: Counter[Any] = Counter()
        self.waits: dict[Any, float] = {}  # task -> ms that it has waited for a slot
        self.last_left: dict[Any, tuple[str, float | None]] = {}
        self.last_traffic = perf_counter()

    def joined(self, protocol: TracedProtocol, request: Any) -> None:
        """Note a new connection that serves its first request."""
        key = request.connection_key
        protocol.watch, protocol.key = self, key
        connection = protocol.connection
        connection.host, connection.port = request.url.host, request.url.port
        tracing.opened(connection)
        if protocol.close_reason is None:
            self.open[key].add(protocol)
            return
        self.left(protocol)  # the server has closed it already
        if connection.closed_at is not None:
            tracing.closed(connection)

    def left(self, protocol: TracedProtocol) -> None:
        """Note a connection that closes or was closed."""
        idle = None if protocol.idle_since is None else perf_counter() - protocol.idle_since
        self.open[protocol.key].discard(protocol)
        if not self.open[protocol.key]:
            del self.open[protocol.key]
        self.last_left[protocol.key] = (protocol.close_reason or "closed", idle)

    def reason(self, key: Any, waited: bool) -> tuple[str, float | None]:
        """Why a request to `key` gets a new connection, and how long the lost one had been idle (s)."""
        if waited:
            return "limit", None
        if self.open.get(key) or self.connecting[key]:
            return "all busy", None
        return self.last_left.get(key, ("first", None))


class _Dns:
    """What the connector tells of name resolution (aiohttp's `Trace` protocol)."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.done: float | None = None

    async def send_dns_resolvehost_start(self, host: str) -> None:
        self.started = perf_counter()

    async def send_dns_resolvehost_end(self, host: str) -> None:
        self.done = perf_counter()

    async def _nothing(self, *args: Any) -> None:
        pass

    send_dns_cache_hit = send_dns_cache_miss = _nothing


def watch(connector: aiohttp.BaseConnector) -> Watch:
    """Trace every request over `connector` from now on; asking again changes nothing.

    Connections that are already open stay as they are: their requests are recorded without byte counts.
    """
    known = getattr(connector, "_nbllm_watch", None)
    if known is not None:
        return known  # type: ignore[no-any-return]
    state = Watch(connector)
    patched: Any = connector
    patched._factory = functools.partial(TracedProtocol, loop=connector._loop)
    patched.connect = functools.partial(_connect, state, connector.connect)
    patched._create_connection = functools.partial(_create, state, connector._create_connection)
    patched._wait_for_available_connection = functools.partial(
        _wait, state, connector._wait_for_available_connection
    )
    patched._nbllm_watch = state
    return state


async def _connect(state: Watch, inner: Any, req: Any, traces: Any, timeout: Any) -> Any:
    try:
        record = tracing.begin()
        url = req.url
        record.http_method, record.server_address = req.method, url.host
        record.server_port, record.url_path = url.port, url.raw_path
        if not record.held and places.kind_of(record.http_method, record.url_path) is not None:
            record.overheard = wire.Overheard()
    except Exception as error:
        notices.warn_once(f"a request could not be traced: {error!r}")
        return await inner(req, traces, timeout)
    quiet, state.last_traffic = record.began - state.last_traffic, record.began
    req._nbllm_record = record
    try:
        if quiet > IDLE_BEFORE_RECHECK and state.open:
            # A server's close may be waiting unread, above all when a cell has blocked the loop. aiohttp
            # never retries a POST on such a connection; three turns of the loop let it see the close.
            for _ in range(3):
                await asyncio.sleep(0)
        conn = await inner(req, traces, timeout)
    except BaseException as error:
        record.blocked_ms = state.waits.pop(_current_task(), record.blocked_ms)
        if not isinstance(error, _CANCELS):
            tracing.end_wire(record, "error", error)
        elif getattr(getattr(req, "_timer", None), "_cancelled", False):  # aiohttp's own total timeout
            tracing.end_wire(record, "error", TimeoutError("the request's total timeout has passed"))
        else:
            tracing.end_wire(record, "cancelled")
        raise
    if state.waits:
        record.blocked_ms = state.waits.pop(_current_task(), record.blocked_ms)
    protocol = conn.protocol
    if hasattr(protocol, "attach"):  # not isinstance: after a reload of this module the class is another one
        if protocol.watch is None:
            state.joined(protocol, req)
        protocol.attach(record, conn)
    else:
        _attach_untraced(record, conn)
    return conn


async def _wait(state: Watch, inner: Any, key: Any, traces: Any) -> None:
    """The connector's wait for a free slot, at its limit."""
    task, started = _current_task(), perf_counter()
    try:
        await inner(key, traces)
    finally:
        state.waits[task] = (perf_counter() - started) * 1e3  # `_connect` or `_create` takes it up


async def _create(state: Watch, inner: Any, req: Any, traces: Any, timeout: Any) -> Any:
    """The connector's making of a new connection: DNS, TCP, TLS."""
    record, key = getattr(req, "_nbllm_record", None), req.connection_key
    if record is None:
        return await inner(req, traces, timeout)
    record.blocked_ms = state.waits.pop(_current_task(), None)
    record.connection_reason, idle = state.reason(key, record.blocked_ms is not None)
    if idle is not None:
        record.connection_idle_ms = idle * 1e3
    state.connecting[key] += 1
    dns, started = _Dns(), perf_counter()
    try:
        protocol = await inner(req, [*traces, dns], timeout)
    except BaseException:
        if dns.started is None or dns.done is not None:
            record.connect_ms = (perf_counter() - (dns.done or started)) * 1e3
        raise
    finally:
        state.connecting[key] -= 1
        if dns.started is not None:
            record.dns_ms = ((dns.done or perf_counter()) - dns.started) * 1e3
    if hasattr(protocol, "tls_ready"):
        record.connect_ms = (protocol.tls_ready - (dns.done or started)) * 1e3
        if protocol.connection.tls_version is not None:
            record.ssl_ms = (protocol.tls_ready - protocol.tcp_ready) * 1e3
    return protocol


def _attach_untraced(record: Record, conn: Any) -> None:
    # A connection that a caller's own session had opened before nbllm came to watch it.
    record.acquired = perf_counter()
    record.connection_reused = True
    protocol = conn.protocol
    protocol._payload = None  # that of the request before

    def given_back() -> None:
        body = protocol._payload
        failure = protocol.exception() if body is None else body.exception()
        if body is not None and body.is_eof() and failure is None:
            tracing.end_wire(record, "ok")
        else:
            tracing.end_wire(record, *_how_it_broke(failure, body is not None))

    conn.add_callback(given_back)
