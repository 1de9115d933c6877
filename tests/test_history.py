"""The cells that ran before, as a model reads them; in a real kernel: test_cells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbllm.history import CONTEXT_CHARACTERS, cells_before


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    shell.history_manager.outputs.clear()  # kept by class: another shell's are there
    yield shell
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, *sources: str) -> None:
    """Run cells, the last of which is the one that asks."""
    for source in (*sources, "asks = True"):
        shell.run_cell(source, store_history=True)


def test_the_first_cell_has_none_before_it(shell: InteractiveShell) -> None:
    run(shell)
    assert cells_before(shell, 3) == ""


def test_the_last_ones_are_told_with_their_values(shell: InteractiveShell) -> None:
    run(shell, "a = 1", "a + 1", "b = 3")
    assert cells_before(shell, 2) == (
        "These cells of the notebook ran before:\n\nIn [2]:\na + 1\n\nOut [2]:\n2\n\nIn [3]:\nb = 3\n\n"
    )


def test_a_long_output_is_cut_and_says_so(shell: InteractiveShell) -> None:
    run(shell, f"'x' * {CONTEXT_CHARACTERS + 1500}")
    shown = "'" + "x" * (CONTEXT_CHARACTERS - 1)
    assert cells_before(shell, 1).endswith(f"Out [1]:\n{shown}\n(1,502 more characters)\n\n")


def test_a_notebook_that_has_an_out_of_its_own_is_no_trouble(shell: InteractiveShell) -> None:
    run(shell, "Out = None", "b = 3")
    assert "In [2]:\nb = 3" in cells_before(shell, 1)
