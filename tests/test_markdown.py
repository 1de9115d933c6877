"""A model's Markdown: nothing in it runs, loads or swallows what follows, and all of it is shown.

The witness is nbconvert's renderer, which keeps HTML as it is, like a front end that trusts an output.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from nbllm.markdown import escape, safe

TAGS = {
    *("p", "a", "code", "pre", "strong", "em", "del", "ul", "ol", "li", "dl", "dt", "dd", "hr", "br"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "blockquote"),
    *("sub", "sup", "span", "div", "small"),
}
# What nbconvert adds to its own tags.
ATTRIBUTES = {"class", "style", "start", "id", "title"}
CHECKBOX = [("class", "task-list-item-checkbox"), ("type", "checkbox"), ("disabled", None)]


class Witness(HTMLParser):
    """What of a page could run or load, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.shown = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "input" and attrs[:3] == CHECKBOX:
            return
        if tag not in TAGS:
            self.bad.append(tag)
        for name, value in attrs:
            plain = re.match(r"(https?:|mailto:|#|[^:&\\]*$)", value or "", re.IGNORECASE)
            if name not in ATTRIBUTES and not (name == "href" and plain):
                self.bad.append(f"{tag} {name}={value}")

    def handle_comment(self, data: str) -> None:
        self.bad.append(f"<!--{data}")

    def handle_decl(self, decl: str) -> None:
        self.bad.append(f"<!{decl}")

    def handle_pi(self, data: str) -> None:
        self.bad.append(f"<?{data}")

    def handle_data(self, data: str) -> None:
        self.shown += data


def rendered(markdown: str) -> str:
    return str(markdown2html_mistune(markdown))


