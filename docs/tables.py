"""Write the tables of docs/magics.md from the code: `python -m docs.tables`.

What the magics take and do stands in one place, the code; `tests/test_docs.py` fails where the page differs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from nbllm.arguments import OPTIONS
from nbllm.commands import COMMANDS
from nbllm.settings import Settings, help_of

PAGE = Path(__file__).parent / "magics.md"


def page(text: str) -> str:
    """The page with its tables as the code has them now."""
    tables = {"options": _options(), "commands": _commands(), "settings": _settings()}
    for name, table in tables.items():
        text, count = re.subn(
            rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)",
            lambda match, table=table: f"{match[1]}{table}{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"docs/magics.md has {count} places for the {name}")
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
    rows = [(f"`{field.name}`", help_of(field.name)) for field in dataclasses.fields(Settings)]
    return _table(("setting", "meaning"), rows)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|---|", *lines[1:]]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
