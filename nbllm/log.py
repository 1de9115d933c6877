"""The log: where ended requests and connections are kept, and asked for again.

Owns the writer thread, which alone touches the database. Records come in from the event loop through a deque
and are written in batches; a query is a job in the same queue, so that it sees all that came before it, and
what still runs. Where the database can't be used the log goes on in memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from . import lives, masking, notices, rows, tagging, tracing
from .exceptions import UsageProblem
from .kept import kept
from .settings import Settings, settings, without_password
from .settings import on_change as on_setting

if TYPE_CHECKING:
    import sqlalchemy as sa

    from .stores import Store

T = TypeVar("T")

BATCH_SECONDS = 0.05
RUNNING_SECONDS = 0.5
"""How long a request may run before a row tells of it: should the kernel die, the next one sees it."""
ALIVE_SECONDS = 10.0
"""How often a kernel says that it lives, while it has something to write."""
RETRY_SECONDS = 60.0
"""How long rows stay in memory before a database that failed is tried again; each time twice as long."""
LONGEST_RETRY_SECONDS = 600.0
CLOSE_SECONDS = 10.0
"""How long the end of a process may wait for a database that does not answer."""
FORK_SECONDS = 5.0
"""How long a fork may wait for the writer to come to rest."""


class Log:
    """One process's log. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self.lock = threading.Lock()
        self.at_work = threading.Lock()
        self.thread: threading.Thread | None = None
        self.store: Store | None = None
        self.wanted: str | None = None
        self.problems: list[str] = []
        self.started_at = time.time()
        # Of the writer thread alone:
        self.seen_at = 0.0  # when the database was told last that this kernel lives
        self.noted: set[int] = set()  # requests of which a row tells that they run
        self.retry_at: float | None = None  # set while rows are in memory because the database failed
        self.retry_seconds = RETRY_SECONDS
        self.copied: set[int] = set()  # requests in memory that the database has, as it had them then

    # -- called from anywhere --------------------------------------------------------------------

    def add(self, item: Any) -> None:
        """Hand over a record, a connection, or a job."""
        self.queue.append(item)
        self.rouse()

    def rouse(self) -> None:
        """Have the writer look at what there is to do."""
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
        except UsageProblem as problem:  # how it came here, from another thread, is of no use to anybody
            raise problem.with_traceback(None) from None
        finally:
            while self.problems:
                notices.warn_once(self.problems.pop(0))

    def read(self, job: Callable[[sa.Connection], T], timeout: float | None = None) -> T:
        """Run a query that sees all rows handed over before, and those of the requests in flight."""
        return self.run(lambda: self._do(lambda store: job(store.connection)), timeout)

    def change(self, job: Callable[[sa.Connection], T], erase: bool) -> T:
        """Run what changes rows, in one transaction; see the function `change`."""

        def changing(store: Store) -> T:
            if self.retry_at is not None:
                where = shown(settings().log)
                raise UsageProblem(f"the log at {where} can't be used now: nothing was changed; try again")
            with store.transaction():
                return job(store.connection)

        def run() -> T:
            if self.retry_at is not None:
                due = self.retry_at, self.retry_seconds
                self._return()
                if self.retry_at is not None:  # a try that the user asked for puts off none of ours
                    self.retry_at, self.retry_seconds = due
            result = self._do(changing)
            if erase and self.store is not None and not self.store.erase():
                self.problems.append(
                    f"what was deleted is gone from the log at {self.store.place}, and may stay readable on "
                    "the disk, since other kernels are at work in it: nbllm.prune(…) tries again"
                )
            return result

        return self.run(run)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all rows handed over so far are written."""
        if self.thread is not None or self.queue:
            self.run(_nothing, timeout)

    def close(self) -> None:
        """Write what is left and close the database; what comes later opens it again."""
        if self.thread is not None or self.queue:
            try:
                self.run(self._finish, CLOSE_SECONDS)
            except TimeoutError:  # a process must be able to end
                pass

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
                    os.register_at_fork(
                        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
                    )

    # -- the writer thread -----------------------------------------------------------------------

    def _write_forever(self) -> None:
        while True:
            if self.wake.wait(RUNNING_SECONDS / 2 if tracing.is_busy() else None):
                self.hurry.wait(BATCH_SECONDS)
            self.hurry.clear()
            self.wake.clear()
            with self.at_work:
                self._drain()
                self._note_running(RUNNING_SECONDS / 2)

    def _drain(self) -> None:
        items: list[Any] = []
        while self.queue:
            item = self.queue.popleft()
            if not isinstance(item, tuple):
                items.append(item)
                continue
            self._take(items)
            items = []
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
        self._take(items)

    def _take(self, items: list[Any]) -> None:
        """Write ended records and connections."""
        if not items:
            return
        batch = rows.Batch()
        for item in items:
            try:
                if hasattr(item, "call"):
                    batch.add_record(item, item.id in self.noted)
                    self.noted.discard(item.id)
                else:
                    batch.add_connection(item)
            except Exception as error:  # a bug of ours must cost one row at most
                self.problems.append(f"a row of the log could not be made: {error!r}")
        try:
            self._write(batch)
        except Exception as error:  # nor may it end the thread
            self.problems.append(f"{len(items)} rows of the log could not be written: {error!r}")

    def _note_running(self, seconds: float) -> None:
        """Write rows of the requests that have run for so long; with 0 of all, as they are now."""
        try:
            since = tracing.perf_counter() - seconds
            batch = rows.Batch()
            noted = set()
            for record in tracing.running():
                if record.began <= since and not record.ended and not (seconds and record.id in self.noted):
                    batch.add_running(record)
                    noted.add(record.id)
            if noted or (tracing.is_busy() and self._is_unseen()):
                self._write(batch)
                self.noted |= noted
        except Exception as error:
            self.problems.append(f"the log can't tell of running requests: {error!r}")

    def _is_unseen(self) -> bool:
        return time.time() - self.seen_at >= ALIVE_SECONDS

    def _write(self, batch: rows.Batch) -> None:
        for attempt in (1, 2, 3):
            store = self._open()
            if is_unseen := self._is_unseen():
                batch.add_kernel(self.started_at)
            try:
                batch.write(store, again=attempt > 1)
                break
            except Exception as error:
                if not store.is_at_fault(error):
                    batch.write_one_by_one(store, again=attempt > 1)
                    break
                if store.is_gone(error) and attempt < 3:
                    self._begin_again()
                elif attempt == 3 or not store.is_passing(error):
                    self._go_on_in_memory(error)
        else:
            batch.write(self._open(), again=True)
        if is_unseen:
            self.seen_at = time.time()

    def _do(self, job: Callable[[Store], T]) -> T:
        """Run a job on the database, again where that must be opened anew, or others hold it for a moment.

        Raises:
            UsageProblem: The database can't be asked now.
        """
        self._note_running(0)
        for attempt in (1, 2, 3):
            store = self._open()
            try:
                return job(store)
            except Exception as error:
                if not store.is_at_fault(error):
                    raise
                if attempt < 3 and store.is_gone(error):
                    self._begin_again()
                elif attempt == 3 or not store.is_passing(error):
                    where, reason = store.place, self._reason(error)
                    raise UsageProblem(
                        f"the log at {where} can't be asked now ({reason}): try again"
                    ) from None
        raise AssertionError("the third attempt ends it")

    def _open(self) -> Store:
        if self.retry_at is not None and time.monotonic() >= self.retry_at:
            self._return()
        elif self.store is not None and self.store.is_away():
            self.problems.append(f"the log at {self.store.place} was removed: a new one was begun")
            self._begin_again()
        if self.store is None:
            self.wanted = settings().log
            try:
                self._connect(_address(self.wanted))
            except Exception as error:
                self._go_on_in_memory(error)
        assert self.store is not None
        return self.store

    def _connect(self, address: str | None) -> None:
        from . import stores

        store = stores.open_store(address, self.problems.append)
        try:
            batch = rows.Batch()
            for connection in tracing.connections():  # opened while another log was in use
                batch.add_connection(connection)
            if batch.newest:
                batch.write(store)
            lives.bury(store.connection)
        except BaseException:
            store.close()
            raise
        self.store, self.seen_at = store, 0.0

    def _begin_again(self) -> None:
        """Open the database anew: the server's connection is lost, or the file damaged."""
        try:
            self._replace(_address(self.wanted), is_gone=True)
        except Exception as failure:
            self._go_on_in_memory(failure)

    def _go_on_in_memory(self, error: Exception) -> None:
        where = (self.store and self.store.place) or shown(settings().log)
        self.problems.append(
            f"the log at {where} can't be used ({self._reason(error)}); this kernel's rows "
            "are kept in memory until it can. nbllm.configure(log=PATH) names another place, or tries the "
            "same again"
        )
        self.wanted = "unusable"
        self.retry_at = time.monotonic() + self.retry_seconds
        self.retry_seconds = min(2 * self.retry_seconds, LONGEST_RETRY_SECONDS)
        self._replace(None, is_gone=False)

    @staticmethod
    def _reason(error: Exception) -> str:
        from . import stores

        return masking.redact(stores.reason(error, settings().log))

    def _replace(self, address: str | None, is_gone: bool) -> None:
        """Go over to another database, with this kernel's rows as far as they can be read."""
        kept = None
        if (store := self.store) is not None:
            self.store = None
            try:
                kept = rows.of_kernel(store, contents=is_gone)  # else they are much, and safe where they are
                self.copied = set() if is_gone else rows.ended(store)
            except Exception:  # they stay where they are
                pass
            store.close()
            if is_gone:
                store.make_way(self.problems.append)
        self._connect(address)
        if kept is not None and (store := self.store) is not None:
            try:
                kept.write(store)
            except Exception as failure:
                self.problems.append(f"earlier rows of this kernel could not be taken along: {failure}")

    def _return(self) -> None:
        """Try the database that failed again; the rows in memory go there."""
        memory, self.retry_at = self.store, None
        try:
            self._connect(_address(settings().log))
        except Exception:
            self.retry_at = time.monotonic() + self.retry_seconds
            self.retry_seconds = min(2 * self.retry_seconds, LONGEST_RETRY_SECONDS)
            return
        self.wanted, self.retry_seconds = settings().log, RETRY_SECONDS
        if memory is not None:
            kept = self._only_in_memory(memory)
            memory.close()
            self._write(kept)

    def _only_in_memory(self, memory: Store) -> rows.Batch:
        """This kernel's rows without those that were copied: others may have changed them where they are."""
        rows.remove(memory, self.copied)
        self.copied.clear()
        return rows.of_kernel(memory)

    def _move(self) -> None:
        """Go over to the log that the settings now name. Rows that are nowhere but in memory go along."""
        kept = None
        if (store := self.store) is not None:
            if store.place is None:
                kept = self._only_in_memory(store)
            else:  # they will end in the other log
                rows.remove(store, self.noted)
                self.noted.clear()
        self._close()
        self.retry_at, self.retry_seconds = None, RETRY_SECONDS
        if kept is not None:
            self._write(kept)

    def _finish(self) -> None:
        if self.retry_at is not None:
            self._return()
        self._close()

    def _close(self) -> None:
        if (store := self.store) is None:
            return
        self.store = None
        try:
            if self.seen_at:
                batch = rows.Batch()
                batch.add_kernel(self.started_at, ended_at=time.time())
                batch.write(store)
        except Exception:  # the file may be gone; other kernels will find that this one is
            pass
        store.close()


