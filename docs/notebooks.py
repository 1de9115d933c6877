"""Run the course's notebooks and keep their outputs: `python -m docs.notebooks [NAME…]`.

They run as on a fresh machine: no key, the demo model server, a log in memory. What is saved has no widget's
state and no time stamps, so that only what changed shows in a diff. `06-other-clients` needs litellm and
langchain-openai beside nbllm; all need `pip install '.[lab,plot]'`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from nbllm.providers import PROVIDERS

FOLDER = Path(__file__).parent.parent / "notebooks"
TIMEOUT_S = 120


def run(book: nbformat.NotebookNode, environment: Mapping[str, str], folder: Path = FOLDER) -> None:
    """Run a notebook, which gets the outputs, in the folder and this environment.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    client = NotebookClient(book, timeout=TIMEOUT_S, record_timing=False, store_widget_state=False)
    client.execute(env=dict(environment), cwd=str(folder))


def main(names: list[str]) -> None:
    own = {name for one in PROVIDERS.values() for name in (*one.key_variables, *one.base_url_variables)}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.lower().startswith("nbllm_") and not name.lower().endswith("_proxy")
    }
    paths = [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        print(path.stem, flush=True)
        book = nbformat.read(path, as_version=4)
        run(book, environment | {"NBLLM_LOG_PATH": "none"})
        nbformat.write(book, path)


if __name__ == "__main__":
    main(sys.argv[1:])
