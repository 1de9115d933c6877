"""The dashboard as a person uses it: in JupyterLab and Notebook 7, on every kernel, in Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest

from nbllm.servers.demo import DemoServer
from tests.kernels import PYTHONS, every_python
from tests.lab import jupyter
from tests.servers import TEXT, RawServer

pytestmark = pytest.mark.browser

SESSIONS = "/api/sessions"
PAGES = {"jupyterlab": "doc/tree", "notebook": "notebooks"}
HOSTILE = "<script>window.hacked = 1</script><img src=http://pictures.example/x onerror=window.hacked=1>"
PANEL, ROW, GROUP = ".nbllm-panel.nbllm-live", ".nbllm-row.nbllm-request", ".nbllm-group:not(.nbllm-pinned)"


@dataclass
class Place:
    """A running application with its notebooks, and the servers that they ask."""

    app: str
    url: str
    folder: Path
    raw: RawServer

    def open(self, page: Any, name: str, sources: list[str], kernel: str = "python3") -> None:
        """Open a new notebook: a cell that has run, and these, in which RAW is the server's address."""
        sources = ["'ready?'", *(one.replace("RAW", self.raw.url("gated")) for one in sources)]
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"display_name": kernel, "language": "python", "name": kernel}
        nbformat.write(book, self.folder / f"{name}.ipynb")
        # A cell that is run while the notebook has no kernel opens a dialog that asks for one.
        with page.expect_response(
            lambda response: response.request.method == "POST" and SESSIONS in response.url
        ):
            page.goto(f"{self.url}/{PAGES[self.app]}/{name}.ipynb?token=t")
        # What is run before the kernel is ready is lost, and nothing in Notebook 7 tells when it is.
        page.wait_for_selector(".jp-CodeCell")
        prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
        dialog = page.locator(".jp-Dialog")
        while not re.search(r"\d", prompt.inner_text()):
            assert not dialog.count(), dialog.inner_text()
            run_cell(page, 0)
            page.wait_for_timeout(500)


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


def _place(
    app: str, raw: RawServer, lab_demo: DemoServer, temporary: pytest.TempPathFactory
) -> Iterator[Place]:
    folder, home = temporary.mktemp("notebooks"), temporary.mktemp("jupyter")
    for python in PYTHONS:
        spec = home / "data" / "kernels" / kernel_name(python)
        spec.mkdir(parents=True)
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": kernel_name(python), "language": "python"})
        )
    with jupyter(app, lab_demo, folder, home) as url:
        yield Place(app, url, folder, raw)


def kernel_name(python: str) -> str:
    """What a kernelspec may be called."""
    return f"kernel-{re.sub(r'[^a-z0-9]', '-', Path(python).parent.parent.name.lower())}"


