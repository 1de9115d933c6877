"""The results of the verbs besides chat: what they hold, how they are kept, and how a cell shows them."""

from __future__ import annotations

import base64
import copy
import datetime
import pickle
import re
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from nbllm.embeddings import Embedding, EmbeddingResponse, dimensions
from nbllm.exceptions import UsageProblem
from nbllm.media import Image, ImagesResponse, Speech, Transcription, audio_extension
from nbllm.results import ModelInfo, ModelList
from nbllm.types import decoder
from tests.records import record

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
WEBP = b"RIFF\x24\x00\x00\x00WEBPVP8 "
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
ROWS = np.array([[0.5, -1.25, 3.0], [0.1, 0.2, 0.3]], np.float32)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def response(rows: Any = ROWS, **more: Any) -> EmbeddingResponse:
    data = [
        {"object": "embedding", "index": i, "embedding": b64(row.tobytes())} for i, row in enumerate(rows)
    ]
    body = {"object": "list", "data": data, "model": "m", **more}
    return decoder(EmbeddingResponse)(msgspec.json.encode(body))


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"unknown": 1}], ids=["strict", "lenient"])
def test_an_embedding_is_a_list_of_floats(more: dict[str, Any]) -> None:
    answer = response(**more)
    assert answer.data[0].embedding == [0.5, -1.25, 3.0]
    assert answer["data"][1]["embedding"] == [float(x) for x in ROWS[1]]
    assert all(type(x) is float for x in answer.data[1].embedding)
    assert answer.data[0].embedding is answer.data[0].embedding
    assert answer.get("unknown") == more.get("unknown")


def test_the_array_is_float32_of_inputs_by_dimensions() -> None:
    answer = response()
    assert answer.array.shape == (2, 3)
    assert answer.array.dtype == np.float32
    np.testing.assert_array_equal(answer.array, ROWS)
    answer.array[0] = 0  # a new one each time, which may be written to
    np.testing.assert_array_equal(answer.array, ROWS)


def test_what_is_changed_in_a_list_is_seen_in_the_array() -> None:
    answer = response()
    answer.data[0].embedding[0] = 7.0
    answer.data[1].embedding = [1, 2, 3]
    np.testing.assert_array_equal(answer.array, np.array([[7, -1.25, 3], [1, 2, 3]], np.float32))


def test_no_rows_are_an_empty_array() -> None:
    assert EmbeddingResponse().array.shape == (0, 0)


