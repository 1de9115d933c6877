"""Types as `response_format`: schemas that OpenAI takes, answers that become objects."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import subprocess
import sys
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema
import msgspec
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from nbllm.exceptions import APIResponseValidationError, UsageProblem
from nbllm.formats import View, mime_bundle
from nbllm.structured import json_value, response_format


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int = Field(ge=1, description="house number")


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int | None = None
    colour: Colour = Colour.RED
    home: Address = Field(description="where they live")
    others: list[Address] = []
    tags: set[str] = set()


class Tree(BaseModel):
    label: str
    children: list[Annotated[Tree, Field(description="a branch")]]


class Cat(BaseModel):
    kind: Literal["cat"]
    meows: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: int


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Counts(BaseModel):
    counts: dict[str, int]


class Odds(BaseModel):
    price: decimal.Decimal
    link: pydantic.HttpUrl
    at: datetime.datetime
    took: datetime.timedelta
    raw: bytes
    where: pydantic.IPvAnyAddress
    anything: Literal[True, 1.5, "x"]


class Open(BaseModel, extra="allow"):
    name: str


class Names(pydantic.RootModel[list[str]]):
    pass


@pydantic.dataclasses.dataclass
class Even:
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def is_even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0
    colour: Colour = Colour.BLUE
    seen: datetime.date | None = None


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Node(msgspec.Struct):
    value: Annotated[int, msgspec.Meta(ge=0, description="how many")]
    next: Node | None = None
    size: Literal["s", 1, None] = "s"
    raw: bytes = b""


class Square(msgspec.Struct, tag=True):
    side: int


class Circle(msgspec.Struct, tag=True):
    radius: int


def wire(wanted: Any) -> dict[str, Any]:
    form, _ = response_format(wanted)
    assert form is not None
    assert form["type"] == "json_schema"
    return form["json_schema"]


def parsed(wanted: Any, text: str) -> Any:
    _, parse = response_format(wanted)
    assert parse is not None
    return parse(text)


WORDS = {
    "type", "title", "description", "enum", "const", "anyOf", "$ref", "$defs", "properties", "required",
    "additionalProperties", "items", "pattern", "format", "multipleOf", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "minLength", "maxLength",
}  # fmt: skip


def assert_strict(schema: dict[str, Any]) -> None:
    """What OpenAI checks before it takes a strict schema."""
    assert schema.keys() <= WORDS, schema
    assert {"type", "anyOf", "$ref"} & schema.keys(), schema
    if "$ref" in schema:
        assert schema.keys() == {"$ref"}
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
    if schema.get("type") == "array":
        assert_strict(schema["items"])
    inner = [
        *schema.get("anyOf", ()),
        *schema.get("properties", {}).values(),
        *schema.get("$defs", {}).values(),
    ]
    for part in inner:
        assert_strict(part)


STRICT = [
    Person, Address, Tree, Owner, Odds, Names, Even, Point, Movie, Node, Square | Circle, list[Person],
    list[Point], Person | None, int, str, bool, Literal["a", "b"], Colour, list[list[int]],
    tuple[int, ...], set[int], datetime.datetime, int | str,
]  # fmt: skip


@pytest.mark.parametrize("wanted", STRICT, ids=str)
def test_schema_is_what_openai_takes_as_strict(wanted: Any) -> None:
    form = wire(wanted)
    assert form["strict"] is True
    assert form["schema"]["type"] == "object"
    assert_strict(form["schema"])
    jsonschema.Draft202012Validator.check_schema(form["schema"])
    json.dumps(form)


LOOSE = [
    Counts, Open, dict[str, int], dict[str, Person], dict, list, Any, list[Any], tuple[int, str],
    list[dict[str, Any]],
]  # fmt: skip


@pytest.mark.parametrize("wanted", LOOSE, ids=str)
def test_what_cannot_be_strict_is_asked_for_without(wanted: Any) -> None:
    form = wire(wanted)
    assert form["strict"] is False
    assert form["schema"]["type"] == "object"
    jsonschema.Draft202012Validator.check_schema(form["schema"])


@pytest.mark.parametrize("model", [Address, Cat])
def test_strict_schema_is_that_of_the_official_sdk(model: type[BaseModel]) -> None:
    assert wire(model)["schema"] == openai.pydantic_function_tool(model)["function"]["parameters"]


def test_model_stays_as_it_was() -> None:
    before = json.dumps(Person.model_json_schema())
    assert response_format(Person)[0] == response_format(Person)[0]
    assert json.dumps(Person.model_json_schema()) == before


def test_words_beside_a_reference_move_to_an_anyof() -> None:
    home = wire(Person)["schema"]["properties"]["home"]
    assert home == {"anyOf": [{"$ref": "#/$defs/Address"}], "description": "where they live"}


def test_what_openai_would_refuse_is_told_in_the_description() -> None:
    properties = wire(Person)["schema"]["properties"]
    assert properties["colour"]["description"] == 'default: "red"'
    assert properties["tags"]["description"] == "default: [], uniqueItems: true"
    assert "description" not in properties["age"]
    node = wire(Node)["schema"]["properties"]
    assert node["raw"]["description"] == 'contentEncoding: "base64", default: ""'
    assert node["value"] == {"description": "how many", "type": "integer", "minimum": 0}


def test_enumerated_values_have_their_types() -> None:
    assert set(wire(Node)["schema"]["properties"]["size"]["type"]) == {"string", "integer", "null"}
    assert wire(Literal["a"])["schema"]["properties"]["value"] == {"enum": ["a"], "type": "string"}


def test_pattern_with_lookaround_and_unknown_format_are_notes() -> None:
    class Link(msgspec.Struct):
        code: Annotated[str, msgspec.Meta(pattern="^(?!0)[0-9]+$")]
        url: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uri"})]

    properties = wire(Link)["schema"]["properties"]
    assert properties["code"] == {"type": "string", "description": 'pattern: "^(?!0)[0-9]+$"'}
    assert properties["url"] == {"type": "string", "description": 'format: "uri"'}


def test_recursive_types_refer_to_themselves() -> None:
    for wanted, name in [(Tree, "Tree"), (Node, "Node")]:
        schema = wire(wanted)["schema"]
        assert schema["title"] == name
        assert schema["$defs"].keys() == {name}
    assert "$defs" not in wire(Square)["schema"]


def test_fields_named_like_words_of_json_schema_are_fields() -> None:
    class Odd(BaseModel):
        default: int
        title: str
        not_: bool = Field(alias="not")
        properties: list[str]

    schema = wire(Odd)["schema"]
    assert schema["required"] == ["default", "title", "not", "properties"]
    assert_strict(schema)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (Person, "Person"),
        (list[Person], "list"),
        (int | str, "answer"),
        (type("Größe", (BaseModel,), {}), "Gr_e"),
        (type("L" * 90, (BaseModel,), {}), "L" * 64),
        (type("数", (BaseModel,), {}), "answer"),
    ],
)
def test_name_is_one_that_openai_takes(wanted: Any, name: str) -> None:
    assert wire(wanted)["name"] == name


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (Address, '{"street": "A", "number": 3}', Address(street="A", number=3)),
        (Tree, '{"label": "a", "children": []}', Tree(label="a", children=[])),
        (Owner, '{"pet": {"kind": "dog", "barks": 2}}', Owner(pet=Dog(kind="dog", barks=2))),
        (Counts, '{"counts": {"a": 1}}', Counts(counts={"a": 1})),
        (Names, '{"value": ["a"]}', Names(["a"])),
        (Even, '{"number": 2}', Even(2)),
        (list[Address], '{"value": [{"street": "A", "number": 3}]}', [Address(street="A", number=3)]),
        (Address | None, '{"value": null}', None),
        (Point, '{"x": 1, "seen": "2026-01-02"}', Point(1.0, seen=datetime.date(2026, 1, 2))),
        (Point, '{"x": 1, "y": 2, "colour": "red", "seen": null}', Point(1.0, 2.0, Colour.RED)),
        (Movie, '{"title": "Alien"}', {"title": "Alien"}),
        (Node, '{"value": 1, "next": {"value": 2}}', Node(1, Node(2))),
        (Square | Circle, '{"value": {"type": "Circle", "radius": 2}}', Circle(2)),
        (dict[int, str], '{"1": "a"}', {1: "a"}),
        (set[int], '{"value": [1, 1]}', {1}),
        (int, '{"value": 3}', 3),
        (Literal["a", "b"], '{"value": "b"}', "b"),
        (Colour, '{"value": "blue"}', Colour.BLUE),
        ({"type": "json_object"}, '{"a": [1, null]}', {"a": [1, None]}),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "[1]", [1]),
    ],
)
def test_answer_becomes_an_object(wanted: Any, text: str, value: Any) -> None:
    assert parsed(wanted, text) == value
    for fenced in (f"```json\n{text}\n```", f"\n```\n{text}\n```\n", f"```JSON {text}```"):
        assert parsed(wanted, fenced) == value


FENCES = [
    *("```json\n{}\n```", "```jsonc\n{}\n```", "~~~json\n{}\n~~~", "````json\n{}\n````", "```\n{}\n```\n"),
    *("```JSON {}```", "```json\n{}```", "```json {}\n```", "```json\r\n{}\r\n```", "```json\n{}"),
]


@pytest.mark.parametrize("fence", FENCES)
def test_json_is_found_in_whatever_fence_and_shown_as_it_is_read(fence: str) -> None:
    text = fence.replace("{}", '{"a": "`b`"}')
    assert json_value(text) == {"a": "`b`"}
    assert mime_bundle(View(text, footer=""), "json")["text/plain"] == '{\n  "a": "`b`"\n}'


def test_backticks_inside_the_json_stay() -> None:
    assert parsed(str, '```json\n{"value": "```json"}\n```') == "```json"
    assert parsed(str, '{"value": "```"}') == "```"


@pytest.mark.parametrize(
    ("wanted", "text", "says"),
    [
        (Person, '{"name": "A", "ho', "EOF"),
        (Address, '{"street": "A", "number": 0}', r"greater than or equal to 1 - at `\$\.number`"),
        (Even, '{"number": 3}', "odd"),
        (Point, '{"x": "one"}', r"Expected `float`, got `str` - at `\$\.x`"),
        (Node, '{"value": 1, "next": {"value": -1}}', r"\$\.next\.value"),
        (list[int], '{"value": [1, "b"]}', r"\$\.value\[1\]"),
        (list[int], "[1]", "Expected `object`"),
        (int, "It is 3.", "It begins with 'It is 3.'"),
        (int, "", "begins with ''"),
        ({"type": "json_object"}, '{"a": ', "does not fit JSON: Input data was truncated"),
        ({"type": "json_object"}, '{"a": 1} or so', "malformed"),
    ],
)
def test_answer_that_does_not_fit_is_told(wanted: Any, text: str, says: str) -> None:
    with pytest.raises(APIResponseValidationError, match=says) as caught:
        parsed(wanted, text)
    assert caught.value.__cause__ is not None
    assert "max_tokens" in caught.value.message


@pytest.mark.parametrize("wanted", [Person, Node, list[int], {"type": "json_object"}], ids=str)
@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "\ud800", "NaN", "```", "``````", "\0", " " * 10**6]
)
def test_hostile_answers_fail_in_one_way(wanted: Any, text: str) -> None:
    with pytest.raises(APIResponseValidationError) as caught:
        parsed(wanted, text)
    assert len(caught.value.message) < 1500


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        assert isinstance(parsed(Square, text), Square)
    except APIResponseValidationError:
        pass


def test_dicts_go_as_they_are() -> None:
    for wanted in ({"type": "text"}, {"type": "grammar", "grammar": "…"}, {}):
        form, parse = response_format(wanted)
        assert form is wanted
        assert parse is None
    wanted = {"type": "json_object"}
    assert response_format(wanted)[0] is wanted
    assert response_format(None) == (None, None)


class Broken(BaseModel):
    field: Nowhere  # noqa: F821


@dataclasses.dataclass
class BrokenToo:
    field: Nowhere  # noqa: F821


class Plain:
    pass


@pytest.mark.parametrize(
    "wanted",
    [
        "json_object", 3, [1], object(), Plain, Plain(), Address(street="A", number=1), Point(1), Square(1),
        print, lambda: 1, Address.model_json_schema, Broken, BrokenToo, list["Plain"], Square | Plain, ...,
    ],
)  # fmt: skip
def test_what_has_no_schema_is_refused(wanted: Any) -> None:
    with pytest.raises(UsageProblem, match=r"response_format can't be .*Give a pydantic model class"):
        response_format(wanted)


def test_reason_names_the_type() -> None:
    with pytest.raises(UsageProblem, match="Plain'> is not supported"):
        response_format(list[Plain])


def test_pydantic_is_not_imported() -> None:
    program = """
import sys, dataclasses
from nbllm.structured import response_format
@dataclasses.dataclass
class P:
    x: int
print(response_format(P)[1]('{"x": 1}'), response_format(list[P])[1]('{"value": []}'))
try:
    response_format(complex)
except ValueError as error:
    print(error)
assert "pydantic" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("P(x=1) []\n"), done.stderr
    assert "complex'> is not supported" in done.stdout
