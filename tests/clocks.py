"""A clock, and timers on it, that a test moves."""

from __future__ import annotations

from collections.abc import Callable


class Time:
    """A clock, and the timers on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def later(self, seconds: float, function: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, function))
        return self.timers[-1]

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now + 1e-9]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.function()


class Timer:
    def __init__(self, at: float, function: Callable[[], None]) -> None:
        self.at, self.function, self.cancelled = at, function, False

    def cancel(self) -> None:
        self.cancelled = True
