"""Keys of providers: which are set, and setting one without showing it."""

from __future__ import annotations

import getpass
import os
import warnings
from typing import Any

from . import environment, tracing
from .exceptions import UsageProblem, did_you_mean
from .providers import PROVIDERS


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
    tracing.keep_secret(value)
    os.environ[variable] = value
    return variable


def configured_providers() -> list[str]:
    """The providers whose key is set; of those that need none, whose address or key is."""
    env = environment.environ()
    found = []
    for name, provider in PROVIDERS.items():
        needs_key = provider.key_variables and not provider.key_optional
        variables = provider.key_variables + (() if needs_key else provider.base_url_variables)
        if any(map(env.get, variables)):
            found.append(name)
    return found


def _key_variable(provider: Any) -> str:
    with_key = [name for name, each in PROVIDERS.items() if each.key_variables]
    if provider not in with_key:
        hint = did_you_mean(str(provider), with_key) or f"; there are: {', '.join(with_key)}"
        shown = tracing.redact(repr(provider))  # some give the key first
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
