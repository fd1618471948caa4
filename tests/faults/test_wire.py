"""Faults 5, 19 and 20: bodies, heads and readers that were made to hurt."""

import gzip
import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.faults.conftest import LONG, Server

HEAD = b"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
BODY = json.dumps({"text": "the [MASK]", "max_tokens": 2}).encode()


def sized(body: bytes, *headers: bytes) -> bytes:
    return HEAD + CLOSE + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def test_this_is_how_an_honest_request_looks(server: Server) -> None:
    assert status(server.raw(sized(BODY))) == 200
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    assert status(server.raw(HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")) == 200


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc", 400),
        (HEAD + b"Content-Length: 9999999999999\r\n\r\nabc", 413),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n", 400),
        (
            b"GET /live HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(9000)) + b"\r\n",
            431,
        ),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 60_000 + b"\r\n\r\n", 431),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 2_000_000, 400),
        (b"GET /li\x00ve HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\n Folded: y\r\nA\x00: b\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\nHos", 408),
        (b"", 0),
        (HEAD + b"Content-Length: 50\r\n\r\n{", 408),
        (b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{", 404),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (len(BODY) - 4) + BODY, 400),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (len(BODY) + 4) + BODY, 408),
    ],
)
def test_malformed_and_slow_requests_are_refused_and_closed(server: Server, data: bytes, expected: int) -> None:
    # `raw` reads until the server closes, or the test would fail by its timeout.
    answer = server.raw(data)
    assert status(answer) == expected, answer
    if expected:
        assert b'{"error":{"message":"' in answer


def test_a_drop_a_second_does_not_keep_a_connection(server: Server) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection, suppress(OSError):
        for byte in HEAD:
            connection.sendall(bytes([byte]))
            sent += 1
            time.sleep(0.2)
    assert sent < len(HEAD)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sized(gzip.compress(b"a" * 10_000_000), b"Content-Encoding: gzip\r\n"), 415),
        (sized(BODY, b"Content-Encoding: br\r\n"), 415),
        (sized(b"a" * 3_000_000), 413),
        (HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 40, 413),
        (sized(b"[" * 100_000), 400),
        (sized(b'{"text": "\xff"}'), 400),
        (sized(b'{"text": "a\\u0000 [MASK]", "max_tokens": 2}'), 200),
        (sized(b'{"text": "\\ud800"}'), 400),
        (sized(b'{"text": "a", "temperature": NaN}'), 400),
        (sized(b'{"text": "a", "temperature": 1e999}'), 400),
        (sized(b'{"text": "a", "text": "b"}'), 400),
        (sized(b"[]"), 400),
    ],
)
def test_bodies_never_break_the_server(server: Server, data: bytes, expected: int) -> None:
    before = server.rss()
    answer = server.raw(data)
    # A server that closes while we still send may cut its own answer off.
    assert status(answer) in (expected, 0 if len(data) > 1_000_000 else expected), answer
    assert server.rss() - before < 64e6


def test_a_reader_that_stops_is_dropped_and_slows_nobody(server: Server) -> None:
    body = json.dumps({**LONG, "text": ["the [MASK]"] * 32, "n": 8, "stream": True}).encode()
    before = server.metric("requests_total", outcome="cancelled")
    memory = server.rss()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert server.fill().status_code == 200
        server.until(lambda: server.metric("requests_total", outcome="cancelled") == before + 1)
        assert server.rss() - memory < 64e6


def test_a_reader_that_stops_in_a_whole_answer_is_dropped(server: Server) -> None:
    body = json.dumps({"text": "the [MASK]", "spans": [["red boat"]] * 1000, "logprobs": 20}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(HEAD.replace(b"infill", b"score") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        server.until(lambda: server.metric("requests_total", route="/v1/score", outcome="ok") == 1)
        time.sleep(4)  # twice the time that this server gives its readers
        answer = b""
        while chunk := connection.recv(1 << 20):
            answer += chunk
    head, _, got = answer.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", head)
    assert len(got) < int(length)


def test_requests_behind_each_other_that_nobody_reads_are_dropped(server: Server) -> None:
    one = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    memory = server.rss()
    answered = server.metric("requests_total", route="/openapi.json")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(one * 500)
        assert connection.recv(12) == b"HTTP/1.1 200"
        # They are answered in turn, the next when the one before is out: 500 answers would be 11 MB.
        time.sleep(4)  # twice the time that this server gives its readers
        assert server.metric("requests_total", route="/openapi.json") - answered < 100
        assert server.fill().status_code == 200
        assert server.rss() - memory < 16e6
        got = 0
        try:
            while chunk := connection.recv(1 << 20):
                got += len(chunk)
        except ConnectionError:
            pass
    assert got < 100 * 20_000


def test_a_body_behind_a_request_that_nobody_reads_is_not_taken_in(server: Server) -> None:
    body = json.dumps({"text": "the [MASK]", "spans": [["red boat"]] * 1000, "logprobs": 20}).encode()
    one = HEAD.replace(b"infill", b"score") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    memory = server.rss()
    before = server.metric("requests_total", route="/v1/score")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection.settimeout(0.5)
        connection.connect(("127.0.0.1", server.port))
        # It sends without an end, as far as it is let.
        with suppress(OSError):
            for _ in range(2000):
                connection.sendall(one)
        server.until(lambda: server.metric("requests_total", route="/v1/score") > before)
        time.sleep(4)
        assert server.metric("requests_total", route="/v1/score") <= before + 2
        assert server.rss() - memory < 64e6
        assert server.fill().status_code == 200


def test_connections_over_the_limit_are_refused(launch: Callable[..., Server]) -> None:
    server = launch(max_connections=20, header_seconds=3)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(30)]
    for connection in held[20:]:
        answer = b"".join(iter(lambda c=connection: c.recv(1 << 16), b""))  # type: ignore[misc]
        assert status(answer) == 503
        assert b"too_many_connections" in answer
    for connection in held:
        connection.close()
    server.until(lambda: server.status("/live") == 200)
