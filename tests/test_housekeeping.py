"""Sessions renamed, tagged, deleted; rows pruned and forgotten: in both stores, beside other people's."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import nbllm
from nbllm import conversation, log, notices, responding, tagging
from tests.servers import RawServer
from tests.test_selection import DAY, ROOT, a_kernel, a_request, insert, own_request

PLANTED = "planted-7f3a"


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Nothing is warned of."""
    yield
    assert not notices._state.warned


async def ask(server: RawServer, session: str | None = None, text: str = "Hi", **options: Any) -> str:
    """A request's id."""
    behaviour = options.pop("behaviour", "chat")
    answer = await nbllm.acompletion("m", text, base_url=server.url(behaviour), session_id=session, **options)
    request_id: str = answer.request.request_id
    return request_id


def sessions(**filters: Any) -> dict[str, int]:
    """Own sessions with the number of their requests."""
    frame = nbllm.sessions(kernel="all", **filters)
    frame = frame[frame.owner == tagging.owner()]
    return dict(zip(frame.session_id, frame.requests, strict=True))


def tags(session: str) -> str:
    frame = nbllm.sessions(kernel="all").set_index(["owner", "session_id"])
    said: str = frame.tags[(tagging.owner(), session)]
    return said


def counted(table: str) -> int:
    """Rows of a table, of whoever."""
    return int(log.read(lambda c: c.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar()))


def of_another() -> None:
    """Another person's kernel, which has the same names for all."""
    old = time.time() - 100 * DAY
    a_kernel("0badcafe", "somebody", seen_at=old)
    for number in (1, 2):
        values: dict[str, Any] = {"owner": "somebody", "started_at": old, "connection_id": "0badcafe-n9"}
        a_request("0badcafe", number, session_id="first", **values)
        insert("contents", id=tagging.first_id("0badcafe") | number, request=PLANTED, response="{}")
    for number in (1, 2):
        insert(
            "connections",
            connection_id=f"0badcafe-n{number}",
            kernel_id="0badcafe",
            opened_at=old,
            closed_at=old,
        )
    insert("tags", owner="somebody", session_id="first", tag="theirs", tagged_at=old)


def of_another_now() -> list[Any]:
    """All that the log has of the other person."""
    frame = nbllm.sessions(kernel="0badcafe").reset_index(drop=True)
    contents = log.read(
        lambda c: c.execute(sa.text("SELECT id FROM contents WHERE request = :p"), {"p": PLANTED}).fetchall()
    )
    return [
        frame[["session_id", "owner", "tags", "requests"]].to_dict("records"),
        len(nbllm.connections(kernel="0badcafe")),
        counted("kernels WHERE kernel_id = '0badcafe'"),
        sorted(row[0] for row in contents),
    ]


# -- names -------------------------------------------------------------------------------------------


async def test_a_session_gets_another_name_in_all_kernels(any_log: str, server: RawServer) -> None:
    a_kernel("00000001")
    a_request("00000001", session_id="first")
    await ask(server, "first")
    await ask(server, "second")
    nbllm.tag_session("first", "x", "y")
    assert nbllm.rename_session("first", "it's 100 % new") == 2
    assert sessions() == {"it's 100 % new": 2, "second": 1}
    assert tags("it's 100 % new") == "x, y"
    await ask(server, "first")  # who says the old name means it
    assert sessions()["first"] == 1
    assert "x" not in str(nbllm.sessions().set_index("session_id").tags["first"])
    with pytest.raises(nbllm.UsageProblem, match="there is a session 'first' already"):
        nbllm.rename_session("second", "first")
    with pytest.raises(nbllm.UsageProblem, match=r"there is no session 'frist'.*'first'"):
        nbllm.rename_session("frist", "third")
    assert sessions() == {"it's 100 % new": 2, "second": 1, "first": 1}


