"""`%nbllm` in a real kernel: each command, compared with what the servers counted and the log holds."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import commands, frame_texts, settings, tagging
from nbllm.servers import demo_chat
from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel, Outcome
from tests.servers import RawServer

KEY = "sk-from-the-environment-123"
LOAD = "%load_ext nbllm\nimport nbllm"


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(pace=0) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, raw: RawServer, demo: DemoServer) -> Iterator[Kernel]:
    env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": raw.url("echo"), "NBLLM_NUM_RETRIES": "0"}
    with Kernel(tmp_path_factory.mktemp("kernel"), demo, env=env) as started:
        started.run(LOAD).ok()
        yield started


@pytest.fixture
def kernel(shared: Kernel, request: pytest.FixtureRequest) -> Kernel:
    """The kernel, with a session of the test's own, and no settings of another's."""
    shared.run(f"nbllm.set_session({request.node.name!r})\nnbllm.configure(model=None, aliases={{}})").ok()
    return shared


def given(outcome: Outcome) -> str:
    """The value that a cell shows, as text."""
    text: str = outcome.ok().displays[-1]["text/plain"]
    return text


def fails(outcome: Outcome, message: str) -> None:
    """The cell failed with one line."""
    assert (outcome.status, outcome.error, outcome.stderr) == ("error", "UsageProblem", "")
    assert re.fullmatch(f"UsageProblem: {message}", outcome.traceback), outcome.traceback


def records(kernel: Kernel, command: str) -> list[dict[str, Any]]:
    """The rows of a command's DataFrame."""
    kernel.run(f"frame = %nbllm {command}").ok()
    found: list[dict[str, Any]] = kernel.value("__import__('json').loads(frame.to_json(orient='records'))")
    return found


# -- status --------------------------------------------------------------------------------------------


def test_the_status_is_one_screen_and_its_numbers_are_the_servers(
    tmp_path: Path, raw: RawServer, demo: DemoServer
) -> None:
    env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": raw.url("echo"), "NBLLM_NUM_RETRIES": "0"}
    with Kernel(tmp_path, demo, env=env) as kernel:
        kernel.run(LOAD).ok()
        requests, connections = len(raw.requests), len(raw.connections)
        told = status(kernel)
        assert told["model"] == "gpt-4o-mini"
        assert re.fullmatch(r"kernel-\d{8}-\d{6}-\w{4}", told["session"])
        assert (told["HTTP session"], told["requests"]) == ("not used yet", "none yet")
        assert (told["log"], told["keys"]) == (str(tmp_path / "log.db"), "openai")
        for text in "abc":
            kernel.run(f"%%llm\n{text}").ok()
        kernel.run("%%llm demo/error\nHi")
        told = status(kernel)
        pool = kernel.value("id(nbllm.shared_session())")
        rows = kernel.rows()
    assert len(raw.requests) - requests == 3
    opened = len(raw.connections) - connections + 1
    assert opened == 2
    assert told["session"].endswith(" · 6 messages")
    assert told["HTTP session"] == (
        f"id {pool} · {opened} connections open, 50% of requests on a reused one · first opened 0 min ago"
    )
    cost = sum(row["cost_usd"] for row in rows if row["cost_usd"] is not None)
    assert cost > 0
    said, _, money = told["requests"].rpartition("$")
    assert said == "4 requests · 1 error · 33→15 tok · "
    assert float(money) == pytest.approx(cost, rel=0.05)


def status(kernel: Kernel) -> dict[str, str]:
    """What `%nbllm` prints, by the name of the line."""
    lines = kernel.run("%nbllm").ok().stdout.splitlines()
    assert len(lines) <= 10
    return {line[:12].strip(): line[14:] for line in lines}


# -- frames --------------------------------------------------------------------------------------------


