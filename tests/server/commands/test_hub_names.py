"""Commands with a name on the Hugging Face hub, in processes of their own, against a double of the hub."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.hub import Hub, Repo, hub_double
from tests.serving import serving

NAME = "org/tiny"
COMMAND = [sys.executable, "-c", "from server.cli import main; main()"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def hub(tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with hub_double() as double:
        monkeypatch.setenv("HF_ENDPOINT", double.url)
        files = {path.name: path.read_bytes() for path in tiny_checkpoint().iterdir()}
        double.repos[NAME] = Repo({**files, "modeling.py": b"raise SystemExit"})
        yield double


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_a_server_has_the_name_and_does_not_go_out(hub: Hub) -> None:
    with serving(NAME, "--download") as url:
        hub.asked.clear()
        assert [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]] == [NAME]
        assert httpx.get(f"{url}/v1/models/{NAME}").json()["id"] == NAME
        filled = httpx.post(f"{url}/v1/infill", json={"text": "the [MASK] cat", "max_tokens": 2, "model": NAME})
        assert filled.json()["model"] == NAME
        masked = httpx.post(f"{url}/models/{NAME}", json={"inputs": "the [MASK] cat"})
        assert masked.status_code == 200
        assert f'model="{NAME}"' in httpx.get(f"{url}/metrics").text
        tags = httpx.get(f"{url}/api/tags").json()["models"]
        assert [model["name"] for model in tags] == [NAME]
        assert httpx.post(f"{url}/api/show", json={"model": f"{NAME}:latest"}).status_code == 200
    assert hub.asked == []


def test_what_a_killed_download_has_is_not_fetched_again(hub: Hub) -> None:
    hub.stuck.add("model.safetensors")
    line = ["quantize", NAME, "unused", "--scheme", "int8", "--download"]
    with subprocess.Popen([*COMMAND, *line], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        assert hub.half_sent.wait(60)
        process.send_signal(signal.SIGKILL)
    assert not (ROOT / "unused").exists()
    done = run("fill", "the [MASK]", "--max-tokens", "1", "--model", NAME)
    assert done.returncode == 1
    assert done.stderr.endswith(" has no weights; --download fetches it from the hub\n")
    hub.stuck.clear()
    hub.asked.clear()
    done = run("fill", "the [MASK]", "--max-tokens", "1", "--model", NAME, "--download", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"model.safetensors"}


@pytest.mark.parametrize(
    "line",
    [
        ("serve", NAME, "--port", "0"),
        ("quantize", NAME, "unused", "--scheme", "int8"),
    ],
    ids=lambda line: line[0],
)
def test_without_a_download_a_line_says_what_to_type(hub: Hub, tmp_path: Path, line: tuple[str, ...]) -> None:
    done = run(*line)
    cache = tmp_path / "home" / "hub"
    says = f"{NAME}: no such folder, and not in the Hugging Face cache {cache}; --download fetches it from the hub"
    assert (done.returncode, done.stderr) == (1, f"glm-infill: {says}\n")
    assert hub.asked == []


def test_offline_switches_are_honoured(hub: Hub) -> None:
    done = run("plan", NAME, "--gpus", "T4", "--download", HF_HUB_OFFLINE="1")
    says = f"{NAME}: not whole in the Hugging Face cache, and HF_HUB_OFFLINE forbids a download"
    assert (done.returncode, done.stderr) == (1, f"glm-infill: {says}\n")
    assert hub.asked == []


def test_a_plan_shows_nothing_but_its_result(hub: Hub) -> None:
    done = run("plan", NAME, "--gpus", "T4", "--download")
    assert (done.returncode, done.stderr) == (0, "")
    assert hub.fetched() == {"config.json"}