@pytest.mark.parametrize("new", ["", " ", "ü", "x" * 200, "a\nb", "\0", None, 7, b"x", "\ud83d"], ids=repr)
def test_a_name_that_cannot_be_one_changes_nothing(any_log: str, new: Any) -> None:
    own_request()
    with pytest.raises(nbllm.UsageProblem, match="session id"):
        nbllm.rename_session("review", new)
    assert sessions() == {"review": 1}


@pytest.mark.parametrize(
    "old", ["", "nobody", None, 7, b"x", ["review"], "\0", "\ud83d", "%", "REVIEW"], ids=repr
)
def test_a_session_that_is_not_there(any_log: str, old: Any) -> None:
    own_request()
    for change in (
        lambda: nbllm.rename_session(old, "new"),
        lambda: nbllm.tag_session(old, "x"),
        lambda: nbllm.delete_session(old),
    ):
        with pytest.raises(nbllm.UsageProblem, match="there is no session"):
            change()
    assert sessions() == {"review": 1}
    assert counted("tags") == 0


async def test_what_follows_goes_on_under_the_new_name(any_log: str, server: RawServer) -> None:
    nbllm.set_session("chosen")
    await ask(server)
    nbllm.rename_session("chosen", "renamed")
    assert tagging.current_session() == "renamed"
    await ask(server)
    nbllm.set_session(None)
    default = tagging.default_session()
    try:
        await ask(server)
        nbllm.rename_session(default, "the kernel")
        await ask(server)
        assert tagging.current_session() == tagging.default_session() == "the kernel"
    finally:
        tagging._state.default_session = default
    assert sessions() == {"renamed": 2, "the kernel": 2}


async def test_a_session_without_a_request_can_be_renamed_and_tagged(any_log: str, server: RawServer) -> None:
    nbllm.set_session("empty")
    assert nbllm.tag_session("empty", "x") == ["x"]
    assert nbllm.rename_session("empty", "still empty") == 0
    await ask(server)
    assert (sessions(), tags("still empty")) == ({"still empty": 1}, "x")


async def test_tags_of_both_names_stay(any_log: str, server: RawServer) -> None:
    """The session in force may have tags before it has a request."""
    nbllm.set_session("new")
    nbllm.tag_session("new", "both", "of new")
    await ask(server, "old")
    nbllm.tag_session("old", "both", "of old")
    assert nbllm.rename_session("old", "new") == 1
    assert tags("new") == "both, of new, of old"
    assert counted("tags") == 3


async def test_a_block_that_is_entered_goes_on_under_the_new_name(any_log: str, server: RawServer) -> None:
    with nbllm.session("outer"), nbllm.session("inner") as block:
        await ask(server)
        nbllm.rename_session("inner", "renamed")
        await asyncio.create_task(ask(server))
    assert tagging.chosen_session() is None
    with block:
        await ask(server)
    assert tagging.chosen_session() is None
    assert sessions() == {"renamed": 3}


async def test_what_is_in_flight_ends_under_the_new_name(any_log: str, server: RawServer) -> None:
    asking = asyncio.create_task(ask(server, "old", behaviour="gated"))
    await server.seen(lambda: len(server.requests) == 1)
    assert nbllm.rename_session("old", "new") == 1
    assert sessions() == {"new": 1}
    server.open_gate()
    await asking
    assert sessions() == {"new": 1}
    assert nbllm.requests().status.tolist() == ["ok"]


async def test_the_next_attempt_bears_the_new_name(any_log: str, server: RawServer) -> None:
    nbllm.configure(num_retries=1)

    async def busy_once(x: Any) -> None:
        await x.gate()
        await server.behaviours["status"](x, "503" if len(server.requests) == 1 else "200")  # type: ignore[call-arg]

    server.behaviours["busy_once"] = busy_once
    asking = asyncio.create_task(ask(server, "old", behaviour="busy_once"))
    await server.seen(lambda: len(server.requests) == 1)
    nbllm.rename_session("old", "new")
    server.open_gate()
    with pytest.raises(nbllm.APIError):  # the second answer is none
        await asking
    assert sessions() == {"new": len(server.requests)}
    assert len(server.requests) == 2


