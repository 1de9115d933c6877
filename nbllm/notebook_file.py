"""A saved notebook → the requests that its outputs tell of.

Owns `read_notebook`. Reads the file as plain JSON. A notebook may come from anybody: what is not as nbllm
writes it is passed over.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import output_metadata, schema
from .exceptions import UsageProblem, did_you_mean
from .frames import typed_frame

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: dict[str, str] = {
    "cell_id": "label",
    "cell_index": "int",
    "execution_count": "int",
    **output_metadata.REQUEST,
}


def read_notebook(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The requests that a saved notebook's outputs tell of, one row each, in the order of the notebook.

    No log is needed, and no nbformat: the notebook itself says what it cost. A request that stands in several
    outputs, as in those of a copied cell, counts once, at its first place.

    Args:
        path: An `.ipynb` file, of the notebook format 4.

    Returns:
        Columns, of the same dtypes as in `nbllm.requests()`; null means that the notebook doesn't say. A
        notebook without such outputs gives all columns, and no row.

        - cell_id (category): the cell's id; null before nbformat 4.5.
        - cell_index (Int64): the cell's place in the notebook, from 0; never null.
        - execution_count (Int64): the number beside the cell; null where it has none.
        - request_id (string), session_id (category): as in the log; null where not told.
        - model (category): the model as it was asked for; null where not told.
        - status (category): ok, error, cancelled, incomplete; null where not told.
        - input_tokens, output_tokens (Int64): null where unknown.
        - cost_usd (float64): US dollars; null where no price is known.
        - duration_ms (float64): milliseconds; null where not told.
        - ttft_ms (float64): milliseconds to the first content; null where the answer was not streamed.
        - started_at (datetime64, UTC): null where not told.

    Raises:
        UsageProblem: There is no such file, it can't be read, or it is no notebook of format 4.
    """
    seen: set[str] = set()
    rows = []
    for index, cell in enumerate(_cells(path)):
        for request in _requests(cell):
            told = {name: _value(kind, request.get(name)) for name, kind in output_metadata.REQUEST.items()}
            request_id = told["request_id"]
            if request_id not in seen:
                cell_id, number = _value("label", cell.get("id")), _value("int", cell.get("execution_count"))
                rows.append((cell_id, index, number, *told.values()))
            if request_id is not None:
                seen.add(request_id)
    return typed_frame(COLUMNS, rows)


def _cells(path: str | os.PathLike[str]) -> list[Any]:
    try:
        file = Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise UsageProblem(
            f"path must name a notebook, such as 'analysis.ipynb'; got {path!r} ({error})"
        ) from error
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        hint = did_you_mean(file.name, [found.name for found in file.parent.glob("*.ipynb")])
        raise UsageProblem(f"there is no file {str(path)!r}{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageProblem(f"{str(path)!r} can't be read: {reason}") from error
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageProblem(f"{str(path)!r} is not a notebook: it is not JSON ({error})") from error
    if not isinstance(notebook, dict):
        raise UsageProblem(f"{str(path)!r} is not a notebook: it is JSON, but not an object with 'cells'")
    version = notebook.get("nbformat")
    if isinstance(version, int) and version < 4:
        raise UsageProblem(
            f"{str(path)!r} is a notebook of format {version}: open it in JupyterLab, save it, which makes "
            "it format 4, and read that"
        )
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise UsageProblem(f"{str(path)!r} is not a notebook: it has no list of 'cells'")
    return cells


def _requests(cell: Any) -> Iterator[dict[str, Any]]:
    outputs = cell.get("outputs") if isinstance(cell, dict) else None
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict):
            yield from output_metadata.unpack(output.get("metadata"))


def _value(kind: str, value: Any) -> Any:
    """`value` where it can stand in a column of this kind, else None."""
    if kind in ("text", "label"):
        return schema.storable(kind, value) if isinstance(value, str) else None
    if kind == "time":
        return _seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "int":
        return schema.storable(kind, value)
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON's whole numbers may have any number of digits
        return None


def _seconds(value: Any) -> float | None:
    """Seconds since 1970 of a time in ISO 8601, UTC where it names no zone; None where it is none."""
    try:
        time = datetime.fromisoformat(value)
        seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < _END_OF_TIME else None


_END_OF_TIME = datetime(2262, 1, 1, tzinfo=UTC).timestamp()
"""pandas counts nanoseconds in 64 bits."""
