"""A person's way: JupyterLab or Notebook 7 in the system's Chromium, with a demo server that counts.

Its fixtures are conftest's; those that start something live as long as the tests of a module.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbllm.servers.demo import DemoServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
IDLE = "text='Python 3 (ipykernel) | Idle'"
ALL_DONE = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
    return prompts.length > 0 && prompts.every(text => /\\[\\d+\\]/.test(text));
}"""


@pytest.fixture(scope="module")
def lab_demo() -> Iterator[DemoServer]:
    """The demo server of the notebooks in `lab`."""
    with DemoServer() as server:
        yield server


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks of `lab` are."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def lab(lab_demo: DemoServer, lab_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab's URL, with settings of its own."""
    with jupyter("jupyterlab", lab_demo, lab_folder, tmp_path_factory.mktemp("jupyter")) as url:
        yield url


@contextlib.contextmanager
def jupyter(app: str, server: DemoServer, folder: Path, home: Path) -> Iterator[str]:
    """The URL of a running "jupyterlab" or "notebook" that serves `folder`, set up in `home`."""
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
        *(sys.executable, "-m", app, "--no-browser", "--allow-root", "--port=0"),
        *("--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"),
        "--LabApp.news_url=",
    ]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"http://127\.0\.0\.1:[1-9]\d*(?=/)", said)) is None:  # until it listens
            line = process.stderr.readline()
            assert line, said  # it has ended
            said += line
        drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield found[0]
        finally:
            process.terminate()
            process.wait(20)
            drained.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's Chromium, as Playwright's `Browser`."""
    if CHROMIUM is None:
        pytest.skip("the browser tests need the system's Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Any:
    """One context, whose cache the tests of a module share."""
    return chromium.new_context(viewport={"width": 1200, "height": 1600})


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
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


def run_first_cell(page: Any) -> None:
    """Run it, and go on to the second."""
    page.locator(".jp-CodeCell").first.click()
    page.keyboard.press("Shift+Enter")


def watch(page: Any, selector: str) -> None:
    """Keep each state that is seen from now on of the texts of these elements."""
    page.evaluate(
        """selector => {
            const states = window.states = [];
            const look = () => {
                const texts = [...document.querySelectorAll(selector)].map(element => element.innerText);
                if (JSON.stringify(texts) !== JSON.stringify(states.at(-1))) states.push(texts);
                requestAnimationFrame(look);
            };
            look();
        }""",
        selector,
    )


def watched(page: Any) -> list[list[str]]:
    """The states that `watch` has kept, in order."""
    states: list[list[str]] = page.evaluate("window.states")
    return states


def save(page: Any, folder: Path, name: str) -> Path:
    """Save the open notebook, which has this name."""
    with page.expect_response(lambda response: response.request.method == "PUT" and name in response.url):
        page.keyboard.press("Control+s")
    return folder / name


def wait_for_text(page: Any, cell: int, text: str) -> None:
    page.wait_for_function(
        "([cell, text]) => document.querySelectorAll('.jp-CodeCell')[cell].innerText.includes(text)",
        arg=[cell, text],
    )


def output(page: Any, cell: int) -> str:
    """The text of a cell's output area, counted from 0."""
    text: str = page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea").inner_text()
    return text
