"""What a provider is, and where a model string leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider that speaks OpenAI's wire format.

    Attributes:
        name: As in rows and error messages, and the prefix of its model strings.
        base_url: Where it listens, up to and including `/v1`; or a function that tells.
        key_variables: Environment variables that may hold the key, first come first served; empty where
            no key is needed.
        base_url_variables: Environment variables that may hold another base URL.
    """

    name: str
    base_url: str | Callable[[], str]
    key_variables: tuple[str, ...] = ()
    base_url_variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Where one call goes. The key, which `headers` hold too, is never shown."""

    provider: Provider
    model: str
    base_url: str
    api_key: str | None
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Route({self.provider.name}, {self.model}, {self.base_url})"
