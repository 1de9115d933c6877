"""What the log costs, and its views of a million requests: `python -m benchmarks.scale`.

Makes such a log with nbllm's own tables, then asks as a user does in a new kernel. Nothing is sent. Fails
when a view shows other than the expected rows; times never make it fail.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.backend import prepare_environment

KERNELS, SESSIONS, LONG_SESSION, OWN_ROWS = 50, 2500, 1000, 1000
DAYS = 60
REPEATS = 50
HEADERS = {
    "Date": "Sat, 21 Nov 2026 12:00:00 GMT",
    "Content-Type": "application/json",
    "Transfer-Encoding": "chunked",
    "Connection": "keep-alive",
    "openai-organization": "acme",
    "openai-processing-ms": "713",
    "openai-version": "2020-10-01",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "199987",
    "x-request-id": "req_0123456789abcdef0123456789abcdef",
    "Server": "cloudflare",
    "CF-RAY": "8e6bd3d1acdf2f6e-FRA",
    "Set-Cookie": "__cf_bm=0123456789abcdef; path=/; HttpOnly; Secure",
}
PARAMS = b'{"temperature":0.2,"max_tokens":1024,"top_p":0.9}'
KEPT = '[{"role": "user", "content": "Summarise the quarterly report, please."}]'
ANSWER = '{"role": "assistant", "content": "' + "It went well. " * 30 + '"}'


# -- the log that is asked ---------------------------------------------------------------------------


def fill(address: str, count: int) -> None:
    """Write `count` requests of the last `DAYS` days, of `KERNELS` kernels, into a new log."""
    from nbllm import schema, stores, tagging

    store = stores.open_store(address, print)
    start = time.time() - DAYS * 86400
    numbers = random.Random(7)
    kernels = sorted(f"{numbers.getrandbits(32):08x}" for _ in range(KERNELS))
    owners = (tagging.owner(), "somebody-else")
    life = DAYS * 86400 / KERNELS
    with store.transaction():
        for number, kernel in enumerate(kernels):
            began = start + number * life
            owner = owners[number % 5 == 0]
            values = (
                kernel,
                owner,
                "elsewhere",
                7,
                f"work/{number}.ipynb",
                began,
                began + life,
                began + life,
            )
            _insert(store, "kernels", schema.KERNELS, iter([values]))
        _insert(store, "requests", schema.REQUESTS, _requests(kernels, owners, start, count, numbers))
        first = [tagging.first_id(kernel) for kernel in kernels]
        some = (first[number % KERNELS] + 1 + number // KERNELS * 100 for number in range(count // 100))
        _insert(store, "contents", schema.CONTENTS, ((number, KEPT, ANSWER) for number in some))
        peer = ("api.openai.com", 443, "104.18.7.192", 50000, "TLSv1.3")
        connections = (
            (f"{kernel}-n{number}", kernel, *peer, start + number, start + number + 90, "idle expired")
            for number in range(count // 100)
            if (kernel := kernels[number % KERNELS])
        )
        _insert(store, "connections", schema.CONNECTIONS, connections)
    store.close()


def _insert(store: Any, table: str, columns: dict[str, str], rows: Iterator[tuple[Any, ...]]) -> None:
    marks = ", ".join([store.mark] * len(columns))
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    cursor = store.cursor()
    while some := list(islice(rows, 10_000)):
        cursor.executemany(statement, some)


def _requests(
    kernels: list[str], owners: tuple[str, str], start: float, count: int, numbers: random.Random
) -> Iterator[tuple[Any, ...]]:
    from nbllm import rows, schema, tagging

    each = count // KERNELS
    headers = rows._kept_headers(HEADERS)
    sessions = SESSIONS // KERNELS
    for number, kernel in enumerate(kernels):
        owner = owners[number % 5 == 0]
        for n in range(1, each + 1):
            at = start + (number + n / each) * DAYS * 86400 / KERNELS
            # Sessions run side by side; the first of the last kernel has a known length.
            session = f"work-{number}-{numbers.randrange(1, sessions)}"
            if number == KERNELS - 1 and n <= LONG_SESSION:
                session = "long"
            roll = numbers.random()
            status = "ok" if roll < 0.97 else "error" if roll < 0.985 else "cancelled"
            took = numbers.lognormvariate(7, 0.6)
            is_stream = roll < 0.5
            reused = n % 50 > 0
            values: dict[str, Any] = {
                "id": tagging.first_id(kernel) + n,
                "request_id": f"{kernel}-r{n}",
                "call_id": f"{kernel}-c{n}",
                "attempt": 1,
                "session_id": session,
                "owner": owner,
                "kernel_id": kernel,
                "cell_id": f"{n // 100 % 40:08x}-f6e1-4d2c",
                "execution_count": n // 100,
                "run_id": f"{kernel}-{n // 100}",
                "cell_source": "frontend",
                "operation": "chat",
                "provider": "openai",
                "request_model": ("gpt-4o", "gpt-4o-mini", "o3")[n // 100 % 3],
                "response_model": "gpt-4o-2024-08-06",
                "response_id": f"chatcmpl-{number:04x}{n:016x}",
                "provider_request_id": f"req_{n:032x}",
                "http_method": "POST",
                "server_address": "api.openai.com",
                "server_port": 443,
                "url_path": "/v1/chat/completions",
                "stream": is_stream,
                "params": PARAMS.decode(),
                "started_at": at,
                "first_chunk_at": at + took / 3000 if is_stream else None,
                "ended_at": at + took / 1000,
                "duration_ms": took,
                "ttft_ms": took / 3 if is_stream else None,
                "connect_ms": None if reused else 31.4159,
                "send_ms": took / 1000,
                "wait_ms": took / 3,
                "receive_ms": took * 2 / 3,
                "connection_id": f"{kernel}-n{n // 50}",
                "connection_reused": reused,
                "connection_reason": None if reused else "all busy",
                "bytes_sent": 1412,
                "bytes_received": 8123,
                "chunks": 212 if is_stream else None,
                "status": status,
                "http_status": 429 if status == "error" else 200,
                "finish_reason": "stop" if status == "ok" else None,
                "error_type": "RateLimited" if status == "error" else None,
                "error_message": "Rate limit reached for requests" if status == "error" else None,
                "response_headers": headers,
            }
            if status == "ok":
                values |= {"input_tokens": 412, "cache_read_tokens": 0, "output_tokens": n % 500}
                values |= {"reasoning_tokens": 0, "cost_usd": took / 1e6, "cost_source": "genai-prices"}
            yield tuple(map(values.get, schema.REQUESTS))


# -- a kernel's own requests -------------------------------------------------------------------------


def records(count: int) -> list[Any]:
    """Records of chats as they look when they have ended."""
    from multidict import CIMultiDict

    from nbllm import tracing

    made = []
    for number in range(count):
        call = tracing.Call("own")
        call.operation, call.provider, call.model, call.stream = "chat", "openai", "gpt-4o", False
        call.params = PARAMS
        record = tracing.Record(call, True)
        record.http_method, record.server_address = "POST", "api.openai.com"
        record.server_port, record.url_path = 443, "/v1/chat/completions"
        record.blocked_ms, record.connection_id = 0.01, f"{record.kernel_id}-n1"
        record.connection_reused, record.connection_idle_ms = True, 12.5
        record.http_status, record.bytes_received, record.bytes_sent = 200, 8123, 1412
        record.send_ms, record.wait_ms, record.receive_ms, record.duration_ms = 0.2, 713.0, 0.4, 714.0
        record.ended_at, record.status = record.started_at + 0.714, "ok"
        record.headers = CIMultiDict(HEADERS)
        record.provider_request_id = f"req_{number:032x}"
        record.response_id, record.response_model = f"chatcmpl-{number:020x}", "gpt-4o-2024-08-06"
        record.input_tokens, record.output_tokens = 412 + number, 96
        record.cache_read_tokens, record.cache_write_tokens, record.reasoning_tokens = 0, None, 0
        record.finish_reason = "stop"
        made.append(record)
    return made


def write_us(rounds: int = 30) -> tuple[float, float]:
    """Microseconds a row in the writer's thread: made of its record, and brought to the database."""
    from nbllm import log, rows

    making, writing = [], []

    def job() -> None:
        batch, some = rows.Batch(), records(OWN_ROWS)
        began = time.thread_time()
        for record in some:
            batch.add_record(record, False)
        made = time.thread_time()
        batch.write(log._state.log._open())
        making.append(made - began)
        writing.append(time.thread_time() - made)

    for _ in range(rounds):
        log._state.log.run(job)
    return min(making) / OWN_ROWS * 1e6, min(writing) / OWN_ROWS * 1e6


