"""The magics: `%%llm`, `%llm`, `%%session`, `%nbllm`, and the settings of `%config NbLLM`.

Three layers: the decorated methods, which only pass on; `arguments`, which reads a line into an `Ask`; and
what carries it out: `cells`, `commands`, `cell_sessions`. An error of ours ends the cell with one or two
lines. What a magic does, a documented function does too.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import traitlets
from IPython.core import inputtransformer2
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from IPython.utils.text import DollarFormatter

from . import arguments, cell_sessions, commands, masking, notices, settings, tab
from .arguments import Ask
from .exceptions import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    ContextWindowExceededError,
    InternalServerError,
    NbllmError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    Timeout,
    UsageProblem,
)

F = TypeVar("F", bound=Callable[..., Any])

LLM_HELP = f"""Ask a model; the answer streams into the cell, and one line below it tells what it took.

  %%llm [MODEL …] [options]   the cell below is the prompt; several models answer side by side
  %llm one line               the line is the prompt; options come before it, and then it begins with -

Options:
{arguments.options_help()}

In the prompt, {{{{name}}}}, {{{{obj.attr}}}}, {{{{rows[0]}}}} and any other Python expression is replaced
by its value, once: a DataFrame by a table, a picture by the picture. All other braces, $x and LaTeX stay as
they are; \\{{{{name}}}} sends {{{{name}}}}.

A session is a conversation: the next cell of the session goes on with it, and a cell that runs again takes
the place that it had (%config NbLLM.on_rerun: replace, append or fork). As a function: nbllm.ask(…).

Without MODEL: the one of `%nbllm model NAME`, of %config NbLLM.model, of [tool.nbllm] in pyproject.toml, of
the environment variable NBLLM_MODEL; else one of the provider whose key is set, else demo/small.
"""

NBLLM_HELP = f"""What nbllm does in this kernel.

{commands.help_text()}

%%nbllm is %%llm, for kernels where somebody else's %%llm is loaded.
"""

SESSION_HELP = """All that this cell sends, by any client, belongs to one session.

  %%session NAME      as the first line of an ordinary Python cell
  %session NAME       from this line of the cell on

