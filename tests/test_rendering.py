"""The throttled display, what it writes to, and the footer; with a clock and a timer of the test's own."""

from __future__ import annotations

import io
import itertools
import sys
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from nbllm import tagging
from nbllm.rendering import (
    INTERVAL,
    LONG_TEXT,
    NotebookSink,
    NullSink,
    StreamDisplay,
    TerminalSink,
    View,
    footer,
    metadata,
    mime_bundle,
    summary,
)
from nbllm.tracing import Call, Record
from tests.clocks import Time


class Growing:
    text = ""
    reasoning = ""


class Shown:
    """A sink that keeps what it was given, and when."""

    def __init__(self, time: Time) -> None:
        self.time = time
        self.states: list[tuple[float, View]] = []
        self.metadata: Mapping[str, Any] | None = None

    def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
        self.states.append((self.time.now, view))
        self.metadata = metadata


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def shown(time: Time) -> Shown:
    return Shown(time)


@pytest.fixture
def display(time: Time, shown: Shown) -> StreamDisplay:
    return StreamDisplay(shown, clock=lambda: time.now, later=time.later)


def test_the_first_piece_is_shown_at_once(display: StreamDisplay, shown: Shown) -> None:
    answer = Growing()
    display.update(answer)
    assert shown.states == []
    answer.text = "a"
    display.update(answer)
    assert shown.states == [(100.0, View("a"))]


def test_at_most_twenty_states_a_second(display: StreamDisplay, shown: Shown, time: Time) -> None:
    answer = Growing()
    for _ in range(1000):
        answer.text += "x"
        display.update(answer)
        time.pass_by(0.001)
    times = [at for at, _ in shown.states]
    assert 19 <= len(times) <= 21
    assert min(b - a for a, b in itertools.pairwise(times)) >= INTERVAL - 1e-6
    assert INTERVAL >= 1 / 20


def test_the_last_piece_before_a_pause_is_shown_without_waiting_for_the_next(
    display: StreamDisplay, shown: Shown, time: Time
) -> None:
    answer = Growing()
    for text in ("a", "ab", "abc"):
        answer.text = text
        display.update(answer)
    assert [view.text for _, view in shown.states] == ["a"]
    time.pass_by(INTERVAL)
    assert [view.text for _, view in shown.states] == ["a", "abc"]
    assert time.timers == []


def test_long_texts_are_shown_more_rarely(display: StreamDisplay, shown: Shown, time: Time) -> None:
    answer = Growing()
    answer.text = "x" * (4 * LONG_TEXT)
    display.update(answer)
    display.update(answer)
    time.pass_by(3.9 * INTERVAL)
    assert len(shown.states) == 1
    time.pass_by(0.2 * INTERVAL)
    assert len(shown.states) == 2


def test_the_end_comes_at_once_and_nothing_after_it(display: StreamDisplay, shown: Shown, time: Time) -> None:
    answer = Growing()
    for text in ("a", "ab"):
        answer.text = text
        display.update(answer)
    display.finish(View("abc", footer="foot"), META)
    time.pass_by(10)
    assert shown.states == [(100.0, View("a")), (100.0, View("abc", footer="foot"))]
    assert shown.metadata == META


def test_progress_is_shown_until_something_of_the_answer_comes(
    display: StreamDisplay, shown: Shown, time: Time
) -> None:
    answer = Growing()
    for text in ("1 s", "2 s"):
        display.progress(text)
        time.pass_by(1)
    display.update(answer)  # a chunk with nothing in it
    answer.reasoning = "hm"
    time.pass_by(1)
    display.update(answer)
    time.pass_by(1)
    display.progress("3 s")
    time.pass_by(1)
    answer.text = "a"
    display.update(answer)
    waiting = [View(progress=text) for text in ("1 s", "2 s", "2 s")]
    thinking = [View(reasoning="hm")] * 2
    assert [view for _, view in shown.states] == [*waiting, *thinking, View("a", "hm")]


def test_an_answer_that_knows_no_reasoning_has_none(display: StreamDisplay, shown: Shown) -> None:
    class OnlyText:
        text = "a"

    display.update(OnlyText())
    assert shown.states == [(100.0, View("a"))]


def test_a_failure_to_show_warns_once_and_never_raises(time: Time) -> None:
    class Broken:
        def show(self, view: View, metadata: Mapping[str, Any] | None = None) -> None:
            raise OSError("no front end")

    display = StreamDisplay(Broken(), clock=lambda: time.now, later=time.later)
    answer = Growing()
    answer.text = "a"
    with warnings.catch_warnings(record=True, action="always") as warned:
        display.update(answer)
        display.update(answer)
        time.pass_by(1)
        display.finish(View("a", footer="foot"))
    (warning,) = warned
    assert "the answer could not be shown: OSError('no front end')" in str(warning.message)


# -- sinks -------------------------------------------------------------------------------------------