def test_an_embedding_made_by_hand() -> None:
    row = Embedding(index=0, embedding=[1.0, 2.0])
    assert row.embedding == [1.0, 2.0]
    assert dimensions(row) == 2
    assert dimensions(Embedding()) == 0


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("kept", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_copies_are_equal(kept: Any, read_before: bool) -> None:
    answer = response(extra={"a": 1})
    if read_before:
        assert answer.data[0].embedding
    twin = kept(answer)
    np.testing.assert_array_equal(twin.array, ROWS)
    assert twin == answer
    assert twin.extra.a == 1


def test_equality_is_of_the_numbers() -> None:
    assert response() == response()
    assert response() != response(ROWS * 2)
    by_hand = Embedding(object="embedding", index=0, embedding=[0.5, -1.25, 3.0])
    assert response().data[0] == by_hand


def test_a_dump_gives_lists() -> None:
    dumped = response(ROWS[:1]).model_dump(exclude_none=True)
    row = {"object": "embedding", "index": 0, "embedding": [0.5, -1.25, 3.0]}
    assert dumped == {"object": "list", "data": [row], "model": "m"}
    assert '"embedding":[0.5,-1.25,3.0]' in response().model_dump_json()


def test_the_repr_is_short() -> None:
    answer = response(np.ones((64, 1536), np.float32))
    assert repr(answer) == "EmbeddingResponse(model='m', 64 embeddings of 1536 floats, usage=None)"
    assert repr(answer.data[3]) == "Embedding(index=3, 1536 floats)"


@pytest.mark.parametrize("value", [None, "not base64!", ["a"], [None], {}, 1.5, [[1.0]]])
def test_an_embedding_holds_nothing_else(value: Any) -> None:
    with pytest.raises(msgspec.DecodeError, match="neither numbers nor base64"):
        Embedding().embedding = value


# -- records ---------------------------------------------------------------------------------------


def test_a_result_knows_its_request_and_price() -> None:
    answer = Transcription(text="Hi")
    assert (answer.request, answer.requests, answer.cost_usd) == (None, (), None)
    asked = record(cost_usd=0.25)
    answer.__dict__["_request"] = asked
    assert answer.request is asked
    assert answer.cost_usd == 0.25
    assert "_request" not in answer
    assert pickle.loads(pickle.dumps(answer)).request is None


def test_the_price_of_several_requests_is_their_sum() -> None:
    records = (record(cost_usd=0.25), record(cost_usd=0.5))
    answer = EmbeddingResponse()
    answer.__dict__["_request"] = records
    assert answer.request is records[0]
    assert answer.requests == records
    assert answer.cost_usd == 0.75
    records[1].cost_usd = None
    assert answer.cost_usd is None


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "kind"), [(PNG, "png"), (JPEG, "jpeg"), (WEBP, "webp"), (b"GIF89a", "gif")])
def test_one_image_shows_as_itself(data: bytes, kind: str) -> None:
    shown = ImagesResponse(data=[Image(b64_json=b64(data))])._repr_mimebundle_()
    assert shown == {"text/plain": f"Image({len(b64(data)) * 3 // 4} bytes)", f"image/{kind}": b64(data)}


def test_an_svg_shows_where_its_scripts_do_not_run() -> None:
    shown = Image(b64_json=b64(SVG))._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"}
    assert shown["text/html"].startswith('<img src="data:image/svg+xml;base64,')


def test_several_images_show_as_html() -> None:
    images = [Image(b64_json=b64(PNG)), Image(url="https://host/a.png?x=1&y=2", revised_prompt='"<b>')]
    html = ImagesResponse(data=images)._repr_mimebundle_()["text/html"]
    assert html.count("<img ") == 2
    assert f'src="data:image/png;base64,{b64(PNG)}"' in html
    assert 'src="https://host/a.png?x=1&amp;y=2" alt="&quot;&lt;b&gt;"' in html


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://host/a.png", "data:text/html,<script>", 'x" onerror="alert(1)']
)
def test_other_urls_are_text(url: str) -> None:
    assert set(ImagesResponse(data=[Image(url=url)])._repr_mimebundle_()) == {"text/plain"}
    assert set(ImagesResponse(data=[Image(url=url)] * 2)._repr_mimebundle_()) == {"text/plain"}


def test_a_url_cannot_leave_its_attribute() -> None:
    html = Image(url='https://host/"><script>alert(1)</script>')._repr_mimebundle_()["text/html"]
    assert "<script" not in html
    assert html.count('"') == 8


def test_unknown_bytes_are_text() -> None:
    assert set(Image(b64_json=b64(b"<html>"))._repr_mimebundle_()) == {"text/plain"}