ORDINARY = [
    "",
    "Plain *text* with `code`, **bold**, $x^2$ and a [link](https://example.org/a_(b)?c=1&d=2 \"T\").",
    "# Title\n\n1. one\n   ```python\n   for x in y[1]:\n       print(x)\n   ```\n2. two\n\n> quote\n",
    "| a | b |\n|---|---|\n| 1<br>2 | H<sub>2</sub>O |\n",
    "~~~~sh\nls | wc\n~~~~\n\n```\n$a $b\n```\n",
    "a < b, 3<4, x <- y, price $5 and $6, \\(x\\), \\[y\\], $$\\frac{a}{b}$$",
    "[1]: https://example.org\n\nSee [this][1], [that](#part) and [here](docs/page.md).",
    "https://example.org/?q=1 www.example.org a@example.org",
    ".env",
    "http://127.0.0.1/secret",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_answer_stays_letter_by_letter(text: str) -> None:
    assert safe(text) == text


HOSTILE = [
    "<script>alert(1)</script>",
    "a <img src=x onerror=alert(1)> b",
    "<iframe src=http://evil></iframe><svg onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "![alt](http://evil/x.png)",
    "!![alt](http://evil/x.png) \\!![a](//evil/x.png) ![a][r]\n\n[r]: http://evil/x.png",
    "[click](javascript:alert(1)) [c](<java\tscript:alert(1)>) [c]( vbscript:x) [c](&#106;avascript:x)",
    "[r]: javascript:alert(1)\n\n[click][r]",
    "[r]:\n  javascript:alert(1)\n\n[r]",
    "<!-- never closed",
    "<http://q/onclick=alert(1)>",
    "<<http://a![x](http://evil)>",
    "<br>\n```\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\ncode\n```',
    "~~~html\n<b>\n~~~\n<script>x</script>",
    "- ```html\n  <b>\n  ```\n<script>x</script>",
    "> ```\n> code\n<script>x</script>",
    "text\n     ```\n<script>x</script>\n     ```",
    "- a\n  ```\n  code\n<script>x</script>",
    "$$\n ```\n$$\n<script>x</script>",
    "\\begin{a}\n```html\n\\end{a}\n<script>x</script>\n```",
    "```mermaid\n<script>x</script>\n```",
    "\\\\![\n```\n\\\\]\n<script>x</script>\n```",
    "`code <b>` \\`<script>x</script>` ``a ` <i>``",
    "``` `x`\n<script>x</script>\n```",
    "[\n\n```\n<!--]: <script>x</script>\n```",
    "a\r```\r<script>x</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_an_answer_is_active(text: str) -> None:
    assert Witness(rendered(safe(text))).bad == []


def test_the_witness_sees_what_is_active() -> None:
    assert all(Witness(rendered(text)).bad for text in HOSTILE[:5])


FENCES = [
    *("```", "~~~", "````", "~~~~", "`", "\n```\n", "\n```html\n", "  ```\n", "\n   ~~~\n"),
    *("\n", "\n\n", "\r", " ", "  ", "   ", "    ", "- ", "1. ", "> ", "word", "\u2028", "<b>", "<br>"),
]
PIECES = [
    *FENCES,
    *"$<>[]()!*_\\:|-\t",
    *("<script>", "<img src=x onerror=1>", "![a](http://h/x.png)", "[x](", "]: ", "javascript:1", "http://a"),
    *("<!--", "-->", "<div>", "<pre>", "html", "   <b onx=1>\n", "[r]: ", "![r]", "`<b>`", "<http://q>"),
    *("| a | b |\n|---|---|\n", "&lt;", '"onx=1 y="', "```mermaid\n"),
    *("$$", "\\\\[", "\\\\]", "\\\\", "\\begin{a}", "\\end{a}"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=400, deadline=None)
@example("<<http://a![x](http://evil)>")
def test_no_mixture_is_active(text: str) -> None:
    assert Witness(rendered(safe(text))).bad == []


@given(st.lists(st.sampled_from(FENCES), max_size=20).map("".join))
@settings(max_examples=400, deadline=None, derandomize=True)  # mistune has opinions of its own on fences
def test_no_mixture_of_fences_swallows_the_footer(text: str) -> None:
    page = rendered(f"{safe(text)}\n\n<small>FOOTER</small>")
    assert re.search(r"<p><small>FOOTER</small></p>\s*\Z", page)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Use <placeholder> and `ssh <user>@host`.", "Use <placeholder> and ssh <user>@host."),
        ("\\<i> and \\`<i>\\`", "<i> and `<i>`"),
        ("[click](javascript:alert(1))", "[click](javascript:alert(1))"),
        ("```html\n<p class=\"x\">$5</p>\n```", '<p class="x">$5</p>'),
        ("1. do\n   ```html\n   <b>x</b>\n   ```", "do\n<b>x</b>"),
        ("`` `<b>` ``", "`<b>`"),
    ],
)  # fmt: skip
def test_what_was_defused_is_still_shown(text: str, shown: str) -> None:
    seen = Witness(rendered(safe(text))).shown
    assert " ".join(seen.split()) == " ".join(shown.split())


def test_a_remote_image_becomes_a_link() -> None:
    assert '<a href="http://evil/x.png">image: alt</a>' in rendered(safe("![alt](http://evil/x.png)"))


def test_code_with_tags_keeps_its_fence_and_language() -> None:
    assert safe("Look:\n```html\n<b>\n```\nDone") == "Look:\n\n```html\n<b>\n```\n\nDone"
    nested = "1. do\n   ```html\n   <b>x</b>\n   ```\n2. done"
    assert safe(nested) == "1. do\n\n   ```html\n   <b>x</b>\n   ```\n\n2. done"


def test_code_with_tags_beside_display_math_is_shown_too() -> None:
    page = rendered(safe("$$x$$\n\n- a\n  ```html\n  <b>\n\n    $$ `x`\n  ```\n  b"))
    assert "<pre><code>&lt;b&gt;\n\n  $$ `x`</code></pre>" in html.unescape(page).replace("<b>", "&lt;b&gt;")


def test_math_with_a_less_than_sign_stays_math() -> None:
    assert safe("If $a<b$ then\n$$\nx<y\n$$") == "If $a< b$ then\n$$\nx< y\n$$"


def test_dollars_in_a_url_are_not_math() -> None:
    # JupyterLab would put `$…$` back into the attribute, quotes and all.
    hostile = '[x](http://a$"onmouseover=alert(1) y="$) and http://a$"onmouseover=alert(1)"$'
    page = rendered(safe(hostile))
    assert "<a" not in page
    assert html.unescape(re.sub(r"<.*?>", "", page)).strip() == hostile


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = 1",
        "```python\nx = 1\n``",
        "````\n```\n",
        "~~~\ncode\n```",
        "1. do\n   ```\n   code",
        "  ```\n  code\n     ",
        "```html\n<b>",
        "- ```\n  code",
        "> ```\n> code",
    ],
)
def test_an_unfinished_fence_ends_before_the_footer(text: str) -> None:
    page = rendered(f"{safe(text)}\n\n<small>FOOTER</small>")
    assert "<p><small>FOOTER</small></p>" in page
    assert page.count("<pre>") == 1


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=40))
@settings(deadline=None)
@example(
    "<img src=x> [a](http://b.c) *x* _y_ `z` $1 $2 www.x.com a@b.c ~~s~~ \\ &amp; | # 1. - ![i](j) https://k"
)
def test_escaped_text_is_shown_letter_by_letter(text: str) -> None:
    page = rendered(f"<small>{escape(text)}</small>")
    assert re.sub(r"<[^>]*>", "", page).count("<") == 0
    assert set(re.findall(r"</?\w+", page)) <= {"<p", "</p", "<small", "</small"}
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert shown.split() == text.split()


def test_escaped_text_is_one_line_that_can_be_read_in_the_file_too() -> None:
    footer = "gpt-4.1 · review · 412→96 tok · 1.8 s (first 0.4 s) · new connection: idle 94 s, all busy"
    assert escape(footer) == footer
    assert escape("a\n\nb\tc") == "a b c"
    assert "$" not in escape("$1 and $2")
