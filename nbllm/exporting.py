"""`nbllm.export`: the log's requests as a file for other programs.

Owns the file formats but HAR, which is `har`'s, and the whole-or-nothing writing. Called by users and by
`%nbllm export`.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import msgspec

from . import har, masking, schema, selection
from .exceptions import UsageProblem

ROWS_AT_ONCE = 500
"""Rows whose contents are in memory together."""

JSON_COLUMNS = ("params", "response_headers", "request", "response")
"""Columns that hold JSON: objects in a JSONL file, texts in the others."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # noqa: RUF001
"""What a spreadsheet takes for the beginning of a formula (owasp.org, "CSV Injection")."""

EPOCH = datetime.fromtimestamp(0, UTC)

Row = dict[str, Any]


def export(path: str | os.PathLike[str], *, content: bool = False, **filters: Any) -> Path:
    """Write requests to a file, one row per HTTP attempt, oldest first. Keys are masked.

    Args:
        path: Its ending names the format:

            - `.jsonl`, `.ndjson`: one JSON object a line.
            - `.csv`: for spreadsheets; a text that one would take for a formula begins with an apostrophe.
            - `.parquet`: typed columns; needs `pip install 'nbllm[parquet]'`.
            - `.har`: HTTP Archive 1.2, which a browser's network panel opens; a session is a page.
        content: Write messages and answers too, where the log has them: as `request`, the body that was
            sent, and `response`.
        **filters: Which requests: those of `nbllm.requests`, such as `session="review"`; by default those of
            this kernel.

    Returns:
        The file's path. Only its owner may read it; a file that was there is replaced once the new one is
        whole. Columns are those of `nbllm.requests()`, in the log's order; times are UTC, in ISO 8601 where
        the format has no type for them.

    Raises:
        UsageProblem: The ending is of no format, a filter can't be used, no request matches, the file can't
            be written, or pyarrow is missing.
    """
    try:
        target = Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise UsageProblem(f"{path!r} is no path that can be written to: {error}") from None
    write = FORMATS.get(target.suffix.lower())
    if write is None:
        raise UsageProblem(f"export writes {', '.join(FORMATS)}; got {os.fspath(path)!r}")
    columns = {name: kind for name, kind in schema.REQUESTS.items() if name != "id"} | {"notebook": "label"}
    if content:
        columns |= {"request": "text", "response": "text"}
    found = selection.request_rows(**filters)
    if not found:
        raise UsageProblem("no request matches: nothing was written; kernel='all' looks at other kernels too")
    rows = _rows(found, columns, content)
    write_whole(target, lambda file: write(file, columns, rows))
    return target


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill a file that takes the place of the one at `path` when it is whole, else none does.

    Raises:
        UsageProblem: It can't be written there, or what is there is a pipe or a device, which a file would
            replace.
    """
    temporary = None
    try:
        target = path.resolve()  # a link stays one
        if target.exists() and not target.is_file() and not target.is_dir():
            raise UsageProblem(f"{path} can't be written: it is no regular file")
        descriptor, temporary = tempfile.mkstemp(prefix=".nbllm-", dir=target.parent)  # 0600
        with open(descriptor, "wb") as file:
            write(file)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            os.unlink(temporary)
        if isinstance(error, (OSError, ValueError, RuntimeError)) and not isinstance(error, UsageProblem):
            reason = getattr(error, "strerror", None) or error
            raise UsageProblem(f"{path} can't be written: {reason}") from None
        raise


def _rows(found: list[Row], columns: Iterable[str], content: bool) -> Iterator[Row]:
    """The rows with these columns and no keys in them; contents come from the log in portions."""
    for start in range(0, len(found), ROWS_AT_ONCE):
        some = found[start : start + ROWS_AT_ONCE]
        bodies = selection.contents([row["id"] for row in some]) if content else {}
        for row in some:
            request, response = bodies.get(row["id"], (None, None))
            whole = {**row, "request": request, "response": response}
            yield {name: _masked(whole[name]) for name in columns}


def _masked(value: Any) -> Any:
    return masking.redact(value).encode("utf-8", "replace").decode() if isinstance(value, str) else value


# -- formats -------------------------------------------------------------------------------------------


def _write_jsonl(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    for row in rows:
        values = {name: _plain(columns[name], value) for name, value in row.items()}
        for name in JSON_COLUMNS:
            if values.get(name) is not None:
                values[name] = _embedded(values[name])
        file.write(msgspec.json.encode(values) + b"\n")


def _write_csv(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(_plain(columns[name], value)) for name, value in row.items()])
    text.detach()


def _write_parquet(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UsageProblem("a Parquet file needs pyarrow: pip install 'nbllm[parquet]'") from None
    kinds = {
        "text": pa.string(),
        "label": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    table = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    times = [name for name, kind in columns.items() if kind == "time"]
    with parquet.ParquetWriter(file, table) as writer:
        for some in _portions(rows):
            for row in some:
                row |= {name: round(row[name] * 1e6) for name in times if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(some, schema=table))


def _write_har(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    from . import __version__

    query = "SELECT connection_id, peer, tls_version FROM connections"
    known = selection.read(selection.Selection(kernel="all"), lambda where, _: query)
    connections = {name: {"peer": peer, "tls_version": version} for name, peer, version in known}
    file.write(msgspec.json.encode(har.archive(rows, connections, __version__)))


def _plain(kind: str, value: Any) -> Any:
    """A value as JSON and CSV have it: a time as a text."""
    if kind != "time" or value is None:
        return value
    return (EPOCH + timedelta(microseconds=round(value * 1e6))).isoformat(timespec="microseconds")


def _embedded(text: str) -> msgspec.Raw | str:
    """A JSON text as it stands, on one line; as a text where it is none."""
    try:
        return msgspec.Raw(msgspec.json.format(text, indent=-1).encode())
    except (msgspec.DecodeError, RecursionError):
        return text


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    each = iter(rows)
    while some := list(itertools.islice(each, ROWS_AT_ONCE)):
        yield some


FORMATS: dict[str, Callable[[IO[bytes], dict[str, str], Iterable[Row]], None]] = {
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".har": _write_har,
}
