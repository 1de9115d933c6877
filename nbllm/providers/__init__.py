"""Providers: pure translators between OpenAI's shapes and a provider's wire format.

`resolve` finds the provider of a model string. A provider's dialect turns (parameters) into an HTTP request
and an HTTP response, or an SSE event, into an OpenAI-shaped object. No I/O in here, but for a server that
starts when its address is asked for (`Provider.base_url` as a function).
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

from .. import environment
from ..exceptions import AuthenticationError, NotFoundError, UsageProblem, did_you_mean
from . import azure
from .base import Dialect, HttpRequest, Provider, Route

__all__ = ["PROVIDERS", "Dialect", "HttpRequest", "Provider", "Route", "resolve"]


def _like_openai(name: str, base_url: str | None, key_variable: str | None = None, **rest: Any) -> Provider:
    """A provider that speaks OpenAI's format, with its variables named as litellm names them."""
    prefix = name.upper()
    key_variables = (key_variable or f"{prefix}_API_KEY",)
    return Provider(name, base_url, "openai", key_variables, (f"{prefix}_API_BASE",), **rest)


def _own_server(name: str, base_url: str | None) -> Provider:
    """A server of one's own: it needs no key, and its address is often told without the version."""
    return _like_openai(name, base_url, key_optional=True, version="/v1")


def _started(function: str) -> str:
    """The address of a server in this package that starts when it is asked for, by the function's name.

    A provider knows nothing of servers, and imports none.
    """
    url: str = pkgutil.resolve_name(function)()
    return url


# Prefix -> provider. Names, addresses and variables are those of the official SDKs and of litellm.
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            "openai",
            "https://api.openai.com/v1",
            "openai",
            ("OPENAI_API_KEY",),
            ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
            has_responses=True,
        ),
        Provider(
            "azure",
            None,
            "openai",
            ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"),
            ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT"),
            key_header="api-key",
            key_prefix="",
            url=azure.url,
            has_responses=True,
        ),
        Provider(
            "anthropic",
            "https://api.anthropic.com/v1",
            "anthropic",
            ("ANTHROPIC_API_KEY",),
            ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"),
            key_header="x-api-key",
            key_prefix="",
            headers={"anthropic-version": "2023-06-01"},
            version="/v1",
        ),
        Provider(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "gemini",
            ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_BASE"),
            key_header="x-goog-api-key",
            key_prefix="",
            version="/v1beta",
        ),
        Provider(
            "litellm_proxy",
            None,
            "openai",
            ("LITELLM_PROXY_API_KEY",),
            ("LITELLM_PROXY_API_BASE",),
            key_optional=True,
            has_responses=True,
            takes_session=True,
        ),
        _like_openai("openrouter", "https://openrouter.ai/api/v1"),
        _like_openai("groq", "https://api.groq.com/openai/v1"),
        _like_openai("mistral", "https://api.mistral.ai/v1"),
        _like_openai("deepseek", "https://api.deepseek.com/v1"),
        _like_openai("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
        _like_openai("xai", "https://api.x.ai/v1"),
        _own_server("ollama", "http://localhost:11434/v1"),
        _own_server("hosted_vllm", None),
        _own_server("vllm", "http://localhost:8000/v1"),
        _own_server("lm_studio", "http://localhost:1234/v1"),
        _own_server("llamacpp", "http://localhost:8080/v1"),
        Provider("demo", partial(_started, "nbllm.servers.demo:demo_url"), "openai"),
    )
}

# How bare names begin that people write without a provider.
_BARE_NAMES = {
    "openai": (
        *("gpt-", "chatgpt-", "ft:gpt-", "o1", "o3", "o4", "text-embedding-", "dall-e-", "whisper-", "tts-"),
        *("codex-", "computer-use-", "omni-moderation-"),
    ),
    "anthropic": ("claude-",),
    "gemini": ("gemini-",),
}


