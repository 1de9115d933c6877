"""Frames as Markdown tables: what a model gets to see, and what is said about the rest."""

from __future__ import annotations

import datetime
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from nbllm.exceptions import UsageProblem
from nbllm.tables import is_table, markdown, size

TIMES = "\N{MULTIPLICATION SIGN}"


class _Cells(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.is_inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.is_inside = False

    def handle_data(self, data: str) -> None:
        if self.is_inside:
            self.rows[-1][-1] += data


def rendered(text: str) -> list[list[str]]:
    """The table's cells, header first, as a Markdown renderer sees them."""
    reader = _Cells()
    reader.feed(markdown2html_mistune(text))
    return [[cell.strip() for cell in row] for row in reader.rows]


def test_a_table_is_a_header_a_rule_and_a_line_per_row() -> None:
    frame = pd.DataFrame({"name": ["otter", "owl"], "legs": [4, 2]})
    assert markdown(frame) == ("|name|legs|\n|---|---|\n|otter|4|\n|owl|2|", None)


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([1, 2.5, 1 / 3, 1e-9, 123456789.0], ["1", "2.5", "0.333333", "1e-09", "1.23457e+08"]),
        (np.array([0.1, np.inf], dtype="float32"), ["0.1", "inf"]),
        ([123456789, -1], ["123456789", "-1"]),
        ([1.5, None, np.nan], ["1.5", "", ""]),
        (pd.array([1, None], dtype="Int64"), ["1", ""]),
        (pd.array([True, None], dtype="boolean"), ["True", ""]),
        (["x", None, pd.NA, pd.NaT, np.nan, 0.5], ["x", "", "", "", "", "0.5"]),
        (["", "None", "nan", " a "], ["", "None", "nan", " a "]),
        (pd.Categorical(["u", None]), ["u", ""]),
        (pd.Categorical([0.1, 1 / 3]), ["0.1", "0.333333"]),
        (pd.to_datetime(["2024-05-01", None]), ["2024-05-01", ""]),
        (pd.date_range("2024-05-01", periods=2, freq="61s"), ["2024-05-01 00:00:00", "2024-05-01 00:01:01"]),
        ([datetime.date(2024, 5, 1), datetime.time(3, 4)], ["2024-05-01", "03:04:00"]),
        (pd.to_timedelta(["36h", None]), ["1 days 12:00:00", ""]),
        (pd.period_range("2024", periods=2, freq="M"), ["2024-01", "2024-02"]),
        ([Decimal("1.50"), Fraction(1, 3), 1 + 2j], ["1.50", "1/3", "(1+2j)"]),
        ([[1, [2, None]], {"a": "b"}, np.array([[1], [2]])], ["[1, [2, None]]", "{'a': 'b'}", "[[1]  [2]]"]),
        (["a|b", "`x|y`", "a\\|b"], ["a\\|b", "`x\\|y`", "a\\\\|b"]),
        (["a\nb", "a\r\nb", "a\u2028b", "```\ncode\n```"], ["a b", "a b", "a b", "``` code ```"]),
        (["|---|", "# no heading", "{{name}}"], ["\\|---\\|", "# no heading", "{{name}}"]),
        (pd.arrays.SparseArray([0.0, 1.0]), ["0", "1"]),
    ],
)
def test_cells_are_short_and_stay_in_their_line(values: Any, cells: list[str]) -> None:
    expected = "\n".join(["|v|", "|---|", *(f"|{cell}|" for cell in cells)])
    assert markdown(pd.DataFrame({"v": values})) == (expected, None)


def test_times_tell_their_zone() -> None:
    frame = pd.DataFrame({"t": pd.to_datetime(["2024-05-01T03:00", None]).tz_localize("UTC")})
    assert markdown(frame)[0] == "|t|\n|---|\n|2024-05-01 03:00:00+00:00|\n||"


FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})


