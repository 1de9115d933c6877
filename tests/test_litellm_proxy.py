"""nbllm in front of a real LiteLLM proxy: `litellm_proxy/…` models, and what the proxy makes of sessions.

Left out, because the proxy's mocks can't: speech and transcriptions, which still ask the provider, and
streamed responses, in which the proxy fails (litellm 1.106).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import tracing
from tests.proxy import ANSWER, KEY, MODELS, PICTURE, UPSTREAM_KEY, VECTOR, Proxy
from tests.rows import connection_rows, only_row, request_rows, session_rows

PYTHON = os.environ.get("NBLLM_TEST_LITELLM", "")
if not PYTHON:
    pytest.skip("NBLLM_TEST_LITELLM names no python that has litellm[proxy]", allow_module_level=True)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(PYTHON, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The proxy, named by the environment, which has seen nothing yet."""
    monkeypatch.setenv("LITELLM_PROXY_API_BASE", running.url)
    monkeypatch.setenv("LITELLM_PROXY_API_KEY", KEY)
    running.reset()
    return running


# -- verbs -----------------------------------------------------------------------------------------


async def test_a_chat(proxy: Proxy) -> None:
    answer = await nbllm.acompletion("litellm_proxy/chat", "Hi", temperature=0.5)
    assert (answer.text, answer.choices[0].finish_reason) == (ANSWER, "stop")
    (seen,) = proxy.seen()
    assert (seen["call_type"], seen["model"]) == ("acompletion", "chat")
    assert seen["body"]["messages"] == [{"role": "user", "content": "Hi"}]
    assert seen["body"]["temperature"] == 0.5
    row = only_row()
    assert (row.provider, row.request_model, row.response_model) == ("litellm_proxy", "chat", "chat")
    assert (row.status, row.http_status, row.server_port) == ("ok", 200, proxy.port)
    assert answer.usage is not None
    assert (row.input_tokens, row.output_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


async def test_a_streamed_chat_tells_its_price(proxy: Proxy) -> None:
    stream = await nbllm.acompletion("litellm_proxy/chat", "Hi", stream=True)
    texts = [chunk["choices"][0]["delta"]["content"] or "" async for chunk in stream]
    assert len(texts) > 1
    assert "".join(texts) == stream.text == ANSWER
    assert stream.usage is not None
    row = only_row()
    assert (row.status, row.stream, row.finish_reason) == ("ok", True, "stop")
    assert row.ttft_ms > 0
    assert (row.input_tokens, row.output_tokens) == (
        stream.usage.prompt_tokens,
        stream.usage.completion_tokens,
    )
    assert (row.cost_usd, row.cost_source) == (stream.usage["cost"], "provider")
    assert row.cost_usd > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_for_the_rate(proxy: Proxy, stream: bool) -> None:
    with pytest.raises(nbllm.RateLimitError, match="mock rate limit") as caught:
        await nbllm.acompletion("litellm_proxy/busy", "Hi", stream=stream)
    error = caught.value
    assert (error.status_code, error.model, error.llm_provider) == (
        429,
        "litellm_proxy/busy",
        "litellm_proxy",
    )
    assert error.response["x-litellm-call-id"]
    row = only_row()
    assert (row.status, row.http_status, row.error_type) == ("error", 429, "RateLimitError")


async def test_each_retry_is_a_request_of_its_own(proxy: Proxy) -> None:
    with pytest.raises(nbllm.RateLimitError):
        await nbllm.acompletion("litellm_proxy/busy", "Hi", num_retries=1, session_id="stubborn")
    assert [(row.attempt, row.session_id) for row in request_rows()] == [(1, "stubborn"), (2, "stubborn")]
    assert [seen["session_id"] for seen in proxy.seen()] == ["stubborn", "stubborn"]


async def test_a_fallback_behind_the_same_proxy(proxy: Proxy) -> None:
    answer = await nbllm.acompletion("litellm_proxy/busy", "Hi", fallbacks=["litellm_proxy/chat"])
    assert answer.text == ANSWER
    assert [(row.request_model, row.status) for row in request_rows()] == [("busy", "error"), ("chat", "ok")]


async def test_embeddings(proxy: Proxy) -> None:
    answer = await nbllm.aembedding("litellm_proxy/vectors", ["good morning"])  # the mock knows one vector
    assert answer.data[0].embedding == answer.data[0]["embedding"] == VECTOR
    assert only_row().operation == "embeddings"


async def test_an_image(proxy: Proxy) -> None:
    answer = await nbllm.aimage_generation("a cat", "litellm_proxy/pictures")
    assert answer.data[0].url == PICTURE
    assert only_row().operation == "image_generation"


async def test_a_response(proxy: Proxy) -> None:
    answer = await nbllm.aresponses("Hi", "litellm_proxy/chat", session_id="review")
    assert answer.output_text == ANSWER
    (seen,) = proxy.seen()
    assert (seen["call_type"], seen["session_id"]) == ("aresponses", "review")
    row = only_row()
    assert (row.operation, row.status, row.session_id) == ("responses", "ok", "review")


async def test_the_list_of_models(proxy: Proxy) -> None:
    found = await nbllm.amodels("litellm_proxy")
    assert {model["id"] for model in found} == set(MODELS)


async def test_an_unknown_model(proxy: Proxy) -> None:
    with pytest.raises(nbllm.BadRequestError, match="nosuch"):
        await nbllm.acompletion("litellm_proxy/nosuch", "Hi")
    assert only_row().http_status == 400


# -- sessions --------------------------------------------------------------------------------------

VERBS: dict[str, Callable[..., Any]] = {
    "chat": lambda **options: nbllm.acompletion("litellm_proxy/chat", "Hi", **options),
    "stream": lambda **options: nbllm.acompletion("litellm_proxy/chat", "Hi", stream=True, **options),
    "embedding": lambda **options: nbllm.aembedding("litellm_proxy/vectors", "Hi", **options),
    "image": lambda **options: nbllm.aimage_generation("a cat", "litellm_proxy/pictures", **options),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_the_session_reaches_the_proxy_with_every_verb(proxy: Proxy, verb: str) -> None:
    with nbllm.session("review 7"):
        answer = await VERBS[verb]()
    if verb == "stream":
        await answer.aclose()
    (seen,) = proxy.seen()
    assert seen["session_id"] == seen["header"] == "review 7"
    assert only_row().session_id == "review 7"


@pytest.mark.parametrize(
    "options",
    [
        {"session_id": "mine"},
        {"litellm_session_id": "mine"},
        {"metadata": {"session_id": "mine"}},
        {"metadata": {"litellm_session_id": "mine"}},  # documented, but not grouped by LiteLLM's own client
        {"extra_body": {"litellm_session_id": "mine"}},
        {"extra_body": {"metadata": {"session_id": "mine"}}},
        {"extra_headers": {"x-litellm-session-id": "mine"}},
        {"extra_headers": {"X-Session-Id": "mine"}},  # which the proxy itself takes from eight characters on
        {"litellm_trace_id": "mine"},
        {"metadata": {"trace_id": "mine"}},
        {"extra_body": {"litellm_trace_id": "mine"}},
        {"extra_body": {"metadata": {"trace_id": "mine"}}},
        {"extra_headers": {"x-litellm-trace-id": "mine"}},
        # Of several the first, although the proxy itself would heed the trace id's header first.
        {
            "session_id": "mine",
            "extra_headers": {"X-LiteLLM-Trace-Id": "other", "x-session-id": "others-own"},
        },
        {"litellm_session_id": "mine", "extra_body": {"litellm_session_id": "other", "metadata": {"a": "b"}}},
    ],
    ids=str,
)
async def test_every_way_to_name_a_session_groups_here_and_there(
    proxy: Proxy, options: dict[str, Any]
) -> None:
    await nbllm.acompletion("litellm_proxy/chat", "Hi", **options)
    (seen,) = proxy.seen()
    assert seen["session_id"] == only_row().session_id == "mine"


async def test_responses_that_follow_each_other_are_one_session_here_and_there(proxy: Proxy) -> None:
    root: Any = await nbllm.aresponses("A story", "litellm_proxy/chat", session_id="robots")
    second: Any = await nbllm.aresponses("A poem", "litellm_proxy/chat", previous_response_id=root.id)
    await nbllm.aresponses("A song", "litellm_proxy/chat", previous_response_id=second.id)
    assert [seen["session_id"] for seen in proxy.seen()] == ["robots"] * 3
    (session,) = session_rows()
    assert (session.session_id, session.requests) == ("robots", 3)


async def test_a_session_that_nobody_named_is_the_kernels(proxy: Proxy) -> None:
    await nbllm.acompletion("litellm_proxy/chat", "Hi")
    nbllm.set_session("chosen")
    await nbllm.acompletion("litellm_proxy/chat", "Hi")
    here = [row.session_id for row in request_rows()]
    assert [seen["session_id"] for seen in proxy.seen()] == here
    assert here[0].startswith("kernel-")
    assert here[1] == "chosen"


async def test_a_model_of_the_proxy_under_its_bare_name_groups_here_only(proxy: Proxy) -> None:
    # LiteLLM's page on session logs does it so. OpenAI's servers refuse fields that they don't know, and the
    # address alone doesn't tell that a proxy listens there.
    for text in ("A story", "A poem"):
        answer = await nbllm.acompletion(
            model="gpt-4o",
            messages=[{"role": "user", "content": text}],
            api_base=proxy.url,
            api_key=KEY,
            metadata={"litellm_session_id": "robots"},
        )
        assert answer.text == ANSWER
    (session,) = session_rows()
    assert (session.session_id, session.requests) == ("robots", 2)
    assert [seen["session_id"] for seen in proxy.seen()] == [None, None]


async def test_responses_of_another_format_follow_each_other(proxy: Proxy) -> None:
    asked: dict[str, Any] = {"api_base": proxy.url, "api_key": KEY, "session_id": "robots"}
    first: Any = await nbllm.aresponses("A story", "anthropic/claude", **asked)
    second: Any = await nbllm.aresponses("A poem", "anthropic/claude", previous_response_id=first.id, **asked)
    assert first.output_text == second.output_text == ANSWER
    assert [len(seen["body"]["messages"]) for seen in proxy.seen()] == [1, 3]
    (session,) = session_rows()
    assert (session.session_id, session.requests) == ("robots", 2)


# -- connections -----------------------------------------------------------------------------------


async def test_all_verbs_share_one_connection(proxy: Proxy) -> None:
    for verb, ask in VERBS.items():
        answer = await ask()
        if verb == "stream":
            assert [chunk async for chunk in answer]
    with pytest.raises(nbllm.RateLimitError):
        await nbllm.acompletion("litellm_proxy/busy", "Hi")
    rows = request_rows()
    assert [row.connection_reused for row in rows] == [False, True, True, True, True]
    (connection,) = connection_rows()
    assert connection.requests == 5
    assert proxy.client_ports() == [connection.local_port] * 5


async def test_a_session_of_the_callers_own_is_used_and_traced(proxy: Proxy) -> None:
    async with aiohttp.ClientSession() as shared_session:
        for text in ("Hello", "How are you?"):
            await nbllm.acompletion("litellm_proxy/chat", text, shared_session=shared_session)
        assert len(set(proxy.client_ports())) == 1
    assert [row.connection_reused for row in request_rows()] == [False, True]


# -- keys ------------------------------------------------------------------------------------------


async def test_a_wrong_key(proxy: Proxy) -> None:
    wrong = "sk-wrong-0123456789abcdef"
    # 401 with a database; without one the proxy has none to look the key up in, and says 400.
    with pytest.raises((nbllm.BadRequestError, nbllm.AuthenticationError)) as caught:
        await nbllm.acompletion("litellm_proxy/chat", "Hi", api_key=wrong)
    assert wrong not in repr(vars(caught.value)) + str(caught.value)
    assert proxy.seen() == []
    assert only_row().status == "error"


async def test_keys_are_nowhere(proxy: Proxy, log_path: Path) -> None:
    answer = await nbllm.acompletion("litellm_proxy/chat", "Hi")
    with pytest.raises(nbllm.APIError) as caught:
        await nbllm.acompletion("litellm_proxy/busy", "Hi", extra_headers={"Authorization": f"Bearer {KEY}"})
    shown = repr(answer) + repr(answer.request) + repr(vars(caught.value)) + nbllm.requests().to_csv()
    stored = b"".join(path.read_bytes() for path in log_path.parent.iterdir())
    assert b"litellm_proxy" in stored
    for key in (KEY, UPSTREAM_KEY):
        assert key not in shown
        assert key.encode() not in stored
    assert tracing.running() == []
