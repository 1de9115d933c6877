"""The dashboard's panel in Chromium: its numbers are the log's, and what one does in it stays done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from nbllm import overview, report_parts, units
from nbllm.time_axis import TimeAxis, span
from tests.panel_page import PanelPage, made_rows, rows_message, running

pytestmark = pytest.mark.browser

TABLE = ".nbllm-table"
GROUPS = ".nbllm-canvas .nbllm-group"
REQUESTS = ".nbllm-request"
TIP = ".nbllm-requests [role=tooltip]"
HOSTILE = (
    "<img src='http://evil.example/x.png' onerror='window.hacked=1'><script>window.hacked=1</script>{{7*7}}"
)


@pytest.fixture
def panel(open_panel: Callable[..., PanelPage]) -> PanelPage:
    return open_panel()


def show(panel: PanelPage, rows: list[dict[str, Any]], *, seconds_later: float = 1.0, **options: Any) -> None:
    panel.feed(rows_message(rows, now=rows[-1]["started_at"] + seconds_later, **options))


def numbers(panel: PanelPage) -> dict[str, float | None]:
    """The raw values in the headline."""
    script = "elements => elements.map(e => [e.dataset.name, e.dataset.value])"
    found = panel.page.eval_on_selector_all(".nbllm-headline [data-name]", script)
    return {name: float(value) if value else None for name, value in found}


def choose(panel: PanelPage, name: str, value: str) -> None:
    panel.page.select_option(f"select[aria-label='Filter by {name}']", value)
    panel.settle()


def type_filter(panel: PanelPage, text: str) -> None:
    panel.page.fill(".nbllm-search input", text)
    panel.settle()


def press(panel: PanelPage, *keys: str) -> None:
    for key in keys:
        panel.page.keyboard.press(key)
    panel.settle()


def click_session(panel: PanelPage, name: str) -> None:
    panel.page.locator(GROUPS).filter(has_text=name).locator(".nbllm-session").click()
    panel.settle()


def sort_by(panel: PanelPage, title: str) -> str | None:
    """Click the column's header; how it is sorted then."""
    head = panel.page.get_by_role("columnheader", name=title)
    head.get_by_role("button").click()
    panel.settle()
    sorted_how: str | None = head.get_attribute("aria-sort")
    return sorted_how


def scrolled(panel: PanelPage) -> float:
    top: float = panel.page.eval_on_selector(TABLE, "e => e.scrollTop")
    return top


def scroll_to(panel: PanelPage, top: float) -> None:
    panel.page.eval_on_selector(TABLE, "(e, top) => { e.scrollTop = top; }", top)
    panel.settle()


def place_of(panel: PanelPage, key: str) -> float:
    """Where a request's row is on the screen, in pixels from above."""
    place: float = panel.page.eval_on_selector(f"[data-key='{key}']", "e => e.getBoundingClientRect().top")
    return place


def active(panel: PanelPage) -> str:
    """The text of the line that the keys act on."""
    text: str = panel.page.evaluate(
        "document.getElementById(document.querySelector('.nbllm-table').getAttribute('aria-activedescendant'))"
        ".querySelector('.nbllm-cell-name').textContent"
    )
    return text


def small(count: int) -> list[dict[str, Any]]:
    """Rows of two sessions, alpha and beta, that differ in what one can sort by."""
    rows = made_rows(count, seed=5)
    for number, row in enumerate(rows):
        row.update(session_id=("alpha", "beta")[number % 2], execution_count=number + 1, attempt=1)
        row.update(
            status="ok", prompt=f"prompt {number}", cost_usd=(number * 7 % count) / 100, error_type=None
        )
    return rows


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_headline_tells_the_numbers_of_overview(panel: PanelPage, seed: int) -> None:
    rows = made_rows(150 * seed + 1, seed=seed)
    rows[0] = running(rows[0])
    show(panel, rows)

    expected = dataclasses.asdict(overview.totals(rows))
    found = numbers(panel)
    assert found == {name: pytest.approx(expected[name]) for name in found}
    assert set(expected) - set(found) == {"duration_ms"}


def test_the_headline_of_nothing_knows_nothing(panel: PanelPage) -> None:
    panel.feed(rows_message([], now=1.0))
    expected = dataclasses.asdict(overview.totals([]))
    found = numbers(panel)
    assert found == {name: expected[name] for name in found}
    assert panel.texts(".nbllm-empty") == ["No requests yet."]


def test_nothing_of_a_selection_says_what_was_looked_for(open_panel: Callable[..., PanelPage]) -> None:
    panel = open_panel(scope="session review, errors")
    panel.feed(rows_message([], now=1.0))
    assert panel.texts(".nbllm-empty") == ["No request passes: session review, errors."]
    panel.page.get_by_role("tab", name="Connections").click()
    assert panel.texts(".nbllm-empty") == ["No connection passes: session review, errors."]


