"""One connection pool, one trace, every LLM call in the notebook.

%load_ext nbllm                                   # in a notebook
await nbllm.acompletion("gpt-4o-mini", "Hello")   # or nbllm.completion(...) anywhere
nbllm.sessions(); nbllm.requests(); nbllm.connections()
"""

import importlib
from typing import TYPE_CHECKING, Any

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
from .settings import configure
from .tagging import current_session, kernel_id, session, set_session

if TYPE_CHECKING:
    from .asking import Answer, Chat, aask, ask
    from .client import acompletion, completion
    from .diagnosis import adoctor, doctor
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
    from .frames import connections, requests, sessions
    from .keys import set_key
    from .notebook_file import read_notebook
    from .responding import aresponses, responses
    from .streaming import CompletionStream
    from .transport import aclose, close, shared_session
    from .types import ChatCompletion, ChatCompletionChunk

__version__ = "0.1.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "Answer",
    "AuthenticationError",
    "BadGatewayError",
    "BadRequestError",
    "Chat",
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
    "aask",
    "aclose",
    "acompletion",
    "adoctor",
    "aembedding",
    "aimage_generation",
    "amodels",
    "aresponses",
    "ask",
    "aspeech",
    "atranscription",
    "close",
    "completion",
    "configure",
    "connections",
    "current_session",
    "doctor",
    "embedding",
    "image_generation",
    "kernel_id",
    "models",
    "read_notebook",
    "requests",
    "responses",
    "session",
    "sessions",
    "set_key",
    "set_session",
    "shared_session",
    "speech",
    "transcription",
]


# Importing nbllm costs little more than importing aiohttp: the rest loads when it is first asked for.
_LATE = {
    name: module
    for module, names in {
        "asking": "Answer Chat aask ask",
        "client": "acompletion completion",
        "diagnosis": "adoctor doctor",
        "endpoints": (
            "aembedding aimage_generation amodels aspeech atranscription "
            "embedding image_generation models speech transcription"
        ),
        "frames": "connections requests sessions",
        "keys": "set_key",
        "notebook_file": "read_notebook",
        "responding": "aresponses responses",
        "streaming": "CompletionStream",
        "transport": "aclose close shared_session",
        "types": "ChatCompletion ChatCompletionChunk",
    }.items()
    for name in names.split()
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
    from . import kernel, magics

    magics.unregister(shell)
    kernel.unload(shell)
