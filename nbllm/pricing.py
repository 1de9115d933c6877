"""From token counts to US dollars, by the price table of genai-prices (its offline snapshot).

An unknown price is None, which is not 0. The table loads on first use, which is why the log's writer
thread asks and not the event loop.
"""

from __future__ import annotations

import operator
import re
import time
from bisect import bisect_left
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

# Our provider names -> those of genai-prices, where they differ.
_PROVIDERS = {"gemini": "google", "together_ai": "together", "xai": "x-ai"}


def price_usd(
    provider: str,
    model: str,
    *,
    input_tokens: int,
    output_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
    at: float | None = None,
) -> float | None:
    """The price of one request in US dollars, None where the table doesn't know the model.

    Args:
        provider: nbllm's provider name, such as "openai".
        model: The model, with or without a prefix such as "openai/".
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of the answer, reasoning included.
        cache_read_tokens: Those of the input that came from the provider's cache.
        cache_write_tokens: Those of the input that went into it.
        at: When it was sent, in seconds since 1970 UTC, since prices change; default: now.
    """
    counts = (input_tokens, output_tokens or 0, cache_read_tokens or 0, cache_write_tokens or 0)
    if counts[2] + counts[3] > input_tokens:
        return None  # counts that contradict each other: no price is known
    levels = _levels(provider, model, int(time.time() if at is None else at) // _PERIOD)
    if levels is None:
        return None
    starts, rates = levels
    rate = rates[bisect_left(starts, input_tokens)]
    if not isinstance(rate, tuple):
        asked: float | None = _price(rate, *counts)
        return asked
    fixed, *per_million = rate
    price: float = fixed + sum(map(operator.mul, counts, per_million)) / _MILLION
    return price


def known_models(provider: str) -> list[str]:
    """The chat models that the table knows of nbllm's provider, without a prefix. Loads the table."""
    from genai_prices import data

    wanted = _PROVIDERS.get(provider, provider)
    return [
        model.id
        for known in data.providers
        if known.id == wanted
        for model in known.models
        if not model.deprecated and not _NO_CHAT.search(model.id)
    ]


# What the names of models for other work hold, which the table doesn't tell; "ft:gpt-4o-" is a beginning.
_NO_CHAT = re.compile(
    r"embed|image|\btts\b|whisper|transcri|realtime|moderation|\blive\b|guard|\bocr\b|voice|orpheus|"
    r"turbo-instruct|-$"
)

_MILLION = 1_000_000
_PERIOD = 1800  # seconds: some providers have prices by the time of the day


@lru_cache(maxsize=256)
def _levels(provider: str, model: str, period: int) -> tuple[list[int], list[Any]] | None:
    """What a model costs, by the length of the input; None where the table has no price.

    Returns:
        The numbers of input tokens above which other rates hold, and the rates below, between and above
        them, each as `_rates` gives them. Asking the table for each request would take 50 to 100 µs.
    """
    from genai_prices import Usage, calc_price
    from genai_prices.types import TieredPrices

    try:
        price = calc_price(
            Usage(input_tokens=1),
            model_ref=model.rpartition("/")[2],
            provider_id=_PROVIDERS.get(provider, provider),
            genai_request_timestamp=datetime.fromtimestamp(period * _PERIOD, UTC),
        ).model_price
    except LookupError:
        return None

    def at(part: Any, start: int) -> Any:
        if not isinstance(part, TieredPrices):
            return part
        return next((tier.price for tier in reversed(part.tiers) if tier.start <= start), part.base)

    parts = {name: part for name, part in vars(price).items() if not name.startswith("_")}
    tiered = [part for part in parts.values() if isinstance(part, TieredPrices)]
    starts = sorted({tier.start for part in tiered for tier in part.tiers})
    flat = [type(price)(**{name: at(part, start) for name, part in parts.items()}) for start in (-1, *starts)]
    return starts, [_rates(one) for one in flat]


def _rates(price: Any) -> Any:
    """US dollars for the request itself; for a million tokens of input, and of output; and what a million
    tokens of the input cost more (mostly less) for being read from, or written to, the cache.

    The table's own price object where these don't tell all: a kind of token has no price.
    """
    fixed, of_input, of_output = _price(price, 0), _price(price, _MILLION), _price(price, 0, _MILLION)
    of_read, of_written = _price(price, _MILLION, 0, _MILLION), _price(price, _MILLION, 0, 0, _MILLION)
    if None in (fixed, of_input, of_output, of_read, of_written):
        return price
    return fixed, of_input - fixed, of_output - fixed, of_read - of_input, of_written - of_input


def _price(price: Any, tokens: int, output: int = 0, read: int = 0, written: int = 0) -> Any:
    """What the table's own reckoning says; None where a kind of token has no price."""
    from genai_prices import Usage

    counts = {
        "input_tokens": tokens,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": written,
    }
    try:
        usage = Usage(**{name: count for name, count in counts.items() if count})
        return float(price.calc_price(usage)["total_price"])
    except (ValueError, LookupError, TypeError):
        return None