async def test_a_chat_goes_on_with_what_was_said(any_log: str, server: RawServer) -> None:
    chat = nbllm.Chat("old", "m", base_url=server.url())
    await chat.aask("One")
    nbllm.rename_session("old", "new")
    assert len(nbllm.Chat("new")) == 2
    assert len(nbllm.Chat("old")) == 0
    await chat.aask("Two")
    assert [message["content"] for message in server.requests[-1].json["messages"]][::2] == ["One", "Two"]
    assert sessions() == {"new": 2}


async def test_the_conversation_of_the_session_in_force_goes_on(any_log: str, server: RawServer) -> None:
    nbllm.set_session("old")
    for text in ("One", "Two"):
        await nbllm.aask(text, "m", base_url=server.url())
        if text == "One":
            nbllm.rename_session("old", "new")
    assert len(server.requests[-1].json["messages"]) == 3
    assert nbllm.transcript("new").summary.startswith("2 ") or len(nbllm.transcript("new")) == 2


async def test_a_chain_of_responses_goes_on(any_log: str, server: RawServer) -> None:
    options: dict[str, Any] = {"model": "groq/m", "base_url": server.url(), "api_key": "gsk-nothing"}
    first = await nbllm.aresponses("One", session_id="old", **options)
    nbllm.rename_session("old", "new")
    second = await nbllm.aresponses("Two", previous_response_id=first.id, **options)
    responding._state.sessions.clear()  # as in another kernel
    await nbllm.aresponses("Three", previous_response_id=second.id, **options)
    assert sessions() == {"new": 3}


async def test_a_chain_that_is_in_flight_goes_on(any_log: str, server: RawServer) -> None:
    options: dict[str, Any] = {"model": "groq/m", "api_key": "gsk-nothing"}
    asking = asyncio.create_task(
        nbllm.aresponses("One", session_id="old", base_url=server.url("gated"), **options)
    )
    await server.seen(lambda: len(server.requests) == 1)
    nbllm.rename_session("old", "new")
    server.open_gate()
    first = await asking
    await nbllm.aresponses("Two", previous_response_id=first.id, base_url=server.url(), **options)
    assert sessions() == {"new": 2}


# -- tags ----------------------------------------------------------------------------------------------


def test_tags_are_added_and_taken_away(any_log: str) -> None:
    own_request()
    assert nbllm.tag_session("review") == []
    assert nbllm.tag_session("review", "final", "Paper", "b", "ä", "it's :x %") == sorted(
        ["final", "Paper", "b", "ä", "it's :x %"]
    )
    assert nbllm.tag_session("review", "b", "b", remove="final") == ["Paper", "b", "it's :x %", "ä"]
    assert nbllm.tag_session("review", "new", remove=["new", "nothing"]) == [
        "Paper",
        "b",
        "it's :x %",
        "new",
        "ä",
    ]
    assert tags("review") == "Paper, b, it's :x %, new, ä"
    assert nbllm.tag_session("review", remove=("Paper", "b", "it's :x %", "ä", "new")) == []
    assert nbllm.sessions().tags.tolist() == [""]


@pytest.mark.parametrize("tag", ["", " ", "a,b", ",", None, 7, ["a"], b"a", "x" * 201])
@pytest.mark.parametrize("is_removed", [False, True])
def test_what_is_no_tag_is_refused(any_log: str, tag: Any, is_removed: bool) -> None:
    own_request()
    nbllm.tag_session("review", "there")
    with pytest.raises(nbllm.UsageProblem, match="a tag is"):
        nbllm.tag_session("review", "good", *([] if is_removed else [tag]), remove=[tag] * is_removed)
    assert tags("review") == "there"


