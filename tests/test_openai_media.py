"""OpenAI's formats besides chat on recorded JSON; the examples are those of OpenAI's API reference and, where
named, of other servers.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import enum
import io
import json
import math
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pandas as pd
import pytest
from aiohttp import web

from nbllm.exceptions import UsageProblem
from nbllm.media import Speech
from nbllm.providers import (
    model_lists,
    multipart,
    openai_audio,
    openai_embeddings,
    openai_images,
    resolve,
)
from nbllm.providers.base import HttpRequest

ROUTE = resolve("text-embedding-3-small", base_url="https://host/v1/", api_key="sk-secret-key-123")
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(range(256))


def vector(*floats: float) -> str:
    return base64.b64encode(np.array(floats, "<f4").tobytes()).decode()


def embeddings(*rows: Any, **more: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    return json.dumps({"object": "list", "data": data, "model": "m", "usage": usage, **more}).encode()


# -- embeddings ------------------------------------------------------------------------------------


def test_the_smallest_embedding_request() -> None:
    request = openai_embeddings.embedding_request(ROUTE, ["Hi"], {})
    assert request.url == "https://host/v1/embeddings"
    assert json.loads(request.body or b"") == {
        "model": "text-embedding-3-small",
        "input": ["Hi"],
        "encoding_format": "base64",
    }
    assert request.headers == ROUTE.headers
    assert request.params is None


def test_parameters_of_an_embedding() -> None:
    params = {"dimensions": 256, "user": None, "encoding_format": "float"}
    request = openai_embeddings.embedding_request(ROUTE, ["Hi"], params, {"input_type": "query"})
    shown = {"dimensions": 256, "encoding_format": "float", "input_type": "query"}
    assert json.loads(request.params or b"") == shown
    assert json.loads(request.body or b"") == {"model": "text-embedding-3-small", "input": ["Hi"], **shown}
    body = openai_embeddings.embedding_request(ROUTE, ["Hi"], {"encoding_format": None}).body
    assert "encoding_format" not in json.loads(body or b"")


class Word(str, enum.Enum):  # noqa: UP042 (prints as Word.HI)
    HI = "Hi"


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("Hi", ["Hi"]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([(1, 2), (3,)], [[1, 2], [3]]),
        (pd.Series(["a", "b"], index=[7, 8]), ["a", "b"]),
        (np.array([1, 2]), [[1, 2]]),
        (np.array(["a"]), ["a"]),
        ([np.array([1, 2])], [[1, 2]]),
        ([np.int64(1)], [[1]]),
        ([Word.HI], ["Hi"]),
    ],
)
def test_inputs(given: Any, inputs: list[Any]) -> None:
    checked = openai_embeddings.checked_inputs(given)
    assert checked == inputs
    assert json.loads(openai_embeddings.embedding_request(ROUTE, checked, {}).body or b"")["input"] == inputs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "not None"),
        (1, "not int"),
        (b"Hi", "not bytes"),
        ({"a": 1}, "not dict"),
        (pd.DataFrame({"a": ["x"]}), "not DataFrame"),
        ([], "nothing to embed"),
        ("", r"input\[0\] is empty"),
        (["a", ""], r"input\[1\] is empty"),
        ([[1], []], r"input\[1\] is empty"),
        (["a", None], r"input\[1\] is a text or a list of tokens, not None"),
        (pd.Series(["a", math.nan]), r"input\[1\] .* not float"),
        ([1, "a"], r"input\[0\] .* not int"),
        (["a", [1]], r"texts or tokens, not both"),
        ([[1, "a"]], "whole numbers"),
        ([[True]], "whole numbers"),
        ([[[1]]], "whole numbers"),
        ([1.5], "not float"),
    ],
)
def test_inputs_that_cannot_work(given: Any, said: str) -> None:
    with pytest.raises(UsageProblem, match=said):
        openai_embeddings.checked_inputs(given)


def test_inputs_are_split_by_number_and_size() -> None:
    split = openai_embeddings.split_inputs
    assert split(["a"] * 5, most=2) == [["a", "a"], ["a", "a"], ["a"]]
    assert [len(part) for part in split(["a"] * 5000)] == [2048, 2048, 904]
    assert split(["aaa", "bb", "c", "dddd"], most_bytes=5) == [["aaa", "bb"], ["c", "dddd"]]
    assert split(["a" * 9, "b", "c" * 9, "d"], most_bytes=5) == [["a" * 9], ["b"], ["c" * 9], ["d"]]
    assert split(["é", "é"], most_bytes=3) == [["é"], ["é"]]
    assert split([[1, 2], [3, 4]], most_bytes=3) == [[[1, 2]], [[3, 4]]]
    assert split([]) == []


@pytest.mark.parametrize("more", [{}, {"provider": "x"}], ids=["strict", "lenient"])
@pytest.mark.parametrize(
    "rows",
    [
        (vector(0.5, -1.0), vector(2.0, 4.0)),
        ([0.5, -1.0], [2.0, 4.0]),
        ([0.5, -1], [2, 4]),
    ],
    ids=["base64", "floats", "integers"],
)
def test_embeddings_as_they_come(rows: Any, more: dict[str, Any]) -> None:
    answer = openai_embeddings.embedding_response(embeddings(*rows, **more), 2)
    np.testing.assert_array_equal(answer.array, np.array([[0.5, -1], [2, 4]], np.float32))
    assert answer.data[1].embedding == [2.0, 4.0]
    assert all(type(number) is float for number in answer.data[1].embedding)
    assert answer.model == "m"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 8


def test_numbers_keep_their_digits() -> None:
    assert openai_embeddings.embedding_response(embeddings([0.1, 0.2])).data[0].embedding == [0.1, 0.2]


def test_rows_come_in_the_order_of_the_inputs() -> None:
    def answer(*indexes: Any) -> list[float]:
        rows = [{"index": index, "embedding": [float(place)]} for place, index in enumerate(indexes)]
        made = openai_embeddings.embedding_response(json.dumps({"data": rows}).encode())
        assert [row.index for row in made.data] == list(range(len(rows)))
        return [row.embedding[0] for row in made.data]

    assert answer(2, 0, 1) == [1.0, 2.0, 0.0]
    assert answer(0, 0, 0) == [0.0, 1.0, 2.0]
    assert answer(None, None) == [0.0, 1.0]
    assert answer("1", [], None) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": []}',
        b'{"data": "AAAA"}',
        b'{"data": [1, 2]}',
        b'{"data": [{}]}',
        b'{"data": [{"embedding": null}]}',
        b'{"data": [{"embedding": []}]}',
        b'{"data": [{"embedding": ""}]}',
        embeddings("not base64!"),
        embeddings("AAA"),
        embeddings("AAAAAAA="),  # five bytes
        embeddings([0.1, None]),
        embeddings([0.1, "0.2"]),
        embeddings([[0.1]]),
        embeddings({"a": 1}),
        embeddings([0.1], [0.1, 0.2]),
        embeddings(vector(0.1), vector(0.1, 0.2)),
    ],
)
def test_answers_that_are_no_embeddings(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        openai_embeddings.embedding_response(body)


def test_an_answer_of_too_few_embeddings() -> None:
    with pytest.raises(msgspec.DecodeError, match="3 embeddings were expected, not 2"):
        openai_embeddings.embedding_response(embeddings([0.1], [0.2]), 3)


def test_answers_are_joined() -> None:
    parts = [
        openai_embeddings.embedding_response(embeddings(*rows)) for rows in ([[1.0], [2.0]], [vector(3)])
    ]
    for cost, part in enumerate(parts):
        part.__dict__["_request"] = SimpleNamespace(cost=partial(float, cost + 0.5))
    whole = openai_embeddings.joined(parts)
    assert whole.array.tolist() == [[1.0], [2.0], [3.0]]
    assert [row.index for row in whole.data] == [0, 1, 2]
    assert parts[1].data[0].index == 0
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.total_tokens) == (16, 16)
    assert (whole.model, whole.object) == ("m", "list")
    assert whole.cost_usd == 2.0
    assert len(whole.requests) == 2


def test_tokens_that_are_not_known_have_no_sum() -> None:
    part = openai_embeddings.embedding_response(embeddings([1.0]))
    silent = openai_embeddings.embedding_response(embeddings([1.0], usage=None))
    whole = openai_embeddings.joined([part, silent])
    assert whole.usage is not None
    assert whole.usage.prompt_tokens is None
    assert openai_embeddings.joined([part]) is part


# -- images ----------------------------------------------------------------------------------------


def test_an_image_request() -> None:
    route = resolve("gpt-image-1", base_url="https://host/v1", api_key="sk-secret-key-123")
    request = openai_images.image_request(route, "A cat", {"n": 2, "size": "1024x1024", "user": None})
    assert request.url == "https://host/v1/images/generations"
    shown = {"n": 2, "size": "1024x1024"}
    assert json.loads(request.body or b"") == {"model": "gpt-image-1", "prompt": "A cat", **shown}
    assert json.loads(request.params or b"") == shown


def test_a_stream_is_refused() -> None:
    with pytest.raises(UsageProblem, match="stream"):
        openai_images.image_request(ROUTE, "A cat", {"stream": True})


def test_images() -> None:
    body = b"""{"created": 1713833628, "data": [{"b64_json": "iVBORw0KGgo="}], "background": "opaque",
        "output_format": "png", "quality": "high", "size": "1024x1024", "usage": {"total_tokens": 100,
        "input_tokens": 50, "output_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}}"""
    answer = openai_images.image_response(body)
    assert answer.data[0].bytes == b"\x89PNG\r\n\x1a\n"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details is not None
    assert answer.usage.input_tokens_details.image_tokens == 40
    url = b'{"created": 1, "data": [{"url": "https://x/a.png", "revised_prompt": "A fat cat"}], "new": [1]}'
    answer = openai_images.image_response(url)
    assert answer.data[0].revised_prompt == "A fat cat"
    assert answer["new"] == [1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": []}',
        b'{"data": [{}]}',
        b'{"data": [{"b64_json": "#"}]}',
        b'{"data": [{"b64_json": 1}]}',
        b'{"data": [{"b64_json": "\xc3\xa9"}]}',
    ],
)
def test_answers_that_are_no_images(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        openai_images.image_response(body)


# -- speech ----------------------------------------------------------------------------------------


def test_a_speech_request() -> None:
    request = openai_audio.speech_request(ROUTE, "Hello", "alloy", {"speed": 1.5, "instructions": None})
    assert request.url == "https://host/v1/audio/speech"
    shown = {"voice": "alloy", "speed": 1.5}
    assert json.loads(request.body or b"") == {"model": ROUTE.model, "input": "Hello", **shown}
    assert json.loads(request.params or b"") == shown


def test_speech() -> None:
    speech = openai_audio.speech_response(b"ID3", "audio/mpeg")
    assert (speech.content, speech.content_type) == (b"ID3", "audio/mpeg")
    assert openai_audio.speech_response(b"x", None).content == b"x"


@pytest.mark.parametrize(
    ("body", "kind"), [(b"", "audio/mpeg"), (b"{}", "application/json"), (b"<html>", "text/html")]
)
def test_answers_that_are_no_speech(body: bytes, kind: str) -> None:
    with pytest.raises(msgspec.DecodeError, match=kind):
        openai_audio.speech_response(body, kind)


# -- transcriptions --------------------------------------------------------------------------------


def parts_of(request: HttpRequest) -> list[tuple[str, str | None, str, bytes]]:
    """Field name, file name, content type and bytes of each part, as Python's email package reads them."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(head + (request.body or b""))
    return [
        (
            str(part.get_param("name", header="content-disposition")),
            part.get_filename(),
            part.get_content_type(),
            part.get_payload(decode=True),  # type: ignore[misc]
        )
        for part in message.iter_parts()
    ]


def test_a_transcription_request() -> None:
    params = {
        "language": "de",
        "prompt": None,
        "temperature": np.float64(0.5),
        "timestamp_granularities": ["word", "segment"],
        "chunking_strategy": {"type": "server_vad", "threshold": 0.25},
    }
    request = openai_audio.transcription_request(ROUTE, "a.wav", WAV, params, {"diarize": True})
    assert request.url == "https://host/v1/audio/transcriptions"
    assert request.headers["Authorization"] == ROUTE.headers["Authorization"]
    assert [name for name in request.headers if name.lower() == "content-type"] == ["Content-Type"]
    assert [(name, data) for name, _, _, data in parts_of(request)] == [
        ("model", b"text-embedding-3-small"),
        ("language", b"de"),
        ("temperature", b"0.5"),
        ("timestamp_granularities[]", b"word"),
        ("timestamp_granularities[]", b"segment"),
        ("chunking_strategy[type]", b"server_vad"),
        ("chunking_strategy[threshold]", b"0.25"),
        ("diarize", b"true"),
        ("file", WAV),
    ]
    assert parts_of(request)[-1][1:3] == ("a.wav", "audio/wav")
    assert json.loads(request.params or b"")["timestamp_granularities"] == ["word", "segment"]
    assert openai_audio.transcription_request(ROUTE, "a.wav", WAV, {}).params is None
    with pytest.raises(UsageProblem):
        openai_audio.transcription_request(ROUTE, "a.wav", WAV, {"prompt": object()})


async def test_a_real_server_reads_the_form() -> None:
    seen: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                seen.append((name, value.filename, value.content_type, value.file.read()))
                value.file.close()
            else:
                seen.append((name, value))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    data = b"\r\n--x\r\n" + bytes(range(256)) * 100 + b"\r\n"
    fields = [("a", "1"), ("a", "zwei ü\r\n--x--\r\n"), ('q"\r\nX: y', "")]
    body, kind = multipart.encode(fields, [("file", 'ü "b"\r\nX: y.mp3', data, "audio/mpeg")])
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/"
        async with session.post(url, data=body, headers={"Content-Type": kind}) as response:
            assert response.status == 200
    await runner.cleanup()
    assert seen[:2] == fields[:2]
    # Some readers undo the escapes.
    assert seen[2] in [("q%22%0D%0AX: y", ""), ('q"\r\nX: y', "")]
    assert seen[3] in [
        ("file", name, "audio/mpeg", data) for name in ("ü %22b%22%0D%0AX: y.mp3", 'ü "b"\r\nX: y.mp3')
    ]


def test_a_form_of_odd_names() -> None:
    body, _ = multipart.encode([], [("file", "a\udcff.wav", b"", "audio/wav")])
    assert b'filename="a?.wav"' in body
    assert multipart.encode([], [])[1] != multipart.encode([], [])[1]


def test_audio_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.mp3"
    path.write_bytes(b"ID3")
    monkeypatch.setenv("HOME", str(tmp_path))
    read = openai_audio.audio_file
    assert read(path) == read(str(path)) == read("~/talk.mp3") == ("talk.mp3", b"ID3")
    with path.open("rb") as file:
        assert read(file) == ("talk.mp3", b"ID3")
    assert read(WAV) == read(bytearray(WAV)) == read(memoryview(WAV)) == ("audio.wav", WAV)
    assert read(io.BytesIO(WAV)) == ("audio.wav", WAV)
    assert read(("x.ogg", WAV)) == ("x.ogg", WAV)
    assert read(("x", io.BytesIO(WAV))) == ("x.wav", WAV)
    assert read(Speech(content=WAV)) == ("audio.wav", WAV)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/no/such/file.wav", "can't be read: .*No such file"),
        ("/", "can't be read"),
        (b"", "is empty"),
        (b"what is this?", "none of wav, mp3"),
        (io.StringIO("text"), "'rb'.* not StringIO"),
        (None, "not None"),
        (("a.wav", "text"), "not str"),
        (("a.wav", b"x", "audio/wav"), "not tuple"),
        (1, "not int"),
    ],
)
def test_audio_that_cannot_work(file: Any, said: str) -> None:
    with pytest.raises(UsageProblem, match=said):
        openai_audio.audio_file(file)


def test_transcriptions() -> None:
    body = b"""{"text": "Imagine", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45,
        "total_tokens": 59, "input_token_details": {"text_tokens": 0, "audio_tokens": 14}}}"""
    answer = openai_audio.transcription_response(body, "application/json")
    assert answer.text == "Imagine"
    assert answer.usage is not None
    assert answer.usage.input_token_details is not None
    assert answer.usage.input_token_details.audio_tokens == 14
    verbose = b"""{"task": "transcribe", "language": "english", "duration": 8.470000267028809, "text": "The",
        "segments": [{"id": 0, "seek": 0, "start": 0.0, "end": 3.319999933242798, "text": " The",
        "tokens": [50364, 440], "temperature": 0.0, "avg_logprob": -0.286, "compression_ratio": 1.236,
        "no_speech_prob": 0.00985}], "words": [{"word": "The", "start": 0.0, "end": 0.23}],
        "usage": {"type": "duration", "seconds": 9}, "x_groq": {"id": "req_1"}}"""
    answer = openai_audio.transcription_response(verbose, "application/json; charset=utf-8")
    assert answer.duration == 8.470000267028809
    assert answer.segments is not None
    assert answer.segments[0].tokens == [50364, 440]
    assert answer.words is not None
    assert answer.words[0].end == 0.23
    assert answer.usage is not None
    assert answer.usage.seconds == 9
    assert answer["x_groq"]["id"] == "req_1"


def test_a_transcription_as_text() -> None:
    srt = "1\n00:00:00,000 --> 00:00:03,000\nGrüß Gott\n"
    answer = openai_audio.transcription_response(srt.encode(), "text/plain; charset=utf-8")
    assert answer.text == srt


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b"{}", "application/json"),
        (b"{}", None),
        (b'{"text": null}', "application/json"),
        (b'{"text": 1}', "application/json"),
        (b"<html>", "text/html"),
        (b"\xff", "text/plain"),
    ],
)
def test_answers_that_are_no_transcription(body: bytes, kind: str | None) -> None:
    with pytest.raises(msgspec.DecodeError):
        openai_audio.transcription_response(body, kind)


# -- models ----------------------------------------------------------------------------------------


def test_the_url_of_models() -> None:
    assert model_lists.models_url(ROUTE) == "https://host/v1/models"


def test_models_of_openai() -> None:
    body = b"""{"object": "list", "data": [{"id": "gpt-4o", "object": "model", "created": 1686935002,
        "owned_by": "openai"}, {"id": "own", "object": "model", "created": 0, "owned_by": null}]}"""
    models = model_lists.models_response(body, "openai")
    created = datetime(2023, 6, 16, 17, 3, 22, tzinfo=UTC)
    assert models == [
        {"id": "gpt-4o", "provider": "openai", "created": created, "owned_by": "openai"},
        {"id": "own", "provider": "openai", "created": None, "owned_by": None},
    ]


def test_models_of_anthropic() -> None:
    body = b"""{"data": [{"type": "model", "id": "claude-sonnet-4-20250514",
        "display_name": "Claude Sonnet 4", "created_at": "2025-02-19T00:00:00Z"}, {
        "type": "model", "id": "claude-x", "display_name": "X",
        "created_at": "1970-01-01T00:00:00Z"}], "first_id": "a", "has_more": false, "last_id": "b"}"""
    models = model_lists.models_response(body, "anthropic")
    assert [model["created"] for model in models] == [datetime(2025, 2, 19, tzinfo=UTC), None]
    assert models[0]["id"] == "claude-sonnet-4-20250514"


def test_models_of_gemini() -> None:
    body = b"""{"models": [{"name": "models/gemini-2.0-flash", "version": "2.0",
        "displayName": "Gemini 2.0 Flash", "inputTokenLimit": 1048576, "outputTokenLimit": 8192,
        "supportedGenerationMethods": ["generateContent", "countTokens"]}]}"""
    assert [model["id"] for model in model_lists.models_response(body, "gemini")] == ["gemini-2.0-flash"]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"object": "list", "data": null}', []),  # Ollama without a model
        (
            b'{"object": "list", "data": [{"id": "qwen2.5-7b", "object": "model"}]}',
            ["qwen2.5-7b"],
        ),  # LM Studio
        (b'[{"id": "a", "created": 1692896905, "organization": "o"}]', ["a"]),  # Together
        (b'{"models": [{"name": "x"}], "data": [{"id": "y"}]}', ["y"]),  # llama.cpp
        (b'{"data": [1, null, {}, {"id": "a"}]}', ["a"]),
    ],
)
def test_models_of_others(body: bytes, ids: list[str]) -> None:
    assert [model["id"] for model in model_lists.models_response(body, "p")] == ids


@pytest.mark.parametrize("created", ["1e300", "-5", '"soon"', '"2024-13-01"', "[]", "{}", "1e12"])
def test_a_time_that_cannot_be_is_unknown(created: str) -> None:
    body = f'{{"data": [{{"id": "a", "created": {created}}}]}}'.encode()
    assert model_lists.models_response(body, "p")[0]["created"] is None


@pytest.mark.parametrize("body", [b"", b"{}", b"1", b'{"data": {}, "object": 1}', b'{"data": "a"}', b'"x"'])
def test_answers_that_are_no_models(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        model_lists.models_response(body, "p")
