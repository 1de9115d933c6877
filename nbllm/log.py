"""The log: where ended requests and connections are kept, and asked for again.

Owns the writer thread, which alone touches the database, and the choice of the file. Rows come in from
the event loop through a deque and are written in batches; a query is a job in the same queue, so that it
sees all that came before it. Without a usable file the log goes on in memory. `frames` reads it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import notices, pricing, schema, tagging, tracing
from .kept import kept
from .settings import Settings, on_change, settings

if TYPE_CHECKING:
    import sqlalchemy as sa

T = TypeVar("T")

BATCH_SECONDS = 0.05
LOCKED_SECONDS = 5.0
ROWS_A_STATEMENT = 40
FORK_SECONDS = 5.0
"""How long a fork may wait for the writer to come to rest."""


class Log:
    """One process's log. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.closed = False
        self.engine: sa.Engine | None = None
        self.connection: sa.Connection | None = None
        self.path: str | None = None
        self.wanted: str | None = None
        self.problem: str | None = None

    # -- called from anywhere --------------------------------------------------------------------

    def add(self, item: Any) -> None:
        """Hand over a record, a connection's row, or a job."""
        self.queue.append(item)
        if not self.wake.is_set():
            self.wake.set()
            self._start()

    def run(self, job: Callable[[], T], timeout: float | None = None) -> T:
        """Run `job` in the writer thread, after all that was handed over before, and give its result."""
        future: Future[T] = Future()
        self.hurry.set()
        self.add((job, future))
        self.wake.set()
        if self.thread is None or not self.thread.is_alive():
            self._drain()  # at exit no thread can be started any more
        try:
            return future.result(timeout)
        finally:
            if self.problem is not None:
                problem, self.problem = self.problem, None
                notices.warn_once(problem)

    def read(self, job: Callable[[sa.Connection], T]) -> T:
        """Run a query, after all rows that were handed over before, and give its result."""
        return self.run(lambda: job(self._open()))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all rows handed over so far are written."""
        if self.thread is not None or self.queue:
            self.run(_nothing, timeout)

    def close(self) -> None:
        """Write what is left and close the database; what comes later opens it again."""
        if self.thread is not None or self.queue:
            self.run(self._close)

    def _start(self) -> None:
        with self.lock:
            if self.thread is None or not self.thread.is_alive():
                thread = threading.Thread(target=self._write_forever, name="nbllm-log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is going down; `run` drains the queue
                    return
                self.thread = thread
                if not _state.minds_forks and hasattr(os, "register_at_fork"):
                    _state.minds_forks = True
                    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)

    # -- the writer thread -----------------------------------------------------------------------

    def _write_forever(self) -> None:
        while True:
            self.wake.wait()
            self.hurry.wait(BATCH_SECONDS)
            self.hurry.clear()
            self.wake.clear()
            self._drain()

    def _drain(self) -> None:
        batch: list[Any] = []
        while self.queue:
            item = self.queue.popleft()
            if not isinstance(item, tuple):
                batch.append(item)
                continue
            self._write(batch)
            batch = []
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
        self._write(batch)

    def _write(self, items: list[Any]) -> None:
        if not items:
            return
        batch = _Batch()
        try:
            batch.take(items)
            self._write_batch(batch)
        except Exception as error:  # a bug of ours must not end the thread
            self.problem = f"{len(items)} rows of the log could not be written: {error!r}"

    def _write_batch(self, batch: _Batch) -> None:
        for attempt in (1, 2, 3):
            try:
                batch.write(self._open())
                return
            except Exception as error:
                if not _is_of_the_database(error):
                    batch.write_one_by_one(self._open())
                    return
                if attempt == 3 or "locked" not in str(error):
                    self._go_on_in_memory(error)
        batch.write(self._open())

    def _open(self) -> sa.Connection:
        if self.connection is None:
            self.wanted = wanted = settings().log
            path = default_path() if wanted == "" else wanted
            try:
                self._connect(path)
            except Exception as error:
                self._go_on_in_memory(error)
        assert self.connection is not None
        return self.connection

    def _connect(self, path: str | None) -> None:
        import sqlite3

        import sqlalchemy as sa

        if path is not None:
            path = os.path.abspath(os.path.expanduser(path))
            _create_private(path)
        engine = sa.create_engine(
            "sqlite://" if path is None else sa.URL.create("sqlite", database=path),
            isolation_level="AUTOCOMMIT",  # transactions are spelled out: BEGIN IMMEDIATE needs it
            poolclass=sa.pool.StaticPool,
            connect_args={"timeout": LOCKED_SECONDS, "check_same_thread": False},
        )
        connection = engine.connect()
        try:
            if path is not None:
                # WAL can corrupt a file with several writers before SQLite 3.51.3 (sqlite.org, "WAL-reset
                # bug"), so older ones write through a rollback journal, one that stays: a file that grows and
                # shrinks with each batch takes the kernel a sixth longer.
                wal = sqlite3.sqlite_version_info >= (3, 51, 3)
                connection.exec_driver_sql(f"PRAGMA journal_mode={'WAL' if wal else 'PERSIST'}")
                connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if wal else 'FULL'}")
            schema.migrate(connection)
            alive = _Batch()
            alive.take(tracing.connections())  # opened while another log was in use
            alive.write(connection)
        except BaseException:
            connection.close()
            engine.dispose()
            raise
        self.engine, self.connection, self.path = engine, connection, path

    def _go_on_in_memory(self, error: Exception) -> None:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        where = self.path or settings().log or "the default place"
        self.problem = (
            f"the log at {where} can't be used ({reason}); "
            "this kernel's rows are kept in memory. nbllm.configure(log=PATH) names another place, or tries "
            "the same again"
        )
        self.wanted = "unusable"
        kept = _rows_of_this_kernel(self.connection) if self.connection is not None else None
        self._close()
        self._connect(None)
        if kept is not None and self.connection is not None:
            try:
                kept.write(self.connection)
            except Exception as failure:
                self.problem += f" (earlier rows stay in the file only: {failure})"

    def _move(self) -> None:
        """Go over to the log that the settings now name. Rows that are nowhere but in memory go along."""
        in_memory = self.connection is not None and self.path is None
        rows = _rows_of_this_kernel(self.connection) if in_memory and self.connection is not None else None
        self._close()
        if rows is not None:
            self._write_batch(rows)

    def _close(self) -> None:
        engine, connection = self.engine, self.connection
        self.engine = self.connection = self.path = None
        try:
            if connection is not None:
                connection.close()
            if engine is not None:
                engine.dispose()
        except Exception:  # the file may be gone; there is nothing to save on it
            pass


class _State:
    """The log of this process."""

    def __init__(self) -> None:
        self.log = Log()
        self.lost: list[Log] = []
        self.minds_forks = False


_state = kept(__name__, _State)


def add_request(record: tracing.Record) -> None:
    """Keep an ended request's record. Costs the event loop well under a microsecond."""
    _state.log.add(record)


