"""Google's Gemini API: OpenAI's chat parameters → generateContent, its answers → OpenAI's shapes; embeddings.

Source: Gemini API reference (v1beta), "Generating content", "Embeddings", with the guides "Function calling",
"Thinking", "Thought signatures", "Structured output". Where Google's own layer for OpenAI clients has a name
or a mapping (guide "OpenAI compatibility"), this module takes the same.

A module of over 250 lines: the two directions share the rules of signatures and tool call ids.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from ..assembly import Assembly
from ..exceptions import UnsupportedParamsError, UsageProblem
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
    parse,
)
from .base import HttpRequest, Route
from .encoding import encode
from .openai import CHAT_PARAMETERS

T = TypeVar("T")

# -- requests ------------------------------------------------------------------------------------------

# Parameters that stand under another name in generationConfig.
_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}

# Left out, since the answer is the same without them: Gemini has no field for an end user's id, caches and
# counts tokens without being asked.
_NEEDLESS = frozenset({"user", "safety_identifier", "prompt_cache_key", "stream_options"})

# Guide "OpenAI compatibility", "Thinking": tokens for the models of Gemini 2.5.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}

_CALLING_MODES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}

# Guide "Thought signatures": what stands for the signature of a call that Gemini did not make.
_NO_SIGNATURE = "skip_thought_signature_validator"


def chat_request(
    route: Route,
    messages: list[Any],
    stream: bool,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for a chat completion.

    System and developer messages become the one `systemInstruction`, wherever they stand. What is no
    parameter of OpenAI's goes into the body as it is (`safety_settings`, `cachedContent`; the API takes snake
    and camel case), as `extra_body` does, whose `generationConfig` adds to the translated one. `metadata` is
    for the log alone: there is no field for it.

    Raises:
        UsageProblem: A message or value that can't work.
        UnsupportedParamsError: A parameter of OpenAI's without an equivalent.
    """
    sent = {name: value for name, value in params.items() if value is not None}
    system, contents = _contents(messages, signed=_has_levels(route.model))
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    config: dict[str, Any] = {}
    for name, value in sent.items():
        _translate(name, value, route, body, config)
    if "reasoning_effort" in sent and "thinking" in sent:
        raise UsageProblem("reasoning_effort and thinking say the same to Gemini: give one of them")
    body |= extra_body or {}
    if "generationConfig" in body:
        config |= _member(body, "generationConfig", "extra_body")
    if config:
        body["generationConfig"] = config
    shown = {**sent, **(extra_body or {}), **({"metadata": metadata} if metadata else {})}
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return HttpRequest(
        f"{route.base_url}/{_resource(route.model)}:{verb}",
        encode(body),
        route.headers,
        encode(shown) if shown else None,
    )


def _resource(model: str) -> str:
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _has_levels(model: str) -> bool:
    """Whether a model thinks in levels and wants its signatures back, as those from Gemini 3 on do."""
    return not _resource(model).startswith(("models/gemini-1", "models/gemini-2", "tunedModels/"))


def _unsupported(route: Route, what: str) -> UnsupportedParamsError:
    name = route.provider.name
    return UnsupportedParamsError(f"{name}: {what}: leave it out", model=route.asked, llm_provider=name)


def _translate(name: str, value: Any, route: Route, body: dict[str, Any], config: dict[str, Any]) -> None:
    """Put one parameter into the body or into its generationConfig."""
    match name:
        case "stop":
            config["stopSequences"] = [value] if isinstance(value, str) else value
        case "response_format":
            config |= _response_format(value)
        case "reasoning_effort":
            config["thinkingConfig"] = _effort(value, route)
        case "thinking":
            config["thinkingConfig"] = _thinking(value)
        case "modalities":
            if not isinstance(value, list) or any(kind not in ("text", "image") for kind in value):
                raise _unsupported(route, f"only text and image are read of modalities={value!r}")
            config["responseModalities"] = [kind.upper() for kind in value]
        case "tools":
            body["tools"] = _tools(value, route)
        case "tool_choice":
            body["toolConfig"] = {"functionCallingConfig": _calling(value, route)}
        case "service_tier":
            if value != "auto":  # which leaves it to the provider, as nothing does
                body["serviceTier"] = "standard" if value == "default" else value
        case "parallel_tool_calls" if value is True:
            pass  # as Gemini does anyway
        case "store":
            body["store"] = value
        case _ if name in _CONFIG:
            config[_CONFIG[name]] = value
        case _ if name in _NEEDLESS:
            pass
        case _ if name in CHAT_PARAMETERS:
            raise _unsupported(route, f"there is no equivalent of {name}={value!r:.80}")
        case _:
            body[name] = value


