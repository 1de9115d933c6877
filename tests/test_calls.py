"""The way of a call: retries, fallbacks, limits, timeouts, cancels, the caller's session, hostile servers.

Where the wire format makes a difference, against servers that speak OpenAI's, Anthropic's and Gemini's.
"""

from __future__ import annotations

import asyncio
import email.utils
import gc
import itertools
import json
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
from aiohttp.http_parser import HAS_BROTLI

import nbllm
from nbllm import limits, loops, retries, settings, tracing
from nbllm.options import Options
from nbllm.providers import PROVIDERS
from tests.providers_server import FORMATS, MP3, RETRY_MS, TEXT, WORDS, ProvidersServer, key_of
from tests.rows import connection_rows, only_row, request_rows, until
from tests.servers import full_backlog, refused_port, whole

KEYS = [key_of(name) for name in PROVIDERS]


@pytest.fixture(params=["openai", "anthropic", "gemini"])
def provider(request: pytest.FixtureRequest) -> str:
    """One of each format."""
    return str(request.param)


@pytest.fixture
def server() -> Iterator[ProvidersServer]:
    with ProvidersServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, isolated: None) -> None:
    for known in PROVIDERS.values():
        for name in (*known.base_url_variables, *known.key_variables):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The pauses between attempts, which are not waited for."""
    asked: list[float | None] = []
    real = retries.pause_before

    def pause_before(attempt: int, error: nbllm.APIError) -> float | None:
        asked.append(real(attempt, error))
        return None if asked[-1] is None else 0.0

    monkeypatch.setattr(retries, "pause_before", pause_before)
    return asked


def options_of(server: ProvidersServer, provider: str = "openai") -> dict[str, Any]:
    return {"base_url": server.base_url(provider), "api_key": key_of(provider)}


async def ask(server: ProvidersServer, model: str, provider: str = "openai", **options: Any) -> Any:
    """The answer of a model; a streamed one when all of it has been read."""
    answer = await nbllm.acompletion(
        f"{provider}/{model}", "Hi", **{**options_of(server, provider), **options}
    )
    if options.get("stream"):
        async for _ in answer:
            pass
    return answer


def answering(server: ProvidersServer, provider: str, data: bytes) -> None:
    """Have the provider answer every request with these bytes."""

    async def answer(x: Any) -> None:
        await x.send(data)

    server.behaviours[provider] = answer


def refusal(status: int, body: Any = None, **headers: Any) -> bytes:
    return whole(f"{status} No", json.dumps(body or {"error": {"message": "no"}}).encode(), **headers)


async def is_given_back(server: ProvidersServer) -> None:
    """The server has lost every connection but those that answered, and the next call gets through."""
    await server.seen(lambda: not any(c.open for c in server.connections))
    assert tracing.running() == []
    async with asyncio.timeout(5):
        assert (await ask(server, "good")).text == TEXT


# -- retries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_what_fails_twice_is_there_the_third_time(
    stream: bool, provider: str, server: ProvidersServer
) -> None:
    answer = await ask(server, "fails-twice", provider, num_retries=2, stream=stream)
    assert answer.text == TEXT
    rows = request_rows()
    assert [row.status for row in rows] == ["error", "error", "ok"]
    assert [row.http_status for row in rows] == [503, 503, 200]
    assert [row.attempt for row in rows] == [1, 2, 3]
    assert [row.retry_after_ms for row in rows] == [RETRY_MS, RETRY_MS, None]
    assert [row.error_type for row in rows] == ["ServiceUnavailableError"] * 2 + [None]
    assert len({row.call_id for row in rows}) == 1
    assert len({row.request_id for row in rows}) == 3
    assert [row.connection_reused for row in rows] == [seen.nth > 1 for seen in server.requests]
    assert len(server.connections) == 1
    for earlier, later in itertools.pairwise(rows):
        assert later.started_at - earlier.ended_at >= RETRY_MS / 1e3 - 1e-3
    assert answer.request.request_id == rows[-1].request_id


async def test_two_retries_unless_said_otherwise(
    server: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.delenv("NBLLM_NUM_RETRIES")
    settings.reset()
    for options in ({}, {"num_retries": 0}, {"max_retries": 1}, {"num_retries": 0, "max_retries": 5}):
        before = len(server.requests)
        with pytest.raises(nbllm.ServiceUnavailableError):
            await ask(server, "error-503", **options)
        counts.append(len(server.requests) - before)
    nbllm.configure(num_retries=3)
    with pytest.raises(nbllm.ServiceUnavailableError) as caught:
        await ask(server, "error-503")
    assert [*counts, len(server.requests) - sum(counts)] == [3, 1, 2, 1, 4]
    assert caught.value.request.attempt == 4


async def test_what_cant_succeed_is_asked_once(provider: str, server: ProvidersServer) -> None:
    statuses = [400, 401, 403, 404, 413, 422, 501]
    for status in statuses:
        with pytest.raises(nbllm.APIError) as caught:
            await ask(server, f"error-{status}", provider, num_retries=2)
        assert caught.value.status_code == status
    for model in ("html", "half-event"):  # an answer that makes no sense
        with pytest.raises(nbllm.APIResponseValidationError):
            await ask(server, model, provider, num_retries=2)
    assert [row.http_status for row in request_rows()] == [*statuses, 200, 200]
    assert {row.attempt for row in request_rows()} == {1}


@pytest.mark.parametrize("model", ["reset", "half-event", "no-end", "inside-error"])
async def test_nothing_is_tried_again_after_the_first_word(
    model: str, provider: str, server: ProvidersServer
) -> None:
    stream = await nbllm.acompletion(
        f"{provider}/{model}", "Hi", stream=True, num_retries=2, **options_of(server, provider)
    )
    with pytest.raises(nbllm.APIError):
        await read_with_gate(stream, server)
    assert stream.text == "".join(WORDS[:2])
    row = only_row()
    assert (row.status, row.attempt, len(server.requests)) == ("error", 1, 1)


async def read_with_gate(stream: Any, server: ProvidersServer) -> None:
    async for _ in stream:
        if stream.text == "".join(WORDS[:2]):
            server.open_gate()


async def test_what_never_was_an_answer_is_tried_again(
    provider: str, server: ProvidersServer, pauses: list[float | None]
) -> None:
    with pytest.raises(nbllm.APIConnectionError):
        await ask(server, "reset", provider, num_retries=2)
    with pytest.raises(nbllm.APIError, match="overloaded"):  # inside a 200
        await ask(server, "inside-error", provider, num_retries=1)
    assert [row.attempt for row in request_rows()] == [1, 2, 3, 1, 2]
    assert [row.status for row in request_rows()] == ["error"] * 5
    assert [pause for pause in pauses if pause is None] == []


async def test_the_pause_grows_and_is_jittered(server: ProvidersServer, pauses: list[float | None]) -> None:
    answering(server, "openai", refusal(500))
    for _ in range(5):
        with pytest.raises(nbllm.InternalServerError):
            await ask(server, "m", num_retries=2)
    assert all(pause is not None for pause in pauses)
    assert all(0.375 <= float(pause or 0) <= 0.5 for pause in pauses[::2])
    assert all(0.75 <= float(pause or 0) <= 1.0 for pause in pauses[1::2])
    assert len(set(pauses)) > 5


@pytest.mark.parametrize(
    ("ahead", "attempts"), [(100, 2), (3600, 1)], ids=["soon", "longer than anybody waits"]
)
async def test_retry_after_as_a_date(
    ahead: int, attempts: int, server: ProvidersServer, pauses: list[float | None]
) -> None:
    date = email.utils.formatdate(time.time() + ahead, usegmt=True)
    answering(server, "openai", refusal(429, Retry_After=date))
    with pytest.raises(nbllm.RateLimitError) as caught:
        await ask(server, "m", num_retries=1)
    assert caught.value.retry_after == pytest.approx(ahead, abs=2)
    assert [row.retry_after_ms for row in request_rows()] == [pytest.approx(ahead * 1e3, abs=2e3)] * attempts
    assert pauses == ([pytest.approx(ahead, abs=2)] if attempts == 2 else [None])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "2"}, 2.0),
        ({"Retry_After": "1.5"}, 1.5),
        ({"Retry_After": "2", "Retry_After_Ms": "250"}, 0.25),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "-5"}, 0.0),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
async def test_retry_after_in_other_forms(
    headers: Any, seconds: float | None, server: ProvidersServer, pauses: list[float | None]
) -> None:
    answering(server, "openai", refusal(429, **headers))
    with pytest.raises(nbllm.RateLimitError) as caught:
        await ask(server, "m", num_retries=1)
    assert caught.value.retry_after == seconds
    (pause,) = pauses
    assert pause == seconds if seconds else 0.375 <= float(pause or 0) <= 0.5


async def test_geminis_own_word_for_retry_after(server: ProvidersServer, pauses: list[float | None]) -> None:
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
    error = {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [delay]}
    answering(server, "gemini", refusal(429, {"error": error}))
    with pytest.raises(nbllm.RateLimitError):
        await ask(server, "m", "gemini", num_retries=1)
    assert pauses == [37.0]


async def test_the_server_may_forbid_another_attempt(server: ProvidersServer) -> None:
    answering(server, "openai", refusal(529, X_Should_Retry="false"))
    with pytest.raises(nbllm.APIError):
        await ask(server, "m", num_retries=2)
    assert only_row().http_status == 529


async def test_a_quota_that_is_used_up_is_asked_once(server: ProvidersServer) -> None:
    error = {"message": "You exceeded your quota", "type": "x", "code": "insufficient_quota"}
    answering(server, "openai", refusal(429, {"error": error}))
    with pytest.raises(nbllm.RateLimitError):
        await ask(server, "m", num_retries=2)
    assert only_row().attempt == 1


async def test_a_timeout_of_ones_own_is_asked_once(server: ProvidersServer) -> None:
    with pytest.raises(nbllm.Timeout):
        await ask(server, "hang", num_retries=2, timeout=0.05)
    assert only_row().attempt == 1


async def test_a_cancel_ends_the_pause_too(server: ProvidersServer) -> None:
    answering(server, "openai", refusal(503, Retry_After="100"))
    task = asyncio.ensure_future(ask(server, "m", num_retries=2))
    await until(lambda: [row for row in request_rows() if row.status == "error"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert only_row().status == "error"  # the one attempt that there was


@pytest.mark.parametrize("verb", ["embedding", "image_generation", "speech", "transcription", "models"])
def test_other_verbs_try_again_too(verb: str, server: ProvidersServer) -> None:
    given: dict[str, Any] = {
        "embedding": {"input": "a"},
        "image_generation": {"prompt": "a"},
        "speech": {"input": "a", "voice": "alloy"},
        "transcription": {"file": ("a.mp3", MP3)},
    }.get(verb, {})
    if verb == "models":
        answering(server, "openai", refusal(503, Retry_After_Ms=RETRY_MS))
        with pytest.raises(nbllm.ServiceUnavailableError):
            nbllm.models("openai", num_retries=2, **options_of(server))
    else:
        getattr(nbllm, verb)(model="openai/fails-twice", num_retries=2, **given, **options_of(server))
    rows = request_rows()
    assert [row.attempt for row in rows] == [1, 2, 3]
    assert len({row.call_id for row in rows}) == 1
    assert rows[-1].status == ("error" if verb == "models" else "ok")


# -- fallbacks -------------------------------------------------------------------------------------


@pytest.fixture
def both(server: ProvidersServer, monkeypatch: pytest.MonkeyPatch) -> ProvidersServer:
    """The environment knows OpenAI, Anthropic and Gemini."""
    for name, address, key in (
        ("openai", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
        ("gemini", "GEMINI_API_BASE", "GEMINI_API_KEY"),
    ):
        monkeypatch.setenv(address, server.base_url(name))
        monkeypatch.setenv(key, key_of(name))
    return server


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_the_next_model_answers_when_the_first_keeps_failing(
    stream: bool, both: ProvidersServer
) -> None:
    answer = await nbllm.acompletion(
        "openai/error-503",
        "Hi",
        num_retries=1,
        fallbacks=["anthropic/error-529", "gemini/good", "openai/good"],
        stream=stream,
    )
    if stream:
        async for _ in answer:
            pass
    assert answer.text == TEXT
    rows = request_rows()
    assert [(row.provider, row.request_model, row.status) for row in rows] == [
        ("openai", "error-503", "error"),
        ("openai", "error-503", "error"),
        ("anthropic", "error-529", "error"),
        ("anthropic", "error-529", "error"),
        ("gemini", "good", "ok"),
    ]
    assert [row.attempt for row in rows] == [1, 2, 3, 4, 5]
    assert len({row.call_id for row in rows}) == 1
    assert answer.request.request_id == rows[-1].request_id


async def test_a_fallback_with_address_and_key_of_its_own(server: ProvidersServer) -> None:
    fallback = {"model": "anthropic/good", **options_of(server, "anthropic")}
    answer = await ask(server, "error-500", fallbacks=[fallback])
    assert answer.text == TEXT
    assert server.requests[1].headers["x-api-key"] == key_of("anthropic")


async def test_a_fallbacks_address_has_litellms_name_too(server: ProvidersServer) -> None:
    given = options_of(server, "anthropic")
    fallback = {"model": "anthropic/good", "api_base": given["base_url"], "api_key": given["api_key"]}
    assert (await ask(server, "error-500", fallbacks=[fallback])).text == TEXT


async def test_key_and_address_of_the_first_model_are_not_the_fallbacks(both: ProvidersServer) -> None:
    await ask(both, "error-500", fallbacks="anthropic/good", api_key="sk-planted-other-0123456789")
    assert "sk-planted-other-0123456789" in both.requests[0].headers["authorization"]
    assert both.requests[1].headers["x-api-key"] == key_of("anthropic")
    assert "authorization" not in both.requests[1].headers


async def test_when_all_fail_the_first_error_tells_of_the_others(server: ProvidersServer) -> None:
    second = {"model": "anthropic/error-400", **options_of(server, "anthropic")}
    with pytest.raises(nbllm.InternalServerError, match="500") as caught:
        await ask(server, "error-500", fallbacks=[second, "mistral/large", "hosted_vllm/mine"])
    notes = caught.value.__notes__
    for note, model, why in zip(
        notes,
        ("anthropic/error-400", "mistral/large", "hosted_vllm/mine"),
        ("400: no", "MISTRAL_API_KEY", "HOSTED_VLLM_API_BASE"),
        strict=True,
    ):
        assert model in note
        assert why in note
    no_key_in(caught.value)


async def test_a_key_that_is_missing_is_a_failure_too(both: ProvidersServer) -> None:
    answer = await nbllm.acompletion("mistral/large", "Hi", fallbacks=["openai/good"])
    assert answer.text == TEXT
    assert only_row().provider == "openai"


async def test_a_parameter_that_the_first_model_lacks_is_a_failure_too(both: ProvidersServer) -> None:
    answer = await nbllm.acompletion("anthropic/good", "Hi", seed=1, fallbacks=["openai/good"])
    assert answer.text == TEXT
    assert only_row().provider == "openai"


@pytest.mark.parametrize(
    "fallbacks",
    [5, [5], [None], [{}], {"openai/good"}, [["openai/good"]],
     [{"model": "openai/good", "temperature": 0}], [{"model": "openai/good", "key": key_of("openai")}],
     [{"model": 5}], [""]],
    ids=repr,
)  # fmt: skip
async def test_fallbacks_that_cant_work_are_refused_before_anything_is_sent(
    fallbacks: Any, server: ProvidersServer
) -> None:
    with pytest.raises(nbllm.UsageProblem, match="fallbacks") as caught:
        await ask(server, "error-500", fallbacks=fallbacks)
    assert server.requests == []
    no_key_in(caught.value)


async def test_a_cancel_asks_no_fallback(both: ProvidersServer) -> None:
    task = asyncio.ensure_future(nbllm.acompletion("openai/hang", "Hi", fallbacks=["openai/good"]))
    await both.seen(lambda: bool(both.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert only_row().status == "cancelled"


def test_other_verbs_have_fallbacks_too(both: ProvidersServer) -> None:
    vectors = nbllm.embedding("anthropic/none", "a", fallbacks=["openai/error-500", "gemini/good"])
    assert vectors.array.shape == (1, 3)
    assert [row.provider for row in request_rows()] == ["openai", "gemini"]


# -- limits ----------------------------------------------------------------------------------------


async def test_one_at_a_time(server: ProvidersServer) -> None:
    nbllm.configure(max_concurrency=1)
    asked = [
        asyncio.ensure_future(nbllm.acompletion("m", "Hi", base_url=server.url("gated"))) for _ in range(3)
    ]
    await server.seen(lambda: bool(server.requests))
    await until(lambda: len(next(iter(limits._state.budgets.values())).limiter_on(loop())._waiting) == 2)
    assert len(server.requests) == 1
    assert (await ask(server, "good", "anthropic")).text == TEXT  # another provider, another queue
    server.open_gate()
    await asyncio.gather(*asked)
    rows = [row for row in request_rows() if row.provider == "openai"]
    assert rows[0].queued_ms == 0
    assert 0 < rows[1].queued_ms < rows[2].queued_ms
    for earlier, later in itertools.pairwise(rows):
        assert earlier.ended_at <= later.started_at
    for row in rows:
        assert row.duration_ms < 10_000


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_nobody_waits_without_a_limit(server: ProvidersServer) -> None:
    await ask(server, "good")
    assert only_row().queued_ms is None


async def test_requests_by_the_minute(server: ProvidersServer) -> None:
    await ask(server, "good")
    nbllm.configure(rpm={"openai": 240})  # 12 at once, then about 4 a second
    await asyncio.gather(*(ask(server, "good") for _ in range(13)))
    waited = [row.queued_ms for row in request_rows()][1:]
    assert waited[:12] == [0] * 12
    assert waited[12] > 0


async def test_tokens_by_the_minute(server: ProvidersServer) -> None:
    nbllm.configure(tpm=12_000)  # 600 at once: one request of an estimated 500 and some
    await asyncio.gather(*(ask(server, "good") for _ in range(3)))
    first, *others = [row.queued_ms for row in request_rows()]
    assert first == 0
    assert all(waited > 0 for waited in others)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_attempts_and_fallbacks_give_their_place_back(stream: bool, server: ProvidersServer) -> None:
    nbllm.configure(max_concurrency=1)
    again = {"model": "openai/fails-twice", **options_of(server)}
    async with asyncio.timeout(10):
        answer = await ask(server, "error-500", num_retries=2, fallbacks=[again], stream=stream)
        assert answer.text == TEXT
        assert (await ask(server, "good")).text == TEXT
    rows = request_rows()
    assert [row.queued_ms is not None for row in rows] == [True] * 7
    assert [row.status for row in rows] == ["error"] * 5 + ["ok"] * 2


async def test_every_end_gives_the_place_back(provider: str, server: ProvidersServer) -> None:
    nbllm.configure(max_concurrency=1)
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(server, "hang", provider), 0.05)
        with pytest.raises(nbllm.Timeout):
            await ask(server, "hang", provider, timeout=0.05)
        for model in ("html", "error-400", "inside-error"):
            with pytest.raises(nbllm.APIError):
                await ask(server, model, provider)
        async for _ in await nbllm.acompletion(
            f"{provider}/endless", "Hi", stream=True, **options_of(server, provider)
        ):
            break
        with refused_port() as port, pytest.raises(nbllm.APIConnectionError):
            await ask(server, "good", provider, base_url=f"http://127.0.0.1:{port}")
        assert (await ask(server, "good", provider)).text == TEXT


async def test_a_cancel_in_the_queue_sends_nothing(server: ProvidersServer) -> None:
    nbllm.configure(max_concurrency=1)
    first = asyncio.ensure_future(ask(server, "hang"))
    await server.seen(lambda: bool(server.requests))
    queued = [asyncio.ensure_future(ask(server, "good")) for _ in range(2)]
    await until(lambda: len(next(iter(limits._state.budgets.values())).limiter_on(loop())._waiting) == 2)
    queued[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued[0]
    first.cancel()
    assert (await queued[1]).text == TEXT
    assert len(server.requests) == 2
    assert [row.status for row in request_rows()] == ["cancelled", "ok"]


# -- timeouts and cancels --------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.05, aiohttp.ClientTimeout(sock_read=0.05)], ids=["number", "object"])
@pytest.mark.parametrize(("model", "stream"), [("hang", False), ("hang", True), ("stall", False)])
async def test_a_timeout(timeout: Any, model: str, stream: bool, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    with pytest.raises(nbllm.Timeout, match="timeout= sets how long to wait") as caught:
        await ask(server, model, timeout=timeout, stream=stream)
    assert server.base_url("openai") in str(caught.value)
    row = only_row()
    assert (row.status, row.error_type) == ("error", "Timeout")
    assert row.http_status == (200 if model == "stall" else None)
    await is_given_back(server)


@pytest.mark.parametrize("timeout", [0.1, aiohttp.ClientTimeout(sock_read=0.1)], ids=["number", "object"])
async def test_a_timeout_in_a_stream(timeout: Any, provider: str, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    stream = await nbllm.acompletion(
        f"{provider}/stall", "Hi", stream=True, timeout=timeout, **options_of(server, provider)
    )
    with pytest.raises(nbllm.Timeout):
        await read_with_gate(stream, server)
    assert stream.text == "".join(WORDS[:2])
    assert (only_row().status, only_row().error_type) == ("error", "Timeout")
    await is_given_back(server)


async def test_a_timeout_of_connecting(server: ProvidersServer) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=0.05)
    with full_backlog() as port, pytest.raises(nbllm.Timeout) as caught:
        await ask(server, "m", timeout=timeout, base_url=f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert (only_row().status, only_row().connection_id) == ("error", None)


async def test_an_endless_stream_has_an_end_in_time(provider: str, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    with pytest.raises(nbllm.Timeout):
        await ask(server, "endless", provider, stream=True, timeout=aiohttp.ClientTimeout(total=0.1))
    assert only_row().status == "error"
    await is_given_back(server)


@pytest.mark.parametrize("how", ["wait_for", "timeout", "cancel", "group"])
@pytest.mark.parametrize("model", ["hang", "stall"])
async def test_a_cancel(how: str, model: str, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    asking = ask(server, model)
    if how == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking, 0.05)
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asking
    else:
        task = asyncio.ensure_future(cancelled_with_its_group(asking) if how == "group" else asking)
        await server.seen(lambda: bool(server.requests))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    row = only_row()
    assert (row.status, row.error_type, row.input_tokens) == ("cancelled", None, None)
    await is_given_back(server)


async def test_a_cancel_while_connecting(server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    with full_backlog() as port:
        asking = asyncio.ensure_future(ask(server, "m", base_url=f"http://127.0.0.1:{port}/v1"))
        await until(lambda: tracing.running())
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        row = only_row()
        assert (row.status, row.connection_id, row.bytes_sent) == ("cancelled", None, None)
        await is_given_back(server)


async def cancelled_with_its_group(asking: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asking)


async def test_a_cancel_in_a_stream(provider: str, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    stream = await nbllm.acompletion(f"{provider}/stall", "Hi", stream=True, **options_of(server, provider))
    reading = asyncio.ensure_future(read_with_gate(stream, server))
    await until(lambda: stream.text == "".join(WORDS[:2]))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    row = only_row()
    assert (row.status, row.http_status, row.finish_reason) == ("cancelled", 200, None)
    assert row.chunks >= 2
    await is_given_back(server)


# -- the caller's own session ----------------------------------------------------------------------

VERBS: dict[str, dict[str, Any]] = {
    "completion": {"model": "openai/good", "messages": "Hi"},
    "embedding": {"model": "openai/good", "input": "a"},
    "image_generation": {"model": "openai/good", "prompt": "a"},
    "speech": {"model": "openai/good", "input": "a", "voice": "alloy"},
    "transcription": {"model": "openai/good", "file": ("a.mp3", MP3)},
    "models": {"provider": "openai"},
    "responses": {"model": "openai/good", "input": "Hi"},
}


async def opened(**options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(**options)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_session_that_cant_be_used_is_an_error_and_nothing_is_sent(
    verb: str, server: ProvidersServer
) -> None:
    closed = await opened()
    await closed.close()
    foreign_loop = asyncio.new_event_loop()
    foreign = await asyncio.to_thread(foreign_loop.run_until_complete, opened())
    call = getattr(nbllm, f"a{verb}")
    for session, text in (
        (closed, "closed"),
        (foreign, "another event loop"),
        ("a", "ClientSession, not str"),
    ):
        with pytest.raises(nbllm.UsageProblem, match=text):
            await call(**VERBS[verb], **options_of(server), shared_session=session)
    await asyncio.to_thread(foreign_loop.run_until_complete, foreign.close())
    foreign_loop.close()
    assert server.connections == request_rows() == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_of_synchronous_verbs(verb: str, server: ProvidersServer) -> None:
    with asyncio.Runner() as runner:
        foreign = runner.run(opened())
        call = getattr(nbllm, verb)
        with pytest.raises(nbllm.UsageProblem, match="another event loop"):
            call(**VERBS[verb], **options_of(server), shared_session=foreign)
        runner.run(foreign.close())
        with pytest.raises(nbllm.UsageProblem, match="closed"):
            call(**VERBS[verb], **options_of(server), shared_session=foreign)
    assert server.connections == request_rows() == []


def test_another_threads_call_over_a_session_of_this_one(server: ProvidersServer) -> None:
    session = loops.run_sync(opened())
    found: list[BaseException] = []

    def call() -> None:
        try:
            nbllm.completion("openai/good", "Hi", **options_of(server), shared_session=session)
        except nbllm.UsageProblem as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    loops.run_sync(session.close())
    assert "another event loop" in str(found[0])
    assert server.connections == []


async def test_a_second_session_takes_effect_at_once(server: ProvidersServer) -> None:
    async with await opened(headers={"X-Own": "1"}) as one, await opened(headers={"X-Own": "2"}) as two:
        for session in (one, two, None, one):
            await ask(server, "good", shared_session=session)
        assert [seen.headers.get("x-own") for seen in server.requests] == ["1", "2", None, "1"]
        assert [seen.connection.number for seen in server.requests] == [1, 2, 3, 1]
        assert [row.connection_reused for row in request_rows()] == [False, False, False, True]
        assert [one.closed, two.closed] == [False, False]


async def test_the_sessions_own_timeout_holds(server: ProvidersServer) -> None:
    async with await opened(timeout=aiohttp.ClientTimeout(total=0.05)) as session:
        with pytest.raises(nbllm.Timeout):
            await ask(server, "hang", shared_session=session)
    async with await opened(timeout=aiohttp.ClientTimeout(total=600)) as session:
        with pytest.raises(nbllm.Timeout):  # that of the call comes first
            await ask(server, "hang", shared_session=session, timeout=0.05)
        with pytest.raises(nbllm.Timeout):
            await ask(server, "hang", shared_session=session, timeout=0.05, stream=True)
        assert not session.closed
    assert [row.error_type for row in request_rows()] == ["Timeout"] * 3


async def test_the_limits_of_its_connector_hold(server: ProvidersServer) -> None:
    async with await opened(connector=aiohttp.TCPConnector(limit=2)) as session:
        await asyncio.gather(*(ask(server, "good", shared_session=session) for _ in range(6)))
        assert len(server.connections) == 2
    rows = request_rows()
    assert sorted(row.connection_reused for row in rows) == [False] * 2 + [True] * 4
    assert {row.local_port for row in connection_rows()} == {c.peer_port for c in server.connections}


async def test_its_headers_go_along_and_ours_are_on_top(provider: str, server: ProvidersServer) -> None:
    headers = {"User-Agent": "mine/1", "Content-Type": "text/plain", "X-Team": "a"}
    async with await opened(headers=headers) as session:
        await ask(server, "good", provider, shared_session=session, extra_headers={"X-Team": "b"})
    (seen,) = server.requests
    assert (seen.headers["user-agent"], seen.headers["x-team"]) == ("mine/1", "b")
    assert seen.headers["content-type"] == "application/json"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_session_that_raises_for_status(stream: bool, server: ProvidersServer) -> None:
    """aiohttp would raise an error of its own, without the provider's words."""
    async with await opened(raise_for_status=True) as session:
        with pytest.raises(nbllm.RateLimitError, match="429: no"):
            await ask(server, "error-429", shared_session=session, stream=stream)
        assert (await ask(server, "fails-twice", shared_session=session, num_retries=2)).text
    assert [row.http_status for row in request_rows()] == [429, 503, 503, 200]