@pytest.mark.parametrize("width", [700, 1200])
def test_no_number_of_the_headline_is_cut(open_panel: Callable[..., PanelPage], width: int) -> None:
    panel = open_panel(width=width)
    rows = made_rows(900, seed=4)
    for row in rows:
        row["duration_ms"] = row["duration_ms"] and row["duration_ms"] * 100
    show(panel, rows)
    script = """tiles => tiles.filter(tile => {
        const edge = tile.getBoundingClientRect().right;
        return [...tile.querySelectorAll("span")].some(e => e.getBoundingClientRect().right > edge);
    }).map(tile => tile.textContent)"""
    assert panel.page.eval_on_selector_all(".nbllm-tile", script) == []


def test_phases_and_names_are_those_of_overview(panel: PanelPage) -> None:
    rows = made_rows(60, seed=3)
    rows[1].update(request_model=None)
    rows[2].update(request_model=None, operation=None)
    rows[3].update(request_model=None, operation=None, server_address=None)
    rows[4].update(execution_count=None, cell_id=None)
    show(panel, rows, seconds_later=9)
    for row in rows:
        type_filter(panel, str(row["request_id"]))
        line = panel.page.locator(f"[data-key='{row['request_id']}']")
        bars = line.locator("[data-phase]")
        assert bars.evaluate_all("all => all.map(e => e.dataset.phase)") == [
            n for n, _ in overview.phases(row)
        ]
        assert line.locator(".nbllm-model, .nbllm-cell-model").inner_text() == overview.model_of(row)
        assert line.locator(".nbllm-place").inner_text() == overview.cell_of(row)


def test_the_headline_is_of_what_the_filter_leaves(panel: PanelPage) -> None:
    rows = made_rows(80, seed=1)
    show(panel, rows)
    choose(panel, "status", "error")
    failed = [row for row in rows if row["status"] == "error"]
    assert numbers(panel)["requests"] == numbers(panel)["errors"] == len(failed)
    assert f"{len(failed)} of 80" in panel.page.inner_text(".nbllm-headline")
    panel.page.get_by_role("button", name="Clear").click()
    panel.settle()
    assert numbers(panel)["requests"] == 80


def test_a_reused_connection_shows_no_connect_phase(panel: PanelPage) -> None:
    first, second = small(2)
    handshake = {"dns_ms": 5.0, "connect_ms": 60.0, "ssl_ms": 40.0}
    first.update(handshake, connection_reused=False)
    second.update(dict.fromkeys(handshake), connection_reused=True)
    show(panel, [first, second])
    phases = "e => [...e.querySelectorAll('[data-phase]')].map(bar => bar.dataset.phase)"
    assert {"dns", "connect", "tls"} <= set(panel.page.eval_on_selector("[data-key=r0]", phases))
    assert not {"dns", "connect", "tls"} & set(panel.page.eval_on_selector("[data-key=r1]", phases))


def test_the_tooltip_tells_exact_times_to_pointer_and_keyboard(panel: PanelPage) -> None:
    rows = small(2)
    rows[1].update(wait_ms=1234.56)
    show(panel, rows)
    panel.page.hover("[data-key=r1] .nbllm-cell-waterfall")
    assert "1,234.6 ms" in panel.page.inner_text(TIP)
    panel.page.mouse.move(1, 1)
    assert not panel.page.is_visible(TIP)

    panel.page.focus(TABLE)
    press(panel, "End")
    assert "1,234.6 ms" in panel.page.inner_text(TIP)
    outer, inner = (panel.page.locator(name).bounding_box() for name in (".nbllm-panel", TIP))
    assert outer["x"] <= inner["x"]
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"]


# -- the same in Python and in the browser ---------------------------------------------------------------

