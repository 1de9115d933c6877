"""Answers and streams of Gemini's generateContent as OpenAI's chat completions and chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..assembly import Assembly
from ..types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    Function,
    Object,
    TokensDetails,
    ToolCallPiece,
    Usage,
    build,
)
from . import gemini_shapes as shapes
from .translation import error_chunk

# Other reasons, such as MALFORMED_FUNCTION_CALL, are kept in lower case: none of OpenAI's says what happened.
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"} | dict.fromkeys(
    (
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    ),
    "content_filter",
)

_CHUNK = "chat.completion.chunk"
_decode_event = msgspec.json.Decoder(shapes.Event).decode


def chat_response(body: bytes) -> ChatCompletion:
    """The whole answer, put together by the rules of a stream of one event, so that the two can't differ.

    A message holds, beside OpenAI's fields: `reasoning_content`; `images` as OpenRouter gives them;
    `code_execution` (code and its results); `extra_content` with the thought signature, which belongs into
    the next request; `grounding_metadata`, `citation_metadata`, `url_context_metadata` and `finish_message`
    as Gemini gives them. Other parts, such as speech, are left out.

    Raises:
        msgspec.DecodeError: The body is no JSON object, or not in Gemini's format.
    """
    chunk = chunk_decoder()(body) or ChatCompletionChunk()
    answer = Assembly()
    answer.add(chunk)
    completion = answer.completion()
    if not chunk.choices:  # an assembly always has one
        completion.choices = []
    return completion


def chunk_decoder() -> Callable[[bytes], ChatCompletionChunk | None]:
    """The decoder of a stream's events, each of which is an answer with what is new in it."""
    return _Stream().decode


class _Turn:
    """What has come of one candidate."""

    def __init__(self) -> None:
        self.calls = 0
        # What a later chunk says takes the place of what an earlier one said, so each has all so far.
        self.images: list[Object] = []
        self.code: list[Object] = []
        self.sources: list[Any] = []


class _Stream:
    def __init__(self) -> None:
        self._turns: dict[int, _Turn] = {}

    def decode(self, data: bytes) -> ChatCompletionChunk | None:
        try:
            event = _decode_event(data)
            if event.error is not None:
                return error_chunk(event.error)
            choices = []
            for candidate in event.candidates:  # a comprehension, a call of its own, would cost a tenth more
                choices.append(self._choice(candidate, event.responseId))
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None
        if not choices and event.promptFeedback is not None and event.promptFeedback.blockReason:
            choices = [_blocked(event.promptFeedback)]
        usage = None if event.usageMetadata is None else _usage(event.usageMetadata)
        if not choices and usage is None:
            return None
        return ChatCompletionChunk(event.responseId, _CHUNK, None, event.modelVersion, choices, usage)

    def _choice(self, candidate: shapes.Candidate, response_id: str | None) -> ChunkChoice:
        delta = Delta()
        turn = self._turns.get(candidate.index)
        if turn is None:
            turn = self._turns[candidate.index] = _Turn()
            delta.role = "assistant"
        if candidate.content is not None:
            for part in candidate.content.parts:
                if (text := part.text) is None:
                    _add_part(delta, part, turn, f"call_{response_id or ''}_{candidate.index}_{turn.calls}")
                elif part.thought:
                    delta.reasoning_content = (delta.reasoning_content or "") + text
                else:
                    delta.content = (delta.content or "") + text
                if part.thoughtSignature is not None and not (part.functionCall or part.inlineData):
                    delta.__dict__["extra_content"] = _signed(part)
        choice = ChunkChoice(candidate.index, delta)
        if candidate.finishReason is not None:
            reason = candidate.finishReason
            called = reason == "STOP" and turn.calls
            choice.finish_reason = "tool_calls" if called else _FINISH_REASONS.get(reason, reason.lower())
        if candidate.logprobsResult is not None:
            choice.logprobs = build(Object, {"content": list(_logprobs(candidate.logprobsResult))})
        if candidate.groundingMetadata:
            if isinstance(sources := candidate.groundingMetadata.get("groundingChunks"), list):
                turn.sources += sources  # an event brings those that are new
                candidate.groundingMetadata["groundingChunks"] = turn.sources
            delta.__dict__["grounding_metadata"] = build(Object, candidate.groundingMetadata)
        if candidate.citationMetadata:
            delta.__dict__["citation_metadata"] = build(Object, candidate.citationMetadata)
        if candidate.urlContextMetadata:
            delta.__dict__["url_context_metadata"] = build(Object, candidate.urlContextMetadata)
        if candidate.finishMessage:
            delta.__dict__["finish_message"] = candidate.finishMessage
        return choice


