"""Where a log is kept: SQLite in a file or in memory, or PostgreSQL; and in what they differ.

Owns opening, transactions, and which errors are the database's own. The tables are `schema`'s, and the same
in both. SQLAlchemy loads here, with the first row. Called by `log`, in the writer's thread.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from . import schema
from .settings import password_in, without_password

LOCKED_SECONDS = 5.0
"""How long a lock, or a server that does not answer, is waited for."""

_OF_VALUES = ("22", "23", "42804", "54")
"""How an SQLSTATE that tells of a value begins: wrong data, violated constraints, another type, too long."""


class Store(abc.ABC):
    """An open log.

    Attributes:
        connection: In autocommit mode: transactions are spelled out.
        place: Where it is, without a password; None in memory.
        mark: What stands for a value in a statement.
    """

    connection: sa.Connection
    place: str | None
    mark: str

    def __init__(self, url: sa.URL | str, place: str | None, arguments: dict[str, Any]) -> None:
        engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.pool.StaticPool,
            connect_args=arguments,
            hide_parameters=True,  # what was searched for, or is kept, is not for error messages
        )
        self.place = place
        try:
            self.connection = engine.connect()
        except BaseException:
            engine.dispose()
            raise
        self.raw: Any = self.connection.connection.driver_connection
        try:
            self._prepare()
            schema.migrate(self.connection, lambda: self._begin(alone=True))
        except BaseException:
            self.close()
            raise

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Set up what holds for this connection."""

    @abc.abstractmethod
    def _begin(self, alone: bool = False) -> None:
        """Begin a transaction; with `alone`, one at a time over all kernels."""

    @abc.abstractmethod
    def is_at_fault(self, error: Exception) -> bool:
        """Whether the database failed (locked, full, damaged, gone), and not a value that it refuses."""

    @abc.abstractmethod
    def is_passing(self, error: Exception) -> bool:
        """Whether the same may work in a moment: others are at work in the database."""

    @abc.abstractmethod
    def is_gone(self, error: Exception) -> bool:
        """Whether the database must be opened anew: the file is damaged, or the server's connection lost."""

    def cursor(self) -> Any:
        """The driver's own cursor."""
        return self.raw.cursor()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that happens inside, or nothing."""
        self._begin()
        try:
            yield
            self.connection.exec_driver_sql("COMMIT")
        except BaseException:
            try:
                self.connection.exec_driver_sql("ROLLBACK")
            except Exception:  # the database has rolled back by itself (disk full), or is gone
                pass
            raise

    @abc.abstractmethod
    def erase(self) -> bool:
        """See that nothing of deleted rows stays on the disk; whether that succeeded."""

    def is_away(self) -> bool:
        """Whether what was opened is no longer where it was: what is written would be lost."""
        return False

    @abc.abstractmethod
    def make_way(self, tell: Callable[[str], None]) -> None:
        """See that what `is_gone`, and is closed, can be opened anew; `tell` hears what users should know."""

    def close(self) -> None:
        """Give the connection back; nothing is raised, since there is nothing to save any more."""
        try:
            self.connection.close()
            self.connection.engine.dispose()
        except Exception:
            pass


class SQLite(Store):
    """A file, or memory."""

    mark = "?"

    def __init__(self, path: str | None) -> None:
        if path is not None:
            _create_private(path)
            self.file = _identity(path)
        url = "sqlite://" if path is None else sa.URL.create("sqlite", database=path)
        super().__init__(url, path, {"timeout": LOCKED_SECONDS, "check_same_thread": False})

    def _prepare(self) -> None:
        for percent in (50, 95):
            self.raw.create_aggregate(f"percentile_{percent}", 1, functools.partial(_Percentile, percent))
        run = self.connection.exec_driver_sql
        run("PRAGMA secure_delete = ON")  # what is deleted is written over
        if self.place is None:
            return
        mode = journal_mode(self.place)
        try:
            run(f"PRAGMA journal_mode = {mode}")
        except sa.exc.OperationalError as error:
            # Other kernels, with a newer SQLite, have it in WAL mode: that is theirs to change.
            if not self.is_passing(error) or run("PRAGMA journal_mode").scalar() != "wal":
                raise
        run(f"PRAGMA synchronous = {'NORMAL' if mode == 'WAL' else 'FULL'}")

    def _begin(self, alone: bool = False) -> None:
        # One that reads first and writes later fails at once where another kernel has written in between.
        self.connection.exec_driver_sql("BEGIN IMMEDIATE")

    def is_at_fault(self, error: Exception) -> bool:
        return type(getattr(error, "orig", error)) in (sqlite3.OperationalError, sqlite3.DatabaseError)

    def is_passing(self, error: Exception) -> bool:
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_gone(self, error: Exception) -> bool:
        return self.place is not None and _is_damage(error)

    def is_away(self) -> bool:
        return self.place is not None and _identity(self.place) != self.file

    def make_way(self, tell: Callable[[str], None]) -> None:
        if self.place is not None and not self.is_away():
            _put_aside(self.place, self.file, tell)

    def erase(self) -> bool:
        # Written anew: `secure_delete` misses the copies that pages keep of rows which moved to others.
        run = self.connection.exec_driver_sql
        is_wal = run("PRAGMA journal_mode").scalar() == "wal"
        try:
            if self.place is not None and not is_wal:
                run("PRAGMA journal_mode = DELETE").close()  # VACUUM's commit takes the journal away
            run("VACUUM")
            return not is_wal or run("PRAGMA wal_checkpoint(TRUNCATE)").scalar() == 0
        except sa.exc.OperationalError:  # others are at work in it, or there is no room for a copy
            return False
        finally:
            if self.place is not None and not is_wal:
                run("PRAGMA journal_mode = PERSIST").close()


class PostgreSQL(Store):
    """A server, for many kernels of many people. The tables stand in a schema of their own, `nbllm`."""

    mark = "%s"

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        # A server that is there, and says nothing, must not hold up the cells for longer than a lock.
        silence = {"connect_timeout": int(LOCKED_SECONDS), "tcp_user_timeout": int(LOCKED_SECONDS * 1000)}
        alive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
        arguments = {**silence, **alive, "prepare_threshold": None, "client_encoding": "utf8"}
        super().__init__(parsed, without_password(url), arguments)

    def _prepare(self) -> None:
        run = self.connection.exec_driver_sql
        if run("SELECT to_regnamespace('nbllm')").scalar() is None:
            try:
                run("CREATE SCHEMA IF NOT EXISTS nbllm")
            except sa.exc.IntegrityError:  # another kernel was as quick
                pass
        run("SET search_path TO nbllm")
        run("SET jit TO off")  # compiling takes longer than any query of ours
        run(f"SET lock_timeout TO {int(LOCKED_SECONDS * 1000)}")

    def _begin(self, alone: bool = False) -> None:
        self.connection.exec_driver_sql("BEGIN")
        if alone:
            self.connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('nbllm'))")

    def is_at_fault(self, error: Exception) -> bool:
        import psycopg

        error = getattr(error, "orig", error)
        # The state first: psycopg counts a value that is too long for an index to the operational errors.
        if (state := getattr(error, "sqlstate", None)) is not None:
            return not state.startswith(_OF_VALUES)
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))

    def erase(self) -> bool:
        return True  # the server's own autovacuum does it

    def is_passing(self, error: Exception) -> bool:
        state = getattr(getattr(error, "orig", error), "sqlstate", None) or ""
        return state.startswith("40") or state == "55P03"  # a deadlock, or a lock that stayed

    def is_gone(self, error: Exception) -> bool:
        return bool(self.raw.closed or self.raw.broken)

    def make_way(self, tell: Callable[[str], None]) -> None:
        pass


def open_store(address: str | None, tell: Callable[[str], None]) -> Store:
    """Open a log, and bring its tables up to date.

    Args:
        address: A path, the URL of a PostgreSQL database, or None for memory.
        tell: Hears what users should know: a damaged file was put aside.

    Raises:
        Exception: It can't be opened; the database's own error, or one of the operating system.
    """
    if address is not None and "://" in address:
        return PostgreSQL(address)
    if address is None:
        return SQLite(None)
    address = os.path.abspath(os.path.expanduser(address))
    if os.path.islink(address):
        address = os.path.realpath(address)
    file = _identity(address)
    try:
        return SQLite(address)
    except Exception as error:
        # A file of another kind, named by mistake, is nobody's damaged log.
        if not _is_damage(error) or not address.endswith((".db", ".sqlite", ".sqlite3")):
            raise
        _put_aside(address, file, tell)
    return SQLite(address)


def reason(error: Exception, address: str | None = None) -> str:
    """Why the database can't be used, in one line, without the password in its address."""
    said = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
    secret = password_in(address or "")
    return said[0].replace(secret, "***") if secret else said[0]