def test_requests_are_those_of_the_log(kernel: Kernel, raw: RawServer, request: Any) -> None:
    session = request.node.name
    kernel.run("%%llm gpt-4o\nOne").ok()
    kernel.run("%%llm demo/error\nTwo")
    kernel.run("%%llm demo/fast -s other\nThree").ok()
    rows = kernel.rows()
    names = ("session_id", "request_model", "status", "error_type", "input_tokens", "execution_count")
    assert [[one.get(name) for name in names] for one in records(kernel, "requests")] == [
        [row[name] for name in names] for row in rows
    ]
    mine = records(kernel, f"requests -s {session}")
    assert [one["request_model"] for one in mine] == ["gpt-4o", "error"]
    assert mine[0]["input_tokens"] == 11
    failed = records(kernel, f"requests -s {session} --errors")
    assert [(one["status"], one["error_type"]) for one in failed] == [("error", "InternalServerError")]
    assert all(one["status"] == "error" for one in records(kernel, "requests --errors"))
    assert records(kernel, "requests -s nobody") == []
    fails(kernel.run("%nbllm requests --error"), r".*takes \[-s SESSION\].* \[--latest\]; got '--error'")
    fails(kernel.run("%nbllm requests --since"), "--since needs a value: .*")
    fails(kernel.run("%nbllm requests --since later"), "a time is .*; got 'later'")
    fails(kernel.run("%nbllm sessions --errors"), "%nbllm sessions takes .*; got '--errors'")
    assert len(records(kernel, f"requests -s {session} --latest --cell {rows[-1]['execution_count']}")) == 0
    found = records(kernel, f'requests -k all --since 1h --search "One" --cell {mine[0]["execution_count"]}')
    assert [one["session_id"] for one in found] == [session]
    assert {one["owner"] for one in records(kernel, "sessions -k all")} == {tagging.owner()}
    kernel.run(f"nbllm.tag_session({session!r}, 'final')").ok()
    assert "final" in [one["tags"] for one in records(kernel, "sessions --since '1 h' --model error")]


@pytest.mark.parametrize("name", ["sessions", "requests", "connections"])
def test_the_options_of_a_frame_are_the_arguments_of_its_function(name: str) -> None:
    said = re.findall(r"(--?\w+)", commands.COMMANDS[name].argument)
    options = [commands._SHORT.get(flag, flag).removeprefix("--") for flag in said]
    assert options == list(inspect.signature(getattr(nbllm, name)).parameters)


def test_sessions_add_up_what_the_servers_counted(kernel: Kernel, raw: RawServer, request: Any) -> None:
    session, before = request.node.name, len(raw.requests)
    for text in "ab":
        kernel.run(f"%%llm\n{text}").ok()
    kernel.run("%%llm demo/error\nHi")
    (mine,) = [one for one in records(kernel, "sessions") if one["session_id"] == session]
    asked = len(raw.requests) - before
    assert (mine["requests"], mine["errors"]) == (asked + 1, 1)
    assert (mine["input_tokens"], mine["output_tokens"]) == (11 * asked, 5 * asked)
    assert mine["models"] == "error, gpt-4o-mini"


def test_connections_are_those_that_the_server_saw_and_close_ends_them(
    kernel: Kernel, raw: RawServer
) -> None:
    kernel.run("%%llm\nHi").ok()
    still = [one for one in raw.connections if one.open]
    ours = [one for one in records(kernel, "connections") if one["port"] == raw.port]
    last = ours[-1]
    assert last.get("closed_at") is None
    assert last["requests"] == still[-1].requests
    assert (last["bytes_sent"], last["bytes_received"]) == (still[-1].bytes_in, still[-1].bytes_out)
    open_now = kernel.value("int(nbllm.connections()['closed_at'].isna().sum())")
    said = kernel.run("%nbllm close").ok().stdout
    assert said == f"{open_now} connection{'' if open_now == 1 else 's'} closed\n"
    raw.wait_for(lambda: not any(one.open for one in still))
    assert kernel.value("int(nbllm.connections()['closed_at'].isna().sum())") == 0
    opened = len(raw.connections)
    kernel.run("%%llm\nHi").ok()
    assert len(raw.connections) == opened + 1


