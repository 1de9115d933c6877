"""The variables that nbllm reads: those of the process, and below them those of a `.env` file.

The file is the one next to the notebook: in the folder that the kernel's hook names by `use_folder`. A script
reads none. It is read late, at the first look, and never written anywhere, `os.environ` least of all: a key
in it stays out of the processes that a notebook starts. Those who must act on a change register with
`on_change`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .kept import kept
from .notices import warn_once

MOST_BYTES = 100_000
"""A larger file is not what people mean by `.env`."""


class _Layered(Mapping[str, str]):
    """`os.environ` as it is at each look, over a file's variables; three times as fast as a ChainMap."""

    def __init__(self, below: Mapping[str, str]) -> None:
        self._below = below

    def get(self, name: str, default: Any = None) -> Any:
        value = os.environ.get(name)
        return self._below.get(name, default) if value is None else value

    def __getitem__(self, name: str) -> str:
        value = os.environ.get(name)
        return self._below[name] if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter({**self._below, **os.environ})

    def __len__(self) -> int:
        return len({**self._below, **os.environ})


class _State:
    """Where the file is, and what was found there."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.variables: Mapping[str, str] | None = None  # None: still to be read
        self.seen: Any = None
        self.listeners: dict[str, Callable[[], None]] = {}


_state = kept(__name__, _State)


def environ() -> Mapping[str, str]:
    """The variables in force, as cheap to look up as `os.environ`; a real variable wins over the file's."""
    folder, variables = _state.folder, _state.variables  # once: another thread may change them
    if folder is None:
        return os.environ
    return _read(folder) if variables is None else variables


def use_folder(folder: str | os.PathLike[str]) -> None:
    """Take the `.env` file of `folder`, from the next look on; called by `%load_ext nbllm`."""
    path = os.path.abspath(folder)
    if path != _state.folder:
        _state.folder, _state.variables = path, None
        _tell()


def refresh() -> None:
    """Notice a `.env` file or an `NBLLM_…` variable that has changed since; called before each cell."""
    if _state.folder is not None and _state.variables is not None and _look(_state.folder) != _state.seen:
        _state.variables = None
        _tell()


def on_change(name: str, listener: Callable[[], None]) -> None:
    """Have `listener` called when the variables may have changed; one listener per name."""
    _state.listeners[name] = listener


def reset() -> None:
    """Forget the folder and its file (for tests)."""
    _state.folder = _state.variables = _state.seen = None


def _tell() -> None:
    for listener in list(_state.listeners.values()):
        listener()


def _look(folder: str) -> tuple[Any, dict[str, str]]:
    """What tells a change: the file's stamp, and the variables that are settings."""
    own = {name: value for name, value in os.environ.items() if name.startswith("NBLLM_")}
    try:
        found = os.stat(os.path.join(folder, ".env"))
    except (OSError, ValueError):
        return None, own
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode), own


def _read(folder: str) -> Mapping[str, str]:
    seen = _look(folder)  # before the file is read, so that no change goes unnoticed
    below = _file_variables(os.path.join(folder, ".env"))
    variables = _Layered(below) if below else os.environ
    _state.variables, _state.seen = variables, seen
    return variables


def _file_variables(path: str) -> dict[str, str]:
    """The variables of a file; without those lines that can't be understood, of which it warns."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a virtual environment, or a pipe that would block
            return {}
        if found.st_size > MOST_BYTES:
            warn_once(f"{path} is larger than {MOST_BYTES // 1000} kB and was not read")
            return {}
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        warn_once(f"{path} can't be read: {reason}")
        return {}
    return _parsed(text, path)


def _parsed(text: str, path: str) -> dict[str, str]:
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    lines = list(parse_stream(io.StringIO(text)))
    if broken := [line.original for line in lines if line.error]:
        # The lines themselves are not shown: they may hold a key.
        numbers = ", ".join(str(_first_line(original)) for original in broken)
        warn_once(f"{path}: line {numbers} is not of the form NAME=value and was passed over")
    good = "".join(line.original.string for line in lines if not line.error)
    found = dotenv_values(stream=io.StringIO(good), interpolate=False)
    return {name: value for name, value in found.items() if value is not None}


def _first_line(original: Any) -> int:
    """Number of the line that isn't blank: the parser counts those before it to the statement."""
    text: str = original.string
    return int(original.line) + text[: len(text) - len(text.lstrip())].count("\n")