async def test_it_is_traced_like_ours(provider: str, server: ProvidersServer) -> None:
    async with await opened() as session:
        await ask(server, "good", provider)
        await ask(server, "good", provider, shared_session=session)
    ours, own = (vars(row) for row in request_rows())
    assert {k for k, v in ours.items() if v is None} == {k for k, v in own.items() if v is None}
    for name in ("bytes_sent", "bytes_received", "operation", "status", "connection_reason"):
        assert ours[name] == own[name]


async def test_it_stays_open_whatever_happens(server: ProvidersServer) -> None:
    async with await opened(connector=aiohttp.TCPConnector(limit=1)) as session:
        for model in ("error-400", "html", "inside-error", "half-event"):
            with pytest.raises(nbllm.APIError):
                await ask(server, model, shared_session=session, stream=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(server, "hang", shared_session=session), 0.05)
        async with asyncio.timeout(5):
            assert (await ask(server, "good", shared_session=session)).text == TEXT
        assert not session.closed


async def test_a_stream_whose_session_is_closed_ends_with_an_error(server: ProvidersServer) -> None:
    session = await opened()
    stream = await nbllm.acompletion(
        "openai/stall", "Hi", stream=True, shared_session=session, **options_of(server)
    )
    with pytest.raises((nbllm.APIConnectionError, RuntimeError), match="closed"):
        await read_and_close(stream, session)
    assert only_row().status == "error"


