"""The examples of litellm's documentation with its name replaced, each as a script and as a notebook cell.

They hold the calls, arguments and attributes of the pages that are named below, under
https://docs.litellm.ai/docs/: completion/shared_session, completion/stream, completion/usage, set_keys,
completion/reliable_completions, exception_mapping, embedding/async_embedding, response_api and
proxy/ui_logs_sessions. OpenAI is the demo server here, which answers to OpenAI's names too, but for
embeddings, which it doesn't have.

What differs by design:

- `asyncio.run(…)` in a cell needs `%load_ext nbllm` first; under litellm alone it never works there.
- `LITELLM_LOG=DEBUG` prints nothing: `NBLLM_LOG=DEBUG` does, and `nbllm.requests()` says which connection
  each request had, and why.
- FastAPI is no dependency: the body of the page's endpoint runs without it.
- `stream_chunk_builder(chunks)` is not there: the stream's own `.completion` is.
- The chunk with the usage that `stream_options` asks for has no choices, as OpenAI's page says, and litellm's
  too, which indexes them all the same: `chunk.choices[0]` fails there.
- `except openai.APITimeoutError` and the SDK's other classes don't catch nbllm's errors: the classes of the
  same names under `nbllm` do, and `nbllm.Timeout`.
- `litellm.api_key = …`, `.api_base`, `.openai_key` and the like do nothing: nbllm reads no module variables,
  only the environment and arguments.
- `batch_completion`, `completion_with_retries`, `context_window_fallback_dict`, `_should_retry`,
  `check_valid_key`, `get_valid_models`, `validate_environment` and `BaseLLMAIOHTTPHandler` are not there:
  `asyncio.gather`, `num_retries`, `fallbacks`, `nbllm.models()` and `shared_session` are.
- Getting, cancelling and deleting a stored response is not there.
- The examples with `openai.OpenAI(…)`, LangChain and curl don't mention litellm's module.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nbllm.servers.demo import DemoServer
from nbllm.servers.demo_chat import MODELS
from tests.kernels import TIMEOUT, Kernel, environment, rows
from tests.servers import Exchange, RawServer, whole

KEY = "sk-dummy-3c9f27a1e6"
ANSWER = r"([Dd]emo model)"  # a word of every answer of the demo server
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        code: As under litellm. `http://0.0.0.0:4000` stands for the server's address. With `await` outside of
            functions it is a cell's; the script has it in a main function.
        says: A pattern for what it prints.
        requests: How many it sends, by their status.
        connections: Over how many connections at most.
        session: A pattern for the session of all of them.
    """

    code: str
    says: str = ANSWER
    requests: tuple[str, ...] = ("ok",)
    connections: int = 1
    session: str = "kernel-.*"

    @property
    def cell(self) -> str:
        return re.sub(r"\blitellm\b", "nbllm", textwrap.dedent(self.code))

    @property
    def script(self) -> str:
        try:
            compile(self.cell, "example", "exec")
        except SyntaxError:
            body = textwrap.indent(self.cell, "    ")
            return f"import asyncio\nasync def main():\n{body}\nasyncio.run(main())"
        return self.cell


