"""The magics in terminal IPython, driven through a pseudo-terminal as a person would."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from nbllm.servers.demo import DemoServer
from tests.kernels import TIMEOUT, environment

pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty.*:DeprecationWarning")

# What prompt_toolkit writes when it begins and ends to take a cell: bracketed paste on and off.
BEGINS = r"\x1b\[\?2004h.*?In \[\d+\]:"
ENDS = "\x1b[?2004l"


class Terminal:
    """IPython with its prompt of every day."""

    def __init__(self, folder: Path, server: DemoServer) -> None:
        self.shell = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--no-banner", "--colors=NoColor"],
            # A pseudo-terminal does not tell where its cursor is; prompt_toolkit would wait for that.
            env=environment(folder, server) | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            cwd=str(folder),
            encoding="utf-8",
            timeout=TIMEOUT,
            dimensions=(50, 160),
        )
        self.shell.expect(BEGINS)

    def type(self, *lines: str) -> None:
        """Type a line, or a cell magic with the empty lines that end it, and have it run."""
        keys = [*lines, "", ""] if len(lines) > 1 else lines
        self.shell.send("".join(f"{line}\r" for line in keys))
        self.shell.expect_exact(ENDS)

    def written(self) -> str:
        """All that a running cell writes to its end, with what was erased again."""
        self.shell.expect(BEGINS)
        return str(self.shell.before).replace("\r\n", "\n")

    def run(self, *lines: str) -> str:
        """Run a cell; what then stands on the screen."""
        self.type(*lines)
        return screen(self.written())


def screen(written: str) -> str:
    """What is left to see."""
    return re.sub(r"[^\n]*\r\x1b\[K", "", written)


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(pace=0.3) as running:
        yield running


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, demo: DemoServer) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("terminal"), demo)
    assert terminal.run("%load_ext nbllm") == "\n"
    yield terminal
    terminal.shell.send("exit\r")
    terminal.shell.expect_exact(pexpect.EOF)
    terminal.shell.close()


def test_answers_are_text_with_a_footer_and_the_conversation_goes_on(terminal: Terminal) -> None:
    first = terminal.run("%%llm demo/fast -s talk", "Describe otters.", "And seals.")
    assert "You wrote “Describe otters. And seals.”, 4 words." in first
    assert re.search(r"\n\ndemo/fast \(demo model\) · talk · \d+→\d+ tok · .*connection.*\n\n$", first)
    assert "\x1b" not in first
    second = terminal.run("%llm -m demo/fast -s talk What is next?")
    assert "After “Describe otters. And seals.” this is your message 2." in second
    assert second.rstrip().endswith("connection reused")


def test_what_is_waited_for_is_told_until_the_answer_begins(terminal: Terminal) -> None:
    terminal.type("%%llm demo/slow -s slow", "Describe otters.")
    terminal.shell.expect(r"waiting for demo/slow · \d+ s")
    written = f"{terminal.shell.after}{terminal.written()}"
    left = screen(written)
    assert len(left) < len(written)
    assert "waiting" not in left
    assert "\x1b" not in left
    assert "You wrote “Describe otters.”, 2 words." in left


def test_ctrl_c_keeps_what_has_come_and_gives_the_prompt_back(terminal: Terminal, demo: DemoServer) -> None:
    disconnected = demo.stats()["requests_disconnected"]
    terminal.type("%%llm demo/stall -s stop", "Describe otters.")
    terminal.shell.expect_exact("You wrote")
    terminal.shell.sendintr()
    demo.wait_for(lambda stats: stats["requests_disconnected"] == disconnected + 1)
    footer, error = screen(terminal.written()).strip().split("\n")[-2:]
    assert footer.startswith("interrupted · demo/stall (demo model) · stop · ")
    assert error == "KeyboardInterrupt: the request was cancelled"
    assert "connection" in terminal.run("%llm -m demo/fast -s stop Hi")


def test_several_models_answer_one_below_the_other(terminal: Terminal) -> None:
    shown = terminal.run("%%llm demo/small demo/fast -s pair", "Describe otters.")
    parts = re.split(r"^## (.+)$", shown, flags=re.MULTILINE)
    assert parts[1::2] == ["demo/fast", "demo/small"]  # in the order in which they end
    for model, part in zip(parts[1::2], parts[2::2], strict=True):
        assert "otters" in part
        assert f"\n\n{model} (demo model) · pair · " in part


def test_the_status_is_one_screen(terminal: Terminal) -> None:
    lines = terminal.run("%nbllm").strip().splitlines()
    assert [line[:14].strip() for line in lines] == [
        *("model", "session", "HTTP session", "requests", "log", "keys")
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("%%llm --nope", "Hi"), "UsageProblem: there is no option --nope; did you mean '--new'?"),
        (("%llm -m nope Hi",), "NotFoundError: no provider is known for model 'nope'"),
        (("%%llm demo/rate-limited -p num_retries=0", "Hi"), "RateLimitError: 429: Rate limit reached"),
    ],
)
def test_an_error_is_one_line(terminal: Terminal, lines: tuple[str, ...], told: str) -> None:
    shown = terminal.run(*lines).strip()
    assert shown.startswith(told)
    assert len(shown.splitlines()) == 1


def test_tab_completes_a_model(terminal: Terminal) -> None:
    terminal.shell.send("%llm -m demo/sm\t")
    terminal.shell.expect_exact("all")
    terminal.type(" -s tab Describe otters.")
    assert "demo/small (demo model) · tab · " in terminal.written()


def test_a_session_cell_is_read_to_its_end(terminal: Terminal) -> None:
    lines = ["%%session review", "import nbllm", "answer = nbllm.completion('demo/fast', 'Hi')", "1 + 1"]
    shown = terminal.run(*lines)
    assert "1 request · demo/fast · review · " in shown
    assert "Out[" in shown
