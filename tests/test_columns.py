"""Several answers in one output; with a clock and a timer of the test's own."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

from nbllm.columns import notebook_sinks, terminal_sinks
from nbllm.formats import View
from nbllm.rendering import INTERVAL, StreamDisplay
from tests.clocks import Time
from tests.test_formats import Page as MarkdownPage
from tests.test_markdown import HOSTILE, rendered
from tests.test_markup import Page

PLAIN, MARKDOWN, HTML = "text/plain", "text/markdown", "text/html"


class Growing:
    text = ""


class Shown:
    """Columns, and what they published."""

    def __init__(self, *titles: str, format: str = "md") -> None:
        self.time = Time()
        self.published: list[dict[str, Any]] = []
        self.sinks = notebook_sinks(
            titles,
            format,
            lambda **message: self.published.append(message),
            clock=lambda: self.time.now,
            later=self.time.later,
        )

    def finish(self, *views: View) -> dict[str, str]:
        for sink, view in zip(self.sinks, views, strict=True):
            sink.show(view)
        data: dict[str, str] = self.published[-1]["data"]
        return data


class FoldedPage(Page):
    """A witness that knows what we add ourselves: the fold, which has no attributes."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("details", "summary") or attrs:
            super().handle_starttag(tag, attrs)
        else:
            self.open.append(tag)


def requests(*ids: str) -> dict[str, Any]:
    return {"nbllm": {"requests": [{"request_id": each} for each in ids]}}


def test_all_columns_share_one_output_that_is_updated() -> None:
    shown = Shown("one", "two")
    first, second = shown.sinks
    first.show(View("a"))
    shown.time.pass_by(1)
    second.show(View("b", footer="foot"), requests("r2"))
    shown.time.pass_by(1)
    first.show(View("ab", footer="foot"), requests("r1"))
    assert [message["update"] for message in shown.published] == [False, True, True]
    assert len({message["transient"]["display_id"] for message in shown.published}) == 1
    told = [message["metadata"] for message in shown.published]
    assert told == [{}, requests("r2"), requests("r1", "r2")]


def test_columns_that_change_together_are_published_together() -> None:
    shown = Shown("one", "two", "three")
    answers = [Growing() for _ in range(3)]
    displays = [
        StreamDisplay(sink, clock=lambda: shown.time.now, later=shown.time.later) for sink in shown.sinks
    ]
    for _ in range(1000):
        for answer, display in zip(answers, displays, strict=True):
            answer.text += "x"
            display.update(answer)
        shown.time.pass_by(0.001)
    assert len(shown.published) <= 1 / INTERVAL + 1
    shown.time.pass_by(2 * INTERVAL)
    assert shown.published[-1]["data"][PLAIN].count("x" * 1000) == 3


def test_the_end_of_all_is_shown_at_once_and_nothing_after_it() -> None:
    shown = Shown("one", "two")
    shown.finish(View("a", footer="1"), View("b"))
    assert len(shown.published) == 1
    shown.sinks[1].show(View("bc", footer="2"))
    assert "bc" in shown.published[1]["data"][PLAIN]
    shown.time.pass_by(10)
    assert len(shown.published) == 2


def test_each_form_has_the_titles_the_answers_and_the_footers() -> None:
    data = Shown("gpt-4o", "o3").finish(View("A *b*", footer="foot $1"), View("C", "Hm", footer="foot $2"))
    assert (
        data[PLAIN] == "## gpt-4o\n\nA *b*\n\nfoot $1\n\n## o3\n\n(reasoning: 2 characters)\n\nC\n\nfoot $2"
    )
    assert data[MARKDOWN].startswith(
        "### gpt-4o\n\nA *b*\n\n<small>foot &#36;1</small>\n\n### o3\n\n<details>"
    )
    assert "".join(FoldedPage(data[HTML]).shown.split()) == "gpt-4oAbfoot$1o3ReasoningHmCfoot$2"
    assert "<em>b</em>" in data[HTML]


def test_a_column_without_an_answer_has_its_title_and_its_progress() -> None:
    data = Shown("one", "two").finish(View(progress="waiting · 1 s"), View())
    assert data[PLAIN] == "## one\n\nwaiting · 1 s\n\n## two"
    assert data[MARKDOWN] == "### one\n\n<small>waiting · 1 s</small>\n\n### two"
    assert re.sub("<.*?>", " ", data[HTML]).split() == ["one", "waiting", "·", "1", "s", "two"]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "</div></div></div><b onclick=x>", "</details>", "```\nopen", "$$"]
)
def test_no_answer_runs_or_leaves_its_column(text: str) -> None:
    views = View(text, text, footer=text), View("$$ ```html\n<script>\n```", text, footer="END $$")
    data = Shown(text, "two").finish(*views)
    page = FoldedPage(data[HTML])
    assert page.bad == []
    assert page.shown.endswith("END $$")
    assert MarkdownPage(rendered(data[MARKDOWN])).bad == []


def test_dollars_of_different_columns_are_no_math() -> None:
    data = Shown("$a", "b$").finish(View("$", footer="$1"), View("$", footer="$2"))
    assert data[HTML].count("$") == data[HTML].count("<span>$</span>") == 6


def test_the_format_holds_for_every_column() -> None:
    data = Shown("one", "two", format="json").finish(View('{"a": 1}', footer=""), View("[]", footer=""))
    assert data[PLAIN] == '## one\n\n{\n  "a": 1\n}\n\n## two\n\n[]'
    page = Shown("one", format="html").finish(View("<h1>x</h1>", footer="foot"))
    assert '<iframe sandbox="" srcdoc="' in page[HTML]


def test_a_failure_to_show_warns_once_and_never_raises() -> None:
    def publish(**message: Any) -> None:
        raise OSError("no front end")

    time = Time()
    (sink,) = notebook_sinks(["one"], publish=publish, clock=lambda: time.now, later=time.later)
    with warnings.catch_warnings(record=True, action="always") as warned:
        sink.show(View("a"))
        sink.show(View("ab"))
        time.pass_by(1)
    (warning,) = warned
    assert "the answers could not be shown: OSError('no front end')" in str(warning.message)


def test_a_terminal_gets_each_answer_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = terminal_sinks(["one", "two\x1b[2J"])
    first.show(View("a"))
    second.show(View("b\x1b]0;title\x07", footer="foot 2"))
    assert capsys.readouterr().out == "## two[2J\n\nb]0;title\n\nfoot 2\n\n"
    first.show(View("ab", footer="foot 1"))
    assert capsys.readouterr().out == "## one\n\nab\n\nfoot 1\n\n"
