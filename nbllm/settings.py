"""Values that users set: argument > `configure` > `pyproject.toml` > environment > default.

Owns the settings object, its checks and where each value comes from. Knows nothing of who uses a value: those
who must act on a change register with `on_change`. What can't be used in a file or a variable is warned of,
once, and the next lower level holds: only `configure` raises.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import aiohttp

from . import environment, masking
from .exceptions import UsageProblem, did_you_mean
from .kept import kept
from .notices import warn_once
from .project import project_table

DEFAULT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)

CHOICES = {"format": ("md", "text", "json", "code", "html"), "on_rerun": ("replace", "append", "fork")}
"""The settings that are one of a few words."""

_TEXTS = {"model", "system", "log", *CHOICES}
_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_LOG_VARIABLES = ("NBLLM_LOG_PATH", "NBLLM_LOG_URL")  # the later one holds
# What goes by a key's name is not shown.
_KEY_NAME = re.compile(r"(key|secret|password|credential)s?$|token$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `nbllm.configure` changes.

    Each may stand under its name in `[tool.nbllm]` of the project's `pyproject.toml` too, and as `NBLLM_` and
    its name in capitals in the environment or in the `.env` file next to the notebook; a number of
    `max_concurrency`, `rpm` or `tpm` then, and not `aliases`.

    Attributes:
        model: Model of `%%llm` when the cell names none; None leaves it to the level below, and at last to
            the keys that are set: gpt-4o-mini, claude-haiku-4-5 or gemini-2.5-flash, else demo/small.
        limit: Connections at once, over all hosts; 0 for no limit.
        limit_per_host: Connections at once to one host; 0 for no limit.
        keepalive_timeout: Seconds an idle connection is kept for reuse.
        timeout: An `aiohttp.ClientTimeout`, or a number of seconds for a whole request. Default: no
            total, 15 s to connect, 600 s of silence while reading.
        num_retries: How many more attempts a failure that may pass is worth, where a call doesn't say.
        log: Path of the SQLite log, None to keep the rows in memory, "" for the default place: `log.db`
            in the user's state folder; or the URL of a PostgreSQL database that many may share,
            `postgresql://user@host/name`. The variables are `NBLLM_LOG_PATH` and, before it,
            `NBLLM_LOG_URL`. "none" means None, and a path in `pyproject.toml` begins at that file.
        content: Keep messages and answers beside the rows. Default: yes, but not in PostgreSQL, which others
            may read.
        max_concurrency: Requests at once to one provider; None for no limit. A number holds for each provider
            by itself, a dict such as {"openai": 50} for those that it names.
        rpm: Requests that may start in a minute, likewise.
        tpm: Tokens, read and written, in a minute, likewise.
        system: System message of `%%llm` and `nbllm.ask` where none is given; None for none.
        format: What `%%llm` makes of an answer: "md", "text", "json", "code" or "html".
        on_rerun: What a cell that runs again does to its turn of the conversation: "replace" it, "append"
            another one, or "fork": replace it, and leave out the turns that came after it.
        max_rows: Rows of a DataFrame that are put into a prompt; those beyond are left out, with a notice.
        aliases: Short names for models, such as {"fast": "gpt-4o-mini"}; one may lead to another one.
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
    system: str | None = None
    format: str = "md"
    on_rerun: str = "replace"
    max_rows: int = 100
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Those that differ from their defaults, one on each line: all would fill a cell's output."""
        default = Settings()
        changed = [name for name in _FIELDS if getattr(self, name) != getattr(default, name)]
        lines = "".join(f"    {name}={_shown(getattr(self, name))},\n" for name in changed)
        rest = "the others are as by default" if changed else "all are as by default"
        return f"Settings({lines and chr(10)}{lines})  # {rest}: %nbllm config shows them"


_FIELDS = [field.name for field in dataclasses.fields(Settings)]


def _shown(value: Any) -> str:
    if isinstance(value, aiohttp.ClientTimeout):
        limits = {name: getattr(value, name) for name in ("total", "connect", "sock_connect", "sock_read")}
        said = ", ".join(f"{name}={seconds:g}" for name, seconds in limits.items() if seconds is not None)
        return f"ClientTimeout({said})"
    return masking.redact(repr(value))


class _State:
    """What `configure` set, and the settings that follow from it."""

    def __init__(self) -> None:
        self.configured: dict[str, Any] = {}
        self.listeners: dict[str, Callable[[Settings], None]] = {}
        self.folder: str | None = None  # where the search for pyproject.toml begins
        self.sources: dict[str, tuple[Any, str]] = {}
        self.current: Settings | None = None


_state = kept(__name__, _State)


