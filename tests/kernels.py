"""A real kernel for tests: start it, run cells in it as a front end does, look into its log from outside.

Kernels run in the interpreter that runs pytest, and in those that NBLLM_TEST_PYTHONS names (paths of python
executables with nbllm and another ipykernel installed, separated as in PATH).
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from nbllm.servers.demo import DemoServer

PYTHONS = list(
    dict.fromkeys([sys.executable, *filter(None, os.environ.get("NBLLM_TEST_PYTHONS", "").split(os.pathsep))])
)
TIMEOUT = 30.0


def _with(pythons: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "python", pythons, ids=lambda path: Path(path).parent.parent.name, scope="module"
    )


every_python = _with(PYTHONS)
two_pythons = _with(PYTHONS[:2])
"""For what rests on IPython rather than on the kernel: in CI its newest and its oldest version."""


def environment(folder: Path, server: DemoServer | None = None) -> dict[str, str]:
    """The environment of a process whose files stay in `folder` and whose `demo/…` is `server`."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(
            ("NBLLM_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "JUPYTER", "IPYTHON", "PYTEST")
        )
        and not name.lower().endswith(("_proxy", "_api_key", "_api_base", "_ad_token"))
    }
    env |= {"NBLLM_LOG_PATH": str(folder / "log.db"), "IPYTHONDIR": str(folder / "ipython"), "NO_COLOR": "1"}
    if server is not None:
        env["NBLLM_DEMO_URL"] = server.url
    return env


