"""Prices: our quick reckoning against the table's own, over the whole table."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers

from nbllm.pricing import price_usd

NOW = time.time()


@pytest.mark.parametrize("provider", [provider.id for provider in providers])
def test_every_price_is_the_tables(provider: str) -> None:
    random_counts = random.Random(provider)
    (table,) = (known for known in providers if known.id == provider)
    for model in table.models:
        if "/" in model.id:  # what stands before a slash is a prefix to us
            continue
        counts = {
            "input_tokens": random_counts.randrange(300_000),
            "output_tokens": random_counts.randrange(9000),
        }
        counts["cache_read_tokens"] = random_counts.choice(
            (0, random_counts.randint(0, counts["input_tokens"]))
        )
        rest = counts["input_tokens"] - counts["cache_read_tokens"]
        counts["cache_write_tokens"] = random_counts.choice((0, random_counts.randint(0, rest)))
        try:
            usage = Usage(**{name: count for name, count in counts.items() if count})
            expected = float(
                calc_price(
                    usage,
                    model_ref=model.id,
                    provider_id=provider,
                    genai_request_timestamp=datetime.fromtimestamp(NOW, UTC),
                ).total_price
            )
        except (LookupError, ValueError):
            assert price_usd(provider, model.id, at=NOW, **counts) is None
        else:
            assert price_usd(provider, model.id, at=NOW, **counts) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tokens", [0, 1, 199_999, 200_000, 200_001, 900_000])
def test_the_price_of_a_long_prompt_holds_for_all_of_it(tokens: int) -> None:
    usage = Usage(
        **{name: count for name, count in {"input_tokens": tokens, "output_tokens": 10}.items() if count}
    )
    for provider, model in (("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro")):
        expected = float(calc_price(usage, model_ref=model, provider_id=provider).total_price)
        found = price_usd(provider, model, input_tokens=tokens, output_tokens=10)
        assert found == pytest.approx(expected, rel=1e-9)


def test_unknown_is_none() -> None:
    assert price_usd("openai", "no-such-model", input_tokens=5) is None
    assert price_usd("nobody", "gpt-4o", input_tokens=5) is None
    assert price_usd("openai", "gpt-4o", input_tokens=5, cache_read_tokens=6) is None


def test_a_prefix_and_our_own_provider_names() -> None:
    assert price_usd("openai", "openai/gpt-4o", input_tokens=5) == price_usd(
        "openai", "gpt-4o", input_tokens=5
    )
    assert price_usd("gemini", "gemini-2.0-flash", input_tokens=5) is not None


def test_prices_by_the_time_of_the_day() -> None:
    day = datetime(2025, 6, 1, 12, tzinfo=UTC).timestamp()
    night = datetime(2025, 6, 1, 18, tzinfo=UTC).timestamp()
    counts = {"input_tokens": 1000, "output_tokens": 1000}
    by_day = price_usd("deepseek", "deepseek-chat", at=day, **counts)
    by_night = price_usd("deepseek", "deepseek-chat", at=night, **counts)
    assert by_day is not None
    assert by_night is not None
    assert by_night < by_day
