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
    from . import bridges as bridges
    from .asking import Answer, Chat, aask, ask
    from .bridges.httpx_clients import async_httpx_client, httpx_client
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
    from .exporting import export
    from .frames import connections, requests, sessions
    from .housekeeping import delete_session, forget, prune, rename_session, tag_session
    from .keys import set_key
    from .notebook_file import read_notebook
    from .own_prices import set_price
    from .pictures import waterfall
    from .reports import Report, report
    from .responding import aresponses, responses
    from .servers.gateway import Gateway, gateway
    from .streaming import CompletionStream
    from .styles import Styled, styled
    from .transcripts import Transcript, transcript
    from .transport import aclose, close, shared_session, trace
    from .types import ChatCompletion, ChatCompletionChunk
    from .widgets import Dashboard, dashboard

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
    "Dashboard",
    "Gateway",
    "InternalServerError",
    "NbllmError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "Report",
    "ServiceUnavailableError",
    "Styled",
    "Timeout",
    "Transcript",
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
    "async_httpx_client",
    "atranscription",
    "close",
    "completion",
    "configure",
    "connections",
    "current_session",
    "dashboard",
    "delete_session",
    "doctor",
    "embedding",
    "export",
    "forget",
    "gateway",
    "httpx_client",
    "image_generation",
    "kernel_id",
    "models",
    "prune",
    "read_notebook",
    "rename_session",
    "report",
    "requests",
    "responses",
    "session",
    "sessions",
    "set_key",
    "set_price",
    "set_session",
    "shared_session",
    "speech",
    "styled",
    "tag_session",
    "trace",
    "transcript",
    "transcription",
    "waterfall",
]


# Importing nbllm costs little more than importing aiohttp: the rest loads when it is first asked for.
_LATE = {
    name: module
    for module, names in {
        "asking": "Answer Chat aask ask",
        "bridges.httpx_clients": "async_httpx_client httpx_client",
        "client": "acompletion completion",
        "diagnosis": "adoctor doctor",
        "endpoints": (
            "aembedding aimage_generation amodels aspeech atranscription "
            "embedding image_generation models speech transcription"
        ),
        "exporting": "export",
        "frames": "connections requests sessions",
        "housekeeping": "delete_session forget prune rename_session tag_session",
        "keys": "set_key",
        "notebook_file": "read_notebook",
        "own_prices": "set_price",
        "pictures": "waterfall",
        "reports": "Report report",
        "responding": "aresponses responses",
        "servers.gateway": "Gateway gateway",
        "streaming": "CompletionStream",
        "styles": "Styled styled",
        "transcripts": "Transcript transcript",
        "transport": "aclose close shared_session trace",
        "types": "ChatCompletion ChatCompletionChunk",
        "widgets": "Dashboard dashboard",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name == "bridges":
        return importlib.import_module(".bridges", __name__)
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "bridges"]


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
