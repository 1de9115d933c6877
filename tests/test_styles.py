"""Frames as tables for people: what they show, in which units, and that what came from outside stays text."""

from __future__ import annotations

import datetime
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

import nbllm
from nbllm import frame_texts, frames, masking, units
from tests.lab import IDLE
from tests.servers import RawServer

DASH = units.UNKNOWN


class Reader(HTMLParser):
    """The rows of a table, and every tag and attribute; what is open must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def table(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Heading to cells, as the HTML has them."""
    head, *rows = Reader(nbllm.styled(frame).html).rows
    assert len(set(head)) == len(head)
    return {name: [row[at] for row in rows] for at, name in enumerate(head)}


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


async def a_bit_of_everything(server: RawServer) -> None:
    nbllm.set_price("m", input=100, output=200)
    nbllm.tagging.enter_cell(nbllm.tagging.Cell("cell-a", 3, "run-1", "frontend"))
    with nbllm.session("first"):
        await ask(server)
        async for _ in await ask(server, stream=True):
            pass
        with pytest.raises(nbllm.RateLimitError):
            await ask(server, "status-429")


def made(**columns: Any) -> pd.DataFrame:
    """A frame of the log by hand: each column has the kind that the log has for it."""
    kinds = {**frames.REQUESTS, **frames.CONNECTIONS, **frames.SESSIONS}
    rows = list(zip(*columns.values(), strict=True))
    return frames.typed_frame({name: kinds[name] for name in columns}, rows)


# -- which columns, and in which units -----------------------------------------------------------------


async def test_requests_show_what_one_looks_for_in_human_units(server: RawServer) -> None:
    await a_bit_of_everything(server)
    shown, frame = table(nbllm.requests()), nbllm.requests()
    assert list(shown) == [
        "session", "cell", "model", "status", "time", "first token", "tokens in", "tokens out", "cost",
        "error", "message", "reuse", "why new", "started",
    ]  # fmt: skip
    assert shown["cell"] == ["[3]"] * 3
    assert shown["status"] == ["ok", "ok", "\N{BALLOT X} error"]
    assert shown["tokens in"] == ["11", "11", DASH]
    assert shown["cost"] == [units.money(frame.cost_usd[0]), units.money(frame.cost_usd[1]), DASH]
    assert shown["cost"][0] == "$0.0021"
    assert shown["time"] == [units.seconds(value) for value in frame.duration_ms]
    assert shown["first token"][0] == DASH
    assert shown["error"] == ["", "", "RateLimitError"]
    assert shown["reuse"] == ["new", "reused", "reused"]
    assert shown["why new"] == ["first", "", ""]


async def test_sessions_and_connections_show_what_the_server_counted(server: RawServer) -> None:
    await a_bit_of_everything(server)
    sessions = table(nbllm.sessions())
    assert (sessions["session"], sessions["cells"]) == (["first"], ["[3]"])
    assert (sessions["requests"], sessions["errors"]) == ([str(len(server.requests))], ["1"])
    assert sessions["reuse"] == ["67 %"]
    assert not {"cancelled", "incomplete", "running", "unpriced", "tags"} & set(sessions)
    connections = table(nbllm.connections())
    (whole,) = nbllm.connections().connection_id
    assert [f"{nbllm.kernel_id()}-{one}" for one in connections["connection"]] == [whole]
    assert connections["requests"] == ["3"]
    assert connections["received"] == [units.size(server.connections[0].bytes_out)]
    assert connections["port"] == [str(server.port)]
    assert "kernel" not in connections


async def test_columns_that_one_chose_are_shown_as_chosen_ids_too(server: RawServer) -> None:
    await a_bit_of_everything(server)
    frame = nbllm.requests()
    shown = table(frame[["status", "request_id", "attempt"]].iloc[::-1])
    assert list(shown) == ["status", "request", "attempt"]
    whole = list(frame.request_id)[::-1]
    assert [f"{nbllm.kernel_id()}-{one}" for one in shown["request"]] == whole
    assert shown["attempt"] == ["1"] * 3
    assert list(table(frame.drop(columns=["params", "owner"]))) == list(table(frame))
    assert list(table(frame[["status", "dns_ms", "ssl_ms"]])) == ["status"]


