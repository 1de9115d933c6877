"""Synchronous calls from anywhere, interrupts, threads: in real kernels, with the demo server as witness."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nbllm import UsageProblem, loops
from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel, every_python, kernels

INTERRUPT_SECONDS = 2.0
"""Far below the hang that is interrupted; the real numbers (see `--junit-xml`) are a tenth of it."""


@pytest.fixture(scope="module")
def witness() -> Iterator[DemoServer]:
    with DemoServer(pace=0.1) as running:
        yield running


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, witness: DemoServer, python: str) -> Iterator[Kernel]:
    yield from kernels(tmp_path_factory, witness, python)


@pytest.fixture(scope="module")
def thrifty_kernel(
    tmp_path_factory: pytest.TempPathFactory, witness: DemoServer, python: str
) -> Iterator[Kernel]:
    """For tests that need a single connection, in the home loop's pool."""
    yield from kernels(tmp_path_factory, witness, python)


@pytest.fixture
def idle(kernel: Kernel, witness: DemoServer) -> Iterator[None]:
    """Each test begins and ends without a request under way, and counts from zero."""
    witness.reset()
    kernel.run("background = []").ok()
    yield
    kernel.run("for task in background: task.cancel()")
    witness.wait_for(lambda stats: stats["requests_open"] == 0)


# -- interrupts --------------------------------------------------------------------------------------

INTERRUPTED: dict[str, tuple[str, int, str | None]] = {
    "magic": ("%%llm demo/hang\nHello", 1, "KeyboardInterrupt"),
    "inside %%capture, which keeps errors": ("%%capture\nnbllm.completion('demo/hang', 'Hello')", 1, None),
    "completion": ("nbllm.completion('demo/hang', 'Hello')", 1, "KeyboardInterrupt"),
    "completion in a coroutine": (
        "async def main(): return nbllm.completion('demo/hang', 'Hello')\nawait main()",
        1,
        "KeyboardInterrupt",
    ),
    "completion in tasks": (
        "async def main(): nbllm.completion('demo/hang', 'Hello')\nawait asyncio.gather(main(), main())",
        2,
        "CancelledError",
    ),
    "stream": (
        "for chunk in nbllm.completion('demo/stall', 'Hello', stream=True): pass",
        1,
        "KeyboardInterrupt",
    ),
    "await": ("await nbllm.acompletion('demo/hang', 'Hello')", 1, "CancelledError"),
    "await stream": (
        "async for chunk in await nbllm.acompletion('demo/stall', 'Hello', stream=True): pass",
        1,
        "CancelledError",
    ),
    "await gather": (
        "await asyncio.gather(*[nbllm.acompletion('demo/hang', 'Hello') for _ in range(20)])",
        20,
        "CancelledError",
    ),
    "asyncio.run": ("asyncio.run(nbllm.acompletion('demo/hang', 'Hello'))", 1, "KeyboardInterrupt"),
    "asyncio.run of many": (
        "async def main():\n"
        "    async with asyncio.TaskGroup() as group:\n"
        "        for _ in range(20): group.create_task(nbllm.acompletion('demo/hang', 'Hello'))\n"
        "asyncio.run(main())",
        20,
        "KeyboardInterrupt",
    ),
}


