"""The benchmarks run, and their checks hold: counts, texts and rows, never times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.backend import ROOT
from benchmarks.clients import installed
from benchmarks.contenders import CONTENDERS


def run(module: str, works: set[str], folder: Path) -> tuple[str, Any]:
    """One round of some works; gives what was printed, and what was kept."""
    kept = folder / "costs.json"
    only = [word for work in sorted(works) for word in ("--only", work)]
    command = [sys.executable, "-m", module, "--quick", "--rounds", "1", "--json", str(kept), *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(kept.read_text())


def test_nbllm_against_plain_aiohttp(tmp_path: Path) -> None:
    works = {"sequential", "stream"}
    _, told = run("benchmarks", works, tmp_path)
    over = {(name, scheme) for name in works for scheme in ("http", "https")}
    assert {(row["name"], row["over"]) for row in told["rows"]} == over
    assert all(len(row["nbllm"]) == len(row["plain"]) == 1 for row in told["rows"])


def test_other_clients(tmp_path: Path) -> None:
    """Those that are installed have a column; those that aren't are named."""
    works = {"sequential", "stream"}
    said, told = run("benchmarks.clients", works, tmp_path)
    here = {name for name, one in CONTENDERS.items() if len(installed(one.packages)) == len(one.packages)}
    assert here >= {"plain", "nbllm", "openai", "openai-nbllm", "langchain"}
    assert told["works"].keys() == works
    for work in told["works"].values():
        assert {name: len(costs) for name, costs in work["cost_s"].items()} == dict.fromkeys(here, 1)
    for name, one in CONTENDERS.items():
        assert (f"Left out: {one.title}, for want of" in said) == (name not in here)
