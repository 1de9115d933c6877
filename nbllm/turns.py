"""The requests of a session as turns of a conversation: what each said that was new, and what was answered.

Owns `Turn` and `turns_of`. Pure; called by `transcripts`. A request holds the whole history: what an earlier
one said, and was answered, is left out of it. What was asked at once, or asked again, is told by the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .contents import Message, answer_of, messages_of
from .types import parse

CONVERSING = ("chat", "responses")
"""The operations that a conversation is made of."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of a session, with all its attempts.

    What has the name of a column of `nbllm.requests()` is that of its last attempt.

    Attributes:
        messages: What it said that the turns before had not, in OpenAI's shape; empty where it asked what the
            turn before asked, as where several models answer.
        answer: The assistant's message; None where there is none.
        cell: `[3]`, or the cell's id where it has no number; None outside of cells.
        notebook: Path of the notebook, where it is known.
        failures: Errors of its attempts before the last.
        error: That of the last; None where it didn't fail.
        has_content: Whether the log keeps what was said.
        is_replaced: Whether its cell ran again later, and nothing goes on from what it said here.
    """

    request_id: str
    kernel_id: str
    notebook: str | None
    cell: str | None
    operation: str | None
    provider: str | None
    server_address: str | None
    request_model: str | None
    attempt: int
    started_at: float
    duration_ms: float | None
    status: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    messages: tuple[Message, ...]
    answer: Message | None
    failures: tuple[str, ...]
    error: str | None
    has_content: bool
    is_replaced: bool

    @property
    def is_shown(self) -> bool:
        """Whether there is something to show of it: at least a part of an answer, which is not replaced."""
        return self.answer is not None and not self.is_replaced

    @property
    def is_part(self) -> bool:
        """Whether it is a part of the conversation: shown, and answered to the end."""
        return self.is_shown and self.status == "ok"


def turns_of(
    rows: Sequence[Mapping[str, Any]], kept: Mapping[int, tuple[str | None, str | None]]
) -> tuple[Turn, ...]:
    """The turns that a session's requests make up, oldest first.

    Args:
        rows: Requests as `nbllm.requests()` has them, with `id`, oldest first.
        kept: What was sent and answered, by `id`, where the log keeps it.
    """
    attempts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        attempts.setdefault(row["call_id"], []).append(row)
    calls = [_Call(tries, *kept.get(tries[-1]["id"], (None, None))) for tries in attempts.values()]
    replaced = _replaced(calls)
    everything, lasting = _Known(), _Known()
    turns = []
    last: _Call | None = None
    for call in calls:
        is_replaced = call in replaced
        known = everything if is_replaced else lasting
        turns.append(call.turn(known, last, is_replaced))
        everything.add(call)
        if turns[-1].is_shown:
            lasting.add(call)
            last = call
    return tuple(turns)


class _Call:
    """One call, and what it said."""

    def __init__(
        self, attempts: Sequence[Mapping[str, Any]], request: str | None, response: str | None
    ) -> None:
        *self.before, self.row = attempts
        self.has_content = request is not None
        said = messages_of(request)
        self.system = [message for message in said if message["role"] == "system"]
        self.messages = [message for message in said if message["role"] != "system"]
        self.keys = list(map(_key, self.messages))
        self.answer = answer_of(response)
        self.is_answered = self.answer is not None and self.row["status"] == "ok"
        self.goes_on_from: list[_Call] = []

    @property
    def place(self) -> tuple[Any, Any] | None:
        """The cell, by an id that it keeps when it runs again; None where there is none."""
        cell = self.row["cell_id"]
        is_lasting = cell is not None and not cell.startswith("In[")
        return (self.row["notebook"], cell) if is_lasting else None

    def turn(self, known: _Known, last: _Call | None, is_replaced: bool) -> Turn:
        """The turn that follows on `last`, the one before it that is shown."""
        count, _ = known.follow(self)
        new = self.messages[count:]
        # Side by side with another model; the same model is asked anew, as for samples.
        is_same = (
            last is not None
            and (last.keys, last.row["run_id"]) == (self.keys, self.row["run_id"])
            and last.row["request_model"] != self.row["request_model"]
        )
        if not new and not is_same:  # asked before, but the reader has seen something else since
            new = self.messages[-1:]
        told = [] if last is None else list(map(_key, last.system))
        system = [] if told == list(map(_key, self.system)) else self.system
        row = self.row
        number = row["execution_count"]
        return Turn(
            **{name: row[name] for name in _COLUMNS},
            cell=row["cell_id"] if number is None else f"[{number}]",
            messages=(*system, *new),
            answer=self.answer,
            failures=tuple(filter(None, map(_error, self.before))),
            error=_error(row),
            has_content=self.has_content,
            is_replaced=is_replaced,
        )


_COLUMNS = (
    *("request_id", "kernel_id", "notebook", "operation", "provider", "server_address", "request_model"),
    *("attempt", "started_at", "duration_ms", "status", "finish_reason"),
    *("input_tokens", "output_tokens", "cost_usd"),
)


class _Known:
    """What was said so far, as a tree: which message followed which, and whose answer it was."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, Any], int] = {}
        self._answered: dict[int, _Call] = {}

    def follow(self, call: _Call) -> tuple[int, list[_Call]]:
        """How many of a call's messages, from the first on, are known; and the calls that answered them."""
        node = 0
        answered: list[_Call] = []
        for count, key in enumerate(call.keys):
            following = self._after.get((node, key))
            if following is None:
                return count, answered
            node = following
            if node in self._answered:
                answered.append(self._answered[node])
        return len(call.keys), answered

    def add(self, call: _Call) -> None:
        """Take in what a call said, and what was answered."""
        node = 0
        for key in call.keys:
            node = self._after.setdefault((node, key), len(self._after) + 1)
        if call.answer is not None:
            node = self._after.setdefault((node, _key(call.answer)), len(self._after) + 1)
            self._answered[node] = call


