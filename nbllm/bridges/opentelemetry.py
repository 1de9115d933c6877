"""Requests as OpenTelemetry spans: live, or from the log::

    from nbllm.bridges import opentelemetry
    opentelemetry.install()                      # a span for each request from now on
    opentelemetry.send(session="review")         # spans of what the log has already

Owns the way of an ended request from the event loop to a thread of its own, where spans are made, so that a
call costs its loop no more than a hand-over. A span is one HTTP attempt, as a row of `nbllm.requests()` is;
names are `semantic_conventions`'. Where spans go is the tracer provider's affair. Called by users.
"""

from __future__ import annotations

import atexit
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import costs, environment, masking, schema, selection, tagging, tracing
from ..exceptions import UsageProblem
from ..kept import kept
from ..notices import warn_once
from . import semantic_conventions

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer, TracerProvider

SPANS_AT_ONCE = 512
"""A batch of the SDK's; its queue, which drops what is too much, holds four of them."""

LAST_SECONDS = 10.0
"""How long `uninstall` waits for the spans still to be made."""

CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""OpenTelemetry's switch for messages and answers: `true`, or `SPAN_ONLY` or `SPAN_AND_EVENT`."""


def install(tracer_provider: TracerProvider | None = None, *, content: bool = False) -> None:
    """Make a span of each request from now on, when it has ended.

    It is a child of the span that was current where the request was sent. Doing it again changes provider
    and content.

    Args:
        tracer_provider: Where spans go. None for the one that was set with `trace.set_tracer_provider`, and
            where there is none, by OTLP over HTTP to where `OTEL_EXPORTER_OTLP_ENDPOINT` says
            (http://localhost:4318), under the name in `OTEL_SERVICE_NAME`.
        content: Put messages and answers on the spans too, where `nbllm.configure(content=True)`, the
            default, has them kept. The variable `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true`
            does the same.

    Raises:
        UsageProblem: OpenTelemetry's SDK is not installed, or that is no tracer provider.
    """
    made = _Live(*_provider(tracer_provider), content or _content_is_wanted())
    uninstall()
    _state.live = made
    tracing.subscribe(made.on_request, on_begin=made.on_begin)
    atexit.register(uninstall)  # runs before the provider's own, which was registered earlier
    if not _state.minds_forks and hasattr(os, "register_at_fork"):
        _state.minds_forks = True
        os.register_at_fork(after_in_child=_after_fork)


def uninstall() -> None:
    """Make no more spans. Those of requests that have ended are sent off first."""
    live, _state.live = _state.live, None
    if live is not None:
        atexit.unregister(uninstall)
        tracing.unsubscribe(live.on_request, on_begin=live.on_begin)
        live.close()


def send(tracer_provider: TracerProvider | None = None, *, content: bool = False, **filters: Any) -> int:
    """Make spans of requests in the log, with their own times, and send them off.

    Each is a trace of its own; what belongs together has the same `session.id` and `nbllm.call_id`. Sending
    twice gives every span twice.

    Args:
        tracer_provider: As for `install`; None for the one that is installed, where one is.
        content: As for `install`.
        **filters: Which requests: those of `nbllm.requests`.

    Returns:
        The number of spans that were handed to the tracer provider. What its exporter can't deliver, it logs.

    Raises:
        UsageProblem: OpenTelemetry's SDK is not installed, or an argument can't be used.
    """
    live = _state.live
    if tracer_provider is None and live is not None:
        provider, is_ours = live.provider, False  # it goes on with it
    else:
        provider, is_ours = _provider(tracer_provider)
    content = content or _content_is_wanted()
    try:
        tracer = _tracer(provider)
        rows = [row for row in selection.request_rows(**filters) if row["status"] is not None]
        for start in range(0, len(rows), SPANS_AT_ONCE):
            some = rows[start : start + SPANS_AT_ONCE]
            bodies = selection.contents([row["id"] for row in some]) if content else {}
            for row in some:
                _make_span(tracer, row, bodies.get(row["id"], _NO_BODIES))
            _send_off(provider, False)
    finally:
        _send_off(provider, is_ours)
    return len(rows)


