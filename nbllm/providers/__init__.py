"""Providers: pure translators between OpenAI's shapes and a provider's wire format.

`resolve` finds the provider of a model string. A provider turns (parameters) into an HTTP request and an
HTTP response, or an SSE event, into an OpenAI-shaped object. No I/O in here.
"""

from __future__ import annotations

import os
from functools import lru_cache
from urllib.parse import urlsplit

from ..exceptions import AuthenticationError, NotFoundError, UsageProblem
from ..kept import kept
from .base import Provider, Route

__all__ = ["PROVIDERS", "Provider", "Route", "register", "resolve"]

# Prefix -> provider. All of these speak OpenAI's format; `base_url` may also be a function, for a server
# that starts at first use.
PROVIDERS: dict[str, Provider] = kept(__name__, dict)
PROVIDERS |= {
    "openai": Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        key_variables=("OPENAI_API_KEY",),
        base_url_variables=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    ),
}

# Names that people write bare and that belong to OpenAI.
_OPENAI_NAMES = (
    "gpt-", "chatgpt-", "ft:gpt-", "o1", "o3", "o4", "text-embedding-", "dall-e-", "whisper-", "tts-",
)  # fmt: skip


def register(provider: Provider) -> None:
    """Add a provider to the table, under its name as prefix."""
    PROVIDERS[provider.name] = provider
    _provider_of.cache_clear()
    _route.cache_clear()


def resolve(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    environ: dict[str, str] | None = None,
) -> Route:
    """Where a model string leads: its provider, the name on the wire, the URL and the key.

    `prefix/name` names the provider; a bare OpenAI name is OpenAI's. With a `base_url` any model goes
    there, in OpenAI's format; a known prefix is taken off, another one stays, since such servers use
    names with slashes themselves.

    Raises:
        UsageProblem: `model`, `base_url` or the key is not usable text.
        NotFoundError: No provider is known for the model.
        AuthenticationError: The provider needs a key and there is none.
    """
    env = os.environ if environ is None else environ
    if not isinstance(model, str) or not model.strip():
        raise UsageProblem(f"model must be a text such as 'gpt-4o-mini'; got {model!r}")
    provider_name, name = _provider_of(model.strip(), base_url is not None)
    provider = PROVIDERS[provider_name]
    key = api_key or next((env[v] for v in provider.key_variables if env.get(v)), None)
    url = base_url or next((env[v] for v in provider.base_url_variables if env.get(v)), None)
    if url is None:
        if key is None and provider.key_variables:
            raise AuthenticationError(
                f"no key for {provider.name}: set the environment variable {provider.key_variables[0]} "
                "or give api_key=. Without a key, demo/small answers",
                model=model,
                llm_provider=provider.name,
            )
        url = provider.base_url if isinstance(provider.base_url, str) else provider.base_url()
    if not isinstance(url, str):
        raise UsageProblem(f"base_url must be a text such as 'https://host/v1'; got {url!r}")
    if key is not None and not isinstance(key, str):
        raise UsageProblem(f"api_key must be a text, not {type(key).__name__}")
    return _route(provider_name, name, url, key)


@lru_cache(maxsize=1024)
def _provider_of(model: str, has_base_url: bool) -> tuple[str, str]:
    """Name of the provider of a model string, and the model's name on the wire."""
    prefix, slash, rest = model.partition("/")
    if slash and rest and prefix in PROVIDERS:
        return prefix, rest
    if has_base_url or model.startswith(_OPENAI_NAMES):
        return "openai", model
    known = ", ".join(f"{name}/…" for name in PROVIDERS)
    raise NotFoundError(
        f"no provider is known for model {model!r}: write one of {known}, "
        "a bare OpenAI name such as gpt-4o-mini, or give base_url=",
        model=model,
    )


@lru_cache(maxsize=1024)
def _route(provider_name: str, model: str, url: str, key: str | None) -> Route:
    headers = {"Content-Type": "application/json"}
    if key := key and key.strip():  # a key read from a file ends in a line break
        if not key.isprintable():
            raise UsageProblem("the API key holds a line break or another control character")
        headers["Authorization"] = f"Bearer {key}"
    return Route(PROVIDERS[provider_name], model, _checked_url(url), key, headers)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if usable and "@" in parts.netloc:  # it would be shown wherever the URL is
        raise UsageProblem("base_url holds a password: send it by extra_headers={'Authorization': …}")
    if not usable or not url.isprintable() or " " in url:
        raise UsageProblem(f"base_url must be like https://host/v1; got {url!r}")
    if parts.query or parts.fragment:
        raise UsageProblem(f"base_url can't hold what follows a ? or #; got {url!r}")
    return url.rstrip("/")
