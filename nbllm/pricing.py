"""From token counts to US dollars, by the price table of genai-prices (its offline snapshot).

An unknown price is None, which is not 0. The table loads on first use, which is why the log's writer
thread asks and not the event loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# Our provider names -> those of genai-prices, where they differ.
_PROVIDERS = {"gemini": "google", "together_ai": "together", "xai": "x-ai"}


@lru_cache(maxsize=4096)
def price_usd(
    provider: str,
    model: str,
    *,
    input_tokens: int,
    output_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
) -> float | None:
    """The price of one request in US dollars, None where the table doesn't know the model.

    Args:
        provider: nbllm's provider name, such as "openai".
        model: The model, with or without a prefix such as "openai/".
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of the answer, reasoning included.
        cache_read_tokens: Those of the input that came from the provider's cache.
        cache_write_tokens: Those of the input that went into it.
    """
    rates = _rates(provider, model.rpartition("/")[2])
    if rates is None:
        return None
    from genai_prices import Usage

    counts = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
    }
    try:
        usage = Usage(**{name: count for name, count in counts.items() if count})
        return float(rates.calc_price(usage)["total_price"])
    except (ValueError, LookupError, TypeError):  # counts that contradict each other: no price is known
        return None


@lru_cache(maxsize=256)
def _rates(provider: str, model: str) -> Any:
    """The table's rates for a model, None where it has none."""
    from genai_prices import Usage, calc_price

    provider = _PROVIDERS.get(provider, provider)
    try:
        return calc_price(Usage(input_tokens=1), model_ref=model, provider_id=provider).model_price
    except LookupError:
        return None
