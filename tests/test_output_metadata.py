"""What an output tells of its requests, and how it is read back."""

from __future__ import annotations

from typing import Any

import pytest

from nbllm.output_metadata import REQUEST, joined, pack, unpack
from tests.records import WHOLE, record


def test_what_is_known_of_a_request_is_told() -> None:
    made = record(**WHOLE, status="ok", started_at=1_700_000_000.25)
    told = {
        "request_id": made.request_id,
        "session_id": "review",
        "model": "gpt-4o",
        "status": "ok",
        "input_tokens": 412,
        "output_tokens": 96,
        "cost_usd": 0.00114,
        "duration_ms": 1830.0,
        "ttft_ms": 420.0,
        "started_at": "2023-11-14T22:13:20.250+00:00",
    }
    assert pack([made]) == {"nbllm": {"requests": [told]}}
    assert list(told) == list(REQUEST)
    (short,) = unpack(pack([record()]))
    assert set(short) == {"request_id", "session_id", "model", "started_at"}


def test_without_requests_there_is_nothing_to_tell() -> None:
    assert pack([]) == {}
    assert joined([None, {}]) == {}


def test_several_outputs_are_joined_in_their_order() -> None:
    one, two, three = (record() for _ in range(3))
    assert joined([pack([one]), None, pack([two, three])]) == pack([one, two, three])


@pytest.mark.parametrize(
    "metadata",
    [
        *(None, 5, [], {}, {"nbllm": None}, {"nbllm": []}, {"nbllm": {}}),
        *(
            {"nbllm": {"requests": requests}}
            for requests in (None, 5, {"request_id": "r1"}, [], ["r1", None])
        ),
    ],
    ids=str,
)
def test_what_is_not_ours_is_passed_over(metadata: Any) -> None:
    assert unpack(metadata) == []


def test_what_is_ours_is_found_beside_what_is_not() -> None:
    mixed = {"nbllm": {"requests": [5, {"request_id": "r1"}], "other": 1}, "other": 2}
    assert unpack(mixed) == [{"request_id": "r1"}]