def add_connection(connection: tracing.Connection, is_open: bool) -> None:
    """Keep a connection's row: once when it opens, and again when it has closed."""
    _state.log.add(connection)


def price(record: tracing.Record) -> None:
    """Fill in `cost_usd` where the tokens are known and a price is. The writer does it for every row."""
    if record.cost_usd is not None or record.input_tokens is None or record.provider in (None, "demo"):
        return
    try:
        cost = pricing.price_usd(
            record.provider or "",
            record.response_model or record.request_model or "",
            input_tokens=record.input_tokens,
            output_tokens=record.output_tokens,
            cache_read_tokens=record.cache_read_tokens,
            cache_write_tokens=record.cache_write_tokens,
            at=record.started_at,
        )
    except Exception as error:  # the row is worth more than its price
        notices.warn_once(f"prices can't be looked up: {error!r}")
        return
    if cost is not None:  # the source first: another thread may be reading both
        record.cost_source, record.cost_usd = "genai-prices", cost


def read(job: Callable[[sa.Connection], T]) -> T:
    """Run a query on the log, after all rows that were handed over before."""
    return _state.log.read(job)


def read_soon(job: Callable[[sa.Connection], T], timeout: float) -> T | None:
    """As `read`, for one who can't wait: None where nothing was kept yet, or after `timeout` seconds."""
    log = _state.log
    if log.thread is None and not log.queue:
        return None
    try:
        return log.run(lambda: job(log._open()), timeout)
    except TimeoutError:
        return None