UNKNOWN = units.UNKNOWN
NAN, INFINITE = float("nan"), float("inf")
NUMBERS: list[tuple[str, tuple[Any, ...], str]] = [
    ("seconds", (None,), UNKNOWN),
    ("seconds", (NAN,), UNKNOWN),
    ("seconds", (INFINITE,), UNKNOWN),
    ("seconds", (0,), "0 ms"),
    ("seconds", (0.04,), "0 ms"),
    ("seconds", (0.5,), "0.5 ms"),
    ("seconds", (0.96,), "1 ms"),
    ("seconds", (1.5,), "2 ms"),
    ("seconds", (2.5,), "2 ms"),
    ("seconds", (99.4999,), "99 ms"),
    ("seconds", (99.5,), "0.1 s"),
    ("seconds", (250,), "0.2 s"),
    ("seconds", (350,), "0.3 s"),
    ("seconds", (750,), "0.8 s"),
    ("seconds", (663.9,), "0.7 s"),
    ("seconds", (59_949,), "59.9 s"),
    ("seconds", (59_950,), "1 min 0 s"),
    ("seconds", (122_500,), "2 min 2 s"),
    ("seconds", (123_500,), "2 min 4 s"),
    ("seconds", (72_000_000,), "1,200 min 0 s"),
    ("seconds", (-1800,), "-1.8 s"),
    ("money", (None,), UNKNOWN),
    ("money", (NAN,), UNKNOWN),
    ("money", (0,), "free"),
    ("money", (-0.5,), "-$0.50"),
    ("money", (0.125,), "$0.12"),
    ("money", (0.375,), "$0.38"),
    ("money", (1.005,), "$1.00"),
    ("money", (0.0011,), "$0.0011"),
    ("money", (0.001,), "$0.0010"),
    ("money", (0.1,), "$0.10"),
    ("money", (1e-9,), "$0.0000000010"),
    ("money", (3.3e-30,), "$0.0000000000000000000000000000033"),
    ("money", (1234.5,), "$1,234.50"),
    ("count", (None,), UNKNOWN),
    ("count", (INFINITE,), UNKNOWN),
    ("count", (0,), "0"),
    ("count", (12_345,), "12,345"),
    ("count", (-1234,), "-1,234"),
    ("count", (412.5,), "412.5"),
    ("count", (0.25,), "0.2"),
    ("count", (0.75,), "0.8"),
    ("count", (2**53,), "9,007,199,254,740,992"),
    ("plural", (1, "request"), "1 request"),
    ("plural", (0, "request"), "0 requests"),
    ("plural", (12_345, "request"), "12,345 requests"),
    ("size", (None,), UNKNOWN),
    ("size", (0,), "0 B"),
    ("size", (0.5,), "0 B"),
    ("size", (999,), "999 B"),
    ("size", (999.5,), "1.0 kB"),
    ("size", (1250,), "1.2 kB"),
    ("size", (1750,), "1.8 kB"),
    ("size", (9949,), "9.9 kB"),
    ("size", (9950,), "10 kB"),
    ("size", (12_345,), "12 kB"),
    ("size", (999_500,), "1.0 MB"),
    ("size", (2e12,), "2.0 TB"),
    ("size", (5e15,), "5,000 TB"),
    ("size", (-1250,), "-1.2 kB"),
    ("percent", (None,), UNKNOWN),
    ("percent", (NAN,), UNKNOWN),
    ("percent", (0.125,), "12 %"),
    ("percent", (0.375,), "38 %"),
    ("percent", (1,), "100 %"),
    ("percent", (123.0,), "12300 %"),
    ("percent", (-0.25,), "-25 %"),
    ("tokens", (None, None), UNKNOWN),
    ("tokens", (12, None), f"12→{UNKNOWN}"),
    ("tokens", (None, 5), f"{UNKNOWN}→5"),
    ("tokens", (412, 1096), "412→1,096"),
    ("clock", (None,), UNKNOWN),
]
"""What is said of a number: the function, its arguments, the text."""


def test_a_number_is_the_same_text_in_python_and_in_the_browser(panel: PanelPage) -> None:
    expected = [text for _, _, text in NUMBERS]
    assert [getattr(units, name)(*arguments) for name, arguments, _ in NUMBERS] == expected
    call = "cases => cases.map(([name, values]) => page.inner[name](...values))"
    assert panel.page.evaluate(call, [[name, list(values)] for name, values, _ in NUMBERS]) == expected

    # How any half and what is beside it is rounded; a seed makes it the same each time.
    random = Random(7)
    values = [number / 8 * 10.0**power for number in range(1, 400, 3) for power in range(-4, 6)]
    values += [random.uniform(-1, 1) * 10 ** random.uniform(-6, 9) for _ in range(1500)]
    for name in ("seconds", "money", "count", "size", "percent"):
        said = panel.page.evaluate("([name, all]) => all.map(one => page.inner[name](one))", [name, values])
        assert said == [getattr(units, name)(value) for value in values]


def test_a_clock_is_the_same_in_python_and_in_the_browser(panel: PanelPage) -> None:
    for moment in (0.0, 1_790_000_000.0, 1_790_000_000.9996, 1_700_000_059.5):
        assert panel.page.evaluate("at => page.inner.clock(at)", moment) == units.clock(moment)
        day = panel.page.evaluate("at => page.inner.clock(at, true)", moment)
        assert day == units.clock(moment, has_day=True)


