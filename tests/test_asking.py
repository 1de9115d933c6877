"""`ask`, `aask` and `Chat`: the conversation that goes along, and the answer that comes back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm.servers.demo import DemoServer
from tests import servers
from tests.servers import Exchange, RawServer


async def echo(x: Exchange) -> None:
    """Answers with the last message, loudly."""
    text = x.request.json["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[0]["text"]
    answer = servers.completion(text.upper()) | {"model": x.request.json["model"]}
    await x.send(servers.whole("200 OK", json.dumps(answer).encode()))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    with RawServer(behaviours={"echo": echo}) as running:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1234567890")
        monkeypatch.setenv("OPENAI_BASE_URL", running.url("echo"))
        yield running


def sent(server: RawServer) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = server.requests[-1].json["messages"]
    return messages


async def test_a_session_is_a_conversation(server: RawServer) -> None:
    await nbllm.aask("one", session_id="talk")
    answer = await nbllm.aask("two", session_id="talk")
    assert sent(server) == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ONE"},
        {"role": "user", "content": "two"},
    ]
    assert (answer.text, answer.session_id, answer.model) == ("TWO", "talk", "gpt-4o-mini")
    await nbllm.aask("else", session_id="other")
    assert len(sent(server)) == 1
    assert nbllm.Chat("talk").messages[-1] == {"role": "assistant", "content": "TWO"}


async def test_without_history_the_prompt_goes_alone_and_leaves_no_turn(server: RawServer) -> None:
    await nbllm.aask("one", session_id="alone")
    await nbllm.aask("aside", session_id="alone", history=False)
    assert sent(server) == [{"role": "user", "content": "aside"}]
    assert [message["content"] for message in nbllm.Chat("alone")] == ["one", "ONE"]


async def test_a_chat_goes_on_and_starts_over(server: RawServer) -> None:
    chat = nbllm.Chat("chat", system="Be brief", temperature=0)
    await chat.aask("one")
    await chat.aask("two")
    assert sent(server)[0] == {"role": "system", "content": "Be brief"}
    assert server.requests[-1].json["temperature"] == 0
    assert len(chat) == 5
    assert repr(chat) == "<Chat 'chat', 5 messages>"
    assert "**assistant**: TWO" in chat.markdown()
    chat.reset()
    assert chat.messages == []
    await chat.aask("three", new=True)
    assert len(sent(server)) == 2


async def test_the_system_message_of_the_settings_is_the_default(server: RawServer) -> None:
    nbllm.configure(system="From the settings")
    await nbllm.aask("one", session_id="system")
    assert sent(server)[0] == {"role": "system", "content": "From the settings"}
    await nbllm.aask("two", session_id="system", system="Mine")
    await nbllm.aask("three", session_id="system")
    assert [m["content"] for m in sent(server) if m["role"] == "system"] == ["Mine"]


async def test_a_call_that_fails_leaves_no_turn(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nbllm.InternalServerError):
        await nbllm.aask("one", session_id="fails", base_url=server.url("status-500"))
    assert nbllm.Chat("fails").messages == []


async def test_pictures_go_along(server: RawServer) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"0" * 20
    await nbllm.aask("what is it?", images=[png], session_id="pictures")
    text, picture = sent(server)[0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "[image_url]" in nbllm.Chat("pictures").markdown()


async def test_json_is_checked(server: RawServer) -> None:
    answer = await nbllm.aask('```json\n{"A": [1, 2]}\n```', json=True, session_id="json")
    assert answer.json() == {"A": [1, 2]}
    assert sent(server)[0]["role"] == "system"
    with pytest.raises(nbllm.APIResponseValidationError, match="not fit JSON"):
        await nbllm.aask("no json", json=True, session_id="json")
    assert len(nbllm.Chat("json")) == 2


@dataclass
class Animal:
    name: str
    legs: int


SCHEMA = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}


@pytest.mark.parametrize("schema", [Animal, SCHEMA], ids=["class", "JSON schema"])
async def test_an_answer_must_fit_its_schema(server: RawServer, demo: DemoServer, schema: Any) -> None:
    with pytest.raises(nbllm.APIResponseValidationError) as caught:
        await nbllm.aask('{"NAME": "OTTER", "LEGS": "FOUR"}', schema=schema)
    assert "legs" in str(caught.value) or "name" in str(caught.value)
    wire = server.requests[-1].json["response_format"]
    assert wire["type"] == "json_schema"
    assert wire["json_schema"]["schema"]["properties"]["legs"] == {"type": "integer"}


async def test_a_fitting_answer_is_parsed(server: RawServer) -> None:
    schema = {"type": "object", "properties": {"LEGS": {"type": "integer"}}, "required": ["LEGS"]}
    assert (await nbllm.aask('{"LEGS": 4}', schema=schema)).parsed == {"LEGS": 4}
    with pytest.raises(
        nbllm.APIResponseValidationError, match=r"'4' is not of type 'integer' - at `\$.LEGS`"
    ):
        await nbllm.aask('{"LEGS": "4"}', schema=schema)
    with pytest.raises(nbllm.UsageProblem, match="no JSON schema"):
        await nbllm.aask('{"LEGS": "4"}', schema={"type": "objekt"})


async def test_code_is_taken_out_of_the_answer(server: RawServer) -> None:
    answer = await nbllm.aask("Here:\n```python\n1 + 1\n```", history=False)
    assert answer.code == "1 + 1"
    assert str(answer) == answer.text
    assert answer._repr_mimebundle_()["text/markdown"].startswith("HERE")


async def test_an_answer_tells_its_request(server: RawServer) -> None:
    answer = await nbllm.aask("hi", "gpt-4o", history=False)
    assert answer.cost_usd == pytest.approx(11 * 2.5e-6 + 5 * 1e-5)
    (row,) = nbllm.requests().to_dict("records")
    assert (answer.request_id, answer.cost_usd) == (row["request_id"], row["cost_usd"])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == row["input_tokens"]


def test_the_synchronous_twin(server: RawServer) -> None:
    assert nbllm.ask("hi").text == "HI"
    assert nbllm.Chat("twin").ask("hi").text == "HI"


async def test_questions_at_once_are_kept_whole(server: RawServer) -> None:
    await asyncio.gather(*(nbllm.aask(str(number), session_id="many") for number in range(5)))
    said = [m["content"] for m in nbllm.Chat("many") if m["role"] == "user"]
    assert sorted(said) == ["0", "1", "2", "3", "4"]


async def test_a_text_among_the_pictures_is_a_path_or_url(server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 20)
    await nbllm.aask("what?", images=[str(path), "https://example.org/x.png"], history=False)
    _, first, second = sent(server)[0]["content"]
    assert first["image_url"]["url"].startswith("data:image/png;base64,")
    assert second == {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
    await nbllm.aask("what?", images=str(path), history=False)
    assert sent(server)[0]["content"][1] == first


async def test_a_chat_has_one_session(server: RawServer) -> None:
    with pytest.raises(nbllm.UsageProblem, match=r"make another one by nbllm.Chat\(session_id\)"):
        await nbllm.Chat("one").aask("hi", session_id="two")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"session_id": "é"}, "session id"),
        ({"schema": Animal, "response_format": {"type": "json_object"}}, "same thing"),
        ({"schema": 3}, "can't be 3"),
        ({"images": [object()]}, "object"),
        ({"images": "no-such.png"}, "no-such.png"),
        ({"stream": True}, "stream can't be given here"),
        ({"messages": []}, "messages can't be given here"),
        ({"new": True, "history": False}, "give one of them"),
    ],
)
async def test_what_cannot_be_used_is_said(server: RawServer, given: Any, problem: str) -> None:
    with pytest.raises(nbllm.UsageProblem, match=problem):
        await nbllm.aask("hi", **given)
    assert server.requests == []
