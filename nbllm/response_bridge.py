"""The Responses API on top of chat completions, for providers that have only these.

Pure: the conversation so far comes as chat messages and goes back as such; its caller keeps it. Long, since
an answer and its stream must give the same items, and an item must find back into the message it came from.
Source of the rules: OpenAI API reference, "Create a model response" and "Streaming events", and its guide
"Migrate to the Responses API".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from .exceptions import UnsupportedParamsError, UsageProblem
from .response_types import (
    ContentPart,
    IncompleteDetails,
    OutputItem,
    Response,
    ResponseEvent,
    input_items,
    response_usage,
)
from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    Delta,
    Message,
    Object,
    ToolCallPiece,
    build,
    plain,
)

Item = dict[str, Any]

# -- requests --------------------------------------------------------------------------------------

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
            raise _unsupported(name)
        if name in _PARAMETERS:
            chat |= _PARAMETERS[name](plain(value))
        else:
            chat[name] = value
    made: list[Item] = []
    for number, item in enumerate(input_items(input)):
        _add_item(made, item, f"input[{number}]")
    # Reasoning alone makes no message, and OpenAI's own says nothing to others.
    made = [message for message in made if message["content"] is not None or "tool_calls" in message]
    messages = [*history, *made]
    if not messages:
        raise UsageProblem("input is empty: give at least one item")
    if instructions := params.get("instructions"):
        messages.insert(0, {"role": "system", "content": instructions})
    return messages, chat


def _unsupported(what: str) -> UnsupportedParamsError:
    return UnsupportedParamsError(
        f"{what} has no equivalent in chat completions, which answer here in place of responses: leave it out"
    )


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
        raise _unsupported(f"the tool {kind!r}")
    if "function" in tool:  # in chat's form
        return tool
    names = ("name", "description", "parameters", "strict")
    return {"type": kind, "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _tool_choice(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and "function" not in value:
        if value.get("type") != "function":
            raise _unsupported(f"a tool_choice of type {value.get('type')!r}")
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

# -- input -----------------------------------------------------------------------------------------

# Fields that have a place of their own in a message, or none. Others are a provider's: `from_chat` has put
# them on the item, and they go back to where they were.
_ITEM_FIELDS = frozenset(OutputItem.__struct_fields__)


def _extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _ITEM_FIELDS and value is not None}


def _add_item(made: list[Item], item: Item, where: str) -> None:
    """Put an item into the messages: those of one answer go into one message."""
    kind = item.get("type", "message")
    extra = _extra(item)
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
        raise _unsupported(f"{where}, of type {kind!r},")


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


# -- answers ---------------------------------------------------------------------------------------

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_REASONING_FIELDS = frozenset(("thinking_blocks", "reasoning_details"))  # of Anthropic's, and of OpenRouter's


def from_chat(
    completion: ChatCompletion, response_id: str, previous_response_id: str | None = None
) -> Response:
    """A chat completion as a response.

    Its items are the reasoning, the message and the function calls, each where there is one; their ids come
    from `response_id`. Fields that the provider added to the message or a call stand on the item, and from
    there they find back into the next request.
    """
    choice = completion.choices[0] if completion.choices else Choice()
    reason = _REASONS.get(choice.finish_reason or "")
    output = _items(choice.message or Message(), completion.text, _Ids(response_id))
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


class _Ids:
    """The ids of a response's items, which a stream needs before it knows them all."""

    def __init__(self, response_id: str) -> None:
        self._end = response_id.removeprefix("resp_")
        self.reasoning = f"rs_{self._end}"
        self.message = f"msg_{self._end}"

    def call(self, number: int) -> str:
        return f"fc_{self._end}_{number}"


def _items(message: Message, text: str, ids: _Ids) -> list[OutputItem]:
    items = []
    extra = _extra(message.__dict__)
    thoughts = {name: extra.pop(name) for name in _REASONING_FIELDS & extra.keys()}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning or thoughts:
        parts = [_text_part("reasoning_text", reasoning)] if isinstance(reasoning, str) else []
        items.append(_with(_opened(ids.reasoning, "reasoning"), thoughts, content=parts))
    parts = [_text_part("output_text", text)] if text else []
    if parts and message.annotations:
        parts[0].annotations = [_annotation(annotation) for annotation in message.annotations]
    if message.refusal:
        parts.append(_text_part("refusal", message.refusal))
    if parts or extra:
        items.append(_with(_opened(ids.message, "message"), extra, content=parts))
    for number, call in enumerate(message.tool_calls or ()):
        item = _opened(ids.call(number), "function_call")
        if call.function is not None:
            item.name, item.arguments = call.function.name, call.function.arguments or ""
        items.append(_with(item, _extra(call.__dict__), call_id=call.id))
    return items


def _opened(item_id: str, kind: str) -> OutputItem:
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


def _with(item: OutputItem, extra: Mapping[str, Any], **fields: Any) -> OutputItem:
    for name, value in {**extra, **fields, "status": "completed"}.items():
        item[name] = value
    return item


def _text_part(kind: str, text: str) -> ContentPart:
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


# -- streams ---------------------------------------------------------------------------------------

_TEXT_EVENTS = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
}


class _Streamed:
    """An item of which something has been told."""

    def __init__(self, item: OutputItem, index: int) -> None:
        self.item = item
        self.index = index
        self.texts: dict[str, list[str]] = {}  # by the kind of part, in the order of the parts
        self.arguments: list[str] = []

    def whole(self) -> OutputItem:
        item = copy.copy(self.item)
        if item.type == "function_call":
            return _with(item, {}, arguments="".join(self.arguments))
        parts = [_text_part(kind, "".join(texts)) for kind, texts in self.texts.items()]
        return _with(item, {}, content=parts)


