"""What the log holds after kernels were killed, disks filled up and files went away."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import log, notices
from tests.kernels import Kernel
from tests.records import WHOLE, record
from tests.rows import request_rows
from tests.servers import RawServer

ROOT = Path(__file__).parent.parent

# -- kernels that are killed -------------------------------------------------------------------------

ROUNDS = 3
LOST_SECONDS = 0.5
"""What happened in the last half second before a kernel was killed may be lost."""

LOAD = """
%load_ext nbllm
import asyncio, nbllm
def ask(cell, number, behaviour="chat", **options):
    return nbllm.acompletion("m", "Hi", base_url=f"{SERVER}/{behaviour}/{NAME}/{cell}/{number}", **options)
async def one(cell, number):
    if number % 3:
        return await ask(cell, number)
    async for _ in await ask(cell, number, stream=True):
        pass
async def load(cell, size):
    tasks.append(asyncio.ensure_future(ask(cell, "never", "hang")))
    await asyncio.gather(*(one(cell, number) for number in range(size)))
async def for_ever(cell):
    for wave in itertools.count():
        await asyncio.gather(*(one(cell, 20 * wave + number) for number in range(20)))
        await asyncio.sleep(0.05)  # a processor that is never free would measure the machine
import itertools
tasks = []
nbllm.requests()  # opens the log, which takes its time
"""


class Witness(RawServer):
    """Notes by path when each request was here whole, and when it was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.came: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        for name in ("chat", "hang"):
            self.behaviours[name] = self._noting(self.behaviours[name])

    def _noting(self, behaviour: Any) -> Any:
        async def noting(exchange: Any) -> None:
            path = exchange.request.path
            assert path not in self.came, "nothing is sent twice"
            self.came[path] = time.monotonic()
            await behaviour(exchange)
            self.answered[path] = time.monotonic()

        return noting


def cell_of(path: str) -> str:
    """`/chat/kernel0/3/17/chat/completions` → `kernel0/3`"""
    return "/".join(path.split("/")[2:4])


def kernel_of(path: str) -> str:
    return path.split("/")[2]


def in_log(address: str) -> dict[str, str]:
    """The environment of a process that keeps its rows, and their contents, in this log."""
    return {("NBLLM_LOG_URL" if "://" in address else "NBLLM_LOG_PATH"): address, "NBLLM_CONTENT": "1"}


@dataclass
class Victim:
    """A kernel under load, and when it is killed."""

    name: str
    kernel: Kernel
    cells: list[str]
    killed_at: float

    def finished(self) -> set[str]:
        """Names of the cells whose end the front end has seen."""
        return {f"{self.name}/{n}" for n, cell in enumerate(self.cells) if self.kernel.succeeded(cell)}


def under_load(name: str, kernel: Kernel, server: Witness, chance: random.Random) -> Victim:
    address = f"http://127.0.0.1:{server.port}"
    kernel.run(f"SERVER, NAME = {address!r}, {name!r}\n{LOAD}", timeout=60).ok()
    codes = [f"await load({number}, {chance.randint(1, 60)})" for number in range(chance.randint(2, 40))]
    cells = [kernel.send(code) for code in [*codes, f"await for_ever({len(codes)})"]]
    return Victim(name, kernel, cells, time.monotonic() + chance.uniform(0.05, 3))


