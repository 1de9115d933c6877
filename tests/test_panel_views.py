"""Lanes, spend and drawer of the dashboard's panel in Chromium: what they tell is the log's, and is text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nbllm import overview
from tests.panel_page import PanelPage, made_rows, rows_message, running

pytestmark = pytest.mark.browser

START = 1_790_000_000.0
LANES = ".nbllm-lane"
BARS = ".nbllm-lane-bar"
COLUMNS = ".nbllm-column"
HOSTILE = "<img src='http://evil.example/x.png' onerror='window.hacked=1'><script>window.hacked=1</script>"

UNKNOWN = "\N{EN DASH}"

Row = dict[str, Any]


@pytest.fixture
def panel(open_panel: Callable[..., PanelPage]) -> PanelPage:
    return open_panel(viewport=820, width=800)


def request(number: int, at: float, **values: Any) -> Row:
    """A request that began `at` seconds after the start and took 400 ms over connection n1, reused."""
    row: Row = dict.fromkeys(overview.COLUMNS)
    row.update(request_id=f"k1-r{number}", call_id=f"c{number}", attempt=1, session_id="review", status="ok")
    row.update(kernel_id="k1", cell_id=f"id-{number}", execution_count=number, run_id=f"run-{number}")
    row.update(operation="chat", provider="openai", request_model="gpt-4o", response_model="gpt-4o")
    row.update(server_address="api.example", server_port=443, http_status=200, started_at=START + at)
    row.update(duration_ms=400.0, send_ms=1.0, wait_ms=99.0, receive_ms=300.0)
    row.update(connection_id="k1-n1", connection_reused=True, input_tokens=10, output_tokens=5)
    row.update(values)
    if row["duration_ms"] is not None:
        row["ended_at"] = row["started_at"] + row["duration_ms"] / 1e3
    return row


def first(number: int, at: float, **values: Any) -> Row:
    """A request that opened its connection: 10 ms DNS, 30 ms TCP, 60 ms TLS before the rest."""
    handshake = {"dns_ms": 10.0, "connect_ms": 90.0, "ssl_ms": 60.0, "duration_ms": 500.0}
    reason = {"connection_reused": False, "connection_reason": "first"}
    return request(number, at, **{**handshake, **reason, **values})


def connection(name: str, opened: float, **values: Any) -> Row:
    row: Row = dict.fromkeys(overview.CONNECTIONS)
    known = {"connection_id": f"k1-{name}", "kernel_id": "k1", "host": "api.example", "port": 443}
    return {**row, **known, "opened_at": START + opened, "tls_version": "TLSv1.3", **values}


def two_lanes() -> tuple[list[Row], list[Row]]:
    """Connection n1 with two requests, n2 with one that failed at the same time, n3 that served nothing."""
    failed = {"status": "error", "error_type": "RateLimitError", "http_status": 429}
    other = {"connection_id": "k1-n2", "connection_reason": "all busy", "request_model": "o3", **failed}
    rows = [first(1, 0.0), first(2, 0.2, **other), request(3, 1.0, connection_idle_ms=500.0)]
    closed = {"closed_at": START + 0.8, "close_reason": "request failed"}
    return rows, [connection("n1", 0.04), connection("n2", 0.24, **closed), connection("n3", 0.5)]


def show(panel: PanelPage, rows: list[Row], connections: Sequence[Row] = (), **options: Any) -> None:
    now = max(row["started_at"] + (row["duration_ms"] or 0) / 1e3 for row in rows)
    panel.feed(rows_message(rows, connections, **{"now": now, **options}))


def open_tab(panel: PanelPage, name: str) -> None:
    panel.page.get_by_role("tab", name=name).click()
    panel.settle()


def press(panel: PanelPage, *keys: str) -> None:
    for key in keys:
        panel.page.keyboard.press(key)
    panel.settle()


def tip(panel: PanelPage) -> str:
    text: str = panel.page.locator("[role=tooltip]:visible").inner_text()
    return text


# -- lanes -------------------------------------------------------------------------------------------------


def show_lanes(panel: PanelPage) -> None:
    show(panel, *two_lanes())
    open_tab(panel, "Connections")


def bar_of(panel: PanelPage, number: int) -> Any:
    return panel.page.locator(f"{BARS}[data-request='k1-r{number}']")


def test_each_connection_has_a_lane_with_its_requests(panel: PanelPage) -> None:
    show_lanes(panel)
    assert panel.texts(".nbllm-lane-name") == ["n1", "n2", "n3"]
    assert panel.texts(f"{LANES} .nbllm-lanes-about") == ["2 req · 1 reused", "1 req", "unused"]
    assert panel.texts(".nbllm-lanes-host-name") == [
        "api.example:4433 connections · 3 requests · 33 % reused"
    ]
    own = "lanes => lanes.map(e => [...e.querySelectorAll('[data-request]')].map(bar => bar.dataset.request))"
    assert panel.page.eval_on_selector_all(LANES, own) == [["k1-r1", "k1-r3"], ["k1-r2"], []]
    assert bar_of(panel, 2).get_attribute("data-status") == "error"
    sign = panel.page.eval_on_selector("[data-request=k1-r2]", "e => getComputedStyle(e, '::after').content")
    assert sign == '"✕"'
    assert panel.texts(".nbllm-lane-reason") == ["request failed"]


def test_a_lanes_first_use_shows_the_handshake_and_a_reuse_none(panel: PanelPage) -> None:
    show_lanes(panel)
    colours = "e => [...e.children].map(part => [part.dataset.phase, part.style.backgroundColor])"
    hexes = {name: overview.PHASES[name].colour for name in ("dns", "connect", "tls")}
    expected = [[name, "rgb({}, {}, {})".format(*bytes.fromhex(hexes[name][1:]))] for name in hexes]
    assert bar_of(panel, 1).evaluate(colours) == expected
    assert bar_of(panel, 3).evaluate(colours) == []
    whole = bar_of(panel, 1).bounding_box()["width"]
    parts = bar_of(panel, 1).locator("*").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert [part / whole for part in parts] == pytest.approx([10 / 500, 30 / 500, 60 / 500], abs=0.01)


def test_bars_stand_where_the_time_axis_says(panel: PanelPage) -> None:
    show_lanes(panel)  # 1.4 s in all
    track = panel.page.locator(f"{LANES} .nbllm-lanes-track").first.bounding_box()
    for number, start, end in ((1, 0.0, 0.5), (2, 0.2, 0.7), (3, 1.0, 1.4)):
        box = bar_of(panel, number).bounding_box()
        assert (box["x"] - track["x"]) / track["width"] == pytest.approx(start / 1.4, abs=0.01)
        assert box["width"] / track["width"] == pytest.approx((end - start) / 1.4, abs=0.01)


def test_the_sign_of_the_last_failure_has_room_and_nothing_scrolls_sideways(panel: PanelPage) -> None:
    rows, connections = two_lanes()
    failed = {"status": "error", "error_type": "RateLimitError", "http_status": 429}
    show(panel, [*rows, request(4, 1.4, **failed)], connections)  # it begins as the third ends
    open_tab(panel, "Connections")
    room = "e => [e.scrollWidth, e.clientWidth]"
    content, seen = panel.page.eval_on_selector(".nbllm-lanes-scroll", room)
    assert content == seen
    scroller = panel.page.locator(".nbllm-lanes-scroll").bounding_box()
    last = bar_of(panel, 4).bounding_box()
    sign = bar_of(panel, 4).evaluate("e => parseFloat(getComputedStyle(e, '::after').width)")
    assert last["x"] + last["width"] + sign <= scroller["x"] + scroller["width"]
    between = bar_of(panel, 3).evaluate("e => getComputedStyle(e).borderRightWidth")
    assert between == "1px"


def test_a_server_that_is_its_own_address_is_told_once(panel: PanelPage) -> None:
    rows, connections = two_lanes()
    connections[0]["peer"] = "api.example:443"
    connections[1]["peer"] = "192.0.2.7:443"
    show(panel, rows, connections)
    open_tab(panel, "Connections")
    panel.page.locator(".nbllm-lane-name", has_text="n1").hover()
    assert tip(panel).count("api.example:443") == 1
    panel.page.locator(".nbllm-lane-name", has_text="n2").hover()
    assert "api.example:443 · 192.0.2.7:443" in tip(panel)


def test_pointer_and_focus_tell_of_request_and_connection(panel: PanelPage) -> None:
    show_lanes(panel)
    bar_of(panel, 3).hover()
    told = tip(panel)
    for part in ("[3] · gpt-4o", "0.4 s", "n1 · reused", "Idle before", "0.5 s", "first", "still open"):
        assert part in told
    panel.page.mouse.move(1, 1)
    assert panel.page.locator("[role=tooltip]:visible").count() == 0

    bar_of(panel, 2).focus()
    told = tip(panel)
    for part in ("[2] · o3", "429 RateLimitError", "n2 · new · all busy", "Handshake", "request failed"):
        assert part in told
    panel.page.locator(".nbllm-lane-name", has_text="n2").hover()
    told = tip(panel)
    for part in ("k1-n2", "api.example:443", "TLSv1.3", "all busy", "request failed", "1 req", "0.6 s"):
        assert part in told


def test_the_connections_flight_and_idle_time_are_those_of_the_rows(panel: PanelPage) -> None:
    rows, connections = two_lanes()
    for row in connections:
        row["closed_at"] = START + 2.0
    show(panel, rows, connections)
    open_tab(panel, "Connections")
    assert panel.texts(".nbllm-lanes-most") == ["in flight, at most 2"]
    open_time = 2.0 + 1.8 + 1.5  # n1, n2, n3
    idle = round(100 * (1 - (0.5 + 0.5 + 0.4) / open_time))
    told = f"3 connections to 1 server · idle {idle} % of the time open"
    assert panel.texts(".nbllm-lanes-summary span:first-child") == [told]


def test_a_click_and_enter_select_the_request(panel: PanelPage) -> None:
    show_lanes(panel)
    bar_of(panel, 2).click()
    panel.settle()
    assert panel.texts(".nbllm-drawer-about")[0].startswith("[2] · review")
    assert bar_of(panel, 2).get_attribute("aria-selected") == "true"
    bar_of(panel, 1).focus()
    press(panel, "Enter")
    assert panel.texts(".nbllm-drawer-about")[0].startswith("[1] · review")


def test_arrow_keys_walk_along_a_lane_and_across(panel: PanelPage) -> None:
    show_lanes(panel)
    here = "document.activeElement.dataset.request ?? document.activeElement.textContent"
    panel.page.locator("[tabindex='0'].nbllm-lanes-label").focus()
    walked = []
    for key in ("ArrowRight", "End", "ArrowDown", "ArrowDown", "ArrowDown", "Home", "ArrowUp", "ArrowRight"):
        press(panel, key)
        walked.append(panel.page.evaluate(here))
    label = "n3unused"
    assert walked == ["k1-r1", "k1-r3", "k1-r2", label, label, label, "n21 req", "k1-r2"]
    assert panel.page.locator(".nbllm-lanes-body [tabindex='0']").count() == 1


def test_where_a_filter_is_set_lanes_without_a_shown_request_are_left_out(panel: PanelPage) -> None:
    show_lanes(panel)
    panel.page.select_option("select[aria-label='Filter by cell']", "[3]")
    panel.settle()
    assert panel.texts(".nbllm-lane-name") == ["n1"]
    assert panel.texts(f"{LANES} .nbllm-lanes-about") == ["1 of 2 req · 1 reused"]
    assert panel.page.locator(BARS).count() == 1
    panel.page.fill(".nbllm-search input", "nowhere")
    panel.settle()
    assert panel.texts(".nbllm-empty") == ["No connection passes the filter."]


def test_a_connection_that_the_log_does_not_hold_is_told_from_its_requests(panel: PanelPage) -> None:
    show(panel, [first(1, 0.0), request(2, 1.0)])
    open_tab(panel, "Connections")
    assert panel.texts(".nbllm-lane-name") == ["n1"]
    assert panel.page.locator(BARS).count() == 2


def test_connections_of_several_kernels_and_servers_are_told_apart(panel: PanelPage) -> None:
    lanes = [connection("n1", 0.0), {**connection("n1", 1.0), "connection_id": "k2-n1", "kernel_id": "k2"}]
    show(panel, [request(1, 0.0)], [*lanes, connection("n2", 2.0, host="127.0.0.1", port=8000)])
    open_tab(panel, "Connections")
    assert panel.texts(".nbllm-lane-name") == ["k1-n1", "k2-n1", "k1-n2"]
    hosts = panel.texts(".nbllm-lanes-host-name span:first-child")
    assert hosts == ["api.example:443", "127.0.0.1:8000"]


def test_a_thousand_connections_are_few_nodes_and_all_can_be_reached(panel: PanelPage) -> None:
    names = [f"n{number}" for number in range(1000)]
    rows = [first(number, number / 10, connection_id=f"k1-{name}") for number, name in enumerate(names)]
    show(panel, rows, [connection(name, number / 10) for number, name in enumerate(names)])
    open_tab(panel, "Connections")
    assert panel.texts(".nbllm-lanes-summary")[0].startswith("1,000 connections to 1 server")
    assert panel.page.locator(LANES).count() < 60
    panel.page.locator("[tabindex='0'].nbllm-lanes-label").focus()
    for _ in range(100):
        panel.page.keyboard.press("PageDown")
    panel.settle()
    assert panel.page.evaluate("document.activeElement.textContent") == "n9991 req"
    assert panel.page.locator(LANES).count() < 60


def test_requests_too_close_to_be_told_apart_share_a_bar(panel: PanelPage) -> None:
    rows = [request(number, number * 0.5) for number in range(3000)]
    rows[5].update(status="error")
    show(panel, rows, [connection("n1", 0.0)])
    open_tab(panel, "Connections")
    assert 50 < panel.page.locator(BARS).count() < 300
    bar = panel.page.locator(f"{BARS}[data-status=error]")
    bar.hover()
    assert "requests, close together" in tip(panel)
    shown = panel.page.locator(BARS).evaluate_all(
        "all => all.map(e => parseInt(e.ariaLabel.replace(',', '')))"
    )
    assert sum(shown) == 3000


def test_focus_and_tooltip_stay_while_rows_come(panel: PanelPage) -> None:
    rows, connections = two_lanes()
    show(panel, rows, connections)
    open_tab(panel, "Connections")
    bar_of(panel, 3).focus()
    show(panel, [request(4, 2.0)], reset=False)
    show(panel, [*rows, request(4, 2.0)], connections)
    assert panel.page.evaluate("document.activeElement.dataset.request") == "k1-r3"
    assert "[3] · gpt-4o" in tip(panel)


def test_a_running_request_grows(panel: PanelPage) -> None:
    show(panel, [first(1, 0.0), running(request(2, 1.0))], now=START + 2.0)
    open_tab(panel, "Connections")
    assert bar_of(panel, 2).get_attribute("data-status") == "running"
    width = bar_of(panel, 2).bounding_box()["width"]
    grown = "width => document.querySelector('[data-status=running].nbllm-lane-bar').offsetWidth > width + 5"
    panel.page.wait_for_function(grown, arg=width)
    show(panel, [request(2, 1.0)], reset=False)
    assert bar_of(panel, 2).get_attribute("data-status") == "ok"


# -- spend -------------------------------------------------------------------------------------------------


def choose(panel: PanelPage, name: str) -> None:
    panel.page.get_by_role("radio", name=name, exact=True).click()
    panel.settle()


def spend_table(panel: PanelPage) -> dict[str, dict[str, float | None]]:
    """What the table tells: by name of the line, the raw values."""
    lines = panel.page.eval_on_selector_all(
        ".nbllm-spend-table tbody tr, .nbllm-spend-table tfoot tr",
        """lines => lines.map(line => [line.querySelector('.nbllm-spend-name').textContent,
            [...line.querySelectorAll('[data-value]')].map(e => [e.dataset.name, e.dataset.value])])""",
    )
    return {
        name: {key: float(value) if value else None for key, value in values if key != "share"}
        for name, values in lines
    }


def expected_of(totals: overview.Totals) -> dict[str, Any]:
    names = ("requests", "input_tokens", "output_tokens", "cost_usd", "unpriced")
    known = dataclasses.asdict(totals)
    return {name: pytest.approx(known[name]) for name in names}


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_spend_tells_the_numbers_of_overview(panel: PanelPage, seed: int) -> None:
    rows = made_rows(40 + 100 * seed, seed=seed)
    show(panel, rows, now=rows[-1]["started_at"] + 9)
    open_tab(panel, "Spend")
    for label, by in (("By model", "request_model"), ("By session", "session_id")):
        choose(panel, label)
        found = spend_table(panel)
        assert found.pop("All") == expected_of(overview.totals(rows))
        spent = overview.spend(rows, by)
        assert found == {name: expected_of(totals) for name, totals in spent}
        known = [name for name, totals in spent if totals.cost_usd]
        assert list(found)[: len(known)] == known  # the dearest first


def test_the_bars_hold_every_request_once(panel: PanelPage) -> None:
    rows = made_rows(300, seed=4)
    show(panel, rows, now=rows[-1]["started_at"] + 9)
    open_tab(panel, "Spend")
    choose(panel, "Requests")
    labels = panel.page.locator(COLUMNS).evaluate_all("all => all.map(e => e.ariaLabel)")
    counts: dict[str, int] = {}
    for label in labels:
        for part in label.partition(": ")[2].split(" · "):
            name, _, value = part.rpartition(" ")
            if name:
                counts[name] = counts.get(name, 0) + int(value)
    assert counts == {name: totals.requests for name, totals in overview.spend(rows, "request_model")}


@pytest.mark.parametrize("span", [0.0, 0.7, 3.0, 50.0, 400.0, 7000.0, 90_000.0, 7e5, 8e6, 2e8])
def test_there_are_neither_few_bars_nor_many(panel: PanelPage, span: float) -> None:
    show(panel, [request(1, 0.0), request(2, span / 2), request(3, span)])
    open_tab(panel, "Spend")
    assert 12 <= panel.page.locator(COLUMNS).count() <= 40


def test_more_than_seven_are_put_together(panel: PanelPage) -> None:
    rows = [request(n, n, request_model=f"m{n}", cost_usd=1.0 + n) for n in range(10)]
    show(panel, rows)
    open_tab(panel, "Spend")
    names = [f"m{n}" for n in range(9, 2, -1)]
    assert panel.texts(".nbllm-spend-table tbody .nbllm-spend-name") == [*names, "others (3)"]
    assert spend_table(panel)["others (3)"]["cost_usd"] == 6.0
    colours = panel.page.locator(".nbllm-spend-table .nbllm-swatch").evaluate_all(
        "all => all.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert len(set(colours)) == 8


def test_a_colour_stays_with_its_model(panel: PanelPage) -> None:
    rows = [request(n, n, request_model=f"m{n % 3}", cost_usd=3.0 - n % 3) for n in range(4)]
    rows[2]["output_tokens"] = 9000
    show(panel, rows)
    open_tab(panel, "Spend")
    colours = """() => Object.fromEntries([...document.querySelectorAll('.nbllm-spend-table tbody tr')]
        .map(line => [line.querySelector('.nbllm-spend-name').textContent,
            line.querySelector('.nbllm-swatch').className]))"""
    before = panel.page.evaluate(colours)
    choose(panel, "Tokens")
    assert panel.texts(".nbllm-spend-table tbody .nbllm-spend-name") == ["m2", "m0", "m1"]
    assert panel.page.evaluate(colours) == before


def test_an_unknown_price_is_not_zero(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0), request(2, 1.0)])
    open_tab(panel, "Spend")
    assert panel.texts(".nbllm-spend-missing") == ["2 unpriced, not in the bars"]
    assert panel.texts(".nbllm-chart-nothing") == ["Cost not known."]
    assert panel.texts("tfoot [data-name=cost_usd]") == [UNKNOWN]
    panel.page.locator(COLUMNS).first.hover()
    assert f"gpt-4o\t{UNKNOWN}" in tip(panel)
    show(panel, [request(1, 0.0, cost_usd=0.0), request(2, 1.0, cost_usd=0.0)])
    assert panel.texts(".nbllm-chart-nothing") == ["All free."]
    assert panel.texts(".nbllm-spend-missing") == []


def test_pointer_and_keys_tell_exact_values(panel: PanelPage) -> None:
    rows = [
        request(1, 0.0, cost_usd=0.25),
        request(2, 0.01, request_model="o3", cost_usd=1.5),
        request(3, 9.0),
    ]
    show(panel, rows)
    open_tab(panel, "Spend")
    panel.page.locator(COLUMNS).first.hover()
    for part in ("gpt-4o\t$0.25", "o3\t$1.50", "all\t$1.75"):
        assert part in tip(panel)
    panel.page.locator(COLUMNS).first.focus()
    press(panel, "End")
    assert "unpriced\t1" in tip(panel)
    press(panel, "ArrowLeft")
    assert "nothing" in tip(panel)


def test_the_choices_are_made_by_keys_and_stay(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0)])
    open_tab(panel, "Spend")
    panel.page.get_by_role("radio", name="Cost").focus()
    press(panel, "ArrowLeft")
    show(panel, [request(2, 5.0)], reset=False)
    assert (
        panel.page.get_by_role("radio", name="Requests", exact=True).get_attribute("aria-checked") == "true"
    )
    assert panel.page.evaluate("document.activeElement.textContent") == "Requests"


# -- drawer ------------------------------------------------------------------------------------------------


def detail(**values: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "text": "How many otters?", "calls": []}],
        "answer": {"text": "Seven otters.", "reasoning": None, "calls": []},
        "content_kept": True,
        "params": {"temperature": 0.2},
        "headers": {"x-request-id": "req-1"},
        "attempts": [],
        "connection": None,
        "code": "await nbllm.acompletion('gpt-4o', 'How many otters?')",
        "curl": "curl https://api.example/v1/chat/completions",
        **values,
    }


def select(panel: PanelPage, number: int, told: dict[str, Any] | None = None) -> None:
    """Open the drawer for a request; the kernel tells this of it."""
    panel.page.click(f"[data-key='k1-r{number}'] .nbllm-cell-name", position={"x": 30, "y": 8})
    panel.settle()
    if told is not None:
        tell(panel, number, **told)


def tell(panel: PanelPage, number: int, **values: Any) -> None:
    panel.feed({"kind": "detail", "request_id": f"k1-r{number}", "detail": detail(**values)})


def section(panel: PanelPage, title: str) -> Any:
    return panel.page.locator(".nbllm-drawer-section").filter(
        has=panel.page.locator("summary", has_text=title)
    )


def facts(panel: PanelPage, title: str) -> dict[str, str]:
    pairs = section(panel, title).locator("dt, dd").all_text_contents()
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def test_the_drawer_tells_what_was_asked_and_answered(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0), request(2, 1.0)])
    select(panel, 2)
    assert panel.sent("detail") == [{"kind": "detail", "request_id": "k1-r2"}]
    assert panel.page.get_by_role("complementary", name="Request details").is_visible()
    tell(panel, 1, answer={"text": "of another request", "reasoning": None, "calls": []})
    call = {"name": "count", "arguments": '{"what":"otters"}'}
    messages = [
        {"role": "user", "text": "How many\n  otters?", "calls": []},
        {"role": "assistant", "text": "", "calls": [call]},
    ]
    tell(panel, 2, messages=messages, answer={"text": "Seven.", "reasoning": "Count them.", "calls": []})
    talk = section(panel, "Messages")
    assert talk.locator(".nbllm-message-role").all_text_contents() == ["user", "assistant", "answer"]
    assert talk.locator(".nbllm-message-text").all_text_contents() == [
        "How many\n  otters?",
        '{\n "what": "otters"\n}',
        "Count them.",
        "Seven.",
    ]
    assert talk.locator(".nbllm-tool-name").all_text_contents() == ["calls count"]
    assert not talk.get_by_text("Count them.").is_visible()  # reasoning is folded
    assert facts(panel, "Parameters") == {"temperature": "0.2"}
    assert facts(panel, "Headers kept") == {"x-request-id": "req-1"}


def test_the_drawer_tells_what_the_row_tells_at_once(panel: PanelPage) -> None:
    usage = {"cache_read_tokens": 4, "reasoning_tokens": 3, "cost_usd": 0.0012, "cost_source": "provider"}
    traffic = {"bytes_sent": 1200, "bytes_received": 345, "chunks": 7, "ttft_ms": 240.0, "queued_ms": 20.0}
    row = first(1, 0.0, **usage, **traffic, finish_reason="length", response_model="gpt-4o-2026")
    show(panel, [row], [connection("n1", 0.04, closed_at=START + 9, close_reason="idle expired")])
    select(panel, 1)
    assert panel.texts(".nbllm-drawer-title") == ["gpt-4ook"]
    assert panel.texts(".nbllm-drawer-numbers") == ["0.5 s · first 0.2 s · 10→5 tok · $0.0012"]
    assert facts(panel, "Usage") == {
        "Input": "10 tok · 4 cached",
        "Output": "5 tok · 3 reasoning",
        "Cost": "$0.0012 · as the provider says",
        "Sent": "1.2 kB",
        "Received": "345 B",
        "Chunks": "7",
        "Finish": "length",
        "Answered by": "gpt-4o-2026",
    }
    told = facts(panel, "Connection")
    assert told["Connection"] == "k1-n1"
    assert told["Use"] == "new · first"
    assert told["TLS"] == "TLSv1.3"
    assert told["Closed"].endswith(" · idle expired")
    assert facts(panel, "Cell")["Run"] == "run-1"
    assert section(panel, "Error").is_hidden()

    table = section(panel, "Timing").locator("tr[data-phase]")
    names = table.evaluate_all("all => all.map(e => e.dataset.phase)")
    times = table.locator("td:nth-child(3)").all_text_contents()
    assert list(zip(names, times, strict=True)) == [
        (name, f"{ms:,.1f} ms") for name, ms in overview.phases(row)
    ]
    assert table.first.locator("td").first.inner_text() == "-20.0 ms"  # it was queued before it began
    assert (
        section(panel, "Timing").locator(".nbllm-phases-total").inner_text().startswith("Total\t\t520.0 ms")
    )


def test_what_a_failure_left_of_its_time_is_told_as_such(panel: PanelPage) -> None:
    failed = {
        "status": "error",
        "error_type": "APIConnectionError",
        "error_message": "no route",
        "http_status": None,
    }
    show(panel, [first(1, 0.0, **failed, send_ms=None, wait_ms=None, receive_ms=None, connection_id=None)])
    select(panel, 1)
    assert section(panel, "Error").locator("dd").all_text_contents() == ["APIConnectionError", UNKNOWN]
    assert section(panel, "Error").locator("pre").inner_text() == "no route"
    rest = section(panel, "Timing").locator("tr[data-phase=rest]")
    assert rest.inner_text().split("\t")[:3] == ["other", "100.0 ms", "400.0 ms"]
    assert section(panel, "Connection").inner_text().endswith("It has had no connection.")


def test_the_drawer_says_what_it_waits_for_and_what_is_not_kept(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0), request(2, 1.0)])
    select(panel, 1)
    talk = section(panel, "Messages").locator(".nbllm-drawer-content")
    assert talk.inner_text() == "…"
    panel.page.get_by_text("Waiting for the running cell…").first.wait_for()
    panel.feed({"kind": "detail", "request_id": "k1-r1", "problem": "the log was lost"})
    assert talk.inner_text() == "the log was lost"
    select(panel, 2, {"content_kept": False, "messages": [], "answer": None})
    assert talk.inner_text() == "The content was not kept."


def test_a_running_requests_drawer_follows_it(panel: PanelPage) -> None:
    row = request(1, 0.0)
    show(panel, [running(row)], now=START + 3)
    select(panel, 1, {"answer": None})
    assert panel.texts(".nbllm-drawer-status") == ["running"]
    assert "No answer yet." in section(panel, "Messages").inner_text()
    grows = ".nbllm-phases-total .nbllm-right:not(:empty)"
    before = panel.texts(grows)
    panel.page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).textContent !== text", arg=[grows, before[0]]
    )
    show(panel, [row], reset=False)
    assert panel.texts(".nbllm-drawer-status") == ["ok"]
    assert len(panel.sent("detail")) == 2
    tell(panel, 1)
    assert "Seven otters." in section(panel, "Messages").inner_text()
    assert panel.texts(".nbllm-phases-total .nbllm-right:not(:empty)") == ["400.0 ms"]


def test_long_texts_and_long_conversations_begin_folded(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0)])
    lines = "\n".join(f"line {number}" for number in range(500))
    messages = [{"role": "user", "text": f"message {number}", "calls": []} for number in range(40)]
    answer = {"text": lines, "reasoning": "x" * 5000, "calls": []}
    select(panel, 1, {"messages": messages, "answer": answer})
    talk = section(panel, "Messages")
    assert "line 29" in talk.inner_text()
    assert "line 30" not in talk.inner_text()
    talk.get_by_role("button", name="Show all 500 lines").click()
    assert talk.locator(".nbllm-message-text").last.text_content() == lines
    assert talk.locator("summary", has_text="Reasoning").count() == 1
    assert "message 31" not in talk.inner_text()
    talk.get_by_role("button", name="Show 32 earlier messages").click()
    assert talk.locator(".nbllm-message").count() == 41
    assert talk.locator(".nbllm-message-text").first.text_content() == "message 0"

    tell(panel, 1, messages=messages, answer=answer)  # the same again
    show(panel, [request(2, 3.0)], reset=False)
    assert talk.locator(".nbllm-message").count() == 41
    assert talk.get_by_role("button", name="Show all 500 lines").count() == 0


def test_sections_stay_open_or_closed_from_request_to_request(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0), request(2, 1.0)])
    select(panel, 1, {})
    panel.page.locator("summary", has_text="Messages and answer").click()
    panel.page.locator("summary", has_text="Parameters").click()
    panel.page.get_by_role("button", name="Next request").click()
    panel.settle()
    tell(panel, 2)
    assert section(panel, "Messages").get_attribute("open") is None
    assert section(panel, "Parameters").locator("dd").is_visible()


def test_one_can_go_to_the_request_before_and_after_and_close(panel: PanelPage) -> None:
    show(panel, [request(n, float(n)) for n in range(3)])
    select(panel, 1)
    before, after = (panel.page.get_by_role("button", name=f"{way} request") for way in ("Previous", "Next"))
    after.click()
    panel.settle()
    assert panel.texts(".nbllm-drawer-about")[0].startswith("[2]")
    assert after.is_disabled()
    before.click()
    panel.settle()
    before.click()
    panel.settle()
    assert panel.texts(".nbllm-drawer-about")[0].startswith("[0]")
    assert before.is_disabled()
    panel.page.get_by_role("button", name="Close details").click()
    panel.settle()
    assert panel.texts(".nbllm-drawer") == []


def test_attempts_of_the_call_lead_to_each_other(panel: PanelPage) -> None:
    failed = {"status": "error", "error_type": "RateLimitError", "http_status": 429}
    rows = [request(1, 0.0, call_id="c", **failed), request(2, 1.0, call_id="c", attempt=2)]
    names = ("request_id", "attempt", "status", "http_status", "error_type", "duration_ms", "started_at")
    attempts = [{name: row[name] for name in names} | {"error_message": "slow down"} for row in rows]
    attempts.append({**attempts[0], "request_id": "k1-r0", "attempt": 3})  # which the panel does not hold
    show(panel, rows)
    select(panel, 2, {"attempts": attempts})
    buttons = section(panel, "Attempts").get_by_role("button")
    assert buttons.nth(0).inner_text().startswith("Attempt 1 · 429 RateLimitError · 0.4 s")
    assert buttons.nth(1).get_attribute("aria-current") == "true"
    assert buttons.nth(2).is_disabled()
    buttons.nth(0).click()
    panel.settle()
    assert panel.texts(".nbllm-drawer-about")[0].startswith("[1]")


def test_code_is_copied_and_where_that_is_forbidden_it_is_there_to_copy(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0)])
    select(panel, 1)
    copy = panel.page.locator(".nbllm-drawer-tools button", has_text="nbllm code")
    assert copy.is_disabled()
    tell(panel, 1)
    panel.page.evaluate(
        "navigator.clipboard && (navigator.clipboard.writeText = () => Promise.reject(Error()))"
    )
    panel.page.get_by_role("button", name="Copy as nbllm code").click()
    panel.page.get_by_role("button", name="Copied").wait_for()
    assert panel.page.locator(".nbllm-drawer-copy:visible").count() == 0
    panel.page.focus(".nbllm-search input")
    press(panel, "Control+V")
    assert panel.page.input_value(".nbllm-search input") == detail()["code"]

    panel.page.fill(".nbllm-search input", "")
    panel.page.evaluate("document.execCommand = () => false")
    panel.page.get_by_role("button", name="Copy as curl").click()
    panel.page.get_by_role("button", name="Press Ctrl+C").wait_for()
    chosen = panel.page.evaluate(
        "(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.activeElement)"
    )
    assert chosen == detail()["curl"]


def test_go_to_cell_says_where_it_can_not(panel: PanelPage) -> None:
    show(panel, [request(1, 0.0), request(2, 1.0, execution_count=None, cell_id=None)])
    select(panel, 1)
    panel.page.get_by_role("button", name="Go to cell").click()
    assert "Cell [1] is not in view." in panel.page.inner_text(".nbllm-foot")
    select(panel, 2)
    assert panel.page.get_by_role("button", name="Go to cell").is_disabled()


def test_html_and_script_from_outside_is_text_everywhere(panel: PanelPage) -> None:
    names = (
        "request_model",
        "response_model",
        "server_address",
        "error_type",
        "error_message",
        "finish_reason",
    )
    row = request(1, 0.0, **dict.fromkeys((*names, "session_id", "connection_reason", "run_id"), HOSTILE))
    row.update(
        status="error", execution_count=None, cell_id=HOSTILE, connection_reused=False, cost_source=HOSTILE
    )
    strange = {"host": HOSTILE, "peer": HOSTILE, "tls_version": HOSTILE, "close_reason": HOSTILE}
    show(panel, [row], [connection("n1", 0.0, closed_at=START + 0.1, **strange)])
    call = {"name": HOSTILE, "arguments": HOSTILE}
    said = {"text": HOSTILE, "calls": [call]}
    told = {
        "messages": [{"role": HOSTILE, **said}],
        "answer": {"reasoning": HOSTILE, **said},
        "params": {HOSTILE: HOSTILE},
        "headers": {HOSTILE: [HOSTILE]},
        "attempts": [{**row, "attempt": HOSTILE}, row],
        "code": HOSTILE,
        "curl": HOSTILE,
    }
    select(panel, 1, told)
    assert panel.page.locator(".nbllm-drawer").text_content().count(HOSTILE) > 20
    panel.page.get_by_role("button", name="Close details").click()
    open_tab(panel, "Connections")
    panel.page.locator(BARS).hover()
    assert HOSTILE in tip(panel)
    panel.page.locator(".nbllm-lane-name").hover()
    assert HOSTILE in tip(panel)
    open_tab(panel, "Spend")
    panel.page.locator(COLUMNS).first.hover()
    assert HOSTILE in tip(panel)
    assert panel.page.evaluate("window.hacked") is None
    assert panel.page.evaluate("document.querySelectorAll('#output :is(img, script, iframe)').length") == 0


def test_all_controls_have_a_name(panel: PanelPage) -> None:
    show(panel, *two_lanes())
    select(panel, 1, {})
    for tab in ("Connections", "Spend"):
        open_tab(panel, tab)
        nameless = panel.page.evaluate(
            """[...document.querySelectorAll('button, summary, textarea, [tabindex]')]
                .filter(e => e.checkVisibility() && !(e.ariaLabel ?? e.textContent).trim()
                    && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML)"""
        )
        assert nameless == []
    arrows = panel.page.locator(".nbllm-drawer-moves button").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert arrows == ["Previous request", "Next request", "Close details"]


def test_nothing_is_left_when_the_panel_goes(panel: PanelPage) -> None:
    show(panel, [first(1, 0.0), running(request(2, 1.0))], now=START + 2)
    select(panel, 2, {})
    open_tab(panel, "Connections")
    panel.page.evaluate(
        """() => {
            page.dispose();
            page.forget();
            window.looked = 0;
            const set = window.setTimeout;
            window.setTimeout = (...all) => { looked += 1; return set(...all); };
            window.drawer = document.querySelectorAll('.nbllm-panel').length;
        }"""
    )
    panel.page.evaluate(
        "() => new Promise(go => { const end = performance.now() + 600;"
        " const wait = () => performance.now() < end ? requestAnimationFrame(wait) : go(); wait(); })"
    )
    assert panel.page.evaluate("looked") == 0
    assert panel.page.evaluate("drawer") == 0
