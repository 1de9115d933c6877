"""`%%session NAME`: all that an ordinary Python cell sends belongs to one session.

The line is taken for `%session NAME` at the top of the cell, whose other lines run as ever: with `await`,
with the value of the last one shown, with other magics. What the cell sent is told in one line below it,
which carries the ids into the saved notebook. Called by `magics`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from IPython.core import inputtransformer2

from . import notices, tagging
from .kept import kept


class _State:
    def __init__(self) -> None:
        self.entered: tagging.session | None = None
        self.run_id: str | None = None
        self.depth = 0  # cells that run, one within the other: `%%capture` runs a cell of its own


_state = kept(__name__, _State)


def enter(session_id: str) -> None:
    """Let the rest of the running cell belong to a session.

    Raises:
        UsageProblem: `session_id` can't be one.
    """
    entered = tagging.session(session_id)
    _leave()
    _state.entered, _state.run_id = entered.__enter__(), tagging.current_cell().run_id


def install(shell: Any) -> None:
    """Have the shell understand `%%session`; again is as good as once."""
    uninstall(shell)
    shell.input_transformer_manager.cleanup_transforms.append(_as_line_magic)
    shell.events.register("pre_run_cell", _before_cell)
    shell.events.register("post_run_cell", _after_cell)
    _state.depth = 0


def uninstall(shell: Any) -> None:
    """Undo `install`."""
    transforms = shell.input_transformer_manager.cleanup_transforms
    transforms[:] = [one for one in transforms if getattr(one, "__name__", None) != _as_line_magic.__name__]
    for event, hook in (("pre_run_cell", _before_cell), ("post_run_cell", _after_cell)):
        try:
            shell.events.unregister(event, hook)
        except ValueError:
            pass
    _leave()


def _as_line_magic(lines: list[str]) -> list[str]:
    if not lines or not (lines[0].startswith("%%session") and lines[0][9:10] in ("", " ", "\t", "\n")):
        return lines
    first = f"get_ipython().run_line_magic('session', {lines[0][9:].strip()!r})\n"
    return [first, *inputtransformer2.cell_magic(lines[1:])]  # type: ignore[no-untyped-call]


# Else IPython looks through it to see whether a cell in a terminal is at its end, and takes the first line
# for all of it.
_as_line_magic.has_side_effects = True  # type: ignore[attr-defined]


def _before_cell(info: Any) -> None:
    _state.depth += 1


def _after_cell(result: Any) -> None:
    if result is not None and not (result.info.raw_cell or "").strip():
        return  # no hook is called before an empty cell
    _state.depth = max(0, _state.depth - 1)
    if _state.depth:
        return
    try:
        run_id, was_entered = _state.run_id, _state.entered is not None
        _leave()
        if was_entered and run_id is not None:
            _tell(run_id)
    except Exception as error:
        notices.warn_once(f"what the cell sent could not be told: {error!r}")


def _leave() -> None:
    if _state.entered is not None:
        _state.entered.__exit__(None, None, None)
        _state.entered = None


def _tell(run_id: str) -> None:
    """One line about what the cell sent, with the requests' ids in the output's metadata."""
    from . import footers, output_metadata, rendering, selection
    from .formats import View

    requests = [SimpleNamespace(**row) for row in selection.request_rows(run=run_id)]
    if not requests:
        return
    view = View(footer=footers.summary(requests))
    rendering.NotebookSink().show(view, output_metadata.pack(requests))
