r"""`{{expression}}` in a prompt: its value from the notebook is put in, once.

Owns `expand`. What is put in is never looked through again, so that data can't name further variables. Every
other brace stays as it is, `$x`, LaTeX, JSON and code too: what is between the braces must be a Python
expression, and more than a literal (`{{1,2}}` is C, or LaTeX). `\{{name}}` gives `{{name}}`. `{{x!r}}` and
`{{x:.2f}}` are as in an f-string; a format of a letter or a number alone is none (`{{fig:1}}` is a label).

A table goes in as Markdown, a picture as a picture, and anything else as `str` has it.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import tables
from .attachments import is_picture
from .exceptions import UsageProblem, did_you_mean

# The innermost pair: nothing between them opens or closes another, and `{{{x}}}` is a value in braces.
_PLACE = re.compile(r"(\\?)\{\{(?!\{)((?:(?!\{\{|\}\}).)+)\}\}", re.DOTALL)
_PICTURE = "image"
# Python's docs, "Format Specification Mini-Language", and the formats of dates.
_FORMATTED = re.compile(
    r"""(?P<value>.+?)
    (?:!(?P<conversion>[rsa]))?
    (?::(?P<format>
        (?!\s)(?=[\w ]*[^\w ]|\d+[A-Za-z])
        (?:.?[<>=^])?[-+ ]?z?\#?\d*[,_]?(?:\.\d+)?[A-Za-z%]?
        | %[^'"()\[\]{}]+
    ))?""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Variable:
    """A value that was put into a prompt.

    Attributes:
        expression: As written between the braces, without blanks around.
        kind: The name of the value's type, such as "DataFrame".
        shown: What went in: "1,204 characters", what `tables.size` says, or "image".
        notice: What was cut, such as "only the first 100 of 12,345 rows", else None.
    """

    expression: str
    kind: str
    shown: str
    notice: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its values put in.

    Attributes:
        content: The text; where a picture was put in, a list of texts and pictures in their order, as
            `attachments.content_parts` takes it, without texts that are blank.
        variables: What was put in, in order of appearance.
    """

    content: str | list[Any]
    variables: tuple[Variable, ...]

    @property
    def text(self) -> str:
        """The text alone, a picture as "[image: expression]"."""
        if isinstance(self.content, str):
            return self.content
        pictures = (variable.expression for variable in self.variables if variable.shown == _PICTURE)
        return "".join(
            part if isinstance(part, str) else f"[image: {next(pictures)}]" for part in self.content
        )


def expand(text: str, namespace: Mapping[str, Any], *, max_rows: int = 100) -> Prompt:
    r"""`text` with each `{{expression}}` replaced by its value in `namespace`, in one pass.

    Args:
        text: The prompt as the user wrote it.
        namespace: The notebook's names.
        max_rows: How many rows of a DataFrame or Series go in at most.

    Raises:
        UsageProblem: A name is not defined, the expression fails, or its value has no text.
    """
    parts: list[Any] = [""]  # ends with a text, so that there is always one to write on
    variables: list[Variable] = []
    end = 0
    for match in _PLACE.finditer(text):
        parts[-1] += text[end : match.start()]
        end = match.end()
        escaped, inside = match.groups()
        expression = _expression(inside)
        if escaped:
            is_plain = "{" not in inside and "}" not in inside
            parts[-1] += match[0][1:] if is_plain or expression is not None else match[0]
        elif expression is None:
            parts[-1] += match[0]
        else:
            source = inside.strip()
            with _mistakes_told(source, namespace):
                value = _value(expression, namespace)
                variable, piece = _piece(value, source, max_rows)
            variables.append(variable)
            if variable.shown == _PICTURE:
                parts += [piece, ""]
            elif tables.is_table(value):
                parts[-1] += _apart(piece, parts[-1], text[end:])
            else:
                parts[-1] += piece
    parts[-1] += text[end:]
    if len(parts) == 1:
        return Prompt(parts[0], tuple(variables))
    # A text that is blank is an error to some providers.
    content = [part for part in parts if not isinstance(part, str) or part.strip()]
    return Prompt(content, tuple(variables))


def _expression(inside: str) -> ast.Expression | None:
    """The expression between the braces; None for what is none, or only a literal."""
    expression = _parsed(inside.strip()) or _formatted(inside.strip())
    return None if expression is None or _is_literal(expression.body) else expression


def _parsed(source: str) -> ast.Expression | None:
    try:
        return ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _formatted(source: str) -> ast.Expression | None:
    """The f-string that `{source}` makes, where it ends in a conversion or a format."""
    match = _FORMATTED.fullmatch(source)
    if match is None or (expression := _parsed(match["value"])) is None or _is_literal(expression.body):
        return None
    conversion = ord(match["conversion"]) if match["conversion"] else -1
    spec = ast.JoinedStr([ast.Constant(match["format"])]) if match["format"] else None
    expression.body = ast.JoinedStr([ast.FormattedValue(expression.body, conversion, spec)])
    return ast.fix_missing_locations(expression)


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return all(map(_is_literal, node.elts))
    if isinstance(node, ast.UnaryOp):
        return _is_literal(node.operand)
    return isinstance(node, ast.Constant)


def _value(expression: ast.Expression, namespace: Mapping[str, Any]) -> Any:
    # `eval` wants a dict of its own; a notebook's names are its globals.
    value = eval(compile(expression, "<prompt>", "eval"), dict(namespace))
    if inspect.iscoroutine(value):
        value.close()
        raise UsageProblem("a coroutine; await it in a cell and put in its result")
    return value


def _piece(value: Any, source: str, max_rows: int) -> tuple[Variable, Any]:
    """What goes into the prompt for a value: a text, or the picture itself."""
    kind = type(value).__name__
    if tables.is_table(value):
        table, notice = tables.markdown(value, max_rows=max_rows)
        return Variable(source, kind, tables.size(value, max_rows=max_rows), notice), table
    if is_picture(value):
        return Variable(source, kind, _PICTURE, None), value
    text = str(value)
    return Variable(source, kind, f"{len(text):,} character{'' if len(text) == 1 else 's'}", None), text


def _apart(table: str, before: str, after: str) -> str:
    """A table on lines of its own. In Markdown it lasts until a blank line: what follows would be a row."""
    start = "\n" if before and not before.endswith("\n") else ""
    if not after.strip() or after.startswith("\n\n"):
        return start + table
    return start + table + ("\n" if after.startswith("\n") else "\n\n")


def _braced(source: str) -> str:
    return "{{" + source + "}}"


@contextlib.contextmanager
def _mistakes_told(source: str, namespace: Mapping[str, Any]) -> Iterator[None]:
    """Whatever goes wrong with a value is told in one line that names its expression."""
    try:
        yield
    except NameError as error:
        hint = did_you_mean(error.name or "", [*namespace, *dir(builtins)])
        raise UsageProblem(
            f"{_braced(source)}: name {error.name!r} is not defined{hint} "
            "(\\{{ keeps the braces as they are)"
        ) from None
    except UsageProblem as error:
        raise UsageProblem(f"{_braced(source)}: {error}") from error
    except Exception as error:
        try:
            said = f": {' '.join(str(error).split())}{_near_attribute(error)}"
        except Exception:  # the value's own code, which fails once more
            said = ""
        raise UsageProblem(f"{_braced(source)}: {type(error).__name__}{said}") from error


def _near_attribute(error: Exception) -> str:
    if not isinstance(error, AttributeError) or not error.name:
        return ""
    return did_you_mean(error.name, [name for name in dir(error.obj) if not name.startswith("_")])
