"""httpx clients over the kernel's HTTP session, for the SDKs that are built on httpx.

Owns `httpx_client` and `async_httpx_client`, for an SDK's `http_client=`, and `Bridge`, by which
`bridges.openai` and its siblings put an SDK's own clients onto the session. What either hands on is the
transport of `httpx_transport`, so that closing a client closes no connection.

There are two libraries with the same interface: httpx, and httpx2, on which openai 3, anthropic 2 and
google-genai 3 are built. Tested with httpx 0.28.1 and httpx2 2.16.2.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..exceptions import UsageProblem
from . import httpx_transport

_SESSIONS_OWN = ("transport", "mounts", "proxy", "proxies", "verify", "cert", "limits", "http1", "http2")


def async_httpx_client(*, library: str | None = None, **options: Any) -> Any:
    """An `AsyncClient` over the kernel's HTTP session: `AsyncOpenAI(http_client=nbllm.async_httpx_client())`.

    It may be used on any event loop, and follows redirects as the SDKs' own clients do. Timeouts are those of
    httpx, but for `write`, which aiohttp hasn't. Connections, proxies and certificates are the session's.

    Args:
        library: "httpx" or "httpx2". By default that of the installed openai SDK, and without one httpx2;
            an SDK that is built on the other one says so.
        options: As `httpx.AsyncClient` takes them, but for what is the session's.

    Returns:
        An `httpx2.AsyncClient` or `httpx.AsyncClient`. Closing it leaves the session open.

    Raises:
        UsageProblem: The library is not installed, or an option is the session's.
    """
    return _client("AsyncClient", library, options)


def httpx_client(*, library: str | None = None, **options: Any) -> Any:
    """`async_httpx_client` for synchronous code: `OpenAI(http_client=nbllm.httpx_client())`.

    Each request runs on the kernel's loop, also where that is running; from a thread, and inside a loop that
    is not nbllm's, on a loop in the background. A body is read whole before it is sent.
    """
    return _client("Client", library, options)


def _client(kind: str, library: str | None, options: dict[str, Any]) -> Any:
    if taken := [name for name in options if name in _SESSIONS_OWN]:
        raise UsageProblem(
            f"{taken[0]}= can't be given to nbllm's httpx clients, whose connections are those of the HTTP "
            "session: see nbllm.configure(), and HTTPS_PROXY and SSL_CERT_FILE in the environment"
        )
    if library not in (None, "httpx", "httpx2"):
        raise UsageProblem(f'library is "httpx" or "httpx2"; got {library!r}')
    found = httpx_transport.library(library or _default_library())
    transport = found.async_transport if kind == "AsyncClient" else found.transport
    return getattr(found.module, kind)(**{"follow_redirects": True, **options, "transport": transport})


def _default_library() -> str:
    try:
        return "httpx2" if int(metadata.version("openai").partition(".")[0]) >= 3 else "httpx"
    except (metadata.PackageNotFoundError, ValueError):
        return "httpx2"


# -- an SDK's own clients ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bridge:
    """The clients that an SDK makes for itself, which can be put onto the kernel's HTTP session.

    Attributes:
        package: What to install.
        module: Where the SDK's own client classes are. They are subclasses of httpx's, and a client that the
            user gave (`http_client=`) is none of them.
        classes: Their names: the synchronous and the asynchronous one, or two of each.
    """

    package: str
    module: str
    classes: tuple[str, ...]

    def install(self) -> None:
        """Have the SDK's own clients send over the kernel's HTTP session: those to come, and those there are.

        A client that was given as `http_client=` stays as it is. Installing twice is as good as once.

        Raises:
            UsageProblem: The SDK is not installed, or this version of it can't be reached.
        """
        for client_class in self._found():
            library = _library_of(client_class)
            is_async = issubclass(client_class, library.module.AsyncClient)
            transport = library.async_transport if is_async else library.transport
            client_class._transport_for_url = lambda client, url, transport=transport: transport
            if is_async:  # google-genai's own keeps a client, and so connections, for each event loop
                client_class.send = library.module.AsyncClient.send

    def uninstall(self) -> None:
        """Take `install` back; the SDK's clients open connections of their own again."""
        for client_class in self._found():
            for name in ("_transport_for_url", "send"):
                if name in vars(client_class):
                    delattr(client_class, name)

    def _found(self) -> list[Any]:
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise UsageProblem(
                f"{self.package} can't be used here ({error}): pip install {self.package}"
            ) from error
        named = (getattr(module, name, None) for name in self.classes)
        found = [client_class for client_class in named if hasattr(client_class, "_transport_for_url")]
        if len(found) < 2:
            raise UsageProblem(
                f"nbllm doesn't reach the clients of {self.package} {metadata.version(self.package)}: "
                "give http_client=nbllm.httpx_client() to them"
            )
        return found


def _library_of(client_class: type) -> httpx_transport.Library:
    roots = [one.__module__.partition(".")[0] for one in client_class.__mro__]
    return httpx_transport.library(next(root for root in roots if root in ("httpx", "httpx2")))
