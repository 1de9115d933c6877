"""Which requests are meant: filters in real logs of both kinds, over kernels, days, people and notebooks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import nbllm
from nbllm import log, notices, schema, tagging
from tests import servers
from tests.providers_server import ProvidersServer, key_of
from tests.records import record
from tests.servers import Exchange, RawServer, chunks, completion, event, whole

ROOT = Path(__file__).parent.parent
DAY = 86400.0


def insert(table: str, **values: Any) -> None:
    """A row as another kernel has written it."""
    import sqlalchemy as sa

    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    statement = sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks})")
    log.change(lambda connection: connection.execute(statement, values))


def a_kernel(kernel_id: str, owner: str | None = None, **values: Any) -> None:
    """Another kernel, which has ended."""
    ended = {"started_at": time.time(), "seen_at": time.time(), "ended_at": time.time()}
    insert(
        "kernels", kernel_id=kernel_id, owner=tagging.owner() if owner is None else owner, **ended | values
    )


def a_request(kernel_id: str, number: int = 1, **values: Any) -> str:
    """A request of another kernel; gives its id."""
    request_id = f"{kernel_id}-r{number}"
    defaults = {
        "owner": tagging.owner(),
        "session_id": "theirs",
        "call_id": f"{kernel_id}-c{number}",
        "attempt": 1,
        "started_at": time.time(),
        "status": "ok",
    }
    insert(
        "requests",
        id=tagging.first_id(kernel_id) | number,
        request_id=request_id,
        kernel_id=kernel_id,
        **defaults | values,
    )
    return request_id


def own_request(**values: Any) -> str:
    """A request of this kernel; gives its id."""
    made = record(**{"status": "ok", "ended_at": time.time()} | values)
    log.add_request(made)
    return made.request_id


def found(**filters: Any) -> list[str]:
    """The ids of the requests that are found; `sessions` must count as many where it takes the filters."""
    ids = list(nbllm.requests(**filters).request_id)
    if filters.keys() <= {"kernel", "since", "notebook", "model", "search"}:
        assert nbllm.sessions(**filters).requests.sum() == len(ids)
    assert not notices._state.warned
    return ids


# -- time --------------------------------------------------------------------------------------------


@pytest.fixture
def week(any_log: str) -> list[str]:
    """Requests of two kernels: now, and half a day, two, six and eight days ago."""
    a_kernel("0badcafe")
    ages = (0.0, 0.5, 2.0, 6.0, 8.0)
    return [
        own_request() if not age else a_request("0badcafe", number, started_at=time.time() - age * DAY)
        for number, age in enumerate(ages)
    ]


NOW = datetime.datetime.now()
SINCE = {
    "7d": 4,
    " 7 d ": 4,
    "1w": 4,
    "24h": 2,
    "1.5d": 2,
    "0.0001s": 0,
    "0d": 0,
    "2160m": 2,
    "9" * 400 + "d": 5,
    "2001-01-01": 5,
    "20010101": 5,
    "2001-01-01T12:00:00Z": 5,
    "2999-01-01": 0,
    "9999-12-31": 0,
}


@pytest.mark.parametrize("since", SINCE)
def test_since_as_text(week: list[str], since: str) -> None:
    assert found(since=since)[::-1] == week[: SINCE[since]]


@pytest.mark.parametrize(
    ("since", "count"),
    [
        (datetime.timedelta(days=7), 4),
        (datetime.timedelta(days=-1), 0),
        (datetime.timedelta.max, 5),
        (pd.Timedelta("36h"), 2),
        (NOW - datetime.timedelta(days=7), 4),
        ((NOW - datetime.timedelta(days=7)).astimezone(), 4),
        ((NOW - datetime.timedelta(days=7)).astimezone(datetime.timezone(datetime.timedelta(hours=14))), 4),
        ((NOW - datetime.timedelta(days=7)).isoformat(), 4),
        ((NOW - datetime.timedelta(days=7)).astimezone(datetime.UTC).isoformat(), 4),
        ((NOW - datetime.timedelta(days=7)).date(), 4),
        (str((NOW - datetime.timedelta(days=7)).date()), 4),
        (pd.Timestamp.now(tz="UTC") - pd.Timedelta("7D"), 4),
        (pd.Timestamp.now(tz="Asia/Kolkata") - pd.Timedelta("7D"), 4),
        (datetime.date(9999, 12, 31), 0),
    ],
    ids=lambda value: type(value).__name__,  # the same in all of pytest's processes
)
def test_since_as_a_time(week: list[str], since: Any, count: int) -> None:
    assert found(since=since)[::-1] == week[:count]


async def test_since_the_start_of_a_request_finds_it(any_log: str, server: RawServer) -> None:
    """As a frame tells it: the log's microseconds and the frame's are the same moment."""
    ids = [(await nbllm.acompletion("m", "Hi", base_url=server.url())).request.request_id for _ in range(20)]
    began = nbllm.requests().set_index("request_id").started_at
    for number, one in enumerate(ids):
        assert found(since=began[one]) == ids[number:]


@pytest.mark.parametrize(
    "since",
    [
        *(7, 7.0, 0, True, pd.NaT, pd.NA, np.datetime64("2026-01-01"), b"7d", ["7d"], datetime.time(12)),
        *("7", "7 days", "d", "-7d", "7D", "yesterday", "", " ", "2026-13-01", "1e3d", "\0"),
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused_by_name(any_log: str, since: Any) -> None:
    for function in (nbllm.requests, nbllm.sessions):
        with pytest.raises(nbllm.UsageProblem, match="a time is"):
            function(since=since)
    with pytest.raises(nbllm.UsageProblem, match="a time is"):
        nbllm.prune(since)


@pytest.mark.parametrize("since", [datetime.date.min, datetime.datetime.min, "0001-01-01"], ids=repr)
def test_the_beginning_of_all_times(week: list[str], since: Any) -> None:
    """A year that the clock's arithmetic does not reach everywhere is all, or is refused."""
    with contextlib.suppress(nbllm.UsageProblem):
        assert len(found(since=since)) == 5


