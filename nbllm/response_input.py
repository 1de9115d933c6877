"""The input items of the Responses API as chat messages.

An item must find back into the message it came from. Source of the rules: OpenAI API reference, "Create a
model response", and its guide "Migrate to the Responses API".
"""

from __future__ import annotations

from typing import Any

from .exceptions import UnsupportedParamsError, UsageProblem
from .response_output import Item, extra_fields


def add_item(made: list[Item], item: Item, where: str) -> None:
    """Put an item into the messages: those of one answer go into one message."""
    kind = item.get("type", "message")
    extra = extra_fields(item)
    last = made[-1] if made and made[-1]["role"] == "assistant" else None
    if kind == "message" and item.get("role") == "assistant":
        text = _assistant_text(item.get("content"), where)
        # The results of tools must follow the calls, so no further message may come between.
        if last is not None and (last["content"] is None or "tool_calls" in last):
            last.update(extra, content=(last["content"] or "") + text)
        else:
            made.append({"role": "assistant", "content": text, **extra})
    elif kind == "message":
        role = item.get("role")
        if role not in ("user", "system", "developer"):
            raise UsageProblem(f"{where}: a role is user, assistant, system or developer; got {role!r}")
        role = "user" if role == "user" else "system"  # which every server knows
        made.append({"role": role, "content": _content(item.get("content"), where)})
    elif kind == "reasoning":
        # DeepSeek refuses a tool call without the reasoning that led to it (guide "Thinking Mode").
        if text := _assistant_text(item.get("content") or "", where):
            extra["reasoning_content"] = text
        made.append({"role": "assistant", "content": None, **extra})
    elif kind == "function_call":
        if last is None:
            made.append(last := {"role": "assistant", "content": None})
        function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        call = {"id": item.get("call_id"), "type": "function", "function": function, **extra}
        last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), where)
        made.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    else:
        raise unsupported(f"{where}, of type {kind!r},")


def unsupported(what: str) -> UnsupportedParamsError:
    """The error for `what` chat completions can't do."""
    return UnsupportedParamsError(
        f"{what} has no equivalent in chat completions, which answer here in place of responses: leave it out"
    )


def _assistant_text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[Any] = [
        part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        for part in (content if isinstance(content, list) else [content])
    ]
    if not all(isinstance(text, str) for text in texts):
        raise UsageProblem(f"{where}: an assistant's content is a text or parts of type output_text")
    return "".join(texts)


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageProblem(f"{where}: a text or a list of parts is needed, not {content!r:.80}")
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_text":
        return {**part, "type": "text"}
    if kind in ("text", "image_url", "file", "input_audio"):  # in chat's form
        return dict(part)
    if str(kind) not in _INNER:
        raise UsageProblem(f"{where}: a part is an input_text, input_image or input_file; got {part!r:.80}")
    name, fields = _INNER[str(kind)]
    inner = {fields[given]: value for given, value in part.items() if given in fields and value}
    if not inner.keys() & {"url", "file_data", "file_id"}:
        raise UsageProblem(f"{where}: an {kind} needs its data here, or an address; got {part!r:.80}")
    return {**{given: part[given] for given in part if given not in fields}, "type": name, name: inner}


_INNER = {
    "input_image": ("image_url", {"image_url": "url", "detail": "detail"}),
    # Chat has no name for a file's address, but the data may be one.
    "input_file": (
        "file",
        {"file_data": "file_data", "file_url": "file_data", "file_id": "file_id", "filename": "filename"},
    ),
}
