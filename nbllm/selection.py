"""Which requests are meant: the filters that all views of the log share, as SQL.

Owns `Selection`, by which `read` asks the log, what is often asked for (`request_rows`, `contents`), and what
a time such as "7d" means. One query path: the log shows each request once, also those in flight, whose status
is null. Called by whatever shows or writes what the log holds.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import lives, log, masking, schema, tagging
from .exceptions import UsageProblem

if TYPE_CHECKING:
    import sqlalchemy as sa

LONGEST = 4_000
"""How long a text may be that is looked for: JSON may have twelve bytes for a character, and SQLite takes
patterns of 50,000."""

Since = str | datetime.timedelta | datetime.date | None

NOTEBOOK = "(SELECT notebook FROM kernels WHERE kernels.kernel_id = requests.kernel_id)"
"""A request's notebook, for queries."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Some of the log's requests.

    Attributes:
        session: Only those of this session id.
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given; "all" for the
            whole log; or a kernel_id.
        since: Only those that started since then: "90s", "30m", "12h", "7d", "2w" ago, a timedelta ago, a
            date or datetime (local time where it names no zone), or one of these in ISO 8601, "2026-11-20".
        notebook: Only those of this notebook: its path, or the name alone.
        model: Only those that asked for this model, or were answered by it; "openai/gpt-4o" is fine too.
        search: Only those with this text in their messages, answers or errors, whatever the case of ASCII
            letters. What was said is known only where contents are kept.
        errors: Only those that failed.
        cell: Only those of this cell: its number, or its id.
        latest: Only those of the last run of each cell.
        owner: Only those of this owner.
        run: Only those of this run of a cell.

    Raises:
        UsageProblem: A value that can't be used.
    """

    session: str | None = None
    kernel: str | None = None
    since: Since = None
    notebook: str | None = None
    model: str | None = None
    search: str | None = None
    errors: bool = False
    cell: int | str | None = None
    latest: bool = False
    owner: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        for name in ("session", "notebook", "model", "search", "owner"):
            if not isinstance(value := getattr(self, name), str | None):
                raise UsageProblem(f"{name} must be a text; got {value!r}")
            if value is not None and len(value) > LONGEST:
                raise UsageProblem(f"{name} must have {LONGEST:,} characters at most; got {len(value):,}")
        cell = self.cell
        if isinstance(cell, numbers.Integral) and not isinstance(cell, bool):  # numpy's too, from a frame
            is_usable = 0 <= int(cell) < 1 << 31
        else:
            is_usable = cell is None or (isinstance(cell, str) and len(cell) <= LONGEST)
        if not is_usable:
            raise UsageProblem(f"cell must be a cell's number or its id; got {cell!r:.80}")
        self._scope()  # raises what can't be used here, and not in the log's thread

    @property
    def is_wide(self) -> bool:
        """Whether other kernels are meant too."""
        alone = self.kernel is None and self.since is None and self.notebook is None
        return not alone and self.kernel != tagging.kernel_id()

    def __str__(self) -> str:
        """What is meant, in words: "all kernels · since 7d · session review"."""
        narrow = "this kernel" if self.kernel in (None, tagging.kernel_id()) else f"kernel {self.kernel}"
        parts = ["all kernels" if self.is_wide and self.kernel in (None, "all") else narrow]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or value is False or field.name == "kernel":
                continue
            words = {"search": "with", "errors": "errors only", "latest": "last run of each cell"}
            word = words.get(field.name, field.name)
            parts.append(word if value is True else f"{word} {value}")
        return masking.redact(" \N{MIDDLE DOT} ".join(parts))

    def where(self, is_postgres: bool) -> tuple[str, dict[str, Any]]:
        """What stands after WHERE, and its values by their names."""
        scope, values = self._scope()
        conditions = [scope]
        simple = {"session_id": self.session, "owner": self.owner, "run_id": self.run}
        for column, value in simple.items():
            if value is not None:
                conditions.append(f"{column} = :{column}")
                values[column] = value
        if self.model is not None:
            asked = "request_model = :model OR response_model = :model"
            conditions.append(f"({asked} OR provider || '/' || request_model = :model)")
            values["model"] = self.model
        if self.errors:
            conditions.append("status = 'error'")
        if self.cell is not None:
            given = str(self.cell)
            number = re.fullmatch(r"\[(\d{1,9})\]|(\d{1,9})", given)  # "[3]" is how sessions() shows it
            meant = ["execution_count = :number"] if number else []
            if isinstance(self.cell, str):  # a front end's id may be digits alone
                meant.append("cell_id = :cell")
            conditions.append(f"({' OR '.join(meant)})")
            values |= {"cell": given, "number": int(number[1] or number[2]) if number else None}
        if self.search:
            like = 'COLLATE "C" ILIKE' if is_postgres else "LIKE"  # ASCII's capitals alone, as in SQLite
            # Answers are kept as they came, and the JSON of some servers has only ASCII.
            said = " OR ".join(
                f"{body} {like} :{form} ESCAPE '!'"
                for body in ("request", "response")
                for form in ("said", "escaped")
            )
            found = f"id IN (SELECT id FROM contents WHERE {said})"
            conditions.append(f"({found} OR error_message {like} :text ESCAPE '!')")
            values["text"] = _pattern(self.search)
            values["said"] = _pattern(json.dumps(self.search, ensure_ascii=False)[1:-1])
            values["escaped"] = _pattern(json.dumps(self.search)[1:-1])
        if self.latest:
            conditions.append(f"(run_id IS NULL OR run_id IN ({_LATEST.format(scope=scope)}))")
        return " AND ".join(conditions), values

    def _scope(self) -> tuple[str, dict[str, Any]]:
        conditions: list[str] = []
        values: dict[str, Any] = {}
        if not self.is_wide or self.kernel not in (None, "all"):
            conditions.append("id BETWEEN :first AND :last")
            values |= dict(zip(("first", "last"), _ids(self.kernel), strict=True))
        if self.since is not None:
            conditions.append("started_at >= :since")
            values["since"] = moment(self.since)
        if self.notebook is not None:
            # Not by LIKE, which minds capitals in PostgreSQL only. On Windows paths have backslashes.
            ends = "substr(replace(notebook, '\\', '/'), length(notebook) + 1 - :length) = :end"
            named = f"SELECT kernel_id FROM kernels WHERE notebook = :notebook OR {ends}"
            conditions.append(f"kernel_id IN ({named})")
            end = "/" + self.notebook.replace("\\", "/")
            values |= {"notebook": self.notebook, "end": end, "length": len(end)}
        return " AND ".join(conditions) or "1 = 1", values


# Of each cell the run that began last. The cells of a notebook and of its copy bear the same ids; where the
# front end doesn't name cells, In[3] of two kernels are two; and what has no cell is no cell's last run.
_LATEST = f"""
    SELECT run_id FROM (
        SELECT run_id, row_number() OVER (PARTITION BY owner, notebook, cell ORDER BY began DESC) AS age
        FROM (
            SELECT run_id, owner, min(started_at) AS began,
                {NOTEBOOK} AS notebook,
                CASE WHEN cell_id IS NULL THEN run_id
                    WHEN cell_id LIKE 'In[%' THEN kernel_id || cell_id ELSE cell_id END AS cell
            FROM requests WHERE {{scope}} AND run_id IS NOT NULL GROUP BY run_id, owner, kernel_id, cell
        ) AS runs
    ) AS ages WHERE age = 1"""


def read(selection: Selection, query: Callable[[str, bool], str]) -> list[tuple[Any, ...]]:
    """The rows of a query.

    Args:
        selection: Which requests.
        query: From what stands after WHERE, and whether it is for PostgreSQL, to the query.
    """

    def job(connection: sa.Connection) -> list[tuple[Any, ...]]:
        import sqlalchemy as sa

        if selection.is_wide:
            lives.bury(connection)
        is_postgres = connection.dialect.name == "postgresql"
        where, given = selection.where(is_postgres)
        # What no database takes, as half a character, stands for nothing that one holds.
        values = {k: schema.storable("text", v) if isinstance(v, str) else v for k, v in given.items()}
        return [tuple(row) for row in connection.execute(sa.text(query(where, is_postgres)), values)]

    return log.read(job)


def request_rows(**filters: Any) -> list[dict[str, Any]]:
    """Requests as dicts, oldest first.

    Args:
        **filters: Those of `Selection`.

    Returns:
        The values by the names of `schema.REQUESTS`, and `notebook`. None is unknown, times are seconds since
        1970 UTC, and `status` is None while a request is in flight.

    Raises:
        UsageProblem: A filter that can't be used.
    """
    return as_dicts(REQUEST_COLUMNS, read_requests(Selection(**filters)))


def as_dicts(columns: Sequence[str], found: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What a query has found of requests, by the names of its columns."""
    rows = [dict(zip(columns, values, strict=True)) for values in found]
    switches = [name for name in columns if schema.REQUESTS.get(name) == "bool"]
    for row in rows:
        for name in switches:  # SQLite has numbers for them
            row[name] = None if row[name] is None else bool(row[name])
    return rows


