"""The life of a request record: begun when a request asks for a connection, ended exactly once.

Owns `Record` (one HTTP attempt), `Call` (what a verb knows about its attempts), `Connection`, the
registry of those alive, and the subscribers that receive what has ended. Knows nothing of
aiohttp or of the log: `protocol` feeds it, `log` subscribes.

Times of phases are HAR's (HTTP Archive 1.2, "timings"): blocked + dns + connect + send + wait + receive
make up the duration, and `ssl_ms` is a part of `connect_ms`. Names of columns are OpenTelemetry's
GenAI names where one exists.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from . import masking, tagging
from .kept import kept
from .notices import warn_once

if TYPE_CHECKING:
    from .types import Usage
    from .wire import Overheard

perf_counter = time.perf_counter


class Call:
    """One logical use of a verb, or one request of a foreign client; its attempts share `call_id`.

    A verb makes one, fills what only it knows, and puts it into `current_call` while it sends. Its records
    take over what is there when they begin.
    """

    __slots__ = (
        "attempts",
        "call_id",
        "cell",
        "content",
        "model",
        "operation",
        "params",
        "provider",
        "queued_ms",
        "record",
        "release",
        "session_id",
        "settle",
        "stream",
    )

    def __init__(self, session_id: str | None = None) -> None:
        self.call_id = f"{tagging.kernel_id()}-c{next(_state.call_numbers)}"
        self.session_id = session_id or tagging.current_session()
        self.cell = tagging.current_cell()
        self.operation: str | None = None
        self.provider: str | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.params: bytes | None = None
        self.content: bytes | None = None
        self.attempts = 0
        self.queued_ms: float | None = None
        self.release: Callable[[], None] | None = None  # called when nothing more moves on the wire
        self.settle: Callable[[Record], None] | None = None  # called with the finished record
        self.record: Record | None = None


class Record:
    """One HTTP attempt. Attributes are named as the log's columns; None means unknown or not applicable."""

    # What no column holds has a slot: the call, whether a verb holds the record, the bodies where they are
    # kept, the headers of the answer, and the marks on the monotonic clock. So `__dict__` holds the columns
    # that were set and no more, which keeps it small and quick; class attributes are the others' defaults.
    __slots__ = (
        *("__dict__", "call", "held", "content", "response_content", "headers"),
        *("audio_seconds", "cache_write_1h_tokens", "overheard"),
        *("began", "acquired", "sent", "first_byte", "wire_ended", "ended"),
    )
    call: Call
    held: bool
    content: bytes | str | None
    response_content: bytes | str | None
    headers: Mapping[str, str] | None
    audio_seconds: float | None  # what some transcriptions are paid by
    cache_write_1h_tokens: int | None  # those of cache_write_tokens that stay for an hour, which costs more
    overheard: Overheard | None  # what went over the connection, where no verb of ours reads it
    began: float
    acquired: float | None
    sent: float | None
    first_byte: float | None
    wire_ended: float | None
    ended: bool

    id: int
    request_id: str
    call_id: str
    attempt: int
    session_id: str
    kernel_id: str
    cell_id: str | None = None
    execution_count: int | None = None
    run_id: str | None = None
    cell_source: str | None = None
    operation: str | None = None
    provider: str | None = None
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    provider_request_id: str | None = None
    http_method: str | None = None
    server_address: str | None = None
    server_port: int | None = None
    url_path: str | None = None
    stream: bool | None = None
    params: str | None = None
    started_at: float
    first_chunk_at: float | None = None
    ended_at: float | None = None
    duration_ms: float | None = None
    ttft_ms: float | None = None
    queued_ms: float | None = None
    blocked_ms: float | None = None
    dns_ms: float | None = None
    connect_ms: float | None = None
    ssl_ms: float | None = None
    send_ms: float | None = None
    wait_ms: float | None = None
    receive_ms: float | None = None
    connection_id: str | None = None
    connection_reused: bool | None = None
    connection_reason: str | None = None
    connection_idle_ms: float | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    chunks: int | None = None
    status: str | None = None
    http_status: int | None = None
    finish_reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    retry_after_ms: float | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    cost_usd: float | None = None
    cost_source: str | None = None
    response_headers: str | None = None

    def __init__(self, call: Call, held: bool) -> None:
        call.attempts += 1
        if held:  # nobody asks a foreign call, and the two would be garbage that only the collector can free
            call.record = self
        kernel = tagging.kernel_id()
        self.call = call
        self.held = held
        self.content = self.response_content = self.headers = None
        self.audio_seconds = self.cache_write_1h_tokens = self.overheard = None
        self.acquired = self.sent = self.first_byte = self.wire_ended = None
        self.ended = False
        number = next(_state.request_numbers)
        self.id = tagging.first_request_id() | number
        self.request_id = f"{kernel}-r{number}"
        self.call_id = call.call_id
        self.attempt = call.attempts
        self.session_id = call.session_id
        self.kernel_id = kernel
        self.started_at = time.time()
        self.began = perf_counter()
        if (cell := call.cell) is not tagging.NO_CELL:
            self.cell_id = cell.cell_id
            self.execution_count = cell.execution_count
            self.run_id = cell.run_id
            self.cell_source = cell.source
        if held:
            self.operation = call.operation
            self.provider = call.provider
            self.request_model = call.model
            self.stream = call.stream
            if call.content is not None:
                self.content = call.content
            if call.queued_ms is not None:
                self.queued_ms = call.queued_ms

    def cost(self) -> float | None:
        """`cost_usd`, looked up here where the log has not come to it yet."""
        if self.cost_usd is None and self.wire_ended is not None and _state.price is not None:
            _state.price(self)
        return self.cost_usd

    def __repr__(self) -> str:
        took = "" if self.duration_ms is None else f", {self.duration_ms:.0f} ms"
        tokens = "" if self.input_tokens is None else f", {self.input_tokens}→{self.output_tokens} tokens"
        what = f"{self.operation or 'foreign'} {self.provider or self.server_address}/{self.request_model}"
        return (
            f"<Record {self.request_id} {what}: {self.status or 'running'} {self.http_status}{tokens}{took}>"
        )


