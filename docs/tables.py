"""Write the tables of the pages in docs/ that stand in the code: `python -m docs.tables`.

What the code says stands in one place, the code; `tests/test_docs.py` fails where a page differs.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from nbllm.arguments import OPTIONS
from nbllm.bridges.semantic_conventions import ATTRIBUTES
from nbllm.commands import COMMANDS
from nbllm.overview import PHASES
from nbllm.settings import Settings, help_of

FOLDER = Path(__file__).parent


def page(name: str) -> str:
    """The page with its tables as the code has them now."""
    text = (FOLDER / name).read_text()
    for table, write in PAGES[name].items():
        written = write()
        text, count = re.subn(
            rf"(<!-- {table}: [^\n]*-->\n).*?(<!-- end -->)",
            lambda match, written=written: f"{match[1]}{written}{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"docs/{name} has {count} places for the {table}")
    return text


def _options() -> str:
    rows = [
        (", ".join(f"`{flag} {option.metavar}`".replace(" `", "`") for flag in option.flags), option.help)
        for option in OPTIONS
    ]
    return _table(("option", "does"), rows)


def _commands() -> str:
    rows = [("`%nbllm`", "model, session, HTTP session, spend, log and keys, in one screen")]
    rows += [
        (f"`%nbllm {name} {command.argument}`".replace(" `", "`"), command.help)
        for name, command in COMMANDS.items()
    ]
    return _table(("command", "does"), rows)


def _settings() -> str:
    default = Settings()
    rows = []
    for field in dataclasses.fields(Settings):
        meaning = help_of(field.name)
        value = "" if "Default:" in meaning else f"`{getattr(default, field.name)!r}`"
        rows.append((f"`{field.name}`", value, meaning))
    return _table(("setting", "default", "meaning"), rows)


def _attributes() -> str:
    rows = [(f"`{column}`", f"`{attribute}`") for column, attribute in ATTRIBUTES.items()]
    return _table(("column", "attribute"), rows)


def _phases() -> str:
    return _table(("phase", "what happens in it"), [(one.label, one.meaning) for one in PHASES.values()])


def _help(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    line = [sys.executable, "-m", "nbllm.cli", command, "--help"]
    said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    return f"```text\n{said}```\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "magics.md": {"options": _options, "commands": _commands, "settings": _settings},
    "log.md": {"attributes": _attributes},
    "views.md": {"phases": _phases},
    "reference/cli.md": {name: partial(_help, name) for name in ("demo", "demo-server", "gateway")},
}

if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(page(name))
