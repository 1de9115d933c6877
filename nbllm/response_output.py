"""A chat completion as a response: its output items, and the message that they came from.

An answer and its stream (`response_events`) must give the same items. Source of the shapes: OpenAI API
reference, "Create a model response".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .response_types import ContentPart, IncompleteDetails, OutputItem, Response, response_usage
from .types import ChatCompletion, Choice, Message, Object, build

Item = dict[str, Any]

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_REASONING_FIELDS = frozenset(("thinking_blocks", "reasoning_details"))  # of Anthropic's, and of OpenRouter's

# Fields that have a place of their own in a message, or none. Others are a provider's: `from_chat` has put
# them on the item, and they go back to where they were.
_ITEM_FIELDS = frozenset(OutputItem.__struct_fields__)


def from_chat(
    completion: ChatCompletion, response_id: str, previous_response_id: str | None = None
) -> Response:
    """A chat completion as a response.

    Its items are the reasoning, the message and the function calls, each where there is one; their ids come
    from `response_id`. Fields that the provider added to the message or a call stand on the item, and from
    there they find back into the next request.
    """
    choice = completion.choices[0] if completion.choices else Choice()
    reason = _REASONS.get(str(choice.finish_reason))
    output = _items(choice.message or Message(), completion.text, ItemIds(response_id))
    if output and reason:
        output[-1].status = "incomplete"
    return Response(
        id=response_id,
        object="response",
        created_at=completion.created,
        status="incomplete" if reason else "completed",
        incomplete_details=IncompleteDetails(reason=reason) if reason else None,
        model=completion.model,
        output=output,
        usage=response_usage(completion.usage),
        previous_response_id=previous_response_id,
        service_tier=completion.service_tier,
    )


def finish_reason(response: Response) -> str | None:
    """Why a response ended, in the words of chat completions; None where it did not come to an end."""
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details else None
        return next((ours for ours, theirs in _REASONS.items() if theirs == reason), reason)
    if response.status != "completed":
        return None
    return "tool_calls" if any(item.type == "function_call" for item in response.output) else "stop"


class ItemIds:
    """The ids of a response's items, which a stream needs before it knows them all."""

    def __init__(self, response_id: str) -> None:
        self._end = response_id.removeprefix("resp_")
        self.reasoning = f"rs_{self._end}"
        self.message = f"msg_{self._end}"

    def call(self, number: int) -> str:
        return f"fc_{self._end}_{number}"


def _items(message: Message, text: str, ids: ItemIds) -> list[OutputItem]:
    items = []
    extra = extra_fields(message.__dict__)
    thoughts = {name: extra.pop(name) for name in _REASONING_FIELDS & extra.keys()}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning or thoughts:
        parts = [text_part("reasoning_text", reasoning)] if isinstance(reasoning, str) else []
        items.append(completed_item(opened_item(ids.reasoning, "reasoning"), thoughts, content=parts))
    parts = [text_part("output_text", text)] if text else []
    if parts and message.annotations:
        parts[0].annotations = [_annotation(annotation) for annotation in message.annotations]
    if message.refusal:
        parts.append(text_part("refusal", message.refusal))
    if parts or extra:
        items.append(completed_item(opened_item(ids.message, "message"), extra, content=parts))
    for number, call in enumerate(message.tool_calls or ()):
        item = opened_item(ids.call(number), "function_call")
        if call.function is not None:
            item.name, item.arguments = call.function.name, call.function.arguments or ""
        items.append(completed_item(item, extra_fields(call.__dict__), call_id=call.id))
    return items


def opened_item(item_id: str, kind: str) -> OutputItem:
    """An item as it is before its content comes."""
    item = OutputItem(type=kind, id=item_id, status="in_progress")
    if kind == "function_call":
        item.arguments = ""
        return item
    item.content = []
    if kind == "message":
        item.role = "assistant"
    else:
        item.summary = []
    return item


def completed_item(item: OutputItem, extra: Mapping[str, Any], **fields: Any) -> OutputItem:
    """An item with all that belongs into it; `extra` is the provider's."""
    for name, value in {**extra, **fields, "status": "completed"}.items():
        item[name] = value
    return item


def text_part(kind: str, text: str) -> ContentPart:
    """A part of an item: of kind output_text, refusal or reasoning_text."""
    if kind == "refusal":
        return ContentPart(type=kind, refusal=text)
    return ContentPart(type=kind, text=text, annotations=[] if kind == "output_text" else None)


def _annotation(annotation: Object) -> Object:
    """Chat has what an annotation says below its type, responses beside it."""
    inner = annotation.get(kind := annotation.get("type", ""))
    return build(Object, {"type": kind, **inner.model_dump()}) if isinstance(inner, Object) else annotation


def assistant_message(completion: ChatCompletion) -> Item:
    """An answer as the message to append to the history, with all that the provider put into it."""
    message = completion.choices[0].message if completion.choices else None
    made = (message or Message()).model_dump(exclude_none=True)
    content = made.get("content", None if made.get("tool_calls") else "")
    return {**made, "role": "assistant", "content": content}


def extra_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a provider has added to an item, message or call."""
    return {name: value for name, value in fields.items() if name not in _ITEM_FIELDS and value is not None}
