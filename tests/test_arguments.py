"""The line of a magic: words, quotes, JSON, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nbllm import UsageProblem
from nbllm.arguments import OPTIONS, Ask, options_help, parse_cell, parse_line


def test_a_bare_cell_is_only_a_prompt() -> None:
    assert parse_cell("", "\nWhat is\n  this?\n\n") == Ask(prompt="What is\n  this?")


@pytest.mark.parametrize(
    "line",
    [
        "gpt-4o -s review -o answer",
        "-s review gpt-4o -o answer",
        "-m gpt-4o --session=review --output answer",
    ],
)
def test_model_and_options_come_in_any_order(line: str) -> None:
    assert parse_cell(line, "Hi") == Ask(prompt="Hi", models=("gpt-4o",), session="review", output="answer")


def test_several_models_pictures_and_switches() -> None:
    line = "gpt-4o -i a.png claude-haiku-4-5 --raw -i fig --no-history --context 3 -m demo/fast -q --dry-run"
    assert parse_cell(line, "Hi") == Ask(
        prompt="Hi",
        models=("gpt-4o", "claude-haiku-4-5", "demo/fast"),
        images=("a.png", "fig"),
        raw=True,
        no_history=True,
        context=3,
        quiet=True,
        dry_run=True,
    )


@pytest.mark.parametrize(
    ("line", "system"),
    [
        ('--system "You are a pirate"', "You are a pirate"),
        ("--system 'You are \"the\" pirate'", 'You are "the" pirate'),
        ('--system="say \\"hi\\" \\\\ {a} $b"', 'say "hi" \\ {a} $b'),
        ("--system Don't", "Don't"),
        (r"--system \LaTeX{a}", r"\LaTeX{a}"),
        ('--system "-x"', "-x"),
    ],
)
def test_quotes_work_as_in_a_shell(line: str, system: str) -> None:
    assert parse_cell(line, "Hi").system == system


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("k=0.5", 0.5),
        ("k=-1", -1),
        ("k=true", True),
        ("k=True", True),
        ("k=None", None),
        ("k=null", None),
        ("k=low", "low"),
        ("k=", ""),
        ("k=a=b", "a=b"),
        ("k='two words'", "two words"),
        ('k="5"', "5"),
        ("k=NaN", "NaN"),
        ('k={"a": {"b": "c d"}}', {"a": {"b": "c d"}}),
        ('k=["a b", "c"]', ["a b", "c"]),
        ("k=[not,json]", "[not,json]"),
        ("k={x}", "{x}"),
    ],
)
@pytest.mark.parametrize("form", ["-p {}", "--param {}", "--param={}"])
def test_parameters_are_json_where_they_are_json(form: str, given: str, value: Any) -> None:
    asked = parse_cell(form.format(given) + " -p last=1", "Hi")
    assert asked.params == {"k": value, "last": 1}


def test_json_may_also_be_quoted_as_in_a_shell() -> None:
    assert parse_cell("-p 'k={\"a\": 1}'", "Hi").params == {"k": {"a": 1}}


def test_the_whole_line_is_the_prompt() -> None:
    assert parse_line(' What\'s "this" -o {a}? ') == Ask(prompt='What\'s "this" -o {a}?')


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("-m demo/fast -o x What -s this?", Ask(prompt="What -s this?", models=("demo/fast",), output="x")),
        ("-- -5 + 3", Ask(prompt="-5 + 3")),
        ("-s a -- -o", Ask(prompt="-o", session="a")),
        ("- a list", Ask(prompt="- a list")),
    ],
)
def test_options_come_before_the_prompt_of_a_line(line: str, asked: Ask) -> None:
    assert parse_line(line) == asked


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sesion x", "there is no option --sesion; did you mean '--session'?"),
        ("--mod x", "there is no option --mod; did you mean '--model'?"),
        ("-x", "there is no option -x; there are -m, --model, -s"),
        ("--api-key=sk-secret", "there is no option --api-key; there are"),
        ("-s", "-s needs a value: -s SESSION"),
        ("-s -o x", "-s needs a value"),
        ("-s a -s b", "-s is given twice"),
        ("a b a", "the model a is given twice"),
        ("--raw=yes", "--raw is a switch and takes no value"),
        ("-f pdf", "-f pdf is not known; there are md, text, json, code, html"),
        ("-f jsn", "did you mean 'json'?"),
        ("--context two", "--context takes a whole number; got 'two'"),
        ("--context -1", "--context needs a value"),
        ("--schema a.b", "takes the name of a variable; 'a.b' is none"),
        ("-o 1a", "takes the name of a variable; '1a' is none"),
        ("-o class", "'class' is none"),
        ("-p temperature", "-p takes KEY=VALUE"),
        ("-p max-tokens=1", "-p takes KEY=VALUE"),
        ("-p stream=false", "--no-stream does that"),
        ("-p session_id=x", "-s SESSION does that"),
        ("-p messages=[]", "the prompt is the message"),
        ('--system "open', 'a quote (") is opened and not closed'),
    ],
)
def test_a_mistake_is_told_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_cell(line, "Hi")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_without_a_prompt_it_says_where_it_goes() -> None:
    with pytest.raises(UsageProblem, match="on the lines below"):
        parse_cell("demo/fast", " \n")
    with pytest.raises(UsageProblem, match="%llm What"):
        parse_line("-s review")


def test_what_was_asked_can_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_line("Hi").prompt = "x"  # type: ignore[misc]


def test_the_help_names_every_flag() -> None:
    fields = {field.name for field in dataclasses.fields(Ask)} - {"prompt"}
    assert {option.field for option in OPTIONS} == fields
    assert all(flag in options_help() for option in OPTIONS for flag in option.flags)