def _replaced(calls: Sequence[_Call]) -> set[_Call]:
    """The calls of cells that ran again later and were answered then, where nothing goes on from them."""
    known = _Known()
    runs: dict[Any, dict[Any, list[_Call]]] = {}
    for call in calls:
        _, call.goes_on_from = known.follow(call)
        known.add(call)
        if call.place is not None:
            runs.setdefault(call.place, {}).setdefault(call.row["run_id"], []).append(call)
    replaced: set[_Call] = set()
    for of_cell in runs.values():
        has_later_answer = False
        for run in reversed(of_cell.values()):
            if has_later_answer:
                replaced.update(call for call in run if call.has_content)
            has_later_answer |= any(call.is_answered for call in run)
    lasting = [call for call in calls if call not in replaced]
    return replaced.difference(before for call in lasting for before in call.goes_on_from)


def _key(message: Message) -> Any:
    """What makes two messages the same: providers' additions, and the ids of tool calls, do not count."""
    content = message["content"] or ""
    if isinstance(content, list):
        content = "\n".join(
            part["text"] if isinstance(part.get("text"), str) else repr(part) for part in content
        )
    calls = [(call["function"]["name"], _same(call["function"]["arguments"])) for call in _calls(message)]
    return message["role"], content.strip(), tuple(calls)


def _calls(message: Message) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    return calls


def _same(arguments: str) -> bytes:
    """Arguments without differences in spelling: some formats hold them as JSON, others as its text."""
    try:
        return msgspec.json.encode(parse(arguments or "{}"))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return arguments.encode("utf-8", "replace")


def _error(row: Mapping[str, Any]) -> str | None:
    if row["status"] != "error":
        return None
    message = " ".join((row["error_message"] or "").split())
    return f"{row['error_type'] or 'error'}: {message}" if message else row["error_type"] or "error"
