"""What needs a fresh process: memory per request in flight, and the time of an import.

Run by the benchmark as `python -m benchmarks.probe SIDE BASE_URL CONTROL_PORT`; prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.backend import ROOT, ask, client_context
from benchmarks.canned import REPLY_TEXT
from benchmarks.sides import Nbllm, Plain, Side

IN_FLIGHT = 1000
WARM_UP = 20


def memory(side: str, base: str, control: int) -> dict[str, float]:
    """Kilobytes per request with `IN_FLIGHT` on the wire, measured in a new process."""
    told: dict[str, float] = _run([sys.executable, "-m", "benchmarks.probe", side, base, str(control)])
    return told


def import_s(module: str) -> float:
    """Seconds that `import module` takes in a new interpreter, without the interpreter's own start."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(_run([sys.executable, "-c", code]))


def _run(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def _resident_kb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


async def _measure(name: str, base: str, control: int) -> dict[str, float]:
    context = client_context() if base.startswith("https") else None
    side: Side = Nbllm(base) if name == "nbllm" else Plain(base, context)
    await asyncio.gather(*(side.reply("reply") for _ in range(WARM_UP)))
    side.settle()
    gc.collect()
    before = _resident_kb()
    calls = [asyncio.ensure_future(side.reply("held")) for _ in range(IN_FLIGHT)]
    held = 0
    for _ in range(300):
        await asyncio.sleep(0.1)
        if (held := ask(control, "/stats")["held"]) == IN_FLIGHT:
            break
    gc.collect()
    used = (_resident_kb() - before) / IN_FLIGHT
    ask(control, "/release")
    right = (await asyncio.gather(*calls)).count(REPLY_TEXT)
    side.settle()
    await side.close()
    return {"kb": used, "held": held, "right": right}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
