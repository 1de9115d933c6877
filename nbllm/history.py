"""What ran in the notebook before this cell, as text for a model.

Owns `cells_before`, which reads IPython's history. Called by `cells`.
"""

from __future__ import annotations

from typing import Any

from . import masking

CONTEXT_CHARACTERS = 2000
"""How much of one cell's output goes along with a prompt."""


def cells_before(shell: Any, number: int) -> str:
    """The last cells that ran before this one, with what they printed and gave, as text for a model.

    Args:
        shell: Whose history is meant.
        number: How many cells, at most; empty ones don't count.

    Returns:
        "" where none ran before.
    """
    sources = list(enumerate(shell.history_manager.input_hist_raw))[1:-1]  # the last one is this cell
    told = [(count, source) for count, source in sources if source.strip()][-number:]
    if not told:
        return ""
    parts = ["These cells of the notebook ran before:"]
    for count, source in told:
        parts.append(f"In [{count}]:\n{source.strip()}")
        if output := _output(shell, count).strip():
            cut = len(output) - CONTEXT_CHARACTERS
            shown = f"{output[:CONTEXT_CHARACTERS]}\n({cut:,} more characters)" if cut > 0 else output
            parts.append(f"Out [{count}]:\n{shown}")
    return masking.redact("\n\n".join(parts)) + "\n\n"  # a cell may have set a key


def _output(shell: Any, count: int) -> str:
    printed = getattr(shell.history_manager, "outputs", None)  # IPython 9 keeps what was printed, too
    if not printed or count not in printed:
        values = shell.user_ns.get("Out")
        value = values.get(count) if isinstance(values, dict) else None
        return "" if value is None else repr(value)
    texts = []
    for output in printed[count]:
        text = output.bundle.get("stream") or output.bundle.get("text/plain") or ""
        texts.append(text if isinstance(text, str) else "".join(text))
    return "\n".join(texts)
