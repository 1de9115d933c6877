"""What a user gives as `response_format=` → OpenAI's wire form, and a parser of the answer's text.

Owns how Python types become JSON schemas that structured outputs take, and how an answer becomes an object
of the type. Pydantic is never imported: a type that needs it can only come from a loaded pydantic.

Source of the rules: OpenAI's guide "Structured outputs", "Supported schemas". The root is an object; every
object lists all its properties as required and allows no others; each schema has a type, `anyOf` or `$ref`;
`default`, `oneOf`, `allOf` and words beside a `$ref` are refused, and so are tuples (`prefixItems`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import msgspec

from . import fences
from .exceptions import APIResponseValidationError, UsageProblem

Schema = dict[str, Any]

# The words of JSON Schema that strict structured outputs take, as they are.
_KEPT = {
    "type", "title", "description", "enum", "const", "pattern", "format", "multipleOf", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "minLength", "maxLength",
}  # fmt: skip
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
# Words that say which JSON fits and that strict schemas lack: leaving them out would change the meaning.
_STRUCTURAL = {
    "prefixItems", "patternProperties", "not", "if", "then", "else", "dependentRequired",
    "dependentSchemas", "contains",
}  # fmt: skip
_READ_ELSEWHERE = {
    "$ref", "$defs", "$schema", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf",
    "allOf", "discriminator",
}  # fmt: skip
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def response_format(wanted: Any) -> tuple[Schema | None, Callable[[str], Any] | None]:
    """OpenAI's `response_format`, and the parser that makes the answer's text an object.

    Args:
        wanted: A dict in the wire form; or a type: a pydantic model, a dataclass, a TypedDict, a
            `msgspec.Struct`, or a hint such as `list[Person]`, `Literal["yes", "no"]` or `int`.

    Returns:
        The wire form, and a parser from text to a value; None where there is nothing to parse (None, a dict
        of type "text"). For a dict of type "json_object" or "json_schema" the parser gives plain Python
        values, the latter only if they fit the schema. For a type the wire form is a "json_schema" and the
        parser gives an instance. It is strict wherever OpenAI can enforce the type: not with tuples of fixed
        length, `Any`, or dicts with free keys. Strict, the model fills in every field, those with a default
        too. A type that is no JSON object, such as `list[Person]`, is asked for as {"value": …}; the parser
        takes the value out.

    Raises:
        UsageProblem: There is no JSON schema for `wanted`. The parser itself raises
            `APIResponseValidationError` for a text that doesn't fit; it overlooks a Markdown fence.
    """
    if wanted is None:
        return None, None
    if isinstance(wanted, dict):
        if wanted.get("type") == "json_schema":
            described = wanted.get("json_schema")
            schema = described.get("schema") if isinstance(described, dict) else None
            return wanted, partial(_parsed, partial(_valid, schema), "the JSON schema")
        return wanted, json_value if wanted.get("type") == "json_object" else None
    schema, decode = _described(wanted)
    try:
        schema, strict = {**_strict(schema), "$defs": _strict_all(schema.get("$defs", {}))}, True
    except _NotStrict:
        strict = False
    if not schema.get("$defs"):
        schema.pop("$defs", None)
    title = getattr(wanted, "__name__", "answer")
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", title).strip("_")[:64] or "answer"  # all that OpenAI takes
    wire = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": strict}}
    return wire, partial(_parsed, decode, title)


def _described(wanted: Any) -> tuple[Schema, Callable[[str], Any]]:
    """The JSON schema of a type, with an object at its root, and the decoder that belongs to it."""
    instance = dataclasses.is_dataclass(wanted) and not isinstance(wanted, type)
    if isinstance(wanted, str) or instance or inspect.isroutine(wanted):  # pydantic would call a function
        _refuse(wanted, "it is no type")
    # To know a type, its annotations are run, and its own hooks: any error may come of it.
    if isinstance(wanted, type) and hasattr(wanted, "__pydantic_core_schema__"):
        try:
            return _by_pydantic(wanted)
        except Exception as error:
            _refuse(wanted, str(error).partition("\n")[0], error)
    try:
        return _by_msgspec(wanted)
    except Exception as error:
        if "pydantic" in sys.modules:  # list[Model], for example
            try:
                return _by_pydantic(wanted)
            except Exception:
                pass  # msgspec's reason is the plainer one
        _refuse(wanted, str(error).rpartition("\n")[2], error)


def _refuse(wanted: Any, reason: str, error: Exception | None = None) -> NoReturn:
    raise UsageProblem(
        f"response_format can't be {wanted!r:.80}: {reason.rstrip('.')}. Give a pydantic model class, a "
        'dataclass, a TypedDict, a hint such as list[str], or a dict such as {"type": "json_object"}'
    ) from error


def _by_msgspec(wanted: Any) -> tuple[Schema, Callable[[str], Any]]:
    schema = _rooted(msgspec.json.schema(wanted))
    if schema.get("type") == "object":
        return schema, partial(msgspec.json.decode, type=wanted)
    boxed = msgspec.defstruct("Answer", [("value", wanted)])
    return _rooted(msgspec.json.schema(boxed)), lambda text: msgspec.json.decode(text, type=boxed).value  # type: ignore[attr-defined]


def _by_pydantic(wanted: Any) -> tuple[Schema, Callable[[str], Any]]:
    pydantic = sys.modules["pydantic"]
    adapter = pydantic.TypeAdapter(wanted)
    schema = _rooted(adapter.json_schema())
    if schema.get("type") == "object":
        return schema, adapter.validate_json
    boxed = pydantic.create_model("Answer", value=(wanted, ...))
    return _rooted(boxed.model_json_schema()), lambda text: boxed.model_validate_json(text).value


def _rooted(schema: Schema) -> Schema:
    """The schema with the definition that its root only refers to in the root's place."""
    if (ref := schema.get("$ref")) is None:
        return schema
    name = ref.removeprefix("#/$defs/")
    defs = dict(schema["$defs"])
    root = defs[name]
    if f'"{ref}"'.encode() not in msgspec.json.encode(defs):  # not recursive
        del defs[name]
    return {**root, "$defs": defs}


