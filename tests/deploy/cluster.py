"""A Ray cluster on this machine that serves the demo. Reads commands, answers each with one line of JSON.

`python -m tests.deploy.cluster PORT NAME=VALUE …` prints its first line when all is running.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from deploy.ray import app
from deploy.ray.arguments import Arguments


def main() -> None:
    port, *given = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
            logging_level="warning",
        )
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(port)))
        answer(deploy(*given))
        for line in sys.stdin:
            answer(obey(*line.split()))
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def obey(command: str, *values: str) -> object:
    """One command."""
    commands: dict[str, Callable[..., object]] = {"deploy": deploy, "replicas": replicas}
    return commands[command](*values)


def deploy(*given: str) -> None:
    """Starts the application with such arguments, or makes the one that runs so."""
    serve.run(app(Arguments(**dict(part.split("=", 1) for part in given))), name="glm")


def replicas() -> list[int]:
    """Process ids of the engines' replicas that are running."""
    deployment = _get_global_client().get_serve_details()["applications"]["glm"]["deployments"]["replica"]
    return [replica["pid"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
