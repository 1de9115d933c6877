"""What a request cost: what its provider says, else the user's own price, else genai-prices' table.

Owns the user's prices. `price` fills in a record's `cost_usd`: the log does it for every row, in its writer
thread, and whoever shows an answer's price before that. `own_prices` sets the user's prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import notices, pricing, tracing
from .kept import kept

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A price list of the user's own for one model: US dollars for a million tokens.

    Attributes:
        input: Of the prompt.
        output: Of the answer; None where it has no price: a request with such tokens has none either.
        cache_read: Of the prompt, read from the provider's cache.
        cache_write: Of the prompt, written into it.
    """

    input: float
    output: float | None
    cache_read: float
    cache_write: float

    def usd(self, record: tracing.Record) -> float | None:
        """The price of a request whose input tokens are known, in US dollars."""
        read, written = record.cache_read_tokens or 0, record.cache_write_tokens or 0
        answered = record.output_tokens or 0
        rest = (record.input_tokens or 0) - read - written
        if rest < 0 or (answered and self.output is None):
            return None
        given = rest * self.input + read * self.cache_read + written * self.cache_write
        return (given + answered * (self.output or 0.0)) / _MILLION


class _State:
    """The user's prices, by model or provider/model."""

    def __init__(self) -> None:
        self.own: dict[str, Price] = {}


_state = kept(__name__, _State)


def set_own(model: str, price: Price | None) -> None:
    """Have `price` hold for `model`, which may begin with its provider's name; None takes it back."""
    if price is None:
        _state.own.pop(model, None)
    else:
        _state.own[model] = price


def price(record: tracing.Record) -> None:
    """Fill in `cost_usd` and `cost_source` where the provider did not say it and a price is known.

    Slow at first use, which loads the price table; never raises.
    """
    if record.cost_usd is not None:
        return
    try:
        headers = record.headers  # once: the log's thread takes them away
        if headers is not None and record.status != "error":  # LiteLLM says 0 with its errors
            _note_headers(record, headers)
            if record.cost_usd is not None:
                return
        source, cost = _price(record)
    except Exception as error:  # the row is worth more than its price
        notices.warn_once(f"prices can't be looked up: {error!r}")
        return
    if cost is not None:  # the source first: another thread may be reading both
        record.cost_source, record.cost_usd = source, cost


tracing.price_with(price)


def _note_headers(record: tracing.Record, headers: Mapping[str, str]) -> None:
    """Note the price that a LiteLLM proxy tells in the headers of an answer.

    Source: LiteLLM's documentation, "Response headers": `x-litellm-response-cost`, US dollars. A streamed
    answer has none, since it begins before its price is known.
    """
    said = headers.get("x-litellm-response-cost")
    if said is not None:
        try:
            tracing.note_cost(record, float(said))
        except ValueError:
            pass


def _price(record: tracing.Record) -> tuple[str, float | None]:
    """Source and price."""
    if record.input_tokens is None:
        if record.audio_seconds is None:
            return "", None
        model = record.response_model or record.request_model or ""
        seconds = record.audio_seconds
        return "genai-prices", pricing.duration_usd(record.provider or "", model, seconds, record.started_at)
    if _state.own:
        for name in _names(record):
            if (own := _state.own.get(name)) is not None and (cost := own.usd(record)) is not None:
                return "user", cost
    if record.provider in (None, "demo"):
        return "", None
    return "genai-prices", pricing.price_usd(
        record.provider or "",
        record.response_model or record.request_model or "",
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cache_read_tokens=record.cache_read_tokens,
        cache_write_tokens=record.cache_write_tokens,
        cache_write_1h_tokens=record.cache_write_1h_tokens,
        reasoning_tokens=record.reasoning_tokens,
        input_audio_tokens=record.input_audio_tokens,
        output_audio_tokens=record.output_audio_tokens,
        input_image_tokens=record.input_image_tokens,
        output_image_tokens=record.output_image_tokens,
        at=record.started_at,
    )


def _names(record: tracing.Record) -> Iterator[str]:
    """What the user may call a request's model, the most particular name first."""
    models = (record.response_model, record.request_model)
    for prefix in (f"{record.provider}/", ""):
        for model in models:
            if model is not None:
                yield f"{prefix}{model}"
