"""What `%%llm` does: a prompt from the notebook to a model, or several, and the answers into the cell.

Called by `magics`. The conversation is `asking`'s, what a cell shows `rendering`'s and `columns`'.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import (
    calls,
    columns,
    costs,
    footers,
    history,
    interpolation,
    keys,
    loops,
    masking,
    output_metadata,
    providers,
    rendering,
    settings,
    tagging,
    tracing,
)
from .arguments import Ask
from .asking import Answer, Question, content_text
from .exceptions import APIError, APIResponseValidationError, UsageProblem, did_you_mean
from .formats import View
from .interpolation import Prompt
from .kept import kept
from .streaming import CompletionStream
from .structured import response_format
from .types import ChatCompletion, Message

PATIENCE = 0.5
"""Seconds without a word from the model after which the cell says what it waits for."""


class _State:
    def __init__(self) -> None:
        self.offered: set[str] = set()  # cells whose code was offered as the next cell


_state = kept(__name__, _State)


def run(shell: Any, asked: Ask) -> None:
    """Ask what a magic was given, show the answers in the cell, and store them where that was asked for.

    Raises:
        NbllmError: The prompt can't be made up, or a call failed; what had come of the answers is shown.
        KeyboardInterrupt: The user stopped it; likewise.
    """
    prompt = _expanded(asked, asked.prompt, shell)
    form = asked.format or (settings.settings().format if asked.schema is None else "json")
    question = _question(asked, prompt, form, shell)
    if asked.dry_run:
        print(_dry_run(question, prompt))
        return
    if len(question.models) > 1:  # a name that leads nowhere must not be found when others are paid for
        places = {name: question.params[name] for name in _PLACES if name in question.params}
        for model in question.models:
            providers.resolve(settings.model_of(model), **places)
    notes = [f"{variable.expression}: {variable.notice}" for variable in prompt.variables if variable.notice]
    if not asked.models and (hint := keys.demo_hint()):
        notes.append(hint)
    sinks = _sinks(question.models, asked, form, in_notebook=getattr(shell, "kernel", None) is not None)
    answering = _Answering(question, sinks, " · ".join(notes), streams=not asked.no_stream)
    try:
        loops.run_sync(answering.run())
    finally:
        answers = answering.answers
        if asked.output is not None and answers:
            several = len(question.models) > 1
            shell.user_ns[asked.output] = answers if several else next(iter(answers.values()))
    first = next(iter(answers.values()))
    if form == "code" and not asked.quiet and first.code != first.text.strip():  # the latter is prose
        _offer(shell, first.code)


_PLACES = ("base_url", "api_key", "api_version")


def _question(asked: Ask, prompt: Prompt, form: str, shell: Any) -> Question:
    content = prompt.content
    if isinstance(content, str) and not content.strip():
        raise UsageProblem("the prompt is empty once its variables are put in")
    if asked.context and (before := history.cells_before(shell, asked.context)):
        content = [before, *([content] if isinstance(content, str) else content)]
    return Question(
        content,
        asked.models,
        session_id=asked.session,
        system=None if asked.system is None else _expanded(asked, asked.system, shell).text,
        images=[_image(image, shell.user_ns) for image in asked.images],
        schema=None if asked.schema is None else _variable("--schema", asked.schema, shell.user_ns),
        form=form,
        history=not asked.no_history,
        new=asked.new,
        params={**asked.params, **({} if asked.base_url is None else {"base_url": asked.base_url})},
    )


class _Answering:
    """The answers to one question as they come."""

    def __init__(
        self, question: Question, sinks: Sequence[rendering.Sink], note: str, *, streams: bool
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self._question = question
        self._streams = streams
        self._note = note
        self._sinks = sinks

    async def run(self) -> None:
        """Ask all models at once; the first error is raised when all have ended."""
        question = self._question
        tasks = [
            asyncio.create_task(self._one(model, sink))
            for model, sink in zip(question.models, self._sinks, strict=True)
        ]
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # In the order asked for, not that of their ends: the first one counts where one is wanted.
            self.answers = {model: self.answers[model] for model in question.models if model in self.answers}
            question.keep({model: answer.text for model, answer in self.answers.items()})
        for task in tasks:
            task.result()

    async def _one(self, model: str, sink: rendering.Sink) -> None:
        display = rendering.StreamDisplay(sink)
        completion = await self._completion(model, display)
        try:
            self._question.check(completion)
        except APIResponseValidationError:
            await self._finish(display, completion, completion.request, "does not fit")
            raise
        await self._finish(display, completion, completion.request)
        self.answers[model] = Answer(model, completion)

    async def _completion(self, model: str, display: rendering.StreamDisplay) -> ChatCompletion:
        stream: CompletionStream | None = None
        with _Waiting(display, model) as waiting:
            try:
                if self._streams:
                    stream = await self._question.send(model, stream=True)
                    async for _ in stream:
                        display.update(stream)
                    return stream.completion
                return await self._question.send(model)
            except (APIError, asyncio.CancelledError) as error:
                if stream is not None:
                    await stream.aclose()
                # An output that is there says how it ended; each of several columns does.
                if waiting.told or len(self._sinks) > 1 or (stream is not None and stream.text):
                    come = ChatCompletion() if stream is None else stream.completion
                    await self._finish(display, come, come.request, self._mark(error, model, stream))
                raise
            finally:
                if stream is not None:
                    await stream.aclose()

    def _mark(self, error: BaseException, model: str, stream: CompletionStream | None) -> str:
        if isinstance(error, APIError) and len(self._sinks) > 1:
            # The cell's own error tells only of the first that failed.
            return f"{type(error).__name__}: {masking.redact(str(error))}"
        if stream is not None:
            return "broken off" if isinstance(error, APIError) else "interrupted"
        return f"{'failed' if isinstance(error, APIError) else 'interrupted'} · {model}"

    async def _finish(
        self,
        display: rendering.StreamDisplay,
        answer: ChatCompletion,
        record: tracing.Record | None,
        mark: str | None = None,
    ) -> None:
        if record is not None and record.status == "ok":
            await asyncio.to_thread(costs.price, record)  # the first one loads the price table
        parts = (footers.footer(record, mark=mark), self._note)
        message = (answer.choices[0].message if answer.choices else None) or Message()
        view = View(
            text=answer.text or message.refusal or ("(no text)" if mark is None else ""),
            reasoning=answer.reasoning,
            footer=" · ".join(part for part in parts if part),
        )
        display.finish(view, output_metadata.pack([] if record is None else [record]))


class _Waiting:
    """Says each second what the cell waits for, as long as nothing comes.

    Attributes:
        told: Whether it has said so.
    """

    def __init__(self, display: rendering.StreamDisplay, model: str) -> None:
        self.told = False
        self._display = display
        self._model = model
        self._began = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Waiting:
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._tell)
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self.told = True
        self._display.progress(f"waiting for {self._model} · {int(time.monotonic() - self._began)} s")
        self._timer = asyncio.get_running_loop().call_later(1, self._tell)


def _sinks(titles: Sequence[str], asked: Ask, form: str, *, in_notebook: bool) -> list[rendering.Sink]:
    if asked.quiet:
        return [rendering.NullSink() for _ in titles]
    if len(titles) == 1:
        return [rendering.NotebookSink(form) if in_notebook else rendering.TerminalSink(form)]
    return columns.notebook_sinks(titles, form) if in_notebook else columns.terminal_sinks(titles, form)


def _expanded(asked: Ask, text: str, shell: Any) -> Prompt:
    if asked.raw:
        return Prompt(text, ())
    return interpolation.expand(text, shell.user_ns, max_rows=settings.settings().max_rows)


def _variable(flag: str, name: str, namespace: Mapping[str, Any]) -> Any:
    if name not in namespace:
        raise UsageProblem(f"{flag} {name}: name {name!r} is not defined{did_you_mean(name, namespace)}")
    return namespace[name]


def _image(value: str, namespace: Mapping[str, Any]) -> Any:
    """What `-i` names: a variable's value, or a URL or path."""
    if value.isidentifier() and value not in namespace and not os.path.exists(value):
        raise UsageProblem(f"-i {value}: there is no such file or variable{did_you_mean(value, namespace)}")
    return namespace.get(value, value)


def _offer(shell: Any, code: str) -> None:
    """Offer code as the next cell: once for each cell, or each run would add another."""
    cell = tagging.current_cell()
    if not code.strip() or cell.cell_id in _state.offered:
        return
    if cell.cell_id is not None:
        _state.offered.add(cell.cell_id)
    shell.set_next_input(code, replace=False)


def _dry_run(question: Question, prompt: Prompt) -> str:
    """What would be sent, for reading."""
    calls.keep_secrets(question.params)
    lines = [f"Nothing was sent. Session: {question.session_id}"]
    for model in question.models:
        lines += ["", f"to {model}", *map(_message, question.messages(model))]
    for name, value in question.params.items():
        value = response_format(value)[0] if name == "response_format" else value
        lines.append(f"{name}: {json.dumps(value, default=repr, ensure_ascii=False)}")
    if prompt.variables:
        lines += ["", "Variables"]
        lines += [f"  {{{{{one.expression}}}}}  {one.kind}, {one.shown}" for one in prompt.variables]
    return masking.redact("\n".join(lines))


def _message(message: Mapping[str, Any]) -> str:
    return f"{message['role']}: {content_text(message['content'])}"
