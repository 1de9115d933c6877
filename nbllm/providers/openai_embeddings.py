"""Embeddings in OpenAI's wire format: inputs, requests, answers.

Source: OpenAI API reference, "Embeddings"; what other servers do differently is named where it is handled.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import msgspec

from ..embeddings import Embedding, EmbeddingResponse, dimensions
from ..exceptions import UsageProblem
from ..types import Usage, decoder
from .base import HttpRequest, Route
from .openai_requests import request, type_name

_embeddings = decoder(EmbeddingResponse)


def checked_inputs(value: Any) -> list[Any]:
    """What a caller gives as `input` as a list of texts, or of lists of token ids.

    Args:
        value: A text, a list of texts, one input as a list of token ids, or a list of such; a numpy array
            or a pandas Series counts as the list that it holds.

    Raises:
        UsageProblem: Anything else, or an empty input, which OpenAI refuses.
    """
    value = _listed(value)
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list):
        raise UsageProblem(f"input is a text, a list of texts or a list of tokens, not {type_name(value)}")
    if not inputs:
        raise UsageProblem("input is empty: there is nothing to embed")
    inputs = [_listed(item) for item in inputs]
    if all(_is_integer(item) for item in inputs):
        return [inputs]
    for number, item in enumerate(inputs):
        if not isinstance(item, str | list):
            raise UsageProblem(f"input[{number}] is a text or a list of tokens, not {type_name(item)}")
        if type(item) is not type(inputs[0]):
            raise UsageProblem(
                f"input[{number}] is a {type_name(item)}, input[0] is not: texts or tokens, not both"
            )
        if not item:
            raise UsageProblem(f"input[{number}] is empty, which has no embedding: leave it out")
        if isinstance(item, list) and not all(_is_integer(token) for token in item):
            raise UsageProblem(f"input[{number}] is a list, but not of tokens: they are whole numbers")
    return inputs


def _listed(value: Any) -> Any:
    """Values of numpy and pandas as Python's own, tuples as lists, subclasses of str as str."""
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def split_inputs(inputs: list[Any], most: int = 2048, most_bytes: int = 300_000) -> list[list[Any]]:
    """The inputs in parts that one request each may hold, in order.

    Args:
        inputs: From `checked_inputs`.
        most: Inputs in a request. OpenAI takes 2048.
        most_bytes: UTF-8 bytes of all texts of a request; a token id counts as one. OpenAI takes 300,000
            tokens, and a token stands for a byte or more: by default no request is refused, whatever its
            language. An input that is larger gets a request of its own.
    """
    parts: list[list[Any]] = []
    room = 0
    for item in inputs:
        size = len(item.encode("utf-8", "replace")) if isinstance(item, str) else len(item)
        if not parts or len(parts[-1]) >= most or size > room:
            parts.append([])
            room = most_bytes
        parts[-1].append(item)
        room -= size
    return parts


def embedding_request(
    route: Route,
    inputs: list[Any],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for the embeddings of `inputs`, which come from `checked_inputs`.

    The answer is asked for as base64, a third of the size of numbers, unless the caller gives
    `encoding_format`; where that is None, nothing is asked for: some servers know no such field.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    content: dict[str, Any] = {"input": inputs}
    if "encoding_format" not in params:
        content["encoding_format"] = "base64"
    return request(route, "embeddings", content, params, extra_body)


def embedding_response(body: bytes, count: int | None = None) -> EmbeddingResponse:
    """The embeddings in the order of the inputs, whether they came as base64 or as numbers.

    Args:
        body: The answer.
        count: How many inputs were sent; None where that is not to be checked.

    Raises:
        msgspec.DecodeError: There are none, not as many as inputs, or not all of one length.
    """
    response = _embeddings(body)
    rows = response.data
    if not rows or len(rows) != (count or len(rows)):
        raise msgspec.DecodeError(f"{count or 'some'} embeddings were expected, not {len(rows)}")
    lengths = {dimensions(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise msgspec.DecodeError(f"the embeddings have {', '.join(map(str, sorted(lengths)))} dimensions")
    ranks: list[Any] = [row.index for row in rows]
    if all(map(_is_integer, ranks)) and sorted(ranks) == list(range(len(rows))):
        rows.sort(key=lambda row: row.index or 0)
    else:  # some servers write no index, or 0 everywhere
        _number(rows)
    return response


def _number(rows: list[Embedding]) -> None:
    for index, row in enumerate(rows):
        row.index = index


def joined(responses: list[EmbeddingResponse]) -> EmbeddingResponse:
    """The answers to all parts of `split_inputs` as one: rows numbered on, tokens and prices summed."""
    if len(responses) == 1:
        return responses[0]
    rows = [copy.copy(row) for response in responses for row in response.data]
    _number(rows)
    usage = Usage(
        prompt_tokens=_total(responses, "prompt_tokens"), total_tokens=_total(responses, "total_tokens")
    )
    whole = EmbeddingResponse(object="list", data=rows, model=responses[0].model, usage=usage)
    whole.__dict__["_request"] = tuple(record for response in responses for record in response.requests)
    return whole


def _total(responses: list[EmbeddingResponse], name: str) -> int | None:
    counts: list[Any] = [getattr(response.usage, name, None) for response in responses]
    return sum(counts) if all(isinstance(count, int) for count in counts) else None
