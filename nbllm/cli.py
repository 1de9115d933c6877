"""The `nbllm` command: the demo in JupyterLab, its check without a browser, the demo server, the gateway.

Owns arguments, child processes and what is printed. Heavy packages are imported by the command that needs
them, so that `--help` is instant. Nothing imports this module but the console script.

Exit codes: 0 done, 1 a cell of the checked notebook failed, 2 the command cannot run as it was called.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.resources
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

    from .servers.demo import DemoServer

NOTEBOOK = "01-quickstart.ipynb"
CELL_TIMEOUT_S = 300
SHOWN_LINES = 5

_TABLE_SOURCE = "import nbllm\nprint(nbllm.styled(nbllm.sessions()))"
_COUNT_SOURCE = """\
rows = nbllm.requests()
rows = rows[(rows["server_port"] == {port}) & rows["url_path"].str.endswith("/chat/completions")]
print(len(rows), rows["connection_id"].nunique())"""


class _Refusal(Exception):
    """The command cannot run; the text is for the user."""


class _CellFailed(Exception):
    """A cell failed; the text is the report for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    commands = {"demo": _demo, "demo-server": _demo_server, "gateway": _gateway}
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return commands[args.command](args)
    except _Refusal as refusal:
        print(f"nbllm: {refusal}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="nbllm", description="A Jupyter toolkit for calls of LLMs.")
    parser.add_argument("--version", action="version", version=f"nbllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo", help="open the quickstart notebook in JupyterLab, with a demo model server; no key is needed"
    )
    demo.add_argument("--check", action="store_true", help="run the notebook without a browser, and report")
    demo.add_argument("--no-browser", action="store_true", help="start JupyterLab, but open no browser")
    demo.add_argument("--port", type=int, help="port of JupyterLab (default: its own choice)")
    demo.add_argument(
        "--notebook", type=Path, metavar="PATH", help="another notebook; one of the course by its name alone"
    )
    server = commands.add_parser("demo-server", help="run the demo model server until Ctrl-C")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    gateway = commands.add_parser(
        "gateway",
        help="run a local server with OpenAI's API and Anthropic's, every request in the log, until Ctrl-C",
    )
    gateway.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    gateway.add_argument("--port", type=int, default=4000, help="port; 0: a free one (default: %(default)s)")
    gateway.add_argument("--key", help="what clients must send (default: none; on other hosts a new one)")
    return parser


def _demo(args: argparse.Namespace) -> int:
    for package in ("nbclient", "ipykernel") if args.check else ("jupyterlab",):
        if importlib.util.find_spec(package) is None:
            raise _Refusal(f"'nbllm demo' needs {package}, which is missing: pip install 'nbllm[lab]'")
    from .servers.demo import DemoServer

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbllm-demo-")))
        # The check leaves nothing behind; who opens a notebook wants to keep what they write.
        notebook = _find_notebook(args.notebook, folder if args.check else Path("nbllm-demo"))
        server = stack.enter_context(DemoServer())
        if args.check:
            return _check(notebook, server, folder)
        return _run_lab(notebook, server, args)


def _find_notebook(chosen: Path | None, copies: Path) -> Path:
    """The notebook to open: a file, or one of the course; the packaged ones are copied to `copies` first."""
    if chosen is not None and os.path.isfile(chosen):  # False for odd names too
        return chosen
    name = str(chosen or NOTEBOOK)
    local = Path("notebooks", name)
    if os.path.isfile(local):
        return local
    packaged = importlib.resources.files(__package__) / "notebooks"
    course = [file for file in packaged.iterdir() if file.is_file()] if packaged.is_dir() else []
    if name not in {file.name for file in course}:
        if chosen is not None:
            raise _Refusal(f"there is no notebook {chosen}")
        raise _Refusal(f"{local} is not here, and this installation has no copy: use --notebook PATH")
    try:
        copies.mkdir(exist_ok=True)
        for original in course:
            copy = copies / original.name
            if not copy.exists():  # what was written into an earlier copy stays
                copy.write_bytes(original.read_bytes())
    except OSError as error:
        raise _Refusal(f"cannot copy the notebooks to {copies}: {error.strerror}") from error
    return copies / name


def _environment(server: DemoServer, **defaults: str) -> dict[str, str]:
    """The environment of a kernel that runs this nbllm and calls `server` for demo models."""
    environment = {**defaults, **os.environ, "NBLLM_DEMO_URL": server.url}
    home = str(Path(__file__).resolve().parent.parent)
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # Run from a source tree; a kernel starts elsewhere and would not find it.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environment.get("PYTHONPATH")]))
    return environment


def _run_lab(notebook: Path, server: DemoServer, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "jupyterlab", str(notebook)]
    if args.no_browser:
        command += ["--no-browser", f"--LabApp.default_url=/lab/tree/{quote(notebook.name)}"]
    if args.port is not None:
        command.append(f"--port={args.port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container; Jupyter listens on the loopback, with a token
    what = "JupyterLab's address follows, for" if args.no_browser else "opening"
    print(f"Demo model server at {server.url}; {what} {notebook}", flush=True)
    with (
        _sigterm_exits(),
        subprocess.Popen(command, env=_environment(server, NBLLM_MODEL="demo/small")) as process,
    ):
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue  # JupyterLab has got it too, asks whether to stop, and ends if so
        finally:
            process.terminate()


def _check(path: Path, server: DemoServer, folder: Path) -> int:
    nbformat = importlib.import_module("nbformat")
    try:
        book = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise _Refusal(f"{path} is not a notebook: {_first_line(str(error))}") from error
    environment = _environment(server, NBLLM_LOG_PATH=str(folder / "log.db"))
    environment["COLUMNS"] = str(shutil.get_terminal_size().columns)  # for the table
    environment["NBLLM_MODEL"] = "demo/small"  # a check must not spend money, whatever keys there are
    options = {"env": environment, "cwd": str(path.resolve().parent)}
    print(f"Running {path} in a kernel, with the demo model server at {server.url}", flush=True)
    started = time.perf_counter()
    try:
        cells, table, ours = asyncio.run(_run_notebook(book, server.port, options))
    except _CellFailed as failure:
        print(failure)
        return 1
    except RuntimeError as error:  # jupyter_client's, of a kernel that ends before it answers
        raise _Refusal(f"the kernel did not start: {_first_line(str(error))}") from error
    seconds = time.perf_counter() - started
    counted = server.stats()
    print(table)
    print(
        f"ok: {cells} cells in {seconds:.1f} s; "
        f"requests: {ours[0]} by nbllm, {counted['requests_total']} by the server; "
        f"connections: {ours[1]} by nbllm, {counted['connections_with_model_requests']} by the server"
    )
    return 0


async def _run_notebook(book: Any, port: int, options: dict[str, Any]) -> tuple[int, str, tuple[int, int]]:
    """Run a notebook, which is changed, in a kernel of this interpreter, started with `options`.

    Returns:
        The number of cells run, the table of sessions, and how many requests and connections to the
        server at `port` nbllm recorded.

    Raises:
        _CellFailed: At the first cell that fails.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    indexes = [i for i, cell in enumerate(book.cells) if cell.cell_type == "code" and cell.source.strip()]
    names = {index: f"Cell {number} of {len(indexes)}" for number, index in enumerate(indexes, 1)}
    for name, source in (
        ("The table of sessions", _TABLE_SOURCE),
        ("The count of requests", _COUNT_SOURCE.format(port=port)),
    ):
        names[len(book.cells)] = name
        book.cells.append(importlib.import_module("nbformat").v4.new_code_cell(source))

    client = NotebookClient(book, timeout=CELL_TIMEOUT_S, km=_kernel_manager())
    async with client.async_setup_kernel(cleanup_kc=True, **options):
        for index, name in names.items():
            try:
                await client.async_execute_cell(book.cells[index], index)
            except (CellControlSignal, DeadKernelError) as error:
                raise _CellFailed(_failure(name, book.cells[index].source, error)) from error
    table, counts = (
        "".join(out.text for out in cell.outputs if out.get("name") == "stdout").rstrip()
        for cell in book.cells[-2:]
    )
    requests, connections = map(int, counts.split())
    return len(indexes), table, (requests, connections)


def _kernel_manager() -> AsyncKernelManager:
    """A manager whose kernel is this interpreter, whatever kernels are installed as `python3`."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # Warnings of the kernel itself, such as ipykernel's on unencrypted TCP, do not concern a check.
            return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=ERROR"]))

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())


def _failure(name: str, source: str, error: BaseException) -> str:
    """The report of a failed cell: which, the start of its source, one line of error."""
    lines = source.strip().splitlines()
    shown = [f"    {line}" for line in lines[:SHOWN_LINES]] + ["    …"] * (len(lines) > SHOWN_LINES)
    if hasattr(error, "ename"):
        what = f"{error.ename}: {_first_line(getattr(error, 'evalue', ''))}"
    else:
        what = f"{type(error).__name__}: {_first_line(str(error))}"
    return "\n".join([f"{name} failed: {what}", *shown])


def _first_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    return plain.splitlines()[0] if plain else ""


def _demo_server(args: argparse.Namespace) -> int:
    from .servers.demo import DemoServer

    try:
        server = DemoServer(args.host, args.port).start()
    except (OSError, OverflowError) as error:
        raise _Refusal(f"cannot listen on {args.host}:{args.port}: {error}") from error
    question = '{"model": "small", "stream": true, "messages": [{"role": "user", "content": "Hello, demo"}]}'
    print(f"Demo model server at {server.url} (Ctrl-C ends it). Try:\n")
    print(f"  curl -N {server.url}/chat/completions -H 'Content-Type: application/json' -d '{question}'\n")
    _wait_for_ctrl_c()
    server.stop()
    _print_stats(server.stats())
    return 0


def _gateway(args: argparse.Namespace) -> int:
    from .exceptions import UsageProblem
    from .servers.gateway import gateway

    try:
        running = gateway(args.port, host=args.host, key=args.key)
    except UsageProblem as problem:
        raise _Refusal(str(problem)) from problem
    key = "" if running.key is None else " -H 'Authorization: Bearer KEY'"
    question = '{"model": "demo/small", "messages": [{"role": "user", "content": "Hello"}]}'
    print(f"Gateway at {running.url} (Ctrl-C ends it); sessions at {running.url}/sessions. Try:\n")
    print(f"  curl {running.url}/v1/chat/completions{key} -d '{question}'\n")
    _wait_for_ctrl_c()
    running.close()
    return 0


def _wait_for_ctrl_c() -> None:
    """Returns on SIGINT or SIGTERM."""
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt, SystemExit), _sigterm_exits():
        while True:
            time.sleep(3600)


def _print_stats(stats: dict[str, Any]) -> None:
    print(
        "\nRequests: {requests_total} ({requests_ok} ok, {requests_failed} failed, "
        "{requests_disconnected} given up by the client)\n"
        "Connections: {connections_opened} opened, at most {connections_open_peak} at once, "
        "{connections_with_model_requests} with requests to models\n"
        "Tokens: {prompt_tokens} in, {completion_tokens} out\n"
        "Bytes: {request_body_bytes} in, {response_body_bytes} out".format(**stats)
    )


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Inside, SIGTERM ends the process by SystemExit, so that what was started is stopped."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
