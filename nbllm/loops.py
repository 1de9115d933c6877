"""Which event loop a call runs on, and running it there from synchronous code.

Owns the home loop (in a kernel: its main loop), nested running, hand-over from other threads and loops,
and interrupts. Knows nothing of HTTP.

- In a kernel or terminal IPython `set_home` names the loop that owns the HTTP session.
- A script without a running loop gets one loop for all its synchronous calls, so that they share a pool.
- Another thread, or another loop, hands its call to the home loop. Where that one doesn't take it up (a
  cell is blocking it, as `list(executor.map(nbllm.completion, …))` does, or there is none), a background
  loop takes it, because waiting for a blocked loop would be a deadlock.
- A call that the home loop has taken up can't move. If a later cell then waits for its thread, the home
  loop is let turn inside that wait.

Longer than most modules, because these parts share one state that nobody else may touch.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import selectors
import signal
import sys
import threading
from collections.abc import Coroutine, Iterable
from types import FrameType
from typing import Any, Generic, TypeVar

from .exceptions import NbllmError, UsageProblem
from .kept import kept

T = TypeVar("T")

TAKE_UP_SECONDS = 0.2
"""How long another thread waits for the home loop to take up a call."""
STANDSTILL_SECONDS = 0.5
"""How long another thread waits before it looks whether the loop of its call still turns."""


class _State:
    """The loops of this process."""

    def __init__(self) -> None:
        self.home: asyncio.AbstractEventLoop | None = None
        self.home_thread: int | None = None
        self.home_always_runs = False
        self.home_blocked = False
        self.handed_over: set[_Handover[Any]] = set()
        self.runner: asyncio.Runner | None = None
        self.background: asyncio.AbstractEventLoop | None = None
        self.lock = threading.Lock()
        self.lost: list[Any] = []


_state = kept(__name__, _State)


def home() -> asyncio.AbstractEventLoop | None:
    """The kernel's loop, or None outside IPython."""
    loop = _state.home
    return None if loop is None or loop.is_closed() else loop


def set_home(loop: asyncio.AbstractEventLoop, *, always_runs: bool) -> None:
    """Make `loop` the kernel's loop: let it be nested, and let interrupts wake it.

    Must be called on the thread that runs the loop.

    Args:
        loop: A loop of asyncio itself.
        always_runs: True for a kernel; False for the terminal, whose loop stands still at the prompt and so
            can't take up the calls of threads.
    """
    if _state.home is loop:
        return
    _nest(loop)
    _state.home, _state.home_thread = loop, threading.get_ident()
    _state.home_always_runs, _state.home_blocked = always_runs, False
    if _let_signals_wake(loop):
        signal.signal(signal.SIGURG, _turn_where_the_home_thread_waits)


def _let_signals_wake(loop: asyncio.AbstractEventLoop) -> bool:
    """Have an interrupt act at once; False where that can't be had.

    A loop that sleeps in select() may run Python's signal handlers only when it next wakes. Any signal
    handler of the loop sets the wake-up fd, and the interrupt wakes it then. SIGURG is free.
    """
    if not hasattr(signal, "SIGURG") or threading.current_thread() is not threading.main_thread():
        return False
    try:
        loop.add_signal_handler(signal.SIGURG, lambda: None)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _nest(loop: asyncio.AbstractEventLoop) -> None:
    import nest_asyncio2

    patched: Any = asyncio
    if hasattr(patched, "_nest_patched") and not hasattr(patched, "_nest_asyncio2"):
        # The archived nest_asyncio came first; it loses queued cells on ipykernel 7. Its marks removed,
        # the maintained successor patches over it.
        if sys.version_info >= (3, 14):
            import _asyncio

            asyncio.Task = asyncio.tasks.Task = _asyncio.Task  # type: ignore[misc]
            asyncio.Future = asyncio.futures.Future = _asyncio.Future  # type: ignore[misc]
            asyncio.get_event_loop = _asyncio.get_event_loop
        del patched._nest_patched
        for cls in type(loop).__mro__:
            if "_nest_patched" in vars(cls):
                del cls._nest_patched  # type: ignore[attr-defined]
    nest_asyncio2.apply(loop)
    asyncio.run = _asyncio_run


def _asyncio_run(main: Coroutine[Any, Any, T], **options: Any) -> T:
    """`asyncio.run` in a notebook: nested on the home loop, and everywhere else what it always was."""
    if (loop := home()) is not None and threading.get_ident() == _state.home_thread:
        return _run_interruptible(loop, main)
    if asyncio._get_running_loop() is None:
        return asyncio.runners.run(main, **options)  # nest_asyncio2's would leave this thread's loop open
    import nest_asyncio2

    result: T = nest_asyncio2.run(main, **options)
    return result


# -- running from synchronous code -------------------------------------------------------------------


