"""From token counts to US dollars, by the price table of genai-prices (its offline snapshot).

An unknown price is None, which is not 0. The table loads on first use, which is why the log's writer
thread asks and not the event loop. Called by `costs`; `completer` asks for the models.
"""

from __future__ import annotations

import operator
import re
import time
from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

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
    cache_write_1h_tokens: int | None = None,
    reasoning_tokens: int | None = None,
    input_audio_tokens: int | None = None,
    output_audio_tokens: int | None = None,
    input_image_tokens: int | None = None,
    output_image_tokens: int | None = None,
    at: float | None = None,
) -> float | None:
    """The price of one request in US dollars; None where the table has no price for the model's tokens.

    A part that the table has no price of its own for costs what the whole costs: an audio token of the input
    then costs as much as any other. Counts that contradict each other have no price, and neither have those
    of cached audio where the table has a price for it: how many of the cached tokens are audio is not known.

    Args:
        provider: nbllm's provider name, such as "openai".
        model: The model, with or without a prefix such as "openai/".
        input_tokens: Tokens of the prompt, all parts included.
        output_tokens: Tokens of the answer, all parts included.
        cache_read_tokens: Those of the input that came from the provider's cache.
        cache_write_tokens: Those of the input that went into it.
        cache_write_1h_tokens: Those of them that stay there for an hour.
        reasoning_tokens: Those of the output that are reasoning.
        input_audio_tokens: Those of the input that are audio.
        output_audio_tokens: Those of the output that are audio.
        input_image_tokens: Those of the input that are images.
        output_image_tokens: Those of the output that are images.
        at: When it was sent, in seconds since 1970 UTC, since prices change; default: now.
    """
    counts = (input_tokens, output_tokens or 0, cache_read_tokens or 0, cache_write_tokens or 0)
    if counts[2] + counts[3] > input_tokens:
        return None
    period = int(time.time() if at is None else at) // _PERIOD
    levels = _levels(provider, model, period)
    if levels is None:
        return None
    starts, rates = levels
    rate = rates[bisect_left(starts, input_tokens)]
    if (
        rate is None
        or cache_write_1h_tokens
        or input_audio_tokens
        or output_audio_tokens
        or input_image_tokens
        or output_image_tokens
    ):
        parts = {
            **_usage(*counts, reasoning_tokens or 0),
            "cache_write_1h_tokens": cache_write_1h_tokens,
            "input_audio_tokens": input_audio_tokens,
            "output_audio_tokens": output_audio_tokens,
            "input_image_tokens": input_image_tokens,
            "output_image_tokens": output_image_tokens,
        }
        try:
            return float(_asked(provider, model, period, parts).total_price)
        except (LookupError, ValueError):
            return None
    fixed, *per_million = rate
    price: float = fixed + sum(map(operator.mul, counts, per_million)) / _MILLION
    return price


def duration_usd(provider: str, model: str, audio_seconds: float, at: float | None = None) -> float | None:
    """The price of so many seconds of audio; None where the table has no price by the hour for the model."""
    period = int(time.time() if at is None else at) // _PERIOD
    # A part and its whole, in the table's words: some models have a price for the one, some for the other.
    durations = {"audio_seconds": audio_seconds, "input_audio_seconds": audio_seconds}
    try:
        asked = _asked(provider, model, period, durations)
    except (LookupError, ValueError):
        return None
    priced = {"audio_hours", "input_audio_hours"}.intersection(_parts(asked.model_price))
    return float(asked.total_price) if priced else None


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
def _levels(
    provider: str, model: str, period: int
) -> tuple[list[int], list[tuple[float, ...] | None]] | None:
    """What a model costs, by the length of the input; None where the table has no price for its tokens.

    Returns:
        The numbers of input tokens above which other rates hold, and the rates below, between and above
        them, each as `_rates` gives them. Asking the table for each request would take 50 to 100 µs.
    """
    from genai_prices.types import TieredPrices

    try:
        price = _asked(provider, model, period, {"input_tokens": 1}).model_price
    except LookupError:
        return None
    parts = _parts(price)
    if parts and not any(name.endswith("_mtok") for name in parts):
        return None  # it is paid by the hour, by characters or by pages: 0 for its tokens would be wrong

    def at(part: Any, start: int) -> Any:
        if not isinstance(part, TieredPrices):
            return part
        return next((tier.price for tier in reversed(part.tiers) if tier.start <= start), part.base)

    tiered = [part for part in parts.values() if isinstance(part, TieredPrices)]
    starts = sorted({tier.start for part in tiered for tier in part.tiers})
    flat = [type(price)(**{name: at(part, start) for name, part in parts.items()}) for start in (-1, *starts)]
    return starts, [_rates(one) for one in flat]


def _asked(provider: str, model: str, period: int, counts: Mapping[str, float | None]) -> PriceCalculation:
    """The table's own reckoning.

    Raises:
        LookupError: The table doesn't know the model.
        ValueError: The counts contradict each other, or one that the table needs is missing.
    """
    from genai_prices import Usage, calc_price

    usage = Usage(**{name: count for name, count in counts.items() if count})
    last = model.rpartition("/")[2]
    for name in dict.fromkeys((model, last)):  # some names have a slash of their own
        try:
            return calc_price(
                usage,
                model_ref=name,
                provider_id=_PROVIDERS.get(provider, provider),
                genai_request_timestamp=datetime.fromtimestamp(period * _PERIOD, UTC),
            )
        except LookupError:
            if name == last:
                raise
    raise AssertionError("the last name has returned or raised")


def _parts(price: Any) -> dict[str, Any]:
    """What has a price, by the table's names."""
    return {name: part for name, part in vars(price).items() if part is not None and not name.startswith("_")}


def _rates(price: Any) -> tuple[float, ...] | None:
    """US dollars for the request itself; for a million tokens of input, and of output; and what a million
    tokens of the input cost more (mostly less) for being read from, or written to, the cache.

    None where these don't tell all: a kind of token has no price, or reasoning has one of its own.
    """
    fixed, of_input, of_output = _price(price, 0), _price(price, _MILLION), _price(price, 0, _MILLION)
    of_read, of_written = _price(price, _MILLION, 0, _MILLION), _price(price, _MILLION, 0, 0, _MILLION)
    of_reasoning = _price(price, 0, _MILLION, 0, 0, _MILLION)
    if fixed is None or of_input is None or of_output is None or of_read is None or of_written is None:
        return None
    if of_reasoning != of_output:
        return None
    return fixed, of_input - fixed, of_output - fixed, of_read - of_input, of_written - of_input


def _price(price: Any, *counts: int) -> float | None:
    """What the table's own reckoning says; None where a kind of token has no price."""
    from genai_prices import Usage

    try:
        return float(price.calc_price(Usage(**_usage(*counts)))["total_price"])
    except (ValueError, LookupError):
        return None


def _usage(
    tokens: int, output: int = 0, read: int = 0, written: int = 0, reasoning: int = 0
) -> dict[str, int]:
    """The counts under the table's names; it takes a count of 0 for one that was made."""
    counts = {
        "input_tokens": tokens,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "output_reasoning_tokens": reasoning,
    }
    return {name: count for name, count in counts.items() if count}
