"""The log: its file, its migrations, several processes, and everything that can go wrong with a disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import nbllm
from nbllm import log, notices, rows, schema, stores, tracing
from tests.records import record
from tests.rows import connection_rows, request_rows, until
from tests.servers import TEXT, RawServer

ROOT = Path(__file__).parent.parent


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


def table(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def run_script(code: str, *args: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process of its own, with warnings shown."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), *args],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


ASK = """
    import asyncio, sys
    import nbllm
    url, count = sys.argv[1], int(sys.argv[2])
    async def main():
        await asyncio.gather(*(nbllm.acompletion("m", "Hi", base_url=url) for _ in range(count)))
    asyncio.run(main())
"""


# -- the file --------------------------------------------------------------------------------------


async def test_the_file_is_the_users_own(server: RawServer, log_path: Path) -> None:
    assert not log_path.parent.exists()
    await ask(server)
    log.flush()
    assert stat.S_IMODE(log_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log_path.parent.stat().st_mode) == 0o700
    assert log.path() == str(log_path)
    for other in log_path.parent.iterdir():
        assert stat.S_IMODE(other.stat().st_mode) == 0o600


async def test_a_folder_that_is_there_keeps_its_mode(server: RawServer, log_path: Path) -> None:
    log_path.parent.mkdir(mode=0o755)
    await ask(server)
    log.flush()
    assert stat.S_IMODE(log_path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(log_path.stat().st_mode) == 0o600


def test_nothing_is_made_before_the_first_row(log_path: Path) -> None:
    nbllm.configure(content=False)
    log.flush()
    log.close()
    assert not log_path.parent.exists()
    assert log.path() == str(log_path)


def test_the_default_place_is_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NBLLM_LOG_PATH")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    nbllm.settings.reset()
    assert log.path() == str(tmp_path / "state" / "nbllm" / "log.db")


async def test_rows_contents_and_connections_are_on_disk(server: RawServer, log_path: Path) -> None:
    answer = await ask(server, temperature=0.5)
    log.flush()
    ((number, request_id, status, tokens),) = table(
        log_path, "SELECT id, request_id, status, input_tokens FROM requests"
    )
    assert (request_id, status, tokens) == (answer.request.request_id, "ok", 11)
    ((request, response),) = table(log_path, f"SELECT request, response FROM contents WHERE id = {number}")
    assert json.loads(request) == server.requests[0].json
    assert json.loads(response)["choices"][0]["message"]["content"] == TEXT
    ((local_port, closed_at),) = table(log_path, "SELECT local_port, closed_at FROM connections")
    assert (local_port, closed_at) == (server.connections[0].peer_port, None)


async def test_the_content_of_streams_and_errors(server: RawServer, log_path: Path) -> None:
    stream = await ask(server, stream=True)
    async for _ in stream:
        pass
    with pytest.raises(nbllm.RateLimitError):
        await ask(server, "status-429")
    stream = await ask(server, "stall", stream=True)
    await stream.aclose()
    log.flush()
    answers = [
        json.loads(row[0]) for row in table(log_path, "SELECT response FROM contents ORDER BY id") if row[0]
    ]
    assert answers[0] == stream_answer()
    assert answers[1]["error"]["code"] == "some_code"
    assert len(table(log_path, "SELECT request FROM contents")) == 3


def stream_answer() -> dict[str, Any]:
    from tests.servers import completion

    return completion()


@pytest.mark.parametrize("how", ["configure", "environment"])
async def test_content_can_be_switched_off(
    how: str, server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "configure":
        nbllm.configure(content=False)
    else:
        monkeypatch.setenv("NBLLM_CONTENT", "0")
        nbllm.settings.reset()
    await nbllm.acompletion("m", "a planted sentence", base_url=server.url())
    stream = await nbllm.acompletion("m", "a planted sentence", base_url=server.url(), stream=True)
    async for _ in stream:
        pass
    assert len(request_rows()) == 2
    log.flush()
    assert table(log_path, "SELECT * FROM contents") == []
    assert b"planted" not in log_path.read_bytes()
    assert TEXT.encode() not in log_path.read_bytes()


# -- migrations ------------------------------------------------------------------------------------


def test_a_new_database_has_the_newest_schema(log_path: Path) -> None:
    log.read(lambda connection: None)
    log.close()
    for name, columns in schema.TABLES.items():
        found = [row[1] for row in table(log_path, f"PRAGMA table_info({name})")]
        assert sorted(found) == sorted(columns)
    versions = table(log_path, "SELECT version, name FROM nbllm_migrations")
    assert [version for version, _ in versions] == list(range(1, len(schema.MIGRATIONS) + 1))


@pytest.mark.parametrize("version", range(len(schema.MIGRATIONS) + 1))
def test_every_old_schema_becomes_the_newest(
    version: int, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_path.parent.mkdir()
    engine = sa.create_engine(f"sqlite:///{log_path}", isolation_level="AUTOCOMMIT")
    with monkeypatch.context() as old, engine.connect() as connection:
        old.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
        schema.migrate(connection, lambda: connection.exec_driver_sql("BEGIN"))
    engine.dispose()
    log.read(lambda connection: None)
    log.close()
    assert table(log_path, "SELECT max(version) FROM nbllm_migrations") == [(len(schema.MIGRATIONS),)]
    assert nbllm.requests(kernel="all").empty


def test_a_migration_that_fails_leaves_nothing_behind(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(connection: Any) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        if connection.engine.url.database:
            raise LookupError("in the middle")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, half])
    log.read(lambda connection: None)
    log.close()
    assert table(log_path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert table(log_path, "SELECT max(version) FROM nbllm_migrations") == [(len(schema.MIGRATIONS) - 1,)]


def warned() -> list[str]:
    return sorted(notices._state.warned)


async def works_in_memory(server: RawServer, reason: str) -> None:
    """One warning with the reason, and then everything goes on, rows included."""
    for _ in range(3):
        await ask(server)
        request_rows()
    assert [row.status for row in request_rows()][-3:] == ["ok"] * 3
    (warning,) = warned()
    assert reason in warning
    assert "kept in memory" in warning
    assert "nbllm.configure(log=PATH)" in warning
    assert log.path() is None


async def test_a_database_of_a_newer_nbllm_is_left_alone(server: RawServer, log_path: Path) -> None:
    log.read(lambda connection: None)
    log.close()
    newer = len(schema.MIGRATIONS) + 1
    with contextlib.closing(sqlite3.connect(log_path)) as connection:
        connection.execute("INSERT INTO nbllm_migrations VALUES (?, 'future', 0)", (newer,))
        connection.commit()
    before = log_path.read_bytes()
    await works_in_memory(server, f"schema version {newer}")
    assert log_path.read_bytes() == before


# -- what can go wrong -----------------------------------------------------------------------------


async def kept_aside(server: RawServer, log_path: Path) -> bytes:
    """A damaged file is kept, with one warning, and a new one begun; gives the bytes of the old one."""
    for _ in range(3):
        await ask(server)
        assert request_rows()[-1].status == "ok"
    (aside,) = log_path.parent.glob("log.db.corrupt-*[0-9]")
    (warning,) = warned()
    assert f"kept as {aside}" in warning
    assert log.path() == str(log_path)
    log.flush()
    assert table(log_path, "SELECT count(*) FROM requests WHERE status = 'ok'")[0][0] >= 3
    assert stat.S_IMODE(log_path.stat().st_mode) == 0o600
    return aside.read_bytes()


async def test_a_file_that_is_no_database(server: RawServer, log_path: Path) -> None:
    log_path.parent.mkdir()
    log_path.write_bytes(b"this is no database " * 1000)
    assert await kept_aside(server, log_path) == b"this is no database " * 1000


async def test_a_damaged_database(server: RawServer, log_path: Path) -> None:
    for _ in range(20):
        await ask(server)
    log.close()
    data = bytearray(log_path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    log_path.write_bytes(data)
    assert await kept_aside(server, log_path) == bytes(data)


async def test_a_folder_in_place_of_the_file(server: RawServer, log_path: Path) -> None:
    log_path.mkdir(parents=True)
    await works_in_memory(server, "unable to open database file")


async def test_a_file_in_place_of_the_folder(server: RawServer, log_path: Path) -> None:
    log_path.parent.write_text("in the way")
    await works_in_memory(server, str(log_path.parent))


def test_a_read_only_folder(server: RawServer, tmp_path: Path) -> None:
    """In a process of its own, because root may write anywhere and has to give up its rights."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    found = run_script(
        """
        import asyncio, os, sqlite3, sys
        import nbllm, pandas, sqlalchemy.dialects.sqlite
        from nbllm import client, frames, pricing
        from nbllm.providers import openai
        pricing.price_usd("openai", "gpt-4o", input_tokens=1)  # nobody may not read where packages are
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        async def main():
            for _ in range(2):
                await nbllm.acompletion("m", "Hi", base_url=sys.argv[1])
            print(list(nbllm.requests().status), len(nbllm.connections()))
        asyncio.run(main())
        """,
        server.url(),
        NBLLM_LOG_PATH=str(folder / "log.db"),
    )
    assert found.stdout.strip() == "['ok', 'ok'] 1"
    assert found.stderr.count("RuntimeWarning") == 1
    assert "Permission denied" in found.stderr
    assert list(folder.iterdir()) == []


