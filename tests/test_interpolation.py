r"""`{{…}}`: what is put in, what stays, and what is said about mistakes."""

from __future__ import annotations

import datetime
import io
from types import SimpleNamespace
from typing import Any

import IPython.display
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

from nbllm import UsageProblem
from nbllm.attachments import content_parts
from nbllm.interpolation import Prompt, Variable, expand

NAMES: dict[str, Any] = {
    "name": "otter",
    "n": 3,
    "rows": ["first", "second"],
    "obj": SimpleNamespace(attr="deep", _hidden=1),
    "df": pd.DataFrame({"col": [7, 8]}),
    "data": "{{name}} {name} $name \\{{n}}",
    "table": {"a": {"b": 1}},
    "fig": Figure(figsize=(2, 1), dpi=50),
    "other": Figure(figsize=(1, 2), dpi=50),
    "price": 1234.5,
    "day": datetime.datetime(2025, 2, 7, 9, 30),
    "fig1": 1,
}
DF = "|col|\n|---|\n|7|\n|8|"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{name}}", "otter"),
        ("a {{ name }}, {{n}}s", "a otter, 3s"),
        ("{{obj.attr}}", "deep"),
        ("{{rows[0]}}{{rows[-1].upper()}}", "firstSECOND"),
        ('{{df["col"].sum()}}', "15"),
        ("{{', '.join(r for r in rows)}}", "first, second"),
        ('{{f"{n:>4}"}}', "   3"),
        ("{{n + 1}} {{1 + 1}} {{len(rows)}}", "4 2 2"),
        ("{{{name}}}", "{otter}"),
        ("\\textbf{{{name}}}", "\\textbf{otter}"),
        ("{{ {'k': n}['k'] }}", "3"),
        ("{{name!r}} {{ name!s }} {{obj.attr!a}}", "'otter' otter 'deep'"),
        ("{{price:.2f}} {{n / 4:.0%}} {{ price:,.1f }}", "1234.50 75% 1,234.5"),
        ("{{n:>4}}|{{name:<7}}|{{name!r:*^9}}|{{n:03d}}|{{n:+}}", "   3|otter  |*'otter'*|003|+3"),
        ("{{day:%d.%m.%Y}} {{day:%H:%M}}", "07.02.2025 09:30"),
        ("{{rows[0:1][0]:_>7}} {{{'a:b': n}['a:b']:.1f}}", "__first {{{'a:b': n}['a:b']:.1f}}"),
        ("{{df!r}}", repr(pd.DataFrame({"col": [7, 8]}))),
    ],
)
def test_an_expression_is_replaced_by_its_value(text: str, expanded: str) -> None:
    assert expand(text, NAMES).content == expanded


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": 1}}',
        '{"a":[{"b":{}}]}',
        "$name ${name} {name} {} {{}} {{ }}",
        r"\frac{a}{b} \mathbb{R}^{n} x_{i_{j}} \left\{{x}\right\}",
        "int m[2][2] = {{1,2},{3,4}}; int z[9] = {{0}};",
        '<div style={{color: "red"}}>',
        "{{#if x}} {{/if}} {{> partial}}",
        "}} {{ and {{{{ never closed",
        "def f(): return {n}",
        "100% {% raw %}",
        '{{"a":1}} {{"a": .5}} {{1:.2f}} {{"name"!r}} {{n!}} {{n!x}} {{!r}} {{n!r!}} {{n:}}',
        r"\label{{fig1:n}} \ref{{fig1:1}} {{price:x}} {{name: 'n'}} {{n: .5}} {{ n :b, c }}",
        "{{price:.2f:}} {{price:{n}}} {{price:.2f // comment}} {{n !important}}",
    ],
)
def test_every_other_brace_stays(text: str) -> None:
    assert expand(text, NAMES) == Prompt(text, ())


def test_a_value_is_not_looked_through_again() -> None:
    assert expand("{{data}}", NAMES).content == NAMES["data"]
    assert expand("{{a}}{{b}}", {"a": "{{", "b": "name}}", "name": "x"}).content == "{{name}}"


