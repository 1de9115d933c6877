"""Embeddings of Gemini's batchEmbedContents: requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..exceptions import UsageProblem
from ..types import Usage
from . import gemini_shapes as shapes
from .base import HttpRequest, Route
from .encoding import encode
from .gemini_requests import resource
from .translation import given, shown, unsupported


class _Embedding(msgspec.Struct):
    values: list[float] = []


class _Embeddings(msgspec.Struct):
    embeddings: list[_Embedding] = []
    usageMetadata: shapes.Usage | None = None


_decode_embeddings = shapes.checked(msgspec.json.Decoder(_Embeddings).decode)


def embedding_request(
    route: Route,
    inputs: list[str],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for the embeddings of some texts, at most 100 of them.

    `dimensions` is Gemini's `outputDimensionality`; its own `task_type` and `title` pass, as do the fields of
    `extra_body`, into the request of each text.

    Raises:
        UsageProblem: An input that is no text, or a value that JSON can't hold.
        UnsupportedParamsError: An `encoding_format` other than "float".
    """
    if not all(isinstance(text, str) for text in inputs):
        raise UsageProblem("Gemini makes embeddings of texts, not of token ids")
    sent = given(params)
    each = dict(sent)
    if each.pop("encoding_format", "float") != "float":
        raise unsupported(route, f"encoding_format={sent['encoding_format']!r} instead of floats")
    each.pop("user", None)  # no field for it, as in a chat
    if "dimensions" in each:
        each["outputDimensionality"] = each.pop("dimensions")
    model = resource(route.model)
    each = {"model": model, **each, **(extra_body or {})}
    return HttpRequest(
        f"{route.base_url}/{model}:batchEmbedContents",
        encode({"requests": [{**each, "content": {"parts": [{"text": text}]}} for text in inputs]}),
        route.headers,
        shown(sent, extra_body),
    )


def embedding_response(body: bytes) -> tuple[list[list[float]], Usage | None]:
    """The vectors in the order of the texts, and the tokens, which older models don't count.

    Raises:
        msgspec.DecodeError: The body is no JSON object, or not in Gemini's format.
    """
    answer = _decode_embeddings(body)
    usage = answer.usageMetadata
    counts = None
    if usage is not None:
        counts = Usage(prompt_tokens=usage.promptTokenCount, total_tokens=usage.promptTokenCount)
    return [embedding.values for embedding in answer.embeddings], counts
