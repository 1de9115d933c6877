"""Saved notebooks: what their outputs tell of requests, whoever wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm import notebook_file
from nbllm.exceptions import UsageProblem
from nbllm.notebook_file import read_notebook
from nbllm.output_metadata import REQUEST
from nbllm.schema import REQUESTS

DTYPES = {"int": "Int64", "float": "float64", "label": "category", "text": "string"}

FULL = {
    "request_id": "r1",
    "session_id": "review",
    "model": "gpt-4o",
    "status": "ok",
    "input_tokens": 412,
    "output_tokens": 96,
    "cost_usd": 0.0011,
    "duration_ms": 1800.5,
    "ttft_ms": 400.25,
    "started_at": "2026-03-01T12:00:00.250000Z",
}


def output(*requests: Any) -> Any:
    metadata = {"nbllm": {"requests": list(requests)}}
    return nbformat.v4.new_output("display_data", {"text/plain": "Hi"}, metadata=metadata)


def saved(path: Path, *cells: Any) -> Path:
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return path


def code(*outputs: Any, **more: Any) -> Any:
    return nbformat.v4.new_code_cell("%%llm\nHi", outputs=list(outputs), **more)


def raw(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def raw_outputs(path: Path, *outputs: Any) -> Path:
    return raw(path, {"nbformat": 4, "cells": [{"cell_type": "code", "outputs": list(outputs)}]})


def check_dtypes(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == list(notebook_file.COLUMNS)
    for column, kind in notebook_file.COLUMNS.items():
        if kind == "time":
            assert str(frame[column].dt.tz) == "UTC"
        else:
            assert frame[column].dtype == DTYPES[kind], column


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.ipynb"


# -- what is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_every_request_is_a_row_in_the_notebooks_order(path: Path, kind: Any) -> None:
    saved(
        path,
        nbformat.v4.new_markdown_cell("# Title"),
        code(output(FULL, {**FULL, "request_id": "r2"}), id="later", execution_count=7),
        code(output({**FULL, "request_id": "r3"}), output({"request_id": "r4"}), id="first"),
    )
    frame = read_notebook(kind(path))
    check_dtypes(frame)
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame.request_id) == ["r1", "r2", "r3", "r4"]
    assert list(frame.cell_id) == ["later", "later", "first", "first"]
    assert list(frame.cell_index) == [1, 1, 2, 2]
    assert list(frame.execution_count.isna()) == [False, False, True, True]
    row = frame.iloc[0]
    assert {name: row[name] for name in FULL if name != "started_at"} == {
        name: value for name, value in FULL.items() if name != "started_at"
    }
    assert row.execution_count == 7
    assert row.started_at == pd.Timestamp("2026-03-01T12:00:00.25", tz="UTC")


def test_what_is_not_told_is_null(path: Path) -> None:
    frame = read_notebook(saved(path, code(output({"request_id": "r1"}))))
    check_dtypes(frame)
    unknown = [name for name in REQUEST if name != "request_id"]
    assert frame.loc[0, unknown].isna().all()


def test_cells_without_ids_have_none(path: Path) -> None:
    """Before nbformat 4.5."""
    frame = read_notebook(raw_outputs(path, output(FULL)))
    assert frame.cell_id.isna().all()
    assert list(frame.cell_index) == [0]


@pytest.mark.parametrize("cells", [[], [nbformat.v4.new_markdown_cell("Hi")], [code()]])
def test_a_notebook_without_requests_has_all_columns_and_no_row(path: Path, cells: list[Any]) -> None:
    frame = read_notebook(saved(path, *cells))
    check_dtypes(frame)
    assert len(frame) == 0


def test_a_request_counts_once(path: Path) -> None:
    """Also where a cell was copied with its outputs; two of which no id is known are two."""
    anonymous = {"status": "ok"}
    cells = [code(output(FULL), output(FULL)), code(output(FULL)), code(output(anonymous, anonymous))]
    frame = read_notebook(saved(path, *cells))
    assert list(frame.cell_index) == [0, 2, 2]


def test_the_types_are_those_of_the_log() -> None:
    for name, kind in notebook_file.COLUMNS.items():
        if name not in ("cell_index", "model"):
            assert kind == REQUESTS[name], name


def test_every_column_is_in_the_docstring() -> None:
    for column in notebook_file.COLUMNS:
        assert re.search(rf"\b{column}\b", read_notebook.__doc__ or ""), column


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00Z"),
        ("2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00Z"),
        ("2026-03-01 12:00:00.5", "2026-03-01T12:00:00.5Z"),
    ],
)
def test_times_are_utc(path: Path, written: str, expected: str) -> None:
    frame = read_notebook(raw_outputs(path, output({"started_at": written})))
    assert frame.started_at[0] == pd.Timestamp(expected)


# -- what is not as nbllm writes it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_tokens", "12"),
        ("input_tokens", 1.5),
        ("input_tokens", True),
        ("input_tokens", 10**30),
        ("output_tokens", [1]),
        ("cost_usd", float("nan")),
        ("cost_usd", float("inf")),
        ("cost_usd", 10**400),
        ("duration_ms", {"a": 1}),
        ("ttft_ms", "soon"),
        ("status", 5),
        ("session_id", ["a"]),
        ("model", {"name": "m"}),
        ("started_at", "yesterday"),
        ("started_at", 1700000000),
        ("started_at", "0001-01-01T00:00:00+14:00"),
        ("started_at", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_value_of_the_wrong_kind_is_unknown_and_the_others_stay(path: Path, name: str, value: Any) -> None:
    frame = read_notebook(raw_outputs(path, output({**FULL, name: value})))
    check_dtypes(frame)
    assert pd.isna(frame.loc[0, name])
    assert frame.loc[0, [other for other in FULL if other != name]].notna().all()


def test_text_that_no_encoding_can_hold(path: Path) -> None:
    (status,) = read_notebook(raw_outputs(path, output({"status": "\ud800"}))).status
    assert status == "?"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cells", "outputs", "metadata", "nbllm", "requests", "id", *FULL]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


# From a request to its cell.
WRAPS: list[Callable[[Any], Any]] = [
    lambda request: [request, FULL],
    lambda requests: {"requests": requests},
    lambda ours: {"nbllm": ours},
    lambda metadata: {"metadata": metadata},
    lambda output: [output],
    lambda outputs: {"outputs": outputs},
]


@settings(deadline=None)
@given(junk=JUNK, depth=st.integers(0, len(WRAPS)))
def test_junk_is_passed_over(tmp_path_factory: pytest.TempPathFactory, junk: Any, depth: int) -> None:
    """Wherever it stands."""
    path = tmp_path_factory.getbasetemp() / "junk.ipynb"
    cell = junk
    for wrap in WRAPS[depth:]:
        cell = wrap(cell)
    good = {"outputs": [{"metadata": {"nbllm": {"requests": [{"request_id": "the last"}]}}}]}
    frame = read_notebook(raw(path, {"nbformat": 4, "cells": [cell, good]}))
    check_dtypes(frame)
    assert frame.request_id.iloc[-1] == "the last"
    assert frame.cell_index.iloc[-1] == 1


# -- what can't be read ------------------------------------------------------------------------------


def problem(path: Any) -> str:
    with pytest.raises(UsageProblem) as caught:
        read_notebook(path)
    return str(caught.value)


def test_no_such_file_and_the_one_that_may_be_meant(path: Path) -> None:
    saved(path)
    text = problem(path.with_name("same.ipynb"))
    assert str(path.with_name("same.ipynb")) in text
    assert "there is no file" in text
    assert "did you mean 'some.ipynb'?" in text
    assert "did you mean" not in problem(path.parent / "nowhere" / "else.ipynb")


@pytest.mark.parametrize("content", [b"", b"print('Hi')", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 10_000])
def test_not_json(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    text = problem(path)
    assert str(path) in text
    assert "not a notebook" in text


@pytest.mark.parametrize("content", [[], "cells", 5, None, {}, {"nbformat": 4}, {"nbformat": 4, "cells": {}}])
def test_json_that_is_no_notebook(path: Path, content: Any) -> None:
    text = problem(raw(path, content))
    assert str(path) in text
    assert "'cells'" in text


def test_an_old_format(path: Path) -> None:
    old = nbformat.v3.new_notebook(worksheets=[nbformat.v3.new_worksheet()])
    text = problem(raw(path, old))
    assert str(path) in text
    assert "format 3" in text


def test_a_folder(path: Path) -> None:
    assert str(path.parent) in problem(path.parent)


@pytest.mark.parametrize("value", [None, 5, b"some.ipynb", "a\0b", "~nobody-of-this-name/some.ipynb"])
def test_what_is_no_path(value: Any) -> None:
    assert repr(value) in problem(value)


def test_a_file_with_a_byte_order_mark(path: Path) -> None:
    content = raw_outputs(path, output(FULL)).read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert len(read_notebook(path)) == 1
