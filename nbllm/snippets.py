"""A request of the log as one would type it: as a call of nbllm, and as a curl command.

Owns `as_code` and `as_curl`. Pure, but for the names of the variables that hold keys; a key never stands in
either. Called by `details`. The URL's query is not in the log: where a provider needs one, it is made anew.
"""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from . import keys, tagging
from .contents import logged_object, messages_of
from .options import OPTION_NAMES
from .providers import PROVIDERS, Provider, azure
from .providers.openai import CHAT_PARAMETERS

WIDTH = 100
LONGEST_DATA = 200
"""How many characters of base64 a call still shows; longer data stands as `...`."""
LONGEST_BODY = 100_000
"""Bytes of a body that a command holds: Linux takes 128 KiB in one argument (execve(2), MAX_ARG_STRLEN)."""

# What lets a command read otherwise than it runs: controls, directions of writing, separators of lines
# (trojansource.codes). In JSON they stand in strings alone, where an escape means the same.
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

Row = Mapping[str, Any]


class _Omitted:
    """Stands for what is not shown."""

    def __repr__(self) -> str:
        return "..."


OMITTED = _Omitted()


def as_code(row: Row, request: str | None, is_secure: bool) -> str | None:
    """The call of nbllm that sends this request again.

    Args:
        row: The request's row in the log.
        request: The body as the log keeps it; None where it doesn't: `...` stands for what was said.
        is_secure: Whether it went over TLS.

    Returns:
        `import nbllm` and a call, `nbllm.completion("gpt-4o", …)`, which names the session where that is not
        the kernel's own; the answer of a stream is printed as it comes. None where the request is none of
        nbllm's own.
    """
    provider = PROVIDERS.get(row["provider"] or "")
    write = _VERBS.get(row["operation"] or "")
    if provider is None or write is None:
        return None
    body = logged_object(request) if request is not None else None
    if row["operation"] == "responses" and not _is_native(row):
        write = _chat  # what was sent is a chat completion, and so it is kept
    try:
        name, said = write(row, provider, body)
        given = _given(row, provider, said)
        named = {**_abridged(said), **_abridged(given)}
        if row["session_id"] not in (None, tagging.default_session()):
            named["session_id"] = row["session_id"]
        if row["stream"]:
            named["stream"] = True
        if (address := _address(row, provider, is_secure)) is not None:
            named["base_url"] = address
        call = _call(name, named)
        return f"import nbllm\n\n{_LOOPS[name] % call if row['stream'] and name in _LOOPS else call}"
    except (TypeError, AttributeError, LookupError, RecursionError):  # a body that was not written by us
        return None


def as_curl(row: Row, request: str | None, is_secure: bool) -> str | None:
    """The request as a command for a POSIX shell, in which a variable stands for the key.

    Returns:
        None where the body is not kept as it was sent, or is larger than a command's argument may be.
    """
    method = row["http_method"] or "POST"
    if row["operation"] == "responses" and not _is_native(row):
        return None
    body = None if request is None else _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", request)
    if method != "GET" and (body is None or len(body.encode()) > LONGEST_BODY):
        return None
    if not row["server_address"]:
        return None
    provider = PROVIDERS.get(row["provider"] or "")
    url = _origin(row, is_secure) + (row["url_path"] or "/") + _query(row, provider)
    # Brackets and braces of a URL mean something to curl.
    head = ["curl", *(["-g"] if set("[]{}") & set(url) else ()), *(["-N"] if row["stream"] else ())]
    lines = [" ".join([*head, shlex.quote(url)])]
    if method not in ("GET", "POST"):
        lines.append(f"-X {shlex.quote(method)}")
    if method != "GET":
        lines.append("-H 'Content-Type: application/json'")
    if provider is not None:
        lines += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in provider.headers.items()]
        if (key := _key_header(provider)) is not None:
            lines.append(f'-H "{key}"')  # in quotes that let the shell put in the key
    if method != "GET" and body is not None:
        lines.append(f"--data-raw {shlex.quote(body)}")
    return " \\\n  ".join(lines)


def _key_header(provider: Provider) -> str | None:
    """The header with the variable of the provider's key; None where it needs none, and none is set."""
    variable = keys.set_variable(provider.name)
    if variable is None and provider.key_variables and not provider.key_optional:
        variable = provider.key_variables[0]
    if variable is None:
        return None
    if variable not in provider.key_variables:  # a token of Microsoft Entra
        return f"Authorization: Bearer ${variable}"
    return f"{provider.key_header}: {provider.key_prefix}${variable}"


# -- the verbs ---------------------------------------------------------------------------------------------


