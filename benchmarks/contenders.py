"""The clients that `benchmarks.clients` compares, each used as its documentation says, at its defaults.

Run by the benchmark as `python -m benchmarks.contenders NAME BASE_URL`: a process with one client for all of
its work, so that what a client imports or patches touches no other. It answers in lines of JSON: first what
the way to the first answer took, then the cost of each work that it reads from standard input.

Imports no HTTP client by itself: which of them are loaded, and when, is a part of what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.canned import EMBEDDING_MODEL, KEY, MESSAGES, MODEL, REPLY_TEXT
from benchmarks.formats import TEXTS

if TYPE_CHECKING:
    from benchmarks.sides import Client

QUIET_S = 0.02
QUIET_CPU_S = 0.001
_INPUT = ["a text"] * TEXTS
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}  # as the others ask: the same bytes


def _shape(vectors: list[list[float]]) -> str:
    import numpy as np

    return str(np.array(vectors, dtype=np.float32).shape)


class _OpenAIShaped:
    """What is the same of clients whose answers have OpenAI's shape."""

    async def _chat(self, mode: str, **options: Any) -> Any:
        raise NotImplementedError

    async def reply(self, mode: str) -> str:
        text: str = (await self._chat(mode)).choices[0].message.content
        return text

    async def stream(self, mode: str) -> str:
        parts = []
        async for chunk in await self._chat(mode, **_STREAM):
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
        return "".join(parts)

    def settle(self) -> None:
        if nbllm := sys.modules.get("nbllm"):  # whose HTTP session it uses
            nbllm.log.flush()


class Sdk(_OpenAIShaped):
    """The openai SDK: one client, with an `http_client` where it is given one."""

    name = "openai"

    def __init__(self, base: str, http_client: Any = None) -> None:
        import openai

        self._client = openai.AsyncOpenAI(base_url=base, api_key=KEY, http_client=http_client)
        self._base = base
        self._by_mode: dict[str, Any] = {}

    def _at(self, mode: str) -> Any:
        """The client at another address; the connections stay those of the one client."""
        if mode not in self._by_mode:
            self._by_mode[mode] = self._client.with_options(base_url=f"{self._base}/{mode}/v1")
        return self._by_mode[mode]

    async def _chat(self, mode: str, **options: Any) -> Any:
        return await self._at(mode).chat.completions.create(model=MODEL, messages=MESSAGES, **options)

    async def embeddings(self, mode: str) -> str:
        done = await self._at(mode).embeddings.create(model=EMBEDDING_MODEL, input=_INPUT)
        return _shape([row.embedding for row in done.data])

    async def close(self) -> None:
        await self._client.close()


class LiteLLM(_OpenAIShaped):
    """litellm's asynchronous verbs, with `shared_session` where there is one."""

    name = "litellm"

    def __init__(self, base: str, **options: Any) -> None:
        import litellm

        litellm.telemetry = False
        self._litellm = litellm
        self._base = base
        self._options = options

    def _place(self, mode: str) -> dict[str, Any]:
        return {"api_base": f"{self._base}/{mode}/v1", "api_key": KEY, **self._options}

    async def _chat(self, mode: str, **options: Any) -> Any:
        return await self._litellm.acompletion(
            model=f"openai/{MODEL}", messages=MESSAGES, **self._place(mode), **options
        )

    async def embeddings(self, mode: str) -> str:
        done = await self._litellm.aembedding(
            model=f"openai/{EMBEDDING_MODEL}", input=_INPUT, **self._place(mode)
        )
        return _shape([row["embedding"] for row in done.data])

    async def close(self) -> None:
        await self._litellm.close_litellm_async_clients()


class LangChain:
    """LangChain's models of OpenAI, one for each address."""

    name = "langchain"

    def __init__(self, base: str) -> None:
        import langchain_openai

        self._langchain = langchain_openai
        self._base = base
        self._models: dict[str, Any] = {}

    def _at(self, mode: str) -> Any:
        if mode not in self._models:
            at: dict[str, Any] = {"base_url": f"{self._base}/{mode}/v1", "api_key": KEY}
            self._models[mode] = self._langchain.ChatOpenAI(model=MODEL, stream_usage=True, **at)
            if mode == "embeddings":  # without the check, whose tokenizer it would fetch from the internet
                self._models[mode] = self._langchain.OpenAIEmbeddings(
                    model=EMBEDDING_MODEL, check_embedding_ctx_length=False, **at
                )
        return self._models[mode]

    async def reply(self, mode: str) -> str:
        text: str = (await self._at(mode).ainvoke(MESSAGES)).content
        return text

    async def stream(self, mode: str) -> str:
        return "".join([chunk.content async for chunk in self._at(mode).astream(MESSAGES)])

    async def embeddings(self, mode: str) -> str:
        return _shape(await self._at(mode).aembed_documents(_INPUT))

    def settle(self) -> None:
        pass

    async def close(self) -> None:
        pass  # it has nothing to close its clients by


