"""Records of requests that were never sent."""

from __future__ import annotations

from typing import Any

from nbllm.tracing import Call, Record


def record(**values: Any) -> Record:
    call = Call("review")
    call.provider, call.model = "openai", "gpt-4o"
    made = Record(call, True)
    for name, value in values.items():
        setattr(made, name, value)
    return made


WHOLE = {
    "input_tokens": 412,
    "output_tokens": 96,
    "cost_usd": 0.00114,
    "duration_ms": 1830.0,
    "ttft_ms": 420.0,
    "connection_reused": True,
    "finish_reason": "stop",
}
