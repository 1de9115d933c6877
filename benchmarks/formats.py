"""Other formats than OpenAI's chat: what the server sends, what plain aiohttp does with it, what nbllm does.

Replies are about as long as `canned`'s; the events of a stream are those of the providers' references.
"""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks import canned

STREAM_CHUNKS = 2000
TEXTS, DIMENSIONS = 64, 1536

_WORDS = [f" word{number}" for number in range(STREAM_CHUNKS)]
_TEXT = canned.REPLY_TEXT
STREAM_TEXT = "".join(_WORDS)


def _events(events: list[dict[str, Any]], named: bool) -> list[bytes]:
    return [
        (b"event: %s\n" % event["type"].encode() if named else b"")
        + b"data: "
        + orjson.dumps(event)
        + b"\n\n"
        for event in events
    ]


def _anthropic_message(text: str) -> dict[str, Any]:
    usage = {
        "input_tokens": 92,
        "output_tokens": 61,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
    }
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": "end_turn" if text else None,
        "stop_sequence": None,
        "usage": usage,
    }


def _gemini_answer(text: str, finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 92, "candidatesTokenCount": 61, "totalTokenCount": 153}
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
    }


ANTHROPIC = orjson.dumps(_anthropic_message(_TEXT))
ANTHROPIC_STREAM = _events(
    [
        {"type": "message_start", "message": _anthropic_message("")},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in _WORDS
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 61},
        },
        {"type": "message_stop"},
    ],
    named=True,
)
GEMINI = orjson.dumps(_gemini_answer(_TEXT, "STOP"))
GEMINI_STREAM = _events(
    [_gemini_answer(word, "STOP" if word == _WORDS[-1] else None) for word in _WORDS], named=False
)

_random = random.Random(1)
_VECTORS = [
    struct.unpack("<1536f", struct.pack("<1536f", *(_random.uniform(-1, 1) for _ in range(DIMENSIONS))))
    for _ in range(TEXTS)
]


def _embeddings(in_base64: bool) -> bytes:
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack("<1536f", *vector)).decode() if in_base64 else vector,
        }
        for index, vector in enumerate(_VECTORS)
    ]
    usage = {"prompt_tokens": 640, "total_tokens": 640}
    return orjson.dumps({"object": "list", "data": rows, "model": canned.EMBEDDING_MODEL, "usage": usage})


EMBEDDINGS = {True: _embeddings(True), False: _embeddings(False)}


@dataclass(frozen=True)
class Format:
    """How a careful user asks by hand: path and body of a request, and the text in an answer and an event."""

    path: str
    stream_path: str
    body: Callable[[bool], dict[str, Any]]
    text: Callable[[Any], str]
    delta: Callable[[Any], str]
    model: str


def _anthropic_body(stream: bool) -> dict[str, Any]:
    system, user = canned.MESSAGES
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "system": system["content"], "messages": [user]}
    return {**body, "stream": True} if stream else body


def _gemini_body(stream: bool) -> dict[str, Any]:
    system, user = canned.MESSAGES
    return {
        "systemInstruction": {"parts": [{"text": system["content"]}]},
        "contents": [{"role": "user", "parts": [{"text": user["content"]}]}],
    }


FORMATS = {
    "anthropic": Format(
        "v1/messages",
        "v1/messages",
        _anthropic_body,
        lambda answer: answer["content"][0]["text"],
        lambda event: event["delta"].get("text", "") if event["type"] == "content_block_delta" else "",
        "anthropic/claude-sonnet-4-5",
    ),
    "gemini": Format(
        "v1beta/models/gemini-2.5-flash:generateContent",
        "v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        _gemini_body,
        lambda answer: answer["candidates"][0]["content"]["parts"][0]["text"],
        lambda event: event["candidates"][0]["content"]["parts"][0]["text"],
        "gemini/gemini-2.5-flash",
    ),
}
