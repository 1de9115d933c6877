"""litellm over the kernel's HTTP session: all of its providers and verbs, synchronous ones too.

Owns `install` and `uninstall`, and what they put into litellm; `fetch_sessions` is `litellm_proxy`'s. Tested
with litellm 1.82.0, 1.106.2 and 1.109.1 (`pip install 'nbllm[litellm]'`).

litellm speaks HTTP in two ways, and each is reached at its narrowest place:

- Asynchronous: through its transport `LiteLLMAiohttpTransport`, whose `handle_async_request` is replaced. So
  clients that litellm, or the user, made before are reached too.
- Synchronous: through httpx, by the transport of its `HTTPHandler`, and by `litellm.client_session` for the
  clients of the openai SDK. Clients that were made before are put aside, with litellm's cache of clients.

What the arguments of a call say is noted where all verbs pass, in `litellm.utils.function_setup`.

Not reached: OCR and Bedrock's transcriptions, which litellm sends from Rust; websockets (`arealtime`); what
some providers send for their tokens through other libraries; synchronous calls with certificate settings of
litellm's own (`ssl_verify`). litellm's limits and keep-alive of connections, and its `force_ipv4`, give way
to the kernel's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import importlib.metadata
import os
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import aiohttp

from .. import notices, tagging
from ..exceptions import UsageProblem
from ..kept import kept
from ..providers.places import provider_at
from ..transport import shared_session, trace
from ..types import parse
from .httpx_clients import async_httpx_client, httpx_client
from .litellm_proxy import afetch_sessions, fetch_sessions

__all__ = ["afetch_sessions", "fetch_sessions", "install", "uninstall"]

_CLIENTS = ("client_session", "aclient_session")
_ABSENT: Any = object()


class _Call(NamedTuple):
    """What the arguments of a call of litellm's say that its requests needn't.

    Attributes:
        session: The session that it names.
        to_proxy: Whether it asks a LiteLLM proxy.
        http_session: The `shared_session=` of the caller's own.
    """

    session: str | None = None
    to_proxy: bool = False
    http_session: Any = None


class _State:
    """What was replaced in litellm, oldest first, by what, and the call that runs here and now."""

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any, Any]] = []
        self.call: ContextVar[_Call] = ContextVar("nbllm_litellm_call", default=_Call())  # noqa: B039


_state = kept(__name__, _State)
_lock = threading.Lock()


def install() -> None:
    """Have litellm use the kernel's HTTP session, whatever the provider and the verb; once is enough.

    A `shared_session=` of the caller's own stays in force, now for every provider, and is traced. A
    `litellm.client_session` or `aclient_session` of the user's own stays too, and isn't traced. Sessions that
    calls name (`litellm_session_id`, `litellm_trace_id`, `metadata`) group our rows; of the servers only a
    LiteLLM proxy is told. What can't be reached in this litellm is said by a warning.

    Raises:
        UsageProblem: litellm is not installed.
    """
    with _lock:
        if not _state.replaced:
            _install(_imported())


def _install(litellm: Any) -> None:
    missed = [f"calls over litellm.{name}, which is yours" for name in _CLIENTS if getattr(litellm, name)]
    parts = {"asynchronous calls": _put_asynchronous, "synchronous calls": _put_synchronous}
    for what, put in {**parts, "sessions named in arguments": _put_notes}.items():
        begun = len(_state.replaced)
        try:
            put(litellm)
        except (ImportError, AttributeError, TypeError) as error:  # another litellm than those we know
            _put_back(begun)
            missed.append(f"{what} ({error})")
    if not _uses_aiohttp():
        missed.append("asynchronous calls, as litellm is set to do without aiohttp, or to HTTP/2")
    if _chosen_tls():
        missed.append("synchronous calls, as litellm has certificate settings of its own")
    if _uses_rust():
        missed.append("Anthropic's messages, as litellm is set to send them from Rust")
    if missed:
        version = importlib.metadata.version("litellm")
        notices.warn_once(f"of litellm {version} nbllm doesn't reach: {'; '.join(missed)}")


def uninstall() -> None:
    """Give litellm back what `install` has replaced: its own sessions and clients."""
    with _lock:
        _put_back(0)


def _put_back(keep: int) -> None:
    while len(_state.replaced) > keep:
        owner, name, old, ours = _state.replaced.pop()
        if vars(owner).get(name) is not ours:  # somebody has put something else there since
            continue
        if old is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, old)


def _replace(owner: Any, name: str, new: Any) -> None:
    _state.replaced.append((owner, name, vars(owner).get(name, _ABSENT), new))
    setattr(owner, name, new)


def _imported() -> Any:
    try:
        import litellm
    except ImportError as error:
        raise UsageProblem("litellm is not installed: pip install 'nbllm[litellm]'") from error
    return litellm


def _uses_aiohttp() -> bool:
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    return bool(AsyncHTTPHandler._should_use_aiohttp_transport())


def _uses_rust() -> bool:
    try:
        from litellm.rust_bridge.configuration import rust_enabled
    except ImportError:  # a litellm without Rust
        return False
    return bool(rust_enabled())


# -- asynchronous --------------------------------------------------------------------------------------


def _put_asynchronous(litellm: Any) -> None:
    from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport

    original = LiteLLMAiohttpTransport.handle_async_request
    ours = async_httpx_client(library="httpx")._transport

    @functools.wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        session, verify = _own_session(self), _own_tls(getattr(self, "_ssl_verify", None))
        with _as_said(request):
            if session is None and verify is None:
                return await ours.handle_async_request(request)
            over = copy.copy(self)
            over.client, over._owns_session, over._ssl_verify = session or shared_session(), False, verify
            return await original(over, request)

    _replace(LiteLLMAiohttpTransport, "handle_async_request", handle_async_request)
    if litellm.aclient_session is None and not _chosen_tls():
        import httpx

        # For the verbs whose openai client litellm gives no transport, as text completions.
        through = LiteLLMAiohttpTransport(client=aiohttp.ClientSession)
        _replace(litellm, "aclient_session", httpx.AsyncClient(transport=through, follow_redirects=True))


def _own_session(given: Any) -> aiohttp.ClientSession | None:
    """The `shared_session=` of the call, or of the client, that is the caller's own and can be used here."""
    owned = getattr(given, "_owns_session", True)
    for own in (_state.call.get().http_session, None if owned else given.client):
        if not isinstance(own, aiohttp.ClientSession) or own.closed or own is shared_session():
            continue
        if own._loop is asyncio.get_running_loop():
            return trace(own)
    return None