# -- kernels -----------------------------------------------------------------------------------------


def test_this_kernel_alone_unless_said_otherwise(week: list[str]) -> None:
    mine = [week[0]]
    assert found() == mine
    assert found(kernel=tagging.kernel_id()) == mine
    assert found(model="gpt-4o") == mine
    assert found(search="") == mine
    assert found(kernel="0badcafe")[::-1] == week[1:]
    assert found(kernel="all")[::-1] == week
    assert found(kernel="deadbeef") == []
    assert found(kernel=tagging.kernel_id(), since="7d") == mine
    assert found(kernel="0badcafe", since="7d")[::-1] == week[1:4]
    assert "owner" not in nbllm.sessions()
    assert "owner" not in nbllm.sessions(kernel=tagging.kernel_id())
    for wide in ({"kernel": "all"}, {"kernel": "0badcafe"}, {"since": "9d"}):
        assert "owner" in nbllm.sessions(**wide)


@pytest.mark.parametrize(
    "kernel", ["", "ALL", "xyz", "0badcaf", "0badcafe0", "0BADCAFE", "' OR 1=1 --", 7, True]
)
def test_a_kernel_that_cannot_be_one_is_refused(any_log: str, kernel: Any) -> None:
    for function in (nbllm.requests, nbllm.sessions, nbllm.connections):
        with pytest.raises(nbllm.UsageProblem, match="kernel must be"):
            function(kernel=kernel)


def test_the_ids_of_neighbours_are_told_apart(any_log: str) -> None:
    """The largest number of one kernel stands next to the smallest of the following one."""
    for kernel_id in ("00000000", "00000001", "ffffffff"):
        a_kernel(kernel_id)
        for number in (0, (1 << 31) - 1):
            a_request(kernel_id, number, started_at=1e9 + number)
        assert found(kernel=kernel_id) == [f"{kernel_id}-r0", f"{kernel_id}-r{(1 << 31) - 1}"]
    assert len(found(kernel="all")) == 6


# -- notebooks ---------------------------------------------------------------------------------------

PATHS = [
    "/home/ann/x.ipynb",
    "/home/ann/X.ipynb",
    "/home/ann/a%b.ipynb",
    "/home/ann/aXb.ipynb",
    "/home/ann/a_b.ipynb",
    "/home/ann/my x.ipynb",
    "/home/ann/Übung 'eins'!.ipynb",
    "C:\\Users\\bob\\x.ipynb",
    "relative.ipynb",
    None,
]


