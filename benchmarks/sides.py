"""The two sides that are compared: a chat call by plain aiohttp with orjson, and by nbllm.

The plain side is what a careful user would write: one shared HTTP session, no cookie jar, a long keep-alive,
a high limit, bytes bodies, no trace, nbllm's timeouts, and server-sent events cut from whatever bytes are
there. It asks for `stream_options.include_usage` as nbllm does, so that both get the same bytes.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from typing import Any, Protocol

import aiohttp
import orjson
from yarl import URL

from benchmarks.canned import EMBEDDING_MODEL, KEY, MESSAGES, MODEL
from benchmarks.formats import FORMATS, TEXTS

KEEPALIVE_S = 300.0
LIMIT = 1000
TIMEOUTS = {
    "same": aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600),  # nbllm's own
    "aiohttp": aiohttp.ClientTimeout(total=300, sock_connect=30),  # aiohttp's own
    "none": aiohttp.ClientTimeout(total=None, sock_connect=None),
}
_HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}


class Client(Protocol):
    """One way to make calls; `mode` is what the server shall do."""

    name: str

    async def reply(self, mode: str) -> str:
        """Text of a reply that is not streamed."""

    async def stream(self, mode: str) -> str:
        """Text of a streamed reply."""

    async def embeddings(self, mode: str) -> str:
        """How many vectors of how many numbers came."""

    def settle(self) -> None:
        """Return when nothing of the calls so far is left to do (rows to write)."""

    async def close(self) -> None: ...


class Side(Client, Protocol):
    """A client that can do all works; `benchmarks.clients` needs but some of them."""

    async def format_reply(self, name: str) -> str:
        """Text of a reply in another provider's format."""

    async def format_stream(self, name: str) -> str:
        """Text of a streamed reply in another provider's format."""

    async def first(self, mode: str) -> tuple[float, str]:
        """Seconds from the call to the first text of a streamed reply, and the whole text."""


class EventCutter:
    """Cuts the data of server-sent events out of bytes that arrive in any pieces.

    Follows the event stream format of the HTML standard as far as data goes: lines end in LF, CR LF or CR,
    several data lines are joined, an empty line ends the event, anything else is passed over.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: bytes | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that are complete with this piece."""
        if self._rest:
            piece = self._rest + piece
        # A CR at the very end waits: the LF that belongs to it may come with the next piece.
        cut = max(piece.rfind(b"\n"), piece.rfind(b"\r", 0, -1)) + 1
        self._rest = piece[cut:]
        return self._events(piece[:cut].splitlines())

    def _events(self, lines: Iterable[bytes]) -> list[bytes]:
        found = []
        data = self._data
        for line in lines:
            if not line:
                if data is not None:
                    found.append(data)
                    data = None
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                data = value if data is None else data + b"\n" + value
        self._data = data
        return found


class Plain:
    """aiohttp and orjson by hand, reading streams in bulk."""

    name = "plain"

    def __init__(self, base: str, context: ssl.SSLContext | None, timeouts: str = "same") -> None:
        self._base = URL(base)
        self._urls: dict[str, URL] = {}
        self._ssl = context or True
        connector = aiohttp.TCPConnector(limit=LIMIT, keepalive_timeout=KEEPALIVE_S)
        self._http = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=TIMEOUTS[timeouts]
        )

    def _post(self, mode: str, *, stream: bool) -> aiohttp.client._RequestContextManager:
        url = self._urls.get(mode) or self._urls.setdefault(mode, self._base / mode / "v1/chat/completions")
        body: dict[str, object] = {"model": MODEL, "messages": MESSAGES}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self._http.post(
            url, data=orjson.dumps(body), headers=_HEADERS, ssl=self._ssl, raise_for_status=True
        )

    async def reply(self, mode: str) -> str:
        async with self._post(mode, stream=False) as response:
            text: str = orjson.loads(await response.read())["choices"][0]["message"]["content"]
            return text

    async def stream(self, mode: str) -> str:
        parts: list[str] = []
        cutter = EventCutter()
        async with self._post(mode, stream=True) as response:
            # To the end of the body, past [DONE]: only then can the connection be used again.
            while piece := await response.content.readany():
                for data in cutter.feed(piece):
                    if (
                        data != b"[DONE]"
                        and (choices := orjson.loads(data)["choices"])
                        and (content := choices[0]["delta"].get("content"))
                    ):
                        parts.append(content)
        return "".join(parts)

    def _ask(self, name: str, stream: bool) -> aiohttp.client._RequestContextManager:
        how = FORMATS[name]
        path = how.stream_path if stream else how.path
        return self._http.post(
            f"{self._base}/{name}/{path}",
            data=orjson.dumps(how.body(stream)),
            headers=_HEADERS,
            ssl=self._ssl,
            raise_for_status=True,
        )

    async def format_reply(self, name: str) -> str:
        async with self._ask(name, False) as response:
            return FORMATS[name].text(orjson.loads(await response.read()))

    async def format_stream(self, name: str) -> str:
        delta = FORMATS[name].delta
        parts: list[str] = []
        cutter = EventCutter()
        async with self._ask(name, True) as response:
            while piece := await response.content.readany():
                parts += [delta(orjson.loads(data)) for data in cutter.feed(piece)]
        return "".join(parts)

    async def embeddings(self, mode: str) -> str:
        import numpy as np

        body = {"model": EMBEDDING_MODEL, "input": ["a text"] * TEXTS}
        async with self._http.post(
            f"{self._base}/embeddings/v1/embeddings",
            data=orjson.dumps(body),
            headers=_HEADERS,
            ssl=self._ssl,
            raise_for_status=True,
        ) as response:
            rows = orjson.loads(await response.read())["data"]
        return str(np.array([row["embedding"] for row in rows], dtype=np.float32).shape)

    async def first(self, mode: str) -> tuple[float, str]:
        start = time.perf_counter()
        first_s = 0.0
        parts: list[str] = []
        cutter = EventCutter()
        async with self._post(mode, stream=True) as response:
            while piece := await response.content.readany():
                for data in cutter.feed(piece):
                    if (
                        data != b"[DONE]"
                        and (choices := orjson.loads(data)["choices"])
                        and (content := choices[0]["delta"].get("content"))
                    ):
                        first_s = first_s or time.perf_counter() - start
                        parts.append(content)
        return first_s, "".join(parts)

    def settle(self) -> None:
        pass

    async def close(self) -> None:
        await self._http.close()


