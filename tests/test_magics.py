"""The magics: in a shell of the test's own, in real kernels, in nbclient and in a terminal.

The raw server is the witness of what was sent; its "echo" streams the prompt back as the answer, so that a
test writes the answer it wants.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

import nbllm
from nbllm import commands, magics, pricing
from nbllm.arguments import OPTIONS
from nbllm.servers.demo import DemoServer
from tests import servers
from tests.kernels import Kernel, environment, two_pythons
from tests.servers import Exchange, RawServer

PACKAGE_HOME = str(Path(nbllm.__file__).parent.parent)


async def half(x: Exchange) -> None:
    """Half of the answer, then it waits at the gate, then the rest."""
    events = [*map(servers.event, servers.chunks()), servers.event(b"[DONE]")]
    await servers._stream(x, events[:3], b"")
    await x.gate()
    for data in events[3:]:
        await x.send(servers.piece(data))
    await x.send(b"0\r\n\r\n")


async def refuse(x: Exchange) -> None:
    """401, quoting the key, as OpenAI does."""
    key = x.request.headers["authorization"]
    body = {
        "error": {"message": f"Incorrect API key provided: {key}.\n\nFind it.", "code": "invalid_api_key"}
    }
    await x.send(servers.whole("401 Unauthorized", json.dumps(body).encode()))


BEHAVIOURS = {"half": half, "refuse": refuse}


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer(behaviours=BEHAVIOURS) as running:
        yield running


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, raw: RawServer, python: str) -> Iterator[Kernel]:
    keys = {"OPENAI_API_KEY": "sk-from-the-environment", "OPENAI_BASE_URL": raw.url("echo")}
    folder = tmp_path_factory.mktemp("kernel")
    with DemoServer(pace=0.1) as demo, Kernel(folder, demo, python, env=keys) as started:
        started.run("%load_ext nbllm\nimport nbllm").ok()
        yield started


# -- a cell in a kernel --------------------------------------------------------------------------------


@two_pythons
def test_the_answer_grows_in_one_output(kernel: Kernel, raw: RawServer) -> None:
    raw.gate.clear()
    cell = kernel.send(f"%%llm raw -s growth -p base_url={raw.url('half')}\nHi")
    kernel.wait_for_display(cell, "Hello from")
    raw.open_gate()
    first, *later = kernel.wait(cell).ok().outputs
    assert first["msg_type"] == "display_data"
    assert later
    assert {message["msg_type"] for message in later} == {"update_display_data"}
    ids = {message["content"]["transient"]["display_id"] for message in [first, *later]}
    assert len(ids) == 1
    states = [message["content"]["data"] for message in [first, *later]]
    assert all(set(state) == {"text/plain", "text/markdown"} for state in states)
    texts = [state["text/plain"] for state in states]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert texts[-1].startswith(f"{servers.TEXT}\n\nraw · growth · 11→5 tok · ")
    assert states[-1]["text/markdown"].startswith(f"{servers.TEXT}\n\n<small>raw · growth · 11→5 tok · ")


@two_pythons
def test_the_footer_tells_of_the_connection(kernel: Kernel, raw: RawServer) -> None:
    url = raw.url("chat", host="localhost")
    footers = [kernel.run(f"%%llm raw -p base_url={url}\nHi").ok().shown()[1] for _ in range(2)]
    assert footers[0].endswith(" · new connection: first")
    assert footers[1].endswith(" · connection reused")
    raw.close_idle()
    footer = kernel.run(f"%%llm raw -p base_url={url}\nHi").ok().shown()[1]
    assert " · new connection: idle " in footer
    assert footer.endswith(", closed by server")


@two_pythons
def test_the_footer_tells_the_price(kernel: Kernel) -> None:
    usd = pricing.price_usd("openai", "gpt-4o", input_tokens=11, output_tokens=5)
    assert usd is not None
    assert f" · ${usd:.6f} · " in kernel.run("%%llm gpt-4o\nHi").ok().shown()[1]


@two_pythons
def test_what_is_sent(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("name, data = 'otters', '{{name}} $name'").ok()
    cell = (
        '%%llm gpt-4o --system "Be {{name}}" -p temperature=0 -p stop=["a b"] -s sent\n'
        'About {{name}}: {{data}} {"a": {"b": 1}} $name {name} \\frac{a}{b} \\{{name}}\n'
    )
    kernel.run(cell).ok()
    sent = raw.requests[-1].json
    assert sent["messages"] == [
        {"role": "system", "content": "Be otters"},
        {
            "role": "user",
            "content": 'About otters: {{name}} $name {"a": {"b": 1}} $name {name} \\frac{a}{b} {{name}}',
        },
    ]
    assert (sent["model"], sent["temperature"], sent["stop"]) == ("gpt-4o", 0, ["a b"])
    assert [row["status"] for row in kernel.rows(session_id="sent")] == ["ok"]


@two_pythons
def test_the_next_cell_goes_on_with_the_conversation(kernel: Kernel, raw: RawServer) -> None:
    for prompt in ("One", "Two"):
        kernel.run(f"%%llm -s talk\n{prompt}").ok()
        assert raw.requests[-1].json["model"] == "gpt-4o-mini"  # the environment holds a key
    contents = [message["content"] for message in raw.requests[-1].json["messages"]]
    assert contents == ["One", "One", "Two"]


@two_pythons
@pytest.mark.parametrize(
    "answer",
    [
        ".env",
        "http://127.0.0.1:9/",
        "<script>alert(1)</script> <img src=http://evil/x.png>",
        "![x](http://evil/x.png)",
        "```python\nprint(1)",
    ],
)
def test_a_hostile_answer_is_shown_and_nothing_else(kernel: Kernel, answer: str) -> None:
    (kernel.folder / ".env").write_text("SECRET=1")
    outcome = kernel.run(f"%%llm gpt-4o\n{answer}").ok()
    text, footer = outcome.shown()
    assert text == answer
    markdown = outcome.displays[-1]["text/markdown"]
    assert "SECRET" not in markdown
    assert "<img" not in markdown
    assert "<script" not in markdown
    assert "![" not in markdown
    assert markdown.count("```") % 2 == 0
    assert markdown.rpartition("\n\n")[2].startswith("<small>gpt-4o · ")
    assert footer.startswith("gpt-4o · ")


@two_pythons
def test_the_answer_in_a_variable(kernel: Kernel) -> None:
    outcome = kernel.run("%%llm gpt-4o -o answer -s kept\nHello there").ok()
    assert outcome.shown()[0] == "Hello there"
    expression = "[type(answer).__name__, answer.text, answer.usage.prompt_tokens, answer.session_id]"
    assert kernel.value(expression) == ["Answer", "Hello there", 11, "kept"]
    assert kernel.run("%llm -m demo/error -o answer Hi").error == "InternalServerError"
    assert kernel.value("answer.text") == "Hello there"


@two_pythons
@pytest.mark.parametrize(
    "line", ["Why is the sky (really) blue?", "What's that?", 'Say "hi"? {a}', "is x?", "?"]
)
def test_a_line_is_sent_as_it_is_written(kernel: Kernel, raw: RawServer, line: str) -> None:
    outcome = kernel.run(f"x = 1\nif x:\n    %llm {line}").ok()
    assert raw.requests[-1].json["messages"][-1]["content"] == line
    assert outcome.shown()[0] == line


@two_pythons
def test_other_magics_stack_on_it(kernel: Kernel) -> None:
    timed = kernel.run("%%time\n%%llm gpt-4o\nHi").ok()
    assert timed.shown()[0] == "Hi"
    assert "Wall time" in timed.stdout
    assert kernel.run("%%capture taken\n%%llm gpt-4o\nHi").ok().displays == []
    assert kernel.value("taken.outputs[-1].data['text/plain']").startswith("Hi\n\ngpt-4o · ")
    assert "2 runs" in kernel.run("%%timeit -n1 -r2\n%%llm gpt-4o\nHi").ok().stdout


# -- failures ------------------------------------------------------------------------------------------

KEY = "sk-very-secret-key-1234567890"


@two_pythons
@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        (
            "%%llm demo/error\nHi",
            "InternalServerError",
            "InternalServerError: 500: The demo model 'error' always",
        ),
        ("%%llm demo/rate-limited\nHi", "RateLimitError", "RateLimitError: 429: Rate limit reached"),
        ("%%llm nope\nHi", "NotFoundError", "NotFoundError: no provider is known for model 'nope'"),
        ("%%llm --sesion x\nHi", "UsageProblem", "UsageProblem: there is no option --sesion; did you mean"),
        ("%%llm\n{{nmae}}", "UsageProblem", "UsageProblem: {{nmae}}: name 'nmae' is not defined"),
        ("%%llm\n{{empty}}", "UsageProblem", "UsageProblem: the prompt is empty once"),
        ("%%llm -s é\nHi", "UsageProblem", "UsageProblem: session id 'é' can't be used"),
        ("%%llm -p timeout=x\nHi", "UsageProblem", "UsageProblem: timeout must be"),
        (f"%%llm gpt-4o -p base_url=REFUSE -p api_key={KEY}\nHi", "AuthenticationError", "Incorrect API key"),
        (f"%%llm -p api_key:{KEY}\nHi", "UsageProblem", "-p takes KEY=VALUE"),
        ("%nbllm sesions", "UsageProblem", "there is no %nbllm sesions; did you mean 'sessions'?"),
        ("%nbllm requests review", "UsageProblem", "got 'review'"),
        ("%nbllm sessions review", "UsageProblem", "got 'review'"),
    ],
)
def test_an_error_is_a_line_or_two_and_the_cell_fails(
    kernel: Kernel, raw: RawServer, cell: str, error: str, message: str
) -> None:
    kernel.run("empty = ''").ok()
    msg_id = kernel.send(cell.replace("REFUSE", raw.url("refuse")))
    outcome = kernel.wait(msg_id)
    assert (outcome.status, outcome.error) == ("error", error)
    assert message in outcome.traceback
    assert len(outcome.traceback.splitlines()) <= 2
    assert outcome.stderr == ""
    *waited, output = outcome.outputs  # where it was tried again, the cell said that it waits
    assert output["msg_type"] == "error"
    assert waited == [] or waited[-1]["content"]["data"]["text/plain"].startswith("failed")
    assert KEY not in json.dumps(output["content"])


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("400", "--dry-run shows what is sent."),
        ("401", "%nbllm key PROVIDER sets another key."),
        ("403", "%nbllm models lists them."),
        ("404", "%nbllm models lists the models that there are."),
        ("429", "The server asks to wait 7 s."),
    ],
)
@two_pythons
def test_the_second_line_of_an_error_is_the_remedy(
    kernel: Kernel, raw: RawServer, status: str, remedy: str
) -> None:
    outcome = kernel.run(f"%%llm gpt-4o -p num_retries=0 --base-url {raw.url(f'status-{status}')}\nHi")
    first, second = outcome.traceback.splitlines()
    assert status in first
    assert second.endswith(remedy)


@two_pythons
def test_an_answer_that_breaks_off_stays_and_is_marked(kernel: Kernel) -> None:
    outcome = kernel.run("%%llm demo/break -s broken\nDescribe otters")
    assert outcome.error == "APIConnectionError"
    text, footer = outcome.shown()
    assert len(text) > 20
    assert footer.startswith("broken off · demo/break (demo model) · broken · ")


@two_pythons
def test_the_stop_button_keeps_what_has_come(kernel: Kernel, raw: RawServer) -> None:
    cell = kernel.send(f"%%llm raw -s stopped -p base_url={raw.url('stall')}\nHi")
    kernel.wait_for_display(cell, "Hello from")
    request = raw.requests[-1]
    outcome, _ = kernel.interrupt(cell)
    assert (outcome.status, outcome.error) == ("error", "KeyboardInterrupt")
    assert outcome.traceback == "KeyboardInterrupt: the request was cancelled"
    text, footer = outcome.shown()
    assert text == "Hello from"
    assert footer.startswith("interrupted · raw · stopped · ")
    raw.wait_for(lambda: request.client_gone)
    assert [row["status"] for row in kernel.rows(session_id="stopped")] == ["cancelled"]
    assert kernel.run("%%llm gpt-4o\nStill here").ok().shown()[0] == "Still here"


@two_pythons
def test_a_front_end_that_fails_does_not_break_the_call(kernel: Kernel) -> None:
    kernel.run(
        "publisher = get_ipython().display_pub\n"
        "def broken(*args, **kwargs): raise OSError('no front end')\n"
        "publisher.publish = broken"
    ).ok()
    outcome = kernel.run("%llm -o answer Hi")
    kernel.run("del publisher.publish").ok()
    assert outcome.status == "ok"
    assert outcome.stderr.count("the answer could not be shown: OSError('no front end')") == 1
    assert kernel.value("answer.text") == "Hi"


# -- %nbllm --------------------------------------------------------------------------------------------


@two_pythons
def test_nbllm_shows_the_status(
    tmp_path_factory: pytest.TempPathFactory, raw: RawServer, demo: DemoServer, python: str
) -> None:
    folder = tmp_path_factory.mktemp("status")
    with Kernel(folder, demo, python) as kernel:
        kernel.run("%load_ext nbllm").ok()
        assert "HTTP session  not used yet\n" in kernel.run("%nbllm").ok().stdout
        for _ in range(4):
            kernel.run("%llm -m demo/fast Hi").ok()
        kernel.run("%nbllm session review\n%nbllm model demo/small").ok()
        lines = kernel.run("%nbllm").ok().stdout.splitlines()
    told = {line[:12].strip(): line[14:] for line in lines}
    assert re.fullmatch(
        r"id \d+ · 1 connection open, 75% of requests on a reused one · first opened 0 min ago",
        told.pop("HTTP session"),
    )
    counted = demo.stats()
    sent, got = counted["prompt_tokens"], counted["completion_tokens"]
    assert told == {
        "model": "demo/small",
        "session": "review",
        "requests": f"4 requests · {sent:,}→{got:,} tok",
        "log": str(folder / "log.db"),
        "keys": "none: %nbllm key openai",
    }


@two_pythons
def test_nbllm_sets_and_tells_model_and_session(kernel: Kernel, raw: RawServer) -> None:
    before = kernel.run("%nbllm session").ok().displays[-1]["text/plain"]
    assert kernel.run("%nbllm session 'two words'").ok().displays[-1]["text/plain"] == "'two words'"
    assert kernel.run("%nbllm session").ok().displays[-1]["text/plain"] == "'two words'"
    assert kernel.run("%nbllm model gpt-4.1").ok().displays[-1]["text/plain"] == "'gpt-4.1'"
    assert kernel.run("%llm Hi").ok().shown()[1].startswith("gpt-4.1 · two words · ")
    assert raw.requests[-1].json["model"] == "gpt-4.1"
    kernel.run("nbllm.set_session(None); nbllm.configure(model=None)").ok()
    assert kernel.run("%nbllm session").ok().displays[-1]["text/plain"] == before


# -- notebooks and terminals ---------------------------------------------------------------------------


def notebook(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


def client(book: Any, folder: Path, demo: DemoServer, monkeypatch: pytest.MonkeyPatch) -> NotebookClient:
    for name, value in environment(folder, demo).items():
        monkeypatch.setenv(name, value)
    return NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )


def test_a_saved_notebook_holds_the_last_state(
    tmp_path: Path, demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = notebook("%load_ext nbllm", "%%llm demo/small -s saved\nDescribe otters")
    client(book, tmp_path, demo, monkeypatch).execute()
    nbformat.validate(book)
    assert book.cells[0].outputs == []
    (output,) = book.cells[1].outputs
    assert output.output_type == "display_data"
    for text in output.data.values():
        assert "demo/small (demo model) · saved · " in text.splitlines()[-1]
        assert "otters" in text


def test_run_all_stops_at_a_cell_that_fails(
    tmp_path: Path, demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = notebook("%load_ext nbllm", "%%llm demo/error\nHi", "%%llm demo/fast\nHi")
    with pytest.raises(CellExecutionError) as caught:
        client(book, tmp_path, demo, monkeypatch).execute()
    assert caught.value.ename == "InternalServerError"
    (output,) = book.cells[1].outputs
    assert output.output_type == "error"
    assert len(output.traceback) == 2
    assert book.cells[2].execution_count is None
    assert demo.stats()["requests_total"] == 1


def test_a_terminal_shows_each_piece_once(tmp_path: Path, demo: DemoServer) -> None:
    code = "%load_ext nbllm\n%llm -m demo/fast -o answer Describe otters\nprint('[' + answer.text + ']')"
    ended = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code],
        env={**environment(tmp_path, demo), "PYTHONPATH": PACKAGE_HOME},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    shown_text, _, stored = ended.stdout.rpartition("\n[")
    answer, _, footer = shown_text.rpartition("\n\n")
    assert stored == f"{answer}]\n"
    assert footer.startswith("demo/fast (demo model) · ")


# -- registration, in a shell of the test's own --------------------------------------------------------


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config)
    yield made
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, cell: str) -> Any:
    """Run a cell; what it raises is raised here."""
    result = shell.run_cell(cell)
    result.raise_error()
    return result.result


def theirs(line: str, cell: str) -> str:
    return "theirs"


def test_registering_again_changes_nothing(shell: InteractiveShell) -> None:
    magics.register(shell)
    configurables, transformers = (
        len(shell.configurables),
        len(shell.input_transformer_manager.token_transformers),
    )
    magics.register(shell)
    assert len(shell.configurables) == configurables
    assert len(shell.input_transformer_manager.token_transformers) == transformers


def test_somebody_else_s_magic_stays(
    shell: InteractiveShell,
    demo: DemoServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    shell.register_magic_function(theirs, "cell", "llm")
    with pytest.warns(RuntimeWarning, match=r"%%llm belongs to tests.test_magics and stays so; %%nbllm"):
        magics.register(shell)
    assert run(shell, "%%llm\nHi") == "theirs"
    assert run(shell, "%%nbllm demo/fast\nDescribe otters") is None
    assert "otters" in capsys.readouterr().out
    run(shell, "%llm -m demo/fast Describe penguins?")
    assert "penguins" in capsys.readouterr().out


def test_a_free_name_is_taken_later(shell: InteractiveShell) -> None:
    shell.register_magic_function(theirs, "cell", "llm")
    with pytest.warns(RuntimeWarning, match="belongs to"):
        magics.register(shell)
    del shell.magics_manager.magics["cell"]["llm"]
    magics.register(shell)
    with pytest.raises(nbllm.UsageProblem):
        run(shell, "%%llm --nope\nHi")


def test_help_names_every_option(shell: InteractiveShell) -> None:
    magics.register(shell)
    for kind, name in (("cell", "llm"), ("line", "llm")):
        text = shell.find_magic(name, kind).__doc__
        assert all(flag in text for option in OPTIONS for flag in option.flags)
    text = shell.find_line_magic("nbllm").__doc__
    assert all(f"%nbllm {name}" in text for name in commands.COMMANDS)


def test_question_marks_still_show_help(shell: InteractiveShell) -> None:
    magics.register(shell)
    transform = shell.transform_cell
    assert "pinfo', '%llm'" in transform("%llm?")
    assert "pinfo2', '%llm'" in transform("%llm??")
    assert "pinfo', 'llm'" in transform("llm?")
    assert "run_line_magic('llm', 'what?')" in transform("%llm what?")
    assert "pinfo', 'what'" in transform("%llmx what?")


def test_an_error_can_be_caught_and_pickled(shell: InteractiveShell) -> None:
    magics.register(shell)
    with pytest.raises(nbllm.NotFoundError) as caught:
        run(shell, "%llm -m nope Hi")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
