"""The log's tables: their columns, and the migrations that make them.

Owns the column lists, which SQL, DataFrames and docs share; the tables are the same in SQLite and in
PostgreSQL. Each column's unit and source stand in docs/log.md; names are OpenTelemetry's and HAR's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import tagging

if TYPE_CHECKING:
    import sqlalchemy as sa

# name -> kind. Kinds: text; label (text with few values, a category in frames); int; float; bool; time
# (seconds since 1970 UTC). Everything but ids, session and start may be null: unknown or not applicable.
REQUESTS: dict[str, str] = {
    "id": "int",
    "request_id": "text",
    "call_id": "text",
    "attempt": "int",
    "session_id": "label",
    "owner": "label",
    "kernel_id": "label",
    "cell_id": "label",
    "execution_count": "int",
    "run_id": "text",
    "cell_source": "label",
    "operation": "label",
    "provider": "label",
    "request_model": "label",
    "response_model": "label",
    "response_id": "text",
    "provider_request_id": "text",
    "http_method": "label",
    "server_address": "label",
    "server_port": "int",
    "url_path": "label",
    "stream": "bool",
    "params": "text",
    "started_at": "time",
    "first_chunk_at": "time",
    "ended_at": "time",
    "duration_ms": "float",
    "ttft_ms": "float",
    "queued_ms": "float",
    "blocked_ms": "float",
    "dns_ms": "float",
    "connect_ms": "float",
    "ssl_ms": "float",
    "send_ms": "float",
    "wait_ms": "float",
    "receive_ms": "float",
    "connection_id": "text",
    "connection_reused": "bool",
    "connection_reason": "label",
    "connection_idle_ms": "float",
    "bytes_sent": "int",
    "bytes_received": "int",
    "chunks": "int",
    "status": "label",
    "http_status": "int",
    "finish_reason": "label",
    "error_type": "label",
    "error_message": "text",
    "retry_after_ms": "float",
    "input_tokens": "int",
    "cache_read_tokens": "int",
    "cache_write_tokens": "int",
    "output_tokens": "int",
    "reasoning_tokens": "int",
    "input_audio_tokens": "int",
    "output_audio_tokens": "int",
    "input_image_tokens": "int",
    "output_image_tokens": "int",
    "cost_usd": "float",
    "cost_source": "label",
    "response_headers": "text",
}

CONNECTIONS: dict[str, str] = {
    "connection_id": "text",
    "kernel_id": "label",
    "host": "label",
    "port": "int",
    "peer": "text",
    "local_port": "int",
    "tls_version": "label",
    "opened_at": "time",
    "closed_at": "time",
    "close_reason": "label",
}

CONTENTS: dict[str, str] = {"id": "int", "request": "text", "response": "text"}

KERNELS: dict[str, str] = {
    "kernel_id": "text",
    "owner": "label",
    "host": "label",
    "pid": "int",
    "notebook": "label",
    "started_at": "time",
    "seen_at": "time",
    "ended_at": "time",
}

TAGS: dict[str, str] = {"owner": "label", "session_id": "label", "tag": "label", "tagged_at": "time"}

TABLES = {
    "requests": REQUESTS,
    "connections": CONNECTIONS,
    "contents": CONTENTS,
    "kernels": KERNELS,
    "tags": TAGS,
}


def storable(kind: str, value: Any) -> Any:
    """`value` as a column of this kind takes it; None where it can't be that."""
    if value is None:
        return None
    if kind in ("text", "label"):
        return str(value).encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if kind in ("float", "time"):
        return float(value) if isinstance(value, (int, float)) else None
    if kind == "bool":
        return bool(value)
    return int(value) if isinstance(value, int) and abs(value) < 1 << 63 else None


def migrate(connection: sa.Connection, begin: Callable[[], None]) -> None:
    """Bring a database, empty or of any older version, to the newest schema.

    Each migration runs in one transaction with the row that records it.

    Args:
        connection: In autocommit mode: transactions are spelled out.
        begin: Begins a transaction in which no other kernel migrates.

    Raises:
        RuntimeError: The database was written by a newer nbllm.
    """
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise RuntimeError(
            f"the log has schema version {version}, this nbllm knows {len(MIGRATIONS)}: upgrade nbllm"
        )
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        begin()
        try:
            if _version(connection) < number:  # another kernel may just have done it
                migration(connection)
                connection.exec_driver_sql(
                    "INSERT INTO nbllm_migrations (version, name, applied_at) "
                    f"VALUES ({number}, '{migration.__name__.strip('_')}', {time.time()})"
                )
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise


def _version(connection: sa.Connection) -> int:
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table("nbllm_migrations"):
        return 0
    return connection.exec_driver_sql("SELECT max(version) FROM nbllm_migrations").scalar() or 0


def _run(connection: sa.Connection, statement: str) -> None:
    """Execute what defines tables in the words of this database: SQLite's keys must be called INTEGER."""
    if connection.dialect.name == "postgresql":
        statement = statement.replace("INTEGER", "BIGINT")
    connection.exec_driver_sql(statement)


