"""Which session a request belongs to, by whatever spelling it is named, and who is told of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import log, responding, tagging, tracing
from nbllm.servers.demo import DemoServer
from tests.providers_server import ProvidersServer, key_of
from tests.rows import only_row, request_rows, session_rows, until
from tests.servers import Exchange, RawServer, chunks, event, head, piece, whole

MINE = "robots-and-poems"

# One session, in every spelling that counts, the first first.
SPELLINGS: dict[str, dict[str, Any]] = {
    "session_id": {"session_id": MINE},
    "litellm_session_id": {"litellm_session_id": MINE},
    "litellm_trace_id": {"litellm_trace_id": MINE},
    "metadata.session_id": {"metadata": {"session_id": MINE}},
    "metadata.litellm_session_id": {"metadata": {"litellm_session_id": MINE}},
    "metadata.trace_id": {"metadata": {"trace_id": MINE}},
    "extra_body.litellm_session_id": {"extra_body": {"litellm_session_id": MINE}},
    "extra_body.litellm_trace_id": {"extra_body": {"litellm_trace_id": MINE}},
    "extra_body.metadata.session_id": {"extra_body": {"metadata": {"session_id": MINE}}},
    "extra_body.metadata.litellm_session_id": {"extra_body": {"metadata": {"litellm_session_id": MINE}}},
    "extra_body.metadata.trace_id": {"extra_body": {"metadata": {"trace_id": MINE}}},
    "x-litellm-session-id": {"extra_headers": {"x-litellm-session-id": MINE}},
    "x-litellm-trace-id": {"extra_headers": {"X-LiteLLM-Trace-Id": MINE}},
    "x-session-id": {"extra_headers": {"X-Session-ID": MINE}},
    "x-claude-code-session-id": {"extra_headers": {"X-Claude-Code-Session-Id": MINE}},
}
STRICT = ["openai", "azure", "anthropic", "gemini", "groq"]  # they refuse fields that they don't know
HEADERS = ("x-litellm-session-id", "x-litellm-trace-id", "x-session-id", "x-claude-code-session-id")


def put(options: dict[str, Any], value: Any) -> dict[str, Any]:
    """The spelling, with another value."""
    return {k: put(v, value) if isinstance(v, dict) else value for k, v in options.items()}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both spellings in one call."""
    both = {**one, **other}
    for name in one.keys() & other.keys():
        both[name] = merged(one[name], other[name])
    return both


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """No test knows the responses of another one."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    responding._state.sessions.clear()
    responding._state.conversations.clear()


@pytest.fixture
def providers() -> Iterator[ProvidersServer]:
    with ProvidersServer() as running:
        yield running


def asking(providers: ProvidersServer, provider: str) -> dict[str, Any]:
    """What leads a call to the provider's place on the server."""
    return {
        "model": f"{provider}/some-model",
        "base_url": providers.base_url(provider),
        "api_key": key_of(provider),
    }


