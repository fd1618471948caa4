"""The world of the server's tests: a scripted engine, applications around it, and a client that can leave."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message

from engine.answers import Ranking, Usage
from engine.client import EngineUnavailable, ignore
from engine.events import AdapterCard, BlankDelta, BlankDone, Done, Event, Loss, ModelCard, ResultDone, StepStats
from engine.readings import LaidBlank, Piece, Reading
from engine.requests import Fill, Request, RequestError, Tokens
from server.app import create_app
from server.settings import Settings
from tests.answers import blank, filled, scored

USAGE = Usage(5, 1, 6)
BLANK = blank(mask="[MASK]", start=2, end=8, text="b", finish_reason="stop")
CARD = ModelCard(
    name="demo", family="glm", quant="int8", quant_head="int8", tp=1, masks=["[MASK]", "[gMASK]"], max_context=512,
    max_positions=1024, max_span=512, vocab_size=100, strategies=["append", "reencode", "parallel"],
    num_parameters=7, kernels="plain",
    created=1, kv_cache_type="int8", kv_cache_tokens=4096, special_tokens={"bos": "<sop>", "eos": "<eop>"},
)  # fmt: skip

LAID = LaidBlank("[MASK]", True, 3, 1, 1, 0, 1)

Script = Callable[[Request, str], AsyncIterator[Event]]


async def answers(request: Request, work_id: str) -> AsyncIterator[Event]:
    """What a healthy engine tells: one result, or two candidates in the wrong order."""
    if isinstance(request, Fill):
        if request.stream:
            yield BlankDelta(work_id, 0, 0, 0, "b", [7], [-0.5])
            yield BlankDone(work_id, 0, 0, BLANK)
        yield ResultDone(work_id, filled([BLANK]))
        yield Done(work_id, USAGE)
    else:
        yield ResultDone(work_id, scored(1, -2.0))
        yield ResultDone(work_id, scored(0, -1.0))
        yield Done(work_id, USAGE, Ranking(0, [0.7, 0.3]))


class FakeEngine:
    """An `EngineClient` that plays a script and remembers what it was asked."""

    def __init__(self, script: Script = answers) -> None:
        self.script = script
        self.changes: dict[str, Any] = {}
        self.status = ("ready", "1 rank")
        self.ranks_alive = 1
        self.is_given_up = False
        self.asked: list[Request] = []
        self.read_texts: list[tuple[Fill, bool]] = []
        self.num_open = 0
        self.steps: list[StepStats] = []
        self.life: list[str] = []
        self.adapters: list[AdapterCard] = []

    async def start(self, lose: Callable[[Loss], None] = ignore) -> None:
        self.lose = lose
        self.life.append("start")

    async def stop(self) -> None:
        self.life.append("stop")

    def state(self) -> tuple[str, str]:
        return self.status

    @property
    def card(self) -> ModelCard:
        if self.status[0] == "loading":
            raise EngineUnavailable("loading: 40 %")
        return replace(CARD, **self.changes)

    async def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        self.num_open += 1
        try:
            async for event in self.script(request, request_id):
                yield event
        finally:
            self.num_open -= 1

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        return [len(word) for word in text.split()]

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        self.read_texts.append((fill, scored))
        if any(max(s.ids) >= CARD.vocab_size for text in fill.inputs for s in text if isinstance(s, Tokens)):
            raise RequestError("token id 100 is outside the vocabulary", "text")
        return [Reading([1, 2], [0, 1], [0, 0], [LAID], 5, [], fill.fit) for _ in fill.inputs]

    async def pieces(self, token_ids: list[int]) -> list[Piece]:
        await self.detokenize(token_ids)
        return [Piece(i, [i + 64] if i < 64 else [195], f"▁{i}") for i in token_ids]

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        if max(token_ids, default=0) >= CARD.vocab_size:
            raise RequestError("token id 100 is outside the vocabulary", "tokens")
        return " ".join(map(str, token_ids))

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        self.adapters.append(AdapterCard(name, "lora", 1))
        self.life.append(path)
        return self.adapters[-1]

    async def unload_adapter(self, name: str) -> None:
        if name not in [card.name for card in self.adapters]:
            raise RequestError(f"no adapter {name!r} is loaded", "name", "adapter_not_found")
        self.adapters = [card for card in self.adapters if card.name != name]

    def stats(self) -> list[StepStats]:
        steps, self.steps = self.steps, []
        return steps


class Caller:
    """One raw ASGI exchange whose client may leave: what `TestClient` cannot do."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self.app = app
        self.path = path
        self.body = json.dumps(body).encode()
        self.left = asyncio.Event()
        self.status = 0
        self.data = b""
        self.sent = False

    async def receive(self) -> Message:
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.data += message.get("body", b"")

    async def run(self) -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": self.path, "raw_path": self.path.encode(), "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        await self.app(scope, self.receive, self.send)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_app(engine: FakeEngine) -> Callable[..., FastAPI]:
    return lambda **settings: create_app(Settings(**settings), engine)


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI]) -> Callable[..., TestClient]:
    return lambda **settings: TestClient(make_app(**settings))


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> Iterator[TestClient]:
    with make_client() as client:
        yield client


@pytest.fixture
def make_caller(make_app: Callable[..., FastAPI]) -> Callable[..., Caller]:
    return lambda path, body, app=None, **settings: Caller(app or make_app(**settings), path, body)


@pytest.fixture
def refused() -> Callable[..., dict[str, Any]]:
    """Checks the one error shape and returns its inside."""

    def check(response: Any, status: int, param: str | None = None) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["param"] == param
        assert error["message"]
        assert "\n" not in error["message"]
        assert response.headers["x-request-id"]
        return error

    return check
