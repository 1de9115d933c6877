"""What the log keeps of requests and answers, in whatever wire format, as OpenAI's chat messages.

Owns `messages_of`, `answer_of` and `text_of`. Pure; called by `turns`, `transcripts` and the
bridges. Who answered does not say in
which format an answer is kept (a stream is in OpenAI's), so the shape decides. The log may hold anything, as
from an older nbllm: what is not understood is passed over, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .exceptions import NbllmError
from .providers import anthropic, gemini, openai, openai_responses
from .response_input import add_item
from .response_output import assistant_message
from .response_types import Response
from .types import ChatCompletion, parse

Message = dict[str, Any]

# What a text that was not written by us does to readers of a known shape.
_UNREADABLE = (
    *(msgspec.MsgspecError, NbllmError, RecursionError),
    *(TypeError, AttributeError, LookupError, ValueError),
)


def messages_of(request: str | None) -> list[Message]:
    """The messages of a request as the log keeps it; empty where there are none.

    Of chat completions, Anthropic's and Gemini's too, and of responses, the conversation that was sent; of
    embeddings, images and speech the input, as the user's message.

    Returns:
        Dicts with `role` (system, user, assistant or tool) and `content`: a text, a list of OpenAI's parts,
        or None beside `tool_calls`.
    """
    body = logged_object(request)
    for name, read in _REQUESTS.items():
        if name in body:
            try:
                return [checked for message in read(body) if (checked := _checked(message)) is not None]
            except _UNREADABLE:
                return []
    return []


def answer_of(response: str | None) -> Message | None:
    """The assistant's message of an answer as the log keeps it; None where there is none, as of an error.

    Returns:
        A dict with `role`, `content` (a text, or None beside `tool_calls`), and `tool_calls`,
        `reasoning_content`, `refusal` and what else the provider says, where there is something.
    """
    body = logged_object(response)
    for name, read in _ANSWERS.items():
        if name in body:
            try:
                message = read((response or "").encode())
            except _UNREADABLE:
                return None
            return None if message is None else _checked(message)
    return None


def text_of(message: Message) -> str:
    """A message's content for reading: what is no text is named, as `[image]`."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    return content or message.get("refusal") or ""


def _part_text(part: dict[str, Any]) -> str:
    if isinstance(text := part.get("text"), str):
        return text
    kind = str(part.get("type"))
    file = part.get("file")
    name = file.get("filename") if isinstance(file, dict) else None
    return f"[{_KINDS.get(kind, kind)}{f' {name}' if name else ''}]"


_KINDS = {"image_url": "image", "input_audio": "audio", "video_url": "video"}


def logged_object(text: str | None) -> dict[str, Any]:
    """The object in a text from the log; {} where it is none."""
    try:
        value = parse(text or "null")
    except _UNREADABLE:
        return {}
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list; empty where it is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _checked(message: Any) -> Message | None:
    """A message whose fields are of the types that readers rely on; None where it is none."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return None
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        content = _dicts(content)
        if len(content) == 1 and content[0].get("type") == "text" and isinstance(content[0].get("text"), str):
            content = content[0]["text"]
    elif not isinstance(content, str):
        content = None
    made = {**message, "role": "system" if role == "developer" else role}
    for name in ("reasoning_content", "refusal"):
        if name in made and not isinstance(made[name], str):
            del made[name]
    calls = [call for call in map(_checked_call, _dicts(made.pop("tool_calls", None))) if call]
    if calls:
        made["tool_calls"] = calls
    says_otherwise = role == "assistant" and (calls or made.get("refusal"))
    made["content"] = content or (None if says_otherwise else "")
    return made


def _checked_call(call: dict[str, Any]) -> dict[str, Any] | None:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments")
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, str) else ""}}


# -- requests ----------------------------------------------------------------------------------------------


def _chat(body: dict[str, Any]) -> Iterator[Message]:
    """OpenAI's messages, or Anthropic's, whose blocks are of types of their own."""
    if body.get("system"):
        yield {"role": "system", "content": body["system"]}
    for message in _dicts(body.get("messages")):
        yield from _translated(message)


def _translated(message: Message) -> Iterator[Message]:
    """A message without Anthropic's blocks; the results of tools, which stand in a user's, are messages."""
    if not isinstance(message.get("content"), list):
        yield message
        return
    parts, calls, thinking = [], [], []
    for block in _dicts(message["content"]):
        kind = block.get("type")
        if kind == "tool_result":
            said = block.get("content")
            said = list(map(_block_part, said)) if isinstance(said, list) else said
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": said}
        elif kind == "tool_use":
            calls.append(_call(block.get("id"), block.get("name"), block.get("input")))
        elif kind in ("thinking", "redacted_thinking"):
            thinking.append(block)
        else:
            parts.append(_block_part(block))
    if parts or calls or message.get("tool_calls"):
        extra = {"tool_calls": calls} if calls else {}
        yield {**message, "content": parts, **extra, **({"thinking_blocks": thinking} if thinking else {})}


def _block_part(block: dict[str, Any]) -> dict[str, Any]:
    """A picture or file in Anthropic's form as OpenAI's part; another one is a part already."""
    source = block.get("source")
    if block.get("type") not in ("image", "document") or not isinstance(source, dict):
        return block
    kind = str(source.get("media_type") or ("image/*" if block["type"] == "image" else "application/pdf"))
    url = source.get("url") or f"data:{kind};base64,{source.get('data')}"
    return _file_part(kind, url, block.get("title"))


def _file_part(kind: str, url: str, name: Any = None) -> dict[str, Any]:
    """A picture or file, by its media type, as OpenAI's part."""
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    if kind.startswith("audio/"):
        return {"type": "input_audio", "input_audio": {"data": url, "format": kind.removeprefix("audio/")}}
    return {"type": "file", "file": {"file_data": url, **({"filename": name} if name else {})}}


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": msgspec.json.encode(arguments or {}).decode()}
    return {"id": call_id, "type": "function", "function": function}