REQUEST_COLUMNS = (*schema.REQUESTS, "notebook")


def read_requests(selection: Selection) -> list[tuple[Any, ...]]:
    """The values of `REQUEST_COLUMNS`, oldest first."""
    names = ", ".join((*schema.REQUESTS, NOTEBOOK))
    return read(
        selection,
        lambda where, _: f"SELECT {names} FROM requests WHERE {where} ORDER BY started_at, id",
    )


def session_ids(**filters: Any) -> list[str]:
    """The sessions of the requests that `Selection` means."""
    found = read(
        Selection(**filters), lambda where, _: f"SELECT DISTINCT session_id FROM requests WHERE {where}"
    )
    return [row[0] for row in found]


def contents(ids: Sequence[int]) -> dict[int, tuple[str | None, str | None]]:
    """What was sent and what was answered, as JSON texts, by the requests' `id`, where that was kept."""

    def job(connection: sa.Connection) -> dict[int, tuple[str | None, str | None]]:
        found: dict[int, tuple[str | None, str | None]] = {}
        for start in range(0, len(ids), 500):
            some = ", ".join(str(int(number)) for number in ids[start : start + 500])
            query = f"SELECT id, request, response FROM contents WHERE id IN ({some})"
            found |= {row[0]: (row[1], row[2]) for row in connection.exec_driver_sql(query)}
        return found

    return log.read(job)