@pytest.mark.parametrize("tag", ["\0", "\ud83d", "x" * 200, "😀", "a\nb"])
def test_odd_tags_are_kept_as_far_as_they_can_be(any_log: str, tag: str) -> None:
    own_request()
    (kept,) = nbllm.tag_session("review", tag)
    assert len(kept) == len(tag)
    assert nbllm.tag_session("review", remove=tag) == []


# -- deleting ------------------------------------------------------------------------------------------


async def test_a_session_is_deleted_with_all_of_it(any_log: str, server: RawServer) -> None:
    a_kernel("00000001")
    a_request("00000001", session_id="first")
    for session in ("first", "second"):
        chat = nbllm.Chat(session, "m", base_url=server.url())
        await chat.aask(PLANTED)
    nbllm.tag_session("first", "x")
    assert nbllm.delete_session("first") == 2
    assert sessions() == {"second": 1}
    assert len(nbllm.Chat("first")) == 0
    assert (counted("requests"), counted("contents"), counted("tags")) == (1, 1, 0)
    assert len(nbllm.Chat("second")) == 2
    await ask(server, "first")
    assert set(nbllm.sessions().tags) == {""}
    with pytest.raises(nbllm.UsageProblem, match="there is no session"):
        nbllm.delete_session("third")


async def test_what_is_in_flight_comes_back_when_it_ends(any_log: str, server: RawServer) -> None:
    asking = asyncio.create_task(ask(server, "old", PLANTED, behaviour="gated"))
    await server.seen(lambda: len(server.requests) == 1)
    assert nbllm.delete_session("old") == 1
    log.flush()
    server.open_gate()
    request_id = await asking
    assert nbllm.requests(search=PLANTED).request_id.tolist() == [request_id]


async def test_requests_are_forgotten_all_or_none(any_log: str, server: RawServer) -> None:
    ids = [await ask(server, text=f"{PLANTED} {number}") for number in range(4)]
    for bad in (
        "deadbeef-r1",
        "nonsense",
        "",
        "-r",
        "\0",
        None,
        7,
        ["x"],
        ids[0] + "0",
        ids[0].upper() + " ",
    ):
        with pytest.raises(nbllm.UsageProblem, match=r"the log has no ended request|a request's id"):
            nbllm.forget(ids[0], bad, ids[1])
        assert len(nbllm.requests(search=PLANTED)) == 4
    assert nbllm.forget() == 0
    assert nbllm.forget(ids[1], ids[2], ids[1]) == 2
    assert nbllm.requests().request_id.tolist() == [ids[0], ids[3]]
    assert counted("contents") == 2
    assert nbllm.forget(*nbllm.requests().request_id) == 2
    assert nbllm.requests().empty


async def test_what_is_in_flight_is_not_forgotten(any_log: str, server: RawServer) -> None:
    asking = asyncio.create_task(ask(server, behaviour="gated"))
    await server.seen(lambda: len(server.requests) == 1)
    (request_id,) = nbllm.requests().request_id
    with pytest.raises(nbllm.UsageProblem, match="no ended request"):
        nbllm.forget(request_id)
    server.open_gate()
    await asking
    assert nbllm.forget(request_id) == 1
    assert nbllm.requests().empty


async def test_others_keep_theirs(any_log: str, server: RawServer) -> None:
    """Who has a session of the same name, in the same database."""
    of_another()
    before = of_another_now()
    assert before[0] == [{"session_id": "first", "owner": "somebody", "tags": "theirs", "requests": 2}]
    await ask(server, "first")
    nbllm.tag_session("first", "mine", remove="theirs")
    assert tags("first") == "mine"
    assert len(nbllm.transcript("first")) == 1
    assert len(nbllm.sessions(kernel="all")) == 2
    nbllm.rename_session("first", "second")
    nbllm.rename_session("second", "first")  # theirs doesn't stand in the way
    with pytest.raises(nbllm.UsageProblem, match="of yours"):
        nbllm.forget("0badcafe-r1")
    assert nbllm.prune("1d") == 0
    assert nbllm.delete_session("first") == 1
    for change in (nbllm.delete_session, lambda name: nbllm.rename_session(name, "new"), nbllm.tag_session):
        with pytest.raises(nbllm.UsageProblem, match="of yours"):
            change("first")
    assert of_another_now() == before
    assert counted("requests") == 2