async def test_what_pandas_makes_of_a_frame_keeps_its_units_where_it_has_them(server: RawServer) -> None:
    await a_bit_of_everything(server)
    frame = nbllm.requests()
    by_status = frame.groupby("status", observed=True)
    summed = table(by_status[["duration_ms", "input_tokens"]].sum())
    assert list(summed) == ["status", "time", "tokens in"]
    assert summed["status"] == ["\N{BALLOT X} error", "ok"]
    assert summed["tokens in"] == ["0", "22"]
    assert summed["time"][1] == units.seconds(frame.duration_ms[:2].sum())
    counted = table(by_status[["duration_ms", "started_at"]].count())
    assert (counted["time"], counted["started"]) == (["1", "2"], ["1", "2"])
    several = table(by_status.agg({"duration_ms": ["max", "count"], "cost_usd": "sum"}))
    assert list(several) == ["status", "time max", "time count", "cost sum"]
    assert several["time count"] == ["1", "2"]
    assert several["time max"][0] == units.seconds(frame.duration_ms[2])
    both = table(frame.groupby(["session_id", "status"], observed=True)[["cost_usd"]].sum(min_count=1))
    assert (both["session"], both["cost"]) == (["first", "first"], [DASH, "$0.0042"])
    indexed = table(frame.set_index("session_id")[["attempt"]])
    assert indexed["session"] == ["first"] * 3
    failed = frame[frame.status == "error"].sort_values("duration_ms")
    assert table(failed)["status"] == ["\N{BALLOT X} error"]


def test_units() -> None:
    shown = table(
        made(
            duration_ms=[85.2, 1830.0, 123_456.0, None],
            cost_usd=[0.0, 0.00114, 12.5, None],
            bytes_received=[950, 12_345, 3_400_000, None],
            reuse_ratio=[0.0, 0.875, 1.0, None],
            input_tokens=[1, 1_234_567, 0, None],
            stream=[True, False, None, None],
            execution_count=[3, 12, 1_000_000, None],
            port=[443, 8080, 65535, None],
            status=["ok", "cancelled", "incomplete", None],
        )
    )
    assert shown == {
        "time": ["85 ms", "1.8 s", "2 min 3 s", DASH],
        "cost": ["free", "$0.0011", "$12.50", DASH],
        "received": ["950 B", "12 kB", "3.4 MB", DASH],
        "reuse": ["0 %", "88 %", "100 %", DASH],
        "tokens in": ["1", "1,234,567", "0", DASH],
        "stream": ["yes", "no", DASH, DASH],
        "cell": ["[3]", "[12]", "[1000000]", DASH],
        "port": ["443", "8080", "65535", DASH],
        "status": ["ok", "cancelled", "incomplete", "running"],
    }


def test_infinite_negative_and_enormous_numbers_are_shown_too() -> None:
    frame = made(
        duration_ms=[np.inf, -1500.0, 1e300, 0.0],
        cost_usd=[np.inf, -0.5, 1e15, 1e-9],
        bytes_sent=[1 << 62, -5, 0, None],
    )
    shown = table(frame)
    assert shown["time"][:2] == [DASH, "-1.5 s"]
    assert shown["cost"] == [DASH, "-$0.50", "$1,000,000,000,000,000.00", "$0.0000000010"]
    assert shown["sent"][1:] == ["-5 B", "0 B", DASH]


def test_times_are_local_and_have_a_date_unless_they_are_of_today() -> None:
    now = datetime.datetime.now().astimezone().replace(hour=12, minute=3, second=22, microsecond=5)
    earlier = now - datetime.timedelta(days=40)
    assert table(made(started_at=[now.timestamp(), None]))["started"] == ["12:03:22", DASH]
    assert table(made(started_at=[earlier.timestamp(), now.timestamp()]))["started"] == [
        f"{earlier.astimezone():%Y-%m-%d %H:%M:%S}",
        f"{now:%Y-%m-%d} 12:03:22",
    ]
    assert table(made(started_at=[earlier.timestamp()]))["started"][0].startswith(f"{earlier:%Y-%m-%d} ")
    utc = made(started_at=[0.0])
    assert table(utc.assign(started_at=utc.started_at.dt.tz_convert("Asia/Tokyo")))["started"] == [
        "1970-01-01 09:00:00"  # a zone of the user's own stays
    ]
    assert table(utc.assign(started_at=utc.started_at.dt.tz_localize(None)))["started"] == [
        "1970-01-01 00:00:00"
    ]


def test_a_demo_model_is_shown_as_one_types_it_and_a_foreign_request_as_such() -> None:
    frame = made(
        request_model=["small", "gpt-4o", None, None],
        provider=["demo", "openai", None, None],
        operation=["chat", "chat", "models", None],
        server_address=["h", "h", "h", "example.org"],
    )
    assert table(frame)["model"] == ["demo/small", "gpt-4o", "models", "foreign example.org"]
    assert table(frame[["request_model"]])["model"] == ["small", "gpt-4o", DASH, DASH]