@pytest.mark.parametrize("name", ["sessions", "requests", "connections"])
def test_a_frame_shows_what_matters_in_the_order_of_the_table(kernel: Kernel, name: str) -> None:
    kernel.run("%%llm\nHi").ok()
    kernel.run(f"frame = %nbllm {name}").ok()
    columns, all_columns = kernel.value("list(frame.columns)"), kernel.value(f"list(nbllm.{name}().columns)")
    assert columns == [column for column in all_columns if column in columns]
    assert set(columns) <= set(frame_texts.SHOWN[name].split())
    assert 5 < len(columns) < len(all_columns)
    assert kernel.value("len(frame)") == kernel.value(f"len(nbllm.{name}())")
    assert "text/html" in kernel.run(f"%nbllm {name}").ok().displays[-1]


# -- settings ------------------------------------------------------------------------------------------


def test_model_is_told_and_set(kernel: Kernel, raw: RawServer) -> None:
    assert given(kernel.run("%nbllm model")) == "'gpt-4o-mini'"
    assert given(kernel.run("%nbllm model 'gpt-4.1'")) == "'gpt-4.1'"
    assert given(kernel.run("%nbllm model")) == "'gpt-4.1'"
    assert kernel.value("nbllm.configure().model") == "gpt-4.1"
    assert given(kernel.run("%config NbLLM.model")) == "'gpt-4.1'"
    kernel.run("%%llm\nHi").ok()
    assert raw.requests[-1].json["model"] == "gpt-4.1"
    assert kernel.run("%nbllm model gpt_4o").error == "NotFoundError"
    assert given(kernel.run("%nbllm model")) == "'gpt-4.1'"
    # A provider whose key is still to come may be chosen.
    assert given(kernel.run("%nbllm model claude-haiku-4-5")) == "'claude-haiku-4-5'"


def test_names_of_the_notebook_stand_for_their_values(kernel: Kernel) -> None:
    kernel.run("chosen = ['gpt-4.1', 'review']").ok()
    assert given(kernel.run("%nbllm model {chosen[0]}")) == "'gpt-4.1'"
    kernel.run("name = 'gpt-4o-mini'").ok()
    assert given(kernel.run("%nbllm model $name")) == "'gpt-4o-mini'"
    kernel.run("def choose():\n    name = 'gpt-4.1'\n    %nbllm model {name}\nchoose()").ok()
    assert given(kernel.run("%nbllm model")) == "'gpt-4.1'"
    fails(kernel.run("%nbllm session {nowhere}"), "can't put values into 'session {nowhere}': .*'nowhere'.*")
    fails(kernel.run("%nbllm session {1/0}"), "can't put values into 'session {1/0}': division by zero")
    fails(kernel.run("%nbllm session {{name}}"), "{{…}} is for prompts; .*")


def test_session_is_told_set_and_given_up(kernel: Kernel) -> None:
    kernel.run("nbllm.set_session(None)").ok()
    default = given(kernel.run("%nbllm session"))
    assert given(kernel.run("%nbllm session 'two words'")) == "'two words'"
    assert given(kernel.run("%nbllm session")) == "'two words'"
    kernel.run("%%llm demo/fast\nHi").ok()
    assert len(kernel.rows(session_id="two words")) == 1
    assert given(kernel.run("%nbllm session --default")) == default != "'two words'"
    kernel.run("%%llm demo/fast\nHi").ok()
    assert len(kernel.rows(session_id=default.strip("'"))) == 1
    fails(kernel.run("%nbllm session é"), "session id 'é' can't be used: .*")


def test_aliases(kernel: Kernel, raw: RawServer) -> None:
    assert given(kernel.run("%nbllm alias")) == "{}"
    assert given(kernel.run("%nbllm alias quick = gpt-4o")) == "{'quick': 'gpt-4o'}"
    kernel.run("%nbllm alias best=quick").ok()
    kernel.run("%%llm best\nHi").ok()
    assert raw.requests[-1].json["model"] == "gpt-4o"
    assert kernel.run("%nbllm alias quick=best").error == "UsageProblem"
    assert given(kernel.run("%nbllm alias best=")) == "{'quick': 'gpt-4o'}"
    assert kernel.run("%%llm best\nHi").error == "NotFoundError"
    fails(kernel.run("%nbllm alias quick"), ".*takes NAME=MODEL, or NAME= to forget it; got 'quick'")