# -- pruning -------------------------------------------------------------------------------------------


def old_things(age: float, kernel_id: str = "00000001") -> None:
    """What a kernel of so many days ago has left."""
    then = time.time() - age * DAY
    a_kernel(kernel_id, started_at=then, seen_at=then, ended_at=then)
    insert(
        "connections", connection_id=f"{kernel_id}-n1", kernel_id=kernel_id, opened_at=then, closed_at=then
    )
    a_request(kernel_id, connection_id=f"{kernel_id}-n1", started_at=then, session_id=f"of {kernel_id}")
    insert("contents", id=tagging.first_id(kernel_id) | 1, request=PLANTED, response=None)
    insert("tags", owner=tagging.owner(), session_id=f"of {kernel_id}", tag="x", tagged_at=then)


async def test_what_is_old_goes_with_all_that_belongs_to_it(any_log: str, server: RawServer) -> None:
    of_another()
    before = of_another_now()
    await ask(server, "new")
    old_things(100)
    old_things(10, "00000002")
    tables = ("requests", "contents", "connections", "kernels", "tags")
    assert [counted(table) for table in tables] == [5, 5, 5, 4, 3]
    assert nbllm.prune("90d") == 1
    assert [counted(table) for table in tables] == [4, 4, 4, 3, 2]
    assert nbllm.prune(datetime.timedelta(days=90)) == 0
    assert sessions() == {"of 00000002": 1, "new": 1}
    assert nbllm.prune(datetime.date.today() - datetime.timedelta(days=5)) == 1
    assert sessions() == {"new": 1}
    assert of_another_now() == before
    assert nbllm.prune("0d") == 1
    assert sessions() == {}
    await ask(server, "new")
    assert sessions() == {"new": 1}
    assert of_another_now() == before


def test_connections_that_an_older_nbllm_left_go_too(any_log: str) -> None:
    """It kept no table of kernels."""
    own_request()
    then = time.time() - 100 * DAY
    insert("connections", connection_id="00000001-n1", kernel_id="00000001", opened_at=then, closed_at=then)
    assert nbllm.prune("90d") == 0
    assert counted("connections") == 0


async def test_what_is_in_flight_is_not_pruned(any_log: str, server: RawServer) -> None:
    asking = asyncio.create_task(ask(server, "old", behaviour="gated"))
    await server.seen(lambda: len(server.requests) == 1)
    assert nbllm.prune("0d") == 0
    assert sessions() == {"old": 1}
    server.open_gate()
    await asking
    assert (len(nbllm.connections()), len(server.connections)) == (1, 1)
    assert sessions() == {"old": 1}


def test_the_file_gets_smaller(log_path: Path) -> None:
    nbllm.configure(content=True)
    a_kernel("00000001")
    for number in range(200):
        a_request("00000001", number, started_at=1e9)
        insert("contents", id=tagging.first_id("00000001") | number, request="x" * 10_000, response=None)
    before = log_path.stat().st_size
    assert nbllm.prune("1d") == 200
    assert log_path.stat().st_size < before / 10


# -- on the disk -----------------------------------------------------------------------------------------

WRITES = """
import sys, time
import nbllm
from nbllm import log
from tests.records import record
print("begun", flush=True)
number = 0
while True:
    made = record(status="ok", ended_at=time.time())
    made.content = b'{"messages": []}' + b" " * (number * 37 % 900)
    log.add_request(made)
    log.flush()
    number += 1
    if number == 20:
        print("busy", flush=True)
"""