def test_ids_are_short_where_they_are_of_one_kernel() -> None:
    assert table(made(connection_id=["0badcafe-n1", "0badcafe-n12"]))["connection"] == ["n1", "n12"]
    both = ["0badcafe-n1", "1badcafe-n1"]
    assert table(made(connection_id=both))["connection"] == both
    assert table(made(connection_id=["0badcafe-n1", None]))["connection"] == ["0badcafe-n1", ""]


def test_columns_of_ones_own_are_shown_as_in_pandas() -> None:
    frame = made(duration_ms=[1.0, 2.0]).assign(
        mine=[1.5, 22.125], when=pd.to_datetime(["2024-01-01", None]), things=[[1, 2], {"a": None}]
    )
    frame[0] = [True, None]
    frame["cost_usd"] = ["dear", "cheap"]  # what bears a name of the log's, and is something else
    frame["request_model"] = [[1], [2]]
    assert table(frame) == {
        "time": ["1 ms", "2 ms"],
        "mine": ["1.500", "22.125"],
        "when": ["2024-01-01", "NaT"],
        "things": ["[1, 2]", "{'a': None}"],
        "0": ["True", "None"],
        "cost": ["dear", "cheap"],
        "model": ["[1]", "[2]"],
    }


def test_two_columns_of_one_name_are_both_shown() -> None:
    frame = pd.concat([made(status=["ok", "error"]), made(status=["error", "ok"])], axis=1)
    head, *rows = Reader(nbllm.styled(frame).html).rows
    assert head == ["status", "status"]
    assert rows == [["ok", "\N{BALLOT X} error"], ["\N{BALLOT X} error", "ok"]]


# -- limits --------------------------------------------------------------------------------------------


def test_of_many_rows_the_first_and_the_last_are_shown() -> None:
    frame = made(execution_count=range(1000), status=["ok"] * 1000)
    _, *rows = Reader(nbllm.styled(frame).html).rows
    assert len(rows) == 201
    assert [rows[0][0], rows[99][0], rows[101][0], rows[-1][0]] == ["[0]", "[99]", "[900]", "[999]"]
    assert "800 rows are left out" in rows[100][0]
    lines = str(nbllm.styled(frame)).splitlines()
    assert len(lines) == 202
    assert "800 rows are left out" in lines[101]
    assert len(table(frame.iloc[:200])["cell"]) == 200


@pytest.mark.parametrize("frame", [pd.DataFrame(), pd.DataFrame({"a": []}), pd.DataFrame(index=range(3))])
def test_where_there_is_nothing_it_says_so(frame: pd.DataFrame) -> None:
    shown = nbllm.styled(frame)
    assert str(shown) == repr(shown) == "no rows"
    assert shown.html == "<p>no rows</p>"
    assert str(nbllm.styled(nbllm.requests())) == "no rows"


@pytest.mark.parametrize("value", [None, [], {"a": 1}, "x", np.zeros(3)])
def test_only_a_frame_is_taken(value: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match=f"takes a DataFrame.*got {type(value).__name__}"):
        nbllm.styled(value)
    with pytest.raises(nbllm.UsageProblem, match=r"got Series: \.to_frame\(\)"):
        nbllm.styled(nbllm.requests().duration_ms)  # type: ignore[arg-type]


def test_the_frame_stays_as_it_is() -> None:
    frame = made(status=["ok", None], duration_ms=[1.0, None])
    before = frame.copy(deep=True)
    shown = nbllm.styled(frame)
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}
    assert shown.frame is frame
    pd.testing.assert_frame_equal(frame, before)


# -- how it looks --------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b onmouseover="x">',
    "javascript:alert(1)",
    "$x$ \\(y\\) $$z$$",
    "\x1b[31mred\x07\x00",
    "\u202eevil\u2066",
    "a\nb\r\nc\td",
    "half \ud800",
    "x" * 100_000,
    "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 30,
]