async def read_and_close(stream: Any, session: aiohttp.ClientSession) -> None:
    async for _ in stream:
        if stream.text == "".join(WORDS[:2]):
            await session.close()


# -- messages --------------------------------------------------------------------------------------


def no_key_in(error: BaseException) -> None:
    """No key in an error, its notes, its causes and their traceback."""
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    assert [key for key in KEYS if key in shown] == []


KEYED = [p for p in PROVIDERS.values() if p.key_variables and not p.key_optional]
HOMELESS = [p for p in PROVIDERS.values() if p.base_url is None]


@pytest.mark.parametrize("keyed", KEYED, ids=lambda p: p.name)
async def test_a_missing_key_names_its_variable(keyed: Any) -> None:
    with pytest.raises(
        nbllm.AuthenticationError, match=rf"no key for {keyed.name}: .*{keyed.key_variables[0]}"
    ):
        await nbllm.acompletion(f"{keyed.name}/m", "Hi")
    assert request_rows() == []


@pytest.mark.parametrize("homeless", HOMELESS, ids=lambda p: p.name)
async def test_a_missing_address_names_its_variable(homeless: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match=homeless.base_url_variables[0]):
        await nbllm.acompletion(f"{homeless.name}/m", "Hi", api_key=key_of(homeless.name))


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("opanai/gpt-4o", "openai"),
        ("antropic/claude-sonnet-4-5", "anthropic"),
        ("gemni/gemini-2.5-flash", "gemini"),
        ("olama/llama3.2", "ollama"),
        ("litellm-proxy/m", "litellm_proxy"),
    ],
)
async def test_an_unknown_provider_names_the_nearest(model: str, meant: str) -> None:
    with pytest.raises(nbllm.NotFoundError, match=f"did you mean '{meant}'"):
        await nbllm.acompletion(model, "Hi")
    with pytest.raises(nbllm.UsageProblem, match=f"did you mean '{meant}'"):
        await nbllm.amodels(model.partition("/")[0])