@pytest.fixture
def busy_kernel(log_path: Path) -> Iterator[None]:
    """Another kernel, which writes to the same log all the time."""
    env = {**os.environ, "NBLLM_LOG_PATH": str(log_path), "NBLLM_CONTENT": "1"}
    argv = [sys.executable, "-c", WRITES]
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "busy\n"]
    yield
    process.kill()
    process.communicate()


def left(folder: Path) -> set[str]:
    """The planted words that stand in any of a folder's files."""
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    return {found.decode() for found in re.findall(rb"planted-\d+-end", data)}


def plant(count: int) -> list[str]:
    """Requests of many kernels, by turns, so that the pages of the file are split and filled again."""
    dice = random.Random(0)
    kernels = [f"{dice.getrandbits(32):08x}" for _ in range(5)]
    ids = []

    def job(connection: sa.Connection) -> None:
        for number in range(count):
            kernel_id = dice.choice(kernels)
            ids.append(f"{kernel_id}-r{number}")
            values = {
                "id": tagging.first_id(kernel_id) | number,
                "request_id": ids[-1],
                "kernel_id": kernel_id,
                "owner": tagging.owner(),
                "text": f"planted-{number}-end" + "x" * dice.randrange(900),
                "other": "x" * dice.randrange(900),
            }
            requests = (
                "INSERT INTO requests (id, request_id, call_id, attempt, session_id, kernel_id, owner, "
                "started_at, status) VALUES (:id, :request_id, 'c', 1, 'theirs', :kernel_id, :owner, 1, 'ok')"
            )
            connection.execute(sa.text(requests), values)
            connection.execute(sa.text("INSERT INTO contents VALUES (:id, :text, :other)"), values)

    log.change(job)
    return ids


@pytest.mark.parametrize("way", ["forget", "delete_session", "prune"])
def test_deleted_bytes_are_gone_from_every_file(log_path: Path, way: str) -> None:
    nbllm.configure(content=True)
    ids = plant(600)
    assert len(left(log_path.parent)) == 600
    if way == "forget":
        nbllm.forget(*ids[::10])
        assert left(log_path.parent) == {f"planted-{number}-end" for number in range(600) if number % 10}
    elif way == "delete_session":
        nbllm.delete_session("theirs")
        assert left(log_path.parent) == set()
    else:
        nbllm.prune("0d")
        assert left(log_path.parent) == set()


def test_deleted_bytes_are_gone_while_another_kernel_writes(log_path: Path, busy_kernel: None) -> None:
    nbllm.configure(content=True)
    ids = plant(20)
    for number, request_id in enumerate(ids):
        nbllm.forget(request_id)
        assert f"planted-{number}-end" not in left(log_path.parent)
    assert left(log_path.parent) == set()
    assert not nbllm.requests(kernel="all").empty


def test_a_change_costs_other_kernels_no_row(log_path: Path, busy_kernel: None) -> None:
    own_request()
    for number in range(5):
        nbllm.tag_session("review", str(number))
    assert tags("review") == "0, 1, 2, 3, 4"
    frame = nbllm.requests(kernel="all")
    numbers = frame[frame.kernel_id != tagging.kernel_id()].request_id.str.rpartition("-r")[2].astype(int)
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


# -- in memory -------------------------------------------------------------------------------------------


def test_a_log_in_memory_takes_the_same_changes() -> None:
    nbllm.configure(log=None)
    ids = [own_request() for _ in range(3)]
    assert nbllm.tag_session("review", "x") == ["x"]
    assert nbllm.rename_session("review", "new") == 3
    assert nbllm.forget(ids[0]) == 1
    assert nbllm.prune("1d") == 0
    assert tags("new") == "x"
    assert nbllm.delete_session("new") == 2
    assert conversation._state.conversations == {}
