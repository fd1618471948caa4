"""The command line as a user runs it: real processes, a tiny model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server.cli", *args], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint())


def test_fill_prints_the_answer_as_json(folder: str) -> None:
    done = command("fill", "the [MASK] sang", "--max-tokens", "3", "--model", folder, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["blanks"][0]["mask"] == "[MASK]"


def test_score_ranks_candidates_for_one_blank(folder: str) -> None:
    done = command("score", "the [MASK] sang", "--span", "cat", "--span", "bird", "--model", folder, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [r["spans"][0]["text"] for r in answer["results"]] == ["cat", "bird"]
    assert sum(answer["probabilities"]) == pytest.approx(1.0)


@pytest.mark.parametrize("command_line", [("fill", "a [MASK]"), ("score", "a [MASK]", "--span", "b")])
def test_fill_and_score_take_the_storage_of_the_weights(folder: str, command_line: tuple[str, ...]) -> None:
    quant = ("--quant", "int4", "--quant-head", "int8", "--model", folder, "--json")
    done = command(*command_line, *quant, "--group-size", "64")
    assert done.returncode == 0, done.stderr
    done = command(*command_line, *quant, "--group-size", "128")
    assert done.returncode == 1
    assert "group_size 128 does not divide the 64 inputs" in done.stderr


def test_doctor_tells_the_kernels() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0
    assert "int8" in json.loads(done.stdout)["kernels"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("fill", "x", "--model", "/nowhere"), 1, "/nowhere: no such folder"),
        (("fill", "x", "--temperature", "-1"), 2, "temperature"),
        (("score", "a [MASK] [MASK]", "--span", "b"), 2, "spans"),
        (("fill", "x", "--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9/v1/infill"),
        (("serve", "--quant", "int3"), 2, "int3"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback(args: tuple[str, ...], code: int, says: str) -> None:
    done = command(*args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
