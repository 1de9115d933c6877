"""The shapes of Gemini's answers, under the API's names: what is read of them. Other fields are skipped.

They live for a moment only and hold no cycles, so the garbage collector needn't watch them (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def checked(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """A reader of JSON whose only error is msgspec.DecodeError."""

    def checked(data: bytes) -> T:
        try:
            return read(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    return checked


class FunctionCall(msgspec.Struct, gc=False):
    name: str | None = None
    args: dict[str, Any] | None = None
    id: str | None = None


class Blob(msgspec.Struct, gc=False):
    mimeType: str = ""
    data: str = ""


class Part(msgspec.Struct, gc=False):
    text: str | None = None
    thought: bool = False
    thoughtSignature: str | None = None
    functionCall: FunctionCall | None = None
    inlineData: Blob | None = None
    executableCode: dict[str, Any] | None = None
    codeExecutionResult: dict[str, Any] | None = None


class Content(msgspec.Struct, gc=False):
    parts: tuple[Part, ...] = ()


class Token(msgspec.Struct, gc=False):
    token: str | None = None
    logProbability: float | None = None


class TopTokens(msgspec.Struct, gc=False):
    candidates: tuple[Token, ...] = ()


class Logprobs(msgspec.Struct, gc=False):
    chosenCandidates: tuple[Token, ...] = ()
    topCandidates: tuple[TopTokens, ...] = ()


class Candidate(msgspec.Struct, gc=False):
    index: int = 0
    content: Content | None = None
    finishReason: str | None = None
    finishMessage: str | None = None
    logprobsResult: Logprobs | None = None
    groundingMetadata: dict[str, Any] | None = None
    citationMetadata: dict[str, Any] | None = None
    urlContextMetadata: dict[str, Any] | None = None


class Modality(msgspec.Struct, gc=False):
    modality: str = ""
    tokenCount: int = 0


class Usage(msgspec.Struct, gc=False):
    # Counts that are 0 are left out on the wire.
    promptTokenCount: int = 0
    candidatesTokenCount: int = 0
    thoughtsTokenCount: int = 0
    toolUsePromptTokenCount: int = 0
    cachedContentTokenCount: int = 0
    totalTokenCount: int | None = None
    promptTokensDetails: tuple[Modality, ...] = ()
    candidatesTokensDetails: tuple[Modality, ...] = ()


class Feedback(msgspec.Struct, gc=False):
    blockReason: str | None = None
    blockReasonMessage: str | None = None


class Event(msgspec.Struct, gc=False):
    candidates: tuple[Candidate, ...] = ()
    promptFeedback: Feedback | None = None
    usageMetadata: Usage | None = None
    modelVersion: str | None = None
    responseId: str | None = None
    error: Any = None
