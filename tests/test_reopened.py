"""A notebook with a dashboard, opened again: of its two outputs the live one is seen, or the static one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import IDLE, open_notebook, run_first_cell, save

pytestmark = pytest.mark.browser

SOURCES = [
    "%load_ext nbllm\nimport nbllm\nboard = nbllm.dashboard()\nboard",
    "for i in range(3): _ = nbllm.completion('demo/fast', f'<b id=bold>hello</b> {i}')",
    "board.close()",
]
LINE = "nbllm dashboard · this kernel · run the cell to see it live"
SHOWN = """wanted => {
    const outputs = document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.jp-OutputArea-child');
    const kind = output =>
        ['live', 'still'].find(kind => output.querySelector(`.nbllm-${kind}`)) ?? output.innerText.trim();
    const shown = [...outputs].filter(output => output.offsetHeight > 0).map(kind);
    return JSON.stringify(shown) === JSON.stringify(wanted);
}"""


def wait_for_outputs(page: Any, *wanted: str) -> None:
    """Wait until just these outputs of the first cell are seen."""
    page.wait_for_function(SHOWN, arg=list(wanted))


def wait_for_number(page: Any, selector: str, number: str) -> None:
    page.wait_for_function(
        "([selector, number]) => document.querySelector(selector)?.innerText.includes(number)",
        arg=[selector, number],
    )


def stop_kernels(page: Any) -> None:
    page.evaluate(
        """async () => {
            const headers = {'X-XSRFToken': document.cookie.match(/_xsrf=([^;]+)/)?.[1] ?? ''};
            for (const {id} of await (await fetch('/api/sessions')).json())
                await fetch(`/api/sessions/${id}`, {method: 'DELETE', headers});
        }"""
    )


def reopen(page: Any, lab: str, name: str) -> None:
    page.goto("about:blank")
    page.goto(f"{lab}/doc/tree/{name}?token=t&reset")
    page.wait_for_selector(".jp-OutputArea-child", state="attached")


@pytest.fixture
def saved(page: Any, lab: str, lab_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A notebook with a dashboard, saved while it is live and its static form has followed."""
    name = f"{request.node.name}.ipynb"
    open_notebook(page, lab, lab_folder, name, SOURCES)
    run_first_cell(page)
    wait_for_outputs(page, "live")
    page.keyboard.press("Shift+Enter")
    wait_for_number(page, ".nbllm-panel", "3")
    page.wait_for_function("document.querySelector('.nbllm-still').textContent.includes('hello</b> 2')")
    return save(page, lab_folder, name)


def test_it_is_live_again_while_its_kernel_lives_and_static_without(page: Any, lab: str, saved: Path) -> None:
    page.reload()
    page.wait_for_selector(IDLE)
    wait_for_outputs(page, "live")
    wait_for_number(page, ".nbllm-panel", "3")
    stop_kernels(page)
    reopen(page, lab, saved.name)
    wait_for_outputs(page, "still")
    assert "hello</b> 2" in page.locator(".nbllm-still").inner_text()
    assert page.locator("#bold").count() == 0


def test_not_trusted_it_is_static_below_a_line(page: Any, lab: str, saved: Path) -> None:
    """Another tool has changed an output, so that the signature is no longer the notebook's."""
    stop_kernels(page)
    book = json.loads(saved.read_text())
    book["cells"][0]["outputs"][1]["data"]["text/html"].append("<script>window.ran = true</script>")
    other = saved.with_name("other.ipynb")
    other.write_text(json.dumps(book))
    reopen(page, lab, other.name)
    wait_for_outputs(page, LINE, "still")
    assert "hello</b> 2" in page.locator(".nbllm-still").inner_text()
    assert page.evaluate("window.ran") is None


def test_closed_it_is_static(page: Any, saved: Path) -> None:
    page.locator(".jp-CodeCell").nth(2).click()
    page.keyboard.press("Shift+Enter")
    wait_for_outputs(page, "still")


def test_converted_to_html_it_is_static(page: Any, saved: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(saved), "--output-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    page.context.set_offline(True)
    try:
        page.goto((tmp_path / f"{saved.stem}.html").as_uri(), wait_until="domcontentloaded")
        wait_for_number(page, ".nbllm-still", "hello</b> 2")
        shown = page.locator(".jp-OutputArea-child >> visible=true").all_inner_texts()
        assert not [text for text in shown if LINE in text]
    finally:
        page.context.set_offline(False)
