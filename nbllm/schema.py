"""The log's tables: their columns, their migrations, and how a record becomes a row.

Owns the column lists, which SQL, DataFrames and docs share. SQLAlchemy loads in the functions that need
it, so that importing nbllm doesn't. Names and units: OpenTelemetry GenAI and HAR, see `tracing`.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .tracing import Record

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
    "cost_usd": "float",
    "cost_source": "label",
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

TABLES = {"requests": REQUESTS, "connections": CONNECTIONS, "contents": CONTENTS}

request_values: Callable[[Record], tuple[Any, ...]] = operator.attrgetter(*REQUESTS)
"""A record's row, in the order of `REQUESTS`."""

connection_values: Callable[[Any], tuple[Any, ...]] = operator.attrgetter(*CONNECTIONS)
"""A connection's row, in the order of `CONNECTIONS`."""


def insert_statement(table: str, columns: tuple[str, ...], rows: int, again: bool = False) -> str:
    """INSERT of so many rows, with positional parameters.

    A connection's newer row replaces its older one; other rows are refused where they are there already, or
    passed over where they are written `again`.
    """
    verb = "INSERT OR IGNORE" if again else "INSERT"
    if table == "connections":
        verb = "INSERT OR REPLACE"
    row = f"({', '.join('?' * len(columns))})"
    return f"{verb} INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"


def storable(kind: str, value: Any) -> Any:
    """`value` as SQLite takes it for a column of this kind; None where it can't be that."""
    if value is None:
        return None
    if kind in ("text", "label"):
        return str(value).encode("utf-8", "replace").decode()
    if kind in ("float", "time"):
        return float(value) if isinstance(value, (int, float)) else None
    return int(value) if isinstance(value, int) and abs(value) < 1 << 63 else None


def migrate(connection: sa.Connection) -> None:
    """Bring a database, empty or of any older version, to the newest schema.

    Each migration runs in one transaction with the row that records it.

    Raises:
        RuntimeError: The database was written by a newer nbllm.
    """
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS nbllm_migrations "
        "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at DOUBLE PRECISION NOT NULL)"
    )
    for version, migration in enumerate(MIGRATIONS, 1):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            # Looked up inside the transaction: another kernel may be migrating at the same time.
            newest = connection.exec_driver_sql("SELECT max(version) FROM nbllm_migrations").scalar() or 0
            if newest > len(MIGRATIONS):
                raise RuntimeError(
                    f"the log has schema version {newest}, this nbllm knows {len(MIGRATIONS)}: upgrade nbllm"
                )
            if newest < version:
                migration(connection)
                connection.exec_driver_sql(
                    "INSERT INTO nbllm_migrations (version, name, applied_at) VALUES (?, ?, ?)",
                    (version, migration.__name__.strip("_"), time.time()),
                )
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise


def _first_tables(connection: sa.Connection) -> None:
    # As released: later versions add columns by migrations of their own, and never change this one.
    # `id` holds the kernel's id in its upper 32 bits and the request's number in the lower 31, so that one
    # integer key serves uniqueness, order and the rows of one kernel, and nothing else needs an index.
    connection.exec_driver_sql("""
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
            cost_usd DOUBLE PRECISION, cost_source TEXT)""")
    connection.exec_driver_sql("CREATE INDEX requests_session ON requests (session_id)")
    connection.exec_driver_sql("""
        CREATE TABLE connections (
            connection_id TEXT PRIMARY KEY, kernel_id TEXT NOT NULL, host TEXT, port INTEGER, peer TEXT,
            local_port INTEGER, tls_version TEXT, opened_at DOUBLE PRECISION NOT NULL,
            closed_at DOUBLE PRECISION, close_reason TEXT)""")
    connection.exec_driver_sql(
        "CREATE TABLE contents (id INTEGER NOT NULL PRIMARY KEY, request TEXT, response TEXT)"
    )


MIGRATIONS: list[Callable[[sa.Connection], None]] = [_first_tables]
