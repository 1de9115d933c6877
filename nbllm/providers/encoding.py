"""Request bodies as JSON, for every provider: what a user may put into them, and what JSON can't hold."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..exceptions import UsageProblem


def _to_json(value: Any) -> Any:
    """What msgspec doesn't know: objects of SDKs, numpy numbers and arrays."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"objects of type {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_to_json)


def encode(body: dict[str, Any]) -> bytes:
    """The JSON of a request's body.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    try:
        data = _encoder.encode(body)
    except (TypeError, NotImplementedError, ValueError, RecursionError) as error:
        raise UsageProblem(f"the messages or parameters can't be written as JSON: {error}") from error
    if b"null" in data:  # may stand for NaN, as from an empty cell of a DataFrame
        _refuse_nan(body, "")
    return data


def _refuse_nan(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageProblem(f"{where} is {value}, which JSON can't hold")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(item, f"{where}[{key!r}]" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_nan(item, f"{where}[{index}]")