@given(st.text())
def test_any_value_is_put_in_as_it_is(value: str) -> None:
    assert expand("<{{value}}|{{value}}>", {"value": value, "name": "otter"}).content == f"<{value}|{value}>"


@given(st.text(alphabet="{} \\$ab1\n\"'()[]"))
def test_any_text_without_a_pair_of_pairs_stays(text: str) -> None:
    text = text.replace("}}", "} }")
    assert expand(text, {}) == Prompt(text, ())


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        (r"\{{name}}", "{{name}}"),
        (r"\{{ and }} in Jinja, \{{#if x}}", "{{ and }} in Jinja, {{#if x}}"),
        (r"\{{name}} {{name}}", "{{name}} otter"),
        (r"\{a} \{ {{n}} \}", r"\{a} \{ 3 \}"),
    ],
)
def test_a_backslash_keeps_the_braces(text: str, expanded: str) -> None:
    assert expand(text, NAMES).content == expanded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{nmae}}", "{{nmae}}: name 'nmae' is not defined; did you mean 'name'?"),
        ("{{ zzzzz }}", r"{{zzzzz}}: name 'zzzzz' is not defined (\{{ keeps the braces as they are)"),
        ("{{lenn(rows)}}", "did you mean 'len'?"),
        ("{{obj.atr}}", "has no attribute 'atr'; did you mean 'attr'?"),
        ("{{rows[5]}}", "{{rows[5]}}: IndexError: list index out of range"),
        ('{{df["nope"]}}', "KeyError: 'nope'"),
        ("{{n / 0}}", "ZeroDivisionError"),
        ("{{pirce:.2f}}", "{{pirce:.2f}}: name 'pirce' is not defined; did you mean 'price'?"),
        ("{{name:.2f}}", "{{name:.2f}}: ValueError: Unknown format code 'f'"),
        ("{{await n}}", "SyntaxError"),
        ("{{next(iter([]))}}", "StopIteration"),
        ("{{broken}}", "{{broken}}: RuntimeError: no text for it"),
        ("{{textless}}", "{{textless}}: TypeError: __str__ returned non-string"),
        ("{{frame_of_broken}}", "{{frame_of_broken}}: RuntimeError: no text for it"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, message: str) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text\nfor it")

    class Textless:
        def __str__(self) -> Any:
            return None

    broken = {"broken": Broken(), "textless": Textless(), "frame_of_broken": pd.DataFrame({"a": [Broken()]})}
    with pytest.raises(UsageProblem) as caught:
        expand(text, NAMES | broken)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_coroutine_is_refused_and_not_left_behind() -> None:
    async def later() -> str:
        return "x"

    with pytest.raises(UsageProblem, match="await it"):
        expand("{{later()}}", {"later": later})


def test_an_expression_changes_no_names() -> None:
    names = {"n": 1}
    assert expand("{{(n := 5)}}", names).content == "5"
    assert names == {"n": 1}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{df}}", DF),
        ("Sum up {{df}} in a word", f"Sum up \n{DF}\n\n in a word"),
        ("Sum up\n{{df}}\nin a word\n", f"Sum up\n{DF}\n\nin a word\n"),
        ("Sum up\n\n{{df}}\n\nin a word", f"Sum up\n\n{DF}\n\nin a word"),
        ("Sum up\n{{df}}\n", f"Sum up\n{DF}\n"),
        ("{{name}}{{df}}{{df}}", f"otter\n{DF}\n\n{DF}"),
        ("{{df}}\n{{df}}", f"{DF}\n\n{DF}"),
        ('print(f"{{df}}")', f'print(f"\n{DF}\n\n")'),
        ("{{df.head(1)}}", "|col|\n|---|\n|7|"),
        ('{{df["col"]}}', DF),
        ('{{df["col"][1:]}}', "||col|\n|---|---|\n|1|8|"),
        ("{{df.iloc[0, 0]}}", "7"),
        ('{{f"<{df}>"}}', f"<{NAMES['df']}>"),
    ],
)
def test_a_table_stands_on_lines_of_its_own(text: str, expanded: str) -> None:
    assert expand(text, NAMES).content == expanded


