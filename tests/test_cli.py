"""The `nbllm` command, run as a user runs it: in processes, with real kernels and a real JupyterLab."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

import nbllm
from nbllm import cli
from nbllm.servers.demo import DemoServer

PACKAGE_HOME = str(Path(cli.__file__).parent.parent)

ASK = """\
import nbllm
answer = await nbllm.acompletion("demo/fast", "Describe otters", session_id="review")
assert "otters" in answer.choices[0].message.content"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that reads nothing of this user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NBLLM_", "OPENAI_"))}
    own = {"HOME": tmp_path, "JUPYTER_CONFIG_DIR": tmp_path / "config", "JUPYTER_DATA_DIR": tmp_path / "data"}
    own |= {"IPYTHONDIR": tmp_path / "ipython", "XDG_STATE_HOME": tmp_path / "state"}
    path = os.pathsep.join(filter(None, [PACKAGE_HOME, os.environ.get("PYTHONPATH")]))
    return {**kept, **{key: str(value) for key, value in own.items()}, "PYTHONPATH": path}


def command(*args: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "nbllm.cli", *args]


def run(
    args: list[str], environment: dict[str, str], folder: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args,
        cwd=folder,
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_notebook(path: Path, *sources: str, **metadata: Any) -> Path:
    cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), *cells]), path)
    return path


