"""The kernel's side: what `%load_ext nbllm` sets up, and which cell is running.

Owns the IPython hooks. Loading is silent: no network, file or thread. Loading again, `%reload_ext` and
autoreload change nothing but the magics; unloading keeps the pool, so that nobody's session breaks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from typing import Any

from . import environment, log, loops, notices, tagging
from .kept import kept

FLUSH_SECONDS = 5.0
"""How long the end of a cell may wait for the log: a hung disk must not hang the kernel."""


class _State:
    """The shell that is hooked, and the hooks as it knows them."""

    def __init__(self) -> None:
        self.shell: Any = None
        self.hooks: list[tuple[str, Any]] = []


_state = kept(__name__, _State)


def load(shell: Any) -> None:
    """Hook into an IPython shell: its loop becomes the home loop, its cells tag their requests."""
    _adopt_loop(shell)
    try:
        environment.use_folder(os.getcwd())
    except FileNotFoundError:  # the folder is gone
        pass
    _note_notebook(shell)
    if _state.hooks and _state.shell is shell:
        return
    _state.shell = shell
    _state.hooks = [
        ("pre_execute", _before_callback),
        ("pre_run_cell", _before_cell),
        ("post_run_cell", _after_cell),
    ]
    for event, hook in _state.hooks:
        shell.events.register(event, hook)
    # The hook comes too late for the cell that loads the extension. None runs where a profile loads it.
    if (cell := _cell(shell, None)).execution_count:
        tagging.enter_cell(cell)


def unload(shell: Any) -> None:
    """Take the hooks off; the HTTP session lives on."""
    for event, hook in _state.hooks:
        try:
            shell.events.unregister(event, hook)
        except ValueError:
            pass
    _state.hooks = []
    tagging.enter_cell(tagging.NO_CELL)


def _adopt_loop(shell: Any) -> None:
    # A subshell's thread has a loop of its own. A profile loads extensions before the kernel's loop runs, so
    # that each cell looks again.
    if threading.current_thread() is not threading.main_thread():
        return
    from IPython.core.async_helpers import _asyncio_runner, get_asyncio_loop

    in_kernel = hasattr(shell, "kernel")
    loop = asyncio._get_running_loop() or get_asyncio_loop()  # type: ignore[no-untyped-call]
    loops.set_home(loop, always_runs=in_kernel)
    if not in_kernel and shell.loop_runner is _asyncio_runner:
        shell.loop_runner = loops.run_cell


def _before_callback() -> None:
    # A widget's callback inherits the context of some earlier cell, whichever that was.
    if _parent(_state.shell).get("header", {}).get("msg_type") == "comm_msg":
        tagging.leave_cell()


def _before_cell(info: Any) -> None:
    try:
        _adopt_loop(_state.shell)
        cell = _cell(_state.shell, info)
        if not _is_nested(cell, info):
            tagging.enter_cell(cell)
            _note_notebook(_state.shell)
            environment.refresh()
    except Exception as error:
        notices.warn_once(f"the running cell could not be told: {error!r}")


def _after_cell(result: Any) -> None:
    try:
        log.flush(FLUSH_SECONDS)
    except Exception as error:
        notices.warn_once(f"the log could not be written in time: {error!r}")


def _note_notebook(shell: Any) -> None:
    # VS Code puts it there (github.com/microsoft/vscode-jupyter), maybe after the extension was loaded.
    path = shell.user_ns.get("__vsc_ipynb_file__")
    if path and isinstance(path, str):
        tagging.set_notebook(path)


def _is_nested(cell: tagging.Cell, info: Any) -> bool:
    """Whether a cell runs inside another, as of `%%capture`: the outer one is the one that the user sees."""
    if hasattr(_state.shell, "get_parent"):
        return cell.run_id is not None and cell.run_id == tagging.current_cell().run_id
    return not info.store_history  # in the terminal


def _parent(shell: Any) -> dict[str, Any]:
    """The front end's message that is being answered; empty in the terminal."""
    return (shell.get_parent() if hasattr(shell, "get_parent") else None) or {}


def _cell(shell: Any, info: Any) -> tagging.Cell:
    import IPython

    number: int | None = shell.execution_count
    if info is not None and not info.store_history:
        number = None  # a silent execution has no number of its own
    elif IPython.version_info >= (9, 8) and number is not None:
        number -= 1  # since 9.8 the count has moved on before the hook is called
    parent = _parent(shell)
    run_id = parent.get("header", {}).get("msg_id") or uuid.uuid4().hex
    cell_id = getattr(info, "cell_id", None) or parent.get("metadata", {}).get("cellId")
    if cell_id is not None:
        return tagging.Cell(cell_id, number, run_id, "frontend")
    if number is not None:
        return tagging.Cell(f"In[{number}]", number, run_id, "execution_count")
    return tagging.Cell(None, None, run_id, None)
