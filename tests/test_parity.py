"""Parity: every verb with every provider does the same, awaited or not, over nbllm's session or the caller's.

The table has provider by verb by outcome (plain, streamed, error, cancelled) by form (awaited, synchronous)
by HTTP session (nbllm's, the caller's own), against a server that speaks each format and says what it saw.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

import nbllm
from nbllm import loops
from nbllm.providers import PROVIDERS
from nbllm.types import ChatCompletion, ChatCompletionChunk
from tests.providers_server import (
    HAVE_RESPONSES,
    MODELS,
    MP3,
    PNG,
    REQUEST_ID,
    RETRY_MS,
    TEXT,
    TOKENS,
    WORDS,
    ProvidersServer,
    key_of,
    understood,
    vector,
)
from tests.rows import connection_rows, only_row, request_rows

T = TypeVar("T")

# Provider -> the variables that name its server and its key.
VARIABLES = {
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "azure": ("AZURE_API_BASE", "AZURE_API_KEY"),
    "anthropic": ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    "gemini": ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"),
    "litellm_proxy": ("LITELLM_PROXY_API_BASE", "LITELLM_PROXY_API_KEY"),
    "openrouter": ("OPENROUTER_API_BASE", "OPENROUTER_API_KEY"),
    "groq": ("GROQ_API_BASE", "GROQ_API_KEY"),
    "mistral": ("MISTRAL_API_BASE", "MISTRAL_API_KEY"),
    "deepseek": ("DEEPSEEK_API_BASE", "DEEPSEEK_API_KEY"),
    "together_ai": ("TOGETHER_AI_API_BASE", "TOGETHERAI_API_KEY"),
    "xai": ("XAI_API_BASE", "XAI_API_KEY"),
    "ollama": ("OLLAMA_API_BASE", "OLLAMA_API_KEY"),
    "hosted_vllm": ("HOSTED_VLLM_API_BASE", "HOSTED_VLLM_API_KEY"),
    "vllm": ("VLLM_API_BASE", "VLLM_API_KEY"),
    "lm_studio": ("LM_STUDIO_API_BASE", "LM_STUDIO_API_KEY"),
    "llamacpp": ("LLAMACPP_API_BASE", "LLAMACPP_API_KEY"),
    "demo": ("NBLLM_DEMO_URL", None),
}
OTHER_NAMES = [
    ("openai", "OPENAI_API_BASE", "OPENAI_API_KEY"),
    ("azure", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"),
    ("anthropic", "ANTHROPIC_API_BASE", "ANTHROPIC_API_KEY"),
    ("gemini", "GEMINI_API_BASE", "GOOGLE_API_KEY"),
]


class Caller:
    """Somebody who uses the verbs awaited, or their synchronous twins, over a session of a kind."""

    def __init__(self, awaits: bool, brings_session: bool) -> None:
        self.runner = asyncio.Runner() if awaits else None
        self.session: aiohttp.ClientSession | None = None
        if brings_session:
            self.session = self.run(_own_session())

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run on the loop of this caller's calls."""
        return loops.run_sync(coro) if self.runner is None else self.runner.run(coro)

    def call(self, verb: str, *args: Any, **options: Any) -> Any:
        options = {"session_id": "parity", "shared_session": self.session, **options}
        if self.runner is None:
            return getattr(nbllm, verb)(*args, **options)
        return self.runner.run(getattr(nbllm, f"a{verb}")(*args, **options))

    def read(self, stream: Any) -> list[Any]:
        return list(stream) if self.runner is None else self.runner.run(_all(stream))

    def cancelled(self, server: ProvidersServer, *args: Any, **options: Any) -> None:
        """Ask for a chat completion; once that has arrived, cancel it, or press the stop button."""
        options = {"session_id": "parity", "shared_session": self.session, **options}
        before = len(server.requests)

        def has_arrived() -> bool:
            return len(server.requests) > before

        if self.runner is not None:
            return self.runner.run(_cancelled(server.seen(has_arrived), nbllm.acompletion(*args, **options)))
        pressing = threading.Thread(target=_press, args=(server, has_arrived, threading.get_ident()))
        pressing.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                nbllm.completion(*args, **options)
        finally:
            pressing.join()
        return None

    def close(self) -> None:
        if self.session is not None:
            assert not self.session.closed
            self.run(self.session.close())
        if self.runner is not None:
            self.runner.close()


async def _own_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"X-Own": "1"})