@pytest.mark.parametrize(
    ("model", "meant"),
    [("gtp-4o-mini", "gpt-"), ("cluade-sonnet-4-5", "claude-"), ("gemni-2.5-pro", "gemini-")],
)
async def test_an_unknown_model_names_the_nearest(model: str, meant: str) -> None:
    with pytest.raises(nbllm.NotFoundError, match=f"did you mean '{meant}"):
        await nbllm.acompletion(model, "Hi")


async def test_a_model_that_the_provider_lacks(provider: str, server: ProvidersServer) -> None:
    with pytest.raises(nbllm.NotFoundError, match="404: no") as caught:
        await ask(server, "error-404", provider)
    assert caught.value.model == f"{provider}/error-404"
    no_key_in(caught.value)


async def test_an_unreachable_server_names_the_url(provider: str, server: ProvidersServer) -> None:
    with refused_port() as port, pytest.raises(nbllm.APIConnectionError) as caught:
        await ask(server, "m", provider, base_url=f"http://127.0.0.1:{port}/v1", stream=True)
    assert f"http://127.0.0.1:{port}/v1" in str(caught.value)
    no_key_in(caught.value)


async def test_no_error_shows_a_key(provider: str, server: ProvidersServer, log_path: Path) -> None:
    server.open_gate()
    for model in ("error-401", "error-500", "inside-error", "html", "reset"):
        for stream in (False, True):
            with pytest.raises(nbllm.APIError) as caught:
                await ask(server, model, provider, stream=stream)
            no_key_in(caught.value)
    nbllm.log.flush()
    kept = b"".join(file.read_bytes() for file in log_path.parent.iterdir() if file.is_file())
    assert [key for key in KEYS if key.encode() in kept] == []
    assert not [key for key in KEYS if key in nbllm.requests().to_csv()]


