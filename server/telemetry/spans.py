"""OpenTelemetry spans, if an exporter is configured. No other module imports OpenTelemetry.

A request's span has a child `queue`, from admission to the engine's first step, and a child `first_token`, from there
to the first token. Attributes are names of ours and counts, nothing that a client wrote.
"""

from dataclasses import replace
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from engine.events import Done
from server.telemetry.trace import Trace
from server.wire.answer import plain

EXPORT_SECONDS = 2.0


class Spans:
    """Makes spans and sends them, in batches, from a thread."""

    def __init__(self, endpoint: str) -> None:
        url = endpoint.rstrip("/")
        url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "glm-infill"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("glm-infill")

    def start(self, route: str, trace: Trace, start_ns: int) -> tuple[Span, Trace]:
        """Starts the span of a request. Returns the trace with this span's id."""
        context = None
        if trace.parent_id is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
            parent = SpanContext(int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(parent))
        span = self._tracer.start_span(route, context, SpanKind.SERVER, start_time=start_ns)
        own = span.get_span_context()
        return span, replace(trace, trace_id=f"{own.trace_id:032x}", span_id=f"{own.span_id:016x}")

    def end(self, span: Span, facts: dict[str, Any], submitted_ns: int | None, done: Done | None) -> None:
        """Ends a request's span, with its children if its work was done."""
        span.set_attributes(facts)
        if facts["outcome"] == "error":
            span.set_status(Status(StatusCode.ERROR))
        if done is not None and submitted_ns is not None:
            span.set_attributes(plain(done.usage))
            started_ns = submitted_ns + int(done.queue_s * 1e9)
            self._child(span, "queue", submitted_ns, started_ns)
            self._child(span, "first_token", started_ns, submitted_ns + int(done.first_token_s * 1e9))
        span.end()

    def close(self) -> None:
        """Sends the remaining spans, for a few seconds at most."""
        self._provider.shutdown()

    def _child(self, parent: Span, name: str, start_ns: int, end_ns: int) -> None:
        child = self._tracer.start_span(name, set_span_in_context(parent), start_time=start_ns)
        child.end(end_ns)
