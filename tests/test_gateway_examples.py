"""The examples of LiteLLM's page on session logs against the gateway, as users of a LiteLLM proxy have them.

Source: https://docs.litellm.ai/docs/proxy/ui_logs_sessions, without its comments and with another address and
key. What differs beyond that: LangChain's `ChatOpenAI` is imported from `langchain_openai`, where it has been
since LangChain 0.2, and the curl example for responses takes the id out of the first answer, as its comment
asks for. Models with the prefix `anthropic/` litellm asks for by Anthropic's API, wherever they are: so its
example for responses comes as messages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbllm
from nbllm.servers.gateway import Gateway
from tests.kernels import environment
from tests.providers_server import TOKENS, ProvidersServer
from tests.rows import request_rows, session_rows

UUID = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"

OPENAI_CHAT = """
import openai
import uuid

session_id = str(uuid.uuid4())

client = openai.OpenAI(
    api_key="<your litellm api key>",
    base_url="http://0.0.0.0:4000"
)

response1 = client.chat.completions.create(
    model="gpt-4o",
    messages=[
        {
            "role": "user",
            "content": "Write a short story about a robot"
        }
    ],
    extra_body={
        "litellm_session_id": session_id
    }
)

response2 = client.chat.completions.create(
    model="gpt-4o",
    messages=[
        {
            "role": "user",
            "content": "Now write a poem about that robot"
        }
    ],
    extra_body={
        "litellm_session_id": session_id
    }
)
"""

LANGCHAIN_CHAT = """
from langchain_openai import ChatOpenAI
import uuid

session_id = str(uuid.uuid4())

chat = ChatOpenAI(
    openai_api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>",
    model="gpt-4o",
    extra_body={
        "litellm_session_id": session_id
    }
)

response1 = chat.invoke("Write a short story about a robot")
response2 = chat.invoke("Now write a poem about that robot")
"""

LITELLM_CHAT = """
import litellm
import uuid

session_id = str(uuid.uuid4())

response1 = litellm.completion(
    model="gpt-4o",
    messages=[{"role": "user", "content": "Write a short story about a robot"}],
    api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>",
    metadata={
        "litellm_session_id": session_id
    }
)

response2 = litellm.completion(
    model="gpt-4o",
    messages=[{"role": "user", "content": "Now write a poem about that robot"}],
    api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>",
    metadata={
        "litellm_session_id": session_id
    }
)
"""

CURL_CHAT = """
SESSION_ID=$(uuidgen)

API_KEY="<your litellm api key>"

curl --location 'http://0.0.0.0:4000/chat/completions' \\
    --header 'Content-Type: application/json' \\
    --header "Authorization: Bearer $API_KEY" \\
    --data '{
    "model": "gpt-4o",
    "messages": [
        {
        "role": "user",
        "content": "Write a short story about a robot"
        }
    ],
    "litellm_session_id": "'$SESSION_ID'"
}'

curl --location 'http://0.0.0.0:4000/chat/completions' \\
    --header 'Content-Type: application/json' \\
    --header "Authorization: Bearer $API_KEY" \\
    --data '{
    "model": "gpt-4o",
    "messages": [
        {
        "role": "user",
        "content": "Now write a poem about that robot"
        }
    ],
    "litellm_session_id": "'$SESSION_ID'"
}'
"""

OPENAI_RESPONSES = """
from openai import OpenAI

client = OpenAI(
    api_key="<your litellm api key>",
    base_url="http://0.0.0.0:4000"
)

response1 = client.responses.create(
    model="anthropic/claude-3-sonnet-20240229-v1:0",
    input="Write a short story about a robot"
)

response_id = response1.id

response2 = client.responses.create(
    model="anthropic/claude-3-sonnet-20240229-v1:0",
    input="Now write a poem about that robot",
    previous_response_id=response_id
)
"""

CURL_RESPONSES = """
API_KEY="<your litellm api key>"

ANSWER=$(curl http://0.0.0.0:4000/v1/responses \\
    --header 'Content-Type: application/json' \\
    --header "Authorization: Bearer $API_KEY" \\
    --data '{
        "model": "anthropic/claude-3-sonnet-20240229-v1:0",
        "input": "Write a short story about a robot"
    }')
RESPONSE_ID=$(echo "$ANSWER" | sed 's/.*"id":"\\(resp_[^"]*\\)".*/\\1/')

curl http://0.0.0.0:4000/v1/responses \\
    --header 'Content-Type: application/json' \\
    --header "Authorization: Bearer $API_KEY" \\
    --data '{
        "model": "anthropic/claude-3-sonnet-20240229-v1:0",
        "input": "Now write a poem about that robot",
        "previous_response_id": "'$RESPONSE_ID'"
    }'
"""

LITELLM_RESPONSES = """
import litellm

response1 = litellm.responses(
    model="anthropic/claude-3-sonnet-20240229-v1:0",
    input="Write a short story about a robot",
    api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>"
)

response_id = response1.id

response2 = litellm.responses(
    model="anthropic/claude-3-sonnet-20240229-v1:0",
    input="Now write a poem about that robot",
    api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>",
    previous_response_id=response_id
)
"""

LITELLM_ANTHROPIC = """
import asyncio, litellm

asked = dict(
    model="anthropic/gpt-4o",
    messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    api_base="http://0.0.0.0:4000",
    api_key="<your litellm api key>",
    extra_body={"litellm_session_id": "review"},
)

async def main():
    answer = await litellm.acompletion(**asked)
    stream = await litellm.acompletion(**asked, stream=True)
    return answer, [chunk async for chunk in stream]

