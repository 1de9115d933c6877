"""What a user puts into a message's `content` → content parts in OpenAI's wire form.

Owns how texts, paths, bytes, pictures and figures become parts. Knows nothing of models: whether one takes
pictures or sound is its server's to say. Loads no imaging library: an object of Pillow, matplotlib or IPython
can only come from a module that is loaded already.

Source of the wire form: OpenAI's API reference, "Create chat completion" (`messages[].content`), and its
guides "Images and vision" and "File inputs". As they say, a picture is a URL or data: URL of a PNG, JPEG,
WEBP or GIF, sound is base64 of WAV or MP3, and a file is a PDF as data: URL with its name. Other files go in
as text.
"""

from __future__ import annotations

import base64
import io
import mimetypes
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from .exceptions import UsageProblem

Part = dict[str, Any]

_AUDIO_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3"}
_SLOTS = {"image_url": "url", "file": "file_data", "input_audio": "data"}  # where each part has its data
_PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}  # Pillow's modes that a PNG file can hold
_CAN_BE_SENT = "PNG, JPEG, GIF, WEBP, PDF, WAV, MP3 and UTF-8 text can be sent"


def content_parts(content: Any) -> Any:
    """A message's `content` in OpenAI's wire form.

    Args:
        content: A text or None, which stay as they are; or one part, or a list or tuple of parts. A part is a
            text; bytes of a picture, a PDF or sound; a path to such a file or to a text; a `PIL.Image.Image`;
            a matplotlib figure, or what stands on one, such as its axes; an `IPython.display.Image`; or a
            dict in the wire form. In such a dict the data may be a path, bytes or a picture too:
            `{"type": "image_url", "image_url": {"url": figure, "detail": "low"}}`, or, shorter,
            `{"type": "image_url", "image_url": "photo.png"}`. A URL in a text stays text.

    Returns:
        The text or None; else a new list of dicts. Dicts that are wire form already stay the same objects.

    Raises:
        UsageProblem: A file that is missing, empty or unreadable, a folder, data of a type that can't be
            sent, or an object that is none of the above.
    """
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return [_part(item) for item in content]
    return [_part(content)]


def is_picture(value: Any) -> bool:
    """Whether `value` is a Pillow image, a matplotlib figure or what stands on one, or an IPython image."""
    is_image = _is_a(value, "PIL.Image", "Image") or _is_a(value, "IPython.core.display", "Image")
    return is_image or _figure(value) is not None