@pytest.mark.parametrize("value", HOSTILE)
def test_what_came_from_outside_is_shown_as_text(value: str) -> None:
    frame = pd.DataFrame([[value] * 3], dtype=object)
    frame.columns = pd.Index(["error_message", value, "session_id"], dtype=object)
    shown = nbllm.styled(frame)
    read = Reader(shown.html)
    assert read.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert read.attributes <= {"style", "colspan"}
    assert len(read.rows) == 2
    assert all(len(cell) <= frame_texts.TEXT_CHARACTERS for row in read.rows for cell in row)
    for word in re.findall("[ -~]+", value[:40]):  # what is printable is all there
        assert " ".join(word.split()) in read.rows[1][0]
    for text in (shown.html, str(shown)):
        text.encode()
        assert not any(character < " " and character != "\n" for character in text)
        assert not {"\u202e", "\u2066", "\x7f"} & set(text)
    assert len(str(shown).splitlines()) <= 3 * 3


def test_math_stays_apart() -> None:
    html = nbllm.styled(made(error_message=["$x$ \\(y\\)"], cost_usd=[1.0])).html
    assert "$x" not in html
    assert "\\(" not in html
    assert "$1" not in html


def test_keys_are_masked() -> None:
    masking.keep_secret("my secret key 123")
    frame = made(error_message=["with my secret key 123 and sk-abcdefghijklmnop"]).assign(
        own=["my secret key 123"], **{"my secret key 123": [1]}
    )
    shown = nbllm.styled(frame)
    for text in (shown.html, str(shown), repr(shown)):
        assert "secret" not in text
        assert "sk-a" not in text


def test_numbers_stand_to_the_right_and_errors_are_marked() -> None:
    frame = made(status=["ok", "error"], duration_ms=[500.0, 1000.0], cost_usd=[None, 0.5])
    read = Reader(nbllm.styled(frame).html)
    assert sum("text-align:right" in style for style in read.styles) == 2 * 3
    assert sum("229,57,53" in style for style in read.styles) == 1
    bars = [style for style in read.styles if "linear-gradient" in style]
    assert [style.split("50%/")[1].split()[0] for style in bars] == ["50%", "100%", "100%"]
    assert not any("color:" in style.replace("background-color:", "") for style in read.styles)


def test_text_is_aligned_also_where_characters_are_wide() -> None:
    wide = "\N{CJK UNIFIED IDEOGRAPH-6F22}\N{CJK UNIFIED IDEOGRAPH-5B57}"
    frame = made(session_id=[wide, "ab"], requests=[5, 1234])
    assert str(nbllm.styled(frame)).splitlines() == [
        "session  requests",
        f"{wide}            5",
        "ab          1,234",
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
async def test_text_fits_the_terminal(columns: int, server: RawServer, monkeypatch: Any) -> None:
    await a_bit_of_everything(server)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = str(nbllm.styled(nbllm.requests()))
    assert max(map(len, text.splitlines())) <= columns
    assert "$0.0021" in text
    assert "RateLimitError" in text
    blocks = text.split("\n\n")
    assert [block.split()[0] for block in blocks] == ["session"] * len(blocks)
    assert (len(blocks) > 1) is (columns < 200)


def test_no_column_stands_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    frame = made(session_id=["one", "two"], requests=[5, 12_345], errors=[0, 1], input_tokens=[400, 10_000])
    assert str(nbllm.styled(frame)).splitlines() == [
        "session  requests",
        "one             5",
        "two        12,345",
        "",
        "session  errors",
        "one           0",
        "two           1",
        "",
        "session  tokens in",
        "one            400",
        "two         10,000",
    ]
    monkeypatch.setenv("COLUMNS", "12")  # too narrow for two
    assert str(nbllm.styled(frame)).splitlines()[4:7] == ["requests", "       5", "  12,345"]


@pytest.mark.browser
def test_an_untrusted_notebook_shows_it_whole_and_the_bars_too(page: Any, lab: str, lab_folder: Path) -> None:
    names = ["<script>alert(1)</script>", "$x$ \\(y\\) and $z$"]
    frame = made(
        request_model=names, status=["ok", "error"], duration_ms=[900.0, 1800.0], cost_usd=[0.001, 0]
    )
    data = nbllm.styled(frame)._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data)])
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, lab_folder / "styled.ipynb")
    page.goto(f"{lab}/doc/tree/styled.ipynb?token=t")
    page.wait_for_selector(IDLE)
    rows = page.locator(".jp-OutputArea-output tr")
    assert [rows.nth(at).locator("th, td").all_inner_texts() for at in range(rows.count())] == [
        ["model", "status", "time", "cost"],
        [names[0], "ok", "0.9 s", "$0.0010"],
        [names[1], "\N{BALLOT X} error", "1.8 s", "free"],
    ]
    assert page.locator(".jp-OutputArea-output [style*=linear-gradient]").count() == 3
    assert page.locator(".jp-OutputArea-output mjx-container").count() == 0
