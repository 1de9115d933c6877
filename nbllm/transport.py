"""The HTTP session: one connection pool per event loop, in a kernel one.

Owns the connector, the `aiohttp.ClientSession` over it, and their life: made at first use, kept through
`%reload_ext` and through being closed by somebody, closed silently with the loop or at exit, left alone
after a fork. Sends one request; knows nothing of providers.
"""

from __future__ import annotations

import asyncio
import atexit
import ipaddress
import os
import ssl
import sys
import time
import urllib.request
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import aiohttp
from aiohttp.http import StreamWriter
from aiohttp.payload import BytesPayload
from yarl import URL

from . import log, loops, protocol, tracing
from .exceptions import UsageProblem
from .kept import kept
from .settings import Settings, on_change, settings

STALE_RETRIES = 3
"""How many closed connections of the pool one request may run into before that is an error."""
STALE_SECONDS = 0.5
"""How soon a connection that was closed already tells so when it is used."""
SMALL_BODY = 64 * 1024
"""Bytes of a request's body that go out in one piece with its headers."""


class Pool:
    """The connector of one event loop, and the HTTP session over it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.connector = self._connector()
        self.proxies = Proxies()
        # nbllm's users share no cookies, and the proxies of the environment are looked up once (trust_env
        # would do it at each request, in a thread).
        self.session = aiohttp.ClientSession(
            connector=self.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(loop=loop),
            timeout=settings().timeout,
            middlewares=(_through(self.proxies),) if self.proxies else (),
            request_class=_Request if sys.version_info < (3, 12) else aiohttp.ClientRequest,
        )
        # The session belongs to everybody, so nobody's `close()` or `async with` may end it: litellm and
        # others keep a reference. (aiohttp warns of attributes set the ordinary way in its debug mode.)
        object.__setattr__(self.session, "close", _stay_open)
        self._keeper: AsyncGenerator[None, None] | None = None
        if asyncio._get_running_loop() is loop:
            # `asyncio.run` finishes async generators before it closes the loop: ours closes the pool then.
            self._keeper = _close_with_loop(self)
            try:
                self._keeper.__anext__().send(None)
            except StopIteration:
                pass

    def _connector(self) -> aiohttp.TCPConnector:
        values = settings()
        connector = aiohttp.TCPConnector(
            loop=self.loop,
            limit=values.limit,
            limit_per_host=values.limit_per_host,
            keepalive_timeout=values.keepalive_timeout,
            ssl=ssl_context() or True,
        )
        protocol.watch(connector)
        return connector

    def usable_session(self) -> aiohttp.ClientSession:
        """The session, always the same object, over a new connector where somebody closed the old one."""
        if self.connector.closed:
            self.connector = self._connector()
        if self.session._connector is not self.connector:
            self.session._connector = self.connector
        return self.session

    def apply(self, values: Settings) -> None:
        """Take over changed settings while requests run."""
        connector = self.connector
        connector._limit, connector._limit_per_host = values.limit, values.limit_per_host
        connector._keepalive_timeout = values.keepalive_timeout
        self.session._timeout = values.timeout
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._admit_waiting)

    def _admit_waiting(self) -> None:
        for _ in range(sum(len(waiting) for waiting in self.connector._waiters.values())):
            self.connector._release_waiter()

    async def disconnect(self) -> int:
        """Close all connections, also those of answers that are still being read; gives their number."""
        connector = self.connector
        count = len(connector._acquired) + sum(map(len, connector._conns.values()))
        _close_streams(self.loop)
        await connector.close()
        return count

    async def aclose(self) -> None:
        """Close all connections, and forget the pool."""
        _state.pools.pop(id(self.loop), None)
        await self.disconnect()

    def close_at_exit(self) -> None:
        """Close all connections from outside the loop, when nothing will run on it any more."""
        if self.loop.is_closed() or self.loop.is_running():
            # A loop that runs is the background loop. A thread may wait there for its answer: woken by an
            # error now, it would only have something to complain of.
            self.abandon()
            return
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()  # ipykernel asks for the stop twice; the second would end the next run early
        self.loop.run_until_complete(self.aclose())

    def abandon(self) -> None:
        """Mark all closed without touching a loop that is gone or that another process uses."""
        if self.loop.is_closed():
            self.connector._close()
        self.connector._closed = True


class _Request(aiohttp.ClientRequest):
    """Writes a small body together with the headers.

    aiohttp does so from Python 3.12 on. Before, it starts a task for every body, which costs a tenth of the
    whole request.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        body, protocol = self._body, conn.protocol
        if (
            not isinstance(body, BytesPayload)
            or len(body._value) > SMALL_BODY
            or self._continue is not None
            or self._traces
            or self._upload_tracker is not None
            or self.compress
            or self.chunked is not None
            or self.proxy
            or self.version != aiohttp.HttpVersion11
            or protocol.writing_paused
            or conn._connector.force_close
            or "Content-Type" not in self.headers
        ):
            return await super().send(conn)
        writer = StreamWriter(protocol, self.loop)
        try:
            await writer.write_headers(f"{self.method} {self.url.raw_path_qs} HTTP/1.1", self.headers)
            await writer.write_eof(body._value)
        except OSError as error:
            raise aiohttp.ClientOSError(
                error.errno, f"Can not write request body for {self.url!s}"
            ) from error
        protocol.start_timeout()
        self.response = response = self.response_class(  # type: ignore[assignment]
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )
        return response


