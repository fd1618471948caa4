"""Fault 33: a hangup. It makes the server read its keys anew, and ends nothing, under nohup or not."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.keyfile import new_key
from tests.faults.conftest import Server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def read(server: Server) -> list[dict[str, object]]:
    log = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [line for line in log if line["event"] in ("keys read", "keys not read")]


@pytest.mark.parametrize("by", [(), ("nohup",)], ids=["plain", "nohup"])
def test_a_hangup_reads_the_keys_anew(launch: Callable[..., Server], tmp_path: Path, by: tuple[str, ...]) -> None:
    path = tmp_path / "keys.jsonl"
    keys = {name: new_key(path, name=name) for name in ("ann", "bob")}
    server = launch(by=by, api_keys=path)
    body = {"text": "the [MASK]", "max_tokens": 2}
    assert server.post("/v1/infill", body, headers=bearer(keys["bob"])).status_code == 200
    path.write_text(path.read_text().splitlines()[0] + "\n")
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: len(read(server)) == 1)
    assert {name: read(server)[0][name] for name in ("keys", "new", "gone")} == {"keys": 1, "new": 0, "gone": 1}
    # A file that cannot be used is told of at once, and changes nothing.
    path.write_text("{")
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: len(read(server)) == 2)
    assert read(server)[1]["event"] == "keys not read"
    assert server.post("/v1/infill", body, headers=bearer(keys["ann"])).status_code == 200
    assert server.post("/v1/infill", body, headers=bearer(keys["bob"])).status_code == 401
    assert server.stop() == 0


def test_without_keys_a_hangup_changes_nothing(server: Server) -> None:
    children = server.children()
    for _ in range(3):
        seen = len(read(server))
        server.process.send_signal(signal.SIGHUP)
        while len(read(server)) == seen:
            time.sleep(0.05)
    assert server.fill().status_code == 200
    assert server.children() == children
