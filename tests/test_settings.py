"""Settings: their precedence, their checks, and who is told of a change."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import nbllm
from nbllm import settings as module
from nbllm.settings import DEFAULT_TIMEOUT, Settings, client_timeout, default_model, settings


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBLLM_LOG_PATH")
    monkeypatch.delenv("NBLLM_NUM_RETRIES")
    module.reset()
    assert settings() == Settings()
    values = settings()
    assert (values.keepalive_timeout, values.limit, values.content, values.log) == (300.0, 1000, True, "")
    assert values.timeout.total is None
    assert values.timeout.sock_connect == 15


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


def test_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_model() == "demo/small"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    assert default_model() == "gpt-4o-mini"
    monkeypatch.setenv("NBLLM_MODEL", "openai/env")
    assert default_model() == "openai/env"
    nbllm.configure(model="openai/given")
    assert default_model() == "openai/given"
    nbllm.configure(model=None)
    assert default_model() == "openai/env"


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
        {"log": "postgresql://host/db"},
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


async def test_changes_reach_the_pool_that_is_in_use() -> None:
    session = nbllm.shared_session()
    nbllm.configure(limit=3, limit_per_host=2, keepalive_timeout=7, timeout=11)
    connector = session.connector
    assert connector is not None
    assert (connector.limit, connector.limit_per_host, connector._keepalive_timeout) == (3, 2, 7)
    assert session.timeout.total == 11
    assert nbllm.shared_session() is session
