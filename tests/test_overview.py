"""What the views show: the same as the frames say, and as the server counted."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

import nbllm
from nbllm import masking, overview, report_parts, tagging, tracing
from nbllm.exceptions import UsageProblem
from nbllm.overview import COLUMNS, changed, phases, sessions_of, spend, totals
from nbllm.selection import Selection
from tests.rows import until
from tests.servers import RawServer


def row(**values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "session_id": "s", **values}


async def ask(server: RawServer, behaviour: str = "chat", text: str = "Hi", **options: Any) -> Any:
    return await nbllm.acompletion("m", text, base_url=server.url(behaviour), **options)


async def some_requests(server: RawServer) -> None:
    tagging.enter_cell(tagging.Cell("cell-a", 3, "run-1", "frontend"))
    with nbllm.session("first"):
        await asyncio.gather(*(ask(server) for _ in range(5)))
        async for _ in await ask(server, stream=True):
            pass
        with pytest.raises(nbllm.RateLimitError):
            await ask(server, "status-429")
    with nbllm.session("second"):
        stream = await ask(server, "endless", stream=True)
        await stream.aclose()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(server, "hang"), 0.1)
        async with nbllm.shared_session().get(f"{server.url()}/x") as response:
            await response.read()


async def test_numbers_are_those_of_the_frame_and_of_the_server(any_log: str, server: RawServer) -> None:
    nbllm.set_price("m", input=1.0, output=2.0)
    await some_requests(server)
    seen = overview.overview(Selection())
    assert (seen.left_out, len(seen.requests)) == (0, len(server.requests))
    assert [one["request_id"] for one in seen.requests] == list(nbllm.requests().request_id)
    assert [one["connection_id"] for one in seen.connections] == list(nbllm.connections().connection_id)
    assert totals(seen.requests).connections_opened == len(server.connections)
    frame = nbllm.sessions()
    groups = sessions_of(seen.requests)
    assert [group.session_id for group in groups] == list(frame.session_id)
    for group, told in zip(groups, frame.to_dict("records"), strict=True):
        numbers = asdict(group.totals)
        shared = set(numbers) & set(told)
        assert shared >= {"errors", "cost_usd", "unpriced", "duration_p95_ms", "ttft_p50_ms", "reuse_ratio"}
        for name in shared:
            expected = told[name]
            assert numbers[name] == (
                None if expected is None or expected != expected else pytest.approx(expected)
            )
        assert ", ".join(group.cells) == told["cells"]


async def test_a_request_is_seen_running_and_then_as_it_ended(any_log: str, server: RawServer) -> None:
    task = asyncio.create_task(ask(server, "gated", "What is a pool?"))
    await until(lambda: server.requests)
    (record,) = tracing.running()
    (running,) = changed(Selection(), [record.id], []).requests
    assert (running["status"], running["request_model"], running["duration_ms"]) == (None, "m", None)
    server.open_gate()
    await task
    seen = changed(Selection(), [record.id], [])
    (ended,) = seen.requests
    assert (ended["status"], ended["prompt"]) == ("ok", "What is a pool?")
    assert [one["connection_id"] for one in seen.connections] == [ended["connection_id"]]
    assert changed(Selection(session="another"), [record.id], []).requests == []
    assert changed(Selection(kernel="all", since="1h"), [record.id], []).requests == [ended]


async def test_the_newest_are_kept_and_the_others_counted(any_log: str, server: RawServer) -> None:
    for number in range(5):
        await ask(server, text=f"number {number}")
    seen = overview.overview(Selection(), limit=2)
    assert ([one["prompt"] for one in seen.requests], seen.left_out) == (["number 3", "number 4"], 3)


async def test_the_prompt_is_how_the_last_message_of_the_user_begins(any_log: str, server: RawServer) -> None:
    said = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "two\n lines " + "x" * 1000}]},
    ]
    await ask(server, text=said)  # type: ignore[arg-type]
    await ask(server, text="y" * overview.READABLE_BYTES)
    nbllm.configure(content=False)
    await ask(server, text="kept nowhere")
    first, *others = (one["prompt"] for one in overview.overview(Selection()).requests)
    assert first == ("two lines " + "x" * 1000)[: overview.PROMPT_CHARACTERS]
    assert others == [None, None]


async def test_no_key_stands_in_a_prompt_that_is_cut_or_was_kept_before_the_key_was_known(
    any_log: str, server: RawServer
) -> None:
    late = "correct+horse+battery"
    await ask(server, text=f"{'x' * (overview.PROMPT_CHARACTERS - 8)} {late}")
    await ask(server, text=f"{' ' * 470}{late}")
    masking.keep_secret(late)
    told = [one["prompt"] for one in overview.overview(Selection()).requests]
    assert not any("correct" in prompt for prompt in told), told


async def test_a_connection_that_served_none_is_shown_where_nothing_is_filtered(
    any_log: str, server: RawServer
) -> None:
    await ask(server)
    unused = tracing.Connection()
    tracing.opened(unused)
    unused.closed_at, unused.close_reason = unused.opened_at + 1, "closed by server"
    tracing.closed(unused)
    assert len(overview.overview(Selection()).connections) == 2
    assert len(overview.overview(Selection(kernel="all")).connections) == 2
    assert len(overview.overview(Selection(session=nbllm.current_session())).connections) == 1


async def test_phases_make_up_the_duration(any_log: str, server: RawServer) -> None:
    nbllm.configure(rpm=10_000)
    async for _ in await ask(server, stream=True):
        pass
    await ask(server)
    new, reused = overview.overview(Selection()).requests
    assert "connect" in dict(phases(new))
    assert "connect" not in dict(phases(reused))
    for one in (new, reused):
        took = dict(phases(one))
        assert list(took) == [name for name in overview.PHASES if name in took]
        left = one["duration_ms"] - sum(took.values()) + took.get("queued", 0)
        assert -0.001 <= left < 100  # what a busy machine does between the phases
    took = dict(phases(new))
    assert took["first_token"] + took.get("stream", 0) == pytest.approx(new["receive_ms"])
    assert sum(took.values()) - took.get("stream", 0) <= new["ttft_ms"] + 0.001


def test_phases_of_odd_rows() -> None:
    assert phases(row()) == []
    assert phases(row(queued_ms=5.0, connect_ms=3.0, ssl_ms=2.0)) == [
        ("queued", 5),
        ("connect", 1),
        ("tls", 2),
    ]
    late = row(wait_ms=1.0, receive_ms=4.0, ttft_ms=50.0)  # the content came after the wire's end
    assert phases(late) == [("wait", 1), ("first_token", 4)]
    early = row(wait_ms=10.0, receive_ms=4.0, ttft_ms=1.0)
    assert phases(early) == [("wait", 10), ("stream", 4)]


def test_percentiles_are_numpys_and_nothing_is_null() -> None:
    values = [3.0, 1.0, 7.5, 2.0]
    numbers = totals([row(duration_ms=value, status="ok") for value in values] + [row()])
    assert (numbers.requests, numbers.running, numbers.duration_ms) == (5, 1, 13.5)
    assert numbers.duration_p50_ms == np.percentile(values, 50)
    assert numbers.duration_p95_ms == pytest.approx(np.percentile(values, 95))
    assert (numbers.cost_usd, numbers.input_tokens, numbers.ttft_p50_ms, numbers.reuse_ratio) == (None,) * 4
    assert totals([]).duration_p50_ms is None


def test_handshakes_saved_are_estimated_by_server() -> None:
    def use(server: str, reused: bool | None, **values: Any) -> dict[str, Any]:
        return row(server_address=server, server_port=443, connection_reused=reused, **values)

    rows = [
        use("a", False, dns_ms=5.0, connect_ms=95.0),
        use("a", False, connect_ms=300.0),
        use("a", True),
        use("a", True),
        use("b", True),  # nothing is known of its handshakes
        use("c", None),
    ]
    numbers = totals(rows)
    assert (numbers.handshakes_saved, numbers.handshakes_saved_ms, numbers.reuse_ratio) == (3, 400, 3 / 5)
    assert totals(rows[4:]).handshakes_saved_ms is None


def test_spend_is_by_model_or_session_with_the_dearest_first() -> None:
    rows = [
        row(provider="demo", request_model="small", session_id="a", input_tokens=10),
        row(provider="openai", request_model="gpt-4o", session_id="b", cost_usd=0.5, input_tokens=5),
        row(operation="embedding", session_id="b", cost_usd=0.1),
        row(server_address="example.org", session_id="b"),
    ]
    assert [(name, one.cost_usd) for name, one in spend(rows, "request_model")] == [
        ("gpt-4o", 0.5), ("embedding", 0.1), ("demo/small", None), ("foreign example.org", None),
    ]  # fmt: skip
    assert [(name, one.requests, one.unpriced) for name, one in spend(rows, "session_id")] == [
        ("b", 3, 0), ("a", 1, 1),
    ]  # fmt: skip


def test_sessions_of_one_name_are_spent_by_their_owners() -> None:
    owners = ("anna", "ben", "anna", None)
    rows = [row(session_id="review", owner=owner, cost_usd=1.0 - at / 8) for at, owner in enumerate(owners)]
    assert [(name, one.cost_usd) for name, one in spend(rows, "session_id")] == [
        ("review (anna)", 1.75), ("review (ben)", 0.875), ("review", 0.625),
    ]  # fmt: skip
    assert [name for name, _ in spend(rows[:1], "session_id")] == ["review"]
    assert [(one.name, one.requests) for one in report_parts.spending(rows, "session_id", 1)] == [
        ("review (anna)", 2), ("2 others", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ({}, "this kernel"),
        ({"kernel": "all"}, "all kernels"),
        ({"since": "7d", "errors": True}, "all kernels · since 7d · errors only"),
        ({"cell": 3, "latest": True}, "this kernel · cell 3 · last run of each cell"),
        ({"kernel": "0badcafe", "search": "<b>"}, "kernel 0badcafe · with <b>"),
    ],
)  # fmt: skip
def test_a_selection_says_what_it_means(filters: dict[str, Any], text: str) -> None:
    assert str(Selection(**filters)) == text


def test_a_filter_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(UsageProblem, match="kernel must be"):
        overview.overview(Selection(kernel="'; DROP TABLE requests"))


def test_a_selection_shows_no_key() -> None:
    key = "sk-planted-0123456789abcdef"
    nbllm.masking.keep_secret(key)
    assert key not in str(Selection(search=f"Bearer {key}"))
