"""Which proxy requests go through."""

from __future__ import annotations

import pytest
from yarl import URL

import nbllm
from nbllm import transport
from tests.rows import request_rows
from tests.servers import RawServer


async def test_the_proxies_are_those_of_when_the_session_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://first.example:1")
    monkeypatch.setenv("NO_PROXY", ".near.example")
    nbllm.shared_session()
    monkeypatch.setenv("HTTPS_PROXY", "http://second.example:2")
    monkeypatch.delenv("NO_PROXY")
    proxies = transport.proxies()
    assert proxies.to("https", "api.example") == URL("http://first.example:1")
    assert proxies.to("https", "a.near.example") is None
    assert proxies.to("http", "api.example") is None
    assert transport.Proxies().to("https", "a.near.example") == URL("http://second.example:2")


async def test_connections_to_a_proxy_with_a_password_are_reused(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:planted@127.0.0.1:{server.port}")
    server.behaviours[""] = server.behaviours["chat"]  # the path is a whole URL
    for _ in range(2):
        await nbllm.acompletion("m", "Hi", base_url="http://api.example/v1")
    server.close_idle()
    await nbllm.acompletion("m", "Hi", base_url="http://api.example/v1")
    assert {r.headers["proxy-authorization"] for r in server.requests} == {"Basic bWU6cGxhbnRlZA=="}
    assert not any("authorization" in r.headers for r in server.requests)
    first, second, *_, last = [row.connection_reason for row in request_rows()]
    assert (first, second, last) == ("first", None, "closed by server")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "SOCKS"])
async def test_a_socks_proxy_is_refused_and_nothing_is_sent(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:planted@127.0.0.1:1080")
    with pytest.raises(
        nbllm.UsageProblem, match=r"SOCKS can.t be used: name an HTTP proxy in HTTPS"
    ) as caught:
        await nbllm.acompletion("m", "Hi", base_url="https://api.example/v1")
    assert "planted" not in str(caught.value)
    assert request_rows() == []


async def test_an_http_proxy_counts_before_a_socks_proxy_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:3128")
    assert transport.proxies().to("https", "api.example") == URL("http://127.0.0.1:3128")
