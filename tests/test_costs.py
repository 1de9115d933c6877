"""What requests cost: the provider's word, the user's own price, the table's; and what has no price."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from multidict import CIMultiDict

import nbllm
from nbllm import costs, log, tracing
from nbllm.exceptions import UsageProblem
from nbllm.pricing import duration_usd, price_usd
from nbllm.providers import gemini_answers, gemini_shapes
from tests.records import record
from tests.rows import only_row, request_rows, session_rows
from tests.servers import Exchange, RawServer, completion, whole

WAV = ("a.wav", b"RIFF\0\0\0\0WAVE")


@pytest.fixture(autouse=True)
def no_own_prices() -> Iterator[None]:
    costs._state.own.clear()
    yield
    costs._state.own.clear()


@pytest.fixture
def telling(server: RawServer) -> RawServer:
    """The server; at "told" it answers a chat with the usage that the message is, as JSON text."""

    async def told(x: Exchange) -> None:
        usage = x.request.json["messages"][-1]["content"]
        answer = json.dumps(completion(model=x.request.json["model"], usage="USAGE"))
        await x.send(whole("200 OK", answer.replace('"USAGE"', usage).encode()))

    server.behaviours["told"] = told
    return server


async def chat(server: RawServer, model: str = "m", usage: dict[str, Any] | str | None = None) -> Any:
    """A chat whose answer tells this usage."""
    said = (
        usage
        if isinstance(usage, str)
        else json.dumps(usage or {"prompt_tokens": 11, "completion_tokens": 5})
    )
    return await nbllm.acompletion(model, said, base_url=server.url("told"))


def answers(server: RawServer, answer: dict[str, Any], **headers: Any) -> str:
    """A base URL where this is the answer."""

    async def canned(x: Exchange) -> None:
        await x.send(whole("200 OK", json.dumps(answer).encode(), **headers))

    server.behaviours["canned"] = canned
    return server.url("canned")


# -- the table's price ----------------------------------------------------------------------------------


async def test_audio_tokens_have_their_own_price(telling: RawServer) -> None:
    details = {"cached_tokens": 0, "audio_tokens": 600}
    answered = {"reasoning_tokens": 0, "audio_tokens": 90, "accepted_prediction_tokens": 0}
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "prompt_tokens_details": details,
        "completion_tokens_details": answered,
    }
    await chat(telling, "gpt-audio", usage)
    row = only_row()
    assert (row.input_audio_tokens, row.output_audio_tokens) == (600, 90)
    assert (row.input_image_tokens, row.output_image_tokens) == (None, None)
    # From OpenAI's price list: 2.50 and 10 for text, 32 and 64 for audio.
    assert row.cost_usd == pytest.approx((400 * 2.5 + 600 * 32 + 10 * 10 + 90 * 64) / 1e6)
    assert row.cost_source == "genai-prices"


async def test_embeddings_cost_their_input(server: RawServer) -> None:
    answer = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
        "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
    }
    result = await nbllm.aembedding("text-embedding-3-small", "Hi", base_url=answers(server, answer))
    row = only_row()
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (1000, None, pytest.approx(2e-5))
    assert result.cost_usd == row.cost_usd


async def test_the_output_of_an_image_model_is_images(server: RawServer) -> None:
    usage = {
        "input_tokens": 50,
        "output_tokens": 4160,
        "total_tokens": 4210,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    }
    answer = {"created": 1, "data": [{"url": "https://host/a.png"}], "usage": usage}
    result = await nbllm.aimage_generation("A cat", "gpt-image-1", base_url=answers(server, answer))
    row = only_row()
    assert (row.input_image_tokens, row.output_image_tokens) == (40, 4160)
    assert row.cost_usd == pytest.approx((10 * 5 + 40 * 10 + 4160 * 40) / 1e6)
    assert result.usage.output_tokens_details is None  # the server's answer stays as it was


async def test_an_image_model_may_write_too(server: RawServer) -> None:
    usage = {
        "input_tokens": 50,
        "output_tokens": 1100,
        "total_tokens": 1150,
        "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 100, "image_tokens": 1000},
    }
    answer = {"created": 1, "data": [{"url": "https://host/a.png"}], "usage": usage}
    await nbllm.aimage_generation("A cat", "gpt-image-1.5", base_url=answers(server, answer))
    row = only_row()
    assert (row.output_tokens, row.output_image_tokens) == (1100, 1000)
    assert row.cost_usd == pytest.approx((50 * 5 + 100 * 10 + 1000 * 32) / 1e6)


async def test_a_transcription_by_tokens(server: RawServer) -> None:
    details = {"text_tokens": 2, "audio_tokens": 98}
    usage = {"type": "tokens", "input_tokens": 100, "output_tokens": 10, "input_token_details": details}
    url = answers(server, {"text": "Hi", "usage": usage})
    await nbllm.atranscription("gpt-4o-transcribe", WAV, base_url=url)
    row = only_row()
    assert (row.input_tokens, row.input_audio_tokens, row.output_image_tokens) == (100, 98, None)
    expected = price_usd(
        "openai", "gpt-4o-transcribe", input_tokens=100, output_tokens=10, input_audio_tokens=98
    )
    assert row.cost_usd == pytest.approx(expected)
    assert row.cost_usd > 98 * 6 / 1e6


@pytest.mark.parametrize(
    ("model", "seconds", "expected"),
    [
        ("whisper-1", 9, 9 * 0.36 / 3600),
        ("whisper-1", 9.5, 9.5 * 0.36 / 3600),
        ("gpt-4o-transcribe", 9, None),
        ("whisper-1", "9", None),
        ("whisper-1", -9, None),
        ("whisper-1", None, None),
    ],
)
async def test_a_transcription_by_the_second(
    server: RawServer, model: str, seconds: Any, expected: float | None
) -> None:
    url = answers(server, {"text": "Hi", "usage": {"type": "duration", "seconds": seconds}})
    result = await nbllm.atranscription(model, WAV, base_url=url)
    row = only_row()
    assert (row.input_tokens, row.cost_usd) == (None, expected and pytest.approx(expected))
    assert result.cost_usd == row.cost_usd


async def test_what_stays_cached_for_an_hour_costs_more(server: RawServer) -> None:
    usage = {
        "input_tokens": 50,
        "output_tokens": 10,
        "cache_read_input_tokens": 300,
        "cache_creation_input_tokens": 650,
        "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 500},
    }
    model = "claude-sonnet-4-5"
    content = [{"type": "text", "text": "Hi"}]
    answer = {"type": "message", "role": "assistant", "model": model, "content": content, "usage": usage}
    await nbllm.acompletion(f"anthropic/{model}", "Hi", base_url=answers(server, answer), api_key="k")
    row = only_row()
    assert (row.input_tokens, row.cache_write_tokens) == (1000, 650)
    assert row.cost_usd == pytest.approx((50 * 3 + 300 * 0.3 + 150 * 3.75 + 500 * 6 + 10 * 15) / 1e6)


def test_gemini_tells_the_modalities() -> None:
    details = [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 30}]
    metadata = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 1290,
        "promptTokensDetails": [*details, {"modality": "IMAGE", "tokenCount": 60}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
    }
    usage = gemini_answers._usage(msgspec.convert(metadata, gemini_shapes.Usage))
    made = record(provider="gemini", request_model="gemini-2.5-flash-image")
    tracing.note_answer(made, None, None, usage)
    assert (made.input_audio_tokens, made.input_image_tokens) == (30, 60)
    assert (made.output_audio_tokens, made.output_image_tokens) == (None, 1290)
    costs.price(made)
    assert made.cost_usd == pytest.approx((100 * 0.3 + 1290 * 30) / 1e6)


async def test_what_is_no_count_has_no_price(telling: RawServer) -> None:
    for count in ("12", 1.5, -1, True, [1], 10**30):
        await chat(
            telling, "gpt-audio", {"prompt_tokens": 11, "prompt_tokens_details": {"audio_tokens": count}}
        )
    for row in request_rows():  # the rest is understood
        assert (row.input_audio_tokens, row.input_tokens) == (None, 11)
        assert row.cost_usd == pytest.approx(11 * 2.5e-6)
    assert len(request_rows()) == 6


async def test_cached_audio_of_unknown_length_has_no_price(telling: RawServer) -> None:
    details = {"cached_tokens": 50, "audio_tokens": 60}
    with nbllm.session("s"):
        await chat(telling, "gpt-realtime", {"prompt_tokens": 100, "prompt_tokens_details": details})
        await chat(telling, "gpt-realtime", {"prompt_tokens": 100})
    assert [row.cost_usd for row in request_rows()] == [None, pytest.approx(100 * 4 / 1e6)]
    assert session_rows()[0].unpriced == 1


# -- what the provider says ----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["-0.1", "1e12", "1e300", "true", "false", '"0.5"', "[1]", "{}", "null"])
async def test_what_is_no_price_is_passed_over(telling: RawServer, cost: str) -> None:
    await chat(telling, "m", f'{{"prompt_tokens": 1, "completion_tokens": 1, "cost": {cost}}}')
    await chat(telling, "gpt-4o", f'{{"prompt_tokens": 1, "completion_tokens": 0, "cost": {cost}}}')
    unknown, known = request_rows()
    assert (unknown.cost_usd, unknown.cost_source) == (None, None)
    assert (known.cost_usd, known.cost_source) == (pytest.approx(2.5e-6), "genai-prices")


@pytest.mark.parametrize(
    ("said", "usd"),
    [("0.00325", 0.00325), ("3.45e-05", 3.45e-05), ("0", 0.0), ("0.0", 0.0), (" 0.5 ", 0.5), ("2", 2.0)],
)
def test_the_header_of_a_litellm_proxy(said: str, usd: float) -> None:
    made = record()
    costs._note_headers(made, CIMultiDict({"X-LiteLLM-Response-Cost": said}))
    assert (made.cost_usd, made.cost_source) == (usd, "provider")


@pytest.mark.parametrize(
    "said", ["", "None", "nan", "inf", "-inf", "-0.5", "1e999", "free", "0,5", "$0.5", "1e12"]
)
def test_a_header_that_is_no_price(said: str) -> None:
    made = record()
    costs._note_headers(made, CIMultiDict({"x-litellm-response-cost": said}))
    costs._note_headers(made, {})
    assert "cost_usd" not in vars(made)
    assert "cost_source" not in vars(made)


async def test_the_headers_price_holds_for_the_request(telling: RawServer) -> None:
    url = answers(telling, completion(model="gpt-4o"), x_litellm_response_cost="0.00325")
    answer = await nbllm.acompletion("gpt-4o", "Hi", base_url=url)
    row = only_row()
    assert (row.cost_usd, row.cost_source) == (0.00325, "provider")
    assert answer.cost_usd == 0.00325


async def test_the_bodys_price_goes_before_the_headers(server: RawServer) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25}
    url = answers(server, completion(usage=usage), x_litellm_response_cost="0.00325")
    await nbllm.acompletion("m", "Hi", base_url=url)
    assert (only_row().cost_usd, only_row().cost_source) == (0.25, "provider")


# -- the user's own price ------------------------------------------------------------------------------


async def test_an_own_price(telling: RawServer) -> None:
    nbllm.set_price("my-model", input=0.5, output=1.5, cache_read=0.05, cache_write=0.6)
    details = {"cached_tokens": 300, "cache_write_tokens": 200}
    with nbllm.session("s"):
        answer = await chat(
            telling,
            "my-model",
            {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": details},
        )
        await chat(telling, "another")
    usd = (500 * 0.5 + 300 * 0.05 + 200 * 0.6 + 100 * 1.5) / 1e6
    mine, another = request_rows()
    assert (mine.cost_usd, mine.cost_source) == (pytest.approx(usd), "user")
    assert answer.cost_usd == mine.cost_usd
    assert (another.cost_usd, another.cost_source) == (None, None)
    assert (session_rows()[0].cost_usd, session_rows()[0].unpriced) == (mine.cost_usd, 1)


async def test_cached_tokens_cost_the_input_where_nothing_else_is_said(telling: RawServer) -> None:
    nbllm.set_price("m", input=2, output=0)
    details = {"cached_tokens": 300, "cache_write_tokens": 200}
    await chat(
        telling, "m", {"prompt_tokens": 1000, "completion_tokens": 9, "prompt_tokens_details": details}
    )
    assert only_row().cost_usd == pytest.approx(0.002)


async def test_it_goes_before_the_table_and_after_the_provider(telling: RawServer) -> None:
    nbllm.set_price("gpt-4o", input=1000, output=0)
    await chat(telling, "gpt-4o", {"prompt_tokens": 1, "completion_tokens": 1})
    await chat(telling, "gpt-4o", {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25})
    nbllm.set_price("gpt-4o", input=None)
    await chat(telling, "gpt-4o", {"prompt_tokens": 1, "completion_tokens": 0})
    told = [(row.cost_usd, row.cost_source) for row in request_rows()]
    assert told == [(0.001, "user"), (0.25, "provider"), (pytest.approx(2.5e-6), "genai-prices")]


async def test_a_price_with_a_provider_holds_there_only(telling: RawServer) -> None:
    nbllm.set_price("groq/m", input=1000, output=0)
    nbllm.set_price("mistral/m", input=2000, output=0)
    nbllm.set_price("m", input=3000, output=0)
    for model in ("groq/m", "mistral/m", "deepseek/m"):
        await nbllm.acompletion(
            model,
            '{"prompt_tokens": 1000, "completion_tokens": 1}',
            base_url=telling.url("told"),
            api_key="k",
        )
    assert [row.cost_usd for row in request_rows()] == [1, 2, 3]


async def test_the_answers_name_of_a_model_goes_too(server: RawServer) -> None:
    answer = completion(model="vendor/snapshot-2026", usage={"prompt_tokens": 1000, "completion_tokens": 0})
    for name in ("vendor/snapshot-2026", "alias"):
        nbllm.set_price(name, input=1000)
        await nbllm.acompletion("alias", "Hi", base_url=answers(server, answer))
        nbllm.set_price(name, input=None)
    await nbllm.acompletion("alias", "Hi", base_url=answers(server, answer))
    assert [row.cost_usd for row in request_rows()] == [1, 1, None]


async def test_a_configured_alias_stands_for_its_model(telling: RawServer) -> None:
    nbllm.configure(aliases={"mine": "my-model"})
    nbllm.set_price("mine", input=1000, output=0)
    await chat(telling, "mine", {"prompt_tokens": 1000, "completion_tokens": 0})
    assert only_row().cost_usd == 1


async def test_output_without_a_price_is_unknown(telling: RawServer) -> None:
    nbllm.set_price("m", input=1000)
    await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 1})
    await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 0})
    await chat(telling, "m", {"prompt_tokens": 1000})
    assert [row.cost_usd for row in request_rows()] == [None, 1, 1]
    nbllm.set_price("m", input=1000)
    assert [row.cost_usd for row in request_rows()] == [None, 1, 1]


async def test_requests_without_a_price_get_it_at_once(telling: RawServer, any_log: str) -> None:
    with nbllm.session("s"):
        answer = await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 10})
        await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 10, "cost": 0.25})
        await chat(telling, "gpt-4o", {"prompt_tokens": 1000, "completion_tokens": 0})
        await chat(telling, "other", {"prompt_tokens": 1000, "completion_tokens": 10})
        await chat(telling, "m", {"completion_tokens": 10})
    assert session_rows()[0].unpriced == 2
    nbllm.set_price("m", input=1000, output=100)
    told = [(row.cost_usd, row.cost_source) for row in request_rows()]
    assert told == [
        (1.001, "user"),
        (0.25, "provider"),
        (pytest.approx(0.0025), "genai-prices"),
        (None, None),
        (None, None),
    ]
    assert session_rows()[0].unpriced == 1
    costs.price(answer.request)
    assert answer.cost_usd == 1.001
    nbllm.set_price("m", input=5)  # what has a price keeps it
    nbllm.set_price("m", input=None)
    assert [row.cost_usd for row in request_rows()][:2] == [1.001, 0.25]


async def test_another_kernels_rows_stay_as_they_are(telling: RawServer, any_log: str) -> None:
    await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 10})

    def move(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE requests SET kernel_id = 'another'")

    log.read(move)
    nbllm.set_price("m", input=1000, output=100)
    assert [row.cost_usd for row in request_rows(kernel="all")] == [None]


async def test_prices_before_and_after_are_the_same(telling: RawServer, any_log: str) -> None:
    chance = random.Random(5)
    usages = []
    for _ in range(40):
        given = chance.choice((0, chance.randrange(10_000)))
        cached, written = chance.choice((None, 0, chance.randint(0, given))), chance.choice((None, 0, 3))
        details = {"cached_tokens": cached, "cache_write_tokens": written}
        answered = chance.choice((None, 0, chance.randrange(1000)))
        usage = {"prompt_tokens": given, "completion_tokens": answered, "prompt_tokens_details": details}
        usages.append(usage)
    prices = [
        {"input": 0.1, "output": 0.7, "cache_read": 0.03, "cache_write": 1.3},
        {"input": 0.1},
        {"input": 0, "output": 1 / 3},
    ]
    for number, price in enumerate(prices):
        model = f"openai/model-{number}"
        for usage in usages:
            await chat(telling, model, usage)
        nbllm.set_price(model, **price)
        for usage in usages:
            await chat(telling, model, usage)
    told = [row.cost_usd for row in request_rows()]
    assert len(told) == 240
    for start in (0, 80, 160):
        before, after = told[start : start + 40], told[start + 40 : start + 80]
        assert [usd is None for usd in before] == [usd is None for usd in after]
        known = [usd for usd in after if usd is not None]
        assert [usd for usd in before if usd is not None] == pytest.approx(known, rel=1e-12)
        assert 0 < len(known) < 40  # where more was cached than given, say, there is none


async def test_a_demo_model_has_no_price_but_the_users(demo: Any) -> None:
    await nbllm.acompletion("demo/fast", "Hi", base_url=demo.url)
    assert only_row().cost_usd is None
    nbllm.set_price("demo/fast", input=1, output=1)
    assert only_row().cost_source == "user"


async def test_it_outlives_a_reload(telling: RawServer) -> None:
    nbllm.set_price("m", input=1000, output=0)
    before = costs.Price
    try:
        importlib.reload(costs)
        await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 0})
        assert only_row().cost_usd == 1
    finally:
        costs.Price = before  # type: ignore[misc]


@pytest.mark.parametrize(
    "price",
    [-1, -0.1, float("nan"), float("inf"), 10**400, "0.5", True, [1], {}, b"1", 1j, Decimal("nan"), object()],
)
@pytest.mark.parametrize("which", ["input", "output", "cache_read", "cache_write"])
def test_what_is_no_own_price(which: str, price: Any) -> None:
    with pytest.raises(UsageProblem, match=f"{which} must be US dollars for a million tokens"):
        nbllm.set_price("m", **{"input": 1, which: price})
    assert costs._state.own == {}


@pytest.mark.parametrize("model", ["", "  ", None, 5, b"m", ["m"]])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(UsageProblem, match="model must be a text"):
        nbllm.set_price(model, input=1)


def test_a_price_without_its_input_is_refused() -> None:
    nbllm.set_price("m", input=1)
    with pytest.raises(UsageProblem, match="give input=0"):
        nbllm.set_price("m", input=None, output=2)
    assert costs._state.own["m"].input == 1


def test_numbers_of_all_kinds_are_prices() -> None:
    nbllm.set_price("m", input=np.float32(0.5), output=np.int64(2), cache_read=Fraction(1, 4), cache_write=0)
    assert costs._state.own["m"] == costs.Price(0.5, 2.0, 0.25, 0.0)
    nbllm.set_price("m", input=None)
    nbllm.set_price("m", input=None)  # once more does no harm
    assert costs._state.own == {}


@pytest.mark.parametrize("model", ["m'; DROP TABLE requests; --", "модель", "m\n%s ? :x", "a/b/c"])
async def test_a_models_name_is_a_value(telling: RawServer, model: str, any_log: str) -> None:
    await chat(telling, model, {"prompt_tokens": 1000, "completion_tokens": 0})
    nbllm.set_price(model, input=1000)
    assert only_row().cost_usd == 1


async def test_a_log_that_fails_warns_and_the_price_holds(telling: RawServer) -> None:
    await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 0})

    def spoil(connection: Any) -> None:
        connection.exec_driver_sql("ALTER TABLE requests RENAME COLUMN cost_source TO price_source")

    def mend(connection: Any) -> None:
        connection.exec_driver_sql("ALTER TABLE requests RENAME COLUMN price_source TO cost_source")

    log.read(spoil)
    with pytest.warns(RuntimeWarning, match="'m' holds from now on"):
        nbllm.set_price("m", input=1000)
    log.read(mend)
    await chat(telling, "m", {"prompt_tokens": 1000, "completion_tokens": 0})
    assert [row.cost_usd for row in request_rows()] == [None, 1]


def test_durations_are_priced_by_the_record() -> None:
    made = record(request_model="whisper-1", audio_seconds=60)
    costs.price(made)
    assert made.cost_usd == pytest.approx(duration_usd("openai", "whisper-1", 60))