def run_sync(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, wherever that code runs, and give its result.

    Ctrl-C or the stop button cancels it and raises KeyboardInterrupt.

    Raises:
        UsageProblem: An event loop that nbllm doesn't own is running on this thread.
    """
    running = asyncio._get_running_loop()
    here, loop = threading.get_ident(), home()
    if loop is not None and here == _state.home_thread and running in (None, loop):
        return _run_interruptible(loop, coro)
    if running is not None and (loop is None or here == _state.home_thread):
        coro.close()
        raise UsageProblem(
            "an event loop is running here, so a synchronous call can't: "
            "use the awaited form (await nbllm.acompletion(...)), or in a notebook %load_ext nbllm first"
        )
    if threading.current_thread() is threading.main_thread():
        return _script_runner().run(coro, context=contextvars.copy_context())
    return _run_from_thread(coro)


def run_cell(coro: Coroutine[Any, Any, T]) -> T:
    """Run an `await` cell of terminal IPython, whose own runner leaves it running on Ctrl-C.

    IPython's coroutine takes in the cell's errors, so that it has a result after a cancel too.
    """
    loop = home()
    assert loop is not None
    return _run_interruptible(loop, coro, insist=False)


def _run_interruptible(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], *, insist: bool = True
) -> T:
    """Run a coroutine on this thread's loop; an interrupt cancels it and comes out as KeyboardInterrupt.

    Args:
        loop: The loop; it may be running.
        coro: What to run.
        insist: Also where the coroutine has ended well in spite of it: the user wants the cell to stop.
    """
    in_task = _in_task_of_user()
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if in_main_thread else None
    takes_signals = previous not in (None, signal.SIG_IGN)  # ipykernel ignores them while no cell runs
    presses = 0

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        loop.call_soon_threadsafe(lambda: task.cancel())
        if in_task and callable(previous):
            previous(signum, frame)  # the cell that waits for that task is meant as well
        elif presses > 1 and not in_task:
            raise KeyboardInterrupt  # the coroutine doesn't end: let go of it

    if takes_signals:
        signal.signal(signal.SIGINT, on_interrupt)
    task = asyncio.ensure_future(coro, loop=loop)
    try:
        return loop.run_until_complete(task)
    finally:
        if takes_signals:
            signal.signal(signal.SIGINT, previous)
        if not task.done():
            task.cancel()
        if presses and (insist or not task.done()):
            raise asyncio.CancelledError if in_task else KeyboardInterrupt from None


def _in_task_of_user() -> bool:
    """Whether this synchronous code runs in a task that user code made, not in a cell.

    asyncio hands a KeyboardInterrupt on from a task to whoever runs the loop: there it would end the kernel.
    IPython catches it in a cell, ipykernel in the callback of a widget.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (name := frame.f_globals.get("__name__", "")) != asyncio.events.__name__:
        if name.startswith(("IPython.", "ipykernel.")):
            return False
        frame = frame.f_back
    return frame is not None


def _script_runner() -> asyncio.Runner:
    if _state.runner is None:
        # With a factory of our own the runner leaves asyncio.get_event_loop() alone.
        _state.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        _let_signals_wake(_state.runner.get_loop())
        atexit.register(_close_runner)
    return _state.runner


def _close_runner() -> None:
    if _state.runner is not None:
        try:
            _state.runner.close()
        except RuntimeError:  # its last step wants a thread, and from 3.12 on none starts at exit
            pass


# -- handing over to another thread's loop -----------------------------------------------------------


class _Handover(Generic[T]):
    """A coroutine offered to another thread's loop, until it is taken up or withdrawn, and its result."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T]) -> None:
        self.loop = loop
        self.coro = coro
        self.taken: concurrent.futures.Future[bool] = concurrent.futures.Future()
        self.result: concurrent.futures.Future[T] = concurrent.futures.Future()
        loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        if self.loop is _state.home:
            _state.home_blocked = False
        if not self.taken.set_running_or_notify_cancel():
            return
        self.taken.set_result(True)
        self.task = self.loop.create_task(self.coro)
        self.task.add_done_callback(self._finish)
        self.result.add_done_callback(self._cancel)

    def _finish(self, task: asyncio.Task[T]) -> None:
        try:
            if task.cancelled():
                self.result.cancel()
            elif (error := task.exception()) is not None:
                self.result.set_exception(error)
            else:
                self.result.set_result(task.result())
        except concurrent.futures.InvalidStateError:  # cancelled in this moment
            pass

    def _cancel(self, result: concurrent.futures.Future[T]) -> None:
        if result.cancelled() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.task.cancel)

    def withdraw(self) -> bool:
        """Take the offer back; False if the loop has begun with it."""
        if not self.taken.cancel():
            return False
        _state.home_blocked = True
        return True

    async def awaited(self) -> T:
        """Await the result on another loop, of a call that only this loop can carry out."""
        result = asyncio.wrap_future(self.result)
        _state.handed_over.add(self)
        try:
            while not result.done():
                moved = threading.Event()
                self.loop.call_soon_threadsafe(moved.set)
                await asyncio.wait([result], timeout=STANDSTILL_SECONDS)
                if self.loop is _state.home and not moved.is_set():  # a cell may wait for who waits here
                    _wake_waiting_home_thread()
            return result.result()
        except asyncio.CancelledError:
            result.cancel()
            raise
        finally:
            _state.handed_over.discard(self)

    def wait(self) -> T:
        """Block this thread until the result is there."""
        _state.handed_over.add(self)
        try:
            while True:
                moved = threading.Event()
                self.loop.call_soon_threadsafe(moved.set)
                try:
                    return self.result.result(STANDSTILL_SECONDS)
                except TimeoutError:
                    if self.result.done():  # the coroutine's own
                        raise
                if not self.loop.is_running() or _kernel_ends():
                    raise NbllmError("this call was given up: the kernel shuts down")
                if self.loop is _state.home and not moved.is_set():
                    _wake_waiting_home_thread()
        finally:
            _state.handed_over.discard(self)


def _run_from_thread(coro: Coroutine[Any, Any, T]) -> T:
    if (loop := _home_takes_calls()) is not None:
        offer = _Handover(loop, coro)
        try:
            offer.taken.result(TAKE_UP_SECONDS)
        except TimeoutError:
            pass
        if not offer.withdraw():
            return offer.wait()
    return _Handover(background(), coro).wait()


def _home_takes_calls() -> asyncio.AbstractEventLoop | None:
    # After one call was withdrawn, later ones don't wait for the home loop until it has moved again.
    loop = home()
    return loop if loop is not None and _state.home_always_runs and not _state.home_blocked else None


def _kernel_ends() -> bool:
    """Whether the loop that runs all through the kernel's life has stopped: Python waits for its threads."""
    return _state.home_always_runs and _state.home is not None and not _state.home.is_running()


def _wake_waiting_home_thread() -> None:
    """Have a home thread that waits in `threading`, maybe for a call on the home loop, let that loop turn."""
    thread = _state.home_thread
    if thread is not None and hasattr(signal, "pthread_kill"):
        frame = sys._current_frames().get(thread)
        if _waits(frame):
            signal.pthread_kill(thread, signal.SIGURG)


def _waits(frame: FrameType | None) -> bool:
    """Whether a thread stands in `Thread.join`, `Future.result`, `Queue.get` or the like."""
    return (
        frame is not None
        and frame.f_code.co_filename == threading.__file__
        and frame.f_code.co_name in ("wait", "join", "_wait_for_tstate_lock")
    )


def _turn_where_the_home_thread_waits(signum: int, frame: FrameType | None) -> None:
    loop = home()
    calls = [call for call in _state.handed_over.copy() if call.loop is loop and not call.result.done()]
    if loop is not None and calls and _waits(frame):
        _run_interruptible(loop, _first_result(loop, calls))


async def _first_result(loop: asyncio.AbstractEventLoop, calls: list[_Handover[Any]]) -> None:
    """Wait until one of the calls is over, whether it has been taken up yet or not."""
    is_over = asyncio.Event()
    for call in calls:
        call.result.add_done_callback(lambda _: loop.call_soon_threadsafe(is_over.set))
    await is_over.wait()


def elsewhere() -> bool:
    """Whether a user's coroutine runs on another loop than the one that owns the kernel's HTTP session."""
    return home() not in (None, running := asyncio._get_running_loop()) and running is not _state.background


async def at_home(coro: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on the home loop from another loop; here, where the home loop doesn't take it up."""
    if (loop := _home_takes_calls()) is None:
        return await coro
    offer = _Handover(loop, coro)
    try:
        await asyncio.wait([asyncio.wrap_future(offer.taken)], timeout=TAKE_UP_SECONDS)
    except asyncio.CancelledError:
        offer.result.cancel()
        if offer.withdraw():
            coro.close()
        raise
    if offer.withdraw():
        return await coro
    return await asyncio.wrap_future(offer.result)


async def on_loop(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on the loop that its objects belong to.

    Raises:
        UsageProblem: That loop doesn't run, so it would be awaited for ever.
    """
    if asyncio.get_running_loop() is loop:
        return await coro
    if not loop.is_running():
        coro.close()
        raise UsageProblem(
            "the event loop on which this was opened doesn't run any more: use it where it was opened"
        )
    return await _Handover(loop, coro).awaited()


def background() -> asyncio.AbstractEventLoop:
    """The background loop, started at first use in a daemon thread."""
    with _state.lock:
        if _state.background is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="nbllm-loop", daemon=True).start()
            _state.background = loop
        return _state.background


def after_fork(loops: Iterable[asyncio.AbstractEventLoop]) -> None:
    """Let go of the parent's loops in a forked child, without closing what the parent still uses.

    Args:
        loops: Further loops of the parent, which have pools.
    """
    old = (_state.home, _state.background, _state.runner and _state.runner.get_loop(), *loops)
    for loop in old:
        if loop is not None and hasattr(loop, "_selector"):
            # The child's copy speaks to the parent's epoll: a loop that is collected in the child would take
            # the parent's sockets out of it.
            loop._selector = selectors.SelectSelector()
    _state.lost.append((old, _state.runner))
    _state.home = _state.home_thread = _state.runner = _state.background = None
    _state.home_blocked = False
    _state.handed_over = set()
    _state.lock = threading.Lock()
