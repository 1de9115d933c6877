"""The life of the HTTP session and of the log in kernels and scripts: reloads, forks, interrupts, ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

import nbllm
from nbllm.servers.demo import DemoServer
from tests.kernels import TIMEOUT, Kernel, environment, every_python, rows

LOAD = "%load_ext nbllm\nimport asyncio, nbllm"
CALL = "nbllm.completion('demo/fast', 'Hi')"


@pytest.fixture(scope="module")
def running() -> Iterator[DemoServer]:
    with DemoServer(pace=0.1) as server:
        yield server


@pytest.fixture
def witness(running: DemoServer) -> DemoServer:
    """The demo server, at rest and counting from zero."""
    running.wait_for(lambda stats: stats["requests_open"] == stats["connections_open"] == 0)
    running.reset()
    return running


# -- the HTTP session in a kernel --------------------------------------------------------------------

HARMLESS = [
    "%load_ext nbllm",
    "%reload_ext nbllm",
    "%unload_ext nbllm\n%load_ext nbllm",
    "%reset -f",
    "import importlib, sys\n"
    "for module in [m for n, m in sys.modules.items() if n.split('.')[0] == 'nbllm' and m.__spec__]:\n"
    "    importlib.reload(module)",
    "await nbllm.shared_session().close()",
    "async with nbllm.shared_session(): pass",
    "nbllm.configure(limit=50, keepalive_timeout=100)",
]
USE = """
    import asyncio, builtins, nbllm
    nbllm.completion("demo/fast", "Hi")
    await nbllm.acompletion("demo/fast", "Hi")
    for chunk in nbllm.completion("demo/fast", "Hi", stream=True): pass
    get_ipython().run_cell_magic("llm", "demo/fast", "Hi")
    await asyncio.to_thread(nbllm.completion, "demo/fast", "Hi")
    assert nbllm.shared_session() is builtins.first_session, "another session"
    """
KEEP = "import builtins; builtins.first_session = nbllm.shared_session(); nbllm.set_session('kept')"


def check_new_connections(kernel: Kernel, witness: DemoServer) -> None:
    """Also connections that are made after a reload are traced."""
    before = witness.stats()["connections_opened"]
    call = "nbllm.acompletion('demo/small', 'Hi', session_id='new')"
    kernel.run(f"await asyncio.gather(*[{call} for _ in range(4)])").ok()
    found = kernel.rows(session_id="new")
    assert all(row["bytes_received"] and row["bytes_sent"] for row in found)
    assert [row["connection_reused"] for row in found].count(0) == 3
    assert len(kernel.rows("connections")) == witness.stats()["connections_opened"] == before + 3


@every_python
def test_session_and_connection_survive(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(f"{LOAD}\n{KEEP}").ok()
        kernel.run(USE).ok()
        for step in HARMLESS:
            kernel.run("import nbllm").ok()
            assert kernel.run(step).status == "ok", step
            assert kernel.run(USE).error is None, step
        assert witness.stats()["connections_opened"] == 1
        check_new_connections(kernel, witness)
        found = [row for row in kernel.rows() if row["session_id"] != "new"]
        assert len(found) == witness.stats()["requests_ok"] - 4 == 5 * (1 + len(HARMLESS))
        assert {(row["session_id"], row["status"], row["cell_source"]) for row in found} == {
            ("kept", "ok", "execution_count")
        }
        assert len({row["kernel_id"] for row in found}) == 1


@every_python
def test_session_survives_autoreload(tmp_path: Path, witness: DemoServer, python: str) -> None:
    package = tmp_path / "copy" / "nbllm"
    shutil.copytree(Path(nbllm.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with Kernel(tmp_path, witness, python, env={"PYTHONPATH": str(package.parent)}) as kernel:
        kernel.run(f"%load_ext autoreload\n%autoreload 2\n{LOAD}\n{KEEP}").ok()
        kernel.run("nbllm.configure(limit=50)").ok()
        kernel.run(USE).ok()
        assert kernel.value("nbllm.__file__") == str(package / "__init__.py")
        # Not `types`: autoreload can't turn msgspec's objects into those of the new class, and says so.
        for module in sorted(set(package.rglob("*.py")) - {package / "types.py"}):
            later = module.stat().st_mtime + 60
            # A new `if` has the newer, cautious autoreload run the whole module too, not only what changed.
            module.write_text(module.read_text() + "\nif len(__name__):\n    RELOADED = True\n")
            os.utime(module, (later, later))
        outcome = kernel.run(USE)
        assert (outcome.error, outcome.stderr) == (None, "")
        kernel.run(
            "from nbllm import log, loops, transport\nlog.RELOADED, loops.RELOADED, transport.RELOADED"
        ).ok()
        assert kernel.value("nbllm.configure().limit") == 50
        found = kernel.rows()
        assert [row["session_id"] for row in found] == ["kept"] * 10
        assert len({row["kernel_id"] for row in found}) == 1
        assert witness.stats()["connections_opened"] == 1
        check_new_connections(kernel, witness)


@every_python
def test_closed_connector_is_replaced(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(f"{LOAD}\n{KEEP}").ok()
        kernel.run(USE).ok()
        kernel.run("await nbllm.shared_session().connector.close()").ok()
        kernel.run(USE).ok()
        kernel.run("nbllm.shared_session().detach()").ok()
        kernel.run(USE).ok()
        assert [row["status"] for row in kernel.rows()] == ["ok"] * 15
        assert witness.stats()["connections_opened"] == 2
        assert [row["close_reason"] for row in kernel.rows("connections")] == ["pool closed", None]


# -- fork --------------------------------------------------------------------------------------------

FORK = """
    import multiprocessing, os
    def child():
        for _ in range(2):
            assert nbllm.completion("demo/fast", "Hi", session_id="child").text
    def forked():
        pid = os.fork()
        if pid == 0:
            try:
                child()
                nbllm.log.flush()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def processed():
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return process.exitcode
    nbllm.set_session("parent")
    """


def check_fork(found: list[dict[str, object]], witness: DemoServer, children: int) -> None:
    parent = [row for row in found if row["session_id"] == "parent"]
    child = [row for row in found if row["session_id"] == "child"]
    assert [row["status"] for row in parent] == ["ok"] * (children + 1)
    assert [row["status"] for row in child] == ["ok"] * (2 * children)
    assert len({row["kernel_id"] for row in parent}) == 1
    assert len({row["kernel_id"] for row in child} - {parent[0]["kernel_id"]}) == children
    assert len({row["connection_id"] for row in parent}) == 1
    stats = witness.stats()
    assert stats["requests_ok"] == stats["requests_total"] == len(found)
    assert stats["connections_opened"] == 1 + children


@every_python
def test_fork_in_a_kernel(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(f"{LOAD}\n{textwrap.dedent(FORK)}").ok()
        kernel.run(CALL).ok()
        for child in ("forked()", "processed()"):
            kernel.run(f"exitcode = {child}")
            assert kernel.value("exitcode") == 0
            kernel.run("await nbllm.acompletion('demo/fast', 'Hi')").ok()
        kernel.run("await asyncio.to_thread(lambda: None)").ok()  # the loop can still be woken from a thread
        check_fork(kernel.rows(), witness, children=2)


# -- scripts -----------------------------------------------------------------------------------------

SCRIPTS = {
    "several asyncio.run": """
        async def main():
            await asyncio.gather(*[nbllm.acompletion("demo/fast", "Hi") for _ in range(4)])
            async for chunk in await nbllm.acompletion("demo/fast", "Hi", stream=True): pass
        for _ in range(3):
            asyncio.run(main())
        expect(connections=12, ok=15)
        """,
    "synchronous calls share a connection": """
        for _ in range(3):
            nbllm.completion("demo/fast", "Hi")
            for chunk in nbllm.completion("demo/fast", "Hi", stream=True): pass
        expect(connections=1, ok=6)
        """,
    "host by name, looked up in a thread": """
        url = os.environ["NBLLM_DEMO_URL"].replace("127.0.0.1", "localhost")
        nbllm.completion("fast", "Hi", base_url=url)
        asyncio.run(nbllm.acompletion("fast", "Hi", base_url=url))
        expect(connections=2, ok=2)
        """,
    "both, mixed": """
        for _ in range(2):
            nbllm.completion("demo/fast", "Hi")
            asyncio.run(nbllm.acompletion("demo/fast", "Hi"))
        expect(connections=3, ok=4)
        """,
    "synchronous call inside a loop": """
        async def main():
            try:
                nbllm.completion("demo/fast", "Hi")
            except nbllm.UsageProblem as problem:
                print(problem)
        asyncio.run(main())
        expect(connections=0)
        """,
    "threads": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(lambda n: nbllm.completion("demo/fast", f"Hi {n}"), range(12)))
        asyncio.run(asyncio.to_thread(nbllm.completion, "demo/fast", "Hi"))
        expect(connections=range(1, 6), ok=13)
        """,
    "exit with an open stream": """
        stream = nbllm.completion("demo/stall", "Hi", stream=True)
        next(stream)
        expect(connections=1, incomplete=1)
        """,
    "stream left early": """
        for chunk in nbllm.completion("demo/stall", "Hi", stream=True):
            break
        nbllm.completion("demo/fast", "Hi")
        expect(connections=2, ok=1, incomplete=1)
        """,
    "stream that outlives its loop": """
        async def main():
            global stream
            stream = await nbllm.acompletion("demo/stall", "Hi", stream=True)
            await anext(stream)
        asyncio.run(main())
        expect(connections=1, incomplete=1)
        """,
    "exit with a request under way": """
        async def main():
            asyncio.create_task(nbllm.acompletion("demo/hang", "Hi"))
            await nbllm.acompletion("demo/fast", "Hi")
        asyncio.run(main())
        expect(connections=2, ok=1, cancelled=1)
        """,
    "exit with a thread's request under way": """
        import threading
        thread = threading.Thread(target=lambda: nbllm.completion("demo/hang", "Hi"), daemon=True)
        thread.start()
        nbllm.completion("demo/slow", "Hi")
        expect(connections=2, ok=1, incomplete=1)
        """,
    "sys.exit inside": """
        async def main():
            await nbllm.acompletion("demo/fast", "Hi")
            expect(connections=1, ok=1)
            sys.exit(0)
        asyncio.run(main())
        """,
    "error inside": """
        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(nbllm.acompletion("demo/hang", "Hi"))
                await nbllm.acompletion("demo/error", "Hi", num_retries=0)
        try:
            asyncio.run(main())
        except* nbllm.InternalServerError:
            pass
        expect(connections=2, error=1, cancelled=1)
        """,
    "closed by somebody": """
        async def main():
            session = nbllm.shared_session()
            async with session:
                await nbllm.acompletion("demo/fast", "Hi")
            await session.close()
            body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}
            async with session.post(os.environ["NBLLM_DEMO_URL"] + "/chat/completions", json=body) as answer:
                await answer.read()
            assert nbllm.shared_session() is session
            await nbllm.acompletion("demo/fast", "Hi")
        asyncio.run(main())
        expect(connections=1, ok=3)
        """,
    "never used": """
        async def main():
            nbllm.shared_session()
        asyncio.run(main())
        expect(connections=0)
        """,
}
BEGIN = """
    import asyncio, logging, os, sys, nbllm
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # not: how long a callback took
    def expect(**counts):
        print("expected:", counts)
    """


