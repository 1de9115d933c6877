"""The examples of uses outside notebooks, each in a process of its own, against the demo server."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nbllm.servers.demo import DemoServer
from tests.kernels import environment, rows

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT = 60.0


def _run(name: str, *args: str, folder: Path, demo: DemoServer) -> subprocess.CompletedProcess[str]:
    """Run an example to its end; what it writes to stderr is a failure."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *args],
        cwd=folder,
        env=environment(folder, demo),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.stderr == ""
    return done


def test_a_script_asks_twice_over_one_connection(tmp_path: Path, demo: DemoServer) -> None:
    done = _run("script.py", "demo/fast", folder=tmp_path, demo=demo)
    assert done.returncode == 0
    assert "You wrote “What is a connection pool?”" in done.stdout
    assert "You wrote “Say this in one sentence:" in done.stdout
    stats = demo.stats()
    assert (stats["requests_ok"], stats["connections_opened"]) == (2, 1)
    assert [row["connection_reused"] for row in rows(tmp_path / "log.db", session_id="script")] == [0, 1]


def test_many_questions_share_a_pool_and_one_may_fail(tmp_path: Path, demo: DemoServer) -> None:
    done = _run("concurrent_questions.py", "demo/fast", folder=tmp_path, demo=demo)
    assert done.returncode == 0
    assert "InternalServerError: 500" in done.stdout
    stats, found = demo.stats(), rows(tmp_path / "log.db", session_id="capitals")
    assert (stats["requests_ok"], stats["requests_failed"]) == (10, 3)
    assert len(found) == 13
    assert stats["connections_open_peak"] <= 5
    assert stats["requests_open_peak"] <= 5


def test_a_batch_goes_on_where_it_stopped(tmp_path: Path, demo: DemoServer) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("What is a pool?\n\nWhat is TLS?\nWhat is a pool?\n")
    arguments = ("questions.txt", "answers.jsonl")
    first = _run("batch.py", *arguments, folder=tmp_path, demo=demo)
    assert (first.returncode, first.stdout.splitlines()[0]) == (0, "2 answered, 0 failed, 0 had their answer")
    questions.write_text(questions.read_text() + "What is DNS?\n")
    second = _run("batch.py", *arguments, folder=tmp_path, demo=demo)
    assert second.stdout.startswith("1 answered, 0 failed, 2 had their answer")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["question"] for row in answers} == {"What is a pool?", "What is TLS?", "What is DNS?"}
    assert all(f"You wrote “{row['question']}”" in row["answer"] for row in answers)
    assert demo.stats()["requests_total"] == 3
    assert len(rows(tmp_path / "log.db", session_id="questions")) == 3


def test_a_batch_says_which_line_failed(tmp_path: Path, demo: DemoServer) -> None:
    (tmp_path / "questions.txt").write_text("What is TLS?\n")
    done = _run("batch.py", "questions.txt", "out", "--model", "demo/error", folder=tmp_path, demo=demo)
    assert done.returncode == 1
    assert "What is TLS?: InternalServerError: 500" in done.stdout
    assert "0 answered, 1 failed, 0 had their answer" in done.stdout
    assert (tmp_path / "out").read_text() == ""


# -- the web app -------------------------------------------------------------------------------------

_MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
needs_fastapi = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")


@contextmanager
def _app(folder: Path, demo: DemoServer, model: str) -> Iterator[str]:
    """The app's address, in a uvicorn that inherits a listening socket; it must end without a complaint."""
    output = folder / "uvicorn.txt"
    with socket.create_server(("127.0.0.1", 0)) as listening, output.open("w") as file:
        number = listening.fileno()
        command = [sys.executable, "-m", "uvicorn", "--fd", str(number), "--log-level", "warning"]
        process = subprocess.Popen(
            [*command, "--app-dir", str(EXAMPLES), "fastapi_app:app"],
            cwd=folder,
            env=environment(folder, demo) | {"NBLLM_MODEL": model},
            pass_fds=[number],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(TIMEOUT)
    # asyncio's words for what is written to a visitor who has gone, before the server hears of it.
    assert set(output.read_text().splitlines()) <= {"socket.send() raised exception."}


def _get(url: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with _DIRECT.open(request, timeout=TIMEOUT) as answer:  # the socket listens before uvicorn is ready
        return bytes(answer.read())


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@needs_fastapi
def test_visitors_of_a_web_app_share_one_connection(tmp_path: Path, demo: DemoServer) -> None:
    with _app(tmp_path, demo, "demo/fast") as url:
        whole = json.loads(_get(f"{url}/ask", {"text": "Hello", "session": "review"}))
        streamed = _get(f"{url}/stream", {"text": "Hello", "session": "review"}).decode()
        (session,) = json.loads(_get(f"{url}/sessions"))
    assert "You wrote “Hello”" in whole["text"]
    assert "You wrote “Hello”" in streamed
    assert (session["session_id"], session["requests"], session["connections_opened"]) == ("review", 2, 1)
    assert demo.stats()["connections_opened"] == 1
    first, second = rows(tmp_path / "log.db")
    assert first["request_id"] == whole["request_id"]
    assert (first["status"], second["status"], second["stream"]) == ("ok", "ok", 1)


@needs_fastapi
def test_an_error_of_the_model_is_one_of_the_web_app(tmp_path: Path, demo: DemoServer) -> None:
    with (
        _app(tmp_path, demo, "demo/error") as url,
        pytest.raises(urllib.error.HTTPError, match="502") as caught,
    ):
        _get(f"{url}/ask", {"text": "Hello"})
    assert "always fails" in json.loads(caught.value.read())["detail"]


@needs_fastapi
def test_a_visitor_who_goes_away_ends_the_request_to_the_model(tmp_path: Path, demo: DemoServer) -> None:
    with _app(tmp_path, demo, "demo/stall") as url:
        request = urllib.request.Request(
            f"{url}/stream", b'{"text": "Hello"}', {"Content-Type": "application/json"}
        )
        with _DIRECT.open(request, timeout=TIMEOUT) as answer:
            assert answer.read(1)
            assert demo.stats()["requests_open"] == 1
        deadline = time.monotonic() + TIMEOUT
        while demo.stats()["requests_open"] and time.monotonic() < deadline:
            time.sleep(0.01)
    assert demo.stats()["requests_disconnected"] == 1
    (row,) = rows(tmp_path / "log.db")
    assert row["status"] in ("cancelled", "incomplete")


def test_the_examples_are_those_that_run_here() -> None:
    here = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert names
    assert all(f'"{name}"' in here or f"{Path(name).stem}:app" in here for name in names)
