"""`nbllm.export`: files that other people's readers read, and find in them what the log says."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from haralyzer import HarParser
from pyarrow import parquet

import nbllm
from nbllm import commands, exporting, har, schema, selection
from nbllm.exceptions import UsageProblem
from tests.rows import only_row, phases, request_rows
from tests.servers import RawServer

KEY = "sk-planted-0123456789abcdef"
FORMATS = ("jsonl", "ndjson", "csv", "parquet", "har")


@pytest.fixture
async def logged(server: RawServer) -> RawServer:
    """A server that has answered, streamed, refused and been left, in two sessions."""
    await nbllm.acompletion("m", "One", base_url=server.url("chat"), session_id="a", temperature=0.5, seed=7)
    async for _ in await nbllm.acompletion(
        "m", "Two", base_url=server.url("chat"), session_id="b", stream=True
    ):
        pass
    with pytest.raises(nbllm.InternalServerError):
        await nbllm.acompletion("m", "Three", base_url=server.url("status-500"), session_id="b")
    asking = asyncio.create_task(nbllm.acompletion("m", "Four", base_url=server.url("hang"), session_id="b"))
    await server.seen(lambda: len(server.requests) == 4)
    asking.cancel()
    await asyncio.wait([asking])
    return server


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def entries(path: Path) -> list[dict[str, Any]]:
    archive = json.loads(path.read_text())
    jsonschema.validate(archive, HAR)
    found: list[dict[str, Any]] = archive["log"]["entries"]
    return found


def words(path: Path) -> str:
    """All that stands in a file, as text."""
    return str(parquet.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()


# -- tables ------------------------------------------------------------------------------------------------


async def test_a_parquet_file_is_the_frame(logged: RawServer, tmp_path: Path) -> None:
    path = nbllm.export(tmp_path / "requests.parquet")
    expected = nbllm.requests()
    found = pd.read_parquet(path)
    assert len(found) == 4
    assert list(found.columns) == [*list(schema.REQUESTS)[1:], "notebook"]
    for name, dtype in expected.dtypes.items():
        if isinstance(dtype, pd.DatetimeTZDtype):
            assert str(found[name].dtype) == "datetime64[us, UTC]"
        typed = found[name].astype(dtype if dtype != "category" else "string")
        there = expected[name].astype(typed.dtype)
        pd.testing.assert_series_equal(typed, there, check_dtype=False)


async def test_a_jsonl_file_has_a_row_a_line(logged: RawServer, tmp_path: Path) -> None:
    rows = json_rows(nbllm.export(tmp_path / "requests.jsonl"))
    for row, expected in zip(rows, request_rows(), strict=True):
        assert {name: row[name] for name in TYPED} == {name: getattr(expected, name) for name in TYPED}
        for name in ("started_at", "ended_at"):
            assert pd.Timestamp(row[name]).timestamp() == pytest.approx(getattr(expected, name), abs=1e-6)
            assert row[name].endswith("+00:00")
    assert rows[0]["params"] == {"temperature": 0.5, "seed": 7}
    assert rows[0]["connection_reused"] is False
    assert (
        nbllm.export(tmp_path / "requests.ndjson").read_bytes() == (tmp_path / "requests.jsonl").read_bytes()
    )


TYPED = (
    "request_id",
    "session_id",
    "status",
    "duration_ms",
    "input_tokens",
    "http_status",
    "stream",
    "attempt",
)


async def test_a_csv_file_is_read_by_pandas(logged: RawServer, tmp_path: Path) -> None:
    path = nbllm.export(tmp_path / "requests.csv")
    expected = nbllm.requests()
    found = pd.read_csv(path, parse_dates=["started_at", "ended_at"])
    assert list(found.columns) == [*list(schema.REQUESTS)[1:], "notebook"]
    assert found["request_id"].tolist() == expected["request_id"].tolist()
    assert found["duration_ms"].tolist() == pytest.approx(expected["duration_ms"].tolist())
    assert found["started_at"].tolist() == expected["started_at"].tolist()
    assert found["connection_reused"].tolist() == expected["connection_reused"].tolist()


async def test_filters_choose_the_requests(logged: RawServer, tmp_path: Path) -> None:
    for kind in FORMATS:
        path = nbllm.export(tmp_path / f"some.{kind}", session="a")
        assert "status-500" not in words(path)
        assert "/chat/v1/chat/completions" in words(path)
    assert [row["status"] for row in json_rows(nbllm.export(tmp_path / "e.jsonl", errors=True))] == ["error"]
    with pytest.raises(UsageProblem, match="kernel must be"):
        nbllm.export(tmp_path / "none.csv", kernel="mine")
    assert not (tmp_path / "none.csv").exists()


async def test_contents_are_written_where_they_are_asked_for(logged: RawServer, tmp_path: Path) -> None:
    sent = [request.json for request in logged.requests]
    for kind in FORMATS:
        assert "Two" not in words(nbllm.export(tmp_path / f"without.{kind}"))
    rows = json_rows(nbllm.export(tmp_path / "with.jsonl", content=True))
    assert [row["request"] for row in rows] == sent
    assert rows[1]["response"]["choices"][0]["message"]["content"] == "Hello from the raw server"
    for found in (
        csv_rows(nbllm.export(tmp_path / "with.csv", content=True)),
        parquet.read_table(nbllm.export(tmp_path / "with.parquet", content=True)).to_pylist(),
    ):
        assert [json.loads(row["request"]) for row in found] == sent
        assert json.loads(found[1]["response"]) == rows[1]["response"]
    found = entries(nbllm.export(tmp_path / "with.har", content=True))
    assert [json.loads(entry["request"]["postData"]["text"]) for entry in found] == sent
    content = found[1]["response"]["content"]
    assert json.loads(content["text"]) == rows[1]["response"]
    assert (content["size"], content["mimeType"]) == (len(content["text"]), "application/json")


async def test_a_spreadsheet_finds_no_formula(server: RawServer, tmp_path: Path) -> None:
    evil = ['=HYPERLINK("http://x","y")', "+1", "-1+1", "@SUM(A1)", "\uff1d1", 'quote " and\nline']
    for model in evil:
        await nbllm.acompletion(model, "Hi", base_url=server.url("echo"))
    texts = [row["request_model"] for row in csv_rows(nbllm.export(tmp_path / "r.csv"))]
    assert texts == [*(f"'{model}" for model in evil[:-1]), evil[-1]]
    exact = [row["request_model"] for row in json_rows(nbllm.export(tmp_path / "r.jsonl"))]
    assert exact == evil


@pytest.mark.parametrize("kind", FORMATS)
async def test_keys_stand_in_no_file(server: RawServer, tmp_path: Path, kind: str) -> None:
    own = "a-key-of-no-known-form-77"
    with pytest.raises(nbllm.APIError):
        await nbllm.acompletion(
            f"m-{own}",
            f"My key is {KEY}, or {own}",
            base_url=server.url("status-401"),
            api_key=own,
            user=KEY,
            extra_headers={"X-Key": own},
        )
    path = nbllm.export(tmp_path / f"r.{kind}", content=True)
    text = words(path)
    assert "My key is [key], or [key]" in text
    assert KEY not in text
    assert own not in text


@pytest.mark.parametrize("kind", FORMATS)
async def test_an_export_of_nothing_writes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"r.{kind}"
    with pytest.raises(UsageProblem, match="no request matches: nothing was written"):
        nbllm.export(path)
    assert not path.exists()
    path.write_text("old")
    with pytest.raises(UsageProblem, match="no request matches"):
        nbllm.export(path, content=True, kernel="all")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir() if one.name != "log"] == [path.name]


async def test_a_request_in_flight_is_a_row_without_a_status(server: RawServer, tmp_path: Path) -> None:
    asking = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("gated")))
    await server.seen(lambda: bool(server.requests))
    (row,) = json_rows(nbllm.export(tmp_path / "r.jsonl"))
    assert (row["status"], row["ended_at"]) == (None, None)
    for kind in ("csv", "parquet"):
        nbllm.export(tmp_path / f"r.{kind}")
    assert entries(nbllm.export(tmp_path / "r.har")) == []
    server.open_gate()
    await asking
    assert len(entries(nbllm.export(tmp_path / "r.har"))) == 1


# -- HAR ---------------------------------------------------------------------------------------------------

TEXT, SIZE, LIST = {"type": "string"}, {"type": "integer", "minimum": -1}, {"type": "array"}
PHASE, DONE = {"type": "number", "minimum": -1}, {"type": "number", "minimum": 0}
TIME = TEXT | {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def fields(*groups: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields; what else it has must begin with an underscore."""
    required = {name: schema for group in groups for name, schema in group.items()}
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "patternProperties": {"^_": True},
        "additionalProperties": False,
    }


