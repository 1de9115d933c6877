"""Images in OpenAI's wire format: requests and answers.

Source: OpenAI API reference, "Images".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..media import ImagesResponse
from ..types import decoder
from .base import HttpRequest, Route
from .openai_requests import request

_images = decoder(ImagesResponse)


def image_request(
    route: Route, prompt: str, params: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None
) -> HttpRequest:
    """The request for pictures of `prompt`.

    Raises:
        UsageProblem: A value that JSON can't hold.
    """
    return request(route, "images/generations", {"prompt": prompt}, params, extra_body)


def image_response(body: bytes) -> ImagesResponse:
    """The pictures; raises msgspec.DecodeError where there are none, or one can't be read."""
    response = _images(body)
    if not response.data:
        raise msgspec.DecodeError("the answer holds no image")
    for image in response.data:
        try:
            readable = image.bytes or image.url
        except (ValueError, AttributeError) as error:
            raise msgspec.DecodeError(f"b64_json of an image is not base64: {error}") from None
        if not readable:
            raise msgspec.DecodeError("an image has neither b64_json nor url")
    return response
