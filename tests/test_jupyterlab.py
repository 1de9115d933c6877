"""A person's way: JupyterLab in the system's Chromium, with a demo server that counts.

Where a test needs an answer of its own making, the raw server gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm.servers.demo import DemoServer
from tests import servers
from tests.lab import (
    ALL_DONE,
    IDLE,
    open_notebook,
    output,
    run_all,
    run_first_cell,
    save,
    wait_for_text,
    watch,
    watched,
)
from tests.servers import Exchange, RawServer

pytestmark = pytest.mark.browser


async def thinks(x: Exchange) -> None:
    """An answer that is thought over before, about a picture."""
    pieces = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "They ask for ![a picture](http://pictures.example/thought.png)."},
        {"content": "Here it is."},
    ]
    chunks = [
        *map(servers.chunk, pieces),
        servers.chunk({}, "stop"),
        servers.chunk(None, usage=servers.USAGE),
    ]
    await servers._stream(x, [*map(servers.event, chunks), servers.event(b"[DONE]")])


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer(behaviours={"thinks": thinks}) as running:
        yield running


def test_run_all_with_everything_queued_streams_answers_and_tells_the_connections(
    page: Any, lab: str, lab_folder: Path, lab_demo: DemoServer
) -> None:
    lab_demo.reset()
    sources = [
        "%load_ext nbllm\nimport asyncio, nbllm",
        "%%llm -s review\nName the planets in a list.",
        "%%llm\nAnd **one** more: {'json': [1]} costs 5",
        "answer = await nbllm.acompletion('demo/fast', 'hello'); answer",
        "asyncio.run(nbllm.acompletion('demo/fast', 'hello from asyncio.run')).text",
        "nbllm.completion('demo/fast', 'hello from a synchronous cell').text",
        "rows = nbllm.requests()\n"
        "print(len(rows), rows.cell_id.nunique(), set(rows.cell_source), set(rows.status))",
        "print(len(nbllm.connections()), nbllm.sessions().requests.tolist())",
    ]
    open_notebook(page, lab, lab_folder, "run-all.ipynb", sources)
    run_all(page)
    page.wait_for_function(ALL_DONE)

    assert page.locator(".jp-CodeCell").nth(1).locator(".jp-RenderedMarkdown li").count() > 0
    assert "review" in output(page, 1)
    assert "new connection: first" in output(page, 1)
    assert "connection reused" in output(page, 2)
    assert "'json'" in output(page, 2)
    assert output(page, 6).split() == ["5", "5", "{'frontend'}", "{'ok'}"]
    assert output(page, 7).split("\n")[0].strip() == "1 [1, 4]"
    counted = lab_demo.stats()
    assert (counted["requests_ok"], counted["connections_with_model_requests"]) == (5, 1)


def test_an_answer_is_seen_to_grow_and_the_stop_button_ends_the_request(
    page: Any, lab: str, lab_folder: Path, lab_demo: DemoServer
) -> None:
    lab_demo.reset()
    sources = [
        "%load_ext nbllm\nimport nbllm",
        "%%llm demo/stall\nTell me a story of the sea.",
        "print(nbllm.requests().status.tolist())",
        "%%llm demo/fast\nstill there?",
    ]
    open_notebook(page, lab, lab_folder, "stop.ipynb", sources)
    watch(page, ".jp-RenderedMarkdown")
    run_first_cell(page)
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("() => states.filter(texts => texts.join().includes('sea')).length > 2")
    lab_demo.wait_for(lambda stats: stats["requests_open"] == 1)

    page.click('[data-command="notebook:interrupt-kernel"]')
    lab_demo.wait_for(lambda stats: stats["requests_disconnected"] == 1)
    wait_for_text(page, 1, "interrupted")
    wait_for_text(page, 1, "KeyboardInterrupt")
    page.wait_for_selector(IDLE)  # until then the kernel drops what is queued, as after any error

    page.locator(".jp-CodeCell").nth(2).click()
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    wait_for_text(page, 3, "new connection")
    assert output(page, 2).strip() == "['cancelled']"
    assert "new connection: request cancelled" in output(page, 3)


def test_a_failing_cell_stops_run_all_with_one_or_two_lines(page: Any, lab: str, lab_folder: Path) -> None:
    sources = ["%load_ext nbllm", "%%llm demo/rate-limited\nhello", "print('not reached')"]
    open_notebook(page, lab, lab_folder, "error.ipynb", sources)
    run_all(page)
    wait_for_text(page, 1, "RateLimitError")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    assert "not reached" not in output(page, 2)
    assert len([line for line in output(page, 1).splitlines() if line.strip()]) <= 2


def test_run_all_twice_gives_the_same_conversation_and_the_same_cells(
    page: Any, lab: str, lab_folder: Path, lab_demo: DemoServer
) -> None:
    lab_demo.reset()
    sources = [
        "%load_ext nbllm\nimport nbllm",
        "%%llm demo/fast -s twice\nDescribe otters.",
        "%%llm demo/fast -s twice -f code\nWrite code about penguins.",
        "for message in nbllm.Chat('twice').messages:\n    print(message['role'], message['content'])",
    ]
    open_notebook(page, lab, lab_folder, "twice.ipynb", sources)
    run_all(page)
    page.wait_for_function("() => document.querySelectorAll('.jp-CodeCell').length === 5")
    wait_for_text(page, 4, "penguins")
    offered = page.locator(".jp-CodeCell").nth(3)
    assert offered.locator(".cm-content").inner_text() == (
        'words = ["penguins"]\nprint(max(words, key=len))  # penguins'
    )
    assert offered.locator(".jp-InputPrompt").inner_text() == "[ ]:"
    said = output(page, 4)
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("user", "assistant"))] == [
        "user",
        "assistant",
    ] * 2

    page.wait_for_selector(IDLE)
    run_all(page)
    page.wait_for_function(
        "() => /\\[9\\]/.test([...document.querySelectorAll('.jp-InputPrompt')].at(-1).textContent)"
    )
    assert output(page, 3).strip() == "penguins"
    assert output(page, 4) == said
    assert page.locator(".jp-CodeCell").count() == 5
    assert lab_demo.stats()["requests_ok"] == 4


def test_two_models_answer_side_by_side_and_are_seen_to_grow(page: Any, lab: str, lab_folder: Path) -> None:
    sources = ["%load_ext nbllm", "%%llm demo/fast demo/small -s pair\nTell me a story of otters."]
    open_notebook(page, lab, lab_folder, "pair.ipynb", sources)
    watch(page, ".jp-RenderedHTML > div > div")
    run_all(page)
    columns = page.locator(".jp-CodeCell").nth(1).locator(".jp-RenderedHTML > div > div")
    fast, small = columns.nth(0), columns.nth(1)
    small.get_by_text("demo/small (demo model) · pair · ").wait_for()
    assert "demo/fast (demo model) · pair · " in fast.inner_text()
    # One has its footer while the other still grows.
    states = [texts for texts in watched(page) if len(texts) == 2]
    growing = {len(right) for left, right in states if "tok" in left and "tok" not in right}
    assert len(growing) > 2

    assert columns.count() == 2
    assert [column.inner_text().split("\n")[0] for column in (fast, small)] == ["demo/fast", "demo/small"]
    assert page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output").count() == 1
    left, right = fast.bounding_box(), small.bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert (left["y"], left["width"], left["height"]) == (right["y"], right["width"], right["height"])


def test_tab_completes_flags_models_and_variables(page: Any, lab: str, lab_folder: Path) -> None:
    open_notebook(page, lab, lab_folder, "tab.ipynb", ["%load_ext nbllm\notters_big = otters_small = 1", ""])
    run_first_cell(page)
    page.wait_for_selector(".jp-InputPrompt:has-text('[1]')")
    editor = page.locator(".jp-CodeCell").nth(1).locator(".cm-content")
    box = page.locator(".jp-Completer:not(.lm-mod-hidden)")

    def offered(count: int | None = None) -> list[str]:
        at_all = box.locator(".jp-Completer-match")
        (at_all.first if count is None else at_all.nth(count - 1)).wait_for()
        if count is not None:
            page.wait_for_function(
                "count => document.querySelectorAll('.jp-Completer-item').length === count", arg=count
            )
        return list(at_all.all_inner_texts())

    editor.click()
    page.keyboard.type("%%llm -")
    page.keyboard.press("Tab")
    assert {"--session", "--no-stream", "-s"} <= set(offered())
    page.keyboard.type("-no-")
    assert offered(2) == ["--no-history", "--no-stream"]
    page.keyboard.press("Enter")
    assert editor.inner_text() == "%%llm --no-history"

    page.keyboard.type(" demo/s")
    page.keyboard.press("Tab")
    assert offered(3) == ["demo/slow", "demo/small", "demo/stall"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert editor.inner_text() == "%%llm --no-history demo/small"

    page.keyboard.press("Enter")
    page.keyboard.type("Tell of {{ott")
    page.keyboard.press("Tab")
    assert offered(2) == ["otters_big", "otters_small"]
    page.keyboard.press("Enter")
    assert editor.inner_text() == "%%llm --no-history demo/small\nTell of {{otters_big"


def test_a_saved_notebook_tells_its_requests_and_never_the_key(page: Any, lab: str, lab_folder: Path) -> None:
    key = "sk-typed-by-a-person-0123456789"
    sources = [
        "%load_ext nbllm\nimport nbllm, os",
        "%nbllm key openai",
        "len(os.environ['OPENAI_API_KEY'])",
        "%%llm demo/fast -s talk\nDescribe otters.",
        "%%session review\nanswer = await nbllm.acompletion('demo/fast', 'Hello')\nanswer.id[:9]",
        "print(*nbllm.requests().request_id)",
    ]
    open_notebook(page, lab, lab_folder, "saved.ipynb", sources)
    run_all(page)
    hidden = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea input[type=password]")
    hidden.fill(key)
    hidden.press("Enter")
    page.wait_for_function(ALL_DONE)
    wait_for_text(page, 1, "OPENAI_API_KEY is set for this kernel")
    assert output(page, 2).split() == ["[3]:", str(len(key))]
    assert "'chatcmpl-'" in output(page, 4)
    assert "1 request · demo/fast · review · " in output(page, 4)

    saved = save(page, lab_folder, "saved.ipynb")
    assert key not in page.content()
    assert key not in saved.read_text()
    told = nbllm.read_notebook(saved)
    assert told.session_id.tolist() == ["talk", "review"]
    assert told.cell_index.tolist() == [3, 4]
    assert told.status.tolist() == ["ok", "ok"]
    assert told.request_id.tolist() == output(page, 5).split()


def test_reasoning_is_folded_away_and_no_picture_is_loaded(
    page: Any, lab: str, lab_folder: Path, raw: RawServer
) -> None:
    echo, thinks, picture = raw.url("echo"), raw.url("thinks"), "http://pictures.example/"
    sources = [
        "%load_ext nbllm\nfrom IPython.display import HTML",
        f"%%llm one --no-history --base-url {echo}\n![cat]({picture}1.png) <img src='{picture}2.png'>",
        f"%%llm one two --no-history --base-url {echo}\n![cat]({picture}3.png) <img src='{picture}4.png'>",
        f"%%llm one --no-history -f html --base-url {echo}\n<h1>Cats</h1> <img src='{picture}5.png'>",
        f"%%llm one --no-history --base-url {thinks}\nA picture, please.",
        f"HTML('<img src={picture}mine.png>')",
    ]
    foreign: list[str] = []

    def refuse(route: Any) -> None:
        foreign.append(route.request.url)
        route.abort()

    page.route(re.compile(r"^https?://(?!127\.0\.0\.1:)"), refuse)
    open_notebook(page, lab, lab_folder, "pictures.ipynb", sources)
    with page.expect_request(f"{picture}mine.png"):
        run_all(page)
    page.wait_for_function(ALL_DONE)
    page.wait_for_selector(IDLE)
    for number in (1, 2):
        assert "image: cat" in output(page, number)
    page.frame_locator("iframe").get_by_text("Cats").wait_for()

    wait_for_text(page, 4, "connection reused")  # the last state is there, and no later one closes the fold
    cell = page.locator(".jp-CodeCell").nth(4)
    thought = cell.locator("details").get_by_text("They ask for")
    assert "Here it is." in output(page, 4)
    assert not thought.is_visible()
    cell.locator("summary").click()
    assert thought.is_visible()
    assert set(foreign) == {f"{picture}mine.png"}  # which is of the notebook itself
