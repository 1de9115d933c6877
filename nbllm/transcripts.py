"""A session as a conversation: `transcript`, and the `Transcript` that it gives.

Owns how it looks, in a notebook and in a terminal. What was said comes from the log by `selection`, as
`turns` make it out. Called by users and `commands`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from . import fences, footers, markdown, masking, selection, tagging
from .contents import Message, text_of
from .exceptions import UsageProblem, did_you_mean
from .rendering import printable
from .turns import CONVERSING, Turn, turns_of

SHOWN_CHARACTERS = 100_000
"""How much of a long transcript a cell shows: its end. `str()` and `.markdown` have all of it."""

EXCERPT_CHARACTERS = 60
"""How much of a prompt is shown where one line stands for the whole turn."""

LINE_CHARACTERS = 160
"""How long a system message, a tool call, its result or an error may be in one line; else it is folded."""


def transcript(session_id: str | None = None) -> Transcript:
    """A session as a conversation: what was asked and answered, with cell, model, cost and time at each turn.

    It holds all your requests of the session, of all kernels, oldest first. A turn shows what it said that
    the turns before had not. Errors, what is no chat, and turns whose cell ran again, are one line each.

    Args:
        session_id: Which session; None for the one in force.

    Returns:
        A `Transcript`: as the last line of a cell it shows as Markdown; `print` gives it as text.

    Raises:
        UsageProblem: There is no such session in the log.
    """
    name = tagging.current_session() if session_id is None else tagging.check_session_id(session_id)
    mine: dict[str, Any] = {"kernel": "all", "owner": tagging.owner()}
    rows = selection.request_rows(session=name, **mine)
    if not rows and name != tagging.current_session():
        known = selection.session_ids(**mine)
        hint = did_you_mean(name, known) or "; nbllm.sessions(kernel='all') tells those that there are"
        raise UsageProblem(f"there is no session {name!r} in the log{hint}")
    turns = turns_of(rows, selection.contents([row["id"] for row in rows]))
    total = footers.summary([SimpleNamespace(**row) for row in rows]) if rows else ""
    return Transcript(name, turns, total)


@dataclass(frozen=True, repr=False)
class Transcript:
    """A session as a conversation. `len()` and iteration go over its turns.

    Attributes:
        session_id: Which session.
        turns: What was asked and answered, oldest first.
        summary: One line about all requests.
    """

    session_id: str
    turns: tuple[Turn, ...]
    summary: str

    @property
    def messages(self) -> list[Message]:
        """The conversation in OpenAI's shape, which can be sent again.

        Of several answers to one question it has the first; what failed, and what was replaced when its cell
        ran again, is not in it.
        """
        said: list[Message] = []
        for turn in self.turns:
            if turn.is_part and turn.messages and turn.answer is not None:
                said += [*turn.messages, turn.answer]
        return said

    @property
    def markdown(self) -> str:
        """All of it as Markdown in which nothing runs or loads."""
        return _rich(self)

    def __str__(self) -> str:
        return _text(self)

    def __repr__(self) -> str:
        return f"<Transcript {self.session_id!r}, {len(self)} turns>"

    def __len__(self) -> int:
        return len(self.turns)

    def __iter__(self) -> Iterator[Turn]:
        return iter(self.turns)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/plain": _text(self, SHOWN_CHARACTERS),
            "text/markdown": _rich(self, SHOWN_CHARACTERS),
        }


# -- what is shown, in pieces: kind (a role, or what else it is) and text ----------------------------------

_Piece = tuple[str, str]


def _blocks(transcript: Transcript, limit: int | None) -> list[list[_Piece]]:
    """The heading and the turns; with a limit, the newest ones of about so many characters."""
    turns = transcript.turns
    if not turns:
        return [[("line", f"nothing was asked in session {transcript.session_id} yet")]]
    lines = _Lines(turns)
    blocks: list[list[_Piece]] = []
    length = 0
    for turn in reversed(turns):
        if limit is not None and length >= limit:
            break
        # Masked once more: what the log keeps may be written in another way there.
        said = [(kind, masking.redact(text)) for kind, text in _pieces(turn) if text.strip()]
        pieces = [(kind, _cut(text, limit)) for kind, text in said]
        blocks.append([("line", lines.line(turn)), *pieces])
        length += sum(len(text) for _, text in blocks[-1])
    heading = [transcript.summary]
    if len(lines.days) == 1:
        heading += lines.days
    if left_out := len(turns) - len(blocks):
        heading.append(f"{left_out:,} earlier turns are left out here: print it to see them")
    return [[("line", " · ".join(heading))], *reversed(blocks)]


def _pieces(turn: Turn) -> Iterator[_Piece]:
    """What is shown of a turn, beside its line."""
    if not turn.is_shown or turn.answer is None:
        return
    for message in turn.messages:
        yield message["role"], text_of(message)
        yield from _calls(message)
    yield "reasoning", turn.answer.get("reasoning_content") or ""
    yield "answer", text_of(turn.answer)
    yield from _calls(turn.answer)


def _calls(message: Message) -> Iterator[_Piece]:
    for call in message.get("tool_calls", ()):
        yield "call", f"{call['function']['name']} {call['function']['arguments']}"


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}\n\n({len(text) - limit:,} more characters)"


class _Lines:
    """The line beside each turn, with as much of place and time as it takes to tell the turns apart."""

    def __init__(self, turns: tuple[Turn, ...]) -> None:
        self.days = sorted({self._time(turn, "%Y-%m-%d") for turn in turns})
        self._has_places = len(set(map(self._place, turns))) > 1
        self._clock = "%Y-%m-%d %H:%M" if len(self.days) > 1 else "%H:%M"

    def line(self, turn: Turn) -> str:
        failed = ", ".join(dict.fromkeys(failure.partition(":")[0] for failure in turn.failures))
        parts = (
            turn.cell,
            self._place(turn) if self._has_places else None,
            None if turn.operation in CONVERSING else turn.operation or f"foreign, {turn.server_address}",
            footers.brief(turn),
            f"after {failed}" if failed else None,
            self._time(turn, self._clock),
            _remark(turn),
            None if turn.is_shown else _excerpt(turn),
        )
        return " · ".join(part for part in parts if part)

    @staticmethod
    def _place(turn: Turn) -> str:
        return os.path.basename(turn.notebook or "") or f"kernel {turn.kernel_id}"

    @staticmethod
    def _time(turn: Turn, form: str) -> str:
        return time.strftime(form, time.localtime(turn.started_at))


def _remark(turn: Turn) -> str | None:
    """What is to be known of a turn that did not simply go well."""
    if turn.is_replaced:
        return "its cell ran again"
    if turn.status is None:
        return "still running"
    if turn.status != "ok":
        return _shortened(turn.error or turn.status, LINE_CHARACTERS)
    if turn.operation in CONVERSING and turn.answer is None:
        return "answer not kept" if turn.has_content else "content not kept"
    return None


def _excerpt(turn: Turn) -> str | None:
    """How the last message begins."""
    text = _shortened(text_of(turn.messages[-1]), EXCERPT_CHARACTERS) if turn.messages else ""
    return f"“{text}”" if text else None


def _shortened(text: str, length: int) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length].rstrip()}…"


# -- as text, and as Markdown -------------------------------------------------------------------------------


_MARKS = {"user": "> ", "call": "→ ", "tool": "← "}


def _text(transcript: Transcript, limit: int | None = None) -> str:
    blocks = _blocks(transcript, limit)
    return printable("\n\n".join(_plain(*piece) for block in blocks for piece in block))


def _plain(kind: str, text: str) -> str:
    if kind in ("line", "answer"):
        return text
    if kind == "reasoning":
        return f"(reasoning: {len(text):,} characters)"
    mark = _MARKS.get(kind, f"{kind}: ")
    margin = mark if kind == "user" else " " * len(mark)
    return mark + f"\n{margin}".join(text.splitlines())


def _rich(transcript: Transcript, limit: int | None = None) -> str:
    blocks = _blocks(transcript, limit)
    beside = "\n".join(text for block in blocks for _, text in block)  # display math reaches over all of it
    return "\n\n".join(_paragraphs([_marked_up(*piece, beside) for piece in block]) for block in blocks)


def _paragraphs(pieces: list[str]) -> str:
    """The pieces of a turn; its small lines are one paragraph where they follow each other."""
    groups = itertools.groupby(pieces, lambda piece: piece.startswith("<small>"))
    return "\n\n".join(("<br>\n" if are_small else "\n\n").join(group) for are_small, group in groups)


def _marked_up(kind: str, text: str, beside: str) -> str:
    if kind == "answer":
        return markdown.safe(text, beside=beside)
    if kind == "line":
        first, dot, rest = text.partition(" · ")
        return f"<small><b>{markdown.escape(first)}</b>{dot}{markdown.escape(rest)}</small>"
    if kind == "user":
        return _quoted(text, beside)
    marked = _MARKS.get(kind, f"{kind}: ") + text
    if kind in ("system", "call", "tool") and len(text) <= LINE_CHARACTERS:
        return f"<small>{markdown.escape(marked)}</small>"
    title = markdown.escape(_shortened(marked, EXCERPT_CHARACTERS))
    inner = fences.fenced(text.strip("\n")) if kind in ("call", "tool") else text
    return f"<details><summary>{title}</summary>\n\n{_quoted(inner, beside)}\n\n</details>"


def _quoted(text: str, beside: str) -> str:
    # Not by `>` at each line, which would stand in the formulas that reach over several.
    return f"<blockquote>\n\n{markdown.safe(text, beside=beside)}\n\n</blockquote>"
