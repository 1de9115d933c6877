"""Settings: their precedence, their checks, and who is told of a change."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import environment
from nbllm import settings as module
from nbllm.settings import (
    DEFAULT_TIMEOUT,
    Settings,
    client_timeout,
    help_of,
    model_of,
    settings,
    sources,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the table of the project that the test works in; it counts at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBLLM_LOG_PATH")

    def write(table: str) -> Path:
        path = tmp_path / "pyproject.toml"
        path.write_text(f"[tool.nbllm]\n{textwrap.dedent(table)}\n")
        module.reset()
        return path

    return write


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBLLM_LOG_PATH")
    monkeypatch.delenv("NBLLM_NUM_RETRIES")
    module.reset()
    assert settings() == Settings()
    values = settings()
    assert (values.keepalive_timeout, values.limit, values.content, values.log) == (300.0, 1000, True, "")
    assert values.timeout.total is None
    assert values.timeout.sock_connect == 15


def test_settings_show_what_differs_from_the_defaults() -> None:
    assert repr(Settings()) == "Settings()  # all are as by default: %nbllm config shows them"
    changed = Settings(
        model="gpt-4o", timeout=client_timeout(30), log=module.Address("postgresql://me:secret@host/db")
    )
    assert repr(changed).splitlines() == [
        "Settings(",
        "    model='gpt-4o',",
        "    timeout=ClientTimeout(total=30, sock_connect=15, sock_read=600),",
        "    log='postgresql://me:***@host/db',",
        ")  # the others are as by default: %nbllm config shows them",
    ]
    assert "sk-0123456789" not in repr(Settings(system="Say sk-0123456789"))


def test_configure_shows_all_settings_and_changes_those_named() -> None:
    before = nbllm.configure()
    after = nbllm.configure(limit=7, content=False)
    assert dataclasses.asdict(after) == {**dataclasses.asdict(before), "limit": 7, "content": False}
    assert nbllm.configure() == after == settings()


def test_configure_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBLLM_CONTENT", "0")
    monkeypatch.setenv("NBLLM_LOG_PATH", str(tmp_path / "env.db"))
    module.reset()
    assert (settings().content, settings().log) == (False, str(tmp_path / "env.db"))
    nbllm.configure(content=True, log=tmp_path / "given.db")
    assert (settings().content, settings().log) == (True, str(tmp_path / "given.db"))


@pytest.mark.parametrize("value", ["0", "false", "False", "no", "OFF", " 0 "])
def test_content_is_switched_off_by_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_CONTENT", value)
    module.reset()
    assert settings().content is False


@pytest.mark.parametrize("value", ["1", "true", "yes", ""])
def test_and_stays_on_otherwise(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_CONTENT", value)
    module.reset()
    assert settings().content is True


@pytest.mark.parametrize("value", ["none", "None", "NONE"])
def test_no_log_by_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_LOG_PATH", value)
    module.reset()
    assert settings().log is None


def test_every_level_has_its_place(monkeypatch: pytest.MonkeyPatch, project: Callable[[str], Path]) -> None:
    assert sources()["max_rows"] == (100, "default")
    (path := project("max_rows = 3")).with_name(".env").write_text("NBLLM_MAX_ROWS=1\n")
    path.unlink()
    environment.use_folder(path.parent)
    assert sources()["max_rows"] == (1, ".env: NBLLM_MAX_ROWS")
    monkeypatch.setenv("NBLLM_MAX_ROWS", "2")
    environment.refresh()
    assert sources()["max_rows"] == (2, "NBLLM_MAX_ROWS")
    project("max_rows = 3")
    assert sources()["max_rows"] == (3, str(path))
    nbllm.configure(max_rows=4)
    assert sources()["max_rows"] == (4, "configure")
    assert {name: value for name, (value, _) in sources().items()} == dataclasses.asdict(settings())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODEL", " openai/x ", "openai/x"),
        ("LIMIT", "7", 7),
        ("LIMIT_PER_HOST", "7", 7),
        ("KEEPALIVE_TIMEOUT", "0.5", 0.5),
        ("TIMEOUT", "2", client_timeout(2)),
        ("NUM_RETRIES", "4", 4),
        ("CONTENT", "off", False),
        ("MAX_CONCURRENCY", "8", 8),
        ("RPM", "0.5", 0.5),
        ("TPM", "30_000", 30_000),
        ("SYSTEM", "Be brief.", "Be brief."),
        ("FORMAT", "json", "json"),
        ("ON_RERUN", "fork", "fork"),
        ("MAX_ROWS", "7", 7),
    ],
)
def test_variables_hold_values_as_text(
    name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"NBLLM_{name}", text)
    assert sources()[name.lower()] == (value, f"NBLLM_{name}")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_counts_as_not_set(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NBLLM_MODEL", "NBLLM_LOG_PATH", "NBLLM_NUM_RETRIES", "NBLLM_SYSTEM", "NBLLM_FORMAT"):
        monkeypatch.setenv(name, text)
    assert settings() == Settings()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "NBLLM_MAX_ROWS",
            "many",
            "NBLLM_MAX_ROWS has a setting that does not count: max_rows must be .*got 'many'",
        ),
        ("NBLLM_NUM_RETRIES", "-1", "num_retries must be a whole number, 0 for none; got -1"),
        ("NBLLM_FORMAT", "jsn", "format must be one of md, .*; got 'jsn'; did you mean 'json'"),
        ("NBLLM_CONTENT", "maybe", "content must be True or False; got 'maybe'"),
        ("NBLLM_LOG_PATH", "mysql://host/db", "log must be the path of an SQLite file"),
    ],
)
def test_a_bad_variable_is_warned_of_once_and_the_default_holds(
    name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("NBLLM_LOG_PATH")
    monkeypatch.delenv("NBLLM_NUM_RETRIES")
    monkeypatch.setenv(name, text)
    assert settings() == nbllm.configure() == Settings()
    (warning,) = recwarn
    assert re.search(said, str(warning.message))


def test_the_projects_table_may_hold_every_setting(project: Callable[[str], Path]) -> None:
    path = project(
        """
        model = "fast"
        limit = 7
        timeout = 2
        content = false
        log = "runs/log.db"
        system = "Be brief."
        rpm = { openai = 500 }
        aliases = { fast = "gpt-4o-mini" }
        """
    )
    values = settings()
    assert (values.model, values.limit, values.timeout.total, values.content) == ("fast", 7, 2, False)
    assert (values.system, values.rpm, values.aliases) == (
        "Be brief.", {"openai": 500}, {"fast": "gpt-4o-mini"},
    )  # fmt: skip
    assert values.log == str(path.parent / "runs" / "log.db")
    assert {source for _, source in sources().values()} == {str(path), "NBLLM_NUM_RETRIES", "default"}


@pytest.mark.parametrize(("text", "value"), [("none", None), ("", ""), ("/x/log.db", "/x/log.db")])
def test_the_projects_log(text: str, value: str | None, project: Callable[[str], Path]) -> None:
    project(f"log = {text!r}")
    assert settings().log == value


def test_the_project_stays_when_a_cell_changes_the_folder(
    project: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = project("max_rows = 3")
    assert settings().max_rows == 3
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    path.write_text("[tool.nbllm]\nmax_rows = 4\n")
    assert nbllm.configure().max_rows == 4


def test_a_folder_that_is_gone_has_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert settings().max_rows == 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_rows = 'x'", r"\[tool.nbllm\] has a setting that does not count: max_rows must be .*; got 'x'"),
        ("max_row = 5", r"\[tool.nbllm\] has .*: no setting is called 'max_row'; did you mean 'max_rows'"),
        ("aliases = { a = 'b', b = 'a' }", "aliases lead in a circle: a → b → a"),
    ],
)
def test_a_bad_line_is_warned_of_once_and_the_level_below_holds(
    line: str,
    said: str,
    project: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setenv("NBLLM_MAX_ROWS", "7")
    path = project(f"{line}\nlimit = 3")
    assert (settings().max_rows, settings().limit, settings().aliases) == (7, 3, {})
    nbllm.configure()
    (warning,) = recwarn
    assert str(path) in str(warning.message)
    assert re.search(said, str(warning.message))


@pytest.mark.parametrize(
    "line",
    [
        "api_key = 'nobodys-secret'",
        "OPENAI_API_KEY = 'nobodys-secret'",
        "apikey = 'nobodys-secret'",
        "token = 'nobodys-secret'",
        "keys = { openai = 'nobodys-secret' }",
        "model = 'sk-proj-nobodys-secret-key-1'",
        "limit = 'sk-proj-nobodys-secret-key-1'",
        "model = { openai = 'sk-proj-nobodys-secret-key-1' }",
        "nonsense = 'sk-proj-nobodys-secret-key-1'",
    ],
)
def test_a_key_in_the_projects_file_is_refused_and_not_shown(
    line: str, project: Callable[[str], Path], recwarn: pytest.WarningsRecorder
) -> None:
    project(line)
    assert (settings().model, settings().limit) == (None, 1000)
    (warning,) = recwarn
    assert "a key goes into the provider's variable, such as OPENAI_API_KEY" in str(warning.message)
    assert "secret" not in str(warning.message)


def test_an_alias_leads_to_its_model() -> None:
    nbllm.configure(aliases={"fast": "small", "small": "gpt-4o-mini"})
    assert [model_of(name) for name in ("fast", "small", "gpt-4o-mini", "other")] == [
        "gpt-4o-mini", "gpt-4o-mini", "gpt-4o-mini", "other",
    ]  # fmt: skip


def test_aliases_are_copied() -> None:
    given = {"fast": "gpt-4o-mini"}
    nbllm.configure(aliases=given)
    given["fast"] = "fast"
    assert model_of("fast") == "gpt-4o-mini"


@pytest.mark.parametrize(
    "values",
    [
        {"limits": 5},
        {"nonsense": 5},
        {"limit": -1},
        {"limit": "5"},
        {"limit": True},
        {"limit": 1.5},
        {"limit": None},
        {"limit_per_host": -1},
        {"keepalive_timeout": -1},
        {"keepalive_timeout": "x"},
        {"keepalive_timeout": float("nan")},
        {"keepalive_timeout": float("inf")},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": True},
        {"timeout": "5"},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"content": 1},
        {"content": "no"},
        {"content": None},
        {"model": ""},
        {"model": 5},
        {"log": 5},
        {"log": b"log.db"},
        {"log": True},
        {"log": "mysql://host/db"},
        {"log": "sqlite:///x.db"},
        {"max_concurrency": 0},
        {"max_concurrency": 2.5},
        {"max_concurrency": True},
        {"max_concurrency": {"openai": 0}},
        {"max_concurrency": {"openai": None}},
        {"rpm": 0},
        {"rpm": -1},
        {"rpm": "500"},
        {"rpm": float("nan")},
        {"rpm": float("inf")},
        {"rpm": True},
        {"rpm": [500]},
        {"rpm": {"openai": "500"}},
        {"rpm": {"": 500}},
        {"rpm": {1: 500}},
        {"tpm": 0},
        {"tpm": {"openai": -1}},
        {"system": " "},
        {"system": 5},
        {"format": "pdf"},
        {"format": None},
        {"format": ["md"]},
        {"on_rerun": "Replace"},
        {"max_rows": 0},
        {"max_rows": True},
        {"max_rows": 1.5},
        {"max_rows": None},
        {"aliases": None},
        {"aliases": ["fast"]},
        {"aliases": {"": "gpt-4o"}},
        {"aliases": {"fast": " "}},
        {"aliases": {"fast": None}},
        {"aliases": {1: "gpt-4o"}},
        {"aliases": {"fast": "fast"}},
        {"aliases": {"a": "b", "b": "c", "c": "b"}},
    ],
)
def test_what_cant_work_is_refused_and_changes_nothing(values: dict[str, Any]) -> None:
    before = settings()
    with pytest.raises(nbllm.UsageProblem):
        nbllm.configure(content=not before.content, **values) if "content" not in values else nbllm.configure(
            limit=3, **values
        )
    assert settings() == before


def test_a_misspelt_setting_is_answered_with_the_right_one() -> None:
    with pytest.raises(nbllm.UsageProblem, match="did you mean 'keepalive_timeout'"):
        nbllm.configure(keep_alive_timeout=5)
    with pytest.raises(nbllm.UsageProblem, match="there are: model, limit"):
        nbllm.configure(nonsense=5)


@pytest.mark.parametrize(
    "values",
    [
        {"max_concurrency": 8, "rpm": 500, "tpm": 30_000},
        {"max_concurrency": {"openai": 8}, "rpm": {"openai": 0.5, "anthropic": 50}, "tpm": {}},
        {"max_concurrency": None, "rpm": None, "tpm": None},
    ],
)
def test_limits_are_numbers_or_dicts_by_provider(values: dict[str, Any]) -> None:
    after = nbllm.configure(**values)
    assert {name: getattr(after, name) for name in values} == values


def test_a_limit_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(nbllm.UsageProblem, match=r"rpm must be a positive number, .*'openai'.*None.*got 0"):
        nbllm.configure(rpm=0)
    with pytest.raises(nbllm.UsageProblem, match=r"max_concurrency must be a positive whole number"):
        nbllm.configure(max_concurrency=1.5)


def test_a_dict_of_limits_is_copied() -> None:
    given = {"openai": 5}
    nbllm.configure(rpm=given)
    given["openai"] = 0
    assert settings().rpm == {"openai": 5}


def test_timeouts() -> None:
    assert client_timeout(None) is DEFAULT_TIMEOUT
    own = aiohttp.ClientTimeout(total=1)
    assert client_timeout(own) is own
    seconds = client_timeout(2)
    assert (seconds.total, seconds.sock_connect, seconds.sock_read) == (2.0, 15, 600)


def test_listeners_hear_of_changes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._state, "listeners", {})
    heard: list[tuple[str, int]] = []
    module.on_change("a", lambda values: heard.append(("old", values.limit)))
    module.on_change("a", lambda values: heard.append(("a", values.limit)))
    module.on_change("b", lambda values: heard.append(("b", values.limit)))
    nbllm.configure(limit=9)
    nbllm.configure()
    assert heard == [("a", 9), ("b", 9)]


def test_every_setting_is_documented() -> None:
    for field in dataclasses.fields(Settings):
        assert f"    {field.name}: " in inspect.cleandoc(Settings.__doc__ or "")
        assert field.name in (nbllm.configure.__doc__ or "")
        assert len(help_of(field.name)) > 20


def test_the_help_of_a_setting_is_one_line() -> None:
    assert help_of("rpm") == "Requests that may start in a minute, likewise."
    assert help_of("limit") == "Connections at once, over all hosts; 0 for no limit."
    assert help_of("on_rerun").endswith("the turns that came after it.")


async def test_changes_reach_the_pool_that_is_in_use() -> None:
    session = nbllm.shared_session()
    nbllm.configure(limit=3, limit_per_host=2, keepalive_timeout=7, timeout=11)
    connector = session.connector
    assert connector is not None
    assert (connector.limit, connector.limit_per_host, connector._keepalive_timeout) == (3, 2, 7)
    assert session.timeout.total == 11
    assert nbllm.shared_session() is session
