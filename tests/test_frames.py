"""The frames: dtypes, filters, docs, and sums that pandas finds by itself."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import nbllm
from nbllm import frames, log, schema, tagging, tracing
from tests.rows import request_rows, session_rows
from tests.servers import RawServer

FRAMES = {"sessions": nbllm.sessions, "requests": nbllm.requests, "connections": nbllm.connections}
KINDS = {"sessions": frames.SESSIONS, "requests": frames.REQUESTS, "connections": frames.CONNECTIONS}
SUMMED = {"requests": "int", "bytes_sent": "int", "bytes_received": "int", "connect_ms": "float"}


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


async def a_bit_of_everything(server: RawServer) -> None:
    nbllm.tagging.enter_cell(nbllm.tagging.Cell("cell-a", 3, "run-1", "frontend"))
    with nbllm.session("first"):
        await ask(server)
        stream = await ask(server, stream=True)
        async for _ in stream:
            pass
        with pytest.raises(nbllm.RateLimitError):
            await ask(server, "status-429")
    nbllm.tagging.enter_cell(nbllm.tagging.Cell("cell-b", 5, "run-2", "frontend"))
    with nbllm.session("second"):
        stream = await ask(server, "endless", stream=True)
        await stream.aclose()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(server, "hang"), 0.1)
        async with nbllm.shared_session().get(f"{server.url()}/x") as response:
            await response.read()


def check_dtypes(name: str, frame: pd.DataFrame) -> None:
    assert list(frame.columns) == list(KINDS[name])
    for column, kind in KINDS[name].items():
        dtype = frame[column].dtype
        if kind == "time":
            assert isinstance(dtype, pd.DatetimeTZDtype)
            assert str(dtype.tz) == "UTC"
        else:
            expected = {
                "int": "Int64",
                "float": "float64",
                "bool": "boolean",
                "label": "category",
                "text": "string",
            }
            assert dtype == expected[kind], column


@pytest.mark.parametrize("name", FRAMES)
def test_an_empty_frame_has_all_columns_and_dtypes(name: str) -> None:
    frame = FRAMES[name]()
    assert len(frame) == 0
    check_dtypes(name, frame)
    assert list(frame.index) == []


@pytest.mark.parametrize("name", FRAMES)
async def test_a_full_frame_has_the_same_columns_and_dtypes(name: str, server: RawServer) -> None:
    await a_bit_of_everything(server)
    frame = FRAMES[name]()
    assert len(frame) > 0
    check_dtypes(name, frame)
    assert list(frame.index) == list(range(len(frame)))
    wide = FRAMES[name](kernel="all")
    if name == "sessions":  # those of two people may bear the same name
        assert list(wide.pop("owner")) == [tagging.owner()] * len(wide)
    check_dtypes(name, pd.concat([frame, wide], ignore_index=True).astype(frame.dtypes))


async def test_times_are_utc_and_right(server: RawServer) -> None:
    before = pd.Timestamp.now(tz="UTC")
    await ask(server, stream=False)
    row = nbllm.requests().iloc[0]
    after = pd.Timestamp.now(tz="UTC")
    assert before.floor("us") <= row.started_at <= row.ended_at <= after + pd.Timedelta("1ms")
    assert (row.ended_at - row.started_at) / pd.Timedelta("1ms") == pytest.approx(row.duration_ms, abs=0.01)
    assert nbllm.connections().iloc[0].opened_at <= after
    assert pd.isna(nbllm.connections().iloc[0].closed_at)


@pytest.mark.parametrize("name", FRAMES)
def test_every_column_is_in_the_docstring(name: str) -> None:
    text = FRAMES[name].__doc__ or ""
    for column in KINDS[name]:
        assert re.search(rf"\b{column}\b", text), f"{name}() doesn't document {column}"


def test_every_status_is_in_the_docstring() -> None:
    for status in ("ok", "error", "cancelled", "incomplete"):
        assert status in (nbllm.requests.__doc__ or "")


# -- columns ---------------------------------------------------------------------------------------


def test_the_columns_are_the_logs_and_each_stands_once() -> None:
    assert {**frames.REQUESTS, "id": "int"} == {**schema.REQUESTS, "notebook": "label"}
    assert frames.CONNECTIONS == schema.CONNECTIONS | SUMMED


LOOKED_FOR = {
    "requests": (
        "request_id session_id execution_count request_model status duration_ms ttft_ms input_tokens "
        "output_tokens cost_usd error_type error_message connection_reused started_at"
    ),
    "connections": " ".join(frames.CONNECTIONS),
    "sessions": " ".join(name for name in ("owner", *frames.SESSIONS) if name != "unpriced"),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_pandas_shows_the_columns_that_one_looks_for(name: str, server: RawServer) -> None:
    """Where it has room for twenty, as in a notebook."""
    await ask(server)
    with pd.option_context("display.max_columns", 20, "display.width", 10_000):
        wide = name == "sessions"
        shown = str(FRAMES[name](kernel="all" if wide else None)).splitlines()[0].split()
    assert set(LOOKED_FOR[name].split()) <= set(shown)


# -- plots -----------------------------------------------------------------------------------------

PLOTS: dict[str, Callable[[], Any]] = {
    "tokens by session": lambda: nbllm.sessions().plot.bar(
        x="session_id", y=["input_tokens", "output_tokens"]
    ),
    "time over time": lambda: nbllm.requests().plot.scatter(x="started_at", y="duration_ms"),
    "tokens and tokens": lambda: nbllm.requests().plot.scatter(x="input_tokens", y="output_tokens"),
    "nothing but nulls": lambda: nbllm.requests().plot.scatter(x="started_at", y="reasoning_tokens"),
    "spend": lambda: nbllm.requests().set_index("started_at").cost_usd.cumsum().plot(),
    "tokens over time": lambda: nbllm.requests().set_index("started_at")[["input_tokens", "chunks"]].plot(),
    "by model": lambda: nbllm.requests().groupby("request_model", observed=True).cost_usd.sum().plot.pie(),
    "by status": lambda: nbllm.requests().status.value_counts().plot.barh(),
    "histogram": lambda: nbllm.requests().input_tokens.plot.hist(),
    "boxes": lambda: nbllm.requests()[["input_tokens", "ttft_ms"]].plot.box(),
    "connections": lambda: nbllm.connections().plot.bar(x="connection_id", y="requests"),
}


@pytest.mark.parametrize("name", PLOTS)
async def test_frames_with_nulls_can_be_plotted(name: str, server: RawServer) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    nbllm.set_price("m", input=1, output=2)
    await a_bit_of_everything(server)
    frame = nbllm.requests()
    assert frame.cost_usd.isna().any()
    assert frame.input_tokens.isna().any()
    axes = PLOTS[name]()
    axes.figure.savefig(io.BytesIO())
    pyplot.close("all")
    assert axes.has_data()


async def test_what_is_plotted_are_the_logs_numbers(server: RawServer) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    await a_bit_of_everything(server)
    axes = nbllm.sessions().plot.bar(x="session_id", y=["input_tokens", "output_tokens"])
    heights = [bar.get_height() for bar in axes.patches]
    pyplot.close("all")
    assert heights[0] == 22
    assert np.isnan(heights[1]) or heights[1] == 0  # of the second session nothing is known
    assert heights[2] == 10


# -- filters ---------------------------------------------------------------------------------------


async def test_the_session_filter(server: RawServer) -> None:
    await a_bit_of_everything(server)
    for name in ("first", "second"):
        frame = nbllm.requests(session=name)
        assert len(frame) == 3
        assert set(frame.session_id) == {name}
    assert nbllm.requests(session="none such").empty
    assert len(nbllm.requests()) == 6


def add_another_kernel(log_path: Path, kernel: str = "0badcafe", owner: str | None = None) -> None:
    """Rows as another process would have written them."""
    log.flush()
    with contextlib.closing(sqlite3.connect(log_path)) as connection:
        connection.execute(
            "INSERT INTO requests "
            "(id, request_id, call_id, attempt, session_id, kernel_id, started_at, status, owner) "
            "VALUES (?, ?, ?, 1, 'first', ?, 1.5, 'ok', ?)",
            (tagging.first_id(kernel) + 1, f"{kernel}-r1", f"{kernel}-c1", kernel, owner or tagging.owner()),
        )
        connection.execute(
            "INSERT INTO connections (connection_id, kernel_id, opened_at) VALUES (?, ?, 1.5)",
            (f"{kernel}-n1", kernel),
        )
        connection.commit()


async def test_kernels_are_kept_apart(server: RawServer, log_path: Path) -> None:
    await a_bit_of_everything(server)
    add_another_kernel(log_path)
    mine = nbllm.kernel_id()
    counts = {name: len(frame()) for name, frame in FRAMES.items()}
    for name, frame in FRAMES.items():
        assert len(frame(kernel=mine)) == counts[name]
        assert len(frame(kernel="all")) == counts[name] + (name != "sessions")
        assert len(frame(kernel="0badcafe")) == 1
        assert frame(kernel="00000000").empty
    assert set(nbllm.requests(kernel="all").kernel_id) == {mine, "0badcafe"}
    assert nbllm.requests(kernel="all").started_at.is_monotonic_increasing
    assert len(nbllm.requests(session="first", kernel="all")) == 4
    assert session_rows(kernel="all")[0].requests == 4


@pytest.mark.parametrize("kernel", ["mine", "", 5, "0x12"])
def test_a_kernel_that_cant_be_is_refused(kernel: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match="kernel"):
        nbllm.requests(kernel=kernel)


def test_the_last_kernel_of_all_is_found(log_path: Path) -> None:
    """Ids use all bits that SQLite's integers have."""
    log.read(lambda connection: None)
    for kernel in ("ffffffff", "00000000", "80000000"):
        add_another_kernel(log_path, kernel)
        assert len(nbllm.requests(kernel=kernel)) == 1
    assert len(nbllm.requests(kernel="all")) == 3


