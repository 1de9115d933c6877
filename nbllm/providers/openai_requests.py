"""What OpenAI's requests besides chat have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..exceptions import UsageProblem
from .base import HttpRequest, Route
from .encoding import encode
from .translation import given


def sent(params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's parameters and fields as they go into a body; those that are None are left out."""
    if params.get("stream"):
        raise UsageProblem("stream=True is for chat completions only: leave it out")
    return {**given(params), **(extra_body or {})}


def request(
    route: Route,
    path: str,
    content: dict[str, Any],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None,
) -> HttpRequest:
    """A request with a JSON body of the model, `content`, and what the caller gives, which wins."""
    fields = sent(params, extra_body)
    body = encode({"model": route.model, **content, **fields})
    return HttpRequest(route.url(path), body, route.headers, encode(fields) if fields else None)


def type_name(value: Any) -> str:
    """What to call a value of a wrong type."""
    return "None" if value is None else type(value).__name__
