"""What `%%llm` does: a prompt from the notebook to a model, or several, and the answers into the cell.

Called by `magics`. The conversation is `asking`'s, what a cell shows `rendering`'s and `columns`'.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import columns, interpolation, kernel, log, loops, rendering, settings, tagging, tracing
from .arguments import Ask
from .asking import Answer, Question
from .exceptions import APIError, APIResponseValidationError, UsageProblem, did_you_mean
from .formats import View
from .interpolation import Prompt
from .kept import kept
from .streaming import CompletionStream
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
    prompt, system = _expanded(asked, asked.prompt, shell), None
    if asked.system is not None:
        system = _expanded(asked, asked.system, shell).text
    if isinstance(prompt.content, str) and not prompt.content.strip():
        raise UsageProblem("the prompt is empty once its variables are put in")
    content = prompt.content
    if asked.context and (before := kernel.cells_before(shell, asked.context)):
        content = [before, *([content] if isinstance(content, str) else content)]
    question = Question(
        content,
        asked.models,
        session_id=asked.session,
        system=system,
        images=[_image(value, shell.user_ns) for value in asked.images],
        schema=None if asked.schema is None else _variable("--schema", asked.schema, shell.user_ns),
        format=asked.format or settings.settings().format,
        history=not asked.no_history,
        new=asked.new,
        params={**asked.params, **({} if asked.base_url is None else {"base_url": asked.base_url})},
    )
    if asked.dry_run:
        print(_dry_run(question, prompt))
        return
    notes = [f"{variable.expression}: {variable.notice}" for variable in prompt.variables if variable.notice]
    if not asked.models and (hint := _key_hint(question.models[0])):
        notes.append(hint)
    answering = _Answering(question, asked, " · ".join(notes), shell)
    try:
        loops.run_sync(answering.run())
    finally:
        answers = answering.answers
        if asked.output is not None and answers:
            several = len(question.models) > 1
            shell.user_ns[asked.output] = answers if several else next(iter(answers.values()))
    if question.format == "code":
        _offer(shell, "\n\n".join(answer.code for answer in answers.values()))


class _Answering:
    """The answers to one question as they come."""

    def __init__(self, question: Question, asked: Ask, note: str, shell: Any) -> None:
        self.answers: dict[str, Answer] = {}
        self._question = question
        self._streams = not asked.no_stream
        self._note = note
        self._sinks = _sinks(question, asked, in_notebook=getattr(shell, "kernel", None) is not None)

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
            return f"{type(error).__name__}: {tracing.redact(str(error))}"
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
            await asyncio.to_thread(log.price, record)  # the first one loads the price table
        parts = (rendering.footer(record, mark=mark), self._note)
        message = (answer.choices[0].message if answer.choices else None) or Message()
        view = View(
            text=answer.text or message.refusal or ("(no text)" if mark is None else ""),
            reasoning=answer.reasoning,
            footer=" · ".join(part for part in parts if part),
        )
        requests = [] if record is None else [rendering.metadata(record)]
        display.finish(view, {"nbllm": {"requests": requests}})


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


def _sinks(question: Question, asked: Ask, *, in_notebook: bool) -> list[rendering.Sink]:
    form = question.format or "md"
    if asked.quiet:
        return [rendering.NullSink() for _ in question.models]
    if len(question.models) == 1:
        return [rendering.NotebookSink(form) if in_notebook else rendering.TerminalSink(form)]
    titles = question.models
    together: columns.Columns | columns.TerminalColumns
    together = (
        columns.Columns(titles, format=form) if in_notebook else columns.TerminalColumns(titles, format=form)
    )
    return [together.sink(index) for index in range(len(titles))]


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
    named: Any = namespace.get(value, value)
    if not isinstance(named, str):
        return named
    if named.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": named}}
    path = Path(named).expanduser()
    if not path.exists():
        raise UsageProblem(f"-i {value}: there is no such file or variable{did_you_mean(value, namespace)}")
    return path


def _key_hint(model: str) -> str | None:
    """What to do where the demo model answers because there is no key."""
    is_chosen = settings.settings().model is not None
    return None if is_chosen or not model.startswith("demo/") else "no key is set: %nbllm key openai"


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
    lines = [f"Nothing was sent. Session: {question.session_id}"]
    for model in question.models:
        lines += ["", f"to {model}", *map(_message, question.messages(model))]
    for name, value in question.params.items():
        lines.append(f"{name}: {json.dumps(value, default=repr, ensure_ascii=False)}")
    if prompt.variables:
        lines += ["", "Variables"]
        lines += [f"  {{{{{one.expression}}}}}  {one.kind}, {one.shown}" for one in prompt.variables]
    return tracing.redact("\n".join(lines))


def _message(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if not isinstance(content, str):
        texts = [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in content]
        content = "\n".join(texts)
    return f"{message['role']}: {content}"