def each(names: str, schema: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(names.split(), schema)


PAIRS = LIST | {"items": fields(each("name value", TEXT))}
SENT = {"httpVersion": TEXT, "cookies": LIST, "headers": PAIRS} | each("headersSize bodySize", SIZE)
REQUEST = fields(
    SENT,
    {"method": TEXT, "url": TEXT | {"pattern": "^https?://"}, "queryString": PAIRS},
    optional={"postData": fields(each("mimeType text", TEXT))},
)
CONTENT = fields({"size": SIZE, "mimeType": TEXT}, optional={"text": TEXT})
RESPONSE = fields(
    SENT, {"status": {"type": "integer"}, "content": CONTENT}, each("statusText redirectURL", TEXT)
)
ENTRY = fields(
    {"startedDateTime": TIME, "time": DONE, "request": REQUEST, "response": RESPONSE, "cache": fields()},
    {"timings": fields(each("send wait receive", DONE), optional=each("blocked dns connect ssl", PHASE))},
    optional=each("pageref serverIPAddress connection", TEXT),
)
PAGE = fields(
    {"startedDateTime": TIME, "pageTimings": fields(optional=each("onContentLoad onLoad", PHASE))},
    each("id title", TEXT),
)
HAR = fields(
    {
        "log": fields(
            {"version": {"const": "1.2"}, "creator": fields(each("name version", TEXT))},
            {"entries": LIST | {"items": ENTRY}},
            optional={"pages": LIST | {"items": PAGE}},
        )
    }
)
"""HAR 1.2 as a schema (github.com/ahmadnassri/har-spec, versions/1.2.md)."""


async def test_the_time_of_an_entry_is_the_sum_of_its_phases(logged: RawServer, tmp_path: Path) -> None:
    found = entries(nbllm.export(tmp_path / "r.har"))
    for entry, row in zip(found, request_rows(), strict=True):
        timings = entry["timings"]
        parts = [timings[name] for name in har.PHASES if timings[name] != -1]
        assert entry["time"] == pytest.approx(sum(parts))
        if row.status == "cancelled":  # while it waited
            assert entry["time"] == pytest.approx(row.duration_ms)
        else:
            assert entry["time"] == pytest.approx(phases(row))
        assert timings["ssl"] == -1
        assert (timings["connect"] == -1) is row.connection_reused


async def test_an_entry_says_what_the_server_saw(logged: RawServer, tmp_path: Path) -> None:
    found = entries(nbllm.export(tmp_path / "r.har"))
    numbers: dict[str, int] = {}
    for entry, request in zip(found, logged.requests, strict=True):
        assert entry["request"]["method"] == request.method
        assert entry["request"]["url"] == f"http://127.0.0.1:{logged.port}{request.path}"
        assert entry["serverIPAddress"] == "127.0.0.1"
        assert entry["_bytes_sent"] == request.bytes_in
        assert entry["response"]["_transferSize"] == request.bytes_out
        assert numbers.setdefault(entry["connection"], request.connection.number) == request.connection.number
    assert [entry["response"]["status"] for entry in found] == [200, 200, 500, 0]
    assert [entry["response"]["statusText"] for entry in found] == ["OK", "OK", "Internal Server Error", ""]
    assert found[0]["_request_model"] == "m"
    assert (found[0]["_input_tokens"], found[0]["_output_tokens"]) == (11, 5)
    headers = {pair["name"]: pair["value"] for pair in found[0]["response"]["headers"]}
    assert headers["x-request-id"] == "req_raw"
    assert "authorization" not in (tmp_path / "r.har").read_text().lower()


async def test_another_reader_finds_sessions_as_pages(logged: RawServer, tmp_path: Path) -> None:
    parser = HarParser.from_file(str(nbllm.export(tmp_path / "r.har", content=True)))
    assert parser.version == "1.2"
    assert parser.creator["name"] == "nbllm"
    assert [page.title for page in parser.pages] == ["a", "b"]
    first, second = parser.pages
    assert [entry.response.status for entry in first.entries] == [200]
    assert [entry.request.method for entry in second.entries] == ["POST"] * 3
    assert first.entries[0].time == pytest.approx(phases(request_rows()[0]))
    assert json.loads(first.entries[0].response.text)["id"] == "chatcmpl-raw"


async def test_headers_are_those_that_were_kept(server: RawServer) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    (row,) = selection.request_rows()
    kept = {"Content-Type": "text/event-stream", "x-ratelimit-limit-requests": "100"}
    for text, expected in (
        (json.dumps(kept), [(name.lower(), value) for name, value in kept.items()]),
        *((text, []) for text in (None, "", "{", "[1]", "null", '"x"')),
    ):
        archive = har.archive([{**row, "response_headers": text}], {}, "1")
        jsonschema.validate(archive, HAR)
        response = archive["log"]["entries"][0]["response"]
        assert [(pair["name"], pair["value"]) for pair in response["headers"]] == expected
        assert response["content"]["mimeType"] == ("text/event-stream" if expected else "x-unknown")


@pytest.mark.browser
async def test_a_browser_plays_the_archive(logged: RawServer, tmp_path: Path) -> None:
    """Chromium, told by Playwright, takes the answers of the file for those of the network."""
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("the browser tests need the system's Chromium (Debian: apt-get install chromium)")
    from playwright.async_api import async_playwright

    path = nbllm.export(tmp_path / "r.har", content=True)
    count, address = len(logged.requests), "http://played.test/"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.route_from_har(path, not_found="abort")
        await page.route(address, lambda route: route.fulfill(body="", content_type="text/html"))
        await page.goto(address)
        for entry in entries(path)[:3]:
            text = await page.evaluate(
                "async ([url, body]) => (await fetch(url, {method: 'POST', body})).text()",
                [entry["request"]["url"], entry["request"]["postData"]["text"]],
            )
            assert text == entry["response"]["content"]["text"]
        await browser.close()
    assert len(logged.requests) == count


async def test_tls_is_seen_in_the_address(tls_server: RawServer, tmp_path: Path) -> None:
    await nbllm.acompletion("m", "Hi", base_url=tls_server.url("chat", host="localhost"))
    (entry,) = entries(nbllm.export(tmp_path / "r.har"))
    assert entry["request"]["url"] == f"https://localhost:{tls_server.port}/chat/v1/chat/completions"
    assert 0 < entry["timings"]["ssl"] <= entry["timings"]["connect"]


async def test_a_request_without_a_connection_was_blocked_all_the_time(tmp_path: Path) -> None:
    with pytest.raises(nbllm.APIConnectionError):
        await nbllm.acompletion("m", "Hi", base_url="http://[::1]:9/v1")
    (entry,) = entries(nbllm.export(tmp_path / "r.har"))
    row = only_row()
    assert entry["request"]["url"] == "http://[::1]:9/v1/chat/completions"
    assert entry["time"] == pytest.approx(row.duration_ms)
    assert entry["response"]["status"] == 0
    assert entry["response"]["_error"] == row.error_message
    assert "connection" not in entry


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
async def test_the_file_is_the_owners_alone_and_takes_the_place_of_the_old(
    server: RawServer, tmp_path: Path, kind: str
) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    old, link = tmp_path / f"old.{kind}", tmp_path / f"link.{kind}"
    old.write_text("old")
    old.chmod(0o644)
    link.symlink_to(old)
    assert nbllm.export(str(link)) == link
    assert link.is_symlink()
    assert "old" not in words(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == sorted([link, old, *tmp_path.glob("log")])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in its file system")
async def test_a_file_takes_the_place_of_no_pipe(server: RawServer, tmp_path: Path) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    pipe, link = tmp_path / "pipe.csv", tmp_path / "link.csv"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(UsageProblem, match=f"{path} can't be written: it is no regular file"):
            nbllm.export(path)
    with pytest.raises(UsageProblem, match="can't be written: it is no regular file"):
        commands.run(f"export {link.rename(tmp_path / 'link.json')}")
    assert pipe.is_fifo()
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "log") == ["link.json", "pipe.csv"]


def test_what_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("old")

    def write(file: Any) -> None:
        file.write(b"half")
        raise MemoryError

    with pytest.raises(MemoryError):
        exporting.write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


async def test_what_cannot_be_written_is_told(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    for name in ("r.txt", "r", ".har", "r.csv.gz"):
        with pytest.raises(UsageProblem, match=r"export writes .jsonl, .ndjson, .csv, .parquet, .har; got "):
            nbllm.export(tmp_path / name)
    with pytest.raises(UsageProblem, match=r"nowhere/r.csv can't be written: No such file or directory"):
        nbllm.export(tmp_path / "nowhere" / "r.csv")
    with pytest.raises(UsageProblem, match="can't be written"):
        nbllm.export(f"{tmp_path}/\0.csv")
    (tmp_path / "folder.har").mkdir()
    with pytest.raises(UsageProblem, match="can't be written: Is a directory"):
        nbllm.export(tmp_path / "folder.har")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageProblem, match=r"pip install 'nbllm\[parquet\]'"):
        nbllm.export(tmp_path / "r.parquet")
    assert [path.name for path in tmp_path.iterdir() if path.name != "log"] == ["folder.har"]


async def test_the_command_writes_the_same(
    logged: RawServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in FORMATS:
        commands.run(f"export {tmp_path}/by-command.{kind}")
        assert capsys.readouterr().out == f"wrote {tmp_path}/by-command.{kind}\n"
        same = words(nbllm.export(tmp_path / f"by-function.{kind}"))
        assert words(tmp_path / f"by-command.{kind}") == same
    await nbllm.acompletion("m", "Hi", base_url=logged.url("chat"))  # in the session in force
    commands.run(f"export {tmp_path}/talk.json")
    assert stat.S_IMODE(os.stat(tmp_path / "talk.json").st_mode) == 0o600