def test_config_lists_every_setting_and_where_it_comes_from(kernel: Kernel) -> None:
    kernel.run("nbllm.configure(max_rows=7)\nconfig = %nbllm config").ok()
    names = list(settings.Settings.__dataclass_fields__)
    assert kernel.value("list(config.index)") == names
    assert kernel.value("config.loc['max_rows'].tolist()") == [7, "configure"]
    assert kernel.value("config.loc['num_retries'].tolist()") == [0, "NBLLM_NUM_RETRIES"]
    assert kernel.value("config.loc['format'].tolist()") == ["md", "default"]
    kernel.run("nbllm.configure(max_rows=100)").ok()


def test_every_setting_is_a_trait(kernel: Kernel) -> None:
    told = kernel.run("%config NbLLM").ok().stdout
    for name in settings.Settings.__dataclass_fields__:
        assert f"NbLLM.{name}=" in told
    kernel.run("%config NbLLM.max_rows = 5").ok()
    assert kernel.value("nbllm.configure().max_rows") == 5
    kernel.run("nbllm.configure(max_rows=100)").ok()
    assert given(kernel.run("%config NbLLM.max_rows")) == "100"
    refused = kernel.run("%config NbLLM.max_rows = 0")
    assert "max_rows must be a whole number of rows, 1 or more; got 0" in refused.stderr
    assert given(kernel.run("%config NbLLM.max_rows")) == "100"
    assert kernel.value("nbllm.configure().max_rows") == 100


def test_a_key_is_asked_for_hidden_and_never_shown(tmp_path: Path, raw: RawServer) -> None:
    secret = "a-key-of-no-known-form-77"
    with Kernel(tmp_path, env={"NBLLM_NUM_RETRIES": "0", "OPENAI_BASE_URL": raw.url("echo")}) as kernel:
        kernel.run(LOAD).ok()
        assert status(kernel)["keys"] == "none: %nbllm key openai"
        fails(kernel.run("%nbllm key openai"), "a key can't be asked for here: set OPENAI_API_KEY .*")
        outcome = kernel.run("%nbllm key openai", typed=secret).ok()
        assert outcome.stdout == "OPENAI_API_KEY is set for this kernel\n"
        (asked,) = outcome.asked
        assert asked["password"] is True
        assert "OPENAI_API_KEY" in asked["prompt"]
        assert status(kernel)["keys"] == "openai"
        dry = kernel.run("import os\n%llm --dry-run {{os.environ['OPENAI_API_KEY']}}").ok()
        assert "user: [key]" in dry.stdout
        kernel.run("%%llm gpt-4o\nHi").ok()
        assert raw.requests[-1].headers["authorization"] == f"Bearer {secret}"
        refused = kernel.run(f"%%llm gpt-4o --base-url {raw.url('status-401')}\nHi")
        assert raw.requests[-1].headers["authorization"] == f"Bearer {secret}"
        assert refused.error == "AuthenticationError"
        assert "[key]" in refused.traceback
        again = kernel.run("%nbllm key openia", typed="never asked")
        assert again.asked == []
        fails(again, "no provider with a key is called 'openia'; did you mean 'openai'.")
        fails(kernel.run("%nbllm key openai", typed=" "), "the key for openai is empty; nothing was changed")
        told = [outcome, refused, kernel.run("%nbllm config"), kernel.run("%nbllm doctor")]
        assert secret not in json.dumps([one.outputs for one in told], default=str)
        assert secret not in kernel.stderr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "log.db") in files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


# -- the rest ------------------------------------------------------------------------------------------


def test_models_are_those_of_the_servers_that_answer(kernel: Kernel) -> None:
    kernel.run("models = %nbllm models").ok()
    found = kernel.value("models[['provider', 'id']].values.tolist()")
    assert found == [["demo", name] for name in demo_chat.MODELS]


def test_reset_forgets_a_conversation(kernel: Kernel, raw: RawServer, request: Any) -> None:
    session = request.node.name
    kernel.run("%%llm\nOne").ok()
    kernel.run("%%llm -s aside\nTwo").ok()
    said = kernel.run("%nbllm reset").ok().stdout
    assert said == f"{session}: 2 messages forgotten; the log keeps them\n"
    kernel.run("%%llm\nThree").ok()
    assert [message["content"] for message in raw.requests[-1].json["messages"]] == ["Three"]
    assert len(kernel.rows(session_id=session)) == 2
    assert kernel.run("%nbllm reset aside").ok().stdout.startswith("aside: 2 messages forgotten")
    kernel.run("%%llm -s aside\nFour").ok()
    assert [message["content"] for message in raw.requests[-1].json["messages"]] == ["Four"]