# -- running ---------------------------------------------------------------------------------------


async def test_requests_under_way_have_no_status_yet(server: RawServer) -> None:
    task = asyncio.ensure_future(ask(server, "gated", session_id="mine"))
    await server.seen(lambda: bool(server.requests))
    await ask(server)
    frame = nbllm.requests()
    check_dtypes("requests", frame)
    assert len(frame) == 2
    running = frame.iloc[0]  # it began first
    assert pd.isna(running.status)
    assert pd.isna(running.ended_at)
    assert pd.isna(running.duration_ms)
    assert running.session_id == "mine"
    assert running.connection_id == nbllm.connections().iloc[0].connection_id
    (mine, _) = session_rows()
    assert (mine.session_id, mine.running, mine.requests, mine.ended_at) == ("mine", 1, 1, None)
    assert len(nbllm.requests(session="mine")) == 1
    assert nbllm.requests(session="other").empty
    assert nbllm.requests(kernel="0badcafe").empty
    server.open_gate()
    await task
    assert [row.status for row in request_rows()] == ["ok", "ok"]
    assert frame.request_id[0] == request_rows()[0].request_id


async def test_oldest_first_however_they_end(server: RawServer) -> None:
    first = asyncio.ensure_future(ask(server, "gated", session_id="1"))
    await server.seen(lambda: len(server.requests) == 1)
    second = asyncio.ensure_future(ask(server, "gated", session_id="2"))
    await server.seen(lambda: len(server.requests) == 2)
    await ask(server, session_id="3")
    assert list(nbllm.requests().session_id) == ["1", "2", "3"]
    assert list(nbllm.sessions().session_id) == ["1", "2", "3"]
    server.open_gate()
    await asyncio.gather(first, second)
    assert list(nbllm.requests().session_id) == ["1", "2", "3"]


