"""The throttled display, and what it writes to; with a clock and a timer of the test's own."""

from __future__ import annotations

import io
import itertools
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytest

from nbllm.formats import View, mime_bundle
from nbllm.rendering import INTERVAL, LONG_OUTPUT, NotebookSink, NullSink, StreamDisplay, TerminalSink
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
    answer.text = "x" * (2 * LONG_OUTPUT)
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
    display.progress("3 s")  # nothing has changed that is shown
    time.pass_by(1)
    answer.text = "a"
    display.update(answer)
    waiting = [View(progress=text) for text in ("1 s", "2 s", "2 s")]
    assert [view for _, view in shown.states] == [*waiting, View(reasoning="hm"), View("a", "hm")]


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
