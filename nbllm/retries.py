"""Whether a failed attempt is worth another one, and after what pause.

Pure policy, that of the openai SDK (openai-python, `_base_client.py`) but for three cases, in which another
attempt can't help or costs too much: a quota that is used up, a caller's own timeout, a wrong name or
certificate of the server. Called by `calls`, which counts the attempts and sleeps.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from .exceptions import APIConnectionError, APIError, Timeout

LONGEST_PAUSE = 120.0  # seconds; openai-python: MAX_RETRY_AFTER_DELAY
_FIRST_PAUSE, _LAST_BACK_OFF, _JITTER = 0.5, 8.0, 0.25

# 501 and 505 say that the server will never do it; 409 is a lock of the server's that was not free in time.
_RETRIED = frozenset({408, 409, 429})
_FINAL = frozenset({501, 505})


def pause_before(
    attempt: int,
    error: APIError,
    started_content: bool = False,
    random: Callable[[], float] = random.random,
) -> float | None:
    """Seconds to wait before attempt number `attempt` + 1.

    The server's Retry-After is obeyed as it is. Without it: 0.5 s, doubled with each attempt up to 8 s, less
    a random part of up to a quarter.

    Args:
        attempt: The number of the attempt that failed, from 1.
        error: What it failed with. Where it came from aiohttp, its cause tells what happened.
        started_content: Whether the caller has seen content of a stream, which can't be taken back.
        random: Gives a number from 0 to 1 for the jitter.

    Returns:
        None where another attempt can't help, or the server asks for more than 120 s.
    """
    if started_content or not _may_help(error):
        return None
    if error.retry_after:
        return error.retry_after if error.retry_after <= LONGEST_PAUSE else None
    back_off = _FIRST_PAUSE * 2.0 ** min(attempt - 1, 10)  # the power of a very high attempt would overflow
    return min(back_off, _LAST_BACK_OFF) * (1 - _JITTER * random())


def _may_help(error: APIError) -> bool:
    if error.code == "insufficient_quota":  # sent as a 429, but only a payment ends it
        return False
    if error.response is None and isinstance(error, APIConnectionError):
        return _connecting_may_help(error)
    told = (error.response or {}).get("x-should-retry")
    if told in ("true", "false"):
        return bool(told == "true")
    status = error.status_code or 0
    return status in _RETRIED or (status >= 500 and status not in _FINAL)


def _connecting_may_help(error: APIConnectionError) -> bool:
    """Whether a request without an answer (refused, reset, broken off, timed out) is worth another one."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, Timeout):
        # Nobody has worked on a request that never got a connection. All other timeouts are the caller's own
        # patience: the model may still be at work, and charge for it, and each attempt would wait as long.
        return isinstance(cause, aiohttp.ConnectionTimeoutError)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return False
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        # No such name: mistyped. A resolver that is out of reach (EAI_AGAIN) may be back in a moment.
        return cause.os_error.errno != socket.EAI_NONAME
    # Not a wrong URL, too many redirects or an answer that is not HTTP.
    if isinstance(cause, aiohttp.ClientPayloadError) and isinstance(cause.__cause__, ContentEncodingError):
        return False  # the whole answer is there, and the next one would be written the same
    return cause is None or isinstance(
        cause, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)
    )
