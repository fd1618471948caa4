"""A rank's line to its supervisor: JSON frames over a socket, and a heartbeat.

A thread sends the heartbeat every second, with the age of the running step. Between steps it returns freed heap memory
to the system. A rank that a launcher such as torchrun supervises has a `NoLink`.
"""

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from typing import Protocol

from engine.processes.messages import FROM_RANK, Alive, FromRank, Loading, NotReady, Raised
from quant.heap import give_back

HEARTBEAT_S = 1.0
GOODBYE_S = 1.0
PROGRESS_S = 0.2  # between two reports of how far loading is


class Line(Protocol):
    """The reports of a rank."""

    def send(self, message: FromRank) -> None:
        """Sends a message."""

    def loading(self, done: float) -> None:
        """Reports the share of the weights that is read, 0 to 1."""

    def step(self, running: bool) -> None:
        """Reports that a step begins or has ended."""

    def wait_for_end(self) -> None:
        """Ends the process when its supervisor is gone. It blocks, so it runs in a thread of its own."""


class NoLink:
    """A line to nobody. Errors go to standard error."""

    def send(self, message: FromRank) -> None:
        match message:
            case NotReady(detail):
                print(detail, file=sys.stderr)
            case Raised(error):
                print(f"raised {error}", file=sys.stderr)

    def loading(self, done: float) -> None:
        pass

    def step(self, running: bool) -> None:
        pass

    def wait_for_end(self) -> None:
        pass


class Link:
    """The line to `engine.processes.supervisor`."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._step_began: float | None = None
        self._worked = False
        self._told = 0.0
        self._lock = threading.Lock()
        # The supervisor asks for the stacks of ranks that hang before it kills them.
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: FromRank) -> None:
        data = FROM_RANK.frame(message)
        with self._lock:
            try:
                self.connection.sendall(data)
            except OSError:
                os._exit(0)  # the supervisor is gone, and nobody is left to answer to

    def loading(self, done: float) -> None:
        # Not for each of thousands of tensors.
        now = time.monotonic()
        if now - self._told >= PROGRESS_S or done >= 1:
            self._told = now
            self.send(Loading(round(done, 3)))

    def step(self, running: bool) -> None:
        self._step_began = time.monotonic() if running else None
        self._worked = True

    def wait_for_end(self) -> None:
        # Nothing comes until the supervisor is gone. Rank 0 sees that too, and stops the others.
        while self.connection.recv(4096):
            pass
        time.sleep(GOODBYE_S)
        os._exit(0)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            began = self._step_began
            self.send(Alive(0.0 if began is None else time.monotonic() - began))
            if began is None and self._worked:
                self._worked = False
                give_back()