META = {"nbllm": {"requests": [{"request_id": "k-r1"}]}}


def test_a_notebook_gets_one_output_that_is_updated() -> None:
    published: list[dict[str, Any]] = []
    sink = NotebookSink(publish=lambda **message: published.append(message))
    sink.show(View("a"))
    sink.show(View("ab", footer="foot"), META)
    assert [message["update"] for message in published] == [False, True]
    assert len({message["transient"]["display_id"] for message in published}) == 1
    assert [message["metadata"] for message in published] == [{}, META]
    assert published[-1]["data"] == mime_bundle(View("ab", footer="foot"))


def test_a_notebook_shows_the_format_that_was_asked_for() -> None:
    published: list[dict[str, Any]] = []
    NotebookSink("text", lambda **message: published.append(message)).show(View("# a", footer="foot"))
    assert published[0]["data"] == {"text/plain": "# a\n\nfoot"}


def test_a_notebook_that_missed_the_first_state_gets_an_output_with_the_next() -> None:
    published: list[dict[str, Any]] = []

    def publish(**message: Any) -> None:
        if not published and message["data"]["text/plain"] == "a":
            raise OSError("no front end")
        published.append(message)

    sink = NotebookSink(publish=publish)
    with pytest.raises(OSError, match="no front end"):
        sink.show(View("a"))
    sink.show(View("ab"))
    assert [message["update"] for message in published] == [False]


def test_a_terminal_gets_each_piece_once_and_no_control_sequences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = TerminalSink()
    sink.show(View("One\x1b]0;title\x07 "))
    sink.show(View("One\x1b]0;title\x07 two\n\t\u3000three"))
    sink.show(View("One\x1b]0;title\x07 two\n\t\u3000three", footer="foot\x1b[2J"))
    assert capsys.readouterr().out == "One]0;title two\n\t\u3000three\n\nfoot[2J\n"


def test_a_file_has_neither_progress_nor_reasoning(capsys: pytest.CaptureFixture[str]) -> None:
    sink = TerminalSink()
    for view in (View(progress="waiting"), View(reasoning="hm"), View("a", "hm"), View("ab", "hm", "foot")):
        sink.show(view)
    assert capsys.readouterr().out == "ab\n\nfoot\n"


@pytest.mark.parametrize("ending", [View("ab", footer="foot"), View(footer="foot")])
def test_on_a_terminal_what_is_waited_for_gives_way_to_what_comes(
    ending: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    sink = TerminalSink()
    sink.show(View(progress="waiting · 1 s"))
    sink.show(View(progress="waiting\x1b]0;title\x07 · 2 s"))
    sink.show(View(reasoning="hm"))
    sink.show(ending)
    erase = "\r\x1b[K"
    *waited, shown = terminal.getvalue().split(erase)
    assert waited == ["waiting · 1 s", "waiting]0;title · 2 s", "(thinking…)"]
    assert shown == ("ab\n\nfoot\n" if ending.text else "foot\n")


def test_a_terminal_gets_code_and_json_when_they_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    sink = TerminalSink("json")
    for text in ('{"a"', '{"a": 1}'):
        sink.show(View(text))
    assert capsys.readouterr().out == ""
    sink.show(View('{"a": 1}', footer="foot"))
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n\nfoot\n'


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    NullSink().show(View("a", "b", footer="foot"), META)
    assert capsys.readouterr() == ("", "")


# -- the footer --------------------------------------------------------------------------------------


def record(**values: Any) -> Record:
    call = Call("review")
    call.provider, call.model = "openai", "gpt-4o"
    made = Record(call, True)
    for name, value in values.items():
        setattr(made, name, value)
    return made


WHOLE = {
    "input_tokens": 412,
    "output_tokens": 96,
    "cost_usd": 0.00114,
    "duration_ms": 1830.0,
    "ttft_ms": 420.0,
    "connection_reused": True,
    "finish_reason": "stop",
}


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


def test_a_demo_model_is_called_one_and_costs_nothing_to_speak_of() -> None:
    line = footer(record(**WHOLE, provider="demo", request_model="small"))
    assert line.startswith("demo/small (demo model) · review · 412→96 tok · 1.8 s")


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


# -- metadata, and several requests --------------------------------------------------------------------


def test_metadata_keep_what_is_known_of_a_request() -> None:
    made = record(**WHOLE, status="ok", started_at=1_700_000_000.25)
    assert metadata(made) == {
        "request_id": made.request_id,
        "session_id": "review",
        "model": "gpt-4o",
        "status": "ok",
        "input_tokens": 412,
        "output_tokens": 96,
        "cost_usd": 0.00114,
        "duration_ms": 1830.0,
        "ttft_ms": 420.0,
        "started_at": "2023-11-14T22:13:20.250+00:00",
    }
    assert set(metadata(record())) == {"request_id", "session_id", "model", "started_at"}


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
    assert summary([row]) == "1 request · demo/m · s · 412→96 tok"
