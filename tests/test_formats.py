"""What is shown in each format; nbconvert's renderer is the witness that nothing in it is active."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm import masking
from nbllm.formats import View, mime_bundle
from tests.test_markdown import HOSTILE, PIECES, Witness, rendered

FORMATS = ["md", "text", "json", "code", "html"]
PLAIN, MARKDOWN, HTML = "text/plain", "text/markdown", "text/html"


class Page(Witness):
    """A witness that knows what we add ourselves: the fold, which has no attributes."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("details", "summary") or attrs:
            super().handle_starttag(tag, attrs)


# -- Markdown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [".env", "http://127.0.0.1:9/", "<b>x</b> ![a](http://evil)", "a\r\n```\nb"])
def test_plain_text_is_untouched(text: str) -> None:
    for format in ("md", "text"):
        assert mime_bundle(View(text), format)[PLAIN] == text
        assert mime_bundle(View(text, footer="foot"), format)[PLAIN] == f"{text}\n\nfoot"


def test_the_footer_is_a_line_of_its_own_and_escaped() -> None:
    shown = mime_bundle(View("```\ncode", footer="<img src=x> · [a](http://b.c)"))[MARKDOWN]
    assert shown == (
        "```\ncode\n```\n\n<small>&lt;img src&#61;x&gt; · &#91;a&#93;(http&#58;//b&#46;c)</small>"
    )


def test_without_text_there_is_only_the_footer() -> None:
    assert mime_bundle(View(footer="foot")) == {PLAIN: "foot", MARKDOWN: "<small>foot</small>"}
    assert mime_bundle(View(footer="")) == {PLAIN: "", MARKDOWN: ""}


def test_progress_is_a_small_line_that_the_answer_replaces() -> None:
    line = "waiting for gpt-4o · 3 s"
    assert mime_bundle(View(progress=line)) == {PLAIN: line, MARKDOWN: f"<small>{line}</small>"}
    assert mime_bundle(View("a", progress=line)) == {PLAIN: "a", MARKDOWN: "a"}
    assert "waiting" not in mime_bundle(View(reasoning="a", progress=line))[MARKDOWN]


def test_reasoning_is_folded_away() -> None:
    shown = mime_bundle(View("Yes.", "*Hm* " * 300, footer="foot"))
    assert shown[PLAIN] == "(reasoning: 1,500 characters)\n\nYes.\n\nfoot"
    start, end = "<details><summary>Reasoning</summary>\n\n", "</details>\n\nYes.\n\n<small>foot</small>"
    assert shown[MARKDOWN].startswith(start)
    assert shown[MARKDOWN].endswith(end)
    assert rendered(shown[MARKDOWN]).count("<em>Hm</em>") == 300


def test_a_model_that_thinks_is_said_to_think() -> None:
    shown = mime_bundle(View(reasoning="Hm"))
    assert shown[PLAIN] == "(thinking: 2 characters)"
    assert "<summary>Thinking… 2 characters</summary>" in shown[MARKDOWN]
    assert "Thinking" not in mime_bundle(View(reasoning="Hm", footer="interrupted"))[MARKDOWN]


@pytest.mark.parametrize(
    "reasoning", ["```\nopen", "- a\n  ```\n  open", "</details>", "<!--", "| a |\n|--|", "> q"]
)
def test_reasoning_never_swallows_the_answer(reasoning: str) -> None:
    page = rendered(mime_bundle(View("ANSWER", reasoning, footer="FOOTER"))[MARKDOWN])
    assert re.search(r"</details>\s*<p>ANSWER</p>\s*<p><small>FOOTER</small></p>\s*\Z", page)


@given(*[st.lists(st.sampled_from([*PIECES, "</details>"]), max_size=15).map("".join)] * 2)
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_reasoning_and_answer_is_active(reasoning: str, text: str) -> None:
    page = Page(rendered(mime_bundle(View(text, reasoning, footer="foot"))[MARKDOWN]))
    assert page.bad == []


def test_math_that_reaches_from_the_reasoning_into_code_brings_nothing_to_life() -> None:
    view = View("```html\n<script>x</script>\n```\n$$", "$$", footer="foot")
    assert Page(rendered(mime_bundle(view)[MARKDOWN])).bad == []


# -- the other formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_format_runs_what_a_model_wrote(text: str, format: str) -> None:
    for view in (View(text), View(text, footer="foot")):
        shown = mime_bundle(view, format)
        assert "foot" in shown[PLAIN] or view.footer is None
        assert Page(rendered(shown.get(MARKDOWN, ""))).bad == []


