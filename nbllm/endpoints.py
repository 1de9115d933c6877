"""The verbs beside chat: embeddings, images, speech, transcriptions, and what models there are.

Each is async with the prefix `a`, and has a synchronous twin of the same signature. The common options of all
verbs (`session_id`, `timeout`, `api_key`, `base_url`, `num_retries`, `fallbacks`, …) are those of
`acompletion`. A call's way is `calls`', the wire formats are `providers`', the results those of `embeddings`,
`media` and `results`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

import aiohttp

from . import calls, keys, loops, tracing
from .embeddings import Embedding, EmbeddingResponse
from .exceptions import APIError, UnsupportedParamsError, UsageProblem, did_you_mean
from .media import ImagesResponse, MediaUsage, Speech, Transcription, chat_usage
from .options import Options, take_options
from .providers import (
    PROVIDERS,
    HttpRequest,
    Route,
    gemini,
    model_lists,
    openai_audio,
    openai_embeddings,
    openai_images,
    resolve,
)
from .results import ModelList, Result

OPENAI_INPUTS, GEMINI_INPUTS = 2048, 100
"""How many inputs one request for embeddings may hold."""

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Result)


async def aembedding(model: str, input: Any, **params: Any) -> EmbeddingResponse:
    """Vectors for texts, in the order of the texts.

    Args:
        model: "text-embedding-3-small", "gemini/gemini-embedding-001", "ollama/nomic-embed-text", …
        input: A text, a list of texts, or lists of token ids. More than the provider takes at once is sent in
            several requests, one after the other.
        **params: `dimensions`, `encoding_format`, `user`, …, and the options of all verbs: see `acompletion`.

    Returns:
        An `EmbeddingResponse`: `data[i].embedding` is a list of floats, `.array` all of them as a float32
        array of shape (inputs, dimensions).

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed.
    """
    options = take_options(params)
    inputs = openai_embeddings.checked_inputs(input)
    most = GEMINI_INPUTS if str(model).startswith(("gemini/", "gemini-")) else OPENAI_INPUTS
    parts = openai_embeddings.split_inputs(inputs, most)
    return openai_embeddings.joined([await _embeddings(model, part, params, options) for part in parts])


async def _embeddings(
    model: str, inputs: list[Any], params: Mapping[str, Any], options: Options
) -> EmbeddingResponse:
    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        if route.provider.dialect == "gemini":
            return gemini.embedding_request(route, inputs, params, added)
        _needs_openais_format(route, "embeddings")
        return openai_embeddings.embedding_request(route, inputs, params, added)

    def decode(body: bytes, content_type: str | None, route: Route) -> EmbeddingResponse:
        if route.provider.dialect == "gemini":
            return _gemini_embeddings(body, route)
        return openai_embeddings.embedding_response(body, len(inputs))

    return await calls.run("embeddings", model, options, translate, _reader(decode))


async def aimage_generation(prompt: str, model: str = "gpt-image-1", **params: Any) -> ImagesResponse:
    """Pictures from a description; as the last line of a cell they show.

    Args:
        prompt: What shall be seen.
        model: "gpt-image-1", "dall-e-3", "azure/…", or any name together with `base_url`.
        **params: `n`, `size`, `quality`, `response_format`, …, and the options of all verbs: see
            `acompletion`.

    Returns:
        An `ImagesResponse`: `data[i].b64_json` or `data[i].url`, as the model gives them.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed.
    """
    options = take_options(params)

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        _needs_openais_format(route, "images")
        return openai_images.image_request(route, prompt, params, added)

    return await calls.run("image_generation", model, options, translate, _reader(_images))


async def aspeech(model: str, input: str, voice: str, **params: Any) -> Speech:
    """A text as spoken; as the last line of a cell it shows as a player.

    Args:
        model: "gpt-4o-mini-tts", "tts-1", "azure/…", or any name together with `base_url`.
        input: What shall be said.
        voice: Whose voice: "alloy", "nova", ….
        **params: `response_format`, `speed`, `instructions`, …, and the options of all verbs: see
            `acompletion`.

    Returns:
        A `Speech`: `.content` are the bytes, `.stream_to_file(path)` writes them.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed.
    """
    options = take_options(params)

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        _needs_openais_format(route, "speech")
        return openai_audio.speech_request(route, input, voice, params, added)

    return await calls.run("speech", model, options, translate, _reader(_speech))


async def atranscription(model: str, file: Any, **params: Any) -> Transcription:
    """What is said in a recording.

    Args:
        model: "whisper-1", "gpt-4o-transcribe", "groq/whisper-large-v3", "azure/…", ….
        file: A path, bytes, a binary file object, or a pair of name and bytes.
        **params: `language`, `prompt`, `response_format`, `temperature`, `timestamp_granularities`, …, and
            the options of all verbs: see `acompletion`.

    Returns:
        A `Transcription` with `.text`.

    Raises:
        UsageProblem: A value that can't work; nothing was sent.
        APIError: The call failed.
    """
    options = take_options(params)
    name, data = openai_audio.audio_file(file)

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        _needs_openais_format(route, "transcriptions")
        return openai_audio.transcription_request(route, name, data, params, added)

    return await calls.run("transcription", model, options, translate, _reader(_transcription))


async def amodels(provider: str | None = None, **options: Any) -> ModelList:
    """What models there are, as a list of dicts: `pd.DataFrame(nbllm.models())`.

    Args:
        provider: "openai", "anthropic", "ollama", …; None asks every provider whose key, or address, is set
            in the environment, and leaves out those that don't answer.
        **options: The options of all verbs: see `acompletion`.

    Returns:
        A `ModelList`: dicts with id, provider, created (UTC), owned_by. `f"{provider}/{id}"` is what
        `acompletion` takes.

    Raises:
        UsageProblem: No such provider.
        APIError: The one provider that was named can't be asked.
    """
    common = take_options(options)
    if provider is not None:
        return await _models_of(provider, common)
    if common.api_key or common.base_url or common.extra_headers or common.extra_query:
        raise UsageProblem("name the provider that api_key, base_url, extra_headers and extra_query are for")
    asked = [name for name in PROVIDERS if _is_configured(name)]
    answers = await asyncio.gather(*(_models_of(name, common) for name in asked), return_exceptions=True)
    found = ModelList()
    for answer in answers:
        if isinstance(answer, ModelList):
            found += answer
        elif not isinstance(answer, APIError):
            raise answer
    return found


def _twin(verb: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The verb for synchronous code: any cell, script or thread."""

    @functools.wraps(verb)
    def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        return loops.run_sync(verb(*args, **kwargs))

    twin.__name__ = twin.__qualname__ = verb.__name__.removeprefix("a")
    twin.__doc__ = (
        f"`{verb.__name__}` for synchronous code: any cell, script or thread.\n\n{inspect.getdoc(verb)}"
    )
    return twin


