"""The floors of docs/design.md, and the tools that read the whole code."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_downward_only() -> None:
    """By the contract in pyproject.toml, which must name every module."""
    run(TOOLS / "lint-imports", "--no-cache")


def test_the_design_names_every_room_with_its_floor() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = {
        room: int(floor) for floor, room in re.findall(r"^\| (\d+) \| `(\w+)/?` \|", text, flags=re.MULTILINE)
    }
    package = ROOT / "nbllm"
    rooms = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert rooms - {"__init__", "__main__"} == set(rows)
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [{rows[room] for room in layer.split(" | ")} for layer in contract["layers"]]
    assert all(len(floor) == 1 for floor in floors)
    assert floors == sorted(floors, key=min, reverse=True)


def test_ruff_has_nothing_to_say() -> None:
    run(TOOLS / "ruff", "check", ".")
    run(TOOLS / "ruff", "format", "--check", ".")


def test_mypy_has_nothing_to_say() -> None:
    run(TOOLS / "mypy")
