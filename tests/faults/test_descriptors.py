"""Faults 28 and 29: more connections than there are descriptors, and very many that do nothing."""

import json
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from server.wire.descriptors import PER_RANK, RESERVE
from tests.faults.conftest import Server

ASK = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMIT = 1024
IDLE = 10_000


@contextmanager
def connected(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many connections at once, from addresses of their own, so that no ports run out."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            source = (f"127.0.0.{2 + number % 50}", 0)
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=source)
            # Gone at once when it is closed: ten thousand ports that wait would be in the way of other tests.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.append(stack.enter_context(connection))
        yield made


def ask(connection: socket.socket) -> int:
    """The status of one answer, over a connection that goes on; 0 for none."""
    answer = b""
    with suppress(BrokenPipeError, ConnectionResetError):  # refused before it asked: the answer is there already
        connection.sendall(ASK)
    while b"}" not in answer:
        chunk = connection.recv(65536)
        if not chunk:
            return 0
        answer += chunk
    status = int(answer.split()[1])
    assert status == 200 or json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    assert status == 200 or b"\r\nretry-after: 1\r\n" in answer
    return status


def ready(connection: socket.socket) -> bool:
    """Whether the server takes work, asked over a connection that goes on."""
    connection.sendall(ASK.replace(b"/live", b"/ready"))
    answer = b""
    while b"}" not in answer:
        answer += connection.recv(65536)
    return b" 200 " in answer[:16]


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def lowest_free(server: Server) -> int:
    taken = {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def lines(server: Server) -> list[dict[str, object]]:
    """The log, each line of which is JSON."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


@pytest.mark.parametrize("at_once", [True, False], ids=["a burst", "one by one"])
def test_connections_beyond_the_limit_of_files_are_refused_and_the_others_served(
    launch: Callable[..., Server], at_once: bool
) -> None:
    server = launch(by=["prlimit", f"--nofile=512:{LIMIT}"], max_connections=5000)
    room = LIMIT - RESERVE - PER_RANK
    before = descriptors(server)
    server.until(lambda: descriptors(server) <= before)
    if at_once:
        with connected(server, LIMIT + 76) as made:
            statuses = [ask(connection) for connection in made]
            # They are kept alive, and those who have a place keep it.
            again = [ask(connection) for connection, status in zip(made, statuses, strict=True) if status == 200]
            # The engine is lost among all of them, and can be started again by what was kept in reserve.
            (engine,) = server.children()
            os.kill(engine, signal.SIGKILL)
            kept = made[statuses.index(200)]
            server.until(lambda: engine not in server.children() and ready(kept))
    else:
        statuses, again = [], []
        with ExitStack() as stack:
            for _ in range(LIMIT + 76):
                (connection,) = stack.enter_context(connected(server, 1))
                statuses.append(ask(connection))
    assert statuses[:room] == [200] * room
    assert set(statuses[room:]) == {503}
    assert set(again) <= {200}
    server.until(lambda: server.status("/live") == 200)
    assert server.fill().status_code == 200
    assert server.metric("rejected_total", reason="too_many_connections") >= LIMIT + 76 - room
    server.until(lambda: descriptors(server) <= before + 4)
    assert server.stop() == 0
    log = lines(server)
    assert len(log) < 60
    (few,) = [line for line in log if line["event"] == "few open files"]
    assert (few["connections"], few["max_connections"]) == (room, 5000)
    assert [line for line in log if line["event"] == "connections refused"]


def test_without_any_descriptor_clients_are_told_and_nothing_spins(launch: Callable[..., Server]) -> None:
    server = launch()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/live").status_code == 200
        soft_and_hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (lowest_free(server), soft_and_hard[1]))
        with connected(server, 200) as made:
            assert {ask(connection) for connection in made} == {503}
        # Whoever is inside is served meanwhile.
        body = {"text": "the [MASK]", "max_tokens": 3}
        assert client.post("/v1/infill", json=body).status_code == 200
        busy = cpu_seconds(server)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, soft_and_hard[1]))
        with connected(server, 50):
            time.sleep(3)  # nothing can be accepted, not even by the spare one
            assert cpu_seconds(server) - busy < 1.5
            assert client.post("/v1/infill", json=body).status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, soft_and_hard)
    server.until(lambda: server.status("/live") == 200)
    assert server.fill().status_code == 200
    assert server.stop() == 0
    log = lines(server)
    told = [line for line in log if line["event"] == "cannot accept connections"]
    assert 0 < len(told) < 20
    assert told[0]["detail"] == "Too many open files"
    assert len(log) < 60


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def many_files() -> Iterator[None]:
    """The client needs descriptors too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"the hard limit of open files is {hard}, and {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_ten_thousand_idle_connections_cost_little_and_slow_nobody(launch: Callable[..., Server]) -> None:
    server = launch(max_connections=IDLE + 10, keep_alive_seconds=300)
    expected = server.fill(seed=1, max_tokens=8).json()["results"]
    before, memory = descriptors(server), server.rss()
    with connected(server, IDLE) as made:
        for connection in made:
            assert ask(connection) == 200
        assert descriptors(server) >= IDLE
        assert (server.rss() - memory) / IDLE < 48 * 1024
        for _ in range(5):
            answer = server.fill(seed=1, max_tokens=8)
            assert answer.status_code == 200
            assert answer.json()["results"] == expected
        # All of them are still there.
        assert {ask(connection) for connection in made[:: IDLE // 100]} == {200}
        # Full is full.
        with connected(server, 20) as others:
            assert 503 in {ask(connection) for connection in others}
    server.until(lambda: descriptors(server) <= before + 4)
    assert server.fill(seed=1, max_tokens=8).json()["results"] == expected
    assert server.stop() == 0
