"""litellm over the kernel's HTTP session: `nbllm.bridges.litellm`, with the real litellm and a real proxy.

litellm lives in an environment of its own, which NBLLM_TEST_LITELLM names (its python has nbllm's
dependencies and ipykernel too). Scripts run there, against a server that speaks every provider's format and
counts; what they print as their last line is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nbllm
from nbllm.bridges import litellm as bridge
from nbllm.providers import PROVIDERS
from tests import proxy as proxies
from tests.kernels import Kernel, environment, rows
from tests.providers_server import TEXT, TOKENS, ProvidersServer
from tests.rows import request_rows
from tests.servers import Exchange, RawServer, whole

PYTHON = os.environ.get("NBLLM_TEST_LITELLM", "")
needs_litellm = pytest.mark.skipif(not PYTHON, reason="NBLLM_TEST_LITELLM names no python that has litellm")

SECONDS = 120.0

# What the children share: `ask` makes a call of litellm's, `told()` gives what the log says of all.
PRELUDE = """
import asyncio, importlib, json, os, sys, warnings
import litellm
for name in ("httpcore", "httpcore2", "httpx2"):
    # litellm imports them in a thread too, and its first call may stumble over what is half imported.
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import nbllm
from nbllm.bridges import litellm as bridge
from tests.providers_server import key_of
from tests.rows import connection_rows, request_rows

litellm.suppress_debug_info = True
BASES = json.loads(os.environ["BASES"])
MESSAGES = [{"role": "user", "content": "Hi"}]

def options(provider, **more):
    more.setdefault("api_base", BASES[provider])
    if provider == "azure":
        more["api_version"] = "2024-10-21"
    return {"api_key": key_of(provider), "max_retries": 0, **more}

def ask(provider="openai", model="first-model", **more):
    return litellm.acompletion(f"{provider}/{model}", MESSAGES, **options(provider, **more))

def told():
    fields = ("session_id", "operation", "provider", "request_model", "status", "http_status", "stream",
        "input_tokens", "output_tokens", "ttft_ms", "connection_id", "url_path")
    return [{name: getattr(row, name) for name in fields} for row in request_rows()]
"""


@pytest.fixture
def providers() -> Iterator[ProvidersServer]:
    with ProvidersServer() as server:
        yield server


def child_environment(folder: Path, server: ProvidersServer) -> dict[str, str]:
    bases = {name: server.base_url(name) for name in PROVIDERS}
    variables = {
        provider.base_url_variables[0]: bases[name]
        for name, provider in PROVIDERS.items()
        if provider.base_url_variables
    }
    bases["gemini"] += "/v1beta"
    return environment(folder) | {
        **variables,
        "BASES": json.dumps(bases),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NBLLM_NUM_RETRIES": "0",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }


def run(code: str, folder: Path, server: ProvidersServer) -> Any:
    """Run a script where litellm is; gives its last line, read as JSON."""
    script = PRELUDE + textwrap.dedent(code)
    done = subprocess.run(
        [PYTHON, "-c", script],
        env=child_environment(folder, server),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


# -- every provider, verb and manner -------------------------------------------------------------------

CHATTING = ("openai", "azure", "anthropic", "gemini", "openrouter", "mistral", "hosted_vllm", "litellm_proxy")
VERBS = {
    "completion": CHATTING,
    "responses": ("openai", "azure"),
    "embedding": ("openai", "azure", "gemini", "hosted_vllm", "mistral"),
    "image_generation": ("openai", "azure"),
    "speech": ("openai", "azure"),
    "transcription": ("openai", "azure"),
}
STREAMED = ("completion", "responses")
OPERATIONS = {"completion": "chat", "embedding": "embeddings"}
CASES = [
    (how, verb, provider, stream)
    for how in ("async", "sync")
    for verb, asked in VERBS.items()
    for provider in asked
    for stream in ((False, True) if verb in STREAMED else (False,))
]

MATRIX = """
import io
SAYS = {
    "completion": {"messages": MESSAGES},
    "responses": {"input": "Hi"},
    "embedding": {"input": ["one", "two"]},
    "image_generation": {"prompt": "a cat"},
    "speech": {"input": "Hi", "voice": "alloy"},
    "transcription": {},
}
failures = {}

