"""What is set up here, what works, and what to do about the rest.

Owns `doctor`: its checks, and how they are shown. It looks at what others own and changes nothing: it sends
no request and no key, and leaves no row in the log. A check that fails is a finding itself. Of a key only
its variable's name is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import platform
import sqlite3
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from yarl import URL

from . import (
    environment,
    frames,
    keys,
    log,
    loops,
    markdown,
    masking,
    providers,
    reachability,
    settings,
    transport,
    units,
)
from .exceptions import UsageProblem

LOCKED_SECONDS = 1.0
"""How long the log may be locked by somebody else."""

WIDTH = 100
"""Columns of the text form."""

_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one thing.

    Attributes:
        name: The thing, such as "log" or "endpoint openai".
        status: "ok", "note" (works, and worth knowing) or "problem" (doesn't work).
        message: What was found.
        remedy: What to do; None where there is nothing to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    message: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `nbllm.doctor()` has found; shows itself as a table, and as text by `print`.

    Attributes:
        checks: What was found, in order.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return all(check.status != "problem" for check in self.checks)

    def __str__(self) -> str:
        """One paragraph for each check, with its mark: ✓ ok, · note, ✗ problem."""
        indent = max((len(check.name) for check in self.checks), default=0) + 4
        lines: list[str] = []
        for check in self.checks:
            found = textwrap.wrap(check.message, WIDTH - indent, break_on_hyphens=False) or [""]
            lines.append(f"{_MARKS[check.status]} {check.name:<{indent - 4}}  {found[0]}")
            lines += [" " * indent + line for line in found[1:]]
            if check.remedy is not None:
                remedy = textwrap.wrap(f"→ {check.remedy}", WIDTH - indent, break_on_hyphens=False)
                lines += [" " * indent + line for line in remedy]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        table = ["| | | found | what to do |", "|---|---|---|---|"]
        for check in self.checks:
            texts = map(markdown.escape, (check.name, check.message, check.remedy or ""))
            table.append(f"| {_MARKS[check.status]} | {' | '.join(texts)} |")
        return {"text/plain": str(self), "text/markdown": "\n".join(table)}


def doctor() -> Diagnosis:
    """What is set up in this kernel, what works, and what to do about the rest.

    Looks at versions, keys (by the name of their variable only), the endpoints of the providers that are set
    up, the log, the connections of this kernel's requests, and settings that cost time. An endpoint is
    connected to, with TLS where it has that; no request and no key is sent. Takes up to 3 seconds, where an
    endpoint doesn't answer.

    Returns:
        A `Diagnosis`: `print` it, or let the cell show it; `.ok` is true where there is no problem.

    Raises:
        UsageProblem: An event loop is running that nbllm doesn't own: `await nbllm.adoctor()` there.
    """
    return loops.run_sync(adoctor())


async def adoctor() -> Diagnosis:
    """As `doctor`, awaited."""
    return Diagnosis(
        (
            *_checked("versions", _versions),
            *_checked("keys", _keys),
            *await _endpoints(),
            *_checked("log", _log),
            *_checked("connections", _connections),
            *_checked("settings", _settings),
        )
    )


def _checked(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    try:
        return look()
    except Exception as error:
        return [_failed(name, error)]


def _failed(name: str, error: Exception) -> Check:
    # A UsageProblem says itself which value is wrong, and what to do.
    why = "" if isinstance(error, UsageProblem) else f"this could not be looked at: {type(error).__name__}: "
    return Check(name, "problem", _shown(f"{why}{error}"))


def _shown(text: str) -> str:
    """Text that came from outside, as it can be shown: without keys and control characters."""
    for provider in providers.PROVIDERS:
        for variable in keys.key_variables(provider):
            masking.keep_secret(environment.environ().get(variable))
    return "".join(c if c.isprintable() else " " for c in masking.redact(text))


# -- versions and keys -------------------------------------------------------------------------------

_PACKAGES = ("nbllm", "aiohttp", "IPython", "ipykernel", "nest-asyncio2", "pandas")


def _versions() -> list[Check]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # ipykernel, in a script or terminal
            found[name] = metadata.version(name)
    checks = [Check("versions", "ok", " · ".join(f"{name} {version}" for name, version in found.items()))]
    if hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2"):
        checks.append(
            Check(
                "nest_asyncio",
                "note",
                "the archived nest_asyncio is applied: in a kernel it can lose queued cells",
                "%load_ext nbllm puts its successor nest_asyncio2 in its place",
            )
        )
    elif "nest_asyncio" in sys.modules:
        checks.append(
            Check(
                "nest_asyncio",
                "note",
                "the archived nest_asyncio is loaded too; nest_asyncio2 stands in for it, so it does no harm",
                "leave nest_asyncio.apply() out of the notebook: %load_ext nbllm does what it is for",
            )
        )
    return checks


def _keys() -> list[Check]:
    env = environment.environ()
    found = []
    for provider in providers.PROVIDERS:
        if (variable := keys.set_variable(provider, env)) is not None:
            source = "" if variable in os.environ else " in .env"
            found.append(f"{provider} ({variable}{source})")
    if found:
        return [Check("keys", "ok", f"set for {', '.join(found)}")]
    remedy = "%nbllm key openai asks for one, hidden"
    return [Check("keys", "note", "none is set, so that only the demo model answers without one", remedy)]


# -- endpoints ---------------------------------------------------------------------------------------


async def _endpoints() -> list[Check]:
    try:
        env = environment.environ()
        chosen = [
            provider
            for name, provider in providers.PROVIDERS.items()
            if keys.set_variable(name, env) or keys.address_variable(name, env)
        ]
        return await asyncio.gather(*(_endpoint(provider, env) for provider in chosen))
    except Exception as error:
        return [_failed("endpoints", error)]


async def _endpoint(provider: providers.Provider, env: Mapping[str, str]) -> Check:
    name = f"endpoint {provider.name}"
    try:
        return await _reached(name, provider, env)
    except Exception as error:
        return _failed(name, error)


async def _reached(name: str, provider: providers.Provider, env: Mapping[str, str]) -> Check:
    variable = keys.address_variable(provider.name, env)
    if provider.base_url is None and variable is None:
        remedy = f"set {provider.base_url_variables[0]}, or give base_url= to each call"
        return Check(name, "note", "there is a key, but no address", remedy)
    try:
        url = URL(providers.resolve(f"{provider.name}/any", environ=env).base_url)
    except UsageProblem as error:
        named = [v for v in (variable, keys.set_variable(provider.name, env)) if v is not None]
        return Check(name, "problem", _shown(str(error)), f"set {' or '.join(named)} anew")
    proxy = transport.proxies().to(url.scheme, url.host or "")
    changed = ""
    if proxy != transport.Proxies().to(url.scheme, url.host or ""):
        changed = "; the proxy variables have changed since the first request: they count after a restart"
    where = _shown(reachability.address(proxy or url))
    if proxy is not None:
        where += f" for {_shown(reachability.address(url))} (the proxy of the environment)"
    started = time.perf_counter()
    trouble = await reachability.trouble(proxy or url, variable)
    if trouble is None:
        took_ms = (time.perf_counter() - started) * 1e3
        return Check(name, "ok", f"{where} was reached in {took_ms:,.0f} ms{changed}")
    message, remedy = trouble
    if proxy is not None:
        remedy = "look at HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY; then restart the kernel"
    return Check(name, "problem", f"{where} {_shown(message)}{changed}", remedy)


# -- log ---------------------------------------------------------------------------------------------


def _log() -> list[Check]:
    log.read(lambda connection: None)  # it opens late
    wanted, source = settings.sources()["log"]
    if wanted is None:
        message = "in memory: it ends with this kernel"
        return [Check("log", "note", message, f"set by {source}; nbllm.configure(log=PATH) names a file")]
    path = log.path()
    if "://" in (path or ""):
        return [Check("log", "ok", f"{_shown(path or '')} · reachable")]
    trouble = None if "://" in wanted else _why_not_writable(path or wanted or log.default_path())
    if path is None:
        where = _shown(log.shown(wanted))
        why = _shown(trouble or "it was not usable when this kernel first wrote to it")
        remedy = "nbllm.configure(log=PATH) names another place, or tries the same again"
        return [Check("log", "problem", f"in memory, because {where} can't be used: {why}", remedy)]
    if trouble is not None:
        remedy = "nbllm.configure(log=PATH) names another place"
        return [Check("log", "problem", f"{_shown(path)} can't be written: {_shown(trouble)}", remedy)]
    return [Check("log", "ok", f"{_shown(path)} · {_size(path)} · writable")]


def _why_not_writable(path: str) -> str | None:
    """Why SQLite can't write to the file, tried without changing it; None where it can."""
    if not os.path.exists(path):
        folder = next(parent for parent in Path(path).parents if os.path.exists(parent))
        usable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        return "the file is gone" if usable else f"{folder} is no folder that can be written to"
    try:
        uri = f"{Path(path).as_uri()}?mode=rw"
        with contextlib.closing(
            sqlite3.connect(uri, uri=True, timeout=LOCKED_SECONDS, isolation_level=None)
        ) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA user_version = {version}")  # a write, which the end takes back
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return None


