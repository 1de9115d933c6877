"""Which cell a request belongs to, in real kernels: ids, counts and runs, compared with what was sent."""

from __future__ import annotations

import ast
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from nbclient import NotebookClient

from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel, environment, every_python, kernels, rows


@pytest.fixture(scope="module")
def witness() -> Iterator[DemoServer]:
    with DemoServer(pace=0) as running:
        yield running


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, witness: DemoServer, python: str) -> Iterator[Kernel]:
    yield from kernels(tmp_path_factory, witness, python)


@pytest.fixture
def session(kernel: Kernel, request: pytest.FixtureRequest) -> str:
    """The session id of a test's requests."""
    name: str = request.node.name
    kernel.run(f"nbllm.set_session({name!r})").ok()
    return name


def cells(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["cell_id"], row["execution_count"], row["run_id"], row["cell_source"]) for row in found]


FORMS = {
    "completion": "nbllm.completion('demo/fast', 'Hi')",
    "magic": "%%llm demo/fast\nHi",
    "line magic": "%llm Hi",
    "await": "await nbllm.acompletion('demo/fast', 'Hi')",
    "asyncio.run": "asyncio.run(nbllm.acompletion('demo/fast', 'Hi'))",
    "task": "await asyncio.create_task(nbllm.acompletion('demo/fast', 'Hi'))",
    "stream": "for chunk in nbllm.completion('demo/fast', 'Hi', stream=True): pass",
    "thread": "await asyncio.to_thread(nbllm.completion, 'demo/fast', 'Hi')",
    "time": "%time answer = nbllm.completion('demo/fast', 'Hi')",
    "capture": "%%capture\nnbllm.completion('demo/fast', 'Hi')",
    "aiohttp": (
        "import os\n"
        "async with nbllm.shared_session().get(os.environ['NBLLM_DEMO_URL'] + '/models') as answer:\n"
        "    await answer.read()"
    ),
}


@every_python
@pytest.mark.parametrize("form", FORMS)
def test_cell_of_the_front_end(kernel: Kernel, session: str, form: str) -> None:
    outcome = kernel.run(FORMS[form], cell_id="3f2a-cell").ok()
    again = kernel.run(FORMS[form], cell_id="3f2a-cell").ok()
    assert again.execution_count == (outcome.execution_count or 0) + 1
    assert cells(kernel.rows(session_id=session)) == [
        ("3f2a-cell", run.execution_count, run.msg_id, "frontend") for run in (outcome, again)
    ]


@every_python
def test_number_where_the_front_end_sends_no_id(kernel: Kernel, session: str) -> None:
    outcomes = [kernel.run(FORMS[form]).ok() for form in ("completion", "await", "magic", "capture")]
    assert cells(kernel.rows(session_id=session)) == [
        (f"In[{run.execution_count}]", run.execution_count, run.msg_id, "execution_count") for run in outcomes
    ]


@every_python
def test_execution_without_history_has_no_number(kernel: Kernel, session: str) -> None:
    before = kernel.run("1").ok().execution_count
    outcome = kernel.run(FORMS["completion"], store_history=False).ok()
    assert cells(kernel.rows(session_id=session)) == [(None, None, outcome.msg_id, None)]
    assert kernel.run("1").ok().execution_count == (before or 0) + 1


@every_python
def test_nested_cells_belong_to_the_outer_one(kernel: Kernel, session: str) -> None:
    code = """
        call = "nbllm.completion('demo/fast', 'Hi')"
        get_ipython().run_cell(call)
        get_ipython().run_cell_magic("capture", "", call)
        get_ipython().run_cell("")
        get_ipython().run_cell(call, store_history=True)
        nbllm.completion('demo/fast', 'Hi')
        """
    outcome = kernel.run(code, cell_id="outer").ok()
    found = cells(kernel.rows(session_id=session))
    assert {(cell_id, run_id, source) for cell_id, _, run_id, source in found} == {
        ("outer", outcome.msg_id, "frontend")
    }
    assert len(found) == 4
    assert len({number for _, number, _, _ in found}) == 1
    after = kernel.run(FORMS["completion"], cell_id="next").ok()
    assert cells(kernel.rows(session_id=session))[4:] == [
        ("next", after.execution_count, after.msg_id, "frontend")
    ]


