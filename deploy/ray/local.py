"""A Ray cluster on this machine alone, in a process of its own, for tests and measurements.

`python -m deploy.ray.local PORT NAME=VALUE …` reads the commands that `Cluster` writes to it, and answers each with one
line of JSON.
"""

import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import chain
from typing import Any, TextIO
from uuid import uuid4

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from deploy.ray.application import REPLICA, app
from deploy.ray.arguments import Arguments

NAME = "glm-infill"
CPUS = 4  # as Ray counts them; processes take what there is
PORTS = range(20_000, 32_000)
STORE_BYTES = 100 * 2**20
END_S = 60.0


class Cluster:
    """Starts a cluster with these arguments, and waits until it serves. Raises RuntimeError if it ends."""

    def __init__(self, *arguments: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex, "GLM_INFILL_LOG_LEVEL": "error"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.ray.local", str(port), *arguments],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def deploy(self, *arguments: str) -> None:
        """Deploys the application again, with other arguments."""
        self._ask("deploy", *arguments)

    def replicas(self) -> list[int]:
        """Process ids of the running replicas."""
        pids: list[int] = self._ask("replicas")
        return pids

    def close(self) -> None:
        """Ends the cluster."""
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(END_S)

    def _ask(self, *command: str) -> Any:
        assert self.process.stdin is not None
        print(*command, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster has ended with {self.process.wait(END_S)}")
        return json.loads(line)


def free_port() -> int:
    """A free port outside the range from which the system chooses, since Ray's processes take many of those."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def main(answers: TextIO) -> None:
    """Runs the cluster and obeys commands until standard input ends."""
    port, *given = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    # Ray has all workers import from where its driver stands, before anything else: an empty folder of our own.
    os.mkdir(f"{folder}/empty")
    os.chdir(f"{folder}/empty")
    try:
        ray.init(
            num_cpus=CPUS,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=folder,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(port)))
        for command in chain([["deploy", *given]], map(str.split, sys.stdin)):
            print(json.dumps(obey(*command)), file=answers, flush=True)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def obey(command: str, *values: str) -> object:
    """Runs one command and returns its answer."""
    commands: dict[str, Callable[..., object]] = {"deploy": deploy, "replicas": replicas}
    return commands[command](*values)


def deploy(*given: str) -> None:
    """Starts the application with these arguments, or updates the running one."""
    serve.run(app(Arguments.model_validate(dict(part.split("=", 1) for part in given))), name=NAME)


def replicas() -> list[int]:
    """Process ids of the running replicas."""
    client = _get_global_client()
    assert client is not None
    deployment = client.get_serve_details()["applications"][NAME]["deployments"][REPLICA]
    return [replica["pid"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]


if __name__ == "__main__":
    # The answers have standard output for themselves; whatever else is printed goes the way of the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(answers)