def _size(path: str) -> str:
    return units.size(sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name)))


# -- connections and settings ------------------------------------------------------------------------

# Why a request got a new connection, as `protocol` says it -> what to do.
_REASONS = {
    "first": "nothing to do: the first request to a server opens its connection",
    "all busy": "nothing to do: requests at the same time need a connection each, and later ones reuse them",
    "limit": "more requests at once than the limit allows, over several servers: raise it by "
    "nbllm.configure(limit=…)",
    "idle expired": "nbllm.configure(keepalive_timeout=SECONDS) keeps idle connections longer",
    "closed by server": "nothing to do here, and nothing is lost: it keeps idle connections for less time "
    "than nbllm; if it is yours, raise its keep-alive timeout",
    "server asked to close": "if the server, or a proxy before it, is yours, switch keep-alive on there",
    "request cancelled": "nothing to do: the rest of a cancelled answer can only be stopped by closing",
    "answer abandoned": "read streams to their end: the rest of an answer can only be stopped by closing",
    "request failed": "look at error_message in nbllm.requests(): the connection broke with that request",
    "connection lost": "look at the network, VPN or proxy: the connection broke between two requests",
    "pool keeps none": "leave force_close=True out where the HTTP session is made",
}
_HARMLESS = ("first", "all busy")