def test_a_killed_kernel_has_lost_nothing_of_its_finished_cells(any_log: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"random.Random({seed})")  # pytest shows it where the test fails
    chance = random.Random(seed)
    assert request_rows(kernel="all") == []  # who looks on has the log open all the time
    victims: list[Victim] = []
    with Witness() as server, contextlib.ExitStack() as stack:
        for _ in range(ROUNDS):
            pair = []
            for _ in range(2):
                folder = tmp_path / f"kernel{len(victims) + len(pair)}"
                folder.mkdir()
                kernel = stack.enter_context(Kernel(folder, env=in_log(any_log)))
                pair.append(under_load(folder.name, kernel, server, chance))
            for victim in sorted(pair, key=lambda victim: victim.killed_at):
                victim.kernel.listen(victim.killed_at - time.monotonic())
                victim.killed_at = time.monotonic()
                victim.kernel.kill()
                victim.kernel.listen(0.1)  # what it sent before its end
                assert not victim.kernel.alive()
            victims += pair
    check_rows(victims, server)
    if "://" not in any_log:
        with closing(sqlite3.connect(any_log)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def check_rows(victims: list[Victim], server: Witness) -> None:
    found = request_rows(kernel="all")
    times = Counter(row.url_path for row in found)
    assert [path for path, number in times.items() if number != 1] == []
    status = {row.url_path: row.status for row in found}
    assert set(status.values()) <= {"ok", "incomplete"}

    finished = set.union(*(victim.finished() for victim in victims))
    assert len(finished) > len(victims)  # else nothing was tested
    of_finished = {path for path in server.answered if cell_of(path) in finished}
    assert {path: status.get(path) for path in of_finished} == dict.fromkeys(of_finished, "ok")

    killed_at = {victim.name: victim.killed_at for victim in victims}
    settled = {name: moment - LOST_SECONDS for name, moment in killed_at.items()}
    lost = [path for path in server.answered if status.get(path) != "ok"]
    ages = {path: killed_at[kernel_of(path)] - server.answered[path] for path in lost}
    assert max(ages.values(), default=0.0) <= LOST_SECONDS
    in_flight = {path for path, moment in server.came.items() if moment < settled[kernel_of(path)]}
    in_flight -= set(server.answered)
    assert in_flight
    assert {path: status.get(path) for path in in_flight} == dict.fromkeys(in_flight, "incomplete")

    # None is half written.
    whole = [row for row in found if row.status == "ok"]
    assert {(row.http_status, row.input_tokens, row.finish_reason) for row in whole} == {(200, 11, "stop")}
    assert not any(row.duration_ms is None or row.ended_at is None for row in whole)
    assert {row.connection_id for row in whole} <= set(nbllm.connections(kernel="all").connection_id)
    assert len(nbllm.requests(kernel="all", search="raw server")) == len(whole)


def test_a_kernel_that_is_killed_while_it_begins_the_log_leaves_one_that_can_be_used(
    any_log: str, server: RawServer
) -> None:
    seed = random.randrange(1 << 32)
    print(f"random.Random({seed})")
    chance = random.Random(seed)
    for _ in range(8):
        process = start(BEGIN + "print(flush=True); asyncio.run(ask())", server.url(), "", **in_log(any_log))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
    log.add_request(record(status="ok", **WHOLE))
    found = request_rows(kernel="all")
    assert found[-1].status == "ok"
    assert {row.status for row in found} <= {"ok", "incomplete"}
    assert warned() == []
    assert log.path() is not None


# -- many that write at once ---------------------------------------------------------------------------

WRITE = """
from nbllm import log
from tests.records import WHOLE, record
for number in range(1, 5001):
    log.add_request(record(status="ok", ended_at=1.0, url_path=f"/{number}", **WHOLE))
    if number % 100 == 0:
        log.flush()
"""


def start(code: str, *args: str, before: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    """A process with warnings shown."""
    return subprocess.Popen(
        [*before, sys.executable, "-W", "always", "-c", code, *args],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_four_processes_that_write_5000_rows_each_lose_none(any_log: str) -> None:
    processes = [start(WRITE, **in_log(any_log)) for _ in range(4)]
    assert [process.communicate(timeout=120) for process in processes] == [("", "")] * 4
    found = nbllm.requests(kernel="all")
    assert len(found) == found.request_id.nunique() == 20_000
    assert set(found.groupby("kernel_id", observed=True).url_path.nunique()) == {5000}


# -- disks -------------------------------------------------------------------------------------------

ON_A_SMALL_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=400k none "$0" && exec "$@"'


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder in which `ON_A_SMALL_DISK` mounts a file system of its own, which goes with its process."""
    folder = tmp_path / "disk"
    folder.mkdir()
    found = subprocess.run([*ON_A_SMALL_DISK, MOUNT, folder, "true"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"nothing can be mounted here: {found.stderr.strip()}")
    return folder


BEGIN = """
import asyncio, os, sqlite3, subprocess, sys
import nbllm
from nbllm import log
url, folder = sys.argv[1:]
async def ask(text="Hi"):
    await nbllm.acompletion("m", text, base_url=url)
    log.flush()
def in_file():
    return sqlite3.connect(log.path()).execute("SELECT count(*) FROM requests").fetchone()[0]
"""


def on_disk(disk: Path, server: RawServer, code: str) -> tuple[str, str]:
    """What a script says whose log lies on the small disk."""
    process = start(
        BEGIN + code,
        server.url(),
        str(disk),
        before=(*ON_A_SMALL_DISK, MOUNT, str(disk)),
        NBLLM_LOG_PATH=str(disk / "log" / "log.db"),
    )
    return process.communicate(timeout=60)


def test_a_disk_that_fills_up_and_is_cleared(disk: Path, server: RawServer) -> None:
    stdout, stderr = on_disk(
        disk,
        server,
        """
async def main():
    await ask()
    try:
        with open(f"{folder}/filler", "wb") as filler:
            while filler.write(bytes(4096)):
                filler.flush()
    except OSError:
        pass
    for _ in range(5):
        await ask("x" * 50_000)
    print(len(nbllm.requests()), len(nbllm.connections()), log.path())
    os.remove(f"{folder}/filler")
    nbllm.configure(log=f"{folder}/log/log.db")
    await ask()
    print(len(nbllm.requests()), in_file())
asyncio.run(main())
""",
    )
    assert stdout == "6 1 None\n7 7\n"
    assert stderr.count("RuntimeWarning") == 1
    assert "full" in stderr
    assert "Traceback" not in stderr


def test_a_disk_that_becomes_read_only(disk: Path, server: RawServer) -> None:
    stdout, stderr = on_disk(
        disk,
        server,
        """
async def main():
    await ask()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=False)
    for _ in range(3):
        await ask()
    print(len(nbllm.requests()))
asyncio.run(main())
""",
    )
    assert stdout == "4\n"
    assert stderr.count("RuntimeWarning") <= 1  # an open file may keep its right to be written
    assert "Traceback" not in stderr


def test_a_disk_that_is_read_only_from_the_start(disk: Path, server: RawServer) -> None:
    stdout, stderr = on_disk(
        disk,
        server,
        """
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
async def main():
    for _ in range(3):
        await ask()
    print(len(nbllm.requests()), log.path(), os.listdir(folder))
asyncio.run(main())
""",
    )
    assert stdout == "3 None []\n"
    assert stderr.count("RuntimeWarning") == 1
    assert "Read-only file system" in stderr


def test_the_cells_of_a_kernel_go_on_whatever_becomes_of_the_file(server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "log" / "log.db"
    asking = f"await nbllm.acompletion('m', 'Hi', base_url={server.url()!r}); len(nbllm.requests())"
    steps = [
        lambda: damage(path),
        lambda: shutil.rmtree(path.parent),
        lambda: os.truncate(path, 0),
        lambda: path.unlink(),
        lambda: path.write_bytes(NO_DATABASE),
    ]
    with Kernel(tmp_path, env={"NBLLM_LOG_PATH": str(path)}) as kernel:
        kernel.run("%load_ext nbllm\nimport nbllm").ok()
        kernel.run(asking).ok()
        for step in steps:
            step()
            outcomes = [kernel.run(asking) for _ in range(2)]
            assert [outcome.status for outcome in outcomes] == ["ok", "ok"]
            assert sum(outcome.stderr.count("RuntimeWarning") for outcome in outcomes) <= 1
            assert "Traceback" not in outcomes[0].stderr
            kernel.run(f"nbllm.configure(log={str(path)!r})").ok()
            kernel.run(asking).ok()
    assert in_file(path) >= 1


# -- files that break, or go away ------------------------------------------------------------------------


async def ask(server: RawServer, **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), **options)


def warned() -> list[str]:
    return sorted(notices._state.warned)


def in_file(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
        return found


def aside(path: Path) -> list[Path]:
    """Damaged logs that were kept, without what SQLite keeps beside them."""
    found = path.parent.glob(f"{path.name}.corrupt-*")
    return [path for path in found if not path.name.endswith(("-journal", "-wal", "-shm"))]


NO_DATABASE = b"this is no database " * 1000


async def check_begun_anew(server: RawServer, log_path: Path, kept: bytes) -> None:
    """The damaged file is kept, said once, and all goes on in a new one."""
    for _ in range(3):
        await ask(server)
        request_rows()
    assert [row.status for row in request_rows()][-3:] == ["ok"] * 3
    (warning,) = warned()
    (corrupt,) = aside(log_path)
    assert str(log_path) in warning
    assert str(corrupt) in warning
    assert corrupt.read_bytes() == kept
    assert log.path() == str(log_path)
    log.close()
    assert in_file(log_path) >= 3
    assert log_path.stat().st_mode & 0o777 == 0o600


async def test_a_file_that_is_no_database_is_kept_aside(server: RawServer, log_path: Path) -> None:
    log_path.parent.mkdir()
    log_path.write_bytes(NO_DATABASE)
    await check_begun_anew(server, log_path, NO_DATABASE)


@pytest.mark.parametrize("from_byte", [0, 100, 4096])
async def test_a_damaged_database_is_kept_aside(from_byte: int, server: RawServer, log_path: Path) -> None:
    for _ in range(20):
        await ask(server)
    log.close()
    size = log_path.stat().st_size
    damage(log_path, from_byte)
    kept = log_path.read_bytes()
    assert len(kept) == size
    await check_begun_anew(server, log_path, kept)


def damage(path: Path, from_byte: int = 0) -> None:
    """Overwrite the file where it is, as a bad disk would."""
    noise = random.Random(1).randbytes(path.stat().st_size - from_byte)
    with path.open("r+b") as file:
        file.seek(from_byte)
        file.write(noise)


async def test_a_database_that_is_damaged_while_it_is_open(server: RawServer, log_path: Path) -> None:
    for _ in range(20):
        await ask(server)
    log.flush()
    damage(log_path)
    for _ in range(3):
        await ask(server)
        log.flush()
    assert [row.status for row in request_rows()][-3:] == ["ok"] * 3
    assert len(warned()) == 1
    assert len(aside(log_path)) == 1
    log.close()
    assert in_file(log_path) >= 3


def test_processes_that_find_the_same_damaged_file(server: RawServer, log_path: Path) -> None:
    log_path.parent.mkdir()
    log_path.write_bytes(NO_DATABASE)
    code = BEGIN + "for _ in range(5): asyncio.run(ask())"
    processes = [start(code, server.url(), "", NBLLM_LOG_PATH=str(log_path)) for _ in range(5)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [stdout for stdout, _ in said] == [""] * 5
    assert all(stderr.count("RuntimeWarning") <= 1 for _, stderr in said), said
    assert any("corrupt-" in stderr for _, stderr in said)
    (corrupt,) = aside(log_path)
    assert corrupt.read_bytes() == NO_DATABASE
    assert in_file(log_path) == 25


def test_kernels_whose_common_file_is_damaged_go_on_in_one_new_file(
    server: RawServer, log_path: Path
) -> None:
    code = (
        BEGIN
        + """
for line in sys.stdin:
    asyncio.run(ask())
    log.flush()  # its connection has closed
    print(line, end="", flush=True)
"""
    )
    processes = [start(code, server.url(), "", NBLLM_LOG_PATH=str(log_path)) for _ in range(3)]

    def everybody_asks() -> None:
        for process in processes:
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"

    for _ in range(5):
        everybody_asks()
    damage(log_path)
    kept = log_path.read_bytes()
    for _ in range(5):
        everybody_asks()
    said = [process.communicate(timeout=60) for process in processes]
    assert all(stderr.count("RuntimeWarning") <= 1 for _, stderr in said), said
    (corrupt,) = aside(log_path)
    assert corrupt.read_bytes()[: len(kept)] == kept
    assert in_file(log_path) >= 15


@pytest.mark.parametrize("what", ["file", "folder", "replaced", "emptied"])
async def test_a_log_that_is_taken_away_while_it_is_open(
    what: str, server: RawServer, log_path: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        await ask(server)
    log.flush()
    if what == "file":
        log_path.unlink()
    elif what == "folder":
        shutil.rmtree(log_path.parent)
    elif what == "replaced":
        other = tmp_path / "other.db"
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE foreign_table (x INTEGER)")
        os.replace(other, log_path)
    else:
        os.truncate(log_path, 0)
    for _ in range(3):
        await ask(server)
        log.flush()
    assert [row.status for row in request_rows()][-3:] == ["ok"] * 3
    assert len(warned()) <= 1
    log.close()
    assert in_file(log_path) >= 3