def test_the_bytes_of_an_image(tmp_path: Any) -> None:
    assert Image(b64_json=b64(PNG)).bytes == PNG
    assert Image(b64_json=f"data:image/png;base64,{b64(PNG)}").bytes == PNG
    assert Image(url="https://x").bytes is None
    with pytest.raises(ValueError, match="base64"):
        _ = Image(b64_json="#").bytes
    Image(b64_json=b64(PNG)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == PNG
    with pytest.raises(UsageProblem, match="https://x"):
        Image(url="https://x").save(tmp_path / "b.png")


def test_the_repr_of_images_holds_no_base64() -> None:
    answer = ImagesResponse(data=[Image(b64_json=b64(bytes(3000)))])
    assert repr(answer) == "ImagesResponse(data=[Image(3,000 bytes)])"


# -- audio -----------------------------------------------------------------------------------------

SOUNDS = {
    "wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "mp3": b"ID3\x04\x00",
    "ogg": b"OggS\x00",
    "flac": b"fLaC\x00",
    "m4a": b"\x00\x00\x00\x1cftypM4A ",
    "webm": b"\x1a\x45\xdf\xa3\x9f",
}


@pytest.mark.parametrize("extension", SOUNDS)
def test_sounds_are_known_by_their_first_bytes(extension: str) -> None:
    assert audio_extension(SOUNDS[extension]) == extension


def test_bare_mp3_frames_are_known_and_aac_is_not_mistaken() -> None:
    assert audio_extension(b"\xff\xfb\x90\x64") == "mp3"
    assert audio_extension(b"\xff\xf3\x84\xc4") == "mp3"
    assert audio_extension(b"\xff\xf1\x50\x80") is None  # AAC in ADTS
    assert audio_extension(b"") is None
    assert audio_extension(b"\xff") is None
    assert audio_extension(PNG) is None
    assert audio_extension(WEBP) is None


def test_speech_has_a_player() -> None:
    speech = Speech(content=SOUNDS["mp3"], content_type="audio/mpeg")
    assert speech._repr_mimebundle_() == {
        "text/plain": "Speech(audio/mpeg, 5 bytes)",
        "text/html": f'<audio controls src="data:audio/mpeg;base64,{b64(SOUNDS["mp3"])}"></audio>',
    }


def test_the_bytes_tell_more_than_the_content_type() -> None:
    html = Speech(content=SOUNDS["wav"], content_type="application/octet-stream")._repr_mimebundle_()
    assert "data:audio/wav;" in html["text/html"]
    html = Speech(content=b"\xff\xf1", content_type="Audio/AAC; codec=x")._repr_mimebundle_()
    assert "data:audio/aac;" in html["text/html"]


@pytest.mark.parametrize("kind", [None, "audio/pcm", "text/html", 'audio/x" onerror="alert(1)', "audio/x<b>"])
def test_what_cannot_be_played_is_text(kind: str | None) -> None:
    assert set(Speech(content=b"\x00\x01", content_type=kind)._repr_mimebundle_()) == {"text/plain"}


def test_speech_is_written_to_a_file(tmp_path: Any) -> None:
    speech = Speech(content=b"\x00\x01", content_type="audio/pcm")
    assert speech.read() == speech.content == speech["content"] == b"\x00\x01"
    speech.stream_to_file(tmp_path / "a")
    speech.write_to_file(str(tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"\x00\x01"
    assert pickle.loads(pickle.dumps(speech)) == speech


def test_a_transcription_shows_its_text() -> None:
    assert Transcription(text="Hi")._repr_mimebundle_() == {"text/plain": "Hi"}


# -- models ----------------------------------------------------------------------------------------

UTC = datetime.UTC
MODELS = ModelList(
    [
        ModelInfo(
            id="a", provider="p", created=datetime.datetime(2024, 5, 1, tzinfo=UTC), owned_by="<script>"
        ),
        ModelInfo(id="b", provider="p", created=None, owned_by=None),
    ]
)


def test_models_make_a_frame() -> None:
    frame = pd.DataFrame(MODELS)
    assert list(frame.columns) == ["id", "provider", "created", "owned_by"]
    assert isinstance(frame["created"].dtype, pd.DatetimeTZDtype)
    assert frame["created"].isna().tolist() == [False, True]


def test_models_show_as_a_table() -> None:
    html = MODELS._repr_html_()
    assert re.findall("<th>(.*?)</th>", html) == ["id", "provider", "created", "owned_by"]
    assert re.findall("<td>(.*?)</td>", html) == ["a", "p", "2024-05-01", "&lt;script&gt;", "b", "p", "", ""]


def test_the_repr_of_models_is_short() -> None:
    assert repr(MODELS) == "ModelList(2 models: a, b)"
    many = ModelList(ModelInfo(id=str(i), provider="p", created=None, owned_by=None) for i in range(300))
    assert repr(many) == "ModelList(300 models: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)"