def moment(since: Since) -> float:
    """The time that is meant, in seconds since 1970 UTC; see `Selection.since`.

    Raises:
        UsageProblem: It can't be understood.
    """
    now = datetime.datetime.now().astimezone()
    if isinstance(since, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", since)):
        seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[found[2]] * float(found[1])
        return now.timestamp() - seconds
    try:
        if isinstance(since, str):
            since = datetime.datetime.fromisoformat(since.strip())
        if isinstance(since, datetime.timedelta):
            return now.timestamp() - since.total_seconds()
        if not isinstance(since, datetime.datetime) and isinstance(since, datetime.date):
            since = datetime.datetime(since.year, since.month, since.day)
        if isinstance(since, datetime.datetime):
            return since.timestamp() - 1e-6  # frames have rounded microseconds
    except (ValueError, OverflowError, OSError):
        pass
    raise UsageProblem(
        f'a time is "7d", "12h", "30m", a timedelta, a date or "2026-11-20T14:00"; got {since!r}'
    )


def _ids(kernel: str | None) -> tuple[int, int]:
    if kernel is None:
        return tagging.own_ids()
    if not isinstance(kernel, str) or not re.fullmatch("[0-9a-f]{8}", kernel):
        raise UsageProblem(f"kernel must be None, 'all' or a kernel's id such as '0badcafe'; got {kernel!r}")
    return tagging.ids_of(kernel)


def _escaped(text: str) -> str:
    return re.sub("([!%_])", r"!\1", text)


def _pattern(text: str) -> str:
    return f"%{_escaped(text)}%"
