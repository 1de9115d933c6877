"""The error tree: what catches what, what an error tells, and that it survives being sent elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nbllm import exceptions
from nbllm.exceptions import APIError, NbllmError, UsageProblem, error_class

ALL = [cls for cls in vars(exceptions).values() if isinstance(cls, type) and issubclass(cls, NbllmError)]
OF_CALLS = [cls for cls in ALL if issubclass(cls, APIError)]

STATUSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "APIError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "APIError",
    408: "Timeout",
    409: "APIError",
    413: "BadRequestError",
    418: "APIError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "Timeout",
    529: "InternalServerError",
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_has_its_class(status: int) -> None:
    assert error_class(status).__name__ == STATUSES[status]


@pytest.mark.parametrize(
    ("code", "message", "name"),
    [
        ("context_length_exceeded", "", "ContextWindowExceededError"),
        (None, "This model's maximum context length is 8192 tokens.", "ContextWindowExceededError"),
        (None, "Input exceeds the context window of this model", "ContextWindowExceededError"),
        ("content_policy_violation", "", "ContentPolicyViolationError"),
        ("content_filter", "", "ContentPolicyViolationError"),
        (
            None,
            "The response was filtered due to Azure's content management policy",
            "ContentPolicyViolationError",
        ),
        ("unsupported_parameter", "", "UnsupportedParamsError"),
        ("unsupported_value", "", "UnsupportedParamsError"),
        ("invalid_value", "something else", "BadRequestError"),
    ],
)
def test_a_bad_request_is_told_apart(code: str | None, message: str, name: str) -> None:
    cls = error_class(400, code, message)
    assert cls.__name__ == name
    assert issubclass(cls, exceptions.BadRequestError)


def test_one_root_catches_every_error_of_a_call() -> None:
    assert all(issubclass(cls, APIError) for cls in OF_CALLS)
    assert not issubclass(UsageProblem, APIError)
    assert issubclass(UsageProblem, ValueError)
    assert issubclass(exceptions.Timeout, exceptions.APIConnectionError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for cls in ALL:
        assert cls.__name__ in (exceptions.__doc__ or "")
    depth = {line.strip(" │├└─").split()[0]: len(line) - len(line.lstrip(" │├└─")) for line in _tree()}
    for cls in ALL:
        for parent in cls.__bases__:
            if parent in ALL:
                assert depth[parent.__name__] < depth[cls.__name__]


def _tree() -> list[str]:
    return [line for line in (exceptions.__doc__ or "").splitlines() if line.startswith("    ")]


def example(cls: type[APIError]) -> APIError:
    return cls(
        "what happened",
        status_code=499,
        model="openai/m",
        llm_provider="openai",
        code="some_code",
        body={"error": {"message": "x"}},
        request_id="req_1",
        retry_after=2.5,
        response={"x-request-id": "req_1"},
        request=object(),
    )


@pytest.mark.parametrize("cls", OF_CALLS)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_error_survives_being_copied(cls: type[APIError], copied: Any) -> None:
    error = example(cls)
    error.add_note("a note")
    other = copied(error)
    assert type(other) is cls
    assert str(other) == str(error) == "what happened"
    kept = {name: value for name, value in vars(error).items() if name != "request"}
    assert {name: value for name, value in vars(other).items() if name != "request"} == kept
    assert other.request is None


@pytest.mark.parametrize("cls", OF_CALLS)
def test_an_error_has_all_attributes_even_when_made_from_a_text(cls: type[APIError]) -> None:
    error = cls("text")
    assert (error.message, str(error)) == ("text", "text")
    for name in ("model", "llm_provider", "code", "body", "request_id", "retry_after", "response", "request"):
        assert getattr(error, name) is None
    assert error.status_code == cls.status_code


def test_usage_problems_are_plain_value_errors() -> None:
    assert str(pickle.loads(pickle.dumps(UsageProblem("no")))) == "no"
