"""What `%nbllm` does: status, frames, settings, checks.

Owns the table of commands, from which their help is written. Each does what a documented function of nbllm
does too. Called by `magics`, whose loading must be quick: what only one command needs loads with it.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import frames, log, masking, settings, tagging, units
from .arguments import Words, unquoted
from .exceptions import AuthenticationError, UsageProblem, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from .diagnosis import Diagnosis
    from .reports import Report
    from .transcripts import Transcript
    from .widgets import Dashboard


WIDEST = 40
"""How many characters of a command's arguments may stand beside its help; it goes below longer ones."""

MODELS_SECONDS = 10
"""How long `%nbllm models` waits for a provider."""


def run(line: str) -> Any:
    """Carry out `%nbllm line`, and give what the cell shows.

    Raises:
        UsageProblem: There is no such command, or it does not take what it was given.
    """
    name, _, value = line.strip().partition(" ")
    if not name:
        print(status())
        return None
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise UsageProblem(f"there is no %nbllm {name}{hint}")
    if (value := unquoted(value.strip())) and not command.argument:
        raise UsageProblem(f"%nbllm {name} takes no argument; got {masking.redact(value)!r}")
    return command.run(value)


def help_text() -> str:
    """The commands, one per line, for a docstring."""
    rows = [("", "model, session, HTTP session, spend and log, in one screen")]
    rows += [(f" {name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows if len(left) < WIDEST)
    wraps = f"\n{' ' * (width + 10)}"
    return "\n".join(
        f"  %nbllm{left:<{width}}{'  ' if len(left) <= width else wraps}{right}" for left, right in rows
    )


# -- status ----------------------------------------------------------------------------------------


def status() -> str:
    """What `%nbllm` prints: model, session, HTTP session, spend and log, one line each."""
    from . import keys, transport
    from .asking import Chat

    requests, connections = frames.requests(), frames.connections()
    chat = Chat()
    said = f" · {units.plural(len(chat), 'message')}" if len(chat) else ""
    reused = requests["connection_reused"].dropna()
    http = "not used yet"
    if len(requests):
        http = f"{units.plural(int(connections['closed_at'].isna().sum()), 'connection')} open"
        http += f", {reused.mean():.0%} of requests on a reused one" if len(reused) else ""
        for pool in transport.pools()[:1]:
            http = f"id {id(pool.session)} · {http}"
        if len(connections):
            age = (time.time() - connections["opened_at"].min().timestamp()) / 60
            http += f" · first opened {age:.0f} min ago"
    rows = {
        "model": keys.default_model(),
        "session": chat.session_id + said,
        "HTTP session": http,
        "requests": _spend(requests),
        "log": log.path() or "in memory",
        "keys": ", ".join(keys.configured_providers()) or "none: %nbllm key openai",
    }
    return "\n".join(f"{name:<12}  {value}" for name, value in rows.items())


def _spend(requests: pd.DataFrame) -> str:
    if not len(requests):
        return "none yet"
    parts = [units.plural(len(requests), "request")]
    if failed := int((requests["status"] == "error").sum()):
        parts.append(units.plural(failed, "error"))
    if requests["input_tokens"].notna().any():
        parts.append(f"{units.tokens(requests['input_tokens'].sum(), requests['output_tokens'].sum())} tok")
    if requests["cost_usd"].notna().any():
        parts.append(units.money(requests["cost_usd"].sum()))
    return " · ".join(parts)


# -- frames ----------------------------------------------------------------------------------------


def _frame(name: str, value: str) -> pd.DataFrame:
    """The readable columns of the frame that the function called `name` gives."""
    from .frame_texts import readable_columns

    frame: pd.DataFrame = _asked(name, getattr(frames, name), value)
    digits = {name: 1 if name.endswith("_ms") else 2 for name in map(str, frame) if name.endswith(_ROUNDED)}
    return frame.iloc[:, readable_columns(frame)].round(digits)


def _asked(name: str, function: Callable[..., Any], value: str) -> Any:
    """What a function gives whose arguments, filters of requests, are the options of %nbllm `name`."""
    import inspect

    defaults = {f"--{one.name}": one.default for one in inspect.signature(function).parameters.values()}
    filters: dict[str, Any] = {}
    words = Words(value)
    while (word := words.next()) is not None:
        flag = _SHORT.get(word.raw, word.raw)
        if flag not in defaults:
            raise UsageProblem(f"%nbllm {name} takes {COMMANDS[name].argument}; got {word.text!r}")
        is_switch = defaults[flag] is False
        if not is_switch and (word := words.next()) is None:
            raise UsageProblem(f"{flag} needs a value: %nbllm {name} takes {COMMANDS[name].argument}")
        filters[flag.removeprefix("--")] = is_switch or word.text
    if (cell := filters.get("cell", "")).isdecimal():
        filters["cell"] = int(cell)
    return function(**filters)


_ROUNDED = ("_ms", "_ratio")
_SHORT = {"-s": "--session", "-k": "--kernel"}


# -- settings --------------------------------------------------------------------------------------


def _model(value: str) -> str:
    from . import keys

    if value:
        _check_model(value)
        settings.configure(model=value)
    return keys.default_model()


def _check_model(name: str) -> None:
    from . import providers

    try:
        providers.resolve(settings.model_of(name))
    except AuthenticationError:  # the key may come later
        pass


def _session(value: str) -> str:
    if value.startswith("--") and value != "--default":
        raise UsageProblem(f"%nbllm session takes NAME or --default; got {value!r}")
    if value:
        tagging.set_session(None if value == "--default" else value)
    return tagging.current_session()


def _alias(value: str) -> dict[str, str]:
    aliases = dict(settings.settings().aliases)
    if value:
        name, equals, model = (part.strip() for part in value.partition("="))
        if not equals:
            raise UsageProblem(f"%nbllm alias takes NAME=MODEL, or NAME= to forget it; got {value!r}")
        if model:
            _check_model(model)
            aliases[name] = model
        else:
            aliases.pop(name, None)
        settings.configure(aliases=aliases)
    return aliases


def _config(_: str) -> pd.DataFrame:
    import pandas as pd

    from . import keys

    rows = [(name, value, source) for name, (value, source) in settings.sources().items()]
    told = {"model": keys.default_model(), "log": log.path() or "in memory"}
    rows = [(name, told.get(name, value), source) for name, value, source in rows]
    return pd.DataFrame(rows, columns=["setting", "value", "from"], dtype=object).set_index("setting")


def _key(value: str) -> None:
    from . import keys

    if value and not re.fullmatch("[a-z_]{1,20}", value):  # it may be the key itself: it is not shown
        raise UsageProblem(
            "%nbllm key takes the name of a provider alone, and asks for the key: %nbllm key openai"
        )
    print(f"{keys.set_key(value or 'openai')} is set for this kernel")


# -- the rest --------------------------------------------------------------------------------------


def _models(_: str) -> pd.DataFrame:
    import pandas as pd

    from . import endpoints

    frame = pd.DataFrame(endpoints.models(timeout=MODELS_SECONDS))
    if len(frame):  # as one types it
        frame.insert(0, "model", frame["provider"] + "/" + frame["id"])
    return frame


def _reset(value: str) -> None:
    from .asking import Chat

    chat = Chat(value or None)
    count = len(chat)
    chat.reset()
    print(f"{chat.session_id}: {units.plural(count, 'message')} forgotten; the log keeps them")


def _export(value: str) -> None:
    from . import exporting

    path = Path(value).expanduser()
    kind = path.suffix.lower()
    if kind in exporting.FORMATS:
        exporting.export(path)
    elif kind in _CONVERSATIONS:
        if not (said := _transcript("")):
            raise UsageProblem(f"nothing was asked in session {said.session_id!r} yet: nothing was written")
        text = masking.redact(_CONVERSATIONS[kind](said))
        exporting.write_whole(path, lambda file: file.write(text.encode()))
    else:
        raise UsageProblem(
            "%nbllm export writes this kernel's requests to PATH.har, PATH.parquet, PATH.csv or PATH.jsonl, "
            f"and the transcript of this session to PATH.md or PATH.json; got {value!r}"
        )
    print(f"wrote {path}")


def _messages(said: Transcript) -> str:
    return json.dumps(said.messages, ensure_ascii=False, indent=1) + "\n"


def _readable(said: Transcript) -> str:
    return f"{said}\n"


_CONVERSATIONS: dict[str, Callable[[Transcript], str]] = {".json": _messages, ".md": _readable}


def _transcript(value: str) -> Transcript:
    from .transcripts import transcript

    return transcript(value or None)


def _dashboard(value: str) -> Dashboard:
    from .widgets import dashboard

    return cast("Dashboard", _asked("dashboard", dashboard, value))


def _report(value: str) -> Report:
    from .reports import report

    return cast("Report", _asked("report", report, value))


def _instrument(name: str) -> None:
    if name not in BRIDGES:
        raise UsageProblem(
            f"%nbllm instrument takes one of {', '.join(BRIDGES)}; got {masking.redact(name)!r}"
        )
    importlib.import_module(f".bridges.{name}", __package__).install()
    print(f"what {name} sends goes over the kernel's HTTP session from now on")


BRIDGES = ("anthropic", "google_genai", "langchain", "litellm", "openai")
"""Packages whose requests can be brought onto the HTTP session."""


def _doctor(_: str) -> Diagnosis:
    from . import diagnosis

    return diagnosis.doctor()


def _close(_: str) -> None:
    from . import transport

    print(f"{units.plural(transport.close(), 'connection')} closed")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it takes, what it does, in a line, and the function that does it."""

    argument: str
    help: str
    run: Callable[[str], Any]


def _help(_: str) -> None:
    print(help_text())


_WIDE = "[-k KERNEL] [--since TIME] [--notebook NAME] [--model MODEL] [--search TEXT]"
_REQUESTS = f"[-s SESSION] {_WIDE} [--errors] [--cell N] [--latest]"

COMMANDS: dict[str, Command] = {
    "sessions": Command(
        _WIDE,
        "a DataFrame: this kernel's sessions, with -k all or --since 7d also those of others; "
        "nbllm.sessions(…)",
        partial(_frame, "sessions"),
    ),
    "requests": Command(
        _REQUESTS,
        "a DataFrame: the requests, likewise; nbllm.requests(…)",
        partial(_frame, "requests"),
    ),
    "connections": Command(
        "[-k KERNEL]", "a DataFrame: the connections; nbllm.connections(…)", partial(_frame, "connections")
    ),
    "dashboard": Command(
        _REQUESTS, "a live view of all this: the network panel; nbllm.dashboard(…)", _dashboard
    ),
    "report": Command(_REQUESTS, "the same as it is now, for reading and saving; nbllm.report(…)", _report),
    "model": Command("[NAME]", "the model of %%llm; with NAME, change it", _model),
    "session": Command("[NAME|--default]", "the session of what follows; with NAME, change it", _session),
    "alias": Command("[NAME=MODEL]", "short names for models; with NAME=MODEL, add one", _alias),
    "models": Command("", "a DataFrame: the models that can be asked; nbllm.models()", _models),
    "config": Command("", "every setting, and where its value comes from", _config),
    "key": Command("[PROVIDER]", "set a key for this kernel, by a hidden prompt; nbllm.set_key(…)", _key),
    "reset": Command("[SESSION]", "start the conversation over; nbllm.Chat(…).reset()", _reset),
    "transcript": Command("[SESSION]", "the session as a conversation; nbllm.transcript(…)", _transcript),
    "export": Command(
        "PATH",
        "requests to .har, .parquet, .csv or .jsonl, this session's transcript to .md or .json",
        _export,
    ),
    "instrument": Command(
        "PACKAGE",
        f"have {', '.join(BRIDGES[:-1])} or {BRIDGES[-1]} send over the kernel's HTTP session; "
        "nbllm.bridges.openai.install() and so on",
        _instrument,
    ),
    "doctor": Command("", "check keys, endpoints, log, connections; nbllm.doctor()", _doctor),
    "close": Command("", "close the connections; the next request opens new ones; nbllm.close()", _close),
    "help": Command("", "these lines", _help),
}
