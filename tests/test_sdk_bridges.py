"""The SDKs over the HTTP session, against servers that count: all of it is rows, on shared connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai import types as genai_types
from langchain_openai import AzureChatOpenAI, ChatOpenAI

import nbllm
from nbllm import notices
from nbllm.bridges import anthropic as anthropic_bridge
from nbllm.bridges import google_genai as genai_bridge
from nbllm.bridges import langchain as langchain_bridge
from nbllm.bridges import openai as openai_bridge
from nbllm.bridges.httpx_clients import Bridge, async_httpx_client, httpx_client
from nbllm.servers.demo import DemoServer
from tests.kernels import Kernel
from tests.providers_server import TEXT, TOKENS, ProvidersServer, key_of
from tests.rows import request_rows
from tests.servers import RawServer

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
# google-genai's own way with aiohttp, where it goes it.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

BRIDGES: list[Any] = [openai_bridge, anthropic_bridge, genai_bridge, langchain_bridge]


@pytest.fixture
def providers(providers: ProvidersServer) -> Iterator[ProvidersServer]:
    yield providers
    nbllm.close()


@pytest.fixture
def installed() -> Iterator[None]:
    for bridge in BRIDGES:
        bridge.install()
    yield
    for bridge in BRIDGES:
        bridge.uninstall()


# -- every SDK ---------------------------------------------------------------------------------------
# Each asks once, whole or as a stream, with a client of its own making, and gives the text.

Asks = Callable[[ProvidersServer, bool], Any]


def openai_options(server: ProvidersServer) -> dict[str, Any]:
    return {"api_key": key_of("openai"), "base_url": server.base_url("openai"), "max_retries": 0}


def ask_openai(server: ProvidersServer, stream: bool) -> str:
    with openai.OpenAI(**openai_options(server)) as client:
        chat = client.chat.completions
        if not stream:
            return chat.create(model="m", messages=MESSAGES).choices[0].message.content or ""
        chunks = chat.create(model="m", messages=MESSAGES, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def aask_openai(server: ProvidersServer, stream: bool) -> str:
    async with openai.AsyncOpenAI(**openai_options(server)) as client:
        chat = client.chat.completions
        if not stream:
            return (await chat.create(model="m", messages=MESSAGES)).choices[0].message.content or ""
        chunks = [chunk async for chunk in await chat.create(model="m", messages=MESSAGES, stream=True)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def anthropic_options(server: ProvidersServer) -> dict[str, Any]:
    # The server knows the header of the key and the version that nbllm's own requests have.
    headers = {"x-api-key": key_of("anthropic"), "anthropic-version": "2023-06-01"}
    place: dict[str, Any] = {"base_url": server.base_url("anthropic"), "default_headers": headers}
    return {"api_key": key_of("anthropic"), "max_retries": 0, **place}


ASKED: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 50}


def ask_anthropic(server: ProvidersServer, stream: bool) -> str:
    with anthropic.Anthropic(**anthropic_options(server)) as client:
        if not stream:
            return str(client.messages.create(**ASKED).content[0].text)
        with client.messages.stream(**ASKED) as answer:
            return "".join(answer.text_stream)


async def aask_anthropic(server: ProvidersServer, stream: bool) -> str:
    async with anthropic.AsyncAnthropic(**anthropic_options(server)) as client:
        if not stream:
            return str((await client.messages.create(**ASKED)).content[0].text)
        async with client.messages.stream(**ASKED) as answer:
            return "".join([text async for text in answer.text_stream])


def genai_client(server: ProvidersServer, **options: Any) -> genai.Client:
    place: dict[str, Any] = {"base_url": server.base_url("gemini"), "api_version": "v1beta"}
    return genai.Client(api_key=key_of("gemini"), http_options=genai_types.HttpOptions(**place, **options))


def ask_genai(server: ProvidersServer, stream: bool) -> str:
    with genai_client(server) as client:
        if not stream:
            return client.models.generate_content(model="m", contents="Hi").text or ""
        parts = client.models.generate_content_stream(model="m", contents="Hi")
        return "".join(part.text or "" for part in parts)


async def aask_genai(server: ProvidersServer, stream: bool) -> str:
    async with genai_client(server).aio as client:
        if not stream:
            return (await client.models.generate_content(model="m", contents="Hi")).text or ""
        parts = await client.models.generate_content_stream(model="m", contents="Hi")
        return "".join([part.text or "" async for part in parts])


def chat_openai(server: ProvidersServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", stream_usage=True, **openai_options(server), **options)


def ask_langchain(server: ProvidersServer, stream: bool) -> str:
    model = chat_openai(server)
    if stream:
        return "".join(str(chunk.content) for chunk in model.stream("Hi"))
    return str(model.invoke("Hi").content)


async def aask_langchain(server: ProvidersServer, stream: bool) -> str:
    model = chat_openai(server, timeout=httpx2.Timeout(30))  # such a client isn't kept for the next model
    try:
        if stream:
            return "".join([str(chunk.content) async for chunk in model.astream("Hi")])
        return str((await model.ainvoke("Hi")).content)
    finally:
        await model.root_async_client.close()


ASKS: dict[str, tuple[str, Asks]] = {
    "openai": ("openai", ask_openai),
    "openai async": ("openai", aask_openai),
    "anthropic": ("anthropic", ask_anthropic),
    "anthropic async": ("anthropic", aask_anthropic),
    "google-genai": ("gemini", ask_genai),
    "google-genai async": ("gemini", aask_genai),
    "langchain": ("openai", ask_langchain),
    "langchain async": ("openai", aask_langchain),
}


def run(asks: Asks, server: ProvidersServer, stream: bool) -> str:
    if asyncio.iscoroutinefunction(asks):
        found: str = asyncio.run(asks(server, stream))
        return found
    return str(asks(server, stream))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ASKS)
def test_an_sdks_own_client_asks_over_the_http_session(
    providers: ProvidersServer, installed: None, name: str, stream: bool
) -> None:
    provider, asks = ASKS[name]
    with nbllm.session("around"):
        assert run(asks, providers, stream) == TEXT
    (row,) = request_rows()
    assert (row.provider, row.request_model, row.session_id) == (provider, "m", "around")
    assert (row.status, row.input_tokens, row.output_tokens) == ("ok", *TOKENS)
    assert (row.stream, row.connection_reason) == (stream, "first")
    assert (row.ttft_ms is not None) == stream
    assert not notices._state.warned
    assert len(providers.requests) == 1


@pytest.mark.parametrize("name", ASKS)
def test_uninstalled_it_is_as_it_was(providers: ProvidersServer, installed: None, name: str) -> None:
    for bridge in BRIDGES:
        bridge.uninstall()
    assert run(ASKS[name][1], providers, False) == TEXT
    assert request_rows() == []


@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda bridge: bridge.__name__.rpartition(".")[2])
def test_installing_is_idempotent_and_leaves_no_trace(bridge: Any) -> None:
    def state() -> list[Any]:
        found = [dict(vars(one)) for one in bridge.bridge._found()]
        return [*found, genai_bridge._api_client()._use_aiohttp]

    before = state()
    bridge.install()
    after = state()
    bridge.install()
    assert before != after
    bridge.uninstall()
    bridge.uninstall()
    assert state() == before


def test_everything_shares_the_connections_of_a_host(providers: ProvidersServer, installed: None) -> None:
    async def main() -> None:
        for _, asks in list(ASKS.values())[1::2]:
            assert await asks(providers, True) == TEXT
            assert await asks(providers, False) == TEXT
        await nbllm.acompletion("openai/m", "Hi")

    asyncio.run(main())
    assert (len(providers.requests), len(providers.connections)) == (9, 1)
    assert len(request_rows()) == 9


async def test_clients_that_there_were_before(providers: ProvidersServer) -> None:
    client = openai.AsyncOpenAI(**openai_options(providers))
    google = genai_client(providers)

    async def ask() -> None:
        await client.chat.completions.create(model="m", messages=MESSAGES)
        await google.aio.models.generate_content(model="m", contents="Hi")

    await ask()
    assert request_rows() == []
    for bridge in BRIDGES:
        bridge.install()
    try:
        await ask()
        assert len(request_rows()) == 2
    finally:
        for bridge in BRIDGES:
            bridge.uninstall()
    await ask()
    assert len(request_rows()) == 2
    await client.close()
    await google.aio.aclose()
    google.close()


async def test_a_client_made_between_works_after(providers: ProvidersServer) -> None:
    genai_bridge.install()
    google = genai_client(providers)
    genai_bridge.uninstall()
    await google.aio.models.generate_content(model="m", contents="Hi")
    assert request_rows() == []
    await google.aio.aclose()
    google.close()


def test_the_module_level_client(
    providers: ProvidersServer, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "api_key", key_of("openai"))
    monkeypatch.setattr(openai, "base_url", providers.base_url("openai") + "/")
    openai.chat.completions.create(model="m", messages=MESSAGES)
    assert [row.input_tokens for row in request_rows()] == [TOKENS[0]]


def test_a_client_of_the_users_stays_theirs(providers: ProvidersServer, installed: None) -> None:
    with httpx2.Client(trust_env=False) as own:
        openai.OpenAI(**openai_options(providers), http_client=own).chat.completions.create(
            model="m", messages=MESSAGES
        )
        google = genai_client(providers, httpx_client=own)
        google.models.generate_content(model="m", contents="Hi")
    with openai.DefaultHttpxClient(timeout=5) as defaults:
        openai.OpenAI(**openai_options(providers), http_client=defaults).models.list()
    assert len(providers.requests) == 3
    assert request_rows() == []


def test_azure_by_langchain(providers: ProvidersServer, installed: None) -> None:
    model = AzureChatOpenAI(
        azure_endpoint=providers.base_url("azure"),
        azure_deployment="m",
        api_version="2024-10-21",
        api_key=key_of("azure"),  # type: ignore[arg-type]
    )
    assert model.invoke("Hi").content == TEXT
    assert [(row.provider, row.request_model) for row in request_rows()] == [("azure", "m")]


def test_an_sdk_that_is_not_there_or_not_as_known() -> None:
    with pytest.raises(nbllm.UsageProblem, match="pip install nowhere"):
        Bridge("nowhere", "nowhere._client", ("A", "B")).install()
    with pytest.raises(nbllm.UsageProblem, match=r"doesn't reach the clients of openai \d"):
        Bridge("openai", "openai._base_client", ("SyncHttpxClientWrapper", "Gone")).install()


# -- http_client= ------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_clients_given_to_the_openai_sdk(providers: ProvidersServer, library: str) -> None:
    client = openai.OpenAI(**openai_options(providers), http_client=httpx_client(library=library))
    assert client.timeout == openai.DEFAULT_TIMEOUT
    assert client.chat.completions.create(model="m", messages=MESSAGES).usage
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="error-429", messages=MESSAGES)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="hang", messages=MESSAGES, timeout=0.2)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="reset", messages=MESSAGES)
    client.close()
    statuses = [(row.status, row.error_type) for row in request_rows()]
    assert [status for status, _ in statuses] == ["ok", "error", "error", "error"]


def test_retries_of_an_sdk_are_rows(providers: ProvidersServer) -> None:
    options = {**openai_options(providers), "max_retries": 3}
    client = openai.OpenAI(**options, http_client=httpx_client())
    client.chat.completions.create(model="fails-twice", messages=MESSAGES)
    assert [row.http_status for row in request_rows()] == [503, 503, 200]


def test_clients_given_to_the_others(providers: ProvidersServer) -> None:
    anthropic.Anthropic(**anthropic_options(providers), http_client=httpx_client()).messages.create(
        model="m", messages=MESSAGES, max_tokens=5
    )
    both: dict[str, Any] = {"httpx_client": httpx_client(), "httpx_async_client": async_httpx_client()}
    google = genai_client(providers, **both)
    google.models.generate_content(model="m", contents="Hi")
    asyncio.run(google.aio.models.generate_content(model="m", contents="Hi"))
    model = chat_openai(
        providers,
        http_client=httpx_client(library="httpx"),
        http_async_client=async_httpx_client(library="httpx"),
    )
    model.invoke("Hi")
    asyncio.run(model.ainvoke("Hi"))
    assert {row.input_tokens for row in request_rows()} == {TOKENS[0]}
    assert len(request_rows()) == len(providers.requests) == 5


def test_other_verbs(providers: ProvidersServer) -> None:
    client = openai.OpenAI(**openai_options(providers), http_client=httpx_client())
    client.responses.create(model="m", input="Hi")
    client.embeddings.create(model="m", input=["one", "two"])
    client.images.generate(model="m", prompt="a cat")
    assert client.audio.speech.create(model="m", input="Hi", voice="alloy").content
    client.audio.transcriptions.create(model="m", file=("a.mp3", b"sound"))
    client.models.list()
    assert [row.operation for row in request_rows()] == [
        *("responses", "embeddings", "image_generation", "speech", "transcription"),
        None,
    ]


# -- LiteLLM's examples of session logs --------------------------------------------------------------


def test_the_examples_of_session_logs(server: RawServer, installed: None) -> None:
    """docs.litellm.ai, "Session Logs": the OpenAI SDK and LangChain, against a proxy at any address."""
    client = openai.OpenAI(api_key="sk-1234", base_url=server.url())
    for content in ("Write a short story about a robot", "Now write a poem about that robot"):
        client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": content}],
            extra_body={"litellm_session_id": "openai-session"},
        )
    chat = ChatOpenAI(
        base_url=server.url(),
        api_key="sk-1234",  # type: ignore[arg-type]
        model="gpt-4o",
        extra_body={"litellm_session_id": "langchain-session"},
    )
    chat.invoke("Write a short story about a robot")
    client.chat.completions.create(model="gpt-4o", messages=MESSAGES, metadata={"session_id": "metadata"})
    asyncio.run(chat.ainvoke("Now write a poem about that robot"))
    sessions = ["openai-session"] * 2 + ["langchain-session", "metadata", "langchain-session"]
    assert [row.session_id for row in request_rows()] == sessions
    told = [request.headers.get("x-litellm-session-id") for request in server.requests]
    assert told == [None if name == "metadata" else name for name in sessions]
    assert not any("litellm_session_id" in json.loads(request.body) for request in server.requests)
    nbllm.close()


# -- in a kernel -------------------------------------------------------------------------------------

SETUP = """
%load_ext nbllm
import asyncio, nbllm, openai
import nbllm.bridges.openai as bridge; bridge.install()
asking = dict(model="demo-fast", messages=[dict(role="user", content="Hi")])
"""


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, raw: RawServer) -> Iterator[Kernel]:
    folder: Path = tmp_path_factory.mktemp("kernel")
    with DemoServer(pace=0) as demo, Kernel(folder, demo) as running:
        running.run(SETUP).ok()
        for name in ("chat", "hang", "stall"):
            options = f"api_key='k', base_url={raw.url(name)!r}, max_retries=0"
            running.run(f"{name} = openai.OpenAI({options}); a{name} = openai.AsyncOpenAI({options})").ok()
        yield running


FORMS = {
    "cell": "chat.chat.completions.create(**asking)",
    "stream": "for chunk in chat.chat.completions.create(**asking, stream=True): pass",
    "await": "await achat.chat.completions.create(**asking)",
    "await stream": "async for chunk in await achat.chat.completions.create(**asking, stream=True): pass",
    "in a coroutine": "async def f(): return chat.chat.completions.create(**asking)\nawait f()",
    "asyncio.run": "asyncio.run(achat.chat.completions.create(**asking))",
    "thread": "await asyncio.to_thread(chat.chat.completions.create, **asking)",
    "nbllm": "await nbllm.acompletion('m', 'Hi', base_url=str(chat.base_url))",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_cell(kernel: Kernel, raw: RawServer, form: str) -> None:
    before = len(raw.requests)
    kernel.run(FORMS[form], cell_id=f"cell {form}").ok()
    (row,) = kernel.rows(cell_id=f"cell {form}")
    assert (row["status"], row["input_tokens"], row["session_id"][:7]) == ("ok", 11, "kernel-")
    assert len(raw.requests) == before + 1
    assert raw.requests[-1].connection is raw.requests[0].connection


@pytest.mark.parametrize("behaviour", ["hang", "stall"])
@pytest.mark.parametrize(
    "call",
    [
        "NAME.chat.completions.create(**asking)",
        "await aNAME.chat.completions.create(**asking)",
        "for chunk in NAME.chat.completions.create(**asking, stream=True): pass",
    ],
    ids=["cell", "await", "stream"],
)
def test_the_stop_button(kernel: Kernel, raw: RawServer, call: str, behaviour: str) -> None:
    before = len(raw.requests)
    cell = kernel.send(call.replace("NAME", behaviour), cell_id=f"{behaviour} {call}")
    raw.wait_for(lambda: len(raw.requests) > before)
    outcome, _ = kernel.interrupt(cell)
    assert outcome.error in ("KeyboardInterrupt", "CancelledError")
    raw.wait_for(lambda: raw.requests[-1].client_gone)
    kernel.run("chat.chat.completions.create(**asking)").ok()
    (row,) = kernel.rows(cell_id=f"{behaviour} {call}")
    assert row["status"] == "cancelled"