# -- every spelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", STRICT)
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_spelling_groups_and_its_fields_reach_no_provider(
    providers: ProvidersServer, provider: str, spelling: str
) -> None:
    with nbllm.session("around"):
        answer = await nbllm.acompletion(
            messages="Hi", **merged(SPELLINGS[spelling], asking(providers, provider))
        )
    assert answer.request is not None
    assert only_row().session_id == answer.request.session_id == MINE
    (seen,) = providers.requests
    for word in (MINE, "litellm", "metadata", "session", "trace"):
        assert word.encode() not in seen.body
    given = {name.lower() for name in SPELLINGS[spelling].get("extra_headers", {})}
    assert {name for name in HEADERS if name in seen.headers} == given  # the caller's own headers are sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_proxy_is_told_by_header_and_field(
    providers: ProvidersServer, spelling: str, stream: bool
) -> None:
    options = merged(SPELLINGS[spelling], asking(providers, "litellm_proxy"))
    answer: Any = await nbllm.acompletion(messages="Hi", stream=stream, **options)
    if stream:
        assert [chunk async for chunk in answer]
    assert only_row().session_id == MINE
    (seen,) = providers.requests
    assert {name: seen.headers.get(name) for name in HEADERS} == {
        "x-litellm-session-id": MINE,
        "x-litellm-trace-id": None,
        "x-session-id": None,
        "x-claude-code-session-id": None,
    }
    assert seen.json["litellm_session_id"] == MINE
    assert not {"litellm_trace_id", "session_id", "metadata"} & seen.json.keys()


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(SPELLINGS)))
@pytest.mark.parametrize("provider", ["openai", "litellm_proxy"])
async def test_of_two_spellings_the_first_counts_everywhere(
    providers: ProvidersServer, provider: str, first: str, second: str
) -> None:
    both = merged(put(SPELLINGS[second], "not-this-one"), SPELLINGS[first])
    await nbllm.acompletion(messages="Hi", **merged(both, asking(providers, provider)))
    assert only_row().session_id == MINE
    (seen,) = providers.requests
    if provider == "litellm_proxy":
        assert (seen.headers["x-litellm-session-id"], seen.json["litellm_session_id"]) == (MINE, MINE)
        assert b"not-this-one" not in seen.body
        assert "not-this-one" not in seen.headers.values()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_synchronous_twin_knows_the_spelling(server: RawServer, spelling: str) -> None:
    nbllm.completion("m", "Hi", base_url=server.url("chat"), **SPELLINGS[spelling])
    assert only_row().session_id == MINE
    assert MINE.encode() not in server.requests[0].body


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_spelling_counts_in_every_verb(providers: ProvidersServer, spelling: str) -> None:
    for provider in ("openai", "litellm_proxy"):
        options = merged(SPELLINGS[spelling], asking(providers, provider))
        model = options.pop("model")
        await nbllm.aembedding(model, ["a", "b"], **options)
        await nbllm.aimage_generation("a cat", model, **options)
        await nbllm.aspeech(model, "Hello", "alloy", **options)
        await nbllm.atranscription(model, ("a.wav", b"RIFF"), **options)
        await nbllm.amodels(provider, **options)
        if "metadata" not in options:  # a response keeps the caller's metadata, see below
            await nbllm.aresponses("Hi", model, **options)
    assert {row.session_id for row in request_rows()} == {MINE}
    for seen in providers.requests:
        if "/litellm_proxy/" in seen.path:
            assert seen.headers["x-litellm-session-id"] == MINE
            assert b"litellm_session_id" in seen.body or seen.method == "GET"
        else:
            assert MINE.encode() not in seen.body


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("bad", ["Grüße", "x" * 200, "two\nlines", 7])
async def test_a_session_that_was_named_must_be_usable(server: RawServer, spelling: str, bad: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match="session id"):
        await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), **put(SPELLINGS[spelling], bad))
    assert server.requests == []


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "session_id"])
async def test_an_empty_spelling_names_nothing(server: RawServer, spelling: str) -> None:
    for empty in ("", None):
        with nbllm.session("around"):
            options: Any = put(SPELLINGS[spelling], empty)
            if "extra_headers" in options and empty is None:
                continue  # HTTP has no such header
            await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), **options)
    assert {row.session_id for row in request_rows()} == {"around"}
    assert {b"litellm" in seen.body for seen in server.requests} == {False}


async def test_what_the_caller_gave_stays_as_it_is(providers: ProvidersServer) -> None:
    metadata = {"session_id": MINE, "topic": "cats", "trace_id": "t"}
    body = {"litellm_session_id": MINE, "metadata": metadata, "top_k": 3, "metadata_of_mine": None}
    headers = {"X-LiteLLM-Session-Id": "h", "X-Other": "1"}
    before = json.dumps([metadata, body, headers])
    for provider in ("openai", "litellm_proxy"):
        await nbllm.acompletion(
            messages="Hi", extra_body=body, extra_headers=headers, **asking(providers, provider)
        )
    assert json.dumps([metadata, body, headers]) == before
    for seen in providers.requests:
        assert (seen.json["metadata"], seen.json["top_k"]) == ({"topic": "cats"}, 3)
        assert seen.headers["x-other"] == "1"


async def test_a_body_whose_metadata_is_no_dict_is_sent_as_it_is(server: RawServer) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), extra_body={"metadata": ["session_id"]})
    assert server.requests[0].json["metadata"] == ["session_id"]


