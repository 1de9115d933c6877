"""One run: takes both sides through the works in turns, checks the server's counts, keeps the rows."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import probe
from benchmarks.backend import Backend, client_context, logged_requests
from benchmarks.canned import REPLY_TEXT
from benchmarks.sides import Nbllm, Plain, PlainLines, Side
from benchmarks.works import WORKS, Work

PAUSE_S = 60
PAUSE_CALLS = 20
SCHEMES = ("http", "https")
NAMES = [*(work.name for work in WORKS), "memory", "pause", "import"]
_FACTORS = {"ms": 1e3, "KB/request": 1.0, "new connections": 1.0}


@dataclass
class Row:
    """One line of the table: what the work cost on both sides, round by round (in seconds or the unit)."""

    name: str
    title: str
    over: str
    unit: str
    limit: float | None
    plain: list[float] = field(default_factory=list)
    nbllm: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times as dear nbllm was, round by round; empty where plain cost nothing."""
        return [ours / plain for plain, ours in zip(self.plain, self.nbllm, strict=True) if plain]

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None for a row that has none."""
        if self.limit is None:
            return None
        return statistics.median(self.ratios or self.nbllm) <= self.limit

    def cells(self) -> tuple[str, ...]:
        ratio = ""
        if ratios := self.ratios:
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        limit = "" if self.limit is None else f"{self.limit:g}"
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return (
            self.title,
            self.over,
            shown(statistics.median(self.plain), self.unit),
            shown(statistics.median(self.nbllm), self.unit),
            self.unit,
            ratio,
            limit,
            met,
        )


class Bench:
    """The state of a run; `rows` and `failures` are its result."""

    def __init__(
        self, backend: Backend, *, quick: bool, rounds: int | None, null: bool, timeouts: str
    ) -> None:
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self._backend = backend
        self._quick = quick
        self._rounds = rounds
        self._null = null
        self._timeouts = timeouts
        self._sent = 0  # by nbllm, so many rows the log must hold

    def run(self, names: list[str]) -> None:
        """Measure the named works, in the order of `NAMES`."""
        asyncio.run(self._in_process(names))
        if not self._null:
            Nbllm.end()
        if "memory" in names:
            for scheme in SCHEMES:
                self._memory(scheme)
        if "import" in names:
            self._imports()
        self._check_log()

    async def _in_process(self, names: list[str]) -> None:
        sides = {scheme: self._sides(scheme) for scheme in SCHEMES}
        try:
            for work in WORKS:
                for scheme in SCHEMES:
                    if work.name in names:
                        await self._compare(work, scheme, *sides[scheme])
            if "pause" in names and not self._quick:
                await self._pause(sides)
        finally:
            for trio in sides.values():
                for side in trio:
                    await side.close()

    def _sides(self, scheme: str) -> tuple[Side, Side, Side]:
        base = self._backend.base(scheme)
        context = client_context() if scheme == "https" else None
        ours: Side = Plain(base, context, self._timeouts) if self._null else Nbllm(base)
        return Plain(base, context, self._timeouts), ours, PlainLines(base, context, self._timeouts)

    async def _compare(self, work: Work, scheme: str, plain: Side, ours: Side, by_line: Side) -> None:
        row = Row(work.name, work.title, scheme, work.unit, work.limit)
        rows = {plain: row.plain, ours: row.nbllm}
        self.rows.append(row)
        if work.by_line:
            lines = Row(work.name, "… plain by `async for line`", scheme, work.unit, None, nbllm=row.nbllm)
            rows[by_line] = lines.plain
            self.rows.append(lines)
        for side in rows:
            await self._sample(work, side, work.quick_size, f"{work.name} {scheme} warm-up", cold=True)
        for number in range(self._rounds or (5 if self._quick else work.rounds)):
            order = list(rows) if number % 2 == 0 else list(rows)[::-1]
            for side in order:
                size = work.quick_size if self._quick else work.size
                what = f"{work.name} {scheme} round {number + 1}"
                rows[side].append(await self._sample(work, side, size, what))
        say(row)

    async def _sample(self, work: Work, side: Side, size: int, what: str, *, cold: bool = False) -> float:
        """The cost of one round on one side, after the server's counts and the texts have been checked."""
        gc.collect()
        before = self._backend.stats()
        sample = await work.measure(side, size)
        after = self._backend.stats()
        requests = len(sample.texts)
        self._check(after["requests"] - before["requests"], requests, f"{what}: requests of {side.name}")
        self._check(sample.texts.count(work.text), requests, f"{what}: right texts of {side.name}")
        if not cold:
            self._check(
                after["connections"] - before["connections"], 0, f"{what}: new connections of {side.name}"
            )
        self._count(side, requests)
        return sample.cost_s

    async def _pause(self, sides: dict[str, tuple[Side, Side, Side]]) -> None:
        """Connections that calls after a minute of silence open, where the server has closed none."""
        trios = [(scheme, side) for scheme, (plain, ours, _) in sides.items() for side in (plain, ours)]
        for _, side in trios:
            await asyncio.gather(*(side.reply("reply") for _ in range(PAUSE_CALLS)))
        await asyncio.sleep(PAUSE_S)
        new: list[float] = []
        for scheme, side in trios:
            before = self._backend.stats()["connections"]
            texts = await asyncio.gather(*(side.reply("reply") for _ in range(PAUSE_CALLS)))
            new.append(self._backend.stats()["connections"] - before)
            self._check(texts.count(REPLY_TEXT), PAUSE_CALLS, f"pause {scheme}: right texts of {side.name}")
            self._check(int(new[-1]), 0, f"pause {scheme}: new connections of {side.name}")
            self._count(side, 2 * PAUSE_CALLS)
            side.settle()
        for number, scheme in enumerate(sides):
            plain, ours = new[2 * number : 2 * number + 2]
            title = f"after a pause of {PAUSE_S} s, {PAUSE_CALLS} at once"
            self.rows.append(Row("pause", title, scheme, "new connections", 0, [plain], [ours]))
            say(self.rows[-1])

    def _memory(self, scheme: str) -> None:
        if not Path("/proc/self/statm").exists():
            print("memory: skipped, needs /proc", file=sys.stderr)
            return
        row = Row("memory", f"memory, {probe.IN_FLIGHT} in flight", scheme, "KB/request", 1.25)
        self.rows.append(row)
        control = self._backend.ports["control"]
        for number in range(self._rounds or (1 if self._quick else 7)):
            for name, costs in (("plain", row.plain), ("plain" if self._null else "nbllm", row.nbllm)):
                told = probe.memory(name, self._backend.base(scheme), control)
                what = f"memory {scheme} round {number + 1}:"
                self._check(int(told["held"]), probe.IN_FLIGHT, f"{what} requests of {name} on the wire")
                self._check(int(told["right"]), probe.IN_FLIGHT, f"{what} right texts of {name}")
                costs.append(told["kb"])
                self._sent += probe.IN_FLIGHT + probe.WARM_UP if name == "nbllm" else 0
        say(row)

    def _imports(self) -> None:
        row = Row("import", "import, against `import aiohttp`", "", "ms", 1.15)
        self.rows.append(row)
        modules = ("aiohttp", "aiohttp" if self._null else "nbllm")
        for module in modules:
            probe.import_s(module)  # writes the bytecode, warms the file cache
        for _ in range(self._rounds or (5 if self._quick else 21)):
            for module, costs in zip(modules, (row.plain, row.nbllm), strict=True):
                costs.append(probe.import_s(module))
        say(row)

    def _count(self, side: Side, requests: int) -> None:
        if isinstance(side, Nbllm):
            self._sent += requests

    def _check_log(self) -> None:
        """Every request of nbllm has its row: the trace and the log were on all the time."""
        rows, well = logged_requests()
        self._check(rows, self._sent, "rows in the log")
        self._check(well, self._sent, "rows in the log with status ok")

    def _check(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            self.failures.append(f"{what}: {found}, expected {expected}")


def shown(cost: float, unit: str) -> str:
    """A cost in seconds, or in the unit where that is no time, as the table shows it."""
    if unit == "requests/s":
        return f"{1 / cost:,.0f}"
    cost *= _FACTORS.get(unit, 1e6)
    return f"{cost:,.0f}" if cost >= 1000 or cost == 0 else f"{cost:.3g}"


def say(row: Row) -> None:
    """Progress on standard error: a whole run takes minutes."""
    print("  ".join(cell for cell in row.cells() if cell), file=sys.stderr, flush=True)