def settings() -> Settings:
    """The settings now in force.

    Files and environment are read at first use, at each `configure`, and when `environment.refresh` has found
    a change.
    """
    current = _state.current
    if current is None:
        found = _found()
        if found["content"][1] == "default":
            found["content"] = ("://" not in (found["log"][0] or ""), "default")
        _state.sources = found
        current = _state.current = Settings(**{name: value for name, (value, _) in found.items()})
    return current


def sources() -> dict[str, tuple[Any, str]]:
    """For each setting its value and where it comes from.

    That is "configure", the path of a `pyproject.toml`, the name of a variable such as "NBLLM_MODEL"
    (".env: NBLLM_MODEL" where it stands in the file), or "default".
    """
    settings()
    return dict(_state.sources)


def model_of(name: str) -> str:
    """The model that goes by an alias; anything else is returned as it is, and checked where it is used."""
    return _followed(name, settings().aliases) if isinstance(name, str) else name


def help_of(name: str) -> str:
    """What a setting means, in one line: its part of the docstring of `Settings`."""
    found = re.search(rf"^( +){name}: (.+(?:\n\1 +.+)*)", Settings.__doc__ or "", re.MULTILINE)
    return " ".join(found[2].split()) if found else ""


def configure(**values: Any) -> Settings:
    """Change settings for the rest of the kernel; those not named stay as they are.

    Args:
        **values: Any field of `Settings`: model, limit, limit_per_host, keepalive_timeout, timeout,
            num_retries, log, content, max_concurrency, rpm, tpm, system, format, on_rerun, max_rows, aliases.

    Returns:
        All settings as they are now. `configure()` changes nothing and shows them.

    Raises:
        UsageProblem: An unknown name or a value that cannot be used; nothing is changed then.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    environment.refresh()
    _state.configured.update(checked)
    _read_again(tell=bool(checked))
    return settings()


def on_change(name: str, listener: Callable[[Settings], None]) -> None:
    """Have `listener` called with the new settings after each change; one listener per name."""
    _state.listeners[name] = listener


def reset() -> None:
    """Forget all that `configure` set, and read files and environment anew (for tests)."""
    _state.configured.clear()
    _state.folder = _state.current = None


def _read_again(tell: bool = False) -> None:
    """Have the settings found anew; the listeners hear of a change, or in any case with `tell`."""
    before, _state.current = _state.current, None
    if tell or (before is not None and settings() != before):
        for listener in list(_state.listeners.values()):
            listener(settings())


environment.on_change(__name__, _read_again)


def _found() -> dict[str, tuple[Any, str]]:
    """The value of each setting and its source."""
    default = Settings()
    found = {name: (getattr(default, name), "default") for name in _FIELDS}
    found |= _from_environment(environment.environ())
    found |= _from_project()
    configured = {name: (value, "configure") for name, value in _state.configured.items()}
    if _state.configured.get("model") is None:
        configured.pop("model", None)
    return found | configured


def _from_environment(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for name in _FIELDS:
        for variable in _LOG_VARIABLES if name == "log" else (f"NBLLM_{name.upper()}",):
            text = env.get(variable, "").strip()
            if text and name != "aliases":
                source = variable if variable in os.environ else f".env: {variable}"
                found |= _usable(name, _from_text(name, text), source, where=source)
    return found


def _from_project() -> dict[str, tuple[Any, str]]:
    if _state.folder is None:
        try:
            _state.folder = os.getcwd()
        except OSError:  # it was removed
            return {}
    path, table = project_table(_state.folder) or ("", {})
    found: dict[str, tuple[Any, str]] = {}
    for name, value in table.items():
        found |= _usable(name, value, path, where=f"{path}, [tool.nbllm]")
    return found


def _log_of_project(value: str, folder: str) -> str:
    if value.lower() == "none":
        return value
    if without_password(value) != value:
        raise UsageProblem(
            "log must not hold a password in a file that is shared: set NBLLM_LOG_URL, or use ~/.pgpass"
        )
    is_path = value and "://" not in value
    return os.path.join(folder, os.path.expanduser(value)) if is_path else value


def _usable(name: str, value: Any, source: str, where: str) -> dict[str, tuple[Any, str]]:
    """The setting with its source, or nothing but a warning where it can't be used."""
    if (name not in _FIELDS and _KEY_NAME.search(name)) or masking.redact(said := repr(value)) != said:
        warn_once(
            f"{where}: {name} is, or looks like, a key, and does not count: a key goes into the provider's "
            "variable, such as OPENAI_API_KEY, of the environment or of a .env file that is not shared"
        )
        return {}
    try:
        if name == "log" and isinstance(value, str) and source.endswith(".toml"):
            value = _log_of_project(value, os.path.dirname(source))
        return {name: (_checked(name, value), source)}
    except UsageProblem as problem:
        warn_once(f"{where} has a setting that does not count: {problem}")
        return {}


