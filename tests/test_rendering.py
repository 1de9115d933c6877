"""The throttled display, what it writes to, and the footer; with a clock and a timer of the test's own."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from nbllm import tagging
from nbllm.rendering import (
    INTERVAL,
    LONG_TEXT,
    NotebookSink,
    StreamDisplay,
    TerminalSink,
    footer,
    mime_bundle,
)
from nbllm.tracing import Call, Record


class Growing:
    text = ""


class Time:
    """A clock, and the timers on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def later(self, seconds: float, function: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, function))
        return self.timers[-1]

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now + 1e-9]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.function()


class Timer:
    def __init__(self, at: float, function: Callable[[], None]) -> None:
        self.at, self.function, self.cancelled = at, function, False

    def cancel(self) -> None:
        self.cancelled = True


class Shown:
    """A sink that keeps what it was given, and when."""

    def __init__(self, time: Time) -> None:
        self.time = time
        self.states: list[tuple[float, str, str | None]] = []

    def show(self, text: str, footer: str | None) -> None:
        self.states.append((self.time.now, text, footer))


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
    assert shown.states == [(100.0, "a", None)]


def test_at_most_twenty_states_a_second(display: StreamDisplay, shown: Shown, time: Time) -> None:
    answer = Growing()
    for _ in range(1000):
        answer.text += "x"
        display.update(answer)
        time.pass_by(0.001)
    times = [at for at, _, _ in shown.states]
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
    assert [text for _, text, _ in shown.states] == ["a"]
    time.pass_by(INTERVAL)
    assert [text for _, text, _ in shown.states] == ["a", "abc"]
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
    display.finish("abc", "foot")
    time.pass_by(10)
    assert shown.states == [(100.0, "a", None), (100.0, "abc", "foot")]


def test_a_failure_to_show_warns_once_and_never_raises(time: Time) -> None:
    class Broken:
        def show(self, text: str, footer: str | None) -> None:
            raise OSError("no front end")

    display = StreamDisplay(Broken(), clock=lambda: time.now, later=time.later)
    answer = Growing()
    answer.text = "a"
    with warnings.catch_warnings(record=True, action="always") as warned:
        display.update(answer)
        display.update(answer)
        time.pass_by(1)
        display.finish("a", "foot")
    (warning,) = warned
    assert "the answer could not be shown: OSError('no front end')" in str(warning.message)


# -- sinks -------------------------------------------------------------------------------------------


def test_a_notebook_gets_one_output_that_is_updated() -> None:
    published: list[dict[str, Any]] = []
    sink = NotebookSink(lambda **message: published.append(message))
    sink.show("a", None)
    sink.show("ab", "foot")
    assert [message["update"] for message in published] == [False, True]
    assert len({message["transient"]["display_id"] for message in published}) == 1
    assert published[-1]["data"] == mime_bundle("ab", "foot")


def test_a_notebook_that_missed_the_first_state_gets_an_output_with_the_next() -> None:
    published: list[dict[str, Any]] = []

    def publish(**message: Any) -> None:
        if not published and message["data"]["text/plain"] == "a":
            raise OSError("no front end")
        published.append(message)

    sink = NotebookSink(publish)
    with pytest.raises(OSError, match="no front end"):
        sink.show("a", None)
    sink.show("ab", None)
    assert [message["update"] for message in published] == [False]


@pytest.mark.parametrize("text", [".env", "http://127.0.0.1:9/", "<b>x</b> ![a](http://evil)", "a\r\n```\nb"])
def test_plain_text_is_untouched(text: str) -> None:
    assert mime_bundle(text)["text/plain"] == text
    assert mime_bundle(text, "foot")["text/plain"] == f"{text}\n\nfoot"


def test_the_footer_is_a_line_of_its_own_and_escaped() -> None:
    markdown = mime_bundle("```\ncode", "<img src=x> · [a](http://b.c)")["text/markdown"]
    assert markdown == (
        "```\ncode\n```\n\n<small>&lt;img src&#61;x&gt; · &#91;a&#93;(http&#58;//b&#46;c)</small>"
    )


def test_without_text_there_is_only_the_footer() -> None:
    assert mime_bundle("", "foot") == {"text/plain": "foot", "text/markdown": "<small>foot</small>"}


def test_a_terminal_gets_each_piece_once_and_no_control_sequences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = TerminalSink()
    sink.show("One\x1b]0;title\x07 ", None)
    sink.show("One\x1b]0;title\x07 two\n\t\u3000three", None)
    sink.show("One\x1b]0;title\x07 two\n\t\u3000three", "foot\x1b[2J")
    assert capsys.readouterr().out == "One]0;title two\n\t\u3000three\n\nfoot[2J\n"


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
