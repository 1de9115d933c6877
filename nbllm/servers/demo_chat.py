"""A chat request to the demo server, and the answer to it, in OpenAI's shapes.

Owns the table of demo models, the checks of a request, and the JSON of answers, chunks and errors. Pure: no
I/O, no waiting, no counting. Called by `demo_endpoints`. Source of the shapes: OpenAI's API reference, "Chat
completions" and "Error codes".
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from . import demo_answers

T = TypeVar("T", bool, str, dict[str, Any])

Behaviour = Literal["answer", "rate-limited", "flaky", "error", "hang", "break", "stall"]


@dataclass(frozen=True)
class DemoModel:
    """How a demo model behaves.

    Attributes:
        about: One line for `GET /models`.
        behaviour: What it does instead of answering, or "answer".
        first_s: Seconds until the answer begins.
        token_s: Seconds from token to token, on average.
    """

    about: str
    behaviour: Behaviour = "answer"
    first_s: float = 0.35
    token_s: float = 1 / 70


MODELS = {
    "small": DemoModel("answers at a human pace"),
    "fast": DemoModel("answers without any delay", first_s=0, token_s=0),
    "slow": DemoModel("thinks for 3 s, then answers slowly", first_s=3, token_s=1 / 12),
    "rate-limited": DemoModel("always 429 with Retry-After", "rate-limited"),
    "flaky": DemoModel("429 at every odd request of a prompt, else answers", "flaky"),
    "error": DemoModel("always 500", "error"),
    "hang": DemoModel("never answers", "hang"),
    "break": DemoModel("drops the connection in the middle of the answer", "break"),
    "stall": DemoModel("falls silent in the middle of the answer", "stall"),
}

RETRY_AFTER_S = 1
MAX_CHOICES = 128
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_REASONING_TOKENS = {"minimal": 8, "low": 32, "medium": 64, "high": 128, "xhigh": 256}


class Problem(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: HTTP status.
        body: OpenAI's error object.
        retry_after: Seconds for the header of that name, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.retry_after = retry_after


@dataclass(frozen=True)
class ChatRequest:
    """A chat request that passed the checks; names as in OpenAI's API."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer, and the forms in which it travels.

    Attributes:
        choices: For each choice its tokens.
        finish_reasons: For each choice "stop" or "length".
        usage: OpenAI's usage object.
    """

    id: str
    created: int
    model: str
    choices: tuple[list[str], ...]
    finish_reasons: tuple[str, ...]
    usage: dict[str, Any]

    def completion(self) -> dict[str, Any]:
        """The answer as one `chat.completion` object."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(pieces), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (pieces, reason) in enumerate(zip(self.choices, self.finish_reasons, strict=True))
        ]
        return self._envelope("chat.completion") | {"choices": choices, "usage": self.usage}

    def chunks(self, *, include_usage: bool = False) -> Iterator[dict[str, Any]]:
        """The answer as `chat.completion.chunk` objects: roles, tokens, finish reasons, usage if asked."""
        extra = {"usage": None} if include_usage else {}

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            return self._envelope("chat.completion.chunk") | {"choices": [choice]} | extra

        for index in range(len(self.choices)):
            yield chunk(index, {"role": "assistant", "content": ""})
        for step in itertools.zip_longest(*self.choices):  # several choices take turns
            for index, piece in enumerate(step):
                if piece is not None:
                    yield chunk(index, {"content": piece})
        for index, reason in enumerate(self.finish_reasons):
            yield chunk(index, {}, reason)
        if include_usage:
            yield self._envelope("chat.completion.chunk") | {"choices": [], "usage": self.usage}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_nbllm_demo",
        }


