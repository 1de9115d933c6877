"""Messages, responses, chunks and usage in OpenAI's shapes, from whatever provider.

Owns the value objects that verbs return and how JSON becomes one of them. Knows nothing of HTTP,
storage or display. Source of the shapes: OpenAI's API reference, "Chat completions".

Every object can be read by attribute (`r.choices[0].message.content`) and by item
(`r["choices"][0]["message"]["content"]`). Fields that a provider adds are kept and read in the same
ways. Known fields that a provider left out are None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T", bound="Object")


# forbid_unknown_fields makes the fast, typed decoder refuse what it would drop; `decode` then takes
# the lenient path, which keeps it. `dict=True` gives those unknown fields a place to live.
class Object(msgspec.Struct, dict=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all result objects: attribute and item access over the same data."""

    def __getitem__(self, key: str) -> Any:
        if key in self.__struct_fields__:
            return getattr(self, key)
        if key in self.__dict__ and key not in _OURS:
            return self.__dict__[key]
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __contains__(self, key: object) -> bool:
        return key in _names(self)

    def __iter__(self) -> Iterator[str]:
        return iter(_names(self))

    def keys(self) -> list[str]:
        """Names of the known fields and of those that the provider added."""
        return _names(self)

    def get(self, key: str, default: Any = None) -> Any:
        """The field's value, or `default` where the field is missing or null."""
        if key not in self:
            return default
        return default if (value := self[key]) is None else value

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        """Plain dicts and lists of the whole object, unknown fields included."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__} | self.__dict__
        return {
            name: plain(value, exclude_none)
            for name, value in fields.items()
            if name not in _OURS and not (exclude_none and value is None)
        }

    def model_dump_json(self, *, indent: int | None = None, exclude_none: bool = False) -> str:
        """`model_dump()` as JSON text."""
        data = msgspec.json.encode(self.model_dump(exclude_none=exclude_none))
        return (msgspec.json.format(data, indent=indent) if indent else data).decode()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and Object.model_dump(self) == Object.model_dump(other)

    # msgspec copies and pickles the known fields only. A pickle or deep copy leaves the trace record behind.
    def __copy__(self) -> Object:
        return _restored(type(self), msgspec.structs.asdict(self), self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        extra = {name: value for name, value in self.__dict__.items() if name not in _OURS}
        return (_restored, (type(self), msgspec.structs.asdict(self), extra))

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={self[key]!r}" for key in _names(self) if self[key] is not None)
        return f"{type(self).__name__}({shown})"


_OURS = frozenset({"_request", "_parse"})  # where an answer holds its trace record and its parser: no fields


def _restored(cls: type[T], fields: dict[str, Any], extra: dict[str, Any]) -> T:
    item = cls(**fields)
    item.__dict__.update(extra)
    return item


def _names(item: Object) -> list[str]:
    # Not `item.keys()`: a provider may add a field of that name.
    return [*item.__struct_fields__, *(name for name in item.__dict__ if name not in _OURS)]


class TokensDetails(Object):
    """Parts of a token count; which parts are filled depends on the provider."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None
    cache_write_1h_tokens: int | None = None  # those of cache_write_tokens that stay for an hour


class Usage(Object):
    """Token counts of one request. `prompt_tokens` includes cached ones, `completion_tokens` reasoning."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: TokensDetails | None = None
    completion_tokens_details: TokensDetails | None = None
    cost: float | None = None


class Function(Object):
    """The function that a tool call names, with its arguments as JSON text."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Object):
    """One tool call of an answer."""

    id: str | None = None
    type: str | None = None
    function: Function | None = None


class ToolCallPiece(ToolCall):
    """A piece of a tool call; those of one `index` make it up."""

    index: int | None = None


class Message(Object):
    """An assistant's message."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    annotations: list[Object] | None = None
    audio: Object | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Delta(Message):
    """What a chunk adds to the message."""

    tool_calls: list[ToolCallPiece] | None = None  # type: ignore[assignment]


class Choice(Object):
    """One of the answers (`n` of them)."""

    index: int | None = None
    message: Message | None = None
    finish_reason: str | None = None
    logprobs: Object | None = None


class ChunkChoice(Object):
    """One choice's part in a chunk."""

    index: int | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Object | None = None


class ChatCompletionChunk(Object):
    """One event of a streamed answer."""

    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    obfuscation: str | None = None


class ChatCompletion(Object):
    """A whole answer. As the last line of a cell it shows as Markdown."""

    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[Choice] = []
    usage: Usage | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None

    @property
    def text(self) -> str:
        """The first choice's text; empty where it has none (a tool call, a refusal)."""
        message = self.choices[0].message if self.choices else None
        content: Any = message.content if message else None
        if isinstance(content, list):  # some servers answer in parts
            texts = (part.get("text") for part in content if isinstance(part, Object))
            content = "".join(text for text in texts if isinstance(text, str))
        return content if isinstance(content, str) else ""

    @property
    def reasoning(self) -> str:
        """The first choice's reasoning; empty where the server tells none."""
        message = self.choices[0].message if self.choices else None
        texts = (message.reasoning_content, message.reasoning) if message else ()
        return next((text for text in texts if text and isinstance(text, str)), "")

    @property
    def request(self) -> Any:
        """The trace record of the request that brought this answer (None when made by hand)."""
        return self.__dict__.get("_request")

    @property
    def parsed(self) -> Any:
        """The first choice's text as an object of the `response_format` that was asked for.

        None where none was asked for, or the answer has no text (a refusal, a tool call).

        Raises:
            APIResponseValidationError: The text does not fit it.
        """
        parse = self.__dict__.get("_parse")
        return parse(self.text) if parse is not None and self.text else None

    @property
    def cost_usd(self) -> float | None:
        """The price of this answer in US dollars; None where it is not known."""
        return None if self.request is None else self.request.cost()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.text, self)