@pytest.mark.parametrize(
    ("notebook", "indices"),
    [
        ("x.ipynb", [0, 7]),
        ("X.ipynb", [1]),
        ("ann/x.ipynb", [0]),
        ("/home/ann/x.ipynb", [0]),
        ("/ann/x.ipynb", []),
        ("a%b.ipynb", [2]),
        ("a_b.ipynb", [4]),
        ("%", []),
        ("%.ipynb", []),
        ("_.ipynb", []),
        ("ipynb", []),
        ("", []),
        ("/", []),
        ("Übung 'eins'!.ipynb", [6]),
        ("übung 'eins'!.ipynb", []),
        ("bob/x.ipynb", [7]),
        ("bob\\x.ipynb", [7]),
        ("C:\\Users\\bob\\x.ipynb", [7]),
        ("relative.ipynb", [8]),
        ("a/much/longer/path/than/any/of/these/is/to/relative.ipynb", []),
    ],
)
def test_a_notebook_is_found_by_path_and_name(any_log: str, notebook: str, indices: list[int]) -> None:
    ids = []
    for number, path in enumerate(PATHS):
        a_kernel(f"0000000{number:x}", notebook=path)
        ids.append(a_request(f"0000000{number:x}", started_at=1e9 + number))
    assert found(notebook=notebook) == [ids[index] for index in indices]
    told = nbllm.requests(kernel="all").notebook
    assert [None if pd.isna(one) else one for one in told] == PATHS


# -- what was said -----------------------------------------------------------------------------------

SAID = [
    'She said "no"',
    "two\nlines",
    "a\ttab",
    "back\\slash",
    "\\n is not a new line",
    "100 % sure",
    "snake_case",
    "wow!",
    "it's",
    "Grüße",
    "日本語",
    "👩‍💻 and 😀",
    "bell\x07",
    "C:\\new\\table",
    "</script>",
    "\\u00e4",
    "e\u0301",
    "del\x7f end",
    ":said ?  %s %(x)s {x}",
]


async def in_ascii(x: Exchange) -> None:
    await say(x, ensure_ascii=True)


async def in_utf8(x: Exchange) -> None:
    await say(x, ensure_ascii=False)


async def say(x: Exchange, ensure_ascii: bool) -> None:
    """An answer that holds the question, in JSON of one way or the other."""
    text = f"You said: {x.request.json['messages'][0]['content']}."

    def dumped(body: dict[str, Any]) -> bytes:
        return json.dumps(body, ensure_ascii=ensure_ascii).encode()

    if x.request.json.get("stream"):
        pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
        await servers._stream(x, [*(event(dumped(one)) for one in chunks(pieces)), event(b"[DONE]")])
    else:
        await x.send(whole("200 OK", dumped(completion(text))))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", [in_ascii, in_utf8])
async def test_texts_are_found_however_json_writes_them(
    any_log: str, server: RawServer, behaviour: Any, stream: bool
) -> None:
    """In the question, and in the answer alone."""
    server.behaviours["say"] = behaviour
    ids = {}
    for text in SAID:
        answer: Any = await nbllm.acompletion("m", text, base_url=server.url("say"), stream=stream)
        if stream:
            assert [chunk async for chunk in answer]
        ids[text] = answer.request.request_id
    for text, request_id in ids.items():
        assert found(search=text) == [request_id], text
        assert found(search=f"You said: {text}.") == [request_id], text
        assert found(search=f"{text}?") == []
    assert found(search="YOU SAID: SNAKE_CASE") == [ids["snake_case"]]
    assert found(search="GRüSSE") == []
    assert found(search="%") == [ids["100 % sure"], ids[":said ?  %s %(x)s {x}"]]
    assert found(search="!") == [ids["wow!"]]


async def test_texts_are_found_in_the_words_of_every_provider(any_log: str) -> None:
    text = 'Die "Größe" 😀\nzählt'
    with ProvidersServer() as providers:
        for provider in ("openai", "anthropic", "gemini"):
            options = {"base_url": providers.base_url(provider), "api_key": key_of(provider)}
            answer = await nbllm.acompletion(f"{provider}/some-model", text, **options)
            assert found(search=text)[-1] == answer.request.request_id
    assert len(found(search=text)) == 3
    assert found(search=text, model="anthropic/some-model") == [found(search=text)[1]]


async def test_errors_are_found_by_their_message(any_log: str, server: RawServer) -> None:
    with pytest.raises(nbllm.APIError) as raised:
        await nbllm.acompletion("m", "planted", base_url=server.url("status-500"))
    nbllm.configure(content=False)
    with pytest.raises(nbllm.APIError):
        await nbllm.acompletion("m", "planted", base_url=server.url("status-500"))
    message = nbllm.requests().error_message.iloc[0]
    assert message in str(raised.value)
    assert len(found(search=message, errors=True)) == 2
    assert len(found(search="planted")) == 1