answer, chunks = asyncio.run(main())
said = answer.choices[0].message.content
assert said == "".join(chunk.choices[0].delta.content or "" for chunk in chunks) != ""
assert answer.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
assert answer.usage.total_tokens == 16
"""

KEY = "sk-gateway-0123456789"


@pytest.fixture
def gateway(providers: ProvidersServer) -> Iterator[Gateway]:
    with nbllm.gateway(0, key=KEY) as running:
        yield running
    nbllm.close()  # the background loop outlives the test: its connections must not end in the next log


@pytest.fixture
def litellm() -> str:
    """A python that has litellm."""
    if not (python := os.environ.get("NBLLM_TEST_LITELLM")):
        pytest.skip("NBLLM_TEST_LITELLM names no python that has litellm")
    return python


def run(example: str, command: list[str], gateway: Gateway, folder: Path) -> None:
    """Run an example in a process that knows neither the providers' addresses nor their keys."""
    code = example.replace("http://0.0.0.0:4000", f"http://0.0.0.0:{gateway.port}")
    code = code.replace("<your litellm api key>", KEY)
    env = environment(folder) | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["PATH"] = os.pathsep.join([str(folder), env["PATH"]])
    if shutil.which("uuidgen") is None:
        (folder / "uuidgen").write_text("#!/bin/sh\nexec cat /proc/sys/kernel/random/uuid\n")
        (folder / "uuidgen").chmod(0o755)
    done = subprocess.run([*command, code], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def check_chat(gateway: Gateway) -> None:
    """Two requests, one session with the id that the example made up."""
    first, second = request_rows()
    assert (first.status, second.status) == ("ok", "ok")
    assert (first.request_model, first.provider, first.input_tokens) == ("gpt-4o", "openai", TOKENS[0])
    (session,) = session_rows()
    assert re.fullmatch(UUID, session.session_id)
    assert session.requests == 2


def check_responses(gateway: Gateway, providers: ProvidersServer) -> None:
    """Two requests, one session, and the second holds the conversation."""
    check_together("responses")
    assert [message["role"] for message in providers.requests[1].json["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


def check_together(operation: str) -> str:
    """Two requests in one session, whose id it gives."""
    assert [(row.status, row.operation) for row in request_rows()] == [("ok", operation)] * 2
    (session,) = session_rows()
    assert session.requests == 2
    return session.session_id


def test_the_openai_sdk_chat(gateway: Gateway, tmp_path: Path) -> None:
    run(OPENAI_CHAT, [sys.executable, "-W", "error", "-c"], gateway, tmp_path)
    check_chat(gateway)


def test_langchain_chat(gateway: Gateway, tmp_path: Path) -> None:
    if importlib.util.find_spec("langchain_openai") is None:
        pytest.skip("langchain-openai is not installed")
    run(LANGCHAIN_CHAT, [sys.executable, "-c"], gateway, tmp_path)
    check_chat(gateway)


def test_curl_chat(gateway: Gateway, tmp_path: Path) -> None:
    run(CURL_CHAT, ["bash", "-ec"], gateway, tmp_path)
    check_chat(gateway)


@pytest.mark.parametrize("named_by", ["metadata", "extra_body"])
def test_litellm_chat(gateway: Gateway, tmp_path: Path, litellm: str, named_by: str) -> None:
    """litellm (1.106) keeps `metadata` to itself: no server can group by it. It sends `extra_body`."""
    run(LITELLM_CHAT.replace("metadata=", f"{named_by}="), [litellm, "-c"], gateway, tmp_path)
    if named_by == "extra_body":
        check_chat(gateway)
    check_together("chat")


def test_the_openai_sdk_responses(gateway: Gateway, providers: ProvidersServer, tmp_path: Path) -> None:
    run(OPENAI_RESPONSES, [sys.executable, "-W", "error", "-c"], gateway, tmp_path)
    check_responses(gateway, providers)


def test_curl_responses(gateway: Gateway, providers: ProvidersServer, tmp_path: Path) -> None:
    run(CURL_RESPONSES, ["bash", "-ec"], gateway, tmp_path)
    check_responses(gateway, providers)


@pytest.mark.parametrize("named", ["", ', extra_headers={"x-litellm-session-id": "review"}'])
def test_litellm_responses(
    gateway: Gateway, providers: ProvidersServer, tmp_path: Path, litellm: str, named: str
) -> None:
    """litellm (1.106) asks for messages, and keeps `previous_response_id` for the database of its proxy.

    So no server hears of the first response: both requests belong to the kernel's session, unless the caller
    names one.
    """
    key = 'api_key="<your litellm api key>"'
    run(LITELLM_RESPONSES.replace(key, key + named), [litellm, "-c"], gateway, tmp_path)
    session_id = check_together("chat")
    assert session_id == ("review" if named else nbllm.current_session())
    for request in providers.requests:
        assert request.path == "/anthropic/v1/messages"
        assert request.json["model"] == "claude-3-sonnet-20240229-v1:0"
        assert len(request.json["messages"]) == 1


def test_litellm_asks_any_model_by_anthropics_api(
    gateway: Gateway, providers: ProvidersServer, tmp_path: Path, litellm: str
) -> None:
    run(LITELLM_ANTHROPIC, [litellm, "-c"], gateway, tmp_path)
    assert check_together("chat") == "review"
    for request in providers.requests:
        assert request.path == "/openai/v1/chat/completions"
        assert [message["content"] for message in request.json["messages"]] == ["Be brief.", "Hello"]
        assert request.json["tools"][0]["function"]["name"] == "f"