def _gemini(body: dict[str, Any]) -> Iterator[Message]:
    """Gemini's contents, whose results of tools stand in a user's turn."""
    if isinstance(told := body.get("systemInstruction"), dict):
        yield {"role": "system", "content": _gemini_parts(told)}
    for turn in _dicts(body.get("contents")):
        for part in _dicts(turn.get("parts")):
            if isinstance(result := part.get("functionResponse"), dict):
                yield _gemini_result(result)
        parts = _gemini_parts(turn)
        given = [part["functionCall"] for part in _dicts(turn.get("parts")) if "functionCall" in part]
        calls = [_call(call.get("id"), call.get("name"), call.get("args")) for call in _dicts(given)]
        if parts or calls:
            role = "assistant" if turn.get("role") == "model" else "user"
            yield {"role": role, "content": parts, **({"tool_calls": calls} if calls else {})}


def _gemini_result(result: dict[str, Any]) -> Message:
    said = result.get("response")
    if isinstance(said, dict) and said.keys() == {"result"} and isinstance(said["result"], str):
        said = said["result"]
    content = said if isinstance(said, str) else msgspec.json.encode(said).decode()
    return {"role": "tool", "tool_call_id": result.get("id"), "name": result.get("name"), "content": content}


def _gemini_parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    parts = []
    for part in _dicts(turn.get("parts")):
        if isinstance(part.get("text"), str) and part["text"] and not part.get("thought"):
            parts.append({"type": "text", "text": part["text"]})
        elif isinstance(data := part.get("inlineData"), dict):
            kind = str(data.get("mimeType"))
            parts.append(_file_part(kind, f"data:{kind};base64,{data.get('data')}"))
        elif isinstance(file := part.get("fileData"), dict):
            parts.append(_file_part(str(file.get("mimeType")), str(file.get("fileUri"))))
    return parts


def _input(body: dict[str, Any]) -> Iterator[Message]:
    """The input of the Responses API, or of embeddings and speech, which is a text or texts."""
    given = body["input"]
    if isinstance(instructions := body.get("instructions"), str) and "voice" not in body:
        yield {"role": "system", "content": instructions}
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    if texts := [text for text in given if isinstance(text, str)]:
        yield {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}
    made: list[Message] = []
    for item in _dicts(given):
        try:
            add_item(made, item, "input")
        except _UNREADABLE:  # such as the call of one of the provider's own tools
            pass
    yield from (message for message in made if message["content"] is not None or "tool_calls" in message)


def _prompt(body: dict[str, Any]) -> Iterator[Message]:
    if isinstance(prompt := body["prompt"], str):
        yield {"role": "user", "content": prompt}


def _gemini_embeddings(body: dict[str, Any]) -> Iterator[Message]:
    contents = [request.get("content") for request in _dicts(body["requests"])]
    yield {"role": "user", "content": [part for one in _dicts(contents) for part in _gemini_parts(one)]}


# The field that tells a request's format -> its reader.
_REQUESTS: dict[str, Callable[[dict[str, Any]], Iterator[Message]]] = {
    "messages": _chat,
    "contents": _gemini,
    "input": _input,
    "prompt": _prompt,
    "requests": _gemini_embeddings,
}


# -- answers -----------------------------------------------------------------------------------------------


def _chat_answer(read: Callable[[bytes], ChatCompletion]) -> Callable[[bytes], Message | None]:
    def answer(body: bytes) -> Message | None:
        completion = read(body)
        return assistant_message(completion) if completion.choices else None

    return answer


def _response_answer(body: bytes) -> Message | None:
    response = openai_responses.responses_response(body)
    if not response.output:
        return None
    message: Message = {"role": "assistant", "content": response.output_text or None}
    calls = [item for item in response.output if item.type == "function_call"]
    if calls:
        message["tool_calls"] = [
            {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in calls
        ]
    for name, kinds in (("reasoning_content", ("reasoning_text", "summary_text")), ("refusal", ("refusal",))):
        if text := _said(response, kinds):
            message[name] = text
    return message


def _said(response: Response, kinds: tuple[str, ...]) -> str:
    parts = [part for item in response.output for part in (*(item.summary or ()), *(item.content or ()))]
    return "\n\n".join(str(part.text or part.refusal) for part in parts if part.type in kinds)


# The field that tells an answer's format -> its reader.
_ANSWERS: dict[str, Callable[[bytes], Message | None]] = {
    "choices": _chat_answer(openai.chat_response),
    "candidates": _chat_answer(gemini.chat_response),
    "promptFeedback": _chat_answer(gemini.chat_response),
    "content": _chat_answer(anthropic.chat_response),
    "output": _response_answer,
}
