"""One connection pool, one trace, every LLM call in the notebook.

%load_ext nbllm                                   # in a notebook
await nbllm.acompletion("gpt-4o-mini", "Hello")   # or nbllm.completion(...) anywhere
nbllm.sessions(); nbllm.requests(); nbllm.connections()
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import providers
from .client import acompletion, completion
from .exceptions import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    AuthenticationError,
    BadGatewayError,
    BadRequestError,
    ContentPolicyViolationError,
    ContextWindowExceededError,
    InternalServerError,
    NbllmError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServiceUnavailableError,
    Timeout,
    UnprocessableEntityError,
    UnsupportedParamsError,
    UsageProblem,
)
from .frames import connections, requests, sessions
from .settings import configure
from .streaming import CompletionStream
from .tagging import current_session, kernel_id, session, set_session
from .transport import shared_session
from .types import ChatCompletion, ChatCompletionChunk

if TYPE_CHECKING:
    from .endpoints import (
        aembedding,
        aimage_generation,
        amodels,
        aspeech,
        atranscription,
        embedding,
        image_generation,
        models,
        speech,
        transcription,
    )
    from .responding import aresponses, responses

__version__ = "0.1.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "AuthenticationError",
    "BadGatewayError",
    "BadRequestError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "CompletionStream",
    "ContentPolicyViolationError",
    "ContextWindowExceededError",
    "InternalServerError",
    "NbllmError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServiceUnavailableError",
    "Timeout",
    "UnprocessableEntityError",
    "UnsupportedParamsError",
    "UsageProblem",
    "acompletion",
    "aembedding",
    "aimage_generation",
    "amodels",
    "aresponses",
    "aspeech",
    "atranscription",
    "completion",
    "configure",
    "connections",
    "current_session",
    "embedding",
    "image_generation",
    "kernel_id",
    "models",
    "requests",
    "responses",
    "session",
    "sessions",
    "set_session",
    "shared_session",
    "speech",
    "transcription",
]


# The table of providers can't name the demo server itself: imports go downward only. It starts at first use.
def _demo_url() -> str:
    from .servers.demo import demo_url

    return demo_url()


providers.register(providers.Provider("demo", _demo_url, "openai"))


# What fewer notebooks use loads when it is asked for: name -> module.
_LATE = {
    **dict.fromkeys(("aresponses", "responses"), "responding"),
    **dict.fromkeys(("aembedding", "aimage_generation", "amodels", "aspeech", "atranscription"), "endpoints"),
    **dict.fromkeys(("embedding", "image_generation", "models", "speech", "transcription"), "endpoints"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext nbllm`: the magics, and cells that tag their requests."""
    from . import kernel, magics

    kernel.load(shell)
    magics.register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext nbllm`: the HTTP session and the log live on."""
    from . import kernel

    kernel.unload(shell)
