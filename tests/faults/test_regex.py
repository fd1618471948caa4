"""Fault 18: regular expressions that would take for ever to compile."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.conftest import PATIENCE_S, Server

Refused = Callable[..., dict[str, Any]]
BOMBS = {
    "states without end": "(a|b)*a(a|b){24}",
    "repeated repetitions": "(?:(?:a{1,1000}){1,1000}){1,1000}",
    "all words": r"\w{1,900}",
    "nested": "(" * 500 + "a" + "+)" * 500,
}


def compilers(server: Server) -> list[int]:
    """The processes below the server that compile a pattern."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            parent = int(re.findall(r"\nPPid:\t(\d+)", (status.parent / "status").read_text())[0])
        except OSError:  # has ended
            continue
        if b"engine.regex.child" in words and parent in server.children():
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_its_process_is_gone(server: Server, refused: Refused, name: str) -> None:
    error = refused(server.fill(regex=BOMBS[name]), 400, "regex")
    assert error["code"] == "invalid_value"
    assert BOMBS[name][:20] not in error["message"]
    assert not compilers(server)


def test_others_run_while_a_bomb_is_tried(server: Server) -> None:
    order: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str, **fields: Any) -> int:
        answer = await client.post("/v1/infill", json={"text": "the [MASK]", "max_tokens": 2, **fields})
        order.append(name)
        return answer.status_code

    async def play() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            bombs = [asyncio.create_task(ask(client, "bomb", regex=f"(a|b)*a(a|b){{{n}}}")) for n in range(20, 24)]
            while not await asyncio.to_thread(compilers, server):
                pass
            assert await ask(client, "other") == 200
            assert await ask(client, "other", regex="") in (200, 400)
            assert await asyncio.gather(*bombs) == [400] * 4

    asyncio.run(play())
    assert order[0] == "other"
    assert not compilers(server)


def test_a_machine_without_time_for_a_pattern_is_a_503_to_be_tried_again(server: Server, refused: Refused) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.fill, regex="(a|b)*a(a|b){19}")
        server.until(lambda: bool(compilers(server)))
        for pid in compilers(server):
            os.kill(pid, signal.SIGSTOP)  # as slow as can be
        error = refused(answer.result(), 503, "regex")
    assert (error["code"], error["type"]) == ("regex_timeout", "overloaded_error")
    assert int(answer.result().headers["retry-after"]) >= 1
    assert not compilers(server)
    assert server.fill(regex="[0-9]{19}").status_code == 200


def test_who_leaves_while_a_pattern_is_compiled_leaves_nothing_behind(server: Server) -> None:
    before = server.metric("requests_total", outcome="cancelled", route="/v1/infill")
    for number in range(3):
        body = {"text": "the [MASK]", "regex": f"(a|b)*a(a|b){{{20 + number}}}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/infill", json=body, timeout=0.3)
    server.until(lambda: server.metric("requests_total", outcome="cancelled", route="/v1/infill") - before >= 3)
    server.until(lambda: not compilers(server))
    server.until_idle()
    assert server.metric("requests_total", outcome="cancelled", route="/v1/infill") - before == 3


def test_a_pattern_is_matched(server: Server) -> None:
    answer = server.fill(text="in [MASK] and [MASK]", regex=["[0-9]{4}", None], max_tokens=8).json()
    blank = answer["results"][0]["blanks"][0]
    assert re.fullmatch("[0-9]{4}", blank["text"])
    assert blank["finish_reason"] == "regex"