class _NotStrict(Exception):
    """A schema says something that strict structured outputs can't."""


def _strict_all(schemas: Schema) -> Schema:
    return {name: _strict(schema) for name, schema in schemas.items()}


def _strict(schema: Any) -> Schema:
    """The schema by OpenAI's rules, its own `$defs` left out.

    What only narrows values and isn't known to OpenAI, and the default, go into the description: the model
    reads them there, and the parser holds the answer to them.
    """
    if not isinstance(schema, dict) or _STRUCTURAL & schema.keys():
        raise _NotStrict
    strict = {word: value for word, value in schema.items() if word in _KEPT}
    noted = {word: value for word, value in schema.items() if word not in _KEPT | _READ_ELSEWHERE}
    if strict.get("format", "date") not in _FORMATS:
        noted["format"] = strict.pop("format")
    if _LOOKAROUND.search(strict.get("pattern", "")):
        noted["pattern"] = strict.pop("pattern")
    if noted.get("default", ...) is None:
        del noted["default"]
    alternatives = [schema[word] for word in ("anyOf", "oneOf", "allOf") if word in schema]
    if "$ref" in schema and (strict or noted):
        alternatives.append([{"$ref": schema["$ref"]}])  # beside anyOf, other words may stand
    elif "$ref" in schema:
        strict["$ref"] = schema["$ref"]
    if len(alternatives) > 1 or len(schema.get("allOf", ())) > 1:
        raise _NotStrict
    if alternatives:
        strict["anyOf"] = [_strict(alternative) for alternative in alternatives[0]]
    if "type" not in strict and ("enum" in strict or "const" in strict):
        strict["type"] = _type_of(strict["enum"] if "enum" in strict else [strict["const"]])
    if strict.get("type") == "object":
        if "properties" not in schema or schema.get("additionalProperties", False) is not False:
            raise _NotStrict
        strict["properties"] = _strict_all(schema["properties"])
        strict["required"] = list(schema["properties"])
        strict["additionalProperties"] = False
    if strict.get("type") == "array":
        strict["items"] = _strict(schema.get("items"))
    if not {"type", "anyOf", "$ref"} & strict.keys():
        raise _NotStrict
    if noted:
        notes = ", ".join(f"{word}: {msgspec.json.encode(value).decode()}" for word, value in noted.items())
        strict["description"] = f"{strict['description']} ({notes})" if "description" in strict else notes
    return strict


def _type_of(values: list[Any]) -> str | list[str]:
    types = list(dict.fromkeys(_JSON_TYPES.get(type(value), "") for value in values))
    if "" in types:  # an array or an object
        raise _NotStrict
    return types[0] if len(types) == 1 else types


def as_response_format(schema: Any) -> Any:
    """What to give as `response_format` for a type, a dict in the wire form, or a bare JSON schema."""
    if not isinstance(schema, dict) or schema.get("type") in ("json_schema", "json_object", "text"):
        return schema
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", str(schema.get("title", ""))).strip("_")[:64] or "answer"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def json_value(text: str) -> Any:
    """The value of an answer that is JSON, in a Markdown fence or not.

    Raises:
        APIResponseValidationError: It is not JSON.
    """
    return _parsed(msgspec.json.decode, "JSON", text)


def _valid(schema: Any, text: str) -> Any:
    """The value of a JSON text that fits the schema; ValueError where it doesn't."""
    value = msgspec.json.decode(text)
    if isinstance(schema, dict):
        from jsonschema import SchemaError
        from jsonschema.exceptions import best_match
        from jsonschema.validators import validator_for

        validator = validator_for(schema)
        try:
            validator.check_schema(schema)
        except SchemaError as error:
            raise UsageProblem(f"the schema is no JSON schema: {error.message}") from None
        if (problem := best_match(validator(schema).iter_errors(value))) is not None:
            raise ValueError(f"{problem.message} - at `{problem.json_path}`")
    return value


def _parsed(decode: Callable[[str], Any], title: str, text: str) -> Any:
    try:
        return decode(fences.unfenced(text))
    except UsageProblem:
        raise
    except (ValueError, RecursionError) as error:
        raise APIResponseValidationError(
            f"the answer does not fit {title}: {_reason(error)}. It begins with {text[:80]!r}. Where it was "
            "cut off, raise max_tokens; else ask again, or say in the prompt what is wanted"
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong, in one line: pydantic's own text has many, and a link in each."""
    if not callable(found := getattr(error, "errors", None)):
        return str(error)
    return "; ".join(f"{problem['msg']} - at `{_dotted(problem['loc'])}`" for problem in found()[:3])


def _dotted(location: tuple[str | int, ...]) -> str:
    return ".".join(["$", *map(str, location)])
