"""Measure other clients and nbllm against plain aiohttp, and print tables: `python -m benchmarks.clients`.

Each client has a process of its own, which lives as long as the run; they take turns, round by round. One
that isn't installed is left out. Timings never make the command fail; counts or texts that are wrong do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from benchmarks.backend import ROOT, Backend, logged_requests, prepare_environment
from benchmarks.bench import shown
from benchmarks.canned import STREAM_CHUNKS
from benchmarks.contenders import CONTENDERS
from benchmarks.probe import import_s

AT_ONCE = 100
PAUSES_S = (6, 60)  # longer than httpx keeps a connection that is idle; longer than aiohttp does
ROUNDS, FRESH_ROUNDS = 11, 5
QUICK_ROUNDS = 3
PACKAGES = sorted({name for contender in CONTENDERS.values() for name in contender.packages} | {"httpx"})


@dataclass(frozen=True)
class Work:
    """What is asked of a client's process: `size` of it makes a turn, and each text of it `items`."""

    name: str
    title: str
    unit: str
    size: int = 0
    warm_up: int = 0
    items: int = 1


WORKS = [
    Work("sequential", "sequential", "CPU µs/request", 150, 10),
    Work("concurrent", f"{AT_ONCE} at once", "CPU µs/request", 2, 4),
    Work("stream", f"{STREAM_CHUNKS}-chunk stream", "CPU µs/chunk", 1, 1, STREAM_CHUNKS),
    Work("embeddings", "64 embeddings of 1536", "CPU µs/request", 5, 1),
]
IMPORT = Work("import", "import", "ms")
FIRST = Work("first", "from the import to the first answer", "ms")
NAMES = [work.name for work in (*WORKS, IMPORT, FIRST)] + ["pause"]


@dataclass
class Row:
    """What a work cost each client, round by round in seconds, and the connections that it opened in all."""

    work: Work
    costs: dict[str, list[float]] = field(default_factory=dict)
    walls: dict[str, list[float]] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """How many times as dear as plain aiohttp: the median of the rounds' ratios."""
        pairs = zip(self.costs[name], self.costs["plain"], strict=True)
        return statistics.median(cost / plain for cost, plain in pairs)

    def median(self, name: str) -> str:
        """The median of the costs, and the connections where requests were measured."""
        cost = shown(statistics.median(self.costs[name]), self.work.unit)
        return f"{cost} / {self.connections[name]}" if name in self.connections else cost