def _connections() -> list[Check]:
    requests = frames.requests()
    connected = requests[requests["connection_reused"].notna()]
    if not len(connected):
        return [Check("connections", "ok", "no request of this kernel has had a connection yet")]
    reused = int(connected["connection_reused"].sum())
    checks = [
        Check(
            "connections",
            "ok",
            f"{reused:,} of {units.plural(len(connected), 'request')} went over one that was open",
        )
    ]
    fresh = connected[~connected["connection_reused"].astype(bool)]
    reasons = fresh["connection_reason"].astype("string").fillna("unknown")
    for reason, number in reasons.value_counts().items():
        idle = fresh.loc[reasons == reason, "connection_idle_ms"].min()  # NaN where none had idled
        message = f"{units.plural(int(number), 'request')}: {reason}"
        if not math.isnan(idle):
            message += f", after {idle / 1e3:,.1f} s or more"
        remedy = _REASONS.get(str(reason).partition(":")[0], "close_reason in nbllm.connections() tells more")
        status: Literal["ok", "note"] = "ok" if reason in _HARMLESS else "note"
        checks.append(Check("new connection", status, _shown(message), remedy))
    return checks


def _settings() -> list[Check]:
    values, requests = settings.settings(), frames.requests()
    checks = []
    if values.keepalive_timeout == 0:
        message = "keepalive_timeout=0: no connection is kept, so each request opens its own"
        checks.append(Check("settings", "note", message, "nbllm.configure(keepalive_timeout=300)"))
    for column, what, names in (
        ("blocked_ms", "a free connection", ("limit", "limit_per_host")),
        ("queued_ms", "their turn", ("max_concurrency", "rpm", "tpm")),
    ):
        waits = requests[column].loc[requests[column] > 0]
        if len(waits):
            now = ", ".join(f"{name}={getattr(values, name)}" for name in names)
            count = units.plural(len(waits), "request")
            message = f"{count} waited for {what}, {waits.sum() / 1e3:,.1f} s in all ({now})"
            remedy = f"if the provider allows more, raise it by nbllm.configure({names[0]}=…)"
            checks.append(Check("settings", "note", message, remedy))
    return checks or [Check("settings", "ok", "none has made a request wait")]