def parse_request(body: bytes) -> ChatRequest:
    """Check a request's body as OpenAI does; raises `Problem` with status 400 or 404."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"The body of the request is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise _wrong_type("body", "an object", data)
    model = _parse_model(data.get("model"))
    stream_options = _optional(data, "stream_options", dict) or {}
    limit = _count(data, "max_completion_tokens")
    return ChatRequest(
        model=model,
        messages=_parse_messages(data.get("messages")),
        stream=_optional(data, "stream", bool) or False,
        include_usage=bool(stream_options.get("include_usage")),
        max_tokens=limit if limit is not None else _count(data, "max_tokens"),
        n=_count(data, "n", most=MAX_CHOICES) or 1,
        stop=_parse_stop(data.get("stop")),
        response_format=_optional(data, "response_format", dict),
        reasoning_effort=_optional(data, "reasoning_effort", str),
    )


def make_answer(chat: ChatRequest) -> Answer:
    """The answer to a request: the same choices and usage for the same request, streamed or not."""
    prompt = demo_answers.read_prompt(chat.messages)
    reasoning = _REASONING_TOKENS.get(chat.reasoning_effort or "", 0)
    choices, reasons = [], []
    for variant in range(chat.n):
        text = _cut_at_stop(_text(chat, prompt, variant), chat.stop)
        pieces = demo_answers.tokens(text)
        # As with OpenAI, reasoning counts towards the limit, and may leave nothing for the answer.
        room = len(pieces) if chat.max_tokens is None else max(0, chat.max_tokens - reasoning)
        choices.append(pieces[:room])
        reasons.append("length" if room < len(pieces) else "stop")
    return Answer(
        id=f"chatcmpl-demo-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=chat.model,
        choices=tuple(choices),
        finish_reasons=tuple(reasons),
        usage=_usage(chat, sum(map(len, choices)), reasoning * chat.n),
    )


def models_list() -> dict[str, Any]:
    """The body of `GET /models`."""
    return {"object": "list", "data": [model_object(name) for name in MODELS]}


def model_object(name: str) -> dict[str, Any]:
    """One entry of `GET /models`; raises `Problem` for an unknown name."""
    name = _parse_model(name)
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "nbllm"}
    return entry | {"description": MODELS[name].about}


def _text(chat: ChatRequest, prompt: demo_answers.Prompt, variant: int) -> str:
    wanted = chat.response_format or {}
    if wanted.get("type") == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return demo_answers.write_json(prompt, schema if isinstance(schema, dict) else None, variant)
    if wanted.get("type") == "json_object" or "answer with json" in prompt.system.lower():
        return demo_answers.write_json(prompt, variant=variant)
    return demo_answers.write_answer(prompt, variant)


def _usage(chat: ChatRequest, answered: int, reasoning: int) -> dict[str, Any]:
    sizes = [demo_answers.message_tokens(message) for message in chat.messages]
    prompt = 3 + sum(sizes)
    # The turns before the last answer have been sent before: a real server would have them cached, in
    # blocks. Theirs are 128 tokens; 16 let a demo's short talks show some.
    answers = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    cached = sum(sizes[: answers[-1]]) // 16 * 16 if answers else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered + reasoning,
        "total_tokens": prompt + answered + reasoning,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def _cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    found = [position for word in stop if (position := text.find(word)) >= 0]
    return text[: min(found)] if found else text


def _parse_model(model: Any) -> str:
    if model is None or model == "":
        raise Problem(400, "The request names no model: set 'model'.", param="model")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    name = model.removeprefix("demo/")
    if name not in MODELS:
        message = f"The demo server has no model '{model[:100]}'. Its models: {', '.join(MODELS)}."
        raise Problem(404, message, param="model", code="model_not_found")
    return name


def _parse_messages(messages: Any) -> list[dict[str, Any]]:
    if messages is None:
        message = "Missing required parameter: 'messages'."
        raise Problem(400, message, param="messages", code="missing_required_parameter")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise Problem(400, "'messages' is empty: send one at least.", param="messages", code="empty_array")
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _wrong_type(name, "an object", message)
        if message.get("role") not in ROLES:
            text = f"'{name}.role' must be one of {', '.join(ROLES)}."
            raise Problem(400, text, param=f"{name}.role", code="invalid_value")
        if not isinstance(message.get("content"), str | list | None):
            raise _wrong_type(f"{name}.content", "a string or an array of parts", message["content"])
    return messages


def _parse_stop(stop: Any) -> tuple[str, ...]:
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _wrong_type("stop", "a string or an array of strings", stop)
    return tuple(word for word in words if word)


def _optional(data: dict[str, Any], name: str, kind: type[T]) -> T | None:
    value = data.get(name)
    if value is None or isinstance(value, kind):
        return value
    expected = {bool: "a boolean", str: "a string", dict: "an object"}
    raise _wrong_type(name, expected[kind], value)


def _count(data: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer", value)
    if value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"between 1 and {most}"
        raise Problem(400, f"'{name}' must be {limits}, not {value}.", param=name, code="invalid_value")
    return value


def _wrong_type(name: str, expected: str, value: Any) -> Problem:
    got = {str: "a string", list: "an array", dict: "an object", bool: "a boolean", type(None): "null"}
    message = f"Invalid type for '{name}': expected {expected}, got {got.get(type(value), 'a number')}."
    return Problem(400, message, param=name, code="invalid_type")
