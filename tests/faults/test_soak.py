"""Fault 27: a server under mixed load keeps its memory, files and threads. `GLM_INFILL_SOAK_MINUTES` says how long; half
a minute unless told otherwise, five in CI."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("GLM_INFILL_SOAK_MINUTES", "0.5"))
EXPECTED = {"200", "503", "429", "400"}


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
