r"""`{{…}}`: what is put in, what stays, and what is said about mistakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm import UsageProblem
from nbllm.interpolation import expand

NAMES: dict[str, Any] = {
    "name": "otter",
    "n": 3,
    "rows": ["first", "second"],
    "obj": SimpleNamespace(attr="deep", _hidden=1),
    "df": pd.DataFrame({"col": [7, 8]}),
    "data": "{{name}} {name} $name \\{{n}}",
    "table": {"a": {"b": 1}},
}


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
    ],
)
def test_an_expression_is_replaced_by_its_value(text: str, expanded: str) -> None:
    assert expand(text, NAMES) == expanded


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
    ],
)
def test_every_other_brace_stays(text: str) -> None:
    assert expand(text, NAMES) == text


def test_a_value_is_not_looked_through_again() -> None:
    assert expand("{{data}}", NAMES) == NAMES["data"]
    assert expand("{{a}}{{b}}", {"a": "{{", "b": "name}}", "name": "x"}) == "{{name}}"


@given(st.text())
def test_any_value_is_put_in_as_it_is(value: str) -> None:
    assert expand("<{{value}}|{{value}}>", {"value": value, "name": "otter"}) == f"<{value}|{value}>"


@given(st.text(alphabet="{} \\$ab1\n\"'()[]"))
def test_any_text_without_a_pair_of_pairs_stays(text: str) -> None:
    text = text.replace("}}", "} }")
    assert expand(text, {}) == text


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
    assert expand(text, NAMES) == expanded


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
        ("{{await n}}", "SyntaxError"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        expand(text, NAMES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_coroutine_is_refused_and_not_left_behind() -> None:
    async def later() -> str:
        return "x"

    with pytest.raises(UsageProblem, match="await it"):
        expand("{{later()}}", {"later": later})


def test_an_expression_changes_no_names() -> None:
    names = {"n": 1}
    assert expand("{{(n := 5)}}", names) == "5"
    assert names == {"n": 1}
