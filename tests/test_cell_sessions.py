"""`%%session NAME` in real kernels: what an ordinary cell sends, by any client, is one session's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import nbllm
from nbllm import pricing
from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel, Outcome, environment, two_pythons
from tests.servers import RawServer

ASK = "await nbllm.acompletion('gpt-4o', 'Hi')"
CALL = "answer = nbllm.completion('gpt-4o', 'Hi')"


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, raw: RawServer, python: str) -> Iterator[Kernel]:
    env = {"OPENAI_API_KEY": "sk-test-1234567890", "OPENAI_BASE_URL": raw.url("echo"), "URL": raw.url()}
    with Kernel(tmp_path_factory.mktemp("kernel"), python=python, env=env | {"NBLLM_NUM_RETRIES": "0"}) as k:
        k.run("%load_ext nbllm\nimport asyncio, os, nbllm").ok()
        yield k


@pytest.fixture
def session(kernel: Kernel, request: pytest.FixtureRequest) -> str:
    """A session id of the test's own; without the name of the Python, which a session id may hold too."""
    kernel.run("nbllm.set_session(None)").ok()
    name: str = request.node.name
    return name.replace("[", " ").replace("]", "")


def ids(kernel: Kernel, session: str) -> list[str]:
    return [row["request_id"] for row in kernel.rows(session_id=session)]


def footers(outcome: Outcome) -> list[str]:
    """What the last output shows, where that is a line about requests."""
    told = [shown["text/plain"] for shown in outcome.displays if "text/markdown" in shown]
    return [text for text in told if "request" in text]


# -- the cell ------------------------------------------------------------------------------------------


@two_pythons
def test_a_cell_runs_as_ever_and_its_requests_belong_together(
    kernel: Kernel, session: str, raw: RawServer
) -> None:
    before = len(raw.requests)
    outcome = kernel.run(
        f"%%session {session}\n"
        "first = await nbllm.acompletion('gpt-4o', 'One')\n"
        "async def ask():\n"
        "    return await nbllm.acompletion('gpt-4o', 'Two')\n"
        "\n"
        "second = (await asyncio.gather(ask()))[0]\n"
        "third = nbllm.completion('gpt-4o', 'Three')\n"
        "[first.text, second.text, third.text]"
    ).ok()
    assert len(raw.requests) - before == 3
    rows = kernel.rows(session_id=session)
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert {row["run_id"] for row in rows} == {outcome.msg_id}
    value, told = outcome.displays
    assert value["text/plain"] == "['One', 'Two', 'Three']"
    usd = pricing.price_usd("openai", "gpt-4o", input_tokens=33, output_tokens=15)
    assert usd is not None
    assert told["text/plain"] == f"3 requests · gpt-4o · {session} · 33→15 tok · ${usd:.5f}"
    assert [one["request_id"] for one in outcome.traced()] == [row["request_id"] for row in rows]
    assert {one["session_id"] for one in outcome.traced()} == {session}
    assert sum(one["cost_usd"] for one in outcome.traced()) == pytest.approx(usd)


@two_pythons
def test_the_session_is_over_in_the_next_cell(kernel: Kernel, session: str) -> None:
    inside = kernel.run(f"%%session {session}\nnbllm.current_session()").ok()
    assert inside.displays[-1]["text/plain"] == repr(session)
    after = kernel.run("nbllm.current_session()").ok().displays[-1]["text/plain"]
    assert after.startswith("'kernel-")
    outcome = kernel.run(f"{ASK};").ok()
    assert ids(kernel, session) == []
    assert footers(outcome) == []
    kernel.run("nbllm.set_session('of the kernel')").ok()
    kernel.run(f"%%session {session}\n{ASK};").ok()
    assert kernel.value("nbllm.current_session()") == "of the kernel"
    assert len(ids(kernel, session)) == 1


@two_pythons
def test_another_client_on_the_shared_session_belongs_to_it(
    kernel: Kernel, session: str, raw: RawServer
) -> None:
    outcome = kernel.run(
        f"%%session {session}\n"
        "url = os.environ['URL'] + '/chat/completions'\n"
        "async with nbllm.shared_session().post(url, json={}) as answer:\n"
        "    found = await answer.json()\n"
    ).ok()
    (row,) = kernel.rows(session_id=session)
    assert (row["server_port"], row["bytes_sent"]) == (raw.port, raw.requests[-1].bytes_in)
    assert [one["request_id"] for one in outcome.traced()] == [row["request_id"]]
    assert footers(outcome)[0].startswith("1 request · ")


@two_pythons
def test_the_magics_in_it_belong_to_it_too(kernel: Kernel, session: str, raw: RawServer) -> None:
    kernel.run(f"%%session {session}\nfor word in ('One', 'Two'):\n    %llm {{{{word}}}}").ok()
    assert [message["content"] for message in raw.requests[-1].json["messages"]] == ["One", "One", "Two"]
    assert len(ids(kernel, session)) == 2


