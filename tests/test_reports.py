"""`nbllm.report()`: the numbers of the log and of the server, wherever and however a notebook is shown."""

from __future__ import annotations

import asyncio
import html.parser
import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from wcwidth import wcswidth

import nbllm
from nbllm import masking, overview, report_html, report_text, tagging, units
from nbllm.exceptions import UsageProblem
from nbllm.overview import COLUMNS, CONNECTIONS, Overview
from nbllm.reports import Report
from nbllm.time_axis import TimeAxis, segments
from tests.rows import until
from tests.servers import RawServer

NOW = 1_800_000_000.0

# Those that JupyterLab lets pass in a notebook that is not trusted (@jupyterlab/apputils, src/sanitizer.ts).
TAGS = {
    *("div", "span", "b", "br", "bdi", "small", "details", "summary", "pre"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"style", "title", "align", "open"}
PROPERTIES = {
    *("align", "background-color", "border-bottom", "border-collapse", "border-left", "color", "cursor"),
    *("display", "font-size", "font-weight", "height", "line-height", "margin", "max-width", "min-width"),
    *("opacity", "overflow", "overflow-wrap", "overflow-x", "padding", "table-layout", "text-align"),
    *("text-overflow", "vertical-align", "white-space", "width"),
}
DISPENSABLE = {"font-variant-numeric"}

EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>&lt;b&gt;\"'$x^2$\\(y\\)"


class Reader(html.parser.HTMLParser):
    """Refuses what is not balanced or not allowed; keeps the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.maths = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        for name, value in attrs:
            assert name in ATTRIBUTES
            self.attributes.append((name, value or ""))
        if tag == "br":
            self.text.append("\n")
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "tr", "div", "summary"):
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        # What stands between two dollars, or after a backslash, would be typeset as math.
        assert data in ("$", "\\") or not set(data) & {"$", "\\"}
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(markup: str) -> str:
    """The text of a fragment that is as it should be; what no styles hide."""
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert reader.open == []
    for name, value in reader.attributes:
        if name == "style":
            properties = {piece.partition(":")[0] for piece in value.split(";")}
            assert properties <= PROPERTIES | DISPENSABLE, value
            assert not re.search(r"url|expression|var\(|calc", value)
    return "".join(reader.text).replace("\N{NO-BREAK SPACE}", " ")


def row(number: int = 0, **values: Any) -> dict[str, Any]:
    """A request that went well, ended `number` seconds after `NOW`."""
    return {
        **dict.fromkeys(COLUMNS),
        "request_id": f"r{number}",
        "call_id": f"c{number}",
        "attempt": 1,
        "session_id": "review",
        "owner": "me",
        "kernel_id": "0badcafe",
        "execution_count": 3,
        "operation": "chat",
        "provider": "openai",
        "request_model": "gpt-4o",
        "server_address": "models.example",
        "server_port": 443,
        "started_at": NOW + number,
        "ended_at": NOW + number + 0.9,
        "duration_ms": 900.0,
        "ttft_ms": 300.0,
        "wait_ms": 200.0,
        "receive_ms": 700.0,
        "connection_id": "k1",
        "connection_reused": number > 0,
        "status": "ok",
        "input_tokens": 412,
        "output_tokens": 96,
        "cost_usd": 0.0011,
        "prompt": "What is a pool?",
        **values,
    }


def connection(**values: Any) -> dict[str, Any]:
    known = {"connection_id": "k1", "kernel_id": "0badcafe", "host": "models.example", "port": 443}
    return {**dict.fromkeys(CONNECTIONS), **known, "opened_at": NOW, **values}


def report_of(*rows: dict[str, Any], left_out: int = 0, **values: Any) -> Report:
    return Report(Overview(list(rows), [connection(**values)], left_out, NOW + 100), "this kernel")


async def ask(server: RawServer, behaviour: str = "chat", text: str = "Hi", **options: Any) -> Any:
    return await nbllm.acompletion("m", text, base_url=server.url(behaviour), **options)


# -- the numbers ---------------------------------------------------------------------------------------------


async def test_every_form_tells_the_numbers_of_the_log_and_of_the_server(
    log_path: Path, server: RawServer
) -> None:
    nbllm.set_price("m", input=1000.0, output=2000.0)
    tagging.enter_cell(tagging.Cell("cell-a", 7, "run-1", "frontend"))
    with nbllm.session("first"):
        await asyncio.gather(*(ask(server) for _ in range(3)))
        async for _ in await ask(server, text="Stream it", stream=True):
            pass
    with nbllm.session("second"):
        with pytest.raises(nbllm.RateLimitError):
            await ask(server, "status-429")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(server, "hang"), 0.1)
    report = nbllm.report()
    totals = overview.totals(report.overview.requests)
    assert totals.requests == len(server.requests) == 6
    assert totals.connections_opened == len(server.connections)
    told = {
        "requests": "6",
        "errors": "1",
        "cancelled": "1",
        "tokens": units.tokens(totals.input_tokens, totals.output_tokens),
        "cost": units.money(totals.cost_usd),
        "time p50": units.seconds(totals.duration_p50_ms),
        "p95": units.seconds(totals.duration_p95_ms),
        "first token p50": units.seconds(totals.ttft_p50_ms),
        "connections opened": str(len(server.connections)),
        "reused": units.percent(totals.reuse_ratio),
        "handshakes saved": str(totals.handshakes_saved),
    }
    page, text = read(report.html), str(report)
    for label, value in told.items():
        assert f"{label} {value}" in page
        assert f"{label} {value}" in re.sub(r"\n", " · ", text)
    for one in nbllm.sessions().to_dict("records"):
        line = next(line for line in page.splitlines() if line.startswith(f"{one['session_id']} · "))
        count = f"{one['requests']} requests"
        tokens = units.tokens(_known(one["input_tokens"]), _known(one["output_tokens"]))
        for part in (count, f"{tokens} tokens", units.seconds(one["duration_ms"]), one["cells"]):
            assert part in line
        (drawn,) = re.findall(rf"^{one['session_id']} .*", text.partition("\ncell ")[0], re.MULTILINE)
        assert drawn.split()[1:4] == [str(one["requests"]), str(one["errors"]), tokens]
    for one in report.overview.requests:
        for value in (overview.cell_of(one), one["prompt"], overview.model_of(one)):
            assert value in page
    assert "429\nRateLimitError" in page
    assert f"spent by model  requests  {'tokens':>{len(told['tokens'])}}" in text
    assert report.scope == "this kernel"
    for each in report.overview.connections:
        assert each["connection_id"] in page
        assert f"{each['host']}:{each['port']}" in page


def _known(value: Any) -> Any:
    return None if value is None or value != value else value


async def test_filters_are_those_of_requests(log_path: Path, server: RawServer) -> None:
    with nbllm.session("first"):
        await ask(server)
    with nbllm.session("second"):
        await ask(server)
    report = nbllm.report("second", since="1h")
    assert [one["session_id"] for one in report.overview.requests] == ["second"]
    assert report.scope == "all kernels · session second · since 1h"
    assert report.scope in read(report.html)
    assert report.scope in str(report)
    assert repr(report) == f"<Report on {report.scope}: 1 requests>"
    with pytest.raises(UsageProblem, match="kernel must be"):
        nbllm.report(kernel="mine")


async def test_a_running_request_is_told_as_running(log_path: Path, server: RawServer) -> None:
    task = asyncio.create_task(ask(server, "gated"))
    await until(lambda: server.requests)
    report = nbllm.report()
    server.open_gate()
    await task
    assert "running 1" in read(report.html)
    assert re.search(r"^\S+ +m +running ", str(report), re.MULTILINE)


def test_without_requests_it_says_so(log_path: Path) -> None:
    report = nbllm.report()
    assert "No requests." in read(report.html)
    assert str(report).endswith("\nno requests")


def test_unknown_numbers_are_dashes() -> None:
    nothing = {name: None for name in ("duration_ms", "ttft_ms", "wait_ms", "receive_ms", "ended_at")}
    nothing |= {name: None for name in ("input_tokens", "output_tokens", "cost_usd", "connection_reused")}
    report = report_of(row(**nothing, status="incomplete", connection_id=None, execution_count=None))
    page = read(report.html)
    for label in ("tokens", "cost", "time p50", "p95", "first token p50", "reused"):
        assert f"{label} {units.UNKNOWN}" in page
    assert "incomplete  " in str(report)


def test_sums_are_over_all_and_what_is_not_listed_is_said() -> None:
    rows = [row(number, session_id=f"s{number // 100}") for number in range(1000)]
    report = report_of(*rows, left_out=17)
    page, text = read(report.html), str(report)
    for form in (page, text):
        assert "requests 1,000" in form
        assert "tokens 412,000→96,000" in form
        assert "cost $1.10" in form
        assert "17 older requests are not in it" in form
    assert "the newest 200 of 1,000 requests are listed" in page
    assert page.count("What is a pool?") == 200
    assert "The newest 20 of 1,000 requests are listed" in text
    assert all(f"\ns{number} · 100 requests" in page for number in range(10))
    spent = [line.split() for line in text.splitlines() if line.startswith("s") and line.endswith("█")]
    assert sum(int(words[1]) for words in spent) + 200 == 1000
    assert "2 others" in text


def test_it_stays_small_whatever_the_rows_hold() -> None:
    rows = [
        row(
            number,
            session_id=f"{number}" + '"' * 150,
            request_model='$"' * 200,
            prompt="$" * 120,
            status="error",
            error_type="'" * 200,
            error_message='"$' * 250,
        )
        for number in range(300)
    ]
    report = report_of(*rows)
    assert len(report.html.encode()) < report_html.MOST_BYTES
    assert "of 300 requests are listed" in read(report.html)
    assert "300 errors" in read(report.html)


def test_ten_thousand_requests_are_summed_and_the_newest_listed() -> None:
    rows = [row(number, session_id=f"s{number % 50}", prompt=f"Prompt {number}.") for number in range(10_000)]
    report = report_of(*rows)
    page = read(report.html)
    assert len(report.html) < report_html.MOST_BYTES
    assert "requests 10,000" in page
    assert "Prompt 9999." in page
    assert "Prompt 1." not in page
    assert "requests 10,000" in str(report)


# -- what came from outside ----------------------------------------------------------------------------------


HOSTILE = {
    "html": EVIL,
    "url": "javascript:alert(1)",
    "attribute": '" onmouseover="window.hacked=1" x="',
    "comment": "<!-- --><![CDATA[ ]]> <?php ?>",
    "style": "</td></table></details><style>*{display:none}</style>",
    "right to left": "مرحبا \N{RIGHT-TO-LEFT OVERRIDE}txet\N{POP DIRECTIONAL FORMATTING} שלום",
    "control": "\x1b]0;title\x07\x1b[31mred\x00\x9b2J\r\n\tend",
    "half": "a\ud800b",
    "wide": "日本語で要約 👩‍💻 é",
    "long": "x" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_shows_as_text_in_every_field(text: str) -> None:
    texts = {name for name in COLUMNS if isinstance(row()[name], str)} - {"connection_id", "status"}
    values = dict.fromkeys(
        [*texts, "error_type", "error_message", "cell_id", "notebook", "connection_reason"], text
    )
    ends = dict.fromkeys(["host", "peer", "tls_version", "close_reason"], text)
    failed = row(**values, status="error", execution_count=None, connection_reused=False)
    seen = Overview([failed, row(1, **values)], [connection(**ends)], 0, NOW + 100)
    report = Report(seen, text)
    page, plain = read(report.html), str(report)
    for form in (page, plain):
        form.encode()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", form)
    shown = re.escape(re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]+", " ", text)[:40].strip())
    assert len(re.findall(re.sub(r"(\\ )+", " +", shown), page)) >= 10
    width = max(map(wcswidth, plain.splitlines()))
    assert 0 < width <= 80
    assert len(report.html) < 100_000


def test_keys_are_masked_in_every_form() -> None:
    masking.keep_secret("hunter2-secret")
    said = "it is hunter2-secret or sk-abcdefghijklmnop123456"
    report = report_of(row(prompt=said, error_message=said, status="error", session_id="hunter2-secret"))
    for form in (report.html, str(report), read(report.html)):
        assert "[key]" in form
        assert "hunter2" not in form
        assert "abcdefghijkl" not in form


def test_a_key_is_not_shown_by_half_where_a_text_is_cut() -> None:
    key = "sk-" + "k" * 60
    for before in range(40, 80):
        report = report_of(row(prompt="x " * (before // 2) + key))
        assert "kkkk" not in report.html


# -- a terminal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 160])
def test_text_is_aligned_and_fits(width: int) -> None:
    rows = [
        row(
            number,
            prompt="日本語 で",
            request_model=model,
            session_id=f"会議-{number % 2}",
            execution_count=9 + number,
        )
        for number, model in enumerate(["gpt-4o", "模型", "a-model-with-a-very-long-name-2026-01-01", "👩‍💻"])
    ]
    seen = report_of(*rows).overview
    lines = report_text.text(seen, "this kernel", width).splitlines()
    assert max(map(wcswidth, lines)) <= width
    at = next(number for number, line in enumerate(lines) if line.startswith("cell"))
    for name in ("tokens", "cost", "time", "first"):
        end = lines[at].index(name) + len(name)
        for line in lines[at + 1 : at + 5]:
            before = _cells(line, end)
            assert before.rstrip() == before, line  # right-aligned, below its heading
            assert _cells(line, end + 2).endswith("  ")


def _cells(line: str, width: int) -> str:
    """As much of a line as stands in so many cells."""
    return next(line[:end] for end in range(len(line) + 1) if wcswidth(line[:end]) == width)


def test_what_tells_rows_apart_stays_where_a_terminal_is_narrow() -> None:
    names = [f"kernel-20270115-080000-{number}" + "-of-somebody" * 2 + f"-{number}" for number in range(3)]
    rows = [
        row(number, session_id=name, connection_id=f"0badcafe-n{number}") for number, name in enumerate(names)
    ]
    ends = [
        connection(connection_id=f"0badcafe-n{number}", host="api.models.example", port=8760 + number)
        for number in range(3)
    ]
    ends = [{**end, "tls_version": "TLSv1.3", "closed_at": NOW + 99, "close_reason": "idle"} for end in ends]
    seen = Overview(rows, ends, 0, NOW + 100)

    text = report_text.text(seen, "this kernel", 80)
    assert max(map(len, text.splitlines())) <= 80
    for number, name in enumerate(names):
        assert re.search(rf"^n{number} +…\S*:876{number} ", text, re.MULTILINE)
        assert len(re.findall(rf"^{name[:6]}\S*…\S*-{number} ", text, re.MULTILINE)) >= 1
    assert len(re.findall("  What is a p", text)) == 3
    assert len(re.findall("0.3 s +[▒▓█]+$", text, re.MULTILINE)) == 3
    assert "prompt" not in report_text.text(seen, "this kernel", 60)
    wide = report_text.text(seen, "this kernel", 160)
    assert all(f"{name}  " in wide for name in names)
    assert "api.models.example:8760 (TLSv1.3)" in wide

    of_two = [*ends, {**ends[0], "connection_id": "feedbeef-n0"}]
    both = report_text.text(Overview(rows, of_two, 0, NOW + 100), "all kernels", 160)
    assert "0badcafe-n0  api" in both
    assert "feedbeef-n0  api" in both


def test_the_waterfall_shows_each_phase_where_it_was() -> None:
    first = row(0, wait_ms=1000.0, ttft_ms=2000.0, receive_ms=3000.0, duration_ms=4000.0)
    second = row(8, wait_ms=2000.0, ttft_ms=2000.0, receive_ms=2000.0, duration_ms=4000.0)
    text = report_text.text(report_of(first, second).overview, "", 160)
    drawn = ["".join(re.findall("[▒▓█]", line)) for line in text.splitlines() if "What is a pool?" in line]
    # 32 cells for the 8 s that they took; the 4 s between are cut to 3 % of that.
    assert drawn == ["▒" * 4 + "▓" * 4 + "█" * 8, "▒" * 8 + "█" * 8]
    assert "│ pause of 4.0 s cut" in text
    assert "▒ wait" in text


def test_colours_only_where_a_terminal_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = report_of(row())
    assert "\x1b" not in str(report)
    master, slave = os.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        coloured = str(report)
        monkeypatch.setenv("NO_COLOR", "1")
        plain = str(report)
    os.close(master)
    assert "\x1b[38;5;" in coloured
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured).partition("\n\n")[0] == plain.partition("\n\n")[0]
    assert "\x1b" not in plain


# -- files and the axis --------------------------------------------------------------------------------------


def test_a_saved_page_is_whole_and_private(tmp_path: Path) -> None:
    report = report_of(row())
    path = report.save(tmp_path / "report.html")
    written = path.read_text(encoding="utf-8")
    assert report.html in written
    assert "Content-Security-Policy" in written
    assert written.startswith("<!DOCTYPE html>")
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]
    for nowhere in (tmp_path / "no" / "report.html", "\0", 3):
        with pytest.raises(UsageProblem, match="written"):
            report.save(nowhere)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in its file system")
def test_a_page_takes_the_place_of_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with pytest.raises(UsageProblem, match="no regular file"):
        report_of(row()).save(pipe)
    assert pipe.is_fifo()
    for path in (tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UsageProblem, match="can't be written"):
            report_of(row()).save(path)


def test_a_session_without_an_owner_is_called_by_its_name_alone() -> None:
    text = str(report_of(row(), row(1, owner=None)))
    assert "review (me)" in text
    assert "(None)" not in text


def test_the_bundle_has_both_forms() -> None:
    report = report_of(row())
    assert report._repr_mimebundle_() == {"text/plain": str(report), "text/html": report.html}


def test_an_axis_cuts_pauses_and_keeps_the_rest_in_proportion() -> None:
    axis = TimeAxis([(0.0, 4.0), (2.0, 6.0), (7.0, 10.0), (1010.0, 1011.0)])
    (pause,) = axis.pauses
    assert pause.seconds == 1000.0
    assert axis.place(-5.0) == 0.0
    assert axis.place(2e9) == 1.0
    assert axis.place(10.0) == pause.start
    assert axis.place(1010.0) == pytest.approx(pause.end)
    assert axis.place(5.0) == pytest.approx(axis.place(10.0) / 2)
    # 11 s without the pause, which takes 3 % of the axis.
    assert axis.seconds == pytest.approx(11 / 0.97)
    places = [axis.place(moment) for moment in (0, 1, 6, 6.5, 7, 10, 500, 1010, 1011)]
    assert places == sorted(places)


def test_an_axis_may_have_no_length() -> None:
    assert TimeAxis([]).place(3.0) == 0.0
    assert TimeAxis([(5.0, 5.0)]).place(5.0) == 0.0


def test_segments_follow_each_other_and_the_rest_is_neutral() -> None:
    failed = row(queued_ms=100.0, wait_ms=50.0, receive_ms=None, ttft_ms=None, duration_ms=500.0)
    parts = segments(failed, NOW)
    assert [part.phase for part in parts] == ["queued", "wait", ""]
    assert parts[0].start == pytest.approx(NOW - 0.1)
    assert parts[-1].end == pytest.approx(NOW + 0.5)
    assert all(one.end == other.start for one, other in itertools.pairwise(parts))
    running = row(status=None, duration_ms=None, ended_at=None, wait_ms=None, receive_ms=None, ttft_ms=None)
    (rest,) = segments(running, NOW + 3)
    assert rest == ("", NOW, NOW + 3)


# -- front ends ----------------------------------------------------------------------------------------------


def saved_notebook(path: Path, report: Report) -> None:
    """A notebook with the report as output, which nobody has signed."""
    output = nbformat.v4.new_output("execute_result", report._repr_mimebundle_(), execution_count=1)
    cell = nbformat.v4.new_code_cell("nbllm.report()", outputs=[output], execution_count=1)
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, path)


def hostile_report() -> Report:
    rows = [
        row(0, prompt=EVIL, connection_reused=False, connect_ms=80.0, ssl_ms=50.0, connection_reason="first"),
        row(3, prompt="$a$ and $b$ \\(c\\)", session_id="costs $1 or $2"),
        row(
            4,
            duration_ms=1.0,
            receive_ms=None,
            ttft_ms=None,
            wait_ms=1.0,
            status="error",
            http_status=429,
            error_type="RateLimitError",
            error_message=EVIL,
        ),
    ]
    return report_of(*rows, tls_version="TLSv1.3")


VISIBLE = """() => {
    const root = document.querySelector('.jp-RenderedHTML details').closest('.jp-RenderedHTML');
    const bars = [...root.querySelectorAll('td span')].filter(e => e.style.backgroundColor);
    const boxes = bars.map(e => e.getBoundingClientRect());
    return {
        text: root.innerText,
        bars: boxes.filter(box => box.width > 0 && box.height > 2).length,
        all: bars.length,
        inside: bars.every((e, at) => boxes[at].right < e.parentElement.getBoundingClientRect().right + 1),
        math: root.querySelectorAll('mjx-container, .MathJax').length,
        active: root.querySelectorAll('script, img, style, a, iframe').length,
        hacked: window.hacked,
    };
}"""


def check_shown(page: Any, report: Report) -> None:
    shown = page.evaluate(VISIBLE)
    assert (shown["math"], shown["active"], shown.get("hacked")) == (0, 0, None)
    assert shown["bars"] == shown["all"] > 10
    assert shown["inside"]
    text = " ".join(shown["text"].split())
    for value in (
        "412→96",
        "$0.0011",
        "first 0.3 s",
        "0.9 s",
        "429",
        "RateLimitError",
        EVIL,
        "costs $1 or $2",
    ):
        assert value in text
    for label, value in (("requests", "3"), ("errors", "1"), ("reused", "67 %"), ("tokens", "1,236→288")):
        assert f"{label} {value}" in text


@pytest.mark.browser
def test_an_untrusted_notebook_shows_it_whole(page: Any, lab: str, lab_folder: Path) -> None:
    report = hostile_report()
    saved_notebook(lab_folder / "report.ipynb", report)
    page.goto(f"{lab}/doc/tree/report.ipynb?token=t")
    page.wait_for_selector(".jp-OutputArea-output details")
    check_shown(page, report)
    # Styles that the sanitizer would not let pass would be missed; the one that is may be.
    kept = page.evaluate("document.querySelector('.jp-RenderedHTML').innerHTML")
    assert _properties(report.html) - _properties(kept) == DISPENSABLE


def _properties(markup: str) -> set[str]:
    return {
        piece.partition(":")[0].strip()
        for style in re.findall(r'style="([^"]*)"', markup)
        for piece in style.split(";")
        if piece.strip()
    }


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nbconvert_shows_it_without_the_network(page: Any, tmp_path: Path, theme: str) -> None:
    from nbconvert import HTMLExporter

    report = hostile_report()
    saved_notebook(tmp_path / "report.ipynb", report)
    exporter = HTMLExporter(theme=theme)
    (tmp_path / "report.html").write_text(
        exporter.from_filename(tmp_path / "report.ipynb")[0], encoding="utf-8"
    )
    page.route(re.compile("^https?:"), lambda route: route.abort())  # MathJax, which nbconvert asks for
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector(".jp-RenderedHTML details")
    check_shown(page, report)


@pytest.mark.browser
def test_a_saved_page_loads_nothing(page: Any, tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    path = hostile_report().save(tmp_path / "report.html")
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('details').length") > 3
