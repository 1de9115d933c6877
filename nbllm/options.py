"""What every verb takes beside the parameters of its endpoint: key, address, session, timeout, fallbacks.

Owns `Options`, under all names that callers of OpenAI and LiteLLM know, and their checks. The verbs call it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from . import masking, tagging
from .exceptions import UsageProblem
from .settings import check_retries, client_timeout


@dataclass(slots=True)
class Options:
    """What every verb takes beside the parameters of its endpoint.

    Attributes:
        session_id: Group of this request, as the caller named it in this call by whatever spelling; None for
            that of `nbllm.session(...)`, of `nbllm.set_session(...)`, else the kernel's own.
        timeout: For one attempt; None for the configured one.
        api_key: The key; default: the provider's environment variable.
        base_url: Another server; `api_base` is litellm's name for it.
        api_version: Azure's.
        extra_headers: Headers to add or replace.
        extra_query: Fields to add to the URL's query, or to replace there.
        extra_body: Fields to add to the JSON body as they are, without those that named the session.
        metadata: Kept with the request's parameters in the log.
        shared_session: A ClientSession of the caller's own.
        retries: How many further attempts a failure that may pass is worth, None for the configured
            number; `num_retries` and `max_retries` are its names for callers.
        fallbacks: Models to ask when the first keeps failing, each as the arguments of `resolve`.
    """

    session_id: str | None = None
    timeout: aiohttp.ClientTimeout | None = None
    api_key: str | None = field(default=None, repr=False)  # verbose tracebacks show locals
    base_url: str | None = None
    api_version: str | None = None
    extra_headers: Mapping[str, str] | None = field(default=None, repr=False)
    extra_query: Mapping[str, Any] | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    shared_session: aiohttp.ClientSession | None = None
    retries: int | None = None
    fallbacks: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


def take_options(given: dict[str, Any]) -> Options:
    """Take the options out of a verb's keyword arguments, and check them.

    Raises:
        UsageProblem: One of them can't be used.
    """
    return checked_options(**{name: given.pop(name) for name in OPTION_NAMES.intersection(given)})


def checked_options(
    *,
    session_id: Any = None,
    litellm_session_id: Any = None,
    litellm_trace_id: Any = None,
    timeout: Any = None,
    api_key: Any = None,
    base_url: Any = None,
    api_base: Any = None,
    api_version: Any = None,
    extra_headers: Any = None,
    extra_query: Any = None,
    extra_body: Any = None,
    metadata: Any = None,
    shared_session: Any = None,
    num_retries: Any = None,
    max_retries: Any = None,
    fallbacks: Any = None,
) -> Options:
    """The options under the names that callers use, checked; None is not given.

    Raises:
        UsageProblem: One of them can't be used.
    """
    options = Options()
    options.api_key, options.base_url, options.api_version = api_key, base_url or api_base, api_version
    options.shared_session = shared_session
    if metadata is not None:
        options.metadata = _mapping("metadata", metadata)
    if extra_headers is not None:
        options.extra_headers = _mapping("extra_headers", extra_headers)
    if extra_query is not None:
        options.extra_query = _mapping("extra_query", extra_query)
    named = litellm_session_id or litellm_trace_id or tagging.first_of(metadata, tagging.SESSION_METADATA)
    if extra_body is not None:
        options.extra_body, in_body = _without_session(_mapping("extra_body", extra_body))
        named = named or in_body
    if extra_headers:
        headers = {str(name).lower(): value for name, value in extra_headers.items()}
        named = named or tagging.first_of(headers, tagging.SESSION_HEADERS)
    if session_id is not None:  # an empty one too: it is no way to leave it out
        options.session_id = tagging.check_session_id(session_id)
    elif named:
        options.session_id = tagging.check_session_id(named)
    if timeout is not None:
        options.timeout = client_timeout(timeout)
    if (times := max_retries if num_retries is None else num_retries) is not None:
        options.retries = check_retries(times)
    if fallbacks is not None:
        options.fallbacks = _fallbacks(fallbacks)
    return options


OPTION_NAMES = frozenset(inspect.signature(checked_options).parameters)


def _without_session(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The fields of a body without those that name a session, and that session.

    OpenAI and others refuse fields that they don't know, in `metadata` too; for a proxy `calls` adds its own.
    """
    rest = {name: value for name, value in fields.items() if name not in tagging.SESSION_FIELDS}
    named, metadata = tagging.first_of(fields, tagging.SESSION_FIELDS), fields.get("metadata")
    if isinstance(metadata, Mapping) and not metadata.keys().isdisjoint(tagging.SESSION_METADATA):
        named = named or tagging.first_of(metadata, tagging.SESSION_METADATA)
        rest["metadata"] = {
            name: value for name, value in metadata.items() if name not in tagging.SESSION_METADATA
        }
        if not rest["metadata"]:
            del rest["metadata"]
    return rest, named


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageProblem(f"{name} must be a dict; got {masking.redact(repr(value)):.80}")
    return value


def _fallbacks(value: Any) -> list[dict[str, Any]]:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, (list, tuple)):
        raise UsageProblem(f"fallbacks must be a list of models; got {type(value).__name__}")
    return [_fallback(model) for model in models]


def _fallback(given: Any) -> dict[str, Any]:
    fallback = {"model": given} if isinstance(given, str) else given
    named = fallback.get("model", "the first") if isinstance(fallback, Mapping) and fallback else None
    if not isinstance(named, str) or not named.strip() or not _FALLBACK_NAMES.issuperset(fallback):
        names = f"a dict with {', '.join(map(str, given))}" if isinstance(given, Mapping) else repr(given)
        raise UsageProblem(  # no value is shown: it may be a key
            "each of the fallbacks must be a model, or a dict with model, api_key, base_url and api_version; "
            f"got {names:.80}"
        )
    return {"base_url" if name == "api_base" else name: value for name, value in fallback.items()}


_FALLBACK_NAMES = frozenset(("model", "api_key", "base_url", "api_base", "api_version"))