@two_pythons
def test_other_magics_stack_in_it(kernel: Kernel, session: str) -> None:
    timed = kernel.run(f"%%session {session}\n%%time\nprint('ran')\n{CALL}").ok()
    assert "Wall time" in timed.stdout
    assert timed.stdout.startswith("ran\n")
    assert footers(timed)[0].startswith(f"1 request · gpt-4o · {session} · ")
    assert len(ids(kernel, session)) == 1
    captured = kernel.run(f"%%session {session}\n%%capture taken\nprint('hidden')\n{CALL}").ok()
    assert captured.stdout == ""
    assert kernel.value("taken.stdout") == "hidden\n"
    assert len(ids(kernel, session)) == 2
    assert [one["request_id"] for one in captured.traced()] == ids(kernel, session)[1:]
    for above in ("%%time", "%%capture"):
        kernel.run(f"{above}\n%%session {session}\n{CALL}\nnbllm.completion('gpt-4o', 'Hi')").ok()
    assert len(ids(kernel, session)) == 6
    assert kernel.value("nbllm.current_session()").startswith("kernel-")


@two_pythons
def test_a_cell_that_fails_ends_it_and_still_tells(kernel: Kernel, session: str, raw: RawServer) -> None:
    outcome = kernel.run(f"%%session {session}\n{ASK}\n1 / 0")
    assert outcome.error == "ZeroDivisionError"
    assert "1 / 0" in outcome.traceback
    assert footers(outcome)[0].startswith(f"1 request · gpt-4o · {session} · ")
    assert kernel.value("nbllm.current_session()").startswith("kernel-")
    wrong = kernel.run(
        f"%%session {session}\nawait nbllm.acompletion('gpt-4o', 'Hi', base_url={raw.url('status-500')!r})"
    )
    assert wrong.error == "InternalServerError"
    assert footers(wrong)[0].startswith(f"1 request · 1 not ok · gpt-4o · {session}")
    assert [row["status"] for row in kernel.rows(session_id=session)] == ["ok", "error"]


@two_pythons
def test_a_session_within_it_wins(kernel: Kernel, session: str) -> None:
    outcome = kernel.run(
        f"%%session {session}\n{ASK}\nwith nbllm.session('inner {session}'):\n    {ASK}\n{ASK};"
    ).ok()
    assert len(ids(kernel, session)) == 2
    (inner,) = ids(kernel, f"inner {session}")
    assert sorted(one["request_id"] for one in outcome.traced()) == sorted([*ids(kernel, session), inner])


@two_pythons
def test_a_cell_that_it_runs_belongs_to_it_and_does_not_end_it(kernel: Kernel, session: str) -> None:
    outcome = kernel.run(f"%%session {session}\nget_ipython().run_cell({CALL!r})\n{CALL}").ok()
    assert len(ids(kernel, session)) == 2
    assert [one["request_id"] for one in outcome.traced()] == ids(kernel, session)
    assert len(footers(outcome)) == 1


@two_pythons
def test_the_stop_button_ends_it_and_it_tells(kernel: Kernel, session: str, raw: RawServer) -> None:
    before = len(raw.requests)
    cell = kernel.send(f"%%session {session}\n{ASK[:-1]}, base_url={raw.url('hang')!r})")
    raw.wait_for(lambda: len(raw.requests) > before)
    request = raw.requests[-1]
    outcome, _ = kernel.interrupt(cell)
    raw.wait_for(lambda: request.client_gone)
    assert outcome.status == "error"
    assert footers(outcome)[0].startswith(f"1 request · 1 not ok · gpt-4o · {session}")
    assert [row["status"] for row in kernel.rows(session_id=session)] == ["cancelled"]
    assert kernel.value("nbllm.current_session()").startswith("kernel-")


@two_pythons
def test_it_may_begin_in_the_middle_of_a_cell(kernel: Kernel, session: str) -> None:
    outcome = kernel.run(f"{ASK}\n%session 'first {session}'\n{ASK}\n%session {session}\n{ASK}\n{ASK};").ok()
    assert len(ids(kernel, f"first {session}")) == 1
    assert len(ids(kernel, session)) == 2
    assert [len(ids(kernel, name)) for name in ("first", f"'first {session}'")] == [0, 0]
    assert footers(outcome) != []
    assert kernel.value("nbllm.current_session()").startswith("kernel-")


