"""How fast requests start, provider by provider: the user's limits, and what the providers ask for.

There are no queues until limits are set: without them, a call that is refused waits for itself alone.
Owns the queues in which attempts wait for their start, one per provider and event loop, each in order of
arrival. Called by `calls` around each attempt; sends nothing itself.

The rates (rpm, tpm) and a provider's pauses hold for all loops of the process together. `max_concurrency` is
counted loop by loop: a loop that a cell blocks can't give back what it holds, and no other may wait for it.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from time import monotonic, time

from .kept import kept
from .settings import Settings, on_change, settings

LONGEST_PAUSE = 120.0  # seconds: no header keeps a provider's queue waiting for longer
_SHORTEST_WAIT = 0.001  # seconds: a rounding error must not wake the loop over and over
_BURST = 1 / 20
_ANSWER_TOKENS = 500


def limiter(provider: str, address: str = "") -> Limiter | None:
    """The running loop's queue for a provider, by its name, at one of its addresses.

    Returns:
        None where the user has set no limit for the provider: nobody waits in a queue unasked.
    """
    values = settings()
    if values.max_concurrency is None and values.rpm is None and values.tpm is None:
        return None
    budget = _budget(provider, address)
    budget.follow(values)
    return budget.limiter_on(asyncio.get_running_loop()) if budget.limited else None


def note(provider: str, headers: Mapping[str, str], retry_after: float | None, address: str = "") -> None:
    """Have a provider's next requests wait where its answer asks for that, and the user has set limits.

    Args:
        provider: The provider's name.
        headers: Of the response; by lower-case name, where the mapping tells case.
        retry_after: Seconds of a 429's Retry-After; None where there is none.
        address: The base URL that answered.
    """
    budget = _state.budgets.get((provider, address))
    if budget is None or not budget.limited:
        return
    seconds = max(_until_reset(headers), retry_after or 0.0)
    if seconds > 0:
        budget.pause(seconds)


def estimate_tokens(body: bytes, max_tokens: int | None) -> int:
    """About how many tokens a request will cost: its body and the longest answer, 500 where that is open.

    A token is about four characters of English (OpenAI, "What are tokens and how to count them"). JSON's own
    characters, and above all an image in the body, make the estimate too high; `Limiter.settle` corrects it.
    """
    return len(body) // 4 + (_ANSWER_TOKENS if max_tokens is None else max_tokens)


class Limiter:
    """The queue for one provider on one event loop. Whoever has passed `acquire` must call `release` once."""

    def __init__(self, budget: _Budget, loop: asyncio.AbstractEventLoop) -> None:
        self._budget = budget
        self._loop = weakref.ref(loop)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, tokens: int) -> float:
        """Wait until it is this request's turn, and there is room for it under every limit.

        A request that needs more tokens than ever are free at once goes when all are; those behind it wait
        until its debt is paid.

        Args:
            tokens: Its estimated tokens, such as those of `estimate_tokens`.

        Returns:
            The milliseconds waited.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, future))
        self._advance()
        if future.done():
            return 0.0
        started = monotonic()
        try:
            await future
        except BaseException:
            if not future.cancel() and not future.cancelled():  # its turn came in the moment of the cancel
                with _state.lock:
                    self._held -= 1
                    self._budget.give_back(1, tokens)
            self._advance()
            raise
        return (monotonic() - started) * 1e3

    def release(self) -> None:
        """Give the place back when the request has ended; from any thread."""
        with _state.lock:
            self._held -= 1
        self._wake()

    def settle(self, estimated: int, actual: int) -> None:
        """Put the tokens that a request cost in the place of those given to `acquire`; from any thread."""
        with _state.lock:
            self._budget.give_back(0, estimated - actual)
        self._wake()

    def _wake(self) -> None:
        loop = self._loop()
        if self._waiting and loop is not None:
            try:
                loop.call_soon_threadsafe(self._advance)
            except RuntimeError:  # the loop is closed: nobody waits on it any more
                pass

    def _advance(self) -> None:
        """Start those at the head of the queue that may, and come back when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            tokens, future = self._waiting[0]
            if not future.done():  # else its task was cancelled
                wait = self._take(tokens)
                if wait > 0:
                    if wait < math.inf:
                        self._timer = future.get_loop().call_later(wait, self._advance)
                    return
                future.set_result(None)
            self._waiting.popleft()

    def _take(self, tokens: int) -> float:
        """Take a place: 0 where that worked, else the seconds to wait; inf until a place is given back."""
        with _state.lock:
            self._budget.follow(settings())
            if self._held >= self._budget.max_concurrency:
                return math.inf
            wait = self._budget.take(tokens)
            self._held += wait == 0
            return wait


class _Bucket:
    """An allowance by the minute that fills up evenly, and may be overdrawn.

    At most a twentieth of it (three seconds' worth; at least 1) is free at once, since providers enforce
    their limits over less than a minute too (OpenAI and Anthropic, "Rate limits": 60 a minute may mean 1 a
    second). It fills so much slower that no minute exceeds the limit, burst included; only a request larger
    than the burst may, by what it is larger.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.size = max(1.0, limit * _BURST)
        self.per_second = (limit + 1 - self.size) / 60
        self.level = self.size
        self.filled_at = monotonic()

    def wait(self, amount: float) -> float:
        """Seconds until so much may be taken, 0 for now."""
        now = monotonic()
        self.level = min(self.size, self.level + (now - self.filled_at) * self.per_second)
        self.filled_at = now
        missing = min(amount, self.size) - self.level
        return missing / self.per_second if missing > 1e-9 else 0.0


class _Budget:
    """What the loops share of one provider: its two buckets, and the time before which nobody starts."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.limited = False
        self.max_concurrency = math.inf
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.resume_at = -math.inf
        self.values: Settings | None = None
        self.limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Limiter] = (
            weakref.WeakKeyDictionary()
        )

    def limiter_on(self, loop: asyncio.AbstractEventLoop) -> Limiter:
        found = self.limiters.get(loop)
        if found is None:
            with _state.lock:
                found = self.limiters[loop] = Limiter(self, loop)
        return found

    def follow(self, values: Settings) -> None:
        """Take on the limits of the settings, where those have changed."""
        if values is self.values:
            return
        with _state.lock:
            at_once, rpm, tpm = (
                limit.get(self.provider) if isinstance(limit, Mapping) else limit
                for limit in (values.max_concurrency, values.rpm, values.tpm)
            )
            self.max_concurrency = math.inf if at_once is None else at_once
            self.requests = _bucket(rpm, self.requests)
            self.tokens = _bucket(tpm, self.tokens)
            self.limited = any(limit is not None for limit in (at_once, rpm, tpm))
            self.values = values

    def take(self, tokens: int) -> float:
        """Take one request and its tokens: 0 where that worked, else the seconds to wait."""
        wait = max(
            self.resume_at - monotonic(),
            self.requests.wait(1) if self.requests else 0.0,
            self.tokens.wait(tokens) if self.tokens else 0.0,
        )
        if wait > 0:
            return max(wait, _SHORTEST_WAIT)
        self.give_back(-1, -tokens)
        return 0.0

    def give_back(self, requests: int, tokens: int) -> None:
        for bucket, amount in ((self.requests, requests), (self.tokens, tokens)):
            if bucket is not None:
                bucket.level = min(bucket.size, bucket.level + amount)

    def pause(self, seconds: float) -> None:
        with _state.lock:
            self.resume_at = max(self.resume_at, monotonic() + min(seconds, LONGEST_PAUSE))


def _bucket(limit: float | None, old: _Bucket | None) -> _Bucket | None:
    if limit is None or (old is not None and old.limit == limit):
        return None if limit is None else old
    new = _Bucket(limit)
    if old is not None:  # a changed limit is no fresh start
        new.level = min(new.level, old.level)
    return new


class _State:
    """What is known of each provider, by its name and address."""

    def __init__(self) -> None:
        self.budgets: dict[tuple[str, str], _Budget] = {}
        # Reentrant: a collected stream may give its place back while this thread holds the lock.
        self.lock = threading.RLock()


_state = kept(__name__, _State)


def _budget(provider: str, address: str) -> _Budget:
    found = _state.budgets.get((provider, address))
    if found is None:
        with _state.lock:
            found = _state.budgets.setdefault((provider, address), _Budget(provider))
    return found


def _wake_all(values: Settings) -> None:
    with _state.lock:
        waiting = [limiter for budget in _state.budgets.values() for limiter in budget.limiters.values()]
    for each in waiting:
        each._wake()


on_change("limits", _wake_all)


_PARTS = re.compile(r"([\d.]+)(h|ms|us|µs|ns|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def _duration(text: str) -> float:
    """Seconds of a Go duration ("6m0s", "20ms"; OpenAI, Groq), or of a bare number (Azure)."""
    parts = _PARTS.findall(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else float(text)


def _until(text: str) -> float:
    """Seconds from now until an RFC 3339 time (Anthropic)."""
    return datetime.fromisoformat(text).timestamp() - time()


# What is left, when all of it is there again, and how that is written. Sources: OpenAI, "Rate limits in
# headers"; Anthropic, "Rate limits: Response headers", where tokens means the tightest of the token limits.
_HEADERS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", _duration),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", _duration),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset", _until),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset", _until),
)


def _until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until a limit that is used up is reset; 0 where none is, or its header makes no sense."""
    longest = 0.0
    for remaining, reset, seconds in _HEADERS:
        if headers.get(remaining) == "0":
            try:
                longest = max(longest, seconds(headers.get(reset, "")))
            except (ValueError, OverflowError):
                pass
    return longest
