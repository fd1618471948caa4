"""Fault 16: paths of adapters that lead elsewhere, code in a pickle, and adapters that come and go while in use."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from model.checkpoint import load
from server.keyfile import new_key
from tests.engine.test_adapters import write_lora, write_prefix
from tests.faults.conftest import Server

FILL = {"text": "the [MASK] sang", "max_tokens": 6, "min_tokens": 6}


@pytest.fixture(scope="module")
def root(roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that are good, and folders that only look like them."""
    root, model = tmp_path_factory.mktemp("world") / "root", load(roomy).model
    for number in range(4):
        write_lora(root / f"lora{number}", model, number)
        write_prefix(root / f"prefix{number}", model, number, 5 + 16 * number)
    outside = root.parent / "outside"
    write_lora(outside, model, 9)
    (root / "link").symlink_to(outside)
    (root / "device").mkdir()
    (root / "device/adapter_config.json").write_text('{"peft_type": "LORA"}')
    os.mkfifo(root / "device/adapter_model.safetensors")
    other = write_lora(root / "other", model, 5)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_fingerprint": "0" * 16}))
    (root / "code").mkdir()
    (root / "code/adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.save({"x": Payload(root.parent / "canary")}, root / "code/adapter_model.bin")
    return root


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    return path, {role: new_key(path, name=role, role=role) for role in ("user", "admin")}


@pytest.fixture(scope="module")
def adapted(
    roomy: Path, root: Path, keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Adapted"]:
    server = Adapted(
        roomy,
        tmp_path_factory.mktemp("adapted") / "log",
        api_keys=keys[0],
        adapter_root=root,
        max_adapters=3,
        open_metrics=True,
    )
    server.keys = keys[1]
    yield server
    assert server.stop() == 0


class Adapted(Server):
    """A server with an adapters' folder, asked with a key."""

    keys: dict[str, str]

    def ask(self, method: str, path: str, body: Any = None, role: str = "admin") -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[role]}"}
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=60)

    def load(self, name: str, path: str) -> httpx.Response:
        return self.ask("POST", "/v1/adapters", {"name": name, "path": path})

    def unload_all(self) -> None:
        for adapter in self.ask("GET", "/v1/adapters").json()["data"]:
            self.until(lambda name=adapter["id"]: self.ask("DELETE", f"/v1/adapters/{name}").status_code == 200)  # type: ignore[misc]

    def filled(self, adapter: str | None, **fields: Any) -> httpx.Response:
        return self.ask("POST", "/v1/infill", {**FILL, "adapter": adapter, **fields}, "user")


@pytest.fixture(autouse=True)
def _none_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    server: Adapted = request.getfixturevalue("adapted")
    server.unload_all()
    assert server.filled(None).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("../outside", 400, "must lead down"),
        ("lora0/../../outside", 400, "must lead down"),
        ("/etc", 400, "must lead down"),
        ("lora0\0", 400, "must lead down"),
        ("link", 400, "lies outside"),
        ("link/.", 400, "lies outside"),
        ("%2e%2e/outside", 404, "no folder '%2e%2e/outside'"),
        ("..%2foutside", 404, "no folder"),
        ("device", 400, "adapter_model.safetensors is not a regular file"),
        ("/dev/zero", 400, "must lead down"),
        ("nowhere", 404, "no folder 'nowhere'"),
        ("other", 400, "trained on another base"),
        ("code", 400, "holds more than tensors"),
        (".", 400, "link lies outside"),
    ],
)
def test_no_path_leads_to_anything_but_an_adapter(
    adapted: Adapted, root: Path, path: str, status: int, message: str
) -> None:
    response = adapted.load("x", path)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == "path"
    assert str(root.parent) not in response.text
    assert not (root.parent / "canary").exists()
    assert adapted.ask("GET", "/v1/adapters").json()["data"] == []


@pytest.mark.parametrize("name", ["%2e%2e", "..%2fx", "%00", "a%0ab", "lora0"])
def test_no_name_unloads_what_is_not_there(adapted: Adapted, name: str) -> None:
    assert adapted.ask("DELETE", f"/v1/adapters/{name}").status_code in (400, 404)


