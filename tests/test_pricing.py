"""Prices: our quick reckoning against the table's own, over the whole table."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers

from nbllm.pricing import duration_usd, price_usd

NOW = time.time()

# Our names of parts -> the table's, where they differ.
PARTS = {"reasoning_tokens": "output_reasoning_tokens"}


def table_usd(provider: str, model: str, **usage: float) -> float | None:
    """What genai-prices says; None where it says that it can't."""
    try:
        price = calc_price(
            Usage(**{name: count for name, count in usage.items() if count}),
            model_ref=model,
            provider_id=provider,
            genai_request_timestamp=datetime.fromtimestamp(NOW, UTC),
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


def about(usd: float | None) -> Any:
    return usd if usd is None else pytest.approx(usd, rel=1e-9)


def random_counts(chance: random.Random) -> dict[str, int]:
    """Counts of a request whose parts fit into their whole, some of them left out."""

    def parts_of(whole: int, *names: str) -> dict[str, int]:
        counts = {}
        for name in names:
            counts[name] = chance.choice((0, chance.randint(0, whole)))
            whole -= counts[name]
        return counts

    given, answered = chance.randrange(300_000), chance.randrange(9000)
    kinds = chance.choice(((), ("input_audio_tokens",), ("input_image_tokens",)))
    parts = parts_of(given, "cache_read_tokens", "cache_write_tokens", *kinds)
    return {
        "input_tokens": given,
        "output_tokens": answered,
        **parts,
        **parts_of(parts["cache_write_tokens"], "cache_write_1h_tokens"),
        **parts_of(answered, "reasoning_tokens", "output_audio_tokens", "output_image_tokens"),
    }


@pytest.mark.parametrize("provider", [provider.id for provider in providers])
def test_every_price_is_the_tables(provider: str) -> None:
    chance = random.Random(provider)
    (table,) = (known for known in providers if known.id == provider)
    for model in table.models:
        priced = {
            name for name, part in vars(model.get_prices(datetime.now(UTC))).items() if part is not None
        }
        for counts in (random_counts(chance), random_counts(chance)):
            found = price_usd(provider, model.id, at=NOW, **counts)
            if priced and not any(name.endswith("_mtok") for name in priced):
                assert found is None, model.id  # by the hour, say: 0 for the tokens would be wrong
                continue
            usage = {PARTS.get(name, name): count for name, count in counts.items()}
            assert found == about(table_usd(provider, model.id, **usage)), (model.id, counts)


@pytest.mark.parametrize("tokens", [0, 1, 199_999, 200_000, 200_001, 900_000])
def test_the_price_of_a_long_prompt_holds_for_all_of_it(tokens: int) -> None:
    for provider, model in (("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro")):
        expected = table_usd(provider, model, input_tokens=tokens, output_tokens=10)
        assert price_usd(provider, model, input_tokens=tokens, output_tokens=10) == about(expected)


@pytest.mark.parametrize(
    ("provider", "model", "kinds", "per_million"),
    [
        # From the price lists: text, audio and images of the same model cost differently.
        ("anthropic", "claude-sonnet-4-5", ("input", "cache_write"), 3.75),
        ("anthropic", "claude-sonnet-4-5", ("input", "cache_write", "cache_write_1h"), 6),
        ("openai", "gpt-audio", ("input", "input_audio"), 32),
        ("openai", "gpt-audio", ("output", "output_audio"), 64),
        ("gemini", "gemini-2.5-flash", ("input", "input_audio"), 1),
        ("gemini", "gemini-2.5-flash-image", ("output", "output_image"), 30),
        ("openai", "gpt-image-1", ("input", "input_image"), 10),
        ("openai", "gpt-image-1", ("output", "output_image"), 40),
        ("perplexity", "sonar-deep-research", ("output", "reasoning"), 3),
        # No price of their own: what any other token costs.
        ("openai", "gpt-4o-mini", ("input", "input_image"), 0.15),
        ("openai", "gpt-4o-mini", ("output", "reasoning"), 0.60),
        # Embeddings.
        ("openai", "text-embedding-3-small", ("input",), 0.02),
        ("gemini", "gemini-embedding-001", ("input",), 0.15),
        ("groq", "openai/gpt-oss-120b", ("input",), 0.15),  # the slash is a part of its name
    ],
)
def test_known_prices(provider: str, model: str, kinds: tuple[str, ...], per_million: float) -> None:
    counts = {"input_tokens": 0, **{f"{kind}_tokens": 100_000 for kind in kinds}}
    assert price_usd(provider, model, **counts) == pytest.approx(per_million / 10)


@pytest.mark.parametrize(
    "counts",
    [
        {"input_tokens": 5, "cache_read_tokens": 6},
        {"input_tokens": 5, "cache_read_tokens": 3, "cache_write_tokens": 3},
        {"input_tokens": 5, "cache_write_tokens": 3, "cache_write_1h_tokens": "3"},
        {"input_tokens": 5, "input_audio_tokens": 6},
        {"input_tokens": 5, "output_tokens": 1, "output_audio_tokens": 2},
        {"input_tokens": 5, "input_audio_tokens": -1},
        {"input_tokens": 100, "cache_read_tokens": 50, "input_audio_tokens": 60},  # is the cached part audio?
    ],
)
def test_counts_that_do_not_tell_have_no_price(counts: dict[str, Any]) -> None:
    assert price_usd("openai", "gpt-realtime", input_tokens=5) is not None
    assert price_usd("openai", "gpt-realtime", **counts) is None


def test_unknown_is_none() -> None:
    assert price_usd("openai", "no-such-model", input_tokens=5) is None
    assert price_usd("nobody", "gpt-4o", input_tokens=5) is None
    assert price_usd("openai", "no-such-model", input_tokens=5, input_audio_tokens=5) is None
    assert price_usd("openai", "whisper-1", input_tokens=5, output_tokens=5) is None  # it is paid by the hour
    assert price_usd("openai", "", input_tokens=5) is None


@pytest.mark.parametrize(
    ("provider", "model", "seconds", "expected"),
    [
        ("openai", "whisper-1", 600, 0.06),
        ("openai", "whisper-1", 0, 0.0),
        ("openai", "gpt-transcribe", 0.5, 0.27 / 7200),
        ("groq", "whisper-large-v3", 3600, 0.111),
        ("groq", "whisper-large-v3", 1, 0.111 / 360),  # Groq bills ten seconds at least
        ("openai", "gpt-4o-transcribe", 600, None),  # by tokens
        ("openai", "gpt-4o", 600, None),
        ("openai", "no-such-model", 600, None),
    ],
)
def test_audio_by_the_hour(provider: str, model: str, seconds: float, expected: float | None) -> None:
    assert duration_usd(provider, model, seconds) == about(expected)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "9", True, [1]])
def test_a_duration_that_is_none_has_no_price(seconds: Any) -> None:
    assert duration_usd("openai", "whisper-1", seconds) is None


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
