"""The examples of LiteLLM's page on session logs against the gateway, as users of a LiteLLM proxy have them.

Source: https://docs.litellm.ai/docs/proxy/ui_logs_sessions, without its comments and with another address and
key. What differs beyond that: LangChain's `ChatOpenAI` is imported from `langchain_openai`, where it has been
since LangChain 0.2, and the curl example for responses takes the id out of the first answer, as its comment
asks for. litellm's own example for responses is left out: for a model of Anthropic's it asks the address for
Anthropic's API, which the gateway doesn't speak.
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

KEY = "sk-gateway-0123456789"


@pytest.fixture
def gateway(providers: ProvidersServer) -> Iterator[Gateway]:
    with nbllm.gateway(0, key=KEY) as running:
        yield running
    nbllm.close()  # the background loop outlives the test: its connections must not end in the next log


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
    assert [row.status for row in request_rows()] == ["ok", "ok"]
    assert {row.operation for row in request_rows()} == {"responses"}
    (session,) = session_rows()
    assert session.requests == 2
    assert [message["role"] for message in providers.requests[1].json["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


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
def test_litellm_chat(gateway: Gateway, tmp_path: Path, named_by: str) -> None:
    """litellm (1.106) keeps `metadata` to itself: no server can group by it. It sends `extra_body`."""
    if not (python := os.environ.get("NBLLM_TEST_LITELLM")):
        pytest.skip("NBLLM_TEST_LITELLM names no python that has litellm")
    run(LITELLM_CHAT.replace("metadata=", f"{named_by}="), [python, "-c"], gateway, tmp_path)
    if named_by == "extra_body":
        check_chat(gateway)
    assert [row.status for row in request_rows()] == ["ok", "ok"]
    assert [row.requests for row in session_rows()] == [2]


def test_the_openai_sdk_responses(gateway: Gateway, providers: ProvidersServer, tmp_path: Path) -> None:
    run(OPENAI_RESPONSES, [sys.executable, "-W", "error", "-c"], gateway, tmp_path)
    check_responses(gateway, providers)


def test_curl_responses(gateway: Gateway, providers: ProvidersServer, tmp_path: Path) -> None:
    run(CURL_RESPONSES, ["bash", "-ec"], gateway, tmp_path)
    check_responses(gateway, providers)
