"""The magics: `%%llm`, `%llm`, `%nbllm`.

Three layers: the decorated methods, which only pass on; `arguments`, which reads a line into an `Ask`; and
the functions here that do what it asks, through `client`, `rendering` and `frames`. An error of ours ends the
cell with one or two lines. What a magic does, a documented function does too.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core import inputtransformer2
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from . import arguments, frames, interpolation, log, loops, rendering, settings, tagging, tracing
from .arguments import Ask
from .client import acompletion
from .exceptions import APIError, NbllmError, UsageProblem, did_you_mean
from .types import ChatCompletion

if TYPE_CHECKING:
    import pandas as pd

F = TypeVar("F", bound=Callable[..., Any])

LLM_HELP = f"""Ask a model; the answer streams into the cell, and one line below it tells what it took.

  %%llm [MODEL] [options]     the cell below is the prompt
  %llm one line               the line is the prompt; options come before it, and then it begins with -

Options:
{arguments.options_help()}

In the prompt, {{{{name}}}}, {{{{obj.attr}}}}, {{{{rows[0]}}}} and any other Python expression is replaced
by its value, once. All other braces, $x and LaTeX stay as they are; \\{{{{name}}}} sends {{{{name}}}}.

Without MODEL: the one of `%nbllm model NAME`, of nbllm.configure(model=…), of the environment variable
NBLLM_MODEL; else gpt-4o-mini where OPENAI_API_KEY is set, and demo/small where it is not.
"""

NBLLM_HELP = """What nbllm does in this kernel.

  %nbllm                      model, session, HTTP session, log
  %nbllm sessions             a DataFrame: the sessions of this kernel, as nbllm.sessions()
  %nbllm requests             a DataFrame: its requests, as nbllm.requests()
  %nbllm connections          a DataFrame: its connections, as nbllm.connections()
  %nbllm model [NAME]         the model of %%llm; with NAME, change it
  %nbllm session [NAME]       the session id of what follows; with NAME, change it

%%nbllm is %%llm, for kernels where somebody else's %%llm is loaded.
"""


def _documented(text: str) -> Callable[[F], F]:
    def documented(function: F) -> F:
        function.__doc__ = text
        return function

    return documented


@magics_class
class NbllmMagics(Magics):
    """The magics, as IPython finds them."""

    @no_var_expand
    @line_cell_magic
    @_documented(LLM_HELP)
    def llm(self, line: str, cell: str | None = None) -> None:
        with _short_errors():
            ask(self.shell, arguments.parse_line(line) if cell is None else arguments.parse_cell(line, cell))

    @no_var_expand
    @line_cell_magic
    @_documented(NBLLM_HELP)
    def nbllm(self, line: str, cell: str | None = None) -> Any:
        with _short_errors():
            if cell is not None:
                return ask(self.shell, arguments.parse_cell(line, cell))
            name, _, value = line.strip().partition(" ")
            return _command(name)(value.strip())


def register(shell: Any) -> None:
    """Give `shell` the magics; again is as good as once. Somebody else's `llm` stays, with a warning."""
    manager = shell.magics_manager
    ours: Any = manager.registry.get(NbllmMagics.__name__)
    if type(ours) is not NbllmMagics:
        ours = NbllmMagics(shell)
    for kind, sign in (("line", "%"), ("cell", "%%")):
        owner = _owner(manager.magics[kind].get("llm"))
        if owner in (None, __name__):
            ours.magics[kind]["llm"] = ours.llm
        else:
            ours.magics[kind].pop("llm", None)
            tracing.warn_once(f"{sign}llm belongs to {owner} and stays so; %%nbllm asks a model with nbllm")
    shell.register_magics(ours)
    if "llm" in ours.magics["line"]:
        _take_question_marks(shell)


def ask(shell: Any, asked: Ask) -> None:
    """Ask a model, show its answer in the cell, and store it where that was asked for.

    Raises:
        NbllmError: The prompt can't be made up, or the call failed; what had come of the answer is shown.
        KeyboardInterrupt: The user stopped it; likewise.
    """
    prompt = interpolation.expand(asked.prompt, shell.user_ns)
    if not prompt.strip():
        raise UsageProblem("the prompt is empty once its variables are put in")
    messages = [{"role": "user", "content": prompt}]
    if asked.system is not None:
        system = interpolation.expand(asked.system, shell.user_ns)
        messages.insert(0, {"role": "system", "content": system})
    in_notebook = getattr(shell, "kernel", None) is not None
    sink = rendering.NotebookSink() if in_notebook else rendering.TerminalSink()
    answer = loops.run_sync(_answer(asked, messages, rendering.StreamDisplay(sink)))
    if asked.output is not None:
        shell.user_ns[asked.output] = answer