def content_of(response_id: str) -> tuple[str, str] | None:
    """What was kept of the request that brought this response, as JSON: messages, and the answer.

    None where there is no such response, or its content was not kept.
    """
    query = (
        "SELECT contents.request, contents.response FROM requests JOIN contents ON contents.id = requests.id "
        "WHERE requests.response_id = ? ORDER BY requests.id DESC LIMIT 1"
    )
    row = read(lambda connection: connection.exec_driver_sql(query, (response_id,)).first())
    return None if row is None or None in row else (row[0], row[1])


def flush(timeout: float | None = None) -> None:
    """Wait until all rows handed over so far are on disk.

    Raises:
        TimeoutError: That took longer than `timeout` seconds; the rows are still written later.
    """
    _state.log.flush(timeout)


def close() -> None:
    """Write what is left and close the database."""
    _state.log.close()


def path() -> str | None:
    """Where the log is (or will be) written; None when it is in memory."""
    if _state.log.connection is not None:
        return _state.log.path
    wanted = settings().log
    return default_path() if wanted == "" else wanted


def default_path() -> str:
    """`log.db` in the user's state folder."""
    import platformdirs

    return str(platformdirs.user_state_path("nbllm") / "log.db")


def _before_fork() -> None:
    # SQLite keeps the locks of a file in the memory of the process, Python those of a module being imported:
    # a child that is forked while the writer thread is at work would find the log locked for ever.
    try:
        flush(FORK_SECONDS)
    except Exception:
        pass


def _after_fork() -> None:
    # The thread did not come along, and SQLite forbids shared handles.
    _state.lost.append(_state.log)
    _state.log = Log()


def _nothing() -> None:
    pass


def _reopen(values: Settings) -> None:
    log = _state.log
    if log.connection is not None and values.log != log.wanted:
        log.run(log._move)


on_change("log", _reopen)


class _Shape:
    """Columns of a table that rows fill together, and what follows from them."""

    def __init__(self, table: str, columns: tuple[str, ...]) -> None:
        self.table = table
        self.columns = columns
        self.insert_statement = functools.lru_cache(
            functools.partial(schema.insert_statement, table, columns)
        )


