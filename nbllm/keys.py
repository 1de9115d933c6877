"""Keys of providers: which are set, the model that follows from them, and setting one without showing it."""

from __future__ import annotations

import getpass
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from . import environment, masking
from .exceptions import UsageProblem, did_you_mean
from .providers import PROVIDERS
from .settings import settings

_MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash"}


def set_key(provider: str, key: str | None = None) -> str:
    """Set a provider's key for this process: `nbllm.set_key("openai")` asks for it, hidden.

    Args:
        provider: "openai", "anthropic", "gemini", …: any that has a key.
        key: The key. None asks for it, hidden as it is typed, and so keeps it out of the notebook.

    Returns:
        The environment variable that now holds it; never the key.

    Raises:
        UsageProblem: There is no such provider, nobody can be asked here, or the text can't be a key.
    """
    variable = _key_variable(provider)
    value = _asked(provider, variable) if key is None else key
    if not isinstance(value, str):
        raise UsageProblem(f"the key for {provider} must be a text, not {type(value).__name__}")
    value = value.strip()
    if not value:
        raise UsageProblem(f"the key for {provider} is empty; nothing was changed")
    if not value.isprintable() or " " in value:
        raise UsageProblem(
            f"the key for {provider} holds a blank, a line break or another character that no key has; "
            "nothing was changed. Copy it once more"
        )
    masking.keep_secret(value)
    os.environ[variable] = value
    return variable


def configured_providers() -> list[str]:
    """The providers whose key is set; of those that need none, whose address or key is."""
    return [
        name
        for name, provider in PROVIDERS.items()
        if set_variable(name) or (provider.key_optional and address_variable(name))
    ]


def key_variables(provider: str) -> tuple[str, ...]:
    """The variables that may hold a provider's key, the one that counts first; none where it takes no key."""
    # Azure takes a token of Microsoft Entra in place of a key.
    return (*PROVIDERS[provider].key_variables, *(("AZURE_AD_TOKEN",) if provider == "azure" else ()))


def set_variable(provider: str, env: Mapping[str, str] | None = None) -> str | None:
    """The variable that a provider's key is taken from; None where it is not set.

    Args:
        provider: One of `PROVIDERS`.
        env: Default: the variables in force.
    """
    return _first_set(key_variables(provider), env)


def address_variable(provider: str, env: Mapping[str, str] | None = None) -> str | None:
    """As `set_variable`, of a provider's address."""
    return _first_set(PROVIDERS[provider].base_url_variables, env)


def default_model() -> str:
    """The model for `%%llm` where the cell names none: the one that is set, else one that there is a key for.

    With several keys OpenAI's counts, then Anthropic's, then Google's; without any of them it is
    "demo/small". The one that is set may be an alias: see `settings.model_of`.
    """
    return settings().model or _model_with_key() or "demo/small"


def demo_hint() -> str | None:
    """What to do where `default_model` is the demo model for want of a better one; None where it is not."""
    if settings().model is not None or _model_with_key() is not None:
        return None
    provider = next(filter(set_variable, PROVIDERS), None)
    if provider is None:
        return "no key is set: %nbllm key openai"
    return f"the key of {provider} is set: name one of its models, such as %nbllm model {provider}/…"


def _first_set(variables: Iterable[str], env: Mapping[str, str] | None) -> str | None:
    known = environment.environ() if env is None else env
    return next(filter(known.get, variables), None)


def _model_with_key() -> str | None:
    return next((model for provider, model in _MODELS.items() if set_variable(provider)), None)


def _key_variable(provider: Any) -> str:
    with_key = [name for name, each in PROVIDERS.items() if each.key_variables]
    if provider not in with_key:
        hint = did_you_mean(str(provider), with_key) or f"; there are: {', '.join(with_key)}"
        shown = masking.redact(repr(provider))  # some give the key first
        raise UsageProblem(f"no provider with a key is called {shown}{hint}")
    return PROVIDERS[provider].key_variables[0]


def _asked(provider: str, variable: str) -> str:
    try:
        with warnings.catch_warnings():
            # Where the terminal can't hide what is typed, getpass warns and goes on.
            warnings.simplefilter("error", getpass.GetPassWarning)
            # Looked up at each call: a kernel puts a function of its own there.
            return getpass.getpass(f"Key for {provider} ({variable}), not shown: ")
    except (EOFError, OSError, NotImplementedError, getpass.GetPassWarning) as error:
        # A kernel whose front end takes no input raises a NotImplementedError of IPython's.
        raise UsageProblem(
            f"a key can't be asked for here: set {variable} in the environment, or in a .env file next to "
            "the notebook"
        ) from error
