"""What goes into a message's content: texts, files, pictures, figures, sound."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import IPython.display
import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from nbllm.attachments import content_parts, is_picture
from nbllm.exceptions import UsageProblem

mpl.use("agg")

PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n"
MP3 = b"\xff\xfb\x90\x64" + bytes(60)
TAGGED_MP3 = b"ID3\x04\x00\x00" + bytes(60)


def picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 3), 1).save(buffer, format=kind)
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(160))
    return buffer.getvalue()


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def audio_part(data: bytes, kind: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def pdf_part(name: str = "document.pdf") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": data_url(PDF, "application/pdf")}}


def shown(part: dict[str, Any]) -> Image.Image:
    """The picture of a part, read back."""
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


MEDIA = {
    "a.png": (picture("PNG"), image_part(picture("PNG"))),
    "a.jpg": (picture("JPEG"), image_part(picture("JPEG"), "image/jpeg")),
    "a.gif": (picture("GIF", "P"), image_part(picture("GIF", "P"), "image/gif")),
    "a.webp": (picture("WEBP"), image_part(picture("WEBP"), "image/webp")),
    "a.wav": (sound(), audio_part(sound(), "wav")),
    "a.mp3": (MP3, audio_part(MP3, "mp3")),
    "b.mp3": (TAGGED_MP3, audio_part(TAGGED_MP3, "mp3")),
}


def test_a_text_stays_the_same_object() -> None:
    for content in ("Hello", "", None, "https://example.com/cat.png"):
        assert content_parts(content) is content


def test_urls_in_a_list_stay_text() -> None:
    urls = ["https://example.com/cat.png", "data:image/png;base64,AAAA", "cat.png"]
    assert content_parts(urls) == [{"type": "text", "text": url} for url in urls]


def test_parts_in_the_wire_form_stay_as_they_are() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "not/a/path/that/is/read.png"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(PDF, "application/pdf")}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "refusal", "refusal": "No."},
        {"type": "something_new", "something_new": {"path": Path("x")}},
        {"type": "image_url"},
    ]
    made = content_parts(tuple(parts))
    assert isinstance(made, list)
    assert all(ours is theirs for ours, theirs in zip(made, parts, strict=True))
    assert content_parts(parts[0]) == [parts[0]]
    assert content_parts([]) == []


@pytest.mark.parametrize("name", MEDIA)
def test_bytes_and_files_are_sniffed(name: str, tmp_path: Path) -> None:
    data, part = MEDIA[name]
    (path := tmp_path / "no-suffix").write_bytes(data)
    for given_ in (data, bytearray(data), memoryview(data), path):
        assert content_parts(given_) == [part]
    assert content_parts(["See:", path, data]) == [{"type": "text", "text": "See:"}, part, part]


def test_pdf_has_its_files_name(tmp_path: Path) -> None:
    (path := tmp_path / "report.pdf").write_bytes(PDF)
    assert content_parts([path, PDF]) == [pdf_part("report.pdf"), pdf_part()]


@pytest.mark.parametrize("written", ["a,b\n1,é\n", "\ufeffa,b\n1,é\n"])
def test_text_file_goes_in_with_its_name(written: str, tmp_path: Path) -> None:
    (path := tmp_path / "table.csv").write_bytes(written.encode())
    assert content_parts(path) == [{"type": "text", "text": "table.csv:\n\na,b\n1,é\n"}]


def test_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "note.txt").write_text("hi")
    assert content_parts(Path("~/note.txt")) == [{"type": "text", "text": "note.txt:\n\nhi"}]
    with pytest.raises(UsageProblem, match="there is no file '~nobody-at-all/x'"):
        content_parts(Path("~nobody-at-all/x"))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_pil_image_of_any_mode_becomes_a_png(mode: str) -> None:
    image = Image.new(mode, (5, 2))
    [part] = content_parts(image)
    assert shown(part).size == (5, 2)
    assert image.mode == mode


def test_pil_image_keeps_its_pixels_and_transparency() -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 40))
    assert shown(content_parts(image)[0]).convert("RGBA").getpixel((1, 1)) == (10, 20, 30, 40)
    opened = Image.open(io.BytesIO(picture("JPEG")))
    assert shown(content_parts([opened])[0]).size == (4, 3)


def test_pil_image_without_pixels_or_file_is_told(tmp_path: Path) -> None:
    (path := tmp_path / "a.png").write_bytes(picture("PNG"))
    closed = Image.open(path)
    closed.close()
    (path := tmp_path / "cut.png").write_bytes(picture("PNG")[:45])
    with Image.open(path) as cut:
        for image in (Image.new("RGB", (0, 3)), closed, cut):
            with pytest.raises(UsageProblem, match="can't be made a PNG"):
                content_parts(image)


def test_figure_becomes_a_png_and_stays_as_it_was() -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    axes.plot([1, 2])
    canvas, before = (
        figure.canvas,
        (figure.get_size_inches().tolist(), figure.dpi, axes.get_position().bounds),
    )
    [part] = content_parts(figure)
    assert shown(part).width in range(80, 120)
    assert figure.canvas is canvas
    assert (figure.get_size_inches().tolist(), figure.dpi, axes.get_position().bounds) == before
    assert content_parts([axes]) == [part]


def test_figure_of_pyplot_stays_open() -> None:
    from matplotlib import pyplot

    figure, _ = pyplot.subplots()
    try:
        content_parts(figure)
        assert pyplot.fignum_exists(figure.number)
    finally:
        pyplot.close(figure)


def test_axes_on_a_part_of_a_figure_give_the_figure() -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    left, _ = figure.subfigures(1, 2)
    axes = left.subplots()
    assert content_parts(axes) == content_parts(left) == content_parts(figure)


def test_broken_figure_is_told() -> None:
    figure = Figure()
    figure.text(0, 0, "$\\nothing{$")
    with pytest.raises(UsageProblem, match="can't be made a PNG"):
        content_parts(figure)


def test_ipython_image_gives_what_it_shows(tmp_path: Path) -> None:
    (path := tmp_path / "a.jpg").write_bytes(picture("JPEG"))
    jpeg = image_part(picture("JPEG"), "image/jpeg")
    url = "https://example.com/a.png"
    assert content_parts(IPython.display.Image(data=picture("PNG"))) == [image_part(picture("PNG"))]
    assert content_parts(IPython.display.Image(filename=str(path))) == [jpeg]
    assert content_parts(IPython.display.Image(filename=str(path), embed=False)) == [jpeg]
    for image in (IPython.display.Image(url=url), IPython.display.Image(url, embed=False)):
        assert content_parts([image]) == [{"type": "image_url", "image_url": {"url": url}}]


def test_explicit_parts_take_paths_bytes_and_pictures(tmp_path: Path) -> None:
    (path := tmp_path / "a.png").write_bytes(picture("PNG"))
    part = image_part(picture("PNG"))
    for given_ in (str(path), path, picture("PNG"), {"url": path}, {"url": picture("PNG")}):
        assert content_parts([{"type": "image_url", "image_url": given_}]) == [part]
    image = Image.new("RGB", (5, 2))
    [made] = content_parts([{"type": "image_url", "image_url": {"url": image, "detail": "low"}}])
    assert made["image_url"]["detail"] == "low"
    assert shown({"image_url": made["image_url"]}).size == (5, 2)
    for url in ("https://example.com/a.png", data_url(b"x", "image/png"), "gs://bucket/a.png"):
        expected = {"type": "image_url", "image_url": {"url": url}, "cache": 1}
        assert content_parts([{"type": "image_url", "image_url": url, "cache": 1}]) == [expected]


def test_explicit_sound(tmp_path: Path) -> None:
    (path := tmp_path / "a.wav").write_bytes(sound())
    for given_ in (path, str(path), sound(), {"data": sound()}, {"data": path, "format": "wav"}):
        assert content_parts([{"type": "input_audio", "input_audio": given_}]) == [audio_part(sound(), "wav")]


def test_explicit_file_may_be_of_any_type(tmp_path: Path) -> None:
    (path := tmp_path / "report.pdf").write_bytes(PDF)
    for given_ in (path, str(path), {"file_data": path}, {"file_data": PDF, "filename": "report.pdf"}):
        assert content_parts([{"type": "file", "file": given_}]) == [pdf_part("report.pdf")]
    (path := tmp_path / "table.csv").write_text("a,b\n")
    [made] = content_parts([{"type": "file", "file": {"file_data": path}}])
    assert made["file"]["filename"] == "table.csv"
    assert made["file"]["file_data"].endswith(";base64," + base64.b64encode(b"a,b\n").decode())
    [made] = content_parts([{"type": "file", "file": b"\0\1"}])
    assert made["file"]["file_data"].startswith("data:application/octet-stream;base64,")
    assert made["file"]["filename"].startswith("file")


def test_what_the_caller_gave_is_not_changed() -> None:
    inner = {"url": picture("PNG"), "detail": "low"}
    part = {"type": "image_url", "image_url": inner}
    content_parts([part])
    assert part == {"type": "image_url", "image_url": inner}
    assert inner == {"url": picture("PNG"), "detail": "low"}


def test_files_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.png").touch()
    Path("folder").mkdir()
    Path("data.bin").write_bytes(b"\0\1\2\3")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    Path("utf16.txt").write_bytes("text".encode("utf-16"))
    for name, says in {
        "missing.png": rf"there is no file 'missing.png'; the current folder is '{tmp_path}'",
        "a\0b": "there is no file",
        "x" * 5000: "can't be read|there is no file",
        "empty.png": "'empty.png' is empty",
        "folder": "'folder' is a folder; give its files",
        "data.bin": "'data.bin' is of a type that can't be sent; PNG, JPEG.*Convert it",
        "latin.txt": r"'latin.txt'.*read_text\(encoding=",
        "utf16.txt": r"'utf16.txt'.*read_text\(encoding=",
    }.items():
        with pytest.raises(UsageProblem, match=says):
            content_parts(["Look:", Path(name)])
        with pytest.raises(UsageProblem, match=says):
            content_parts([{"type": "image_url", "image_url": name}])
    with pytest.raises(UsageProblem, match=r"there is no file 'missing\.pdf'"):
        content_parts([{"type": "file", "file": "missing.pdf"}])


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders")
def test_devices_and_forbidden_files_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageProblem, match="is a device or a pipe"):
            content_parts(path)
    (path := tmp_path / "secret.txt").write_text("x")
    path.chmod(0)
    if not os.access(path, os.R_OK):  # root may read it all the same
        with pytest.raises(UsageProblem, match="can't be read: Permission denied"):
            content_parts(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty bytes"),
        (b"plain text", r"begin with b'plain text' are of no known type.*data\.decode\(\)"),
        (b"RIFF\0\0\0\0AVI LIST", "no known type"),
        (b"\xff\xfet\0e\0", "no known type"),  # UTF-16, not the frame of an MP3
        (b"ID3 is a decision tree", "no known type"),
        (picture("TIFF"), "PIL.Image.open"),
        (picture("BMP"), "PIL.Image.open"),
        (3, "can't hold a builtins.int: 3"),
        (object(), "builtins.object"),
        ([None], "NoneType"),
        ([["nested"]], "builtins.list"),
        ({"text": "no type"}, "builtins.dict"),
        ({"type": 3}, "builtins.dict"),
        (io.BytesIO(b"x"), "_io.BytesIO"),
        ({"type": "image_url", "image_url": PDF}, "'image_url' can't be made from b'%PDF.*which is 'file'"),
        ({"type": "input_audio", "input_audio": picture("PNG")}, "which is 'image_url'"),
        ({"type": "image_url", "image_url": {"url": 3}}, "builtins.int"),
        ({"type": "file", "file": b""}, "a path or the file's bytes"),
        ({"type": "file", "file": Image.new("L", (1, 1))}, "a path or the file's bytes"),
    ],
)
def test_what_cannot_be_sent_is_told(content: Any, says: str) -> None:
    with pytest.raises(UsageProblem, match=says) as caught:
        content_parts(content)
    assert len(str(caught.value)) < 500


@given(st.binary())
def test_any_bytes_are_sent_or_refused(data: bytes) -> None:
    try:
        [part] = content_parts(data)
    except UsageProblem:
        return
    assert part["type"] in {"image_url", "file", "input_audio"}


def test_an_object_that_answers_every_attribute_is_no_figure() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

        def __repr__(self) -> str:
            return "x" * 10**6

    with pytest.raises(UsageProblem, match="Anything"):
        content_parts(Anything())


def test_pictures_are_told_from_other_values() -> None:
    class Report:
        @property
        def figure(self) -> Any:
            raise RuntimeError("not drawn yet")

    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    shown_image = IPython.display.Image(data=picture("PNG"))
    for value in (figure, axes, axes.plot([1, 2])[0], Image.new("RGB", (5, 2)), shown_image):
        assert is_picture(value)
        assert content_parts([value])[0]["type"] == "image_url"
    for value in ("a.png", Path("a.png"), picture("PNG"), None, Figure, Image, Report(), [figure]):
        assert not is_picture(value)


def test_no_imaging_library_is_imported() -> None:
    program = """
import sys
from nbllm.attachments import content_parts, is_picture
content_parts([b"%PDF-1.7", "text"])
try:
    content_parts(object())
except ValueError:
    pass
assert not {"PIL", "matplotlib", "numpy", "IPython"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