def test_export_writes_requests_and_the_conversation(kernel: Kernel) -> None:
    kernel.run("%%llm\nOtters, “quoted”").ok()
    for name in ("requests.csv", "requests.jsonl", "talk.json", "talk.md"):
        assert kernel.run(f"%nbllm export {name}").ok().stdout == f"wrote {name}\n"
    folder, rows = kernel.folder, kernel.rows()
    with (folder / "requests.csv").open(newline="") as file:
        by_csv = list(csv.DictReader(file))
    by_json = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    for found in (by_csv, by_json):
        assert [one["request_id"] for one in found] == [row["request_id"] for row in rows]
        assert float(found[-1]["cost_usd"]) == pytest.approx(rows[-1]["cost_usd"])
        assert int(found[-1]["input_tokens"]) == 11
    assert json.loads((folder / "talk.json").read_text()) == [
        {"role": "user", "content": "Otters, “quoted”"},
        {"role": "assistant", "content": "Otters, “quoted”"},
    ]
    talk = (folder / "talk.md").read_text()
    heading, line, question, answer = talk.strip().split("\n\n")
    assert heading.startswith("1 request · gpt-4o-mini · ")
    assert "gpt-4o-mini · 11→5 tok" in line
    assert (question, answer) == ("> Otters, “quoted”", "Otters, “quoted”")
    fails(kernel.run("%nbllm export talk.txt"), ".*PATH.csv or PATH.jsonl.*; got 'talk.txt'")
    assert not (folder / "talk.txt").exists()
    for path in ("nowhere/talk.md", "nowhere/requests.csv"):
        problem = "can't be written: No such file or directory"
        fails(kernel.run(f"%nbllm export {path}"), f"{path} {problem}.*")


def test_the_doctor_tells_what_works_and_sends_nothing(kernel: Kernel, raw: RawServer) -> None:
    kernel.run("%%llm\nHi").ok()
    before, logged = len(raw.requests), len(kernel.rows())
    kernel.run("found = %nbllm doctor").ok()
    checks = dict(kernel.value("[[check.name, [check.status, check.message]] for check in found.checks]"))
    assert checks["keys"] == ["ok", "set for openai (OPENAI_API_KEY)"]
    assert checks["endpoint openai"][0] == "ok"
    assert f"127.0.0.1:{raw.port} was reached" in checks["endpoint openai"][1]
    assert checks["log"][0] == "ok"
    assert str(kernel.log) in checks["log"][1]
    reused = sum(row["connection_reused"] or 0 for row in kernel.rows())
    assert checks["connections"][1].startswith(f"{reused:,} of {logged:,} requests")
    shown = kernel.run("%nbllm doctor").ok().displays[-1]
    assert set(shown) == {"text/plain", "text/markdown"}
    assert (len(raw.requests), len(kernel.rows())) == (before, logged)


def test_a_command_that_is_not_there(kernel: Kernel) -> None:
    fails(kernel.run("%nbllm sesions"), "there is no %nbllm sesions; did you mean 'sessions'.")
    fails(kernel.run("%nbllm xyzzy"), "there is no %nbllm xyzzy; there are sessions, .*, help")
    for name, command in commands.COMMANDS.items():
        if not command.argument:
            fails(kernel.run(f"%nbllm {name} more"), f"%nbllm {name} takes no argument; got 'more'")


def test_the_status_of_a_kernel_in_which_nothing_succeeded(tmp_path: Path, demo: DemoServer) -> None:
    with Kernel(tmp_path, demo, env={"NBLLM_NUM_RETRIES": "0"}) as kernel:
        kernel.run(LOAD).ok()
        assert kernel.run("%llm -m demo/error Hi").error == "InternalServerError"
        assert "requests      1 request · 1 error\n" in kernel.run("%nbllm").ok().stdout
