"""Tab in the magics' lines and prompts: flags, models, sessions, variables.

Owns `completions`, which says what may stand before the cursor. Options come from `arguments.OPTIONS`, the
commands of `%nbllm` from `commands.COMMANDS`, Python's names from `names`, which runs no code of the user's.
Called by `tab`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import keys, log, names, pricing, settings, tagging, tracing
from .arguments import OPTIONS, Option, Words
from .commands import COMMANDS
from .exceptions import NbllmError
from .names import Suggestion
from .providers import PROVIDERS, resolve
from .providers.openai import CHAT_PARAMETERS

if TYPE_CHECKING:
    import sqlalchemy as sa

LOG_SECONDS = 0.1
"""How long a Tab waits for the log."""

MAGICS = ("%%llm", "%llm", "%%nbllm", "%nbllm", "%%session", "%session")


@dataclass(frozen=True, slots=True)
class Completions:
    """What may stand before the cursor.

    Attributes:
        fragment: The end of the text before the cursor, which a suggestion replaces.
        suggestions: Best first.
        or_file: Whether the name of a file may stand there as well.
    """

    fragment: str
    suggestions: list[Suggestion]
    or_file: bool = False


def completions(
    text: str, namespace: Mapping[str, Any], *, magics: Container[str] = MAGICS
) -> Completions | None:
    """What Tab offers in a cell.

    Args:
        text: The cell up to the cursor.
        namespace: The notebook's names.
        magics: Those that are ours, with their percent signs.

    Returns:
        None where nothing of ours may stand.
    """
    place = _Place(namespace)
    begun = text.lstrip()
    first, line = _MAGIC.match(begun.partition("\n")[0]), begun.rpartition("\n")[2]
    if "\n" in begun and first and first["name"] in ("%%llm", "%%nbllm") and first["name"] in magics:
        return place.prompt(line)
    here = _MAGIC.match(line)
    if here is None or here["line"] is None or here["name"] not in magics:
        return None
    match here["name"]:
        case "%%llm" | "%%nbllm":
            return place.asking(here["line"])
        case "%llm":
            return place.one_line(here["line"])
        case "%nbllm":
            return place.command(here["line"])
    return place.session(here["line"])


_MAGIC = re.compile(r"\s*(?:[\w., ]+=\s*)?(?P<name>%%?(?:llm|nbllm|session))(?:\s(?P<line>.*))?$")


class _Place:
    """The cursor's place in one of the magics, given the text of the line before it."""

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self.namespace = namespace

    def asking(self, line: str) -> Completions | None:
        """After `%%llm`."""
        words, last = _words(line)
        option, value = _option_at(words, last)
        if option is not None:
            return self._value(option, value)
        if last.startswith("-"):
            return _matching(last, _flags())
        return _matching_models(_unquoted(last))

    def one_line(self, line: str) -> Completions | None:
        """After `%llm`: options, then the prompt."""
        words, last = _words(line)
        option, value = _option_at(words, last)
        if _has_position(words) or (option is None and not last.startswith("-")):
            return self.prompt(line)
        return _matching(last, _flags()) if option is None else self._value(option, value)

    def command(self, line: str) -> Completions | None:
        """After `%nbllm`."""
        words, last = _words(line)
        if not words:
            return _matching(last, [Suggestion(name, "command") for name in COMMANDS])
        name = words[0]
        option, value = _option_at(words, last)
        if option is not None:
            return self._value(option, value)
        if last.startswith("-"):
            usage = COMMANDS[name].argument if name in COMMANDS else ""
            flags = re.findall(r"(?<!\w)--?[a-zA-Z][\w-]*", usage)
            return _matching(last, [Suggestion(flag, "option") for flag in flags])
        if name == "model":
            return _matching_models(_unquoted(last))
        if name == "alias" and "=" in last:
            return _matching_models(_unquoted(last.partition("=")[2]))
        if name == "key":
            return _matching(last, [Suggestion(name, "provider") for name in PROVIDERS if name != "demo"])
        return _matching_sessions(last) if name in ("session", "reset", "transcript") else None

    def session(self, line: str) -> Completions | None:
        """After `%%session`."""
        words, last = _words(line)
        return None if words else _matching_sessions(last)

    def prompt(self, line: str) -> Completions | None:
        """In a line of a prompt: a Python expression after `{{`."""
        before, braces, code = line.rpartition("{{")
        if not braces or before.endswith("\\") or "}}" in code:
            return None
        fragment, found = names.names_at(code, self.namespace)
        return Completions(fragment, found) if found else None

    def _value(self, option: Option, value: str) -> Completions | None:
        if option.values:
            return _matching(_unquoted(value), [Suggestion(text, option.field) for text in option.values])
        match option.metavar:
            case "MODEL":
                return _matching_models(_unquoted(value))
            case "SESSION":
                return _matching_sessions(value)
            case "VAR" | "IMAGE":
                found = names.variables(self.namespace, value)
                return _matching(value, found, or_file=option.metavar == "IMAGE")
            case "KEY=VALUE":
                begun = [] if "=" in value else _parameters()
                return _matching(value, [Suggestion(f"{name}=", "parameter") for name in begun])
            case "TEXT":
                return self.prompt(value)
        return None