@contextmanager
def running(args: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        args,
        cwd=folder,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # A shell has its background jobs ignore SIGINT, and they would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        too_late = threading.Timer(60, process.terminate)
        too_late.start()
        try:
            yield process
        finally:
            too_late.cancel()
            process.terminate()  # not kill: it has children to take along


def read_until(stream: Any, pattern: str) -> re.Match[str]:
    """Read lines of a process until one matches."""
    lines = ""
    for line in stream:
        if found := re.search(pattern, line):
            return found
        lines += line
    raise AssertionError(f"no line with {pattern!r} in:\n{lines}")


def fetch(url: str) -> bytes:
    """Get what a server that has told its address, but may not listen yet, has at `url`."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url) as response:
                body: bytes = response.read()
                return body
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- arguments


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    assert "demo-server" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"nbllm {nbllm.__version__}\n"


def test_help_loads_nothing_heavy(environment, tmp_path):
    script = (
        "import sys, nbllm.cli\n"
        "try: nbllm.cli.main(['demo', '--help'])\n"
        "finally: print(sorted({'nbclient', 'nbformat', 'jupyter_client', 'pandas'} & {*sys.modules}))"
    )
    ended = run([sys.executable, "-c", script], environment, tmp_path)
    assert ended.returncode == 0
    assert "--no-browser" in ended.stdout
    assert ended.stdout.endswith("\n[]\n")


@pytest.mark.parametrize(("missing", "args"), [("jupyterlab", ["demo"]), ("nbclient", ["demo", "--check"])])
def test_a_missing_extra_says_what_to_install(environment, tmp_path, missing, args):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\nimport nbllm.cli; sys.exit(nbllm.cli.main({args}))"
    )
    ended = run([sys.executable, "-c", script], environment, tmp_path)
    assert ended.returncode == 2
    assert missing in ended.stderr
    assert "pip install 'nbllm[lab]'" in ended.stderr


def test_a_notebook_that_is_missing_or_none_is_refused(tmp_path, capsys):
    assert cli.main(["demo", "--check", "--notebook", str(tmp_path / "no.ipynb")]) == 2
    assert "there is no notebook" in capsys.readouterr().err
    wrong = tmp_path / "wrong.ipynb"
    wrong.write_text("hello")
    assert cli.main(["demo", "--check", "--notebook", str(wrong)]) == 2
    assert "is not a notebook" in capsys.readouterr().err


# --- which notebook


SECOND = "02-another.ipynb"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebooks of an installed package; the current folder is an empty one."""
    package = tmp_path / tmp_path.name  # no two tests import one of the same name
    for name in (cli.NOTEBOOK, SECOND):
        write_notebook(package / "notebooks" / name, repr(name))
    (package / "notebooks" / ".ipynb_checkpoints").mkdir()  # as JupyterLab leaves in a source tree
    (package / "__init__.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "__package__", package.name)
    return package / "notebooks"


@pytest.mark.parametrize(("chosen", "found"), [(None, cli.NOTEBOOK), (SECOND, SECOND)])
def test_the_notebooks_of_the_current_folder_come_first(packaged, chosen, found):
    for name in (cli.NOTEBOOK, SECOND):
        write_notebook(Path("notebooks", name), "1")
    assert cli._find_notebook(chosen and Path(chosen), Path("copies")) == Path("notebooks", found)
    assert not Path("copies").exists()


def test_a_file_that_is_named_comes_before_any_of_the_course(packaged):
    write_notebook(Path(SECOND), "1")
    assert cli._find_notebook(Path(SECOND), Path("copies")) == Path(SECOND)
    assert not Path("copies").exists()


@pytest.mark.parametrize(("chosen", "found"), [(None, cli.NOTEBOOK), (SECOND, SECOND)])
def test_else_all_that_are_packaged_are_copied_once(packaged, chosen, found):
    def find() -> Path:
        return cli._find_notebook(chosen and Path(chosen), Path("nbllm-demo"))

    assert find() == Path("nbllm-demo", found)
    for name in (cli.NOTEBOOK, SECOND):
        assert Path("nbllm-demo", name).read_bytes() == (packaged / name).read_bytes()
    Path("nbllm-demo", SECOND).write_text("my own work")
    Path("nbllm-demo", cli.NOTEBOOK).unlink()
    find()
    assert Path("nbllm-demo", SECOND).read_text() == "my own work"
    assert Path("nbllm-demo", cli.NOTEBOOK).exists()


@pytest.mark.parametrize("name", ["no.ipynb", "../cli.py", "x" * 5000])
def test_a_name_that_is_not_of_the_course_is_refused_and_nothing_copied(packaged, name):
    with pytest.raises(cli._Refusal, match="there is no notebook "):
        cli._find_notebook(Path(name), Path("nbllm-demo"))
    assert not Path("nbllm-demo").exists()


def test_without_any_copy_it_says_so(packaged):
    (packaged / cli.NOTEBOOK).unlink()
    with pytest.raises(cli._Refusal, match="--notebook PATH"):
        cli._find_notebook(None, Path("copies"))


# --- demo --check


def test_check_runs_the_notebook_and_prints_sessions_and_both_counts(environment, tmp_path):
    notebook = write_notebook(tmp_path / "notebooks" / cli.NOTEBOOK, ASK, "", ASK)
    before = notebook.read_bytes()
    ended = run(command("demo", "--check"), environment, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert "review" in ended.stdout
    summary = ended.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"ok: 2 cells in \d+\.\d s; requests: 2 by nbllm, 2 by the server; "
        r"connections: 1 by nbllm, 1 by the server",
        summary,
    )
    assert notebook.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*") if path.suffix) == []


def test_check_reports_the_cell_that_fails_and_stops_there(environment, tmp_path):
    source = "x = 1\n" * 9 + "raise ValueError('too bad\\nmore of it')"
    after = "open('ran', 'w').close()"
    notebook = write_notebook(tmp_path / "book.ipynb", "x = 0", source, after)
    ended = run(command("demo", "--check", "--notebook", str(notebook)), environment, tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "")
    report = "\n".join(["Cell 2 of 3 failed: ValueError: too bad", *["    x = 1"] * cli.SHOWN_LINES, "    …"])
    assert ended.stdout.partition("\n")[2].rstrip() == report
    assert not (tmp_path / "ran").exists()


def test_check_reports_a_kernel_that_dies(environment, tmp_path):
    notebook = write_notebook(tmp_path / "book.ipynb", "import os; os._exit(1)")
    ended = run(command("demo", "--check", "--notebook", str(notebook)), environment, tmp_path)
    assert ended.returncode == 1
    assert "Cell 1 of 1 failed: DeadKernelError" in ended.stdout


def test_check_lets_cells_fail_that_are_meant_to(environment, tmp_path):
    notebook = write_notebook(tmp_path / "book.ipynb", "1 / 0", tags=["raises-exception"])
    ended = run(command("demo", "--check", "--notebook", str(notebook)), environment, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout


def test_check_uses_this_interpreter_and_the_demo_server_whatever_is_set(environment, tmp_path):
    broken = tmp_path / "jupyter" / "kernels" / "python3"
    broken.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "Broken", "language": "python"}
    (broken / "kernel.json").write_text(json.dumps(spec))
    check = """\
        import json, os, pathlib, sys, urllib.request
        facts = {key: value for key, value in os.environ.items() if key.startswith("NBLLM_")}
        url = facts["NBLLM_DEMO_URL"].replace("/v1", "/health")
        facts["health"] = json.load(urllib.request.urlopen(url))["status"]
        facts["python"] = sys.executable
        facts["folder"] = os.getcwd()
        pathlib.Path("facts.json").write_text(json.dumps(facts))"""
    notebook = write_notebook(tmp_path / "some where" / "book.ipynb", re.sub("(?m)^ +", "", check))
    args = command("demo", "--check", "--notebook", str(notebook))
    paid = {"NBLLM_MODEL": "gpt-4o", "NBLLM_DEMO_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-none"}

    ended = run(args, environment, tmp_path, JUPYTER_PATH=str(tmp_path / "jupyter"), **paid)
    # A kernel that is told to end may say so through libzmq ("Assertion failed: pfd.revents & POLLIN").
    said = [line for line in ended.stderr.splitlines() if "src/signaler.cpp" not in line]
    assert (ended.returncode, said) == (0, []), ended.stdout
    facts = json.loads((notebook.parent / "facts.json").read_text())
    assert facts["health"] == "ok"
    assert facts["python"] == sys.executable
    assert facts["folder"] == str(notebook.parent)
    assert facts["NBLLM_MODEL"] == "demo/small"
    assert not Path(facts["NBLLM_LOG_PATH"]).exists()

    ended = run(args, environment, tmp_path, NBLLM_LOG_PATH=str(tmp_path / "mine.db"))
    assert ended.returncode == 0
    assert json.loads((notebook.parent / "facts.json").read_text())["NBLLM_LOG_PATH"] == str(
        tmp_path / "mine.db"
    )


# --- demo


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_demo_opens_jupyterlab_and_takes_it_along_when_it_ends(environment, tmp_path):
    write_notebook(tmp_path / "notebooks" / cli.NOTEBOOK, "1")
    token = {"JUPYTER_TOKEN": "secret", "PYTHONUNBUFFERED": "1"}
    args = command("demo", "--no-browser", "--port", "0")
    with running(args, {**environment, **token}, tmp_path) as process:
        demo = read_until(process.stdout, r"Demo model server at (http://\S+)/v1")[1]
        lab = read_until(process.stderr, r"(http://(?:127\.0\.0\.1|localhost):\d+)/lab")[1]
        assert json.loads(fetch(f"{lab}/api/contents/{cli.NOTEBOOK}?token=secret"))["name"] == cli.NOTEBOOK
        with urllib.request.urlopen(f"{demo}/health") as response:
            assert response.status == 200
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{lab}/api")


# --- demo-server


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_demo_server_answers_its_own_example_and_prints_stats_at_the_end(environment, tmp_path, ending):
    with running(command("demo-server"), environment, tmp_path) as process:
        url = read_until(process.stdout, r"Demo model server at (\S+)")[1]
        example = read_until(process.stdout, r"^  curl -N (\S+) .* -d '(.*)'")
        assert example[1] == f"{url}/chat/completions"
        with urllib.request.urlopen(example[1], data=example[2].encode()) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")
        process.send_signal(ending)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "Requests: 1 (1 ok, 0 failed, 0 given up by the client)" in out
    assert "Connections: 1 opened" in out


def test_demo_server_says_when_it_cannot_listen(capsys):
    with DemoServer() as server:
        assert cli.main(["demo-server", "--port", str(server.port)]) == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in capsys.readouterr().err