def loop_us(rounds: int = 30) -> float:
    """Microseconds a request that the event loop spends to hand its beginning and its end to the log."""
    from nbllm import log

    best = []
    for _ in range(rounds):
        some = records(OWN_ROWS)
        began = time.thread_time()
        for record in some:
            log.request_began(record)
            log.add_request(record)
        best.append(time.thread_time() - began)
        log.flush()
    return min(best) / OWN_ROWS * 1e6


# -- views -------------------------------------------------------------------------------------------


def views(count: int) -> dict[str, tuple[Callable[[], Any], float | None, int | None]]:
    """What is asked: how, its limit in ms, and how many rows that gives where that is known."""
    import nbllm

    everything: dict[str, Any] = {"kernel": "all"}
    long = min(LONG_SESSION, count // KERNELS)
    return {
        "sessions()": (nbllm.sessions, 1000, 1),
        "sessions(kernel='all')": (lambda: nbllm.sessions("all"), 1000, None),
        "sessions(since='1d')": (lambda: nbllm.sessions(since="1d"), 1000, None),
        "sessions(notebook='7.ipynb')": (lambda: nbllm.sessions(notebook="7.ipynb"), 1000, None),
        "requests()": (nbllm.requests, 50, OWN_ROWS),
        "requests('long', 'all')": (lambda: nbllm.requests("long", **everything), 50, long),
        "requests('own')": (lambda: nbllm.requests("own"), 50, OWN_ROWS),
        "requests(errors, since='1d')": (lambda: nbllm.requests(errors=True, since="1d"), None, None),
        "requests(search, 'all')": (lambda: nbllm.requests(search="no such", **everything), None, 0),
        "requests('long', latest)": (lambda: nbllm.requests("long", latest=True, **everything), None, None),
        "connections()": (nbllm.connections, None, 0),
        "connections('all')": (lambda: nbllm.connections("all"), None, count // 100),
        "transcript('long')": (lambda: list(nbllm.transcript("long")), None, long),
    }


def best_ms(view: Callable[[], Any], rounds: int) -> float:
    """Milliseconds of the quickest of some tries."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        view()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def plans(view: Callable[[], Any]) -> list[str]:
    """How the database goes about the queries of a view."""
    import sqlalchemy as sa

    from nbllm import log

    engine = log.read(lambda connection: connection.engine)
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        if "FROM" in statement and "kernels WHERE ended_at" not in statement:
            asked.append((statement, values))

    sa.event.listen(engine, "before_cursor_execute", note)
    view()
    sa.event.remove(engine, "before_cursor_execute", note)

    def explain(connection: sa.Connection) -> list[str]:
        is_postgres = connection.dialect.name == "postgresql"
        words = "EXPLAIN " if is_postgres else "EXPLAIN QUERY PLAN "
        said = [connection.exec_driver_sql(words + one, values).all() for one, values in asked[:3]]
        return [str(row[0 if is_postgres else -1]) for rows in said for row in rows]

    return log.read(explain)


def main() -> int:
    """Make the log, ask, and print; 1 if a view was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="requests in the log")
    parser.add_argument("--rounds", type=int, default=5, help="tries of each view, of which the best counts")
    parser.add_argument("--log", help="an empty PostgreSQL database's URL, or a file to keep and use again")
    parser.add_argument("--only", action="append", metavar="TEXT", help="views whose name has this text")
    parser.add_argument("--plans", action="store_true", help="show how the database answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbllm-benchmarks-") as folder:
        prepare_environment(Path(folder))
        address = os.environ["NBLLM_LOG_URL"] = options.log or str(Path(folder) / "log.sqlite")
        if not Path(address).exists():
            began = time.perf_counter()
            # In a process of its own: what it takes must not be found in this one.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(fill, address, options.rows).result()
            print(f"{options.rows:,} rows written in {time.perf_counter() - began:.0f} s", flush=True)
        return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    import pandas as pd  # noqa: F401 -- loading it is not the log's cost

    from nbllm import log

    for record in records(OWN_ROWS):
        log.add_request(record)
    log.flush()
    wrong = 0
    for name, (view, limit, expected) in views(options.rows).items():
        if options.only and not any(text in name for text in options.only):
            continue
        shown = len(view())
        took = best_ms(view, options.rounds)
        met = "" if limit is None else f"limit {limit:g} ms" + ("" if took <= limit else ": NO")
        print(f"{name:32}{took:10.1f} ms {shown:9,} rows  {met}", flush=True)
        if expected not in (None, shown):
            wrong += 1
            print(f"WRONG {name} shows {shown:,} rows, not {expected:,}")
        if options.plans:
            print(*(f"    {line}" for line in plans(view)), sep="\n")
    if not options.only:
        print(f"event loop: {loop_us():.2f} µs a row (limit 2)")
        print("writer: {:.1f} µs a row to make, {:.1f} µs to insert".format(*write_us()))
        before = _peak_mb()
        again = views(options.rows)
        for _ in range(REPEATS):
            again["requests('long', 'all')"][0]()
            again["sessions(since='1d')"][0]()
        write_us()
        print(f"peak memory: {before:.0f} MB; {2 * REPEATS} views and 30,000 rows later: {_peak_mb():.0f} MB")
        log.close()
    return 1 if wrong else 0


def _peak_mb() -> float:
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    sys.exit(main())