SPANS: list[tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]] = [
    ([], [(3.0, 0.0)], []),
    ([(5.0, 5.0)], [(4.0, 0.0), (5.0, 0.0), (6.0, 0.0)], []),
    ([(0.0, 4.0), (2.0, 6.0), (7.0, 10.0)], [(-5.0, 0.0), (5.0, 0.5), (6.5, 0.65), (20.0, 1.0)], []),
    (
        [(0.0, 4.0), (1000.0, 1006.0)],
        [(4.0, 0.388), (502.0, 0.403), (1000.0, 0.418), (1e9, 1.0)],
        [(996.0, 0.03)],
    ),
    ([(1000.0, 1006.0), (0.0, 4.0)], [(2.0, 0.194), (1003.0, 0.709)], [(996.0, 0.03)]),
    (
        [(0.0, 0.0), (100.0, 100.0), (200.0, 200.0)],
        [(0.0, 0.0), (100.0, 0.5), (200.0, 1.0)],
        [(100.0, 0.5)] * 2,
    ),
    ([(0.0, 0.0), (1.0, 1.0)], [(0.25, 0.25)], []),
    (
        [(0.0, 100.0), (102.5, 200.0)],
        [(102.5, 0.5125)],
        [],
    ),  # longer than 2 s, less than 3 % of what was busy
    (
        [(0.0, 0.1), (2.0, 2.1), (5.1, 5.2)],
        [(2.1, 0.97 * 2.1 / 2.2), (5.15, 1 - 0.97 * 0.05 / 2.2)],
        [(3.0, 0.03)],
    ),
    (
        [(60.0 * n, 60.0 * n + 1) for n in range(26)],
        [(1.0, 0.75 / 26), (60.0, 0.75 / 26 + 0.01)],
        [(59.0, 0.01)] * 25,
    ),
]
"""Stretches of work, moments and their places on the axis, and the pauses that are cut with their widths."""


def test_the_time_axis_is_the_same_in_python_and_in_the_browser(panel: PanelPage) -> None:
    script = """([spans, moments]) => {
        const axis = new page.inner.TimeAxis([], 0, spans);
        return [moments.map(at => axis.x(at)), axis.gaps.map(gap => [gap.seconds, gap.width])];
    }"""
    for spans, placed, cut in SPANS:
        moments, places = [at for at, _ in placed], [place for _, place in placed]
        axis = TimeAxis(spans)
        assert [axis.place(at) for at in moments] == pytest.approx(places)
        pauses = [(pause.seconds, pause.end - pause.start) for pause in axis.pauses]
        drawn_places, drawn_pauses = panel.page.evaluate(script, [spans, moments])
        assert drawn_places == pytest.approx(places)
        for found in (pauses, drawn_pauses):
            assert [tuple(one) for one in found] == [pytest.approx(one) for one in cut]


NOW = 1000.0
ENDS: list[tuple[dict[str, Any], tuple[float, float]]] = [
    ({"status": "ok", "duration_ms": 500.0}, (100.0, 100.5)),
    ({"status": "ok", "duration_ms": 500.0, "queued_ms": 250.0}, (99.75, 100.5)),
    ({"status": None}, (100.0, NOW)),
    ({"status": None, "started_at": NOW + 5}, (NOW + 5, NOW + 5)),  # by a clock that is ahead
    ({"status": "incomplete"}, (100.0, 100.0)),
    ({"status": "incomplete", "ended_at": 103.0}, (100.0, 103.0)),
    ({"status": "incomplete", "queued_ms": 250.0, "wait_ms": 1000.0}, (99.75, 101.0)),
    ({"status": "incomplete", "wait_ms": 1000.0, "ended_at": 100.5}, (100.0, 101.0)),
]
"""What is known of a request, and when it began to wait and ended: the last ones' kernel died."""


def test_a_request_begins_and_ends_at_the_same_time_in_python_and_in_the_browser(panel: PanelPage) -> None:
    for values, expected in ENDS:
        row = {**dict.fromkeys(overview.COLUMNS), "started_at": 100.0, **values}
        assert span(row, NOW) == pytest.approx(expected)
        script = "([row, now]) => [page.inner.startOf(row), page.inner.endOf(row, now)]"
        assert panel.page.evaluate(script, [row, NOW]) == pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        ("ok", 200, None, "ok"),
        (None, None, None, "running"),
        ("error", 429, "RateLimitError", "429 RateLimitError"),
        ("error", 429, None, "429"),
        ("error", 201, None, "error"),
        ("error", 201, "APIResponseError", "APIResponseError"),
        ("error", None, None, "error"),
        ("cancelled", 200, None, "cancelled"),
        ("incomplete", None, None, "incomplete"),
    ],
)
def test_how_it_ended_is_said_as_in_the_report(
    panel: PanelPage, status: str | None, code: int | None, kind: str | None, said: str
) -> None:
    row = {**dict.fromkeys(overview.COLUMNS), "status": status, "http_status": code, "error_type": kind}
    assert report_parts.status(row) == said
    assert panel.page.evaluate("row => page.inner.statusOf(row)", row) == said


