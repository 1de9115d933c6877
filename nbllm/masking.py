"""Keys, masked wherever nbllm writes text: those that it has been given, and what looks like one.

Owns the known keys and the pattern of others.
"""

from __future__ import annotations

import json
import re

from .kept import kept

_KEY_PATTERN = re.compile(
    r"\b(sk-[A-Za-z0-9_\-]{8,}|AIza[A-Za-z0-9_\-]{20,}|gsk_[A-Za-z0-9]{16,}|xai-[A-Za-z0-9]{16,})"
    # With a digit or "=", or long: "Basic understanding" is no credential.
    r"|\b([Bb]earer|[Bb]asic)\s+(?=\S*[0-9=]|\S{20})[A-Za-z0-9._~+/=\-]{8,}",
)
# Looking for these first spares nearly every text the pattern, which takes twenty times as long; and one
# character is found, or not, ten times as fast as several.
_KEY_MARKS = (("-", "sk-"), ("z", "AIza"), ("_", "gsk_"), ("x", "xai-"), ("e", "earer"), ("a", "asic"))


class _State:
    """The keys that were given."""

    def __init__(self) -> None:
        self.secrets: tuple[str, ...] = ()


_state = kept(__name__, _State)


def keep_secret(value: str | None) -> None:
    """Have `value` (a key) masked wherever nbllm writes text, also as JSON may write it."""
    if value and len(value) >= 6 and value not in _state.secrets:
        plain = json.dumps(value, ensure_ascii=False)[1:-1]
        # What PHP makes of a slash, and Go of what means something in HTML.
        forms = {value, plain, plain.replace("/", "\\/"), plain.translate(_HTML_SAFE)}
        # The longest first, since one key may begin as another. A new tuple: other threads read this one.
        _state.secrets = tuple(sorted({*_state.secrets, *forms}, key=len, reverse=True))


_HTML_SAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&+"}


def hide(text: str) -> str:
    """`text` with known keys masked. What looks like one stays: it may be an example in an answer."""
    for secret in _state.secrets:
        if secret in text:
            text = text.replace(secret, "[key]")
    return text


def redact(text: str) -> str:
    """`text` with known keys, and what looks like one, masked."""
    text = hide(text)
    for character, mark in _KEY_MARKS:
        if character in text and mark in text:
            return _KEY_PATTERN.sub(lambda m: f"{m[2]} [key]" if m[2] else "[key]", text)
    return text