def test_text_around_tables_is_no_row_of_them() -> None:
    page = markdown2html_mistune(expand("Sum up {{df}} in\n{{df}}\none word", NAMES).text)
    assert page.count("<table") == page.count("</table>") == 2
    assert "<p>Sum up</p>" in page
    assert "<p>in</p>" in page
    assert "<p>one word</p>" in page


def test_what_went_in_is_told_in_its_order() -> None:
    frame = pd.DataFrame({"a": range(12345), "b": 0})
    names = NAMES | {"df": frame, "long": "x" * 1_204, "one": "1"}
    prompt = expand("{{long}} \\{{n}} {{ df }} {{0}} {{df['b'].head(3)}} {{long}}{{one}}{{fig}}", names)
    assert prompt.variables == (
        Variable("long", "str", "1,204 characters", None),
        Variable(
            "df",
            "DataFrame",
            "100 of 12,345 rows \N{MULTIPLICATION SIGN} 2 columns",
            "only the first 100 of 12,345 rows",
        ),
        Variable("df['b'].head(3)", "Series", "3 rows \N{MULTIPLICATION SIGN} 1 column", None),
        Variable("long", "str", "1,204 characters", None),
        Variable("one", "str", "1 character", None),
        Variable("fig", "Figure", "image", None),
    )
    assert "\n|99|0|\n\n(only the first 100 of 12,345 rows)\n\n {{0}}" in prompt.text


def test_the_caller_says_how_many_rows_go_in() -> None:
    prompt = expand("{{df}}", NAMES, max_rows=1)
    assert prompt.content == "|col|\n|---|\n|7|\n\n(only the first 1 of 2 rows)"
    assert prompt.variables[0].notice == "only the first 1 of 2 rows"
    with pytest.raises(UsageProblem, match="max_rows is -1"):
        expand("{{df}}", NAMES, max_rows=-1)


def test_a_text_goes_in_whole_however_long() -> None:
    long = "0123456789" * 1_000_000
    prompt = expand("<{{long}}>", {"long": long})
    assert prompt.content == f"<{long}>"
    assert prompt.variables == (Variable("long", "str", "10,000,000 characters", None),)


def test_pictures_stand_between_their_texts() -> None:
    prompt = expand("Which of {{fig}} and {{other}} shows {{name}}s?\n{{fig}}\n", NAMES)
    fig, other = NAMES["fig"], NAMES["other"]
    assert prompt.content == ["Which of ", fig, " and ", other, " shows otters?\n", fig]
    assert prompt.text == "Which of [image: fig] and [image: other] shows otters?\n[image: fig]"
    kinds = [part["type"] for part in content_parts(prompt.content)]
    assert kinds == ["text", "image_url", "text", "image_url", "text", "image_url"]


def test_no_blank_text_stands_beside_pictures() -> None:
    prompt = expand(" {{fig}}\n{{other}}{{df}}\n{{fig}}\n", NAMES)
    assert prompt.content == [NAMES["fig"], NAMES["other"], f"{DF}\n\n", NAMES["fig"]]


def test_every_kind_of_picture_goes_in() -> None:
    file = io.BytesIO()
    (image := Image.new("RGB", (4, 3))).save(file, format="PNG")
    axes = Figure(figsize=(2, 1), dpi=50).subplots()
    shown = IPython.display.Image(data=file.getvalue())
    prompt = expand("{{image}}{{axes}}{{shown}}", {"image": image, "axes": axes, "shown": shown})
    assert isinstance(prompt.content, list)
    assert all(part is value for part, value in zip(prompt.content, (image, axes, shown), strict=True))
    assert prompt.text == "[image: image][image: axes][image: shown]"
    assert len(content_parts(prompt.content)) == 3


def test_a_frame_with_a_column_called_figure_is_a_table() -> None:
    frame = pd.DataFrame({"figure": [1]})
    assert expand("{{frame}}", {"frame": frame}).content == "|figure|\n|---|\n|1|"


def test_an_error_that_can_t_be_told_is_told_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def fail() -> None:
        raise Silent

    with pytest.raises(UsageProblem, match=r"^\{\{fail\(\)\}\}: Silent$"):
        expand("{{fail()}}", {"fail": fail})