def _first_tables(connection: sa.Connection) -> None:
    _run(
        connection,
        "CREATE TABLE IF NOT EXISTS nbllm_migrations "
        "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at DOUBLE PRECISION NOT NULL)",
    )
    # As released: later versions add columns by migrations of their own, and never change this one.
    # `id` holds the kernel's id in its upper 32 bits and the request's number in the lower 31, so that one
    # integer key serves uniqueness, order and the rows of one kernel, and nothing else needs an index.
    _run(
        connection,
        """
        CREATE TABLE requests (
            id INTEGER NOT NULL PRIMARY KEY,
            request_id TEXT NOT NULL, call_id TEXT NOT NULL, attempt INTEGER NOT NULL,
            session_id TEXT NOT NULL, kernel_id TEXT NOT NULL,
            cell_id TEXT, execution_count INTEGER, run_id TEXT, cell_source TEXT,
            operation TEXT, provider TEXT, request_model TEXT, response_model TEXT, response_id TEXT,
            provider_request_id TEXT, http_method TEXT, server_address TEXT, server_port INTEGER,
            url_path TEXT, stream BOOLEAN, params TEXT,
            started_at DOUBLE PRECISION NOT NULL, first_chunk_at DOUBLE PRECISION, ended_at DOUBLE PRECISION,
            duration_ms DOUBLE PRECISION, ttft_ms DOUBLE PRECISION, queued_ms DOUBLE PRECISION,
            blocked_ms DOUBLE PRECISION,
            dns_ms DOUBLE PRECISION, connect_ms DOUBLE PRECISION, ssl_ms DOUBLE PRECISION,
            send_ms DOUBLE PRECISION, wait_ms DOUBLE PRECISION, receive_ms DOUBLE PRECISION,
            connection_id TEXT, connection_reused BOOLEAN, connection_reason TEXT,
            connection_idle_ms DOUBLE PRECISION, bytes_sent BIGINT, bytes_received BIGINT, chunks INTEGER,
            status TEXT, http_status INTEGER, finish_reason TEXT, error_type TEXT, error_message TEXT,
            retry_after_ms DOUBLE PRECISION, input_tokens INTEGER, cache_read_tokens INTEGER,
            cache_write_tokens INTEGER, output_tokens INTEGER, reasoning_tokens INTEGER,
            cost_usd DOUBLE PRECISION, cost_source TEXT)""",
    )
    _run(connection, "CREATE INDEX requests_session ON requests (session_id)")
    _run(
        connection,
        """
        CREATE TABLE connections (
            connection_id TEXT PRIMARY KEY, kernel_id TEXT NOT NULL, host TEXT, port INTEGER, peer TEXT,
            local_port INTEGER, tls_version TEXT, opened_at DOUBLE PRECISION NOT NULL,
            closed_at DOUBLE PRECISION, close_reason TEXT)""",
    )
    _run(connection, "CREATE TABLE contents (id INTEGER NOT NULL PRIMARY KEY, request TEXT, response TEXT)")


def _kernels_and_owners(connection: sa.Connection) -> None:
    import sqlalchemy as sa

    for column in (
        "owner TEXT NOT NULL DEFAULT ''",
        "input_audio_tokens INTEGER",
        "output_audio_tokens INTEGER",
        "input_image_tokens INTEGER",
        "output_image_tokens INTEGER",
        "response_headers TEXT",
    ):
        _run(connection, f"ALTER TABLE requests ADD COLUMN {column}")
    _run(
        connection,
        """
        CREATE TABLE kernels (
            kernel_id TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT, pid INTEGER, notebook TEXT,
            started_at DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION NOT NULL,
            ended_at DOUBLE PRECISION)""",
    )
    _run(
        connection,
        """
        CREATE TABLE tags (
            owner TEXT NOT NULL, session_id TEXT NOT NULL, tag TEXT NOT NULL,
            tagged_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (owner, session_id, tag))""",
    )
    # One user's rows before there were owners are that user's.
    connection.execute(sa.text("UPDATE requests SET owner = :owner"), {"owner": tagging.owner()})
    _run(connection, "DROP INDEX requests_session")
    # With all that sessions() adds up, SQLite need not go to the rows, which are ten times as long.
    # PostgreSQL would refuse the row of a model whose name is long.
    added_up = (
        ", kernel_id, started_at, ended_at, status, duration_ms, ttft_ms, connection_reused, request_model, "
        "execution_count, cell_id, input_tokens, output_tokens, cost_usd"
    )
    columns = "session_id, owner" + ("" if connection.dialect.name == "postgresql" else added_up)
    _run(connection, f"CREATE INDEX requests_session ON requests ({columns})")
    _run(connection, "CREATE INDEX requests_time ON requests (started_at)")
    # Of a few rows only, and so of no cost to the others: those in flight, and those that may be continued.
    _run(connection, "CREATE INDEX requests_running ON requests (kernel_id) WHERE status IS NULL")
    _run(
        connection,
        "CREATE INDEX requests_response ON requests (response_id) WHERE operation = 'responses'",
    )


MIGRATIONS: list[Callable[[sa.Connection], None]] = [_first_tables, _kernels_and_owners]
