"""What was said in a session: its turns, each with the cell that it came from.

Owns the conversations of this kernel, by session id, and the rule by which a cell that runs again takes its
own turn's place. Sends nothing and shows nothing; called by `asking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .kept import kept
from .tagging import Cell

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and what was answered.

    Attributes:
        user: The user's message, in OpenAI's wire form.
        answers: The answers' texts, by the model that was asked; several where models answered side by side.
        system: The system message that was given with it, and holds from here on; None for the one before.
        cell_id: Cell that asked; None where it keeps no place for a cell that runs again.
        run: Which run of that cell, counted.
        number: How many questions that run had asked before.
    """

    user: Message
    answers: Mapping[str, str]
    system: str | None = None
    cell_id: str | None = None
    run: int = 0
    number: int = 0

    def answer_for(self, model: str) -> str:
        """What `model` answered; what the first one did, where this one was not asked."""
        return self.answers.get(model) or next(iter(self.answers.values()))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next turn goes, and the turns before it.

    Attributes:
        before: The turns that are sent along.
        cell_id: See `Turn`; None for the end of the conversation.
        run: See `Turn`.
        number: See `Turn`.
        cuts: Whether what comes after it is left out from then on.
        ends: Turns that are gone once it is there, as where the conversation starts over.
    """

    before: tuple[Turn, ...]
    cell_id: str | None = None
    run: int = 0
    number: int = 0
    cuts: bool = False
    ends: tuple[Turn, ...] = ()

    def messages(
        self, model: str, user: Message, system: str | None, default_system: str | None = None
    ) -> list[Message]:
        """What is sent to `model`: the system message in force, the turns before, and `user`."""
        given = (system, *(turn.system for turn in reversed(self.before)), default_system)
        told = next((text for text in given if text is not None), None)
        messages: list[Message] = [] if not told else [{"role": "system", "content": told}]
        for turn in self.before:
            messages += [turn.user, {"role": "assistant", "content": turn.answer_for(model)}]
        return [*messages, user]


class Conversation:
    """The turns of one session, in order."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        # By cell: its last run, the number of it, and of the questions that it has asked.
        self._runs: dict[str, tuple[str | None, int, int]] = {}

    def messages(self) -> list[Message]:
        """All that was said, in OpenAI's shape; of several answers the first."""
        if not self.turns:
            return []
        *before, last = self.turns
        said = Place(tuple(before)).messages("", last.user, last.system)
        return [*said, {"role": "assistant", "content": last.answer_for("")}]

    def place(self, cell: Cell, on_rerun: str, *, new: bool = False) -> Place:
        """The place for a question that `cell` asks now.

        Args:
            cell: The cell that runs. One that is known by its number only never runs again.
            on_rerun: "replace" gives it the place that it had, "append" always the end; "fork" the place that
                it had, and the turns after that are left out.
            new: Start over.
        """
        cell_id = None if on_rerun == "append" else cell.cell_id
        ends = tuple(self.turns) if new else ()
        if cell_id is None:
            return Place(() if new else tuple(self.turns), ends=ends)
        last_run, run, asked = self._runs.get(cell_id, (None, 0, 0))
        if last_run != cell.run_id:
            run, asked = run + 1, 0
        self._runs[cell_id] = (cell.run_id, run, asked + 1)
        place = Place((), cell_id, run, asked, cuts=on_rerun == "fork", ends=ends)
        return place if new else replace(place, before=tuple(self.turns[: self._index(place)]))

    def keep(self, place: Place, turn: Turn) -> None:
        """Put a turn in its place; what an earlier run of its cell left goes.

        An answer that comes when the cell has run again, and that run has been answered, comes too late.
        """
        turn = replace(turn, cell_id=place.cell_id, run=place.run, number=place.number)
        self.turns = [one for one in self.turns if not any(one is gone for gone in place.ends)]
        if place.cell_id is None:
            self.turns.append(turn)
            return
        if any(one.cell_id == place.cell_id and one.run > place.run for one in self.turns):
            return
        index = self._index(place)
        after = [] if place.cuts else [one for one in self.turns[index:] if not _is_earlier(one, place)]
        self.turns[index:] = [turn, *after]

    def _index(self, place: Place) -> int:
        """Where the turn of a cell goes: where an earlier run left one, else among those of this run."""
        own = [index for index, turn in enumerate(self.turns) if turn.cell_id == place.cell_id]
        for index in own:
            if _is_earlier(self.turns[index], place) or self.turns[index].number > place.number:
                return index
        return own[-1] + 1 if own else len(self.turns)


def _is_earlier(turn: Turn, place: Place) -> bool:
    return turn.cell_id == place.cell_id and turn.run < place.run


class _State:
    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}


_state = kept(__name__, _State)


def of_session(session_id: str) -> Conversation:
    """The conversation of a session; an empty one where nothing was said yet."""
    return _state.conversations.setdefault(session_id, Conversation())


def forget(session_id: str) -> None:
    """Forget what was said in a session. The log keeps it."""
    _state.conversations.pop(session_id, None)


def rename(old: str, new: str) -> None:
    """Have the conversation of a session go on under its new id."""
    if (said := _state.conversations.pop(old, None)) is not None:
        _state.conversations[new] = said
