"""OpenAI's chat messages as Gemini's contents: the system instruction, and turns of user and model."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ..exceptions import UsageProblem
from .translation import add_turn, json_object, split_data_url

# Guide "Thought signatures": what stands for the signature of a call that Gemini did not make.
_NO_SIGNATURE = "skip_thought_signature_validator"


def conversation(messages: list[Any], signed: bool) -> tuple[list[Any], list[dict[str, Any]]]:
    """The parts of the system instruction, and the turns, of which no two in a row have the same role."""
    system: list[Any] = []
    contents: list[dict[str, Any]] = []
    names: dict[Any, Any] = {}  # of the functions, by the ids of the calls
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role in ("system", "developer"):
            system += _parts(message.get("content"), where)
            continue
        if role == "user":
            parts = _parts(message.get("content"), where)
        elif role == "tool":
            parts = [_tool_result(message, names, where)]
        elif role == "assistant":
            parts = _assistant_parts(message, names, signed, where)
        else:
            raise UsageProblem(f"{where}: Gemini knows no role {role!r}")
        add_turn(contents, "model" if role == "assistant" else "user", "parts", parts)
    return system, contents


def _assistant_parts(
    message: dict[str, Any], names: dict[Any, Any], signed: bool, where: str
) -> list[dict[str, Any]]:
    # Thoughts are not sent back: what Gemini needs of them is in the signatures.
    parts = _parts(message.get("content") or [], where)
    if signature := _signature(message):
        parts = parts or [{"text": ""}]
        parts[-1]["thoughtSignature"] = signature
    for image in message.get("images") or []:
        parts.append(_part(image, where))
        if signature := _signature(image):
            parts[-1]["thoughtSignature"] = signature
    for number, call in enumerate(message.get("tool_calls") or []):
        function = member(call, "function", f"{where} tool_calls[{number}]")
        names[call.get("id")] = function.get("name")
        sent = {"name": function.get("name"), "args": _arguments(function, where)}
        if call.get("id"):
            sent["id"] = call["id"]
        parts.append({"functionCall": sent})
        if signature := _signature(call):
            parts[-1]["thoughtSignature"] = signature
        elif signed and number == 0:  # of calls in parallel the first alone has one
            parts[-1]["thoughtSignature"] = _NO_SIGNATURE
    return parts


def _signature(item: dict[str, Any]) -> str | None:
    """The thought signature of a message, image or tool call, where Google's layer for OpenAI puts it."""
    extra = item.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    return google.get("thought_signature") if isinstance(google, dict) else None


def _arguments(function: dict[str, Any], where: str) -> Mapping[str, Any]:
    given = function.get("arguments") or {}
    if (arguments := json_object(given)) is None:
        raise UsageProblem(f"{where}: the arguments of a tool call must be a JSON object: {given!r}")
    return arguments


def _tool_result(message: dict[str, Any], names: dict[Any, Any], where: str) -> dict[str, Any]:
    call = message.get("tool_call_id")
    name = names.get(call) or message.get("name")
    if not name:
        raise UsageProblem(f"{where}: no earlier assistant message has a tool call with the id {call!r}")
    parts = _parts(message.get("content"), where)
    if any("text" not in part for part in parts):
        raise UsageProblem(f"{where}: the result of a tool must be text")
    text = "".join(part["text"] for part in parts)
    result = json_object(text)
    response = {"name": name, "response": {"result": text} if result is None else result}
    return {"functionResponse": {**response, "id": call} if call else response}


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        raise UsageProblem(f"{where}: content must be a text or a list of parts, not {content!r}")
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return {"text": part[kind]}
    if kind == "image_url":  # `detail` is left out: its words have no fixed meaning here
        image = part.get("image_url")
        return _media(image if isinstance(image, str) else member(part, kind, where).get("url"), where)
    if kind == "input_audio":
        audio = member(part, kind, where)
        return {"inlineData": {"mimeType": f"audio/{audio.get('format')}", "data": audio.get("data")}}
    if kind == "file":
        file = member(part, kind, where)
        return _media(file.get("file_data") or file.get("file_id"), where)
    raise UsageProblem(f"{where}: Gemini takes no content part of type {kind!r}")


def _media(url: Any, where: str) -> dict[str, Any]:
    """A part for a data: URL, or for the address of a file: http(s), gs:// or one of the Files API."""
    if not isinstance(url, str) or ":" not in url:
        raise UsageProblem(f"{where}: an image or file needs a data: URL or an address, not {url!r:.80}")
    if url.startswith("data:"):
        if (found := split_data_url(url)) is None:
            raise UsageProblem(f"{where}: a data: URL must be like data:image/png;base64,…")
        return {"inlineData": {"mimeType": found[0], "data": found[1]}}
    guessed = mimetypes.guess_type(urlsplit(url).path, strict=False)[0]  # strict leaves out image/webp
    return {"fileData": {"fileUri": url, **({"mimeType": guessed} if guessed else {})}}


def member(item: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The object that a field holds; `where` names its place for the UsageProblem of anything else."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, dict):
        raise UsageProblem(f"{where}: {name} must be an object, not {value!r}")
    return value
