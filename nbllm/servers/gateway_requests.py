"""What a request to the gateway says: its body, as JSON or a form, and the session that it names.

Called by `gateway_endpoints`. What can't be read is refused. The ways to name a session are from
docs.litellm.ai, "Session Logs".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from .. import tagging
from ..exceptions import UsageProblem
from ..options import OPTION_NAMES, checked_options
from ..types import parse

LARGEST_BODY = 100 * 1024**2
"""Bytes of a request's body: pictures and recordings are large."""

Fields = dict[str, Any]

# What a client may not choose: where a key goes, and what else is this process's own.
_OURS = frozenset(
    (
        *("api_key", "api_base", "base_url", "api_version"),
        *("extra_headers", "extra_query", "shared_session", "fallbacks"),
    )
)


class Asked(NamedTuple):
    """A request, taken apart.

    Attributes:
        fields: OpenAI's parameters, and whatever else the server asked may take.
        options: Those of all verbs.
    """

    fields: Fields
    options: Fields

    def take(self, name: str) -> Any:
        """Take a parameter out that must be there."""
        if (value := self.fields.pop(name, None)) is None:
            raise UsageProblem(f"the request holds no {name!r}")
        return value

    def stream(self) -> bool:
        """Take out whether the answer shall be streamed."""
        if not isinstance(stream := self.fields.pop("stream", None) or False, bool):
            raise UsageProblem("stream is true or false")
        return stream

    def whole(self) -> Fields:
        """The parameters of an endpoint that doesn't stream."""
        streams = self.fields.pop("stream", None) not in (None, False, "false")
        if streams or self.fields.get("stream_format") == "sse":
            raise UsageProblem(
                "here only chat completions, messages and responses are streamed: leave out stream"
            )
        return self.fields


async def asked(request: web.BaseRequest) -> Asked:
    """What a JSON body says."""
    try:
        body = parse(await _body(request))
    except msgspec.DecodeError as error:
        raise UsageProblem(f"the body of the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageProblem(f"the body of the request must be a JSON object, not a {type(body).__name__}")
    return taken_apart(body, request.headers)


async def form(request: web.BaseRequest) -> tuple[Asked, tuple[str, bytes]]:
    """What a form says, and its file. Brackets make lists and objects: `include[]`, `metadata[x]`."""
    fields: Fields = {}
    file: tuple[str, bytes] | None = None
    _let_it_come(request)
    try:
        for name, value in (await request.post()).items():
            field, bracket, within = name.partition("[")
            if isinstance(value, web.FileField):
                with value.file:
                    file = value.filename, value.file.read()
            elif isinstance(value, bytes | bytearray):
                raise UsageProblem(f"the form's {name[:100]!r} is neither a text nor a file with a name")
            elif within == "]":
                fields.setdefault(field, []).append(value)
            elif bracket:
                fields.setdefault(field, {})[within.removesuffix("]")] = value
            else:
                fields[name] = value
    except (ValueError, TypeError, AttributeError, web.RequestPayloadError) as error:
        raise UsageProblem(f"the body of the request is no form with a file: {error}") from None
    if file is None:
        raise UsageProblem("the form holds no file: send multipart/form-data with 'file' and 'model'")
    return taken_apart(fields, request.headers), file


def taken_apart(body: Fields, headers: Mapping[str, str]) -> Asked:
    """What the fields of a body say, and headers where they name a session."""
    given = {name: body.pop(name) for name in OPTION_NAMES.intersection(body)}
    if refused := _OURS.intersection(given):
        raise UsageProblem(f"the gateway takes no {sorted(refused)[0]}: addresses and keys are its own")
    metadata = given.get("metadata")
    # As for the verbs: fields first, then metadata, then headers. These are not sent on.
    named = {name: headers[name] for name in tagging.SESSION_HEADERS if name in headers}
    session_id = checked_options(**given, extra_headers=named or None).session_id
    options = {name: value for name, value in given.items() if name not in tagging.SESSION_FIELDS}
    if metadata:
        rest = {name: value for name, value in metadata.items() if name not in tagging.SESSION_METADATA}
        options["metadata"] = rest or None
    if session_id is not None:
        options["session_id"] = session_id
    return Asked(body, options)


async def _body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > LARGEST_BODY:
        raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)
    _let_it_come(request)
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise UsageProblem(f"the body of the request could not be read: {error}") from None


def _let_it_come(request: web.BaseRequest) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