async def _answer(
    asked: Ask, messages: list[dict[str, str]], display: rendering.StreamDisplay
) -> ChatCompletion:
    model = asked.model or settings.default_model()
    stream = await acompletion(model, messages, stream=True, session_id=asked.session, **asked.params)
    try:
        async for _ in stream:
            display.update(stream)
        if stream.request is not None:
            await asyncio.to_thread(log.price, stream.request)  # the first one loads the price table
    except (APIError, asyncio.CancelledError) as error:
        await stream.aclose()
        if stream.text:
            mark = "broken off" if isinstance(error, APIError) else "interrupted"
            display.finish(stream.text, rendering.footer(stream.request, mark=mark))
        raise
    finally:
        await stream.aclose()
    answer = stream.completion
    display.finish(answer.text or _refusal(answer) or "(no text)", rendering.footer(stream.request))
    return answer


def _refusal(answer: ChatCompletion) -> str | None:
    message = answer.choices[0].message if answer.choices else None
    return message.refusal if message is not None else None


# -- %nbllm ----------------------------------------------------------------------------------------

# What the frames of %nbllm show of the many columns; a column in which nothing stands is left out.
SHOWN: dict[str, str] = {
    "sessions": (
        "session_id requests errors cancelled incomplete running cells models input_tokens output_tokens "
        "cost_usd duration_ms connections_opened reuse_ratio"
    ),
    "requests": (
        "execution_count session_id request_model status error_type input_tokens output_tokens cost_usd "
        "ttft_ms duration_ms connection_reused connection_reason connection_id started_at"
    ),
    "connections": (
        "connection_id host port tls_version requests connect_ms bytes_sent bytes_received opened_at "
        "closed_at close_reason"
    ),
}


def status() -> str:
    """What `%nbllm` prints: model, session, HTTP session and log, one line each."""
    requests, connections = frames.requests(), frames.connections()
    reused = requests["connection_reused"].dropna()
    http = "not used yet"
    if len(requests):
        http = f"{_count(int(connections['closed_at'].isna().sum()), 'connection')} open"
        http += f" · {_count(len(requests), 'request')}"
        http += f", {reused.mean():.0%} on a reused connection" if len(reused) else ""
    rows = {
        "model": settings.default_model(),
        "session": tagging.current_session(),
        "HTTP session": http,
        "log": log.path() or "in memory",
    }
    return "\n".join(f"{name:<12}  {value}" for name, value in rows.items())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _print_status(value: str) -> None:
    print(status())


def _frame(name: str, value: str) -> pd.DataFrame:
    if value:
        raise UsageProblem(f"%nbllm {name} takes no argument; nbllm.{name}(…) does")
    frame: pd.DataFrame = getattr(frames, name)()
    told = [column for column in SHOWN[name].split() if not len(frame) or _tells(frame[column])]
    digits = {name: 1 if name.endswith("_ms") else 2 for name in told if name.endswith(("_ms", "_ratio"))}
    return frame[told].round(digits)


def _tells(column: pd.Series[Any]) -> bool:
    rare = column.name in ("errors", "cancelled", "incomplete", "running")
    return bool((column.fillna(0) != 0).any() if rare else column.notna().any())


def _model(value: str) -> str:
    if value:
        settings.configure(model=_unquoted(value))
    return settings.default_model()


def _session(value: str) -> str:
    return tagging.set_session(_unquoted(value)) if value else tagging.current_session()


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


_COMMANDS: dict[str, Callable[[str], Any]] = {
    "": _print_status,
    "sessions": functools.partial(_frame, "sessions"),
    "requests": functools.partial(_frame, "requests"),
    "connections": functools.partial(_frame, "connections"),
    "model": _model,
    "session": _session,
}


def _command(name: str) -> Callable[[str], Any]:
    if name not in _COMMANDS:
        known = [known for known in _COMMANDS if known]
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise UsageProblem(f"there is no %nbllm {name}{hint}")
    return _COMMANDS[name]


# -- IPython ---------------------------------------------------------------------------------------


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
        if (masked := tracing.redact(text)) != text:  # a key that stands on the magic's line
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
    first = f"{name}: {text}"
    wait = getattr(error, "retry_after", None)
    is_told = wait is None or re.search(rf"\b{wait:g} ?s", text)
    return [first] if is_told else [first, f"The server asks to wait {wait:g} s."]


def _owner(magic: Any) -> str | None:
    """The module that a magic comes from; None where there is no such magic."""
    if magic is None:
        return None
    owner = type(magic.__self__) if hasattr(magic, "__self__") else magic
    return getattr(owner, "__module__", None) or repr(owner)


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
