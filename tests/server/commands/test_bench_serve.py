"""`glm-infill bench serve` against a running server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "server.cli", "bench", "serve", *args]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_both_loops_are_measured_and_drawn(demo_url: str, tmp_path: Path) -> None:
    plot = tmp_path / "load.png"
    options = ["--concurrency", "1,2", "--rate", "5", "--duration", "0.5", "--mix", "fill=1,score=1", "--tokens", "3"]
    done = bench("--url", demo_url, *options, "--slo-first", "60000", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [level["concurrency"] for level in found["closed"]] == [1, 2]
    assert [level["rate"] for level in found["open"]] == [5.0]
    for level in (*found["closed"], *found["open"]):
        assert level["ok"] == level["requests"]
        assert level["goodput_per_s"] == level["requests_per_s"]
    assert found["model"] == "glm-demo"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_rates_follow_from_what_the_clients_got(demo_url: str) -> None:
    done = bench(
        "--url", demo_url, "--concurrency", "2", "--rate", "auto", "--duration", "0.1", "--tokens", "1", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rates = [level["rate"] for level in found["open"]]
    assert rates[-1] == pytest.approx(2 * found["closed"][0]["requests_per_s"], rel=0.01)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--concurrency", "0"], "--concurrency: positive numbers"),
        (["--concurrency", "1.5"], "--concurrency: positive numbers"),
        (["--rate", "fast"], "--rate: positive numbers"),
        (["--rate", "auto"], "--rate auto needs --concurrency"),
        (["--mix", "fill=0"], "--mix: shares of fill and score"),
        (["--mix", "chat=1"], "--mix: shares of fill and score"),
    ],
)
def test_options_that_make_no_sense_are_refused(args: list[str], message: str) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = bench("--url", "http://127.0.0.1:9", "--concurrency", "1", "--duration", "0.1")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
