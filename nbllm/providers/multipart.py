"""Forms with files: multipart/form-data, RFC 7578."""

from __future__ import annotations

import secrets
from collections.abc import Iterable


def encode(
    fields: Iterable[tuple[str, str]], files: Iterable[tuple[str, str, bytes, str]]
) -> tuple[bytes, str]:
    """A form's body and its content type.

    Args:
        fields: Name and value of each field, names as often as they occur.
        files: Of each file the field's name, the file's name, its bytes and their content type.
    """
    boundary = secrets.token_hex(16)  # 128 random bits: no file holds them
    parts: list[bytes] = []
    for name, value in fields:
        parts += (_head(boundary, f'name="{_quoted(name)}"'), b"\r\n", _bytes(value), b"\r\n")
    for name, file_name, data, content_type in files:
        disposition = f'name="{_quoted(name)}"; filename="{_quoted(file_name)}"'
        parts += (
            _head(boundary, disposition),
            _bytes(f"Content-Type: {content_type}\r\n\r\n"),
            data,
            b"\r\n",
        )
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def _head(boundary: str, disposition: str) -> bytes:
    return _bytes(f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n")


def _quoted(name: str) -> str:
    # As browsers do: HTML Standard, "multipart/form-data encoding algorithm".
    return name.replace("\n", "%0A").replace("\r", "%0D").replace('"', "%22")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a file's name may hold bytes that are no text