class PlainLines(Plain):
    """The same, but streams are read as most examples do: `async for line in response.content`."""

    name = "by line"

    async def stream(self, mode: str) -> str:
        parts: list[str] = []
        async with self._post(mode, stream=True) as response:
            async for line in response.content:
                if (
                    line.startswith(b"data: ")
                    and line != b"data: [DONE]\n"
                    and (choices := orjson.loads(line[6:])["choices"])
                    and (content := choices[0]["delta"].get("content"))
                ):
                    parts.append(content)
        return "".join(parts)


class Nbllm:
    """nbllm's verb, as a user writes it; the trace and the log are on, as they are by default."""

    name = "nbllm"

    def __init__(self, base: str) -> None:
        import nbllm  # late: the log's path and the CA file are in the environment by now

        self._nbllm = nbllm
        self._base = base

    async def reply(self, mode: str) -> str:
        url = f"{self._base}/{mode}/v1"
        done: Any = await self._nbllm.acompletion(MODEL, MESSAGES, base_url=url, api_key=KEY)
        text: str = done.choices[0].message.content
        return text

    async def stream(self, mode: str) -> str:
        url = f"{self._base}/{mode}/v1"
        parts = []
        stream = await self._nbllm.acompletion(MODEL, MESSAGES, stream=True, base_url=url, api_key=KEY)
        chunk: Any
        async for chunk in stream:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
        return "".join(parts)

    async def format_reply(self, name: str) -> str:
        url = f"{self._base}/{name}"
        done: Any = await self._nbllm.acompletion(FORMATS[name].model, MESSAGES, base_url=url, api_key=KEY)
        text: str = done.choices[0].message.content
        return text

    async def format_stream(self, name: str) -> str:
        url = f"{self._base}/{name}"
        parts = []
        chunk: Any
        async for chunk in await self._nbllm.acompletion(
            FORMATS[name].model, MESSAGES, stream=True, base_url=url, api_key=KEY
        ):
            parts.append(chunk.choices[0].delta.content or "")
        return "".join(parts)

    async def embeddings(self, mode: str) -> str:
        url = f"{self._base}/embeddings/v1"
        done = await self._nbllm.aembedding(EMBEDDING_MODEL, ["a text"] * TEXTS, base_url=url, api_key=KEY)
        return str(done.array.shape)

    async def first(self, mode: str) -> tuple[float, str]:
        start = time.perf_counter()
        first_s = 0.0
        url = f"{self._base}/{mode}/v1"
        parts = []
        stream = await self._nbllm.acompletion(MODEL, MESSAGES, stream=True, base_url=url, api_key=KEY)
        chunk: Any
        async for chunk in stream:
            if chunk.choices and (content := chunk.choices[0].delta.content):
                first_s = first_s or time.perf_counter() - start
                parts.append(content)
        return first_s, "".join(parts)

    def settle(self) -> None:
        self._nbllm.log.flush()

    async def close(self) -> None:
        self.settle()  # nbllm closes its HTTP session with the loop

    @staticmethod
    def end() -> None:
        """Close the log, before the folder that it is in goes away."""
        import nbllm

        nbllm.log.close()
