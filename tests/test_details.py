"""What a view shows of one request, and the request as code and as a command, which are run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from typing import Any

import pytest

import nbllm
from nbllm import details, log, masking, selection
from nbllm.details import detail_of, found
from nbllm.exceptions import UsageProblem
from nbllm.selection import Selection
from nbllm.servers.demo import DemoServer
from tests import servers
from tests.servers import Exchange, RawServer

KEY = "sk-test-0123456789abcdef"
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 200
HOSTILE = '\'; rm -rf / #\n"$HOME" `id` \\ <script>alert(1)</script> \x1b[2J {{x}} ☃ \U0001f600'
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"a b": {}}}},
    }
]
CALLED = [
    {"role": "user", "content": "What is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"a b": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "It is 5."},
]


def last_id() -> str:
    request_id: str = selection.request_rows()[-1]["request_id"]
    return request_id


async def sent(server: RawServer, verb: str, *args: Any, **params: Any) -> dict[str, Any]:
    """Send a request, which the server may not know how to answer, and tell what is known of it."""
    with contextlib.suppress(nbllm.APIError):
        answer = await getattr(nbllm, verb)(*args, **params)
        if params.get("stream"):
            assert [part async for part in answer]
    return await asyncio.to_thread(lambda: detail_of(last_id()))


async def run(code: str) -> None:
    """Run code as a person would who pasted it."""

    def typed() -> None:
        with contextlib.suppress(nbllm.APIError):
            exec(code, {})

    await asyncio.to_thread(typed)


def same(one: servers.Request, other: servers.Request) -> bool:
    return (one.method, one.path, one.body and one.json) == (
        other.method,
        other.path,
        other.body and other.json,
    )


async def test_a_request_with_its_messages_answer_and_circumstances(server: RawServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]
    detail = await sent(
        server, "acompletion", "m", messages, temperature=0.5, seed=7, base_url=server.url("chat")
    )
    assert detail["content_kept"]
    assert detail["messages"] == [
        {"role": "system", "text": "Be brief.", "calls": []},
        {"role": "user", "text": HOSTILE, "calls": []},
    ]
    assert detail["answer"] == {"text": servers.TEXT, "reasoning": None, "calls": []}
    assert detail["params"] == {"temperature": 0.5, "seed": 7}
    assert detail["headers"]["x-request-id"] == "req_raw"
    (attempt,) = detail["attempts"]
    assert (attempt["request_id"], attempt["attempt"], attempt["status"]) == (last_id(), 1, "ok")
    connection = detail["connection"]
    assert connection["local_port"] == server.connections[0].peer_port
    assert tuple(connection) == details.overview.CONNECTIONS


async def test_every_attempt_of_the_call_is_told(server: RawServer) -> None:
    async def fails_once(x: Exchange) -> None:
        await (servers.status(x, "500") if len(server.requests) == 1 else servers.chat(x))

    server.behaviours["fails_once"] = fails_once
    url = server.url("fails_once")
    detail = await sent(server, "acompletion", "m", "Hi", base_url=url, num_retries=1)
    assert [(one["attempt"], one["http_status"], one["status"]) for one in detail["attempts"]] == [
        (1, 500, "error"),
        (2, 200, "ok"),
    ]
    first = await asyncio.to_thread(detail_of, detail["attempts"][0]["request_id"])
    assert first["attempts"] == detail["attempts"]
    assert first["answer"] is None


async def test_calls_of_tools_and_reasoning_are_told(server: RawServer) -> None:
    async def reasons(x: Exchange) -> None:
        message = {"role": "assistant", "content": None, "reasoning_content": "Hm."}
        message |= {"tool_calls": CALLED[1]["tool_calls"]}
        whole = servers.completion(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])
        await x.send(servers.whole("200 OK", servers.json.dumps(whole).encode()))

    server.behaviours["reasons"] = reasons
    detail = await sent(server, "acompletion", "m", CALLED, tools=TOOLS, base_url=server.url("reasons"))
    call = {"name": "look_up", "arguments": '{"a b": 1}'}
    assert detail["answer"] == {"text": "", "reasoning": "Hm.", "calls": [call]}
    assert [(one["role"], one["calls"]) for one in detail["messages"]] == [
        ("user", []),
        ("assistant", [call]),
        ("tool", []),
    ]


async def test_a_running_request_has_no_answer_yet(server: RawServer) -> None:
    task = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("gated")))
    await server.seen(lambda: server.requests)
    detail = await asyncio.to_thread(lambda: detail_of(last_id()))
    assert (detail["answer"], detail["content_kept"], detail["attempts"][0]["status"]) == (None, False, None)
    server.open_gate()
    await task
    assert (await asyncio.to_thread(lambda: detail_of(last_id())))["content_kept"]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_long_texts_are_cut_and_it_is_said(server: RawServer) -> None:
    long = "x" * (details.LONGEST_TEXT + 5)
    messages = [{"role": "user", "content": long}] * 12
    detail = await sent(server, "acompletion", "m", messages, base_url=server.url("chat"))
    texts = [one["text"] for one in detail["messages"]]
    assert texts[-1].endswith("… (cut here: 5 more characters)")
    assert texts[0] == f"… ({len(long):,} characters are not shown)"
    assert sum(map(len, texts)) < details.LONGEST_WHOLE + 2 * details.LONGEST_TEXT
    assert detail["curl"] is None


async def test_no_key_stands_in_any_of_it(server: RawServer) -> None:
    detail = await sent(
        server,
        "acompletion",
        "m",
        f"my key is {KEY}",
        api_key="the-very-secret",
        user="the-very-secret",
        base_url=server.url("echo"),
    )
    for secret in (KEY, "the-very-secret"):
        assert secret not in repr(detail)
    assert "[key]" in detail["code"]
    assert masking.redact(detail["curl"]) == detail["curl"]


@pytest.mark.parametrize(
    "request_id", ["", "1", "0badcafe-r1", "' OR 1=1 --", "0badcafe-r1; DROP", "x" * 9999]
)
async def test_what_the_log_does_not_have_is_said(request_id: str) -> None:
    with pytest.raises(UsageProblem) as raised:
        await asyncio.to_thread(detail_of, request_id)
    assert len(str(raised.value)) < 200


# -- as code, and as a command -----------------------------------------------------------------------

CHAT = ("acompletion", "m")
REQUESTS: dict[str, tuple[Any, ...]] = {
    "plain": (*CHAT, "Hi"),
    "hostile": (*CHAT, [{"role": "user", "content": HOSTILE}]),
    "tools": (*CHAT, CALLED, {"tools": TOOLS, "temperature": 0.1, "stop": ["a", "b"]}),
    "stream": (*CHAT, "Hi", {"stream": True, "max_tokens": 5}),
    "unknown fields": (*CHAT, "Hi", {"extra_body": {"temperatur": 1, "class": 2, "timeout": 3, "a-b": 4}}),
    "structured": (*CHAT, "Hi", {"response_format": {"type": "json_object"}, "metadata": {"a": "b"}}),
    "parts": (*CHAT, [{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}]),
    "developer": (*CHAT, [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]),
    "groq": ("acompletion", "groq/llama/x", "Hi", {"reasoning_format": "raw"}),
    "litellm_proxy": ("acompletion", "litellm_proxy/gpt-4o", "Hi", {"session_id": "default"}),
    "azure": ("acompletion", "azure/my deployment", "Hi", {"seed": 1}),
    "anthropic": ("acompletion", "anthropic/claude-x", CALLED, {"tools": TOOLS, "top_k": 3}),
    "gemini": ("acompletion", "gemini/gemini-x", CALLED, {"tools": TOOLS, "top_k": 3, "max_tokens": 9}),
    "stream with usage": (*CHAT, "Hi", {"stream": True, "stream_options": {"include_usage": True}}),
    "responses stream": ("aresponses", "Hi", "openai/gpt-x", {"stream": True}),
    "gemini stream": ("acompletion", "gemini/gemini-x", "Hi", {"stream": True}),
    "responses": ("aresponses", "Hi", "openai/gpt-x", {"instructions": "Be brief.", "max_output_tokens": 9}),
    "responses on chat": ("aresponses", "Hi", "groq/llama", {"max_output_tokens": 9}),
    "embeddings": ("aembedding", "m", ["a", HOSTILE], {"dimensions": 3}),
    "gemini embeddings": ("aembedding", "gemini/embed", ["a", "b"], {"dimensions": 3}),
    "images": ("aimage_generation", HOSTILE, "m", {"size": "1x1"}),
    "speech": ("aspeech", "m", HOSTILE, "nova", {"speed": 2}),
    "models": ("amodels", "groq"),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_code_and_the_command_send_the_same_request_again(
    name: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    curl = shutil.which("curl")
    for variable in ("OPENAI", "GROQ", "AZURE", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{variable}_API_KEY", KEY)
    nbllm.set_session("default")
    verb, *args = REQUESTS[name]
    params = args.pop() if isinstance(args[-1], dict) else {}
    detail = await sent(server, verb, *args, **params, base_url=server.url("chat"))
    first = server.requests[0]

    call = f"nbllm.{'completion' if 'on chat' in name else verb[1:]}("
    is_looped = params.get("stream") and verb in ("acompletion", "aresponses")
    begin = f"for {'chunk' if 'nbllm.completion' in call else 'event'} in {call}" if is_looped else call
    assert detail["code"].startswith(f"import nbllm\n\n{begin}")
    assert KEY not in detail["code"]
    await run(detail["code"])
    assert len(server.requests) == 2
    assert same(server.requests[1], first), detail["code"]

    if "on chat" in name:  # what is kept is not what was sent
        assert detail["curl"] is None
    elif curl is not None:
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", detail["curl"]], capture_output=True, timeout=30, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        again = server.requests[2]
        assert same(again, first), detail["curl"]
        if name != "litellm_proxy":
            header = next(
                k for k in ("authorization", "api-key", "x-api-key", "x-goog-api-key") if k in first.headers
            )
            assert again.headers[header] == first.headers[header]
        for header in ("content-type", "anthropic-version") if first.method == "POST" else ():
            assert again.headers.get(header) == first.headers.get(header)
    assert KEY not in (detail["curl"] or "")


async def test_the_code_prints_a_stream_and_keeps_to_its_session(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    ask = {"stream": True, "session_id": 'the "review"'}
    for asking in (
        nbllm.acompletion("demo/fast", "Hi", stream_options={"include_usage": True}, **ask),
        nbllm.aresponses("Hi", "demo/fast", **ask),
    ):
        answer = await asking
        assert [part async for part in answer]
        detail = await asyncio.to_thread(lambda: detail_of(last_id()))
        assert f"session_id={ask['session_id']!r}" in detail["code"]
        await run(detail["code"])
        assert capsys.readouterr().out == answer.text
        assert [row["session_id"] for row in selection.request_rows()[-2:]] == [ask["session_id"]] * 2
    with nbllm.session("plain"):
        await nbllm.acompletion("demo/fast", "Hi")
    assert 'session_id="plain"' in (await asyncio.to_thread(lambda: detail_of(last_id())))["code"]


async def test_a_command_reads_as_it_runs(server: RawServer) -> None:
    said = "\u202e#\u2066 a\u2028b\x9b2J\u200f \U0001f469\u200d\U0001f4bb"
    detail = await sent(server, "acompletion", "m", said, base_url=server.url("chat"))
    assert "\\u202e#\\u2066 a\\u2028b\\u009b2J\\u200f \U0001f469\u200d\U0001f4bb" in detail["curl"]
    if shutil.which("curl") is not None:
        await asyncio.to_thread(subprocess.run, ["sh", "-c", detail["curl"]], capture_output=True, timeout=30)
        assert same(*server.requests)


async def test_the_default_address_is_not_written_and_the_demo_needs_no_key(
    demo: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", demo.url)
    await nbllm.acompletion("demo/fast", "Hi", temperature=0)
    detail = await asyncio.to_thread(lambda: detail_of(last_id()))
    assert detail["code"] == (
        "import nbllm\n\n"
        'nbllm.completion("demo/fast", messages=[{"role": "user", "content": "Hi"}], temperature=0)'
    )
    assert "Authorization" not in detail["curl"]
    answered = len(await asyncio.to_thread(selection.request_rows))
    await run(detail["code"])
    assert len(await asyncio.to_thread(selection.request_rows)) == answered + 1


async def test_pictures_are_left_out_of_the_code_and_a_large_body_has_no_command(server: RawServer) -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    messages = [{"role": "user", "content": parts}]
    detail = await sent(server, "acompletion", "m", messages, base_url=server.url("chat"))
    assert '"url": ...' in detail["code"]
    assert PICTURE in detail["curl"]
    assert detail["messages"][0]["text"] == "Look\n[image]"
    parts[1]["image_url"] = {"url": PICTURE * 100}
    assert (await sent(server, "acompletion", "m", messages, base_url=server.url("chat")))["curl"] is None


async def test_without_contents_the_code_says_so_and_there_is_no_command(server: RawServer) -> None:
    nbllm.configure(content=False)
    detail = await sent(server, "acompletion", "m", "Hi", seed=1, base_url=server.url("chat"))
    assert (detail["messages"], detail["answer"], detail["content_kept"]) == ([], None, False)
    assert 'nbllm.completion("openai/m", messages=..., seed=1, base_url="http' in detail["code"]
    assert detail["curl"] is None


async def test_audio_is_not_kept(server: RawServer) -> None:
    audio = ("a.wav", b"RIFF\0\0\0\0WAVEfmt ")
    detail = await sent(server, "atranscription", "m", audio, language="en", base_url=server.url("chat"))
    assert 'nbllm.transcription("openai/m", file=..., language="en", base_url=' in detail["code"]
    assert detail["curl"] is None


async def test_a_foreign_request_is_no_call_of_nbllms(server: RawServer) -> None:
    async with nbllm.shared_session().get(server.url("chat") + "/a[1]?q=1") as response:
        await response.read()
    detail = await asyncio.to_thread(lambda: detail_of(last_id()))
    assert detail["code"] is None
    assert detail["curl"] == f"curl {server.url('chat')}/a%5B1%5D"


# -- search ------------------------------------------------------------------------------------------


async def test_a_text_is_found_in_what_was_said_answered_and_went_wrong(server: RawServer) -> None:
    for url, text in (("chat", "first Äpfel"), ("echo", "second 100% sure_thing"), ("status-500", "third")):
        await sent(server, "acompletion", "m", text, base_url=server.url(url))
    ids = [row["request_id"] for row in await asyncio.to_thread(selection.request_rows)]

    async def search(text: str, **filters: Any) -> list[str]:
        return await asyncio.to_thread(found, Selection(**filters), text)

    assert await search("raw server") == ids[:1]
    assert await search("FIRST") == ids[:1]
    assert await search("Äpfel") == ids[:1]
    assert await search("0% sure_") == ids[1:2]
    assert await search("no (no key)") == ids[2:]
    assert await search("%") == ids[1:2]
    assert await search("' OR 1=1") == []
    assert await search("") == ids[::-1]
    assert await search("first", errors=True) == []
    with pytest.raises(UsageProblem):
        await search("x" * 10_000)
    log.close()
