"""Where `[tool.nbllm]` is found, and what becomes of files that hold none or can't be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbllm.project import project_table


def write(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_text(text)
    return str(path)


def test_the_nearest_table_counts_upward_from_the_folder(tmp_path: Path) -> None:
    outer = write(tmp_path, "[tool.nbllm]\nlimit = 1\n")
    inner = write(tmp_path / "a", "[tool.nbllm]\nlimit = 2\n")
    (tmp_path / "a" / "b").mkdir()
    assert project_table(str(tmp_path / "a" / "b")) == (inner, {"limit": 2})
    assert project_table(str(tmp_path)) == (outer, {"limit": 1})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[project]\nname = 'x'\n",
        "[project]\ndependencies = ['nbllm']\n",
        "tool = 3 # nbllm\n",
        "not [ toml",
    ],
)
def test_a_file_without_the_table_is_passed_over(tmp_path: Path, text: str) -> None:
    outer = write(tmp_path, "[tool]\nnbllm = { limit = 1 }\n")
    write(tmp_path / "a", text)
    assert project_table(str(tmp_path / "a")) == (outer, {"limit": 1})


@pytest.mark.parametrize(
    "text",
    [
        "[tool.nbllm]\nlimit = 1",
        "[ tool . 'nbllm' ]\nlimit = 1",
        "tool.nbllm.limit = 1",
        '["tool"."nbllm"]\nlimit=1',
        "[tool]\nnbllm.limit = 1",
        "tool = { nbllm = { limit = 1 } }",
        "[tool.nbllm-x]\n[tool]\nnbllm = { limit = 1 }",
    ],
)
def test_the_table_is_found_however_it_is_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert project_table(str(tmp_path)) == (path, {"limit": 1})


def test_without_any_file_there_is_none(tmp_path: Path) -> None:
    assert project_table(str(tmp_path / "gone")) is None


@pytest.mark.parametrize("content", [b"[tool.nbllm]\nlimit = \n", b"[tool.nbllm] # \xff\n"])
def test_one_that_cant_be_read_is_warned_of_once_and_passed_over(
    tmp_path: Path, content: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    outer = write(tmp_path, "[tool.nbllm]\nlimit = 1\n")
    inner = Path(write(tmp_path / "a", ""))
    inner.write_bytes(content)
    assert project_table(str(tmp_path / "a")) == (outer, {"limit": 1})
    assert project_table(str(tmp_path / "a")) == (outer, {"limit": 1})
    (warning,) = recwarn
    assert f"{inner} can't be read" in str(warning.message)


def test_a_folder_of_that_name_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").mkdir()
    with pytest.warns(RuntimeWarning, match="it is no file"):
        assert project_table(str(tmp_path)) is None


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyproject.toml")
    with pytest.warns(RuntimeWarning, match="it is no file"):
        assert project_table(str(tmp_path)) is None