class _State:
    """The log of this process."""

    def __init__(self) -> None:
        self.log = Log()
        self.lost: list[Log] = []
        self.on_change: list[Callable[[], None]] = []
        self.minds_forks = False
        self.is_held = False  # the writer, for a fork


_state = kept(__name__, _State)


def request_began(record: tracing.Record) -> None:
    """Have the writer see to a request in flight, should it run for long."""
    _state.log.rouse()


def add_request(record: tracing.Record) -> None:
    """Keep an ended request's record. Costs the event loop well under a microsecond."""
    _state.log.add(record)


def add_connection(connection: tracing.Connection, is_open: bool) -> None:
    """Keep a connection's row: once when it opens, and again when it has closed."""
    _state.log.add(connection)


def read(job: Callable[[sa.Connection], T]) -> T:
    """Run a query on the log, and give its result.

    It sees all rows that were handed over before, and the requests in flight as rows without a status.
    """
    return _state.log.read(job)


def read_soon(job: Callable[[sa.Connection], T], timeout: float) -> T | None:
    """As `read`, for one who can't wait: None where nothing was kept yet, or after `timeout` seconds."""
    log = _state.log
    if log.thread is None and not log.queue:
        return None
    try:
        return log.read(job, timeout)
    except TimeoutError:
        return None