async def test_without_content_nothing_said_is_found(any_log: str, server: RawServer) -> None:
    nbllm.configure(content=False)
    await nbllm.acompletion("m", "planted", base_url=server.url("echo"))
    assert len(found()) == 1
    assert found(search="planted") == []


@pytest.mark.parametrize("search", ["x" * 4000, "😀" * 4000, "!" * 4000, '"' * 4000, "\0" * 4000])
def test_the_longest_texts(any_log: str, search: str) -> None:
    made = record(status="ok", ended_at=1.0)
    made.content = json.dumps({"messages": [search]}, ensure_ascii=False).encode("utf-8", "replace")
    log.add_request(made)
    assert len(found(search=search)) == 1
    for name in ("search", "session", "model", "notebook", "cell"):
        with pytest.raises(nbllm.UsageProblem, match=f"{name} must"):
            nbllm.requests(**{name: "x" * 4001})


# -- runs of cells -----------------------------------------------------------------------------------


def run_of(cell: str | None, run: str | None, age: float, kernel_id: str = "0badcafe", **values: Any) -> str:
    """A request of a cell's run that was begun so many seconds ago."""
    number = int(nbllm.requests(kernel=kernel_id).shape[0]) + 1
    return a_request(kernel_id, number, cell_id=cell, run_id=run, started_at=time.time() - age, **values)


def test_the_last_run_of_each_cell(any_log: str) -> None:
    run_of("a", "a1", 90)
    kept = [
        run_of("a", "a2", 80, execution_count=2),
        run_of("a", "a2", 79, cell_source="last_cell", execution_count=2),  # by a thread
        run_of(None, None, 70),  # a script
        run_of(None, "silent-1", 60),
        run_of(None, "silent-2", 59),
    ]
    run_of("b", "b1", 50, status="error")
    kept += [run_of("b", "b2", 40, status="error", session_id="other"), run_of("b", "b2", 39, status=None)]
    # A task of an earlier run may outlive the later one.
    run_of("a", "a1", 5)
    a_kernel("0badcafe", host=socket.gethostname(), pid=1 << 30, ended_at=None)  # it was killed
    everything: dict[str, Any] = {"kernel": "all", "latest": True}
    assert found(**everything) == kept
    assert found(kernel="0badcafe", latest=True) == kept
    assert found(**everything, errors=True) == [kept[5]]
    assert found(**everything, session="other") == [kept[5]]
    assert found(**everything, cell="b") == kept[5:]
    assert found(**everything, cell=2) == found(**everything, cell=np.int64(2)) == kept[:2]
    assert found(latest=True) == []
    assert nbllm.requests(**everything).status.tolist()[-1] == "incomplete"


def test_cells_of_copies_and_of_other_people_are_others(any_log: str) -> None:
    """Everybody in a course has the same notebook, with the same ids of its cells."""
    people = ("ann", "bob", "bob")
    notebooks = ("/ann/x.ipynb", "/bob/x.ipynb", "/bob/copy.ipynb")
    kept = []
    for number, (owner, notebook) in enumerate(zip(people, notebooks, strict=True)):
        for restart in range(2):  # the same cell, in a kernel that was started again
            kernel_id = f"000000{number}{restart}"
            a_kernel(kernel_id, owner, notebook=notebook)
            last = run_of("a", f"run-{kernel_id}", 90 - 10 * number - restart, kernel_id, owner=owner)
        kept.append(last)
    assert found(kernel="all", latest=True) == kept
    assert found(notebook="x.ipynb", latest=True) == kept[:2]


def test_cells_that_only_a_number_names_are_of_their_kernel(any_log: str) -> None:
    kept = []
    for kernel_id in ("00000001", "00000002"):
        a_kernel(kernel_id)
        kept.append(run_of("In[3]", f"run-{kernel_id}", 9, kernel_id, execution_count=3))
    assert sorted(found(kernel="all", latest=True)) == kept
    assert sorted(found(kernel="all", cell="In[3]", latest=True)) == kept


def test_the_last_run_is_the_last_of_what_is_looked_at(any_log: str) -> None:
    a_kernel("0badcafe")
    old, new = run_of("a", "a1", 9 * DAY), run_of("a", "a2", 2 * DAY)
    assert found(kernel="all", latest=True) == found(since="7d", latest=True) == [new]
    assert found(since="1d", latest=True) == []
    assert found(since="30d") == [old, new]


