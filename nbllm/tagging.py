"""Session ids and cell identity: which group and which cell a request belongs to.

Owns the contextvars. A background task keeps the session and the cell in which it was started, because
a task inherits the context of its creation. Plain threads inherit nothing: they fall back to the cell
that ran last, and `Cell.source` says so.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any

from .exceptions import UsageProblem
from .kept import kept


@dataclass(frozen=True, slots=True)
class Cell:
    """The cell that issued a request.

    Attributes:
        cell_id: The notebook format's cell id where the front end sends it, else `In[n]`; None outside cells.
        execution_count: The number shown beside the cell; None for a silent execution.
        run_id: Id of this run of the cell (the front end's message id, or one of ours).
        source: Where cell_id comes from: "frontend", "execution_count", or "last_cell" for code in a plain
            thread or a widget's callback, which is taken for the cell that ran last.
    """

    cell_id: str | None = None
    execution_count: int | None = None
    run_id: str | None = None
    source: str | None = None


NO_CELL = Cell()


def first_id(kernel_id: str) -> int:
    """The number below those of a kernel's requests in the log: the kernel's 32 bits, then 31 of zeros.

    Raises:
        ValueError: `kernel_id` is not hexadecimal.
    """
    return int(kernel_id, 16) << 31


def ids_of(kernel_id: str) -> tuple[int, int]:
    """The least and the greatest number that a kernel's requests may have in the log; see `first_id`."""
    first = first_id(kernel_id)
    return first, first + (1 << 31) - 1


class _State:
    """What holds for the whole process."""

    def __init__(self) -> None:
        self.new_kernel_id()
        self.default_session = f"kernel-{time.strftime('%Y%m%d-%H%M%S')}-{self.kernel_id[:4]}"
        self.session: str | None = None
        self.notebook: str | None = None
        self.last_cell = NO_CELL
        self.cell_var: ContextVar[Cell | None] = ContextVar("nbllm_cell", default=None)
        self.sessions_var: ContextVar[tuple[session, ...]] = ContextVar("nbllm_sessions", default=())
        if hasattr(os, "register_at_fork"):  # now: children must differ also where the parent sent nothing
            os.register_at_fork(after_in_child=self.new_kernel_id)

    def new_kernel_id(self) -> None:
        self.kernel_id = secrets.token_hex(4)
        self.first_id = first_id(self.kernel_id)


_state = kept(__name__, _State)


def kernel_id() -> str:
    """Id of this process's life as a kernel (or script): 8 hexadecimal digits, new at each restart."""
    return _state.kernel_id


def owner() -> str:
    """Who works here: the user's name on JupyterHub, else that of the operating system; "" if it has none."""
    return _owner()


@lru_cache
def _owner() -> str:
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return ""


def notebook() -> str | None:
    """Path of the notebook as the server or the front end tells it; None where it doesn't, and in scripts."""
    if _state.notebook:
        return _state.notebook
    # Set by jupyter_server, since 2.0; a script that the notebook starts inherits it.
    return os.environ.get("JPY_SESSION_NAME") if _is_kernel() else None


def _is_kernel() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_ipython(), "kernel", None) is not None


def set_notebook(path: str | None) -> None:
    """Note the notebook where a front end tells it otherwise than by the environment."""
    _state.notebook = path


def first_request_id() -> int:
    """`first_id` of this kernel."""
    return _state.first_id


def own_ids() -> tuple[int, int]:
    """`ids_of` this kernel."""
    return ids_of(_state.kernel_id)


def check_session_id(session_id: Any) -> str:
    """`session_id` itself if every backend accepts it: printable ASCII, 1 to 199 characters.

    Raises:
        UsageProblem: It is not.
    """
    if not isinstance(session_id, str):
        raise UsageProblem(f"a session id is a text such as 'review'; got {session_id!r}")
    if not re.fullmatch(r"[ -~]{1,199}", session_id) or not session_id.strip():
        shown = session_id if len(session_id) < 60 else session_id[:57] + "..."
        raise UsageProblem(
            f"session id {shown!r} can't be used: it must be printable ASCII, 1 to 199 characters"
        )
    return session_id


