"""Both stores: the same rows and frames from SQLite and PostgreSQL, and what can go wrong with a server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import os
import subprocess
import sys
import textwrap
import traceback
import uuid
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import psutil
import pytest
import sqlalchemy as sa

import nbllm
from nbllm import commands, log, notices, tracing
from nbllm.tracing import Connection, Record
from tests.kernels import Kernel
from tests.postgres import PASSWORD, Postgres
from tests.records import WHOLE, record
from tests.rows import connection_rows, request_rows, session_rows
from tests.servers import TEXT, RawServer

ROOT = Path(__file__).parent.parent


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


def warned() -> list[str]:
    return sorted(notices._state.warned)


def frames(**filters: Any) -> dict[str, pd.DataFrame]:
    """All that take these filters."""
    makers = {"requests": nbllm.requests, "sessions": nbllm.sessions, "connections": nbllm.connections}
    return {
        name: make(**filters) for name, make in makers.items() if {*filters} <= {*signature(make).parameters}
    }


@pytest.fixture
def in_both(log_path: Path, postgres_url: str) -> Callable[[Callable[[], None]], list[str]]:
    """Has the same written to a log of each kind."""

    def write_to_both(write: Callable[[], None]) -> list[str]:
        for address in (str(log_path), postgres_url):
            nbllm.configure(log=address, content=True)
            write()
            log.flush()
            assert log.path() is not None, warned()
        return [str(log_path), postgres_url]

    return write_to_both


def check_same(addresses: list[str], **filters: Any) -> dict[str, pd.DataFrame]:
    """That the frames of both logs are equal, column by column and dtype by dtype; gives them."""
    found = []
    for address in addresses:
        nbllm.configure(log=address)
        found.append(frames(**filters))
    for name, frame in found[0].items():
        pd.testing.assert_frame_equal(frame, found[1][name], rtol=1e-12, obj=name)
    return found[0]


# -- the same in both ----------------------------------------------------------------------------------


async def test_real_requests_are_the_same_rows_in_both(
    server: RawServer, in_both: Callable[[Callable[[], None]], list[str]], tmp_path: Path
) -> None:
    records: list[Record] = []
    connections: list[Connection] = []

    def take(ended: Record) -> None:
        records.append(copy.copy(ended))  # the log takes the content out of the record that it writes

    def take_connection(connection: Connection, is_open: bool) -> None:
        connections.append(copy.copy(connection))

    nbllm.configure(log=tmp_path / "elsewhere.db")
    tracing.subscribe(take, take_connection)
    try:
        for number, name in enumerate(("first", "second"), 1):
            nbllm.tagging.enter_cell(
                nbllm.tagging.Cell(f"cell-{number}", number, f"run-{number}", "frontend")
            )
            with nbllm.session(name):
                await asyncio.gather(*(ask(server, temperature=0.5) for _ in range(5)))
                async for _ in await ask(server, stream=True):
                    pass
                with pytest.raises(nbllm.RateLimitError):
                    await ask(server, "status-429")
                await (await ask(server, "endless", stream=True)).aclose()
        async with nbllm.shared_session().get(f"{server.url()}/x") as response:
            await response.read()
    finally:
        tracing.unsubscribe(take, take_connection)
    log.flush()

    def write() -> None:
        for connection in connections:
            log.add_connection(connection, connection.closed_at is None)
        for ended in records:
            log.add_request(copy.copy(ended))

    found = check_same(in_both(write))
    assert len(found["requests"]) == len(server.requests) == 17
    assert set(found["requests"].status) == {"ok", "error", "incomplete"}
    assert len(found["sessions"]) == 3
    assert len(found["connections"]) == len(server.connections)
    assert warned() == []


# What servers, callers and front ends could put into the columns that are theirs.
ODD: dict[str, dict[str, Any]] = {
    "surrogate": {"finish_reason": "half \ud83d", "response_id": "\udfff", "cell_id": "\ud83d"},
    "huge": {
        "input_tokens": 10**30,
        "output_tokens": 1 << 63,
        "response_id": 10**400,
        "execution_count": 1 << 63,
    },
    "largest": {"input_tokens": (1 << 63) - 1, "output_tokens": -1, "execution_count": (1 << 63) - 1},
    "dict": {"finish_reason": {"a": 1}, "response_model": {}, "output_tokens": {"b": 2}, "cell_id": {}},
    "list": {"finish_reason": ["a", "b"], "response_id": [], "output_tokens": [1]},
    "number": {"finish_reason": 5, "response_id": 1.5, "response_model": -1, "cell_id": 7},
    "true": {"finish_reason": True, "stream": 1, "output_tokens": True},
    "text": {"input_tokens": "many", "output_tokens": "7", "reasoning_tokens": ""},
    "fraction": {"input_tokens": 1e300, "output_tokens": 1.5, "reasoning_tokens": float("nan")},
    "signs": {
        "finish_reason": "\U0001f984 \u202e \x7f \x1b[31m",
        "error_message": "'; DROP TABLE requests; --",
    },
    "percent": {"error_message": "100 % of %s and %(name)s :name ?", "finish_reason": "%"},
    "long": {"error_message": "x" * 1_000_000},
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_cost_no_row_and_are_the_same_in_both(
    odd: str, in_both: Callable[[Callable[[], None]], list[str]]
) -> None:
    rows = [
        record(status="ok", ended_at=1.0, **(WHOLE | values))
        for values in ({}, {"response_id": "before"}, ODD[odd], {"response_id": "after"})
    ]

    def write() -> None:
        for row in rows:
            log.add_request(copy.copy(row))

    found = check_same(in_both(write))["requests"]
    assert list(found.request_id) == [row.request_id for row in rows]
    assert found.response_id[1] == "before"
    assert found.response_id[3] == "after"
    assert warned() == []


def test_a_nul_stays_in_a_file_and_is_replaced_where_it_cannot_be_kept(
    in_both: Callable[[Callable[[], None]], list[str]],
) -> None:
    rows = [record(status="ok", finish_reason=text) for text in ("stop", "a\0b")]
    addresses = in_both(lambda: [log.add_request(copy.copy(row)) for row in rows] and None)
    for address, text in zip(addresses, ("a\0b", "a\ufffdb"), strict=True):
        nbllm.configure(log=address)
        assert [row.finish_reason for row in request_rows()] == ["stop", text]
    assert warned() == []


FILTERS: list[dict[str, Any]] = [
    {"session": "first"},
    {"model": "m"},
    {"model": "nothing"},
    {"search": "RAW"},
    {"search": "100 %"},
    {"search": "_%"},
    {"search": "\\"},
    {"search": "it's"},
    {"search": "ÄRGER"},
    {"search": "ärger"},
    {"errors": True},
    {"cell": 2},
    {"latest": True},
    {"since": "7d"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=repr)
def test_filters_find_the_same_in_both(
    filters: dict[str, Any], in_both: Callable[[Callable[[], None]], list[str]]
) -> None:
    rows = []
    texts = ["100 % sure", "under_score %", "back\\slash", "it's", "Ärger", "the raw server", ""]
    for number, text in enumerate(texts):
        nbllm.tagging.enter_cell(nbllm.tagging.Cell("c", 1 + number % 3, f"run-{number}", "frontend"))
        status = "error" if number == 2 else "ok"
        row = record(status=status, ended_at=1.0, request_model="m" if number % 2 else "other", **WHOLE)
        row.session_id = "first" if number < 4 else "second"
        row.content, row.response_content = (
            b'{"messages": []}',
            json.dumps({"text": text}, ensure_ascii=False),
        )
        rows.append(row)

    def write() -> None:
        for row in rows:
            log.add_request(copy.copy(row))

    addresses = in_both(write)
    check_same(addresses, **filters)
    assert warned() == []


@pytest.mark.parametrize("name", ["session", "model", "search", "notebook", "cell"])
def test_a_filter_that_nothing_can_match_finds_nothing(any_log: str, name: str) -> None:
    """Or is refused in our own words."""
    log.add_request(record(status="ok", **WHOLE))
    values: list[Any] = ["\0", "\ud83d", "x" * 1_000_000, "%", "'", "\\", ":x %s ?"]
    for value in [*values, *([10**30, 1 << 63, -1] if name == "cell" else [])]:
        with contextlib.suppress(nbllm.UsageProblem):
            assert nbllm.requests(**{name: value}).empty, value
    assert len(nbllm.requests()) == 1
    assert warned() == []


async def test_a_hundred_requests_at_once(any_log: str, server: RawServer) -> None:
    await asyncio.gather(*(ask(server, session_id=f"s{number % 7}") for number in range(100)))
    rows = request_rows()
    assert [row.status for row in rows] == ["ok"] * 100
    assert len({row.request_id for row in rows}) == 100
    assert sum(row.requests for row in session_rows()) == len(server.requests) == 100
    assert sum(row.requests for row in connection_rows()) == 100
    assert len(connection_rows()) == len(server.connections)
    assert len(nbllm.requests(search=TEXT)) == 100
    assert warned() == []


ASK = """
import asyncio, json, sys
import nbllm
url, count = sys.argv[1], int(sys.argv[2])
async def main():
    await asyncio.gather(*(nbllm.acompletion("m", "Hi", base_url=url) for _ in range(count)))
