"""`nbllm.dashboard()` in real kernels: what its browser gets, and what its cell shows."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import overview, widgets
from nbllm.exceptions import UsageProblem
from nbllm.selection import Selection
from tests.kernels import Kernel, every_python
from tests.servers import RawServer

SETUP = """
%load_ext nbllm
import asyncio, nbllm, time
def ask(behaviour="chat"):
    return nbllm.acompletion("m", "Hi", base_url=f"http://127.0.0.1:{port}/{behaviour}/v1", num_retries=0)
"""
THREADS = "[thread.name for thread in __import__('threading').enumerate()]"


class Browser(Kernel):
    """A kernel, and what a front end knows of its dashboards."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.models: dict[str, dict[str, Any]] = {}  # of widgets, by their ids
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.closed: list[str] = []
        self.stills: list[dict[str, Any]] = []

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open" and "_esm" in content["data"]["state"]:
            self.models[content["comm_id"]] = content["data"]["state"]
            self.messages[content["comm_id"]] = []
        elif kind == "comm_msg" and content["comm_id"] in self.models:
            if content["data"]["method"] == "custom":
                told = content["data"]["content"]
                told = json.loads(bytes(message["buffers"][0])) if told["kind"] == "packed" else told
                self.messages[content["comm_id"]].append(told)
        elif kind == "comm_close":
            self.closed.append(content["comm_id"])
        elif kind == "update_display_data":
            self.stills.append(content)
        super()._take(message)

    @property
    def newest(self) -> str:
        """The id of the newest dashboard."""
        return list(self.models)[-1]

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the newest one was told."""
        return self.messages[self.newest]

    def say(self, **message: Any) -> None:
        """Say something to the newest dashboard, as its browser does."""
        data = {"method": "custom", "content": message}
        self.send_message("comm_msg", {"comm_id": self.newest, "data": data})

    def show(self, code: str = "d = nbllm.dashboard()\nd", cell_id: str = "board") -> Any:
        """Run a cell with a dashboard, whose browser then says that it is there."""
        outcome = self.run(code, cell_id=cell_id).ok()
        self.say(kind="hello")
        self.until(lambda: self.told)
        return outcome

    def until(self, condition: Callable[[], object], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, str(self.messages)[-2000:] + self.stderr()
            self._take_messages()

    def seen(self) -> list[dict[str, Any]]:
        """The newest dashboard's rows, as its browser has them."""
        rows: dict[str, dict[str, Any]] = {}
        for message in self.told:
            if message["kind"] == "rows":
                rows = {} if message["reset"] else rows
                for values in message["requests"]:
                    row = dict(zip(message["columns"], values, strict=True))
                    rows[row["request_id"]] = row
        return list(rows.values())

    def statuses(self) -> list[str | None]:
        return [row["status"] for row in self.seen()]


@pytest.fixture(scope="module")
def witness() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, python: str, witness: RawServer) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("kernel"), python=python) as kernel:
        kernel.run(f"port = {witness.port}\n{SETUP}").ok()
        yield kernel


@pytest.fixture
def kernel(shared: Browser, witness: RawServer) -> Iterator[Browser]:
    """A kernel without dashboards, and a server that counts from none."""
    witness._loop.call_soon_threadsafe(witness.gate.clear)
    witness.requests.clear()
    shared.run("nbllm.set_session('s' + str(time.time()))").ok()
    yield shared
    shared.run("for other in list(nbllm.widgets._state.made): other.close()\ndel other").ok()
    shared.until(lambda: "nbllm-dashboards" not in shared.value(THREADS))


SESSION = "d = nbllm.dashboard(session=nbllm.current_session())\nd"


@every_python
def test_a_dashboard_opens_and_shows_two_outputs(kernel: Browser) -> None:
    outcome = kernel.show()
    state = kernel.models[kernel.newest]
    assert state["_model_module"] == "anywidget"
    assert "export default" in state["_esm"]
    assert list(state["phases"]) == list(overview.PHASES)
    assert (state["scope"], state["is_wide"]) == ("this kernel", False)
    live, still = outcome.displays
    assert live[widgets.WIDGET_VIEW]["model_id"] == kernel.newest
    assert live["text/plain"] == "nbllm dashboard · this kernel · run the cell to see it live"
    assert still["text/html"].startswith('<div class="nbllm-still"><style>')
    assert "<script" not in still["text/html"]
    assert kernel.value("nbllm.report().scope") in still["text/plain"]
    assert kernel.told[0]["reset"]


