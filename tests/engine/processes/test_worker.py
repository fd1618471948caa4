"""What a worker does with requests that take long to prepare, and with those that are behind them."""

import queue
import socket
from collections.abc import Iterator
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from engine.events import Failed
from engine.processes.messages import TO_RANK, Cancel, FromRank, Happened, Reply, Submit, Tokenize, ToRank
from engine.processes.worker import LONG, MAX_COMPILING, Worker
from engine.requests import Fill, Request, RequestError

SLOW, QUICK = (Fill((("a",),), regex=regex) for regex in (("slow",), ()))
HUGE = Fill((("a" * LONG,),))


class FakeLink:
    """Keeps what is sent; `say` is what the supervisor says."""

    def __init__(self) -> None:
        self.connection, self._supervisor = socket.socketpair()
        self.sent: queue.SimpleQueue[FromRank] = queue.SimpleQueue()

    def send(self, message: FromRank) -> None:
        self.sent.put(message)

    def say(self, message: ToRank) -> None:
        self._supervisor.sendall(TO_RANK.frame(message))

    def close(self) -> None:
        self._supervisor.close()

    def end(self) -> None:
        self.connection.close()


class FakeSpelling:
    """Makes tokens of a long text only when it is let."""

    def __init__(self, lets: Event) -> None:
        self._lets = lets

    def tokenize_masks(self, text: str) -> list[int]:
        if len(text) >= LONG:
            self._lets.wait(60)
        return [len(text)]


class FakeEngine:
    """Prepares requests with a regex, and long texts, only when it is let."""

    def __init__(self) -> None:
        self.lets = Event()
        self.job_context = SimpleNamespace(spelling=FakeSpelling(self.lets))

    def compiles(self, request: Request) -> bool:
        return isinstance(request, Fill) and bool(request.regex)

    def prepare(self, request: Request, request_id: str) -> str:
        if self.compiles(request) or request == HUGE:
            self.lets.wait(60)
        if request_id == "bad":
            raise RequestError("regex is bad", "regex")
        return request_id


class World:
    def __init__(self) -> None:
        self.link, self.engine = FakeLink(), FakeEngine()
        self.worker = Worker(self.link, self.engine, None)  # type: ignore[arg-type]

    def submit(self, request_id: str, request: Request = SLOW) -> None:
        self.link.say(Submit(request_id, request))

    def failed(self) -> Failed:
        """The next event that is told, a failure."""
        told = self.link.sent.get(timeout=60)
        assert isinstance(told, Happened)
        (event,) = told.events
        assert isinstance(event, Failed)
        return event

    def next(self) -> tuple[str, Any]:
        kind, value = self.worker.inbox.get(timeout=60)
        return (kind, value[0]) if kind == "job" else (kind, value)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    reader = Thread(target=world.worker._read)
    reader.start()
    yield world
    world.engine.lets.set()
    world.link.close()
    reader.join(60)
    world.worker._compilers.shutdown()
    world.worker._tokenizers.shutdown()
    world.link.end()


@pytest.mark.parametrize("slow", [SLOW, HUGE], ids=["pattern", "text"])
def test_others_do_not_wait_for_a_pattern_or_a_long_text(world: World, slow: Fill) -> None:
    world.submit("slow", slow)
    world.submit("quick", QUICK)
    assert world.next() == ("job", "quick")
    world.engine.lets.set()
    assert world.next() == ("job", "slow")


def test_others_do_not_wait_for_the_tokens_of_a_long_text(world: World) -> None:
    for name, text in (("long", "a" * LONG), ("short", "a")):
        world.link.say(Tokenize(name, text))
    assert world.link.sent.get(timeout=60) == Reply("short", [1])
    world.engine.lets.set()
    assert world.link.sent.get(timeout=60) == Reply("long", [LONG])


def test_long_texts_take_no_place_of_a_pattern(world: World) -> None:
    for number in range(MAX_COMPILING):
        world.submit(f"text {number}", HUGE)
    world.submit("pattern")
    world.engine.lets.set()
    assert {world.next()[1] for _ in range(MAX_COMPILING + 1)} == {
        "pattern", *(f"text {number}" for number in range(MAX_COMPILING))
    }  # fmt: skip


def test_a_request_cancelled_meanwhile_never_begins(world: World) -> None:
    for name in ("first", "second", "third"):
        world.submit(name)
    for name in ("first", "third"):
        world.link.say(Cancel(name))
        assert world.next() == ("cancel", name)
    world.engine.lets.set()
    assert world.next() == ("job", "second")
    world.worker._compilers.shutdown()
    assert world.worker.inbox.empty()


def test_no_more_wait_than_there_are_places(world: World) -> None:
    for number in range(MAX_COMPILING):
        world.submit(str(number))
    world.submit("more")
    event = world.failed()
    assert (event.id, event.outcome, event.code) == ("more", "overloaded", "regex_queue_full")
    world.engine.lets.set()
    assert {world.next()[1] for _ in range(MAX_COMPILING)} == {str(n) for n in range(MAX_COMPILING)}
    world.submit("again")
    assert world.next() == ("job", "again")


def test_a_pattern_that_is_refused_is_told(world: World) -> None:
    world.submit("bad")
    world.engine.lets.set()
    event = world.failed()
    assert (event.id, event.outcome, event.param) == ("bad", "invalid", "regex")