def change(job: Callable[[sa.Connection], T], erase: bool = False) -> T:
    """Run what changes or deletes rows, in one transaction.

    Args:
        job: Called with the connection, inside the transaction.
        erase: See that nothing of deleted rows stays on the disk, and give their space back, as far as that
            is ours to do (PostgreSQL does it in its own time). It takes a while where the log is large.

    Raises:
        UsageProblem: The database can't be used now; nothing was changed.
    """
    result = _state.log.change(job, erase)
    tell_change()
    return result


def on_change(listener: Callable[[], None]) -> None:
    """Have `listener` called whenever rows that were there are changed; twice is as good as once."""
    if listener not in _state.on_change:
        _state.on_change.append(listener)


def tell_change() -> None:
    """Tell the listeners that rows are not what they were."""
    for listener in _state.on_change:
        listener()


def content_of(response_id: str) -> tuple[str, str] | None:
    """What was kept of the request that brought this response, as JSON: messages, and the answer.

    None where there is no such response, or its content was not kept.
    """
    query = (
        "SELECT request, response FROM requests JOIN contents ON contents.id = requests.id "
        "WHERE operation = 'responses' AND response_id = :id AND owner = :owner "
        "ORDER BY requests.id DESC LIMIT 1"
    )
    row = _first(query, response_id)
    return None if row is None or None in row else (row[0], row[1])


