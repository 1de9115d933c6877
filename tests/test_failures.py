"""What an error says of a proxy, with real ones that fail."""

from __future__ import annotations

import asyncio

import pytest

import nbllm
from tests.servers import refused_port


async def failed(base_url: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(nbllm.APIError) as caught:
        await nbllm.acompletion("m", "Hi", base_url=base_url)
    assert "planted" not in str(caught.value) + repr(caught.value.__cause__)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as port:
        text = await failed(f"{scheme}://api.example/v1", f"http://me:planted@127.0.0.1:{port}", monkeypatch)
    assert text.startswith(f"{scheme}://api.example/v1, through the proxy 127.0.0.1:{port}: ")
    assert "Nothing listens there" in text


async def test_a_proxy_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = await failed("https://api.example/v1", "http://me:planted@proxy.invalid:3128", monkeypatch)
    assert text.startswith("https://api.example/v1, through proxy.invalid:3128: ")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_wants_a_password_says_so(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        text = await failed(f"{scheme}://api.example/v1", f"http://me:planted@127.0.0.1:{port}", monkeypatch)
    assert b"Proxy-Authorization: Basic bWU6cGxhbnRlZA==\r\n" in asked[0]
    assert b"\r\nAuthorization:" not in asked[0]
    assert "407" in text
    assert "A name and password for the proxy go into its URL" in text
    if scheme == "https":
        assert text.startswith(f"https://api.example/v1, through the proxy 127.0.0.1:{port}: ")