def _chat(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if body is None:
        messages: Any = OMITTED
    elif provider.dialect == "openai":
        messages = body["messages"]
    else:
        messages = messages_of(msgspec.json.encode(body).decode())
    return "completion", {"model": _model(row, provider), "messages": messages}


def _responses(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    said = {"input": OMITTED if body is None else body["input"], "model": _model(row, provider)}
    told = {name: body[name] for name in ("instructions", "prompt") if body.get(name)} if body else {}
    return "responses", said | told


def _embeddings(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if body is None:
        texts: Any = OMITTED
    elif provider.dialect == "gemini":
        texts = [one["content"]["parts"][0]["text"] for one in body["requests"]]
    else:
        texts = body["input"]
    return "embedding", {"model": _model(row, provider), "input": texts}


def _image(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    prompt = OMITTED if body is None else body["prompt"]
    return "image_generation", {"prompt": prompt, "model": _model(row, provider)}


def _speech(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    return "speech", {"model": _model(row, provider), "input": OMITTED if body is None else body["input"]}


def _transcription(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    return "transcription", {"model": _model(row, provider), "file": OMITTED}  # audio is never kept


def _models(row: Row, provider: Provider, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    return "models", {"provider": provider.name}


_VERBS = {
    "chat": _chat,
    "responses": _responses,
    "embeddings": _embeddings,
    "image_generation": _image,
    "speech": _speech,
    "transcription": _transcription,
    "models": _models,
}

_POSITIONAL = {"responses": 2, "models": 1, "image_generation": 1}
"""How many arguments people write without their names; elsewhere the model alone."""

_LOOPS = {
    "completion": """\
for chunk in %s:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")""",
    "responses": """\
for event in %s:
    if event.type == "response.output_text.delta":
        print(event.delta, end="")""",
}
"""What prints a streamed answer as it comes; a chunk with the usage, or of Azure's filter, has no choices."""


def _is_native(row: Row) -> bool:
    """Whether a response was asked of the Responses API; elsewhere it is built on chat completions."""
    return (row["url_path"] or "").endswith("/responses")


def _model(row: Row, provider: Provider) -> str:
    return f"{provider.name}/{row['request_model']}"


def _given(row: Row, provider: Provider, said: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's parameters; fields that are no parameter of a verb go into `extra_body`."""
    params = logged_object(row["params"])
    if provider.takes_session:  # `calls` adds it to each body
        params.pop("litellm_session_id", None)
    is_strict = provider.dialect == "openai" and row["operation"] == "chat"
    named: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in params.items():
        is_name = name.isidentifier() and not keyword.iskeyword(name) and name not in said
        is_option = name == "stream" or (name in OPTION_NAMES and name != "metadata")
        is_known = not is_strict or name in CHAT_PARAMETERS or name == "metadata"
        (named if is_name and is_known and not is_option else extra)[name] = value
    return {**named, "extra_body": extra} if extra else named


# -- addresses ---------------------------------------------------------------------------------------------

_ENDPOINT = re.compile(
    r"(/openai/deployments/[^/]+)?/(chat/completions|responses|embeddings|images/generations|audio/\w+|"
    r"messages|(models|tunedModels)/[^/]+:\w+|models)"
)


def _address(row: Row, provider: Provider, is_secure: bool) -> str | None:
    """The base URL, where it is not the provider's own."""
    if provider.name == "demo" or not row["server_address"]:
        return None
    path = row["url_path"] or ""
    found = next((one for one in _ENDPOINT.finditer(path) if one.end() == len(path)), None)
    if found is None:
        return None
    address = _origin(row, is_secure) + path[: found.start()]
    return None if address == provider.base_url else address


def _origin(row: Row, is_secure: bool) -> str:
    scheme, usual = ("https", 443) if is_secure else ("http", 80)
    host = row["server_address"]
    host = f"[{host}]" if ":" in host else host
    port = "" if row["server_port"] in (usual, None) else f":{row['server_port']}"
    return f"{scheme}://{host}{port}"


def _query(row: Row, provider: Provider | None) -> str:
    path = row["url_path"] or ""
    if provider is not None and provider.name == "azure" and "/openai/v1/" not in path:
        return f"?api-version={azure.API_VERSION}"
    return "?alt=sse" if path.endswith(":streamGenerateContent") else ""


# -- values as Python --------------------------------------------------------------------------------------

_BASE64 = re.compile(r"(data:[^,]*;base64,)?[A-Za-z0-9+/_=-]*")


def _abridged(value: Any) -> Any:
    """A value with `OMITTED` in place of long base64."""
    if isinstance(value, str):
        return OMITTED if len(value) > LONGEST_DATA and _BASE64.fullmatch(value) else value
    if isinstance(value, dict):
        return {name: _abridged(item) for name, item in value.items()}
    return [_abridged(item) for item in value] if isinstance(value, list) else value


def _call(verb: str, named: dict[str, Any]) -> str:
    bare = _POSITIONAL.get(verb, 1)
    for indent in (None, 4):
        parts = [
            ("" if place < bare else f"{name}=") + _literal(value, indent)
            for place, (name, value) in enumerate(named.items())
        ]
        text = f"nbllm.{verb}({', '.join(parts)})"
        if indent is None and len(text) <= WIDTH:
            return text
    return f"nbllm.{verb}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _literal(value: Any, indent: int | None) -> str:
    """A value of JSON as Python: on one line where it fits, or where `indent` is None."""
    flat = _string(value) if isinstance(value, str) else _flat(value)
    if indent is None or len(flat) + indent <= WIDTH or not value or not isinstance(value, (list, dict)):
        return flat
    pairs = [("", item) for item in value] if isinstance(value, list) else list(value.items())
    heads = ["" if isinstance(value, list) else f"{_string(str(name))}: " for name, _ in pairs]
    inner = " " * (indent + 4)
    lines = [
        f"{inner}{head}{_literal(item, indent + 4)},\n" for head, (_, item) in zip(heads, pairs, strict=True)
    ]
    left, right = "[]" if isinstance(value, list) else "{}"
    return f"{left}\n{''.join(lines)}{' ' * indent}{right}"


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_flat, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_string(str(name))}: {_flat(item)}' for name, item in value.items())}}}"
    return repr(value)


def _string(text: str) -> str:
    """A string in double quotes, as most write it, where that needs no further backslash."""
    shown = repr(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in text and "'" not in text else shown