def session_of(response_id: str) -> str | None:
    """The session of the request that brought this response; None where the log has no such response."""
    row = _first(
        "SELECT session_id FROM requests "
        "WHERE operation = 'responses' AND response_id = :id AND owner = :owner ORDER BY id DESC LIMIT 1",
        response_id,
    )
    return None if row is None else row[0]


def _first(query: str, value: str) -> Any:
    def job(connection: sa.Connection) -> Any:
        import sqlalchemy as sa

        return connection.execute(sa.text(query), {"id": value, "owner": tagging.owner()}).first()

    return read(job)


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
    """Where the log is (or will be) written, a URL without its password; None when it is in memory."""
    if (store := _state.log.store) is not None:
        return store.place
    return None if settings().log is None else shown(settings().log)


def default_path() -> str:
    """`log.db` in the user's state folder."""
    import platformdirs

    return str(platformdirs.user_state_path("nbllm") / "log.db")


def shown(address: str | None) -> str:
    """A log's address as it may be shown: without a password."""
    return without_password(address) if address else default_path()


def _address(wanted: str | None) -> str | None:
    return default_path() if wanted == "" else wanted


def _before_fork() -> None:
    # SQLite keeps the locks of a file in the memory of the process, Python those of a module being imported:
    # a child that is forked while the writer thread is at work would find the log locked for ever.
    deadline = time.monotonic() + FORK_SECONDS
    try:
        flush(FORK_SECONDS)
    except Exception:
        pass
    _state.is_held = _state.log.at_work.acquire(timeout=max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    if _state.is_held:
        _state.log.at_work.release()


def _after_fork_in_child() -> None:
    # The thread did not come along, and SQLite forbids shared handles.
    _state.lost.append(_state.log)
    _state.log = Log()


def _nothing() -> None:
    pass


def _reopen(values: Settings) -> None:
    log = _state.log
    if log.store is not None and values.log != log.wanted:
        log.run(log._move)


on_setting("log", _reopen)