# -- what stays --------------------------------------------------------------------------------------------


def test_folding_selection_and_scroll_survive_updates_and_resets(panel: PanelPage) -> None:
    rows = small(80)
    show(panel, rows)
    scroll_to(panel, 0)
    click_session(panel, "alpha")
    assert panel.page.locator(GROUPS).first.get_attribute("aria-expanded") == "false"
    panel.page.click("[data-key=r3]")
    panel.settle()
    scroll_to(panel, 100)

    later = rows[-1]["started_at"] + 5
    new = [{**rows[0], "request_id": f"new{n}", "started_at": later + n} for n in range(9)]  # of alpha, above
    show(panel, new, reset=False)
    for _ in range(2):
        show(panel, [*rows, *new])
    assert panel.page.locator(GROUPS).first.get_attribute("aria-expanded") == "false"
    assert panel.page.get_attribute("[data-key=r3]", "aria-selected") == "true"
    assert panel.page.is_visible(".nbllm-drawer")
    assert scrolled(panel) == 100

    press(panel, "Escape")
    click_session(panel, "alpha")
    scroll_to(panel, 50 * 24 + 10)
    place = place_of(panel, "r7")
    more = [{**row, "request_id": f"more{n}", "started_at": later + 9 + n} for n, row in enumerate(new)]
    show(panel, more, reset=False)
    assert place_of(panel, "r7") == pytest.approx(place, abs=1)
    show(panel, [*rows, *more])
    assert place_of(panel, "r7") == pytest.approx(place, abs=1)


def test_folding_what_fills_the_view_leaves_it_there(panel: PanelPage) -> None:
    rows = small(300)
    for number, row in enumerate(rows):
        row["session_id"] = f"session {number // 100}"
    show(panel, rows)
    scroll_to(panel, 150 * 24)
    panel.page.click(".nbllm-pinned .nbllm-session")
    panel.settle()
    assert scrolled(panel) == 101 * 24
    assert panel.texts(f"{GROUPS}[aria-expanded=false] .nbllm-session") == ["session 1"]


def test_it_follows_new_requests_where_one_is_at_the_end(panel: PanelPage) -> None:
    rows = small(90)
    for row in rows:
        row["session_id"] = "alpha"
    show(panel, rows[:60])
    for row in rows[60:75]:
        show(panel, [row], reset=False)
    assert panel.page.is_visible("[data-key=r74]")
    scroll_to(panel, scrolled(panel) - 200)
    top = scrolled(panel)
    for row in rows[75:]:
        show(panel, [row], reset=False)
    assert scrolled(panel) == top


def test_a_row_takes_the_place_of_what_was_known_of_the_request(panel: PanelPage) -> None:
    row = small(1)[0]
    show(panel, [running(row)])
    assert panel.texts(f"{REQUESTS} .nbllm-cell-status") == ["running"]
    assert numbers(panel)["running"] == 1
    show(panel, [row], reset=False)
    assert panel.texts(f"{REQUESTS} .nbllm-cell-status") == ["ok"]
    assert numbers(panel) | {"requests": 1, "running": 0} == numbers(panel)


def test_what_has_many_rows_comes_as_bytes(panel: PanelPage) -> None:
    message = rows_message(small(3), now=1.0)
    panel.page.evaluate(
        """message => {
            const bytes = new TextEncoder().encode(JSON.stringify(message));
            page.hearers.forEach((hear) => hear({ kind: "packed" }, [new DataView(bytes.buffer)]));
        }""",
        message,
    )
    panel.settle()
    assert numbers(panel)["requests"] == 3


def test_views_of_one_widget_share_filter_and_rows(panel: PanelPage) -> None:
    show(panel, small(4))
    panel.page.evaluate("void page.render()")
    type_filter(panel, "prompt 2")
    assert panel.texts(".nbllm-headline [data-name=requests]") == ["1", "1"]


# -- filter and sort ---------------------------------------------------------------------------------------


def test_text_is_looked_for_in_rows_here_and_in_what_was_said_by_the_kernel(panel: PanelPage) -> None:
    rows = small(6)
    rows[4].update(status="error", error_type="RateLimitError", http_status=429, error_message="too MANY")
    rows[3]["connection_id"] = "k1-n7"
    show(panel, rows)
    cases = (
        ("ALPHA", 3),
        ("prompt 3", 1),
        ("many", 1),
        ("429", 1),
        ("r5", 1),
        ("[2]", 1),
        ("n7", 1),
        ("nowhere", 0),
    )
    for text, count in cases:
        type_filter(panel, text)
        assert len(panel.texts(REQUESTS)) == count
    assert panel.texts(".nbllm-empty") == ["No request passes the filter."]

    panel.page.wait_for_function("page.sent.some(({kind, text}) => kind === 'search' && text === 'nowhere')")
    panel.feed({"kind": "found", "text": "an older search", "request_ids": ["r0"]})
    assert panel.texts(REQUESTS) == []
    panel.feed({"kind": "found", "text": "nowhere", "request_ids": ["r1", "gone"]})
    assert panel.texts(f"{REQUESTS} .nbllm-prompt") == ["prompt 1"]