@pytest.mark.parametrize("format", FORMATS)
def test_progress_reasoning_and_footer_are_in_every_format(format: str) -> None:
    for view, told in (
        (View(progress="PROGRESS"), "PROGRESS"),
        (View(reasoning="Hm"), "hinking"),
        (View("a", footer="FOOTER"), "FOOTER"),
    ):
        for shown in mime_bundle(view, format).values():
            assert told in shown


def test_text_is_text_only() -> None:
    assert mime_bundle(View("# a <b>", footer="foot"), "text") == {PLAIN: "# a <b>\n\nfoot"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"b":[1],"a":"é"}', '{\n  "b": [\n    1\n  ],\n  "a": "é"\n}'),
        ('\n```json\n{"a": "\\u00e9"}\n```\n', '{\n  "a": "é"\n}'),
        ('"```"', '"```"'),
        ("5", "5"),
    ],
)
def test_json_is_made_readable(text: str, shown: str) -> None:
    mark = "````" if "```" in shown else "```"
    made = mime_bundle(View(text, footer="foot"), "json")
    assert made[PLAIN] == f"{shown}\n\nfoot"
    assert made[MARKDOWN] == f"{mark}json\n{shown}\n{mark}\n\n<small>foot</small>"


@pytest.mark.parametrize(
    "text",
    [
        *("No *JSON*.", '{"a": NaN}', '{"a": 1e999}', '{"a": 1', '"\\ud83d"'),
        'So:\n```json\n{"a": 1}\n```',
        pytest.param("[" * 99999, id="deep"),
    ],
)
def test_what_is_no_json_is_shown_as_it_came(text: str) -> None:
    made = mime_bundle(View(text, footer=""), "json")
    assert made[PLAIN] == text
    assert text in made[MARKDOWN]


@pytest.mark.parametrize("text", ['{"a": 1', '```json\n{"a": 1'])
def test_json_that_is_still_coming_is_code_already(text: str) -> None:
    assert mime_bundle(View(text), "json")[MARKDOWN] == '```json\n{"a": 1\n```'


def test_code_stands_alone_in_its_language() -> None:
    made = mime_bundle(View("So:\n```py\nx = '```'\n```\nDone.", footer="foot"), "code")
    assert made[PLAIN] == "x = '```'\n\nfoot"
    assert made[MARKDOWN] == "````python\nx = '```'\n````\n\n<small>foot</small>"


def test_a_page_is_source_until_it_is_whole() -> None:
    text = "```html\n<h1 id=a>Hello</h1>\n```"
    coming, whole = mime_bundle(View(text), "html"), mime_bundle(View(text, footer="foot"), "html")
    assert set(coming) == {PLAIN, MARKDOWN}
    assert coming[PLAIN] == "<h1 id=a>Hello</h1>"
    assert coming[MARKDOWN].strip() == text
    assert whole[MARKDOWN].strip() == f"{text}\n\n<small>foot</small>"
    assert whole[PLAIN] == "<h1 id=a>Hello</h1>\n\nfoot"
    assert '<iframe sandbox="" srcdoc="' in whole[HTML]


def test_a_page_has_its_source_below_where_frames_are_dropped() -> None:
    made = mime_bundle(View("<h1>Hello $x$</h1>", "Hm", footer="$1"), "html")[HTML]
    without = Page(re.sub(r"<iframe.*?</iframe>", "", made))
    assert without.bad == []
    assert "".join(without.shown.split()) == "ReasoningHmSource<h1>Hello$x$</h1>$1"


def test_an_answer_that_never_came_makes_no_page() -> None:
    assert set(mime_bundle(View(footer="failed"), "html")) == {PLAIN, MARKDOWN}


@pytest.mark.parametrize("format", FORMATS)
def test_an_answer_that_quotes_a_key_does_not_show_it(format: str) -> None:
    """The notebook is saved with it. What only looks like a key may be an example."""
    masking.keep_secret("my-own-key-123")
    text = "```python\nkey = 'my-own-key-123'\nother = 'sk-your-key-goes-here'\n```"
    for view in (View(text, reasoning=text), View(text, reasoning=text, footer="a footer")):
        shown = repr(mime_bundle(view, format))
        assert "my-own-key-123" not in shown
        assert "[key]" in shown
        assert "sk-your-key-goes-here" in shown