async def test_locals_in_a_verbose_traceback_show_no_key(server: ProvidersServer) -> None:
    headers = {"X-Api-Key": key_of("azure")}
    fallbacks = [{"model": "anthropic/error-500", **options_of(server, "anthropic")}]
    with pytest.raises(nbllm.APIError) as caught:
        await ask(server, "error-500", extra_headers=headers, fallbacks=fallbacks)
    taken = [
        repr(value)
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        for value in frame.f_locals.values()
        if isinstance(value, Options)
    ]
    assert taken
    assert [key for key in KEYS if key in repr(taken)] == []


# -- hostile servers -------------------------------------------------------------------------------

# OpenAI's errors have no status inside: Anthropic's and Gemini's do.
INSIDE = (nbllm.RateLimitError, nbllm.InternalServerError)
BROKEN = {
    "html": nbllm.APIResponseValidationError,
    "half-event": nbllm.APIResponseValidationError,
    "inside-error": INSIDE,
    "reset": nbllm.APIConnectionError,
}


@pytest.mark.parametrize("model", BROKEN)
async def test_a_broken_answer_is_an_error(model: str, provider: str, server: ProvidersServer) -> None:
    with pytest.raises(BROKEN[model]) as caught:
        await ask(server, model, provider)
    row = only_row()
    assert (row.status, row.error_type) == ("error", type(caught.value).__name__)
    assert row.http_status == (None if model == "reset" else 200)
    assert (row.error_type == "RateLimitError") == (model == "inside-error" and provider != "openai")
    assert server.base_url(provider) in str(caught.value) or model == "inside-error"
    assert (await ask(server, "good", provider)).text == TEXT


