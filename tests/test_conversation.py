"""The turns of a session, and the cells that run again."""

from __future__ import annotations

import pytest

from nbllm.conversation import Conversation, Turn
from nbllm.tagging import NO_CELL, Cell


def said(conversation: Conversation) -> list[str]:
    return [turn.user["content"] for turn in conversation.turns]


def ask(
    conversation: Conversation, cell: Cell, text: str, on_rerun: str = "replace", new: bool = False
) -> list[str]:
    """Keep a turn, and give the user's messages that were sent with it."""
    place = conversation.place(cell, on_rerun, new=new)
    user = {"role": "user", "content": text}
    sent = [message["content"] for message in place.messages("m", user, None) if message["role"] == "user"]
    conversation.keep(place, Turn(user, {"m": text.upper()}))
    return sent


def cell(name: str, run: str) -> Cell:
    return Cell(name, 1, run, "frontend")


def test_the_next_cell_goes_on() -> None:
    conversation = Conversation()
    assert ask(conversation, cell("a", "1"), "one") == ["one"]
    assert ask(conversation, cell("b", "2"), "two") == ["one", "two"]
    assert conversation.messages() == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ONE"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "TWO"},
    ]


def test_a_notebook_that_runs_twice_gives_the_same_conversation() -> None:
    conversation = Conversation()
    runs = []
    for run in ("1", "2"):
        sent = [ask(conversation, cell(name, f"{run}{name}"), name) for name in "abc"]
        runs.append((sent, conversation.messages()))
    assert runs[0] == runs[1]


def test_a_cell_in_the_middle_takes_its_own_place() -> None:
    conversation = Conversation()
    for name in "abc":
        ask(conversation, cell(name, f"1{name}"), name)
    assert ask(conversation, cell("b", "2"), "B") == ["a", "B"]
    assert said(conversation) == ["a", "B", "c"]


def test_append_keeps_what_was_said() -> None:
    conversation = Conversation()
    for name in "ab":
        ask(conversation, cell(name, f"1{name}"), name)
    assert ask(conversation, cell("a", "2"), "A", "append") == ["a", "b", "A"]
    assert said(conversation) == ["a", "b", "A"]


def test_fork_leaves_out_what_came_after() -> None:
    conversation = Conversation()
    for name in "abc":
        ask(conversation, cell(name, f"1{name}"), name)
    assert ask(conversation, cell("b", "2"), "B", "fork") == ["a", "B"]
    assert said(conversation) == ["a", "B"]


@pytest.mark.parametrize(("again", "left"), [("xy", ["x", "y", "b"]), ("wxyz", ["w", "x", "y", "z", "b"])])
def test_a_cell_may_ask_several_times(again: str, left: list[str]) -> None:
    conversation = Conversation()
    for text in ("a1", "a2", "a3"):
        ask(conversation, cell("a", "1"), text)
    ask(conversation, cell("b", "1b"), "b")
    assert said(conversation) == ["a1", "a2", "a3", "b"]
    for text in again:
        ask(conversation, cell("a", "2"), text)
    assert said(conversation) == left


def test_questions_of_one_cell_at_once_keep_their_order() -> None:
    conversation = Conversation()
    places = [conversation.place(cell("a", "1"), "replace") for _ in range(3)]
    for number in (2, 0, 1):
        conversation.keep(places[number], Turn({"role": "user", "content": str(number)}, {"m": "x"}))
    assert said(conversation) == ["0", "1", "2"]


def test_a_question_that_failed_leaves_the_turn_before_it() -> None:
    conversation = Conversation()
    ask(conversation, cell("a", "1"), "a")
    conversation.place(cell("a", "2"), "replace")  # nothing came of it
    assert said(conversation) == ["a"]
    assert ask(conversation, cell("a", "3"), "A") == ["A"]
    assert said(conversation) == ["A"]


def test_new_starts_over() -> None:
    conversation = Conversation()
    for name in "ab":
        ask(conversation, cell(name, f"1{name}"), name)
    assert ask(conversation, cell("c", "2"), "c", new=True) == ["c"]
    assert said(conversation) == ["c"]
    assert ask(conversation, NO_CELL, "d", new=True) == ["d"]
    assert said(conversation) == ["d"]


def test_a_late_answer_of_an_earlier_run_changes_nothing() -> None:
    conversation = Conversation()
    late = conversation.place(cell("a", "1"), "replace")
    ask(conversation, cell("a", "2"), "new")
    conversation.keep(late, Turn({"role": "user", "content": "old"}, {"m": "x"}))
    assert said(conversation) == ["new"]


def test_starting_over_ends_what_was_there_then() -> None:
    conversation = Conversation()
    ask(conversation, cell("a", "1"), "a")
    late = conversation.place(cell("b", "2"), "replace", new=True)
    ask(conversation, cell("c", "3"), "c")
    conversation.keep(late, Turn({"role": "user", "content": "b"}, {"m": "x"}))
    assert said(conversation) == ["c", "b"]


def test_outside_of_cells_all_is_appended() -> None:
    conversation = Conversation()
    assert [ask(conversation, NO_CELL, text) for text in "ab"] == [["a"], ["a", "b"]]


def test_each_model_sees_its_own_answers_and_else_the_first() -> None:
    conversation = Conversation()
    user = {"role": "user", "content": "hi"}
    conversation.keep(conversation.place(NO_CELL, "replace"), Turn(user, {"m": "from m", "n": "from n"}))
    place = conversation.place(NO_CELL, "replace")
    answers = {model: place.messages(model, user, None)[1]["content"] for model in ("m", "n", "other")}
    assert answers == {"m": "from m", "n": "from n", "other": "from m"}


def test_the_system_message_holds_until_another_comes() -> None:
    conversation = Conversation()
    user = {"role": "user", "content": "hi"}
    systems = []
    for given in (None, "pirate", None, "poet", None):
        place = conversation.place(NO_CELL, "replace")
        sent = place.messages("m", user, given)
        systems.append(sent[0]["content"] if sent[0]["role"] == "system" else None)
        conversation.keep(place, Turn(user, {"m": "x"}, given))
    assert systems == [None, "pirate", "pirate", "poet", "poet"]
