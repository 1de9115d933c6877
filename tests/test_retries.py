"""The policy of retries: what is tried again, and after what pause."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.exceptions import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    Timeout,
    error_class,
)
from nbllm.retries import pause_before
from nbllm.settings import Settings

KEY: Any = Mock(host="api.example.com", port=443, ssl=True)


def refused(status: int, headers: dict[str, str] | None = None, **details: Any) -> APIError:
    """What a server's status becomes."""
    return error_class(status)("no", status_code=status, response=headers or {}, **details)


def broken(cause: BaseException, error: APIConnectionError | None = None) -> APIConnectionError:
    """What an error of aiohttp becomes."""
    error = error or (Timeout("late") if isinstance(cause, TimeoutError) else APIConnectionError("broken"))
    error.__cause__ = cause
    return error


def pauses(error: APIError, random: float = 0.0) -> list[float | None]:
    return [pause_before(attempt, error, random=lambda: random) for attempt in range(1, 8)]


def test_two_retries_are_the_default() -> None:
    assert Settings().num_retries == 2


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 520, 529])
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    assert pause_before(1, refused(status)) is not None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501, 505])
def test_a_status_that_stays_is_not(status: int) -> None:
    assert pause_before(1, refused(status)) is None


def test_an_answer_that_makes_no_sense_is_not_tried_again() -> None:
    assert pause_before(1, APIResponseValidationError("html", status_code=200, response={})) is None
    assert pause_before(1, APIError("nothing known")) is None


def test_a_quota_that_is_used_up_is_final() -> None:
    assert pause_before(1, refused(429, code="insufficient_quota")) is None
    assert pause_before(1, refused(429, {"x-should-retry": "true"}, code="insufficient_quota")) is None
    assert pause_before(1, refused(429, code="rate_limit_exceeded")) is not None


def test_the_pause_doubles_from_half_a_second_to_eight() -> None:
    assert pauses(refused(500)) == [0.5, 1, 2, 4, 8, 8, 8]
    assert pause_before(10_000, refused(500), random=lambda: 0) == 8


def test_jitter_takes_up_to_a_quarter_of_it() -> None:
    assert pauses(refused(500), random=1.0) == [0.375, 0.75, 1.5, 3, 6, 6, 6]


@given(st.integers(1, 2000))
def test_the_pause_is_never_zero_and_never_above_eight(attempt: int) -> None:
    pause = pause_before(attempt, refused(503))
    assert pause is not None
    assert 0.375 <= pause <= 8


def test_retry_after_is_obeyed_as_it_is() -> None:
    assert pauses(refused(429, retry_after=0.02), random=0.5) == [0.02] * 7
    assert pause_before(1, refused(503, retry_after=120.0)) == 120


def test_above_two_minutes_it_gives_up() -> None:
    assert pause_before(1, refused(429, retry_after=120.1)) is None
    assert pause_before(1, refused(429, {"x-should-retry": "true"}, retry_after=3600.0)) is None


def test_a_retry_after_of_zero_leaves_the_back_off() -> None:
    assert pause_before(1, refused(429, retry_after=0.0), random=lambda: 0) == 0.5


def test_retry_after_makes_no_final_error_worth_a_retry() -> None:
    assert pause_before(1, refused(400, retry_after=1.0)) is None


def test_the_servers_word_decides() -> None:
    assert pause_before(1, refused(500, {"x-should-retry": "false"})) is None
    assert pause_before(1, refused(400, {"x-should-retry": "true"})) is not None
    assert pause_before(1, refused(500, {"x-should-retry": "perhaps"})) is not None
    assert pause_before(1, refused(400, {"x-should-retry": "perhaps"})) is None


@pytest.mark.parametrize(
    "error", [refused(429, retry_after=1.0), refused(500), broken(aiohttp.ClientPayloadError("cut"))]
)
def test_nothing_is_tried_again_once_content_was_seen(error: APIError) -> None:
    assert pause_before(1, error) is not None
    assert pause_before(1, error, started_content=True) is None


@pytest.mark.parametrize(
    "cause",
    [
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
        aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        aiohttp.ClientConnectorSSLError(KEY, ssl.SSLEOFError(8, "EOF in the handshake")),
        aiohttp.ClientPayloadError("the answer broke off"),
        ConnectionResetError(),
        aiohttp.ConnectionTimeoutError("no connection in 15 s"),
        aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_AGAIN, "try again")),
    ],
)
def test_a_connection_that_failed_is_tried_again(cause: BaseException) -> None:
    assert pause_before(1, broken(cause), random=lambda: 0) == 0.5


@pytest.mark.parametrize(
    "cause",
    [
        aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("self-signed")),
        aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_NONAME, "not known")),
        aiohttp.NonHttpUrlClientError("htp://x"),
        aiohttp.InvalidUrlClientError("http://"),
        aiohttp.TooManyRedirects(KEY, ()),
        aiohttp.SocketTimeoutError("600 s of silence"),
        TimeoutError(),
    ],
)
def test_what_another_attempt_cant_mend_is_not(cause: BaseException) -> None:
    assert pause_before(1, broken(cause)) is None


def test_a_timeout_that_the_server_reports_is_tried_again() -> None:
    for status in (408, 504):
        error = refused(status)
        assert isinstance(error, Timeout)
        assert pause_before(1, error) is not None


def test_the_cause_is_found_where_the_error_was_raised_without_from() -> None:
    def call() -> None:
        try:
            raise aiohttp.ConnectionTimeoutError("late")
        except aiohttp.ClientError:
            raise Timeout("late")  # noqa: B904

    with pytest.raises(Timeout) as caught:
        call()
    assert pause_before(1, caught.value) is not None
    assert pause_before(1, APIConnectionError("no cause is known")) is not None
    assert pause_before(1, Timeout("no cause is known")) is None


async def test_a_refused_connection_as_aiohttp_reports_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError) as caught:
                await session.get(url)
            assert pause_before(1, broken(caught.value)) is not None
            with pytest.raises(aiohttp.ClientError) as caught:
                await session.get("htp://127.0.0.1/")
            assert pause_before(1, broken(caught.value)) is None


async def test_timeouts_as_aiohttp_reports_them() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        async with aiohttp.ClientSession() as session:
            for timeout in (aiohttp.ClientTimeout(total=0.05), aiohttp.ClientTimeout(sock_read=0.05)):
                with pytest.raises(TimeoutError) as caught:
                    await session.get(url, timeout=timeout)
                assert pause_before(1, broken(caught.value)) is None