class Connection:
    """One TCP (TLS) connection: who it goes to, since when, and why it was closed."""

    connection_id: str
    kernel_id: str
    host: str | None = None
    port: int | None = None
    peer: str | None = None
    local_port: int | None = None
    tls_version: str | None = None
    opened_at: float
    closed_at: float | None = None
    close_reason: str | None = None

    def __init__(self) -> None:
        self.kernel_id = tagging.kernel_id()
        self.connection_id = f"{self.kernel_id}-n{next(_state.connection_numbers)}"
        self.opened_at = time.time()


class _State:
    """Who is told, and what is alive."""

    def __init__(self) -> None:
        self.on_begin: list[Callable[[Record], None]] = []
        self.on_request: list[Callable[[Record], None]] = []
        self.on_connection: list[Callable[[Connection, bool], None]] = []
        self.running: set[Record] = set()
        self.connections: dict[str, Connection] = {}
        self.price: Callable[[Record], None] | None = None
        self.call_numbers = itertools.count(1)
        self.request_numbers = itertools.count(1)
        self.connection_numbers = itertools.count(1)
        self.current_call: ContextVar[Call | None] = ContextVar("nbllm_call", default=None)


_state = kept(__name__, _State)
current_call = _state.current_call


def subscribe(
    on_request: Callable[[Record], None],
    on_connection: Callable[[Connection, bool], None] | None = None,
    on_begin: Callable[[Record], None] | None = None,
) -> None:
    """Have each ended record, and each opened (True) or closed (False) connection, handed over.

    Subscribers are called on the event loop and must be quick. `on_begin` is called when a record begins, in
    the context of the code that sends the request. Subscribing twice is as good as once.
    """
    if on_request not in _state.on_request:
        _state.on_request.append(on_request)
        if on_connection is not None:
            _state.on_connection.append(on_connection)
        if on_begin is not None:
            _state.on_begin.append(on_begin)


def unsubscribe(
    on_request: Callable[[Record], None],
    on_connection: Callable[[Connection, bool], None] | None = None,
    on_begin: Callable[[Record], None] | None = None,
) -> None:
    """Take back a `subscribe` of the same functions."""
    # New lists: an event loop in another thread may be going through these.
    _state.on_request = [one for one in _state.on_request if one != on_request]
    _state.on_connection = [one for one in _state.on_connection if one != on_connection]
    _state.on_begin = [one for one in _state.on_begin if one != on_begin]


def price_with(price: Callable[[Record], None]) -> None:
    """Have `price` fill in what a request cost, where somebody asks."""
    _state.price = price


def running() -> list[Record]:
    """Records of the requests in flight."""
    return list(_state.running.copy())


def is_busy() -> bool:
    """Whether a request is in flight."""
    return bool(_state.running)


def begin() -> Record:
    """A record for the HTTP attempt that asks for a connection here and now."""
    call = current_call.get()
    if call is None:
        record = Record(Call(), False)
    else:
        if call.record is not None:  # a redirect or a retry: the attempt before is over
            end(call.record)
        record = Record(call, True)
    _state.running.add(record)
    if _state.on_begin:
        _tell(_state.on_begin, record)
    return record