As a function: with nbllm.session(NAME): …
"""


def _documented(text: str) -> Callable[[F], F]:
    def documented(function: F) -> F:
        function.__doc__ = text
        return function

    return documented


_NAMES = tuple(field.name for field in dataclasses.fields(settings.Settings))

# Every setting is a trait of the magics, so that `%config NbLLM` lists and changes them.
_Traits: Any = type(
    "_Traits",
    (Magics,),
    {name: traitlets.Any(help=settings.help_of(name)).tag(config=True) for name in _NAMES},
)


@magics_class
class NbLLM(_Traits):  # type: ignore[misc]
    """The magics and settings of nbllm, as IPython finds them."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._follow(settings.settings())
        settings.on_change("magics", self._follow)
        shell.configurables[:] = [one for one in shell.configurables if type(one).__name__ != "NbLLM"]
        shell.configurables.append(self)

    @traitlets.validate(*_NAMES)
    def _configure(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if value == getattr(settings.settings(), name):
            return value
        try:
            return getattr(settings.configure(**{name: value}), name)
        except UsageProblem as error:  # for IPython to give the trait its old value back
            raise traitlets.TraitError(str(error)) from None

    def _follow(self, values: settings.Settings) -> None:
        for name in _NAMES:
            self.set_trait(name, getattr(values, name))

    @no_var_expand
    @line_cell_magic
    @_documented(LLM_HELP)
    def llm(self, line: str, cell: str | None = None) -> None:
        with _short_errors():
            asked = arguments.parse_line(line) if cell is None else arguments.parse_cell(line, cell)
        self._ask(asked)

    @no_var_expand
    @line_cell_magic
    @_documented(SESSION_HELP)
    def session(self, line: str, cell: str | None = None) -> None:
        with _short_errors():
            if cell is not None:  # `cell_sessions` takes it over where it is the first line of a cell
                raise UsageProblem("%%session NAME must be the first line of a cell")
            if not line.strip():
                raise UsageProblem("which session? %%session NAME")
            cell_sessions.enter(arguments.unquoted(line.strip()))

    @needs_local_scope
    @no_var_expand
    @line_cell_magic
    @_documented(NBLLM_HELP)
    def nbllm(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> Any:
        with _short_errors():
            if cell is None:
                return commands.run(_expanded(line, {**self.shell.user_ns, **(local_ns or {})}))
            asked = arguments.parse_cell(line, cell)
        return self._ask(asked)

    def _ask(self, asked: Ask) -> None:
        from . import cells

        with nullcontext() if asked.debug else _short_errors():
            cells.run(self.shell, asked)


def register(shell: Any) -> None:
    """Give `shell` the magics; again is as good as once. Somebody else's stay, with a warning."""
    manager = shell.magics_manager
    ours: Any = manager.registry.get(NbLLM.__name__)
    if type(ours) is not NbLLM:
        ours = NbLLM(shell)
    for name in ("llm", "session"):
        for kind, sign in (("line", "%"), ("cell", "%%")):
            owner = tab.owner(manager.magics[kind].get(name))
            if owner in (None, __name__):
                ours.magics[kind][name] = getattr(ours, name)
            else:
                ours.magics[kind].pop(name, None)
                notices.warn_once(f"{sign}{name} belongs to {owner} and stays so; {_INSTEAD[name]}")
    shell.register_magics(ours)
    if "llm" in ours.magics["line"]:
        _take_question_marks(shell)
    if "session" in ours.magics["cell"]:
        cell_sessions.install(shell)
    tab.install(shell)


def unregister(shell: Any) -> None:
    """Take off what reacts by itself: Tab, and `%%session`. IPython can't forget a magic."""
    cell_sessions.uninstall(shell)
    tab.uninstall(shell)


_INSTEAD = {
    "llm": "%%nbllm asks a model with nbllm",
    "session": "with nbllm.session(NAME): groups requests",
}


# -- IPython ---------------------------------------------------------------------------------------


def _expanded(line: str, names: Mapping[str, Any]) -> str:
    """The line with IPython's `{expression}` and `$name`, as other line magics have them."""
    if "{{" in line:
        raise UsageProblem("{{…}} is for prompts; %nbllm takes {expression} and $name")
    try:
        return str(DollarFormatter().vformat(line, (), names))
    except Exception as error:  # an expression may raise anything
        raise UsageProblem(f"can't put values into {masking.redact(line)!r}: {error}") from None


@contextmanager
def _short_errors() -> Iterator[None]:
    """Let errors of ours, and the stop button, end the cell with a line or two instead of a traceback.

    The exception keeps its type, and the cell its status "error", so that "Run All" stops. (IPython's own
    one-line UsageError writes to stderr and leaves no error output in the notebook; its subclasses get a
    traceback.)
    """
    try:
        yield
    except NbllmError as error:
        text = str(error)
        if (masked := masking.redact(text)) != text:  # a key that stands on the magic's line
            error.args = (masked,)
        _render_as(error, _lines(error))
        raise
    except KeyboardInterrupt as error:
        _render_as(error, ["KeyboardInterrupt: the request was cancelled"])
        raise


def _render_as(error: BaseException, lines: list[str]) -> None:
    # A hook of IPython's, looked for on the exception. A partial, so that the exception can be pickled.
    error._render_traceback_ = functools.partial(list, lines)  # type: ignore[attr-defined]


def _lines(error: NbllmError) -> list[str]:
    name, text = type(error).__name__, " ".join(str(error).split())
    if len(text) > 500:
        text = f"{text[:499]}…"
    remedy = _remedy(error, text)
    return [f"{name}: {text}"] if remedy is None else [f"{name}: {text}", remedy]


# What to do about an error of a server; the first class that fits counts. Errors noticed before anything was
# sent say it themselves.
_REMEDIES: tuple[tuple[type[APIError], str], ...] = (
    (ContextWindowExceededError, "Send less: --new or --no-history leaves out what was said before."),
    (AuthenticationError, "%nbllm key PROVIDER sets another key."),
    (PermissionDeniedError, "Another key, or another model, may do: %nbllm models lists them."),
    (NotFoundError, "%nbllm models lists the models that there are."),
    (BadRequestError, "--dry-run shows what is sent."),
    (InternalServerError, "The server failed: try again, or ask another model."),
    (Timeout, "-p timeout=SECONDS gives it more time."),
    (APIConnectionError, "%nbllm doctor checks what can be reached."),
)


def _remedy(error: NbllmError, text: str) -> str | None:
    wait = getattr(error, "retry_after", None)
    if wait is not None and isinstance(error, (RateLimitError, InternalServerError)):
        return None if re.search(rf"\b{wait:g} ?s", text) else f"The server asks to wait {wait:g} s."
    if getattr(error, "request", None) is None or "%nbllm" in text:
        return None
    return next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), None)


class _LlmLine(inputtransformer2.EscapedCommand):
    """`%llm Why is the sky blue?` asks; IPython would show the help of `blue`."""

    priority = 4  # before HelpEnd, which has 5

    @classmethod
    def find(cls, tokens_by_line: Any) -> _LlmLine | None:
        for line in tokens_by_line:
            words = [token for token in line if token.string.strip()]
            if len(words) < 3 or (words[0].string, words[1].string) != ("%", "llm"):
                continue
            percent, name, after = words[:3]
            if percent.end == name.start and after.start > name.end:
                return cls(percent.start)
        return None


def _take_question_marks(shell: Any) -> None:
    transformers = shell.input_transformer_manager.token_transformers
    transformers[:] = [cls for cls in transformers if cls.__name__ != _LlmLine.__name__] + [_LlmLine]