def test_selects_filter_by_model_status_and_cell(panel: PanelPage) -> None:
    rows = made_rows(120, seed=2)
    show(panel, [*rows[:-1], running(rows[-1])])
    choose(panel, "model", "demo/small")
    count = sum(row["provider"] == "demo" for row in rows)
    assert numbers(panel)["requests"] == count
    choose(panel, "model", "")
    choose(panel, "status", "running")
    assert numbers(panel)["requests"] == 1
    choose(panel, "status", "")
    choose(panel, "cell", "[7]")
    assert numbers(panel)["requests"] == sum(row["execution_count"] == 7 for row in rows)


def test_a_header_sorts_groups_and_their_rows_and_the_third_click_undoes_it(panel: PanelPage) -> None:
    rows = small(8)
    rows[2]["cost_usd"] = None
    show(panel, rows)
    in_time = panel.texts(".nbllm-session, .nbllm-prompt")
    assert sort_by(panel, "Cost") == "ascending"

    def ordered(sign: int) -> list[str]:
        sums = {
            name: sum(r["cost_usd"] or 0 for r in rows if r["session_id"] == name)
            for name in ("alpha", "beta")
        }
        expected = []
        for name in sorted(sums, key=lambda name: sign * sums[name]):
            own = [row for row in rows if row["session_id"] == name]
            own.sort(key=lambda row: (row["cost_usd"] is None, sign * (row["cost_usd"] or 0)))
            expected += [name, *(row["prompt"] for row in own)]
        return expected

    assert panel.texts(f"{GROUPS} .nbllm-session, .nbllm-prompt") == ordered(1)
    assert sort_by(panel, "Cost") == "descending"
    assert panel.texts(f"{GROUPS} .nbllm-session, .nbllm-prompt") == ordered(-1)
    assert sort_by(panel, "Cost") == "none"
    assert panel.texts(".nbllm-session, .nbllm-prompt") == in_time
    for title in ("Model", "Status", "Tokens", "Time", "First", "Waterfall"):
        assert sort_by(panel, title) == "ascending"
        assert len(panel.texts(REQUESTS)) == 8


# -- keyboard ----------------------------------------------------------------------------------------------


def test_one_can_walk_fold_and_open_by_keys(panel: PanelPage) -> None:
    show(panel, small(60))
    panel.page.focus(TABLE)
    press(panel, "Home")
    assert active(panel).startswith("alpha")
    press(panel, "ArrowDown")
    assert active(panel).endswith("prompt 0")
    press(panel, "ArrowLeft")
    assert active(panel).startswith("alpha")
    press(panel, "ArrowLeft")
    assert panel.page.locator(GROUPS).first.get_attribute("aria-expanded") == "false"
    press(panel, "ArrowDown", "ArrowDown")
    assert active(panel).endswith("prompt 1")
    press(panel, "PageDown", "PageUp", "End")
    assert active(panel).endswith("prompt 59")
    press(panel, "Home", "ArrowRight", "ArrowRight", "ArrowDown", "Enter")
    assert panel.page.get_attribute("[data-key=r2]", "aria-selected") == "true"
    assert panel.page.is_visible(".nbllm-drawer")
    press(panel, "ArrowDown")  # the drawer goes with it
    assert panel.page.get_attribute("[data-key=r4]", "aria-selected") == "true"
    press(panel, "Escape")
    assert not panel.page.is_visible(".nbllm-drawer")
    assert panel.page.evaluate("document.activeElement.role") == "treegrid"
    press(panel, "/")
    assert panel.page.evaluate("document.activeElement.type") == "search"
    panel.page.keyboard.type("a/b")
    assert panel.page.input_value(".nbllm-search input") == "a/b"


def test_keys_are_not_passed_on_to_the_notebook(panel: PanelPage) -> None:
    show(panel, small(3))
    panel.page.evaluate(
        "window.heard = []; for (const kind of ['keydown', 'keyup', 'keypress'])"
        " document.addEventListener(kind, event => heard.push(event.key))"
    )
    panel.page.focus(TABLE)
    press(panel, "a", "d", "Enter", "Escape", "ArrowDown")
    assert panel.page.evaluate("heard") == []
    assert panel.page.get_attribute(".nbllm-panel", "data-lm-suppress-shortcuts") == "true"


