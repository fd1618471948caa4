"""Fault 27: a server under mixed load keeps its memory, files and threads.

`GLM_INFILL_SOAK_MINUTES` says how long; half a minute unless told otherwise, five in CI."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("GLM_INFILL_SOAK_MINUTES", "0.5"))
EXPECTED = {"200", "503", "429", "400"}


def test_many_requests_get_one_answer_each_and_leave_nothing_behind(tiny_checkpoint: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--requests", "1500", "--clients", "16"]
    folder = tiny_checkpoint(max_sequence_length=512)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--model", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    answers = found["answers"]
    assert set(answers) == {"fill 200", "score 200", "left", "bad 400"}, answers
    assert sum(answers.values()) == 1500
    assert min(answers.values()) > 20
    before, after = found["before"], found["after"]
    # What is asked ends once each; one that is left before its head is read is no request.
    assert found["asked"] - answers["left"] <= after["ended"] - answers["bad 400"] <= found["asked"]
    for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert after[name] == 0
    assert after["tasks"] <= before["tasks"] + 1
    for first, last in zip(before["processes"], after["processes"], strict=True):
        assert last["fds"] <= first["fds"] + 2
        assert last["threads"] <= first["threads"] + 2
        assert last["rss_kb"] - first["rss_kb"] < 16 * 1024
    assert found["exit_code"] == 0


def test_nothing_grows() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", str(MINUTES), "--clients", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MINUTES * 60 + 180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_answer_at_the_end"]
    assert found["exit_code"] == 0
    answers = {name: count for name, count in found["answers"].items() if name != "left"}
    assert {name.split()[1] for name in answers} <= EXPECTED, answers
    assert answers["fill 200"]
    assert answers["score 200"]
    for first, last in zip(found["first"], found["last"], strict=True):
        assert last["rss_kb"] - first["rss_kb"] < 32 * 1024
        assert last["threads"] - first["threads"] <= 8
        assert last["fds"] - first["fds"] <= 64  # connections that clients keep alive