"""


def start(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """A process with warnings shown."""
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", ASK + textwrap.dedent(code), *args],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_many_processes_begin_one_log_together(any_log: str, server: RawServer) -> None:
    """They make its tables, and all their rows are there."""
    code = "for _ in range(5): asyncio.run(main())"
    processes = [start(code, server.url(), "20", **in_log(any_log)) for _ in range(5)]
    assert [process.communicate(timeout=60) for process in processes] == [("", "")] * 5
    found = nbllm.requests(kernel="all")
    assert len(found) == len(server.requests) == 500
    assert set(found.status) == {"ok"}
    assert found.kernel_id.nunique() == 5
    assert len(nbllm.connections(kernel="all")) == len(server.connections)
    assert nbllm.requests().empty


def in_log(address: str) -> dict[str, str]:
    """The environment of a process that keeps its rows in this log."""
    return {("NBLLM_LOG_URL" if "://" in address else "NBLLM_LOG_PATH"): address}


def test_two_people_in_one_database_are_told_apart(
    postgres_url: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where both call their session the same, and each in two kernels."""
    code = """
with nbllm.session("review"):
    asyncio.run(main())
asyncio.run(main())
"""
    people = {"ann": "1", "bob's": "2"}
    processes = [
        start(code, server.url(), count, JUPYTERHUB_USER=name, **in_log(postgres_url))
        for name, count in people.items()
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60) for process in processes] == [("", "")] * 4
    nbllm.configure(log=postgres_url)
    rows = session_rows(kernel="all")
    assert {(row.owner, row.requests) for row in rows if row.session_id == "review"} == {
        ("ann", 2),
        ("bob's", 4),
    }
    assert sorted((row.owner, row.requests) for row in rows if row.session_id != "review") == [
        *[("ann", 1)] * 2,
        *[("bob's", 2)] * 2,
    ]
    assert sum(row.requests for row in rows) == len(server.requests) == 12
    assert sum(row.input_tokens for row in rows) == 12 * 11
    of_ann = nbllm.requests(kernel="all").query("owner == 'ann'")
    assert len(of_ann) == 4
    assert of_ann.kernel_id.nunique() == 2


