"""From ended records and connections to rows, and those into the database, all or none.

Owns `Batch`. Masks keys, checks counts and prices on the way: the last place where a row can be seen before
it is kept. Called by `log`, in the writer's thread.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from . import costs, foreign, lives, masking, schema, tagging, tracing
from .notices import warn_once

if TYPE_CHECKING:
    from .stores import Store

ROWS_A_STATEMENT = 40
LARGEST_COUNT = 1 << 48
"""What a server says to be more tokens than this is no count; the database adds counts up in 64 bits."""
LONGEST_ID = 500
"""How much of an id that a server gives is kept: an index takes no more than a few thousand characters."""


class Shape:
    """Columns of a table that rows fill together, and what follows from them.

    Attributes:
        table: The table.
        columns: The columns.
        replaces: Whether a row takes the place of the one that is there already; else it is refused.
    """

    def __init__(self, table: str, columns: tuple[str, ...], replaces: bool = False) -> None:
        self.table = table
        self.columns = columns
        self.replaces = replaces
        self.insert_statement = functools.lru_cache(self._insert_statement)

    def _insert_statement(self, rows: int, mark: str, again: bool) -> str:
        row = f"({', '.join([mark] * len(self.columns))})"
        statement = f"INSERT INTO {self.table} ({', '.join(self.columns)}) VALUES {', '.join([row] * rows)}"
        if self.replaces:
            key = _KEYS[self.table]
            news = ", ".join(
                f"{name} = excluded.{name}" for name in self.columns if name not in key.split(", ")
            )
            return f"{statement} ON CONFLICT ({key}) DO UPDATE SET {news}"
        return f"{statement} ON CONFLICT DO NOTHING" if again else statement


_KEYS = {
    "requests": "id",
    "contents": "id",
    "connections": "connection_id",
    "kernels": "kernel_id",
    "tags": "owner, session_id, tag",
}

_CONTENT = Shape("contents", tuple(schema.CONTENTS))
_CONNECTION = Shape("connections", tuple(schema.CONNECTIONS), replaces=True)
_KERNEL = Shape("kernels", tuple(schema.KERNELS), replaces=True)

connection_values = operator.attrgetter(*schema.CONNECTIONS)


@functools.lru_cache(maxsize=200)
def _shape(columns: tuple[str, ...], replaces: bool) -> Shape:
    return Shape("requests", columns, replaces)


class Batch:
    """Rows to be written in one transaction, by table and by the columns that they fill.

    A record fills about half of its columns, and binding a null costs SQLite as much as binding a value.
    """

    def __init__(self) -> None:
        self.inserts: dict[Shape, list[Any]] = {}  # the rows' values, one row after the other
        self.newest: dict[Shape, dict[str, tuple[Any, ...]]] = {}  # rows of which the last one holds, by key

    def insert(self, shape: Shape, values: Iterable[Any]) -> None:
        self.inserts.setdefault(shape, []).extend(values)

    def add_record(self, record: tracing.Record, noted: bool) -> None:
        """The row of a record that has ended, and its contents.

        Args:
            record: The record.
            noted: Whether a row tells already that it runs.
        """
        if (overheard := record.overheard) is not None:
            record.overheard = None
            foreign.read(record, overheard)
        if record.held or overheard is not None:  # else no server's word is on it
            _check_counts(record)
            _check_ids(record)
        costs.price(record)
        bodies = _masked(record, _text(record.content), _text(record.response_content))
        attributes = record.__dict__.copy()  # at one moment: a cell that prices it too may add a column
        attributes["owner"] = tagging.owner()
        # Records that took the same path set the same attributes in the same order.
        self.insert(_shape(tuple(attributes), noted), attributes.values())
        if record.content is not None:
            self.insert(_CONTENT, (record.id, *bodies))
            record.content = record.response_content = None  # an answer that is kept shouldn't keep these

    def add_running(self, record: tracing.Record) -> None:
        """The row of a record that has not ended."""
        _masked(record)
        attributes = {**record.__dict__, "owner": tagging.owner(), "status": None}
        self.insert(_shape(tuple(attributes), True), attributes.values())

    def add_connection(self, connection: tracing.Connection) -> None:
        """The row of a connection that was opened, or has closed."""
        self.newest.setdefault(_CONNECTION, {})[connection.connection_id] = connection_values(connection)

    def add_kernel(self, started_at: float, ended_at: float | None = None) -> None:
        """The row that tells that this kernel lives, or has ended."""
        self.newest.setdefault(_KERNEL, {})[tagging.kernel_id()] = lives.row(started_at, ended_at)

    def write(self, store: Store, again: bool = False) -> None:
        """Write all, or nothing.

        Args:
            store: Where to.
            again: Some of it may be there already: whether the last try was of use is not known.
        """
        cursor = store.cursor()  # SQLAlchemy would copy all values, a tenth of the whole cost
        with store.transaction():
            for shape, values in self._parts():
                width = len(shape.columns)
                # Many rows a statement: sqlite3 hands the GIL over at each, and the event loop wants it.
                for start in range(0, len(values), ROWS_A_STATEMENT * width):
                    some = values[start : start + ROWS_A_STATEMENT * width]
                    cursor.execute(shape.insert_statement(len(some) // width, store.mark, again), some)

    def write_one_by_one(self, store: Store, again: bool = False) -> None:
        """Write what can be written, where a row among them holds a value that the database refuses.

        Raises:
            Exception: The last of the errors, when all other rows are written.
        """
        cursor = store.cursor()
        failure: Exception | None = None
        with store.transaction():
            for shape, values in self._parts():
                kinds = [schema.TABLES[shape.table][column] for column in shape.columns]
                for start in range(0, len(values), len(kinds)):
                    row = list(map(schema.storable, kinds, values[start : start + len(kinds)]))
                    cursor.execute("SAVEPOINT a_row")
                    try:
                        cursor.execute(shape.insert_statement(1, store.mark, again), row)
                    except Exception as error:
                        if store.is_at_fault(error):
                            raise
                        cursor.execute("ROLLBACK TO SAVEPOINT a_row")
                        failure = error
                    cursor.execute("RELEASE SAVEPOINT a_row")
        if failure is not None:
            raise failure

    def _parts(self) -> Iterator[tuple[Shape, list[Any]]]:
        yield from self.inserts.items()
        for shape, by_key in self.newest.items():
            yield shape, list(chain.from_iterable(by_key.values()))


def of_kernel(store: Store, contents: bool = True) -> Batch:
    """All that a store holds of this kernel, to be written elsewhere, with or without what was said."""
    mine = "id BETWEEN {} AND {}".format(*tagging.own_ids())
    conditions = {"requests": mine, "connections": f"kernel_id = '{tagging.kernel_id()}'"}
    if contents:
        conditions["contents"] = mine
    if store.place is None:  # elsewhere they stay where they are
        conditions["tags"] = "1 = 1"
    batch = Batch()
    for table, condition in conditions.items():
        columns = schema.TABLES[table]
        shape = Shape(table, tuple(columns), replaces=True)
        for row in store.cursor().execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {condition}"):
            batch.insert(shape, map(schema.storable, columns.values(), row))  # SQLite's truth is a number
    return batch


def ended(store: Store) -> set[int]:
    """This kernel's requests of which a store knows the end."""
    first, last = tagging.own_ids()
    query = f"SELECT id FROM requests WHERE id BETWEEN {first} AND {last} AND status IS NOT NULL"
    return {row[0] for row in store.cursor().execute(query)}


