r"""`{{expression}}` in a prompt: its value from the notebook is put in, once.

Owns `expand`. What is put in is never looked through again, so that data can't name further variables. Every
other brace stays as it is, `$x`, LaTeX, JSON and code too: what is between the braces must be a Python
expression, and more than a literal (`{{1,2}}` is C, or LaTeX). `\{{name}}` gives `{{name}}`.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Mapping
from typing import Any

from .exceptions import UsageProblem, did_you_mean

# The innermost pair: nothing between them opens or closes another, and `{{{x}}}` is a value in braces.
_PLACE = re.compile(r"(\\?)\{\{(?!\{)((?:(?!\{\{|\}\}).)+)\}\}", re.DOTALL)


def expand(text: str, namespace: Mapping[str, Any]) -> str:
    r"""`text` with each `{{expression}}` replaced by `str` of its value in `namespace`, in one pass.

    Raises:
        UsageProblem: A name is not defined, or the expression fails.
    """

    def value(match: re.Match[str]) -> str:
        escaped, inside = match.groups()
        if escaped:
            is_plain = "{" not in inside and "}" not in inside
            return match[0][1:] if is_plain or _expression(inside) is not None else match[0]
        expression = _expression(inside)
        return match[0] if expression is None else _value(expression, inside.strip(), namespace)

    return _PLACE.sub(value, text)


def _expression(inside: str) -> ast.Expression | None:
    """The expression between the braces; None for what is none, or only a literal."""
    try:
        expression = ast.parse(inside.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if _is_literal(expression.body) else expression


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return all(map(_is_literal, node.elts))
    if isinstance(node, ast.UnaryOp):
        return _is_literal(node.operand)
    return isinstance(node, ast.Constant)


def _value(expression: ast.Expression, source: str, namespace: Mapping[str, Any]) -> str:
    shown = "{{" + source + "}}"
    try:
        # `eval` wants a dict of its own; a notebook's names are its globals.
        value = eval(compile(expression, "<prompt>", "eval"), dict(namespace))
        if inspect.iscoroutine(value):
            value.close()
            raise UsageProblem(f"{shown} is a coroutine: await it in a cell and put in its result")
        return str(value)
    except NameError as error:
        hint = did_you_mean(error.name or "", [*namespace, *dir(builtins)])
        raise UsageProblem(
            f"{shown}: name {error.name!r} is not defined{hint} (\\{{{{ keeps the braces as they are)"
        ) from None
    except UsageProblem:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, AttributeError) and error.name:
            hint = did_you_mean(error.name, [name for name in dir(error.obj) if not name.startswith("_")])
        raise UsageProblem(f"{shown}: {type(error).__name__}: {error}{hint}") from error
