"""The engine's own process: `python -m engine.worker FD CONFIG`, started by `engine.process`.

Frames come in on the socket FD and go out on it. One thread reads and lays out requests, one tells every second
that the process lives and how long the current step has taken, the main thread runs iterations. The process ends
when its parent closes the socket.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Failed, StepStats
from engine.requests import Request, RequestError
from engine.wire import HEADER, decode_request, encode_event, frame

HEARTBEAT_S = 1.0


class Worker:
    """An engine behind a socket."""

    def __init__(self, connection: socket.socket, config: EngineConfig) -> None:
        self.connection = connection
        self.config = config
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.step_began: float | None = None
        self._lock = threading.Lock()

    def run(self) -> int:
        """Loads, then serves until the parent is gone. The exit code: 0, or 1 if loading failed."""
        threading.Thread(target=self._beat, daemon=True).start()
        self.send(op="loading", detail="loading weights")
        try:
            self.engine = Engine(self.config)
        except (ValueError, OSError) as error:
            self.send(op="failed", detail=str(error).splitlines()[0])
            return 1
        self.send(op="ready", card=asdict(self.engine.card))
        threading.Thread(target=self._read, daemon=True).start()
        while self._take_messages():
            if self.engine.idle:
                continue
            self.step_began = time.monotonic()
            events = self.engine.step()
            self.step_began = None
            if events:
                self.send(op="events", events=[encode_event(e) for e in events])
            if self.engine.last_stats is not None:
                self.send(op="stats", stats=asdict(self.engine.last_stats))
                if self.engine.idle:
                    self._send_idle()
        return 0

    def send(self, **message: Any) -> None:
        data = frame(message)
        with self._lock:
            try:
                self.connection.sendall(data)
            except OSError:
                os._exit(0)  # the parent is gone, and nobody is left to answer to

    def _send_idle(self) -> None:
        """No further step will say so."""
        self.send(op="stats", stats=asdict(StepStats(0.0, 0, 0, 0, self.engine.scheduler.usage())))

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
            elif kind == "cancel" and self.engine.cancel(value) and self.engine.idle:
                self._send_idle()

    def _read(self) -> None:
        """Reads frames until the parent is gone. Tokenizing here leaves the iterations undisturbed."""
        stream = self.connection.makefile("rb")
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            message = json.loads(stream.read(HEADER.unpack(header)[0]))
            op = message["op"]
            if op == "submit":
                self._prepare(message["id"], decode_request(message["request"]))
            elif op == "cancel":
                self.inbox.put(("cancel", message["id"]))
            elif op == "tokenize":
                self.send(op="reply", id=message["id"], value=self.engine.tokenize(message["text"], message["special"]))
            elif op == "detokenize":
                try:
                    text = self.engine.detokenize(message["token_ids"], message["special"])
                    self.send(op="reply", id=message["id"], value=text)
                except RequestError as error:
                    self.send(op="reply", id=message["id"], error=error.message, param=error.param)
        self.inbox.put(("stop", None))

    def _prepare(self, request_id: str, request: Request) -> None:
        try:
            self.inbox.put(("job", (self.engine.prepare(request, request_id), request)))
        except RequestError as error:
            failed = Failed(request_id, "invalid", error.message, error.param, error.code)
            self.send(op="events", events=[encode_event(failed)])
        except Exception as error:
            self.send(op="events", events=[encode_event(Failed(request_id, "error", type(error).__name__))])
            raise

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            began = self.step_began
            self.send(op="alive", step_age=0.0 if began is None else time.monotonic() - began)


def main() -> int:
    connection = socket.socket(fileno=int(sys.argv[1]))
    return Worker(connection, EngineConfig(**json.loads(sys.argv[2]))).run()


if __name__ == "__main__":
    sys.exit(main())
