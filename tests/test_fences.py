"""Code taken out of an answer, and put into fences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.fences import Fence, blocks, code_and_language, code_of, fenced, unfenced


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("", ""),
        ("x = 1\n", "x = 1\n"),
        ("Use `x`, not ```y```.", "Use `x`, not ```y```."),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\na\n```\nand\n~~~\nb\n~~~", "a\n\nb"),
        ("```python\na\n```\n```python\nb\n```", "a\n\nb"),
        ("```py\na\n```\nprints\n```\n1\n```\n```Python3\nb\n```", "a\n\nb"),
        ("```sh\npip install x\n```\n```python\nimport x\n```", "import x"),
        ("```css\nb {}\n```\n```html\n<b>\n```\n```css\ni {}\n```", "b {}\n\ni {}"),
        ("```\nout\n```\n```js\nlet x\n```", "let x"),
        ("1. do\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("> ```\n> a\n>   b\n> ```", "a\n  b"),
        ("````\n```\nx\n```\n````", "```\nx\n```"),
        ("```python\nstill = coming", "still = coming"),
        ("```", ""),
        ("```python\r\na\r\nb\r\n```", "a\nb"),
    ],
)
def test_code_of(answer: str, code: str) -> None:
    assert code_of(answer) == code


def test_another_language_can_be_preferred() -> None:
    answer = "```python\nx\n```\n```html\n<b>\n```"
    assert code_of(answer, prefer="html") == "<b>"


@pytest.mark.parametrize(
    ("answer", "language"),
    [("x", ""), ("```\nx\n```", ""), ("```Py title=a\nx\n```", "python"), ("```C++\nx\n```", "c++")],
)
def test_the_language(answer: str, language: str) -> None:
    assert code_and_language(answer)[1] == language


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("```json\n[1]\n```", "[1]"),
        ("\n```jsonc title=a\r\n[\r\n1]\r\n```\r\n", "[\n1]"),
        ("~~~json\n[1]\n~~~", "[1]"),
        ("````\n```\n````", "```"),
        ("```json\n[1", "[1"),
        ("```JSON [1]```", " [1]"),
        ("```json [\n1]\n```", " [\n1]\n"),
        ("```json\n[1]```", "\n[1]"),
        ("```true```", "true"),
        ("``````", ""),
    ],
)
def test_a_fence_around_all_is_taken_off(text: str, inside: str) -> None:
    assert unfenced(text) == inside


@pytest.mark.parametrize(
    "text", ["", " [1]\r\n", '"```"', "So:\n```\n[1]\n```", "```\n1\n```\nor\n```\n2\n```", "```1``` ```2```"]
)
def test_what_is_not_all_in_one_fence_stays_as_it_is(text: str) -> None:
    assert unfenced(text) == text


@given(st.text(alphabet="`~ab \n", max_size=40))
def test_a_fence_holds_whatever_is_put_into_it(code: str) -> None:
    (fence,) = blocks(fenced(code, "sh"))
    assert isinstance(fence, Fence)
    assert (fence.language, "\n".join(fence.lines)) == ("sh", code)
