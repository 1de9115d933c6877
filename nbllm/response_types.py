"""Responses, their output items and the events of their stream, in the shapes of OpenAI's Responses API.

Owns these objects, on the `Object` of `types`, and what a caller may give as `input`. Knows nothing of HTTP:
`providers.openai_responses` makes them from the wire, `response_bridge` from chat completions. Source of the
shapes: OpenAI API reference, "Responses" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exceptions import UsageProblem
from .results import Result
from .types import Object, TokensDetails, Usage, mimebundle


class ContentPart(Object):
    """A part of a message (output_text, refusal), or of reasoning (reasoning_text, summary_text)."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    annotations: list[Object] | None = None
    logprobs: list[Object] | None = None


class OutputItem(Object):
    """One item of an answer: a message, reasoning, a function call, or the call of a built-in tool.

    Which fields are filled depends on `type`. In the next request's `input` it stands as it is.
    """

    type: str | None = None
    id: str | None = None
    status: str | None = None
    role: str | None = None  # of a message
    phase: str | None = None
    content: list[ContentPart] | None = None  # of a message, or reasoning in full
    summary: list[ContentPart] | None = None  # of reasoning
    encrypted_content: str | None = None
    call_id: str | None = None  # of a function call
    name: str | None = None
    arguments: str | None = None


class ResponseUsage(Object):
    """Token counts of one response. `input_tokens` includes cached ones, `output_tokens` reasoning."""

    input_tokens: int | None = None
    input_tokens_details: TokensDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: TokensDetails | None = None
    total_tokens: int | None = None
    cost: float | None = None


class ResponseError(Object):
    """Why a response failed."""

    code: str | None = None
    message: str | None = None


class IncompleteDetails(Object):
    """Why a response is incomplete: max_output_tokens, content_filter, …."""

    reason: str | None = None


class Response(Result):
    """An answer. As the last line of a cell it shows as Markdown.

    `status` is completed, incomplete, failed, in_progress, queued or cancelled. `text` is OpenAI's name for
    how the text was asked for; the text itself is `output_text`.
    """

    id: str | None = None
    object: str | None = None
    created_at: int | float | None = None
    completed_at: int | float | None = None
    status: str | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str | None = None
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    previous_response_id: str | None = None
    instructions: Any = None
    metadata: Object | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    reasoning: Object | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: float | None = None
    text: Object | None = None
    tool_choice: Any = None
    tools: list[Object] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str | None = None
    user: str | None = None

    @property
    def output_text(self) -> str:
        """The text of all messages; empty where there is none (a function call, a refusal)."""
        return "".join(
            part.text
            for item in self.output
            if item.type == "message"
            for part in item.content or ()
            if part.type == "output_text" and isinstance(part.text, str)
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.output_text, self)


class ResponseEvent(Object):
    """One event of a streamed answer; which fields are filled depends on `type`."""

    type: str | None = None
    sequence_number: int | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: str | None = None
    logprobs: list[Object] | None = None
    obfuscation: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    item: OutputItem | None = None
    part: ContentPart | None = None
    response: Response | None = None
    code: str | None = None  # of an error
    message: str | None = None
    param: str | None = None


def chat_usage(usage: ResponseUsage | None) -> Usage | None:
    """The token counts under the names of chat completions, which the trace reads; None without any."""
    if usage is None:
        return None
    return Usage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=usage.input_tokens_details,
        completion_tokens_details=usage.output_tokens_details,
        cost=usage.cost,
    )


def response_usage(usage: Usage | None) -> ResponseUsage | None:
    """The reverse of `chat_usage`."""
    if usage is None:
        return None
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=usage.prompt_tokens_details,
        output_tokens=usage.completion_tokens,
        output_tokens_details=usage.completion_tokens_details,
        total_tokens=usage.total_tokens,
        cost=usage.cost,
    )


def input_items(value: Any) -> list[dict[str, Any]]:
    """What a caller gives as `input` as a list of plain items.

    Args:
        value: A text, which is the user's message, or a list of items: dicts, the items of an earlier
            `response.output`, or those of an SDK.

    Raises:
        UsageProblem: Anything else.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, (list, tuple)):
        raise UsageProblem(
            'input must be a text or a list such as [{"role": "user", "content": "Hello"}]; '
            f"got {type(value).__name__}"
        )
    items = [_plain(item) for item in value]
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise UsageProblem(f"input[{number}] must be a dict with a role or a type; got {item!r:.80}")
    return items


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # ours, or that of an SDK; OpenAI refuses some fields that are null
        return value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    return value