def script(code: str, folder: Path, witness: DemoServer) -> subprocess.Popen[str]:
    """Run a script that tells of every resource that it leaves open."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(BEGIN) + textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", str(path)],
        env=environment(folder, witness),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_ends_silently_with_a_whole_log(tmp_path: Path, witness: DemoServer, name: str) -> None:
    process = script(SCRIPTS[name], tmp_path, witness)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    found = rows(tmp_path / "log.db") if (tmp_path / "log.db").exists() else []
    (line,) = re.findall("expected: (.*)", output)
    wanted = eval(line)
    connections = wanted.pop("connections")
    stats = witness.wait_for(lambda stats: stats["connections_open"] == 0)
    opened = stats["connections_opened"]
    assert opened in connections if isinstance(connections, range) else opened == connections
    statuses = [row["status"] for row in found]
    assert {status: statuses.count(status) for status in {*statuses, *wanted}} == wanted
    assert stats["requests_total"] == len(found)
    if found:
        listed = rows(tmp_path / "log.db", "connections")
        assert len(listed) == opened
        assert all(row["closed_at"] and row["close_reason"] for row in listed)
    if name == "synchronous call inside a loop":
        assert "await nbllm.acompletion" in output


def test_fork_in_a_script(tmp_path: Path, witness: DemoServer) -> None:
    code = textwrap.dedent(FORK) + textwrap.dedent(
        """
        async def main():
            await nbllm.acompletion("demo/fast", "Hi")
            for child in (forked, processed):
                assert child() == 0
                await nbllm.acompletion("demo/fast", "Hi")
                await asyncio.to_thread(lambda: None)
        import warnings
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        asyncio.run(main())
        """
    )
    process = script(code, tmp_path, witness)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    check_fork(rows(tmp_path / "log.db"), witness, children=2)


def test_forked_child_that_ends_as_a_script_does(tmp_path: Path, witness: DemoServer) -> None:
    code = """
        import os, time, warnings
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        nbllm.completion("demo/fast", "Hi", session_id="parent")
        while "sqlalchemy" not in sys.modules: time.sleep(0.001)  # the log's writer is in the middle of it
        pid = os.fork()
        nbllm.completion("demo/fast", "Hi", session_id="parent" if pid else "child")
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            nbllm.completion("demo/fast", "Hi", session_id="parent")
            nbllm.loops.run_sync(asyncio.to_thread(print))  # a thread still wakes the loop
        """
    process = script(code, tmp_path, witness)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    found = rows(tmp_path / "log.db")
    assert sorted(row["session_id"] for row in found) == ["child", "parent", "parent", "parent"]
    assert witness.stats()["connections_opened"] == 2


INTERRUPTED_SCRIPTS = {
    "completion": "nbllm.completion('demo/hang', 'Hi')",
    "stream": "for chunk in nbllm.completion('demo/stall', 'Hi', stream=True): pass",
    # Python's own runner may sleep through an interrupt that comes just before it falls asleep: so it ticks.
    "asyncio.run": """
        async def tick():
            while True: await asyncio.sleep(0.01)
        async def main():
            ticking = asyncio.create_task(tick())
            await nbllm.acompletion("demo/hang", "Hi")
        asyncio.run(main())
        """,
}


@pytest.mark.parametrize("form", INTERRUPTED_SCRIPTS)
def test_interrupt_of_a_script(tmp_path: Path, witness: DemoServer, form: str) -> None:
    process = script(INTERRUPTED_SCRIPTS[form], tmp_path, witness)
    witness.wait_for(lambda stats: stats["requests_open"] == 1, timeout=TIMEOUT)
    process.send_signal(signal.SIGINT)
    witness.wait_for(lambda stats: stats["requests_disconnected"] == 1, timeout=2)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in errors
    assert "never" not in errors
    assert [row["status"] for row in rows(tmp_path / "log.db")] == ["cancelled"]


def test_script_goes_on_after_an_interrupt(tmp_path: Path, witness: DemoServer) -> None:
    code = """
        try:
            nbllm.completion("demo/hang", "Hi")
        except KeyboardInterrupt:
            nbllm.completion("demo/fast", "Hi")
        """
    process = script(code, tmp_path, witness)
    witness.wait_for(lambda stats: stats["requests_open"] == 1, timeout=TIMEOUT)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert [row["status"] for row in rows(tmp_path / "log.db")] == ["cancelled", "ok"]


# -- terminal IPython --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*forkpty.*:DeprecationWarning")
def test_terminal_ipython(tmp_path: Path, witness: DemoServer) -> None:
    number = 1
    command = ["-W", "error::ResourceWarning", "-m", "IPython", "--simple-prompt", "--no-banner"]
    shell = pexpect.spawn(
        sys.executable,
        [*command, "--colors=NoColor"],
        env=environment(tmp_path, witness) | {"TERM": "dumb"},
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=TIMEOUT,
        echo=False,
    )

    def prompt() -> str:
        shell.expect_exact(f"In [{number}]: ")
        return str(shell.before)

    def run(line: str) -> str:
        nonlocal number
        shell.sendline(line)
        number += 1
        return prompt()

    prompt()
    assert "Error" not in run("%load_ext nbllm")
    run("import asyncio, nbllm, threading; one = nbllm.shared_session()")
    run("nbllm.completion('demo/fast', 'Hi'); print('a')")
    run("answer = await nbllm.acompletion('demo/fast', 'Hi')")
    run("answer = asyncio.run(nbllm.acompletion('demo/fast', 'Hi'))")
    assert "True" in run("nbllm.shared_session() is one")
    shell.sendline("nbllm.completion('demo/hang', 'Hi')")
    witness.wait_for(lambda stats: stats["requests_open"] == 1)
    shell.sendintr()
    witness.wait_for(lambda stats: stats["requests_disconnected"] == 1, timeout=2)
    number += 1
    assert "KeyboardInterrupt" in prompt()
    shell.sendline("await nbllm.acompletion('demo/hang', 'Hi')")
    witness.wait_for(lambda stats: stats["requests_open"] == 1)
    shell.sendintr()
    witness.wait_for(lambda stats: stats["requests_disconnected"] == 2, timeout=2)
    number += 1
    assert "KeyboardInterrupt" in prompt() or "CancelledError" in str(shell.before)
    run("thread = threading.Thread(target=nbllm.completion, args=('demo/fast', 'Hi')); thread.start()")
    run("thread.join()")
    run("get_ipython().run_cell_magic('capture', '', \"nbllm.completion('demo/fast', 'Hi')\")")
    shell.sendline("exit")
    shell.expect_exact(pexpect.EOF)
    assert shell.before.strip() == ""
    shell.close()
    assert shell.exitstatus == 0
    found = rows(tmp_path / "log.db")
    assert [(row["cell_id"], row["status"]) for row in found] == [
        ("In[3]", "ok"),
        ("In[4]", "ok"),
        ("In[5]", "ok"),
        ("In[7]", "cancelled"),
        ("In[8]", "cancelled"),
        ("In[9]", "ok"),
        ("In[11]", "ok"),
    ]
    assert len({row["connection_id"] for row in found[:4]}) == 1
    assert all(row["run_id"] for row in found)


# -- the end of a kernel -----------------------------------------------------------------------------


def said(kernel: Kernel) -> list[str]:
    """What the kernel's process wrote to stderr, without ipykernel's remark on its own transport."""
    return [line for line in kernel.stderr().splitlines() if "TCP without encryption" not in line]


@every_python
def test_rows_are_on_disk_when_a_cell_has_ended(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(LOAD).ok()
        kernel.run(CALL).ok()
        kernel.run("await asyncio.gather(*[nbllm.acompletion('demo/fast', 'Hi') for _ in range(200)])").ok()
        kernel.kill()
        statuses = [row["status"] for row in kernel.rows()]
        assert statuses == ["ok"] * 201
        assert witness.stats()["requests_ok"] == 201
        assert len(kernel.rows("connections")) == witness.stats()["connections_opened"]


@every_python
def test_two_kernels_write_to_one_log(tmp_path: Path, witness: DemoServer, python: str) -> None:
    code = """
        for _ in range(5):
            await asyncio.gather(*[nbllm.acompletion("demo/fast", "Hi") for _ in range(20)])
        """
    with Kernel(tmp_path, witness, python) as one, Kernel(tmp_path, witness, python) as other:
        one.run(LOAD).ok()
        other.run(LOAD).ok()
        sent = [(kernel, kernel.send(code)) for _ in range(3) for kernel in (one, other)]
        for kernel, msg_id in sent:
            kernel.wait(msg_id).ok()
        for kernel in (one, other):
            mine = kernel.value("nbllm.kernel_id()")
            assert len(kernel.rows(kernel_id=mine, status="ok")) == 300
            assert kernel.value("len(nbllm.requests())") == 300
        assert witness.stats()["requests_ok"] == len(one.rows()) == 600


BUSY = """
    import threading
    hanging = asyncio.create_task(nbllm.acompletion("demo/hang", "Hi"))
    stream = nbllm.completion("demo/stall", "Hi", stream=True)
    next(stream)
    def hang():
        nbllm.completion("demo/hang", "Hi", session_id="thread")
    threading.Thread(target=hang).start()
    """
BUSY_TOO = """
    import time
    threading.Thread(target=hang).start()
    while nbllm.loops._state.background is None:  # it takes over, as this cell blocks the home loop
        time.sleep(0.01)
    """


@every_python
@pytest.mark.parametrize("end", ["shutdown", "restart"])
def test_end_of_a_kernel_is_silent_and_its_log_whole(
    tmp_path: Path, witness: DemoServer, python: str, end: str
) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(LOAD).ok()
        kernel.run(CALL).ok()
        first = kernel.value("nbllm.kernel_id()")
        kernel.run(BUSY).ok()
        witness.wait_for(lambda stats: stats["requests_open"] == 3)
        kernel.run(BUSY_TOO).ok()
        witness.wait_for(lambda stats: stats["requests_open"] == 4)
        getattr(kernel, end)()
        witness.wait_for(lambda stats: stats["connections_open"] == 0)
        assert said(kernel) == []
        found = kernel.rows()
        assert sorted(row["status"] for row in found) == ["incomplete"] * 4 + ["ok"]
        assert {row["kernel_id"] for row in found} == {first}
        connections = kernel.rows("connections")
        assert len(connections) == witness.stats()["connections_opened"]
        assert all(row["closed_at"] for row in connections)
        assert sorted(row["close_reason"] == "exit" for row in connections) == [False] * 3 + [True]
        if end == "restart":
            kernel.run(LOAD).ok()
            kernel.run(CALL).ok()
            assert kernel.value("nbllm.kernel_id()") != first
            assert len(kernel.rows()) == 6


@every_python
def test_kernel_that_sent_nothing_leaves_no_trace(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        kernel.run(LOAD).ok()
        kernel.run("session = nbllm.shared_session()").ok()
        kernel.shutdown()
        assert said(kernel) == []
        assert not kernel.log.exists()
    assert witness.stats()["connections_opened"] == 0
