"""The google-genai SDK over the kernel's HTTP session: `nbllm.bridges.google_genai.install()`.

Tested with google-genai 3.4.
"""

import functools
from typing import Any

from .httpx_clients import Bridge

bridge = Bridge(
    "google-genai",
    "google.genai._api_client",
    ("SyncHttpxClient", "AsyncHttpxClient", "SyncHttpx2Client", "AsyncHttpx2Client"),
)


def install() -> None:
    """Have the SDK's own clients send over the kernel's HTTP session: those to come, and those there are.

    Clients that were given (`HttpOptions(httpx_client=…, aiohttp_client=…)`) stay as they are.

    Raises:
        UsageProblem: google-genai is not installed, or this version of it can't be reached.
    """
    bridge.install()
    api_client = _api_client()
    asks_aiohttp = api_client._use_aiohttp
    if hasattr(asks_aiohttp, "__wrapped__"):
        return

    # Its asynchronous side takes aiohttp where that is installed, in a session of its own; so it goes by
    # httpx here. A client that is just being made sets up the other way too, for after `uninstall`.
    @functools.wraps(asks_aiohttp)
    def asks_users_aiohttp(client: Any) -> bool:
        is_users = getattr(client._http_options, "aiohttp_client", None) is not None
        is_made = hasattr(client, "_async_client_session_request_args")
        return bool(asks_aiohttp(client)) and (is_users or not is_made)

    api_client._use_aiohttp = asks_users_aiohttp


def uninstall() -> None:
    """Take `install` back."""
    bridge.uninstall()
    api_client = _api_client()
    api_client._use_aiohttp = getattr(api_client._use_aiohttp, "__wrapped__", api_client._use_aiohttp)


def _api_client() -> Any:
    from google.genai._api_client import BaseApiClient

    return BaseApiClient