# -- which there are -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """One column of the tables.

    Attributes:
        title: What stands above it.
        packages: What must be installed.
        modules: What a user imports.
        make: The client, for the address of the server.
    """

    title: str
    packages: tuple[str, ...]
    modules: str
    make: Callable[[str], Client]

    @property
    def logs(self) -> bool:
        """Whether its requests are rows in nbllm's log."""
        return "nbllm" in self.packages


def _plain(base: str) -> Client:
    from benchmarks.sides import Plain

    return Plain(base, None)


def _nbllm(base: str) -> Client:
    from benchmarks.sides import Nbllm

    return Nbllm(base)


def _openai_over_nbllm(base: str) -> Client:
    import nbllm

    return Sdk(base, nbllm.async_httpx_client())


def _openai_aiohttp(base: str) -> Client:
    import openai

    return Sdk(base, openai.DefaultAioHttpClient())


def _litellm_shared(base: str) -> Client:
    import nbllm

    return LiteLLM(base, shared_session=nbllm.shared_session())


def _litellm_bridged(base: str) -> Client:
    from nbllm.bridges import litellm

    litellm.install()
    return LiteLLM(base)


CONTENDERS = {
    "plain": Contender("plain aiohttp", ("aiohttp", "orjson"), "aiohttp", _plain),
    "nbllm": Contender("nbllm", ("nbllm",), "nbllm", _nbllm),
    "openai-nbllm": Contender("openai over nbllm", ("openai", "nbllm"), "nbllm, openai", _openai_over_nbllm),
    "openai": Contender("openai", ("openai",), "openai", Sdk),
    "openai-aiohttp": Contender(
        "openai[aiohttp]", ("openai", "httpx-aiohttp"), "openai, httpx_aiohttp", _openai_aiohttp
    ),
    "langchain": Contender("langchain-openai", ("langchain-openai",), "langchain_openai", LangChain),
    "litellm": Contender("litellm", ("litellm",), "litellm", LiteLLM),
    "litellm-shared": Contender(
        "litellm, shared_session of nbllm", ("litellm", "nbllm"), "nbllm, litellm", _litellm_shared
    ),
    "litellm-bridge": Contender(
        "litellm, nbllm's bridge", ("litellm", "nbllm"), "nbllm, litellm", _litellm_bridged
    ),
}


# -- the process of one of them ------------------------------------------------------------------------


async def _serve(name: str, base: str, answer: Callable[..., None]) -> None:
    began = time.perf_counter()
    client: Any = CONTENDERS[name].make(base)  # can do the works that are asked of it, not all
    text = await client.reply("reply")
    answer(cost_s=time.perf_counter() - began, requests=1, right=int(text == REPLY_TEXT))

    from benchmarks import works  # only now, as it imports aiohttp

    by_name = {work.name: work for work in works.WORKS}
    loop = asyncio.get_running_loop()
    # Read in a thread: a loop that stands still can't do what clients do between calls.
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        work = by_name[asked["work"]]
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        sample = await work.measure(client, asked["size"])
        wall_s = time.perf_counter() - wall
        await _quiet()
        answer(
            cost_s=time.process_time() - cpu,
            wall_s=wall_s,
            requests=len(sample.texts),
            right=sample.texts.count(work.text),
        )
    client.settle()
    await client.close()


async def _quiet() -> None:
    """Return when the process has come to rest: what a client does after its answers is a cost as well."""
    before, now = -1.0, time.process_time()
    while now - before > QUIET_CPU_S:
        await asyncio.sleep(QUIET_S)
        before, now = now, time.process_time()


def _main(name: str, base: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints is no answer

    def answer(**values: float) -> None:
        print(json.dumps(values), file=answers, flush=True)

    asyncio.run(_serve(name, base, answer))
    if nbllm := sys.modules.get("nbllm"):
        nbllm.log.close()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