def _add_part(delta: Delta, part: shapes.Part, turn: _Turn, call_id: str) -> None:
    """Put a part that is no text into what a chunk adds."""
    if (call := part.functionCall) is not None:
        arguments = msgspec.json.encode(call.args or {}).decode()
        piece = ToolCallPiece(call.id or call_id, "function", Function(call.name, arguments), turn.calls)
        if part.thoughtSignature is not None:
            piece.__dict__["extra_content"] = _signed(part)
        turn.calls += 1
        delta.tool_calls = [*(delta.tool_calls or []), piece]
    elif (blob := part.inlineData) is not None:
        if blob.mimeType.startswith("image/") and not part.thought:  # drafts of an image are thoughts
            url = f"data:{blob.mimeType};base64,{blob.data}"
            image = build(Object, {"type": "image_url", "image_url": {"url": url}})
            if part.thoughtSignature is not None:
                image.__dict__["extra_content"] = _signed(part)
            turn.images.append(image)
            delta.__dict__["images"] = turn.images.copy()
    elif (code := part.executableCode or part.codeExecutionResult) is not None:
        turn.code.append(build(Object, code))
        delta.__dict__["code_execution"] = turn.code.copy()


def _signed(part: shapes.Part) -> Object:
    """A part's signature, as `_signature` finds it again."""
    return build(Object, {"google": {"thought_signature": part.thoughtSignature}})


def _blocked(feedback: shapes.Feedback) -> ChunkChoice:
    """The choice of an answer without candidates: the prompt was refused."""
    refusal = f"Gemini refused the prompt: {feedback.blockReason}"
    if feedback.blockReasonMessage:
        refusal += f" ({feedback.blockReasonMessage})"
    return ChunkChoice(0, Delta("assistant", refusal=refusal), "content_filter")


def _logprobs(result: shapes.Logprobs) -> Iterator[dict[str, Any]]:
    for position, token in enumerate(result.chosenCandidates):
        top = result.topCandidates[position].candidates if position < len(result.topCandidates) else []
        yield {**_logprob(token), "top_logprobs": [_logprob(other) for other in top]}


def _logprob(token: shapes.Token) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logProbability, "bytes": None}


def _usage(counts: shapes.Usage) -> Usage:
    # Results of the API's own tools are read by the model as more of the prompt, and paid as such.
    prompt = counts.promptTokenCount + counts.toolUsePromptTokenCount
    completion = counts.candidatesTokenCount + counts.thoughtsTokenCount
    given = TokensDetails(counts.cachedContentTokenCount)
    if counts.promptTokensDetails:
        _by_modality(given, counts.promptTokensDetails)
    answered = TokensDetails(None, None, counts.thoughtsTokenCount)
    if counts.candidatesTokensDetails:
        _by_modality(answered, counts.candidatesTokensDetails)
    total = prompt + completion if counts.totalTokenCount is None else counts.totalTokenCount
    return Usage(prompt, completion, total, given, answered)


def _by_modality(result: TokensDetails, details: tuple[shapes.Modality, ...]) -> None:
    for detail in details:
        if detail.modality == "AUDIO":
            result.audio_tokens = detail.tokenCount
        elif detail.modality == "IMAGE":
            result.image_tokens = detail.tokenCount