def mimebundle(text: str, result: Any) -> dict[str, str]:
    """How an answer's text shows as the last line of a cell; `result` shows itself where there is none.

    A raw bundle: IPython's Markdown class would read a file or URL that the text happens to name. And
    defused, since a front end runs the scripts of a cell that has just run.
    """
    if not text:
        return {"text/plain": repr(result)}
    from . import markdown, masking

    text = masking.hide(text)  # the notebook is saved with it
    return {"text/plain": text, "text/markdown": markdown.safe(text)}


_shapes: dict[type[Object], dict[str, Callable[[Any], Any]]] = {}
_CONTAINERS = frozenset({dict, list})
_PLAIN = frozenset({str, int, float, bool, type(None)})


def decoder(cls: type[T]) -> Callable[[bytes | str], T]:
    """A function from JSON text to an object of `cls`.

    It raises msgspec.DecodeError where the text is not JSON, or not a JSON object.
    """
    strictly = msgspec.json.Decoder(cls).decode

    def decode(data: bytes | str) -> T:
        try:
            return strictly(data)
        except msgspec.DecodeError:
            return _decode_leniently(cls, data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    return decode


def series_decoder(cls: type[T]) -> Callable[[], Callable[[bytes | str], T]]:
    """As `decoder`, for objects that come in series, such as the events of a stream: one for each series.

    Where the server adds fields of its own to every object, it soon stops to try the strict way first.
    """
    strictly, leniently = msgspec.json.Decoder(cls).decode, partial(_decode_leniently, cls)

    def begin() -> Callable[[bytes | str], T]:
        read: Callable[[bytes | str], T] = strictly
        refused = 0

        def decode(data: bytes | str) -> T:
            nonlocal read, refused
            try:
                return read(data)
            except msgspec.DecodeError:
                refused += 1
                if refused > 1:  # many servers add something to the first or the last object only
                    read = leniently
                return leniently(data)
            except (UnicodeDecodeError, RecursionError) as error:
                raise msgspec.DecodeError(str(error)) from None

        return decode

    return begin


def _decode_leniently(cls: type[T], data: bytes | str) -> T:
    value = parse(data)
    if not isinstance(value, dict):
        raise msgspec.DecodeError(f"a JSON object was expected, not {type(value).__name__}")
    try:
        return build(cls, value)
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from None


# A pair of surrogates, half of one (in the group), or another escape: an escaped backslash is one, too.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def parse(data: bytes | str) -> Any:
    """JSON text as plain values. Half of a surrogate pair, which is no character, becomes U+FFFD.

    Raises:
        msgspec.DecodeError: the text is not JSON, or nested too deeply.
    """
    try:
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            whole = data.encode() if isinstance(data, str) else data
            mended = _ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], whole)
            if mended == whole:
                raise
            return msgspec.json.decode(mended)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def build(cls: type[T], data: dict[str, Any]) -> T:
    """A dict as an object of `cls`. Unknown fields are kept, and so are plain values of odd types.

    Where an object or a list of them belongs, anything else is taken for missing: whoever reads
    `usage.prompt_tokens` or `choices[0]` must not meet a text.
    """
    shapes = _shapes.get(cls)
    if shapes is None:
        shapes = _shapes[cls] = {name: _shape_for(hint) for name, hint in get_type_hints(cls).items()}
    result = cls()
    for key, value in data.items():
        if key not in shapes:
            result.__dict__[key] = _any_shape(value) if type(value) in _CONTAINERS else value
        elif value is not None:
            shape = shapes[key]
            # A plain value needs no shaping, and most are plain: the call would cost as much as the rest.
            shaped = shape is _any_shape and type(value) not in _CONTAINERS
            setattr(result, key, value if shaped else shape(value))
    return result


def _shape_for(hint: Any) -> Callable[[Any], Any]:
    """How a value becomes what a type hint such as `list[Choice]` or `Usage | None` asks for."""
    for part in (hint, *get_args(hint)):
        if isinstance(part, type) and issubclass(part, Object):
            return partial(_one, part)
        if get_origin(part) is list:
            return partial(_many, get_args(part)[0], part is not hint)
    return _any_shape


def _one(cls: type[Object], value: Any) -> Object | None:
    return build(cls, value) if isinstance(value, dict) else None


def _many(cls: type[Object], may_be_null: bool, value: Any) -> list[Object] | None:
    if isinstance(value, list):
        return [build(cls, item) for item in value if isinstance(item, dict)]
    return None if may_be_null else []


def _any_shape(value: Any) -> Any:
    if isinstance(value, dict):
        return build(Object, value)
    if isinstance(value, list):
        return [_any_shape(item) for item in value]
    return value


def plain(value: Any, exclude_none: bool = False) -> Any:
    """Objects within `value` as dicts."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Object):
        return Object.model_dump(value, exclude_none=exclude_none)
    if isinstance(value, list):
        return [plain(item, exclude_none) for item in value]
    return value