def arguments(how, verb, provider, stream):
    model = "gpt-4o" if verb == "responses" else "first-model"  # litellm streams only models that it knows
    said = dict(SAYS[verb], model=f"{provider}/{model}", **options(provider))
    if verb == "transcription":
        recording = io.BytesIO(b"ID3" + b"0" * 60)
        recording.name = "a.mp3"
        said["file"] = recording
    if stream:
        said["stream"] = True
    said["litellm_session_id"] = f"{how} {verb} {provider} {stream}"
    return said

async def send(how, verb, provider, stream):
    answer = await getattr(litellm, "a" + verb)(**arguments(how, verb, provider, stream))
    if stream:
        assert [event async for event in answer]

def send_and_wait(how, verb, provider, stream):
    answer = getattr(litellm, verb)(**arguments(how, verb, provider, stream))
    if stream:
        assert list(answer)

async def main():
    for case in CASES:
        if case[0] == "async":
            try:
                await send(*case)
            except Exception as error:
                failures[" ".join(map(str, case))] = repr(error)[:500]

bridge.install()
with warnings.catch_warnings():
    warnings.simplefilter("error", RuntimeWarning)
    asyncio.run(main())
    for case in CASES:
        if case[0] == "sync":
            try:
                send_and_wait(*case)
            except Exception as error:
                failures[" ".join(map(str, case))] = repr(error)[:500]
print(json.dumps({"rows": told(), "failures": failures}))
"""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the child tells, with what the server has counted."""
    with ProvidersServer() as server:
        told = run(f"CASES = {CASES!r}\n{MATRIX}", tmp_path_factory.mktemp("matrix"), server)
        told["requests"] = len(server.requests)
        told["connections"] = len(server.connections)
        told["paths"] = [request.path.partition("?")[0] for request in server.requests]
        told["headers"] = [request.headers for request in server.requests]
        told["bodies"] = [request.body for request in server.requests]
        yield told


@needs_litellm
@pytest.mark.parametrize(("how", "verb", "provider", "stream"), CASES)
def test_every_request_is_a_row(
    matrix: dict[str, Any], how: str, verb: str, provider: str, stream: bool
) -> None:
    case = f"{how} {verb} {provider} {stream}"
    if verb != "transcription":  # of whose usage litellm wants more than the server says
        assert case not in matrix["failures"]
    (row,) = [row for row in matrix["rows"] if row["session_id"] == case]
    assert (row["operation"], row["status"]) == (OPERATIONS.get(verb, verb), "ok")
    assert row["provider"] == provider
    if verb in ("completion", "responses"):
        assert (row["input_tokens"], row["output_tokens"]) == TOKENS
        assert row["stream"] is stream
        assert (row["ttft_ms"] is not None) is stream
    elif verb == "embedding" and provider != "gemini":
        assert row["input_tokens"] == TOKENS[0]
    if verb != "transcription":  # a form is not read
        assert row["request_model"] == ("gpt-4o" if verb == "responses" else "first-model")


@needs_litellm
def test_the_server_has_seen_the_same(matrix: dict[str, Any]) -> None:
    assert matrix["requests"] == len(CASES) == len(matrix["rows"])
    assert sorted(matrix["paths"]) == sorted(row["url_path"] for row in matrix["rows"])


@needs_litellm
def test_all_share_the_connections_of_their_loop(matrix: dict[str, Any]) -> None:
    used = {row["connection_id"] for row in matrix["rows"]}
    assert matrix["connections"] == len(used)
    of_async = {row["connection_id"] for row in matrix["rows"] if row["session_id"].startswith("async")}
    assert len(of_async) == 1  # asked one after the other
    assert (
        matrix["connections"] <= 4
    )  # a stream that litellm doesn't read to its very end keeps one for a while


@needs_litellm
def test_only_a_proxy_is_told_of_sessions(matrix: dict[str, Any]) -> None:
    for path, headers, body in zip(matrix["paths"], matrix["headers"], matrix["bodies"], strict=True):
        told = headers.get("x-litellm-session-id")
        assert (told is not None) is path.startswith("/litellm_proxy/")
        assert b"completion openai" not in body
        assert b"session" not in body


