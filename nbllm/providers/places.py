"""Where requests to models go, whoever sends them: what a path asks for, and who answers at an address.

Owns `kind_of` and `provider_at`. Called by `protocol` and `foreign` for requests that no verb of ours has
sent, and by the bridges.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from .. import environment
from . import PROVIDERS
from .base import Provider


class Kind(NamedTuple):
    """What a request asks for.

    Attributes:
        operation: As of our own verbs, where there is one.
        dialect: The format in which it is asked: "openai", "anthropic" or "gemini".
    """

    operation: str
    dialect: str


_KINDS = {
    "/chat/completions": Kind("chat", "openai"),
    "/messages": Kind("chat", "anthropic"),
    ":generateContent": Kind("chat", "gemini"),
    ":streamGenerateContent": Kind("chat", "gemini"),
    "/responses": Kind("responses", "openai"),
    "/completions": Kind("text_completion", "openai"),
    "/embeddings": Kind("embeddings", "openai"),
    ":embedContent": Kind("embeddings", "gemini"),
    ":batchEmbedContents": Kind("embeddings", "gemini"),
    "/images/generations": Kind("image_generation", "openai"),
    "/images/edits": Kind("image_edit", "openai"),
    "/audio/speech": Kind("speech", "openai"),
    "/audio/transcriptions": Kind("transcription", "openai"),
    "/audio/translations": Kind("translation", "openai"),
}
_END = re.compile(f"({'|'.join(_KINDS)})$")  # the longer of two that fit begins earlier


def kind_of(method: str | None, path: str | None) -> Kind | None:
    """What a request asks of a model, in OpenAI's, Anthropic's or Gemini's format; None where nothing."""
    if method != "POST" or path is None or (found := _END.search(path)) is None:
        return None
    return _KINDS[found[1]]


def provider_at(host: str | None, port: int | None, path: str, dialect: str) -> Provider:
    """Who answers at an address: the provider that is there, else the one whose format is spoken."""
    known = environment.environ()
    places: dict[str, Provider] = {}
    for provider in PROVIDERS.values():
        urls = [known.get(name) for name in (*provider.base_url_variables, _DEMO.get(provider.name, ""))]
        for url in (*urls, provider.base_url):
            if isinstance(url, str) and (place := _place(url))[:2] == (host, port):
                places.setdefault(place[2], provider)
    if found := [place for place in places if path.startswith(place)]:
        return places[max(found, key=len)]
    if host and host.endswith((".openai.azure.com", ".cognitiveservices.azure.com")):
        return PROVIDERS["azure"]
    return PROVIDERS[dialect]


_DEMO = {"demo": "NBLLM_DEMO_URL"}


def _place(url: str) -> tuple[str | None, int | None, str]:
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme), parts.path
    except ValueError:
        return None, None, ""
