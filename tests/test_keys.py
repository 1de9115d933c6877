"""Keys: set without being shown, which providers have one, and the model that follows from them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import masking
from nbllm.environment import use_folder
from nbllm.keys import configured_providers, default_model, demo_hint, key_variables, set_key, set_variable
from nbllm.providers import PROVIDERS, resolve
from tests.kernels import TIMEOUT, Kernel

KEY = "key-of-nobody-123"


def test_a_key_is_set_for_this_process_and_masked() -> None:
    assert set_key("gemini", f" {KEY}\n") == "GEMINI_API_KEY"
    assert os.environ["GEMINI_API_KEY"] == KEY
    assert resolve("gemini/x").api_key == KEY
    assert masking.redact(f"x {KEY} y") == "x [key] y"


@pytest.mark.parametrize(
    "key", ["", " \n", "two words", "sk-a\nsk-b", "sk\x00a", "sk\u200ba", "sk\xa0a", 5, b"sk-x"]
)
def test_what_cant_be_a_key_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(nbllm.UsageProblem) as caught:
        set_key("openai", key)
    assert "OPENAI_API_KEY" not in os.environ
    assert not isinstance(key, str) or not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("opneai", "did you mean 'openai'"),
        ("demo", "there are: openai, azure"),
        (None, "there are"),
        ([], "None|\\[\\]"),
    ],
)
def test_a_provider_that_has_no_key_is_answered_with_those_that_have(provider: Any, said: str) -> None:
    with pytest.raises(nbllm.UsageProblem, match=said):
        set_key(provider, KEY)


def test_a_key_in_place_of_the_provider_is_not_shown() -> None:
    with pytest.raises(nbllm.UsageProblem, match=r"called '\[key\]'; there are"):
        set_key("sk-proj-nobodys-key")


def test_where_nobody_can_be_asked_it_says_where_the_key_goes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from nbllm.keys import set_key; set_key('openai')"],
        input=KEY,  # a pipe can't hide what is typed
        start_new_session=True,  # without a terminal
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith("nbllm.exceptions.UsageProblem: a key can't be asked for here")
    assert "set OPENAI_API_KEY in the environment, or in a .env file" in said


def test_configured_are_those_whose_key_or_own_server_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert configured_providers() == []
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.setenv("MISTRAL_API_KEY", "")
    assert configured_providers() == []
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://localhost:1/v1")
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    (tmp_path / ".env").write_text(f"GROQ_API_KEY={KEY}\n")
    use_folder(tmp_path)
    assert configured_providers() == ["gemini", "groq", "hosted_vllm"]


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if key_variables(name)])
def test_a_key_set_by_any_of_its_variables_is_found_and_sent(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set_variable(provider) is None
    for number, variable in enumerate(reversed(key_variables(provider))):  # the first one counts most
        monkeypatch.setenv(variable, f"{KEY}{number}")
        assert set_variable(provider) == variable
        assert configured_providers() == [provider]
        assert resolve(f"{provider}/x", base_url="http://localhost:1").api_key == f"{KEY}{number}"
    assert set_variable(provider, {}) is None


def test_a_chosen_model_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_MODEL", "openai/env")
    assert default_model() == "openai/env"
    nbllm.configure(model="openai/given")
    assert default_model() == "openai/given"
    nbllm.configure(model=None)
    assert default_model() == "openai/env"


def test_else_it_follows_from_the_keys_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_model() == "demo/small"
    for variable, model in (
        ("GOOGLE_API_KEY", "gemini-2.5-flash"),
        ("ANTHROPIC_API_KEY", "claude-haiku-4-5"),
        ("OPENAI_API_KEY", "gpt-4o-mini"),
    ):
        monkeypatch.setenv(variable, "key")
        assert default_model() == model
        assert resolve(model).api_key == "key"
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert default_model() == "claude-haiku-4-5"


@pytest.mark.parametrize(("variable", "provider"), [("GROQ_API_KEY", "groq"), ("AZURE_AD_TOKEN", "azure")])
def test_the_demo_hint_tells_of_a_key_whose_model_nobody_can_guess(
    variable: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_hint() == "no key is set: %nbllm key openai"
    monkeypatch.setenv(variable, KEY)
    assert default_model() == "demo/small"
    assert demo_hint() == (
        f"the key of {provider} is set: name one of its models, such as %nbllm model {provider}/…"
    )


def test_no_hint_where_the_demo_model_is_chosen_or_another_one_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nbllm.configure(model="demo/small")
    assert demo_hint() is None
    nbllm.configure(model=None)
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    assert demo_hint() is None


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with Kernel(tmp_path_factory.mktemp("kernel")) as running:
        running.run(
            "import os, nbllm; from nbllm.keys import set_key; os.environ.pop('XAI_API_KEY', None)"
        ).ok()
        yield running


def test_a_notebook_asks_with_a_hidden_prompt(kernel: Kernel) -> None:
    asked = kernel.send("set_key('xai')", allow_stdin=True)
    client = kernel._client
    request = client.get_stdin_msg(timeout=TIMEOUT)
    assert (request["content"]["password"], request["content"]["prompt"]) == (
        True,
        "Key for xai (XAI_API_KEY), not shown: ",
    )
    client.input(KEY)
    outcome = kernel.wait(asked).ok()
    assert kernel.value("os.environ['XAI_API_KEY']") == KEY
    assert KEY not in str(outcome)


def test_a_notebook_that_runs_by_itself_fails_with_the_remedy(kernel: Kernel) -> None:
    outcome = kernel.run("set_key('groq')")
    assert (outcome.status, outcome.error) == ("error", "UsageProblem")
    assert "set GROQ_API_KEY in the environment, or in a .env file" in (outcome.message or "")
