"""A session as a conversation: what was sent to real servers, read back from the log."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import nbllm
from nbllm import log, tagging, transcripts
from nbllm.selection import REQUEST_COLUMNS
from nbllm.servers.demo import DemoServer
from nbllm.tagging import Cell
from nbllm.turns import Turn, turns_of
from tests.kernels import Kernel
from tests.servers import TEXT, Exchange, RawServer, completion, whole

Message = dict[str, Any]


@pytest.fixture(autouse=True)
def review() -> Any:
    """The session of each test."""
    with nbllm.session("review"):
        yield


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def said(turns: Any) -> list[tuple[list[str], Any]]:
    """The texts that each turn shows as new, and its answer."""
    return [
        (
            [message["content"] for message in turn.messages],
            None if turn.answer is None else turn.answer["content"],
        )
        for turn in turns
    ]


def outline(transcript: nbllm.Transcript) -> list[str]:
    """The text without what differs from run to run, a line each; the first is the heading."""
    text = re.sub(r" · (\d+ ms|\d+\.\d m?s) · \d\d:\d\d", "", str(transcript))
    return [line for line in text.splitlines()[1:] if line]


# -- what is new in a turn ---------------------------------------------------------------------------------


async def test_a_turn_shows_what_the_turns_before_had_not(server: RawServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("one")]
    for text in ("two", "three"):
        answer = await nbllm.acompletion("m", messages, base_url=server.url("echo"))
        messages += [{"role": "assistant", "content": answer.text}, user(text)]
    async for _ in await nbllm.acompletion("m", messages, base_url=server.url("echo"), stream=True):
        pass
    transcript = nbllm.transcript("review")
    assert len(transcript) == len(server.requests) == 3
    assert said(transcript) == [
        (["Be brief.", "one"], "one"),
        (["two"], "two"),
        (["three"], "three"),
    ]
    assert plainly(transcript.messages) == [*messages, {"role": "assistant", "content": "three"}]
    assert {turn.request_model for turn in transcript} == {"m"}
    assert outline(transcript) == [
        *("m · 11→5 tok", "system: Be brief.", "> one", "one"),
        *("m · 11→5 tok", "> two", "two"),
        *("m · 11→5 tok", "> three", "three"),
    ]


async def test_the_conversation_can_be_sent_again(server: RawServer) -> None:
    for text in ("one", "two"):
        await nbllm.aask(text, "m", base_url=server.url("echo"))
    again = [*nbllm.transcript().messages, user("three")]
    await nbllm.acompletion("m", again, base_url=server.url("echo"))
    assert plainly(server.requests[-1].json["messages"]) == plainly(again)
    assert said(nbllm.transcript())[-1] == (["three"], "three")


async def test_a_system_message_is_shown_once_and_when_it_changes(server: RawServer) -> None:
    for system, text in (("A", "one"), ("A", "two"), ("B", "three"), (None, "four"), ("B", "five")):
        told = [] if system is None else [{"role": "system", "content": system}]
        await nbllm.acompletion("m", [*told, user(text)], base_url=server.url("echo"))
    new = [texts for texts, _ in said(nbllm.transcript())]
    assert new == [["A", "one"], ["two"], ["B", "three"], ["four"], ["B", "five"]]


async def test_models_side_by_side_share_the_question(server: RawServer) -> None:
    for number in (1, 2):
        cell = Cell(f"cell-{number}", number, f"run-{number}", "frontend")
        tagging.enter_cell(cell)
        for model in ("a", "b"):
            await nbllm.acompletion(model, f"question {number}", base_url=server.url("chat"))
    tagging.enter_cell(Cell("cell-3", 3, "run-3", "frontend"))
    await nbllm.acompletion("a", "question 1", base_url=server.url("chat"))
    transcript = nbllm.transcript()
    assert said(transcript) == [
        (["question 1"], TEXT),
        ([], TEXT),
        (["question 2"], TEXT),
        ([], TEXT),
        (["question 1"], TEXT),
    ]
    assert [(turn.cell, turn.request_model) for turn in transcript] == [
        *(("[1]", "a"), ("[1]", "b"), ("[2]", "a"), ("[2]", "b"), ("[3]", "a")),
    ]
    assert [message["content"] for message in transcript.messages] == [
        *("question 1", TEXT, "question 2", TEXT, "question 1", TEXT),
    ]


async def test_tools_and_their_results(server: RawServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    answers = [calling, {"role": "assistant", "content": "It rains."}]

    async def tools(x: Exchange) -> None:
        body = completion()
        body["choices"][0]["message"] = answers.pop(0)
        await x.send(whole("200 OK", json.dumps(body).encode()))

    server.behaviours["tools"] = tools
    first = await nbllm.acompletion("m", "Weather?", base_url=server.url("tools"))
    messages = [
        user("Weather?"),
        first.choices[0].message,
        {"role": "tool", "tool_call_id": "c1", "content": "<b>Rain</b>\n" * 50},
    ]
    await nbllm.acompletion("m", messages, base_url=server.url("tools"))
    transcript = nbllm.transcript()
    assert said(transcript) == [(["Weather?"], None), (["<b>Rain</b>\n" * 50], "It rains.")]
    assert outline(transcript)[1:5] == [
        *("> Weather?", '→ weather {"city": "Paris"}', "m · 11→5 tok", "← <b>Rain</b>"),
    ]
    shown = html.unescape(transcript.markdown)
    assert "<summary>← <b>Rain</b> <b>Rain</b>" in shown
    assert '→ weather {"city": "Paris"}</small>' in shown
    shown = MarkdownIt().render(transcript.markdown)
    assert "<pre><code>&lt;b&gt;Rain" in shown


async def test_pictures_are_named_not_shown(server: RawServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    asked = user([{"type": "text", "text": "What is it?"}, picture])
    await nbllm.acompletion("m", [asked], base_url=server.url("chat"))
    transcript = nbllm.transcript()
    assert outline(transcript)[1:3] == ["> What is it?", "> [image]"]
    assert "iVBORw" not in transcript.markdown
    assert transcript.messages[0] == asked


# -- cells that run again ----------------------------------------------------------------------------------


async def asks(cell: str, run: int, text: str, url: str) -> None:
    tagging.enter_cell(Cell(cell, run, f"run-{run}", "frontend"))
    await nbllm.aask(text, "m", base_url=url)


async def test_a_cell_that_runs_again_takes_the_place_of_its_turn(server: RawServer) -> None:
    url = server.url("echo")
    await asks("a", 1, "one", url)
    await asks("b", 2, "two", url)
    await asks("a", 3, "one, better", url)
    await asks("b", 4, "two", url)
    transcript = nbllm.transcript()
    assert [turn.is_replaced for turn in transcript] == [True, True, False, False]
    assert plainly(transcript.messages) == plainly(nbllm.Chat("review").messages)
    assert outline(transcript)[:3] == [
        "[1] · m · 11→5 tok · its cell ran again · “one”",
        "[2] · m · 11→5 tok · its cell ran again · “two”",
        "[3] · m · 11→5 tok",
    ]


async def test_what_later_turns_go_on_from_is_not_replaced(server: RawServer) -> None:
    url = server.url("echo")
    await asks("a", 1, "one", url)
    await asks("b", 2, "two", url)
    await asks("a", 3, "one", url)  # the answer of b still goes on from the first run
    transcript = nbllm.transcript()
    assert [turn.is_replaced for turn in transcript] == [False, False, False]
    assert said(transcript) == [(["one"], "one"), (["two"], "two"), (["one"], "one")]


async def test_a_cell_that_adds_turns_replaces_none(server: RawServer) -> None:
    nbllm.configure(on_rerun="append")
    for run in (1, 2, 3):
        await asks("a", run, f"again {run}", server.url("echo"))
    transcript = nbllm.transcript()
    assert [turn.is_replaced for turn in transcript] == [False, False, False]
    assert plainly(transcript.messages) == plainly(nbllm.Chat("review").messages)


async def test_a_run_that_fails_replaces_nothing(server: RawServer) -> None:
    await asks("a", 1, "one", server.url("echo"))
    with pytest.raises(nbllm.BadRequestError):
        await asks("a", 2, "one", server.url("status-400"))
    async with await nbllm.acompletion("m", "one", base_url=server.url("gatedbody"), stream=True) as stream:
        async for _ in stream:
            if stream.text:
                break
    transcript = nbllm.transcript()
    assert [turn.status for turn in transcript] == ["ok", "error", "incomplete"]
    assert [turn.is_replaced for turn in transcript] == [False, False, False]
    assert plainly(transcript.messages) == [user("one"), {"role": "assistant", "content": "one"}]
    await asks("a", 3, "one", server.url("echo"))
    assert [turn.is_replaced for turn in nbllm.transcript()] == [True, True, True, False]


def test_a_notebook_run_twice_is_shown_once_but_numbers_alone_are_no_cells() -> None:
    def run(kernel: str, **values: Any) -> list[Any]:
        return [
            row(f"{kernel}-{n}", f"q{n}", kernel_id=kernel, run_id=f"{kernel}{n}", **values) for n in (1, 2)
        ]

    def replaced(*runs: list[Any]) -> list[bool]:
        return [turn.is_replaced for turn in turns(*(one for run in runs for one in run))]

    for values in ({"cell_id": "a", "notebook": "x.ipynb"}, {"cell_id": "a"}):
        assert replaced(run("k1", **values)[:1], run("k2", **values)[:1]) == [True, False]
    assert replaced(run("k1", cell_id="In[1]")[:1], run("k2", cell_id="In[1]")[:1]) == [False, False]
    assert replaced(run("k1", cell_id=None)[:1], run("k2", cell_id=None)[:1]) == [False, False]
    one, other = run("k1", cell_id="a", notebook="x.ipynb"), run("k2", cell_id="a", notebook="y.ipynb")
    assert replaced(one[:1], other[:1]) == [False, False]


# -- what is one line --------------------------------------------------------------------------------------


async def test_attempts_are_one_turn(server: RawServer) -> None:
    async def flaky(x: Exchange) -> None:
        if len(server.requests) < 3:
            await x.send(whole("503 Status", b'{"error": {"message": "busy"}}', Retry_After="0"))
        else:
            await x.send(whole("200 OK", json.dumps(completion()).encode()))

    server.behaviours["flaky"] = flaky
    await nbllm.acompletion("m", "Hi", base_url=server.url("flaky"), num_retries=5)
    (turn,) = transcript = nbllm.transcript()
    assert len(server.requests) == 3
    assert (turn.attempt, len(turn.failures), turn.error, turn.status) == (3, 2, None, "ok")
    assert str(transcript).startswith("3 requests · 2 not ok · m · review")
    assert " · attempt 3 · after ServiceUnavailableError · " in str(transcript)


async def test_an_error_is_one_line_with_its_prompt(server: RawServer) -> None:
    with pytest.raises(nbllm.BadRequestError):
        await nbllm.acompletion("m", "Hi there, " * 50, base_url=server.url("status-400"))
    (line,) = outline(nbllm.transcript())
    assert re.fullmatch(r"m · BadRequestError: 400: no .* · “(Hi there, ){5}Hi there,…”", line), line
    assert nbllm.transcript().messages == []


async def test_a_request_in_flight_is_running_and_then_cancelled(server: RawServer) -> None:
    asking = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("hang")))
    await server.seen(lambda: len(server.requests) == 1)
    (turn,) = transcript = nbllm.transcript()
    assert turn.status is None
    assert "still running" in str(transcript)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert re.search(r" · cancelled · “Hi”$", str(nbllm.transcript()))


async def test_a_stream_that_was_left_is_shown_but_no_part_of_the_conversation(server: RawServer) -> None:
    async with await nbllm.acompletion("m", "Hi", base_url=server.url("gatedbody"), stream=True) as stream:
        async for _ in stream:
            if stream.text:
                break
    transcript = nbllm.transcript()
    assert said(transcript) == [(["Hi"], "Hello")]
    assert " · incomplete" in str(transcript)
    assert transcript.messages == []


async def test_other_operations_are_one_line_each(server: RawServer) -> None:
    async def vectors(x: Exchange) -> None:
        data = [{"index": n, "embedding": [1.0]} for n, _ in enumerate(x.request.json["input"])]
        await x.send(whole("200 OK", json.dumps({"object": "list", "data": data}).encode()))

    server.behaviours["vectors"] = vectors
    await nbllm.aembedding("m", ["first text", "second"], base_url=server.url("vectors"))
    async with nbllm.shared_session().get(server.url("chat")) as response:
        await response.read()
    transcript = nbllm.transcript()
    assert outline(transcript) == ["embeddings · m · “first text second”", "foreign, 127.0.0.1"]
    assert transcript.messages == []


async def test_without_contents_the_numbers_are_shown_all_the_same(server: RawServer) -> None:
    nbllm.configure(content=False)
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    (turn,) = transcript = nbllm.transcript()
    assert (turn.has_content, turn.output_tokens) == (False, 5)
    assert outline(transcript) == ["m · 11→5 tok · content not kept"]


# -- which session, where and when -------------------------------------------------------------------------


async def test_an_unknown_session_is_an_error_that_tells_the_nearest(server: RawServer) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    with pytest.raises(nbllm.UsageProblem, match="no session 'reveiw' in the log; did you mean 'review'"):
        nbllm.transcript("reveiw")
    with pytest.raises(nbllm.UsageProblem, match="tells those that there are"):
        nbllm.transcript("zzz")
    with pytest.raises(nbllm.UsageProblem, match="session id"):
        nbllm.transcript("")
    with nbllm.session("new"):
        assert len(nbllm.transcript()) == len(nbllm.transcript("new")) == 0
        assert str(nbllm.transcript()) == "nothing was asked in session new yet"
        assert "nothing was asked" in nbllm.transcript().markdown


async def test_another_session_and_another_user_s_are_left_out(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), session_id="other")
    assert len(nbllm.transcript()) == 0
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    assert len(nbllm.transcript()) == 1
    monkeypatch.setattr(tagging, "owner", lambda: "somebody-else")
    assert len(nbllm.transcript()) == 0


def test_date_and_notebook_stand_where_they_differ() -> None:
    noon = time.mktime((2026, 11, 20, 12, 0, 0, 0, 0, -1))

    def lines(*rows: Any) -> list[str]:
        shown = transcripts.Transcript("review", turns(*rows), "2 requests")
        return [line for line in str(shown).splitlines() if ":00" in line or "requests" in line]

    assert lines(row("1", "a", started_at=noon), row("2", "b", started_at=noon)) == [
        *("2 requests · 2026-11-20", "m · 12:00", "m · 12:00"),
    ]
    assert lines(row("1", "a", started_at=noon), row("2", "b", started_at=noon + 24 * 3600)) == [
        *("2 requests", "m · 2026-11-20 12:00", "m · 2026-11-21 12:00"),
    ]
    one = row("1", "a", started_at=noon, notebook="work/x.ipynb", execution_count=3)
    assert lines(one, row("2", "b", started_at=noon))[1:] == [
        "[3] · x.ipynb · m · 12:00",
        "kernel k · m · 12:00",
    ]


# -- how it looks ------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "![x](http://evil.example/pixel.png) [y](javascript:alert(1))",
    "# Heading\n\n```python\nprint('open fence')",
    "- list\n    1. deeper\n\n       ~~~\n       also open",
    "> quote\n> ```\n> open in a quote",
    "</blockquote></details><h1>out</h1>",
    "$$ \\begin{x}",
    "text\n---\nmore\n===",
    "<!-- comment",
    "<details><summary>x",
    "\x1b]0;title\x07\x1b[31mred",
    "[3]: http://evil.example",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_nothing_of_what_was_said_swallows_what_follows_or_runs(server: RawServer, text: str) -> None:
    messages = [{"role": "system", "content": text * 30}, user(text)]
    await nbllm.acompletion("m", messages, base_url=server.url("echo"))
    await nbllm.acompletion("m", "plain", base_url=server.url("echo"))
    transcript = nbllm.transcript()
    shown = MarkdownIt("commonmark").enable("table").render(transcript.markdown)
    assert "\n<p>plain</p>\n" in shown, "outside of whatever was open before"
    assert re.search(r"<p><small><b>m</b> · 11→5 tok · [^<]*</small></p>\n<blockquote>\n<p>plain</p>", shown)
    outside = re.sub(r"<pre>.*?</pre>", "", shown, flags=re.DOTALL)
    for active in ("<script", "<img", "<h1>out", 'javascript:alert(1)"', "<!--"):
        assert active not in outside.lower()
    assert outside.count("<blockquote>") == outside.count("</blockquote>")
    assert outside.count("<details>") == outside.count("</details>") <= 1
    assert "\x1b" not in str(transcript)
    assert "> plain" in str(transcript).splitlines()


async def test_reasoning_is_folded_away(server: RawServer) -> None:
    async def thinking(x: Exchange) -> None:
        body = completion("Done.")
        body["choices"][0]["message"]["reasoning_content"] = "Hm, `let` me see."
        await x.send(whole("200 OK", json.dumps(body).encode()))

    server.behaviours["thinking"] = thinking
    await nbllm.acompletion("m", "Hi", base_url=server.url("thinking"))
    transcript = nbllm.transcript()
    assert outline(transcript)[2:] == ["(reasoning: 17 characters)", "Done."]
    assert "<blockquote>\n\nHm, `let` me see.\n\n</blockquote>\n\n</details>" in transcript.markdown


def test_a_cell_shows_the_end_of_a_long_session_and_print_all_of_it() -> None:
    rows = [row(str(number), f"{number} " + "x" * 9_000, run_id=str(number)) for number in range(40)]
    transcript = transcripts.Transcript("review", turns(*rows), "40 requests")
    bundle = transcript._repr_mimebundle_()
    for form, whole_form in (("text/plain", str(transcript)), ("text/markdown", transcript.markdown)):
        assert "earlier turns are left out here" in bundle[form]
        assert ("0 xxx" in whole_form, "39 xxx" in bundle[form], "> 1 xxx" in bundle[form]) == (
            True,
            True,
            False,
        )
        assert len(bundle[form]) < 3 * transcripts.SHOWN_CHARACTERS < len(whole_form) * 3
    huge = transcripts.Transcript("review", turns(row("1", "y" * 500_000)), "1 request")
    assert "(400,000 more characters)" in huge._repr_mimebundle_()["text/markdown"]


_TEXTS = st.text(max_size=20)
_CONTENTS = st.none() | _TEXTS | st.builds(
    lambda messages: json.dumps({"messages": messages, "choices": [{"message": m} for m in messages]}),
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": _TEXTS}
        ),
        max_size=3,
    ),
)  # fmt: skip


@given(
    st.lists(st.tuples(_CONTENTS, _CONTENTS, st.sampled_from(["ok", "error", "cancelled", None])), max_size=6)
)
def test_whatever_the_log_holds_is_shown(given: list[Any]) -> None:
    rows = [
        blank(str(number), status=status, run_id=str(number % 3)) for number, (*_, status) in enumerate(given)
    ]
    kept = {row["id"]: (sent, got) for row, (sent, got, _) in zip(rows, given, strict=True)}
    transcript = transcripts.Transcript("review", turns_of(rows, kept), "some")
    assert len(transcript.turns) == len(rows)
    assert str(transcript)
    assert transcript._repr_mimebundle_()["text/markdown"]
    msgspec.json.encode(transcript.messages)


# -- in a kernel -------------------------------------------------------------------------------------------


def test_the_command_shows_the_session_in_a_kernel(tmp_path: Path, demo: DemoServer) -> None:
    with Kernel(tmp_path, demo) as kernel:
        kernel.run("%load_ext nbllm").ok()
        kernel.run("%%llm demo/small -s review\nList three **reasons**", cell_id="a").ok()
        kernel.run("%%llm demo/small -s review\nWhy?", cell_id="b").ok()
        shown = kernel.run("%nbllm transcript review").ok().displays[-1]
        assert kernel.run("%nbllm transcript").ok().displays[-1]["text/plain"].startswith("nothing was asked")
        assert kernel.run("%nbllm transcript revew").error == "UsageProblem"
    with Kernel(tmp_path, demo) as kernel:
        kernel.run("%load_ext nbllm").ok()
        again = kernel.run("%nbllm transcript review").ok().displays[-1]
    assert again == shown, "another kernel reads it from the log"
    assert re.search(
        r"^\[2\] · demo/small · \d+→\d+ tok · .*\n\n> List three \*\*reasons\*\*\n\n",
        again["text/plain"],
        re.M,
    )
    assert "<blockquote>\n\nList three **reasons**\n\n</blockquote>" in again["text/markdown"]
    assert again["text/markdown"].count("reasons**") == 1, "the second turn does not repeat the first"


# -- rows by hand ------------------------------------------------------------------------------------------


def blank(number: str, **values: Any) -> dict[str, Any]:
    """A row of the log with what every row has."""
    ids = dict.fromkeys(("request_id", "call_id"), number)
    fixed = {
        "id": hash(number),
        "attempt": 1,
        "session_id": "review",
        "kernel_id": "k",
        "started_at": 1.7e9,
        "status": "ok",
        "operation": "chat",
        "provider": "openai",
        "request_model": "m",
    }
    return {**dict.fromkeys(REQUEST_COLUMNS), **ids, **fixed, **values}


def row(number: str, text: str, **values: Any) -> tuple[dict[str, Any], tuple[str, str]]:
    """A row of a chat that asked `text`, and its contents."""
    request = json.dumps({"messages": [user(text)]})
    return blank(number, **values), (request, json.dumps(completion("answer")))


def turns(*rows: tuple[dict[str, Any], tuple[str, str]]) -> tuple[Turn, ...]:
    return turns_of([row for row, _ in rows], {row["id"]: kept for row, kept in rows})


def plainly(messages: list[Message]) -> list[Message]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def test_no_key_that_was_sent_is_shown(server: RawServer) -> None:
    key = "sk-secret-of-the-test-1234567890"
    asked = f"My key is {key}"
    nbllm.completion("m", asked, base_url=server.url("echo"), api_key=key, session_id="review")
    assert log.path() is not None
    assert key not in f"{nbllm.transcript('review')} {nbllm.transcript('review').markdown}"
