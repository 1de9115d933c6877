"""What must not harm the log, or be lost with it: mistyped filters, locks, lost connections, odd values."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import string
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import nbllm
from nbllm import log, notices, responding, stores, tagging, tracing
from nbllm.servers.demo import DemoServer
from tests.postgres import Postgres
from tests.records import WHOLE, record
from tests.rows import only_row, request_rows, session_rows, until
from tests.servers import Exchange, RawServer, completion, whole
from tests.test_log import locked, table
from tests.test_stores import database_of, try_again_soon

PLANTED = "planted-7f3a"


async def ask(server: RawServer, behaviour: str = "chat", text: str = "Hi", **options: Any) -> Any:
    return await nbllm.acompletion("m", text, base_url=server.url(behaviour), **options)


def warned() -> list[str]:
    return sorted(notices._state.warned)


def readable(path: Path, text: str) -> list[str]:
    """The log's files in which a text can be read."""
    return [file.name for file in path.parent.iterdir() if text.encode() in file.read_bytes()]


# -- what the user says is no damage -----------------------------------------------------------------

DAMAGE = ("malformed", "not a database", "database disk image is malformed", "file is not a database")


@pytest.mark.parametrize("words", DAMAGE)
async def test_a_filter_that_sounds_like_damage_harms_nothing(
    any_log: str, log_path: Path, server: RawServer, words: str
) -> None:
    await ask(server)
    for name in ("since", "kernel"):
        with pytest.raises(nbllm.UsageProblem, match=words):
            nbllm.requests(**{name: words})
    with pytest.raises(nbllm.UsageProblem, match=words):
        nbllm.prune(words)
    for change in (nbllm.forget, nbllm.delete_session, nbllm.tag_session):
        with pytest.raises(nbllm.UsageProblem, match=words):
            change(words)
    for name in ("search", "session", "model", "notebook", "cell"):
        assert nbllm.requests(**{name: words}).empty
    assert [row.status for row in request_rows()] == ["ok"]
    assert list(log_path.parent.glob("*.corrupt-*")) == []
    assert log.path() is not None
    assert warned() == []


async def test_an_error_of_a_query_that_sounds_like_damage_harms_nothing(
    server: RawServer, log_path: Path
) -> None:
    await ask(server)
    for words in DAMAGE:
        with pytest.raises(ValueError, match=words):
            log.read(lambda connection, words=words: int(words))
        with pytest.raises(Exception, match="no such"):
            log.read(lambda connection, words=words: connection.exec_driver_sql(f'SELECT 1 FROM "{words}"'))
    assert [row.status for row in request_rows()] == ["ok"]
    assert list(log_path.parent.glob("*.corrupt-*")) == []
    assert log.path() == str(log_path)


# -- changes while the database can't be used --------------------------------------------------------


