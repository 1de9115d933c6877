"""The course in notebooks/: short, run as it stands, and fit for another model by one line."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from docs.notebooks import FOLDER
from nbllm.servers.demo import DemoServer
from tests.kernels import environment

FIRST = """\
%load_ext nbllm
import nbllm

MODEL = "demo/small"  # the one line to change"""

# Pythons that have what nbllm and its extras `lab` and `plot` don't bring.
PYTHONS = {"06-other-clients": os.environ.get("NBLLM_TEST_LITELLM")}

every_book = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def kinds(book: nbformat.NotebookNode) -> list[set[str]]:
    """What kinds of outputs each cell has; how many parts a stream comes in may differ."""
    return [{output.output_type for output in cell.outputs} for cell in code_cells(book)]


@every_book
def test_it_is_short_and_answers_soon(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    assert len(book.cells) < 20
    first, *others = code_cells(book)
    assert first.source.startswith(FIRST)
    assert not [cell.source for cell in others if "demo/small" in cell.source], "MODEL names it, once"
    assert any("nbllm" in output.get("metadata", {}) for cell in others[:2] for output in cell.outputs)


@every_book
def test_it_keeps_the_outputs_of_one_run_from_top_to_bottom(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert "widgets" not in book.metadata
    shown = str([{**output.get("data", {}), "image/png": output.get("text")} for output in outputs])
    for private in (str(Path.home()), str(FOLDER.parent), socket.gethostname()):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", shown)
    assert not re.findall(r"/(?:home|Users|tmp|var)/\w+", shown)


@every_book
def test_it_runs_offline_by_one_line_with_another_model(path: Path, tmp_path: Path) -> None:
    """`hosted_vllm/small` is the demo server as any OpenAI-compatible one; test_binder has `demo/small`."""
    python = PYTHONS.get(path.stem, sys.executable)
    if python is None:
        pytest.skip("NBLLM_TEST_LITELLM names no python that has litellm")
    book = nbformat.read(path, as_version=4)
    saved = kinds(book)
    first = code_cells(book)[0]
    first.source = first.source.replace("demo/small", "hosted_vllm/small")
    manager = AsyncKernelManager()
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="test", language="python")
    with DemoServer(pace=0.1) as server:
        own = {"PYTHONPATH": str(FOLDER.parent), "HOSTED_VLLM_API_BASE": server.url}
        env = environment(tmp_path, server) | own
        client = NotebookClient(book, km=manager, timeout=120)
        client.execute(env=env, cwd=str(tmp_path), cleanup_kc=True)
        assert server.stats()["requests_ok"]
    assert kinds(book) == saved