class ChunkEvents:
    """The chunks of a chat completion as events of a response, in OpenAI's order.

    An item is done when the next one begins. What comes for it later still (a server that thinks, speaks and
    thinks again) is told as further deltas; the last event has all of it.
    """

    def __init__(self, response_id: str, previous_response_id: str | None = None) -> None:
        self._response_id = response_id
        self._previous_response_id = previous_response_id
        self._ids = _Ids(response_id)
        self._sequence_number = 0
        self._events: list[ResponseEvent] = []
        self._streamed: dict[str, _Streamed] = {}
        self._calls: dict[int, _Streamed] = {}
        self._current: _Streamed | None = None

    def feed(self, chunk: ChatCompletionChunk) -> list[ResponseEvent]:
        """The events that a chunk brings; none where it says nothing of them."""
        self._begin(chunk)
        for choice in chunk.choices:
            if not choice.index and choice.delta is not None:
                self._add(choice.delta)
        return self._taken()

    def finish(self, completion: ChatCompletion) -> list[ResponseEvent]:
        """The last events, given the whole answer; the very last holds the response of `from_chat`."""
        self._begin(completion)
        response = from_chat(completion, self._response_id, self._previous_response_id)
        items = {item.id: item for item in response.output}
        for item in response.output:
            if item.id not in self._streamed:
                self._add_whole(item)
        if self._current is not None:
            self._close(self._current, items.get(self._current.item.id))
        order = list(self._streamed)
        response.output.sort(key=lambda item: order.index(item.id or ""))
        self._emit(f"response.{response.status}", response=response)
        return self._taken()

    def _begin(self, first: ChatCompletionChunk | ChatCompletion) -> None:
        if self._sequence_number:
            return
        for kind in ("response.created", "response.in_progress"):
            response = Response(
                id=self._response_id,
                object="response",
                created_at=first.created,
                status="in_progress",
                model=first.model,
                previous_response_id=self._previous_response_id,
            )
            self._emit(kind, response=response)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append(ResponseEvent(type=kind, sequence_number=self._sequence_number, **fields))
        self._sequence_number += 1

    def _taken(self) -> list[ResponseEvent]:
        events, self._events = self._events, []
        return events

    def _add(self, delta: Delta) -> None:
        self._add_text("reasoning_text", delta.reasoning_content or delta.reasoning)
        self._add_text("output_text", delta.content)
        self._add_text("refusal", delta.refusal)
        for piece in delta.tool_calls or ():
            self._add_call(piece)

    def _add_text(self, kind: str, text: Any) -> None:
        if not isinstance(text, str) or not text:
            return
        reasons = kind == "reasoning_text"
        item_id = self._ids.reasoning if reasons else self._ids.message
        streamed = self._streamed.get(item_id)
        if streamed is None:
            streamed = self._open(_opened(item_id, "reasoning" if reasons else "message"))
        if kind not in streamed.texts:
            streamed.texts[kind] = []
            self._emit_part("response.content_part.added", streamed, kind, part=_text_part(kind, ""))
        streamed.texts[kind].append(text)
        self._emit_part(f"{_TEXT_EVENTS[kind]}.delta", streamed, kind, delta=text)

    def _emit_part(self, event: str, streamed: _Streamed, kind: str, **fields: Any) -> None:
        self._emit(
            event,
            item_id=streamed.item.id,
            output_index=streamed.index,
            content_index=list(streamed.texts).index(kind),
            **fields,
        )

    def _add_call(self, piece: ToolCallPiece) -> None:
        index = piece.index if isinstance(piece.index, int) else len(self._calls)
        streamed = self._calls.get(index)
        function = piece.function
        if streamed is None:
            item = _opened(self._ids.call(len(self._calls)), "function_call")
            item.call_id, item.name = piece.id, function.name if function is not None else None
            streamed = self._calls[index] = self._open(item)
        if function is not None:
            self._add_arguments(streamed, function.arguments)

    def _add_arguments(self, streamed: _Streamed, text: Any) -> None:
        if not isinstance(text, str) or not text:
            return
        streamed.arguments.append(text)
        place = {"item_id": streamed.item.id, "output_index": streamed.index}
        self._emit("response.function_call_arguments.delta", **place, delta=text)

    def _add_whole(self, item: OutputItem) -> None:
        """An item of the whole answer that no chunk has brought."""
        kind = item.type or ""
        opened = _opened(item.id or "", kind)
        opened.call_id, opened.name = item.call_id, item.name
        streamed = self._open(opened)
        if kind == "function_call":
            self._add_arguments(streamed, item.arguments)
        for part in item.content or ():
            self._add_text(part.type or "", part.text or part.refusal)

    def _open(self, item: OutputItem) -> _Streamed:
        if self._current is not None:
            self._close(self._current)
        streamed = self._streamed[item.id or ""] = self._current = _Streamed(item, len(self._streamed))
        self._emit("response.output_item.added", output_index=streamed.index, item=copy.copy(item))
        return streamed

    def _close(self, streamed: _Streamed, item: OutputItem | None = None) -> None:
        item = item or streamed.whole()
        place = {"item_id": item.id, "output_index": streamed.index}
        if item.type == "function_call":
            self._emit("response.function_call_arguments.done", **place, arguments=item.arguments)
        for index, part in enumerate(item.content or ()):
            field = "refusal" if part.type == "refusal" else "text"
            done = f"{_TEXT_EVENTS[part.type or 'output_text']}.done"
            self._emit(done, **place, content_index=index, **{field: part[field]})
            self._emit("response.content_part.done", **place, content_index=index, part=part)
        self._emit("response.output_item.done", output_index=streamed.index, item=item)
