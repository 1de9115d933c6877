"""Requests as spans: what OpenTelemetry's own SDK receives of them, and a collector that speaks OTLP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import nbllm
from nbllm import log, notices
from nbllm.bridges import opentelemetry, semantic_conventions
from nbllm.exceptions import UsageProblem
from tests.records import WHOLE, record
from tests.rows import request_rows
from tests.servers import RawServer

KEY = "sk-planted-0123456789abcdef"


class Spans:
    """A tracer provider, and what its exporter in memory has got."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def live(self) -> list[ReadableSpan]:
        """The spans so far; nothing is made into spans any more after this."""
        opentelemetry.uninstall()
        return self.sorted()

    def sorted(self) -> list[ReadableSpan]:
        found = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self.exporter.clear()
        return found


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    opentelemetry.uninstall()
    made.provider.shutdown()


def said(span: ReadableSpan, name: str) -> Any:
    return json.loads((span.attributes or {})[name])


# -- names and times ---------------------------------------------------------------------------------------


async def test_a_span_has_the_names_of_the_conventions(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    await nbllm.acompletion(
        "gpt-x",
        "Hi",
        base_url=server.url("chat"),
        session_id="review",
        temperature=0.5,
        max_tokens=9,
        seed=7,
        n=2,
        reasoning_effort="low",
        stop=["what the user stops at"],
    )
    (span,) = spans.live()
    (row,) = request_rows()
    assert span.name == "chat gpt-x"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == (
        "nbllm",
        nbllm.__version__,
    )
    assert span.start_time == pytest.approx(row.started_at * 1e9, abs=1e3)
    assert span.end_time == pytest.approx(row.ended_at * 1e9, abs=1e3)
    attributes = dict(span.attributes or {})
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.reasoning.level": "low",
        "gen_ai.response.id": "chatcmpl-raw",
        "gen_ai.response.model": "raw-model",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.conversation.id": "review",
        "session.id": "review",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "nbllm.request_id": row.request_id,
        "nbllm.bytes_sent": server.requests[0].bytes_in,
        "nbllm.connection_reused": False,
        "nbllm.status": "ok",
    }
    assert {name: attributes.get(name) for name in expected} == expected
    assert "gen_ai.request.stream" not in attributes
    assert "error.type" not in attributes
    assert "stops at" not in str(attributes)


async def test_the_names_are_those_of_the_sdk_where_it_has_them() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
    from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes

    known = {
        value
        for module in (gen_ai_attributes, error_attributes, http_attributes, server_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    ours = {
        *semantic_conventions.ATTRIBUTES.values(),
        *(name for name, _ in semantic_conventions.PARAMETERS.values()),
    }
    newer = {  # than this SDK: semantic-conventions-genai, November 2026; the last is in no convention
        *("gen_ai.usage.cache_write.input_tokens", "gen_ai.request.reasoning.level"),
        *("gen_ai.usage.audio.input_tokens", "gen_ai.usage.audio.output_tokens"),
        *("gen_ai.usage.image.input_tokens", "gen_ai.usage.image.output_tokens"),
        *("gen_ai.request.previous_response.id", "gen_ai.usage.cost"),
    }
    assert ours - newer <= known
    providers = {one.value for one in gen_ai_attributes.GenAiProviderNameValues}
    assert set(semantic_conventions.PROVIDERS.values()) <= providers


async def test_a_stream_tells_its_first_chunk(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    async for _ in await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), stream=True):
        pass
    (span,) = spans.live()
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.request.stream"] is True
    assert attributes["gen_ai.response.time_to_first_chunk"] == request_rows()[0].ttft_ms / 1e3


async def test_the_log_gives_the_same_spans(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider, content=True)
    for behaviour in ("chat", "status-500", "html", "chat"):
        try:
            await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), session_id="a", seed=1)
        except nbllm.APIError:
            pass
    live = spans.live()
    assert opentelemetry.send(spans.provider, content=True) == 4
    sent = spans.sorted()
    for one, other in zip(live, sent, strict=True):
        assert one.name == other.name
        assert dict(one.attributes or {}) == dict(other.attributes or {})
        assert one.status.status_code is other.status.status_code
        assert one.status.description == other.status.description
        assert (one.start_time, one.end_time) == (other.start_time, other.end_time)
    assert len({span.context.trace_id for span in sent if span.context}) == 4


