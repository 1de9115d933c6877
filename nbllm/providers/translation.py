"""What the translations of OpenAI's chat format into other formats have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..exceptions import UnsupportedParamsError
from ..types import ChatCompletionChunk, parse
from .base import Route
from .encoding import encode


def given(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that count as given: those that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def shown(
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes | None:
    """The caller's parameters as JSON, as `HttpRequest.params` holds them."""
    fields = {**params, **(extra_body or {}), **({"metadata": metadata} if metadata else {})}
    return encode(fields) if fields else None


def unsupported(route: Route, what: str) -> UnsupportedParamsError:
    """The error for `what` a provider's format has no equivalent for."""
    name = route.provider.name
    return UnsupportedParamsError(f"{name}: {what}: leave it out", model=route.asked, llm_provider=name)


def add_turn(turns: list[dict[str, Any]], role: str, name: str, pieces: list[Any]) -> None:
    """Put what a message says into the turns, of which no two in a row have the same role.

    Args:
        turns: Those so far; the last one grows where it has the same role.
        role: Who speaks.
        name: The field of a turn that holds its pieces.
        pieces: What the message says; a message that says nothing makes no turn.
    """
    if turns and turns[-1]["role"] == role:
        turns[-1][name] += pieces
    elif pieces:
        turns.append({"role": role, name: pieces})


def json_object(value: Any) -> Mapping[str, Any] | None:
    """An object, or the JSON text of one, as in a tool call's `arguments`; None for anything else."""
    if isinstance(value, str):
        try:
            value = parse(value)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return None
    return value if isinstance(value, Mapping) else None


def split_data_url(url: str) -> tuple[str, str] | None:
    """Media type, with its parameters, and base64 of a URL like data:image/png;base64,…; None for others."""
    head, _, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        return None
    return head.removeprefix("data:").removesuffix(";base64"), data


def error_chunk(error: Any) -> ChatCompletionChunk:
    """The chunk for an event that holds an error."""
    chunk = ChatCompletionChunk()
    chunk.__dict__["error"] = error
    return chunk