# LiteLLM's names for a session in a request; of several, the first counts. A trace id is one of them: its
# proxy groups by it too (docs.litellm.ai, "Session Logs", and `get_standard_logging_payload_trace_id` and
# `get_chain_id_from_headers` in its source, 1.106).
SESSION_METADATA = ("session_id", "litellm_session_id", "trace_id")
SESSION_FIELDS = ("litellm_session_id", "litellm_trace_id")
SESSION_HEADERS = ("x-litellm-session-id", "x-litellm-trace-id", "x-session-id", "x-claude-code-session-id")


def first_of(given: Any, names: Sequence[str]) -> Any:
    """The first value under these names that is none and not empty; None where `given` is no mapping."""
    return next(filter(None, map(given.get, names)), None) if isinstance(given, Mapping) else None


def named_session(headers: Mapping[str, str], body: Mapping[str, Any]) -> Any:
    """The session that a request on the wire names, None where it names none.

    Args:
        headers: By names in small letters.
        body: The JSON object that is sent.
    """
    return (
        first_of(body, SESSION_FIELDS)
        or first_of(body.get("metadata"), SESSION_METADATA)
        or first_of(headers, SESSION_HEADERS)
    )


def current_session() -> str:
    """The session id that a request issued here and now would get."""
    return chosen_session() or _state.default_session


def chosen_session() -> str | None:
    """The session id that the user chose for what runs here and now; None where that is nobody's choice."""
    entered = _state.sessions_var.get()
    return entered[-1].session_id if entered else _state.session


def default_session() -> str:
    """The kernel's own session id, which holds where nobody chose another."""
    return _state.default_session


def set_session(session_id: str | None) -> str:
    """Group all following requests of this kernel under `session_id`; None goes back to the kernel's own.

    Returns:
        The session id now in force.
    """
    _state.session = None if session_id is None else check_session_id(session_id)
    return current_session()


def rename_session(old: str, new: str) -> None:
    """Have what this kernel groups under `old` from now on grouped under `new`."""
    if _state.session == old:
        _state.session = new
    if _state.default_session == old:
        _state.default_session = new
    for entered in _state.sessions_var.get():  # tasks that were started in it share the object
        if entered.session_id == old:
            entered.session_id = new


class session:
    """Group whatever runs inside: `with nbllm.session("review"):`, or `async with`.

    Tasks started inside belong to the group, also when they run on after it. Entering the same object
    again is fine; the innermost `session` wins. The threads of an executor know nothing of it, as of all
    context variables: give `session_id=` to the call there, or submit `contextvars.copy_context().run`.

    Raises:
        UsageProblem: `session_id` is not printable ASCII of 1 to 199 characters.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = check_session_id(session_id)

    def __enter__(self) -> session:
        _state.sessions_var.set((*_state.sessions_var.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not by a token: it would refuse to be reset in another context, as of an async generator that the
        # loop finishes, or by another task that uses the same object.
        entered = _state.sessions_var.get()
        if entered and entered[-1] is self:
            _state.sessions_var.set(entered[:-1])

    async def __aenter__(self) -> session:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def current_cell() -> Cell:
    """The cell that the code running here and now belongs to; `NO_CELL` outside a notebook."""
    cell = _state.cell_var.get()
    if cell is not None:
        return cell
    last = _state.last_cell
    return replace(last, source="last_cell") if last is not NO_CELL else last


def enter_cell(cell: Cell) -> None:
    """Note that `cell` runs now. Called by the kernel's hook before each cell."""
    _state.cell_var.set(cell)
    _state.last_cell = cell


def leave_cell() -> None:
    """Note that what runs here and now is no cell's, as a widget's callback: it counts to the last cell."""
    _state.cell_var.set(None)