@every_python
def test_background_task_keeps_the_cell_and_session_that_started_it(kernel: Kernel, session: str) -> None:
    code = f"""
        go = asyncio.Event()
        async def later():
            await go.wait()
            nbllm.completion("demo/fast", "Hi")
            return await asyncio.gather(*[nbllm.acompletion("demo/fast", "Hi") for _ in range(3)])
        with nbllm.session({session!r}):
            task = asyncio.create_task(later())
        nbllm.set_session(None)
        """
    started = kernel.run(code, cell_id="starts").ok()
    kernel.run("nbllm.completion('demo/fast', 'Hi')", cell_id="between").ok()
    kernel.run("go.set(); await task", cell_id="waits").ok()
    assert cells(kernel.rows(session_id=session)) == (
        [("starts", started.execution_count, started.msg_id, "frontend")] * 4
    )


@every_python
def test_widget_callback_counts_to_the_last_cell(kernel: Kernel, witness: DemoServer, session: str) -> None:
    code = """
        from comm import create_comm
        comm = create_comm(target_name="test")
        comm.on_msg(lambda message: nbllm.completion("demo/fast", "Hi"))
        """
    kernel.run(code, cell_id="makes the widget").ok()
    kernel.run("await asyncio.sleep(0)", cell_id="last").ok()
    witness.reset()
    kernel.send_message("comm_msg", {"comm_id": kernel.value("comm.comm_id"), "data": {}})
    witness.wait_for(lambda stats: stats["requests_ok"] == 1)
    kernel.run("comm.close()").ok()
    (row,) = kernel.rows(session_id=session)
    assert (row["cell_id"], row["cell_source"]) == ("last", "last_cell")


@every_python
def test_cell_that_loads_the_extension(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run("1").ok()
        code = f"%load_ext nbllm\nimport nbllm, asyncio\n{FORMS['completion']}"
        loads = kernel.run(code, cell_id="loads").ok()
        numbered = kernel.run(f"%reload_ext nbllm\n{FORMS['await']}").ok()
        after = kernel.run(FORMS["magic"], cell_id="after").ok()
        kernel.run(f"%unload_ext nbllm\n{FORMS['completion']}", cell_id="unloads").ok()
        kernel.run("nbllm.requests()").ok()  # without the hook, the rows come to the disk a moment later
        assert cells(kernel.rows()) == [
            ("loads", 2, loads.msg_id, "frontend"),
            ("In[3]", 3, numbered.msg_id, "execution_count"),
            ("after", 4, after.msg_id, "frontend"),
            (None, None, None, None),
        ]


@every_python
def test_extension_loaded_by_the_profile(tmp_path: Path, witness: DemoServer, python: str) -> None:
    """Before the kernel's loop runs, and outside any cell."""
    with Kernel(tmp_path, witness, python, options=("--InteractiveShellApp.extensions=nbllm",)) as kernel:
        first = kernel.run("import nbllm, asyncio; one = nbllm.shared_session()", cell_id="a").ok()
        kernel.run("nbllm.completion('demo/fast', 'Hi')", cell_id="b").ok()
        kernel.run("assert nbllm.shared_session() is one; await nbllm.acompletion('demo/fast', 'Hi')").ok()
        assert first.execution_count == 1
        assert [row["cell_id"] for row in kernel.rows()] == ["b", "In[3]"]
        assert witness.wait_for(lambda stats: True)["connections_open"] >= 1
        assert len(kernel.rows("connections")) == 1


def test_notebook_run_by_nbclient(tmp_path: Path, witness: DemoServer) -> None:
    witness.reset()
    sources = ["%load_ext nbllm\nimport nbllm", FORMS["completion"], FORMS["magic"], FORMS["await"]]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=60).execute(env=environment(tmp_path, witness), cwd=str(tmp_path))
    found = rows(tmp_path / "log.db")
    assert [row["cell_id"] for row in found] == ["In[2]", "In[3]", "In[4]"]
    assert (
        [row["execution_count"] for row in found]
        == [cell.execution_count for cell in notebook.cells[1:]]
        == [2, 3, 4]
    )
    assert witness.stats()["requests_ok"] == 3


# -- the notebook's name ---------------------------------------------------------------------------

NOTEBOOKS = "nbllm.requests().notebook.tolist()"


