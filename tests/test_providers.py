"""Where a model string leads: provider, name on the wire, URL, key."""

from __future__ import annotations

from typing import Any

import pytest

from nbllm.exceptions import AuthenticationError, NotFoundError, UsageProblem
from nbllm.providers import resolve

KEYED = {"OPENAI_API_KEY": "sk-env"}


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("gpt-4o-mini", "openai", "gpt-4o-mini"),
        ("openai/gpt-4o-mini", "openai", "gpt-4o-mini"),
        ("openai/org/ft:gpt-4o", "openai", "org/ft:gpt-4o"),
        ("o3", "openai", "o3"),
        ("o4-mini", "openai", "o4-mini"),
        ("chatgpt-4o-latest", "openai", "chatgpt-4o-latest"),
        ("ft:gpt-4o-mini:org::id", "openai", "ft:gpt-4o-mini:org::id"),
        (" gpt-4o ", "openai", "gpt-4o"),
        ("openai/any-name-at-all", "openai", "any-name-at-all"),
    ],
)
def test_a_model_leads_to_its_provider(model: str, provider: str, name: str) -> None:
    route = resolve(model, environ=KEYED)
    assert (route.provider.name, route.model) == (provider, name)
    assert route.base_url == "https://api.openai.com/v1"
    assert route.api_key == "sk-env"


def test_demo_models_lead_to_the_demo_server_and_need_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_DEMO_URL", "http://127.0.0.1:9/v1")
    route = resolve("demo/small", environ={})
    assert (route.provider.name, route.model, route.base_url) == ("demo", "small", "http://127.0.0.1:9/v1")
    assert route.api_key is None
    assert "Authorization" not in route.headers


@pytest.mark.parametrize(
    "model", ["llama3", "mistrall/large", "openai", "openai/", "/x", "demo", "unknown/gpt-4o"]
)
def test_a_model_of_nobody_is_not_found(model: str) -> None:
    with pytest.raises(NotFoundError, match=r"no provider is known .* openai/…") as caught:
        resolve(model, environ=KEYED)
    assert caught.value.model == model
    assert caught.value.status_code == 404


@pytest.mark.parametrize("model", ["", "  ", None, 3, ["gpt-4o"], b"gpt-4o"])
def test_a_model_is_a_text(model: Any) -> None:
    with pytest.raises(UsageProblem, match="model must be a text"):
        resolve(model, environ=KEYED)


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("llama3", "openai", "llama3"),
        ("meta-llama/Llama-3-8B", "openai", "meta-llama/Llama-3-8B"),
        ("openai/llama3", "openai", "llama3"),
        ("demo/small", "demo", "small"),
    ],
)
def test_with_a_base_url_any_model_goes_there(model: str, provider: str, name: str) -> None:
    route = resolve(model, base_url="http://localhost:8000/v1/", environ={})
    assert (route.provider.name, route.model, route.base_url) == (provider, name, "http://localhost:8000/v1")


def test_no_key_is_an_error_with_the_next_step() -> None:
    with pytest.raises(
        AuthenticationError, match=r"set the environment variable OPENAI_API_KEY .* demo/small"
    ):
        resolve("gpt-4o", environ={})


def test_a_token_of_azure_is_a_key() -> None:
    env = {"AZURE_AD_TOKEN": "token"}
    with pytest.raises(UsageProblem, match=r"no address for azure: .*AZURE_API_BASE"):
        resolve("azure/gpt", environ=env)
    route = resolve("azure/gpt", environ={**env, "AZURE_API_BASE": "https://mine.openai.azure.com"})
    assert route.headers["Authorization"] == "Bearer token"


@pytest.mark.parametrize("provider", ["ollama", "vllm", "hosted_vllm", "lm_studio", "llamacpp"])
@pytest.mark.parametrize("given", ["http://h:1/v1", "http://h:1/v1/", "http://h:1", "http://h:1/"])
def test_the_address_of_ones_own_server_may_lack_the_version(provider: str, given: str) -> None:
    """litellm's `OLLAMA_API_BASE` has none."""
    env = {f"{provider.upper()}_API_BASE": given}
    assert resolve(f"{provider}/m", environ=env).base_url == "http://h:1/v1"
    assert resolve(f"{provider}/m", base_url=given, environ={}).base_url == "http://h:1/v1"


def test_another_server_needs_no_key() -> None:
    assert resolve("llama3", base_url="http://h/v1", environ={}).api_key is None
    assert resolve("gpt-4o", environ={"OPENAI_BASE_URL": "http://h/v1"}).api_key is None


def test_precedence() -> None:
    env = {**KEYED, "OPENAI_BASE_URL": "http://env/v1", "OPENAI_API_BASE": "http://older/v1"}
    assert resolve("gpt-4o", environ=env).base_url == "http://env/v1"
    assert resolve("gpt-4o", environ={**env, "OPENAI_BASE_URL": ""}).base_url == "http://older/v1"
    route = resolve("gpt-4o", environ=env, base_url="http://given/v1", api_key="sk-given")
    assert (route.base_url, route.api_key) == ("http://given/v1", "sk-given")


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-one", "sk-two"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        assert resolve("gpt-4o").api_key == key


def test_a_key_from_a_file_loses_its_line_break() -> None:
    route = resolve("gpt-4o", api_key=" sk-file\n", environ={})
    assert route.api_key == "sk-file"
    assert route.headers["Authorization"] == "Bearer sk-file"


@pytest.mark.parametrize("key", ["sk-a\nsk-b", "sk-\0", "\ud800k", 3, b"sk-x", ["sk-x"]])
def test_a_key_that_http_cant_hold_is_refused_without_showing_it(key: Any) -> None:
    with pytest.raises(UsageProblem) as caught:
        resolve("gpt-4o", api_key=key, environ={})
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://h/v1", "http://", "https:///v1", "http://h:x/v1", "http://h:99999/v1",
     "http://h h/v1", "http://h/v1\n", "//h/v1", "http://[::1/v1", 3, b"http://h/v1", ["http://h"]],
)  # fmt: skip
def test_a_base_url_that_cant_work_is_refused(url: Any) -> None:
    with pytest.raises(UsageProblem, match="base_url"):
        resolve("m", base_url=url, environ={})


@pytest.mark.parametrize("url", ["http://h/v1?key=x", "http://h/v1#x"])
def test_a_base_url_with_a_query_is_refused(url: str) -> None:
    with pytest.raises(UsageProblem, match=r"\? or #"):
        resolve("m", base_url=url, environ={})


def test_a_password_in_the_url_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageProblem) as caught:
        resolve("m", base_url="https://me:planted-secret@h/v1", environ={})
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000/v1", "https://h.example/a/b/v1", "http://10.0.0.1", "HTTP://h/v1"]
)
def test_usual_base_urls(url: str) -> None:
    assert resolve("m", base_url=url, environ={}).base_url == url


def test_a_route_never_shows_its_key() -> None:
    route = resolve("gpt-4o", api_key="sk-planted", environ={})
    assert "sk-planted" not in repr(route) + str(route)