@pytest.mark.parametrize(
    ("frame", "header", "first"),
    [
        (FRAME, "|a|b|", "|1|x|"),
        (FRAME[1:], "||a|b|", "|1|2|y|"),
        (FRAME.set_axis([0, 1]), "||a|b|", "|0|1|x|"),
        (FRAME.rename_axis("n"), "|n|a|b|", "|0|1|x|"),
        (FRAME.set_index("b"), "|b|a|", "|x|1|"),
        (FRAME.set_axis([0.1 + 0.2, np.nan]), "||a|b|", "|0.3|1|x|"),
        (FRAME.set_axis(pd.to_datetime(["2024-05-01", None])), "||a|b|", "|2024-05-01|1|x|"),
        (FRAME.set_axis(pd.CategoricalIndex(["p|q", None])), "||a|b|", "|p\\|q|1|x|"),
        (
            FRAME.set_axis(pd.MultiIndex.from_tuples([("u", None), ("v", 2)], names=["k", None])),
            "|k||a|b|",
            "|u||1|x|",
        ),
    ],
)
def test_an_index_is_shown_where_it_tells_something(frame: Any, header: str, first: str) -> None:
    lines = markdown(frame)[0].split("\n")
    assert (lines[0], lines[2]) == (header, first)


def test_columns_may_have_any_labels() -> None:
    frame = pd.DataFrame([[1, 2, 3, 4, 5]], columns=["a", "a", 0.1 + 0.2, None, pd.Timestamp("2024-05-01")])
    assert markdown(frame)[0] == "|a|a|0.3||2024-05-01 00:00:00|\n|---|---|---|---|---|\n|1|2|3|4|5|"
    frame = pd.DataFrame({"k": ["x", "x"], "v": [1, 2]}).groupby("k").agg({"v": ["mean", "sum"]})
    assert markdown(frame)[0] == "|k|v, mean|v, sum|\n|---|---|---|\n|x|1.5|3|"


def test_a_series_is_a_column() -> None:
    assert markdown(pd.Series([1, 2], name="n"))[0] == "|n|\n|---|\n|1|\n|2|"
    assert markdown(pd.Series([1]))[0] == "|value|\n|---|\n|1|"
    assert markdown(pd.Series([1], name=("a", 2)))[0] == "|a, 2|\n|---|\n|1|"
    counts = pd.Series(["x", "x", "y"], name="c").value_counts()
    assert markdown(counts)[0] == "|c|count|\n|---|---|\n|x|2|\n|y|1|"
    assert markdown(FRAME.iloc[0])[0] == "||0|\n|---|---|\n|a|1|\n|b|x|"


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (pd.DataFrame(), f"(0 rows {TIMES} 0 columns)"),
        (pd.DataFrame({"a": [], "b": []}), f"|a|b|\n|---|---|\n\n(0 rows {TIMES} 2 columns)"),
        (pd.Series([], name="s", dtype=float), f"|s|\n|---|\n\n(0 rows {TIMES} 1 column)"),
        (pd.DataFrame(index=range(3)), f"(3 rows {TIMES} 0 columns)"),
        (pd.DataFrame(index=["x"]), f"||\n|---|\n|x|\n\n(1 row {TIMES} 0 columns)"),
        (FRAME.set_index("b")[2:], f"|b|a|\n|---|---|\n\n(0 rows {TIMES} 1 column)"),
    ],
)
def test_an_empty_frame_says_that_it_is_empty(frame: Any, text: str) -> None:
    assert markdown(frame) == (text, None)