# -- what stands beside the matrix -----------------------------------------------------------------------


@needs_litellm
def test_installing_twice_and_clients_made_before(providers: ProvidersServer, tmp_path: Path) -> None:
    """Clients that litellm has cached don't bypass the session, and come back when it is given up."""
    told = run(
        """
        def everything():
            kept = {name: getattr(litellm, name) for name in ("client_session", "aclient_session",
                "module_level_client", "module_level_aclient", "in_memory_llm_clients_cache")}
            from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
            from litellm.llms.custom_httpx.http_handler import HTTPHandler
            return [*map(id, kept.values()), *(id(vars(owner)[name]) for owner, name in (
                (LiteLLMAiohttpTransport, "handle_async_request"), (HTTPHandler, "_create_sync_transport"),
                (litellm.utils, "function_setup")))]

        def sync(provider):
            litellm.completion(f"{provider}/first-model", MESSAGES, **options(provider))

        async def main():
            counts, states = [], [everything()]
            for change in (None, bridge.install, bridge.install, bridge.uninstall, bridge.uninstall,
                           bridge.install):
                if change:
                    change()
                    states.append(everything())
                for provider in ("openai", "azure", "anthropic", "gemini", "hosted_vllm"):
                    await ask(provider)
                    await asyncio.to_thread(sync, provider)
                counts.append(len(request_rows()))
            print(json.dumps({"counts": counts, "back": states[0] == states[3] == states[4],
                "twice": states[1] == states[2], "changed": states[0] != states[1]}))

        asyncio.run(main())
        """,
        tmp_path,
        providers,
    )
    assert told == {"counts": [0, 10, 20, 20, 20, 30], "back": True, "twice": True, "changed": True}
    assert len(providers.requests) == 60


@needs_litellm
def test_what_was_put_there_since_stays(providers: ProvidersServer, tmp_path: Path) -> None:
    told = run(
        """
        import httpx, threading
        threads = [threading.Thread(target=bridge.install) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        replaced = [(id(owner), name) for owner, name, *_ in bridge._state.replaced]
        assert len(set(replaced)) == len(replaced)
        mine = litellm.client_session = httpx.Client()
        bridge.uninstall()
        print(json.dumps(litellm.client_session is mine and litellm.aclient_session is None))
        """,
        tmp_path,
        providers,
    )
    assert told is True


@needs_litellm
def test_how_sessions_are_named(providers: ProvidersServer, tmp_path: Path) -> None:
    """In litellm's order; what can't be a session leaves the request in the one around it."""
    told = run(
        """
        bridge.install()

        async def main():
            named = [
                {"litellm_session_id": "a", "metadata": {"session_id": "b"}},
                {"litellm_trace_id": "t", "metadata": {"session_id": "b"}},
                {"metadata": {"session_id": "m"}},
                {"metadata": {"litellm_session_id": "m"}},
                {"metadata": {"trace_id": "m"}},
                {"metadata": {"session_id": 7}},
                {"litellm_session_id": "no\\nname"},
                {"litellm_session_id": "x" * 500},
                {"extra_body": {"litellm_session_id": "in the body"}},
                {},
            ]
            with nbllm.session("around"):
                for provider in ("openai", "anthropic"):
                    for arguments in named[:8] if provider == "anthropic" else named:
                        await ask(provider, **arguments)
                await asyncio.gather(*(ask(litellm_session_id=f"at once {i}") for i in range(9)))
            router = litellm.Router([{"model_name": "m", "litellm_params": {
                "model": "openai/first-model", **options("openai")}}])
            with nbllm.session("router"):
                await router.acompletion("m", MESSAGES)
                await router.acompletion("m", MESSAGES, metadata={"session_id": "routed"})
            await nbllm.acompletion("openai/first-model", "Hi", api_key=key_of("openai"), num_retries=0)
            print(json.dumps([row["session_id"] for row in told()]))

        asyncio.run(main())
        """,
        tmp_path,
        providers,
    )
    first = ["a", "t", "m", "m", "m", "around", "around", "around"]
    assert told[:18] == [*first, "in the body", "around", *first]
    assert sorted(told[18:27]) == [f"at once {i}" for i in range(9)]
    assert told[27:29] == ["router", "routed"]
    assert told[29].startswith("kernel-")
    assert not any(b"litellm_session_id" in request.body for request in providers.requests)


