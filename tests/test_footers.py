"""One line about a request, or several."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nbllm import tagging
from nbllm.footers import footer, summary
from tests.records import WHOLE, record


def test_the_whole_footer() -> None:
    line = "gpt-4o · review · 412→96 tok · $0.0011 · 1.8 s (first 0.4 s) · connection reused"
    assert footer(record(**WHOLE)) == line
    assert footer(record(**WHOLE), mark="interrupted") == f"interrupted · {line}"


def test_what_is_unknown_is_left_out() -> None:
    assert footer(record()) == "gpt-4o · review"
    assert footer(None) == ""
    assert footer(None, mark="interrupted") == "interrupted"
    assert "$" not in footer(record(**{**WHOLE, "cost_usd": None}))


def test_the_kernel_s_own_session_is_not_worth_a_word() -> None:
    assert footer(record(session_id=tagging.current_session())) == "gpt-4o"


def test_a_demo_model_is_called_one_and_has_a_price_where_one_was_set() -> None:
    line = footer(record(**WHOLE, provider="demo", request_model="small"))
    assert line.startswith("demo/small (demo model) · review · 412→96 tok · $0.0011 · 1.8 s")
    unpriced = footer(record(**WHOLE | {"cost_usd": None}, provider="demo", request_model="small"))
    assert unpriced.startswith("demo/small (demo model) · review · 412→96 tok · 1.8 s")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (0.0, "free"),
        (0.00114, "$0.0011"),
        (0.000012, "$0.000012"),
        (0.0999, "$0.100"),
        (0.05, "$0.050"),
        (0.5, "$0.50"),
        (1.0, "$1.00"),
        (1234.5, "$1,234.50"),
    ],
)
def test_costs(given: float, shown: str) -> None:
    assert footer(record(cost_usd=given)) == f"gpt-4o · review · {shown}"


@pytest.mark.parametrize(
    ("duration", "first", "shown"),
    [
        (23.4, None, "23 ms"),
        (99.4, 5.0, "99 ms (first 5 ms)"),
        (99.6, None, "0.1 s"),
        (1830, 420, "1.8 s (first 0.4 s)"),
        (59940, None, "59.9 s"),
        (59960, None, "1 min 0 s"),
        (72400, None, "1 min 12 s"),
    ],
)
def test_times(duration: float, first: float | None, shown: str) -> None:
    assert footer(record(duration_ms=duration, ttft_ms=first)) == f"gpt-4o · review · {shown}"


@pytest.mark.parametrize(
    ("reason", "idle", "shown"),
    [
        ("first", None, "new connection: first"),
        ("all busy", None, "new connection: all busy"),
        ("closed by server", 94_000.0, "new connection: idle 94 s, closed by server"),
        ("idle expired", 310_400.0, "new connection: idle 310 s, expired"),
        ("closed by server", 4_000.0, "new connection: idle 4.0 s, closed by server"),
        (None, None, "new connection"),
    ],
)
def test_new_connections_and_why(reason: str | None, idle: float | None, shown: str) -> None:
    made = record(connection_reused=False, connection_reason=reason, connection_idle_ms=idle)
    assert footer(made) == f"gpt-4o · review · {shown}"


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ({"input_tokens": 12345, "output_tokens": 0}, "12,345→0 tok"),
        ({"input_tokens": 5}, "5 tok in"),
        ({"output_tokens": 6}, "6 tok out"),
    ],
)
def test_tokens(tokens: dict[str, int], shown: str) -> None:
    assert footer(record(**tokens)) == f"gpt-4o · review · {shown}"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("length", "cut off at the token limit"), ("content_filter", "finish: content_filter")],
)
def test_an_answer_that_did_not_end_by_itself_says_so(reason: str, shown: str) -> None:
    assert footer(record(finish_reason=reason)) == f"gpt-4o · review · {shown}"


# -- several requests ---------------------------------------------------------------------------------


def test_several_requests_in_one_line() -> None:
    ok = record(**WHOLE, status="ok")
    assert summary([ok]) == "1 request · gpt-4o · review · 412→96 tok · $0.0011"
    failed = record(status="error", request_model="gpt-4o-mini")
    line = "3 requests · 1 not ok · gpt-4o, gpt-4o-mini · review · 824→192 tok · $0.0023"
    assert summary([ok, failed, ok]) == line


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    ok = record(**WHOLE, status="ok")
    unpriced = record(**{**WHOLE, "cost_usd": None, "input_tokens": None}, status="ok")
    assert summary([ok, unpriced]) == "2 requests · gpt-4o · review · 192 tok out"
    row = SimpleNamespace(**{**WHOLE, "status": "ok", "provider": "demo"}, request_model="m", session_id="s")
    assert summary([row]) == "1 request · demo/m · s · 412→96 tok · $0.0011"
    row.cost_usd = None
    assert summary([row]) == "1 request · demo/m · s · 412→96 tok"


def test_that_it_was_tried_again_is_told() -> None:
    assert " · 1.8 s (first 0.4 s) · attempt 2 · connection reused" in footer(record(**WHOLE, attempt=2))
