"""The names that may stand at the end of a Python expression, found without running any of it.

Owns `names_at`, `variables` and `Suggestion`. Pure: looks into the objects of a namespace and calls nothing
of theirs, no property, no `__getattr__`, no `__dir__`. Called by `completer`.
"""

from __future__ import annotations

import builtins
import inspect
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Suggestion(NamedTuple):
    """A text that may stand in place of what was written of it, and a word or line on what it is."""

    text: str
    kind: str


def names_at(code: str, namespace: Mapping[str, Any]) -> tuple[str, list[Suggestion]]:
    """What may stand at the end of `code`: variables, attributes after a dot, keys in a subscript's quotes.

    Attributes are those of a variable, or of a chain of plain attributes; keys are those of a dict, and the
    columns of a DataFrame.

    Returns:
        The beginning of the name that `code` ends with, which may be empty, and what goes on from there.
    """
    if (quote := _open_quote(code)) is not None:
        fragment = code[quote + 1 :]
        subscripted = _SUBSCRIPT.search(code[:quote])
        keys = _keys(_object(subscripted["path"], namespace)) if subscripted else []
        fits = [key for key in keys if code[quote] not in key and "\\" not in key and key.isprintable()]
        return fragment, [Suggestion(key, "key") for key in fits if key.startswith(fragment)]
    found = _NAME.search(code)
    if found is None:
        return "", []
    path, fragment = found["path"], found["name"]
    if path:
        return fragment, _suggested(_attributes(_object(path[:-1], namespace)), fragment)
    return fragment, variables(namespace, fragment, also_builtins=bool(fragment))


def variables(
    namespace: Mapping[str, Any], fragment: str, *, also_builtins: bool = False
) -> list[Suggestion]:
    """The names of a notebook that begin so, and perhaps Python's own; IPython's only once one is begun."""
    found = _suggested(namespace, fragment)
    if not fragment:
        found = [name for name in found if name.text not in _OF_IPYTHON]
    if also_builtins:
        found += [name for name in _suggested(_BUILTINS, fragment) if name.text not in namespace]
    return found


def _object(path: str, namespace: Mapping[str, Any]) -> Any:
    """What a name, or a chain of plain attributes, stands for; `_NOTHING` where that isn't plain."""
    name, *attributes = path.split(".")
    value = namespace.get(name, _NOTHING)
    for attribute in attributes:
        value = _attribute(value, attribute)
    return value


def _open_quote(code: str) -> int | None:
    """Where the string begins that is not closed yet."""
    opened = None
    for at, char in enumerate(code):
        if opened is None and char in "'\"":
            opened = at
        elif opened is not None and char == code[opened]:
            opened = None
    return opened


# A name at the end, after a chain of attributes, and no attribute of what precedes it.
_START = r"(?<![\w.)\]}'\"])"
_NAME = re.compile(_START + r"(?P<path>(?:[^\W\d]\w*\.)*)(?P<name>\w*)$")
_SUBSCRIPT = re.compile(_START + r"(?P<path>(?:[^\W\d]\w*\.)*[^\W\d]\w*)\[$")

_NOTHING = object()
_OF_IPYTHON = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
_BUILTINS = {name: value for name, value in vars(builtins).items() if name.islower() and name[0] != "_"}
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    classmethod,
    staticmethod,
)


def _suggested(names: Mapping[str, Any], fragment: str) -> list[Suggestion]:
    hidden = () if fragment.startswith("_") else ("_",)
    fits = [name for name in names if type(name) is str and name.startswith(fragment)]
    shown = [name for name in fits if not name.startswith(hidden)]
    return [Suggestion(name, _kind(names[name])) for name in sorted(shown, key=str.lower)]


def _kind(value: Any) -> str:
    kind = type(value)  # and not isinstance, which asks the value for its __class__
    if issubclass(kind, types.ModuleType):
        return "module"
    if issubclass(kind, type):
        return "class"
    if issubclass(kind, property):
        return "property"
    return "function" if issubclass(kind, _FUNCTIONS) else "instance"


def _attribute(value: Any, name: str) -> Any:
    """A plain attribute: one that stands in the object itself, in a slot, or as a value in its class."""
    try:
        found = inspect.getattr_static(value, name)
        if type(found) is types.MemberDescriptorType:
            return found.__get__(value)
    except (AttributeError, TypeError):  # there is none; an empty slot; a slot asked of the class
        return _NOTHING
    binds = inspect.getattr_static(type(found), "__get__", None) is not None
    return _NOTHING if binds and not issubclass(type(value), types.ModuleType) else found


def _attributes(value: Any) -> dict[str, Any]:
    """Names of the attributes that stand in an object and its classes, and what stands there."""
    if value is _NOTHING:
        return {}
    classes = type.mro(value) if issubclass(type(value), type) else type.mro(type(value))
    found: dict[str, Any] = {}
    for kind in reversed(classes):
        found |= _namespace_of(kind)
    found |= _namespace_of(value)
    if _frame_class(value) is not None:
        found |= {key: None for key in _keys(value) if key.isidentifier()}
    return found


_CLASS_DICT: Any = vars(type)["__dict__"]


def _namespace_of(value: Any) -> Mapping[str, Any]:
    # As inspect.getattr_static does it: a class may define a __dict__ of its own.
    if issubclass(type(value), type):
        return dict(_CLASS_DICT.__get__(value))
    own = inspect.getattr_static(type(value), "__dict__", None)
    is_pythons = type(own) in (types.GetSetDescriptorType, types.MemberDescriptorType)
    return dict(own.__get__(value)) if is_pythons else {}


def _keys(value: Any) -> list[str]:
    """The keys of a dict, and the columns of a DataFrame, that are texts."""
    if issubclass(type(value), dict):
        keys: Iterable[Any] = dict.keys(value)
    elif (frame := _frame_class(value)) is not None:
        keys = vars(frame)["columns"].__get__(value, frame)
    else:
        return []
    return [key for key in keys if type(key) is str]


def _frame_class(value: Any) -> type | None:
    """The DataFrame of pandas or polars, which need not be loaded, that a value is of."""
    for kind in type.mro(type(value)):
        if kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] in ("pandas", "polars"):
            return kind
    return None