def end_wire(record: Record, status: str, error: BaseException | None = None) -> None:
    """Note that nothing more will move on the wire for `record`.

    A record that a verb holds is ended by the verb, which has yet to understand the body or the error;
    only where the verb was cancelled, or its stream abandoned, nobody else will.
    """
    if record.wire_ended is not None:
        return
    now = record.wire_ended = perf_counter()
    give_back(record.call)
    began, acquired, sent, first = record.began, record.acquired, record.sent, record.first_byte
    if acquired is not None:
        if sent is None and first is not None:
            sent = first  # an answer before the request was out, as a refusal of a large upload is
        if sent is not None:
            record.send_ms = (sent - acquired) * 1e3
            if first is not None:
                record.wait_ms = max(0.0, first - sent) * 1e3
                record.receive_ms = (now - first) * 1e3
    record.duration_ms = (now - began) * 1e3
    record.ended_at = record.started_at + (now - began)
    judged = record.status is not None  # by the verb, which then closed the connection
    if not judged:
        record.status = status
        if error is not None:
            set_error(record, error)
    if judged or not record.held or status in ("cancelled", "incomplete"):
        end(record)


def give_back(call: Call) -> None:
    """Give back, once, what the call's attempt holds while it is on the wire."""
    if (release := call.release) is not None:
        call.release = None
        release()


def end(record: Record) -> None:
    """Hand the finished record to the subscribers, once."""
    if record.ended:
        return
    record.ended = True
    give_back(record.call)
    if (settle := record.call.settle) is not None:
        record.call.settle = None
        settle(record)
    _tell(_state.on_request, record)
    _state.running.discard(record)  # last, so that a view in another thread finds it here or in the log


def _tell(subscribers: list[Callable[[Record], None]], record: Record) -> None:
    for subscriber in subscribers:
        try:
            subscriber(record)
        except Exception as error:
            warn_once(f"a request's record could not be kept: {error!r}")


def note_first_content(record: Record) -> None:
    """Note that the first content of a streamed answer is here; it was, where the whole body has come."""
    elapsed = (record.wire_ended or perf_counter()) - record.began
    record.first_chunk_at = record.started_at + elapsed
    record.ttft_ms = elapsed * 1e3


def note_answer(record: Record, response_id: str | None, model: str | None, usage: Usage | None) -> None:
    """Put what the answer says of itself on the record; input tokens include cached ones."""
    record.response_id = response_id
    record.response_model = model
    if usage is None:
        return
    record.input_tokens = usage.prompt_tokens
    record.output_tokens = usage.completion_tokens
    if (details := usage.prompt_tokens_details) is not None:
        record.cache_read_tokens = details.cached_tokens
        record.cache_write_tokens = details.cache_write_tokens
        record.cache_write_1h_tokens = details.cache_write_1h_tokens
        if details.audio_tokens is not None:  # what is set fills a column
            record.input_audio_tokens = details.audio_tokens
        if details.image_tokens is not None:
            record.input_image_tokens = details.image_tokens
    if (details := usage.completion_tokens_details) is not None:
        record.reasoning_tokens = details.reasoning_tokens
        if details.audio_tokens is not None:
            record.output_audio_tokens = details.audio_tokens
        if details.image_tokens is not None:
            record.output_image_tokens = details.image_tokens
    if usage.cost is not None:
        note_cost(record, usage.cost)


def note_cost(record: Record, cost: object) -> None:
    """Note what the provider says that the request cost, in US dollars; what is no price is passed over."""
    if isinstance(cost, (int, float)) and not isinstance(cost, bool) and 0 <= cost < _TOO_DEAR:
        record.cost_source, record.cost_usd = "provider", float(cost)


_TOO_DEAR = 1e9
"""US dollars that no request costs; an infinite price would make every sum infinite."""


def set_error(record: Record, error: BaseException, kind: str | None = None) -> None:
    """Note an error on the record, with keys masked."""
    record.error_type = kind or type(error).__name__
    record.error_message = masking.redact(str(error) or type(error).__name__)[:2000]


def opened(connection: Connection) -> None:
    """Note a connection that was established."""
    _state.connections[connection.connection_id] = connection
    _tell_connection(connection, True)


def closed(connection: Connection) -> None:
    """Note that a connection is gone; `closed_at` and `close_reason` are set."""
    if _state.connections.pop(connection.connection_id, None) is not None:
        _tell_connection(connection, False)


def connections() -> list[Connection]:
    """The connections that are open now."""
    return list(_state.connections.copy().values())


def _tell_connection(connection: Connection, is_open: bool) -> None:
    for subscriber in _state.on_connection:
        try:
            subscriber(connection, is_open)
        except Exception as error:
            warn_once(f"a connection's record could not be kept: {error!r}")


def after_fork() -> None:
    """Drop the parent's live records in a forked child: they end in the parent."""
    _state.running.clear()
    _state.connections.clear()