def test_what_is_cut_is_told_to_the_model_and_the_user() -> None:
    frame = pd.DataFrame(np.arange(12345 * 41).reshape(12345, 41))
    text, notice = markdown(frame)
    assert notice == "only the first 100 of 12,345 rows and 30 of 41 columns"
    assert text.endswith(f"|\n\n({notice})")
    cells = rendered(text)
    assert len(cells) == 1 + 100
    assert {len(row) for row in cells} == {30}
    assert cells[-1] == [str(value) for value in frame.iloc[99, :30]]
    assert size(frame) == f"100 of 12,345 rows {TIMES} 30 of 41 columns"
    assert markdown(frame.iloc[:, :30])[1] == "only the first 100 of 12,345 rows"
    assert markdown(frame.iloc[:100])[1] == "only the first 30 of 41 columns"


def test_a_frame_at_the_limits_is_whole() -> None:
    frame = pd.DataFrame(np.zeros((100, 30))).map(lambda _: "x" * 500)
    text, notice = markdown(frame)
    assert notice is None
    assert "…" not in text
    assert size(frame) == f"100 rows {TIMES} 30 columns"


def test_the_caller_says_how_many_rows_are_shown() -> None:
    rows = pd.Series(range(5))
    assert markdown(rows, max_rows=2) == (
        "|value|\n|---|\n|0|\n|1|\n\n(only the first 2 of 5 rows)",
        "only the first 2 of 5 rows",
    )
    assert markdown(rows, max_rows=0)[0] == "|value|\n|---|\n\n(only the first 0 of 5 rows)"
    assert markdown(rows, max_rows=5)[1] is None
    assert size(rows, max_rows=2) == f"2 of 5 rows {TIMES} 1 column"
    with pytest.raises(UsageProblem, match="max_rows is -2; give 0 or more"):
        markdown(rows, max_rows=-2)


def test_long_cells_are_cut_and_counted() -> None:
    frame = pd.DataFrame({"a": ["x" * 501, "|" * 600, "y" * 500]})
    text, notice = markdown(frame)
    assert notice == "2 cells cut to 500 characters"
    _, _, first, second, third, _, note = text.split("\n")
    assert first == "|" + "x" * 500 + "…|"
    assert second == "|" + "\\|" * 500 + "…|"
    assert third == "|" + "y" * 500 + "|"
    assert note == f"({notice})"
    assert markdown(frame, max_rows=1)[1] == "only the first 1 of 3 rows; 1 cell cut to 500 characters"


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_text_keeps_to_its_row(rows: list[tuple[str, str]]) -> None:
    text, notice = markdown(pd.DataFrame(rows, columns=["a", "b"]))
    assert notice is None
    lines = text.splitlines()
    assert lines[:2] == ["|a|b|", "|---|---|"]
    assert len(lines) == 2 + len(rows)
    for line, row in zip(lines[2:], rows, strict=True):
        flat = [" ".join(cell.splitlines()).replace("|", "\\|") for cell in row]
        assert line == f"|{flat[0]}|{flat[1]}|"


def test_a_renderer_reads_the_cells_back() -> None:
    frame = pd.DataFrame({"a|b": ["x|y", "`p` | q", "|", "last\nline"], "c": [0.1, None, 3, "|||"]})
    assert rendered(markdown(frame)[0]) == [
        ["a|b", "c"],
        ["x|y", "0.1"],
        ["p | q", ""],
        ["|", "3"],
        ["last line", "|||"],
    ]


def test_the_frame_is_not_changed() -> None:
    frame = pd.DataFrame({"a": [1.23456789, None], "t": pd.to_datetime(["2024-05-01", None])}, index=[3, 4])
    before = frame.copy(deep=True)
    markdown(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_only_frames_and_series_are_tables() -> None:
    class Subclass(pd.DataFrame):
        pass

    assert all(map(is_table, (FRAME, FRAME["a"], pd.DataFrame(), Subclass({"a": [1]}))))
    values = (FRAME.index, FRAME.to_numpy(), FRAME.groupby("a"), pd.DataFrame, [FRAME], "|a|", None)
    assert not any(map(is_table, values))


def test_pandas_is_not_imported() -> None:
    program = """
import sys
from nbllm.tables import is_table
assert not is_table([1])
assert not {"pandas", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