class _Live:
    """The thread that makes spans of what ends, and what waits for it."""

    def __init__(self, provider: TracerProvider, is_ours: bool, content: bool) -> None:
        from opentelemetry.context import get_current

        self.provider, self.is_ours, self.content = provider, is_ours, content
        self.tracer = _tracer(provider)
        self.get_current = get_current
        self.parents: dict[int, Context] = {}
        self.start()

    def start(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="nbllm-opentelemetry", daemon=True)
        self.thread.start()

    def on_begin(self, record: tracing.Record) -> None:
        """Keep the context of whoever sends the request: it ends in another one."""
        if context := self.get_current():
            self.parents[record.id] = context

    def on_request(self, record: tracing.Record) -> None:
        # The bodies at once: the log lets go of them.
        bodies = (record.content, record.response_content) if self.content else _NO_BODIES
        self.queue.put((record, bodies, self.parents.pop(record.id, None)))

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join(LAST_SECONDS)
        _send_off(self.provider, self.is_ours)

    def _run(self) -> None:
        while (item := self.queue.get()) is not None:
            record, (request, response), context = item
            try:
                costs.price(record)
                _make_span(self.tracer, _row(record), (_text(request), _text(response)), context)
            except Exception as error:
                warn_once(f"a request's span could not be made: {error!r}")


_NO_BODIES = (None, None)


class _State:
    """What is installed."""

    def __init__(self) -> None:
        self.live: _Live | None = None
        self.minds_forks = False


_state = kept(__name__, _State)


def _after_fork() -> None:
    if (live := _state.live) is not None:
        live.parents.clear()  # those requests end in the parent
        live.start()  # its thread did not come along, and the queue's lock may be held for ever


def _provider(given: TracerProvider | None) -> tuple[TracerProvider, bool]:
    """The tracer provider, and whether it was made here."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageProblem(
            f"spans need OpenTelemetry's SDK ({error}): pip install 'nbllm[opentelemetry]'"
        ) from None
    if given is not None:
        if not callable(getattr(given, "get_tracer", None)):
            raise UsageProblem(
                "tracer_provider must be an opentelemetry.sdk.trace.TracerProvider, or None for that of this "
                f"process; got {type(given).__name__}"
            )
        return given, False
    current = trace.get_tracer_provider()
    if not isinstance(current, trace.ProxyTracerProvider):
        return current, False
    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made, True


def _tracer(provider: TracerProvider) -> Tracer:
    from .. import __version__

    return provider.get_tracer("nbllm", __version__)


def _content_is_wanted() -> bool:
    said = environment.environ().get(CONTENT_VARIABLE, "")
    return said.strip().lower() in ("true", "1", "span_only", "span_and_event")


def _row(record: tracing.Record) -> dict[str, Any]:
    """A record as the row that the log will have."""
    values = {name: getattr(record, name, None) for name in schema.REQUESTS}
    values["params"] = _text(record.call.params)
    row = {name: schema.storable(kind, values[name]) for name, kind in schema.REQUESTS.items()}
    return {**row, "notebook": tagging.notebook()}


def _text(body: bytes | str | None) -> str | None:
    return body.decode("utf-8", "replace") if isinstance(body, bytes) else body


def _make_span(
    tracer: Tracer,
    row: dict[str, Any],
    bodies: tuple[str | None, str | None],
    context: Context | None = None,
) -> None:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, StatusCode

    span = tracer.start_span(
        masking.redact(semantic_conventions.span_name(row)),
        context=Context() if context is None else context,
        kind=SpanKind.CLIENT,
        attributes=semantic_conventions.attributes(row),
        start_time=_nanoseconds(row["started_at"]),
    )
    if span.is_recording():
        span.set_attributes(semantic_conventions.messages(*bodies, row["finish_reason"]))
    if row["status"] == "error":
        span.set_status(StatusCode.ERROR, masking.redact(row["error_message"] or ""))
    span.end(_nanoseconds(row["ended_at"] or row["started_at"]))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _send_off(provider: Any, for_good: bool) -> None:
    """Wait for the spans that have ended to be sent; `for_good` where no more will come."""
    if for_good:
        provider.shutdown()
    elif hasattr(provider, "force_flush"):  # a provider of the API alone has none
        provider.force_flush(int(LAST_SECONDS * 1000))
