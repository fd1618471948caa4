"""A rank's own process: `python -m engine.worker FD CONFIG PLACE`, started by `engine.process`.

Frames go out on the socket FD, and to rank 0 they come in on it. There one thread reads and lays out requests while the
main thread runs iterations; the other ranks run what rank 0 tells them. A process ends when its supervisor closes the
socket.
"""

import gc
import json
import os
import queue
import socket
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NoReturn

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Failed, StepStats
from engine.link import Line, Link, NoLink
from engine.loaded import Loaded, is_cuda, load_runner, prepare_threads
from engine.place import Place
from engine.ranks import Channel, follow, join
from engine.requests import Request, RequestError, num_chars
from engine.wire import HEADER, decode_request, encode_event, values_of

# Regular expressions being compiled at a time, each in a process of its own, and requests that may wait for one.
COMPILERS = 2
MAX_COMPILING = 16
# Characters that are tokenized in a thread of their own: megabytes take a second, which nobody else is to wait for.
LONG = 1 << 15


class Worker:
    """An engine, and with it rank 0, behind a link."""

    def __init__(self, link: Link, engine: Engine, channel: Channel | None) -> None:
        self.link = link
        self.engine = engine
        self.channel = channel
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._compilers = ThreadPoolExecutor(COMPILERS)
        self._tokenizers = ThreadPoolExecutor(1)
        self._aside: dict[str, bool] = {}  # requests that are prepared elsewhere, and whether a pattern is compiled
        self._lock = threading.Lock()  # of what is aside, and of the inbox as far as that goes there

    def run(self) -> None:
        """Serves until the supervisor is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        while self._take_messages():
            if self.engine.idle:
                continue
            self.link.step(True)
            events = self.engine.step()
            self.link.step(False)
            if events:
                self.link.send(op="events", events=[encode_event(e) for e in events])
            if self.engine.last_stats is not None:
                self.link.send(op="stats", stats=values_of(self.engine.last_stats))
                if self.engine.idle:
                    self._send_idle()
        if self.channel is not None:
            self.channel.stop()

    def _send_idle(self) -> None:
        """No further step will say so."""
        self.link.send(op="stats", stats=values_of(StepStats(0.0, 0, 0, 0, self.engine.scheduler.usage())))

    def _take_messages(self) -> bool:
        """Handles what has come in; waits for something while there is nothing to do."""
        while True:
            try:
                kind, value = self.inbox.get(block=self.engine.idle)
            except queue.Empty:
                return True
            if kind == "stop":
                return False
            if kind == "job":
                job, request = value
                self.engine.add(job, request)
            elif kind in ("load", "loaded", "unload"):
                self._change_adapters(kind, value)
            elif kind == "cancel" and self.engine.cancel(value) and self.engine.idle:
                self._send_idle()

    def _change_adapters(self, kind: str, message: dict[str, Any]) -> None:
        """Loads or unloads an adapter between two steps; its files are read meanwhile, beside them."""
        card = None
        try:
            if kind == "load":
                self.engine.begin_loading(
                    message["name"],
                    message["path"],
                    lambda number: self.inbox.put(("loaded", {**message, "number": number})),
                )
                return
            if kind == "loaded":
                card = self.engine.finish_loading(message["number"], message["name"])
            else:
                self.engine.unload(message["name"])
        except RequestError as error:
            self._refuse(message["id"], error)
            return
        cards = [asdict(card) for card in self.engine.registry.cards]
        self.link.send(op="adapters", adapters=cards)
        self.link.send(op="reply", id=message["id"], value=None if card is None else asdict(card))

    def _refuse(self, message_id: str, error: RequestError) -> None:
        self.link.send(op="reply", id=message_id, error=error.message, param=error.param, code=error.code)

    def _read(self) -> None:
        """Reads frames until the supervisor is gone. Tokenizing here leaves the iterations undisturbed."""
        stream = self.link.connection.makefile("rb")
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            message = json.loads(stream.read(HEADER.unpack(header)[0]))
            op = message["op"]
            if op == "submit":
                self._submit(message["id"], decode_request(message["request"]))
            elif op == "cancel":
                with self._lock:
                    self._aside.pop(message["id"], None)
                    self.inbox.put(("cancel", message["id"]))
            elif op in ("load", "unload"):
                self.inbox.put((op, message))
            elif op == "tokenize" and len(message["text"]) >= LONG:
                self._tokenizers.submit(self._tokenize, message)
            elif op == "tokenize":
                self._tokenize(message)
            elif op == "detokenize":
                try:
                    text = self.engine.detokenize(message["token_ids"], message["special"])
                    self.link.send(op="reply", id=message["id"], value=text)
                except RequestError as error:
                    self._refuse(message["id"], error)
        self.inbox.put(("stop", None))

    def _tokenize(self, message: dict[str, Any]) -> None:
        ids = self.engine.tokenize(message["text"], message["special"])
        self.link.send(op="reply", id=message["id"], value=ids)

    def _submit(self, request_id: str, request: Request) -> None:
        """Prepares a request, elsewhere if that takes long."""
        compiles = self.engine.compiles(request)
        if not compiles and num_chars(request) < LONG:
            self._prepare(request_id, request)
        elif compiles and sum(self._aside.values()) >= MAX_COMPILING:
            message = f"{MAX_COMPILING} requests wait for new regular expressions already"
            self._fail(Failed(request_id, "overloaded", message, "regex", "regex_queue_full"))
        else:
            with self._lock:
                self._aside[request_id] = compiles
            (self._compilers if compiles else self._tokenizers).submit(self._prepare_aside, request_id, request)

    def _prepare_aside(self, request_id: str, request: Request) -> None:
        if request_id in self._aside:
            self._prepare(request_id, request, aside=True)

    def _fail(self, failed: Failed) -> None:
        self.link.send(op="events", events=[encode_event(failed)])

    def _prepare(self, request_id: str, request: Request, aside: bool = False) -> None:
        try:
            job = self.engine.prepare(request, request_id)
            with self._lock:
                # One that was cancelled meanwhile is not to begin.
                if not aside or request_id in self._aside:
                    self.inbox.put(("job", (job, request)))
                else:
                    self.engine.discard(request_id)
        except RequestError as error:
            self._fail(Failed(request_id, error.outcome, error.message, error.param, error.code))
        except Exception as error:
            self._fail(Failed(request_id, "error", type(error).__name__))
            raise
        finally:
            with self._lock:
                self._aside.pop(request_id, None)


class Rank:
    """One process of those that serve a model: loads its part, then leads or follows."""

    def __init__(self, link: Line, config: EngineConfig, place: Place) -> None:
        self.link = link
        self.config = config
        self.place = place

    def run(self) -> int:
        """The exit code: 0, or 1 if loading failed or the rank was lost, which the supervisor is told."""
        try:
            channel = join(self.place, is_cuda(self.config)) if self.place.size > 1 else None
            loaded = self._load(channel)
        except (ValueError, OSError) as error:
            self.link.send(op="failed", detail=str(error).splitlines()[0])
            return 1
        try:
            self._serve(loaded, channel)
        except Exception as error:
            traceback.print_exc()
            # Its text may have addresses and paths, which are nobody else's business.
            self.link.send(op="lost", detail=f"raised {type(error).__name__}")
            return 1
        return 0

    def _load(self, channel: Channel | None) -> Loaded:
        prepare_threads(self.config, self.place.local_size)
        self.link.loading(0.0)
        if channel is None:
            return load_runner(self.config, progress=self.link.loading)
        return load_runner(self.config, None, channel.ranks, self.place.local_rank, self.link.loading)

    def _serve(self, loaded: Loaded, channel: Channel | None) -> None:
        # What is there by now stays: to look through all of it for garbage would hold up a step for 0.1 s and more.
        gc.collect()
        gc.freeze()
        if self.place.rank > 0 and channel is not None:
            self.link.send(op="ready")
            threading.Thread(target=self.link.wait_for_end, daemon=True).start()
            follow(loaded.runner, channel, self.link.step)
            return
        assert isinstance(self.link, Link), "rank 0 has a supervisor"
        engine = Engine(self.config, loaded=loaded, channel=channel)
        cards = [asdict(card) for card in engine.registry.cards]
        self.link.send(op="ready", card=asdict(engine.card), adapters=cards)
        Worker(self.link, engine, channel).run()


def follow_launched(config: EngineConfig, place: Place) -> NoReturn:
    """The whole life of a rank other than the first that a launcher such as torchrun has started."""
    leave(Rank(NoLink(), config, place).run())


def leave(code: int) -> NoReturn:
    """Ends the process at once: gloo's threads can abort one that ends slowly when another rank is gone already."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> NoReturn:
    place = Place(**json.loads(sys.argv[3]))
    config = EngineConfig(**json.loads(sys.argv[2]))
    leave(Rank(Link(socket.socket(fileno=int(sys.argv[1]))), config, place).run())


if __name__ == "__main__":
    main()