@needs_litellm
def test_a_shared_session_of_the_callers_own(providers: ProvidersServer, tmp_path: Path) -> None:
    """It is used by every provider, also those that litellm ignores it for, and traced."""
    told = run(
        """
        import aiohttp
        bridge.install()

        async def main():
            async with aiohttp.ClientSession() as own:
                for provider in ("openai", "azure", "anthropic", "gemini"):
                    await ask(provider, shared_session=own)
                mine = {row["connection_id"] for row in told()}
                for provider in ("openai", "anthropic"):
                    await ask(provider, shared_session=nbllm.shared_session())
            await ask("openai", shared_session=own)  # which is closed by now
            rows = told()
            print(json.dumps({"own": len(mine), "all": len({row["connection_id"] for row in rows}),
                "rows": len(rows), "closed": nbllm.shared_session().closed}))

        asyncio.run(main())
        """,
        tmp_path,
        providers,
    )
    assert told == {"own": 1, "all": 2, "rows": 7, "closed": False}
    assert len(providers.connections) == 2


@needs_litellm
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_errors_are_litellms_own(providers: ProvidersServer, tmp_path: Path, provider: str) -> None:
    """The same with the bridge as without it, awaited or not, streamed or not."""
    told = run(
        """
        def kind(error):
            return [type(error).__name__, getattr(error, "status_code", None), "no (" in str(error)]

        async def awaited(model, stream, **more):
            try:
                answer = await ask(PROVIDER, model, stream=stream, num_retries=0, **more)
                if stream:
                    [chunk async for chunk in answer]
            except Exception as error:
                return kind(error)

        def waited(model, stream, **more):
            try:
                answer = litellm.completion(f"{PROVIDER}/{model}", MESSAGES, stream=stream, num_retries=0,
                    **options(PROVIDER, **more))
                if stream:
                    list(answer)
            except Exception as error:
                return kind(error)

        def everything():
            said = []
            for model in ("error-400", "error-401", "error-404", "error-429", "error-500", "error-503"):
                for stream in (False, True):
                    said.append([model, stream, asyncio.run(awaited(model, stream)), waited(model, stream)])
            refused = {"api_base": "http://127.0.0.1:9"}
            said.append(["refused", False, asyncio.run(awaited("m", False, **refused)),
                waited("m", False, **refused)])
            return said

        before = everything()
        bridge.install()
        print(json.dumps([before, everything(), sum(row["http_status"] is not None for row in told())]))
        """.replace("PROVIDER", repr(provider)),
        tmp_path,
        providers,
    )
    before, after, count = told
    assert after == before
    assert all(awaited and waited for _, _, awaited, waited in before)
    assert len(providers.requests) == 2 * count


@needs_litellm
def test_a_stream_comes_piece_by_piece_and_may_be_left(providers: ProvidersServer, tmp_path: Path) -> None:
    told = run(
        """
        bridge.install()

        async def main():
            for provider in ("openai", "anthropic", "gemini"):
                answer = await ask(provider, "endless", stream=True)
                taken = 0
                async for chunk in answer:
                    taken += 1
                    if taken == 5:
                        break
                await answer.aclose()
        asyncio.run(main())

        for provider in ("openai", "anthropic", "gemini"):
            answer = litellm.completion(f"{provider}/endless", MESSAGES, stream=True, **options(provider))
            for taken, chunk in enumerate(answer):
                if taken == 5:
                    break
        print(json.dumps([row["ttft_ms"] is None for row in told()]))
        """,
        tmp_path,
        providers,
    )
    assert len(told) == 6
    # litellm lets go of most only when they are collected: at the latest, the end of the process tells.
    assert [row["status"] for row in rows(tmp_path / "log.db")] == ["incomplete"] * 6


