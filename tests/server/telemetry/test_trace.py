"""Traces: ids that come in are kept, malformed ones are not, and spans reach a collector."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engine.answers import Usage
from engine.events import Done
from server.telemetry.trace import read_trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("header", [HEADER, f" {HEADER}", f"cc-{TRACE}-{PARENT}-01-later"])
def test_a_trace_goes_on(header):
    trace = read_trace(header)
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE, PARENT, True)
    assert len(trace.span_id) == 16
    assert not read_trace(HEADER[:-1] + "0").is_sampled


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        HEADER.upper(),
        HEADER[:-1],
        HEADER * 100,
        f"{HEADER}-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_a_malformed_trace_is_a_new_one(header):
    trace = read_trace(header)
    assert trace.trace_id != TRACE
    assert len(trace.trace_id) == 32
    assert trace.parent_id is None


def test_the_log_tells_trace_and_counts(capsys, make_client):
    make_client().post("/v1/infill", json={"text": "my secret"}, headers={"traceparent": HEADER})
    line = json.loads(capsys.readouterr().err)
    assert (line["trace_id"], line["prompt_tokens"], line["completion_tokens"]) == (TRACE, 5, 1)
    assert "secret" not in str(line)


@pytest.fixture
def collector():
    """A collector's address, and the requests that came to it."""
    bodies = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_of_opentelemetry_s_sdk_is_loaded_unless_asked_for():
    code = "import sys, server.cli, server.app; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_spans_reach_a_collector(collector, make_client, engine):
    async def script(request, work_id):
        yield Done(work_id, Usage(5, 2, 7), queue_s=0.25, first_token_s=0.5)

    engine.script = script
    url, bodies = collector
    with make_client(otlp_endpoint=url) as client:
        client.post("/v1/infill", json={"text": "my secret"}, headers={"traceparent": HEADER})
        client.post("/v1/infill", json={"text": "my secret", "n": 99})
        client.get("/live")
    spans = []
    for path, body in bodies:
        assert path == "/v1/traces"
        assert b"secret" not in body
        message = ExportTraceServiceRequest.FromString(body)
        spans += [s for r in message.resource_spans for scope in r.scope_spans for s in scope.spans]
    by_name = {s.name: s for s in spans if s.trace_id.hex() == TRACE}
    assert by_name.keys() == {"/v1/infill", "queue", "first_token"}
    whole = by_name["/v1/infill"]
    assert whole.parent_span_id.hex() == PARENT
    assert by_name["queue"].parent_span_id == by_name["first_token"].parent_span_id == whole.span_id
    assert by_name["queue"].end_time_unix_nano - by_name["queue"].start_time_unix_nano == 250_000_000
    assert by_name["first_token"].end_time_unix_nano - by_name["queue"].start_time_unix_nano == 500_000_000
    attributes = {a.key: a.value for a in whole.attributes}
    assert attributes["prompt_tokens"].int_value == 5
    assert attributes["outcome"].string_value == "ok"
    assert len(spans) == 4
