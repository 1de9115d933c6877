"""The code blocks of a page of documentation, and how they run; `test_doc_code` has the rules."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.font_manager
import nbformat
from markdown_it import MarkdownIt

from nbllm import keys
from nbllm.providers import PROVIDERS
from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel, environment
from tests.providers_server import ProvidersServer, key_of
from tests.test_opentelemetry import Collector

CELLS = ("python", "ipython", "")
SHOWN = ("text", "console", "json", "toml", "yaml", "html", "css", "sql", "dockerfile")
LOADED = "%load_ext nbllm"
NOTEBOOK = "analysis.ipynb"
TIMEOUT = 60.0
_PORT = re.compile(r"(:|gateway\(|--port[ =])4000\b")  # the gateway's in all examples
_FILE = re.compile(r"# ([\w-]*\.(?:py|toml|env|md))\n")
_NOT_RUN = re.compile(r"<!-- not run: *(.*?) *-->\n?")
_RAISES = re.compile(r"<!-- raises: *(\w+) *-->\n?")


class BlockFailed(AssertionError):
    """A block did not do what it should; says which, and what came instead."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: Where its fence stands, from 1.
        language: The first word after the fence.
        not_run: Why it isn't run, as the page's author sees it; None: it is. "" is no reason.
        raises: Name of the error that it is there to show.
    """

    page: str
    line: int
    language: str
    source: str
    not_run: str | None = None
    raises: str | None = None

    @property
    def file(self) -> str | None:
        """The name of the file that it is the text of."""
        found = _FILE.match(self.source)
        return found[1] if found else None

    def failed(self, why: str) -> BlockFailed:
        return BlockFailed(f"{self.page}, line {self.line}:\n\n{self.source}\n{why}")


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in their order, without Sphinx's directives."""
    before = ""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and not token.info.startswith("{"):
            assert token.map is not None
            language = (token.info.split() or [""])[0]
            not_run, raises = _NOT_RUN.fullmatch(before), _RAISES.fullmatch(before)
            yield Block(
                page, token.map[0] + 1, language, token.content, not_run and not_run[1], raises and raises[1]
            )
        before = token.content if token.type == "html_block" else ""


class Reader:
    """Somebody who works through a page: a kernel, a shell, a folder, and providers who know their keys.

    A context manager; what the page has left running ends with it.
    """

    def __init__(
        self, folder: Path, demo: DemoServer, providers: ProvidersServer, collector: Collector
    ) -> None:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "HOME": str(folder / "home"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MPLCONFIGDIR": matplotlib.get_cachedir(),  # the import above found the fonts, not each page
            "JPY_SESSION_NAME": NOTEBOOK,  # the notebook, as Jupyter's server tells it
            "PIP_NO_INDEX": "1",
            "PIP_DRY_RUN": "1",
            "AZURE_API_VERSION": "2024-10-21",
            **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),  # nobody listens there
            "no_proxy": "127.0.0.1,localhost",
        }
        for name, provider in PROVIDERS.items():
            env |= dict.fromkeys(provider.base_url_variables[:1], providers.base_url(name))
            env |= dict.fromkeys(keys.key_variables(name)[:1], key_of(name))
        (folder / "home").mkdir()
        nbformat.write(nbformat.v4.new_notebook(), folder / NOTEBOOK)
        self._folder = folder
        self._env = environment(folder, demo) | env
        self._kernel = Kernel(folder, demo, env=env)
        self._shells: list[int] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def __enter__(self) -> Reader:
        self._kernel.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._kernel.__exit__(None, None, None)
        for group in self._shells:
            try:
                os.killpg(group, signal.SIGTERM)
            except ProcessLookupError:
                pass

    def load(self) -> None:
        """The first cell of nearly every notebook."""
        self._kernel.run(f"{LOADED}\nimport nbllm").ok()

    def run(self, block: Block) -> None:
        """Do what a reader does with a block.

        Raises:
            BlockFailed: It doesn't run as the page says, or isn't run without a reason.
        """
        if block.not_run == "":
            raise block.failed("is not run for no reason")
        if block.not_run:
            return
        source = _PORT.sub(rf"\g<1>{self._port}", block.source)
        if block.file:
            (self._folder / block.file).write_text(source)
        elif block.language in CELLS:
            self._run_cell(block, source)
        elif block.language == "bash":
            self._run_shell(block, source)
        elif block.language not in SHOWN:
            raise block.failed(
                f"{block.language} is neither run ({', '.join(CELLS)}, bash) nor one of {SHOWN}"
            )

    def _run_cell(self, block: Block, source: str) -> None:
        cell_id, typed = f"line-{block.line}", key_of("openai")
        try:
            outcome = self._kernel.run(source, timeout=TIMEOUT, cell_id=cell_id, typed=typed)
        except TimeoutError as error:
            raise block.failed(str(error)) from error
        if outcome.error != block.raises:
            raise block.failed(f"{outcome.traceback or 'ran without an error'}\n{outcome.stderr}")
        if any(shown.get("text/plain", "").startswith("<coroutine object") for shown in outcome.displays):
            raise block.failed("made a coroutine that nobody awaits")
        if outcome.stderr and not block.raises:
            raise block.failed(f"wrote to stderr: {outcome.stderr}")

    def _run_shell(self, block: Block, source: str) -> None:
        output = self._folder / "home" / f"shell-{block.line}"
        with output.open("w") as file:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", source],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._shells.append(shell.pid)
            try:
                ended = f"exit code {shell.wait(TIMEOUT)}"
            except subprocess.TimeoutExpired:
                ended = f"has not ended in {TIMEOUT:g} s"
        if shell.returncode != 0:
            raise block.failed(f"{ended}\n{output.read_text()}")