@needs_litellm
def test_synchronous_calls_anywhere(providers: ProvidersServer, tmp_path: Path) -> None:
    """In a script, in threads, and inside a loop that isn't nbllm's."""
    told = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        bridge.install()

        def wait(provider):
            return litellm.completion(f"{provider}/first-model", MESSAGES,
                **options(provider)).choices[0].message.content

        said = [wait("openai"), wait("anthropic")]
        with ThreadPoolExecutor(4) as pool:
            said += pool.map(wait, ["openai", "anthropic"] * 4)

        async def main():
            said.extend(wait(provider) for provider in ("openai", "anthropic"))
            said.append((await ask()).choices[0].message.content)
        asyncio.run(main())
        rows = told()
        print(json.dumps({"said": said, "ok": [row["status"] for row in rows]}))
        """,
        tmp_path,
        providers,
    )
    assert told == {"said": [TEXT] * 13, "ok": ["ok"] * 13}


@needs_litellm
def test_what_is_not_reached_is_said_once(providers: ProvidersServer, tmp_path: Path) -> None:
    told = run(
        """
        import httpx
        litellm.client_session = own = httpx.Client()
        litellm.disable_aiohttp_transport = True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bridge.install()
            bridge.uninstall()
            bridge.install()
        said = [str(warning.message) for warning in caught if "nbllm" in str(warning.message)]
        litellm.completion("openai/first-model", MESSAGES, **options("openai"))
        assert litellm.client_session is own
        print(json.dumps({"said": said, "rows": len(request_rows())}))
        """,
        tmp_path,
        providers,
    )
    (said,) = told["said"]
    assert "litellm.client_session, which is yours" in said
    assert "without aiohttp" in said
    assert told["rows"] == 0
    assert len(providers.requests) == 1


@needs_litellm
def test_certificate_settings_of_litellms_own_stay_in_force(tmp_path: Path, server_context: Any) -> None:
    """`ssl_verify=False` lets a call through that the kernel's session alone would refuse."""
    with ProvidersServer(ssl_context=server_context) as server:
        told = run(
            """
            BASES["openai"] = BASES["openai"].replace("http://", "https://")
            BASES["anthropic"] = BASES["anthropic"].replace("http://", "https://")
            bridge.install()
            said = []

            async def main():
                for provider in ("openai", "anthropic"):
                    try:
                        await ask(provider, num_retries=0)
                    except litellm.InternalServerError:
                        said.append("refused")
                    except litellm.APIConnectionError:
                        said.append("refused")
            asyncio.run(main())
            litellm.ssl_verify = False
            bridge.uninstall()
            bridge.install()

            async def again():
                for provider in ("openai", "anthropic"):
                    said.append((await ask(provider)).choices[0].message.content)
            asyncio.run(again())
            said.append(litellm.completion("openai/first-model", MESSAGES,
                **options("openai")).choices[0].message.content)
            print(json.dumps([said, [row["status"] for row in told()]]))
            """,
            tmp_path,
            server,
        )
    said, statuses = told
    assert said == ["refused"] * 2 + [TEXT] * 3
    assert statuses[-2:] == ["ok", "ok"]  # the last call, a synchronous one, goes over litellm's own session
    assert set(statuses[:-2]) == {"error"}


# One cell of each client that a notebook may use.
CLIENTS = {
    "litellm": "r = await ask(litellm_session_id='s')",
    "litellm, synchronous": """
        r = litellm.completion('anthropic/first-model', MESSAGES, **options('anthropic'))""",
    "litellm, streamed": """
        asked = litellm.completion('openai/first-model', MESSAGES, stream=True, **options('openai'),
            stream_options={'include_usage': True})
        r = [chunk for chunk in asked]""",
    "openai": """
        client = openai.AsyncOpenAI(base_url=BASES['openai'], api_key=key_of('openai'))
        r = await client.chat.completions.create(
            model='first-model', messages=MESSAGES, extra_body={'litellm_session_id': 's'})""",
    "anthropic": """
        key = key_of('anthropic')  # the server knows it by the header that nbllm sends
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
        client = anthropic.Anthropic(base_url=BASES['anthropic'], api_key=key, default_headers=headers)
        r = client.messages.create(model='first-model', max_tokens=9, messages=MESSAGES)""",
    "LangChain": """
        r = ChatOpenAI(
            model='first-model', base_url=BASES['openai'], api_key=key_of('openai')).invoke('Hi')""",
    "nbllm": "r = await nbllm.acompletion('openai/first-model', 'Hi', api_key=key_of('openai'))",
    "nbllm, synchronous": "r = nbllm.completion('openai/first-model', 'Hi', api_key=key_of('openai'))",
}


