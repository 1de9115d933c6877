"""Markdown as HTML of our own, and pages in frames: nothing in them runs or loads, and all of it is shown."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.markup import escape, frame, from_markdown
from tests.servers import RawServer
from tests.test_markdown import HOSTILE, ORDINARY, PIECES, Witness

VOID = {"br", "hr"}


class Page(Witness):
    """A witness that also sees what stays open, or is closed too often."""

    def __init__(self, page: str) -> None:
        self.open: list[str] = []
        super().__init__(page)
        if self.open:
            self.bad.append(f"open: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        ours = {("target", "_blank"), ("rel", "noopener noreferrer")}
        if tag == "a" and attrs:
            assert ours <= set(attrs)
            links = [value or "" for name, value in attrs if name == "href"]
            self.bad += [link for link in links if not re.match("https?:|mailto:", link, re.IGNORECASE)]
        super().handle_starttag("del" if tag == "s" else tag, [pair for pair in attrs if pair not in ours])

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.bad.append(f"</{tag}>")


@pytest.mark.parametrize(
    "text", [*ORDINARY, *HOSTILE, "</div></div>", "[x](docs/page.md) [y](#part) [z]() ![]()"]
)
def test_nothing_is_active(text: str) -> None:
    assert Page(from_markdown(text)).bad == []


@given(st.lists(st.sampled_from([*PIECES, "</div>", "\\(", "\\)", "\\end{a"]), max_size=30).map("".join))
@settings(max_examples=400, deadline=None)
def test_no_mixture_is_active(text: str) -> None:
    assert Page(from_markdown(text)).bad == []


def test_the_witness_sees_what_is_active() -> None:
    for page in ("<p></div></p>", "<p>", "<p onclick=x></p>", "<script></script>", "<img>"):
        assert Page(page).bad != []


def test_markdown_is_rendered() -> None:
    text = "# T\n\n- *a*\n- `b`\n\n| x | y |\n|---|--:|\n| 1 | ~~2~~ |\n\n```py\nif a < b:\n    c\n```"
    page = from_markdown(text)
    for part in (
        "<h1>T</h1>",
        "<em>a</em>",
        "<code>b</code>",
        "<td>1</td>",
        "<s>2</s>",
        "if a &lt; b:\n    c\n",
    ):
        assert part in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[click](javascript:alert(1))", "[click](javascript:alert(1))"),
        ("[click](command:evil) [r](page.md)", "[click](command:evil) [r](page.md)"),
        ("<b>x</b> </div>", "<b>x</b> </div>"),
        ("costs $5 and $6, or \\$7", "costs $5 and $6, or $7"),
    ],
)
def test_what_does_nothing_is_still_shown(text: str, shown: str) -> None:
    assert Page(from_markdown(text)).shown.strip() == shown


def test_an_image_becomes_a_link() -> None:
    assert "image: a b</a>" in from_markdown("![a *b*](http://evil/x.png)")
    nested = from_markdown("[![a](http://evil/x.png) b](http://h)")
    assert re.sub("<a [^>]*>", "<a>", nested) == "<p><a>image: a b</a></p>\n"
    assert "evil" not in nested


# -- math ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "math",
    [
        "$x_1^*y^*z$",
        "$a$",
        "$\\{a \\$ b\\}$",
        "\\(a * b * c\\)",
        "\\[a\\_b\\\\c\\]",
        "$$a *b* c$$",
        "$$\n- a\n= b \\\\\n\n$$".replace("\n\n", "\n"),
        "\\begin{align*}\na &= b \\\\\n# c\n\\end{align*}",
        "$a<b$",
    ],
)
def test_math_stays_as_the_model_wrote_it(math: str) -> None:
    assert html.unescape(from_markdown(math)) == f"<p>{math}</p>\n"
    for around in (f"so {math} holds", f"1. one\n\n   {math.replace(chr(10), chr(10) + '   ')}\n2. two"):
        shown = "\n".join(line.strip() for line in html.unescape(from_markdown(around)).split("\n"))
        assert math in shown or "\n" in math
    in_list = from_markdown("- a\n  " + math.replace("\n", "\n  "))
    assert math in html.unescape(in_list)


@pytest.mark.parametrize("text", ["$5 and $6", "a $ b $ c", "$5-$6", "$", "$$\n\na\n\n$$", "\\$a\\$"])
def test_a_dollar_that_is_no_math_pairs_with_no_other(text: str) -> None:
    page = from_markdown(text)
    assert page.count("$") == page.count("<span>$</span>") == text.count("$")
    assert escape("$1 <b>") == "<span>$</span>1 &lt;b&gt;"


def test_dollars_in_code_and_links_mean_nothing() -> None:
    page = from_markdown('`$a$` [x](http://a$"onmouseover=alert(1)"$)\n\n    $b$\n')
    assert "<code>$a$</code>" in page
    assert Page(page).bad == []


@pytest.mark.parametrize("text", ["$$", "\\(", "\\[\n", "\\begin{a}\n", "$a", "- $$\n", "> \\[\n"])
def test_openings_without_an_end_cost_no_time_to_speak_of(text: str) -> None:
    assert from_markdown(text * 1000)


# -- frames --------------------------------------------------------------------------------------------


def test_a_frame_holds_all_of_the_page_and_lets_nothing_out() -> None:
    page = '"></iframe><script>x</script>' + "<h1 class='a'>$1</h1> <LINK rel=preconnect> &quot;"
    framed = frame(page)
    assert framed.count("<") == framed.count(">") == 2
    source = html.unescape(framed.split('srcdoc="')[1].split('"')[0])
    policy, shown = source.split('data:">', 1)
    assert "default-src 'none'" in policy
    assert shown == page.replace("<LINK", "<basefont")
    assert 'sandbox=""' in framed


EVIL = """<link rel=preconnect href=URL><link rel=stylesheet href=URL/a>
<img src=URL/b><script src=URL/c></script>
<iframe src=URL/d></iframe><meta http-equiv=refresh content="0;url=URL/e"><style>@import "URL/f"; h1 {
background: url(URL/g) }</style><object data=URL/h></object><embed src=URL/i>
<video src=URL/j autoplay></video>
<svg><image href=URL/k /></svg><script>parent.document.title = "x"; fetch("URL/l")</script><h1>Hello</h1>"""


@pytest.mark.browser
def test_a_page_in_a_browser_runs_and_loads_nothing(page: Any) -> None:
    with RawServer() as server:
        address = f"http://127.0.0.1:{server.port}"
        page.set_content(f"<title>title</title>{frame(EVIL.replace('URL', f'{address}/html/evil'))}")
        page.frame_locator("iframe").get_by_role("heading").wait_for()
        assert page.title() == "title"
        # The witness: the server is asked for what stands outside of such a frame, and only for that.
        page.set_content(f"<img src={address}/html/witness>")
        server.wait_for(lambda: len(server.requests) > 0)
        assert {request.path for request in server.requests} == {"/html/witness"}
