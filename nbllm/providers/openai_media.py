"""OpenAI's wire formats besides chat: embeddings, images, speech, transcriptions, the list of models.

Pure, but for `audio_file`, which reads the file that a caller names. Source: OpenAI API reference,
"Embeddings", "Images", "Audio", "Models"; what other servers do differently is named where it is handled.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any

import msgspec

from ..exceptions import UsageProblem
from ..results import (
    AUDIO_TYPES,
    Embedding,
    EmbeddingResponse,
    ImagesResponse,
    ModelInfo,
    ModelList,
    Speech,
    Transcription,
    audio_extension,
    dimensions,
)
from ..types import Usage, decoder, parse
from . import multipart
from .base import HttpRequest, Route
from .encoding import encode

_embeddings = decoder(EmbeddingResponse)
_images = decoder(ImagesResponse)
_transcription = decoder(Transcription)


def _sent(params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    if params.get("stream"):
        raise UsageProblem("stream=True is for chat completions only: leave it out")
    return {**{name: value for name, value in params.items() if value is not None}, **(extra_body or {})}


def _request(route: Route, path: str, content: dict[str, Any], sent: dict[str, Any]) -> HttpRequest:
    body = encode({"model": route.model, **content, **sent})
    return HttpRequest(route.url(path), body, route.headers, encode(sent) if sent else None)


# -- embeddings ------------------------------------------------------------------------------------


def checked_inputs(value: Any) -> list[Any]:
    """What a caller gives as `input` as a list of texts, or of lists of token ids.

    Args:
        value: A text, a list of texts, one input as a list of token ids, or a list of such; a numpy array
            or a pandas Series counts as the list that it holds.

    Raises:
        UsageProblem: Anything else, or an empty input, which OpenAI refuses.
    """
    value = _listed(value)
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list):
        raise UsageProblem(f"input is a text, a list of texts or a list of tokens, not {_name(value)}")
    if not inputs:
        raise UsageProblem("input is empty: there is nothing to embed")
    inputs = [_listed(item) for item in inputs]
    if all(_is_integer(item) for item in inputs):
        return [inputs]
    for number, item in enumerate(inputs):
        if not isinstance(item, str | list):
            raise UsageProblem(f"input[{number}] is a text or a list of tokens, not {_name(item)}")
        if type(item) is not type(inputs[0]):
            raise UsageProblem(
                f"input[{number}] is a {_name(item)}, input[0] is not: texts or tokens, not both"
            )
        if not item:
            raise UsageProblem(f"input[{number}] is empty, which has no embedding: leave it out")
        if isinstance(item, list) and not all(_is_integer(token) for token in item):
            raise UsageProblem(f"input[{number}] is a list, but not of tokens: they are whole numbers")
    return inputs


def _listed(value: Any) -> Any:
    """Values of numpy and pandas as Python's own, tuples as lists, subclasses of str as str."""
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def split_inputs(inputs: list[Any], most: int = 2048, most_bytes: int | None = 300_000) -> list[list[Any]]:
    """The inputs in parts that one request each may hold, in order.

    Args:
        inputs: From `checked_inputs`.
        most: Inputs in a request. OpenAI takes 2048.
        most_bytes: UTF-8 bytes of all texts of a request; a token id counts as one. OpenAI takes 300,000
            tokens, and a token stands for a byte or more: by default no request is refused, whatever its
            language. None for no limit. An input that is larger gets a request of its own.
    """
    parts: list[list[Any]] = []
    room = 0
    for item in inputs:
        size = len(item.encode("utf-8", "replace")) if isinstance(item, str) else len(item)
        if not parts or len(parts[-1]) >= most or (most_bytes is not None and size > room):
            parts.append([])
            room = most_bytes or 0
        parts[-1].append(item)
        room -= size
    return parts


