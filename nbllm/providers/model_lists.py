"""Which models a provider has: the list in OpenAI's, Anthropic's and Gemini's wire formats.

Source: the pages on models of OpenAI's, Anthropic's and Google's API references; what other servers do
differently is named where it is handled.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from ..results import ModelInfo, ModelList
from ..types import parse
from .base import Route

# They answer in pages of 20 and 50; 1000 is the most that they put on one.
_ONE_PAGE = {"anthropic": "?limit=1000", "gemini": "?pageSize=1000"}


def models_url(route: Route) -> str:
    """Where the list of models is."""
    return route.url("models") + _ONE_PAGE.get(route.provider.name, "")


def models_response(body: bytes, provider: str) -> ModelList:
    """The models that a provider lists, in its order, in OpenAI's, Anthropic's or Gemini's format.

    Raises:
        msgspec.DecodeError: It is no such list.
    """
    value = parse(body)
    rows = value  # Together answers with the bare list
    if isinstance(value, dict) and ("data" in value or "models" in value):
        rows = value.get("data", value.get("models"))
        rows = [] if rows is None else rows  # so says Ollama without a model
    if not isinstance(rows, list):
        raise msgspec.DecodeError("a list of models was expected")
    return ModelList(_model(row, provider) for row in rows if isinstance(row, dict) and _model_id(row))


def _model(row: dict[str, Any], provider: str) -> ModelInfo:
    owner = row.get("owned_by") or row.get("organization")
    return ModelInfo(
        id=_model_id(row),
        provider=provider,
        created=_time(row.get("created", row.get("created_at"))),
        owned_by=owner if isinstance(owner, str) else None,
    )


def _model_id(row: dict[str, Any]) -> str:
    return str(row.get("id") or str(row.get("name") or "").removeprefix("models/"))


def _time(value: Any) -> datetime | None:
    """Unix seconds, or RFC 3339 (Anthropic), as a time in UTC; the epoch itself stands for unknown."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
        return time.astimezone(UTC) if time.timestamp() > 0 else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None