EXAMPLES = {
    # -- completion/shared_session -----------------------------------------------------------------
    "shared session": Example(
        """
        import asyncio
        from aiohttp import ClientSession
        from litellm import acompletion

        async def main():
            async with ClientSession() as shared_session:
                for text in ("Hello", "How are you?"):
                    response = await acompletion(
                        model="gpt-4o",
                        messages=[{"role": "user", "content": text}],
                        shared_session=shared_session,
                    )
                    print(response.choices[0].message.content)

        asyncio.run(main())
        """,
        requests=("ok", "ok"),
    ),
    "no shared session": Example(  # the page promises two HTTP sessions; here there is one pool all the same
        """
        import asyncio
        from litellm import acompletion

        async def main():
            response1 = await acompletion(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
            response2 = await acompletion(model="gpt-4o", messages=[{"role": "user", "content": "And you?"}])
            print(response1.choices[0].message.content, response2.choices[0].message.content)

        asyncio.run(main())
        """,
        requests=("ok", "ok"),
    ),
    "shared session of one's own making": Example(
        """
        import os
        import aiohttp
        import litellm

        os.environ["LITELLM_LOG"] = "DEBUG"
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=180),
            connector=aiohttp.TCPConnector(limit=300, limit_per_host=75),
        ) as shared_session:
            response = await litellm.acompletion(
                model="gpt-4o",
                messages=[{"role": "user", "content": "Hello"}],
                shared_session=shared_session,
            )
        print(response.choices[0].message.content)
        """
    ),
    "shared session in an endpoint": Example(
        """
        import aiohttp
        import litellm

        async def chat(messages: list[dict]):
            async with aiohttp.ClientSession() as session:
                return await litellm.acompletion(model="gpt-4o", messages=messages, shared_session=session)

        print(await chat([{"role": "user", "content": "Hello"}]))
        """
    ),
    "shared session for a batch": Example(
        """
        import asyncio
        from aiohttp import ClientSession
        from litellm import acompletion

        async def process_batch(messages_list):
            async with ClientSession() as shared_session:
                tasks = [
                    acompletion(model="gpt-4o", messages=messages, shared_session=shared_session)
                    for messages in messages_list
                ]
                return await asyncio.gather(*tasks)

        for result in await process_batch([[{"role": "user", "content": text}] for text in "abc"]):
            print(result.choices[0].message.content)
        """,
        says=rf"(?s){ANSWER}.*{ANSWER}.*{ANSWER}",
        requests=("ok", "ok", "ok"),
        connections=3,
    ),
    "shared session with a key": Example(
        """
        import asyncio
        from aiohttp import ClientSession
        from litellm import acompletion

        async def check_shared_session():
            async with ClientSession() as session:
                print(f"Session {id(session)}")
                try:
                    response = await acompletion(
                        model="gpt-4o",
                        messages=[{"role": "user", "content": "Hello"}],
                        shared_session=session,
                        api_key="your-api-key",
                    )
                    print(f"Response: {response.choices[0].message.content}")
                except Exception as e:
                    print(f"Error: {type(e).__name__}")

        asyncio.run(check_shared_session())
        """,
        says=rf"Session \d+\nResponse: .*{ANSWER}",
    ),
    # -- completion/stream, completion/usage -------------------------------------------------------
    "stream": Example(
        """
        from litellm import completion

        messages = [{"role": "user", "content": "Hey, how's it going?"}]
        response = completion(model="gpt-3.5-turbo", messages=messages, stream=True)
        for part in response:
            print(part.choices[0].delta.content or "", end="")
        """
    ),
    "stream by keys": Example(
        """
        from litellm import completion

        messages = [{"role": "user", "content": "Hey, how's it going?"}]
        for chunk in completion(model="gpt-3.5-turbo", messages=messages, stream=True):
            print(chunk["choices"][0]["delta"])
        """,
        says=r"(?s)Delta\(.*content=' ?[Dd]emo",
    ),
    "async": Example(
        """
        import asyncio
        from litellm import acompletion

        async def get_response():
            messages = [{"content": "Hello, how are you?", "role": "user"}]
            return await acompletion(model="gpt-3.5-turbo", messages=messages)

        response = asyncio.run(get_response())
        print(response)
        """
    ),
    "async stream": Example(
        """
        import asyncio, traceback
        from litellm import acompletion

        async def completion_call():
            try:
                response = await acompletion(
                    model="gpt-3.5-turbo",
                    messages=[{"content": "Hello, how are you?", "role": "user"}],
                    stream=True,
                )
                print(f"response: {response}")
                async for chunk in response:
                    print(chunk)
            except:
                print(f"error occurred: {traceback.format_exc()}")

        asyncio.run(completion_call())
        """,
        says=r"(?s)response: <.*Chunk\((?!.*error occurred)",
    ),
    "usage": Example(
        """
        import litellm

        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
        print(litellm.completion(model="gpt-4o", messages=messages).usage)
        options = {"include_usage": True}
        for chunk in litellm.completion("gpt-4o", messages, stream=True, stream_options=options):
            last = chunk
        print(last.usage, last.choices)
        """,
        says=r"(Usage\(prompt_tokens=\d+, completion_tokens=\d+, total_tokens=\d+.*\n?){2} \[\]",
        requests=("ok", "ok"),
    ),
    # -- set_keys ----------------------------------------------------------------------------------
    "key and address as arguments": Example(
        """
        from litellm import completion

        messages = [{"content": "Hello, how are you?", "role": "user"}]
        response = completion(
            "command-nightly", messages, api_key="your-key", api_base="http://0.0.0.0:4000", api_version="1"
        )
        print(response["choices"][0]["message"]["content"])
        """
    ),
    # -- completion/reliable_completions -----------------------------------------------------------
    "retries": Example(
        """
        from litellm import completion

        messages = [{"content": "What's the weather in San Francisco?", "role": "user"}]
        print(completion(model="openai/flaky", messages=messages, num_retries=2).choices[0].message.content)
        """,
        requests=("error", "ok"),
    ),
    "fallback to a model": Example(
        """
        from litellm import completion

        messages = [{"content": "Hello", "role": "user"}]
        response = completion(model="bad-model", messages=messages, fallbacks=["gpt-3.5-turbo"])
        print(response.choices[0].message.content)
        """
    ),
    "fallback to a key and an address": Example(
        """
        from litellm import completion

        response = completion(
            model="hosted_vllm/gpt-4",
            messages=[{"content": "Hello", "role": "user"}],
            api_key="bad-key",
            api_base="http://0.0.0.0:4000/nowhere",
            fallbacks=[{"api_key": "good-key-1"}, {"api_key": "good-key-2", "api_base": "http://0.0.0.0:4000"}],
        )
        print(response.choices[0].message.content)
        """,
        requests=("error", "error", "ok"),
    ),
    # -- exception_mapping -------------------------------------------------------------------------
    "time-out": Example(
        """
        import litellm

        messages = [{"role": "user", "content": "hello, write a 20 page essay"}]
        for stream in (False, True):
            try:
                for chunk in litellm.completion("openai/hang", messages, timeout=0.5, stream=stream):
                    print(chunk)
            except litellm.exceptions.Timeout as e:
                print(type(e).__name__, e.status_code, e.llm_provider, e.model, bool(e.message))
        """,
        says=r"(Timeout 408 openai openai/hang True\n){2}",
        requests=("error", "error"),
        connections=2,
    ),
    "refusals": Example(
        """
        import litellm
        from litellm.exceptions import BadRequestError, InternalServerError, RateLimitError

        for model, params in (("rate-limited", {}), ("error", {}), ("fast", {"n": -1})):
            try:
                litellm.completion(f"openai/{model}", [{"role": "user", "content": "Hi"}], **params)
            except (BadRequestError, RateLimitError, InternalServerError) as e:
                print(type(e).__name__, e.status_code, e.llm_provider)
        """,
        says=r"RateLimitError 429 openai\nInternalServerError 500 openai\nBadRequestError 400 openai",
        requests=("error", "error", "error"),
    ),
    # -- proxy/ui_logs_sessions --------------------------------------------------------------------
    "session": Example(
        """
        import uuid
        import litellm

        session_id = str(uuid.uuid4())
        for text in ("Write a short story about a robot", "Now write a poem about that robot"):
            response = litellm.completion(
                model="gpt-4o",
                messages=[{"role": "user", "content": text}],
                api_base="http://0.0.0.0:4000",
                api_key="your-key",
                metadata={"litellm_session_id": session_id},
            )
            print(response.choices[0].message.content)
        """,
        requests=("ok", "ok"),
        session=UUID,
    ),
    # -- proxy/ui_logs_sessions, response_api ------------------------------------------------------
    "responses that follow each other": Example(
        """
        import litellm

        options = {"model": "hosted_vllm/gpt-4o", "api_base": "http://0.0.0.0:4000", "api_key": "your-key"}
        response1 = litellm.responses(input="Write a short story about a robot", **options)
        response2 = litellm.responses(
            input="Now write a poem about that robot", previous_response_id=response1.id, **options
        )
        print(response2.output_text)
        """,
        requests=("ok", "ok"),
    ),
    "response": Example(
        """
        import litellm

        response = litellm.responses(
            model="demo/fast", input="Tell me a bedtime story about a unicorn.", max_output_tokens=100
        )
        print(response)
        for event in litellm.responses(model="demo/fast", input="Tell me another.", stream=True):
            print(event.type)
        """,
        says=rf"(?s){ANSWER}.*response\.created.*response\.output_text\.delta.*response\.completed",
        requests=("ok", "ok"),
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[DemoServer]:
    with pytest.MonkeyPatch.context() as patch, DemoServer(pace=0) as server:
        for name in ("gpt-4o", "gpt-3.5-turbo", "gpt-4", "command-nightly"):
            patch.setitem(MODELS, name, MODELS["fast"])
        yield server


@pytest.fixture
def witness(running: DemoServer) -> DemoServer:
    """The demo server, at rest and counting from zero."""
    running.wait_for(lambda stats: stats["requests_open"] == 0)
    running.reset()
    return running


def given(server: DemoServer) -> dict[str, str]:
    """The environment of the examples: OpenAI is the demo server."""
    return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "NBLLM_NUM_RETRIES": "0"}


@pytest.fixture(scope="module")
def kernel(running: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with Kernel(tmp_path_factory.mktemp("kernel"), running, env=given(running)) as kernel:
        kernel.run("%load_ext nbllm").ok()
        yield kernel


def run_script(code: str, folder: Path, env: dict[str, str]) -> str:
    """What a script prints; it must end well and without a warning."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def at(url: str, code: str) -> str:
    return code.replace("http://0.0.0.0:4000", url)


def check(example: Example, output: str, requests: list[dict[str, Any]], witness: DemoServer) -> None:
    """What was printed, what the log says, and what the server counted."""
    assert re.search(example.says, output), output
    assert KEY not in output
    assert [request["status"] for request in requests] == list(example.requests)
    (session,) = {request["session_id"] for request in requests}
    assert re.fullmatch(example.session, session)
    sent = [request for request in requests if request["http_status"] != 404]  # no chat request to the server
    stats = witness.wait_for(lambda stats: stats["requests_open"] == 0)
    assert stats["requests_total"] == len(sent)
    assert stats["connections_with_model_requests"] <= example.connections
    assert len({request["connection_id"] for request in requests}) <= example.connections


def stored(folder: Path) -> bytes:
    """All that the log holds there."""
    return b"".join(path.read_bytes() for path in folder.glob("log.db*"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_as_a_script(name: str, witness: DemoServer, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    output = run_script(
        at(witness.url, example.script), tmp_path, environment(tmp_path, witness) | given(witness)
    )
    check(example, output, rows(tmp_path / "log.db"), witness)
    assert KEY.encode() not in stored(tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_as_a_cell(name: str, witness: DemoServer, kernel: Kernel) -> None:
    example = EXAMPLES[name]
    output = kernel.run(at(witness.url, example.cell), cell_id=name).ok().stdout
    check(example, output, kernel.rows(cell_id=name), witness)
    assert KEY.encode() not in stored(kernel.folder)


# -- embedding/async_embedding, embedding/supported_embedding --------------------------------------

EMBEDDINGS = """
import asyncio
from nbllm import aembedding, embedding

async def get_response():
    return await aembedding("text-embedding-ada-002", input=["good morning"], api_base="http://0.0.0.0:4000")

response = asyncio.run(get_response())
print(response)
print(response.data[0].embedding, response["data"][0]["embedding"], response.usage.prompt_tokens)
response = embedding(
    model="text-embedding-ada-002", input=["good morning"], api_base="http://0.0.0.0:4000"
)
print(response.data[0]["embedding"])
"""


async def embeddings(x: Exchange) -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    answer = {"object": "list", "data": [vector], "model": x.request.json["model"], "usage": usage}
    await x.send(whole("200 OK", json.dumps(answer).encode()))


@pytest.mark.parametrize("form", ["script", "cell"])
def test_embeddings(
    form: str, running: DemoServer, kernel: Kernel, server: RawServer, tmp_path: Path
) -> None:
    server.behaviours["embeddings"] = embeddings
    code = at(server.url("embeddings"), EMBEDDINGS)
    if form == "cell":
        output = kernel.run(code).ok().stdout
    else:
        output = run_script(code, tmp_path, environment(tmp_path) | given(running))
    assert output.startswith("EmbeddingResponse(")
    assert output.endswith("[0.25, -0.5] [0.25, -0.5] 3\n[0.25, -0.5]\n")
    assert [request.path for request in server.requests] == ["/embeddings/v1/embeddings"] * 2