@every_python
@pytest.mark.parametrize("form", INTERRUPTED)
@pytest.mark.usefixtures("idle")
def test_interrupt_cancels_the_cells_requests_and_nothing_else(
    kernel: Kernel, witness: DemoServer, form: str, record_property: Callable[[str, object], None]
) -> None:
    code, count, error = INTERRUPTED[form]
    kernel.run(
        f"""
        nbllm.set_session("background")
        http_session = nbllm.shared_session()
        ticks = 0
        async def tick():
            global ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)
        async def hang():
            return await nbllm.acompletion("demo/hang", "Hello", session_id="background")
        background = [asyncio.create_task(tick()), asyncio.create_task(hang())]
        nbllm.set_session("interrupted {form}")
        """
    ).ok()
    witness.wait_for(lambda stats: stats["requests_open"] == 1)
    cell = kernel.send(code)
    witness.wait_for(lambda stats: stats["requests_open"] == 1 + count)

    outcome, seconds = kernel.interrupt(cell)

    record_property("interrupt_seconds", round(seconds, 3))
    assert outcome.error == error, outcome.traceback
    assert seconds < INTERRUPT_SECONDS
    stats = witness.wait_for(lambda stats: stats["requests_open"] == 1)
    assert stats["requests_disconnected"] == count
    rows = kernel.rows(session_id=f"interrupted {form}")
    assert [row["status"] for row in rows] == ["cancelled"] * count

    before = kernel.value("ticks")
    assert kernel.run("await asyncio.sleep(0.01)").ok()
    assert kernel.value("ticks") > before
    assert kernel.value("[task.done() for task in background]") == [False, False]
    answer = kernel.run("assert nbllm.shared_session() is http_session; nbllm.completion('demo/fast', 'Hi')")
    assert answer.ok().displays
    rows = kernel.rows(session_id=f"interrupted {form}")
    assert [row["status"] for row in rows] == ["cancelled"] * count + ["ok"]


@every_python
@pytest.mark.usefixtures("idle")
def test_second_interrupt_lets_go_of_a_coroutine_that_does_not_end(kernel: Kernel) -> None:
    kernel.run(
        """
        async def stubborn():
            print("begun")
            for _ in range(2):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    print("no")
        """
    ).ok()
    cell = kernel.send("nbllm.loops.run_sync(stubborn())")
    kernel.wait_for_text(cell, "begun")
    with pytest.raises(TimeoutError):
        kernel.wait(cell, timeout=0)
    kernel._manager.interrupt_kernel()
    kernel.wait_for_text(cell, "no")
    outcome, seconds = kernel.interrupt(cell)
    assert outcome.error == "KeyboardInterrupt"
    assert seconds < INTERRUPT_SECONDS
    kernel.run("await asyncio.sleep(0)").ok()


@every_python
@pytest.mark.usefixtures("idle")
def test_interrupt_that_comes_with_the_answer_still_ends_the_cell(kernel: Kernel) -> None:
    """Or a loop over many prompts could hardly be stopped."""
    outcome = kernel.run(
        """
        import os, signal
        async def answer():
            os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):
            nbllm.loops.run_sync(answer())
            print("went on")
        """
    )
    assert (outcome.error, outcome.stdout) == ("KeyboardInterrupt", "")


@every_python
@pytest.mark.usefixtures("idle")
def test_interrupt_reaches_a_cell_without_requests(kernel: Kernel) -> None:
    """The kernel's own handling is as it was before and after a call of ours."""
    naps = "import time\nprint('begun', flush=True)\nfor _ in range(600): time.sleep(0.1)"
    for code, error in (
        (naps, "KeyboardInterrupt"),  # one long nap sleeps on where the signal comes just before it begins
        ("print('begun', flush=True); await asyncio.sleep(60)", "CancelledError"),
        (
            "async def main():\n    print('begun', flush=True); await asyncio.sleep(60)\nasyncio.run(main())",
            "KeyboardInterrupt",
        ),
    ):
        cell = kernel.send(code)
        kernel.wait_for_text(cell, "begun")
        outcome, seconds = kernel.interrupt(cell)
        assert outcome.error == error
        assert seconds < INTERRUPT_SECONDS


# -- Run All -----------------------------------------------------------------------------------------

RUN_ALL = [
    "%load_ext nbllm\nimport nbllm, asyncio",
    "nbllm.completion('demo/fast', 'one'); print('a')",
    "%%llm demo/fast\ntwo",
    "await nbllm.acompletion('demo/fast', 'three'); print('c')",
    "async def main(): return await nbllm.acompletion('demo/fast', 'four')\nasyncio.run(main()); print('d')",
    "for chunk in nbllm.completion('demo/fast', 'five', stream=True): pass\nprint('e')",
    "task = asyncio.create_task(nbllm.acompletion('demo/fast', 'six'))",
    "%%time\nnbllm.completion('demo/fast', 'seven')",
    "async for chunk in await nbllm.acompletion('demo/fast', 'eight', stream=True): pass\nprint('h')",
    "await task; print('i')",
    "asyncio.run(main()); await main(); nbllm.completion('demo/fast', 'nine'); print('j')",
]
RUN_ALL_REQUESTS = 11