class _Batch:
    """Rows to be written in one transaction, by table and by the columns that they fill.

    A record fills about half of its columns, and binding a null costs SQLite as much as binding a value.
    """

    def __init__(self, again: bool = False) -> None:
        self.again = again  # rows that were written once: where they are there already, that is fine
        self.inserts: dict[_Shape, list[Any]] = {}  # the rows' values, one row after the other

    def insert(self, shape: _Shape, values: Iterable[Any]) -> None:
        self.inserts.setdefault(shape, []).extend(values)

    def take(self, items: list[Any]) -> None:
        """Turn ended records and connections into rows."""
        for item in items:
            if hasattr(item, "call"):
                self._take_record(item)
            else:
                self.insert(_CONNECTION, schema.connection_values(item))

    def _take_record(self, record: tracing.Record) -> None:
        if (params := record.call.params) is not None:
            record.params = params.decode("utf-8", "replace")
        if record.held:
            _check_counts(record)
        bodies = _masked(record, _text(record.content), _text(record.response_content))
        price(record)
        attributes = record.__dict__.copy()  # at one moment: a cell that prices it too may add a column
        # Records that took the same path set the same attributes in the same order.
        columns = tuple(attributes)
        shape = _shapes.get(columns)
        if shape is None:
            shape = _shapes[columns] = _Shape("requests", columns)
        self.insert(shape, attributes.values())
        if record.content is not None:
            self.insert(_CONTENT, (record.id, *bodies))
            record.content = record.response_content = None  # an answer that is kept shouldn't keep these

    def write(self, connection: sa.Connection) -> None:
        """Write all, or nothing."""
        cursor = connection.connection.cursor()  # SQLAlchemy would copy all values, a tenth of the whole cost
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            for shape, values in self.inserts.items():
                width = len(shape.columns)
                # Many rows a statement: sqlite3 hands the GIL over at each, and the event loop wants it.
                for start in range(0, len(values), ROWS_A_STATEMENT * width):
                    some = values[start : start + ROWS_A_STATEMENT * width]
                    cursor.execute(shape.insert_statement(len(some) // width, self.again), some)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    def write_one_by_one(self, connection: sa.Connection) -> None:
        """Write what can be written, where a row among them holds a value that SQLite refuses.

        Raises:
            Exception: The last of the errors, when all other rows are written.
        """
        failure: Exception | None = None
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            for shape, values in self.inserts.items():
                kinds = [schema.TABLES[shape.table][column] for column in shape.columns]
                for start in range(0, len(values), len(kinds)):
                    row = tuple(map(schema.storable, kinds, values[start : start + len(kinds)]))
                    try:
                        connection.exec_driver_sql(shape.insert_statement(1, self.again), row)
                    except Exception as error:
                        if _is_of_the_database(error):
                            raise
                        failure = error
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        if failure is not None:
            raise failure


_shapes: dict[tuple[str, ...], _Shape] = {}
_CONNECTION = _Shape("connections", tuple(schema.CONNECTIONS))
_CONTENT = _Shape("contents", tuple(schema.CONTENTS))


def _is_of_the_database(error: Exception) -> bool:
    """Whether the database failed (locked, full, damaged), and not a value that it refuses."""
    import sqlite3

    return type(getattr(error, "orig", error)) in (sqlite3.OperationalError, sqlite3.DatabaseError)


def _roll_back(connection: sa.Connection) -> None:
    try:
        connection.exec_driver_sql("ROLLBACK")
    except Exception:  # SQLite has rolled back by itself (disk full)
        pass


_COUNTS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
# The columns whose texts the caller or the server wrote. (Those of errors are masked where they are set.)
_SAID = ("url_path", "params", "response_model", "response_id", "provider_request_id", "finish_reason")


def _check_counts(record: tracing.Record) -> None:
    """Make unknown what the server says in place of a count."""
    said = record.__dict__
    for name in _COUNTS:
        value = said.get(name)
        if value is not None and not (type(value) is int and 0 <= value < 1 << 63):
            said[name] = None


def _masked(record: tracing.Record, *bodies: str | None) -> tuple[str | None, ...]:
    """Mask the keys in what the caller and the server wrote, and give the bodies without them."""
    said = record.__dict__
    texts = [text for name in _SAID if (text := said.get(name)) is not None]
    # One search through all of them spares nearly every record the others.
    try:
        together = "\n".join([*texts, *(body for body in bodies if body)])
        if tracing.redact(together) == together:
            return bodies
    except TypeError:  # the server gave something else than a text
        pass
    for name in _SAID:
        if (value := said.get(name)) is not None:
            said[name] = tracing.redact(str(value))
    return tuple(body and tracing.redact(body) for body in bodies)


def _text(content: bytes | str | None) -> str | None:
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else content


def _rows_of_this_kernel(connection: sa.Connection) -> _Batch | None:
    mine = (tagging.kernel_id(),)
    of_mine = {
        "requests": "kernel_id = ?",
        "connections": "kernel_id = ?",
        "contents": "id IN (SELECT id FROM requests WHERE kernel_id = ?)",
    }
    batch = _Batch(again=True)
    try:
        for table, condition in of_mine.items():
            shape = _Shape(table, tuple(schema.TABLES[table]))
            query = f"SELECT {', '.join(shape.columns)} FROM {table} WHERE {condition}"
            for row in connection.exec_driver_sql(query, mine):
                batch.insert(shape, tuple(row))
        return batch
    except Exception:  # the file can't be read either
        return None


def _create_private(path: str) -> None:
    """Make the folder 0700 and the file 0600 before SQLite would make them readable by others."""
    folder = Path(path).parent
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)  # another process may be as quick
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
