"""Tab: how IPython asks what may stand before the cursor.

Owns the matcher that `completer` answers through, which loads at the first Tab. Called by `magics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

_IDENTIFIER = "nbllm"


def install(shell: Any) -> None:
    """Have Tab in `shell` complete the magics too; again is as good as once."""
    uninstall(shell)
    shell.Completer.custom_matchers.append(_matcher(shell))


def uninstall(shell: Any) -> None:
    """Leave Tab in `shell` to IPython."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [known for known in matchers if getattr(known, "matcher_identifier", "") != _IDENTIFIER]


def _matcher(shell: Any) -> Callable[[CompletionContext], SimpleMatcherResult]:
    def match(context: CompletionContext) -> SimpleMatcherResult:
        from . import completer

        try:
            above = context.full_text.split("\n")[: context.cursor_line]
            text = "\n".join([*above, context.text_until_cursor])
            found = completer.completions(text, shell.user_ns, magics=_ours(shell, completer.MAGICS))
        except Exception:  # IPython would print the traceback into what the user is writing
            found = None
        if found is None:
            return {"completions": [], "matched_fragment": "", "suppress": False}
        return {
            "completions": [SimpleCompletion(text, type=kind) for text, kind in found.suggestions],
            "matched_fragment": found.fragment,
            "ordered": True,
            "suppress": True,
            "do_not_suppress": {"IPCompleter.file_matcher"} if found.or_file else set(),
        }

    # The high priority: before any matcher that would suppress this one.
    named = context_matcher(identifier=_IDENTIFIER, priority=1000)
    matcher: Callable[[CompletionContext], SimpleMatcherResult] = named(match)
    return matcher


def owner(magic: Any) -> str | None:
    """The module that a magic comes from; None where there is no such magic."""
    if magic is None:
        return None
    made_by = type(magic.__self__) if hasattr(magic, "__self__") else magic
    return getattr(made_by, "__module__", None) or repr(made_by)


def _ours(shell: Any, names: Iterable[str]) -> set[str]:
    """Those of our magics that the shell has; another package may have an `%%llm` of its own."""
    kinds = {name: "cell" if name.startswith("%%") else "line" for name in names}
    magics = shell.magics_manager.magics
    owners = {name: owner(magics[kind].get(name.lstrip("%"))) for name, kind in kinds.items()}
    return {name for name, module in owners.items() if (module or "").partition(".")[0] == __package__}
