"""Ways out to other systems, one module each, which loads when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import anthropic, google_genai, langchain, litellm, openai, opentelemetry

__all__ = ["anthropic", "google_genai", "langchain", "litellm", "openai", "opentelemetry"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return __all__