def _response_format(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = _member(value, "json_schema", "response_format").get("schema")
        # Not responseSchema, which takes only a part of OpenAPI's schemas.
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise UsageProblem(f"response_format must have the type text, json_object or json_schema: {value!r}")


def _effort(value: Any, route: Route) -> dict[str, Any]:
    if not isinstance(value, str) or value not in _BUDGETS:
        raise _unsupported(route, f"reasoning_effort={value!r} is none of {', '.join(_BUDGETS)}")
    if not _has_levels(route.model):
        return {"thinkingBudget": _BUDGETS[value], "includeThoughts": value != "none"}
    if value == "none":
        raise _unsupported(
            route, f"{route.model} always thinks, at least a 'low' reasoning_effort, not 'none'"
        )
    return {"thinkingLevel": value, "includeThoughts": True}


def _thinking(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "disabled":
        return {"thinkingBudget": 0}
    if kind == "enabled":  # -1: as much as the model thinks right
        return {"thinkingBudget": value.get("budget_tokens", -1), "includeThoughts": True}
    raise UsageProblem(f"thinking must be like {{'type': 'enabled', 'budget_tokens': 1024}}: {value!r}")


def _tools(value: Any, route: Route) -> list[Any]:
    """Gemini's own tools, such as `{"google_search": {}}`, as they are; functions as one tool."""
    if not isinstance(value, list):
        raise UsageProblem(f"tools must be a list, not {value!r:.80}")
    tools: list[Any] = []
    functions: list[dict[str, Any]] = []
    for tool in value:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "function":
            function = _member(tool, "function", "tools")
            declared = {name: function[name] for name in ("name", "description") if function.get(name)}
            if function.get("parameters"):  # the field `parameters` is OpenAPI's, not JSON Schema
                declared["parametersJsonSchema"] = function["parameters"]
            functions.append(declared)
        elif kind is None:
            tools.append(tool)
        else:
            raise _unsupported(route, f"there is no tool of type {kind!r}")
    return [*tools, {"functionDeclarations": functions}] if functions else tools


def _calling(value: Any, route: Route) -> dict[str, Any]:
    if isinstance(value, str) and value in _CALLING_MODES:
        return {"mode": _CALLING_MODES[value]}
    if isinstance(value, dict) and value.get("type") == "function":
        return {
            "mode": "ANY",
            "allowedFunctionNames": [_member(value, "function", "tool_choice").get("name")],
        }
    raise _unsupported(route, f"tool_choice={value!r} is not none, auto, required or one function")


# -- messages ------------------------------------------------------------------------------------------


def _contents(messages: list[Any], signed: bool) -> tuple[list[Any], list[dict[str, Any]]]:
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
        role = "model" if role == "assistant" else "user"
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
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
        function = _member(call, "function", f"{where} tool_calls[{number}]")
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


def _arguments(function: dict[str, Any], where: str) -> dict[str, Any]:
    arguments = function.get("arguments") or {}
    decoded = _json(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(decoded, dict):
        raise UsageProblem(f"{where}: the arguments of a tool call must be a JSON object: {arguments!r}")
    return decoded


def _json(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return parse(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _tool_result(message: dict[str, Any], names: dict[Any, Any], where: str) -> dict[str, Any]:
    call = message.get("tool_call_id")
    name = names.get(call) or message.get("name")
    if not name:
        raise UsageProblem(f"{where}: no earlier assistant message has a tool call with the id {call!r}")
    parts = _parts(message.get("content"), where)
    if any("text" not in part for part in parts):
        raise UsageProblem(f"{where}: the result of a tool must be text")
    text = "".join(part["text"] for part in parts)
    result = _json(text)
    response = {"name": name, "response": result if isinstance(result, dict) else {"result": text}}
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
        return _media(image if isinstance(image, str) else _member(part, kind, where).get("url"), where)
    if kind == "input_audio":
        audio = _member(part, kind, where)
        return {"inlineData": {"mimeType": f"audio/{audio.get('format')}", "data": audio.get("data")}}
    if kind == "file":
        file = _member(part, kind, where)
        return _media(file.get("file_data") or file.get("file_id"), where)
    raise UsageProblem(f"{where}: Gemini takes no content part of type {kind!r}")


def _media(url: Any, where: str) -> dict[str, Any]:
    """A part for a data: URL, or for the address of a file: http(s), gs:// or one of the Files API."""
    if not isinstance(url, str) or ":" not in url:
        raise UsageProblem(f"{where}: an image or file needs a data: URL or an address, not {url!r:.80}")
    if url.startswith("data:"):
        kind, _, data = url[5:].partition(",")
        if not kind.endswith(";base64"):
            raise UsageProblem(f"{where}: a data: URL must be like data:image/png;base64,…")
        return {"inlineData": {"mimeType": kind.removesuffix(";base64"), "data": data}}
    guessed = mimetypes.guess_type(urlsplit(url).path, strict=False)[0]  # strict leaves out image/webp
    return {"fileData": {"fileUri": url, **({"mimeType": guessed} if guessed else {})}}


def _member(item: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, dict):
        raise UsageProblem(f"{where}: {name} must be an object, not {value!r}")
    return value


# -- answers -------------------------------------------------------------------------------------------

# What is read of an answer, under the API's names. Fields that are not here are skipped.


class _FunctionCall(msgspec.Struct):
    name: str | None = None
    args: dict[str, Any] | None = None
    id: str | None = None


class _Blob(msgspec.Struct):
    mimeType: str = ""
    data: str = ""


class _Part(msgspec.Struct):
    text: str | None = None
    thought: bool = False
    thoughtSignature: str | None = None
    functionCall: _FunctionCall | None = None
    inlineData: _Blob | None = None
    executableCode: dict[str, Any] | None = None
    codeExecutionResult: dict[str, Any] | None = None


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Token(msgspec.Struct):
    token: str | None = None
    logProbability: float | None = None


class _TopTokens(msgspec.Struct):
    candidates: list[_Token] = []


class _Logprobs(msgspec.Struct):
    chosenCandidates: list[_Token] = []
    topCandidates: list[_TopTokens] = []


class _Candidate(msgspec.Struct):
    index: int = 0
    content: _Content | None = None
    finishReason: str | None = None
    finishMessage: str | None = None
    logprobsResult: _Logprobs | None = None
    groundingMetadata: dict[str, Any] | None = None
    citationMetadata: dict[str, Any] | None = None
    urlContextMetadata: dict[str, Any] | None = None


class _Modality(msgspec.Struct):
    modality: str = ""
    tokenCount: int = 0


class _Usage(msgspec.Struct):
    # Counts that are 0 are left out on the wire.
    promptTokenCount: int = 0
    candidatesTokenCount: int = 0
    thoughtsTokenCount: int = 0
    toolUsePromptTokenCount: int = 0
    cachedContentTokenCount: int = 0
    totalTokenCount: int | None = None
    promptTokensDetails: list[_Modality] = []
    candidatesTokensDetails: list[_Modality] = []


class _Feedback(msgspec.Struct):
    blockReason: str | None = None
    blockReasonMessage: str | None = None


class _Event(msgspec.Struct):
    candidates: list[_Candidate] = []
    promptFeedback: _Feedback | None = None
    usageMetadata: _Usage | None = None
    modelVersion: str | None = None
    responseId: str | None = None
    error: Any = None


# Other reasons, such as MALFORMED_FUNCTION_CALL, are kept in lower case: none of OpenAI's says what happened.
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"} | dict.fromkeys(
    (
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    ),
    "content_filter",
)


def _checked(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """A reader of JSON whose only error is msgspec.DecodeError."""

    def checked(data: bytes) -> T:
        try:
            return read(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    return checked


_decode_event = msgspec.json.Decoder(_Event).decode


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
    return _checked(_Stream().chunk)


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

    def chunk(self, data: bytes) -> ChatCompletionChunk | None:
        event = _decode_event(data)
        if event.error is not None:
            chunk = ChatCompletionChunk()
            chunk.__dict__["error"] = event.error
            return chunk
        choices = [self._choice(candidate, event.responseId) for candidate in event.candidates]
        if not choices and event.promptFeedback is not None and event.promptFeedback.blockReason:
            choices = [_blocked(event.promptFeedback)]
        if not choices and event.usageMetadata is None:
            return None
        return ChatCompletionChunk(
            event.responseId,
            "chat.completion.chunk",
            None,
            event.modelVersion,
            choices,
            None if event.usageMetadata is None else _usage(event.usageMetadata),
        )

    def _choice(self, candidate: _Candidate, response_id: str | None) -> ChunkChoice:
        turn = self._turns.get(candidate.index)
        delta = Delta()
        if turn is None:
            turn = self._turns[candidate.index] = _Turn()
            delta.role = "assistant"
        if candidate.content is not None:
            for part in candidate.content.parts:
                if part.text is None:
                    _add_part(delta, part, turn, f"call_{response_id or ''}_{candidate.index}_{turn.calls}")
                elif part.thought:
                    delta.reasoning_content = (delta.reasoning_content or "") + part.text
                else:
                    delta.content = (delta.content or "") + part.text
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


def _add_part(delta: Delta, part: _Part, turn: _Turn, call_id: str) -> None:
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


def _signed(part: _Part) -> Object:
    """A part's signature, as `_signature` finds it again."""
    return build(Object, {"google": {"thought_signature": part.thoughtSignature}})


def _blocked(feedback: _Feedback) -> ChunkChoice:
    """The choice of an answer without candidates: the prompt was refused."""
    refusal = f"Gemini refused the prompt: {feedback.blockReason}"
    if feedback.blockReasonMessage:
        refusal += f" ({feedback.blockReasonMessage})"
    return ChunkChoice(0, Delta("assistant", refusal=refusal), "content_filter")


def _logprobs(result: _Logprobs) -> Iterator[dict[str, Any]]:
    for position, token in enumerate(result.chosenCandidates):
        top = result.topCandidates[position].candidates if position < len(result.topCandidates) else []
        yield {**_logprob(token), "top_logprobs": [_logprob(other) for other in top]}


def _logprob(token: _Token) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logProbability, "bytes": None}


def _usage(counts: _Usage) -> Usage:
    # Results of the API's own tools are read by the model as more of the prompt, and paid as such.
    prompt = counts.promptTokenCount + counts.toolUsePromptTokenCount
    completion = counts.candidatesTokenCount + counts.thoughtsTokenCount
    return Usage(
        prompt,
        completion,
        prompt + completion if counts.totalTokenCount is None else counts.totalTokenCount,
        TokensDetails(counts.cachedContentTokenCount, audio_tokens=_audio(counts.promptTokensDetails)),
        TokensDetails(
            None, None, counts.thoughtsTokenCount, audio_tokens=_audio(counts.candidatesTokensDetails)
        ),
    )


def _audio(details: list[_Modality]) -> int | None:
    for detail in details:
        if detail.modality == "AUDIO":
            return detail.tokenCount
    return None


# -- embeddings ----------------------------------------------------------------------------------------


class _Embedding(msgspec.Struct):
    values: list[float] = []


class _Embeddings(msgspec.Struct):
    embeddings: list[_Embedding] = []
    usageMetadata: _Usage | None = None


_decode_embeddings = _checked(msgspec.json.Decoder(_Embeddings).decode)


def embedding_request(
    route: Route,
    inputs: list[str],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> HttpRequest:
    """The request for the embeddings of some texts, at most 100 of them.

    `dimensions` is Gemini's `outputDimensionality`; its own `task_type` and `title` pass, as do the fields of
    `extra_body`, into the request of each text.

    Raises:
        UsageProblem: An input that is no text, or a value that JSON can't hold.
        UnsupportedParamsError: An `encoding_format` other than "float".
    """
    if not all(isinstance(text, str) for text in inputs):
        raise UsageProblem("Gemini makes embeddings of texts, not of token ids")
    sent = {name: value for name, value in params.items() if value is not None}
    each = dict(sent)
    if each.pop("encoding_format", "float") != "float":
        raise _unsupported(route, f"encoding_format={sent['encoding_format']!r} instead of floats")
    each.pop("user", None)  # no field for it, as in a chat
    if "dimensions" in each:
        each["outputDimensionality"] = each.pop("dimensions")
    model = _resource(route.model)
    each = {"model": model, **each, **(extra_body or {})}
    shown = {**sent, **(extra_body or {})}
    return HttpRequest(
        f"{route.base_url}/{model}:batchEmbedContents",
        encode({"requests": [{**each, "content": {"parts": [{"text": text}]}} for text in inputs]}),
        route.headers,
        encode(shown) if shown else None,
    )


def embedding_response(body: bytes) -> tuple[list[list[float]], Usage | None]:
    """The vectors in the order of the texts, and the tokens, which older models don't count.

    Raises:
        msgspec.DecodeError: The body is no JSON object, or not in Gemini's format.
    """
    answer = _decode_embeddings(body)
    usage = answer.usageMetadata
    counts = None
    if usage is not None:
        counts = Usage(prompt_tokens=usage.promptTokenCount, total_tokens=usage.promptTokenCount)
    return [embedding.values for embedding in answer.embeddings], counts