async def test_what_changes_the_log_is_refused_while_it_cannot_be_used(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    before = (await ask(server, session_id="first")).request.request_id
    nbllm.tag_session("first", "kept")
    log.flush()
    changes: list[Callable[[], object]] = [
        lambda: nbllm.forget(before),
        lambda: nbllm.forget(during),
        lambda: nbllm.delete_session("first"),
        lambda: nbllm.delete_session("second"),
        lambda: nbllm.tag_session("first", "new"),
        lambda: nbllm.tag_session("second", "new"),
        lambda: nbllm.rename_session("first", "new"),
        lambda: nbllm.rename_session("second", "new"),
        lambda: nbllm.prune("0s"),
    ]
    with locked(log_path):
        during = (await ask(server, session_id="second")).request.request_id
        await asyncio.to_thread(log.flush)
        assert log.path() is None
        due = log._state.log.retry_at, log._state.log.retry_seconds
        for change in changes:
            with pytest.raises(nbllm.UsageProblem, match="can't be used now: nothing was changed"):
                await asyncio.to_thread(change)
        assert (log._state.log.retry_at, log._state.log.retry_seconds) == due
        # The other one stays in the file, which can't be read now.
        assert [row.session_id for row in await asyncio.to_thread(request_rows)] == ["second"]
    try_again_soon()
    assert [(row.session_id, row.tags) for row in session_rows()] == [("first", "kept"), ("second", "")]
    assert log.path() == str(log_path)
    assert nbllm.forget(before, during) == 2
    assert table(log_path, "SELECT * FROM requests") == table(log_path, "SELECT * FROM contents") == []
    (warning,) = warned()
    assert "kept in memory" in warning


async def test_a_change_finds_the_database_that_works_again_by_itself(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    await ask(server)
    log.flush()
    with locked(log_path):
        answer = await ask(server)
        await asyncio.to_thread(log.flush)
        assert log.path() is None
    assert nbllm.forget(answer.request.request_id) == 1  # which was in memory alone
    assert len(table(log_path, "SELECT * FROM requests")) == 1
    assert log.path() == str(log_path)


async def test_tags_of_a_log_in_memory_come_along(server: RawServer, tmp_path: Path) -> None:
    nbllm.configure(log=None)
    await ask(server, session_id="first")
    assert nbllm.tag_session("first", "paper", "final") == ["final", "paper"]
    nbllm.configure(log=tmp_path / "later.db")
    assert [(row.session_id, row.tags) for row in session_rows()] == [("first", "final, paper")]
    log.close()
    assert [row.tags for row in session_rows()] == ["final, paper"]
    assert len(table(tmp_path / "later.db", "SELECT * FROM tags")) == 2


# -- a server that ends the connection ---------------------------------------------------------------


def end_connections(postgres: Postgres, url: str) -> None:
    """Have the server end all connections to a database; returns when they are ended."""
    ended = postgres.run(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        f"WHERE datname = '{database_of(url)}' AND pid <> pg_backend_pid()"
    )
    assert ended == [(True,)]


async def test_a_connection_that_the_server_ended_is_made_anew(
    postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    nbllm.configure(log=postgres_url, content=True)
    ids = [(await ask(server, session_id="first")).request.request_id for _ in range(3)]
    log.flush()
    end_connections(postgres, postgres_url)
    assert nbllm.tag_session("first", "x") == ["x"]
    end_connections(postgres, postgres_url)
    assert nbllm.forget(ids[0]) == 1
    end_connections(postgres, postgres_url)
    assert nbllm.rename_session("first", "second") == 2
    end_connections(postgres, postgres_url)
    assert list(nbllm.requests().request_id) == ids[1:]
    end_connections(postgres, postgres_url)
    assert nbllm.delete_session("second") == 2
    assert nbllm.requests().empty
    assert warned() == []
    assert log.path() is not None


# -- a password that is a word -----------------------------------------------------------------------


@pytest.mark.parametrize("password", ["postgres", "vacuum", "log"])
async def test_a_password_that_is_a_word_is_masked_and_the_word_is_not(
    password: str, postgres: Postgres, postgres_url: str, server: RawServer
) -> None:
    role, database = f"role_{uuid.uuid4().hex}", database_of(postgres_url)
    postgres.run(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{password}'")
    url = postgres.url(database, role, password)

    async def refused(x: Exchange) -> None:
        error = {"error": {"message": x.request.json["messages"][0]["content"]}}
        await x.send(whole("429 Too Many Requests", json.dumps(error).encode()))

    server.behaviours["refused"] = refused
    said = [repr(nbllm.configure(log=url, content=True)), repr(nbllm.settings.sources())]
    text = f"How do I {password} a table of {password}s?"
    for _ in range(2):  # the second one is kept by a log that is open
        answer = await ask(server, "echo", text)
        assert answer.choices[0].message.content == text
        log.flush()
    contents = postgres.run("SELECT request, response FROM nbllm.contents", database)
    assert len(contents) == 2
    for request, response in contents:
        assert json.loads(request) == server.requests[0].json
        assert json.loads(response)["choices"][0]["message"]["content"] == text
    assert [row.status for row in request_rows(search=text)] == ["ok"] * 2
    with pytest.raises(nbllm.RateLimitError) as caught:
        await ask(server, "refused", text)
    assert text in str(caught.value)
    assert text in request_rows()[-1].error_message
    said.append(str(log.path()))
    # The server quotes the name, which holds the word.
    said.append(repr(nbllm.configure(log=postgres.url(f"no-{password}-here", role, password))))
    await ask(server)
    assert request_rows()[-1].status == "ok"
    (warning,) = warned()
    place, reason = warning.split(" can't be used ")
    assert password not in reason.partition(");")[0]
    assert '"no-***-here"' in reason
    for one in [*said, place]:
        assert f":{password}@" not in one
        assert f"{role}:***@" in one


# -- nothing stays on the disk -----------------------------------------------------------------------


async def test_a_reader_of_a_wal_may_still_see_what_was_forgotten(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "journal_mode", lambda path: "WAL")
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    first, second = [(await ask(server, "echo", f"{PLANTED}-{n}")).request.request_id for n in (1, 2)]
    log.flush()
    assert table(log_path, "PRAGMA journal_mode") == [("wal",)]
    assert readable(log_path, PLANTED)
    with contextlib.closing(sqlite3.connect(log_path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM requests").fetchone() == (2,)
        assert nbllm.forget(first) == 1
        (warning,) = warned()
        assert "may stay readable" in warning
        assert "nbllm.prune" in warning
        assert reader.execute("SELECT count(*) FROM requests").fetchone() == (2,)
    assert len(request_rows()) == 1
    nbllm.prune("1d")  # as the warning says
    assert readable(log_path, f"{PLANTED}-1") == []
    assert readable(log_path, f"{PLANTED}-2")
    assert nbllm.forget(second) == 1
    assert readable(log_path, PLANTED) == []
    assert warned() == [warning]
    assert table(log_path, "PRAGMA journal_mode") == [("wal",)]


# -- requests in flight ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_in_flight_ends_in_the_log_that_is_in_use_then(
    server: RawServer, log_path: Path, tmp_path: Path, stream: bool
) -> None:
    other = tmp_path / "other.db"
    asking = asyncio.create_task(ask(server, "gated", stream=stream))
    await server.seen(lambda: bool(server.requests))
    assert [row.status for row in request_rows()] == [None]  # noted in the first log
    nbllm.configure(log=other)
    assert [row.status for row in request_rows()] == [None]
    server.open_gate()
    answer = await asking
    if stream:
        async for _ in answer:
            pass
    assert only_row().status == "ok"
    log.close()
    assert table(other, "SELECT status FROM requests") == [("ok",)]
    assert table(log_path, "SELECT status FROM requests") == []


async def test_a_request_noted_before_the_log_changes_is_no_row_less(
    server: RawServer, log_path: Path, tmp_path: Path
) -> None:
    """The new log is not asked before the request has ended."""
    asking = asyncio.create_task(ask(server, "gated"))
    await server.seen(lambda: bool(server.requests))
    assert len(request_rows()) == 1
    nbllm.configure(log=tmp_path / "other.db")
    server.open_gate()
    await asking
    log.close()
    assert table(tmp_path / "other.db", "SELECT status FROM requests") == [("ok",)]
    assert table(log_path, "SELECT status FROM requests") == []
    assert warned() == []


async def test_a_request_that_runs_for_long_gets_a_row_in_the_next_log(
    server: RawServer, log_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the kernel die, the next one sees it there; nobody asks for it meanwhile."""
    monkeypatch.setattr(log, "RUNNING_SECONDS", 0.02)
    other = tmp_path / "other.db"
    asking = asyncio.create_task(ask(server, "gated"))
    await until(lambda: noted_in(log_path) == [(None,)])
    nbllm.configure(log=other)
    await until(lambda: noted_in(other) == [(None,)])
    assert noted_in(log_path) == []
    server.open_gate()
    await asking
    assert only_row().status == "ok"


def noted_in(path: Path) -> list[tuple[Any, ...]] | None:
    """The states of a log's requests; None where there is no log yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT status FROM requests").fetchall()
    except sqlite3.OperationalError:
        return None


async def test_a_look_at_a_running_request_leaves_the_price_of_its_headers(
    server: RawServer, any_log: str
) -> None:
    body = json.dumps(completion(model="gpt-4o")).encode()
    data = whole("200 OK", body, x_litellm_response_cost="0.00325")

    async def priced(x: Exchange) -> None:
        await x.send(data[:-20])
        await x.gate()
        await x.send(data[-20:])

    server.behaviours["priced"] = priced
    asking = asyncio.create_task(ask(server, "priced"))
    await until(lambda: any(running.headers is not None for running in tracing.running()))
    for _ in range(2):
        (running,) = request_rows()
        assert running.status is None
        assert json.loads(running.response_headers)["x-litellm-response-cost"] == "0.00325"
    server.open_gate()
    answer = await asking
    row = only_row()
    assert (row.cost_usd, row.cost_source) == (0.00325, "provider")
    assert answer.cost_usd == 0.00325


# -- values that the database refuses ----------------------------------------------------------------


# It doesn't compress, so that PostgreSQL can't have it in an index.
NOISE = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=10_000))


def test_a_response_id_too_long_for_an_index_costs_no_row(any_log: str) -> None:
    for response_id in ("before", NOISE, "after"):
        log.add_request(record(status="ok", operation="responses", response_id=response_id, **WHOLE))
    first, long, last = [row.response_id for row in request_rows()]
    assert (first, last) == ("before", "after")
    assert NOISE.startswith(long[:100])
    assert log.path() is not None
    assert warned() == []


def test_a_value_that_an_index_refuses_costs_no_other_row(any_log: str) -> None:
    for session_id in ("before", NOISE, "after"):
        log.add_request(record(status="ok", session_id=session_id, **WHOLE))
    kept = [row.session_id for row in request_rows()]
    assert [name for name in kept if name != NOISE] == ["before", "after"]
    assert log.path() is not None
    for warning in warned():
        assert "kept in memory" not in warning
        assert NOISE[:50] not in warning
    log.add_request(record(status="ok", session_id="later", **WHOLE))
    assert request_rows()[-1].session_id == "later"


# -- responses that follow others --------------------------------------------------------------------


async def turning(call: Awaitable[Any]) -> int:
    """How often the loop turned while a call took its way to a UsageProblem."""
    turns = 0
    asking = asyncio.ensure_future(call)
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    with pytest.raises(nbllm.UsageProblem, match="is unknown"):
        await asking
    return turns


async def test_a_locked_log_does_not_hold_up_a_response(
    demo: DemoServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    monkeypatch.setattr(responding, "LOG_SECONDS", 0.2)
    await nbllm.aresponses("Hi", "demo/fast")
    log.flush()
    with locked(log_path):
        call = nbllm.aresponses("Hi", "demo/fast", previous_response_id="resp_0badcafe-c1")
        assert await turning(call) > 5
    assert only_row().status == "ok"


@pytest.mark.parametrize("unknown", ["\0", "resp_\0", "resp_0badcafe-c1\0", "\ud83d", "resp_0badcafe-c1\n"])
async def test_a_previous_response_that_no_log_can_hold(
    any_log: str, demo: DemoServer, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    await nbllm.aresponses("Hi", "demo/fast")
    with pytest.raises(nbllm.UsageProblem, match="is unknown"):
        await nbllm.aresponses("Hi", "demo/fast", previous_response_id=unknown)
    assert only_row().status == "ok"
    assert log.path() is not None


# -- views -------------------------------------------------------------------------------------------


def test_a_cell_is_named_as_the_views_name_it(any_log: str) -> None:
    cells = [tagging.Cell("a1b2", 3, "run-1", "frontend"), tagging.Cell("12345678", 4, "run-2", "frontend")]
    for cell in (*cells, tagging.Cell("3", 12, "run-3", "frontend")):
        tagging.enter_cell(cell)
        log.add_request(record(status="ok", **WHOLE))

    def found(cell: Any) -> list[str]:
        return [row.run_id for row in request_rows(cell=cell)]

    for third in (3, np.int64(3), np.int32(3), np.uint8(3), "[3]"):
        assert "run-1" in found(third), third
        assert "run-2" not in found(third), third
    assert found(3) == found(np.int64(3)) == ["run-1"]
    assert found("3") == ["run-1", "run-3"]  # the number that is shown, or an id
    assert found("a1b2") == ["run-1"]
    assert found("12345678") == ["run-2"]
    assert found(12) == found("[12]") == ["run-3"]
    for number in nbllm.requests().execution_count:  # what a frame gives
        assert len(found(number)) == 1
    for nothing in (12345678, "[12345678]", "[]", "[a1b2]", "[3", "A1B2"):
        assert found(nothing) == [], nothing
    for bad in (True, np.True_, -1, 3.0, np.float64(3), [3], np.array([3]), b"3"):
        with pytest.raises(nbllm.UsageProblem, match="cell must be"):
            found(bad)


async def test_a_view_of_a_log_that_stays_locked_is_refused_in_our_words(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    await ask(server)
    log.flush()
    views: list[Callable[[], object]] = [
        nbllm.requests,
        nbllm.sessions,
        nbllm.connections,
        lambda: nbllm.requests(kernel="all"),
    ]
    with locked(log_path):
        for view in views:
            with pytest.raises(nbllm.UsageProblem, match="can't be asked now") as caught:
                await asyncio.to_thread(view)
            said = str(caught.value)
            assert "locked" in said
            assert "\n" not in said
            for foreign in ("sqlalche", "SELECT", "sqlite3."):
                assert foreign not in said
    assert only_row().status == "ok"
    assert log.path() == str(log_path)


# -- prices ------------------------------------------------------------------------------------------

PRICE = (11 * 1.0 + 5 * 2.0) / 1e6


async def test_an_answer_has_its_price_at_once(server: RawServer) -> None:
    nbllm.set_price("m", input=1, output=2)
    log.flush()
    with log._state.log.at_work:  # the log comes to nothing
        answers = [await ask(server), *await asyncio.gather(*(ask(server) for _ in range(5)))]
        stream = await ask(server, stream=True)
        async for _ in stream:
            pass
        costs = [answer.cost_usd for answer in answers]
        assert costs == [pytest.approx(PRICE)] * 6
        assert stream.request.cost() == pytest.approx(PRICE)
    assert list(nbllm.requests().cost_usd) == [*costs, stream.request.cost_usd]
    assert set(nbllm.requests().cost_source) == {"user"}


def test_a_synchronous_answer_has_its_price_at_once(server: RawServer) -> None:
    nbllm.set_price("m", input=1, output=2)
    log.flush()
    with log._state.log.at_work:
        answer: Any = nbllm.completion("m", "Hi", base_url=server.url())
        cost = answer.cost_usd
        assert cost == pytest.approx(PRICE)
    assert only_row().cost_usd == cost == answer.cost_usd


# -- forgetting and exporting ------------------------------------------------------------------------


async def test_a_column_of_ids_is_forgotten(any_log: str, server: RawServer) -> None:
    for _ in range(6):
        await ask(server)
    ids = nbllm.requests().request_id
    for bad in (5, None, 1.5, b"x", [5], pd.Series([ids[0], 5]), [[ids[0]]], pd.Series([ids[0], None])):
        with pytest.raises(nbllm.UsageProblem, match="a request's id is a text"):
            nbllm.forget(bad)
    assert len(request_rows()) == 6
    assert nbllm.forget(ids[:2]) == 2
    assert nbllm.forget(ids[2:4].to_numpy(), ids[4]) == 3
    assert list(nbllm.requests().request_id) == [ids[5]]
    assert nbllm.forget(pd.Series([], dtype="string")) == 0
    assert nbllm.forget(iter([ids[5], ids[5]])) == 1
    assert nbllm.requests().empty


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "har"])
async def test_what_no_request_matches_is_not_exported(server: RawServer, tmp_path: Path, kind: str) -> None:
    await ask(server)
    path = tmp_path / f"nothing.{kind}"
    for filters in ({"session": "none"}, {"errors": True}, {"search": PLANTED}):
        with pytest.raises(nbllm.UsageProblem, match="no request matches: nothing was written"):
            nbllm.export(path, **filters)
    assert not path.exists()
    assert nbllm.export(path).exists()


# -- what a breaker found --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["by itself", "by configure"])
async def test_what_others_change_while_rows_are_in_memory_stays_changed(
    how: str, server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.05)
    for session_id in ("old", "forgotten"):
        await ask(server, session_id=session_id)
    assert len(request_rows()) == 2
    with contextlib.closing(sqlite3.connect(log_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # it can still be read
        await ask(server, session_id="late")
        assert len(await asyncio.to_thread(request_rows)) == 3
        assert log.path() is None
    with contextlib.closing(sqlite3.connect(log_path)) as other:  # as another kernel does it
        other.execute("UPDATE requests SET session_id = 'renamed' WHERE session_id = 'old'")
        other.execute("DELETE FROM requests WHERE session_id = 'forgotten'")
        other.commit()
    if how == "by itself":
        try_again_soon()
    else:
        nbllm.configure(log=log_path)
    assert {row.session_id for row in request_rows()} == {"renamed", "late"}
    log.flush()
    assert sorted(table(log_path, "SELECT session_id FROM requests")) == [("late",), ("renamed",)]


def test_rows_in_memory_outlive_a_server_that_breaks_off_every_write(
    postgres: Postgres, postgres_url: str
) -> None:
    nbllm.configure(log=postgres_url)
    log.add_request(record(status="ok", **WHOLE))
    log.flush()
    breaks_off = "BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END"
    database = database_of(postgres_url)
    postgres.run(f"CREATE FUNCTION nbllm.die() RETURNS trigger LANGUAGE plpgsql AS '{breaks_off}'", database)
    postgres.run(
        "CREATE TRIGGER die BEFORE INSERT ON nbllm.requests FOR EACH STATEMENT EXECUTE FUNCTION nbllm.die()",
        database,
    )
    for _ in range(2):  # the second time on the way back
        log.add_request(record(status="ok", **WHOLE))
        log.flush()
        try_again_soon()
    assert len(nbllm.requests()) >= 2
    postgres.run("DROP TRIGGER die ON nbllm.requests", database)
    try_again_soon()
    assert len(nbllm.requests()) == 3
    assert postgres.run("SELECT count(*) FROM nbllm.requests", database) == [(3,)]


@pytest.mark.parametrize("key", ["Zq7/abcdEFGH/ijk+lmn==", 'Xq7"abcdEFGHijk', "Yq7+abcd&efgh<lmn"])
@pytest.mark.parametrize("written", ["plain", "php", "go"])
async def test_a_key_is_masked_however_json_writes_it(
    key: str, written: str, server: RawServer, log_path: Path
) -> None:
    body = json.dumps(completion(f"It is {key}."))
    if written == "php":
        body = body.replace("/", "\\/")
    if written == "go":
        body = "".join(f"\\u{ord(c):04x}" if c in "<>&+" else c for c in body)

    async def answers(x: Exchange) -> None:
        await x.send(whole("200 OK", body.encode()))

    server.behaviours["answers"] = answers
    answer = await ask(server, "answers", f"My key is {key}", api_key=key, session_id="s")
    assert key in answer.text
    log.flush()
    assert "It is [key]." in str(nbllm.transcript("s"))
    kept = "".join(map(str, table(log_path, "SELECT request, response FROM contents")))
    assert kept.count("[key]") == 2


async def test_a_link_to_a_file_that_is_not_there_yet(server: RawServer, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "log.db").symlink_to(tmp_path / "real" / "log.db")
    nbllm.configure(log=tmp_path / "log.db")
    await ask(server)
    assert len(request_rows()) == 1
    assert (tmp_path / "real" / "log.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "log.db").is_symlink()
    assert warned() == []


async def test_a_file_that_was_named_by_mistake_stays_as_it_is(server: RawServer, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.ipynb"
    thesis.write_text('{"cells": []}' * 100)
    nbllm.configure(log=thesis)
    await ask(server)
    assert len(request_rows()) == 1
    assert thesis.read_text() == '{"cells": []}' * 100
    assert [path.name for path in tmp_path.glob("thesis*")] == ["thesis.ipynb"]
    (warning,) = warned()
    assert "not a database" in warning


async def test_anothers_response_is_not_gone_on_with(
    server: RawServer, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    response_id = f"resp_{'0' * 8}-c1"
    own = record(status="ok", operation="responses", response_id=response_id, **WHOLE)
    own.content, own.response_content = b'{"messages": []}', json.dumps(completion())
    log.add_request(own)
    assert log.session_of(response_id) == "review"
    assert log.content_of(response_id) is not None
    monkeypatch.setattr(tagging, "owner", lambda: "mallory")
    assert log.session_of(response_id) is log.content_of(response_id) is None


@pytest.mark.parametrize("time", ["2099-01-01", pd.Timedelta(days=-90)])
def test_pruning_up_to_the_future_is_refused(time: Any) -> None:
    log.add_request(record(status="ok", **WHOLE))
    with pytest.raises(nbllm.UsageProblem, match="in the future"):
        nbllm.prune(older_than=time)
    assert len(nbllm.requests()) == 1


def test_who_may_only_read_sees_what_there_is(postgres: Postgres, postgres_url: str) -> None:
    """Also where a kernel has died, whose end nobody could note."""
    nbllm.configure(log=postgres_url)
    log.add_request(record(status="ok", **WHOLE))
    log.flush()
    database, role = database_of(postgres_url), f"reader_{uuid.uuid4().hex}"
    postgres.run("UPDATE nbllm.kernels SET pid = 999999999", database)
    postgres.run(f"CREATE ROLE {role} LOGIN PASSWORD 'planted/p@ss:w%rd?&'")
    try:
        postgres.run(f"GRANT USAGE ON SCHEMA nbllm TO {role}", database)
        postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA nbllm TO {role}", database)
        nbllm.configure(log=postgres.url(database, role))
        assert len(nbllm.requests(kernel="all")) == 1
        assert warned() == []
    finally:
        log.close()
        postgres.run(f"DROP OWNED BY {role}", database)
        postgres.run(f"DROP ROLE {role}")