def _is_damage(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: Exception) -> int:
    """SQLite's primary result code; -1 where it is none of its errors."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _put_aside(path: str, file: tuple[int, int] | None, tell: Callable[[str], None]) -> None:
    """Move a damaged file, with what SQLite keeps beside it, out of the way of a new one."""
    with _one_at_a_time(os.path.dirname(path)):
        if file is None or _identity(path) != file:
            return  # another kernel has found it damaged too, and was as quick
        aside = f"{path}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        # A copy: kernels that have the file open would take the new one's journal for its own, and roll that
        # back into it (sqlite.org/howtocorrupt.html, 4.2).
        _create_private(aside)
        shutil.copyfile(path, aside)
        # The database last: another kernel would take a new one beside the old one's journal for damaged too.
        for end in ("-journal", "-wal", "-shm"):
            if os.path.exists(path + end):
                os.replace(path + end, aside + end)
        os.unlink(path)
    tell(f"the log at {path} was damaged: it is kept as {aside}, and a new one was begun")


@contextlib.contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Of all processes, as far as the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open can't be moved away anyway
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # NFS has none for folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def journal_mode(path: str) -> str:
    """How SQLite keeps a file whole: WAL where that is safe, else a rollback journal that stays.

    WAL can corrupt a file with several writers before SQLite 3.51.3 (sqlite.org/wal.html, "the WAL-reset
    bug"), and needs memory that its users share, which no network file system gives. A journal that grows and
    shrinks with each batch would take the kernel a sixth longer than one that stays.
    """
    is_safe = sqlite3.sqlite_version_info >= (3, 51, 3) and not is_remote(path)
    return "WAL" if is_safe else "PERSIST"


_REMOTE = (
    *("nfs", "cifs", "smb", "fuse", "9p", "afs", "lustre"),
    *("gpfs", "ceph", "glusterfs", "beegfs", "virtiofs"),
)


def is_remote(path: str) -> bool:
    """Whether a file may lie on a network file system; Linux tells (proc(5), `/proc/self/mounts`)."""
    if not sys.platform.startswith("linux"):
        return path.startswith(("\\\\", "//"))
    path = os.path.realpath(path)
    best, kind = "", ""
    try:
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, folder, found, *_ = line.split(" ")
            folder = folder.replace("\\040", " ").rstrip("/")
            if (path == folder or path.startswith(f"{folder}/")) and len(folder) >= len(best):
                best, kind = folder, found
    except (OSError, ValueError):
        return True
    return kind.startswith(_REMOTE)


class _Percentile:
    """PostgreSQL's `percentile_cont` as an aggregate for SQLite: linear between the nearest ranks."""

    def __init__(self, percent: int) -> None:
        self.values: list[float | None] = []
        self.step = self.values.append  # which is C: a function of ours would take twice as long
        self.percent = percent

    def finalize(self) -> float | None:
        values = sorted(value for value in self.values if value is not None)
        if not values:
            return None
        position = (len(values) - 1) * (self.percent / 100)
        low = int(position)
        high = min(low + 1, len(values) - 1)
        return values[low] + (values[high] - values[low]) * (position - low)


def _create_private(path: str) -> None:
    """Make the folder 0700 and the file 0600 before SQLite would make them readable by others."""
    folder = Path(path).parent
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)  # another process may be as quick
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