def _part(item: Any) -> Part:
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if isinstance(item, dict) and isinstance(item.get("type"), str):
        return _completed(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return _bytes_part(bytes(item))
    if isinstance(item, os.PathLike):
        return _path_part(_path(item))
    if (drawn := _as_png(item)) is not None:
        return _media_part(drawn, "image/png")
    if _is_a(item, "IPython.core.display", "Image"):
        return _displayed_part(item)
    kind = type(item)
    raise UsageProblem(
        f"a message can't hold a {kind.__module__}.{kind.__qualname__}: {item!r:.80}. Give a text, a path, "
        "bytes, a PIL image, a matplotlib figure, or a dict with a type such as "
        '{"type": "text", "text": …}; a table or another value goes in as str(value)'
    )


def _completed(part: Part) -> Part:
    """A dict part with its path, bytes or picture turned into the wire form."""
    kind = part["type"]
    slot, given = _SLOTS.get(kind), part.get(kind)
    if slot is None or given is None:
        return part
    others: Part = {}
    if isinstance(given, dict):
        if given.get(slot) is None or isinstance(given[slot], str):
            return part
        others = {name: value for name, value in given.items() if name != slot}
        given = given[slot]
    elif isinstance(given, str):
        if kind == "image_url" and ("://" in given or given.startswith("data:")):
            return {**part, kind: {"url": given}}
        given = Path(given)
    made = _file_part(given, others.get("filename")) if kind == "file" else _part(given)
    if made["type"] != kind:
        raise UsageProblem(
            f"a part of type {kind!r} can't be made from {given!r:.80}, which is {made['type']!r}; "
            "give the value itself, without the dict around it"
        )
    return {**part, kind: {**made[kind], **others}}


def _bytes_part(data: bytes) -> Part:
    if not data:
        raise UsageProblem("empty bytes can't be sent; were they read from a file that is at its end?")
    if (mime := _sniffed(data)) is None:
        raise UsageProblem(
            f"bytes that begin with {data[:12]!r} are of no known type; {_CAN_BE_SENT}. "
            "Decode a text (data.decode()); open another picture with PIL.Image.open and give that"
        )
    return _media_part(data, mime)


def _path_part(path: Path) -> Part:
    data = _read(path)
    if (mime := _sniffed(data)) is not None:
        return _media_part(data, mime, path.name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageProblem(
            f"{str(path)!r} is of a type that can't be sent; {_CAN_BE_SENT}. Convert it, or read a text in "
            "another encoding with path.read_text(encoding=…) and a picture with PIL.Image.open"
        )
    return {"type": "text", "text": f"{path.name}:\n\n{text}"}


def _file_part(given: Any, filename: str | None) -> Part:
    """A file part of any type: who writes `"type": "file"` knows that the server takes it."""
    if isinstance(given, os.PathLike):
        path = _path(given)
        data, filename = _read(path), filename or path.name
    elif isinstance(given, (bytes, bytearray, memoryview)) and len(given):
        data = bytes(given)
    else:
        raise UsageProblem(f"a file part holds a path or the file's bytes; got {given!r:.80}")
    mime = _sniffed(data) or mimetypes.guess_type(filename or "")[0] or "application/octet-stream"
    filename = filename or "file" + (mimetypes.guess_extension(mime) or "")
    return {"type": "file", "file": {"filename": filename, "file_data": _data_url(data, mime)}}


def _displayed_part(image: Any) -> Part:
    """The part for an `IPython.display.Image`, which has data, or the URL or name of what it shows."""
    if image.data is not None:
        return _part(image.data)
    if image.url is not None:
        return {"type": "image_url", "image_url": {"url": image.url}}
    return _path_part(_path(image.filename))


def _media_part(data: bytes, mime: str, filename: str = "document.pdf") -> Part:
    if mime in _AUDIO_FORMATS:
        sound = {"data": base64.b64encode(data).decode(), "format": _AUDIO_FORMATS[mime]}
        return {"type": "input_audio", "input_audio": sound}
    if mime == "application/pdf":
        return {"type": "file", "file": {"filename": filename, "file_data": _data_url(data, mime)}}
    return {"type": "image_url", "image_url": {"url": _data_url(data, mime)}}


def _data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _sniffed(data: bytes) -> str | None:
    """The MIME type by the first bytes, None where unknown. Source: WHATWG, "MIME Sniffing"."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"%PDF-"):
        return "application/pdf"
    if data.startswith(b"RIFF"):
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12])
    # An MP3 begins with an ID3 tag of version 2 to 4, or with a frame: eleven bits set, then layer III.
    tagged = data.startswith((b"ID3\x02", b"ID3\x03", b"ID3\x04"))
    framed = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    return "audio/mpeg" if tagged or framed else None


def _path(given: Any) -> Path:
    path = Path(os.fsdecode(given))
    try:
        return path.expanduser()
    except RuntimeError:  # no such user's home
        return path


def _read(path: Path) -> bytes:
    named = repr(str(path))
    if os.path.isdir(path):  # unlike pathlib's, these take a name that is too long for a missing one's
        raise UsageProblem(f"{named} is a folder; give its files: sorted(path.glob('*.png')), for example")
    if not os.path.exists(path):
        raise UsageProblem(f"there is no file {named}; the current folder is {os.getcwd()!r}")
    if not os.path.isfile(path):
        raise UsageProblem(f"{named} is a device or a pipe; give a file, or the bytes that you read from it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageProblem(f"{named} can't be read: {error.strerror}; look at its permissions") from error
    if not data:
        raise UsageProblem(f"{named} is empty; was it written and closed?")
    return data


def _as_png(item: Any) -> bytes | None:
    """A Pillow image or a matplotlib figure as a PNG file, None for anything else."""
    buffer = io.BytesIO()
    if _is_a(item, "PIL.Image", "Image"):
        try:
            if item.mode not in _PNG_MODES:
                item = item.convert("I;16" if item.mode == "I" else "RGB")
            item.save(buffer, format="PNG")
        except (OSError, ValueError, SystemError) as error:  # no pixels, or its file is closed or broken
            _not_drawn(item, error)
        return buffer.getvalue()
    if (figure := _figure(item)) is None:
        return None
    try:
        figure.savefig(buffer, format="png", bbox_inches="tight")  # cut as notebooks show it
    except (ValueError, RuntimeError, SystemError) as error:  # broken mathtext, too many pixels
        _not_drawn(figure, error)
    return buffer.getvalue()


def _figure(item: Any) -> Any:
    """The matplotlib figure that `item` is or stands on; None where there is none."""
    for _ in range(3):  # axes stand on a figure, or on a part of one
        if _is_a(item, "matplotlib.figure", "Figure"):
            return item
        try:
            item = getattr(item, "figure", None)
        except Exception:  # a property of somebody else's
            return None
    return None


def _is_a(item: Any, module: str, name: str) -> bool:
    """Whether `item` is of a class whose module may not be loaded; then it can't be."""
    return (found := getattr(sys.modules.get(module), name, None)) is not None and isinstance(item, found)


def _not_drawn(item: Any, error: Exception) -> NoReturn:
    raise UsageProblem(f"{item!r:.80} can't be made a PNG: {error}; check that it shows in a cell") from error
