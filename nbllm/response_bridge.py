"""The Responses API on top of chat completions, for providers that have only these.

Pure: the conversation so far comes as chat messages and goes back as such; its caller keeps it. Here a
request becomes one for a chat completion; its items are read in `response_input`. The answer is made in
`response_output`, its stream in `response_events`. Source of the rules: OpenAI API reference, "Create a model
response" and "Streaming events", and its guide "Migrate to the Responses API".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .exceptions import UsageProblem
from .response_input import add_item, unsupported
from .response_output import Item
from .response_types import input_items
from .types import plain

_RESPONSES_ONLY = """
    access_programs background context_management conversation image include max_tool_calls prompt
    stream_options top_logprobs truncation
"""
_UNSUPPORTED = frozenset(_RESPONSES_ONLY.split())
_NEUTRAL = {"background": False, "include": [], "truncation": "disabled"}


def to_chat(history: list[Item], input: Any, params: Mapping[str, Any]) -> tuple[list[Item], dict[str, Any]]:
    """A request for a response as one for a chat completion.

    Args:
        history: The chat messages so far, which stay as they are: those of the previous response, with its
            answer. As with OpenAI, they hold no instructions.
        input: A text, or a list of items in the form of the Responses API; chat's own content parts pass.
        params: Parameters of the Responses API; None counts as not given. Other names pass as they are.

    Returns:
        The messages, and chat's parameters. With `instructions`, the first message holds them; the rest is
        what the next `history` begins with. `store` and `previous_response_id` are the caller's to heed.

    Raises:
        UsageProblem: A value that can't work.
        UnsupportedParamsError: A parameter, tool or item that chat completions have no equivalent for.
    """
    chat: dict[str, Any] = {}
    for name, value in params.items():
        if value is None or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        if name in _UNSUPPORTED:
            raise unsupported(name)
        if name in _PARAMETERS:
            chat |= _PARAMETERS[name](plain(value))
        else:
            chat[name] = value
    made: list[Item] = []
    for number, item in enumerate(input_items(input)):
        add_item(made, item, f"input[{number}]")
    # Reasoning alone makes no message, and OpenAI's own says nothing to others.
    made = [message for message in made if message["content"] is not None or "tool_calls" in message]
    messages = [*history, *made]
    if not messages:
        raise UsageProblem("input is empty: give at least one item")
    if instructions := params.get("instructions"):
        messages.insert(0, {"role": "system", "content": instructions})
    return messages, chat


def _text(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageProblem(f"text must be like {{'format': {{'type': 'json_schema', …}}}}; got {value!r:.80}")
    chat: dict[str, Any] = {}
    if value.get("verbosity") is not None:
        chat["verbosity"] = value["verbosity"]
    wanted = value.get("format") or {"type": "text"}
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema" and "schema" in wanted:
        schema = {name: member for name, member in wanted.items() if name != "type" and member is not None}
        chat["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind != "text":
        raise UsageProblem(
            "text['format'] must be like {'type': 'json_schema', 'name': …, 'schema': …}; "
            f"got {wanted!r:.80}"
        )
    return chat


def _reasoning(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageProblem(f"reasoning must be like {{'effort': 'low'}}; got {value!r:.80}")
    effort = value.get("effort")
    return {} if effort is None else {"reasoning_effort": effort}  # a summary comes without asking


def _tools(value: Any) -> dict[str, Any]:
    if not isinstance(value, (list, tuple)):
        raise UsageProblem(f"tools must be a list of dicts; got {value!r:.80}")
    return {"tools": [_tool(tool) for tool in value]}


def _tool(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind is None:
        raise UsageProblem(f"a tool is a dict with a type; got {tool!r:.80}")
    if kind != "function":
        raise unsupported(f"the tool {kind!r}")
    if "function" in tool:  # in chat's form
        return tool
    names = ("name", "description", "parameters", "strict")
    return {"type": kind, "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _tool_choice(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and "function" not in value:
        if value.get("type") != "function":
            raise unsupported(f"a tool_choice of type {value.get('type')!r}")
        value = {"type": "function", "function": {"name": value.get("name")}}
    return {"tool_choice": value}


_PARAMETERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "instructions": lambda value: {},
    "max_output_tokens": lambda value: {"max_tokens": value},
    "previous_response_id": lambda value: {},
    "reasoning": _reasoning,
    "store": lambda value: {},
    "text": _text,
    "tool_choice": _tool_choice,
    "tools": _tools,
}
