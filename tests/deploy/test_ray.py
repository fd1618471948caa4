"""Two replicas on a real Ray cluster: the same answers as one server, and what happens when one of them ends."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.ray.local import Cluster
from tests.litter import litter

TWO = ("quant=int8", "replicas=2", "cpus=1")
SCALED = ("max_replicas=2", "requests_per_replica=2", "upscale_delay_s=1", "downscale_delay_s=1", "max_queue=12")
WAIT_S = 240.0  # a replica is several processes, which a busy machine starts slowly


@pytest.fixture(scope="module")
def littered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return litter(tmp_path_factory.mktemp("littered"))


@pytest.fixture(scope="module")
def cluster(littered: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(littered)
        cluster = Cluster(*TWO)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=WAIT_S) as client:
        eventually(lambda: ready(client) == len(cluster.replicas()))
        yield client


def ready(client: httpx.Client) -> int:
    """How many ranks answer, each replica having one."""
    answer = client.get("/ready")
    return int(answer.json()["ranks_alive"]) if answer.status_code == 200 else 0


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def fill(number: int, **others: Any) -> dict[str, Any]:
    return {"text": f"Number {number} of the [MASK] sat on the mat.", "max_tokens": 8, **others}


def test_answers_are_those_of_one_server(client: httpx.Client, demo_url: str) -> None:
    score = {"text": "The [MASK] sat on the mat.", "spans": [["cat"], ["dog"]], "logprobs": 3}
    for path, body in (
        ("/v1/infill", fill(1, n=2, temperature=0.8, seed=7, logprobs=2)),
        ("/v1/score", score),
        ("/v1/tokenize", {"text": "a [MASK]"}),
        ("/v1/detokenize", {"tokens": [10**9]}),
        ("/v1/infill", {"text": 3}),
    ):
        here, there = client.post(path, json=body), httpx.post(demo_url + path, json=body, timeout=WAIT_S)
        assert here.status_code == there.status_code
        ours, theirs = here.json(), there.json()
        for own in ("id", "created"):
            ours.pop(own, None), theirs.pop(own, None)
        assert ours == theirs
    card, one = client.get("/v1/models").json()["data"][0], httpx.get(f"{demo_url}/v1/models").json()["data"][0]
    assert card["id"] == one["id"]


def test_nothing_is_imported_from_where_the_cluster_was_started(client: httpx.Client, littered: Path) -> None:
    assert client.post("/v1/infill", json=fill(2, regex="[a-z]{2}")).status_code == 200
    assert not (littered / "canary").exists()


def test_a_context_is_found_where_it_was_left(client: httpx.Client) -> None:
    for number in range(10, 18):
        first, again = (client.post("/v1/infill", json=fill(number)).json()["usage"] for _ in range(2))
        assert first["cached_tokens"] == 0
        assert again["cached_tokens"] == again["prompt_tokens"]
        spans = {"text": fill(number)["text"], "spans": [["cats"], ["dogs"]]}
        assert client.post("/v1/score", json=spans).json()["usage"]["cached_tokens"] == again["prompt_tokens"]


def test_a_stream_passes_token_by_token_and_ends_when_its_reader_leaves(client: httpx.Client) -> None:
    long = {"stream": True, "min_tokens": 200, "max_tokens": 256}
    with client.stream("POST", "/v1/infill", json=fill(20, **long)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert events.count("event: blank.delta") > 100
    assert events[-1] == "event: done"
    eventually(lambda: metric(client, "glm_infill_generated_tokens_total") >= 200)
    left = 'glm_infill_requests_total{outcome="cancelled",route="/v1/infill"}'
    before = 0.0

    def is_left() -> bool:
        nonlocal before
        before = metric(client, "glm_infill_generated_tokens_total")
        with client.stream("POST", "/v1/infill", json=fill(21, n=8, **long)) as answer:
            next(answer.iter_lines())
        time.sleep(2.0)
        return metric(client, left) > 0

    # Again if an answer was over before a busy machine let its reader leave.
    eventually(is_left)
    # Work that nobody had ended would be over by now.
    time.sleep(3.0)
    assert metric(client, "glm_infill_generated_tokens_total") < before + 8 * 200


def metric(client: httpx.Client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_a_killed_replica_loses_nothing_but_its_streams_and_is_replaced(client: httpx.Client, cluster: Cluster) -> None:
    before = cluster.replicas()
    assert len(before) == 2

    def complete(number: int) -> int:
        return client.post("/v1/infill", json=fill(number, min_tokens=8)).status_code

    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(follow, client, 100 + i) for i in range(4)]
        completions = [pool.submit(complete, 200 + i) for i in range(60)]
        time.sleep(0.5)
        os.kill(before[0], signal.SIGKILL)
        assert [done.result() for done in completions] == [200] * 60
        assert {done.result() for done in streams} <= {"event: done", "event: error"}
    eventually(lambda: len(cluster.replicas()) == 2 and before[0] not in cluster.replicas())
    assert before[1] in cluster.replicas()


def test_a_lost_rank_is_passed_over_until_it_is_back(client: httpx.Client, cluster: Cluster) -> None:
    children = Path(f"/proc/{cluster.replicas()[0]}/task").glob("*/children")
    ranks = [int(pid) for child in children for pid in child.read_text().split()]
    (rank,) = [pid for pid in ranks if b"engine.processes.rank_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(rank, signal.SIGKILL)
    time.sleep(0.3)
    assert {client.post("/v1/infill", json=fill(300 + i)).status_code for i in range(10)} == {200}
    eventually(lambda: ready(client) == 2)


def follow(client: httpx.Client, number: int) -> str:
    """The last event of a stream of some seconds."""
    body = fill(number, stream=True, min_tokens=200, max_tokens=256)
    with client.stream("POST", "/v1/infill", json=body) as answer:
        return [line for line in answer.iter_lines() if line.startswith("event: ")][-1]


def test_a_replica_that_is_stopped_ends_its_streams_first(client: httpx.Client, cluster: Cluster) -> None:
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(follow, client, 350 + i) for i in range(6)]
        time.sleep(0.5)
        cluster.deploy(*TWO[:1], *SCALED)
        assert {done.result() for done in streams} == {"event: done"}
    eventually(lambda: len(cluster.replicas()) == 1)


def test_replicas_come_with_the_load_and_go_with_it(client: httpx.Client, cluster: Cluster) -> None:
    long = {"min_tokens": 250, "max_tokens": 256}
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=cluster.url, timeout=WAIT_S) as other:
        busy = True

        def load(number: int) -> list[httpx.Response]:
            answers = []
            while busy:
                answers.append(other.post("/v1/infill", json=fill(number, **long)))
            return answers

        loads = [pool.submit(load, 400 + i) for i in range(8)]
        try:
            eventually(lambda: len(cluster.replicas()) == 2)
            with ThreadPoolExecutor(12) as crowd:
                answers = list(crowd.map(lambda i: client.post("/v1/infill", json=fill(600 + i)), range(24)))
        finally:
            busy = False
        assert any(answer.status_code != 200 for answer in answers)
        answers += [answer for done in loads for answer in done.result()]  # the load may meet a full queue too
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
        assert {answer.status_code for answer in refused} == {503}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    eventually(lambda: len(cluster.replicas()) == 1)
    assert client.post("/v1/infill", json=fill(500)).status_code == 200
