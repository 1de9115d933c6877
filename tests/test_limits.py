"""The queues of providers: order, rates, pauses, and what becomes of a place that is not used."""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import nbllm
from nbllm import limits
from nbllm import settings as settings_module
from nbllm.limits import Limiter, estimate_tokens, limiter, note

UNLIMITED = {"max_concurrency": None, "rpm": None, "tpm": None}


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time does not pass but jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        return self.now


class JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nobody will come"
            self.loop.now += timeout
        return ready


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    limits._state.budgets.clear()
    yield
    limits._state.budgets.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that the test moves; the loop's timers go by the real one."""
    now = [1000.0]
    monkeypatch.setattr(limits, "monotonic", lambda: now[0])
    return now  # type: ignore[return-value]


def in_virtual_time(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a loop, and with limits, for which waiting costs no time."""
    limits._state.budgets.clear()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "monotonic", runner.get_loop().time)
        runner.run(story())


def queue(provider: str = "openai") -> Limiter:
    found = limiter(provider)
    assert found is not None
    return found


def give_back(turn: Limiter, estimated: int, actual: int | None) -> None:
    """What the end of a request does."""
    turn.release()
    if actual is not None:
        turn.settle(estimated, actual)


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


# ---- whether there is a limiter at all


async def test_nothing_is_limited_unless_somebody_says_so() -> None:
    assert limiter("openai") is None
    note("openai", {}, None)
    note("openai", {"x-ratelimit-remaining-requests": "12", "x-ratelimit-reset-requests": "1s"}, None)
    assert limiter("openai") is None
    assert not limits._state.budgets


async def test_a_number_limits_each_provider_by_itself() -> None:
    nbllm.configure(max_concurrency=1)
    await queue("openai").acquire(1)
    assert await queue("anthropic").acquire(1) == 0
    assert queue("openai") is queue("openai")
    assert queue("openai") is not queue("anthropic")


async def test_a_dict_limits_those_that_it_names() -> None:
    nbllm.configure(rpm={"openai": 5})
    assert limiter("openai") is not None
    assert limiter("anthropic") is None
    nbllm.configure(rpm=None)
    assert limiter("openai") is None


def test_an_old_loop_and_its_queue_are_forgotten() -> None:
    nbllm.configure(max_concurrency=1)
    seen: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def story() -> None:
        seen.append(weakref.ref(asyncio.get_running_loop()))
        await queue().acquire(1)
        waiting = asyncio.create_task(queue().acquire(1))
        await settle()
        waiting.cancel()

    asyncio.run(story())
    gc.collect()
    assert seen[0]() is None
    assert not limits._state.budgets["openai", ""].limiters


# ---- places


async def test_places_are_given_in_order_of_arrival() -> None:
    nbllm.configure(max_concurrency=3)
    order: list[int] = []
    running = most = 0

    async def request(number: int) -> None:
        nonlocal running, most
        turn = queue()
        await turn.acquire(1)
        order.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        give_back(turn, 1, 1)

    await asyncio.gather(*[request(number) for number in range(1000)])
    assert order == list(range(1000))
    assert most == 3
    assert queue()._held == 0


async def test_waiting_is_told_in_milliseconds(clock: list[float]) -> None:
    nbllm.configure(max_concurrency=1)
    turn = queue()
    assert await turn.acquire(1) == 0
    second = asyncio.create_task(turn.acquire(1))
    await settle()
    clock[0] += 2.5
    give_back(turn, 1, None)
    assert await second == pytest.approx(2500)


async def test_those_who_are_cancelled_leave_the_queue_as_it_was() -> None:
    nbllm.configure(max_concurrency=1)
    turn = queue()
    await turn.acquire(1)
    tasks = [asyncio.create_task(turn.acquire(1)) for _ in range(6)]
    await settle()
    for number in (0, 3, 5):
        tasks[number].cancel()
    for number in (1, 2, 4):
        give_back(turn, 1, 1)
        await tasks[number]
    give_back(turn, 1, 1)
    assert all(tasks[number].cancelled() for number in (0, 3, 5))
    assert turn._held == 0
    assert await turn.acquire(1) == 0


async def test_a_cancel_in_the_moment_of_ones_turn_gives_the_place_on() -> None:
    nbllm.configure(max_concurrency=1, rpm=600, tpm=60_000)
    turn = queue()
    await turn.acquire(1)
    first, second = (asyncio.create_task(turn.acquire(700)) for _ in range(2))
    await settle()
    give_back(turn, 1, 1)
    turn._advance()  # the first has its turn, but has not run since
    before = limits._state.budgets["openai", ""].tokens.level  # type: ignore[union-attr]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    await asyncio.wait_for(second, 5)
    after = limits._state.budgets["openai", ""].tokens.level  # type: ignore[union-attr]
    assert after == pytest.approx(before, abs=200)  # the first one's tokens went back, the second's are taken
    give_back(turn, 700, None)
    assert turn._held == 0


async def test_random_cancels_lose_no_place() -> None:
    nbllm.configure(max_concurrency=4)
    turn = queue()
    done = 0

    async def request(number: int) -> None:
        nonlocal done
        await turn.acquire(1)
        try:
            await asyncio.sleep(0)
            done += 1
        finally:
            give_back(turn, 1, None)

    tasks = [asyncio.create_task(request(number)) for number in range(500)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            await asyncio.sleep(0)
            tasks[-number - 1].cancel()
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert done == sum(not task.cancelled() for task in tasks) > 100
    assert turn._held == 0
    assert not turn._waiting


async def test_a_place_may_be_given_back_from_another_thread() -> None:
    nbllm.configure(max_concurrency=1)
    turn = queue()
    await turn.acquire(1)
    second = asyncio.create_task(turn.acquire(1))
    await settle()
    started = time.monotonic()
    threading.Timer(0.02, turn.release).start()  # while the loop sleeps
    await asyncio.wait_for(second, 5)
    assert time.monotonic() - started < 4


def test_a_place_may_be_given_back_after_its_loop_has_closed() -> None:
    nbllm.configure(max_concurrency=1)
    loop = asyncio.new_event_loop()

    async def story() -> Limiter:
        turn = queue()
        await turn.acquire(1)
        return turn

    turn = loop.run_until_complete(story())
    waiting = loop.create_task(turn.acquire(1))
    loop.run_until_complete(settle())
    waiting.cancel()
    loop.run_until_complete(settle())
    turn._waiting.append((1, loop.create_future()))  # as of a loop that was closed over its tasks
    loop.close()
    give_back(turn, 1, 1)
    assert turn._held == 0


# ---- rates


def test_sixty_a_minute() -> None:
    nbllm.configure(rpm=60)
    starts: list[float] = []

    async def story() -> None:
        loop = asyncio.get_running_loop()

        async def request() -> None:
            await queue().acquire(0)
            starts.append(loop.time() - 1000)

        await asyncio.gather(*[request() for _ in range(100)])

    in_virtual_time(story)
    assert starts[:3] == [0, 0, 0]  # the burst
    assert starts[3] == pytest.approx(60 / 58)
    assert sum(start < 60 for start in starts) == 60
    assert most_in_a_minute([(start, 1) for start in starts]) <= 60
    assert starts[-1] == pytest.approx(97 * 60 / 58)


def test_few_a_minute_come_evenly() -> None:
    nbllm.configure(rpm=3)
    starts: list[float] = []

    async def story() -> None:
        for _ in range(4):
            await queue().acquire(0)
            starts.append(asyncio.get_running_loop().time() - 1000)

    in_virtual_time(story)
    assert starts == pytest.approx([0, 20, 40, 60])


def test_tokens_limit_as_requests_do() -> None:
    nbllm.configure(tpm=60_000)
    starts: list[float] = []

    async def story() -> None:
        for _ in range(61):
            await queue().acquire(1000)
            starts.append(asyncio.get_running_loop().time() - 1000)

    in_virtual_time(story)
    assert starts[:3] == [0, 0, 0]
    assert starts[60] >= 60
    assert most_in_a_minute([(start, 1000) for start in starts]) <= 60_000


def test_a_request_above_the_whole_limit_goes_and_the_next_one_pays() -> None:
    nbllm.configure(tpm=1000)
    starts: list[float] = []

    async def story() -> None:
        for tokens in (5000, 1):
            await queue().acquire(tokens)
            starts.append(asyncio.get_running_loop().time() - 1000)

    in_virtual_time(story)
    assert starts[0] == 0
    assert starts[1] == pytest.approx(60 * 4951 / 951)


def test_a_big_request_at_the_head_is_not_overtaken() -> None:
    nbllm.configure(tpm=6000)
    order: list[int] = []

    async def story() -> None:
        async def request(tokens: int) -> None:
            await queue().acquire(tokens)
            order.append(tokens)

        await asyncio.gather(*[request(tokens) for tokens in (300, 299, 1, 200, 2)])

    in_virtual_time(story)
    assert order == [300, 299, 1, 200, 2]


def test_what_was_estimated_too_high_comes_back() -> None:
    nbllm.configure(tpm=60_000)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        turn = queue()
        await turn.acquire(30_000)
        waiting = asyncio.create_task(turn.acquire(1000))
        await asyncio.sleep(1)
        assert not waiting.done()
        give_back(turn, 30_000, 500)
        await waiting
        assert loop.time() == pytest.approx(1001, abs=0.01)

    in_virtual_time(story)


def test_what_was_estimated_too_low_is_paid_later() -> None:
    nbllm.configure(tpm=60_000)

    async def story() -> None:
        turn = queue()
        await turn.acquire(10)
        give_back(turn, 10, 30_000)
        assert await turn.acquire(10) > 25_000

    in_virtual_time(story)


def test_an_unknown_cost_leaves_the_estimate() -> None:
    nbllm.configure(tpm=60_000)

    async def story() -> None:
        turn = queue()
        await turn.acquire(30_000)
        give_back(turn, 30_000, None)
        assert await turn.acquire(10) > 25_000

    in_virtual_time(story)


def most_in_a_minute(starts: list[tuple[float, float]]) -> float:
    """The largest sum of amounts in any window of 60 s, its end left out."""
    most = total = 0.0
    first = 0
    for at, amount in starts:
        total += amount
        while starts[first][0] <= at - 60 + 1e-6:
            total -= starts[first][1]
            first += 1
        most = max(most, total)
    return most


arrivals = st.lists(
    st.tuples(st.floats(0, 30), st.integers(0, 3000), st.floats(0, 20)), min_size=1, max_size=80
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    max_concurrency=st.none() | st.integers(1, 5),
    rpm=st.none() | st.integers(1, 200) | st.floats(0.5, 10),
    tpm=st.none() | st.integers(2000, 100_000),
    requests=arrivals,
    cancelled=st.sets(st.integers(0, 79)),
)
def test_no_minute_exceeds_its_limit(
    max_concurrency: int | None,
    rpm: float | None,
    tpm: int | None,
    requests: list[tuple[float, int, float]],
    cancelled: set[int],
) -> None:
    nbllm.configure(max_concurrency=max_concurrency, rpm=rpm, tpm=tpm)
    starts: list[tuple[float, int, int]] = []
    arrived: list[int] = []
    running = most = 0

    async def story() -> None:
        loop = asyncio.get_running_loop()

        async def request(number: int, at: float, tokens: int, duration: float) -> None:
            nonlocal running, most
            await asyncio.sleep(at)
            turn = limiter("openai")
            if turn is None:
                assert max_concurrency is rpm is tpm is None
                return
            arrived.append(number)
            await turn.acquire(tokens)
            try:
                starts.append((loop.time(), number, tokens))
                running += 1
                most = max(most, running)
                await asyncio.sleep(duration)
                running -= 1
            finally:
                give_back(turn, tokens, None)

        tasks = [
            asyncio.create_task(request(number, *details)) for number, details in enumerate(sorted(requests))
        ]
        await asyncio.sleep(15)
        for number, task in enumerate(tasks):
            # Those under way would leave without being taken off `running`.
            if number in cancelled and number not in {started for _, started, _ in starts}:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if (turn := limiter("openai")) is not None:
            assert turn._held == 0
            assert len(starts) == sum(not task.cancelled() for task in tasks)

    in_virtual_time(story)
    started = [number for _, number, _ in starts]
    assert started == [number for number in arrived if number in set(started)]
    if max_concurrency is not None:
        assert most <= max_concurrency
    if rpm is not None:
        assert most_in_a_minute([(at, 1) for at, _, _ in starts]) <= math.ceil(rpm)
    if tpm is not None:
        largest = max((tokens for _, _, tokens in starts), default=0)
        most_tokens = most_in_a_minute([(at, tokens) for at, _, tokens in starts])
        assert most_tokens <= tpm + 1 + max(0.0, largest - tpm / 20)


# ---- what providers ask for


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 120),
        ("1m30.5s", 90.5),
        ("20ms", 0.02),
        ("1h2m3s", 120),
        ("500us", 5e-4),
        ("500µs", 5e-4),
        ("3", 3),
        ("0s", 0),
        ("", 0),
        ("soon", 0),
        ("1.2.3s", 0),
        ("nan", 0),
        ("inf", 120),
    ],
)
@pytest.mark.parametrize("what", ["requests", "tokens"])
async def test_a_used_up_limit_of_openai_stops_everybody(
    what: str, reset: str, seconds: float, clock: list[float]
) -> None:
    nbllm.configure(max_concurrency=100)
    turn = queue()
    note("openai", {f"x-ratelimit-remaining-{what}": "0", f"x-ratelimit-reset-{what}": reset}, None)
    assert await queue("groq").acquire(1) == 0
    if seconds == 0:
        assert await turn.acquire(1) == 0
        return
    assert limits._state.budgets["openai", ""].resume_at == pytest.approx(1000 + seconds)
    waiting = asyncio.create_task(turn.acquire(1))
    await settle()
    assert not waiting.done()
    waiting.cancel()
    clock[0] += seconds + 0.001
    assert await turn.acquire(1) == 0


@pytest.mark.parametrize("what", ["requests", "tokens"])
async def test_a_used_up_limit_of_anthropic_too(what: str, clock: list[float]) -> None:
    reset = (datetime.now(UTC) + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    headers = {f"anthropic-ratelimit-{what}-remaining": "0", f"anthropic-ratelimit-{what}-reset": reset}
    nbllm.configure(max_concurrency=100)
    queue("anthropic")
    note("anthropic", headers, None)
    assert limits._state.budgets["anthropic", ""].resume_at == pytest.approx(1030, abs=2)
    past = {**headers, f"anthropic-ratelimit-{what}-reset": "2020-01-01T00:00:00Z"}
    turn = queue("other")
    note("other", past, None)
    note("other", {**past, f"anthropic-ratelimit-{what}-reset": "never"}, None)
    assert await turn.acquire(1) == 0


async def test_the_longest_of_the_pauses_counts(clock: list[float]) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "4s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "7s",
    }
    nbllm.configure(rpm=60)
    queue()
    note("openai", headers, 5.0)
    assert limits._state.budgets["openai", ""].resume_at == 1007
    note("openai", {}, 2.0)
    assert limits._state.budgets["openai", ""].resume_at == 1007
    note("openai", {}, 3600.0)
    assert limits._state.budgets["openai", ""].resume_at == 1120


def test_a_retry_after_stops_the_queue_and_then_all_go_in_order() -> None:
    starts: list[tuple[int, float]] = []

    async def story() -> None:
        nbllm.configure(max_concurrency=100)
        turn = queue()
        note("openai", {}, 10.0)

        async def request(number: int) -> None:
            await turn.acquire(1)
            starts.append((number, asyncio.get_running_loop().time() - 1000))
            give_back(turn, 1, 1)

        tasks = [asyncio.create_task(request(number)) for number in range(3)]
        await asyncio.sleep(4)
        note("openai", {}, 20.0)
        await asyncio.gather(*tasks)

    in_virtual_time(story)
    assert [number for number, _ in starts] == [0, 1, 2]
    assert [at for _, at in starts] == pytest.approx([24] * 3, abs=0.01)


# ---- changes while they wait


async def test_those_who_wait_hear_of_new_limits() -> None:
    nbllm.configure(max_concurrency=1)
    turn = queue()
    await turn.acquire(1)
    tasks = [asyncio.create_task(turn.acquire(1)) for _ in range(4)]
    await settle()
    nbllm.configure(max_concurrency=3)
    await settle()
    assert [task.done() for task in tasks] == [True, True, False, False]
    nbllm.configure(**UNLIMITED)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert limiter("openai") is None


async def test_and_of_a_rate_that_was_lifted() -> None:
    nbllm.configure(rpm=1)
    turn = queue()
    await turn.acquire(1)
    waiting = asyncio.create_task(turn.acquire(1))
    await settle()
    assert not waiting.done()
    nbllm.configure(rpm={"anthropic": 1})
    await asyncio.wait_for(waiting, 5)


async def test_a_changed_rate_is_no_fresh_start(clock: list[float]) -> None:
    nbllm.configure(rpm=60)
    for _ in range(3):
        assert await queue().acquire(1) == 0
    nbllm.configure(rpm=61)
    waiting = asyncio.create_task(queue().acquire(1))
    await settle()
    assert not waiting.done()
    waiting.cancel()


async def test_limits_end_with_the_settings() -> None:
    nbllm.configure(rpm=1)
    await queue().acquire(1)
    settings_module.reset()
    assert limiter("openai") is None


# ---- several loops


def test_loops_share_the_rate_but_not_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "monotonic", lambda: 1000.0)
    nbllm.configure(rpm=60, max_concurrency=2)
    free: list[bool] = []

    async def story() -> None:
        for _ in range(2):
            attempt = asyncio.create_task(queue().acquire(1))
            await settle()
            free.append(attempt.done())
            attempt.cancel()

    asyncio.run(story())
    asyncio.run(story())
    assert free == [True, True, True, False]  # the fourth had a place, but the burst is three


def test_many_threads_together_keep_the_rate() -> None:
    nbllm.configure(rpm=1200)
    starts: list[float] = []

    async def story() -> None:
        for _ in range(17):
            await queue().acquire(1)
            starts.append(time.monotonic())

    threads = [threading.Thread(target=asyncio.run, args=(story(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(starts) == 68
    assert max(starts) - min(starts) >= (68 - 60) / 20  # 60 at once, and 19 a second after them


# ---- estimates


def test_an_estimate_is_a_quarter_of_the_body_and_the_longest_answer() -> None:
    assert estimate_tokens(b"x" * 400, 50) == 150
    assert estimate_tokens(b"x" * 400, 0) == 100
    assert estimate_tokens(b"x" * 400, None) == 600
    assert estimate_tokens(b"", None) == 500


def test_a_bucket_of_any_size_fills_in_a_minute() -> None:
    for limit in (0.5, 1, 3, 19, 20, 500, 2e6):
        bucket = limits._Bucket(limit)
        assert bucket.size >= 1
        assert bucket.size + bucket.per_second * 60 == pytest.approx(limit + 1)
        assert bucket.wait(math.inf) == 0
        bucket.level -= limit
        assert bucket.wait(1) == pytest.approx(60 * (1 - bucket.level) / (limit + 1 - bucket.size), rel=1e-3)