# -- the line --------------------------------------------------------------------------------------


def _words(line: str) -> tuple[list[str], str]:
    """The whole words before the cursor, and the one at the cursor, which may be empty; with their quotes."""
    reader, words, end = Words(line, unfinished=True), [], 0
    while (word := reader.next()) is not None:
        words.append(word.raw)
        end = reader.position
    return (words[:-1], words[-1]) if words and end == len(line) else (words, "")


def _option_at(words: list[str], last: str) -> tuple[Option | None, str]:
    """The option whose value is being written, and what there is of the value."""
    flag, equals, value = last.partition("=")
    if flag.startswith("-") and equals:
        return _option(flag), value
    waiting = None
    for word in words:
        waiting = _option(word) if waiting is None else None
    return waiting, last


def _has_position(words: list[str]) -> bool:
    """Whether one of these words is neither an option nor the value of one."""
    waiting = None
    for word in words:
        if waiting is None and not word.startswith("-"):
            return True
        waiting = _option(word) if waiting is None else None
    return False


def _option(flag: str) -> Option | None:
    """The option that this flag gives a value to with the next word."""
    return next((option for option in OPTIONS if flag in option.flags and option.metavar), None)


def _unquoted(word: str) -> str:
    return word[1:] if word[:1] in ("'", '"') else word


def _matching(
    fragment: str, suggestions: Iterable[Suggestion], *, or_file: bool = False
) -> Completions | None:
    found = [suggestion for suggestion in suggestions if suggestion.text.startswith(fragment)]
    return Completions(fragment, found, or_file) if found else None


# -- what may stand there --------------------------------------------------------------------------


def _flags() -> list[Suggestion]:
    """All flags, the long ones first."""
    flags = [Suggestion(flag, "option") for option in OPTIONS for flag in option.flags]
    return sorted(flags, key=lambda flag: not flag.text.startswith("--"))


def _parameters() -> list[str]:
    return sorted(CHAT_PARAMETERS - {"function_call", "functions"})  # which OpenAI has replaced by tools


def _matching_models(fragment: str) -> Completions | None:
    found = _matching(fragment, dict.fromkeys(_models("/" in fragment)))
    if found is None and fragment:  # the name without its provider: llama-3 is groq/llama-3…
        ends = [model for model in _models(True) if f"/{fragment}" in model.text]
        found = Completions(fragment, ends) if ends else None
    return found


# Their models are written without a prefix.
_BARE = ("openai", "anthropic", "gemini")


def _models(with_prefix: bool) -> Iterator[Suggestion]:
    """Models as `%%llm` takes them: the user's own first, then the known ones.

    Args:
        with_prefix: Also those of a provider's own prefix, of which there are hundreds.
    """
    from .servers.demo_chat import MODELS as DEMO_MODELS  # which a kernel without Tab never needs

    for alias in settings.settings().aliases:
        yield Suggestion(alias, "alias")
    for provider, model in _logged("provider, request_model", "request_model IS NOT NULL"):
        yield Suggestion(model if provider in (None, *_BARE) else f"{provider}/{model}", "model")
    yield Suggestion(keys.default_model(), "model")
    for model in DEMO_MODELS:
        yield Suggestion(f"demo/{model}", "model")
    for provider in _BARE:
        for model in _known(provider):
            yield Suggestion(model, "model")
    for provider in PROVIDERS:
        yield Suggestion(f"{provider}/", "provider")
        for model in _known(provider) if with_prefix else []:
            yield Suggestion(f"{provider}/{model}", "model")


def _known(provider: str) -> list[str]:
    """The table's models that this provider takes by the name in the table."""
    models = pricing.known_models(provider)
    if provider == "openrouter":
        return [model for model in models if "/" in model]
    return [model for model in models if _is_of(provider, model)] if provider in _BARE else models


def _is_of(provider: str, model: str) -> bool:
    """Whether a bare name leads to this provider: the table also has Claude as Google sells it, and names
    as others write them, such as gpt-4o:extended."""
    try:
        return ":" not in model and resolve(model, api_key="-", environ={}).provider.name == provider
    except NbllmError:
        return False


def _matching_sessions(word: str) -> Completions | None:
    quoted = word[:1] in ("'", '"')
    ids = [name if quoted or " " not in name else f'"{name}"' for name in dict.fromkeys(_sessions())]
    return _matching(_unquoted(word), [Suggestion(name, "session") for name in ids])


def _sessions() -> Iterator[str]:
    """Session ids of this kernel, the latest first."""
    yield tagging.current_session()
    for record in tracing.running():
        yield record.session_id
    for (name,) in _logged("session_id", "session_id IS NOT NULL"):
        yield name
    yield tagging.default_session()


def _logged(columns: str, condition: str) -> list[Any]:
    """Different values of these columns among this kernel's requests, the latest first."""
    first, last = tagging.own_ids()
    query = (
        f"SELECT {columns} FROM requests WHERE id BETWEEN {first} AND {last} AND {condition} "
        f"GROUP BY {columns} ORDER BY max(id) DESC LIMIT 100"
    )

    def job(connection: sa.Connection) -> list[Any]:
        return [tuple(row) for row in connection.exec_driver_sql(query)]

    return log.read_soon(job, LOG_SECONDS) or []
