"""The bytes that the benchmark server sends, and the texts that a client must make of them.

Sizes follow what OpenAI's chat API sends: a short reply of 757 bytes, stream events of about 300.
"""

from __future__ import annotations

from typing import Any

import orjson

KEY = "sk-benchmark"
MODEL = "gpt-4o-mini"
EMBEDDING_MODEL = "text-embedding-3-small"
MESSAGES = [
    {"role": "system", "content": "You are a careful analyst. Answer in one short paragraph, without lists."},
    {
        "role": "user",
        "content": "Here are the sales of the last four weeks: 1,204, 1,377, 1,189 and 1,502 units. Which "
        "week stands out, by how much does it differ from the mean of the others, and is it worth a note in "
        "the weekly report? Say it so that somebody who has not seen the numbers understands.",
    },
]

REPLY_BYTES = 757
STREAM_CHUNKS = 5000
TOKEN_CHUNKS = 100
FIRST_CHUNKS = 10


def _frame(kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-BqXm4vT7JkLz0aPdWn3RfYs8HcGe1",
        "object": kind,
        "created": 1760000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_34a54ae93c",
    }


def _usage(prompt_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 61,
        "total_tokens": prompt_tokens + 61,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _reply(prompt_tokens: int) -> tuple[bytes, str]:
    """A whole chat completion of exactly `REPLY_BYTES`, and its text."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {**_frame("chat.completion"), "choices": [choice], "usage": _usage(prompt_tokens)}
    room = REPLY_BYTES - len(orjson.dumps(body))
    message["content"] = ("The fourth week stands out, with some 245 units above the mean. " * 9)[:room]
    return orjson.dumps(body), message["content"]


def _event(delta: dict[str, Any], finish_reason: str | None = None, extra: bool = False) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {**_frame("chat.completion.chunk"), "choices": [choice], "usage": None}
    if extra:
        choice["native_finish_reason"] = None
        chunk["provider"] = "Somebody"
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def events(count: int, extra: bool = False) -> list[bytes]:
    """`count` server-sent events with a delta each: the role, the words, the finish reason.

    With `extra` each holds fields that OpenAI's format does not know, as many servers send them.
    """
    words = [_event({"content": word}, extra=extra) for word in _words(count)]
    opening = _event({"role": "assistant", "content": "", "refusal": None}, extra=extra)
    return [opening, *words, _event({}, "stop", extra)]


def usage_event() -> bytes:
    """The event without choices that closes a stream for which usage was asked."""
    chunk = {**_frame("chat.completion.chunk"), "choices": [], "usage": _usage(92)}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def text(count: int) -> str:
    """The text that a stream of `count` deltas spells."""
    return "".join(_words(count))


def _words(count: int) -> list[str]:
    return [f" word{number}" for number in range(count - 2)]


# No two in a row with the same count of tokens: what a client keeps for equal counts must not help it.
REPLIES = [_reply(prompt_tokens)[0] for prompt_tokens in range(100, 900)]
REPLY_TEXT = _reply(100)[1]
