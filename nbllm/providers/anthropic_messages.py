"""OpenAI's chat messages as Anthropic's: the system's blocks, and turns of user and assistant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..exceptions import UsageProblem
from ..types import plain
from .translation import add_turn, json_object, split_data_url

_PDF = "application/pdf"


def conversation(messages: list[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """The system's blocks, and turns of user and assistant by turns."""
    system: list[Any] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += _blocks(message.get("content"))
            continue
        if role not in _TURNS:
            raise UsageProblem(f"a message's role is {', '.join(_TURNS)}, system or developer; got {role!r}")
        turn, translate = _TURNS[role]
        add_turn(turns, turn, "content", translate(message))
    for item in turns:
        if item["role"] == "user":  # results of tools must come first (guide "Handle tool calls")
            item["content"].sort(key=lambda block: block.get("type") != "tool_result")
    return system, turns


def _user_blocks(message: Mapping[str, Any]) -> list[Any]:
    return _blocks(message.get("content"))


def _assistant_blocks(message: Mapping[str, Any]) -> list[Any]:
    thinking = plain(message.get("thinking_blocks")) or []
    calls = message.get("tool_calls") or []
    if not isinstance(thinking, list) or not isinstance(calls, list):
        raise UsageProblem("thinking_blocks and tool_calls of a message must be lists")
    return [*thinking, *_blocks(message.get("content")), *map(_tool_use, calls)]


def _tool_results(message: Mapping[str, Any]) -> list[Any]:
    if not message.get("tool_call_id"):
        raise UsageProblem("a message of role tool needs the tool_call_id that it answers")
    result = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
    return [{**result, "content": blocks} if (blocks := _blocks(message.get("content"))) else result]


_TURNS: dict[Any, tuple[str, Callable[[Mapping[str, Any]], list[Any]]]] = {
    "user": ("user", _user_blocks),
    "assistant": ("assistant", _assistant_blocks),
    "tool": ("user", _tool_results),
}


def _tool_use(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageProblem(f"a tool call names a function and its arguments; got {call!r:.80}")
    given = function.get("arguments") or {}
    if (arguments := json_object(given)) is None:
        raise UsageProblem(f"the arguments of a tool call must be a JSON object; got {given!r:.80}")
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _blocks(content: Any) -> list[Any]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise UsageProblem(f"a message's content is a text or a list of parts; got {content!r:.80}")
    # The API refuses blank texts, which OpenAI's format has beside tool calls.
    return [_block(part) for part in content if part.get("type") != "text" or str(part.get("text")).strip()]


def _block(part: Mapping[str, Any]) -> Any:
    kind = part.get("type")
    value = part.get(kind) if isinstance(kind, str) else None
    block: dict[str, Any]
    if kind == "image_url":
        block = {
            "type": "image",
            "source": _source(value.get("url") if isinstance(value, Mapping) else value),
        }
    elif kind == "file":
        file = value if isinstance(value, Mapping) else {}
        block = {"type": "document", "source": _source(file.get("file_data"))}
        if block["source"].get("media_type", _PDF) != _PDF:
            raise UsageProblem(f"a file must be a PDF; got {block['source']['media_type']}")
        if file.get("filename"):
            block["title"] = file["filename"]
    elif kind == "refusal":
        block = {"type": "text", "text": value}
    elif kind in ("input_audio", "video_url"):
        raise UsageProblem(f"a part of type {kind} has no equivalent in Anthropic's format")
    else:
        return part  # a text, or a block in Anthropic's own form
    if part.get("cache_control"):
        block["cache_control"] = part["cache_control"]
    return block


def _source(url: Any) -> dict[str, Any]:
    if isinstance(url, str):
        if (found := split_data_url(url)) is not None:
            return {"type": "base64", "media_type": found[0].partition(";")[0], "data": found[1]}
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
    raise UsageProblem(f"an image or file is an http URL, or data:TYPE;base64,DATA; got {url!r:.60}")
