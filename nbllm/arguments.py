"""The line of a magic, read into a frozen value.

Owns the table of options of `%%llm` and `%llm`, from which their help is written, and `Ask`. Pure: no
namespace, no model, no display. Called by `magics`.

Words are separated by spaces and may be quoted, as in a shell; outside of quotes a backslash is itself. A
JSON object or list after `=` is one word with its quotes. Flags are written in full: `--mod` means nothing.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .exceptions import UsageProblem, did_you_mean
from .settings import CHOICES


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the field of `Ask` that it fills, its flags, and its line of help.

    Attributes:
        field: Of `Ask`.
        flags: As they are written, the short one first.
        metavar: What its value is; "" for a switch, which has none.
        help: What it does.
        values: The values it takes, where these are few.
        repeats: Whether it may be given again.
    """

    field: str
    flags: tuple[str, ...]
    metavar: str
    help: str
    values: tuple[str, ...] = ()
    repeats: bool = False


OPTIONS = (
    Option("models", ("-m", "--model"), "MODEL", "as MODEL after %%llm; for %llm the only way", repeats=True),
    Option("session", ("-s", "--session"), "SESSION", "the conversation that this goes on with"),
    Option("output", ("-o", "--output"), "VAR", "store the answer in this variable, and show it"),
    Option(
        "format",
        ("-f", "--format"),
        "FORMAT",
        "how to show it: md, text, json, code, html",
        CHOICES["format"],
    ),
    Option("system", ("--system",), "TEXT", "the system message; {{name}} works here too"),
    Option(
        "params",
        ("-p", "--param"),
        "KEY=VALUE",
        "any parameter of nbllm.acompletion, again for each; VALUE is JSON, else text: "
        '-p temperature=0 -p stop=["a b", "c"] -p response_format={"type": "json_object"}',
        repeats=True,
    ),
    Option("images", ("-i", "--image"), "IMAGE", "a path, a URL, or a variable with a picture", repeats=True),
    Option("schema", ("--schema",), "VAR", "a class or a JSON schema that the answer must fit"),
    Option("base_url", ("--base-url",), "URL", "another server that speaks OpenAI's format"),
    Option("new", ("--new",), "", "start the conversation over"),
    Option("no_history", ("--no-history",), "", "send this prompt alone; the conversation stays"),
    Option("context", ("--context",), "N", "send along the N cells that ran before, with what they gave"),
    Option("raw", ("--raw",), "", "send the prompt as it is: {{name}} stays"),
    Option("no_stream", ("--no-stream",), "", "ask for the whole answer at once"),
    Option("dry_run", ("--dry-run",), "", "print what would be sent, and send nothing"),
    Option("debug", ("--debug",), "", "show the traceback of an error"),
    Option("quiet", ("-q", "--quiet"), "", "show nothing; for use with -o"),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a magic was asked to do; a field that was not given is None, empty or False.

    Attributes:
        prompt: The user's message, with its `{{…}}` still in it.
        models: Model strings; several answer side by side.
        session: Session id.
        output: Name of the variable for the answer.
        format: One of the setting's.
        system: System message, with its `{{…}}` still in it.
        params: Further parameters of `acompletion`.
        images: Paths, URLs or names of variables.
        schema: Name of the variable that holds a class or a JSON schema.
        base_url: Another server.
        new: Start the conversation over.
        no_history: Neither send nor keep the conversation.
        context: How many cells to send along.
        raw: Put no variables in.
        no_stream: Ask for the whole answer at once.
        dry_run: Send nothing.
        debug: Show tracebacks.
        quiet: Show nothing.
    """

    prompt: str
    models: tuple[str, ...] = ()
    session: str | None = None
    output: str | None = None
    format: str | None = None
    system: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    schema: str | None = None
    base_url: str | None = None
    new: bool = False
    no_history: bool = False
    context: int = 0
    raw: bool = False
    no_stream: bool = False
    dry_run: bool = False
    debug: bool = False
    quiet: bool = False


def options_help() -> str:
    """The options, one per line, for a docstring."""
    rows = [(f"{', '.join(option.flags)} {option.metavar}".rstrip(), option.help) for option in OPTIONS]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)


def parse_cell(line: str, cell: str) -> Ask:
    """Read `%%llm [MODEL …] [options]` and the cell below it.

    Raises:
        UsageProblem: The line can't be read, or the cell is blank.
    """
    words = Words(line)
    given = _read_options(words)
    while (word := words.next()) is not None:
        given.setdefault("models", []).append(word.text)
        given = _read_options(words, given)
    if not cell.strip():
        raise UsageProblem("there is no prompt: write it on the lines below %%llm")
    return _ask(cell.strip("\n"), given)


def parse_line(line: str) -> Ask:
    """Read `%llm one line`: the whole line is the prompt, after options if it begins with `-`.

    Raises:
        UsageProblem: The options can't be read, or there is no prompt.
    """
    words = Words(line)
    given = _read_options(words)
    prompt = words.rest()
    if not prompt:
        raise UsageProblem("there is no prompt: %llm What is asynchronous I/O?")
    return _ask(prompt, given)


def _ask(prompt: str, given: Mapping[str, Any]) -> Ask:
    models = given.get("models", [])
    twice = next((model for model in models if models.count(model) > 1), None)
    if twice is not None:
        raise UsageProblem(f"the model {twice} is given twice")
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Ask(prompt=prompt, **{**given, **lists})


def unquoted(value: str) -> str:
    """`value` without the quotes around it, if there are."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    raw: str

    @property
    def is_flag(self) -> bool:
        return self.raw.startswith("-") and self.raw != "-"


class Words:
    """The words of a magic's line, one by one, each with its quotes (`raw`) and without (`text`).

    A quote that is not closed is an error, but in a line that is `unfinished`, where it closes at the end.
    """

    def __init__(self, line: str, *, unfinished: bool = False) -> None:
        self.line = line
        self.position = 0
        self._unfinished = unfinished

    def peek(self) -> _Word | None:
        """The next word, which stays the next."""
        before = self.position
        try:
            return self.next()
        finally:
            self.position = before

    def rest(self) -> str:
        """All that has not been taken, as it was written."""
        return self.line[self.position :].strip()

    def next(self) -> _Word | None:
        """Take the next word; None at the end."""
        line, here = self.line, self.position
        while here < len(line) and line[here].isspace():
            here += 1
        begin, text = here, ""
        while here < len(line) and not line[here].isspace():
            opens = here == begin or line[here - 1] == "="
            if opens and line[here] in "'\"":
                part, here = _quoted(line, here, self._unfinished)
                text += part
            elif opens and line[here] in "{[" and here > begin and (end := _json_end(line, here)):
                text += line[here:end]
                here = end
            else:
                text += line[here]
                here += 1
        self.position = here
        return _Word(text, line[begin:here]) if here > begin else None


def _quoted(line: str, here: int, unfinished: bool) -> tuple[str, int]:
    """The text between the quotes that open at `here`, and where the line goes on."""
    quote, text, here = line[here], "", here + 1
    while here < len(line) and line[here] != quote:
        if quote == '"' and line[here] == "\\" and line[here + 1 : here + 2] in ('"', "\\"):
            here += 1
        text += line[here]
        here += 1
    if here >= len(line) and not unfinished:
        raise UsageProblem(f"a quote ({quote}) is opened and not closed")
    return text, min(here + 1, len(line))


def _json_end(line: str, here: int) -> int | None:
    """Where the JSON object or list that begins at `here` ends, if it is one and the word ends with it."""
    try:
        _, end = json.JSONDecoder().raw_decode(line, here)
    except (ValueError, RecursionError):
        return None
    return end if end == len(line) or line[end].isspace() else None


def _read_options(words: Words, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Take options up to the first word that is none; `--` ends them."""
    given = {} if given is None else given
    while (word := words.peek()) is not None and word.is_flag:
        words.next()
        if word.raw == "--":
            break
        flag, equals, _ = word.text.partition("=")
        option = _option(flag)
        if not option.metavar:
            if equals:
                raise UsageProblem(f"{flag} is a switch and takes no value")
            given[option.field] = True
            continue
        if equals:
            value: _Word | None = _Word(word.text.partition("=")[2], word.raw.partition("=")[2])
        else:
            value = words.next()
        if value is None or (not equals and value.is_flag):
            raise UsageProblem(f"{flag} needs a value: {flag} {option.metavar}")
        _fill(given, option, flag, value)
    return given


def _option(flag: str) -> Option:
    for option in OPTIONS:
        if flag in option.flags:
            return option
    if flag in ("-h", "--help"):
        raise UsageProblem("%%llm? shows the options")
    flags = [flag for option in OPTIONS for flag in option.flags]
    hint = did_you_mean(flag, flags) or f"; there are {', '.join(flags)}"
    raise UsageProblem(f"there is no option {flag}{hint}")


def _fill(given: dict[str, Any], option: Option, flag: str, value: _Word) -> None:
    text = value.text
    if option.field == "params":
        name, content = _param(value)
        given.setdefault("params", {})[name] = content
        return
    if option.repeats:
        given.setdefault(option.field, []).append(text)
        return
    if option.field in given:
        raise UsageProblem(f"{flag} is given twice")
    if option.metavar == "VAR" and (not text.isidentifier() or keyword.iskeyword(text)):
        raise UsageProblem(f"{flag} takes the name of a variable; {text!r} is none")
    if option.values and text not in option.values:
        hint = did_you_mean(text, option.values) or f"; there are {', '.join(option.values)}"
        raise UsageProblem(f"{flag} {text} is not known{hint}")
    if option.metavar == "N":
        if not (text.isascii() and text.isdigit()):
            raise UsageProblem(f"{flag} takes a whole number; got {text!r}")
        given[option.field] = int(text)
        return
    given[option.field] = text


# Parameters of acompletion that the magics set themselves, with what to write instead.
_NOT_HERE = {
    "model": "the model goes after %%llm, or -m MODEL",
    "messages": "the prompt is the message; --system TEXT adds a system message",
    "session_id": "-s SESSION does that",
    "stream": "--no-stream does that",
    "shared_session": "nbllm.acompletion takes it",
}
_PYTHON = {"True": True, "False": False, "None": None}


def _param(word: _Word) -> tuple[str, Any]:
    name, equals, text = word.text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageProblem(f"-p takes KEY=VALUE such as temperature=0; got {name!r}")
    if name in _NOT_HERE:
        raise UsageProblem(f"-p {name}=… can't be set here: {_NOT_HERE[name]}")
    for candidate in (word.raw.partition("=")[2], text):  # as written first: "5" is a text, 5 a number
        try:
            return name, json.loads(candidate, parse_constant=_refuse)
        except (ValueError, RecursionError):
            pass
    return name, _PYTHON.get(text, text)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
