"""Whether a server can be reached from here, and why not: name, network, TLS. Nothing is sent.

Called by `diagnosis`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

from yarl import URL

from . import transport

CONNECT_SECONDS = 3.0
"""How long a server may take until it is reached, TLS included."""


def address(url: URL) -> str:
    """Host and port alone: a proxy's URL may hold a password."""
    host = url.host or ""
    return f"[{host}]:{url.port}" if ":" in host else f"{host}:{url.port}"


async def trouble(url: URL, variable: str | None) -> tuple[str, str] | None:
    """Connect to a server, and hang up; what went wrong with what to do about it, or None.

    Args:
        url: Of a server or a proxy.
        variable: The environment variable that names the server; None for the provider's own address.
    """
    loop, host, port = asyncio.get_running_loop(), url.host or "", url.port or 0
    context = (transport.ssl_context() or ssl.create_default_context()) if url.scheme == "https" else None
    has_tcp = False
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection, protocol = await loop.create_connection(
                asyncio.Protocol, host, port, happy_eyeballs_delay=0.25
            )
            has_tcp = True
            try:
                if context is not None:
                    secure = await loop.start_tls(connection, protocol, context, server_hostname=host)
                    if secure is not None:
                        secure.abort()
            finally:
                connection.abort()
    except (OSError, UnicodeError) as error:
        return _explained(error, has_tcp, variable)
    return None


def _explained(error: Exception, has_tcp: bool, variable: str | None) -> tuple[str, str]:
    """What an error while connecting means, and what to do about it."""
    where = variable or "the network, VPN or firewall"
    plain = f"if it speaks plain HTTP, its address in {where} begins with http://" if variable else None
    network = "look at the network, VPN or firewall; where a proxy is needed, set HTTPS_PROXY"
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "if it is a server or proxy of your own, name its CA bundle in SSL_CERT_FILE"
        reason = error.verify_message
        return f"shows a certificate that is not accepted: {reason}", f"{remedy}; then restart the kernel"
    if isinstance(error, TimeoutError):
        if has_tcp:
            return f"accepts connections but speaks no TLS within {CONNECT_SECONDS:g} s", plain or network
        return f"did not answer within {CONNECT_SECONDS:g} s", network
    if isinstance(error, ssl.SSLError):
        return f"speaks no TLS: {error.reason or error}", plain or network
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"is not known: its name can't be resolved ({error.args[-1]})", f"look at {where}"
    if has_tcp:
        return f"broke the connection off: {error}", network
    # Where a name has several addresses, asyncio puts the texts of their errors together.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        remedy = f"start the server, or correct {variable}" if variable else network
        return "refuses connections: nothing listens there", remedy
    return f"can't be reached: {error}", network