async def _all(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


async def _cancelled(arrival: Coroutine[Any, Any, None], coro: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.ensure_future(coro)
    await arrival
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _press(server: ProvidersServer, has_arrived: Callable[[], bool], thread: int) -> None:
    server.wait_for(has_arrived)
    signal.pthread_kill(thread, signal.SIGINT)


@pytest.fixture(params=VARIABLES)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server() -> Iterator[ProvidersServer]:
    with ProvidersServer() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, isolated: None) -> None:
    """The environment names the server and the key of the provider, and of no other one."""
    known = [v for p in PROVIDERS.values() for v in (*p.base_url_variables, *p.key_variables)]
    for name in (*known, "AZURE_API_VERSION", "OPENAI_API_VERSION", "AZURE_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if "provider" in request.fixturenames:
        provider, server = request.getfixturevalue("provider"), request.getfixturevalue("server")
        address, key = VARIABLES[provider]
        monkeypatch.setenv(address, server.base_url(provider))
        if key is not None:
            monkeypatch.setenv(key, key_of(provider))


@pytest.fixture(
    params=[(True, False), (True, True), (False, False), (False, True)],
    ids=["awaited", "awaited-shared", "sync", "sync-shared"],
)
def caller(request: pytest.FixtureRequest, environment: None) -> Iterator[Caller]:
    caller = Caller(*request.param)
    yield caller
    caller.close()


@pytest.fixture(params=[(True, True), (False, False)], ids=["awaited-shared", "sync"])
def either(request: pytest.FixtureRequest, environment: None) -> Iterator[Caller]:
    """Two callers of the four, for what has been shown for chat with all of them."""
    caller = Caller(*request.param)
    yield caller
    caller.close()


def agrees(server: ProvidersServer, provider: str, caller: Caller, log_path: Path, *shown: Any) -> list[Any]:
    """The rows, of which each says what the server saw of its request; the key is nowhere."""
    rows = request_rows()
    ports = {row.connection_id: row.local_port for row in connection_rows()}
    assert len(rows) == len(server.requests)
    for row, seen in zip(rows, server.requests, strict=True):
        assert (row.provider, row.session_id, row.server_port) == (provider, "parity", server.port)
        assert row.url_path == seen.path.partition("?")[0]
        assert row.connection_reused == (seen.nth > 1)
        assert ports[row.connection_id] == seen.connection.peer_port
        assert row.bytes_sent == seen.bytes_in
        if row.status == "ok":
            assert row.bytes_received == seen.bytes_out
        assert (seen.headers.get("x-own") == "1") == (caller.session is not None)
        names_session(seen, provider)
    assert len(ports) == len(server.connections)
    nbllm.log.flush()
    files = [file for file in log_path.parent.iterdir() if file.is_file()]
    assert files
    kept = b"".join(file.read_bytes() for file in files).decode("latin-1")
    told = [row.error_message for row in rows] + [repr(x) + str(x) + repr(vars(x)) for x in shown]
    assert key_of(provider) not in kept + repr(told)
    return rows


def names_session(seen: Any, provider: str) -> None:
    """A LiteLLM proxy gets the session id, and nobody else."""
    asked = understood(seen)
    assert asked is not None
    if provider == "litellm_proxy":
        assert seen.headers["x-litellm-session-id"] == "parity"
        assert asked.body is None or asked.body["litellm_session_id"] == "parity"
    else:
        assert "x-litellm-session-id" not in seen.headers
        assert b"litellm_session_id" not in seen.body


def test_the_table_has_every_provider() -> None:
    assert set(VARIABLES) == set(PROVIDERS)


# -- chat ------------------------------------------------------------------------------------------


def test_plain(provider: str, caller: Caller, server: ProvidersServer, log_path: Path) -> None:
    answers = [caller.call("completion", f"{provider}/some-model", "Hi", max_tokens=50) for _ in "ab"]
    rows = agrees(server, provider, caller, log_path, *answers)
    for answer, row in zip(answers, rows, strict=True):
        assert isinstance(answer, ChatCompletion)
        assert answer.text == TEXT
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == TOKENS
        assert answer.request.request_id == row.request_id
        answered(row, "some-model")
        assert (row.stream, row.finish_reason) == (False, "stop")
    assert [row.connection_reused for row in rows] == [False, True]


def test_streamed(provider: str, caller: Caller, server: ProvidersServer, log_path: Path) -> None:
    streams, chunks = [], []
    for _ in "ab":
        streams.append(caller.call("completion", f"{provider}/some-model", "Hi", stream=True))
        chunks.append(caller.read(streams[-1]))
    rows = agrees(server, provider, caller, log_path, *streams)
    for stream, pieces, row in zip(streams, chunks, rows, strict=True):
        assert all(isinstance(piece, ChatCompletionChunk) for piece in pieces)
        deltas = [piece.choices[0].delta.content for piece in pieces if piece.choices]
        assert [text for text in deltas if text] == WORDS
        assert (stream.text, stream.completion.text) == (TEXT, TEXT)
        assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == TOKENS
        answered(row, "some-model")
        assert (row.stream, row.finish_reason) == (True, "stop")
        assert row.chunks >= len(WORDS)
        assert row.ttft_ms <= row.duration_ms
    assert [row.connection_reused for row in rows] == [False, True]


def answered(row: Any, model: str) -> None:
    assert (row.operation, row.request_model, row.response_model) == ("chat", model, model)
    assert (row.status, row.http_status, row.error_type) == ("ok", 200, None)
    assert (row.input_tokens, row.output_tokens) == TOKENS
    assert (row.attempt, row.provider_request_id) == (1, REQUEST_ID)


def test_error(provider: str, caller: Caller, server: ProvidersServer, log_path: Path) -> None:
    errors = []
    for stream in (False, True):
        with pytest.raises(nbllm.RateLimitError, match=r"429: no \(.*\)") as caught:
            caller.call("completion", f"{provider}/error-429", "Hi", stream=stream)
        errors.append(caught.value)
    rows = agrees(server, provider, caller, log_path, *errors)
    for error, row in zip(errors, rows, strict=True):
        assert (error.status_code, error.llm_provider) == (429, provider)
        assert (error.model, error.request_id) == (f"{provider}/error-429", REQUEST_ID)
        assert (error.retry_after, row.retry_after_ms) == (RETRY_MS / 1e3, RETRY_MS)
        assert error.request.request_id == row.request_id
        assert (row.operation, row.status, row.http_status) == ("chat", "error", 429)
        assert (row.error_type, row.error_message) == ("RateLimitError", str(error))
        assert (row.request_model, row.input_tokens, row.cost_usd) == ("error-429", None, None)
    assert [row.connection_reused for row in rows] == [False, True]


def test_cancelled(provider: str, either: Caller, server: ProvidersServer, log_path: Path) -> None:
    nbllm.configure(limit=1)
    for stream in (False, True):
        either.cancelled(server, f"{provider}/hang", "Hi", stream=stream)
        server.wait_for(lambda: server.requests[-1].client_gone)
        assert either.call("completion", f"{provider}/some-model", "Hi").text == TEXT  # its place is free
    rows = agrees(server, provider, either, log_path)
    assert [row.status for row in rows] == ["cancelled", "ok"] * 2
    for row in rows[::2]:
        assert (row.operation, row.request_model) == ("chat", "hang")
        assert (row.http_status, row.input_tokens, row.output_tokens) == (None, None, None)


# -- the other verbs -------------------------------------------------------------------------------


def test_responses(provider: str, either: Caller, server: ProvidersServer, log_path: Path) -> None:
    """OpenAI's Responses API, where a provider has it; elsewhere on top of its chat."""
    answer = either.call("responses", "Hi", f"{provider}/some-model")
    stream = either.call("responses", "Hi", f"{provider}/some-model", stream=True)
    events = either.read(stream)
    with pytest.raises(nbllm.RateLimitError, match=r"429: no \(.*\)") as caught:
        either.call("responses", "Hi", f"{provider}/error-429")
    assert (answer.output_text, stream.output_text) == (TEXT, TEXT)
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == WORDS
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    rows = agrees(server, provider, either, log_path, answer, stream, caught.value)
    for row, response in zip(rows, (answer, stream.response), strict=False):
        assert (response.usage.input_tokens, response.usage.output_tokens) == TOKENS
        assert (row.input_tokens, row.output_tokens) == TOKENS
        assert (row.response_model, row.provider_request_id) == ("some-model", REQUEST_ID)
    assert [row.operation for row in rows] == ["responses"] * 3
    assert [row.status for row in rows] == ["ok", "ok", "error"]
    native = [
        asked is not None and asked.operation == "responses" for asked in map(understood, server.requests)
    ]
    assert native == [provider in HAVE_RESPONSES] * 3


HAS_MEDIA = VARIABLES.keys() - {"anthropic", "gemini"}
MEDIA = {
    "embedding": ({"input": ["a", "b"]}, "embeddings"),
    "image_generation": ({"prompt": "a penguin"}, "image_generation"),
    "speech": ({"input": "Hello", "voice": "alloy"}, "speech"),
    "transcription": ({"file": ("talk.mp3", MP3)}, "transcription"),
}


def test_media(provider: str, either: Caller, server: ProvidersServer, log_path: Path) -> None:
    for verb, (given, operation) in MEDIA.items():
        before = len(server.requests)
        if provider not in HAS_MEDIA and (provider, verb) != ("gemini", "embedding"):
            with pytest.raises(nbllm.UnsupportedParamsError, match=f"of {provider}"):
                either.call(verb, model=f"{provider}/some-model", **given)
            assert len(server.requests) == len(request_rows()) == before
            continue
        answer = either.call(verb, model=f"{provider}/some-model", **given)
        with pytest.raises(nbllm.InternalServerError, match="500: no") as caught:
            either.call(verb, model=f"{provider}/error-500", **given)
        ok, error = agrees(server, provider, either, log_path, answer, caught.value)[before:]
        assert (ok.operation, error.operation) == (operation, operation)
        assert (ok.status, ok.request_model, ok.provider_request_id) == ("ok", "some-model", REQUEST_ID)
        assert (error.status, error.http_status, error.error_type) == ("error", 500, "InternalServerError")
        assert answer.request.request_id == ok.request_id
        is_the_answer(verb, answer, (ok.input_tokens, ok.output_tokens))


def is_the_answer(verb: str, answer: Any, tokens: tuple[int | None, int | None]) -> None:
    match verb:
        case "embedding":
            assert [row.embedding for row in answer.data] == [vector(0), vector(1)]
            assert (tokens[0], answer.usage.prompt_tokens) == (TOKENS[0], TOKENS[0])
        case "image_generation":
            assert answer.data[0].b64_json == PNG
            assert tokens == TOKENS
        case "speech":
            assert (answer.content, tokens) == (MP3, (None, None))
        case "transcription":
            assert answer.text == f"talk.mp3 {len(MP3)}"
            assert tokens == TOKENS


def test_models(provider: str, either: Caller, server: ProvidersServer, log_path: Path) -> None:
    found = either.call("models", provider)
    assert [(row["id"], row["provider"]) for row in found] == [(name, provider) for name in MODELS]
    (row,) = agrees(server, provider, either, log_path)
    assert (row.operation, row.status, row.http_method) == ("models", "ok", "GET")


def test_models_of_all_that_are_configured(
    either: Caller, server: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anthropic", "groq", "ollama"):
        address, key = VARIABLES[name]
        monkeypatch.setenv(address, server.base_url(name))
        monkeypatch.setenv(str(key), key_of(name))
    monkeypatch.setenv("NBLLM_DEMO_URL", server.base_url("demo"))
    found = either.call("models")
    asked = Counter(row["provider"] for row in found)
    assert {name: asked[name] for name in asked if name != "demo"} == dict.fromkeys(
        ("anthropic", "groq", "ollama"), len(MODELS)
    )


# -- names of the environment ----------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "address", "key"), OTHER_NAMES)
def test_the_other_names_of_the_variables(
    provider: str, address: str, key: str, server: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES[provider]:
        monkeypatch.delenv(str(name))
    monkeypatch.setenv(address, server.base_url(provider))
    monkeypatch.setenv(key, key_of(provider))
    assert nbllm.completion(f"{provider}/some-model", "Hi").text == TEXT


@pytest.mark.parametrize("version", ["AZURE_API_VERSION", "OPENAI_API_VERSION", None])
def test_the_version_of_azures_api(
    version: str | None, server: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_API_BASE", server.base_url("azure"))
    monkeypatch.setenv("AZURE_API_KEY", key_of("azure"))
    if version is not None:
        monkeypatch.setenv(version, "2025-01-01-preview")
    expected = "2025-01-01-preview" if version else r"\d{4}-\d\d-\d\d"
    nbllm.completion("azure/my-deployment", "Hi")
    path = r"/azure/openai/deployments/my-deployment/chat/completions\?api-version="
    assert re.fullmatch(path + expected, server.requests[0].path)
    nbllm.completion("azure/my-deployment", "Hi", api_version="2024-06-01")
    assert server.requests[1].path.endswith("?api-version=2024-06-01")


def test_a_wrong_key_is_an_authentication_error(
    provider: str, server: ProvidersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(nbllm.AuthenticationError, match="wrong key"):
        nbllm.completion(f"{provider}/some-model", "Hi", api_key="sk-wrong-key-0123456789")
    assert only_row().http_status == 401