@pytest.fixture(scope="module", params=PAGES)
def place(
    request: pytest.FixtureRequest,
    raw: RawServer,
    lab_demo: DemoServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    yield from _place(request.param, raw, lab_demo, tmp_path_factory)


@pytest.fixture(scope="module")
def kernels(
    raw: RawServer, lab_demo: DemoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """JupyterLab, with a kernel of each Python."""
    yield from _place("jupyterlab", raw, lab_demo, tmp_path_factory)


@pytest.fixture(autouse=True)
def fresh(raw: RawServer) -> Iterator[None]:
    """Each test counts from zero, at a closed gate."""
    raw.close_gate()
    raw.requests.clear()
    raw.connections.clear()
    yield
    raw.open_gate()


@pytest.fixture
def foreign(page: Any) -> list[str]:
    """The hosts that the page has asked for something, beside Jupyter's own."""
    asked: list[str] = []

    def note(request: Any) -> None:
        host = urlsplit(request.url).hostname
        if host and host != "127.0.0.1":
            asked.append(request.url)

    page.on("request", note)
    return asked


def run_cell(page: Any, number: int) -> None:
    page.locator(".jp-CodeCell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


TEXTS = """selector => {
    const top = one => one.getBoundingClientRect().top;
    return [...document.querySelectorAll(selector)].sort((a, b) => top(a) - top(b)).map(one => one.innerText);
}"""


def texts(page: Any, selector: str) -> list[str]:
    """Texts of these elements from top to bottom, which is not their order in the page."""
    found: list[str] = page.evaluate(TEXTS, selector)
    return found


def wait_for_sessions(page: Any, *names: str) -> None:
    """Wait until just these sessions are seen, in this order."""
    page.wait_for_function(
        f"([selector, names]) => JSON.stringify(({TEXTS})(selector)) === JSON.stringify(names)",
        arg=[f"{GROUP} .nbllm-session", names],
    )


def wait_for_rows(page: Any, count: int, status: str) -> None:
    """Wait until just so many rows are seen, all with this status."""
    page.wait_for_function(
        """([row, count, status]) => {
            const rows = [...document.querySelectorAll(row)];
            const said = rows.map(one => one.querySelector('.nbllm-cell-status').innerText);
            return rows.length === count && said.every(one => one.includes(status));
        }""",
        arg=[ROW, count, status],
    )


def headline(page: Any) -> dict[str, Any]:
    """The numbers that the headline has, by their names."""
    said = page.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('[data-name]')]"
        ".map(one => [one.dataset.name, one.dataset.value]))"
    )
    return {name: None if value == "" else float(value) for name, value in said.items()}


SETUP = "%load_ext nbllm\nimport nbllm, asyncio, time\nnbllm.dashboard()"
ASK = """
async def ask(text, session, count=1):
    with nbllm.session(session):
        asked = [nbllm.acompletion("m", text, base_url="RAW") for _ in range(count)]
        return await asyncio.gather(*asked)
"""


def test_requests_are_seen_running_and_then_with_the_numbers_that_the_server_counted(
    page: Any, place: Place, foreign: list[str]
) -> None:
    sources = [SETUP, f"{ASK}\nawait ask({HOSTILE!r}, 'first', 3);", "await ask('Hi', 'second', 2);"]
    place.open(page, "running", sources)
    run_cell(page, 1)
    page.wait_for_selector(PANEL)
    run_cell(page, 2)
    wait_for_rows(page, 3, "running")  # while the cell runs
    assert headline(page)["running"] == 3
    place.raw.open_gate()
    wait_for_rows(page, 3, "ok")
    numbers = headline(page)
    assert numbers["requests"] == len(place.raw.requests) == 3
    assert numbers["connections_opened"] == len(place.raw.connections)
    assert (numbers["input_tokens"], numbers["output_tokens"], numbers["running"]) == (33, 15, 0)

    # What was said shows as text, and nothing of it ran or was loaded.
    assert all("<script>window.hacked" in text for text in texts(page, ROW))
    assert page.evaluate("window.hacked") is None

    # A folded session stays folded while others come.
    page.locator(GROUP).first.click()
    page.wait_for_function("row => !document.querySelector(row)", arg=ROW)
    run_cell(page, 3)
    wait_for_rows(page, 2, "ok")
    wait_for_sessions(page, "first", "second")
    assert headline(page)["requests"] == 5
    assert foreign == []


def test_filter_sort_and_drawer(page: Any, place: Place, foreign: list[str]) -> None:
    sources = [SETUP, f"{ASK}\nawait ask({HOSTILE!r}, 'first', 2); await ask('Otters?', 'second', 3);"]
    place.raw.open_gate()
    place.open(page, "drawer", sources)
    run_cell(page, 1)
    page.wait_for_selector(PANEL)
    run_cell(page, 2)
    wait_for_rows(page, 5, "ok")
    cells = page.locator(".jp-CodeCell").count()  # running the last one has added one

    page.locator(f"{PANEL} input").first.fill("otters")
    wait_for_rows(page, 3, "ok")
    assert headline(page)["requests"] == 3
    page.locator(f"{PANEL} input").first.fill("")
    wait_for_rows(page, 5, "ok")

    header = page.get_by_role("columnheader", name="Session, request")
    wait_for_sessions(page, "first", "second")
    header.click()
    header.click()
    wait_for_sessions(page, "second", "first")
    header.click()
    wait_for_sessions(page, "first", "second")

    page.locator(ROW, has_text="<script>").first.click()
    page.keyboard.press("Enter")
    drawer = page.locator(".nbllm-drawer")
    drawer.get_by_text(TEXT).first.wait_for()
    assert HOSTILE in drawer.inner_text()
    assert "curl" in drawer.inner_text().lower()
    assert page.evaluate("window.hacked") is None
    page.keyboard.press("Escape")
    drawer.wait_for(state="hidden")
    # The notebook has not taken the keys: no cell was changed or run again.
    assert page.locator(".jp-CodeCell").count() == cells
    assert foreign == []


def test_rows_come_while_a_cell_blocks_the_loop(page: Any, place: Place) -> None:
    """They are sent from a thread: neither `time.sleep` nor a queue of cells holds them up."""
    blocking = (
        f"{ASK}\nfrom concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor() as pool:\n"
        "    asked = pool.submit(nbllm.completion, 'm', 'Hi', base_url='RAW')\n"
        "    while not asked.done(): time.sleep(0.05)"
    )
    place.open(page, "blocked", [SETUP, blocking])
    run_cell(page, 1)
    run_cell(page, 2)  # at once, before the dashboard is there
    wait_for_rows(page, 1, "running")
    place.raw.open_gate()
    wait_for_rows(page, 1, "ok")


def test_connections_and_spend_have_tabs_of_their_own(page: Any, place: Place) -> None:
    place.raw.open_gate()
    place.open(page, "tabs", [SETUP, f"{ASK}\nawait ask('Hi', 'one', 4); await ask('Hi', 'two', 1);"])
    run_cell(page, 1)
    page.wait_for_selector(PANEL)
    run_cell(page, 2)
    wait_for_rows(page, 5, "ok")
    page.get_by_role("tab", name="Connections").click()
    lanes = page.locator(".nbllm-lane")
    lanes.first.wait_for()
    assert lanes.count() == len(place.raw.connections) == 4
    page.get_by_role("tab", name="Spend").click()
    assert page.locator(".nbllm-view-spend").is_visible()
    page.locator(".nbllm-view-spend").get_by_text("m", exact=True).first.wait_for()


@every_python
def test_it_lives_on_every_kernel(page: Any, kernels: Place, python: str) -> None:
    """Where the browser's questions come in the main thread, and where a subshell's thread gets them."""
    name = kernel_name(python)
    kernels.raw.open_gate()
    kernels.open(page, f"kernel-{name}", [SETUP, f"{ASK}\nawait ask('Otters?', 'first', 2);"], name)
    run_cell(page, 1)
    page.wait_for_selector(PANEL)
    run_cell(page, 2)
    wait_for_rows(page, 2, "ok")
    page.locator(ROW).first.click()
    page.keyboard.press("Enter")
    page.locator(".nbllm-drawer").get_by_text(TEXT).first.wait_for()