# -- sums ------------------------------------------------------------------------------------------


async def test_a_sessions_row_by_hand(server: RawServer) -> None:
    await a_bit_of_everything(server)
    first, second = session_rows()
    assert (first.session_id, first.requests) == ("first", 3)
    assert (first.errors, first.cancelled, first.incomplete, first.running) == (1, 0, 0, 0)
    assert (second.errors, second.cancelled, second.incomplete, second.running) == (0, 1, 1, 0)
    assert (first.cells, second.cells) == ("[3]", "[5]")
    assert (first.models, second.models) == ("m", "m")
    assert (first.input_tokens, first.output_tokens) == (22, 10)
    assert (second.input_tokens, second.cost_usd) == (None, None)
    assert (first.cost_usd, first.unpriced) == (None, 2)
    assert first.connections_opened == 1
    assert first.reuse_ratio == pytest.approx(2 / 3)


async def test_known_and_unknown_prices_are_told_apart(server: RawServer) -> None:
    import json

    from tests.servers import completion, whole

    async def priced(x: Any) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25}
        await x.send(whole("200 OK", json.dumps(completion(usage=usage)).encode()))

    async def costs_only(x: Any) -> None:
        await x.send(whole("200 OK", json.dumps(completion(usage={"cost": 0.5})).encode()))

    server.behaviours.update(priced=priced, costs=costs_only)
    with nbllm.session("s"):
        await ask(server, "priced")
        await ask(server, "costs")
        await ask(server)
    (row,) = session_rows()
    assert (row.cost_usd, row.unpriced) == (0.75, 1)