def run_all(kernel: Kernel, witness: DemoServer, cells: list[str], repeat: int) -> None:
    witness.reset()
    sent = [kernel.send(code, cell_id=f"cell-{n}") for n, code in enumerate(cells)]
    sent += [kernel.send(code) for _ in range(repeat - 1) for code in RUN_ALL[1:]]
    outcomes = [kernel.wait(msg_id) for msg_id in sent]
    assert [outcome.status for outcome in outcomes] == ["ok"] * len(sent), [o.traceback for o in outcomes]
    counts = [outcome.execution_count for outcome in outcomes]
    assert counts == list(range(1, len(sent) + 1))
    marks = "".join(o.stdout.strip() for o in outcomes if o.stdout.strip() in tuple("abcdefghij"))
    assert marks == "acdehij" * repeat
    rows = kernel.rows()
    assert [row["status"] for row in rows] == ["ok"] * RUN_ALL_REQUESTS * repeat
    assert witness.stats()["requests_ok"] == len(rows)
    starts = [row["execution_count"] for row in rows]
    assert starts == sorted(starts)


@every_python
def test_run_all_with_everything_queued(tmp_path: Path, witness: DemoServer, python: str) -> None:
    with Kernel(tmp_path, witness, python) as kernel:
        run_all(kernel, witness, RUN_ALL, repeat=3)


@every_python
def test_run_all_after_the_archived_nest_asyncio(tmp_path: Path, witness: DemoServer, python: str) -> None:
    first = "import nest_asyncio\nnest_asyncio.apply()"
    with Kernel(tmp_path, witness, python) as kernel:
        run_all(kernel, witness, [first, *RUN_ALL], repeat=3)


# -- threads, subshells, other loops -----------------------------------------------------------------


def connection_of_home(kernel: Kernel) -> str:
    """The id of the connection that is free in the home loop's pool."""
    kernel.run("home = nbllm.completion('demo/fast', 'Hi').request.connection_id").ok()
    found: str = kernel.value("home")
    return found


@every_python
@pytest.mark.usefixtures("idle")
def test_executor_in_a_synchronous_cell_does_not_deadlock(kernel: Kernel, witness: DemoServer) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        nbllm.set_session("executor")
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(lambda n: nbllm.completion("demo/fast", f"Hi {n}"), range(8)))
        print(len({answer.request.request_id for answer in answers}))
        """
    outcome = kernel.run(code, cell_id="executor-cell", timeout=10).ok()
    assert outcome.stdout.strip() == "8"
    assert witness.stats()["requests_ok"] == 8
    rows = kernel.rows(session_id="executor")
    assert [row["status"] for row in rows] == ["ok"] * 8
    assert {(row["cell_id"], row["cell_source"], row["run_id"]) for row in rows} == {
        ("executor-cell", "last_cell", outcome.msg_id)
    }


@every_python
@pytest.mark.usefixtures("idle")
def test_a_thread_may_read_a_stream_of_the_cell_that_waits_for_it(kernel: Kernel) -> None:
    """Only the home loop can read it, which the cell blocks."""
    outcome = kernel.run(
        """
        import threading
        stream = nbllm.completion("demo/small", "Tell me a story of the sea.", stream=True)
        read = []
        reader = threading.Thread(target=lambda: read.extend(stream))
        reader.start()
        reader.join(15)
        print(reader.is_alive(), len(read) > 1, len(stream.text) > 9)
        reader.join()
        """
    ).ok()
    assert outcome.stdout.split() == ["False", "True", "True"]


@every_python
@pytest.mark.usefixtures("idle")
def test_futures_submitted_in_one_cell_and_awaited_in_the_next(kernel: Kernel, witness: DemoServer) -> None:
    """The calls are under way on the home loop when the second cell blocks it."""
    kernel.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        nbllm.set_session("two cells")
        executor = ThreadPoolExecutor(8)
        futures = [executor.submit(nbllm.completion, "demo/slow", f"Hi {n}") for n in range(8)]
        """
    ).ok()
    witness.wait_for(lambda stats: stats["requests_open"] == 8)
    kernel.run("answers = [future.result() for future in futures]; executor.shutdown()", timeout=10).ok()
    assert witness.stats()["requests_ok"] == 8
    assert len(kernel.rows(session_id="two cells", status="ok")) == 8