@every_python
def test_rows_come_while_requests_run_and_equal_what_the_server_counted(
    kernel: Browser, witness: RawServer
) -> None:
    kernel.show(SESSION)
    running = kernel.send("await ask('gated')")
    kernel.until(lambda: kernel.statuses() == [None])
    witness.open_gate()
    kernel.wait(running).ok()
    kernel.until(lambda: kernel.statuses() == ["ok"])
    kernel.run("asks = [ask(b) for b in ('chat', 'status-429', 'reset') * 5]").ok()
    kernel.run("_ = await asyncio.gather(*asks, return_exceptions=True)").ok()
    kernel.until(lambda: len(kernel.seen()) == 16 and None not in kernel.statuses())
    assert len(witness.requests) == 16
    assert sorted(kernel.statuses()) == ["error"] * 10 + ["ok"] * 6
    assert sum(row["input_tokens"] or 0 for row in kernel.seen()) == 6 * 11
    assert sum(row["bytes_received"] or 0 for row in kernel.seen() if row["status"] == "ok") == sum(
        one.bytes_out for one in witness.requests if one.path.startswith(("/chat", "/gated"))
    )


@every_python
def test_rows_come_while_a_cell_blocks_the_loop(kernel: Browser, witness: RawServer) -> None:
    kernel.show(SESSION)
    running = kernel.send(
        "task = asyncio.create_task(ask('gated'))\nawait asyncio.sleep(0.05)\ntime.sleep(2)\nprint('over')"
    )
    kernel.until(lambda: kernel.statuses() == [None])
    assert not kernel._outcomes[running].replied
    witness.open_gate()
    kernel.wait(running).ok()
    kernel.until(lambda: kernel.statuses() == ["ok"])


@every_python
def test_questions_are_answered(kernel: Browser) -> None:
    kernel.show(SESSION)
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.statuses() == ["ok"])
    (row,) = kernel.seen()
    kernel.say(kind="detail", request_id=row["request_id"])
    kernel.until(lambda: kernel.told[-1]["kind"] == "detail")
    assert kernel.told[-1]["detail"]["answer"]["text"] == "Hello from the raw server"
    kernel.say(kind="detail", request_id="nonsense")
    kernel.until(lambda: "problem" in kernel.told[-1])
    kernel.say(kind="search", text="from the RAW")
    kernel.until(lambda: kernel.told[-1]["kind"] == "found")
    assert kernel.told[-1]["request_ids"] == [row["request_id"]]
    for message in ({"kind": "detail", "request_id": {"a": []}}, {}, {"kind": 7}):
        kernel.say(**message)
    kernel.say(kind="refresh")
    kernel.until(lambda: kernel.told[-1]["kind"] == "rows" and kernel.told[-1]["reset"])


@every_python
def test_the_cell_that_runs_again_closes_what_it_made_before(kernel: Browser) -> None:
    kernel.show(SESSION)
    first = kernel.newest
    kernel.show("nbllm.dashboard(errors=True)", cell_id="another")
    kernel.show(SESSION)
    assert kernel.newest != first
    kernel.until(lambda: first in kernel.closed)
    assert kernel.messages[first][-1] == {"kind": "closed"}
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.statuses() == ["ok"])
    assert kernel.messages[first][-1] == {"kind": "closed"}
    assert kernel.value(THREADS).count("nbllm-dashboards") == 1
    assert kernel.value("len(nbllm.widgets._state.made)") == 2
    assert kernel.value("d.widget is not None")


@every_python
def test_the_static_form_follows_and_is_whole_at_the_end(kernel: Browser) -> None:
    kernel.show(SESSION)
    kernel.stills.clear()
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.stills)
    assert "requests 1 " in kernel.stills[-1]["data"]["text/plain"]
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.statuses() == ["ok", "ok"])
    kernel.run("d.close(); d.close()").ok()
    kernel.until(lambda: len(kernel.stills) == 2)
    assert "requests 2 " in kernel.stills[-1]["data"]["text/plain"]
    assert len({still["transient"]["display_id"] for still in kernel.stills}) == 1
    told = len(kernel.told)
    assert kernel.told[-1] == {"kind": "closed"}
    kernel.run("await ask()").ok()
    kernel.until(lambda: "nbllm-dashboards" not in kernel.value(THREADS))
    assert len(kernel.told) == told
    assert len(kernel.stills) == 2
    shown = kernel.run("d").ok()
    assert [list(data) for data in shown.displays] == [["text/html", "text/plain"]]


