"""The variables of the process, and of the `.env` file next to the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbllm
from nbllm import environment as module
from nbllm import settings as settings_module
from nbllm.environment import environ, refresh, use_folder
from nbllm.providers import resolve
from nbllm.settings import settings
from tests.kernels import Kernel


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a notebook in `tmp_path`; not yet written."""
    monkeypatch.delenv("NBLLM_NUM_RETRIES")
    use_folder(tmp_path)
    yield tmp_path / ".env"
    module.reset()


def test_a_script_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("FROM_FILE=1\n")
    monkeypatch.chdir(tmp_path)
    assert environ() is os.environ


def test_the_files_variables_stand_below_those_of_the_process(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.write_text(
        """# keys\nBOTH=file\nexport FROM_FILE='a b' # note\nEMPTY=\nNO_VALUE\nMORE="x\\ny"\n"""
    )
    monkeypatch.setenv("BOTH", "real")
    monkeypatch.setenv("REAL", "1")
    env = environ()
    assert [env.get(name) for name in ("BOTH", "FROM_FILE", "EMPTY", "REAL", "MORE")] == [
        "real", "a b", "", "1", "x\ny",
    ]  # fmt: skip
    assert (env.get("NO_VALUE"), env.get("ABSENT"), env.get("ABSENT", "x")) == (None, None, "x")
    assert (env["FROM_FILE"], env["BOTH"], "FROM_FILE" in env) == ("a b", "real", True)
    assert "ABSENT" not in env
    with pytest.raises(KeyError):
        env["ABSENT"]
    assert dict(env) == {**env, **os.environ}
    assert len(env) == len(list(env)) == len(dict(env))
    assert "FROM_FILE" not in os.environ


def test_a_real_variable_that_is_set_or_removed_later_counts(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.write_text("A_NAME=file\n")
    assert environ().get("A_NAME") == "file"
    monkeypatch.setenv("A_NAME", "")
    assert environ().get("A_NAME") == ""
    monkeypatch.delenv("A_NAME")
    assert environ().get("A_NAME") == "file"


def test_the_file_is_read_again_when_it_has_changed(env_file: Path) -> None:
    assert environ().get("A_NAME") is None
    env_file.write_text("A_NAME=1\n")
    assert environ().get("A_NAME") is None
    refresh()
    assert environ().get("A_NAME") == "1"
    env_file.write_text("A_NAME=22\n")
    refresh()
    assert environ().get("A_NAME") == "22"
    env_file.unlink()
    refresh()
    assert environ().get("A_NAME") is None


def test_an_unchanged_file_is_read_once(env_file: Path) -> None:
    env_file.write_text("A_NAME=1\n")
    first = environ()
    refresh()
    assert environ() is first


def test_another_folder_has_a_file_of_its_own(env_file: Path, tmp_path: Path) -> None:
    env_file.write_text("A_NAME=1\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".env").write_text("A_NAME=2\n")
    assert environ().get("A_NAME") == "1"
    use_folder(tmp_path / "other")
    assert environ().get("A_NAME") == "2"


def test_a_broken_line_is_warned_of_once_without_being_shown(
    env_file: Path, recwarn: pytest.WarningsRecorder
) -> None:
    env_file.write_text("A_NAME=1\n\n=sk-secret\nB_NAME=2\n'sk-secret\n")
    assert (environ().get("A_NAME"), environ().get("B_NAME")) == ("1", "2")
    os.utime(env_file, ns=(1, 1))
    refresh()
    assert environ().get("B_NAME") == "2"
    (warning,) = recwarn
    assert f"{env_file}: line 3, 5 is not of the form NAME=value" in str(warning.message)
    assert "secret" not in str(warning.message)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"A_NAME=1\n#" + b"x" * 100_000, "larger than 100 kB"), (b"A_NAME=\xff\n", "not UTF-8")],
)
def test_a_file_that_cant_be_used_is_warned_of(env_file: Path, content: bytes, said: str) -> None:
    env_file.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=said):
        assert environ().get("A_NAME") is None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read all files")
def test_a_file_that_may_not_be_read_is_warned_of(env_file: Path) -> None:
    env_file.write_text("A_NAME=1\n")
    env_file.chmod(0)
    with pytest.warns(RuntimeWarning, match="Permission denied"):
        assert environ().get("A_NAME") is None


def test_a_virtual_environment_or_a_pipe_of_that_name_is_none_of_ours(env_file: Path) -> None:
    env_file.mkdir()
    assert environ() is os.environ
    env_file.rmdir()
    os.mkfifo(env_file)
    refresh()
    assert environ() is os.environ


def test_a_windows_file_with_a_byte_order_mark_is_read(env_file: Path) -> None:
    env_file.write_bytes(b"\xef\xbb\xbfA_NAME=1\r\nB_NAME=2\r\n")
    assert (environ().get("A_NAME"), environ().get("B_NAME")) == ("1", "2")


def test_a_look_costs_about_what_os_environ_costs(env_file: Path) -> None:
    env_file.write_text("A_NAME=1\n")
    ours, plain = (
        min(timeit.repeat(look, number=2000, repeat=7))
        for look in (lambda: environ().get("A_NAME"), lambda: os.environ.get("A_NAME"))
    )
    assert ours < 3 * plain


def test_keys_and_addresses_of_providers_come_from_the_file(env_file: Path) -> None:
    env_file.write_text("GROQ_API_KEY=of-the-file\nGROQ_API_BASE=http://localhost:1/v1\n")
    route = resolve("groq/x")
    assert (route.api_key, route.base_url) == ("of-the-file", "http://localhost:1/v1")


def test_a_change_of_the_file_reaches_settings_and_their_listeners(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(settings_module._state, "listeners", {"": lambda now: heard.append(now.num_retries)})
    assert settings().num_retries == 2
    env_file.write_text("NBLLM_NUM_RETRIES=5\n")
    assert settings().num_retries == 2
    refresh()
    assert settings().num_retries == 5
    env_file.write_text("NBLLM_NUM_RETRIES=5\nSOMETHING=else\n")
    refresh()
    assert heard == [5]


def test_configure_notices_a_changed_file(env_file: Path) -> None:
    assert settings().num_retries == 2
    env_file.write_text("NBLLM_NUM_RETRIES=5\n")
    assert nbllm.configure().num_retries == 5


def test_a_variable_that_a_cell_sets_counts_from_the_next_cell_on(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings().max_rows == 100
    monkeypatch.setenv("NBLLM_MAX_ROWS", "7")
    refresh()
    assert settings().max_rows == 7


def test_settings_that_were_read_before_the_folder_was_known_are_read_again(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NBLLM_MAX_ROWS=9\n")
    assert settings().max_rows == 100
    use_folder(tmp_path)
    assert settings().max_rows == 9


def test_naming_the_folder_reads_nothing_and_loads_no_parser(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A_NAME=1\n")
    code = (
        "import sys; from nbllm import environment; environment.use_folder('.'); "
        "loaded = 'dotenv' in sys.modules; print(loaded, environment.environ().get('A_NAME'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False 1\n", "")


def test_a_notebooks_file_counts_in_its_kernel_and_stays_out_of_the_processes_it_starts(
    tmp_path: Path,
) -> None:
    (tmp_path / ".env").write_text("GROQ_API_KEY=of-the-file\n")
    with Kernel(tmp_path) as kernel:
        kernel.run("import os, nbllm; from nbllm import environment, providers").ok()
        kernel.run("environment.use_folder(os.getcwd())").ok()
        assert kernel.value("providers.resolve('groq/x').api_key") == "of-the-file"
        assert kernel.value("'GROQ_API_KEY' in os.environ") is False