async def _stay_open() -> None:
    """Stands in for `ClientSession.close`: the shared session lives as long as its loop."""


async def _close_with_loop(pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    except GeneratorExit:
        if asyncio._get_running_loop() is not pool.loop:
            raise  # collected after its loop, which can't close anything any more
    await pool.aclose()  # not while GeneratorExit is handled: what is still open is incomplete, not cancelled


class _State:
    """The pools of this process."""

    def __init__(self) -> None:
        self.pools: dict[int, Pool] = {}
        self.streams: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()
        self.lost: list[Pool] = []
        self.prepared = False


_state = kept(__name__, _State)


def shared_session() -> aiohttp.ClientSession:
    """The living HTTP session: one per event loop, in a kernel one for its whole life.

    Use it as any `aiohttp.ClientSession`, or give it to litellm and others as `shared_session`; what goes
    over it is traced. Closing it does nothing: nbllm closes it with the kernel.

    Returns:
        Always the same object on the same loop.

    Raises:
        UsageProblem: No event loop is running and there is no kernel whose loop could be meant.
    """
    return _pool().usable_session()


def trace(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """Trace a `ClientSession` of your own: its requests are rows as those over `shared_session()`.

    Its connections that are open already stay as they are: their requests are recorded without byte counts,
    and what they say to models is not read.

    Returns:
        The same session.

    Raises:
        UsageProblem: It is no ClientSession, or closed.
    """
    if not isinstance(session, aiohttp.ClientSession):
        raise UsageProblem(f"trace takes an aiohttp.ClientSession; got {type(session).__name__}")
    if session.closed or session.connector is None:
        raise UsageProblem("the session to trace is closed: open a new one")
    protocol.watch(session.connector)
    _prepare()
    return session


async def aclose() -> int:
    """Close nbllm's connections; the next request opens new ones.

    Answers that are still being read are broken off. The HTTP session stays the same object. The connections
    of a `shared_session=` of your own stay open.

    Returns:
        How many were open.
    """
    here, count = asyncio.get_running_loop(), 0
    for pool in pools():
        if pool.loop is here:
            count += await pool.disconnect()
        elif pool.loop.is_running():
            count += await loops.on_loop(pool.loop, pool.disconnect())
    return count


def close() -> int:
    """`aclose` for synchronous code."""
    return loops.run_sync(aclose())


def session_for(given: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    """The session a call sends through: the caller's own, traced from now on, or the shared one.

    Raises:
        UsageProblem: The caller's session is closed, belongs to another loop, or is no ClientSession.
    """
    if given is None:
        return _pool().usable_session()
    if not isinstance(given, aiohttp.ClientSession):
        raise UsageProblem(f"shared_session must be an aiohttp.ClientSession, not {type(given).__name__}")
    if given.closed:
        raise UsageProblem(
            "the shared_session given is closed: open a new one, or leave it out for nbllm.shared_session()"
        )
    if given._loop is not asyncio.get_running_loop():
        raise UsageProblem(
            "the shared_session given belongs to another event loop: make it on the loop that uses it, "
            "or leave it out to use nbllm.shared_session()"
        )
    return trace(given)


async def send(
    call: tracing.Call,
    session: aiohttp.ClientSession,
    url: str,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout: aiohttp.ClientTimeout | None,
    *,
    follow: bool = True,
) -> aiohttp.ClientResponse:
    """POST `body` (GET where it is None), and give the response as soon as its headers are there.

    A pooled connection that the server has closed in the meantime costs nothing but another attempt.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: As aiohttp raises them.
    """
    # A refusal's body tells why, also where the caller's session raises for a status by itself.
    options: dict[str, Any] = {"raise_for_status": False, "allow_redirects": follow}
    if timeout is not None:
        options["timeout"] = timeout
    method = "GET" if body is None else "POST"
    token = tracing.current_call.set(call)
    try:
        for attempt in range(STALE_RETRIES + 1):
            try:
                response = await session._request(method, url, data=body, headers=headers, **options)
                if call.stream:
                    _state.streams.add(response)
                return response
            except asyncio.CancelledError:
                # The socket closes in the loop's next turn; IPython would first take 0.2 s for its traceback.
                await asyncio.sleep(0)
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                record = call.record
                if record is None or not _was_stale(record) or attempt == STALE_RETRIES:
                    raise
        raise AssertionError("unreachable")
    finally:
        tracing.current_call.reset(token)


def _was_stale(record: tracing.Record) -> bool:
    """Whether a pooled connection broke because it was closed already, and not over this request.

    A server that has worked on a request for a while may have done, and charged, what it asks for.
    """
    return (
        bool(record.connection_reused)
        and record.first_byte is None
        and record.acquired is not None
        and tracing.perf_counter() - record.acquired < STALE_SECONDS
    )


def pools() -> list[Pool]:
    """The pools in use, one per event loop."""
    return list(_state.pools.values())


def _pool() -> Pool:
    loop = asyncio._get_running_loop() or loops.home()
    if loop is None:
        raise UsageProblem(
            "no event loop is running: call nbllm.shared_session() inside a coroutine (async def …)"
        )
    pool = _state.pools.get(id(loop))
    if pool is None or pool.loop is not loop:
        _prepare()
        for key, old in list(_state.pools.items()):
            if old.loop.is_closed():
                old.abandon()
                del _state.pools[key]
        pool = _state.pools[id(loop)] = Pool(loop)
    return pool


def _prepare() -> None:
    if _state.prepared:
        return
    _state.prepared = True
    tracing.subscribe(log.add_request, log.add_connection, log.request_began)
    on_change("transport", _apply_to_all)
    atexit.register(close_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _apply_to_all(values: Settings) -> None:
    for pool in pools():
        pool.apply(values)


def close_at_exit() -> None:
    """Close every pool and then the log, without a word."""
    for pool in pools():
        if not pool.loop.is_running():
            _close_streams(pool.loop)
    for record in tracing.running():
        tracing.end_wire(record, "incomplete")
        tracing.end(record)
    for pool in pools():
        try:
            pool.close_at_exit()
        except Exception:
            pool.abandon()
    for connection in tracing.connections():  # those of loops that could not close them
        connection.closed_at, connection.close_reason = time.time(), "exit"
        tracing.closed(connection)
    log.close()


def _close_streams(loop: asyncio.AbstractEventLoop) -> None:
    for response in list(_state.streams):
        if response._loop is loop:
            response.close()


def _after_fork() -> None:
    # The sockets and the loop's selector are shared with the parent: closing, or even collecting, a
    # session here would disturb it.
    for pool in _state.pools.values():
        pool.connector._closed = True
        _state.lost.append(pool)
    loops.after_fork(pool.loop for pool in _state.pools.values())
    _state.pools.clear()
    tracing.after_fork()
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        # Its children end without atexit, and forget the finalizers that were set before they began.
        util.register_after_fork(_state, _close_with_multiprocessing)


def _close_with_multiprocessing(state: _State) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, close_at_exit, exitpriority=0)


def ssl_context() -> ssl.SSLContext | None:
    """What the CA bundle that the environment names makes; None where it names none, for aiohttp's own.

    Raises:
        UsageProblem: The bundle can't be used.
    """
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            is_folder = os.path.isdir(path)
            try:
                return ssl.create_default_context(
                    cafile=None if is_folder else path, capath=path if is_folder else None
                )
            except (OSError, ssl.SSLError) as error:
                raise UsageProblem(f"{name}={path!r} is not a usable CA bundle: {error}") from error
    return None


class Proxies:
    """The proxies that the environment, or else the system, named when this was made."""

    def __init__(self) -> None:
        self._by_scheme = urllib.request.getproxies_environment()
        self._bypasses: Callable[[str], Any] = urllib.request.proxy_bypass
        if self._by_scheme:
            passes = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
            self._bypasses = partial(passes, proxies=self._by_scheme)
        else:  # those of macOS and Windows
            self._by_scheme = urllib.request.getproxies()
        self.to = lru_cache(maxsize=256)(self._to)

    def __bool__(self) -> bool:
        return any(self._by_scheme.get(scheme) for scheme in ("http", "https", "all"))

    def _to(self, scheme: str, host: str) -> URL | None:
        """The proxy that requests to a host go through; it may hold a password.

        Raises:
            UsageProblem: It is no URL, or not of an HTTP proxy.
        """
        found = self._by_scheme.get(scheme) or self._by_scheme.get("all")
        if not found or _is_loopback(host) or self._bypasses(host):
            return None
        try:
            url = URL(found if "://" in found else f"http://{found}")
        except ValueError:  # whose text may quote the password
            raise UsageProblem(f"the environment's proxy for {scheme} is not like http://host:port") from None
        if url.scheme not in ("http", "https"):
            raise UsageProblem(
                f"the environment's proxy for {scheme}, {url.scheme}://{url.host}, is no HTTP proxy, and "
                f"others such as SOCKS can't be used: name an HTTP proxy in {scheme.upper()}_PROXY, or the "
                "host in NO_PROXY, and restart the kernel"
            )
        return url


def proxies() -> Proxies:
    """Those that requests go through: of the time when the HTTP session was made, or of now, before that."""
    pool = _state.pools.get(id(asyncio._get_running_loop() or loops.home()))
    return Proxies() if pool is None else pool.proxies


def _through(proxies: Proxies) -> Any:
    async def through_proxy(request: aiohttp.ClientRequest, handler: Any) -> Any:
        if request.proxy is None and (url := proxies.to(request.url.scheme, request.url.host or "")):
            headers = None
            if url.user:  # aiohttp tells connections apart by these headers, and would add the host itself
                login = aiohttp.encode_basic_auth(url.user, url.password or "")
                headers = {"Authorization": login, "Host": request.headers["Host"]}
            request.update_proxy(url.with_user(None), None, headers)
        return await handler(request)

    return through_proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