async def test_every_attempt_and_the_fallback_are_one_session(providers: ProvidersServer) -> None:
    other = asking(providers, "litellm_proxy")
    await nbllm.acompletion(
        **{**asking(providers, "openai"), "model": "openai/fails-twice"},
        messages="Hi",
        num_retries=1,
        fallbacks=[other],
        extra_headers={"x-litellm-trace-id": MINE},
    )
    assert [row.session_id for row in request_rows()] == [MINE] * 3
    assert providers.requests[-1].headers["x-litellm-session-id"] == MINE
    assert "x-litellm-trace-id" not in providers.requests[-1].headers


# -- responses that follow each other --------------------------------------------------------------


@pytest.fixture
def api(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> RawServer:
    """OpenAI's Responses API: the responses are called resp_1, resp_2, …."""

    async def respond(x: Exchange) -> None:
        answer = {
            "id": f"resp_{len(server.requests)}",
            "object": "response",
            "status": "completed",
            "model": "some-model",
            "output": [],
            "usage": None,
        }
        if not x.request.json.get("stream"):
            return await x.send(whole("200 OK", json.dumps(answer).encode()))
        await x.send(head(Content_Type="text/event-stream", Transfer_Encoding="chunked"))
        for kind in ("response.created", "response.completed"):
            await x.send(piece(event({"type": kind, "response": answer})))
        return await x.send(b"0\r\n\r\n")

    server.behaviours["responses"] = respond
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url("responses"))
    monkeypatch.setenv("LITELLM_PROXY_API_BASE", server.url("responses"))
    return server


async def follow(previous: Any = None, stream: bool = False, model: str = "openai/m", **options: Any) -> Any:
    """Ask, after a response where one is given, and read the answer to its end."""
    answer: Any = await nbllm.aresponses("Hi", model, stream=stream, previous_response_id=previous, **options)
    if stream:
        assert [kind async for kind in answer]
        return answer.response
    return answer


def sessions() -> list[str]:
    return [row.session_id for row in request_rows()]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["openai/m", "litellm_proxy/m"])
async def test_a_chain_belongs_to_the_session_of_its_root(api: RawServer, stream: bool, model: str) -> None:
    root = await follow(stream=stream, model=model, session_id="root")
    second = await follow(root.id, stream=stream, model=model)
    await follow(second.id, stream=stream, model=model)
    assert sessions() == ["root"] * 3
    sent = [seen.json.get("previous_response_id") for seen in api.requests]
    assert sent == [None, "resp_1", "resp_2"]
    for seen in api.requests:
        told = (seen.headers.get("x-litellm-session-id"), seen.json.get("litellm_session_id"))
        assert told == (("root", "root") if model.startswith("litellm") else (None, None))


async def test_a_chain_whose_root_had_no_session_of_its_own_is_the_kernels(api: RawServer) -> None:
    root = await follow()
    await follow(root.id)
    assert sessions() == [tagging.default_session()] * 2


async def test_two_chains_are_two_sessions(api: RawServer) -> None:
    one, other = await follow(session_id="one"), await follow(litellm_trace_id="other")
    await asyncio.gather(follow(one.id), follow(other.id))
    assert sorted(sessions()) == ["one", "one", "other", "other"]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_session_that_is_named_wins_over_the_chain(api: RawServer, spelling: str) -> None:
    root = await follow(session_id="root")
    second = await follow(root.id, **SPELLINGS[spelling])
    await follow(second.id)
    assert sessions() == ["root", MINE, MINE]