@needs_litellm
def test_all_clients_of_a_notebook_share_one_connection(providers: ProvidersServer, tmp_path: Path) -> None:
    """And each request has its cell, session and tokens."""
    setup = f"""%load_ext nbllm
{PRELUDE}
import anthropic, openai
from langchain_openai import ChatOpenAI
for name in ("anthropic", "langchain", "litellm", "openai"):
    importlib.import_module(f"nbllm.bridges.{{name}}").install()
"""
    with Kernel(tmp_path, python=PYTHON, env=child_environment(tmp_path, providers)) as kernel:
        outcome = kernel.run(setup, timeout=SECONDS)
        assert outcome.status == "ok", outcome.traceback
        for client, cell in CLIENTS.items():
            outcome = kernel.run(textwrap.dedent(cell), cell_id=client)
            assert outcome.status == "ok", outcome.traceback
        found = rows(kernel.log)
    assert [row["cell_id"] for row in found] == list(CLIENTS)
    assert [row["cell_id"] for row in found if row["session_id"] == "s"] == ["litellm", "openai"]
    assert {(row["status"], row["request_model"]) for row in found} == {("ok", "first-model")}
    assert {(row["input_tokens"], row["output_tokens"]) for row in found} == {TOKENS}
    assert len({row["connection_id"] for row in found}) == len(providers.connections) == 1


@needs_litellm
def test_an_interrupt_ends_a_hanging_synchronous_call(providers: ProvidersServer, tmp_path: Path) -> None:
    with Kernel(tmp_path, python=PYTHON, env=child_environment(tmp_path, providers)) as kernel:
        assert kernel.run(f"%load_ext nbllm\n{PRELUDE}\nbridge.install()", timeout=SECONDS).status == "ok"
        hanging = kernel.send(
            "litellm.completion('anthropic/hang', MESSAGES, num_retries=0, **options('anthropic'))"
        )
        providers.wait_for(lambda: len(providers.requests) == 1)
        outcome, _ = kernel.interrupt(hanging)
        assert outcome.error is not None
        assert kernel.run("r = await ask()").status == "ok"
        found = rows(kernel.log)
    assert [row["status"] for row in found] == ["cancelled", "ok"]


def test_without_litellm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "litellm", None)
    with pytest.raises(nbllm.UsageProblem, match=r"pip install 'nbllm\[litellm\]'"):
        bridge.install()
    bridge.uninstall()


# -- what a proxy has noted ------------------------------------------------------------------------------

# As LiteLLM 1.106 writes them: the columns of its query, with times in UTC that have no zone.
NOTED: dict[str, Any] = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 2.55e-05,
    "total_tokens": 16,
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "startTime": "2026-11-20T12:00:00.250000",
    "endTime": "2026-11-20T12:00:01.500000+00:00",
    "completionStartTime": "2026-11-20T12:00:00.900000Z",
    "model": "gpt-4o-mini",
    "model_id": "6f0a",
    "model_group": "chat",
    "custom_llm_provider": "openai",
    "api_base": "https://api.openai.com",
    "user": "default_user_id",
    "metadata": {"user_api_key_alias": None, "status": "success"},
    "cache_hit": "None",
    "cache_key": "Cache OFF",
    "request_tags": [],
    "team_id": "",
    "organization_id": None,
    "end_user": "",
    "requester_ip_address": None,
    "session_id": "review",
    "status": "success",
    "mcp_namespaced_tool_name": None,
    "agent_id": None,
}