BROKEN_STREAMS = {
    "html": (nbllm.APIResponseValidationError, "Please log in"),
    "half-event": (nbllm.APIConnectionError, "broke off after"),
    "no-end": (nbllm.APIConnectionError, "broke off after"),
    "inside-error": (INSIDE, "overloaded"),
    "reset": (nbllm.APIConnectionError, "reset"),
}


@pytest.mark.parametrize("model", BROKEN_STREAMS)
async def test_a_broken_stream_gives_its_words_and_then_the_error(
    model: str, provider: str, server: ProvidersServer
) -> None:
    kind, text = BROKEN_STREAMS[model]
    stream = await nbllm.acompletion(f"{provider}/{model}", "Hi", stream=True, **options_of(server, provider))
    with pytest.raises(kind, match=text) as caught:
        await read_with_gate(stream, server)
    assert stream.text == ("" if model == "html" else "".join(WORDS[:2]))
    row = only_row()
    assert (row.status, row.error_type, row.http_status) == ("error", type(caught.value).__name__, 200)
    with pytest.raises(kind):  # and again
        await anext(stream)
    assert (await ask(server, "good", provider)).text == TEXT


@pytest.mark.parametrize(("model", "stream"), [("crlf", True), ("gzip", False), ("gzip", True)])
async def test_odd_but_right(model: str, stream: bool, provider: str, server: ProvidersServer) -> None:
    answer = await ask(server, model, provider, stream=stream)
    assert answer.text == TEXT
    assert answer.usage.total_tokens == 16
    row = only_row()
    assert (row.status, row.bytes_received) == ("ok", server.requests[0].bytes_out)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_brotli(stream: bool, provider: str, server: ProvidersServer) -> None:
    """Read where the package Brotli is there, which nbllm says to the server; else a clear error."""
    if HAS_BROTLI:
        assert (await ask(server, "br", provider, stream=stream)).text == TEXT
    else:
        with pytest.raises(nbllm.APIConnectionError, match="brotli"):
            await ask(server, "br", provider, stream=stream)
        assert only_row().status == "error"
    assert ("br" in server.requests[0].headers["accept-encoding"]) == HAS_BROTLI


