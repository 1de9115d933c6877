"""Measure nbllm against plain aiohttp with orjson and print one table: `python -m benchmarks`.

Timings never make the command fail; counts or texts that are wrong do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.backend import Backend, prepare_environment
from benchmarks.bench import NAMES, Bench
from benchmarks.sides import TIMEOUTS

COLUMNS = ("work", "over", "plain", "nbllm", "unit", "ratio (min-max)", "limit", "met?")


def main() -> int:
    """Run what the command line asks for; 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, help="one work; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="few short rounds, without the pause of a minute"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each work")
    parser.add_argument("--null", action="store_true", help="plain against itself: the noise of this machine")
    parser.add_argument(
        "--timeouts", choices=list(TIMEOUTS), default="same", help="those of plain (default: same)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every round's costs there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbllm-benchmarks-") as name:
        prepare_environment(Path(name))
        with Backend(Path(name)) as backend:
            bench = Bench(
                backend,
                quick=options.quick,
                rounds=options.rounds,
                null=options.null,
                timeouts=options.timeouts,
            )
            bench.run(options.only or NAMES)
    print(_table([COLUMNS, *(row.cells() for row in bench.rows)]))
    for failure in bench.failures:
        print(f"WRONG {failure}")
    if options.json:
        options.json.write_text(json.dumps(_report(bench), indent=1))
    return 1 if bench.failures else 0


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 2 <= number <= 3 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _report(bench: Bench) -> dict[str, Any]:
    rows = [{**vars(row), "ratios": row.ratios, "met": row.met} for row in bench.rows]
    where = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {**where, "aiohttp": version("aiohttp"), "rows": rows, "failures": bench.failures}


if __name__ == "__main__":
    sys.exit(main())