def _own_tls(verify: ssl.SSLContext | bool | None) -> ssl.SSLContext | bool | None:
    """How a request wants the server's certificate checked; None where that is as everybody does.

    A context of its own would keep it from the connections that others have opened to the same server.
    """
    from litellm.llms.custom_httpx.http_handler import get_ssl_configuration

    if verify is None or (not _chosen_tls() and verify is get_ssl_configuration()):
        return None
    return verify


def _chosen_tls() -> bool:
    """Whether litellm's settings say how servers' certificates are checked."""
    import litellm

    names = ("SSL_VERIFY", "SSL_SECURITY_LEVEL", "SSL_ECDH_CURVE", "SSL_CERTIFICATE")
    chosen = [
        getattr(litellm, name, None) for name in ("ssl_security_level", "ssl_ecdh_curve", "ssl_certificate")
    ]
    return litellm.ssl_verify is not True or any(chosen) or any(map(os.environ.get, names))


# -- synchronous ---------------------------------------------------------------------------------------


def _put_synchronous(litellm: Any) -> None:
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    original = vars(HTTPHandler)["_create_sync_transport"]
    old, ours = litellm.module_level_client, httpx_client(library="httpx")
    ours._transport = _synchronous(ours._transport)
    ours.close = _stay_open  # litellm 1.82 closes it with the handlers that it is given to

    @functools.wraps(HTTPHandler._create_sync_transport)
    def _create_sync_transport(self: Any, *args: Any, **options: Any) -> Any:
        if _chosen_tls() or getattr(self, "ssl_verify", None) not in (None, True):
            return original.__get__(self, HTTPHandler)(*args, **options)
        return ours._transport

    _replace(HTTPHandler, "_create_sync_transport", _create_sync_transport)
    _replace(litellm, "module_level_client", HTTPHandler(timeout=old.client.timeout))
    _replace(litellm, "in_memory_llm_clients_cache", type(litellm.in_memory_llm_clients_cache)())
    if litellm.client_session is None and not _chosen_tls():  # the openai SDK's
        _replace(litellm, "client_session", ours)