async def test_rows_written_before_the_trouble_stay_in_the_views(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(server)
    log.flush()
    monkeypatch.setattr(rows.Batch, "write", failing_on_disk(rows.Batch.write))
    await ask(server)
    await ask(server)
    found = request_rows()
    assert [row.status for row in found] == ["ok"] * 3
    assert len({row.request_id for row in found}) == 3
    (connection,) = connection_rows()
    assert connection.requests == 3
    contents = log.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM contents").scalar())
    assert contents == 2  # what was said before is much, and safe in the file
    (warning,) = warned()
    assert "disk I/O error" in warning
    assert table(log_path, "SELECT count(*) FROM requests") == [(1,)]


def failing_on_disk(write: Any) -> Any:
    def failing(batch: Any, store: Any, **options: Any) -> None:
        if store.place is not None:
            raise sqlite3.OperationalError("disk I/O error")
        write(batch, store, **options)

    return failing


async def test_a_full_disk(server: RawServer) -> None:
    """SQLite's own limit gives the same error as a disk without space."""
    log.read(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 60"))
    for _ in range(12):
        await nbllm.acompletion("m", "x" * 50_000, base_url=server.url())
        log.flush()
    assert len(request_rows()) == 12
    (warning,) = warned()
    assert "disk is full" in warning
    assert log.path() is None
    (connection,) = connection_rows()
    assert connection.requests == 12


def test_a_file_that_may_not_grow(server: RawServer, tmp_path: Path) -> None:
    """The file system refuses to write, with whatever error it has for that."""
    found = run_script(
        """
        import asyncio, resource, signal, sys
        import nbllm, pandas, sqlalchemy.dialects.sqlite, genai_prices
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        async def main():
            for _ in range(12):
                await nbllm.acompletion("m", "x" * 50_000, base_url=sys.argv[1])
                nbllm.log.flush()
            print(len(nbllm.requests()), len(nbllm.connections()))
        asyncio.run(main())
        """,
        server.url(),
        NBLLM_LOG_PATH=str(tmp_path / "log.db"),
    )
    assert found.stdout.strip() == "12 1"
    assert found.stderr.count("RuntimeWarning") == 1
    assert "kept in memory" in found.stderr


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the database."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        yield
    finally:
        holder.communicate()


async def test_a_database_locked_for_long(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    await ask(server)
    log.flush()
    with locked(log_path):
        await ask(server)
        rows = await asyncio.to_thread(request_rows)
    assert rows[-1].status == "ok"
    (warning,) = warned()
    assert "locked" in warning
    await ask(server)
    assert [row.status for row in request_rows()][-2:] == ["ok", "ok"]


async def test_a_database_that_is_locked_at_the_start(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    log.read(lambda connection: None)
    log.close()
    with locked(log_path):
        await works_in_memory(server, "locked")


async def test_a_database_locked_for_a_moment_is_waited_for(server: RawServer, log_path: Path) -> None:
    await ask(server)
    log.flush()
    with locked(log_path):
        await ask(server)
        writing = asyncio.ensure_future(asyncio.to_thread(log.flush))
        await asyncio.sleep(0.2)
        assert not writing.done()
        with pytest.raises(TimeoutError):
            log.flush(0.01)
    await writing
    assert warned() == []
    assert table(log_path, "SELECT count(*) FROM requests") == [(2,)]


async def test_a_write_that_met_a_lock_is_tried_again(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    await ask(server)
    log.flush()
    failed, unlocked = threading.Event(), threading.Event()
    write = rows.Batch.write

    def watched(batch: Any, store: Any, **options: Any) -> None:
        try:
            write(batch, store, **options)
        except Exception:
            failed.set()
            unlocked.wait(10)
            raise

    monkeypatch.setattr(rows.Batch, "write", watched)
    with locked(log_path):
        await ask(server)
        assert await asyncio.to_thread(failed.wait, 10)
    unlocked.set()
    log.flush()
    assert warned() == []
    assert table(log_path, "SELECT count(*) FROM requests") == [(2,)]


def test_a_migration_waits_for_another_process_that_migrates(log_path: Path) -> None:
    log_path.parent.mkdir()

    begun, go_on = threading.Event(), threading.Event()

    def migrate_elsewhere() -> None:
        """Another process, in the middle of the same migrations."""
        engine = sa.create_engine(f"sqlite:///{log_path}", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:

            def begin() -> None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                begun.set()
                go_on.wait(10)

            schema.migrate(connection, begin)
        engine.dispose()

    thread = threading.Thread(target=migrate_elsewhere)
    thread.start()
    begun.wait(10)
    reading = threading.Thread(target=log.read, args=(lambda connection: None,))
    reading.start()
    time.sleep(0.2)
    assert reading.is_alive()
    go_on.set()
    thread.join()
    reading.join()
    assert warned() == []
    assert log.path() == str(log_path)
    assert table(log_path, "SELECT count(*) FROM nbllm_migrations") == [(len(schema.MIGRATIONS),)]


async def test_the_loop_never_waits_for_the_disk(server: RawServer, log_path: Path) -> None:
    await ask(server)
    log.flush()
    with locked(log_path):
        started = time.perf_counter()
        for _ in range(20):
            await ask(server)
        assert time.perf_counter() - started < 3
    assert len(await asyncio.to_thread(request_rows)) == 21


async def test_a_row_that_sqlite_refuses_takes_no_other_with_it(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(server)
    first = request_rows()[0].request_id
    log.flush()
    number = table(log_path, "SELECT id FROM requests")[0][0]

    def spoiled(record: tracing.Record) -> None:
        if record.execution_count == 3:
            record.id = number  # there is one like it
        if record.execution_count == 4:
            record.finish_reason = "\ud800"
            record.http_status = 10**30

    monkeypatch.setattr(tracing._state, "on_request", [spoiled, *tracing._state.on_request])
    for count in range(1, 6):
        nbllm.tagging.enter_cell(nbllm.tagging.Cell(f"cell-{count}", count))
        await ask(server)
    rows = request_rows()
    assert [row.execution_count for row in rows] == [None, 1, 2, 4, 5]
    assert rows[3].finish_reason == "?"
    assert rows[3].http_status is None
    assert rows[0].request_id == first
    (warning,) = warned()
    assert "UNIQUE" in warning
    assert log.path() == str(log_path)


async def test_a_price_table_that_fails_costs_no_row(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise LookupError("the table's own")

    monkeypatch.setattr(nbllm.pricing, "price_usd", broken)
    await ask(server)
    assert [row.cost_usd for row in request_rows()] == [None]


# -- switching -------------------------------------------------------------------------------------


async def test_without_a_file(server: RawServer, tmp_path: Path) -> None:
    nbllm.configure(log=None)
    await ask(server)
    assert [row.status for row in request_rows()] == ["ok"]
    assert len(connection_rows()) == 1
    assert log.path() is None
    assert not (tmp_path / "log").exists()


async def test_the_environment_may_say_none(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_LOG_PATH", "none")
    nbllm.settings.reset()
    await ask(server)
    assert len(request_rows()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_another_file_while_running(server: RawServer, log_path: Path, tmp_path: Path) -> None:
    stream = await ask(server, "gatedbody", stream=True)
    await ask(server)
    log.flush()
    other = tmp_path / "other" / "log.db"
    nbllm.configure(log=other)
    server.open_gate()
    async for _ in stream:
        pass
    await ask(server)
    assert len(request_rows()) == 2
    # The connections that are open come along: their requests must not hang in the air.
    assert {row.connection_id for row in request_rows()} <= {row.connection_id for row in connection_rows()}
    nbllm.configure(log=log_path)
    assert len(request_rows()) == 1
    await ask(server)
    assert len(request_rows()) == 2
    log.close()
    assert table(other, "SELECT count(*) FROM requests") == [(2,)]
    assert table(log_path, "SELECT count(*) FROM requests") == [(2,)]


async def test_a_close_after_a_switch_is_noted(server: RawServer, tmp_path: Path) -> None:
    await ask(server)
    request_rows()
    nbllm.configure(log=tmp_path / "other.db")
    await asyncio.to_thread(server.close_idle)
    await until(lambda: not tracing.connections())
    (row,) = connection_rows()
    assert row.close_reason == "closed by server"


async def test_rows_in_memory_come_along_to_a_file(server: RawServer, log_path: Path) -> None:
    nbllm.configure(log=None)
    await ask(server)
    assert len(request_rows()) == 1
    nbllm.configure(log=log_path)
    await ask(server)
    assert len(request_rows()) == 2
    log.close()
    assert table(log_path, "SELECT count(*) FROM requests") == [(2,)]
    assert table(log_path, "SELECT count(*) FROM contents") == [(2,)]
    assert table(log_path, "SELECT count(*) FROM connections") == [(1,)]


async def test_a_log_that_failed_can_be_tried_again(server: RawServer, log_path: Path) -> None:
    """All rows are in the file then: those from before the trouble once, and those from memory."""
    await ask(server)
    log.read(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    await nbllm.acompletion("m", "x" * 50_000, base_url=server.url())
    assert len(request_rows()) == 2
    assert len(warned()) == 1
    nbllm.configure(log=log_path)
    await ask(server)
    assert len(request_rows()) == 3
    log.close()
    assert len(warned()) == 1
    assert table(log_path, "SELECT count(*) FROM requests") == [(3,)]
    assert table(log_path, "SELECT count(*) FROM contents") == [(3,)]


async def test_a_log_that_fails_again_keeps_its_rows(server: RawServer, log_path: Path) -> None:
    log_path.mkdir(parents=True)
    await ask(server)
    assert len(request_rows()) == 1
    nbllm.configure(log=log_path)
    await ask(server)
    assert [row.status for row in request_rows()] == ["ok", "ok"]
    assert len(connection_rows()) == 1
    (warning,) = warned()
    assert str(log_path) in warning


async def test_a_relative_path_is_meant_from_here(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nbllm.configure(log="here.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await ask(server)
    log.flush()
    assert log.path() == str(tmp_path / "here.db")
    assert (tmp_path / "here.db").exists()


async def test_a_log_that_was_closed_opens_again(server: RawServer) -> None:
    for _ in range(3):
        await ask(server)
        log.close()
    assert len(request_rows()) == 3


async def test_many_threads_may_ask_at_once(server: RawServer) -> None:
    found: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found.append(len(nbllm.requests()))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        await ask(server)
    stop.set()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert max(found) <= 20
    assert len(request_rows()) == 20


async def test_no_row_is_missing_between_running_and_kept(server: RawServer) -> None:
    """A view in another thread never sees a request vanish for a moment."""
    stop = threading.Event()
    seen: list[set[str]] = []

    def look() -> None:
        while not stop.is_set():
            seen.append({row.request_id for row in request_rows()})

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        await ask(server)
    stop.set()
    await asyncio.to_thread(thread.join)
    for before, after in itertools.pairwise(seen):
        assert before <= after


# -- processes -------------------------------------------------------------------------------------


def test_nothing_is_lost_at_the_end_of_a_script(server: RawServer, log_path: Path) -> None:
    found = run_script(ASK, server.url(), "50")
    assert found.stderr == ""
    assert len(server.requests) == 50
    assert table(log_path, "SELECT status, count(*) FROM requests GROUP BY status") == [("ok", 50)]
    assert table(log_path, "SELECT count(*) FROM contents") == [(50,)]
    assert len(table(log_path, "SELECT * FROM connections")) == len(server.connections)
    assert table(log_path, "SELECT count(*) FROM connections WHERE closed_at IS NULL") == [(0,)]


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "raise LookupError", "threading.Thread(target=time.sleep, args=(.2,)).start()"]
)
def test_nothing_is_lost_however_a_script_ends(end: str, server: RawServer, log_path: Path) -> None:
    code = (
        textwrap.dedent(ASK) + f"\nimport threading, time\nnbllm.completion('m', 'Hi', base_url=url)\n{end}\n"
    )
    run_script(code, server.url(), "5", check=False)
    assert table(log_path, "SELECT count(*) FROM requests WHERE status = 'ok'") == [(6,)]


def test_a_request_under_way_at_the_end_is_incomplete(server: RawServer, log_path: Path) -> None:
    run_script(
        """
        import sys, nbllm
        stream = nbllm.completion("m", "Hi", base_url=sys.argv[1], stream=True)
        print(next(stream).id)
        """,
        server.url("stall"),
    )
    assert table(log_path, "SELECT status FROM requests") == [("incomplete",)]


def test_what_was_flushed_survives_a_kill(server: RawServer, log_path: Path) -> None:
    code = textwrap.dedent(ASK) + "\nnbllm.log.flush()\nimport os\nos.kill(os.getpid(), 9)\n"
    assert run_script(code, server.url(), "20", check=False).returncode == -9
    assert table(log_path, "SELECT count(*) FROM requests") == [(20,)]
    assert len(nbllm.requests(kernel="all")) == 20


def test_many_processes_at_once_lose_nothing(server: RawServer, log_path: Path) -> None:
    """They even create the file at the same time."""
    code = textwrap.dedent(ASK).replace("asyncio.run(main())", "for _ in range(10): asyncio.run(main())")
    scripts = [
        subprocess.Popen(
            [sys.executable, "-W", "always", "-c", code, server.url(), "20"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [script.communicate(timeout=60)[1] for script in scripts] == [""] * 4
    assert len(server.requests) == 800
    assert table(log_path, "SELECT count(*), count(DISTINCT kernel_id) FROM requests") == [(800, 4)]
    assert table(log_path, "SELECT count(*) FROM connections") == [(len(server.connections),)]
    assert len(nbllm.requests(kernel="all")) == 800
    assert nbllm.requests().empty


def test_a_forked_child_has_rows_of_its_own(server: RawServer, log_path: Path) -> None:
    found = run_script(
        """
        import os, sys, warnings
        import nbllm
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # Python 3.12 on
        url = sys.argv[1]
        if sys.argv[2] == "used":
            nbllm.completion("m", "Hi", base_url=url)
        children = []
        for _ in range(2):
            if (child := os.fork()) == 0:
                nbllm.completion("m", "Hi", base_url=url)
                assert len(nbllm.requests()) == 1, len(nbllm.requests())
                sys.exit()
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        nbllm.completion("m", "Hi", base_url=url)
        """,
        server.url(),
        "used",
    )
    assert found.stderr == ""
    assert table(log_path, "SELECT count(*), count(DISTINCT kernel_id) FROM requests") == [(4, 3)]


def test_children_of_a_parent_that_sent_nothing_are_told_apart_too(server: RawServer, log_path: Path) -> None:
    found = run_script(
        """
        import os, sys
        import nbllm
        children = []
        for _ in range(2):
            if (child := os.fork()) == 0:
                nbllm.completion("m", "Hi", base_url=sys.argv[1])
                sys.exit()
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        """,
        server.url(),
    )
    assert found.stderr == ""
    assert table(log_path, "SELECT count(*), count(DISTINCT kernel_id) FROM requests") == [(2, 2)]


def test_a_row_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell may price the record of its answer while the writer makes it a row."""
    made = record(status="ok")

    shape_of = rows._shape

    def priced_meanwhile(columns: tuple[str, ...], replaces: bool) -> rows.Shape:
        made.cost_usd = 0.5
        return shape_of(columns, replaces)

    monkeypatch.setattr(rows, "_shape", priced_meanwhile)
    batch = rows.Batch()
    batch.add_record(made, noted=False)
    ((shape, values),) = batch.inserts.items()
    assert len(values) == len(shape.columns)