class Process:
    """A client in a process of its own; `first` is what it told of the way to its first answer."""

    def __init__(self, name: str, base: str) -> None:
        self._name = name
        command = [sys.executable, "-m", "benchmarks.contenders", name, base]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()  # ends its standard input, and so the process

    def run(self, work: str, size: int) -> dict[str, Any]:
        """Do some of a work; gives its CPU and wall seconds, and how many requests and right texts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"work": work, "size": size}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"{CONTENDERS[self._name].title} failed; see above")
        told: dict[str, Any] = json.loads(line)
        return told


class Clients:
    """The state of a run; `rows`, `pauses` and `failures` are its result."""

    def __init__(
        self, backend: Backend, names: list[str], *, tls: bool, quick: bool, rounds: int | None
    ) -> None:
        self.rows: list[Row] = []
        self.pauses: dict[int, dict[str, int]] = {}
        self.failures: list[str] = []
        self._backend = backend
        self._base = backend.base("https" if tls else "http")
        self._names = names
        self._quick = quick
        self._rounds = rounds
        self._logged = 0  # so many rows nbllm's log must hold

    def run(self, works: list[str]) -> None:
        """Measure the named works."""
        loops = [work for work in WORKS if work.name in works]
        if loops or "pause" in works:
            with ExitStack() as stack:
                processes = {name: stack.enter_context(self._start(name)) for name in self._names}
                for work in loops:
                    self._compare(work, processes)
                if "pause" in works:
                    for pause_s in PAUSES_S[: 1 if self._quick else None]:
                        self._pause(pause_s, processes)
        if "import" in works:
            self._fresh(IMPORT, lambda name: import_s(CONTENDERS[name].modules))
        if "first" in works:
            self._fresh(FIRST, self._first_s)
        rows, well = logged_requests()
        self._check(rows, self._logged, "rows in the log")
        self._check(well, self._logged, "rows in the log with status ok")

    def _compare(self, work: Work, processes: dict[str, Process]) -> None:
        row = Row(
            work,
            {name: [] for name in processes},
            {name: [] for name in processes},
            dict.fromkeys(processes, 0),
        )
        self.rows.append(row)
        for number, names in enumerate(self._turns(ROUNDS)):
            for name in names:
                what = f"{work.name} round {number + 1}"
                # The others' turns are a pause, after which a client may have to connect again.
                self._sample(name, processes[name], work.name, work.warm_up, f"{what}, warm-up")
                told = self._sample(name, processes[name], work.name, work.size, what)
                row.costs[name].append(told["cost_s"] / told["requests"] / work.items)
                row.walls[name].append(told["wall_s"] / told["requests"] / work.items)
                row.connections[name] += told["connections"]
        say(row)

    def _pause(self, pause_s: int, processes: dict[str, Process]) -> None:
        for name, process in processes.items():
            self._sample(name, process, "concurrent", 1, f"before a pause of {pause_s} s")
        time.sleep(pause_s)
        self.pauses[pause_s] = {
            name: self._sample(name, process, "concurrent", 1, f"after a pause of {pause_s} s")["connections"]
            for name, process in processes.items()
        }

    def _fresh(self, work: Work, measure: Callable[[str], float]) -> None:
        row = Row(work, {name: [] for name in self._names})
        self.rows.append(row)
        for names in self._turns(FRESH_ROUNDS):  # the first may write bytecode, which the median passes over
            for name in names:
                row.costs[name].append(measure(name))
        say(row)

    def _first_s(self, name: str) -> float:
        with self._start(name) as process:
            return float(process.first["cost_s"])

    def _start(self, name: str) -> Process:
        before = self._backend.stats()
        process = Process(name, self._base)
        self._account(name, process.first, before, "first answer")
        return process

    def _turns(self, rounds: int) -> Iterable[list[str]]:
        """Who comes after whom in each round: there and back, so that none is always the first."""
        for number in range(self._rounds or (QUICK_ROUNDS if self._quick else rounds)):
            yield self._names if number % 2 == 0 else self._names[::-1]

    def _sample(self, name: str, process: Process, work: str, size: int, what: str) -> dict[str, Any]:
        before = self._backend.stats()
        told = process.run(work, size)
        self._account(name, told, before, what)
        return told

    def _account(self, name: str, told: dict[str, Any], before: dict[str, int], what: str) -> None:
        """Compare what a client told with what the server saw, which adds the connections that it opened."""
        after = self._backend.stats()
        told["connections"] = after["connections"] - before["connections"]
        self._check(after["requests"] - before["requests"], told["requests"], f"{what}: requests of {name}")
        self._check(told["right"], told["requests"], f"{what}: right texts of {name}")
        self._logged += told["requests"] if CONTENDERS[name].logs else 0

    def _check(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            self.failures.append(f"{what}: {found}, expected {expected}")


# -- what is printed -----------------------------------------------------------------------------------


def say(row: Row) -> None:
    """Progress on standard error: a whole run takes minutes."""
    print(f"{row.work.title}: {', '.join(map(row.median, row.costs))}", file=sys.stderr, flush=True)


def ratios(run: Clients, names: list[str]) -> str:
    """The table of ratios, and of the connections that had to be opened after a pause."""
    lines = [[row.work.title, *(f"{row.ratio(name):.2f}" for name in names)] for row in run.rows]
    for pause_s, opened in run.pauses.items():
        title = f"new connections for {AT_ONCE} at once after {pause_s} s"
        lines.append([title, *(str(opened[name]) for name in names)])
    return markdown(["times plain aiohttp", *(CONTENDERS[name].title for name in names)], lines)


def medians(run: Clients, names: list[str]) -> str:
    """The table of medians, with the connections that were opened while the clock ran."""
    lines = [[f"{row.work.title}, {row.work.unit}", *map(row.median, names)] for row in run.rows]
    return markdown(["median / new connections", *(CONTENDERS[name].title for name in names)], lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Run what the command line asks for; 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, help="one work; may be repeated")
    parser.add_argument("--quick", action="store_true", help="few rounds, without the pause of a minute")
    parser.add_argument("--rounds", type=int, help="rounds of each work")
    parser.add_argument("--tls", action="store_true", help="over TLS connections")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every round's costs there")
    options = parser.parse_args()
    versions = installed(PACKAGES)
    names = [name for name, one in CONTENDERS.items() if versions.keys() >= set(one.packages)]
    with tempfile.TemporaryDirectory(prefix="nbllm-benchmarks-") as folder:
        prepare_environment(Path(folder))
        for variable in list(os.environ):
            if variable.startswith(("LITELLM_", "LANGCHAIN_", "LANGSMITH_")):
                del os.environ[variable]
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches one from the internet
        with Backend(Path(folder)) as backend:
            run = Clients(backend, names, tls=options.tls, quick=options.quick, rounds=options.rounds)
            run.run(options.only or NAMES)
    if run.rows or run.pauses:
        print(ratios(run, names), end="\n\n")
    if run.rows:
        print(medians(run, names), end="\n\n")
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs;", end=" ")
    print(", ".join(f"{package} {found}" for package, found in versions.items()))
    for name, contender in CONTENDERS.items():
        if name not in names:
            missing = ", ".join(set(contender.packages) - versions.keys())
            print(f"Left out: {contender.title}, for want of {missing}")
    for failure in run.failures:
        print(f"WRONG {failure}")
    if options.json:
        options.json.write_text(json.dumps(report(run, versions), indent=1))
    return 1 if run.failures else 0


def report(run: Clients, versions: dict[str, str]) -> dict[str, Any]:
    """All that was measured, in seconds, by work and client."""
    where = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    rows = {
        row.work.name: {"cost_s": row.costs, "wall_s": row.walls, "connections": row.connections}
        for row in run.rows
    }
    return {**where, "versions": versions, "works": rows, "pauses": run.pauses, "failures": run.failures}


if __name__ == "__main__":
    sys.exit(main())