def _from_text(name: str, text: str) -> Any:
    """A variable's value as `_checked` takes it; what can't be understood stays a text, for it to refuse."""
    if name == "content":
        return _SWITCHES.get(text.lower(), text)
    if name in _TEXTS:
        return text
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _checked(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        hint = did_you_mean(name, _FIELDS) or f"; there are: {', '.join(_FIELDS)}"
        raise UsageProblem(f"no setting is called {name!r}{hint}")
    if name == "timeout":
        return client_timeout(value)
    if name in ("limit", "limit_per_host"):
        return _whole(name, value, 0, "a whole number of connections, 0 for no limit")
    if name == "num_retries":
        return check_retries(value)
    if name == "max_rows":
        return _whole(name, value, 1, "a whole number of rows, 1 or more")
    if name == "keepalive_timeout":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UsageProblem(f"keepalive_timeout must be seconds, 0 or more; got {value!r}")
    elif name in CHOICES:
        if value not in CHOICES[name]:
            raise UsageProblem(
                f"{name} must be one of {', '.join(CHOICES[name])}; got {value!r}"
                f"{did_you_mean(str(value), CHOICES[name])}"
            )
    elif name == "aliases":
        return _checked_aliases(value)
    elif name == "log":
        return _checked_log(value)
    elif name in ("max_concurrency", "rpm", "tpm"):
        return _checked_limit(name, value, whole=name == "max_concurrency")
    elif name == "content":
        if not isinstance(value, bool):
            raise UsageProblem(f"content must be True or False; got {value!r}")
    elif value is not None and (not isinstance(value, str) or not value.strip()):
        example = "Answer in one sentence." if name == "system" else "gpt-4o-mini"
        raise UsageProblem(f"{name} must be a text such as {example!r}; got {value!r}")
    return value


def check_retries(value: Any) -> int:
    """How many more attempts a failure that may pass is worth.

    Raises:
        UsageProblem: It is no whole number, or negative.
    """
    return _whole("num_retries", value, 0, "a whole number, 0 for none")


def _whole(name: str, value: Any, least: int, meaning: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageProblem(f"{name} must be {meaning}; got {value!r}")
    return value


class Address(str):
    """The URL of a log, which shows no password."""

    def __repr__(self) -> str:
        return repr(without_password(self))


def without_password(address: str) -> str:
    """A log's address as it may be shown."""
    return re.sub(r"^([\w+]+://[^:@/?]*):.*@", r"\1:***@", re.sub(r"(password=)[^&]*", r"\1***", address))


def password_in(address: str) -> str | None:
    """The password in a log's address."""
    found = re.match(r"[\w+]+://[^:@/?]*:(.*)@", address) or re.search(r"[?&]password=([^&]*)", address)
    return unquote(found[1]) if found else None


def _checked_log(value: Any) -> str | None:
    if value is None or value == "":
        return value  # type: ignore[no-any-return]
    if str(value).lower() == "none":
        return None
    if isinstance(value, str) and re.match(r"postgres(ql)?(\+psycopg)?://", value):
        if importlib.util.find_spec("psycopg") is None:
            raise UsageProblem("a log in PostgreSQL needs the psycopg package: pip install 'nbllm[postgres]'")
        user, at, _ = value.rpartition("@")
        if "@" in user or (at and "/" in user.partition("://")[2]):
            raise UsageProblem("an @ or / in the password of a log's URL is written %40 or %2F")
        return Address(value)
    if not isinstance(value, (str, os.PathLike)) or "://" in (path := os.fspath(value)):
        shown = without_password(value) if isinstance(value, str) else value
        raise UsageProblem(
            "log must be the path of an SQLite file, a URL such as postgresql://user@host/name, or None for "
            f"memory; got {shown!r}"
        )
    return os.path.abspath(os.path.expanduser(path))  # a later %cd must not move it


def _checked_aliases(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else [(value, None)]
    if not all(isinstance(text, str) and text.strip() for pair in pairs for text in pair):
        raise UsageProblem(
            f"aliases must be a dict of names and models such as {{'fast': 'gpt-4o-mini'}}; got {value!r}"
        )
    for name in value:
        _followed(name, value)
    return dict(value)  # a copy: the caller may change its dict


def _followed(name: str, aliases: Mapping[str, str]) -> str:
    way = [name]
    while (following := aliases.get(way[-1])) is not None:
        if following in way:
            raise UsageProblem(f"aliases lead in a circle: {' → '.join([*way, following])}")
        way.append(following)
    return way[-1]


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
