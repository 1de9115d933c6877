"""A person's way: JupyterLab in the system's Chromium, with a demo server that counts."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbllm.servers.demo import DemoServer

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
IDLE = "text='Python 3 (ipykernel) | Idle'"
ALL_DONE = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
    return prompts.length > 0 && prompts.every(text => /\\[\\d+\\]/.test(text));
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def lab(server: DemoServer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab's URL, with settings of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "NBLLM_DEMO_URL": server.url,
        "NBLLM_LOG_PATH": str(home / "log.db"),
        "NBLLM_MODEL": "demo/small",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"),
        "--LabApp.news_url=",
    ]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # until it listens
            if re.search(rf"http://127\.0\.0\.1:{port}/", line):
                break
        drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
            drained.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("the browser tests need the system's Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 1600})
    page.set_default_timeout(40_000)
    yield page
    page.close()


def open_notebook(page: Any, lab: str, folder: Path, name: str, sources: list[str]) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, folder / name)
    page.goto(f"{lab}/doc/tree/{name}?token=t")
    page.wait_for_selector(IDLE)  # before that, keys run nothing


def run_all(page: Any) -> None:
    page.click(".lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-item:has-text('Run All Cells')")


def wait_for_text(page: Any, cell: int, text: str) -> None:
    page.wait_for_function(
        "([cell, text]) => document.querySelectorAll('.jp-CodeCell')[cell].innerText.includes(text)",
        arg=[cell, text],
    )


def output(page: Any, cell: int) -> str:
    """The text of a cell's output area, counted from 0."""
    text: str = page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea").inner_text()
    return text


def test_run_all_with_everything_queued_streams_answers_and_tells_the_connections(
    page: Any, lab: str, folder: Path, server: DemoServer
) -> None:
    server.reset()
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
    open_notebook(page, lab, folder, "run-all.ipynb", sources)
    run_all(page)
    page.wait_for_function(ALL_DONE)

    assert page.locator(".jp-CodeCell").nth(1).locator(".jp-RenderedMarkdown li").count() > 0
    assert "review" in output(page, 1)
    assert "new connection: first" in output(page, 1)
    assert "connection reused" in output(page, 2)
    assert "'json'" in output(page, 2)
    assert output(page, 6).split() == ["5", "5", "{'frontend'}", "{'ok'}"]
    assert output(page, 7).split("\n")[0].strip() == "1 [1, 4]"
    counted = server.stats()
    assert (counted["requests_ok"], counted["connections_with_model_requests"]) == (5, 1)


def test_an_answer_is_seen_to_grow_and_the_stop_button_ends_the_request(
    page: Any, lab: str, folder: Path, server: DemoServer
) -> None:
    server.reset()
    sources = [
        "%load_ext nbllm\nimport nbllm",
        "%%llm demo/stall\nTell me of the sea.",
        "print(nbllm.requests().status.tolist())",
        "%%llm demo/fast\nstill there?",
    ]
    open_notebook(page, lab, folder, "stop.ipynb", sources)
    page.locator(".jp-CodeCell").nth(0).click()
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    streamed = page.locator(".jp-CodeCell").nth(1).locator(".jp-RenderedMarkdown")
    streamed.wait_for()
    first = streamed.inner_text()
    page.wait_for_function(
        "first => { const e = document.querySelector('.jp-CodeCell .jp-RenderedMarkdown');"
        " return e && e.innerText.length > first.length; }",
        arg=first,
    )
    server.wait_for(lambda stats: stats["requests_open"] == 1)

    page.click('[data-command="notebook:interrupt-kernel"]')
    server.wait_for(lambda stats: stats["requests_disconnected"] == 1)
    wait_for_text(page, 1, "interrupted")
    wait_for_text(page, 1, "KeyboardInterrupt")
    page.wait_for_selector(IDLE)  # until then the kernel drops what is queued, as after any error

    page.locator(".jp-CodeCell").nth(2).click()
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    wait_for_text(page, 3, "new connection")
    assert output(page, 2).strip() == "['cancelled']"
    assert "new connection: request cancelled" in output(page, 3)


def test_a_failing_cell_stops_run_all_with_one_or_two_lines(page: Any, lab: str, folder: Path) -> None:
    sources = ["%load_ext nbllm", "%%llm demo/rate-limited\nhello", "print('not reached')"]
    open_notebook(page, lab, folder, "error.ipynb", sources)
    run_all(page)
    wait_for_text(page, 1, "RateLimitError")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    assert "not reached" not in output(page, 2)
    assert len([line for line in output(page, 1).splitlines() if line.strip()]) <= 2
