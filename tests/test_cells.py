"""`%%llm` in a real kernel: each option, several models, the conversation, what the cell shows.

The raw server is the witness of what was sent. Its "echo" streams the prompt back, so that a test writes the
answer that it wants.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from nbllm import pricing, tables
from nbllm.servers.demo import DemoServer
from tests import servers
from tests.kernels import Kernel, Outcome
from tests.servers import Exchange, RawServer

KEY = "sk-from-the-environment-123"
LOAD = "%load_ext nbllm\nimport nbllm"


async def refuses(x: Exchange) -> None:
    """Waits at the gate and then fails, quoting the key as careless servers do."""
    await x.gate()
    error = {"error": {"message": f"no ({x.request.headers['authorization']})", "code": "some_code"}}
    await x.send(servers.whole("500 Status", json.dumps(error).encode()))


async def named(x: Exchange) -> None:
    """ "This is MODEL", its name behind the gate; of the model "bad" an error, of "mute" nothing."""
    model = x.request.json["model"]
    if model == "bad":
        return await refuses(x)
    if model == "mute":
        return await x.gone()
    events = [servers.event(chunk) for chunk in servers.chunks(["This is ", model])]
    await servers._stream(x, events[:2], b"")
    await x.gate()
    for data in [*events[2:], servers.event(b"[DONE]")]:
        await x.send(servers.piece(data))
    return await x.send(b"0\r\n\r\n")


async def thinks(x: Exchange) -> None:
    """Reasons before the gate, answers behind it."""
    reasoning = servers.event(servers.chunk({"reasoning_content": "Otters <b>swim</b>."}))
    await servers._stream(x, [reasoning], b"")
    await x.gate()
    for chunk in servers.chunks(["They", " swim"]):
        await x.send(servers.piece(servers.event(chunk)))
    await x.send(servers.piece(servers.event(b"[DONE]")) + b"0\r\n\r\n")


BEHAVIOURS = {"named": named, "thinks": thinks, "refuses": refuses}


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer(behaviours=BEHAVIOURS) as running:
        yield running


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(pace=0) as running:
        yield running


def witnessed(raw: RawServer) -> dict[str, str]:
    """An environment in which OpenAI is the raw server."""
    return {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": raw.url("echo"), "NBLLM_NUM_RETRIES": "0"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, raw: RawServer, demo: DemoServer) -> Iterator[Kernel]:
    with Kernel(tmp_path_factory.mktemp("kernel"), demo, env=witnessed(raw)) as started:
        started.run(LOAD).ok()
        yield started


@pytest.fixture
def kernel(shared: Kernel, request: pytest.FixtureRequest) -> Kernel:
    """The kernel, with a session and so a conversation of the test's own."""
    shared.run(f"nbllm.set_session({request.node.name!r})").ok()
    return shared


@pytest.fixture
def session(kernel: Kernel, request: pytest.FixtureRequest) -> str:
    """The session id of a test's requests."""
    name: str = request.node.name
    return name


@pytest.fixture
def fresh(tmp_path: Path, raw: RawServer, demo: DemoServer) -> Iterator[Callable[..., Kernel]]:
    """Starts a kernel of the test's own, in `tmp_path`."""
    started: list[Kernel] = []

    def start(env: dict[str, str] | None = None) -> Kernel:
        kernel = Kernel(tmp_path, demo, env=witnessed(raw) if env is None else env)
        started.append(kernel.__enter__())
        kernel.run(LOAD).ok()
        return kernel

    yield start
    for kernel in started:
        kernel.__exit__(None, None, None)


def sent(raw: RawServer, nth: int = -1) -> list[dict[str, Any]]:
    """The messages of a request."""
    messages: list[dict[str, Any]] = raw.requests[nth].json["messages"]
    return messages


def said(kernel: Kernel) -> list[str]:
    """The conversation of the session in force."""
    texts: list[str] = kernel.value("[str(message['content']) for message in nbllm.Chat()]")
    return texts


def fails(outcome: Outcome, error: str) -> Outcome:
    """Itself, if the cell failed with a line that begins with the error's name, and at most a remedy."""
    assert (outcome.status, outcome.error, outcome.stderr) == ("error", error, "")
    assert outcome.traceback.startswith(f"{error}: ")
    assert len(outcome.traceback.splitlines()) <= 2
    return outcome


# -- options -------------------------------------------------------------------------------------------


def test_the_answer_is_shown_and_stored(kernel: Kernel, session: str) -> None:
    outcome = kernel.run('%%llm gpt-4o -o answer\n{"a": [1, 2]}').ok()
    assert outcome.shown()[0] == '{"a": [1, 2]}'
    (row,) = kernel.rows(session_id=session)
    usd = pricing.price_usd("openai", "gpt-4o", input_tokens=11, output_tokens=5)
    names = ("text", "json()", "usage.prompt_tokens", "usage.completion_tokens", "cost_usd", "request_id")
    assert kernel.value(f"[{', '.join(f'answer.{name}' for name in names)}]") == [
        *('{"a": [1, 2]}', {"a": [1, 2]}, 11, 5, pytest.approx(usd), row["request_id"])
    ]
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (11, 5, pytest.approx(usd))
    kernel.run("%%llm -o answer\nSo:\n```python\n1 + 1\n```").ok()
    assert kernel.value("answer.code") == "1 + 1"


