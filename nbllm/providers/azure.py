"""Azure OpenAI: OpenAI's format at other addresses.

Source: Azure OpenAI REST API reference. A deployment stands in the path and the `api-version` in the query;
the newer v1 API, whose base URL ends in `/openai/v1`, has neither.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

API_VERSION = "2024-10-21"
"""The newest version of the data plane that is generally available; taken where none is given."""


def url(route: Any, path: str) -> str:
    """The URL of an endpoint, such as "chat/completions", of the deployment that the route names as model."""
    base = route.base_url.removesuffix("/openai")
    if base.endswith("/openai/v1"):
        query = f"?api-version={quote(route.api_version)}" if route.api_version else ""
        return f"{base}/{path}{query}"
    version = quote(route.api_version or API_VERSION)
    if path == "models":
        return f"{base}/openai/models?api-version={version}"
    if path == "responses":  # only the v1 API has it, with the deployment as model in the body
        return f"{base}/openai/v1/responses"
    return f"{base}/openai/deployments/{quote(route.model, safe='')}/{path}?api-version={version}"