def remove(store: Store, ids: Iterable[int]) -> None:
    """Take the rows of these requests out of a store; where that fails, they stay."""
    try:
        with store.transaction():
            for number in ids:
                store.cursor().execute(f"DELETE FROM requests WHERE id = {store.mark}", (number,))
    except Exception as error:
        warn_once(f"rows that belong elsewhere stay in the log at {store.place or 'memory'}: {error!r}")


_COUNTS = tuple(name for name in schema.REQUESTS if name.endswith("_tokens"))
# The columns whose texts the caller or the server wrote. (Those of errors are masked where they are set.)
_SAID = (
    *("url_path", "params", "request_model", "response_model", "response_id", "provider_request_id"),
    *("finish_reason", "response_headers"),
)


def _check_ids(record: tracing.Record) -> None:
    """Cut ids that a server has made longer than an index takes."""
    said = record.__dict__
    for name in ("response_id", "provider_request_id"):
        if isinstance(value := said.get(name), str) and len(value) > LONGEST_ID:
            said[name] = value[:LONGEST_ID]


def _check_counts(record: tracing.Record) -> None:
    """Make unknown what the server says in place of a count."""
    said = record.__dict__
    for name in _COUNTS:
        value = said.get(name)
        if value is not None and not (type(value) is int and 0 <= value <= LARGEST_COUNT):
            said[name] = None


def _masked(record: tracing.Record, *bodies: str | None) -> tuple[str | None, ...]:
    """Mask the keys in what the caller and the server wrote, and give the bodies without them."""
    said = record.__dict__
    if (params := record.call.params) is not None:
        said["params"] = params.decode("utf-8", "replace")
    if (headers := record.headers) is not None:
        said["response_headers"] = _kept_headers(headers)
        if record.ended:  # else they are still to tell the cost
            record.headers = None
    texts = [text for name in _SAID if (text := said.get(name)) is not None]
    # One search through all of them spares nearly every record the others.
    try:
        together = "\n".join([*texts, *filter(None, bodies)])
        if masking.redact(together) == together:
            return bodies
    except TypeError:  # the server gave something else than a text
        pass
    for name in _SAID:
        if (value := said.get(name)) is not None:
            said[name] = masking.redact(str(value))
    return tuple(body and masking.redact(body) for body in bodies)


# What servers say about the request, its limits and its cost; nothing that names a person or opens a door.
_KEPT_HEADERS = re.compile(
    "content-type|date|server|retry-after(-ms)?|(x-)?request-id|(x-|anthropic-)?ratelimit-.*|"
    "openai-(processing-ms|version)|"
    "x-litellm-(call-id|model-id|version|response-cost|(response|overhead)-duration-ms|attempted-retries)"
)


def _kept_headers(headers: Mapping[str, str]) -> str | None:
    """The headers of an answer that are kept, as JSON; the others are never written."""
    kept = {name: value for given, value in headers.items() if (name := _kept_name(given))}
    if not kept:
        return None
    try:
        return msgspec.json.encode(kept).decode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, of which aiohttp makes halves of characters
        return json.dumps(kept)


@functools.lru_cache(maxsize=1000)
def _kept_name(given: str) -> str | None:
    name = given.lower()
    return name if _KEPT_HEADERS.fullmatch(name) else None


def _text(content: bytes | str | None) -> str | None:
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else content