class ProxyLog:
    """A proxy's pages; `asked` holds the queries."""

    def __init__(self, *pages: Any, answer: bytes | None = None) -> None:
        self.pages = [
            {"data": page, "total": 9, "page": 1, "page_size": 50, "total_pages": len(pages)}
            for page in pages
        ]
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, x: Exchange) -> None:
        if x.request.path.endswith("/chat/completions"):
            said = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "chat",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
                ],
            }
            body = json.dumps(said).encode()
            await x.send(
                whole(
                    "200 OK",
                    body,
                    x_litellm_call_id="call-7",
                    x_litellm_overhead_duration_ms="1.5",
                    x_litellm_response_duration_ms="20",
                    x_litellm_attempted_retries="0",
                    x_litellm_key_spend="9",
                )
            )
            return
        self.asked.append(x.request.path)
        number = int(x.request.path.rpartition("page=")[2])
        await x.send(whole("200 OK", self.answer or json.dumps(self.pages[number - 1]).encode()))


def noted(**values: Any) -> dict[str, Any]:
    return {**NOTED, **values}


async def test_the_rows_of_a_proxy_and_ours_beside_them() -> None:
    pages = ProxyLog(
        [noted(request_id="b", startTime="2026-11-20T12:00:05", litellm_call_id="call-7"), noted()],
        [noted(request_id="c", startTime=None, spend=None, model_group="", total_tokens="many")],
    )
    with RawServer(behaviours={"proxy": pages}) as server:
        base = server.url("proxy")
        await nbllm.acompletion("litellm_proxy/chat", "Hi", base_url=base, session_id="here")
        frame = await bridge.afetch_sessions(base, "sk-proxy-0123456789", since=None)
        assert server.requests[-1].headers["authorization"] == "Bearer sk-proxy-0123456789"
    assert list(frame["proxy_request_id"]) == ["chatcmpl-1", "b", "c"]
    first, second, third = frame.to_dict("records")
    assert first["started_at"] == pd.Timestamp("2026-11-20T12:00:00.250", tz="UTC")
    assert first["first_chunk_at"] == pd.Timestamp("2026-11-20T12:00:00.900", tz="UTC")
    assert (first["duration_ms"], first["cost_usd"], first["input_tokens"]) == (1250.0, 2.55e-05, 11)
    assert (first["request_model"], first["response_model"], first["status"]) == (
        "chat",
        "gpt-4o-mini",
        "success",
    )
    (ours, *_) = request_rows()
    for row in (first, second):  # by the answer's id, and by the call's
        assert (row["session_id"], row["local_session_id"]) == ("review", "here")
        assert row["local_request_id"] == ours.request_id
        assert row["local_connection_id"] == ours.connection_id
    for name in ("started_at", "cost_usd", "request_model", "local_request_id", "local_connection_reused"):
        assert pd.isna(third[name]), name
    kept = json.loads(ours.response_headers)
    assert {name.lower() for name in kept if "litellm" in name.lower()} == {
        "x-litellm-call-id",
        "x-litellm-overhead-duration-ms",
        "x-litellm-response-duration-ms",
        "x-litellm-attempted-retries",
    }
    assert [path.split("?")[0] for path in pages.asked] == ["/proxy/spend/logs/v2"] * 2


async def test_one_session_of_a_proxy_is_asked_for_by_its_name() -> None:
    pages = ProxyLog([noted(startTime="2020-01-01T00:00:00")], [noted()], [noted(request_id="b")])
    with RawServer(behaviours={"proxy": pages}) as server:
        frame = await bridge.afetch_sessions(server.url("proxy"), session_id="a&b c", since="2021-01-01")
    assert pages.asked[2] == "/proxy/spend/logs/session/ui?session_id=a%26b+c&page_size=100&page=3"
    assert list(frame["proxy_request_id"]) == ["chatcmpl-1", "b"]


def test_of_nothing_the_frame_has_its_columns() -> None:
    with RawServer(behaviours={"proxy": ProxyLog([])}) as server:
        frame = bridge.fetch_sessions(server.url("proxy"))
    assert len(frame) == 0
    assert {"session_id", "cost_usd", "local_cell_id"} <= set(frame.columns)
    assert str(frame["started_at"].dtype).startswith("datetime64")


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b'{"data": {}}', b'{"data": null, "total_pages": 3}', b"{"], ids=repr
)
async def test_what_is_no_log_is_an_error_of_ours(answer: bytes) -> None:
    with (
        RawServer(behaviours={"proxy": ProxyLog(answer=answer)}) as server,
        pytest.raises(nbllm.APIResponseValidationError),
    ):
        await bridge.afetch_sessions(server.url("proxy"))


