"""Every code block of README.md and docs/ but design.md runs, page by page, from top to bottom.

For those who write pages:

- A page is one notebook. Its blocks in `python`, and those without a language (`%%llm` cells), run one after
  the other in one real kernel. It begins with `%load_ext nbllm` and `import nbllm`, unless the page itself
  has a `%load_ext nbllm`: then it begins with nothing.
- `bash` blocks run by `bash -eu -o pipefail`, each by itself, in the kernel's folder, with the environment's
  programs first in PATH. What one leaves running in the background (`nbllm gateway --port 4000 &`) ends with
  the page. `pip install` only looks whether it could.
- A block whose first line is `# ask.py` (or another name in .py, .toml, .env, .md) is written to that file,
  for later blocks: `python ask.py`.
- Output, answers and wire formats stand in `text`, `console`, `json`, `toml`, `yaml`, `html`, `css`, `sql` or
  `dockerfile`, which aren't run.
- Nothing but an error that the page is there to show may fail or write to stderr (warnings do). For such an
  error, right before the block: `<!-- raises: AuthenticationError -->`.
- A block that can't run has `<!-- not run: reason -->` right before it. Keep them few.

There is no network. `demo/…` is the demo server without its delays. Every provider's key and address are in
the environment, and a server answers there in the provider's format whatever is asked ("Grüße an die 🐧!", 11
and 5 tokens); model names such as `error-429` and `fails-twice` misbehave (tests/providers_server.py). HOME,
log and working folder are temporary; in the folder is the notebook that the page is, analysis.ipynb, without
cells. Port 4000 is the gateway's, here another one that is free. litellm isn't installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbllm.servers.demo import DemoServer
from tests.doc_code import LOADED, SHOWN, BlockFailed, Reader, blocks
from tests.providers_server import ProvidersServer
from tests.test_opentelemetry import Collector

ROOT = Path(__file__).parent.parent
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "design.md"
}
PAGES = [
    page for page, text in TEXTS.items() if any(block.language not in SHOWN for block in blocks(page, text))
]


def _run(page: str, text: str, reader: Reader) -> None:
    found = list(blocks(page, text))
    if not any(LOADED in block.source for block in found):
        reader.load()
    for block in found:
        reader.run(block)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Who receives OpenTelemetry's spans."""
    with Collector() as running:
        yield running


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs(
    page: str, demo: DemoServer, providers: ProvidersServer, collector: Collector, tmp_path: Path
) -> None:
    try:
        with Reader(tmp_path, demo, providers, collector) as reader:
            _run(page, TEXTS[page], reader)
    except BlockFailed as failure:
        raise pytest.fail.Exception(str(failure), pytrace=False) from None


def test_few_blocks_are_excused() -> None:
    excused = [block for page, text in TEXTS.items() for block in blocks(page, text) if block.not_run]
    assert len(excused) <= 12, [f"{block.page}, line {block.line}: {block.not_run}" for block in excused]


def test_a_block_that_does_not_run_is_named(
    demo: DemoServer, providers: ProvidersServer, collector: Collector, tmp_path: Path
) -> None:
    cases = {
        "\n```python\n1 / 0\n```": "page.md, line 2:\n\n1 / 0\n\n.*ZeroDivisionError",
        "```python\nimport warnings; warnings.warn('old')\n```": "stderr.*UserWarning: old",
        "```python\nnbllm.acompletion('demo/small', 'Hi')\n```": "nobody awaits",
        "```\n%%llm --nonsense\nHi\n```": "UsageProblem.*nonsense",
        "<!-- raises: KeyError -->\n```python\n1 / 1\n```": "ran without an error",
        "```bash\necho no; false\n```": "exit code 1\nno",
        "```pyton\n1\n```": "pyton is neither run",
        "<!-- not run: -->\n```python\n1 / 0\n```": "for no reason",
    }
    with Reader(tmp_path, demo, providers, collector) as reader:
        for text, said in cases.items():
            with pytest.raises(BlockFailed, match=f"(?s){said}"):
                _run("page.md", text, reader)
