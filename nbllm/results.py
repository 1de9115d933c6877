"""What the verbs besides chat give back, and the lists of models.

Owns `Result`, the base of those that requests brought: `embeddings` and `media` hold the others. Knows
nothing of HTTP; providers make them.
"""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Any, TypedDict

from .types import Object


class Result(Object):
    """Base of what a verb gives back: it knows the requests that brought it."""

    @property
    def requests(self) -> tuple[Any, ...]:
        """The trace records of all requests that brought this result; empty when made by hand."""
        held = self.__dict__.get("_request")  # several where the inputs went out in parts
        return held if isinstance(held, tuple) else () if held is None else (held,)

    @property
    def request(self) -> Any:
        """The trace record of the first request; None when made by hand."""
        return self.requests[0] if self.requests else None

    @property
    def cost_usd(self) -> float | None:
        """The price of this result in US dollars; None where a part of it is not known."""
        costs: list[Any] = [request.cost() for request in self.requests]
        return sum(costs) if costs and None not in costs else None


class ModelInfo(TypedDict):
    """One model: `created` is its time of release in UTC; None stands for what the provider doesn't say."""

    id: str
    provider: str
    created: datetime | None
    owned_by: str | None


class ModelList(list[ModelInfo]):
    """The models of a provider, as `pandas.DataFrame` takes them; a table as the last line of a cell."""

    def __repr__(self) -> str:
        names = [model["id"] for model in self[:10]] + ["…"] * (len(self) > 10)
        return f"ModelList({len(self)} models: {', '.join(names)})"

    def _repr_html_(self) -> str:
        names = ModelInfo.__annotations__
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(model.get(name)))}</td>" for name in names) + "</tr>"
            for model in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}"
    return "" if value is None else str(value)