def rows(log: Path, table: str = "requests", **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a log's table as another process sees them, oldest first, with these values."""
    order = {"requests": "started_at, request_id", "connections": "opened_at"}[table]
    condition = " AND ".join(f"{name} = ?" for name in wanted) or "1"
    with closing(sqlite3.connect(log, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            f"SELECT * FROM {table} WHERE {condition} ORDER BY {order}", tuple(wanted.values())
        )
        return [dict(row) for row in found]


@dataclass
class Outcome:
    """What came of a cell.

    Attributes:
        status: "ok", "error", or "aborted" where a cell before it in the queue failed.
        error: Name of the exception that ended the cell, or None.
        outputs: The messages that make its outputs, as they came.
        payload: What the reply asks of the front end, such as another cell.
        typed: What it gets where it asks for input; None where it can't ask.
        asked: Its requests for input, each with `prompt` and `password`.
        replied: `time.monotonic()` when the reply was here.
    """

    msg_id: str
    status: str = ""
    execution_count: int | None = None
    error: str | None = None
    message: str = ""
    traceback: str = ""
    stdout: str = ""
    stderr: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    expressions: dict[str, Any] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list, repr=False)
    payload: list[dict[str, Any]] = field(default_factory=list)
    typed: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    replied: float = 0.0
    idle: bool = False

    def ok(self) -> Outcome:
        """Itself, if the cell succeeded and wrote nothing to stderr."""
        assert (self.status, self.stderr) == ("ok", ""), f"{self.status} {self.traceback}\n{self.stderr}"
        return self

    def shown(self) -> tuple[str, str]:
        """Text and footer of the last state of an answer's display."""
        text, _, footer = self.displays[-1]["text/plain"].rpartition("\n\n")
        return text, footer

    def traced(self) -> list[dict[str, Any]]:
        """The requests that the metadata of the last output name."""
        found: list[dict[str, Any]] = self.outputs[-1]["content"]["metadata"]["nbllm"]["requests"]
        return found


class Kernel:
    """A running kernel, with its log in `folder`. Used as a context manager; shut down at its end."""

    def __init__(
        self,
        folder: Path,
        server: DemoServer | None = None,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.log = folder / "log.db"
        self._server = server
        self._env = environment(folder, server) | (env or {})
        self._manager = KernelManager()
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}", *options]
        self._manager._kernel_spec = KernelSpec(argv=argv, display_name="test", language="python")
        self._outcomes: dict[str, Outcome] = {}

    def __enter__(self) -> Kernel:
        self._stderr = (self.folder / f"stderr-{id(self)}").open("wb")
        self._manager.start_kernel(env=self._env, cwd=str(self.folder), stderr=self._stderr)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=not self.alive())
        self._manager.cleanup_resources()
        self._stderr.close()

    # -- cells -----------------------------------------------------------------------------------

    def send(
        self,
        code: str,
        *,
        cell_id: str | None = None,
        subshell: str | None = None,
        typed: str | None = None,
        **content: Any,
    ) -> str:
        """Queue a cell, as JupyterLab does with the cell's id; returns the id of the message.

        `typed` is what a person types where the cell asks for input.
        """
        session = self._client.session
        metadata = {} if cell_id is None else {"cellId": cell_id}
        body = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": typed is not None,
            "stop_on_error": True,
        }
        message = session.msg("execute_request", body | content, metadata=metadata)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)
        msg_id: str = message["header"]["msg_id"]
        self._outcomes[msg_id] = Outcome(msg_id, typed=typed)
        return msg_id

    def send_message(self, kind: str, content: dict[str, Any]) -> None:
        """Send any other message on the shell channel."""
        self._client.shell_channel.send(self._client.session.msg(kind, content))

    def wait(self, msg_id: str, timeout: float = TIMEOUT) -> Outcome:
        """What came of a cell that was sent."""
        outcome = self._outcomes[msg_id]
        deadline = time.monotonic() + timeout
        while not (outcome.replied and outcome.idle):
            self._take_messages()
            if time.monotonic() > deadline:
                raise TimeoutError(f"The cell has not ended in {timeout:g} s: {outcome}\n{self.stderr()}")
        return outcome

    def run(self, code: str, *, timeout: float = TIMEOUT, **options: Any) -> Outcome:
        """Run a cell to its end."""
        return self.wait(self.send(code, **options), timeout)

    def wait_for_text(self, msg_id: str, text: str, timeout: float = TIMEOUT) -> None:
        """Wait until a running cell has printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self._outcomes[msg_id].stdout:
            self._take_messages()
            assert time.monotonic() < deadline, f"{text!r} was not printed: {self._outcomes[msg_id]}"

    def wait_for_display(self, msg_id: str, *texts: str, timeout: float = TIMEOUT) -> None:
        """Wait until a running cell shows all of `texts` at once."""
        outcome = self._outcomes[msg_id]
        deadline = time.monotonic() + timeout
        while not any(all(text in shown["text/plain"] for text in texts) for shown in outcome.displays):
            assert not outcome.replied, outcome
            assert time.monotonic() < deadline, f"{texts!r} was not shown: {outcome}"
            self._take_messages()

    def value(self, expression: str) -> Any:
        """Value of an expression in the kernel, asked silently: no cell, no hooks. It must fit into JSON."""
        asked = {"value": f"__import__('json').dumps({expression})"}
        outcome = self.run("", silent=True, store_history=False, user_expressions=asked)
        answer = outcome.expressions["value"]
        assert answer["status"] == "ok", answer
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def listen(self, seconds: float) -> None:
        """Take in what comes for so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._take_messages()

    def succeeded(self, msg_id: str) -> bool:
        """Whether a cell is known to have ended, and without an error."""
        return self._outcomes[msg_id].status == "ok"

    def _take_messages(self) -> None:
        """Take in what is there, or wait a moment for something."""
        client = self._client
        channels = client.iopub_channel, client.shell_channel, client.stdin_channel
        ready, _, _ = zmq.select([channel.socket for channel in channels], [], [], timeout=0.1)
        for channel in channels:
            if channel.socket in ready:
                self._take(channel.get_msg(timeout=0))

    def _take(self, message: dict[str, Any]) -> None:
        outcome = self._outcomes.get(message["parent_header"].get("msg_id", ""))
        if outcome is None:
            return
        kind, content = message["msg_type"], message["content"]
        if kind in ("display_data", "update_display_data", "execute_result", "stream", "error"):
            outcome.outputs.append(message)
        if kind == "stream":
            setattr(outcome, content["name"], getattr(outcome, content["name"]) + content["text"])
        elif kind in ("display_data", "update_display_data", "execute_result"):
            outcome.displays.append(content["data"])
        elif kind == "status" and content["execution_state"] == "idle":
            outcome.idle = True
        elif kind == "input_request":
            outcome.asked.append(content)
            self._client.input(outcome.typed)
        elif kind == "execute_reply":
            outcome.replied = time.monotonic()
            outcome.status = content["status"]
            outcome.execution_count = content.get("execution_count")
            outcome.expressions = content.get("user_expressions") or {}
            outcome.payload = content.get("payload") or []
            if content["status"] == "error":
                outcome.error, outcome.message = content["ename"], content["evalue"]
                outcome.traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))

    # -- the process -----------------------------------------------------------------------------

    def interrupt(self, msg_id: str) -> tuple[Outcome, float]:
        """Press the stop button while a cell runs; what came of it, and the seconds that it took."""
        pressed = time.monotonic()
        self._manager.interrupt_kernel()
        outcome = self.wait(msg_id, timeout=10)
        return outcome, outcome.replied - pressed

    def kill(self) -> None:
        """`kill -9`."""
        self._manager.signal_kernel(signal.SIGKILL)

    def restart(self) -> None:
        """Restart as JupyterLab does, the log staying the same."""
        self._manager.restart_kernel()
        self._client.wait_for_ready(timeout=60)

    def shutdown(self) -> None:
        """Shut down as JupyterLab does, and wait for the end of the process."""
        self._manager.shutdown_kernel()

    def alive(self) -> bool:
        """Whether the process runs."""
        return bool(self._manager.is_alive())

    def subshell(self) -> str | None:
        """A new subshell's id, or None where this ipykernel has none."""
        reply = self._ask_control("kernel_info_request")
        if "kernel subshells" not in reply["content"].get("supported_features", []):
            return None
        created: str = self._ask_control("create_subshell_request")["content"]["subshell_id"]
        return created

    def _ask_control(self, kind: str) -> dict[str, Any]:
        message = self._client.session.msg(kind)
        self._client.control_channel.send(message)
        while True:
            reply: dict[str, Any] = self._client.control_channel.get_msg(timeout=TIMEOUT)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply

    def stderr(self) -> str:
        """What the process itself wrote to stderr."""
        self._stderr.flush()
        return Path(self._stderr.name).read_text(errors="replace")

    def rows(self, table: str = "requests", **wanted: Any) -> list[dict[str, Any]]:
        """Rows of the kernel's log that are on disk."""
        return rows(self.log, table, **wanted)


def kernels(tmp_path_factory: pytest.TempPathFactory, server: DemoServer, python: str) -> Iterator[Kernel]:
    """A kernel with nbllm loaded, for a fixture that several tests share."""
    with Kernel(tmp_path_factory.mktemp("kernel"), server, python) as kernel:
        kernel.run("%load_ext nbllm\nimport asyncio, nbllm").ok()
        yield kernel
