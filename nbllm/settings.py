"""Values that users set, with their precedence: argument > `configure` > environment > default.

Owns the settings object and the reading of keys from the environment. Knows nothing of who uses a
value: those who must act on a change register with `on_change`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from .exceptions import UsageProblem, did_you_mean
from .kept import kept

DEFAULT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `nbllm.configure` changes.

    Attributes:
        model: Model of `%%llm` when the cell names none. Env `NBLLM_MODEL`; without it "gpt-4o-mini"
            where OPENAI_API_KEY is set, else "demo/small".
        limit: Connections at once, over all hosts; 0 for no limit.
        limit_per_host: Connections at once to one host; 0 for no limit.
        keepalive_timeout: Seconds an idle connection is kept for reuse.
        timeout: An `aiohttp.ClientTimeout`, or a number of seconds for a whole request. Default: no
            total, 15 s to connect, 600 s of silence while reading.
        num_retries: How many more attempts a failure that may pass is worth, where a call doesn't say. Env
            `NBLLM_NUM_RETRIES`.
        log: Path of the SQLite log, None to keep the rows in memory, "" for the default place: `log.db`
            in the user's state folder. Env `NBLLM_LOG_PATH`, where "none" means None.
        content: Keep messages and answers beside the rows. Env `NBLLM_CONTENT` (0 switches it off).
        max_concurrency: Requests at once to one provider; None for no limit. A number holds for each provider
            by itself, a dict such as {"openai": 50} for those that it names.
        rpm: Requests that may start in a minute, likewise.
        tpm: Tokens, read and written, in a minute, likewise.
    """

    model: str | None = None
    limit: int = 1000
    limit_per_host: int = 0
    keepalive_timeout: float = 300.0
    timeout: aiohttp.ClientTimeout = DEFAULT_TIMEOUT
    num_retries: int = 2
    log: str | None = ""
    content: bool = True
    max_concurrency: int | Mapping[str, int] | None = None
    rpm: float | Mapping[str, float] | None = None
    tpm: float | Mapping[str, float] | None = None


class _State:
    """What `configure` set, and the settings that follow from it."""

    def __init__(self) -> None:
        self.configured: dict[str, Any] = {}
        self.listeners: dict[str, Callable[[Settings], None]] = {}
        self.current: Settings | None = None


_state = kept(__name__, _State)


def settings() -> Settings:
    """The settings now in force. The environment is read at first use and at each `configure`."""
    current = _state.current
    if current is None:
        current = _state.current = Settings(**{**_from_environment(os.environ), **_state.configured})
    return current


def default_model() -> str:
    """The model for `%%llm` where the cell names none."""
    env = os.environ
    fallback = "gpt-4o-mini" if env.get("OPENAI_API_KEY") else "demo/small"
    return settings().model or env.get("NBLLM_MODEL") or fallback


def configure(**values: Any) -> Settings:
    """Change settings for the rest of the kernel; those not named stay as they are.

    Args:
        **values: Any field of `Settings`: model, limit, limit_per_host, keepalive_timeout, timeout,
            num_retries, log, content, max_concurrency, rpm, tpm.

    Returns:
        All settings as they are now. `configure()` changes nothing and shows them.

    Raises:
        UsageProblem: An unknown name or a value that cannot be used; nothing is changed then.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    _state.configured.update(checked)
    _state.current = None
    for listener in list(_state.listeners.values()) if checked else []:
        listener(settings())
    return settings()


def on_change(name: str, listener: Callable[[Settings], None]) -> None:
    """Have `listener` called with the new settings after each change; one listener per name."""
    _state.listeners[name] = listener


def reset() -> None:
    """Forget all that `configure` set, and read the environment anew (for tests)."""
    _state.configured.clear()
    _state.current = None


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "content": env.get("NBLLM_CONTENT", "1").strip().lower() not in {"0", "false", "no", "off"},
    }
    if (retries := env.get("NBLLM_NUM_RETRIES", "")).isdigit():
        found["num_retries"] = int(retries)
    if path := env.get("NBLLM_LOG_PATH"):
        found["log"] = None if path.lower() == "none" else path
    return found


def _checked(name: str, value: Any) -> Any:
    fields = [field.name for field in dataclasses.fields(Settings)]
    if name not in fields:
        hint = did_you_mean(name, fields) or f"; there are: {', '.join(fields)}"
        raise UsageProblem(f"no setting is called {name!r}{hint}")
    if name == "timeout":
        return client_timeout(value)
    if name in ("limit", "limit_per_host"):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageProblem(f"{name} must be a whole number of connections, 0 for no limit; got {value!r}")
    elif name == "keepalive_timeout":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UsageProblem(f"keepalive_timeout must be seconds, 0 or more; got {value!r}")
    elif name == "num_retries":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageProblem(f"num_retries must be a whole number, 0 for none; got {value!r}")
    elif name == "log":
        return _checked_log(value)
    elif name in ("max_concurrency", "rpm", "tpm"):
        return _checked_limit(name, value, whole=name == "max_concurrency")
    elif name == "content":
        if not isinstance(value, bool):
            raise UsageProblem(f"content must be True or False; got {value!r}")
    elif value is not None and (not isinstance(value, str) or not value.strip()):
        raise UsageProblem(f"{name} must be a text such as 'gpt-4o-mini'; got {value!r}")
    return value


def _checked_log(value: Any) -> str | None:
    if value is None or value == "":
        return value  # type: ignore[no-any-return]
    if not isinstance(value, (str, os.PathLike)) or "://" in (path := os.fspath(value)):
        raise UsageProblem(f"log must be the path of an SQLite file, or None for memory; got {value!r}")
    return os.path.abspath(os.path.expanduser(path))  # a later %cd must not move it


def _checked_limit(name: str, value: Any, whole: bool) -> Any:
    by_provider = value if isinstance(value, Mapping) else {"every": value}
    named = all(isinstance(provider, str) and provider for provider in by_provider)
    if value is not None and not (named and all(_positive(limit, whole) for limit in by_provider.values())):
        raise UsageProblem(
            f"{name} must be a positive {'whole ' if whole else ''}number, a dict of them by provider "
            f"such as {{'openai': 50}}, or None for no limit; got {value!r}"
        )
    return dict(value) if isinstance(value, Mapping) else value  # a copy: the caller may change its dict


def _positive(value: Any, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return not isinstance(value, bool) and isinstance(value, kinds) and 0 < value < math.inf


def client_timeout(value: Any) -> aiohttp.ClientTimeout:
    """A number of seconds (for the whole request), a ClientTimeout, or None (the default) as ClientTimeout.

    Raises:
        UsageProblem: Anything else, or a number that is not positive.
    """
    if value is None:
        return DEFAULT_TIMEOUT
    if isinstance(value, aiohttp.ClientTimeout):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageProblem(f"timeout must be a positive number of seconds or a ClientTimeout; got {value!r}")
    return aiohttp.ClientTimeout(
        total=float(value), sock_connect=DEFAULT_TIMEOUT.sock_connect, sock_read=DEFAULT_TIMEOUT.sock_read
    )