@pytest.mark.parametrize(
    "cell", [-1, 1 << 31, 10**30, 3.0, True, ["a"], b"a", np.float64(3), pd.NA], ids=repr
)
def test_a_cell_that_cannot_be_one_is_refused(any_log: str, cell: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match="cell must be"):
        nbllm.requests(cell=cell)


@pytest.mark.parametrize("name", ["session", "model", "notebook", "search"])
@pytest.mark.parametrize("value", [7, b"x", ["x"], pd.NA, float("nan"), Path("x.ipynb")], ids=repr)
def test_a_filter_that_is_no_text_is_refused_by_name(any_log: str, name: str, value: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match=f"{name} must be a text"):
        nbllm.requests(**{name: value})


# -- in flight -----------------------------------------------------------------------------------------


async def test_requests_in_flight_pass_every_filter(any_log: str, server: RawServer) -> None:
    tagging.enter_cell(tagging.Cell("c", 3, "run-1", "frontend"))
    with nbllm.session("mine"):
        asking = asyncio.create_task(nbllm.acompletion("openai/m", "planted", base_url=server.url("gated")))
    await server.seen(lambda: len(server.requests) == 1)
    filters: list[dict[str, Any]] = [
        {"kernel": "all"},
        {"session": "mine"},
        {"since": "1h"},
        {"model": "m"},
        {"model": "openai/m"},
        {"cell": 3},
        {"cell": "c"},
        {"latest": True},
        {"latest": True, "cell": 3, "session": "mine", "since": "1h"},
    ]
    for one in filters:
        assert len(found(**one)) == 1, one
        assert nbllm.requests(**one).status.isna().all()
    assert nbllm.sessions(kernel="all").running.tolist() == [1]
    assert found(errors=True) == found(search="planted") == []  # what it said is kept when it has ended
    server.open_gate()
    await asking
    assert len(found(search="planted")) == 1
    assert nbllm.requests(kernel="all").status.tolist() == ["ok"]


# -- other processes -----------------------------------------------------------------------------------

IN_A_NOTEBOOK = """
import asyncio, sys
import nbllm
nbllm.tagging.set_notebook(f"/home/{sys.argv[3]}/x.ipynb")
async def main():
    with nbllm.session("review"):
        for _ in range(int(sys.argv[2])):
            await nbllm.acompletion("m", "I am " + sys.argv[3], base_url=sys.argv[1])
asyncio.run(main())
print(nbllm.requests().notebook.unique().tolist(), len(nbllm.requests(notebook="x.ipynb")))
"""


def test_two_people_with_the_same_notebook_and_session(any_log: str, server: RawServer) -> None:
    said = []
    for owner, count in (("ann", 1), ("bob", 2)):
        log_variable = "NBLLM_LOG_URL" if "://" in any_log else "NBLLM_LOG_PATH"
        env = {
            **os.environ,
            log_variable: any_log,
            "NBLLM_CONTENT": "1",
            "JUPYTERHUB_USER": owner,
        }
        argv = [sys.executable, "-c", IN_A_NOTEBOOK, server.url(), str(count), owner]
        process = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert process.stderr == ""
        said.append(process.stdout.strip())
    assert said == ["['/home/ann/x.ipynb'] 1", "['/home/bob/x.ipynb'] 3"]
    sessions = nbllm.sessions(notebook="x.ipynb")
    assert sessions.session_id.tolist() == ["review", "review"]
    assert dict(zip(sessions.owner, sessions.requests, strict=True)) == {"ann": 1, "bob": 2}
    assert sessions.requests.sum() == len(server.requests)
    assert nbllm.sessions(kernel="all", search="I am bob").owner.tolist() == ["bob"]
    assert nbllm.sessions(notebook="ann/x.ipynb").owner.tolist() == ["ann"]
    assert set(nbllm.requests(since="1h").notebook) == {"/home/ann/x.ipynb", "/home/bob/x.ipynb"}
    assert nbllm.requests(kernel="all", session="review").shape[0] == 3
    assert nbllm.requests().empty


def test_all_columns_are_selected_by_name() -> None:
    """A column that a migration adds later stands in its place in the frame too."""
    assert sorted(nbllm.requests().columns) == sorted([*list(schema.REQUESTS)[1:], "notebook"])
