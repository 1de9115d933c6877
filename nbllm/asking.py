"""Ask a model within a conversation: `ask`, `aask` and `Chat`, which is what the magics do too.

Owns `Question` (one prompt, ready to be sent to one or several models), and `Answer`. What was said is
`conversation`'s, the sending `client`'s. Called by users, `cells` and `commands`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from . import conversation, fences, loops, tagging
from .attachments import content_parts
from .client import acompletion
from .conversation import Message
from .exceptions import UsageProblem
from .kept import kept
from .keys import default_model
from .settings import settings
from .streaming import CompletionStream
from .structured import as_response_format, json_value
from .types import ChatCompletion, Usage, mimebundle

INSTRUCTIONS = {
    "json": "Answer with JSON alone: no text around it.",
    "code": "Answer with code alone, in a fenced block.",
    "html": "Answer with one HTML page alone, in a fenced block.",
}
"""What the model is told where an answer of a certain form is wanted, beside the conversation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        model: As it was asked for.
        completion: The whole answer in OpenAI's shape.
    """

    model: str
    completion: ChatCompletion = field(repr=False)

    @property
    def text(self) -> str:
        """The answer as the model wrote it, in Markdown as a rule."""
        return self.completion.text

    @property
    def code(self) -> str:
        """The code in the answer: its fenced blocks; all of the text where it has none."""
        return fences.code_of(self.text)

    @property
    def parsed(self) -> Any:
        """The answer as an object of the `schema` that was asked for; None where none was.

        Raises:
            APIResponseValidationError: It does not fit.
        """
        return self.completion.parsed

    def json(self) -> Any:
        """The answer, which is JSON, as Python's lists, dicts and values; a fence around it is overlooked.

        Raises:
            APIResponseValidationError: It is not JSON.
        """
        return json_value(self.text)

    @property
    def usage(self) -> Usage | None:
        """Token counts; None where the server sent none."""
        return self.completion.usage

    @property
    def cost_usd(self) -> float | None:
        """The price in US dollars; None where it is not known."""
        return self.completion.cost_usd

    @property
    def request_id(self) -> str | None:
        """Id of the request in `nbllm.requests()`."""
        return getattr(self.completion.request, "request_id", None)

    @property
    def session_id(self) -> str | None:
        """The session that it belongs to."""
        return getattr(self.completion.request, "session_id", None)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.text, self)


class Question:
    """A prompt with all that goes along, in its place in a conversation.

    Args:
        content: The user's message: a text, or a list of texts, pictures, paths and parts.
        models: Whom to ask; empty for the default model. Aliases are fine.
        session_id: The conversation; None for the session in force.
        system: The system message from here on; None for the one in force.
        images: Pictures and files that go along; a text is a path or URL.
        schema: A class or a JSON schema that the answers must fit.
        form: What to ask for: one of `INSTRUCTIONS`, or None. That it is JSON is checked.
        history: Send the conversation along and keep this turn in it; False does neither.
        new: Start the conversation over.
        params: Further parameters of `acompletion`.

    Raises:
        UsageProblem: Something of it can't be used.
    """

    def __init__(
        self,
        content: Any,
        models: Sequence[str] = (),
        *,
        session_id: str | None = None,
        system: str | None = None,
        images: Any = (),
        schema: Any = None,
        form: str | None = None,
        history: bool = True,
        new: bool = False,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        if session_id is not None:
            tagging.check_session_id(session_id)
        if new and not history:
            raise UsageProblem(
                "new (--new) starts the conversation over, and history=False (--no-history) leaves it alone: "
                "give one of them"
            )
        if taken := _OURS.intersection(params or {}):
            raise UsageProblem(f"{sorted(taken)[0]} can't be given here: use nbllm.acompletion for that")
        self.models = tuple(models) or (default_model(),)
        self.session_id = session_id or tagging.current_session()
        self.params = dict(params or {})
        self.form = form
        self.schema = schema
        self.history = history
        self.user: Message = {"role": "user", "content": _content(content, images)}
        self.system = system
        if schema is not None:
            if "response_format" in self.params:
                raise UsageProblem("schema and response_format say the same thing: give one of them")
            self.params["response_format"] = as_response_format(schema)
        self.place = conversation.Place(())
        if history:
            self.place = self._conversation.place(tagging.current_cell(), settings().on_rerun, new=new)

    @property
    def _conversation(self) -> conversation.Conversation:
        return conversation.of_session(self.session_id)

    def messages(self, model: str) -> list[Message]:
        """What is sent to one of the models."""
        messages = self.place.messages(model, self.user, self.system, settings().system)
        if self.form in INSTRUCTIONS and "response_format" not in self.params:
            messages.insert(-1, {"role": "system", "content": INSTRUCTIONS[self.form]})
        return messages

    @overload
    async def send(self, model: str, *, stream: Literal[True]) -> CompletionStream: ...
    @overload
    async def send(self, model: str, *, stream: Literal[False] = ...) -> ChatCompletion: ...
    async def send(self, model: str, *, stream: bool = False) -> ChatCompletion | CompletionStream:
        """Ask one of the models.

        Raises:
            APIError: As `acompletion` does.
        """
        return await acompletion(
            model, self.messages(model), stream=stream, session_id=self.session_id, **self.params
        )

    def check(self, completion: ChatCompletion) -> None:
        """See that an answer is what was asked for.

        Raises:
            APIResponseValidationError: It is no JSON, or does not fit the schema.
        """
        if self.schema is not None:
            completion.parsed  # noqa: B018 - raises
        elif self.form == "json":
            json_value(completion.text)

    def keep(self, texts: Mapping[str, str]) -> None:
        """Add the turn to the conversation: the answers' texts by model. Empty ones are left out."""
        said = {model: text for model, text in texts.items() if text}
        if self.history and said:
            self._conversation.keep(self.place, conversation.Turn(self.user, said, self.system))


