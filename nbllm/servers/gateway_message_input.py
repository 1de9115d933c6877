"""Requests to Anthropic's Messages API as chat completions, for models that speak another format.

Pure; called by `gateway_endpoints`. The answers are made in `gateway_message_output`. Source: Anthropic API
reference, "Messages"; guides "Tool use", "Vision", "PDF support", "Extended thinking", "Structured outputs",
"Effort".
`providers.anthropic_requests` translates the other way.

What the two formats have no common word for: hints that change no meaning (`cache_control`, `thinking`,
`context_management`, `is_error` of a tool's result) are left out, because Claude Code and others send them to
every model; Anthropic's own tools, their blocks, and files kept at Anthropic are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..exceptions import UnsupportedParamsError, UsageProblem

Fields = dict[str, Any]

_HINTS = frozenset(
    (
        *("betas", "cache_control", "context_management", "diagnostics", "inference_geo", "service_tier"),
        *("speed", "thinking", "user_profile_id", "workspace_id"),
    )
)
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SHOWN = ("text", "image", "document")


def to_chat(fields: Mapping[str, Any], *, signed: bool) -> tuple[list[Fields], Fields]:
    """A request for a message as one for a chat completion.

    Args:
        fields: The request's body without `model`, `stream` and `metadata`; its messages are checked already.
        signed: Whether the server takes `thinking_blocks`, as a LiteLLM proxy does. Elsewhere thinking with a
            signature, which Anthropic made, is left out; without one it is `reasoning_content`.

    Returns:
        OpenAI's messages and parameters: `output_config` is `reasoning_effort` and `response_format` there.
        Names that aren't Anthropic's pass as they are, since the server asked may know them.

    Raises:
        UsageProblem: A value that can't work; the text begins with its place, such as `messages[2].content`.
        UnsupportedParamsError: What has no equivalent in chat completions.
    """
    params: Fields = {}
    for name, value in fields.items():
        if name in _PARAMETERS and value is not None:
            params |= _PARAMETERS[name](value)
        elif name not in _HINTS and name not in _PARAMETERS and name not in ("messages", "system"):
            params[name] = value
    messages = _system(system, "system", signed) if (system := fields.get("system")) else []
    for number, message in enumerate(fields["messages"]):
        messages += _TURNS[message["role"]](message.get("content"), f"messages[{number}].content", signed)
    return messages, params


def check_messages(messages: Any) -> None:
    """Check the messages of a request as far as every model needs them.

    Raises:
        UsageProblem: They are none.
    """
    if not isinstance(messages, list) or not messages:
        raise UsageProblem('messages: a list such as [{"role": "user", "content": "Hello"}] is needed')
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _TURNS:
            raise UsageProblem(f"messages[{number}].role: user or assistant is needed; got {role!r:.80}")
        if not isinstance(content := message.get("content"), str):
            _blocks(content, f"messages[{number}].content")


def _blocks(content: Any, where: str) -> list[tuple[str, Fields]]:
    """The blocks of a content, each with the name of its place."""
    if not isinstance(content, list):
        raise UsageProblem(f"{where}: a text or a list of blocks is needed; got {content!r:.80}")
    for number, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise UsageProblem(f"{where}[{number}]: a block is an object with a type; got {block!r:.80}")
    return [(f"{where}[{number}]", block) for number, block in enumerate(content)]


def _text(fields: Fields, name: str, where: str) -> str:
    if not isinstance(text := fields.get(name), str):
        raise UsageProblem(f"{where}.{name}: a text is needed; got {text!r:.80}")
    return text


# -- messages --------------------------------------------------------------------------------------------


def _system(content: Any, where: str, signed: bool) -> list[Fields]:
    return [{"role": "system", "content": _content(_parts(content, where, ("text",)))}]


def _user(content: Any, where: str, signed: bool) -> list[Fields]:
    """A user's turn: what tools gave comes first, as a message each; then what the user says and shows."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Fields] = []
    said: list[Fields] = []
    for place, block in _blocks(content, where):
        if block["type"] != "tool_result":
            said += _part(block, place, _SHOWN)
            continue
        parts = _parts(block.get("content") or "", f"{place}.content", _SHOWN)
        text = _content([part for part in parts if part["type"] == "text"])
        results.append({"role": "tool", "tool_call_id": _text(block, "tool_use_id", place), "content": text})
        said += [part for part in parts if part["type"] != "text"]  # chat's results of tools are texts
    return [*results, {"role": "user", "content": _content(said)}] if said else results


def _assistant(content: Any, where: str, signed: bool) -> list[Fields]:
    if isinstance(content, str):
        return [{"role": "assistant", "content": content}]
    message: Fields = {"role": "assistant", "content": ""}
    for place, block in _blocks(content, where):
        kind = block["type"]
        if kind == "text":
            message["content"] += _text(block, "text", place)
        elif kind == "tool_use":
            message.setdefault("tool_calls", []).append(_call(block, place))
        elif kind == "redacted_thinking" or (kind == "thinking" and block.get("signature")):
            if signed:
                message.setdefault("thinking_blocks", []).append(block)
        elif kind == "thinking":
            reasoning = message.get("reasoning_content", "") + _text(block, "thinking", place)
            message["reasoning_content"] = reasoning
        else:
            raise _unsupported(f"{place}, of type {kind!r},")
    message["content"] = message["content"] or None
    return [message] if message["content"] or "tool_calls" in message else []