async def test_a_session_that_is_chosen_around_wins_over_conversation_and_chain(api: RawServer) -> None:
    root = await follow(session_id="root")
    with nbllm.session("around"):
        await follow(root.id)
        await follow(conversation="conv_1")
        await follow(root.id, litellm_session_id="named")
    await follow(root.id)
    nbllm.set_session("from now on")
    await follow(root.id)
    await follow(conversation="conv_1")
    assert sessions() == ["root", "around", "around", "named", "root", "from now on", "from now on"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_follows_an_unknown_response_stays_together(api: RawServer, stream: bool) -> None:
    for _ in range(2):
        second = await follow("resp_of_elsewhere", stream=stream)
    await follow(second.id, stream=stream)
    assert sessions() == ["resp_of_elsewhere"] * 3


@pytest.mark.parametrize("odd", ["resp_é", "resp_" + "x" * 200, "two\nlines", " ", "", 7, ["resp_1"], {}])
async def test_an_id_that_no_session_can_have_falls_back_to_the_kernels(api: RawServer, odd: Any) -> None:
    await follow(odd)
    assert sessions() == [tagging.default_session()]


async def test_a_long_id_of_a_known_response_leads_to_its_session(api: RawServer) -> None:
    # A LiteLLM proxy's ids hold the deployment, and are longer than a session's name may be.
    long = "resp_" + "bGl0ZWxsbTpj" * 30

    async def respond(x: Exchange) -> None:
        answer = {"id": long, "object": "response", "status": "completed", "output": []}
        await x.send(whole("200 OK", json.dumps(answer).encode()))

    api.behaviours["responses"] = respond
    await follow(session_id="root")
    await follow(long)
    _forget()  # the log knows it too
    await follow(long)
    assert sessions() == ["root"] * 3


@pytest.mark.parametrize("odd", [7, None, "", ["resp"], {"id": 1}])
async def test_a_response_whose_id_is_none(api: RawServer, odd: Any) -> None:
    async def respond(x: Exchange) -> None:
        answer = {"id": odd, "object": "response", "status": "completed", "output": []}
        await x.send(whole("200 OK", json.dumps(answer).encode()))

    api.behaviours["responses"] = respond
    await follow(session_id="root")
    await follow(odd)
    assert sessions() == ["root", tagging.default_session()]


@pytest.mark.parametrize("given", ["conv_1", {"id": "conv_1"}])
async def test_a_conversation_is_a_session_and_reaches_openai(api: RawServer, given: Any) -> None:
    first = await follow(conversation=given)
    await follow(conversation=given, stream=True)
    await follow(first.id)
    assert sessions() == ["conv_1"] * 3
    assert [seen.json.get("conversation") for seen in api.requests] == [given, given, None]


@pytest.mark.parametrize("odd", ["", "conv_é", "x" * 200, 7, {}, {"id": None}, {"id": 7}, ["conv_1"]])
async def test_an_odd_conversation_is_openais_to_refuse(api: RawServer, odd: Any) -> None:
    await follow(conversation=odd)
    assert sessions() == [tagging.default_session()]
    assert api.requests[0].json["conversation"] == odd


async def test_a_conversation_groups_at_the_proxy_too(api: RawServer) -> None:
    await follow(model="litellm_proxy/m", conversation="conv_1")
    (seen,) = api.requests
    assert seen.headers["x-litellm-session-id"] == seen.json["litellm_session_id"] == "conv_1"
    assert seen.json["conversation"] == "conv_1"


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "groq"])
async def test_a_conversation_that_no_server_keeps_is_refused(
    providers: ProvidersServer, provider: str
) -> None:
    # To ask without what was said before would answer another question.
    options = asking(providers, provider)
    with pytest.raises(nbllm.UnsupportedParamsError, match="conversation"):
        await nbllm.aresponses("Hi", conversation="conv_1", **options)
    assert providers.requests == []


async def test_metadata_of_a_response_is_openais_to_keep(api: RawServer) -> None:
    await follow(metadata={"session_id": MINE, "topic": "cats"})
    assert sessions() == [MINE]
    assert api.requests[0].json["metadata"] == {"session_id": MINE, "topic": "cats"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["anthropic", "gemini", "groq"])
async def test_a_chain_built_on_chat(providers: ProvidersServer, provider: str, stream: bool) -> None:
    options = asking(providers, provider)
    root = await follow(stream=stream, **options, session_id="root")
    second = await follow(root.id, stream=stream, **options)
    await follow(second.id, stream=stream, **options)
    assert sessions() == ["root"] * 3


async def test_a_stream_that_was_left_early_can_be_followed(api: RawServer) -> None:
    async for _ in await nbllm.aresponses("Hi", "openai/m", stream=True, session_id="root"):
        break
    await follow("resp_1")
    assert sessions() == ["root"] * 2


def test_a_chain_of_the_synchronous_twin(api: RawServer) -> None:
    root: Any = nbllm.responses("Hi", "openai/m", session_id="root")
    stream: Any = nbllm.responses("Hi", "openai/m", previous_response_id=root.id, stream=True)
    assert list(stream)
    nbllm.responses("Hi", "openai/m", previous_response_id=stream.response.id)
    nbllm.responses("Hi", "openai/m", conversation="conv_1")
    assert sessions() == ["root", "root", "root", "conv_1"]


