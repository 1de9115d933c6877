"""Warnings of what went wrong beside a call, which goes on: once per text, and never by raising."""

from __future__ import annotations

import warnings

from .kept import kept


class _State:
    """What was warned of already."""

    def __init__(self) -> None:
        self.warned: set[str] = set()


_state = kept(__name__, _State)


def warn_once(message: str) -> None:
    """Warn with `message`, unless that was done before in this process."""
    if message in _state.warned:
        return
    _state.warned.add(message)
    try:
        # Explicitly, so that no line of ours is shown, which would say nothing to the user.
        warnings.warn_explicit(f"nbllm: {message}", RuntimeWarning, "nbllm", 1, module="nbllm")
    except RuntimeWarning:  # warnings are errors here; the user's call goes on all the same
        pass


def reset() -> None:
    """Forget what was warned of (for tests)."""
    _state.warned.clear()
