"""What the demo server counted: connections, requests, bytes and tokens.

Owns the numbers behind `/stats`, and their lock: they are written on the server's loop and read from
any thread. Knows nothing of HTTP. Called by `demo` (connections) and `demo_endpoints` (requests).

The numbers are the witness against which nbllm's own records are tested, so an outcome is counted
before the last byte of the answer leaves: whoever has read an answer finds it counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["ok", "failed", "disconnected"]

CLOSED_CONNECTIONS_KEPT = 10_000


@dataclass(slots=True)
class Connection:
    """One TCP connection, from accept to close."""

    id: int
    peer: str
    open: bool = True
    model_requests: int = 0
    other_requests: int = 0


@dataclass(slots=True)
class Totals:
    """Events since the start, or since the last reset."""

    connections_opened: int = 0
    connections_closed: int = 0
    connections_open_peak: int = 0
    connections_with_model_requests: int = 0
    requests_total: int = 0
    requests_ok: int = 0
    requests_failed: int = 0
    requests_disconnected: int = 0
    requests_streamed: int = 0
    requests_open_peak: int = 0
    other_requests: int = 0
    request_body_bytes: int = 0
    response_body_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Counts:
    """The counters of one server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._totals = Totals()
        self._open: dict[Hashable, Connection] = {}
        self._closed: deque[Connection] = deque(maxlen=CLOSED_CONNECTIONS_KEPT)
        self._requests_open = 0
        self._last_id = 0

    def connection_opened(self, key: Hashable, peer: str) -> None:
        """Count a new connection; `key` is what the other methods know it by."""
        with self._changed:
            self._last_id += 1
            self._open[key] = Connection(self._last_id, peer)
            self._totals.connections_opened += 1
            self._totals.connections_open_peak = max(self._totals.connections_open_peak, len(self._open))
            self._changed.notify_all()

    def connection_closed(self, key: Hashable) -> None:
        """Count the end of a connection, whoever ended it."""
        with self._changed:
            connection = self._open.pop(key)
            connection.open = False
            self._closed.append(connection)
            self._totals.connections_closed += 1
            self._changed.notify_all()

    def other_request(self, key: Hashable) -> None:
        """Count a request that is no chat request, such as one to `/stats`."""
        with self._changed:
            self._totals.other_requests += 1
            if connection := self._open.get(key):
                connection.other_requests += 1
            self._changed.notify_all()

    def model_request(self, key: Hashable) -> Exchange:
        """Count a chat request that has just arrived; its outcome is told to the `Exchange`."""
        with self._changed:
            totals = self._totals
            totals.requests_total += 1
            self._requests_open += 1
            totals.requests_open_peak = max(totals.requests_open_peak, self._requests_open)
            if connection := self._open.get(key):
                connection.model_requests += 1
                totals.connections_with_model_requests += connection.model_requests == 1
            self._changed.notify_all()
        return Exchange(self, totals)

    def reset(self) -> None:
        """Zero all events. What is open now stays open; its end counts nowhere but in the connections."""
        with self._changed:
            self._totals = Totals(
                connections_open_peak=len(self._open), requests_open_peak=self._requests_open
            )
            self._closed.clear()
            for connection in self._open.values():
                connection.model_requests = connection.other_requests = 0
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """All numbers as plain values, see `DemoServer.stats`."""
        with self._changed:
            return self._stats()

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], timeout: float) -> dict[str, Any]:
        """Block until `condition(stats)` holds and return those stats; TimeoutError if it never does."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition(stats := self._stats()):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"The demo server did not get there in {timeout:g} s: {stats}")
            return stats

    def _stats(self) -> dict[str, Any]:
        return asdict(self._totals) | {
            "connections_open": len(self._open),
            "requests_open": self._requests_open,
            "connections": [asdict(c) for c in (*self._closed, *self._open.values())],
        }

    def _settle(self, exchange: Exchange, outcome: Outcome, prompt: int, completion: int) -> None:
        totals = exchange.totals
        with self._changed:
            if exchange.settled is None:
                self._requests_open -= 1
            else:
                self._add(totals, *exchange.settled, sign=-1)
            exchange.settled = (outcome, prompt, completion)
            self._add(totals, *exchange.settled, sign=1)
            self._changed.notify_all()

    @staticmethod
    def _add(totals: Totals, outcome: Outcome, prompt: int, completion: int, *, sign: int) -> None:
        name = f"requests_{outcome}"
        setattr(totals, name, getattr(totals, name) + sign)
        totals.prompt_tokens += sign * prompt
        totals.completion_tokens += sign * completion


class Exchange:
    """One chat request under way. It writes to the totals that it was begun with, also after a reset."""

    __slots__ = ("_counts", "settled", "totals")

    def __init__(self, counts: Counts, totals: Totals) -> None:
        self._counts = counts
        self.totals = totals
        self.settled: tuple[Outcome, int, int] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """None while the request is under way."""
        return self.settled[0] if self.settled else None

    def received(self, size: int) -> None:
        """Count the request's body."""
        with self._counts._changed:
            self.totals.request_body_bytes += size

    def streamed(self) -> None:
        """Count the request as one that asked for a stream."""
        with self._counts._changed:
            self.totals.requests_streamed += 1

    def sending(self, size: int) -> None:
        """Count bytes of the response's body, without the framing of the transfer."""
        with self._counts._changed:
            self.totals.response_body_bytes += size

    def settle(self, outcome: Outcome, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Count the outcome; a second call corrects the first (the last bytes could not be sent)."""
        self._counts._settle(self, outcome, prompt_tokens, completion_tokens)