def test_only_admins_change_adapters(adapted: Adapted) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/x")):
        body = {"name": "x", "path": "lora0"} if method == "POST" else None
        assert adapted.ask(method, f"/v1/adapters{path}", body, "user").status_code == 403


def test_an_unknown_adapter_is_named(adapted: Adapted) -> None:
    response = adapted.filled("nobody")
    assert response.status_code == 404
    assert "nobody" in response.json()["error"]["message"]


def test_one_in_use_is_not_unloaded(adapted: Adapted) -> None:
    assert adapted.load("a", "lora0").status_code == 200
    long = {**FILL, "adapter": "a", "max_tokens": 800, "min_tokens": 800, "stream": True}
    headers = {"authorization": f"Bearer {adapted.keys['user']}"}
    with httpx.stream("POST", f"{adapted.url}/v1/infill", json=long, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        response = adapted.ask("DELETE", "/v1/adapters/a")
        assert response.status_code == 409, response.text
        assert response.json()["error"]["code"] == "adapter_in_use"
    adapted.until(lambda: adapted.ask("DELETE", "/v1/adapters/a").status_code == 200)  # the client has left
    assert adapted.filled("a").status_code == 404


def test_the_limit_drops_the_one_used_least_recently(adapted: Adapted) -> None:
    for number in range(3):
        assert adapted.load(f"a{number}", f"lora{number}").status_code == 200
    assert adapted.load("a1", "lora3").status_code == 409
    assert adapted.filled("a0").status_code == 200
    assert adapted.load("a3", "prefix3").status_code == 200
    names = [adapter["id"] for adapter in adapted.ask("GET", "/v1/adapters").json()["data"]]
    assert names == ["a0", "a2", "a3"]
    assert adapted.filled("a1").status_code == 404


def test_adapters_come_and_go_under_load(adapted: Adapted) -> None:
    """Whatever the order, an answer is that of the adapter it names or a 404, and nothing breaks."""
    expected: dict[str | None, Any] = {}
    for kind in ("lora0", "prefix1", "prefix3"):
        assert adapted.load(kind, kind).status_code == 200
        expected[kind] = adapted.filled(kind).json()["results"]
    expected[None] = adapted.filled(None).json()["results"]
    stop, wrong = threading.Event(), list[httpx.Response]()

    def churn() -> None:
        while not stop.is_set():
            for kind in ("lora0", "prefix1", "prefix3"):
                wrong.extend(
                    r for r in [adapted.ask("DELETE", f"/v1/adapters/{kind}")] if r.status_code not in (200, 404, 409)
                )
                wrong.extend(r for r in [adapted.load(kind, kind)] if r.status_code not in (200, 409))

    def ask(kind: str | None) -> None:
        while not stop.is_set():
            response = adapted.filled(kind)
            right = response.status_code == 200 and response.json()["results"] == expected[kind]
            if not right and not (response.status_code == 404 and kind):
                wrong.append(response)

    threads = [
        threading.Thread(target=churn),
        *(threading.Thread(target=ask, args=(k,)) for k in (*expected, *expected)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join()
    assert not [(r.status_code, r.text[:300]) for r in wrong]
    adapted.until_idle()
    assert adapted.metric("requests_total", outcome="error") == 0


def test_names_of_adapters_make_no_series(adapted: Adapted) -> None:
    adapted.ask("DELETE", "/v1/adapters/x")
    before = len(adapted.metrics().splitlines())
    for number in range(30):
        assert adapted.ask("DELETE", f"/v1/adapters/x{number}").status_code == 404
    assert len(adapted.metrics().splitlines()) == before


def test_a_rank_that_dies_gets_its_adapters_back(launch: Callable[..., Server], adapted: Adapted, root: Path) -> None:
    assert adapted.load("p", "prefix1").status_code == 200
    expected = adapted.filled("p").json()["results"]
    os.kill(adapted.children()[0], 9)
    adapted.until(lambda: adapted.status("/ready") == 503)
    adapted.until(lambda: adapted.status("/ready") == 200)
    assert adapted.filled("p").json()["results"] == expected


def test_many_load_one_name_and_one_has_it(adapted: Adapted) -> None:
    with ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            loads = [pool.submit(adapted.load, "a", f"lora{n % 4}") for n in range(12)]
            codes = [(load.result().status_code, load.result().json().get("error", {}).get("code")) for load in loads]
            assert sorted(codes, key=str) == [(200, None)] + [(409, "adapter_exists")] * 11
            assert adapted.filled("a").status_code == 200
            unloads = [pool.submit(adapted.ask, "DELETE", "/v1/adapters/a") for _ in range(4)]
            assert sorted(unload.result().status_code for unload in unloads) == [200, 404, 404, 404]
    assert adapted.ask("GET", "/v1/adapters").json()["data"] == []


def test_a_link_that_changes_all_the_time_never_leads_out(adapted: Adapted, root: Path) -> None:
    """Between the check of a path and the reading of its files."""
    expected = {}
    for name in ("lora2", "link"):  # the engine itself would read what lies outside
        shutil.copytree(root / name, root / "copy")
        assert adapted.load("copy", "copy").status_code == 200
        expected[name] = adapted.filled("copy").json()["results"]
        assert adapted.ask("DELETE", "/v1/adapters/copy").status_code == 200
        shutil.rmtree(root / "copy")
    assert expected["lora2"] != expected["link"]
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for target in (root.parent / "outside", root / "lora2"):
                (root / "fresh").symlink_to(target)
                os.replace(root / "fresh", root / "moving")
                time.sleep(0.0005)

    (root / "moving").symlink_to(root / "lora2")
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        codes = set()
        for number in range(60):
            response = adapted.load(f"m{number}", "moving")
            codes.add(response.status_code)
            assert str(root.parent) not in response.text
            if response.status_code == 200:
                assert adapted.filled(f"m{number}").json()["results"] == expected["lora2"]
                assert adapted.ask("DELETE", f"/v1/adapters/m{number}").status_code == 200
    finally:
        stop.set()
        thread.join()
        (root / "moving").unlink()
    assert codes == {200, 400}


def test_a_load_under_way_when_the_engine_dies_is_a_clear_error(adapted: Adapted, root: Path) -> None:
    """Others come back by their names; the name of the load that was lost is free."""
    assert adapted.load("kept", "prefix1").status_code == 200
    expected = adapted.filled("kept").json()["results"]
    (worker,) = adapted.children()
    os.kill(worker, signal.SIGSTOP)  # the load is under way for as long as it takes
    with ThreadPoolExecutor(2) as pool:
        load = pool.submit(adapted.load, "lost", "lora1")
        unload = pool.submit(adapted.ask, "DELETE", "/v1/adapters/nobody")
        time.sleep(0.5)
        os.kill(worker, signal.SIGKILL)
        for response in (load.result(), unload.result()):
            error = response.json()["error"]
            assert (response.status_code, error["type"]) == (503, "overloaded_error"), response.text
            assert "the engine was lost" in error["message"]
            assert "retry-after" in response.headers
    adapted.until(lambda: adapted.status("/ready") == 200)
    names = [adapter["id"] for adapter in adapted.ask("GET", "/v1/adapters").json()["data"]]
    assert names == ["kept"]
    assert adapted.filled("kept").json()["results"] == expected
    assert adapted.load("lost", "lora1").status_code == 200
    # And once more, with two: the same names, however often it happens.
    os.kill(adapted.children()[0], signal.SIGKILL)
    adapted.until(lambda: adapted.status("/ready") == 503)
    adapted.until(lambda: adapted.status("/ready") == 200)
    assert {adapter["id"] for adapter in adapted.ask("GET", "/v1/adapters").json()["data"]} == {"kept", "lost"}
    assert adapted.filled("kept").json()["results"] == expected


def test_two_ranks_load_and_unload_together(
    launch: Callable[..., Server], adapted: Adapted, root: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    server = launch(tp=2, api_keys=keys[0], adapter_root=root)
    two = Adapted.__new__(Adapted)
    two.__dict__.update(server.__dict__, keys=keys[1])
    for kind in ("lora1", "prefix2"):
        assert two.load(kind, kind).status_code == 200
        assert adapted.load(kind, kind).status_code == 200
        texts = [each.filled(kind).json()["results"][0]["text"] for each in (two, adapted)]
        assert texts[0] == texts[1]
        assert two.ask("DELETE", f"/v1/adapters/{kind}").status_code == 200
    assert two.load("bad", "code").status_code == 400
    assert two.filled(None).status_code == 200