async def test_a_proxy_that_promises_pages_without_end_is_asked_as_long_as_they_hold_something() -> None:
    class Endless(ProxyLog):
        async def __call__(self, x: Exchange) -> None:
            self.asked.append(x.request.path)
            rows = [noted()] if len(self.asked) < 4 else []
            await x.send(whole("200 OK", json.dumps({"data": rows, "total_pages": 1 << 60}).encode()))

    pages = Endless()
    with RawServer(behaviours={"proxy": pages}) as server:
        frame = await bridge.afetch_sessions(server.url("proxy"), since=None)
    assert (len(frame), len(pages.asked)) == (1, 4)


async def test_hostile_values_are_unknown() -> None:
    bad = noted(
        request_id="bad",
        spend="much",
        prompt_tokens=-(1 << 70),
        completion_tokens=1.5,
        startTime=5,
        endTime="soon",
        model=["m"],
        status={"a": 1},
        session_id=None,
        metadata="{",
        request_duration_ms=True,
    )
    with RawServer(behaviours={"proxy": ProxyLog([bad, {"request_id": 7}, "row"])}) as server:
        frame = await bridge.afetch_sessions(server.url("proxy"), since=None)
    (row,) = frame.to_dict("records")
    for name in ("cost_usd", "input_tokens", "output_tokens", "started_at", "ended_at", "duration_ms"):
        assert pd.isna(row[name]), name


@pytest.mark.parametrize(
    "given", [{"session_id": "no\nname"}, {"since": "yesterday"}, {"base_url": "nowhere"}]
)
async def test_what_can_not_be_asked(given: dict[str, Any]) -> None:
    with pytest.raises(nbllm.UsageProblem):
        await bridge.afetch_sessions(**{"base_url": "http://127.0.0.1:9", **given})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[proxies.Proxy]:
    with proxies.Proxy(PYTHON, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@needs_litellm
@pytest.mark.parametrize("session_id", [None, "review"])
async def test_a_proxy_without_a_database(running: proxies.Proxy, session_id: str | None) -> None:
    with pytest.raises(nbllm.UsageProblem, match="it has no database"):
        await bridge.afetch_sessions(running.url, proxies.KEY, session_id=session_id)


@needs_litellm
async def test_what_a_proxy_says_of_a_request_is_kept(running: proxies.Proxy) -> None:
    await nbllm.acompletion("litellm_proxy/chat", "Hi", base_url=running.url, api_key=proxies.KEY)
    kept = {name.lower() for name in json.loads(request_rows()[-1].response_headers)}
    assert {"x-litellm-call-id", "x-litellm-model-id", "x-litellm-response-cost"} <= kept
    assert {"x-litellm-response-duration-ms", "x-litellm-attempted-retries"} <= kept


@needs_litellm
def test_litellm_in_front_of_a_proxy(running: proxies.Proxy, tmp_path: Path) -> None:
    """The session reaches the proxy, also the kernel's own; and what a body names itself stays so."""
    running.reset()
    with ProvidersServer() as server:
        told = run(
            f"""
            BASES["litellm_proxy"] = {running.url!r}
            at = dict(api_base={running.url!r}, api_key={proxies.KEY!r})
            bridge.install()

            async def main():
                with nbllm.session("around"):
                    await litellm.acompletion("litellm_proxy/chat", MESSAGES, **at)
                await litellm.acompletion("litellm_proxy/chat", MESSAGES, litellm_session_id="named", **at)
                await litellm.acompletion("litellm_proxy/chat", MESSAGES,
                    metadata={{"session_id": "m"}}, **at)
                await litellm.acompletion("litellm_proxy/chat", MESSAGES,
                    extra_body={{"litellm_session_id": "body"}}, **at)
            asyncio.run(main())
            litellm.completion("litellm_proxy/chat", MESSAGES, litellm_session_id="waited", **at)
            print(json.dumps([row["session_id"] for row in told()]))
            """,
            tmp_path,
            server,
        )
    assert told == ["around", "named", "m", "body", "waited"]
    assert [seen["session_id"] for seen in running.seen()] == told
