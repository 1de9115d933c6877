"""What a provider is, where a model string leads, and what a wire format must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, cast

from ..exceptions import UsageProblem
from ..types import ChatCompletion, ChatCompletionChunk


@dataclass(slots=True)  # frozen, it would take three times as long to make
class HttpRequest:
    """A request, ready to be sent, and sent again.

    Attributes:
        url: Where to.
        body: What; None for a GET.
        headers: Without the caller's own, with the key.
        params: The caller's parameters alone as JSON, for the log; None where there are none.
        content: What the log keeps as the request, where that is not the body.
    """

    url: str
    body: bytes | None
    headers: Mapping[str, str]
    params: bytes | None = None
    content: bytes | None = None

    def __repr__(self) -> str:  # no headers: they hold the key, and so may the query
        return f"HttpRequest({self.url.partition('?')[0]})"


class Dialect(Protocol):
    """A wire format: a module with these functions. All are pure."""

    def chat_request(
        self,
        route: Route,
        messages: list[Any],
        stream: bool,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> HttpRequest:
        """The request for a chat completion.

        Args:
            route: Where it goes.
            messages: OpenAI's messages as plain dicts; contents are texts or lists of OpenAI's parts.
            stream: Whether the answer shall come as server-sent events.
            params: OpenAI's parameters under their names; those that are None count as not given.
            extra_body: Fields to put into the body as they are.
            metadata: The caller's `metadata`.

        Raises:
            UsageProblem: A value that can't work.
            UnsupportedParamsError: A parameter that the format has no equivalent for.
        """

    def chat_response(self, body: bytes) -> ChatCompletion:
        """The whole answer; raises msgspec.DecodeError where the body is no JSON object."""

    def chunk_decoder(self) -> Callable[[bytes], ChatCompletionChunk | None]:
        """A decoder for one stream: the data of an event → a chunk, or None where it says nothing.

        An event that holds an error becomes a chunk without choices, with the error under `error`. Raises
        msgspec.DecodeError where the data is no JSON object.
        """


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.

    Attributes:
        name: As in rows and error messages, and the prefix of its model strings.
        base_url: Where it listens, up to and including `/v1` or what stands for it; or a function that
            tells; None where only the caller can know.
        key_variables: Environment variables that may hold the key, first come first served; empty where
            no key is needed.
        base_url_variables: Environment variables that may hold another base URL.
        dialect: Its wire format, by the name of its module here, which loads when it is needed.
        key_optional: Whether it answers without a key too.
        key_header: The header that takes the key.
        key_prefix: What stands before the key there.
        headers: Headers of every request.
        version: The last part of its base URLs, put there where a base URL from outside ends without one.
        url: From a route and a path such as "chat/completions" to the URL, where that is not simply both.
        has_responses: Whether it speaks OpenAI's Responses API; elsewhere nbllm builds it on chat.
        takes_session: Whether it groups requests by nbllm's session ids, as a LiteLLM proxy does.
    """

    name: str
    base_url: str | Callable[[], str] | None
    dialect: str
    key_variables: tuple[str, ...] = ()
    base_url_variables: tuple[str, ...] = ()
    key_optional: bool = False
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    url: Callable[[Route, str], str] | None = None
    has_responses: bool = False
    takes_session: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where one call goes. The key, which `headers` hold too, is never shown.

    Attributes:
        provider: Who answers.
        asked: The model as the caller wrote it.
        model: Its name on the wire.
        base_url: Without a slash at the end.
        api_key: The key, if there is one.
        headers: Those of every request to it, with the key.
        api_version: Azure's `api-version`; None for all others.
    """

    provider: Provider
    asked: str
    model: str
    base_url: str
    api_key: str | None
    headers: Mapping[str, str]
    api_version: str | None = None

    @property
    def dialect(self) -> Dialect:
        """The wire format that is spoken there."""
        return _dialect(self.provider.dialect)

    def url(self, path: str) -> str:
        """The URL of an endpoint, such as "chat/completions"."""
        if self.provider.url is not None:
            return self.provider.url(self, path)
        return f"{self.base_url}/{path}"

    def __repr__(self) -> str:
        return f"Route({self.provider.name}, {self.model}, {self.base_url})"


@lru_cache
def _dialect(name: str) -> Dialect:
    return cast(Dialect, import_module(f".{name}", __package__))


def merged_headers(headers: Mapping[str, str], extra: Mapping[str, str] | None) -> Mapping[str, str]:
    """A request's headers with the caller's own, which win, whatever their case.

    Raises:
        UsageProblem: A name or value that HTTP can't hold.
    """
    if not extra:
        return headers
    merged = dict(headers)
    for name, value in extra.items():
        if not (isinstance(name, str) and isinstance(value, str) and (name + value).isprintable()):
            raise UsageProblem(f"extra_headers: {name!r} and its value must be texts of one line")
        for present in [known for known in merged if known.lower() == name.lower()]:
            del merged[present]
        merged[name] = value
    return merged