@pytest.fixture
def jupyter_server(tmp_path: Path, witness: DemoServer) -> Iterator[tuple[str, Path]]:
    """A server's URL, and the folder in which it keeps how to reach its kernels."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    runtime = tmp_path / "runtime"
    env = environment(tmp_path, witness) | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
    }
    options = (
        f"--port={port}",
        f"--ServerApp.root_dir={tmp_path}",
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
        "--ServerApp.port_retries=0",
        "--no-browser",
        "--allow-root",
    )
    with (tmp_path / "server.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_server", *options], env=env, stdout=said, stderr=said
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/status", timeout=5):
                break
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        yield url, runtime
    finally:
        process.terminate()
        process.wait(30)


def test_the_notebook_is_named_by_the_server(tmp_path: Path, jupyter_server: tuple[str, Path]) -> None:
    """As JupyterLab asks it for a kernel: with the notebook's path, and its name."""
    url, runtime = jupyter_server
    (tmp_path / "my work").mkdir()
    notebook = tmp_path / "my work" / "Übung 1.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), notebook)
    asked = {
        "path": "my work/Übung 1.ipynb",
        "name": "Übung 1.ipynb",
        "type": "notebook",
        "kernel": {"name": "python3"},
    }
    request = urllib.request.Request(
        f"{url}/api/sessions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        kernel_id = json.load(answer)["kernel"]["id"]
    client = BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernel_id}.json"))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        asking = "%load_ext nbllm\nimport nbllm\nnbllm.completion('demo/fast', 'Hi')"
        assert client.execute_interactive(asking, timeout=60)["content"]["status"] == "ok"
        reply = client.execute_interactive(
            "", user_expressions={"told": NOTEBOOKS, "found": "len(nbllm.requests(notebook='Übung 1.ipynb'))"}
        )
    finally:
        client.stop_channels()
    told = {
        name: ast.literal_eval(value["data"]["text/plain"])
        for name, value in reply["content"]["user_expressions"].items()
    }
    assert told == {"told": [str(notebook)], "found": 1}


@pytest.mark.parametrize("order", ["before", "after", "in the cell"])
def test_the_notebook_is_named_by_vs_code(tmp_path: Path, witness: DemoServer, order: str) -> None:
    """It does so in the user's namespace; what its server says is a copy's name."""
    path = "/home/ann/my work/x.ipynb"
    named = f"__vsc_ipynb_file__ = {path!r}"
    loaded = "%load_ext nbllm\nimport nbllm"
    asking = "nbllm.completion('demo/fast', 'Hi')"
    cells = {
        "before": (named, f"{loaded}\n{asking}"),
        "after": (loaded, named, asking),
        "in the cell": (f"{named}\n{loaded}\n{asking}",),
    }[order]
    with Kernel(tmp_path, witness, env={"JPY_SESSION_NAME": "/tmp/x-jvsc-0badcafe.ipynb"}) as kernel:
        for cell in cells:
            kernel.run(cell).ok()
        assert kernel.value(NOTEBOOKS) == [path]
        assert kernel.value("len(nbllm.requests(notebook='x.ipynb'))") == 1


def test_a_script_that_a_notebook_starts_is_none(tmp_path: Path, witness: DemoServer) -> None:
    asking = "import nbllm, subprocess, sys\nnbllm.completion('demo/fast', 'Hi');"
    script = f"{asking} print(nbllm.requests().notebook.isna().tolist())"
    with Kernel(tmp_path, witness, env={"JPY_SESSION_NAME": "/home/ann/x.ipynb"}) as kernel:
        kernel.run(f"%load_ext nbllm\n{asking}").ok()
        assert kernel.value(NOTEBOOKS) == ["/home/ann/x.ipynb"]
        kernel.run(f"said = subprocess.check_output([sys.executable, '-c', {script!r}], text=True)").ok()
        assert kernel.value("said") == "[True]\n"


@every_python
def test_what_names_no_notebook_is_passed_over(kernel: Kernel, session: str) -> None:
    for value in ("None", "7", "''", "['x.ipynb']", "__import__('pathlib').Path('x')"):
        kernel.run(f"__vsc_ipynb_file__ = {value}").ok()
        kernel.run("nbllm.completion('demo/fast', 'Hi')").ok()
    kernel.run("del __vsc_ipynb_file__").ok()
    assert kernel.value("nbllm.requests().notebook.isna().all().item()") is True
