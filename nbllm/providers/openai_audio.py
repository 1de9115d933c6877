"""Speech and transcriptions in OpenAI's wire format: requests and answers.

Pure, but for `audio_file`, which reads the file that a caller names. Source: OpenAI API reference, "Audio".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..exceptions import UsageProblem
from ..media import AUDIO_TYPES, Speech, Transcription, audio_extension
from ..types import decoder, parse
from . import multipart
from .base import HttpRequest, Route
from .encoding import encode
from .openai_requests import request, sent, type_name

_transcription = decoder(Transcription)


def speech_request(
    route: Route,
    text: str,
    voice: Any,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for `text` spoken; `voice` is a name or, for voices of one's own, a dict with its `id`.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    return request(route, "audio/speech", {"input": text}, {"voice": voice, **params}, extra_body)


def speech_response(body: bytes, content_type: str | None) -> Speech:
    """The audio; raises msgspec.DecodeError where the answer is empty or something else."""
    kind = (content_type or "").lower()
    if not body or kind.startswith("text/") or "json" in kind:
        raise msgspec.DecodeError(f"audio was expected, not {len(body)} bytes of {kind or 'no content type'}")
    return Speech(content=body, content_type=content_type)


def audio_file(file: Any) -> tuple[str, bytes]:
    """Name and bytes of the audio file that a caller gives.

    Args:
        file: A path, bytes, a binary file, or a name with bytes or a binary file. Servers tell the format
            by the name's extension: where there is none, the bytes tell it.

    Raises:
        UsageProblem: It can't be read, is empty or something else, or the format remains unknown.
    """
    if isinstance(file, str | os.PathLike):
        path = Path(file).expanduser()
        try:
            return _with_extension(path.name, path.read_bytes())
        except OSError as error:
            raise UsageProblem(f"the audio file can't be read: {error}") from error
    name, content = file if isinstance(file, tuple) and len(file) == 2 else (None, file)
    data = content.read() if hasattr(content, "read") else content
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UsageProblem(
            f"audio is a path, bytes, a file opened with 'rb', or (name, bytes), not {type_name(content)}"
        )
    name = name or getattr(content, "name", None)
    return _with_extension(Path(name).name if isinstance(name, str) else "audio", bytes(data))


def _with_extension(name: str, data: bytes) -> tuple[str, bytes]:
    if not data:
        raise UsageProblem(f"the audio file {name} is empty")
    if Path(name).suffix:
        return name, data
    if (extension := audio_extension(data)) is None:
        known = ", ".join(AUDIO_TYPES)
        raise UsageProblem(f"the bytes of {name} are none of {known}: give ('name.extension', bytes)")
    return f"{name}.{extension}", data


def transcription_request(
    route: Route,
    name: str,
    data: bytes,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for what is said in an audio file; `name` and `data` come from `audio_file`.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    given = sent(params, extra_body)
    shown = encode(given)
    # Through JSON, so that a form takes the values that a body takes.
    fields = [
        pair
        for field, value in {"model": route.model, **parse(shown)}.items()
        for pair in _fields(field, value)
    ]
    kind = AUDIO_TYPES.get(audio_extension(data) or "", "application/octet-stream")
    body, content_type = multipart.encode(fields, [("file", name, data, kind)])
    headers = {key: value for key, value in route.headers.items() if key.lower() != "content-type"}
    headers["Content-Type"] = content_type
    return HttpRequest(route.url("audio/transcriptions"), body, headers, shown if given else None)


def _fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A value as fields of a form, lists and dicts by brackets: `timestamp_granularities[]`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _fields(f"{name}[{key}]", item)
    elif isinstance(value, list):
        for item in value:
            yield from _fields(f"{name}[]", item)
    elif isinstance(value, bool):
        yield name, "true" if value else "false"
    elif value is not None:
        yield name, str(value)


def transcription_response(body: bytes, content_type: str | None) -> Transcription:
    """What was said, from JSON, or from plain text as it is.

    Raises:
        msgspec.DecodeError: JSON without a text, a web page, or bytes that are no text.
    """
    kind = content_type or "application/json"
    if "json" in kind:
        answer = _transcription(body)
        if not isinstance(answer.text, str):
            raise msgspec.DecodeError("the answer holds no text")
        return answer
    if "html" in kind:
        raise msgspec.DecodeError("a transcription was expected, not a web page")
    try:
        return Transcription(text=body.decode())
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None