# What a question says itself to `acompletion`.
_OURS = frozenset(("model", "messages", "stream", "session_id"))


def _content(content: Any, images: Any) -> Any:
    """A message's content in the wire form: pictures as they are now, not as they will be in later turns."""
    given = images if isinstance(images, (list, tuple)) else [images]
    if not given:
        return content if isinstance(content, str) else content_parts(content)
    return content_parts([*([content] if isinstance(content, str) else content), *map(_picture, given)])


def _picture(image: Any) -> Any:
    """A picture as a message takes it, where a text would be a text."""
    if not isinstance(image, str):
        return image
    if image.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": image}}
    return Path(os.path.expanduser(image))


async def aask(
    prompt: Any,
    model: str | None = None,
    *,
    session_id: str | None = None,
    system: str | None = None,
    images: Any = (),
    schema: Any = None,
    json: bool = False,
    history: bool = True,
    new: bool = False,
    **params: Any,
) -> Answer:
    """Ask a model, and go on with the conversation: what `%%llm` does, as a function.

    A session is a conversation: the next question of the same session sends along what was said. A cell that
    runs again replaces what it said before (`nbllm.configure(on_rerun=…)`).

    Args:
        prompt: A text, or a list of texts, pictures, paths and OpenAI's parts. `{{name}}` is not looked for.
        model: As for `acompletion`, or an alias; default: that of `%%llm`.
        session_id: Which conversation; default: the session in force.
        system: System message, which holds from here on in this conversation.
        images: Paths, URLs, bytes, PIL images or matplotlib figures that go along; one of them, or a list.
        schema: A pydantic class, dataclass, other type or JSON schema: `answer.parsed` is an object of it.
        json: Ask for JSON; an answer that is none is an error.
        history: False sends the prompt alone, and leaves the conversation as it is.
        new: Start the conversation over.
        **params: Further parameters of `acompletion`: temperature, base_url, timeout, …

    Returns:
        An `Answer`, with `.text`, `.json()`, `.code`, `.parsed`, `.usage`, `.cost_usd`, `.request_id`.

    Raises:
        UsageProblem: Something given can't be used.
        APIError: The call failed, or the answer does not fit (`APIResponseValidationError`).
    """
    question = Question(
        prompt,
        () if model is None else (model,),
        session_id=session_id,
        system=system,
        images=images,
        schema=schema,
        form="json" if json else None,
        history=history,
        new=new,
        params=params,
    )
    asked = question.models[0]
    completion = await question.send(asked)
    question.check(completion)
    question.keep({asked: completion.text})
    return Answer(asked, completion)


def ask(
    prompt: Any,
    model: str | None = None,
    *,
    session_id: str | None = None,
    system: str | None = None,
    images: Any = (),
    schema: Any = None,
    json: bool = False,
    history: bool = True,
    new: bool = False,
    **params: Any,
) -> Answer:
    """`aask` for synchronous code: any cell, script or thread. Arguments, result and errors: see there."""
    return loops.run_sync(
        aask(
            prompt,
            model,
            session_id=session_id,
            system=system,
            images=images,
            schema=schema,
            json=json,
            history=history,
            new=new,
            **params,
        )
    )


class _State:
    """The `Chat`s that are alive."""

    def __init__(self) -> None:
        self.chats: weakref.WeakSet[Chat] = weakref.WeakSet()


_state = kept(__name__, _State)


def rename_session(old: str, new: str) -> None:
    """Have the conversation of a session, and the `Chat`s about it, go on under its new id."""
    conversation.rename(old, new)
    for chat in list(_state.chats):
        if chat.session_id == old:
            chat.session_id = new


class Chat:
    """A conversation, to be looked at and gone on with.

    `Chat()` is that of the session in force, `Chat("review")` that of the cells with `%%llm -s review`.

    Args:
        session_id: Which conversation; default: the session in force.
        model: Whom to ask; default: the model of `%%llm`.
        **params: Further arguments of each `ask`: system, temperature, base_url, …

    Raises:
        UsageProblem: The session id can't be used.
    """

    def __init__(self, session_id: str | None = None, model: str | None = None, **params: Any) -> None:
        self.session_id = (
            tagging.current_session() if session_id is None else tagging.check_session_id(session_id)
        )
        self.model = model
        self._params = params
        _state.chats.add(self)

    async def aask(self, prompt: Any, model: str | None = None, **params: Any) -> Answer:
        """Ask, within this conversation; arguments, result and errors as `nbllm.aask`."""
        if "session_id" in params:
            raise UsageProblem("a Chat has its session_id: make another one by nbllm.Chat(session_id)")
        given = {**self._params, **params}
        return await aask(prompt, model or self.model, session_id=self.session_id, **given)

    def ask(self, prompt: Any, model: str | None = None, **params: Any) -> Answer:
        """`aask` for synchronous code."""
        return loops.run_sync(self.aask(prompt, model, **params))

    @property
    def messages(self) -> list[Message]:
        """What was said, in OpenAI's shape; of several answers to one question the first."""
        return conversation.of_session(self.session_id).messages()

    def reset(self) -> None:
        """Start over. The log keeps what was said."""
        conversation.forget(self.session_id)

    def markdown(self) -> str:
        """What was said, for reading."""
        return "\n\n".join(f"**{message['role']}**: {content_text(message['content'])}" for message in self)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __repr__(self) -> str:
        return f"<Chat {self.session_id!r}, {len(self)} messages>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.markdown(), self)


def content_text(content: Any) -> str:
    """A message's content for reading: what is no text is named."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)