async def test_filters_choose_what_is_sent(spans: Spans, server: RawServer) -> None:
    for session in ("a", "b", "b"):
        await nbllm.acompletion("m", "Hi", base_url=server.url("chat"), session_id=session)
    assert opentelemetry.send(spans.provider, session="b") == 2
    assert [span.attributes["session.id"] for span in spans.sorted() if span.attributes] == ["b", "b"]
    asking = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("gated"), session_id="c"))
    await server.seen(lambda: len(server.requests) == 4)
    assert opentelemetry.send(spans.provider, session="c") == 0
    server.open_gate()
    await asking


async def test_what_went_wrong_is_the_spans_status(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    with pytest.raises(nbllm.RateLimitError):
        await nbllm.acompletion("m", "Hi", base_url=server.url("status-429"))
    asking = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("hang")))
    await server.seen(lambda: len(server.requests) == 2)
    asking.cancel()
    await asyncio.wait([asking])
    refused, cancelled = spans.live()
    assert refused.status.status_code is StatusCode.ERROR
    assert refused.status.description == request_rows()[0].error_message
    assert (refused.attributes or {})["error.type"] == "RateLimitError"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert (cancelled.attributes or {})["nbllm.status"] == "cancelled"


async def test_each_attempt_is_a_span(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    with pytest.raises(nbllm.InternalServerError):
        await nbllm.acompletion("m", "Hi", base_url=server.url("status-500"), num_retries=1)
    found = [dict(span.attributes or {}) for span in spans.live()]
    assert len({attributes["nbllm.call_id"] for attributes in found}) == 1
    assert [attributes.get("http.request.resend_count") for attributes in found] == [None, 1]


async def test_the_cost_is_there_where_a_price_is(spans: Spans, server: RawServer) -> None:
    async def priced(x: Any) -> None:
        from tests.servers import USAGE, completion, whole

        body = completion(usage={**USAGE, "cost": 0.25})
        await x.send(whole("200 OK", json.dumps(body).encode()))

    server.behaviours["priced"] = priced
    opentelemetry.install(spans.provider)
    await nbllm.acompletion("m", "Hi", base_url=server.url("priced"))
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    await nbllm.acompletion("gpt-4o", "Hi", base_url=server.url("echo"))
    found = [dict(span.attributes or {}) for span in spans.live()]
    known = request_rows()[-1].cost_usd
    assert known > 0
    assert [attributes.get("gen_ai.usage.cost") for attributes in found] == [0.25, None, known]


# -- parents -----------------------------------------------------------------------------------------------


async def test_the_span_around_a_call_is_its_parent(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    tracer = spans.provider.get_tracer("a user's")
    session = nbllm.shared_session()
    base_url = server.url("chat")
    parents = {}
    with tracer.start_as_current_span("async") as parents["/chat/v1/chat/completions"]:
        stream = await nbllm.acompletion("m", "Hi", base_url=base_url, stream=True)
    with tracer.start_as_current_span("elsewhere"):
        async for _ in stream:
            pass
    with tracer.start_as_current_span("foreign") as parents["/chat/foreign"]:
        response = await session.post(base_url.replace("v1", "foreign"), json={"messages": []})
    async with response:
        await response.read()
    await nbllm.acompletion("m", "Hi", base_url=server.url("echo"))
    with tracer.start_as_current_span("sync") as parents["/zipped/v1/chat/completions"]:
        await asyncio.to_thread(nbllm.completion, "m", "Hi", base_url=server.url("zipped"))
    ours = [span for span in spans.live() if span.kind is SpanKind.CLIENT]
    for span, row in zip(ours, request_rows(), strict=True):
        parent = parents.get(row.url_path)
        assert (span.parent and span.parent.span_id) == (parent and parent.get_span_context().span_id)
        if parent is not None and span.context is not None:
            assert span.context.trace_id == parent.get_span_context().trace_id
    assert [span.name for span in ours] == ["chat m", "POST", "chat m", "chat m"]


# -- content -----------------------------------------------------------------------------------------------

CONTENTS = ("gen_ai.input.messages", "gen_ai.output.messages")


async def test_content_stays_here_unless_it_is_asked_for(
    spans: Spans, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(**options: Any) -> ReadableSpan:
        opentelemetry.install(spans.provider, **options)
        await nbllm.acompletion("m", "Otters?", base_url=server.url("chat"))
        (live,) = spans.live()
        opentelemetry.send(spans.provider, **options)
        sent = spans.sorted()[-1]
        assert live.attributes == sent.attributes
        return live

    variable = opentelemetry.CONTENT_VARIABLE
    for value in ("", "false", "no_content", "event_only"):
        monkeypatch.setenv(variable, value)
        without = await ask()
        assert not set(CONTENTS) & set(without.attributes or {})
        assert "Otters" not in without.to_json()
    monkeypatch.delenv(variable)
    expected = [{"role": "user", "parts": [{"type": "text", "content": "Otters?"}]}]
    assert said(await ask(content=True), "gen_ai.input.messages") == expected
    for value in ("true", "SPAN_ONLY", "span_and_event"):
        monkeypatch.setenv(variable, value)
        span = await ask()
        assert said(span, "gen_ai.input.messages") == expected
        (answer,) = said(span, "gen_ai.output.messages")
        assert answer["parts"] == [{"type": "text", "content": "Hello from the raw server"}]
        assert (answer["role"], answer["finish_reason"]) == ("assistant", "stop")


def test_messages_have_the_parts_of_the_conventions() -> None:
    picture = base64.b64encode(b"picture").decode()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{not json"}}
    request = {
        "messages": [
            {"role": "system", "content": "Be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What?"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "input_audio", "input_audio": {"data": picture, "format": "wav"}},
                    {"type": "file", "file": {"file_id": "file-1"}},
                    {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{picture}"}},
                    {"type": "something_new"},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [call, odd]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]
    }
    answer = {"role": "assistant", "content": "So", "reasoning_content": "Hm"}
    response = {"id": "x", "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}]}
    found = semantic_conventions.messages(json.dumps(request), json.dumps(response), "stop")
    assert picture not in str(found)
    system, user, assistant, tool = json.loads(found["gen_ai.input.messages"])
    assert system == {"role": "system", "parts": [{"type": "text", "content": "Be brief"}]}
    assert user["parts"] == [
        {"type": "text", "content": "What?"},
        {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": ""},
        {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": ""},
        {"type": "file", "modality": "document", "file_id": "file-1"},
        {"type": "blob", "modality": "document", "mime_type": "application/pdf", "content": ""},
        {"type": "something_new"},
    ]
    assert assistant["parts"] == [
        {"type": "tool_call", "id": "c1", "name": "f", "arguments": {"x": 1}},
        {"type": "tool_call", "id": "c2", "name": "g", "arguments": "{not json"},
    ]
    assert tool["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "42"}]
    (output,) = json.loads(found["gen_ai.output.messages"])
    assert output["parts"] == [{"type": "reasoning", "content": "Hm"}, {"type": "text", "content": "So"}]


def test_what_is_no_content_gives_none() -> None:
    for text in (None, "", "{", "[]", "null", '{"messages": 1}', '{"messages": [1, {"role": 2}]}'):
        assert not semantic_conventions.messages(text, text, None).get("gen_ai.output.messages")


async def test_keys_are_in_no_span(spans: Spans, server: RawServer) -> None:
    own = "a-key-of-no-known-form-77"
    opentelemetry.install(spans.provider, content=True)
    with pytest.raises(nbllm.APIError):
        await nbllm.acompletion(
            f"m-{own}",
            f"My key is {KEY}, or {own}",
            base_url=server.url("status-401"),
            api_key=own,
            reasoning_effort=KEY,
        )
    live = spans.live()
    opentelemetry.send(spans.provider, content=True)
    for span in (*live, *spans.sorted()):
        assert "My key is [key], or [key]" in span.to_json()
        assert KEY not in span.to_json()
        assert own not in span.to_json()


# -- on and off --------------------------------------------------------------------------------------------


async def test_on_twice_is_once_and_off_is_off(spans: Spans, server: RawServer) -> None:
    opentelemetry.uninstall()
    opentelemetry.install(spans.provider)
    opentelemetry.install(spans.provider)
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    assert len(spans.live()) == 1
    await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
    assert spans.live() == []
    assert [thread.name for thread in threading.enumerate()].count("nbllm-opentelemetry") == 0
    assert len(request_rows()) == 2


class Broken(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("no room")


async def test_what_breaks_there_breaks_no_call(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unable(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            return object()

    broken = TracerProvider(shutdown_on_exit=False)
    broken.add_span_processor(SimpleSpanProcessor(Broken()))
    for provider in (broken, Unable(shutdown_on_exit=False), trace.NoOpTracerProvider()):
        opentelemetry.install(provider)
        answer = await nbllm.acompletion("m", "Hi", base_url=server.url("chat"))
        assert answer.text == "Hello from the raw server"
        opentelemetry.uninstall()
    assert [message for message in notices._state.warned if "span could not be made" in message]
    assert len(request_rows()) == 3


async def test_numbers_that_have_no_place_are_left_out(spans: Spans, server: RawServer) -> None:
    opentelemetry.install(spans.provider)
    await nbllm.acompletion(
        "m",
        "Hi",
        base_url=server.url("chat"),
        extra_body={"top_p": "much", "max_tokens": True},
        seed=2**70,
        temperature=[1],
        top_p={"a": 1},
        n=1,
    )
    (span,) = spans.live()
    given = {name for name in span.attributes or {} if name.startswith("gen_ai.request.")}
    assert given == {"gen_ai.request.model"}


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageProblem, match=r"tracer_provider must be .* got str"):
        opentelemetry.install("http://localhost:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    for function in (opentelemetry.install, opentelemetry.send):
        with pytest.raises(UsageProblem, match=r"pip install 'nbllm\[opentelemetry\]'"):
            function()


def test_the_bridge_loads_the_sdk_when_it_is_used() -> None:
    code = (
        "import sys; from nbllm.bridges import opentelemetry as ours\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'pandas')]\n"
        "assert not loaded, loaded\n"
        "assert ours.uninstall() is None"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# -- over the wire -----------------------------------------------------------------------------------------


class Collector:
    """An OTLP receiver over HTTP (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP")."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Any] = []
        self.paths: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                message = ExportTraceServiceRequest.FromString(body)
                collector.paths.add(self.path)
                for resource in message.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> Collector:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


async def test_a_collector_receives_the_spans(collector: Collector, server: RawServer) -> None:
    opentelemetry.install(content=True)
    for number in range(5):
        await nbllm.acompletion("m", f"Hi {number}", base_url=server.url("chat"), session_id="s")
    await asyncio.to_thread(opentelemetry.uninstall)
    assert collector.paths == {"/v1/traces"}
    rows = request_rows()
    assert len(rows) == 5  # the exporter's own are none of ours
    for span, row in zip(sorted(collector.spans, key=lambda s: s.start_time_unix_nano), rows, strict=True):
        values = {pair.key: pair.value for pair in span.attributes}
        assert values["nbllm.request_id"].string_value == row.request_id
        assert values["gen_ai.usage.input_tokens"].int_value == 11
        assert values["session.id"].string_value == "s"
        assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(
            row.duration_ms * 1e6, abs=2e3
        )
    collector.spans.clear()
    assert await asyncio.to_thread(opentelemetry.send) == 5
    assert len(collector.spans) == 5


def test_more_spans_than_the_sdk_queues_are_all_sent(collector: Collector) -> None:
    for _ in range(5000):
        log.add_request(record(**WHOLE, status="ok", ended_at=1.8e9))
    assert opentelemetry.send() == 5000
    assert len(collector.spans) == 5000


def test_a_script_that_ends_sends_its_last_spans(collector: Collector, server: RawServer) -> None:
    code = (
        "import nbllm; from nbllm.bridges import opentelemetry\n"
        "opentelemetry.install()\n"
        f"nbllm.completion('m', 'Hi', base_url={server.url('chat')!r})\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    assert [span.name for span in collector.spans] == ["chat m"]


def test_the_provider_of_the_process_is_used(server: RawServer) -> None:
    code = f"""
import nbllm
from nbllm.bridges import opentelemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
opentelemetry.install()
nbllm.completion("m", "Hi", base_url={server.url("chat")!r})
opentelemetry.uninstall()
assert len(exporter.get_finished_spans()) == 1
assert opentelemetry.send() == 1
assert len(exporter.get_finished_spans()) == 2
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_makes_spans_too(server: RawServer) -> None:
    code = f"""
import os, warnings
import nbllm
from nbllm.bridges import opentelemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
opentelemetry.install(provider)
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork beside a thread
if (child := os.fork()) == 0:
    nbllm.completion("m", "Hi", base_url={server.url("chat")!r})
    opentelemetry.uninstall()
    os._exit(len(exporter.get_finished_spans()))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