async def test_an_encoding_that_is_not_understood_is_met_once(provider: str, server: ProvidersServer) -> None:
    """The model has answered, and would again in the same encoding: another attempt only costs."""
    body = json.dumps(FORMATS[provider].answer("m", TEXT)).encode()
    answering(server, provider, whole("200 OK", body, Content_Encoding="gzip"))
    with pytest.raises(nbllm.APIConnectionError, match="gzip"):
        await ask(server, "m", provider, num_retries=2)
    assert len(server.requests) == 1


async def test_json_where_a_stream_was_asked_for(provider: str, server: ProvidersServer) -> None:
    how = FORMATS[provider]
    for body, kind, text in (
        (how.error(429, "too much"), INSIDE, "too much"),
        (how.answer("m", TEXT), nbllm.APIResponseValidationError, "no answer to chat"),
    ):
        answering(server, provider, whole("200 OK", json.dumps(body).encode()))
        with pytest.raises(kind, match=text):
            await ask(server, "m", provider, stream=True)
    assert [row.status for row in request_rows()] == ["error"] * 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_ten_megabytes(stream: bool, provider: str, server: ProvidersServer) -> None:
    answer = await ask(server, "big", provider, stream=stream)
    assert len(answer.text) == 10_000_000 + stream
    row = only_row()
    assert (row.status, row.bytes_received) == ("ok", server.requests[0].bytes_out)


async def test_an_endless_stream_ends_when_its_reader_leaves(provider: str, server: ProvidersServer) -> None:
    nbllm.configure(limit=1)
    read = 0
    stream = await nbllm.acompletion(f"{provider}/endless", "Hi", stream=True, **options_of(server, provider))
    async for _ in stream:
        read += 1
        if read == 1000:
            break
    assert stream.text == WORDS[1] * 1000
    row = only_row()
    assert (row.status, row.chunks) == ("incomplete", 1000)
    await is_given_back(server)


# -- what an attack found --------------------------------------------------------------------------


async def test_a_place_is_free_when_the_answer_has_come_though_nobody_reads_it(
    server: ProvidersServer,
) -> None:
    nbllm.configure(max_concurrency=1)
    place = {"base_url": server.base_url("openai"), "api_key": key_of("openai")}
    stream = await nbllm.acompletion("good", "Hi", stream=True, **place)
    reading = aiter(stream)
    await anext(reading)
    await until(lambda: stream.request.wire_ended is not None)
    assert (await asyncio.wait_for(ask(server, "good"), 5)).text == TEXT
    stream.close()
    assert [row.status for row in request_rows()] == ["ok", "ok"]


async def test_a_pause_of_one_server_is_not_anothers(server: ProvidersServer) -> None:
    nbllm.configure(max_concurrency=10)

    async def busy(x: Any) -> None:
        await x.send(whole("429 Too Many Requests", b"{}", Retry_After=60))

    with ProvidersServer() as other:
        other.behaviours["busy"] = busy
        with pytest.raises(nbllm.RateLimitError):
            await nbllm.acompletion("m", "Hi", base_url=other.url("busy"))
        assert (await asyncio.wait_for(ask(server, "good"), 5)).text == TEXT


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "azure"])
async def test_a_key_does_not_follow_a_redirect(provider: str, server: ProvidersServer) -> None:
    async def moved(x: Any) -> None:
        await x.send(whole("307 Temporary Redirect", b"", Location="http://127.0.0.1:9/elsewhere"))

    server.behaviours["moved"] = moved
    url = server.url("moved")
    with pytest.raises(nbllm.APIError, match=r"redirects to http://127\.0\.0\.1:9/elsewhere"):
        await nbllm.acompletion(f"{provider}/m", "Hi", base_url=url, api_key="planted-key-1")
    assert only_row().http_status == 307


async def test_models_of_all_providers_take_no_key_along() -> None:
    for given in ({"api_key": "planted"}, {"base_url": "http://127.0.0.1:9"}, {"extra_headers": {"a": "b"}}):
        with pytest.raises(nbllm.UsageProblem, match="name the provider"):
            await nbllm.amodels(**given)


