"""The table `[tool.nbllm]` of a project's `pyproject.toml`: where it is, and what stands there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from .notices import warn_once

MOST_BYTES = 1_000_000
"""A larger file is no project's, and would take seconds to parse."""

# Spares the parser, and warnings about files that are no concern of ours.
_MAY_HOLD_IT = re.compile(rb"""\btool["']?\s*(\.\s*["']?nbllm|[\]=])""")


def project_table(folder: str) -> tuple[str, dict[str, Any]] | None:
    """Path and content of the nearest `[tool.nbllm]`, in `folder` or above it; None where there is none.

    A file without that table is passed over, as other tools do it: a package inside a larger repository has
    one of its own. One that can't be read is warned of, once, and passed over likewise.
    """
    for path in _candidates(folder):
        try:
            table = _table(path)
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            warn_once(f"{path} can't be read, and its [tool.nbllm] does not count: {reason}")
            continue
        if table is not None:
            return path, table
    return None


def _candidates(folder: str) -> Iterator[str]:
    while True:
        yield os.path.join(folder, "pyproject.toml")
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


def _table(path: str) -> dict[str, Any] | None:
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not is_file:  # a pipe would be read for ever
        raise ValueError("it is no file")
    with open(path, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 1000} kB")
    if not _MAY_HOLD_IT.search(text):
        return None
    import tomllib

    tool = tomllib.loads(text.decode()).get("tool")
    table = tool.get("nbllm") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None