_TURNS: dict[str, Callable[[Any, str, bool], list[Fields]]] = {
    "user": _user,
    "assistant": _assistant,
    "system": _system,
}


def _call(block: Fields, where: str) -> Fields:
    if not isinstance(arguments := block.get("input"), dict):
        raise UsageProblem(f"{where}.input: an object is needed; got {arguments!r:.80}")
    function = {"name": _text(block, "name", where), "arguments": msgspec.json.encode(arguments).decode()}
    call = {"id": _text(block, "id", where), "type": "function", "function": function}
    if (signature := block.get("extra_content")) is not None:  # `gateway_message_output` has put it there
        call["extra_content"] = signature
    return call


def _parts(content: Any, where: str, kinds: tuple[str, ...]) -> list[Fields]:
    """A content as OpenAI's parts."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for place, block in _blocks(content, where) for part in _part(block, place, kinds)]


def _part(block: Fields, where: str, kinds: tuple[str, ...]) -> list[Fields]:
    if (kind := block["type"]) not in kinds:
        raise _unsupported(f"{where}, of type {kind!r},")
    if kind == "text":
        return [{"type": "text", "text": _text(block, "text", where)}]
    where = f"{where}.source"
    if not isinstance(source := block.get("source"), dict):
        raise UsageProblem(f"{where}: an object with a type is needed; got {source!r:.80}")
    match source.get("type"):
        case "base64":
            url = f"data:{_text(source, 'media_type', where)};base64,{_text(source, 'data', where)}"
        case "url":
            url = _text(source, "url", where)
        case "text":
            return [{"type": "text", "text": _text(source, "data", where)}]
        case "content":
            return _parts(source.get("content"), f"{where}.content", ("text", "image"))
        case other:
            raise _unsupported(f"{where}, of type {other!r},")
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": url}}]
    # Chat has no name for a file's address, but the data may be one.
    return [{"type": "file", "file": {"filename": block.get("title") or "document.pdf", "file_data": url}}]


def _content(parts: list[Fields]) -> Any:
    """Parts as a content: a text where they are texts, because some servers (DeepSeek) take no lists."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


# -- parameters ------------------------------------------------------------------------------------------


def _tools(value: Any) -> Fields:
    if not isinstance(value, list):
        raise UsageProblem(f"tools: a list of objects is needed; got {value!r:.80}")
    return {"tools": [_tool(tool, f"tools[{number}]") for number, tool in enumerate(value)]} if value else {}


def _tool(tool: Any, where: str) -> Fields:
    if not isinstance(tool, dict):
        raise UsageProblem(f"{where}: an object with a name and an input_schema is needed; got {tool!r:.80}")
    if tool.get("type") not in (None, "custom"):
        raise _unsupported(f"{where}, of type {tool['type']!r},")
    if not isinstance(schema := tool.get("input_schema"), dict):
        raise UsageProblem(f"{where}.input_schema: an object is needed; got {schema!r:.80}")
    function = {"name": _text(tool, "name", where), "parameters": schema}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(value: Any) -> Fields:
    kind = value.get("type") if isinstance(value, dict) else None
    params: Fields
    if kind == "tool":
        name = _text(value, "name", "tool_choice")
        params = {"tool_choice": {"type": "function", "function": {"name": name}}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        params = {"tool_choice": _TOOL_CHOICES[kind]}
    else:
        raise UsageProblem(f"tool_choice.type: auto, any, none or tool is needed; got {value!r:.80}")
    if value.get("disable_parallel_tool_use"):
        params["parallel_tool_calls"] = False
    return params


def _output_config(value: Any) -> Fields:
    if not isinstance(value, dict):
        raise UsageProblem(f"output_config: an object is needed; got {value!r:.80}")
    params: Fields = {}
    if value.get("effort") is not None:
        params["reasoning_effort"] = value["effort"]
    if (wanted := value.get("format")) is not None:
        if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
            raise UsageProblem(f"output_config.format.schema: an object is needed; got {wanted!r:.80}")
        described = {"name": "answer", "schema": wanted["schema"], "strict": True}
        params["response_format"] = {"type": "json_schema", "json_schema": described}
    return params


_PARAMETERS: dict[str, Callable[[Any], Fields]] = {
    "output_config": _output_config,
    "stop_sequences": lambda value: {"stop": value} if value else {},
    "tool_choice": _tool_choice,
    "tools": _tools,
}


def _unsupported(what: str) -> UnsupportedParamsError:
    return UnsupportedParamsError(
        f"{what} has no equivalent in chat completions, by which this model is asked: leave it out"
    )