@every_python
def test_to_thread_uses_the_home_pool_and_keeps_cell_and_session(thrifty_kernel: Kernel) -> None:
    home = connection_of_home(thrifty_kernel)
    thrifty_kernel.run(
        """
        with nbllm.session("to thread"):
            answer = await asyncio.to_thread(nbllm.completion, "demo/fast", "Hi")
        """,
        cell_id="thread-cell",
    ).ok()
    (row,) = thrifty_kernel.rows(session_id="to thread")
    assert (row["connection_id"], row["connection_reused"]) == (home, 1)
    assert (row["cell_id"], row["cell_source"]) == ("thread-cell", "frontend")


@every_python
def test_plain_thread_uses_the_home_pool_while_the_loop_is_free(thrifty_kernel: Kernel) -> None:
    home = connection_of_home(thrifty_kernel)
    thrifty_kernel.run(
        """
        import threading
        nbllm.set_session("plain thread")
        def work():
            for _ in range(3):
                nbllm.completion("demo/fast", "Hi")
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        """,
        cell_id="plain-cell",
    ).ok()
    rows = thrifty_kernel.rows(session_id="plain thread")
    assert [(row["connection_id"], row["status"]) for row in rows] == [(home, "ok")] * 3
    assert {(row["cell_id"], row["cell_source"]) for row in rows} == {("plain-cell", "last_cell")}


@every_python
@pytest.mark.usefixtures("idle")
def test_stream_from_a_thread(kernel: Kernel, witness: DemoServer) -> None:
    code = """
        def stream(stop):
            text = ""
            for n, chunk in enumerate(nbllm.completion("demo/fast", "Hi", stream=True, session_id="streams")):
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    text += piece
                if n == stop:
                    break
            return text
        free = await asyncio.to_thread(stream, None)
        """
    kernel.run(code).ok()
    blocked = """
        with ThreadPoolExecutor(2) as executor:
            texts = list(executor.map(stream, [None, None, 3]))
        print(texts[0] == texts[1] == free != "", free.startswith(texts[2]))
        """
    kernel.run("from concurrent.futures import ThreadPoolExecutor").ok()
    assert kernel.run(blocked, timeout=10).ok().stdout == "True True\n"
    witness.wait_for(lambda stats: stats["requests_open"] == 0)
    assert len(kernel.rows(session_id="streams")) == 4


@every_python
def test_asyncio_run_in_another_thread_uses_the_home_pool(thrifty_kernel: Kernel) -> None:
    home = connection_of_home(thrifty_kernel)
    thrifty_kernel.run(
        """
        import gc, threading
        def work():
            with nbllm.session("other loop"):
                asyncio.run(main())
                asyncio.run(main())
        async def main():
            global loop
            loop = asyncio.get_running_loop()
            answer = await nbllm.acompletion("demo/fast", "Hi")
            async for chunk in await nbllm.acompletion("demo/fast", "Hi", stream=True): pass
            assert nbllm.shared_session() is not home_session  # a loop of its own, a session of its own
        home_session = nbllm.shared_session()
        await asyncio.to_thread(work)
        """,
    ).ok()
    rows = thrifty_kernel.rows(session_id="other loop")
    assert [(row["connection_id"], row["status"]) for row in rows] == [(home, "ok")] * 4
    assert thrifty_kernel.value("loop.is_closed()") is True


@every_python
@pytest.mark.usefixtures("idle")
def test_asyncio_run_in_a_thread_that_the_cell_waits_for(kernel: Kernel, witness: DemoServer) -> None:
    code = """
        import threading
        async def main():
            calls = [nbllm.acompletion("demo/fast", "Hi", session_id="waited") for _ in range(3)]
            await asyncio.gather(*calls)
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()
        """
    kernel.run(code, timeout=10).ok()
    assert len(kernel.rows(session_id="waited", status="ok")) == witness.stats()["requests_ok"] == 3


