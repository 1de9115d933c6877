"""Images, speech and transcriptions as results: what they hold, and how a cell shows them.

Knows nothing of HTTP; providers make them. Source of the shapes: OpenAI's API reference, "Images", "Audio".
"""

from __future__ import annotations

import base64
import builtins
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from .exceptions import UsageProblem
from .results import Result
from .types import Object, TokensDetails, Usage


class MediaUsage(Object):
    """What images and transcriptions are billed by: tokens, or `seconds` of audio."""

    type: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: TokensDetails | None = None  # of images
    output_tokens_details: TokensDetails | None = None
    input_token_details: TokensDetails | None = None  # of transcriptions
    seconds: float | None = None
    cost: float | None = None


def chat_usage(usage: MediaUsage) -> Usage:
    """The token counts under the names of chat completions, which the trace reads.

    Source: OpenAI's API reference. The output tokens of images are image tokens where no details say
    otherwise, as with gpt-image-1.
    """
    given, answered = usage.input_tokens_details or usage.input_token_details, usage.output_tokens_details
    if answered is None and usage.input_tokens_details is not None:
        answered = TokensDetails(image_tokens=usage.output_tokens)
    return Usage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=given,
        completion_tokens_details=answered,
        cost=usage.cost,
    )


class Image(Object):
    """A picture: its bytes as base64, or the URL where it stands for a while."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None

    @property
    def bytes(self) -> builtins.bytes | None:
        """The picture's file; None where there is only a URL.

        Raises:
            ValueError: `b64_json` is not base64.
        """
        if not self.b64_json:
            return None
        return base64.b64decode(self.b64_json.rpartition(",")[2], validate=True)  # may be a data: URL

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file.

        Raises:
            UsageProblem: There is only a URL.
        """
        if (data := self.bytes) is None:
            raise UsageProblem(f"the picture is not here but at {self.url}: fetch it from there")
        Path(path).write_bytes(data)

    def __repr__(self) -> str:
        if not self.b64_json:
            return f"Image(url={self.url!r})"
        return f"Image({len(self.b64_json) * 3 // 4:,} bytes)"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = {"text/plain": repr(self)}
        data = self.bytes or b""
        kind = _image_type(data)
        if kind and kind != "image/svg+xml":  # a script in an SVG may run, unless it stands in an <img>
            shown[kind] = base64.b64encode(data).decode()
        elif html := self._html():
            shown["text/html"] = html
        return shown

    def _html(self) -> str:
        data = self.bytes or b""
        if kind := _image_type(data):
            source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        elif isinstance(self.url, str) and self.url.startswith("https://"):
            source = escape(self.url)
        else:
            return ""
        prompt = escape(str(self.revised_prompt or ""))
        return f'<img src="{source}" alt="{prompt}" referrerpolicy="no-referrer" style="max-width: 100%">'


class ImagesResponse(Result):
    """Generated pictures. As the last line of a cell they show as such."""

    created: int | None = None
    data: list[Image] = []
    background: str | None = None
    output_format: str | None = None
    quality: str | None = None
    size: str | None = None
    usage: MediaUsage | None = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        if len(self.data) == 1:
            return self.data[0]._repr_mimebundle_()
        html = "".join(image._html() for image in self.data)
        return {"text/plain": repr(self), **({"text/html": html} if html else {})}


def _image_type(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"GIF8"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/svg+xml" if data.lstrip()[:5] in (b"<?xml", b"<svg ", b"<svg>") else None


AUDIO_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "webm": "audio/webm",
}
"""Extension of an audio file's name → content type."""


def audio_extension(data: bytes) -> str | None:
    """Which of `AUDIO_TYPES` the first bytes of `data` tell; None where they don't."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[4:8] == b"ftyp":
        return "m4a"
    # A frame of MPEG audio begins with eleven bits; the two after the version are 0 in AAC.
    if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] >= 0xE0 and data[1] & 0x06):
        return "mp3"
    starts = {b"OggS": "ogg", b"fLaC": "flac", b"\x1a\x45\xdf\xa3": "webm"}
    return starts.get(data[:4])


class Speech(Result):
    """Spoken text: an audio file in `content`. As the last line of a cell it can be played."""

    content: bytes = b""
    content_type: str | None = None

    def read(self) -> bytes:
        """The audio file's bytes."""
        return self.content

    def write_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the audio to a file."""
        Path(path).write_bytes(self.content)

    stream_to_file = write_to_file  # the openai SDK has both names

    def __repr__(self) -> str:
        return f"Speech({self.content_type}, {len(self.content):,} bytes)"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = {"text/plain": repr(self)}
        if kind := self._playable():
            data = base64.b64encode(self.content).decode()
            shown["text/html"] = f'<audio controls src="data:{kind};base64,{data}"></audio>'
        return shown

    def _playable(self) -> str | None:
        """The content type to tell a browser; None where it can't play it: bare samples."""
        if extension := audio_extension(self.content):
            return AUDIO_TYPES[extension]
        kind = (self.content_type or "").partition(";")[0].strip().lower()
        return kind if re.fullmatch(r"audio/(?!pcm|l16)[a-z0-9.+-]+", kind) else None


class TranscriptionSegment(Object):
    """A piece of a transcription; times in seconds."""

    id: int | str | None = None
    type: str | None = None
    seek: int | None = None
    start: float | None = None
    end: float | None = None
    text: str | None = None
    speaker: str | None = None
    tokens: Any = None
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


class TranscriptionWord(Object):
    """A word of a transcription; times in seconds."""

    word: str | None = None
    start: float | None = None
    end: float | None = None


class Transcription(Result):
    """What was said. `text` holds the whole answer where the format asked for is text, srt or vtt."""

    text: str | None = None
    task: str | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None
    usage: MediaUsage | None = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text or repr(self)}