async def test_credentials_among_the_parameters_are_not_kept(server: ProvidersServer, log_path: Path) -> None:
    await ask(server, "good", extra_body={"aws_secret_access_key": "planted/secret-1", "tools": [
        {"type": "mcp", "headers": {"X-Api-Key": "planted-secret-2"}, "authorization": "planted-secret-3"}
    ]}, metadata={"headers": {"Authorization": "Basic planted-secret-4"}})  # fmt: skip
    assert "planted" not in nbllm.requests().to_csv()
    nbllm.log.flush()
    assert b"planted" not in log_path.read_bytes()


async def test_headers_with_a_key_stay_with_the_first_server(server: ProvidersServer) -> None:
    with ProvidersServer() as other:
        good = {"model": "openai/good", "base_url": other.base_url("openai"), "api_key": key_of("openai")}
        answer = await nbllm.acompletion(
            "openai/error-500",
            "Hi",
            base_url=server.base_url("openai"),
            api_key=key_of("openai"),
            extra_headers={"X-Other-Key": "hidden-value-5"},
            fallbacks=[good],
        )
        assert answer.text == TEXT
        assert b"hidden-value" not in repr(other.requests).encode()


async def test_extra_query_goes_into_the_url(server: ProvidersServer) -> None:
    with pytest.raises(nbllm.NotFoundError):  # by this server, which tells what it was asked for
        await ask(server, "good", extra_query={"tag": "x"})
    assert server.requests[-1].path.endswith("/chat/completions?tag=x")
    fields = {"api-version": "2025-01-01", "n": 2, "a b": "ü&"}
    embedding = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    for provider in ("openai", "azure"):
        answering(server, provider, whole("200 OK", json.dumps(embedding).encode()))
        await nbllm.aembedding(f"{provider}/m", "Hi", extra_query=fields, **options_of(server, provider))
        request = server.requests[-1]
        query = parse_qsl(urlsplit(request.path).query)
        assert query == [(name, str(value)) for name, value in fields.items()]  # Azure's version is replaced
        assert not fields.keys() & request.json.keys()


async def test_extra_query_that_cant_be_sent_is_refused(server: ProvidersServer) -> None:
    for wrong in ("a=b", {"a": {"b": 1}}, {"a": None}, {1: "b"}):
        with pytest.raises(nbllm.UsageProblem, match="extra_query must be a dict"):
            await nbllm.aembedding("openai/m", "Hi", extra_query=wrong, **options_of(server))
    assert server.requests == []


async def test_a_key_in_the_query_is_not_shown_and_stays_with_the_first_server(
    server: ProvidersServer, log_path: Path
) -> None:
    key = "planted-in-the-query"
    first = {"extra_query": {"key": key}, **options_of(server)}
    answering(server, "openai", refusal(400))
    await nbllm.aembedding("openai/m", "Hi", fallbacks=[options_of(server, "groq")], **first)
    assert [key in request.path for request in server.requests] == [True, False]
    first["base_url"] = server.url("hang")
    with pytest.raises(nbllm.Timeout) as caught:
        await nbllm.aembedding("openai/m", "Hi", timeout=0.1, **first)
    assert key not in str(caught.value)
    assert key not in nbllm.requests().to_csv()
    nbllm.log.flush()
    assert key.encode() not in b"".join(file.read_bytes() for file in log_path.parent.iterdir())


async def test_a_flat_error_in_a_stream_keeps_its_message(server: ProvidersServer) -> None:
    async def flat(x: Any) -> None:
        body = b'data: {"object":"error","message":"boom","code":400}\n\n'
        await x.send(whole("200 OK", body, "text/event-stream"))

    server.behaviours["flat"] = flat
    with pytest.raises(nbllm.APIError, match="boom"):
        async for _ in await nbllm.acompletion("m", "Hi", base_url=server.url("flat"), stream=True):
            pass


async def test_what_is_no_answer_is_an_error_of_every_verb(server: ProvidersServer) -> None:
    async def odd(x: Any) -> None:
        await x.send(whole("200 OK", b'{"foo": 1}'))

    server.behaviours["odd"] = odd
    url = server.url("odd")
    for call in (
        nbllm.aresponses("Hi", model="openai/m", base_url=url),
        nbllm.aembedding("m", "Hi", base_url=url),
    ):
        with pytest.raises(nbllm.APIResponseValidationError, match=r"no answer to (responses|embeddings)"):
            await call


@pytest.mark.parametrize(
    "call",
    [
        lambda: nbllm.aembedding(None, "x"),  # type: ignore[arg-type]
        lambda: nbllm.amodels(5),  # type: ignore[arg-type]
        lambda: nbllm.acompletion("gemini/g", [{"role": "assistant", "tool_calls": 5}], api_key="k"),
        lambda: nbllm.aresponses("x", "anthropic/m", previous_response_id="\ud800", api_key="k"),
    ],
)
async def test_nonsense_is_a_usage_problem(call: Any) -> None:
    with pytest.raises(nbllm.UsageProblem):
        await call()


def test_each_synchronous_call_of_a_script_has_the_session_of_its_place(demo: Any) -> None:
    def ask_demo() -> None:
        nbllm.completion("fast", "Hi", base_url=demo.url)

    with nbllm.session("review"):
        ask_demo()
    ask_demo()
    with nbllm.session("other"):
        ask_demo()
    assert [row.session_id for row in request_rows()] == ["review", nbllm.current_session(), "other"]


async def test_what_only_sounds_like_a_key_is_kept(server: ProvidersServer) -> None:
    await ask(server, "good", prompt_cache_key="chapter", metadata={"key": "chapters", "token": "chapters"})
    assert only_row().params is not None
    assert "[key]" not in only_row().params


async def test_what_has_ended_leaves_no_work_to_the_garbage_collector(server: ProvidersServer) -> None:
    await ask(server, "good")  # the first call makes pools and caches
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await ask(server, "good")
        foreign = nbllm.shared_session().post(
            f"{server.base_url('openai')}/chat/completions", json={"model": "good"}
        )
        async with foreign as response:
            await response.read()
        assert len(request_rows()) == 3
        gc.collect()
        left = [item for item in gc.garbage if isinstance(item, (tracing.Call, tracing.Record))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
