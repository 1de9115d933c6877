"""Session ids: which one a request gets, in tasks, threads and nested groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import Context

import pytest

import nbllm
from nbllm import UsageProblem, tagging


def test_default_session_is_readable_and_of_this_kernel() -> None:
    assert nbllm.current_session().startswith("kernel-")
    assert nbllm.current_session().endswith(nbllm.kernel_id()[:4])


def test_innermost_session_wins_and_leaves_no_trace() -> None:
    before = nbllm.current_session()
    assert nbllm.set_session("kernel-wide") == "kernel-wide"
    with nbllm.session("outer") as outer:
        with nbllm.session("inner"), outer:
            assert nbllm.current_session() == "outer"
        assert nbllm.current_session() == "outer"
    assert nbllm.current_session() == "kernel-wide"
    assert nbllm.set_session(None) == before


def test_session_ends_with_an_error() -> None:
    before = nbllm.current_session()
    with pytest.raises(ZeroDivisionError), nbllm.session("review"):
        _ = 1 / 0
    assert nbllm.current_session() == before


async def test_tasks_keep_the_session_in_which_they_were_started() -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return nbllm.current_session()

    async with nbllm.session("review"):
        task = asyncio.create_task(later())
        in_thread = await asyncio.to_thread(nbllm.current_session)
    assert nbllm.current_session() != "review"
    assert await task == in_thread == "review"


async def test_one_object_in_many_tasks_at_once() -> None:
    review = nbllm.session("review")

    async def use(turns: int) -> None:
        for _ in range(3):
            with review:
                for _ in range(turns):
                    await asyncio.sleep(0)
                    assert nbllm.current_session() == "review"
            assert nbllm.current_session() != "review"

    await asyncio.gather(*[use(turns) for turns in range(5)])


async def test_generator_that_is_finished_in_another_context() -> None:
    """As when the loop finishes an async generator that nobody reads to its end."""

    async def numbers() -> AsyncIterator[int]:
        async with nbllm.session("review"):
            yield 1

    generator = numbers()
    await asyncio.create_task(generator.__anext__())
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]

    def more() -> Iterator[int]:
        with nbllm.session("review"):
            yield 1

    other = more()
    Context().run(next, other)
    Context().run(other.close)  # type: ignore[attr-defined]
    assert nbllm.current_session() != "review"


@pytest.mark.parametrize("good", ["r", "code review #2", "~" * 199])
def test_session_ids_that_every_backend_accepts(good: str) -> None:
    assert tagging.check_session_id(good) == good


@pytest.mark.parametrize("bad", ["", " ", "é", "two\nlines", "tab\t", "x" * 200, "a\n", 5, None, b"bytes"])
def test_session_ids_that_are_refused(bad: object) -> None:
    for use in (nbllm.session, tagging.check_session_id):
        with pytest.raises(UsageProblem, match="session id"):
            use(bad)  # type: ignore[operator]
    if bad is not None:
        with pytest.raises(UsageProblem, match="session id"):
            nbllm.set_session(bad)  # type: ignore[arg-type]


async def test_code_in_a_plain_thread_counts_to_the_last_cell() -> None:
    assert tagging.current_cell() is tagging.NO_CELL
    cell = tagging.Cell("abc", 3, "run", "frontend")
    tagging.enter_cell(cell)
    assert tagging.current_cell() is cell
    elsewhere = Context().run(tagging.current_cell)
    assert elsewhere == tagging.Cell("abc", 3, "run", "last_cell")
    tagging.leave_cell()
    assert tagging.current_cell() == elsewhere
