"""Warnings: once per text, and never as an exception."""

from __future__ import annotations

import warnings

import pytest

from nbllm.notices import warn_once


def test_a_text_is_warned_of_once(recwarn: pytest.WarningsRecorder) -> None:
    for text in ("a", "a", "b"):
        warn_once(text)
    assert [str(each.message) for each in recwarn] == ["nbllm: a", "nbllm: b"]


def test_a_warning_never_raises() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_once("a")