@every_python
def test_an_interrupt_and_a_reload_leave_it_alive(kernel: Browser) -> None:
    kernel.show(SESSION)
    running = kernel.send("print('begun'); await ask('hang')")
    kernel.until(lambda: kernel.statuses() == [None])
    kernel.say(kind="refresh")
    outcome, _ = kernel.interrupt(running)
    assert outcome.error in ("KeyboardInterrupt", "CancelledError")
    kernel.until(lambda: kernel.statuses() == ["cancelled"])
    blocked = kernel.send("time.sleep(60)")
    kernel.listen(0.3)
    kernel.interrupt(blocked)
    kernel.run("%reload_ext nbllm").ok()
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.statuses() == ["cancelled", "ok"])
    kernel.say(kind="search", text="raw server")
    kernel.until(lambda: kernel.told[-1]["kind"] == "found")
    assert kernel.value(THREADS).count("nbllm-dashboards") == 1


@every_python
def test_thousands_of_requests_come_and_many_rows_are_packed(kernel: Browser, witness: RawServer) -> None:
    kernel.show(SESSION)
    kernel.run(
        "gate = asyncio.Semaphore(50)\n"
        "async def one():\n    async with gate: await ask()\n"
        "_ = await asyncio.gather(*(one() for _ in range(2000)))",
        timeout=120,
    ).ok()
    kernel.until(lambda: kernel.statuses().count("ok") == 2000, timeout=60)
    assert len(witness.requests) == 2000
    kernel.say(kind="refresh")
    kernel.until(lambda: len(kernel.told[-1].get("requests", ())) == 2000)
    assert kernel.told[-1]["left_out"] == 0


@every_python
def test_it_shows_in_a_layout_of_ones_own_and_in_captured_cells(kernel: Browser) -> None:
    outcome = kernel.run("import ipywidgets\nd = nbllm.dashboard()\nipywidgets.VBox([d.widget])").ok()
    assert widgets.WIDGET_VIEW in outcome.displays[0]
    kernel.say(kind="hello")
    kernel.until(lambda: kernel.told)
    kernel.run("%%capture kept\nd2 = nbllm.dashboard()\nd2").ok()
    captured = kernel.value("len(kept.outputs)")
    kernel.run("await ask()").ok()
    kernel.until(lambda: kernel.seen())
    kernel.run("d2.close()").ok()  # after which no static form is due
    assert kernel.value("len(kept.outputs)") == captured


# -- without a kernel --------------------------------------------------------------------------------


async def test_outside_of_a_kernel_it_is_the_text_of_the_report(server: RawServer, capsys: Any) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    dashboard = nbllm.dashboard()
    assert isinstance(dashboard, nbllm.Dashboard)
    assert dashboard.widget is None
    assert "requests 1 " in repr(dashboard)
    dashboard._ipython_display_()
    assert "requests 1 " in capsys.readouterr().out
    dashboard.close()
    assert "requests 1 " in str(dashboard.report)


@pytest.mark.parametrize(
    "filters", [{"kernel": "x"}, {"since": "soon"}, {"cell": -1}, {"model": 5}, {"search": "x" * 5000}]
)
def test_a_filter_that_can_not_be_used_is_refused_at_once(filters: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        nbllm.dashboard(**filters)


def test_the_filters_are_those_of_requests() -> None:
    assert (
        inspect.signature(nbllm.dashboard).parameters.keys()
        == inspect.signature(nbllm.requests).parameters.keys()
    )
    chosen = nbllm.dashboard("s", "all", since="7d", notebook="n", model="m", search="t", errors=True, cell=3)
    assert chosen.selection == Selection("s", "all", "7d", "n", "m", "t", True, 3)


def test_the_scripts_are_one_module_that_loads_nothing_and_writes_no_markup() -> None:
    module, styles = widgets.LiveView._esm, widgets.LiveView._css
    assert len(re.findall(r"^export ", module, re.MULTILINE)) == 1
    assert not re.findall(r"^\s*import\b|\bimport\(|\brequire\(", module, re.MULTILINE)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", module
    )
    assert not re.findall(r"https?://(?!www\.w3\.org/)|\bfetch\(|XMLHttpRequest|WebSocket", module)
    assert not re.findall(r"@import|url\(", styles)
    folder = Path(widgets.__file__).parent / "static"
    assert {path.stem for path in folder.iterdir()} == set(widgets.SCRIPTS)
    for name in set(re.findall(r"\.(-?[a-zA-Z][\w-]*)(?=[^{}]*\{)", styles)):
        assert name.startswith(("nbllm-", "jp-", "vscode-")), name