# -- content -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nothing", "configure", "environment"])
async def test_a_shared_log_has_content_only_where_it_is_switched_on(
    how: str, postgres: Postgres, postgres_url: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_LOG_URL", postgres_url)
    if how == "environment":
        monkeypatch.setenv("NBLLM_CONTENT", "1")
    nbllm.settings.reset()
    if how == "configure":
        nbllm.configure(content=True)
    await nbllm.acompletion("m", "a planted sentence", base_url=server.url())
    assert len(request_rows()) == 1
    log.close()
    kept = postgres.run("SELECT request, response FROM nbllm.contents", database_of(postgres_url))
    if how == "nothing":
        assert kept == []
        assert not any("planted" in str(row) for row in everything(postgres, postgres_url))
    else:
        ((request, response),) = kept
        assert "a planted sentence" in request
        assert TEXT in response


def database_of(url: str) -> str:
    return sa.make_url(url).database or ""


def everything(postgres: Postgres, url: str) -> Iterator[Any]:
    """All rows of all tables."""
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'nbllm'"
    for (table,) in postgres.run(tables, database_of(url)):
        yield from postgres.run(f"SELECT * FROM nbllm.{table}", database_of(url))


# -- the password ------------------------------------------------------------------------------------

ENCODED = quote(PASSWORD, safe="")


def check_unsaid(text: str) -> None:
    assert "planted" not in text, text


def test_the_password_is_nowhere_in_a_kernel(postgres_url: str, server: RawServer, tmp_path: Path) -> None:
    env = {"NBLLM_LOG_URL": postgres_url}
    with Kernel(tmp_path, env=env) as kernel:
        outcomes = [
            kernel.run(code)
            for code in (
                "%load_ext nbllm\nimport nbllm, os",
                f"await nbllm.acompletion('m', 'Hi', base_url={server.url()!r}); nbllm.log.path()",
                "%nbllm",
                "%nbllm status",
                "%nbllm config",
                "%nbllm doctor",
                "nbllm.configure()",
                "nbllm.configure(log=os.environ['NBLLM_LOG_URL'])",
                "print(nbllm.configure()); nbllm.settings.sources()",
                "%config NbLLM",
                "nbllm.doctor()",
                "nbllm.requests(kernel='all').to_csv()",
                "nbllm.configure(log=os.environ['NBLLM_LOG_URL'].replace('postgresql', 'mysql'))",
                "nbllm.configure(log=os.environ['NBLLM_LOG_URL'], contant=True)",
            )
        ]
        assert "postgresql" in outcomes[1].displays[0]["text/plain"]
        assert [outcome.status for outcome in outcomes[-2:]] == ["error"] * 2
        for outcome in outcomes:
            check_unsaid(repr(outcome))
        check_unsaid(kernel.stderr())


BAD_URLS: dict[str, Callable[[str], str]] = {
    "wrong password": lambda url: url.replace("planted", "planted-wrong"),
    "no such database": lambda url: f"{url}x",
    "no such host": lambda url: url.replace("127.0.0.1", "nowhere.invalid"),
    "in the query": lambda url: url.replace(f":{ENCODED}@", "@") + f"x?password={ENCODED}",
    "with @ and /": lambda url: url.replace(ENCODED, "planted@planted/planted:planted"),
    "with /": lambda url: url.replace(ENCODED, "more/planted"),
    "no port": lambda url: url.replace("@127.0.0.1:", "@127.0.0.1:x"),
    "unknown option": lambda url: f"{url}?color=1&password=planted",
}


@pytest.mark.parametrize("bad", BAD_URLS)
async def test_a_log_that_cannot_be_opened_says_so_without_the_password(
    bad: str, postgres_url: str, server: RawServer, caplog: pytest.LogCaptureFixture
) -> None:
    address = BAD_URLS[bad](postgres_url)
    caplog.set_level(logging.DEBUG)
    said = []
    try:
        said.append(repr(nbllm.configure(log=address)))
    except nbllm.UsageProblem:
        said.append(traceback.format_exc())
    else:
        for _ in range(2):
            await ask(server)
            assert len(request_rows()) > 0
        assert [row.status for row in request_rows()] == ["ok", "ok"]
        (warning,) = warned()
        assert "kept in memory" in warning
        said += [warning, str(log.path()), commands.status()]
        said.append(str(await asyncio.to_thread(nbllm.doctor)))
    for text in [*said, caplog.text]:
        check_unsaid(text)


# -- a server that fails -----------------------------------------------------------------------------


def try_again_soon() -> None:
    log._state.log.retry_at = 0.0  # what the clock would do a minute later


async def test_rows_are_kept_while_the_server_is_away(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    await ask(server, session_id="before")
    log.flush()
    postgres.stop()
    for _ in range(3):
        await ask(server, session_id="away")
        assert "away" in [row.session_id for row in request_rows()]
    (warning,) = warned()
    assert "kept in memory" in warning
    assert [row.session_id for row in request_rows()][-3:] == ["away"] * 3
    postgres.start()
    try_again_soon()
    await ask(server, session_id="after")
    assert [row.session_id for row in request_rows()] == ["before", "away", "away", "away", "after"]
    (connection,) = connection_rows()
    assert connection.requests == 5
    assert warned() == [warning]
    stored = postgres.run("SELECT session_id FROM nbllm.requests ORDER BY id", database_of(postgres_url))
    assert [name for (name,) in stored] == ["before", "away", "away", "away", "after"]


async def test_a_server_that_was_restarted_between_two_rows_is_not_spoken_of(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    for _ in range(3):
        await ask(server)
        log.flush()
        log._state.log.seen_at = 0.0  # as after some time: it is told again that this kernel lives
        postgres.stop()
        postgres.start()
    assert [row.status for row in request_rows()] == ["ok"] * 3
    assert warned() == []
    assert log.path() is not None


async def test_a_stream_that_begins_before_a_restart_is_one_row(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    stream = await ask(server, "gatedbody", stream=True)
    assert [row.status for row in request_rows()] == [None]
    postgres.stop()
    postgres.start()
    server.open_gate()
    async for _ in stream:
        pass
    assert [row.status for row in request_rows()] == ["ok"]
    assert postgres.run("SELECT status FROM nbllm.requests", database_of(postgres_url)) == [("ok",)]
    assert warned() == []


async def test_rows_reach_the_server_at_the_end_of_a_script_that_began_without_it(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    postgres.stop()
    code = "asyncio.run(main()); print(len(nbllm.requests()), flush=True); sys.stdin.read()"
    process = start(code, server.url(), "20", NBLLM_LOG_URL=postgres_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "20\n"
    postgres.start()
    _, stderr = process.communicate(timeout=60)
    assert stderr.count("RuntimeWarning") == 1
    check_unsaid(stderr)
    assert postgres.run("SELECT count(*) FROM nbllm.requests", database_of(postgres_url)) == [(20,)]


async def test_a_server_that_falls_silent_holds_up_no_request(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    await ask(server)
    log.flush()
    with silent(postgres):
        for _ in range(20):
            await ask(server)
        with pytest.raises(TimeoutError):
            log.flush(0.2)
    assert len(request_rows()) == 21
    assert warned() == []


async def test_a_table_that_another_locks_holds_up_no_request(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    await ask(server)
    log.flush()
    with sa.create_engine(postgres_url, poolclass=sa.NullPool).begin() as other:
        other.exec_driver_sql("LOCK TABLE nbllm.requests IN ACCESS EXCLUSIVE MODE")
        for _ in range(20):
            await ask(server)
        with pytest.raises(TimeoutError):
            log.flush(0.2)
    assert len(request_rows()) == 21
    assert warned() == []


async def test_a_database_that_may_only_be_read_is_said_once(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    await ask(server)
    log.close()
    name = database_of(postgres_url)
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    for _ in range(3):
        await ask(server)
        log.flush()
    assert [row.status for row in request_rows()][-3:] == ["ok"] * 3
    (warning,) = warned()
    assert "read-only" in warning
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    nbllm.configure(log=postgres_url)
    assert len(request_rows()) == 4


@contextlib.contextmanager
def silent(postgres: Postgres) -> Iterator[None]:
    """All processes of the server stand still."""
    processes = [psutil.Process(postgres.pid), *psutil.Process(postgres.pid).children()]
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_cell_goes_on_where_the_server_is_away(
    postgres: Postgres, postgres_url: str, server: RawServer, tmp_path: Path
) -> None:
    postgres.stop()
    with Kernel(tmp_path, env={"NBLLM_LOG_URL": postgres_url}) as kernel:
        kernel.run("%load_ext nbllm\nimport nbllm").ok()
        asking = f"answer = await nbllm.acompletion('m', 'Hi', base_url={server.url()!r}); print('on')"
        first = kernel.run(asking)
        assert (first.status, first.stdout) == ("ok", "on\n")
        assert first.stderr.count("RuntimeWarning") == 1
        check_unsaid(repr(first))
        for _ in range(2):
            assert kernel.run(asking).ok().stdout == "on\n"
        assert kernel.value("len(nbllm.requests())") == 3
        postgres.start()
        kernel.run("import os; nbllm.configure(log=os.environ['NBLLM_LOG_URL'])").ok()
        kernel.run(asking).ok()
    assert postgres.run("SELECT count(*) FROM nbllm.requests", database_of(postgres_url)) == [(4,)]


def test_a_role_that_may_not_create_uses_the_tables_that_are_there(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url)
    log.read(lambda connection: None)
    log.close()
    name, database = f"guest_{uuid.uuid4().hex}", database_of(postgres_url)
    for statement in (
        f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT USAGE ON SCHEMA nbllm TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nbllm TO {name}",
    ):
        postgres.run(statement, database)
    process = start("asyncio.run(main())", server.url(), "5", NBLLM_LOG_URL=postgres.url(database, name))
    assert process.communicate(timeout=60) == ("", "")
    assert len(nbllm.requests(kernel="all")) == 5


async def test_a_role_that_may_do_nothing_is_told_so(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    name = f"nobody_{uuid.uuid4().hex}"
    postgres.run(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    nbllm.configure(log=postgres.url(database_of(postgres_url), name))
    await ask(server)
    assert [row.status for row in request_rows()] == ["ok"]
    (warning,) = warned()
    assert "permission denied" in warning