async def test_chains_in_many_threads(api: RawServer) -> None:
    ready = threading.Barrier(4)

    def chain(name: str) -> None:
        ready.wait(30)
        root: Any = nbllm.responses("Hi", "openai/m", session_id=name)
        nbllm.responses("Hi", "openai/m", previous_response_id=root.id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(chain, "abcd"))
    assert {row.session_id: row.requests for row in session_rows()} == dict.fromkeys("abcd", 2)
    await asyncio.to_thread(api.close_idle)  # the pool of the threads outlives the test
    await until(lambda: not tracing.connections())


async def test_the_log_tells_the_session_of_a_response_that_memory_has_lost(api: RawServer) -> None:
    root = await follow(session_id="root")
    _forget()
    second = await follow(root.id, stream=True)
    _forget()
    await follow(second.id)
    assert sessions() == ["root"] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_what_memory_knows_is_not_asked_of_the_log(
    providers: ProvidersServer, monkeypatch: pytest.MonkeyPatch, provider: str, stream: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(log, "session_of", asked.append)
    options = asking(providers, provider)
    root = await follow(stream=stream, **options, session_id="root")
    await follow(root.id, stream=stream, **options)
    assert (sessions(), asked) == (["root", "root"], [])


async def test_memory_has_an_end(api: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responding, "KEPT_SESSIONS", 2)
    for _ in range(4):
        await follow()
    assert list(responding._state.sessions) == ["resp_3", "resp_4"]


def test_a_chain_goes_on_in_another_kernel(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch, log_path: Path
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    script = "import nbllm; print(nbllm.responses('Hi', 'demo/fast'{}).id)"
    for options, session_id in ((", session_id='root'", "root"), ("", None)):
        there = subprocess.run(
            [sys.executable, "-c", script.format(options)],
            env={**os.environ, "NBLLM_LOG_PATH": str(log_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        here: Any = nbllm.responses("And?", "demo/fast", previous_response_id=there)
        assert here.request is not None
        (first,) = [row for row in request_rows(kernel="all") if row.response_id == there]
        assert here.request.session_id == first.session_id
        assert first.session_id == (session_id or first.session_id)
        assert first.session_id != tagging.default_session()


async def test_a_log_that_fails_breaks_no_call(api: RawServer, log_path: Path) -> None:
    log_path.parent.write_text("a file where the log's folder should be")
    with pytest.warns(RuntimeWarning, match="can't be used"):
        await follow("resp_of_elsewhere")
    assert sessions() == ["resp_of_elsewhere"]


async def test_a_query_that_fails_breaks_no_call(api: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(response_id: str) -> None:
        raise OSError("the database is gone")

    monkeypatch.setattr(log, "session_of", fail)
    await follow("resp_of_elsewhere")
    assert sessions() == ["resp_of_elsewhere"]


async def test_a_log_that_does_not_answer_holds_nobody_up(
    api: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responding, "LOG_SECONDS", 0.01)
    opening, busy = threading.Event(), threading.Event()

    def hold(connection: Any) -> None:
        busy.set()
        assert opening.wait(30)

    holding = asyncio.create_task(asyncio.to_thread(log.read, hold))
    try:
        await asyncio.to_thread(busy.wait, 30)
        answer = await follow("resp_of_elsewhere")
    finally:
        opening.set()
        await holding
    assert answer.request.session_id == "resp_of_elsewhere"
    assert sessions() == ["resp_of_elsewhere"]


# -- contexts --------------------------------------------------------------------------------------


async def test_tasks_keep_their_own_session(api: RawServer) -> None:
    root = await follow(session_id="root")
    with nbllm.session("inside"):
        inside = asyncio.create_task(follow(root.id))
    await asyncio.gather(inside, follow(root.id))
    assert sorted(sessions()) == ["inside", "root", "root"]


async def test_a_stream_belongs_to_the_session_in_which_it_was_asked_for(server: RawServer) -> None:
    server.behaviours["slow"] = server.behaviours["gatedbody"]
    with nbllm.session("inside"):
        stream = await nbllm.acompletion("m", "Hi", base_url=server.url("slow"), stream=True)
    with nbllm.session("elsewhere"):
        server.open_gate()
        assert len([chunk async for chunk in stream]) == len(chunks()) - 1
    assert only_row().session_id == "inside"