def embedding_request(
    route: Route,
    inputs: list[Any],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for the embeddings of `inputs`, which come from `checked_inputs`.

    The answer is asked for as base64, a third of the size of numbers, unless the caller gives
    `encoding_format`; where that is None, nothing is asked for: some servers know no such field.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    content: dict[str, Any] = {"input": inputs}
    if "encoding_format" not in params:
        content["encoding_format"] = "base64"
    return _request(route, "embeddings", content, _sent(params, extra_body))


def embedding_response(body: bytes, count: int | None = None) -> EmbeddingResponse:
    """The embeddings in the order of the inputs, whether they came as base64 or as numbers.

    Args:
        body: The answer.
        count: How many inputs were sent; None where that is not to be checked.

    Raises:
        msgspec.DecodeError: There are none, not as many as inputs, or not all of one length.
    """
    response = _embeddings(body)
    rows = response.data
    if not rows or len(rows) != (count or len(rows)):
        raise msgspec.DecodeError(f"{count or 'some'} embeddings were expected, not {len(rows)}")
    lengths = {dimensions(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise msgspec.DecodeError(f"the embeddings have {', '.join(map(str, sorted(lengths)))} dimensions")
    ranks: list[Any] = [row.index for row in rows]
    if all(map(_is_integer, ranks)) and sorted(ranks) == list(range(len(rows))):
        rows.sort(key=lambda row: row.index or 0)
    else:  # some servers write no index, or 0 everywhere
        _number(rows)
    return response


def _number(rows: list[Embedding]) -> None:
    for index, row in enumerate(rows):
        row.index = index


def joined(responses: list[EmbeddingResponse]) -> EmbeddingResponse:
    """The answers to all parts of `split_inputs` as one: rows numbered on, tokens and prices summed."""
    if len(responses) == 1:
        return responses[0]
    rows = [copy.copy(row) for response in responses for row in response.data]
    _number(rows)
    usage = Usage(
        prompt_tokens=_total(responses, "prompt_tokens"), total_tokens=_total(responses, "total_tokens")
    )
    whole = EmbeddingResponse(object="list", data=rows, model=responses[0].model, usage=usage)
    whole.__dict__["_request"] = tuple(record for response in responses for record in response.requests)
    return whole


def _total(responses: list[EmbeddingResponse], name: str) -> int | None:
    counts: list[Any] = [getattr(response.usage, name, None) for response in responses]
    return sum(counts) if all(isinstance(count, int) for count in counts) else None


# -- images ----------------------------------------------------------------------------------------


def image_request(
    route: Route, prompt: str, params: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None
) -> HttpRequest:
    """The request for pictures of `prompt`.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    return _request(route, "images/generations", {"prompt": prompt}, _sent(params, extra_body))


def image_response(body: bytes) -> ImagesResponse:
    """The pictures; raises msgspec.DecodeError where there are none, or one can't be read."""
    response = _images(body)
    if not response.data:
        raise msgspec.DecodeError("the answer holds no image")
    for image in response.data:
        try:
            readable = image.bytes or image.url
        except (ValueError, AttributeError) as error:
            raise msgspec.DecodeError(f"b64_json of an image is not base64: {error}") from None
        if not readable:
            raise msgspec.DecodeError("an image has neither b64_json nor url")
    return response


# -- audio -----------------------------------------------------------------------------------------


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
    return _request(route, "audio/speech", {"input": text}, _sent({"voice": voice, **params}, extra_body))


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
            f"audio is a path, bytes, a file opened with 'rb', or (name, bytes), not {_name(content)}"
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
    sent = _sent(params, extra_body)
    shown = encode(sent)
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
    return HttpRequest(route.url("audio/transcriptions"), body, headers, shown if sent else None)


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


# -- models ----------------------------------------------------------------------------------------

# They answer in pages of 20 and 50; 1000 is the most that they put on one.
_ONE_PAGE = {"anthropic": "?limit=1000", "gemini": "?pageSize=1000"}


def models_url(route: Route) -> str:
    """Where the list of models is."""
    return route.url("models") + _ONE_PAGE.get(route.provider.name, "")


def models_response(body: bytes, provider: str) -> ModelList:
    """The models that a provider lists, in its order, in OpenAI's, Anthropic's or Gemini's format.

    Raises:
        msgspec.DecodeError: It is no such list.
    """
    value = parse(body)
    rows = value  # Together answers with the bare list
    if isinstance(value, dict) and ("data" in value or "models" in value):
        rows = value.get("data", value.get("models"))
        rows = [] if rows is None else rows  # so says Ollama without a model
    if not isinstance(rows, list):
        raise msgspec.DecodeError("a list of models was expected")
    return ModelList(_model(row, provider) for row in rows if isinstance(row, dict) and _model_id(row))


def _model(row: dict[str, Any], provider: str) -> ModelInfo:
    owner = row.get("owned_by") or row.get("organization")
    return ModelInfo(
        id=_model_id(row),
        provider=provider,
        created=_time(row.get("created", row.get("created_at"))),
        owned_by=owner if isinstance(owner, str) else None,
    )


def _model_id(row: dict[str, Any]) -> str:
    return str(row.get("id") or str(row.get("name") or "").removeprefix("models/"))


def _time(value: Any) -> datetime | None:
    """Unix seconds, or RFC 3339 (Anthropic), as a time in UTC; the epoch itself stands for unknown."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
        return time.astimezone(UTC) if time.timestamp() > 0 else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None
