"""Faults 21 and 27: what a server tells, to whom, and what it leaves behind."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.keyfile import new_key
from tests.faults.conftest import Server

SECRET = "the-secret-prompt"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    return path, {name: new_key(path, name=name) for name in ("ann", "bob")}


@pytest.fixture(scope="module")
def locked(
    roomy: Path, keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(roomy, tmp_path_factory.mktemp("locked") / "log", api_keys=keys[0], open_metrics=True)
    yield server
    assert server.stop() == 0


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_names_and_paths_of_clients_make_no_series(server: Server) -> None:
    draw = random.Random(5)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/v1/infill", json={"text": "a", "model": "x"})
        client.get("/x")
        client.request("BREW", "/x")
        client.get("/metrics")
        before = len(server.metrics().splitlines())
        for _ in range(1000):
            name = f"{draw.getrandbits(64):x}"
            assert client.post("/v1/infill", json={"text": "a", "model": name}).status_code == 404
            assert client.get(f"/{name}?{name}").status_code == 404
            assert client.request(name.upper(), f"/v1/{name}").status_code == 404
    text = server.metrics()
    assert len(text.splitlines()) == before
    assert name not in text


def test_neither_log_nor_errors_hold_prompts_or_keys(locked: Server, keys: tuple[Path, dict[str, str]]) -> None:
    _, made = keys
    answers = []
    for headers in (bearer(made["ann"]), {"x-api-key": made["ann"]}, bearer(made["ann"] + "x")):
        for body in (
            {"text": SECRET, "max_tokens": 2},
            {"text": SECRET, "n": 99},
            {"text": SECRET, SECRET[4:10]: 1},
            {"text": [SECRET, 5]},
            {"text": f"{SECRET} " * 500},
            {"text": SECRET, "model": SECRET},
        ):
            response = locked.post("/v1/infill", body, headers=headers)
            if response.status_code != 200:
                answers.append(response.text)
        locked.post("/v1/score", {"text": "a [MASK]", "spans": [SECRET]}, headers=headers)
    answers.append(
        locked.raw(
            b"POST /v1/infill HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + made["ann"].encode() + b"\r\nA b\r\n\r\n"
        ).decode()
    )
    log = locked.log.read_text()
    assert all(json.loads(line) for line in log.splitlines())
    for text in (log, *answers, locked.metrics()):
        assert SECRET not in text
        assert made["ann"] not in text


def test_the_command_line_sends_its_key(locked: Server, keys: tuple[Path, dict[str, str]]) -> None:
    line = [
        sys.executable,
        "-m",
        "server.cli",
        "fill",
        "the [MASK]",
        "--max-tokens",
        "2",
        "--url",
        locked.url,
        "--json",
    ]
    without = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (without.returncode, "a valid API key is needed" in without.stderr) == (1, True)
    environment = {**os.environ, "GLM_INFILL_API_KEY": keys[1]["ann"]}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/infill", b"POST //v1/infill", b"POST /v1/./infill", b"POST /live/../v1/infill",
        b"POST /%76%31/infill",
        b"POST /v1/infill?x=/live", b"POST http://x/live/../v1/infill", b"GET /v1/models", b"HEAD /v1/models",
        b"OPTIONS /v1/infill", b"OPTIONS *", b"TRACE /v1/infill", b"CONNECT x:1", b"GET /v1/adapters", b"PUT /live",
    ],
)  # fmt: skip
@pytest.mark.parametrize("headers", [b"", b"Host: live\r\n", b"X-Forwarded-Path: /live\r\nX-Original-URL: /live\r\n"])
def test_no_spelling_of_a_request_gets_past_the_keys(locked: Server, line: bytes, headers: bytes) -> None:
    host = b"" if b"Host" in headers else b"Host: x\r\n"
    answer = locked.raw(line + b" HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n" + host + headers + b"\r\n")
    assert answer.split()[1] == b"401", answer


def test_other_origins_are_told_nothing(server: Server) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for response in (
        httpx.options(f"{server.url}/v1/infill", headers=headers),
        httpx.get(f"{server.url}/v1/models", headers=headers),
        server.post("/v1/infill", {"text": "a", "max_tokens": 1}, headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_key_cannot_probe_another_s_cache(locked: Server, keys: tuple[Path, dict[str, str]]) -> None:
    def cached(key: str) -> int:
        response = locked.post("/v1/infill", {"text": f"{SECRET} 7 [MASK]", "max_tokens": 1}, headers=bearer(key))
        return int(response.json()["usage"]["cached_tokens"])

    _, made = keys
    assert cached(made["ann"]) == 0
    assert cached(made["ann"]) > 0
    assert cached(made["bob"]) == 0


def test_only_the_http_port_listens_and_nothing_goes_out(server: Server) -> None:
    processes = [server.process.pid, *server.children()]
    links = [fd.readlink() for pid in processes for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    inodes = {str(link)[8:-1] for link in links if str(link).startswith("socket:[")}
    listening: list[tuple[str, str]] = []
    peers: list[tuple[str, str]] = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if line.split()[9] in inodes:
                (listening if state == "0A" else peers).append((local, remote))
    assert [local for local, _ in listening] == [f"0100007F:{server.port:04X}"]
    assert all(remote.startswith("0100007F:") for _, remote in peers)


def test_many_requests_leave_no_memory_files_or_threads_behind(server: Server) -> None:
    def round_() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for number in range(60):
                text = f"the {number} [MASK]"
                assert client.post("/v1/infill", json={"text": text, "max_tokens": 3}).status_code == 200
                with client.stream("POST", "/v1/infill", json={"text": text, "stream": True, "n": 4}) as response:
                    next(response.iter_lines())  # and leave
                assert client.post("/v1/score", json={"text": text, "spans": [["a"], ["b"]]}).status_code == 200
                assert client.post("/v1/infill", json={"text": text, "n": 0}).status_code == 400
        server.until_idle()

    def held() -> list[int]:
        pids = [server.process.pid, *server.children()]
        return [len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for pid in pids for kind in ("fd", "task")]

    round_()
    before, memory = held(), server.rss()
    for _ in range(3):
        round_()
    # The last connections may still be closing.
    server.until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert server.rss() - memory < 16e6


def test_request_ids_and_traces_are_answered_and_logged(launch: Callable[..., Server]) -> None:
    server = launch()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    response = server.post("/v1/infill", {"text": "a", "max_tokens": 2}, headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "mine-1"]
    assert (line["trace_id"], line["route"], line["status"]) == (trace, "/v1/infill", 200)
    assert line["completion_tokens"] >= 1