embedding = _twin(aembedding)
image_generation = _twin(aimage_generation)
speech = _twin(aspeech)
transcription = _twin(atranscription)
models = _twin(amodels)


async def _models_of(name: str, options: Options) -> ModelList:
    if not isinstance(name, str) or name not in PROVIDERS:
        raise UsageProblem(f"there is no provider {name!r}{did_you_mean(str(name), PROVIDERS)}")

    def translate(route: Route, added: Mapping[str, Any] | None) -> HttpRequest:
        return HttpRequest(model_lists.models_url(route), None, route.headers)

    async def read(call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> ModelList:
        _, found = await calls.read_answer(
            call, response, route, lambda body: model_lists.models_response(body, name)
        )
        return found

    return await calls.run("models", f"{name}/models", options, translate, read)


def _is_configured(name: str) -> bool:
    """Whether the environment has what it takes to ask a provider; of a server of one's own, its address."""
    if PROVIDERS[name].key_optional:
        return name in keys.configured_providers()
    try:
        resolve(f"{name}/x")
    except (APIError, UsageProblem):
        return False
    return True


def _needs_openais_format(route: Route, what: str) -> None:
    if route.provider.dialect != "openai":
        raise UnsupportedParamsError(
            f"nbllm knows no {what} of {route.provider.name}: ask a provider that speaks OpenAI's format",
            model=route.asked,
            llm_provider=route.provider.name,
        )


def _gemini_embeddings(body: bytes, route: Route) -> EmbeddingResponse:
    vectors, usage = gemini.embedding_response(body)
    rows = [Embedding(object="embedding", index=index, embedding=row) for index, row in enumerate(vectors)]
    return EmbeddingResponse(object="list", data=rows, model=route.model, usage=usage)


def _images(body: bytes, content_type: str | None, route: Route) -> ImagesResponse:
    return openai_images.image_response(body)


def _speech(body: bytes, content_type: str | None, route: Route) -> Speech:
    return openai_audio.speech_response(body, content_type)


def _transcription(body: bytes, content_type: str | None, route: Route) -> Transcription:
    return openai_audio.transcription_response(body, content_type)


def _reader(decode: Callable[[bytes, str | None, Route], R]) -> calls.Reader[R]:
    """From the response to the result, which `decode` makes of body and content type, and to the record."""

    async def read(call: tracing.Call, response: aiohttp.ClientResponse, route: Route) -> R:
        content_type = response.headers.get("Content-Type")
        _, answer = await calls.read_answer(
            call, response, route, lambda body: decode(body, content_type, route)
        )
        if (record := call.record) is not None:
            usage = answer.get("usage")
            if isinstance(usage, MediaUsage):
                record.audio_seconds = usage.seconds
                usage = chat_usage(usage)
            tracing.note_answer(record, None, answer.get("model"), usage)
            answer.__dict__["_request"] = record
        return answer

    return read