@every_python
@pytest.mark.usefixtures("idle")
def test_call_on_another_loop_can_be_cancelled(kernel: Kernel, witness: DemoServer) -> None:
    kernel.run(
        """
        async def main():
            try:
                await asyncio.wait_for(nbllm.acompletion("demo/hang", "Hi", session_id="gave up"), 0.2)
            except TimeoutError:
                return "timed out"
        print(await asyncio.to_thread(lambda: asyncio.run(main())))
        """
    ).ok()
    assert witness.wait_for(lambda stats: stats["requests_open"] == 0)["requests_disconnected"] == 1
    assert [row["status"] for row in kernel.rows(session_id="gave up")] == ["cancelled"]


@every_python
@pytest.mark.usefixtures("idle")
def test_subshell_calls_while_a_cell_runs(kernel: Kernel, witness: DemoServer) -> None:
    subshell = kernel.subshell()
    if subshell is None:
        assert kernel.value("__import__('ipykernel').version_info[0]") < 7
        return
    kernel.run("started = __import__('threading').Event()\nnbllm.set_session('main shell')").ok()
    waiting = kernel.send(
        "while not started.is_set(): await asyncio.sleep(0.01)\nawait nbllm.acompletion('demo/fast', 'Hi')",
        cell_id="main",
    )
    code = """
        nbllm.completion("demo/fast", "Hi", session_id="subshell")
        await nbllm.acompletion("demo/fast", "Hi", session_id="subshell")
        asyncio.run(nbllm.acompletion("demo/fast", "Hi", session_id="subshell"))
        for chunk in nbllm.completion("demo/fast", "Hi", session_id="subshell", stream=True): pass
        started.set()
        """
    outcome = kernel.run(code, cell_id="sub", subshell=subshell).ok()
    kernel.wait(waiting).ok()
    rows = kernel.rows(session_id="subshell")
    assert [(row["cell_id"], row["run_id"], row["status"]) for row in rows] == (
        [("sub", outcome.msg_id, "ok")] * 4
    )
    (row,) = kernel.rows(session_id="main shell")
    assert (row["cell_id"], row["run_id"]) == ("main", waiting)


# -- without a kernel --------------------------------------------------------------------------------


async def answer(value: Any = 42) -> Any:
    await asyncio.sleep(0)
    return value


def test_run_sync_in_a_script_keeps_one_loop() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert loops.run_sync(answer()) == 42
    assert loops.run_sync(loop()) is loops.run_sync(loop())


async def test_run_sync_inside_a_running_loop_names_the_awaited_form() -> None:
    with pytest.raises(UsageProblem, match="awaited form"):
        loops.run_sync(answer())


def test_run_sync_in_threads_of_a_script() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(lambda n: loops.run_sync(answer(n)), range(20))) == list(range(20))
        with pytest.raises(ValueError, match="no"):
            executor.submit(loops.run_sync, fail()).result()


def test_timeout_of_the_coroutine_is_not_taken_for_a_blocked_loop() -> None:
    async def late() -> None:
        raise TimeoutError("late")

    with ThreadPoolExecutor(1) as executor, pytest.raises(TimeoutError, match="late"):
        executor.submit(loops.run_sync, late()).result()


async def test_on_loop_refuses_a_loop_that_has_ended() -> None:
    ended = asyncio.new_event_loop()
    ended.close()
    with pytest.raises(UsageProblem, match="event loop"):
        await loops.on_loop(ended, answer())


def test_on_loop_runs_where_the_objects_belong() -> None:
    async def thread() -> int:
        return threading.get_ident()

    async def main() -> tuple[int, int]:
        return await loops.on_loop(loops.background(), thread()), await loops.on_loop(
            asyncio.get_running_loop(), thread()
        )

    elsewhere, here = asyncio.run(main())
    assert here == threading.get_ident() != elsewhere