def resolve(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    api_version: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Route:
    """Where a model string leads: its provider, the name on the wire, the URL and the key.

    `prefix/name` names the provider; a bare name of OpenAI, Anthropic or Google is theirs. With a `base_url`
    any other model goes there, in OpenAI's format; a known prefix is taken off, another one stays, since
    such servers use names with slashes themselves.

    Raises:
        UsageProblem: `model`, `base_url` or the key is not usable text, or the base URL is missing.
        NotFoundError: No provider is known for the model.
        AuthenticationError: The provider needs a key and there is none.
    """
    env = environment.environ() if environ is None else environ
    if not isinstance(model, str) or not model.strip():
        raise UsageProblem(f"model must be a text such as 'gpt-4o-mini'; got {model!r}")
    provider_name, name = _provider_of(model.strip(), base_url is not None)
    provider = PROVIDERS[provider_name]
    key, url = api_key, base_url
    if key is None:
        key = next((env[v] for v in provider.key_variables if env.get(v)), None)
        if key is None and provider_name == "azure" and (token := env.get("AZURE_AD_TOKEN")):
            key = f"Bearer {token}"
    if url is None:
        url = next((env[v] for v in provider.base_url_variables if env.get(v)), None)
    if url is None:
        if key is None and provider.key_variables and not provider.key_optional:
            raise AuthenticationError(
                f"no key for {provider.name}: set the environment variable {provider.key_variables[0]} "
                f"(%nbllm key {provider.name} asks for it), or give api_key=. Without a key, demo/small "
                "answers",
                model=model,
                llm_provider=provider.name,
            )
        if provider.base_url is None:
            raise UsageProblem(
                f"no address for {provider.name}: set the environment variable "
                f"{provider.base_url_variables[0]} or give base_url="
            )
        url = provider.base_url if isinstance(provider.base_url, str) else provider.base_url()
    if not isinstance(url, str):
        raise UsageProblem(f"base_url must be a text such as 'https://host/v1'; got {url!r}")
    if key is not None and not isinstance(key, str):
        raise UsageProblem(f"api_key must be a text, not {type(key).__name__}")
    if provider_name == "azure":
        api_version = api_version or env.get("AZURE_API_VERSION") or env.get("OPENAI_API_VERSION")
    return _route(provider_name, model, name, url, key, api_version)


@lru_cache(maxsize=1024)
def _provider_of(model: str, has_base_url: bool) -> tuple[str, str]:
    """Name of the provider of a model string, and the model's name on the wire."""
    prefix, slash, rest = model.partition("/")
    if slash and rest and prefix in PROVIDERS:
        return prefix, rest
    for provider, beginnings in _BARE_NAMES.items():
        # A server of one's own speaks OpenAI's format, whatever its models are called.
        if not slash and not has_base_url and model.startswith(beginnings):
            return provider, model
    if has_base_url or model.startswith(_BARE_NAMES["openai"]):
        return "openai", model
    known = ", ".join(f"{name}/…" for name in PROVIDERS)
    if slash:
        meant = did_you_mean(prefix, PROVIDERS)
    else:
        known_beginnings = [name for names in _BARE_NAMES.values() for name in names]
        meant = did_you_mean(f"{model.partition('-')[0]}-", known_beginnings)
    raise NotFoundError(
        f"no provider is known for model {model!r}{meant or ':'} write one of {known}, "
        "a bare name such as gpt-4o-mini, claude-… or gemini-…, or give base_url=",
        model=model,
    )


@lru_cache(maxsize=1024)
def _route(
    provider_name: str, asked: str, model: str, url: str, key: str | None, api_version: str | None
) -> Route:
    provider = PROVIDERS[provider_name]
    headers = {"Content-Type": "application/json", **provider.headers}
    if key := key and key.strip():  # a key read from a file ends in a line break
        if not key.isprintable():
            raise UsageProblem("the API key holds a line break or another control character")
        if key.startswith("Bearer "):  # a token of Microsoft Entra, where Azure's key would stand
            headers["Authorization"] = key
            key = key.removeprefix("Bearer ")
        else:
            headers[provider.key_header] = provider.key_prefix + key
    url = _checked_url(url)
    if provider.version and not re.search(r"/v\d\w*$", url):
        url += provider.version
    return Route(provider, asked, model, url, key, headers, api_version)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if usable and "@" in parts.netloc:  # it would be shown wherever the URL is
        raise UsageProblem("base_url holds a password: send it by extra_headers={'Authorization': …}")
    shown = repr(re.split("[?#]", url)[0].rpartition("@")[2])  # the rest may hold a key
    if not usable or not url.isprintable() or " " in url:
        raise UsageProblem(f"base_url must be like https://host/v1; got {shown}")
    if parts.query or parts.fragment:
        raise UsageProblem(f"base_url can't hold what follows a ? or #; got {shown} and more")
    return url.rstrip("/")