@two_pythons
def test_a_task_that_outlives_the_cell_stays_in_it(kernel: Kernel, session: str) -> None:
    kernel.run(
        f"%%session {session}\n"
        "go = asyncio.Event()\n"
        "async def later():\n    await go.wait()\n    return await nbllm.acompletion('gpt-4o', 'Late')\n"
        "task = asyncio.create_task(later())\nawait asyncio.sleep(0)"
    ).ok()
    kernel.run("go.set()\n(await task).text").ok()
    assert len(ids(kernel, session)) == 1


@two_pythons
def test_a_cell_that_sends_nothing_tells_nothing(kernel: Kernel, session: str) -> None:
    outcome = kernel.run(f"%%session {session}\n6 * 7").ok()
    assert [shown["text/plain"] for shown in outcome.displays] == ["42"]
    assert kernel.run(f"%%session {session}\n").ok().outputs == []


@two_pythons
@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ("%%session é\n1", "UsageProblem", "session id 'é' can't be used"),
        ("%%session\n1", "UsageProblem", "which session? %%session NAME"),
        ("%session", "UsageProblem", "which session? %%session NAME"),
        (
            "get_ipython().run_cell_magic('session', 'x', '1')",
            "UsageProblem",
            "%%session NAME must be the first line",
        ),
    ],
)
def test_what_cannot_be_a_session_is_said_in_one_line(
    kernel: Kernel, cell: str, error: str, message: str
) -> None:
    outcome = kernel.run(cell)
    assert (outcome.error, len(outcome.traceback.splitlines())) == (error, 1)
    assert message in outcome.traceback
    assert kernel.value("nbllm.current_session()").startswith(("kernel-", "of the kernel"))


@two_pythons
def test_line_numbers_in_tracebacks_are_those_of_the_cell(kernel: Kernel, session: str) -> None:
    outcome = kernel.run(f"%%session {session}\nx = 1\n\nfail_here()")
    assert outcome.error == "NameError"
    assert "line 4" in outcome.traceback or "----> 4 fail_here()" in outcome.traceback


@two_pythons
def test_loading_again_and_unloading(kernel: Kernel, session: str) -> None:
    kernel.run("%reload_ext nbllm\n%reload_ext nbllm").ok()
    outcome = kernel.run(f"%%session {session}\n{ASK};").ok()
    assert len(footers(outcome)) == 1
    kernel.run("%unload_ext nbllm").ok()
    refused = kernel.run(f"%%session {session}\n{ASK};")
    kernel.run("%load_ext nbllm").ok()
    assert refused.status == "error"
    assert len(ids(kernel, session)) == 1


# -- the notebook --------------------------------------------------------------------------------------


def test_a_saved_notebook_still_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DemoServer(pace=0) as demo:
        for name, value in environment(tmp_path, demo).items():
            monkeypatch.setenv(name, value)
        sources = (
            "%load_ext nbllm\nimport nbllm",
            "%%session saved\nfor word in ('Hi', 'Ho'):\n    await nbllm.acompletion('demo/fast', word)",
            "%%llm demo/fast demo/small -s asked\nHi",
            "1 + 1",
        )
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        NotebookClient(book, timeout=60, kernel_name="python3", resources=in_folder(tmp_path)).execute()
        counted = demo.stats()
    nbformat.validate(book)
    nbformat.write(book, tmp_path / "book.ipynb")
    found = nbllm.read_notebook(tmp_path / "book.ipynb")
    with Kernel(tmp_path, env={"NBLLM_NUM_RETRIES": "0"}) as kernel:
        rows = {row["request_id"]: row for row in kernel.rows()}
    assert len(found) == len(rows) == counted["requests_total"] == 4
    assert set(found["request_id"]) == set(rows)
    assert found["cell_index"].tolist() == [1, 1, 2, 2]
    assert found["session_id"].tolist() == ["saved", "saved", "asked", "asked"]
    assert found["cell_id"].tolist() == [book.cells[index]["id"] for index in (1, 1, 2, 2)]
    assert found["input_tokens"].sum() == counted["prompt_tokens"]
    assert found["output_tokens"].sum() == counted["completion_tokens"]
    for one in found.to_dict("records"):
        row = rows[one["request_id"]]
        assert (one["model"], one["duration_ms"]) == (row["request_model"], row["duration_ms"])
    assert json.dumps(book.cells[0].outputs) == "[]"


def in_folder(folder: Path) -> dict[str, Any]:
    return {"metadata": {"path": str(folder)}}


@two_pythons
def test_an_empty_cell_within_it_does_not_end_it(kernel: Kernel, session: str) -> None:
    kernel.run(f"%%session {session}\nget_ipython().run_cell(' ')\n{CALL}").ok()
    assert len(ids(kernel, session)) == 1


@two_pythons
def test_unloading_ends_it(kernel: Kernel, session: str) -> None:
    kernel.run(f"%%session {session}\n%unload_ext nbllm").ok()
    kernel.run("%load_ext nbllm").ok()
    assert kernel.value("nbllm.current_session()") != session