FORMATS = {
    "md": ("**bold**", "**bold**", "**bold**\n\n<small>"),
    "text": ("**bold**", "**bold**", None),
    "json": ('```json\n{"a":1}\n```', '{\n  "a": 1\n}', '```json\n{\n  "a": 1\n}\n```\n\n<small>'),
    "code": ("So:\n```python\n1 + 1\n```\nThat's it.", "1 + 1", "```python\n1 + 1\n```\n\n<small>"),
    "html": ("```html\n<b>hi</b>\n```", "<b>hi</b>", "```html\n<b>hi</b>\n```\n\n<small>"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_formats(kernel: Kernel, form: str) -> None:
    answer, plain, rich = FORMATS[form]
    outcome = kernel.run(f"%%llm -f {form} --no-history\n{answer}").ok()
    bundle = outcome.displays[-1]
    assert outcome.shown()[0] == plain
    assert outcome.shown()[1].startswith("gpt-4o-mini · ")
    kinds = {"text/plain"} | ({"text/markdown"} if rich else set()) | ({"text/html"} & {f"text/{form}"})
    assert set(bundle) == kinds
    if rich is not None:
        assert bundle["text/markdown"].lstrip().startswith(rich)
    if form == "html":
        assert "<iframe" in bundle["text/html"]
        assert "sandbox" in bundle["text/html"]


def test_the_format_of_the_settings_is_the_default(kernel: Kernel) -> None:
    kernel.run("%config NbLLM.format = 'text'").ok()
    assert set(kernel.run("%llm Hi").ok().displays[-1]) == {"text/plain"}
    kernel.run("%config NbLLM.format = 'md'").ok()
    assert "text/markdown" in kernel.run("%llm Hi").ok().displays[-1]


def test_the_system_message_holds_for_the_conversation(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("animal = 'otters {{x}}'").ok()
    kernel.run('%%llm --system "You know {{animal}}"\nOne').ok()
    told = {"role": "system", "content": "You know otters {{x}}"}
    assert sent(raw) == [told, {"role": "user", "content": "One"}]
    kernel.run("%%llm\nTwo").ok()
    assert sent(raw)[0] == told
    assert len(sent(raw)) == 4
    kernel.run("%config NbLLM.system = 'Be brief'").ok()
    kernel.run("%%llm\nThree").ok()
    assert sent(raw)[0] == told
    kernel.run("%%llm --new\nFour").ok()
    kernel.run("%config NbLLM.system = None").ok()
    assert sent(raw) == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Four"}]


def test_parameters_go_along(kernel: Kernel, raw: RawServer) -> None:
    kernel.run('%%llm -p temperature=0.5 -p stop=["a b"] -p user="7" -p seed=7\nHi').ok()
    body = raw.requests[-1].json
    assert [body[name] for name in ("temperature", "stop", "user", "seed")] == [0.5, ["a b"], "7", 7]


PICTURES = {
    "path": "'red.png'",
    "variable of a path": "named",
    "PIL image": "picture",
    "bytes": "data",
    "figure": "figure",
}


@pytest.mark.parametrize("given", PICTURES)
def test_pictures_go_along(kernel: Kernel, raw: RawServer, given: str) -> None:
    Image.new("RGB", (3, 2), "red").save(kernel.folder / "red.png")
    kernel.run(
        "import PIL.Image, pathlib\nfrom matplotlib.figure import Figure\n"
        "named = pathlib.Path('red.png')\npicture = PIL.Image.open(named)\ndata = named.read_bytes()\n"
        "figure = Figure(figsize=(2, 1), dpi=50)\nfigure.add_subplot().plot([1, 2])"
    ).ok()
    kernel.run(f"%%llm -i {PICTURES[given]} -i red.png\nWhat is it?").ok()
    text, first, second = sent(raw)[-1]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    kinds, pixels = zip(*(image(part) for part in (first, second)), strict=True)
    assert kinds == ("data:image/png;base64",) * 2
    assert pixels[1] == (3, 2, [(6, (255, 0, 0))])
    if given == "figure":
        assert pixels[0][0] > 30
        assert len(pixels[0][2]) > 1
    else:
        assert pixels[0] == pixels[1]


def image(part: dict[str, Any]) -> tuple[str, tuple[int, int, Any]]:
    """The kind of a picture that was sent, and its size and colours."""
    kind, _, data = part["image_url"]["url"].partition(",")
    found = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    return kind, (*found.size, found.getcolors(100_000))


def test_the_url_of_a_picture_goes_along_as_it_is(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("where = 'https://example.org/b.png'").ok()
    kernel.run("%%llm -i https://example.org/a.png?b=c -i where\nWhat is it?").ok()
    assert [part.get("image_url") for part in sent(raw)[-1]["content"]] == [
        *(None, {"url": "https://example.org/a.png?b=c"}, {"url": "https://example.org/b.png"})
    ]


def test_a_picture_that_is_not_there(kernel: Kernel, raw: RawServer) -> None:
    before = len(raw.requests)
    kernel.run("picture = 1").ok()
    outcome = fails(kernel.run("%%llm -i pictur\nWhat is it?"), "UsageProblem")
    assert "-i pictur: there is no such file or variable; did you mean 'picture'?" in outcome.traceback
    assert "int" in fails(kernel.run("%%llm -i picture\nWhat is it?"), "UsageProblem").traceback
    assert len(raw.requests) == before


SCHEMAS = {
    "pydantic": "class Animal(pydantic.BaseModel):\n    name: str\n    legs: int",
    "dataclass": "@dataclasses.dataclass\nclass Animal:\n    name: str\n    legs: int",
    "dict": "Animal = {'type': 'object', 'properties': {'name': {'type': 'string'}, "
    "'legs': {'type': 'integer'}}, 'required': ['name', 'legs']}",
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_an_answer_must_fit_the_schema(kernel: Kernel, session: str, raw: RawServer, kind: str) -> None:
    kernel.run(f"import dataclasses, pydantic\n{SCHEMAS[kind]}").ok()
    kernel.run('%%llm --schema Animal -o animal\n{"name": "otter", "legs": 4}').ok()
    asked = raw.requests[-1].json["response_format"]
    assert asked["type"] == "json_schema"
    types = {name: one["type"] for name, one in asked["json_schema"]["schema"]["properties"].items()}
    assert types == {"name": "string", "legs": "integer"}
    if kind == "dict":
        assert kernel.value("animal.parsed") == {"name": "otter", "legs": 4}
    else:
        assert kernel.value("[type(animal.parsed) is Animal, animal.parsed.name, animal.parsed.legs]") == [
            *(True, "otter", 4)
        ]
    turns = said(kernel)

    wrong = '{"name": "crab", "legs": "many"}'
    outcome = fails(kernel.run(f"%%llm --schema Animal -o animal\n{wrong}"), "APIResponseValidationError")
    assert "legs" in outcome.traceback
    assert outcome.shown()[0] == json.dumps(json.loads(wrong), indent=2)
    assert outcome.shown()[1].startswith("does not fit · gpt-4o-mini · ")
    assert kernel.value("animal.text") == '{"name": "otter", "legs": 4}'
    assert said(kernel) == turns
    assert len(kernel.rows(session_id=session)) == 2


def test_an_answer_that_is_no_json_is_shown_and_the_cell_fails(kernel: Kernel, raw: RawServer) -> None:
    outcome = fails(kernel.run("%%llm -f json\nNo JSON here"), "APIResponseValidationError")
    assert "does not fit JSON" in outcome.traceback
    assert outcome.shown()[0] == "No JSON here"
    assert any("JSON" in message["content"] for message in sent(raw) if message["role"] == "system")
    assert said(kernel) == []


def test_another_server(kernel: Kernel, raw: RawServer) -> None:
    outcome = kernel.run(f"%%llm mine --base-url {raw.url('chat')}\nHi").ok()
    assert raw.requests[-1].path == "/chat/v1/chat/completions"
    assert raw.requests[-1].json["model"] == "mine"
    assert outcome.shown()[0] == servers.TEXT


def test_the_cells_before_go_along(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("forgotten = 1").ok()
    first = kernel.run("x = 6 * 7\nprint('printed', x)").ok()
    kernel.run("   ").ok()
    second = kernel.run("x + 1").ok()
    kernel.run("%%llm --context 2\nExplain {{x}}").ok()
    before, asked = sent(raw)[-1]["content"]
    assert asked == {"type": "text", "text": "Explain 42"}
    assert before["text"] == (
        "These cells of the notebook ran before:\n\n"
        f"In [{first.execution_count}]:\nx = 6 * 7\nprint('printed', x)\n\n"
        f"Out [{first.execution_count}]:\nprinted 42\n\n"
        f"In [{second.execution_count}]:\nx + 1\n\nOut [{second.execution_count}]:\n43\n\n"
    )


def test_raw_leaves_braces_alone(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("name = 'x'").ok()
    text = r"{{name}} \{{name}} {{undefined}}"
    kernel.run(f'%%llm --raw --system "{{{{name}}}}"\n{text}').ok()
    assert [message["content"] for message in sent(raw)] == ["{{name}}", text]


def test_without_streaming_the_answer_comes_at_once(kernel: Kernel, session: str, raw: RawServer) -> None:
    outcome = kernel.run("%%llm --no-stream\nAn answer of some length").ok()
    assert "stream" not in raw.requests[-1].json
    assert outcome.shown()[0] == "An answer of some length"
    assert len(outcome.outputs) == 1
    kernel.run("%%llm\nAn answer of some length").ok()
    assert raw.requests[-1].json["stream"] is True
    assert [row["stream"] for row in kernel.rows(session_id=session)] == [0, 1]


def test_a_dry_run_prints_what_would_be_sent(kernel: Kernel, session: str, raw: RawServer) -> None:
    kernel.run("import pandas as pd\nname = 'otters'\ndf = pd.DataFrame({'a': range(3)})").ok()
    kernel.run("%%llm\nBefore").ok()
    before = len(raw.requests)
    cell = '%%llm gpt-4o demo/fast {} --system "Be {{{{name}}}}" -p temperature=0 -i https://x.org/a.png\n'
    cell += "About {{{{name}}}}:\n{{{{df}}}}"
    outcome = kernel.run(cell.format("--dry-run -o nothing")).ok()
    assert len(raw.requests) == before
    assert len(kernel.rows(session_id=session)) == 1
    assert outcome.displays == []
    assert kernel.value("'nothing' in globals()") is False
    conversation = [
        "system: Be otters",
        *("user: Before", "assistant: Before"),
        *("user: About otters:", "|a|", "|---|", "|0|", "|1|", "|2|", "[image_url]"),
        "temperature: 0",
    ]
    assert outcome.stdout.splitlines() == [
        f"Nothing was sent. Session: {session}",
        *("", "to gpt-4o", *conversation[:-1]),
        *("", "to demo/fast", *conversation),
        *(
            "",
            "Variables",
            "  {{name}}  str, 6 characters",
            f"  {{{{df}}}}  DataFrame, {tables.size(pd.DataFrame({'a': range(3)}))}",
        ),
    ]
    assert said(kernel) == ["Before", "Before"]
    kernel.run(cell.format("")).ok()
    (asked,) = (one.json["messages"] for one in raw.requests[before:])
    flat = []
    for message in asked:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        texts = [part.get("text", f"[{part['type']}]") for part in parts]
        flat += f"{message['role']}: {chr(10).join(texts)}".splitlines()
    assert flat == conversation[:-1]


def test_debug_shows_the_traceback(kernel: Kernel) -> None:
    outcome = kernel.run("%%llm demo/error --debug\nHi")
    assert (outcome.status, outcome.error) == ("error", "InternalServerError")
    assert "Traceback (most recent call last)" in outcome.traceback
    assert "cells.py" in outcome.traceback
    fails(kernel.run("%%llm demo/error\nHi"), "InternalServerError")


def test_quiet_shows_nothing(kernel: Kernel) -> None:
    outcome = kernel.run("%%llm -q -o answer\nHello").ok()
    assert (outcome.outputs, kernel.value("answer.text")) == ([], "Hello")


# -- several models ------------------------------------------------------------------------------------


def test_several_models_stream_at_once(kernel: Kernel, session: str, raw: RawServer) -> None:
    raw.gate.clear()
    before = len(raw.requests)
    cell = kernel.send(f"%%llm one two -o answers --base-url {raw.url('named')}\nWho are you?")
    kernel.wait_for_display(cell, "## one\n\nThis is ", "## two\n\nThis is ")
    assert not any(request.answered for request in raw.requests[before:])
    raw.open_gate()
    outcome = kernel.wait(cell).ok()
    assert sorted(request.json["model"] for request in raw.requests[before:]) == ["one", "two"]
    bundle = outcome.displays[-1]
    assert set(bundle) == {"text/plain", "text/markdown", "text/html"}
    one, two = bundle["text/plain"].split("\n\n## two\n\n")
    assert one.startswith(f"## one\n\nThis is one\n\none · {session} · 11→5 tok · ")
    assert two.startswith(f"This is two\n\ntwo · {session} · 11→5 tok · ")
    assert len({message["content"]["transient"]["display_id"] for message in outcome.outputs}) == 1
    rows = kernel.rows(session_id=session)
    assert {row["status"] for row in rows} == {"ok"}
    assert {one["request_id"]: one["model"] for one in outcome.traced()} == {
        row["request_id"]: row["request_model"] for row in rows
    }
    assert kernel.value("{model: answer.text for model, answer in answers.items()}") == {
        "one": "This is one",
        "two": "This is two",
    }


def test_each_model_sees_its_own_answers(kernel: Kernel, raw: RawServer) -> None:
    raw.open_gate()
    for prompt in ("Who are you?", "Again?"):
        kernel.run(f"%%llm one two --base-url {raw.url('named')}\n{prompt}").ok()
    asked = {request.json["model"]: request.json["messages"] for request in raw.requests[-2:]}
    assert {model: [m["content"] for m in messages] for model, messages in asked.items()} == {
        model: ["Who are you?", f"This is {model}", "Again?"] for model in ("one", "two")
    }


def test_one_of_several_models_fails(kernel: Kernel, session: str, raw: RawServer) -> None:
    raw.open_gate()
    kernel.run("answers = None").ok()
    outcome = kernel.run(f"%%llm bad good -o answers --base-url {raw.url('named')}\nWho are you?")
    fails(outcome, "InternalServerError")
    bad, good = outcome.displays[-1]["text/plain"].split("\n\n## good\n\n")
    assert bad.startswith("## bad\n\nInternalServerError: 500: no (Bearer [key])")
    assert good.startswith(f"This is good\n\ngood · {session} · ")
    assert kernel.value("{model: answer.text for model, answer in answers.items()}") == {
        "good": "This is good"
    }
    assert said(kernel) == ["Who are you?", "This is good"]
    rows = {row["request_model"]: row["status"] for row in kernel.rows(session_id=session)}
    assert rows == {"bad": "error", "good": "ok"}
    assert KEY not in json.dumps(outcome.outputs, default=str)


def test_one_of_several_answers_is_no_json(kernel: Kernel, session: str) -> None:
    outcome = kernel.run("%%llm gpt-4o demo/fast -f json -o answers\nNo JSON")
    fails(outcome, "APIResponseValidationError")
    assert outcome.displays[-1]["text/plain"].startswith("## gpt-4o\n\nNo JSON\n\ndoes not fit · gpt-4o · ")
    assert kernel.value("[list(answers), answers['demo/fast'].json()['demo']]") == [["demo/fast"], True]
    assert said(kernel)[0] == "No JSON"
    assert json.loads(said(kernel)[1])["demo"] is True


@pytest.mark.parametrize("models", ["one", "one two", "mute one"])
def test_an_interrupt_ends_all_requests_and_leaves_no_turn(
    kernel: Kernel, session: str, raw: RawServer, models: str
) -> None:
    raw.gate.clear()
    before, names = len(raw.requests), models.split()
    talking = [name for name in names if name != "mute"]
    cell = kernel.send(f"%%llm {models} --base-url {raw.url('named')}\nWho are you?")
    kernel.wait_for_display(
        cell, *(["This is "] if len(names) == 1 else [f"{n}\n\nThis is " for n in talking])
    )
    raw.wait_for(lambda: len(raw.requests) == before + len(names))
    outcome, seconds = kernel.interrupt(cell)
    assert (outcome.error, seconds < 2) == ("KeyboardInterrupt", True)
    assert outcome.traceback == "KeyboardInterrupt: the request was cancelled"
    requests = raw.requests[before:]
    raw.wait_for(lambda: all(request.client_gone for request in requests))
    text = outcome.displays[-1]["text/plain"]
    assert text.count("This is ") == len(talking)
    for name in talking:
        assert f"This is \n\ninterrupted · {name} · {session} · " in text
    assert [row["status"] for row in kernel.rows(session_id=session)] == ["cancelled"] * len(names)
    assert said(kernel) == []


# -- the conversation ----------------------------------------------------------------------------------


def contents(raw: RawServer) -> list[str]:
    return [message["content"] for message in sent(raw)]


def test_new_starts_over_and_no_history_stays_aside(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("%%llm\nOne").ok()
    kernel.run("%%llm --no-history\nAside").ok()
    assert contents(raw) == ["Aside"]
    kernel.run("%%llm\nTwo").ok()
    assert contents(raw) == ["One", "One", "Two"]
    kernel.run("%%llm --new\nThree").ok()
    assert contents(raw) == ["Three"]
    kernel.run("%%llm\nFour").ok()
    assert contents(raw) == ["Three", "Three", "Four"]


def test_a_notebook_that_runs_twice_gives_the_same_conversation(kernel: Kernel, raw: RawServer) -> None:
    runs = []
    for _ in range(2):
        seen = []
        for name in ("a", "b", "c"):
            kernel.run(f"%%llm\n{name}", cell_id=f"cell-{name}").ok()
            seen.append(contents(raw))
        runs.append((seen, said(kernel)))
    assert runs[0] == runs[1]
    assert runs[0][0] == [["a"], ["a", "a", "b"], ["a", "a", "b", "b", "c"]]
    kernel.run("%%llm\nB", cell_id="cell-b").ok()
    assert contents(raw) == ["a", "a", "B"]
    assert said(kernel) == ["a", "a", "B", "B", "c", "c"]


ON_RERUN = {
    "replace": (["a", "a", "B"], ["a", "a", "B", "B", "c", "c"]),
    "append": (["a", "a", "b", "b", "c", "c", "B"], ["a", "a", "b", "b", "c", "c", "B", "B"]),
    "fork": (["a", "a", "B"], ["a", "a", "B", "B"]),
}


def run_again(kernel: Kernel, raw: RawServer) -> tuple[list[str], list[str]]:
    """Run three cells, and the second one again, changed; what was sent then, and what the talk is."""
    for text, name in (*zip("abc", "abc", strict=True), ("B", "b")):
        kernel.run(f"%%llm\n{text}", cell_id=f"cell-{name}").ok()
    return contents(raw), said(kernel)


@pytest.mark.parametrize("on_rerun", ON_RERUN)
def test_what_a_cell_that_runs_again_does_is_set_by_config(
    kernel: Kernel, raw: RawServer, on_rerun: str
) -> None:
    kernel.run(f"%config NbLLM.on_rerun = '{on_rerun}'").ok()
    try:
        assert run_again(kernel, raw) == ON_RERUN[on_rerun]
    finally:
        kernel.run("%config NbLLM.on_rerun = 'replace'").ok()


def test_what_a_cell_that_runs_again_does_is_set_in_pyproject(
    fresh: Callable[..., Kernel], raw: RawServer, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.nbllm]\non_rerun = "fork"\n')
    assert run_again(fresh(), raw) == ON_RERUN["fork"]


def test_a_call_that_fails_leaves_no_turn_and_a_re_run_that_fails_leaves_the_old_one(
    kernel: Kernel, raw: RawServer
) -> None:
    kernel.run("%%llm\nOne", cell_id="one").ok()
    fails(kernel.run("%%llm demo/error\nOne, again", cell_id="one"), "InternalServerError")
    fails(kernel.run("%%llm demo/error\nTwo", cell_id="two"), "InternalServerError")
    assert kernel.run(f"%%llm --base-url {raw.url('nodone')}\nTwo", cell_id="two").error is not None
    assert said(kernel) == ["One", "One"]
    kernel.run("%%llm\nThree", cell_id="three").ok()
    assert contents(raw) == ["One", "One", "Three"]


# -- what the cell shows -------------------------------------------------------------------------------


def test_code_is_offered_as_the_next_cell_once(kernel: Kernel) -> None:
    cell = "%%llm -f code\nSo:\n```python\nx = {}\n```"
    first = kernel.run(cell.format(1), cell_id="coder").ok()
    assert first.payload == [{"source": "set_next_input", "text": "x = 1", "replace": False}]
    assert kernel.run(cell.format(2), cell_id="coder").ok().payload == []
    other = kernel.run(cell.format(3), cell_id="other coder").ok()
    assert [one["text"] for one in other.payload] == ["x = 3"]
    assert kernel.run("%%llm\n```python\n1\n```", cell_id="talker").ok().payload == []


def test_a_table_goes_in_as_markdown_and_the_footer_tells_what_was_cut(
    kernel: Kernel, session: str, raw: RawServer
) -> None:
    kernel.run("import pandas as pd\ndf = pd.DataFrame({'a': range(150), 'b': 1.5})").ok()
    outcome = kernel.run("%%llm\nLook:\n{{df}}\n{{df['a'].head(2)}}").ok()
    lines = contents(raw)[-1].splitlines()
    assert lines[:4] == ["Look:", "|a|b|", "|---|---|", "|0|1.5|"]
    assert "|99|1.5|" in lines
    assert "|100|1.5|" not in lines
    assert "(only the first 100 of 150 rows)" in lines
    assert lines[-4:] == ["|a|", "|---|", "|0|", "|1|"]
    assert outcome.shown()[1].endswith(" · df: only the first 100 of 150 rows")
    kernel.run("%config NbLLM.max_rows = 200").ok()
    outcome = kernel.run("%%llm\n{{df}}").ok()
    kernel.run("%config NbLLM.max_rows = 100").ok()
    assert "|149|1.5|" in contents(raw)[-1]
    assert "rows" not in outcome.shown()[1]


def test_a_figure_goes_in_as_a_picture(kernel: Kernel, raw: RawServer) -> None:
    kernel.run(
        "from matplotlib.figure import Figure\nfig = Figure(figsize=(2, 1), dpi=50)\nax = fig.add_subplot()"
    ).ok()
    kernel.run("%%llm\nWhat does {{fig}} show, and {{ax.get_title()!r}}{{len(fig.axes)}}?").ok()
    before, picture, after = sent(raw)[-1]["content"]
    assert [before["text"], after["text"]] == ["What does ", " show, and ''1?"]
    kind, (width, height, colours) = image(picture)
    assert kind == "data:image/png;base64"
    assert width > height > 20
    assert len(colours) > 1


def test_a_cell_says_what_it_waits_for_until_something_comes(kernel: Kernel, raw: RawServer) -> None:
    raw.gate.clear()
    cell = kernel.send(f"%%llm patient --base-url {raw.url('gated')}\nHi")
    kernel.wait_for_display(cell, "waiting for patient · 2 s")
    raw.open_gate()
    outcome = kernel.wait(cell).ok()
    waited = [shown["text/plain"] for shown in outcome.displays if "waiting" in shown["text/plain"]]
    assert len(waited) == len(set(waited)) > 1
    assert outcome.shown()[0] == servers.TEXT
    assert "waiting" not in json.dumps(outcome.displays[-1])
    assert {one["msg_type"] for one in outcome.outputs[1:]} == {"update_display_data"}
    quick = kernel.run(f"%%llm patient --base-url {raw.url('gated')}\nHi").ok()
    assert "waiting" not in json.dumps(quick.displays)


@pytest.mark.parametrize("flag", ["", "--no-stream"])
def test_what_it_waited_for_gives_way_to_how_it_ended(kernel: Kernel, raw: RawServer, flag: str) -> None:
    raw.gate.clear()
    before = len(raw.requests)
    cell = kernel.send(f"%%llm patient {flag} --base-url {raw.url('gated')}\nHi")
    kernel.wait_for_display(cell, "waiting for patient")
    stopped, _ = kernel.interrupt(cell)
    raw.wait_for(lambda: raw.requests[before].client_gone)

    cell = kernel.send(f"%%llm patient {flag} --base-url {raw.url('refuses')}\nHi")
    kernel.wait_for_display(cell, "waiting for patient · 2 s")  # the first one would have told again
    raw.open_gate()
    failed = fails(kernel.wait(cell), "InternalServerError")
    for outcome, mark in ((stopped, "interrupted"), (failed, "failed")):
        assert outcome.displays[-1]["text/plain"].startswith(mark)
        assert "waiting" not in json.dumps(outcome.displays[-1])


def test_reasoning_is_folded_away(kernel: Kernel, raw: RawServer) -> None:
    raw.gate.clear()
    cell = kernel.send(f"%%llm thinker -o answer --base-url {raw.url('thinks')}\nDo otters swim?")
    kernel.wait_for_display(cell, "(thinking: 19 characters)")
    raw.open_gate()
    outcome = kernel.wait(cell).ok()
    bundle = outcome.displays[-1]
    assert bundle["text/plain"].startswith("(reasoning: 19 characters)\n\nThey swim\n\nthinker · ")
    folded, closed, rest = bundle["text/markdown"].partition("</details>")
    assert folded.startswith("<details><summary>Reasoning</summary>")
    assert "Otters" in folded
    assert "<b>" not in folded
    assert closed
    assert rest.strip().startswith("They swim\n\n<small>thinker · ")
    assert kernel.value("answer.text") == "They swim"
    assert said(kernel) == ["Do otters swim?", "They swim"]


# -- settings and keys ---------------------------------------------------------------------------------


def test_without_a_key_the_demo_model_answers_and_the_footer_says_what_to_do(
    fresh: Callable[..., Kernel], demo: DemoServer
) -> None:
    kernel, hint = fresh(env={}), "no key is set: %nbllm key openai"
    before = demo.stats()["requests_total"]
    assert kernel.run("%%llm\nHi").ok().shown()[1].endswith(f" · {hint}")
    assert hint not in kernel.run("%%llm demo/small\nHi").ok().shown()[1]
    kernel.run("%nbllm model demo/fast").ok()
    assert hint not in kernel.run("%%llm\nHi").ok().shown()[1]
    assert demo.stats()["requests_total"] == before + 3


def test_the_nearest_setting_wins(fresh: Callable[..., Kernel], raw: RawServer, tmp_path: Path) -> None:
    kernel = fresh()

    def asked(cell: str = "%%llm\nHi") -> tuple[str, str]:
        kernel.run(cell).ok()
        kernel.run("config = %nbllm config").ok()
        return raw.requests[-1].json["model"], kernel.value("str(config.loc['model', 'from'])")

    assert asked() == ("gpt-4o-mini", "default")
    (tmp_path / ".env").write_text("NBLLM_MODEL=openai/dotenv\n")
    assert asked() == ("dotenv", ".env: NBLLM_MODEL")
    kernel.run("%env NBLLM_MODEL=openai/environment").ok()
    assert asked() == ("environment", "NBLLM_MODEL")
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.nbllm]\nmodel = "openai/project"\nformat = "text"\n')
    kernel.run("nbllm.configure()").ok()  # reads it
    assert asked() == ("project", str(project))
    kernel.run("%config NbLLM.model = 'openai/configured'").ok()
    assert asked() == ("configured", "configure")
    assert kernel.run("%config NbLLM.model").ok().displays[-1]["text/plain"] == "'openai/configured'"
    assert asked("%%llm openai/flag\nHi") == ("flag", "configure")
    assert kernel.value("nbllm.configure().format") == "text"


def test_the_key_of_a_dotenv_file_is_used_and_never_shown(
    fresh: Callable[..., Kernel], raw: RawServer, tmp_path: Path
) -> None:
    secret = "a-key-of-no-known-form-42"
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={secret}\nOPENAI_BASE_URL={raw.url('echo')}\n")
    kernel = fresh(env={"NBLLM_NUM_RETRIES": "0"})
    outcomes = [
        kernel.run("%%llm\nHi").ok(),
        kernel.run("%nbllm").ok(),
        kernel.run("%nbllm config").ok(),
        kernel.run(f"%%llm gpt-4o --base-url {raw.url('status-401')}\nHi"),
        kernel.run(f"%%llm gpt-4o --debug --base-url {raw.url('status-401')}\nHi"),
        kernel.run("%%llm --dry-run\n{{open('.env').read()}}").ok(),
        kernel.run("%nbllm doctor").ok(),
        kernel.run("nbllm.requests().iloc[-1].to_dict()").ok(),
    ]
    assert [request.headers["authorization"] for request in raw.requests[-3:]] == [f"Bearer {secret}"] * 3
    assert [outcome.error for outcome in outcomes[3:5]] == ["AuthenticationError"] * 2
    assert "openai" in outcomes[1].stdout
    assert "OPENAI_API_KEY=[key]" in outcomes[5].stdout
    assert kernel.value("'OPENAI_API_KEY' in __import__('os').environ") is False
    assert kernel.value("__import__('subprocess').getoutput('env').count('OPENAI_API_KEY')") == 0
    shown = [json.dumps(outcome.outputs, default=str) for outcome in outcomes]
    assert [number for number, text in enumerate(shown) if secret in text] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


# -- manners -------------------------------------------------------------------------------------------


def test_loading_is_silent_and_starts_and_writes_nothing(tmp_path: Path) -> None:
    with Kernel(tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"}) as kernel:
        kernel.run(
            "import os, sys, threading, nbllm\n"
            "events = None\n"
            "def hook(event, args):\n"
            "    if events is None: return\n"
            "    if event in ('os.mkdir', 'subprocess.Popen', 'socket.connect', 'sqlite3.connect'):\n"
            "        events.append(f'{event} {args}')\n"
            "    if event == 'open' and (set(str(args[1])) & set('wax+') or\n"
            "            args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):\n"
            "        events.append(f'{event} {args}')\n"
            "sys.addaudithook(hook)"
        ).ok()
        outcome = kernel.run(
            "before, events = set(threading.enumerate()), []\n"
            "%load_ext nbllm\n"
            "found, events = events, None\n"
            "started = [str(one) for one in set(threading.enumerate()) - before]"
        ).ok()
        assert outcome.outputs == []
        assert kernel.value("[found, started]") == [[], []]
        assert not (tmp_path / "log.db").exists()
        kernel.run("events = []\nopen('x', 'w').close()\nfound, events = events, None").ok()
        assert len(kernel.value("found")) == 1  # the hook does see what is written


def test_somebody_else_s_magics_stay_and_nbllm_s_always_work(
    tmp_path: Path, raw: RawServer, demo: DemoServer
) -> None:
    with Kernel(tmp_path, demo, env=witnessed(raw)) as kernel:
        kernel.run(
            "for name in ('llm', 'session'):\n"
            "    get_ipython().register_magic_function(\n"
            "        lambda line, cell, name=name: print('their', name, line, cell), 'cell', name)"
        ).ok()
        outcome = kernel.run("%load_ext nbllm")
        assert "%%llm belongs to __main__ and stays so; %%nbllm asks a model with nbllm" in outcome.stderr
        assert "%%session belongs to __main__ and stays so" in outcome.stderr
        assert kernel.run("%%llm a\nb").ok().stdout == "their llm a b\n\n"
        assert kernel.run("%%session a\nb").ok().stdout == "their session a b\n\n"
        before = len(raw.requests)
        assert kernel.run("%%nbllm gpt-4o -o answer\nOtters").ok().shown()[0] == "Otters"
        assert kernel.run("%llm -m gpt-4o Penguins?").ok().shown()[0] == "Penguins?"
        assert [request.json["model"] for request in raw.requests[before:]] == ["gpt-4o"] * 2


OWN_KEY = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "cell",
    [
        f"%%llm --dry-run -p api_key={OWN_KEY}\nHi",
        f'%%llm --dry-run -p extra_headers={{"x-api-key": "{OWN_KEY}"}}\nHi',
        f"%%llm --base-url http://h/v1?key={OWN_KEY}\nHi",
        f"%%llm --base-url ftp://user:{OWN_KEY}@h/v1\nHi",
        f"%nbllm key openai {OWN_KEY}",
        f"%nbllm key {OWN_KEY}",
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(kernel: Kernel, cell: str) -> None:
    outcome = kernel.run(cell)
    assert outcome.stdout or outcome.traceback
    assert OWN_KEY not in json.dumps(outcome.outputs, default=str)


def test_a_key_in_an_earlier_cell_does_not_go_along(kernel: Kernel, raw: RawServer) -> None:
    key = "fedcba9876543210fedcba9876543210"
    kernel.run(f"nbllm.set_key('mistral', '{key}')").ok()
    kernel.run("%%llm gpt-4o --context 1\nWhat did I do?").ok()
    assert "set_key('mistral'" in str(raw.requests[-1].json["messages"])
    assert key not in str(raw.requests[-1].json)


def test_a_name_that_leads_nowhere_stops_all_of_several_models(kernel: Kernel, raw: RawServer) -> None:
    before = len(raw.requests)
    outcome = kernel.run("%%llm gpt-4o nope\nHi")
    assert outcome.error == "NotFoundError"
    assert len(raw.requests) == before


def test_code_and_html_are_asked_for(kernel: Kernel, raw: RawServer) -> None:
    for form in ("code", "html", "json"):
        kernel.run(f"%%llm -f {form} --no-history\n[1]").ok()
        told, _ = raw.requests[-1].json["messages"]
        assert told["role"] == "system"
        assert form in told["content"].lower()
    outcome = kernel.run("%%llm -f code --no-history\nNo code in here.").ok()
    assert outcome.payload == []


def test_the_help_is_named_where_it_is_looked_for(kernel: Kernel) -> None:
    for cell in ("%%llm --help\nHi", "%llm -h Hi"):
        assert kernel.run(cell).traceback == "UsageProblem: %%llm? shows the options"
    assert "%nbllm doctor" in kernel.run("%nbllm help").ok().stdout


def test_several_models_take_the_key_of_the_cell(kernel: Kernel, raw: RawServer) -> None:
    line = f"mistral/a mistral/b -p api_key={OWN_KEY} --base-url {raw.url('echo')}"
    outcome = kernel.run(f"%%llm {line}\nHi").ok()
    assert outcome.displays[-1]["text/plain"].count("Hi") == 2
    assert {request.headers["authorization"] for request in raw.requests[-2:]} == {f"Bearer {OWN_KEY}"}
    assert OWN_KEY not in json.dumps(outcome.outputs, default=str)
    assert kernel.run(f"%%llm mistral/a mistral/b -p api_key={OWN_KEY} --dry-run\nHi").ok()