def _stay_open() -> None:
    """Stands in for `httpx.Client.close`: the client is everybody's, and its connections are the kernel's."""


def _synchronous(inner: Any) -> Any:
    class Synchronous(type(inner)):  # type: ignore[misc]
        """The kernel's transport, with what a call's arguments say."""

        def handle_request(self, request: Any) -> Any:
            with _as_said(request):
                response = super().handle_request(request)
            if response.status_code >= 400:  # litellm reads it in another thread, where its loop may not run
                response.read()
            return response

    return Synchronous()


# -- what the arguments say ----------------------------------------------------------------------------


@contextlib.contextmanager
def _as_said(request: Any) -> Iterator[None]:
    """Send a request in the session that its call names, and let a LiteLLM proxy know of it."""
    call = _state.call.get()
    with tagging.session(call.session) if call.session else contextlib.nullcontext():
        if _is_for_proxy(request.url, call) and not _names_session(request):
            request.headers["x-litellm-session-id"] = tagging.current_session()
        yield


def _is_for_proxy(url: Any, call: _Call) -> bool:
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    return call.to_proxy or provider_at(url.host, port, url.path, "openai").takes_session


def _names_session(request: Any) -> bool:
    """Whether a request itself says which session it belongs to."""
    try:
        body = parse(request.content) if "json" in request.headers.get("content-type", "") else None
    except Exception:  # nothing that could be read, or not yet
        body = None
    return bool(tagging.named_session(request.headers, body if isinstance(body, dict) else {}))


def _put_notes(litellm: Any) -> None:
    noting = _noting(litellm.utils.function_setup)
    _replace(litellm.utils, "function_setup", noting)
    router = sys.modules.get("litellm.router")
    if router is not None and hasattr(router, "function_setup"):
        _replace(router, "function_setup", noting)


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def function_setup(*args: Any, **options: Any) -> Any:
        try:
            _state.call.set(_call(args, options))
        except Exception as error:  # litellm's call goes on
            notices.warn_once(f"litellm's arguments could not be read: {error!r}")
        return original(*args, **options)

    return function_setup


def _call(args: tuple[Any, ...], options: Mapping[str, Any]) -> _Call:
    """Source: `litellm.utils.client`, which calls function_setup(verb, rules, start, *args, **options)."""
    model = options.get("model") or next(iter(args[3:]), None)
    to_proxy = (
        options.get("custom_llm_provider") == "litellm_proxy"
        or (isinstance(model, str) and model.startswith("litellm_proxy/"))
        or bool(options.get("use_litellm_proxy"))
    )
    return _Call(_named_session(options), to_proxy, options.get("shared_session"))


def _named_session(options: Mapping[str, Any]) -> str | None:
    metadata = options.get("metadata")
    if (
        isinstance(metadata, Mapping)
        and "model_group" in metadata
        and _is_uuid(options.get("litellm_trace_id"))
    ):
        # litellm's Router gives every call that names no trace a new one.
        options = {**options, "litellm_trace_id": None}
    named = tagging.named_session({}, options) or tagging.first_of(
        options.get("litellm_metadata"), tagging.SESSION_METADATA
    )
    try:
        return tagging.check_session_id(named) if named else None
    except UsageProblem:  # litellm takes it; the request stays in the session around it
        return None


def _is_uuid(value: Any) -> bool:
    try:
        return uuid.UUID(value).version == 4
    except (ValueError, TypeError, AttributeError):
        return False
