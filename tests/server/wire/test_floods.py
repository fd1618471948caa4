"""One line a second of a kind."""

import asyncio
import io
import json
import logging
import logging.config

import pytest

from server.telemetry.logs import Lines, library_logging, loop_errors, make_log
from server.wire.floods import MAX_KINDS, FloodFilter, Floods


class Clock:
    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


def test_one_a_second_of_a_kind_and_how_many_were_left_out():
    clock = Clock()
    floods = Floods(clock)
    assert [floods.left_out("a") for _ in range(4)] == [0, None, None, None]
    assert floods.left_out("b") == 0
    clock.now += 1
    assert [floods.left_out("a"), floods.left_out("b"), floods.left_out("a")] == [3, 0, None]


def test_kinds_are_bounded():
    floods = Floods(Clock())
    for kind in range(3 * MAX_KINDS):
        assert floods.left_out(kind) == 0
    assert len(floods._kinds) <= MAX_KINDS


def test_lines_of_libraries_differ_by_their_words_not_their_arguments():
    flood = FloodFilter()

    def passes(name, message, *args):
        return flood.filter(logging.LogRecord(name, logging.WARNING, "", 0, message, args, None))

    assert [passes("a", "lost %s", 1), passes("a", "lost %s", 2)] == [True, False]
    assert [passes("b", "lost %s", 1), passes("a", "found %s", 1)] == [True, True]


def test_errors_of_the_loop_are_json_lines_without_texts(capsys):
    async def go_wrong():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(loop_errors(make_log("info")))

        def fail(text):
            raise ValueError(text)

        for _ in range(1000):
            loop.call_soon(fail, "the secret")
        loop.call_exception_handler({"message": "Fatal error on transport\nprotocol: the secret"})
        await asyncio.sleep(0.01)

    asyncio.run(go_wrong())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert 2 <= len(lines) < 10
    assert "secret" not in json.dumps(lines)
    failed = next(line for line in lines if line["frames"])
    assert failed["event"] == "event loop"
    assert failed["frames"][0] == "ValueError"


@pytest.fixture
def library_lines(monkeypatch):
    """Where lines of libraries go as a server has them; the tests' own logging is put back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    config = library_logging("info")
    config["handlers"]["stderr"]["stream"] = stream
    logging.config.dictConfig(config)
    yield stream
    root.handlers[:], root.level = before


def test_libraries_write_json_lines_without_texts_of_exceptions(library_lines):
    for _ in range(500):
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
    try:
        raise ValueError("the secret")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    lines = [json.loads(line) for line in library_lines.getvalue().splitlines()]
    assert [line["event"].strip() for line in lines] == [
        "socket.send() raised exception.",
        "Exception in ASGI application",
    ]
    assert "secret" not in json.dumps(lines)
    assert lines[1]["frames"][0] == "ValueError"


def test_a_log_that_cannot_be_written_raises_nothing():
    closed = io.StringIO()
    closed.close()
    Lines(closed).msg("a line")
    with open("/dev/full", "wb", buffering=0) as full, io.TextIOWrapper(full, write_through=True) as file:
        Lines(file).msg("a line")