def test_tabs_are_walked_by_arrows(panel: PanelPage) -> None:
    show(panel, small(3))
    panel.page.focus("[role=tab][aria-selected=true]")
    seen = []
    for _ in range(3):
        press(panel, "ArrowRight")
        tab = panel.page.locator("[role=tab][aria-selected=true]")
        seen.append(tab.inner_text())
        assert panel.page.is_visible(f"#{tab.get_attribute('aria-controls')}")
    assert seen == ["Connections", "Spend", "Requests"]


def test_everything_that_acts_has_a_name(panel: PanelPage) -> None:
    show(panel, small(3))
    panel.page.click("[data-key=r1]")
    panel.settle()
    nameless = panel.page.evaluate(
        """[...document.querySelectorAll('button, input, select, [tabindex="0"]')]
            .filter(e => e.checkVisibility() && !e.hasAttribute('aria-label'))
            .filter(e => !e.hasAttribute('aria-labelledby'))
            .filter(e => e.tagName !== 'BUTTON' || !e.textContent.trim()).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_the_cell_of_a_request_is_gone_to_where_it_is_in_view(panel: PanelPage) -> None:
    rows = small(3)
    rows[0]["execution_count"] = 33
    show(panel, rows)
    panel.page.click("[data-key=r2]")
    panel.page.get_by_role("button", name="Go to cell").click()
    assert panel.page.evaluate("document.querySelector('.jp-Cell').getAnimations().length") == 1
    panel.page.click("[data-key=r0] .nbllm-prompt")
    panel.settle()
    panel.page.get_by_role("button", name="Go to cell").click()
    assert "Cell [33] is not in view." in panel.page.inner_text(".nbllm-foot")


def test_the_lower_edge_makes_it_higher(panel: PanelPage) -> None:
    show(panel, small(40))

    def height() -> float:
        found: float = panel.page.locator(".nbllm-panel").bounding_box()["height"]
        return found

    before = height()
    edge = panel.page.locator(".nbllm-resizer").bounding_box()
    panel.page.mouse.move(edge["x"] + 50, edge["y"] + 2)
    panel.page.mouse.down()
    panel.page.mouse.move(edge["x"] + 60, edge["y"] - 58)
    panel.page.mouse.up()
    assert height() == before - 60
    panel.page.mouse.move(edge["x"] + 60, edge["y"] + 58)
    panel.page.focus(".nbllm-resizer")
    press(panel, "ArrowDown")
    assert height() == before - 36


# -- size, safety, end -------------------------------------------------------------------------------------


def test_ten_thousand_requests_are_few_nodes_and_all_can_be_reached(panel: PanelPage) -> None:
    rows = small(10_003)
    show(panel, rows, left_out=5)
    assert numbers(panel)["requests"] == 10_000
    assert "8 older requests left out" in panel.page.inner_text(".nbllm-foot")
    assert panel.page.evaluate("document.querySelectorAll('.nbllm-table *').length") < 1500
    assert panel.page.evaluate("document.querySelectorAll('option').length") < 300
    panel.page.focus(TABLE)
    press(panel, "End")
    assert active(panel).endswith("prompt 10002")
    scroll_to(panel, 5000 * 24)
    assert len(panel.texts(REQUESTS)) > 10
    panel.page.get_by_role("button", name="Fold all").click()
    panel.settle()
    assert panel.texts(f"{GROUPS} .nbllm-session") == ["beta", "alpha"]
    panel.page.get_by_role("button", name="Unfold all").click()
    panel.settle()
    assert panel.page.get_attribute(TABLE, "aria-rowcount") == "10003"


def test_html_and_script_in_any_field_is_text(open_panel: Callable[..., PanelPage]) -> None:
    panel = open_panel(width=1200)
    row = small(1)[0]
    texts = [name for name, value in row.items() if isinstance(value, str) and name != "status"]
    row.update(dict.fromkeys([*texts, "error_message", "error_type", "connection_reason"], HOSTILE))
    row.update(
        provider="openai", execution_count=None, attempt=HOSTILE, status="error", connection_reused=False
    )
    connection = dict.fromkeys(overview.CONNECTIONS, HOSTILE) | {
        "opened_at": row["started_at"],
        "closed_at": None,
    }
    panel.feed(rows_message([row], [connection], now=row["started_at"] + 1))
    panel.page.click(REQUESTS)
    panel.page.hover(f"{REQUESTS} .nbllm-cell-place, {REQUESTS} .nbllm-cell-name")
    for tab in ("Connections", "Spend", "Requests"):
        panel.page.get_by_role("tab", name=tab).click()
        panel.settle()
    panel.feed({"kind": "detail", "request_id": HOSTILE, "problem": HOSTILE})
    type_filter(panel, HOSTILE)
    assert HOSTILE in panel.page.inner_text(".nbllm-prompt")
    assert panel.page.evaluate("window.hacked") is None
    assert (
        panel.page.evaluate("document.querySelectorAll('#output img, #output script, #output iframe').length")
        == 0
    )


def test_it_asks_for_rows_and_waits_for_them(open_panel: Callable[..., PanelPage]) -> None:
    panel = open_panel(is_wide=True)
    assert panel.sent("hello") == [{"kind": "hello"}]
    assert panel.texts(".nbllm-waiting") == ["Waiting for the kernel…"]
    assert panel.page.locator(".nbllm-live").count() == 0
    show(panel, small(2))
    assert panel.texts(".nbllm-waiting") == []
    assert panel.page.locator(".nbllm-panel.nbllm-live").count() == 1
    panel.page.get_by_role("button", name="Refresh").click()
    assert panel.sent("refresh") == [{"kind": "refresh"}]
    panel.feed({"kind": "closed"})
    assert "no longer updated: it was closed" in panel.page.inner_text(".nbllm-foot")


def test_it_says_that_its_kernel_has_ended_and_what_ran_then_grows_no_more(panel: PanelPage) -> None:
    rows = small(3)
    show(panel, [*rows[:2], running(rows[2])])
    panel.page.evaluate("page.lose()")
    panel.settle()
    assert "no longer updated: its kernel has ended" in panel.page.inner_text(".nbllm-foot")
    time = panel.texts("[data-key=r2] .nbllm-cell-time")
    panel.page.click("[data-key=r0]")
    panel.page.wait_for_selector("text='Not known: this panel is no longer updated.'")
    assert panel.texts(".nbllm-phases-total th") == ["Total"]  # what the row tells is there
    panel.page.get_by_role("searchbox").fill("haiku")
    panel.page.wait_for_timeout(400)
    panel.page.get_by_role("button", name="Clear").click()
    panel.settle()
    assert panel.texts("[data-key=r2] .nbllm-cell-time") == time
    assert panel.problems == []


def test_a_kernel_that_was_only_out_of_reach_is_asked_again(panel: PanelPage) -> None:
    rows = small(2)
    show(panel, rows)
    panel.page.evaluate("page.lose()")
    panel.page.click("[data-key=r0]")
    panel.settle()
    panel.page.evaluate("page.isGone = false; page.mourners.forEach(hear => hear())")
    assert len(panel.sent("hello")) == 2
    show(panel, rows)
    assert "no longer updated" not in panel.page.inner_text(".nbllm-foot")
    assert panel.sent("detail") == [{"kind": "detail", "request_id": "r0"}]


def test_details_are_asked_for_once_and_again_when_the_call_went_on(panel: PanelPage) -> None:
    rows = small(2)
    show(panel, rows)
    panel.page.click("[data-key=r0]")
    panel.settle()
    show(panel, rows)
    assert panel.sent("detail") == [{"kind": "detail", "request_id": "r0"}]
    panel.feed({"kind": "detail", "request_id": "r0", "problem": "nothing kept"})
    show(panel, rows)
    assert len(panel.sent("detail")) == 1
    again = {**rows[1], "request_id": "r9", "call_id": rows[0]["call_id"], "attempt": 2}
    show(panel, [again], reset=False)
    assert panel.sent("detail") == 2 * [{"kind": "detail", "request_id": "r0"}]


def test_time_goes_on_only_while_something_runs_and_nothing_is_left_at_the_end(panel: PanelPage) -> None:
    panel.page.evaluate(
        """() => {
            window.timers = new Set();
            const [set, clear] = [window.setInterval, window.clearInterval];
            window.setInterval = (...all) => { const id = set(...all); timers.add(id); return id; };
            window.clearInterval = (id) => { timers.delete(id); clear(id); };
        }"""
    )
    rows = small(3)

    def timers() -> int:
        found: int = panel.page.evaluate("timers.size")
        return found

    show(panel, rows)
    assert timers() == 0
    show(panel, [running(rows[-1])], reset=False)
    assert timers() == 1
    time = panel.texts("[data-key=r2] .nbllm-cell-time")
    panel.page.wait_for_function(
        "time => document.querySelector('[data-key=r2] .nbllm-cell-time').textContent !== time", arg=time[0]
    )
    show(panel, rows[2:], reset=False)
    assert timers() == 0
    show(panel, [running(rows[-1])], reset=False)
    panel.page.evaluate("page.dispose(); page.forget()")
    assert timers() == 0
    assert panel.page.evaluate("page.hearers.size + page.mourners.size") == 0
    assert panel.page.locator(".nbllm-panel").count() == 0
    show(panel, rows, reset=True)