async def test_cells_without_a_number_go_by_their_id(server: RawServer) -> None:
    for cell in (nbllm.tagging.Cell("cell-x"), nbllm.tagging.Cell("cell-y", 7), nbllm.tagging.Cell("cell-x")):
        nbllm.tagging.enter_cell(cell)
        await ask(server)
    assert session_rows()[0].cells == "[7], cell-x"


async def test_sums_are_those_that_pandas_finds(server: RawServer) -> None:
    await a_bit_of_everything(server)
    running = asyncio.ensure_future(ask(server, "gated", session_id="second"))
    await server.seen(lambda: server.requests[-1].path.startswith("/gated"))
    compare_sessions_with_requests()
    server.open_gate()
    await running
    compare_sessions_with_requests()


def compare_sessions_with_requests() -> None:
    requests, found = nbllm.requests(), nbllm.sessions().set_index("session_id")
    assert set(found.index) == set(requests.session_id)
    for session_id, rows in requests.groupby("session_id", observed=True):
        row = found.loc[session_id]
        statuses = rows.status.astype("string").fillna("running").value_counts()
        for name, status in (
            ("errors", "error"), ("cancelled", "cancelled"), ("incomplete", "incomplete"),
            ("running", "running"),
        ):  # fmt: skip
            assert row[name] == statuses.get(status, 0)
        assert row.requests == len(rows)
        same(row.input_tokens, rows.input_tokens.sum(min_count=1))
        same(row.output_tokens, rows.output_tokens.sum(min_count=1))
        assert row.unpriced == (rows.input_tokens.notna() & rows.cost_usd.isna()).sum()
        same(row.cost_usd, rows.cost_usd.sum(min_count=1))
        same(row.duration_ms, rows.duration_ms.sum())
        same(row.duration_p95_ms, rows.duration_ms.quantile(0.95))
        same(row.ttft_p50_ms, rows.ttft_ms.quantile(0.5))
        same(row.reuse_ratio, rows.connection_reused.dropna().astype(float).mean())
        assert row.connections_opened == rows[rows.connection_reused.eq(False)].connection_id.nunique()
        assert row.started_at == rows.started_at.min()
        assert row.ended_at == rows.ended_at.max() or (pd.isna(row.ended_at) and rows.ended_at.isna().all())
        assert row.models == ", ".join(sorted(rows.request_model.dropna().unique()))


def same(found: Any, expected: Any) -> None:
    if pd.isna(expected):
        assert pd.isna(found)
    else:
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [3.0, 3.0, 9.0, 11.5], list(range(100))])
@pytest.mark.parametrize("percent", [50, 95])
def test_quantiles_are_numpys(values: list[float], percent: int) -> None:
    values_of = " UNION ALL ".join(f"SELECT {value} AS x" for value in values) or "SELECT NULL AS x"
    query = f"SELECT percentile_{percent}(x) FROM ({values_of}) AS some"
    found = log.read(lambda connection: connection.exec_driver_sql(query).scalar())
    if values:
        assert found == pytest.approx(np.quantile(values, percent / 100))
    else:
        assert found is None


@pytest.mark.parametrize("where", ["1 = 1", "started_at >= 1"])
def test_sessions_of_a_large_log_are_read_from_the_index_alone(where: str) -> None:
    steps = plan_of(frames._sessions_query(True, where, False))
    assert steps[0] == "SCAN requests USING COVERING INDEX requests_session"


def test_sessions_of_this_kernel_are_read_through_its_key() -> None:
    steps = plan_of(frames._sessions_query(False, "id BETWEEN 1 AND 9", False))
    assert steps[0].startswith("SEARCH requests USING INTEGER PRIMARY KEY")


def plan_of(query: str) -> list[str]:
    explained = f"EXPLAIN QUERY PLAN {query}"
    return [row[3] for row in log.read(lambda connection: connection.exec_driver_sql(explained).all())]


async def test_a_large_log_is_read_by_kernel_through_its_key(server: RawServer) -> None:
    """Without a scan of what other kernels have written in a year."""
    await ask(server)
    seen: list[str] = []

    def explained(connection: Any) -> None:
        first = tagging.first_request_id()
        for where in (f"id >= {first} AND id < {first + 1}", "session_id = 'x'"):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM requests WHERE {where}")
            seen.extend(row[3] for row in plan)

    log.read(explained)
    assert all(step.startswith("SEARCH") for step in seen)
    assert tracing.running() == []
